//! How two sides find each other on a carrier that may hold what an earlier pair left there.
//!
//! A virtio-serial port has no connections: when the host's end is replaced, bytes of the old
//! conversation may still lie in either direction. So the host first knocks, with a frame that
//! holds a magic and a nonce; the agent looks for the magic and echoes the frame; the host drops
//! everything until it sees its own nonce. Then each side sends a [`Hello`], and frames follow.
//! A host that gets no echo knocks again with the same nonce, and the agent takes no notice of
//! a knock that it has answered; one with another nonce means that another host took over.

use serde::{Deserialize, Serialize};

/// The protocol that this crate speaks.
pub const VERSION: u32 = 1;
/// The oldest protocol that this crate speaks.
pub const OLDEST_VERSION: u32 = 1;
pub use crate::frame::NONCE;
use crate::frame::{Frame, KNOCK_PREFIX};

/// Length of a knock in bytes.
pub const KNOCK: usize = KNOCK_PREFIX.len() + NONCE;

/// The bytes of the knock that holds this nonce.
pub fn knock(nonce: &[u8; NONCE]) -> Vec<u8> {
    Frame::Knock(*nonce).encode().to_vec()
}

/// Looks for a knock in a stream of bytes.
#[derive(Debug, Clone)]
pub struct Scanner {
    expected: Option<[u8; NONCE]>,
    window: Vec<u8>,
}

impl Scanner {
    /// Finds any knock: the agent's side.
    pub fn any() -> Self {
        Self { expected: None, window: Vec::with_capacity(KNOCK) }
    }

    /// Finds the echo of this nonce: the host's side.
    pub fn echo_of(nonce: [u8; NONCE]) -> Self {
        Self { expected: Some(nonce), window: Vec::with_capacity(KNOCK) }
    }

    /// Takes bytes until the knock is complete; then its nonce, and how many of `bytes` it
    /// and what came before it took. The rest belongs to the frames.
    pub fn scan(&mut self, bytes: &[u8]) -> Option<([u8; NONCE], usize)> {
        for (index, &byte) in bytes.iter().enumerate() {
            if self.window.len() == KNOCK {
                self.window.remove(0);
            }
            self.window.push(byte);
            if let Some(nonce) = self.complete() {
                self.window.clear();
                return Some((nonce, index + 1));
            }
        }
        None
    }

    fn complete(&self) -> Option<[u8; NONCE]> {
        let nonce: [u8; NONCE] = self.window.strip_prefix(&KNOCK_PREFIX[..])?.try_into().ok()?;
        match self.expected {
            Some(expected) if expected != nonce => None,
            _ => Some(nonce),
        }
    }
}

/// What each side says of itself first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Newest protocol spoken.
    pub version: u32,
    /// Oldest protocol spoken.
    pub oldest_version: u32,
    /// Version of the program, for messages.
    pub software: String,
    /// From the agent: the last sequence number that it accepted. A host that takes over goes
    /// on above it.
    #[serde(default)]
    pub sequence: u64,
}

/// No protocol is spoken by both.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the other side ({software}) speaks protocols {oldest} to {newest}, this one \
     {OLDEST_VERSION} to {VERSION}: use the agent that came with this sandforge"
)]
pub struct VersionError {
    software: String,
    oldest: u32,
    newest: u32,
}

impl Hello {
    /// This crate's own hello.
    pub fn new(software: impl Into<String>, sequence: u64) -> Self {
        Self {
            version: VERSION,
            oldest_version: OLDEST_VERSION,
            software: software.into(),
            sequence,
        }
    }

    /// The newest protocol that both sides speak.
    ///
    /// # Errors
    /// `VersionError` where there is none.
    pub fn agree(&self) -> Result<u32, VersionError> {
        let newest = self.version.min(VERSION);
        if newest < self.oldest_version.max(OLDEST_VERSION) {
            return Err(VersionError {
                software: self.software.chars().filter(|c| !c.is_control()).take(80).collect(),
                oldest: self.oldest_version,
                newest: self.version,
            });
        }
        Ok(newest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_echo_is_found_behind_any_leftovers(
            leftover in prop::collection::vec(any::<u8>(), 0..300),
            nonce in any::<[u8; NONCE]>(),
            old in any::<[u8; NONCE]>(),
            piece in 1usize..50,
        ) {
            prop_assume!(nonce != old);
            let mut stream = leftover;
            stream.extend(knock(&old));
            stream.extend(knock(&nonce));
            let found = stream.len();
            stream.extend(b"frames");
            let mut scanner = Scanner::echo_of(nonce);
            let mut offset = 0;
            for chunk in stream.chunks(piece) {
                if let Some((got, used)) = scanner.scan(chunk) {
                    prop_assert_eq!(got, nonce);
                    prop_assert_eq!(offset + used, found);
                    return Ok(());
                }
                offset += chunk.len();
            }
            prop_assert!(false, "the echo was not found");
        }
    }

    #[test]
    fn a_later_version_with_a_common_one_agrees_on_it() {
        let hello = Hello { version: 9, oldest_version: 1, software: "x".into(), sequence: 0 };
        assert_eq!(hello.agree(), Ok(1));
    }

    #[test]
    fn no_common_version_is_an_error_that_names_both() {
        let hello = Hello { version: 9, oldest_version: 8, software: "9.1".into(), sequence: 0 };
        let message = hello.agree().unwrap_err().to_string();
        assert!(message.contains("9.1") && message.contains("8 to 9"), "{message}");
    }
}
