//! Who we are to a registry: what `docker login` left in `config.json`, or a program that it names.

use std::collections::BTreeMap;
use std::env;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use wire::text::Secret;
use zeroize::Zeroizing;

use crate::helper::{self, HelperError};

/// More than anybody has logins for.
const LONGEST: usize = 1 << 20;

/// Why there is no credential. Says nothing of what is secret.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not what `docker login` writes.
    #[error("{} is not a configuration of docker: {why}", .path.display())]
    Form {
        /// Which.
        path: PathBuf,
        /// Where it is wrong.
        why: String,
    },
    /// An entry is none.
    #[error("the entry {key:?} of {} is not base64 of name:password; log in again", .path.display())]
    Entry {
        /// In which file.
        path: PathBuf,
        /// Which.
        key: String,
    },
    /// The program that has it did not give it.
    #[error(transparent)]
    Helper(#[from] HelperError),
}

/// What proves who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// A name and its password.
    Password {
        /// The name.
        user: String,
        /// The password.
        password: Secret,
    },
    /// A token that others are had for, at the token service only.
    Identity(Secret),
    /// A token for the registry itself.
    Bearer(Secret),
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Docker {
    #[serde(default)]
    auths: BTreeMap<String, Option<Auth>>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
struct Auth {
    auth: Option<Secret>,
    username: Option<String>,
    password: Option<Secret>,
    identitytoken: Option<Secret>,
    registrytoken: Option<Secret>,
}

/// The logins of the user who runs this.
#[derive(Default)]
pub struct Credentials {
    path: PathBuf,
    docker: Docker,
    given: Option<Login>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Credentials {
    /// None: registries are asked without a name.
    pub fn none() -> Self {
        Self::default()
    }

    /// This one, for whichever registry is asked.
    pub fn of(login: Login) -> Self {
        Self { given: Some(login), ..Self::default() }
    }

    /// Those of the environment: the file that `REGISTRY_AUTH_FILE` names, or `config.json` in
    /// `$DOCKER_CONFIG` or `~/.docker`. None where there is no such file.
    ///
    /// # Errors
    /// `CredentialsError` where there is one that cannot be read.
    pub fn load() -> Result<Self, CredentialsError> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let path = set("REGISTRY_AUTH_FILE")
            .or_else(|| set("DOCKER_CONFIG").map(|directory| directory.join("config.json")))
            .or_else(|| set("HOME").map(|home| home.join(".docker/config.json")));
        path.map_or_else(|| Ok(Self::none()), |path| Self::open(&path))
    }

    /// Those of this file.
    ///
    /// # Errors
    /// `CredentialsError`.
    pub fn open(path: &Path) -> Result<Self, CredentialsError> {
        let failed = |source| CredentialsError::Read { path: path.into(), source };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::none()),
            Err(error) => return Err(failed(error)),
        };
        // Once, so that nothing is left behind by growing.
        let mut bytes = Zeroizing::new(Vec::with_capacity(LONGEST + 1));
        file.take(LONGEST as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
        Self::parse(&bytes, path)
    }

    /// Reads what would stand in `path`.
    ///
    /// # Errors
    /// `CredentialsError`.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self, CredentialsError> {
        let wrong = |why: String| CredentialsError::Form { path: path.into(), why };
        if bytes.len() > LONGEST {
            return Err(wrong(format!("it is longer than {LONGEST} bytes")));
        }
        // The parser's own words may quote a value.
        let docker = serde_json::from_slice(bytes)
            .map_err(|error| wrong(format!("line {}, column {}", error.line(), error.column())))?;
        Ok(Self { path: path.into(), docker, given: None })
    }

    /// The login for `server`, which is a host, or what `docker login` calls it, and for `repository`
    /// there. A program that has it is asked now.
    ///
    /// # Errors
    /// `CredentialsError`.
    pub async fn find(
        &self,
        server: &str,
        repository: &str,
    ) -> Result<Option<Login>, CredentialsError> {
        if self.given.is_some() {
            return Ok(self.given.clone());
        }
        let wanted = bare(server);
        let own = self.docker.cred_helpers.iter().find(|(key, _)| bare(key) == wanted);
        let helper = own.map(|(_, name)| name).or(self.docker.creds_store.as_ref());
        if let Some(name) = helper.filter(|name| !name.is_empty())
            && let Some(login) = helper::get(name, server).await?
        {
            return Ok(Some(login));
        }
        self.entry(wanted, repository)
    }

    /// The entry of the longest key that is the host or a part of the path below it.
    fn entry(&self, host: &str, repository: &str) -> Result<Option<Login>, CredentialsError> {
        let full = format!("{host}/{repository}");
        let fits = |key: &str| {
            key == host
                || full.strip_prefix(key).is_some_and(|rest| {
                    key.len() > host.len() && (rest.is_empty() || rest.starts_with('/'))
                })
        };
        let mut best: Option<(&str, &Auth)> = None;
        for (key, auth) in &self.docker.auths {
            let Some(auth) = auth else { continue };
            let key = bare(key);
            if fits(key) && best.is_none_or(|(so_far, _)| key.len() > so_far.len()) {
                best = Some((key, auth));
            }
        }
        let Some((key, auth)) = best else { return Ok(None) };
        let wrong = || CredentialsError::Entry { path: self.path.clone(), key: key.into() };
        auth.login().map_err(|()| wrong())
    }
}

impl Auth {
    fn login(&self) -> Result<Option<Login>, ()> {
        let given = |secret: &Option<Secret>| {
            secret.as_ref().filter(|secret| !secret.expose().is_empty()).cloned()
        };
        if let Some(token) = given(&self.identitytoken) {
            return Ok(Some(Login::Identity(token)));
        }
        if let Some(token) = given(&self.registrytoken) {
            return Ok(Some(Login::Bearer(token)));
        }
        if let (Some(user), Some(password)) = (&self.username, given(&self.password)) {
            return Ok(Some(Login::Password { user: user.clone(), password }));
        }
        let Some(encoded) = given(&self.auth) else { return Ok(None) };
        let decoded = BASE64.decode(encoded.expose()).map_err(|_| ())?;
        let decoded = Zeroizing::new(decoded);
        let colon = decoded.iter().position(|&byte| byte == b':').ok_or(())?;
        let user = String::from_utf8(decoded[..colon].to_vec()).map_err(|_| ())?;
        // Old versions of docker pad the password with NUL.
        let password = decoded[colon + 1..].split(|&byte| byte == 0).next().unwrap_or_default();
        let password = Secret::new(password.to_vec()).map_err(|_| ())?;
        Ok(Some(Login::Password { user, password }))
    }
}

/// A key without scheme and without the version of the API, which `docker login` puts there.
fn bare(key: &str) -> &str {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn found(config: &Value, server: &str, repository: &str) -> Option<Login> {
        let credentials =
            Credentials::parse(config.to_string().as_bytes(), Path::new("config.json")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(credentials.find(server, repository)).unwrap()
    }

    fn secret(text: &str) -> Secret {
        Secret::new(text.into()).unwrap()
    }

    fn password(user: &str, word: &str) -> Option<Login> {
        Some(Login::Password { user: user.into(), password: secret(word) })
    }

    #[test]
    fn an_entry_is_found_in_every_way_of_writing_its_key() {
        for key in ["r.example", "https://r.example", "https://r.example/v2/", "r.example/"] {
            let config = json!({"auths": {key: {"auth": BASE64.encode("me:pass:word")}}});
            assert_eq!(found(&config, "r.example", "a/b"), password("me", "pass:word"), "{key}");
            assert_eq!(found(&config, "r.example:5000", "a/b"), None, "{key}");
            assert_eq!(found(&config, "evil-r.example", "a/b"), None, "{key}");
        }
        let hub = "https://index.docker.io/v1/";
        let config = json!({"auths": {hub: {"auth": BASE64.encode("me:x")}}});
        assert_eq!(found(&config, hub, "library/python"), password("me", "x"));
    }

    #[test]
    fn the_nearest_entry_counts() {
        let auth = |word: &str| json!({"username": "me", "password": word});
        let config = json!({"auths": {"r": auth("1"), "r/a": auth("2"), "r/a/b": auth("3")}});
        assert_eq!(found(&config, "r", "x"), password("me", "1"));
        assert_eq!(found(&config, "r", "a/c"), password("me", "2"));
        assert_eq!(found(&config, "r", "a/b/c"), password("me", "3"));
        assert_eq!(found(&config, "r", "ab"), password("me", "1"));
    }

    #[test]
    fn tokens_are_told_from_passwords() {
        let config = json!({"auths": {"r": {"auth": "", "identitytoken": "t"}}});
        assert_eq!(found(&config, "r", "a"), Some(Login::Identity(secret("t"))));
        let config = json!({"auths": {"r": {"registrytoken": "t"}}});
        assert_eq!(found(&config, "r", "a"), Some(Login::Bearer(secret("t"))));
        let config = json!({"auths": {"r": {}, "s": null}});
        assert_eq!(found(&config, "r", "a"), None);
        assert_eq!(found(&config, "s", "a"), None);
    }

    #[test]
    fn what_else_docker_has_there_is_left_alone() {
        let config = json!({"HttpHeaders": {"a": "b"}, "psFormat": "x", "credsStore": ""});
        assert_eq!(found(&config, "r", "a"), None);
    }

    #[test]
    fn neither_an_error_nor_debug_shows_a_value() {
        let broken =
            br#"{"auths": {"r": {"auth": "c2VjcmV0", "password": "hunter2"}}, "credsStore": 17}"#;
        let error = Credentials::parse(broken, Path::new("c")).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        let config = json!({"auths": {"r": {"auth": "bm9jb2xvbg=="}}}).to_string();
        let credentials = Credentials::parse(config.as_bytes(), Path::new("c")).unwrap();
        let error = credentials.entry("r", "a").unwrap_err();
        let all = format!("{credentials:?} {error} {error:?}");
        assert!(!all.contains("bm9jb2xvbg") && !all.contains("nocolon"), "{all}");
    }

    #[test]
    fn a_file_that_is_not_there_has_no_logins() {
        let credentials = Credentials::open(Path::new("/nonexistent/config.json")).unwrap();
        assert!(credentials.docker.auths.is_empty());
    }

    proptest! {
        #[test]
        fn name_and_password_come_back(user in "[^:\0]{0,20}", word in "[^\0]{0,20}") {
            let config = json!({"auths": {"r": {"auth": BASE64.encode(format!("{user}:{word}"))}}});
            prop_assert_eq!(found(&config, "r", "a"), password(&user, &word));
        }

        #[test]
        fn whatever_stands_there_is_read_or_refused(text in "\\PC{0,200}") {
            let _ = Credentials::parse(text.as_bytes(), Path::new("c"));
        }
    }
}
