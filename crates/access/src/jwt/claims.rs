//! What a token says.

use api::Timestamp;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::JwtError;

/// The part of a token's header that is looked at before its signature is.
#[derive(Deserialize)]
pub(super) struct Header {
    pub(super) alg: String,
    #[serde(default)]
    pub(super) kid: Option<String>,
    /// Something that must be understood. Nothing of it is.
    #[serde(default)]
    crit: Option<Value>,
}

/// Reads the header. The library's own reader has no name for `none`, and would call a token
/// with it malformed; a reason is worth more in a log.
pub(super) fn header(token: &str) -> Result<Header, JwtError> {
    let (header, _) = token.split_once('.').ok_or(JwtError::Malformed)?;
    let json = URL_SAFE_NO_PAD.decode(header).map_err(|_| JwtError::Malformed)?;
    let header: Header = serde_json::from_slice(&json).map_err(|_| JwtError::Malformed)?;
    match header.crit {
        None => Ok(header),
        Some(_) => Err(JwtError::Malformed),
    }
}

/// All claims of a token whose signature verified.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub(super) struct Claims(Map<String, Value>);

impl Claims {
    pub(super) fn text(&self, name: &str) -> Result<&str, JwtError> {
        match self.0.get(name) {
            Some(Value::String(text)) => Ok(text),
            _ => Err(JwtError::Claim(name.to_owned())),
        }
    }

    /// A time in seconds since 1970, which may have a fraction.
    pub(super) fn time(&self, name: &str) -> Result<Option<Timestamp>, JwtError> {
        let refused = || JwtError::Claim(name.to_owned());
        let Some(value) = self.0.get(name) else { return Ok(None) };
        let seconds = value.as_f64().filter(|seconds| (0.0..1e11).contains(seconds));
        let seconds = std::time::Duration::from_secs_f64(seconds.ok_or_else(refused)?);
        Ok(Some(Timestamp::from_unix_ms(0).after(seconds)))
    }

    /// Whether `aud` is this, or has it among others.
    pub(super) fn is_for(&self, audience: &str) -> Result<bool, JwtError> {
        match self.0.get("aud") {
            Some(Value::String(one)) => Ok(one == audience),
            Some(Value::Array(all)) => Ok(all.iter().any(|one| one == audience)),
            _ => Err(JwtError::Claim("aud".into())),
        }
    }
}
