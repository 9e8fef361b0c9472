//! What a registry asks for with a 401.

use http_auth::parser::ChallengeParser;
use url::Url;

/// More than any registry sends.
const LONGEST: usize = 8 << 10;

/// A way to prove who one is that this client knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// A name and password, at the registry itself.
    Basic,
    /// A token, to be had elsewhere.
    Bearer {
        /// Where, an http or https URL without a user, a query or a fragment. Not to be contacted
        /// before it was judged.
        realm: Url,
        /// Which service of it.
        service: Option<String>,
    },
}

/// Why no challenge could be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChallengeError {
    /// There is none that this client knows.
    #[error("it names no way to log in that is known here: Basic and Bearer are")]
    None,
    /// The header is longer than any should be.
    #[error("its challenge is longer than {LONGEST} bytes")]
    Long,
    /// A token without a place to get it.
    #[error("its challenge asks for a token and names no realm")]
    NoRealm,
    /// The place is no URL to be asked.
    #[error("its challenge has a realm that is not a plain http or https URL")]
    Realm,
}

/// Reads the values of `WWW-Authenticate`. A token is preferred to a password.
///
/// # Errors
/// `ChallengeError`.
pub fn parse<'a>(values: impl Iterator<Item = &'a str>) -> Result<Challenge, ChallengeError> {
    let mut basic = false;
    for value in values {
        if value.len() > LONGEST {
            return Err(ChallengeError::Long);
        }
        // Up to the first mistake: it ends what can be told apart.
        for challenge in ChallengeParser::new(value).map_while(Result::ok) {
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = true;
            } else if challenge.scheme.eq_ignore_ascii_case("bearer") {
                let parameter = |name: &str| {
                    let mut found =
                        challenge.params.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
                    found.next().map(|(_, value)| value.to_unescaped())
                };
                let realm = parameter("realm").ok_or(ChallengeError::NoRealm)?;
                return Ok(Challenge::Bearer {
                    realm: url(&realm)?,
                    service: parameter("service"),
                });
            }
        }
    }
    if basic { Ok(Challenge::Basic) } else { Err(ChallengeError::None) }
}

fn url(text: &str) -> Result<Url, ChallengeError> {
    let url = Url::parse(text).map_err(|_| ChallengeError::Realm)?;
    let is_plain = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    if is_plain { Ok(url) } else { Err(ChallengeError::Realm) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(value: &str) -> Result<Challenge, ChallengeError> {
        parse([value].into_iter())
    }

    fn bearer(realm: &str, service: Option<&str>) -> Result<Challenge, ChallengeError> {
        Ok(Challenge::Bearer {
            realm: Url::parse(realm).unwrap(),
            service: service.map(str::to_owned),
        })
    }

    #[test]
    fn the_challenges_of_registries_are_read() {
        assert_eq!(
            one(
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/python:pull""#
            ),
            bearer("https://auth.docker.io/token", Some("registry.docker.io"))
        );
        assert_eq!(one(r#"Basic realm="Registry Realm""#), Ok(Challenge::Basic));
        assert_eq!(one("basic"), Ok(Challenge::Basic));
        assert_eq!(
            one(r#"BEARER realm="https://h/t" , service="a,b\"c""#),
            bearer("https://h/t", Some("a,b\"c"))
        );
    }

    #[test]
    fn a_token_is_preferred_in_whichever_order() {
        let token = r#"Bearer realm="https://h/t""#;
        let expected = bearer("https://h/t", None);
        assert_eq!(one(&format!("Basic realm=\"x\", {token}")), expected);
        assert_eq!(parse(["Basic", token].into_iter()), expected);
        assert_eq!(parse([token, "Basic"].into_iter()), expected);
    }

    #[test]
    fn a_realm_is_a_plain_url() {
        for realm in [
            "file:///etc/passwd",
            "https://user:word@h/t",
            "https://h/t?account=x",
            "https://h/t#x",
            "//h/t",
            "t",
            "",
            "ftp://h/t",
        ] {
            let value = format!("Bearer realm=\"{realm}\"");
            assert_eq!(one(&value), Err(ChallengeError::Realm), "{realm}");
        }
        assert_eq!(one("Bearer service=\"x\""), Err(ChallengeError::NoRealm));
    }

    #[test]
    fn what_is_not_known_is_not_guessed() {
        for value in ["", "Negotiate", "Digest realm=\"x\", nonce=\"y\"", "= , ="] {
            assert_eq!(one(value), Err(ChallengeError::None), "{value}");
        }
        assert_eq!(one(&"x".repeat(LONGEST + 1)), Err(ChallengeError::Long));
    }

    proptest! {
        #[test]
        fn whatever_comes_a_realm_is_a_url_that_may_be_judged(value in "\\PC{0,200}") {
            if let Ok(Challenge::Bearer { realm, .. }) = one(&value) {
                prop_assert!(realm.has_host());
                prop_assert!(realm.username().is_empty());
            }
        }

        #[test]
        fn a_service_comes_back_as_it_was_written(service in "[a-zA-Z0-9 ,=./:-]{1,60}") {
            let value = format!("Bearer realm=\"https://h/t\",service=\"{service}\"");
            prop_assert_eq!(one(&value), bearer("https://h/t", Some(&service)));
        }
    }
}
