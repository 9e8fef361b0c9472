//! Byte strings as Linux has them: argv, environment and paths need not be UTF-8.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::{self, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::{Zeroize, Zeroizing};

/// A byte string without NUL, carried in JSON as a plain string where it is UTF-8 and as
/// `{"base64":"…"}` where it is not, so that every argument the kernel accepts gets through
/// unchanged.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Text(Vec<u8>);

/// The bytes hold a NUL, which no argument, environment entry or path can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("contains a NUL byte, which Linux cannot pass in an argument, a variable or a path")]
pub struct NulError;

impl Text {
    /// Takes the bytes as they are.
    ///
    /// # Errors
    /// `NulError` where one of them is NUL.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, NulError> {
        let bytes = bytes.into();
        if bytes.contains(&0) { Err(NulError) } else { Ok(Self(bytes)) }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The text for a person: bytes that are not UTF-8 become replacement characters.
    pub fn to_string_lossy(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }

    /// The bytes, given away.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

/// For literals and for strings that were already checked.
///
/// # Panics
/// Where the string holds a NUL.
impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self::new(text).expect("a literal has no NUL")
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize_bytes(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = deserializer.deserialize_any(BytesVisitor)?;
        Self::new(bytes).map_err(de::Error::custom)
    }
}

/// Wipes what passed through a buffer: at once and not byte by byte, since all that streams carry does.
pub fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    zeroize::optimization_barrier(bytes);
}

/// A value that must not outlive its use: wiped on drop, absent from `Debug`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the bytes; the caller's own copies are the caller's to wipe.
    ///
    /// # Errors
    /// `NulError` where one of them is NUL.
    pub fn new(bytes: Vec<u8>) -> Result<Self, NulError> {
        let bytes = Zeroizing::new(bytes);
        if bytes.contains(&0) { Err(NulError) } else { Ok(Self(bytes)) }
    }

    /// The value itself. The name is long so that a reader sees where it goes.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize_bytes(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = deserializer.deserialize_any(BytesVisitor)?;
        Self::new(bytes).map_err(de::Error::custom)
    }
}

fn serialize_bytes<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    match std::str::from_utf8(bytes) {
        Ok(text) => serializer.serialize_str(text),
        Err(_) => {
            let encoded = Zeroizing::new(BASE64.encode(bytes));
            let mut map = serializer.serialize_map(Some(1))?;
            map.serialize_entry("base64", encoded.as_str())?;
            map.end()
        }
    }
}

struct BytesVisitor;

impl<'de> Visitor<'de> for BytesVisitor {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, or {\"base64\": \"…\"} for bytes that are not UTF-8")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<u8>, E> {
        Ok(text.as_bytes().to_vec())
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Vec<u8>, E> {
        Ok(text.into_bytes())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<u8>, A::Error> {
        let Some((key, mut value)) = map.next_entry::<String, String>()? else {
            return Err(de::Error::missing_field("base64"));
        };
        if key != "base64" {
            return Err(de::Error::unknown_field(&key, &["base64"]));
        }
        let bytes = BASE64.decode(value.as_bytes()).map_err(de::Error::custom);
        value.zeroize();
        if map.next_key::<String>()?.is_some() {
            return Err(de::Error::custom("one key only"));
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utf8_is_a_plain_json_string() {
        assert_eq!(serde_json::to_string(&Text::from("naïve")).unwrap(), "\"naïve\"");
    }

    #[test]
    fn other_bytes_survive_the_round_trip() {
        let text = Text::new(vec![0xff, b'a', 0xc3]).unwrap();
        let json = serde_json::to_string(&text).unwrap();
        assert_eq!(json, "{\"base64\":\"/2HD\"}");
        assert_eq!(serde_json::from_str::<Text>(&json).unwrap(), text);
    }

    #[test]
    fn nul_is_refused_in_either_form() {
        assert!(Text::new(b"a\0b".to_vec()).is_err());
        assert!(serde_json::from_str::<Text>("\"a\\u0000b\"").is_err());
        assert!(serde_json::from_str::<Text>("{\"base64\":\"YQBi\"}").is_err());
    }

    #[test]
    fn a_secret_does_not_print() {
        let secret = Secret::new(b"hunter2".to_vec()).unwrap();
        assert_eq!(format!("{secret:?}"), "[secret]");
    }
}
