//! The keyed hash, and the key of a day, region and service.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::{Zeroize as _, Zeroizing};

use crate::credentials::Credentials;
use crate::hex;
use crate::scope::Scope;

/// Signs within one [`Scope`].
pub(crate) struct SigningKey(Zeroizing<[u8; 32]>);

impl SigningKey {
    pub(crate) fn new(credentials: &Credentials, scope: &Scope) -> Self {
        let secret = credentials.secret();
        let mut first = Zeroizing::new(Vec::with_capacity(4 + secret.len()));
        first.extend_from_slice(b"AWS4");
        first.extend_from_slice(secret);
        let mut key = mac(&first, &[scope.date()]);
        for part in [scope.region(), scope.service(), Scope::END] {
            key = mac(&*key, &[part]);
        }
        Self(key)
    }

    /// The signature of these parts, one after another.
    pub(crate) fn sign(&self, parts: &[&str]) -> [u8; 64] {
        hex::encode(&mac(&*self.0, parts))
    }
}

fn mac(key: &[u8], parts: &[&str]) -> Zeroizing<[u8; 32]> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length is a key");
    for part in parts {
        mac.update(part.as_bytes());
    }
    let mut bytes = mac.finalize().into_bytes();
    let mut result = Zeroizing::new([0; 32]);
    result.copy_from_slice(&bytes);
    bytes.zeroize();
    result
}
