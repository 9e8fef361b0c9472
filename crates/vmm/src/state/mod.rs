//! A machine at a standstill, as bytes: what another needs to go on from there, but its memory.
//!
//! The bytes are a header (magic, version of the format, length and checksum of what follows) and
//! the parts. Each device's own part has its kind and a version of its own. A machine is only made
//! of a state that is whole, of this version, and from a host whose virtual CPUs are the same.

pub(crate) mod cpu;
pub(crate) mod machine;

use serde::{Deserialize, Serialize};

use crate::virtio::DeviceState;
use cpu::Cpu;
use machine::Machine;

const MAGIC: [u8; 8] = *b"SANDFVM\0";
/// Raised whenever a part changes.
const VERSION: u32 = 1;
const HEADER: usize = 24;
/// 32 virtual CPUs with all they have are a quarter of this.
const MOST: usize = 4 << 20;

/// What was read is no state of a machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// It begins otherwise, or is too short or too long.
    #[error("this is no state of a machine")]
    Shape,
    /// Another version of this program wrote it.
    #[error("the state is of version {0}, and this is {VERSION}: make it anew")]
    Version(u32),
    /// Bytes have changed since it was written.
    #[error("the state is damaged: make it anew")]
    Checksum,
    /// A part does not fit its form.
    #[error("the state is damaged: {0}")]
    Body(String),
}

/// What a machine is besides its memory while nothing of it runs.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    pub(crate) memory_bytes: u64,
    pub(crate) cpus: Vec<Cpu>,
    pub(crate) machine: Machine,
    pub(crate) devices: Vec<DeviceState>,
    pub(crate) console: Option<crate::legacy::ConsoleState>,
}

impl State {
    /// How much memory the machine has.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// How many virtual CPUs it has.
    pub fn cpus(&self) -> usize {
        self.cpus.len()
    }

    /// As bytes, for [`State::decode`].
    pub fn encode(&self) -> Vec<u8> {
        let body = postcard::to_allocvec(self).expect("numbers and lists of known lengths");
        let mut bytes = Vec::with_capacity(HEADER + body.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
        bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&body);
        bytes
    }

    /// Out of the bytes of [`State::encode`].
    ///
    /// # Errors
    /// `StateError`, where it is not exactly that.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        if bytes.len() > MOST {
            return Err(StateError::Shape);
        }
        let (header, body) = bytes.split_first_chunk::<HEADER>().ok_or(StateError::Shape)?;
        let (magic, rest) = header.split_first_chunk::<8>().expect("24 bytes");
        let (version, rest) = rest.split_first_chunk::<4>().expect("16 bytes");
        let (checksum, length) = rest.split_first_chunk::<4>().expect("12 bytes");
        if *magic != MAGIC {
            return Err(StateError::Shape);
        }
        let version = u32::from_le_bytes(*version);
        if version != VERSION {
            return Err(StateError::Version(version));
        }
        if length != (body.len() as u64).to_le_bytes() {
            return Err(StateError::Shape);
        }
        if crc32fast::hash(body) != u32::from_le_bytes(*checksum) {
            return Err(StateError::Checksum);
        }
        match postcard::take_from_bytes(body) {
            Ok((state, [])) => Ok(state),
            Ok(_) => Err(StateError::Body("more than its parts".into())),
            Err(error) => Err(StateError::Body(error.to_string())),
        }
    }
}
