//! The emulator's control socket: a few typed commands, one at a time.
//!
//! What comes from the other end may be a guest's doing, as everything may that an emulator says
//! after it has run a guest. So it is bounded, waited for with patience that ends, and parsed as
//! what was asked for and nothing else.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, Interest};
use tokio::net::UnixStream;
use tokio::time::Instant;

/// Longest line that is taken.
const LONGEST: usize = 64 << 10;
/// How long an answer may take, of an emulator that may be starting among twenty others.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why the emulator did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QmpError {
    #[error("the emulator's control socket: {0}")]
    Socket(#[from] io::Error),
    #[error("the emulator has closed its control socket")]
    Closed,
    #[error("the emulator did not answer {0} within {PATIENCE:?}")]
    Unanswered(&'static str),
    #[error("the emulator answered {0} with something else than an answer")]
    Unreadable(&'static str),
    #[error("the emulator refused {command}: {reason}")]
    Refused { command: &'static str, reason: String },
}

/// What the emulator can be told.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(tag = "execute", content = "arguments", rename_all = "kebab-case")]
pub(crate) enum Command {
    /// Leaves the greeting behind.
    #[serde(rename = "qmp_capabilities")]
    Begin {},
    /// Stops the processors.
    Stop {},
    /// Lets them go on.
    Cont {},
    /// Takes the descriptor that comes along under a name.
    Getfd {
        fdname: &'static str,
    },
    MigrateSetCapabilities {
        capabilities: [Capability; 1],
    },
    MigrateSetParameters {
        #[serde(rename = "max-bandwidth")]
        max_bandwidth: u64,
    },
    /// Writes the state there.
    Migrate {
        uri: &'static str,
    },
    /// Reads it from there.
    MigrateIncoming {
        uri: &'static str,
    },
    QueryMigrate {},
    QueryStatus {},
}

#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Capability {
    capability: &'static str,
    state: bool,
}

impl Command {
    /// Memory that lies in a file is not in the state.
    pub(crate) const WITHOUT_MEMORY: Self = Self::MigrateSetCapabilities {
        capabilities: [Capability { capability: "x-ignore-shared", state: true }],
    };

    fn name(self) -> &'static str {
        match self {
            Self::Begin {} => "qmp_capabilities",
            Self::Stop {} => "stop",
            Self::Cont {} => "cont",
            Self::Getfd { .. } => "getfd",
            Self::MigrateSetCapabilities { .. } => "migrate-set-capabilities",
            Self::MigrateSetParameters { .. } => "migrate-set-parameters",
            Self::Migrate { .. } => "migrate",
            Self::MigrateIncoming { .. } => "migrate-incoming",
            Self::QueryMigrate {} => "query-migrate",
            Self::QueryStatus {} => "query-status",
        }
    }
}

#[derive(Serialize)]
struct Asked {
    #[serde(flatten)]
    command: Command,
    id: u64,
}

/// Any line: an answer, or something else that is passed over.
#[derive(Deserialize)]
struct Said<'a> {
    id: Option<u64>,
    #[serde(rename = "return", borrow)]
    returned: Option<&'a serde_json::value::RawValue>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

/// What `query-migrate` tells.
#[derive(Debug, Deserialize)]
pub(crate) struct Migration {
    #[serde(default)]
    pub(crate) status: String,
    #[serde(rename = "error-desc")]
    pub(crate) reason: Option<String>,
}

#[derive(Deserialize)]
struct Status {
    status: String,
}

/// The host's end.
#[derive(Debug)]
pub(crate) struct Qmp {
    stream: UnixStream,
    /// What was read and not used.
    buffer: Vec<u8>,
    asked: u64,
}

impl Qmp {
    /// Makes the socket, and the end that is for the emulator.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = StdStream::pair()?;
        ours.set_nonblocking(true)?;
        let stream = UnixStream::from_std(ours)?;
        Ok((Self { stream, buffer: Vec::new(), asked: 0 }, theirs.into()))
    }

    /// Says it, whether or not the emulator listens already, and does not wait. The answers come in
    /// the same order.
    pub(crate) async fn say(
        &mut self,
        command: Command,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<Ticket, QmpError> {
        self.asked += 1;
        let asked = Asked { command, id: self.asked };
        let mut line = serde_json::to_vec(&asked).expect("a command is plain JSON");
        line.push(b'\n');
        let mut rest = &line[..];
        let mut descriptor = descriptor;
        while !rest.is_empty() {
            let send = || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                if let Some(descriptor) = &descriptor {
                    let pushed = ancillary
                        .push(SendAncillaryMessage::ScmRights(std::slice::from_ref(descriptor)));
                    debug_assert!(pushed, "there is room for one");
                }
                let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                Ok(sendmsg(self.stream.as_fd(), &[IoSlice::new(rest)], &mut ancillary, flags)?)
            };
            let sent = self.stream.async_io(Interest::WRITABLE, send).await?;
            // It went with the first byte.
            descriptor = None;
            rest = &rest[sent..];
        }
        Ok(Ticket { id: self.asked, command: command.name() })
    }

    /// Waits for the answer. Those to what was said before are passed over.
    pub(crate) async fn answer<T: DeserializeOwned>(
        &mut self,
        ticket: Ticket,
    ) -> Result<T, QmpError> {
        let Ticket { id, command } = ticket;
        match tokio::time::timeout(PATIENCE, self.answer_to(id, command)).await {
            Ok(answer) => answer,
            Err(_) => Err(QmpError::Unanswered(command)),
        }
    }

    /// Says it, and waits until it is done.
    pub(crate) async fn tell(
        &mut self,
        command: Command,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(), QmpError> {
        let ticket = self.say(command, descriptor).await?;
        self.answer::<IgnoredAny>(ticket).await.map(drop)
    }

    /// What became of the state that was written.
    pub(crate) async fn migration(&mut self) -> Result<Migration, QmpError> {
        let ticket = self.say(Command::QueryMigrate {}, None).await?;
        self.answer(ticket).await
    }

    /// Lets the processors of a machine go on, once it has read the state that it was told to.
    pub(crate) async fn go_on(&mut self, told: Ticket) -> Result<(), QmpError> {
        self.answer::<IgnoredAny>(told).await?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ticket = self.say(Command::QueryStatus {}, None).await?;
            let Status { status } = self.answer(ticket).await?;
            if status != "inmigrate" {
                return self.tell(Command::Cont {}, None).await;
            }
            if Instant::now() > deadline {
                return Err(QmpError::Unanswered("migrate-incoming"));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn answer_to<T: DeserializeOwned>(
        &mut self,
        wanted: u64,
        command: &'static str,
    ) -> Result<T, QmpError> {
        let unreadable = || QmpError::Unreadable(command);
        loop {
            let line = self.line().await?;
            let said: Said<'_> = serde_json::from_slice(&line).map_err(|_| unreadable())?;
            if let (Some(id), Some(Refusal { desc })) = (said.id, said.error) {
                // One that came before matters as much: what follows builds on it.
                if id <= wanted {
                    let reason = desc.chars().filter(|c| !c.is_control()).take(200).collect();
                    return Err(QmpError::Refused { command, reason });
                }
            } else if said.id == Some(wanted) {
                let returned = said.returned.ok_or_else(unreadable)?;
                return serde_json::from_str(returned.get()).map_err(|_| unreadable());
            }
        }
    }

    async fn line(&mut self) -> Result<Vec<u8>, QmpError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(end + 1);
                return Ok(std::mem::replace(&mut self.buffer, rest));
            }
            if self.buffer.len() > LONGEST {
                return Err(QmpError::Unreadable("a command"));
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes).await? {
                0 => return Err(QmpError::Closed),
                count => self.buffer.extend(&bytes[..count]),
            }
        }
    }
}

/// The right to one answer.
#[derive(Debug)]
#[must_use = "nobody knows whether it was done"]
pub(crate) struct Ticket {
    id: u64,
    command: &'static str,
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    fn emulator(end: OwnedFd) -> UnixStream {
        let stream = StdStream::from(end);
        stream.set_nonblocking(true).unwrap();
        UnixStream::from_std(stream).unwrap()
    }

    #[tokio::test]
    async fn an_answer_is_found_among_greetings_and_events() {
        let (mut qmp, end) = Qmp::pair().unwrap();
        let mut emulator = emulator(end);
        let first = qmp.say(Command::Begin {}, None).await.unwrap();
        let second = qmp.say(Command::Stop {}, None).await.unwrap();
        let said = b"{\"QMP\": {\"version\": {}}}\n{\"return\": {}, \"id\": 1}\n\
                     {\"event\": \"STOP\", \"timestamp\": {}}\n{\"return\": {}, \"id\": 2}\n";
        emulator.write_all(said).await.unwrap();
        qmp.answer::<IgnoredAny>(first).await.unwrap();
        qmp.answer::<IgnoredAny>(second).await.unwrap();
        let mut heard = vec![0; 200];
        let count = emulator.read(&mut heard).await.unwrap();
        let heard = String::from_utf8_lossy(&heard[..count]).into_owned();
        let begin = r#"{"execute":"qmp_capabilities","arguments":{},"id":1}"#;
        assert!(heard.starts_with(begin), "{heard}");
    }

    #[tokio::test]
    async fn a_refusal_says_which_command_and_why() {
        let (mut qmp, end) = Qmp::pair().unwrap();
        let mut emulator = emulator(end);
        let asked = qmp.say(Command::Migrate { uri: "fd:state" }, None).await.unwrap();
        let said =
            b"{\"id\": 1, \"error\": {\"class\": \"GenericError\", \"desc\": \"no\\u0007\"}}\n";
        emulator.write_all(said).await.unwrap();
        let error = qmp.answer::<IgnoredAny>(asked).await.unwrap_err();
        assert_eq!(error.to_string(), "the emulator refused migrate: no");
    }

    #[tokio::test]
    async fn what_is_no_answer_is_an_error() {
        for said in [b"garbage\n".to_vec(), vec![b'x'; LONGEST + 5000]] {
            let (mut qmp, end) = Qmp::pair().unwrap();
            let mut emulator = emulator(end);
            let asked = qmp.say(Command::Stop {}, None).await.unwrap();
            let talk = async move { emulator.write_all(&said).await };
            let (_, answer) = tokio::join!(talk, qmp.answer::<IgnoredAny>(asked));
            assert!(matches!(answer, Err(QmpError::Unreadable(_))), "{answer:?}");
        }
    }

    #[tokio::test]
    async fn an_emulator_that_is_gone_is_told_apart() {
        let (mut qmp, end) = Qmp::pair().unwrap();
        let asked = qmp.say(Command::Stop {}, None).await.unwrap();
        drop(end);
        let gone = qmp.answer::<IgnoredAny>(asked).await.unwrap_err();
        assert!(matches!(gone, QmpError::Closed | QmpError::Socket(_)), "{gone}");
    }
}
