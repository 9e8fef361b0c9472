//! What a receiver checks: `Sandforge-Signature: t=<seconds since 1970>,v1=<hex>`.
//!
//! `v1` is HMAC-SHA256, under the subscription's secret, of the time, a full stop, and the body. The
//! time is in it so that a notice that was overheard is worthless later.

use std::fmt::Write as _;
use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use wire::text::Secret;

/// The name of the header.
pub const HEADER: &str = "Sandforge-Signature";
/// How old a notice may be for [`verify`].
pub const TOLERANCE: Duration = Duration::from_secs(300);

/// Why a notice is not to be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The header is not of the form that [`sign`] makes.
    #[error("the signature is not of the form t=<seconds>,v1=<64 hexadecimal digits>")]
    Form,
    /// Too old, or from the future.
    #[error("the signature's time is more than five minutes away")]
    Time,
    /// Of another body, or under another secret.
    #[error("the signature is not of this body under this secret")]
    Mismatch,
}

fn mac(secret: &Secret, time: u64, body: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose()).expect("any length is a key");
    mac.update(time.to_string().as_bytes());
    mac.update(b".");
    mac.update(body);
    mac
}

/// The header's value for a body that is sent at `time`, in seconds since 1970.
pub fn sign(secret: &Secret, time: u64, body: &[u8]) -> String {
    let mut header = format!("t={time},v1=");
    for byte in mac(secret, time, body).finalize().into_bytes() {
        let _ = write!(header, "{byte:02x}");
    }
    header
}

/// What a receiver does, for receivers in Rust and as the reference for all others.
///
/// # Errors
/// `SignatureError`.
pub fn verify(secret: &Secret, header: &str, body: &[u8], now: u64) -> Result<(), SignatureError> {
    let (time, tag) = header
        .strip_prefix("t=")
        .and_then(|rest| rest.split_once(",v1="))
        .ok_or(SignatureError::Form)?;
    let time: u64 = time.parse().map_err(|_| SignatureError::Form)?;
    let tag = from_hex(tag).ok_or(SignatureError::Form)?;
    if time.abs_diff(now) > TOLERANCE.as_secs() {
        return Err(SignatureError::Time);
    }
    mac(secret, time, body).verify_slice(&tag).map_err(|_| SignatureError::Mismatch)
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(text.as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn what_was_signed_verifies_for_five_minutes() {
        let header = sign(&secret("key"), 1_000_000, b"{}");
        for now in [999_700, 1_000_000, 1_000_300] {
            assert_eq!(verify(&secret("key"), &header, b"{}", now), Ok(()));
        }
        for now in [999_699, 1_000_301] {
            assert_eq!(verify(&secret("key"), &header, b"{}", now), Err(SignatureError::Time));
        }
    }

    #[test]
    fn it_is_the_hmac_that_others_compute() {
        // printf '1.body' | openssl dgst -sha256 -hmac key
        let expected = "91b5374b153842ad05b2c4eab9349b8321b14703165bd3fb8b034dfb8be98ae5";
        assert_eq!(sign(&secret("key"), 1, b"body"), format!("t=1,v1={expected}"));
    }

    #[test]
    fn another_secret_or_body_does_not_verify() {
        let header = sign(&secret("key"), 5, b"body");
        assert_eq!(verify(&secret("kez"), &header, b"body", 5), Err(SignatureError::Mismatch));
        assert_eq!(verify(&secret("key"), &header, b"bodz", 5), Err(SignatureError::Mismatch));
        let moved = header.replace("t=5", "t=6");
        assert_eq!(verify(&secret("key"), &moved, b"body", 5), Err(SignatureError::Mismatch));
    }

    proptest! {
        #[test]
        fn no_header_panics(header: String) {
            prop_assert!(verify(&secret("key"), &header, b"", 0).is_err());
        }
    }
}
