//! The host's end of the wire: one connection to one agent, typed operations, flow control
//! that reaches the caller.
//!
//! [`Guest::connect`] takes any byte stream, shakes hands, and drives it in two tasks. Every
//! [`Guest::call`] is a signed operation on a stream of its own; dropping what it returns
//! cancels the operation. What tasks open, a [`GuestStream`] each, goes to a [`GuestStreams`].
#![forbid(unsafe_code)]

mod call;
mod drive;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use call::{Call, Input, Output, Process};
pub use drive::GuestStream;
use drive::Shared;
use tokio::io::{AsyncRead, AsyncWrite};
use wire::connection::ProtocolError;
use wire::envelope::{SALT, SealError, Sealer, TaskDigest, key_to_hex};
use wire::op::{Attach, Become, Clock, Exec, OpError, Operation, Reseed};
use wire::text::{Secret, Text};

pub use wire::envelope::{SigningKey, VerifyingKey};

/// How long the agent may take to begin with an operation. Both clocks are the host's, since
/// the guest's is set from it; this covers a paused or a starved guest.
const OPERATION_LIFETIME: Duration = Duration::from_secs(60);

/// Why the guest cannot be talked to, or an operation did not succeed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// No agent answered.
    #[error("the guest's agent did not answer within {0:?}")]
    Unanswered(Duration),
    /// The carrier broke or ended: the guest is gone.
    #[error("the connection to the guest ended: {0}")]
    Disconnected(String),
    /// The guest broke the protocol.
    #[error("the guest does not keep to the protocol: {0}")]
    Protocol(String),
    /// The agent speaks no protocol that this host does.
    #[error(transparent)]
    Version(#[from] wire::handshake::VersionError),
    /// The request cannot be sent.
    #[error("{0}")]
    Request(String),
    /// The agent refused or failed.
    #[error(transparent)]
    Operation(#[from] OpError),
    /// The system has no randomness to give.
    #[error("cannot get random bytes from the system: {0}")]
    Random(String),
}

impl From<std::io::Error> for LinkError {
    fn from(error: std::io::Error) -> Self {
        Self::Disconnected(error.to_string())
    }
}

impl From<ProtocolError> for LinkError {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error.to_string())
    }
}

impl From<SealError> for LinkError {
    fn from(error: SealError) -> Self {
        Self::Request(error.to_string())
    }
}

/// Takes what the tasks of one guest open. Neither method may block: the guest's connection waits
/// for it. All that they are told comes from the guest, and is to be judged as such.
pub trait GuestStreams: fmt::Debug + Send + Sync + 'static {
    /// A task connected to this address and port. Whatever it sends is there to be read.
    fn connect(&self, address: IpAddr, port: u16, stream: GuestStream);

    /// Tasks ask for names on this stream: see [`AgentOpen::Dns`](wire::op::AgentOpen::Dns).
    fn dns(&self, stream: GuestStream);
}

/// A live agent. Clones speak to the same one.
#[derive(Debug, Clone)]
pub struct Guest {
    shared: Arc<Shared>,
}

impl Guest {
    /// Shakes hands on `carrier` and starts to drive it. The agent must know the public half
    /// of `key` and that it is `sandbox`. What its tasks open goes to `streams`; without, it is
    /// refused.
    ///
    /// # Errors
    /// `Unanswered` after `patience`; `Disconnected`, `Protocol` and `Version` as they say.
    pub async fn connect<C>(
        carrier: C,
        sandbox: &str,
        key: SigningKey,
        patience: Duration,
        streams: Option<Arc<dyn GuestStreams>>,
    ) -> Result<Self, LinkError>
    where
        C: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (reader, writer) = tokio::io::split(carrier);
        let sealer = |last| Sealer::new(key, sandbox, last);
        let connecting = drive::connect(reader, writer, sealer, streams);
        match tokio::time::timeout(patience, connecting).await {
            Ok(shared) => Ok(Self { shared: shared? }),
            Err(_) => Err(LinkError::Unanswered(patience)),
        }
    }

    /// Starts an operation.
    ///
    /// # Errors
    /// `Request` where it cannot be sent, `Disconnected` where the guest is gone. What the
    /// agent says of it comes with the call's reply.
    pub fn call<O: Operation>(&self, operation: &O) -> Result<Call<O>, LinkError> {
        let now = since_epoch();
        let expires = u64::try_from((now + OPERATION_LIFETIME).as_millis()).unwrap_or(u64::MAX);
        let mut salt = [0; SALT];
        random(&mut salt)?;
        let (stream, digest) = self.shared.open(operation, expires, &salt)?;
        Ok(Call::new(stream, digest))
    }

    /// Starts an operation that has neither input nor output, and waits for its reply.
    ///
    /// # Errors
    /// As [`Self::call`] and [`Call::reply`].
    pub async fn ask<O: Operation>(&self, operation: &O) -> Result<O::Reply, LinkError> {
        self.call(operation)?.reply().await
    }

    /// Starts a process.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn exec(&self, exec: &Exec) -> Result<Process<Exec>, LinkError> {
        Ok(Process::new(self.call(exec)?, exec.tty.is_none() && !exec.detach))
    }

    /// Follows a detached process.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn attach(&self, attach: &Attach) -> Result<Process<Attach>, LinkError> {
        Ok(Process::new(self.call(attach)?, true))
    }

    /// Sets the guest's clock to the host's and feeds its random number generator, after which
    /// the agent takes tasks. To be done after a boot and after every restore.
    ///
    /// # Errors
    /// As [`Self::ask`]; the guest must not be used then.
    pub async fn freshen(&self) -> Result<(), LinkError> {
        let entropy = entropy()?;
        let clock = self.call(&Clock { unix_ns: unix_ns() })?;
        let reseed = self.call(&Reseed { entropy })?;
        clock.reply().await?;
        reseed.reply().await?;
        Ok(())
    }

    /// Makes a machine of a template that of the sandbox and the key that this was connected with,
    /// after which the agent takes tasks. There is no use in asking twice, nor in
    /// [`Self::freshen`] as well.
    ///
    /// # Errors
    /// As [`Self::ask`]; whatever it is, the machine must be ended then.
    pub async fn take_identity(&self, hostname: Option<Text>) -> Result<(), LinkError> {
        let (sandbox, key) = self.shared.signs_for();
        let request = Become {
            sandbox,
            key: key_to_hex(&key),
            unix_ns: unix_ns(),
            entropy: entropy()?,
            hostname,
        };
        self.ask(&request).await.map(drop)
    }

    /// Makes another sandbox of the one that this was connected with, in a machine that went on from
    /// where that one stood. Operations are for the new one and signed with its key from then on.
    ///
    /// # Errors
    /// As [`Self::ask`]; whatever it is, the machine must be ended then.
    pub async fn become_another(&self, sandbox: &str, key: SigningKey) -> Result<(), LinkError> {
        let request = Become {
            sandbox: sandbox.to_owned(),
            key: key_to_hex(&key.verifying_key()),
            unix_ns: unix_ns(),
            entropy: entropy()?,
            hostname: None,
        };
        self.ask(&request).await?;
        self.shared.sign_for(sandbox, key);
        Ok(())
    }

    /// Round trip of an empty exchange.
    ///
    /// # Errors
    /// `Disconnected` where the guest is gone.
    pub async fn ping(&self) -> Result<Duration, LinkError> {
        self.shared.ping().await
    }

    /// Waits until the connection has ended, and says why.
    pub async fn closed(&self) -> LinkError {
        self.shared.closed().await
    }
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn unix_ns() -> u64 {
    u64::try_from(since_epoch().as_nanos()).unwrap_or(u64::MAX)
}

/// 64 bytes. Hexadecimal keeps them free of NUL and within JSON's plain strings.
fn entropy() -> Result<Secret, LinkError> {
    let mut entropy = zeroize::Zeroizing::new([0_u8; 64]);
    random(entropy.as_mut())?;
    let mut text = Vec::with_capacity(2 * entropy.len());
    for byte in entropy.iter() {
        for nibble in [byte >> 4, byte & 15] {
            text.push(b"0123456789abcdef"[usize::from(nibble)]);
        }
    }
    Ok(Secret::new(text).expect("hexadecimal has no NUL"))
}

fn random(bytes: &mut [u8]) -> Result<(), LinkError> {
    getrandom::fill(bytes).map_err(|error| LinkError::Random(error.to_string()))
}

/// A fresh signing key for one sandbox.
///
/// # Errors
/// `Random` where the system has none.
pub fn generate_key() -> Result<SigningKey, LinkError> {
    let mut seed = zeroize::Zeroizing::new([0; 32]);
    random(seed.as_mut())?;
    Ok(SigningKey::from_bytes(&seed))
}

/// The digest of an operation, in the form that logs and replies use.
pub type Digest = TaskDigest;
