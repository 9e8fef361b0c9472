//! A command's streams over WebSocket: its output in binary messages, its end in a text, and
//! input, signals and sizes the other way.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use access::signature::BodyDigest;
use api::{
    Code, Exec, ExecControl, ExecFinal, ExecStarted, Problem, Validate as _, WindowSize, channel,
};
use axum::extract::FromRequestParts as _;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::response::Response;
use bytes::{BufMut as _, Bytes, BytesMut};
use fleet::{Stdin, Stream, Task};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use http::header::SEC_WEBSOCKET_PROTOCOL;

use crate::ask::{Answer, Ask};

/// The client is asked so often whether it is there, and is not when it has said nothing twice.
const HEARTBEAT: Duration = Duration::from_secs(30);

type Sink = SplitSink<WebSocket, Message>;

/// What begins the session.
pub(crate) enum Begin {
    /// The first message says what to run.
    Message {
        /// A terminal of this size, where that does not say.
        tty: Option<WindowSize>,
    },
    /// This is run.
    Exec(Box<Exec>),
    /// What runs already.
    Task(Box<Task>),
}

/// Makes a WebSocket of the request's connection, and a session of it.
pub(crate) async fn open(mut ask: Ask, sandbox: String, begin: Begin) -> Answer {
    let upgrade = WebSocketUpgrade::from_request_parts(&mut ask.parts, &()).await;
    let Ok(upgrade) = upgrade else {
        return Err(Problem::new(Code::UpgradeRequired, "this path speaks WebSocket"));
    };
    let protocols = ask.parts.headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    let mut protocols = protocols.filter_map(|line| line.to_str().ok());
    if !protocols.any(|line| line.split(',').any(|name| name.trim() == channel::PROTOCOL)) {
        let text = format!("must name the sub-protocol {}", channel::PROTOCOL);
        return Err(Problem::invalid("Sec-WebSocket-Protocol", text));
    }
    let size = ask.app.limits.message_bytes;
    let (token, stopped) = (ask.app.lifetime.tasks.token(), ask.app.lifetime.stopped.clone());
    let response: Response = upgrade
        .protocols([channel::PROTOCOL])
        .max_message_size(size)
        .max_frame_size(size)
        .on_upgrade(move |socket| async move {
            let _token = token;
            tokio::select! {
                () = session(ask, sandbox, begin, socket) => {}
                () = stopped.cancelled() => {}
            }
        });
    Ok(response)
}

async fn session(ask: Ask, sandbox: String, begin: Begin, mut socket: WebSocket) {
    let begun = match begin {
        Begin::Task(task) => Ok(*task),
        Begin::Exec(exec) => start(&ask, &sandbox, *exec).await,
        Begin::Message { tty } => match first(&ask, tty, &mut socket).await {
            Ok(exec) => start(&ask, &sandbox, exec).await,
            Err(problem) => Err(problem),
        },
    };
    let (mut sink, source) = socket.split();
    let end = match begun {
        Ok(task) => converse(&ask, &sandbox, task, &mut sink, source).await,
        Err(problem) => Some(ExecFinal::Error(problem)),
    };
    let Some(end) = end else { return };
    let close = CloseFrame { code: close_code::NORMAL, reason: "".into() };
    if send(&mut sink, &end).await.is_ok() {
        let _ = sink.send(Message::Close(Some(close))).await;
    }
}

/// The first message: what to run. Where the request was signed, that is what was.
async fn first(
    ask: &Ask,
    tty: Option<WindowSize>,
    socket: &mut WebSocket,
) -> Result<Exec, Problem> {
    let text = loop {
        let Ok(message) = tokio::time::timeout(ask.app.limits.stall, socket.recv()).await else {
            return Err(Problem::new(Code::RequestTimeout, "the first message does not arrive"));
        };
        match message {
            Some(Ok(Message::Text(text))) => break text,
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(_)) => {
                return Err(Problem::invalid("message", "the first message is a command in JSON"));
            }
            Some(Err(_)) | None => {
                return Err(Problem::invalid("message", "the connection ended before the command"));
            }
        }
    };
    if let Some(signed) = &ask.signed {
        let target = format!("{} {}", ask.parts.method, ask.parts.uri.path());
        let arrived = BodyDigest::of(text.as_bytes());
        let same = ask.app.manager.verify_body(&ask.caller, signed, &arrived, &target).await;
        same.map_err(|error| error.problem())?;
    }
    let mut exec: Exec = serde_json::from_str(&text)
        .map_err(|error| Problem::invalid("message", error.to_string()))?;
    exec.validate()?;
    exec.tty = exec.tty.or(tty);
    Ok(exec)
}

async fn start(ask: &Ask, sandbox: &str, exec: Exec) -> Result<Task, Problem> {
    let started = ask.app.manager.exec(&ask.caller, sandbox, exec, &ask.provenance).await;
    started.map_err(|error| error.problem())
}

async fn send(sink: &mut Sink, message: &ExecFinal) -> Result<(), axum::Error> {
    let text = serde_json::to_string(message).unwrap_or_default();
    sink.send(Message::Text(text.into())).await
}

/// Until the command has ended, or the client has gone; in that case there is nobody to be told.
async fn converse(
    ask: &Ask,
    sandbox: &str,
    mut task: Task,
    sink: &mut Sink,
    source: SplitStream<WebSocket>,
) -> Option<ExecFinal> {
    let started = ExecStarted {
        process: task.process().to_owned(),
        task_digest: task.task_digest().to_owned(),
    };
    let process = started.process.clone();
    send(sink, &ExecFinal::Started(started)).await.ok()?;
    let heard = AtomicBool::new(true);
    let stdin = task.take_stdin();
    let mut listening = std::pin::pin!(listen(ask, sandbox, &process, stdin, source, &heard));
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    heartbeat.tick().await;
    loop {
        let message = tokio::select! {
            output = task.output() => match output {
                None => break,
                Some(output) => {
                    let channel = match output.stream {
                        Stream::Stdout => channel::STDOUT,
                        Stream::Stderr => channel::STDERR,
                    };
                    let mut message = BytesMut::with_capacity(1 + output.bytes.len());
                    message.put_u8(channel);
                    message.put_slice(&output.bytes);
                    Message::Binary(message.freeze())
                }
            },
            said = &mut listening => return said.err().map(ExecFinal::Error),
            _ = heartbeat.tick() => {
                if !heard.swap(false, Ordering::Relaxed) {
                    return None;
                }
                Message::Ping(Bytes::new())
            }
        };
        sink.send(message).await.ok()?;
    }
    // Its output is over, but it may still run.
    tokio::select! {
        end = task.end() => Some(match end {
            Ok(end) => ExecFinal::Exit(end),
            Err(error) => ExecFinal::Error(error.problem()),
        }),
        said = &mut listening => said.err().map(ExecFinal::Error),
    }
}

/// Does what the client says, until it goes or says something that cannot be.
async fn listen(
    ask: &Ask,
    sandbox: &str,
    process: &str,
    mut stdin: Option<Stdin>,
    mut source: SplitStream<WebSocket>,
    heard: &AtomicBool,
) -> Result<(), Problem> {
    while let Some(Ok(message)) = source.next().await {
        heard.store(true, Ordering::Relaxed);
        match message {
            Message::Binary(bytes) => match bytes.first() {
                Some(&channel::STDIN) => {
                    let Some(stdin) = &stdin else {
                        let text = "the command has no stdin, or that has ended: ask for `stdin`";
                        return Err(Problem::invalid("message", text));
                    };
                    // A command that has ended reads nothing more; its end is told in a moment.
                    let _ = stdin.write(&bytes[1..]).await;
                }
                Some(&channel::STDIN_END) if bytes.len() == 1 => {
                    if let Some(stdin) = stdin.take() {
                        stdin.finish();
                    }
                }
                _ => return Err(Problem::invalid("message", "no such channel")),
            },
            Message::Text(text) => {
                let control: ExecControl = serde_json::from_str(&text)
                    .map_err(|error| Problem::invalid("message", error.to_string()))?;
                control.validate()?;
                steer(ask, sandbox, process, control).await;
            }
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Close(_) => break,
        }
    }
    Ok(())
}

/// Passes on a signal or a size. What does not arrive was for a command that has ended.
async fn steer(ask: &Ask, sandbox: &str, process: &str, control: ExecControl) {
    let (manager, caller, by) = (&ask.app.manager, &ask.caller, &ask.provenance);
    let steered = match control {
        ExecControl::Resize(size) => manager.resize(caller, sandbox, process, size, by).await,
        ExecControl::Signal(signal) => manager.signal(caller, sandbox, process, signal, by).await,
    };
    if let Err(error) = steered {
        tracing::debug!(%error, "a control message had no effect");
    }
}
