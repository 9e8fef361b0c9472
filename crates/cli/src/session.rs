//! One command in a guest, joined to our own streams, signals and terminal until it ends.

use std::future::pending;
use std::io;
use std::pin::pin;
use std::time::Duration;

use supervisor::{Guest, Input, LinkError, Process, Sandbox};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use wire::envelope::TaskDigest;
use wire::op::{Exec, ExecReply, Operation, Resize, Signal, WindowSize};

use crate::exit;
use crate::failure::{Failure, Kind};
use crate::input;
use crate::output::{self, Sink};
use crate::signals::Signals;
use crate::terminal::{self, Escape, RawMode};

/// How much longer than the guest's own KILL we wait before we call it dead.
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
pub(crate) enum Ending<R, E> {
    /// The other end told.
    Replied(R),
    /// The user insisted, with this signal.
    Interrupted(i32),
    /// Nobody reads our output any more.
    OutputClosed,
    /// The time was up and nobody said so.
    Overdue,
    /// The other end failed, or is gone.
    Lost(E),
}

/// Why the command's output came to no end.
pub(crate) enum Broken<E> {
    /// It does not come any more.
    Source(E),
    /// It cannot be written.
    Output(io::Error),
}

/// What a running command can be told. Whether it arrives is not: the command may have ended.
pub(crate) trait Control {
    /// A signal, by its number.
    async fn signal(&self, number: i32);
    /// The terminal's new size.
    async fn resize(&self, size: WindowSize);
    /// More input; false where nobody takes it any more.
    async fn write(&self, bytes: &[u8]) -> bool;
    /// The input has ended.
    async fn end_input(&self);
}

/// How a command is joined to us.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Joint {
    /// It has a terminal, which was told to be so large.
    pub(crate) tty: Option<WindowSize>,
    /// It gets our stdin.
    pub(crate) stdin: bool,
    /// After so long, its own end is overdue.
    pub(crate) patience: Option<Duration>,
}

impl Joint {
    /// That of a command.
    pub(crate) fn of(exec: &Exec) -> Self {
        let patience = exec.timeout_ms.map(|timeout| {
            Duration::from_millis(timeout.saturating_add(exec.kill_grace_ms))
                .saturating_add(OVERDUE)
        });
        Self { tty: exec.tty, stdin: exec.stdin, patience }
    }
}

/// Joins a command that has started to our streams, signals and terminal. `ended` moves its
/// output to where it goes and has its end. Returns when it has ended, or has to be ended.
pub(crate) async fn join<R, E>(
    ended: impl Future<Output = Result<R, Broken<E>>>,
    control: &impl Control,
    joint: Joint,
    signals: &mut Signals,
) -> Result<Ending<R, E>, Failure> {
    let raw = match joint.tty {
        Some(_) => RawMode::enter()
            .map_err(|error| Failure::failed("cannot take over the terminal").because(&error))?,
        None => None,
    };
    let typed = match joint.stdin {
        true => Some(
            input::read()
                .map_err(|error| Failure::failed("cannot start to read stdin").because(&error))?,
        ),
        false => None,
    };
    let escape = raw.is_some().then(Escape::new);
    let mut feeding = pin!(async {
        let Some(typed) = typed else { return pending().await };
        feed(control, typed, escape).await
    });
    let mut ended = pin!(ended);
    let mut overdue = pin!(async {
        match joint.patience {
            Some(patience) => tokio::time::sleep(patience).await,
            None => pending().await,
        }
    });
    let mut resized = match joint.tty {
        Some(_) => signal(SignalKind::window_change()).ok(),
        None => None,
    };
    // The size was read before the machine was made; a change since then has told nobody.
    if let (Some(then), Some(size)) = (joint.tty, terminal::size())
        && then != size
    {
        control.resize(size).await;
    }
    let mut asked = false;
    Ok(loop {
        tokio::select! {
            ended = &mut ended => match ended {
                Ok(reply) => break Ending::Replied(reply),
                Err(Broken::Output(error)) if output::is_closed(&error) => break Ending::OutputClosed,
                Err(Broken::Output(error)) => {
                    return Err(Failure::failed("cannot write the command's output").because(&error));
                }
                Err(Broken::Source(error)) => break Ending::Lost(error),
            },
            number = signals.next() => {
                if asked {
                    break Ending::Interrupted(number);
                }
                asked = true;
                control.signal(number).await;
            }
            () = &mut feeding => break Ending::Interrupted(SignalKind::interrupt().as_raw_value()),
            Some(()) = async { resized.as_mut()?.recv().await } => {
                if let Some(size) = terminal::size() {
                    control.resize(size).await;
                }
            }
            () = &mut overdue => break Ending::Overdue,
        }
    })
}

/// Returns only where the user wants out.
async fn feed(
    control: &impl Control,
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
        if !control.write(&piece).await {
            // The other end is gone, which the command's output tells.
            return pending().await;
        }
    }
    control.end_input().await;
    pending().await
}

/// A process of a guest that this program talks to itself.
struct InGuest<'a> {
    guest: &'a Guest,
    process: String,
    stdin: Input,
}

impl Control for InGuest<'_> {
    async fn signal(&self, number: i32) {
        send(self.guest, &Signal { process: self.process.clone(), signal: number });
    }

    async fn resize(&self, size: WindowSize) {
        send(self.guest, &Resize { process: self.process.clone(), size });
    }

    async fn write(&self, bytes: &[u8]) -> bool {
        self.stdin.write(bytes).await.is_ok()
    }

    async fn end_input(&self) {
        self.stdin.clone().finish();
    }
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

/// Runs `exec` in a guest and gives its reply with the operation's digest; no reply where nobody
/// reads our output any more. Dropping the operation cancels it in the guest.
pub(crate) async fn run(
    sandbox: &mut Sandbox,
    exec: &Exec,
    sinks: &mut Sinks,
    signals: &mut Signals,
) -> Result<(Option<ExecReply>, TaskDigest), Failure> {
    let process = sandbox.guest().exec(exec).map_err(link_failure)?;
    let digest = process.digest();
    let control =
        InGuest { guest: sandbox.guest(), process: exec.process.clone(), stdin: process.stdin() };
    let ended = drain(process, sinks);
    match join(ended, &control, Joint::of(exec), signals).await? {
        Ending::Replied(reply) => Ok((Some(reply), digest)),
        Ending::OutputClosed => Ok((None, digest)),
        Ending::Interrupted(signal) => Err(Failure::interrupted(signal)),
        Ending::Overdue => Err(overdue()),
        Ending::Lost(error @ LinkError::Disconnected(_)) => {
            // The machine knows more than the broken connection.
            let told = tokio::time::timeout(OBITUARY, sandbox.ended()).await;
            let why = told.unwrap_or_else(|_| error.to_string());
            Err(Failure::failed(format!("the machine ended before the command did: {why}"))
                .help("it may have run out of memory: try --memory; --console shows its kernel's messages"))
        }
        Ending::Lost(error) => Err(link_failure(error)),
    }
}

/// The command's time was up, and nothing came of it.
pub(crate) fn overdue() -> Failure {
    Failure {
        status: Some(exit::TIMED_OUT),
        ..Failure::failed("timed out, and the machine did not answer any more")
    }
}

/// Both outputs to their ends, then the reply.
async fn drain(process: Process<Exec>, sinks: &mut Sinks) -> Result<ExecReply, Broken<LinkError>> {
    let Sinks { stdout, stderr } = sinks;
    let first = async {
        let output = process.stdout();
        while let Some(piece) = output.read().await.map_err(Broken::Source)? {
            stdout.write(piece).await.map_err(Broken::Output)?;
        }
        stdout.finish().await.map_err(Broken::Output)
    };
    let second = async {
        if let Some(output) = process.stderr().await.map_err(Broken::Source)? {
            while let Some(piece) = output.read().await.map_err(Broken::Source)? {
                stderr.write(piece).await.map_err(Broken::Output)?;
            }
        }
        stderr.finish().await.map_err(Broken::Output)
    };
    tokio::try_join!(first, second)?;
    process.wait().await.map_err(Broken::Source)
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
