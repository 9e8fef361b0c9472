//! What the administrator says about registries.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::name::{NameError, Source, host};
use crate::policy::{Pattern, PatternError, Rules};
use crate::signature::{KeyError, PublicKey};

/// A key or a bundle of authorities that is longer is something else.
const LONGEST_FILE: u64 = 1 << 20;
const KNOWN: &str = include_str!("known.toml");

/// The file `image-registries.toml`. Hosts are written `host` or `host:port`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Patterns of what may be pulled; everything where it is not there.
    pub allow: Option<Vec<String>>,
    /// Patterns of what may not.
    pub deny: Vec<String>,
    /// Hosts that are asked without TLS.
    pub plain_http: Vec<String>,
    /// Authorities besides the host's own, as PEM.
    pub ca: Option<PathBuf>,
    /// Hosts that give tokens for a registry, besides itself.
    pub realms: BTreeMap<String, Vec<String>>,
    /// Public keys by pattern: what it matches is taken only with a signature by that key. Of several
    /// patterns the longest counts.
    pub keys: BTreeMap<String, PathBuf>,
    /// Hosts that stand for a registry: a mirror, or where it really is.
    pub endpoints: BTreeMap<String, String>,
    /// What logins for a registry are kept under, where that is not its host.
    pub logins: BTreeMap<String, String>,
}

/// Why what is said about registries cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file is not TOML of this form.
    #[error("{}: {why}", .path.display())]
    Form {
        /// Which.
        path: PathBuf,
        /// Where it is wrong.
        why: String,
    },
    /// A pattern is none.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// A host is none.
    #[error(transparent)]
    Host(#[from] NameError),
    /// A key is none.
    #[error("{} is not a key for signatures: {source}", .path.display())]
    Key {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: KeyError,
    },
}

impl Settings {
    /// What `image-registries.toml` in this directory says; nothing where it is not there. Paths in it are
    /// from that directory.
    ///
    /// # Errors
    /// `SettingsError`.
    pub fn load(directory: &Path) -> Result<Self, SettingsError> {
        let path = directory.join("image-registries.toml");
        let bytes = match read(&path) {
            Err(SettingsError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            read => read?,
        };
        let wrong = |why: String| SettingsError::Form { path: path.clone(), why };
        let text = String::from_utf8(bytes).map_err(|_| wrong("it is not UTF-8".into()))?;
        let settings: Self =
            toml::from_str(&text).map_err(|error| wrong(error.to_string().trim_end().into()))?;
        let settings = settings.below(directory);
        // Mistakes are told now, and not when somebody pulls.
        settings.rules()?;
        settings.keys.keys().try_for_each(|text| text.parse::<Pattern>().map(drop))?;
        settings.over_known()?;
        Ok(settings)
    }

    /// What may be pulled.
    ///
    /// # Errors
    /// `SettingsError`.
    pub fn rules(&self) -> Result<Rules, SettingsError> {
        let patterns = |texts: &[String]| {
            texts.iter().map(|text| Ok(text.parse()?)).collect::<Result<Vec<_>, SettingsError>>()
        };
        let allow = self.allow.as_deref().map(patterns).transpose()?;
        Ok(Rules { allow, deny: patterns(&self.deny)? })
    }

    /// The key that has to have signed what comes from there; none where none is asked for.
    ///
    /// # Errors
    /// `SettingsError`: one that is asked for and cannot be read is not one that is not asked for.
    pub fn key(&self, source: &Source) -> Result<Option<PublicKey>, SettingsError> {
        let mut best: Option<(Pattern, &PathBuf)> = None;
        for (text, path) in &self.keys {
            let pattern: Pattern = text.parse()?;
            let nearer = best.as_ref().is_none_or(|(best, _)| pattern.length() > best.length());
            if pattern.matches(source) && nearer {
                best = Some((pattern, path));
            }
        }
        let Some((_, path)) = best else { return Ok(None) };
        let key = PublicKey::from_pem(&read(path)?);
        key.map(Some).map_err(|source| SettingsError::Key { path: path.clone(), source })
    }

    /// Paths that do not begin at the root are below `directory` from here on.
    #[must_use]
    pub fn below(mut self, directory: &Path) -> Self {
        let paths = self.keys.values_mut().chain(&mut self.ca);
        paths.for_each(|path| *path = directory.join(&*path));
        self
    }

    /// What is known of public registries, and this over it; every host in one spelling.
    pub(crate) fn over_known(&self) -> Result<Self, SettingsError> {
        let mut all: Self = toml::from_str(KNOWN).expect("known.toml is read by a test");
        for (registry, realms) in &self.realms {
            let realms = realms.iter().map(|realm| host(realm)).collect::<Result<_, _>>()?;
            all.realms.insert(host(registry)?, realms);
        }
        for (registry, endpoint) in &self.endpoints {
            all.endpoints.insert(host(registry)?, host(endpoint)?);
        }
        for (registry, name) in &self.logins {
            all.logins.insert(host(registry)?, name.clone());
        }
        for plain in &self.plain_http {
            all.plain_http.push(host(plain)?);
        }
        all.ca.clone_from(&self.ca);
        Ok(all)
    }
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, SettingsError> {
    let failed = |source| SettingsError::Read { path: path.into(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(LONGEST_FILE).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_read_and_what_is_configured_takes_its_place() {
        let known = Settings::default().over_known().unwrap();
        assert_eq!(known.endpoints["docker.io"], "registry-1.docker.io");
        assert_eq!(known.realms["registry-1.docker.io"], ["auth.docker.io"]);
        let own: Settings = toml::from_str(
            "plain_http = ['Localhost:5000']\n\
             [realms]\n'registry-1.docker.io' = []\n\
             [endpoints]\n'docker.io' = 'mirror.example:5000'",
        )
        .unwrap();
        let own = own.over_known().unwrap();
        assert_eq!(own.plain_http, ["localhost:5000"]);
        assert!(own.realms["registry-1.docker.io"].is_empty());
        assert_eq!(own.endpoints["docker.io"], "mirror.example:5000");
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert!(toml::from_str::<Settings>("alow = []").is_err());
        let wrong: Settings = toml::from_str("allow = ['a//b']").unwrap();
        assert!(wrong.rules().is_err());
    }

    #[test]
    fn a_key_that_cannot_be_read_is_not_one_that_is_not_asked_for() {
        let settings: Settings =
            toml::from_str("[keys]\n'ghcr.io/acme/**' = '/nonexistent/key.pub'").unwrap();
        let signed = Source::new("ghcr.io", "acme/tool").unwrap();
        assert!(settings.key(&signed).is_err());
        let other = Source::new("ghcr.io", "other/tool").unwrap();
        assert!(settings.key(&other).unwrap().is_none());
    }

    #[test]
    fn a_file_with_a_mistake_is_not_one_that_is_not_there() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Settings::load(directory.path()).unwrap(), Settings::default());
        let path = directory.path().join("image-registries.toml");
        for wrong in ["deny = 'docker.io'", "alow = []", "deny = ['a//b']", "plain_http = ['a b']"]
        {
            std::fs::write(&path, wrong).unwrap();
            assert!(Settings::load(directory.path()).is_err(), "{wrong}");
        }
        std::fs::write(&path, "ca = 'company.pem'\nallow = ['ghcr.io']").unwrap();
        let settings = Settings::load(directory.path()).unwrap();
        assert_eq!(settings.ca, Some(directory.path().join("company.pem")));
    }

    #[test]
    fn the_longest_pattern_has_the_key() {
        let directory = tempfile::tempdir().unwrap();
        let pair = rcgen::KeyPair::generate().unwrap();
        std::fs::write(directory.path().join("good.pub"), pair.public_key_pem()).unwrap();
        let settings: Settings =
            toml::from_str("[keys]\n'ghcr.io/**' = 'absent.pub'\n'ghcr.io/acme/*' = 'good.pub'")
                .unwrap();
        let settings = settings.below(directory.path());
        assert!(settings.key(&Source::new("ghcr.io", "acme/tool").unwrap()).unwrap().is_some());
        assert!(settings.key(&Source::new("ghcr.io", "other/tool").unwrap()).is_err());
    }
}
