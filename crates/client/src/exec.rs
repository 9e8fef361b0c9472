//! A command's streams: over WebSocket with input, over server-sent events without.

use std::sync::Arc;

use api::{Exec, ExecControl, ExecEnd, ExecEvent, ExecFinal, ExecStarted, WindowSize, channel};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use http::HeaderValue;
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::sync::Mutex;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WebSocketError, Message};

use crate::Error;
use crate::request::Request;

/// Longer than any message that a server of ours sends.
const MAX_MESSAGE: usize = 1 << 20;
/// A message of stdin carries at most so many bytes.
const PIECE: usize = 32 << 10;

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// What a running command says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// It has started. The first, where the stream begins with the command.
    Started(ExecStarted),
    /// More of stdout, or of its terminal.
    Stdout(Bytes),
    /// More of stderr.
    Stderr(Bytes),
    /// It has ended. The last.
    Exit(ExecEnd),
}

impl Output {
    pub(crate) fn of_event(event: ExecEvent) -> Result<Self, Error> {
        let bytes = |data: &str| BASE64.decode(data).map(Bytes::from).map_err(Error::malformed);
        Ok(match event {
            ExecEvent::Started(started) => Self::Started(started),
            ExecEvent::Stdout(chunk) => Self::Stdout(bytes(&chunk.data_base64)?),
            ExecEvent::Stderr(chunk) => Self::Stderr(bytes(&chunk.data_base64)?),
            ExecEvent::Exit(end) => Self::Exit(end),
            ExecEvent::Error(problem) => return Err(problem.into()),
        })
    }
}

/// A command that runs, joined to this program. Dropping both halves ends the connection, and
/// with it a command that is not detached.
#[derive(Debug)]
pub struct Session {
    /// What the command says.
    pub output: SessionOutput,
    /// What the command is told.
    pub input: SessionInput,
}

/// The half of a [`Session`] that is read.
#[derive(Debug)]
pub struct SessionOutput {
    socket: SplitStream<Socket>,
    ended: bool,
}

/// The half of a [`Session`] that is written. Clones are the same half.
#[derive(Debug, Clone)]
pub struct SessionInput {
    socket: Arc<Mutex<SplitSink<Socket, Message>>>,
}

impl Session {
    /// Makes a WebSocket of the request and sends `first` on it.
    pub(crate) async fn open(request: Request<'_>, first: Option<&Exec>) -> Result<Self, Error> {
        let key = generate_key();
        let first = first.map(serde_json::to_string).transpose().map_err(Error::malformed)?;
        let request = match &first {
            Some(first) => request.followed_by(first.clone().into()),
            None => request,
        };
        let text = |text: &str| HeaderValue::from_str(text).map_err(Error::malformed);
        let response = request
            .header(CONNECTION, HeaderValue::from_static("Upgrade"))
            .header(UPGRADE, HeaderValue::from_static("websocket"))
            .header(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"))
            .header(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(channel::PROTOCOL))
            .header(SEC_WEBSOCKET_KEY, text(&key)?)
            .once()
            .await?;
        let headers = response.headers();
        let accepts = headers.get(SEC_WEBSOCKET_ACCEPT).is_some_and(|accept| {
            accept.as_bytes() == derive_accept_key(key.as_bytes()).as_bytes()
        });
        let speaks = headers
            .get(SEC_WEBSOCKET_PROTOCOL)
            .is_some_and(|protocol| protocol.as_bytes() == channel::PROTOCOL.as_bytes());
        if !accepts || !speaks {
            return Err(Error::malformed("it is no WebSocket of this protocol"));
        }
        let stream = hyper::upgrade::on(response).await.map_err(Error::broken)?;
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE));
        let socket =
            Socket::from_raw_socket(TokioIo::new(stream), Role::Client, Some(config)).await;
        let (mut sender, receiver) = socket.split();
        if let Some(first) = first {
            sender.send(Message::text(first)).await.map_err(Error::broken)?;
        }
        Ok(Self {
            output: SessionOutput { socket: receiver, ended: false },
            input: SessionInput { socket: Arc::new(Mutex::new(sender)) },
        })
    }
}

impl SessionOutput {
    /// What comes next; none behind [`Output::Exit`]. A slow reader slows the command down.
    ///
    /// # Errors
    /// The command could not be run, or the connection broke.
    pub async fn next(&mut self) -> Result<Option<Output>, Error> {
        while !self.ended {
            let message = match self.socket.next().await {
                Some(message) => message.map_err(broken)?,
                None => return Err(Error::broken("it ended before the command did")),
            };
            let said = match message {
                Message::Binary(bytes) => match bytes.first() {
                    Some(&channel::STDOUT) => Output::Stdout(bytes.slice(1..)),
                    Some(&channel::STDERR) => Output::Stderr(bytes.slice(1..)),
                    _ => return Err(Error::malformed("a message of an unknown kind")),
                },
                Message::Text(text) => match serde_json::from_str(&text) {
                    Ok(ExecFinal::Started(started)) => Output::Started(started),
                    Ok(ExecFinal::Exit(end)) => {
                        self.ended = true;
                        Output::Exit(end)
                    }
                    Ok(ExecFinal::Error(problem)) => {
                        self.ended = true;
                        return Err(problem.into());
                    }
                    Err(error) => return Err(Error::malformed(error)),
                },
                Message::Close(_) => return Err(Error::broken("it ended before the command did")),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
            };
            return Ok(Some(said));
        }
        Ok(None)
    }
}

impl SessionInput {
    /// More of the command's stdin. Waits while the command does not read.
    ///
    /// # Errors
    /// The connection broke, as it does when the command has ended.
    pub async fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        for piece in bytes.chunks(PIECE) {
            let mut message = BytesMut::with_capacity(1 + piece.len());
            message.put_u8(channel::STDIN);
            message.put_slice(piece);
            self.send(Message::Binary(message.freeze())).await?;
        }
        Ok(())
    }

    /// The command's stdin has ended.
    ///
    /// # Errors
    /// As [`SessionInput::write`].
    pub async fn end(&self) -> Result<(), Error> {
        self.send(Message::Binary(Bytes::from_static(&[channel::STDIN_END]))).await
    }

    /// Sends a signal, by its Linux number.
    ///
    /// # Errors
    /// As [`SessionInput::write`].
    pub async fn signal(&self, signal: i32) -> Result<(), Error> {
        self.control(ExecControl::Signal(signal)).await
    }

    /// Gives the command's terminal a new size.
    ///
    /// # Errors
    /// As [`SessionInput::write`].
    pub async fn resize(&self, size: WindowSize) -> Result<(), Error> {
        self.control(ExecControl::Resize(size)).await
    }

    async fn control(&self, control: ExecControl) -> Result<(), Error> {
        let text = serde_json::to_string(&control).map_err(Error::malformed)?;
        self.send(Message::text(text)).await
    }

    async fn send(&self, message: Message) -> Result<(), Error> {
        self.socket.lock().await.send(message).await.map_err(broken)
    }
}

fn broken(error: WebSocketError) -> Error {
    match error {
        WebSocketError::Capacity(_) | WebSocketError::Protocol(_) | WebSocketError::Utf8(_) => {
            Error::malformed(error)
        }
        other => Error::broken(other),
    }
}
