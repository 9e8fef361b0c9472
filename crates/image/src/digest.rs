//! SHA-256, as lower-case hexadecimal.

use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::io::{self, Read};

/// Large enough that system calls cost nothing beside the hashing, small enough for the cache.
const CHUNK: usize = 256 << 10;

pub(crate) fn of(data: &[u8]) -> String {
    hex(&Sha256::digest(data))
}

/// Digest and length of all that `input` gives.
pub(crate) fn of_reader(
    mut input: impl Read,
    mut read: impl FnMut(u64),
) -> io::Result<(String, u64)> {
    let mut hash = Sha256::new();
    let mut buf = vec![0; CHUNK];
    let mut len = 0;
    loop {
        match input.read(&mut buf) {
            Ok(0) => return Ok((hex(&hash.finalize()), len)),
            Ok(n) => {
                hash.update(&buf[..n]);
                len += n as u64;
                read(len);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Passes bytes on and digests them.
#[derive(Debug)]
pub(crate) struct Digesting<R> {
    input: R,
    hash: Sha256,
    len: u64,
}

impl<R: Read> Digesting<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, hash: Sha256::new(), len: 0 }
    }

    /// The digest of everything, what was not read yet included.
    pub(crate) fn finish(self) -> io::Result<String> {
        self.finish_counted().map(|(digest, _)| digest)
    }

    /// The same, and the length.
    pub(crate) fn finish_counted(mut self) -> io::Result<(String, u64)> {
        io::copy(&mut self, &mut io::sink())?;
        Ok((hex(&self.hash.finalize()), self.len))
    }

    pub(crate) fn get_ref(&self) -> &R {
        &self.input
    }
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(buf)?;
        self.hash.update(&buf[..n]);
        self.len += n as u64;
        Ok(n)
    }
}

/// Bytes as hexadecimal text in a manifest.
pub(crate) mod serde_hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&super::hex(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        super::from_hex(&text).ok_or_else(|| D::Error::custom("not hexadecimal"))
    }
}

/// 32 bytes as hexadecimal text in a manifest.
pub(crate) mod serde_hex_array {
    use serde::{Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8; 32], to: S) -> Result<S::Ok, S::Error> {
        super::serde_hex::serialize(bytes, to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; 32], D::Error> {
        let bytes = super::serde_hex::deserialize(from)?;
        bytes.try_into().map_err(|_| D::Error::custom("not 32 bytes"))
    }
}

pub(crate) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?)).collect()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
