//! The server's certificate: made, kept, renewed, and changed under running connections.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::Certificate;

const CERTIFICATE: &str = "server.pem";
const KEY: &str = "server.key";
const ABOUT: &str = "server.json";
/// How long an own certificate holds.
const VALIDITY: Duration = Duration::from_secs(397 * DAY);
/// Before its end it is renewed.
const MARGIN: Duration = Duration::from_secs(30 * DAY);
/// Clocks differ.
const SKEW: Duration = Duration::from_secs(DAY);
const DAY: u64 = 86_400;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// A file cannot be written.
    #[error("cannot write {}", .0.display())]
    Write(PathBuf, #[source] io::Error),
    /// A file holds something else.
    #[error("{} does not hold what it should, in PEM: {reason}", file.display())]
    Content {
        /// Which one.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The key is not the certificate's, or of a kind that is not known.
    #[error("the key and the certificate cannot be used together: {0}")]
    Unusable(String),
    /// It cannot be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// There is no certificate yet.
    #[error("there is no certificate yet: start `sandforge serve` once")]
    None,
}

/// What is known of an own certificate without parsing it.
#[derive(Debug, Serialize, Deserialize)]
struct About {
    names: Vec<String>,
    expires_unix: u64,
}

/// The certificate in use. Connections that begin after a change get the new one.
#[derive(Debug)]
pub(crate) struct Current {
    source: Certificate,
    names: Vec<String>,
    provider: Arc<CryptoProvider>,
    key: RwLock<Arc<CertifiedKey>>,
}

impl Current {
    /// Makes one where the source is [`Certificate::Own`] and there is none that still holds.
    pub(crate) fn open(source: Certificate, names: Vec<String>) -> Result<Self, CertificateError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = load(&source, &names, &provider)?;
        Ok(Self { source, names, provider, key: RwLock::new(Arc::new(key)) })
    }

    /// Renews or reads it again.
    pub(crate) fn refresh(&self) -> Result<(), CertificateError> {
        let key = load(&self.source, &self.names, &self.provider)?;
        *self.key.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
        Ok(())
    }

    pub(crate) fn tls(self: &Arc<Self>) -> Result<ServerConfig, CertificateError> {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| CertificateError::Unusable(error.to_string()))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.key.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// The certificate that clients have to trust, in PEM. Nothing is made.
///
/// # Errors
/// `CertificateError::None` before the first start, or that it cannot be read.
pub fn authority(source: &Certificate) -> Result<String, CertificateError> {
    let file = match source {
        Certificate::Own { directory } => directory.join(CERTIFICATE),
        Certificate::Files { chain, .. } => chain.clone(),
    };
    match fs::read_to_string(&file) {
        Ok(pem) => Ok(pem),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(CertificateError::None),
        Err(error) => Err(CertificateError::Read(file, error)),
    }
}

fn load(
    source: &Certificate,
    names: &[String],
    provider: &CryptoProvider,
) -> Result<CertifiedKey, CertificateError> {
    let (chain, key) = match source {
        Certificate::Files { chain, key } => (chain.clone(), key.clone()),
        Certificate::Own { directory } => {
            keep(directory, names, SystemTime::now())?;
            (directory.join(CERTIFICATE), directory.join(KEY))
        }
    };
    let wrong =
        |file: &Path, reason: String| CertificateError::Content { file: file.to_owned(), reason };
    let certificates = read(&chain)?;
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&certificates)
        .collect::<Result<_, _>>()
        .map_err(|error| wrong(&chain, error.to_string()))?;
    if certificates.is_empty() {
        return Err(wrong(&chain, "there is no certificate in it".into()));
    }
    let secret = zeroize::Zeroizing::new(read(&key)?);
    let secret =
        PrivateKeyDer::from_pem_slice(&secret).map_err(|error| wrong(&key, error.to_string()))?;
    CertifiedKey::from_der(certificates, secret, provider)
        .map_err(|error| CertificateError::Unusable(error.to_string()))
}

fn read(file: &Path) -> Result<Vec<u8>, CertificateError> {
    fs::read(file).map_err(|error| CertificateError::Read(file.to_owned(), error))
}

/// Sees to it that there is a certificate for these names that holds for a while.
fn keep(directory: &Path, names: &[String], now: SystemTime) -> Result<(), CertificateError> {
    let about = fs::read(directory.join(ABOUT)).ok();
    let about: Option<About> = about.and_then(|json| serde_json::from_slice(&json).ok());
    let now_unix = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let holds = about.is_some_and(|about| {
        about.names == names && Duration::from_secs(about.expires_unix) > now_unix + MARGIN
    });
    let there = |file: &str| directory.join(file).exists();
    if holds && there(CERTIFICATE) && there(KEY) {
        return Ok(());
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| CertificateError::Write(directory.to_owned(), error))?;
    // With the key that it had, a client that trusts the old one trusts the new one too.
    let key = match fs::read_to_string(directory.join(KEY)).map(zeroize::Zeroizing::new) {
        Ok(pem) => KeyPair::from_pem(&pem)?,
        Err(_) => KeyPair::generate()?,
    };
    let mut parameters = CertificateParams::new(names.to_vec())?;
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, "sandforge");
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let expires = now_unix + VALIDITY;
    parameters.not_before = moment(now_unix.saturating_sub(SKEW));
    parameters.not_after = moment(expires);
    let certificate = parameters.self_signed(&key)?;
    let about = About { names: names.to_vec(), expires_unix: expires.as_secs() };
    let about = serde_json::to_vec(&about).unwrap_or_default();
    write(directory, KEY, zeroize::Zeroizing::new(key.serialize_pem()).as_bytes())?;
    write(directory, CERTIFICATE, certificate.pem().as_bytes())?;
    write(directory, ABOUT, &about)
}

fn moment(unix: Duration) -> OffsetDateTime {
    let seconds = i64::try_from(unix.as_secs()).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// Whole or not at all, and for its owner only from the first byte on.
fn write(directory: &Path, name: &str, content: &[u8]) -> Result<(), CertificateError> {
    let (partial, file) = (directory.join(format!(".{name}.new")), directory.join(name));
    let written = || -> io::Result<()> {
        match fs::remove_file(&partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut new: File =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
        new.write_all(content)?;
        new.sync_all()?;
        fs::rename(&partial, &file)
    };
    written().map_err(|error| CertificateError::Write(file.clone(), error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn names() -> Vec<String> {
        ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into()
    }

    fn read(directory: &Path, name: &str) -> Vec<u8> {
        fs::read(directory.join(name)).unwrap()
    }

    #[test]
    fn the_key_is_for_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let inside = directory.path().join("tls");
        keep(&inside, &names(), SystemTime::now()).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&inside), 0o700);
        assert_eq!(mode(&inside.join(KEY)), 0o600);
    }

    #[test]
    fn a_certificate_that_holds_stays() {
        let directory = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        keep(directory.path(), &names(), now).unwrap();
        let first = read(directory.path(), CERTIFICATE);
        keep(directory.path(), &names(), now + Duration::from_secs(DAY)).unwrap();
        assert_eq!(read(directory.path(), CERTIFICATE), first);
    }

    #[test]
    fn a_certificate_near_its_end_is_renewed_with_the_same_key() {
        let directory = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        keep(directory.path(), &names(), now).unwrap();
        let (key, first) = (read(directory.path(), KEY), read(directory.path(), CERTIFICATE));
        keep(directory.path(), &names(), now + VALIDITY - MARGIN).unwrap();
        assert_eq!(read(directory.path(), KEY), key);
        assert_ne!(read(directory.path(), CERTIFICATE), first);
    }

    #[test]
    fn another_name_makes_another_certificate() {
        let directory = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        keep(directory.path(), &names(), now).unwrap();
        let first = read(directory.path(), CERTIFICATE);
        let more = [names(), vec!["build.example".into()]].concat();
        keep(directory.path(), &more, now).unwrap();
        assert_ne!(read(directory.path(), CERTIFICATE), first);
    }

    #[test]
    fn before_the_first_start_there_is_nothing_to_trust() {
        let directory = tempfile::tempdir().unwrap();
        let source = Certificate::Own { directory: directory.path().into() };
        assert!(matches!(authority(&source), Err(CertificateError::None)));
    }
}
