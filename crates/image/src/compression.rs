//! Archives as they are transported: plain, gzip or zstd.

use std::io::{self, BufRead, Read};

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// With gzip, of any number of members.
    Gzip,
    /// With zstd, of any number of frames; a window is 100 MiB at most.
    Zstd,
}

impl Compression {
    /// What the first bytes say.
    pub fn of(head: &[u8]) -> Self {
        if head.starts_with(b"\x1f\x8b") {
            Self::Gzip
        } else if head.starts_with(b"\x28\xb5\x2f\xfd") {
            Self::Zstd
        } else {
            Self::None
        }
    }

    pub(crate) fn decoder<R: BufRead>(self, input: R) -> Decoder<R> {
        match self {
            Self::None => Decoder::None(input),
            Self::Gzip => Decoder::Gzip(flate2::bufread::MultiGzDecoder::new(input)),
            Self::Zstd => Decoder::Zstd(Zstd::new(input)),
        }
    }
}

/// Gives what was compressed.
pub(crate) enum Decoder<R: BufRead> {
    None(R),
    Gzip(flate2::bufread::MultiGzDecoder<R>),
    Zstd(Zstd<R>),
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::None(input) => input.read(buf),
            Self::Gzip(input) => input.read(buf),
            Self::Zstd(input) => input.read(buf),
        }
    }
}

/// Frame after frame: parallel compressors write many.
pub(crate) struct Zstd<R: BufRead> {
    state: ZstdState<R>,
}

enum ZstdState<R: BufRead> {
    Between(R),
    Within(Box<ruzstd::decoding::StreamingDecoder<R, ruzstd::decoding::FrameDecoder>>),
    Ended,
}

impl<R: BufRead> Zstd<R> {
    fn new(input: R) -> Self {
        Self { state: ZstdState::Between(input) }
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match std::mem::replace(&mut self.state, ZstdState::Ended) {
                ZstdState::Ended => return Ok(0),
                ZstdState::Between(mut input) => {
                    if input.fill_buf()?.is_empty() {
                        return Ok(0);
                    }
                    let frame = ruzstd::decoding::StreamingDecoder::new(input)
                        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
                    self.state = ZstdState::Within(Box::new(frame));
                }
                ZstdState::Within(mut frame) => match frame.read(buf)? {
                    0 if !buf.is_empty() => self.state = ZstdState::Between(frame.into_inner()),
                    n => {
                        self.state = ZstdState::Within(frame);
                        return Ok(n);
                    }
                },
            }
        }
    }
}
