//! What a guest gets in place of a credential: shaped like it, of no use anywhere else.

use sha2::{Digest as _, Sha256};

use crate::{Charset, Kind, Service, Shape};

/// Fewest bits of a placeholder that cannot be guessed.
pub(crate) const MIN_BITS: usize = 96;
/// Where neither the shape nor the secret says how long.
const USUAL_LENGTH: usize = 40;
/// The longest; a secret that is longer is a document, of which no client looks at the length.
pub(crate) const MAX_LENGTH: usize = 4096;

/// What follows `:` in a placeholder of a pair of AWS keys: as long as theirs.
const AWS_SECRET: Shape =
    Shape { prefix: String::new(), charset: Charset::Alphanumeric, length: Some(40) };

impl Charset {
    /// The characters, all of them unreserved in a URL: they survive every kind of quoting.
    pub fn characters(self) -> &'static [u8] {
        match self {
            Self::Hex => b"0123456789abcdef",
            Self::Alphanumeric => b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
            Self::Base64Url => b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz-",
            Self::Base32 => b"234567ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        }
    }

    /// How many characters have `bits` bits at least. What a character holds is rounded down to a
    /// tenth of a bit.
    pub(crate) fn characters_for(self, bits: usize) -> usize {
        let tenths = match self {
            Self::Hex => 40,
            Self::Alphanumeric => 59,
            Self::Base64Url => 60,
            Self::Base32 => 50,
        };
        (bits * 10).div_ceil(tenths)
    }
}

impl Shape {
    /// A placeholder of this shape. It is as long as the shape says, else as the secret is, and
    /// always long enough for 96 random bits. `random` is used for one placeholder only.
    pub fn placeholder(&self, secret_len: Option<usize>, random: &[u8; 32]) -> String {
        let length = self.length.or(secret_len).unwrap_or(USUAL_LENGTH).min(MAX_LENGTH);
        let least = self.charset.characters_for(MIN_BITS);
        self.fill(length.saturating_sub(self.prefix.len()).max(least), random)
    }

    /// The prefix and `count` characters, each as likely as the other.
    fn fill(&self, count: usize, random: &[u8; 32]) -> String {
        let characters = self.charset.characters();
        // Beyond the last whole multiple, some characters would be likelier.
        let fair = 256 - 256 % characters.len();
        let mut text = self.prefix.clone();
        let end = text.len() + count;
        for block in 0_u64.. {
            let mut digest = Sha256::new();
            digest.update(random);
            digest.update(block.to_be_bytes());
            for byte in digest.finalize() {
                if text.len() == end {
                    return text;
                }
                if usize::from(byte) < fair {
                    text.push(char::from(characters[usize::from(byte) % characters.len()]));
                }
            }
        }
        text
    }
}

impl Service {
    /// A placeholder for a secret of this service: for AWS the pair `ID:SECRET`, as the secret is.
    pub fn placeholder(&self, secret_len: Option<usize>, random: &[u8; 32]) -> String {
        match self.kind {
            Kind::Static => self.placeholder.placeholder(secret_len, random),
            Kind::Aws { .. } => {
                let shape = &self.placeholder;
                let length = shape.length.unwrap_or(20).saturating_sub(shape.prefix.len());
                let id = shape.fill(length, random);
                // Who knows the one half must not know the other.
                let other: [u8; 32] =
                    Sha256::new().chain_update(b"secret").chain_update(random).finalize().into();
                format!("{id}:{}", AWS_SECRET.placeholder(None, &other))
            }
        }
    }
}
