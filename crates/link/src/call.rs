//! What a caller holds while an operation runs.

use std::marker::PhantomData;
use std::sync::Arc;

use wire::envelope::TaskDigest;
use wire::op::Operation;

use crate::LinkError;
use crate::drive::Stream;

/// An operation under way. Dropping it, and the halves taken from it, cancels it.
#[derive(Debug)]
pub struct Call<O> {
    stream: Arc<Stream>,
    digest: TaskDigest,
    operation: PhantomData<fn() -> O>,
}

/// What an operation reads.
#[derive(Debug, Clone)]
pub struct Input {
    stream: Arc<Stream>,
}

/// What an operation writes.
#[derive(Debug)]
pub struct Output {
    stream: Arc<Stream>,
}

impl<O: Operation> Call<O> {
    pub(crate) fn new(stream: Stream, digest: TaskDigest) -> Self {
        Self { stream: Arc::new(stream), digest, operation: PhantomData }
    }

    /// What was signed.
    pub fn digest(&self) -> TaskDigest {
        self.digest
    }

    /// The half that feeds the operation.
    pub fn input(&self) -> Input {
        Input { stream: self.stream.clone() }
    }

    /// The half that the operation feeds.
    pub fn output(&self) -> Output {
        Output { stream: self.stream.clone() }
    }

    /// Waits for the operation's end, dropping output that nobody reads.
    ///
    /// # Errors
    /// `Operation` where the agent refused or failed; `Disconnected` and `Protocol` where the
    /// guest did.
    pub async fn reply(self) -> Result<O::Reply, LinkError> {
        let reply = self.stream.end().await?;
        serde_json::from_slice(&reply)
            .map_err(|_| LinkError::Protocol(format!("its reply to {} is not readable", O::NAME)))
    }
}

impl Input {
    /// Sends all of `bytes`; waits while the guest's reader is slow. Once the operation has
    /// ended they are dropped without an error: its reply says what became of it.
    ///
    /// # Errors
    /// `Disconnected` where the guest is gone.
    pub async fn write(&self, bytes: &[u8]) -> Result<(), LinkError> {
        self.stream.write(bytes).await
    }

    /// Tells the operation that no more will come.
    pub fn finish(self) {
        self.stream.finish();
    }
}

impl Output {
    /// The next bytes as they come, or nothing at the end.
    ///
    /// # Errors
    /// `Operation` where the agent ended the operation with an error; `Disconnected` where the
    /// guest is gone.
    pub async fn read(&self) -> Result<Option<Vec<u8>>, LinkError> {
        self.stream.read().await
    }

    /// All the rest, for output that is known to be short.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn read_to_end(&self) -> Result<Vec<u8>, LinkError> {
        let mut all = Vec::new();
        while let Some(chunk) = self.read().await? {
            all.extend(chunk);
        }
        Ok(all)
    }
}

/// A process under way.
#[derive(Debug)]
pub struct Process<O> {
    call: Call<O>,
    has_stderr: bool,
}

impl<O: Operation> Process<O> {
    pub(crate) fn new(call: Call<O>, has_stderr: bool) -> Self {
        Self { call, has_stderr }
    }

    /// What was signed.
    pub fn digest(&self) -> TaskDigest {
        self.call.digest()
    }

    /// Its stdin.
    pub fn stdin(&self) -> Input {
        self.call.input()
    }

    /// Its stdout, or its terminal.
    pub fn stdout(&self) -> Output {
        self.call.output()
    }

    /// Its stderr, once it is there; nothing where it has a terminal or never started.
    ///
    /// # Errors
    /// `Disconnected` where the guest is gone.
    pub async fn stderr(&self) -> Result<Option<Output>, LinkError> {
        if !self.has_stderr {
            return Ok(None);
        }
        let stream = self.call.stream.stderr().await?;
        Ok(stream.map(|stream| Output { stream: Arc::new(stream) }))
    }

    /// Waits for its end; read stdout and stderr to theirs first, what is left is dropped.
    ///
    /// # Errors
    /// As [`Call::reply`].
    pub async fn wait(self) -> Result<O::Reply, LinkError> {
        self.call.reply().await
    }
}
