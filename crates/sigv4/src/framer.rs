//! A body in unsigned chunks, for `STREAMING-UNSIGNED-PAYLOAD-TRAILER`.

use std::fmt;

use http::{HeaderName, HeaderValue};

/// The length of each chunk but the last, in bytes. S3 refuses those of less than 8 KiB.
const CHUNK: usize = 64 << 10;

/// Puts a body in chunks, whatever pieces it comes in.
#[derive(Default)]
pub struct Framer {
    held: Vec<u8>,
}

impl fmt::Debug for Framer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Framer").field("held", &self.held.len()).finish()
    }
}

impl Framer {
    /// One for one body.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next piece and adds to `out` the chunks that are full.
    pub fn push(&mut self, mut piece: &[u8], out: &mut Vec<u8>) {
        while self.held.len() + piece.len() >= CHUNK {
            let (here, rest) = piece.split_at(CHUNK - self.held.len());
            frame(&[&self.held, here], out);
            self.held.clear();
            piece = rest;
        }
        self.held.extend_from_slice(piece);
    }

    /// The end: what is left, and the headers after the last chunk.
    pub fn finish(self, trailers: &[(HeaderName, HeaderValue)], out: &mut Vec<u8>) {
        if !self.held.is_empty() {
            frame(&[&self.held], out);
        }
        out.extend_from_slice(b"0\r\n");
        for (name, value) in trailers {
            for part in [name.as_str().as_bytes(), b":", value.as_bytes(), b"\r\n"] {
                out.extend_from_slice(part);
            }
        }
        out.extend_from_slice(b"\r\n");
    }
}

fn frame(parts: &[&[u8]], out: &mut Vec<u8>) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    out.extend_from_slice(format!("{length:x}\r\n").as_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
    out.extend_from_slice(b"\r\n");
}
