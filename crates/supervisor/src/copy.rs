//! Files in and out of a guest, as tar streams between a thread that walks the host's files
//! and an operation of the agent.

use std::io::{self, Read, Write};

use tokio::sync::mpsc;

/// Chunks between the thread and the operation: enough that neither waits for a switch.
const CHUNKS: usize = 8;
/// Bytes of a chunk.
const CHUNK: usize = 64 << 10;

/// How files go in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CopyIn {
    /// Leave out what `.gitignore` files name.
    pub gitignore: bool,
    /// The sandbox's user may read them only.
    pub read_only: bool,
}

/// How files come out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyOut {
    /// Into a directory that is new or empty.
    New,
    /// Over the directory that they came from.
    SyncBack,
}

/// What was copied.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct CopySummary {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// What was left out, and why, for a person.
    pub held_back: Vec<String>,
}

/// The thread's end of a channel to an operation.
struct ChannelWriter(mpsc::Sender<Vec<u8>>);

impl Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let chunk = &bytes[..bytes.len().min(CHUNK)];
        self.0
            .blocking_send(chunk.to_vec())
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the guest takes no more"))?;
        Ok(chunk.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The thread's end of a channel from an operation.
struct ChannelReader {
    chunks: mpsc::Receiver<Vec<u8>>,
    current: io::Cursor<Vec<u8>>,
}

impl ChannelReader {
    fn new(chunks: mpsc::Receiver<Vec<u8>>) -> Self {
        Self { chunks, current: io::Cursor::default() }
    }
}

impl Read for ChannelReader {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.current.read(bytes)?;
            if count > 0 || bytes.is_empty() {
                return Ok(count);
            }
            match self.chunks.blocking_recv() {
                Some(chunk) => self.current = io::Cursor::new(chunk),
                None => return Ok(0),
            }
        }
    }
}
