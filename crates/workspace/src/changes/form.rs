//! How names, digests and inodes are written down.

use archive::{Inode, InodeKind};
use serde::{Deserialize, Serialize};

/// Bytes that are text nearly always.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Raw {
    Text(String),
    Bytes(Vec<u8>),
}

/// Names and targets of links: any bytes.
pub(crate) mod bytes {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::Raw;

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(bytes) {
            Ok(text) => to.serialize_str(text),
            Err(_) => bytes.serialize(to),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        Ok(match Raw::deserialize(from)? {
            Raw::Text(text) => text.into_bytes(),
            Raw::Bytes(bytes) => bytes,
        })
    }
}

/// A [`archive::Name`].
pub(crate) mod name {
    use archive::Name;
    use serde::{Deserializer, Serializer, de::Error as _};

    pub(crate) fn serialize<S: Serializer>(name: &Name, to: S) -> Result<S::Ok, S::Error> {
        super::bytes::serialize(name.as_bytes(), to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Name, D::Error> {
        Name::parse(&super::bytes::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// SHA-256 in hexadecimal.
pub(crate) mod digest {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(crate) fn serialize<S: Serializer>(digest: &[u8; 32], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&super::hex(digest))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(from)?;
        let mut digest = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return Err(D::Error::custom("no SHA-256"));
        }
        for (at, byte) in digest.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(D::Error::custom)?;
        }
        Ok(digest)
    }
}

/// In hexadecimal.
pub(crate) fn hex(digest: &[u8; 32]) -> String {
    use std::fmt::Write as _;
    digest.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "InodeKind", rename_all = "lowercase")]
enum KindForm {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    Device,
}

/// An [`Inode`].
#[derive(Serialize, Deserialize)]
#[serde(remote = "Inode", deny_unknown_fields)]
pub(crate) struct InodeForm {
    #[serde(with = "KindForm")]
    kind: InodeKind,
    mode: u32,
    size: u64,
    mtime: (i64, u32),
    ctime: (i64, u32),
    id: (u64, u64),
    links: u64,
    owner: (u32, u32),
}
