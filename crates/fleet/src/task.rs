//! A command that runs, as its caller holds it.

use api::{Chunk, ExecEnd, ExecResult, Truncated};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use supervisor::Input;
use tokio::sync::{mpsc, oneshot};

use crate::Error;

/// Which output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or a terminal's.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Output, as it comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Which.
    pub stream: Stream,
    /// Bytes of the stream before this.
    pub offset: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl From<&Output> for Chunk {
    fn from(output: &Output) -> Self {
        Self { offset: output.offset, data_base64: BASE64.encode(&output.bytes) }
    }
}

/// A command under way, or the output of one. Its end is recorded whatever becomes of this;
/// dropping it ends the command, unless that was started detached.
#[derive(Debug)]
pub struct Task {
    pub(crate) process: String,
    pub(crate) task_digest: String,
    pub(crate) output: mpsc::Receiver<Output>,
    pub(crate) stdin: Option<Stdin>,
    pub(crate) end: oneshot::Receiver<Result<ExecEnd, Error>>,
}

/// What a command reads.
#[derive(Debug)]
pub struct Stdin(pub(crate) Input);

impl Stdin {
    /// Sends all of the bytes, as fast as the command takes them. Once it has ended, they go
    /// nowhere.
    ///
    /// # Errors
    /// `Guest` where the sandbox is gone.
    pub async fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        self.0.write(bytes).await.map_err(Error::Guest)
    }

    /// Tells the command that no more will come.
    pub fn finish(self) {
        self.0.finish();
    }
}

impl Task {
    /// Its name in the sandbox.
    pub fn process(&self) -> &str {
        &self.process
    }

    /// SHA-256 of the signed operation that the guest carries out, in hexadecimal.
    pub fn task_digest(&self) -> &str {
        &self.task_digest
    }

    /// Its stdin, where it was asked for with one. The first call gets it.
    pub fn take_stdin(&mut self) -> Option<Stdin> {
        self.stdin.take()
    }

    /// The next output, or nothing when there will be no more.
    pub async fn output(&mut self) -> Option<Output> {
        self.output.recv().await
    }

    /// How it ended. Output must have been read to its end, or it waits for that.
    ///
    /// # Errors
    /// What kept it from a known end.
    pub async fn end(mut self) -> Result<ExecEnd, Error> {
        // Nobody feeds it any more.
        if let Some(stdin) = self.stdin.take() {
            stdin.finish();
        }
        while self.output.recv().await.is_some() {}
        self.end.await.unwrap_or(Err(Error::ShuttingDown))
    }

    /// Waits for its end with up to `most` bytes of each output; what goes beyond is counted and
    /// dropped.
    ///
    /// # Errors
    /// As [`Self::end`].
    pub async fn collect(mut self, most: u64) -> Result<ExecResult, Error> {
        if let Some(stdin) = self.stdin.take() {
            stdin.finish();
        }
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let (mut stdout, mut stderr) = (Kept::default(), Kept::default());
        while let Some(output) = self.output.recv().await {
            match output.stream {
                Stream::Stdout => stdout.push(&output.bytes, most),
                Stream::Stderr => stderr.push(&output.bytes, most),
            }
        }
        let mut end = self.end.await.unwrap_or(Err(Error::ShuttingDown))?;
        let Truncated { stdout: lost_out, stderr: lost_err } = end.truncated;
        end.truncated =
            Truncated { stdout: lost_out + stdout.dropped, stderr: lost_err + stderr.dropped };
        let (stdout, stdout_base64) = stdout.into_text();
        let (stderr, stderr_base64) = stderr.into_text();
        Ok(ExecResult { end, stdout, stderr, stdout_base64, stderr_base64 })
    }
}

/// The first bytes of an output.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    dropped: u64,
}

impl Kept {
    fn push(&mut self, bytes: &[u8], most: usize) {
        let taken = bytes.len().min(most.saturating_sub(self.bytes.len()));
        self.bytes.extend_from_slice(&bytes[..taken]);
        self.dropped += (bytes.len() - taken) as u64;
    }

    fn into_text(self) -> (String, Option<String>) {
        match String::from_utf8(self.bytes) {
            Ok(text) => (text, None),
            Err(error) => {
                let bytes = error.as_bytes();
                (String::from_utf8_lossy(bytes).into_owned(), Some(BASE64.encode(bytes)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_beyond_is_counted_and_dropped() {
        let mut kept = Kept::default();
        kept.push(b"abc", 4);
        kept.push(b"def", 4);
        assert_eq!((kept.bytes.as_slice(), kept.dropped), (&b"abcd"[..], 2));
        assert_eq!(kept.into_text(), ("abcd".into(), None));
    }

    #[test]
    fn bytes_that_are_no_text_are_there_unchanged() {
        let kept = Kept { bytes: vec![0xff, b'a'], dropped: 0 };
        assert_eq!(kept.into_text(), ("\u{fffd}a".into(), Some("/2E=".into())));
    }
}
