//! Keys, real ones and placeholders.

use std::fmt;

use subtle::ConstantTimeEq as _;
use wire::text::Secret;
use zeroize::Zeroizing;

/// Longest access key ID, and longest of the other two, in bytes.
pub(crate) const MAX_ID: usize = 128;
const MAX_PART: usize = 16 << 10;

/// Why a secret holds no keys. No message has any part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// Not three parts or two.
    #[error("AWS credentials are ID:SECRET or ID:SECRET:TOKEN")]
    Form,
    /// The first part.
    #[error("the access key ID of AWS credentials is 1 to {MAX_ID} letters, digits and `_`")]
    Id,
    /// The second part.
    #[error(
        "the secret access key of AWS credentials is empty, too long, or has a character that no key has"
    )]
    Secret,
    /// The third part.
    #[error(
        "the session token of AWS credentials is empty, too long, or has a character that no token has"
    )]
    Token,
}

/// An access key. Wiped when dropped.
pub struct Credentials {
    id: String,
    secret: Zeroizing<Vec<u8>>,
    token: Option<Zeroizing<Vec<u8>>>,
}

impl Credentials {
    /// Reads `ID:SECRET` or `ID:SECRET:TOKEN`.
    ///
    /// # Errors
    /// `CredentialsError`.
    pub fn parse(secret: &Secret) -> Result<Self, CredentialsError> {
        let mut parts = secret.expose().splitn(3, |&byte| byte == b':');
        let id = parts.next().filter(|id| is_id(id)).ok_or(CredentialsError::Id)?;
        let key = parts.next().ok_or(CredentialsError::Form)?;
        let token = parts.next();
        if !is_part(key) {
            return Err(CredentialsError::Secret);
        }
        if token.is_some_and(|token| !is_part(token)) {
            return Err(CredentialsError::Token);
        }
        Ok(Self {
            id: id.iter().copied().map(char::from).collect(),
            secret: Zeroizing::new(key.to_vec()),
            token: token.map(|token| Zeroizing::new(token.to_vec())),
        })
    }

    /// The access key ID, which is not secret.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn secret(&self) -> &[u8] {
        &self.secret
    }

    pub(crate) fn token(&self) -> Option<&[u8]> {
        self.token.as_ref().map(|token| token.as_slice())
    }

    /// Whether a request that names this key and this token names these credentials.
    pub(crate) fn are_named_by(&self, id: &str, token: Option<&[u8]>) -> bool {
        let same_token = match (self.token(), token) {
            (None, None) => true,
            (Some(ours), Some(theirs)) => ours.ct_eq(theirs).into(),
            _ => false,
        };
        bool::from(self.id.as_bytes().ct_eq(id.as_bytes())) && same_token
    }
}

/// Whether it can be an access key ID.
pub(crate) fn is_id(text: &[u8]) -> bool {
    (1..=MAX_ID).contains(&text.len())
        && text.iter().all(|&byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn is_part(text: &[u8]) -> bool {
    (1..=MAX_PART).contains(&text.len()) && text.iter().all(u8::is_ascii_graphic)
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Credentials, CredentialsError> {
        Credentials::parse(&Secret::new(text.as_bytes().to_vec()).unwrap())
    }

    #[test]
    fn a_token_is_optional_and_may_have_colons() {
        let credentials = parse("AKID:se/cret+=").unwrap();
        assert_eq!((credentials.id(), credentials.secret()), ("AKID", &b"se/cret+="[..]));
        assert_eq!(credentials.token(), None);
        assert_eq!(parse("AKID:secret:to:ken").unwrap().token(), Some(&b"to:ken"[..]));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for (text, error) in [
            ("", CredentialsError::Id),
            (":secret", CredentialsError::Id),
            ("AK/ID:secret", CredentialsError::Id),
            ("AKID", CredentialsError::Form),
            ("AKID:", CredentialsError::Secret),
            ("AKID:sec ret", CredentialsError::Secret),
            ("AKID:secret\n", CredentialsError::Secret),
            ("AKID:secret:", CredentialsError::Token),
            ("AKID:secret:to\rken", CredentialsError::Token),
        ] {
            assert_eq!(parse(text).unwrap_err(), error, "{text:?}");
        }
        assert_eq!(parse(&format!("{}:s", "A".repeat(129))).unwrap_err(), CredentialsError::Id);
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!("{:?}", parse("AKID:hunter2:hunter3").unwrap());
        assert_eq!(shown, "Credentials { id: \"AKID\", .. }");
    }

    #[test]
    fn the_token_is_part_of_the_name() {
        let (plain, session) = (parse("AKID:s").unwrap(), parse("AKID:s:t").unwrap());
        assert!(plain.are_named_by("AKID", None) && session.are_named_by("AKID", Some(b"t")));
        assert!(!plain.are_named_by("AKID", Some(b"t")) && !session.are_named_by("AKID", None));
        assert!(!session.are_named_by("AKID", Some(b"u")) && !plain.are_named_by("AKIE", None));
    }
}
