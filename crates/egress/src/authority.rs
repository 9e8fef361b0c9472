//! The certificate authority of one sandbox. Its key is made with the gateway, is in memory only and
//! dies with it; nobody else trusts it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use canonical::Host;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::ServerSessionMemoryCache;
use rustls::sign::CertifiedKey;
use time::{Duration, OffsetDateTime};

use crate::Error;

/// Most hosts whose certificates are kept.
const MOST: usize = 512;
/// A guest's clock may be behind.
const EARLIER: Duration = Duration::hours(24);
/// The longest that clients take of leaves (CA/Browser Forum, since 2026) is 200 days.
const LIFETIME: Duration = Duration::days(90);

pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    leaf: KeyPair,
    provider: Arc<CryptoProvider>,
    configs: Mutex<Configs>,
}

#[derive(Default)]
struct Configs {
    known: HashMap<(Host, bool), Arc<ServerConfig>>,
    order: VecDeque<(Host, bool)>,
}

impl Authority {
    pub(crate) fn new(sandbox: &str) -> Result<Self, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&format!("Sandforge, sandbox {sandbox}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        lifetime(&mut params);
        let key = KeyPair::generate().map_err(Error::certificate)?;
        let certificate = params.self_signed(&key).map_err(Error::certificate)?;
        Ok(Self {
            pem: certificate.pem(),
            issuer: Issuer::new(params, key),
            leaf: KeyPair::generate().map_err(Error::certificate)?,
            provider: Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
            configs: Mutex::default(),
        })
    }

    /// What guests are to trust.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// How to be `host` to a guest, over HTTP/2 too or over HTTP/1.1 only.
    pub(crate) fn config(&self, host: &Host, with_h2: bool) -> Result<Arc<ServerConfig>, Error> {
        let key = (host.clone(), with_h2);
        if let Some(config) = self.lock().known.get(&key) {
            return Ok(config.clone());
        }
        let config = Arc::new(self.make(host, with_h2)?);
        let mut configs = self.lock();
        if configs.order.len() >= MOST
            && let Some(oldest) = configs.order.pop_front()
        {
            configs.known.remove(&oldest);
        }
        if configs.known.insert(key.clone(), config.clone()).is_none() {
            configs.order.push_back(key);
        }
        Ok(config)
    }

    fn make(&self, host: &Host, with_h2: bool) -> Result<ServerConfig, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![match host {
            Host::Name(name) => {
                SanType::DnsName(name.as_str().try_into().map_err(Error::certificate)?)
            }
            Host::Address(address) => SanType::IpAddress(*address),
        }];
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let mut serial = [0; 16];
        rcgen_random(&self.provider, &mut serial)?;
        serial[0] &= 0x7f;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        lifetime(&mut params);
        let certificate = params.signed_by(&self.leaf, &self.issuer).map_err(Error::certificate)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.leaf.serialize_der()));
        let certified =
            CertifiedKey::from_der(vec![certificate.der().clone()], key, &self.provider)
                .map_err(Error::Tls)?;
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(Error::Tls)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));
        config.alpn_protocols = match with_h2 {
            true => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            false => vec![b"http/1.1".to_vec()],
        };
        config.session_storage = ServerSessionMemoryCache::new(32);
        config.send_tls13_tickets = 1;
        Ok(config)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Configs> {
        self.configs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

fn rcgen_random(provider: &CryptoProvider, bytes: &mut [u8]) -> Result<(), Error> {
    provider.secure_random.fill(bytes).map_err(|_| Error::Random)
}

fn named(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

fn lifetime(params: &mut CertificateParams) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - EARLIER;
    params.not_after = now + LIFETIME;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_s_certificate_is_made_once_and_the_oldest_is_forgotten() {
        let authority = Authority::new("sb-test").unwrap();
        let host = |number: usize| Host::parse(&format!("h{number}.example")).unwrap();
        let first = authority.config(&host(0), true).unwrap();
        assert!(Arc::ptr_eq(&first, &authority.config(&host(0), true).unwrap()));
        assert_eq!(first.alpn_protocols.len(), 2);
        assert_eq!(authority.config(&host(0), false).unwrap().alpn_protocols, [b"http/1.1"]);
        for number in 1..=MOST {
            authority.config(&host(number), true).unwrap();
        }
        assert_eq!(authority.lock().known.len(), MOST);
        assert!(!Arc::ptr_eq(&first, &authority.config(&host(0), true).unwrap()));
    }
}
