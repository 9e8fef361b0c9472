//! One command in a guest, joined to our own streams, signals and terminal until it ends.

use std::future::pending;
use std::io;
use std::pin::pin;
use std::time::Duration;

use supervisor::{Guest, LinkError, Process, Sandbox};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use wire::op::{Exec, ExecReply, Operation, Resize, Signal};

use crate::exit;
use crate::failure::{Failure, Kind};
use crate::input;
use crate::output::{self, Sink};
use crate::signals::Signals;
use crate::terminal::{self, Escape, RawMode};

/// How much longer than the guest's own KILL we wait before we call the guest dead.
const OVERDUE: Duration = Duration::from_secs(10);

/// How long a machine that is gone may take to say why.
const OBITUARY: Duration = Duration::from_secs(2);

/// Where the command's output goes.
#[derive(Debug)]
pub(crate) struct Sinks {
    pub(crate) stdout: Sink,
    pub(crate) stderr: Sink,
}

/// How it ended.
#[derive(Debug)]
pub(crate) enum Ending {
    /// The guest told.
    Replied(ExecReply),
    /// The user insisted, with this signal.
    Interrupted(i32),
    /// Nobody reads our output any more.
    OutputClosed,
    /// The time was up and the guest did not say so.
    Overdue,
    /// The connection broke.
    GuestGone(LinkError),
}

impl Ending {
    /// The guest's reply, or nothing where nobody reads our output any more; any other end is a
    /// failure.
    pub(crate) async fn reply(self, sandbox: &mut Sandbox) -> Result<Option<ExecReply>, Failure> {
        match self {
            Self::Replied(reply) => Ok(Some(reply)),
            Self::OutputClosed => Ok(None),
            Self::Interrupted(signal) => Err(Failure::interrupted(signal)),
            Self::Overdue => Err(Failure {
                status: Some(exit::TIMED_OUT),
                ..Failure::failed("timed out, and the machine did not answer any more")
            }),
            Self::GuestGone(error) => {
                // The machine knows more than the broken connection.
                let told = tokio::time::timeout(OBITUARY, sandbox.ended()).await;
                let why = told.unwrap_or_else(|_| error.to_string());
                Err(Failure::failed(format!("the machine ended before the command did: {why}"))
                    .help("it may have run out of memory: try --memory; --console shows its kernel's messages"))
            }
        }
    }
}

enum Broken {
    Link(LinkError),
    Output(io::Error),
}

/// Runs `exec` and returns when it has ended, or has to be ended: dropping the operation cancels
/// it in the guest.
pub(crate) async fn run(
    guest: &Guest,
    exec: &Exec,
    sinks: &mut Sinks,
    signals: &mut Signals,
) -> Result<(Ending, String), Failure> {
    let _raw = match exec.tty {
        Some(_) => RawMode::enter()
            .map_err(|error| Failure::failed("cannot take over the terminal").because(&error))?,
        None => None,
    };
    let keys = _raw.is_some();
    let process = guest.exec(exec).map_err(link_failure)?;
    let digest = process.digest().to_string();
    let typed = match exec.stdin {
        true => Some(
            input::read()
                .map_err(|error| Failure::failed("cannot start to read stdin").because(&error))?,
        ),
        false => None,
    };
    let stdin = process.stdin();
    let mut feeding = pin!(async {
        let Some(typed) = typed else { return pending().await };
        feed(stdin, typed, keys.then(Escape::new)).await
    });
    let mut ended = pin!(drain(process, sinks));
    let mut overdue = pin!(async {
        match exec.timeout_ms {
            Some(timeout) => {
                let patience = Duration::from_millis(timeout.saturating_add(exec.kill_grace_ms));
                tokio::time::sleep(patience.saturating_add(OVERDUE)).await;
            }
            None => pending().await,
        }
    });
    let mut resized = match exec.tty {
        Some(_) => signal(SignalKind::window_change()).ok(),
        None => None,
    };
    // The size was read before the machine was made; a change since then has told nobody.
    if let (Some(then), Some(size)) = (exec.tty, terminal::size())
        && then != size
    {
        send(guest, &Resize { process: exec.process.clone(), size });
    }
    let mut asked = false;
    let ending = loop {
        tokio::select! {
            ended = &mut ended => match ended {
                Ok(reply) => break Ending::Replied(reply),
                Err(Broken::Output(error)) if output::is_closed(&error) => break Ending::OutputClosed,
                Err(Broken::Output(error)) => {
                    return Err(Failure::failed("cannot write the command's output").because(&error));
                }
                Err(Broken::Link(error @ LinkError::Disconnected(_))) => break Ending::GuestGone(error),
                Err(Broken::Link(error)) => return Err(link_failure(error)),
            },
            number = signals.next() => {
                if asked {
                    break Ending::Interrupted(number);
                }
                asked = true;
                send(guest, &Signal { process: exec.process.clone(), signal: number });
            }
            () = &mut feeding => break Ending::Interrupted(SignalKind::interrupt().as_raw_value()),
            Some(()) = async { resized.as_mut()?.recv().await } => {
                if let Some(size) = terminal::size() {
                    send(guest, &Resize { process: exec.process.clone(), size });
                }
            }
            () = &mut overdue => break Ending::Overdue,
        }
    };
    Ok((ending, digest))
}

/// Sends an operation whose reply changes nothing: the process may have ended meanwhile.
fn send<O>(guest: &Guest, operation: &O)
where
    O: Operation + 'static,
    O::Reply: Send,
{
    if let Ok(call) = guest.call(operation) {
        tokio::spawn(call.reply());
    }
}

/// Returns only where the user wants out.
async fn feed(
    stdin: supervisor::Input,
    mut typed: mpsc::Receiver<Vec<u8>>,
    mut escape: Option<Escape>,
) {
    while let Some(piece) = typed.recv().await {
        let piece = match &mut escape {
            None => piece,
            Some(escape) => match escape.pass(&piece) {
                Some(piece) => piece,
                None => return,
            },
        };
        if stdin.write(&piece).await.is_err() {
            // The guest is gone, which the other end of this process tells.
            return pending().await;
        }
    }
    stdin.finish();
    pending().await
}

/// Both outputs to their ends, then the reply.
async fn drain(process: Process<Exec>, sinks: &mut Sinks) -> Result<ExecReply, Broken> {
    let Sinks { stdout, stderr } = sinks;
    let first = async {
        let output = process.stdout();
        while let Some(piece) = output.read().await.map_err(Broken::Link)? {
            stdout.write(piece).await.map_err(Broken::Output)?;
        }
        stdout.finish().await.map_err(Broken::Output)
    };
    let second = async {
        if let Some(output) = process.stderr().await.map_err(Broken::Link)? {
            while let Some(piece) = output.read().await.map_err(Broken::Link)? {
                stderr.write(piece).await.map_err(Broken::Output)?;
            }
        }
        stderr.finish().await.map_err(Broken::Output)
    };
    tokio::try_join!(first, second)?;
    process.wait().await.map_err(Broken::Link)
}

/// What the guest said, as our failure.
fn link_failure(error: LinkError) -> Failure {
    match error {
        LinkError::Operation(error) => {
            use wire::op::ErrorCode::{Exhausted, Invalid, NotFound, PermissionDenied};
            let kind = match error.code {
                NotFound => Kind::NotFound,
                Invalid => Kind::Usage,
                PermissionDenied => Kind::Denied,
                _ => Kind::Failed,
            };
            let failure = Failure::new(kind, error.message);
            if error.code == Exhausted {
                failure.help("a machine with more memory may do: --memory")
            } else {
                failure
            }
        }
        other => Failure::from_error(Kind::Failed, &other),
    }
}
