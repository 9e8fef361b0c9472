//! A command over WebSocket.

mod support;

use api::{Command, Exec, WindowSize};
use client::{Error, Output};
use futures_util::{SinkExt as _, StreamExt as _};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use support::{Body, in_process, json};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// Accepts the WebSocket and hands it to `talk`.
fn upgrade<F, T>(request: Request<Incoming>, talk: F) -> Response<Body>
where
    F: FnOnce(Socket) -> T + Send + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let accept = derive_accept_key(request.headers()["sec-websocket-key"].as_bytes());
    tokio::spawn(async move {
        let stream = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
        talk(WebSocketStream::from_raw_socket(stream, Role::Server, None).await).await;
    });
    Response::builder()
        .status(101)
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-accept", accept)
        .header("sec-websocket-protocol", "sandforge.exec.v1")
        .body(Empty::new().boxed_unsync())
        .unwrap()
}

async fn text(socket: &mut Socket) -> Value {
    let message = socket.next().await.unwrap().unwrap();
    serde_json::from_str(message.to_text().unwrap()).unwrap()
}

fn end() -> Message {
    let end = json!({"exit": {
        "process": "p", "outcome": {"result": "exited", "code": 0}, "exit_code": 0,
        "truncated": {"stdout": 0, "stderr": 0}, "duration_ms": 1, "cpu_ms": 1,
        "memory_peak_bytes": 1, "task_digest": "d",
    }});
    Message::text(end.to_string())
}

/// Says back what it is told: input on stdout, controls on stderr, until the input ends.
async fn echo(mut socket: Socket) {
    let exec = text(&mut socket).await;
    assert_eq!(exec["command"], "cat");
    let started = json!({"started": {"process": "p", "task_digest": "d"}});
    socket.send(Message::text(started.to_string())).await.unwrap();
    loop {
        let said = match socket.next().await.unwrap().unwrap() {
            Message::Binary(bytes) if bytes[0] == 1 => break,
            Message::Binary(bytes) => [&[1][..], &bytes[1..]].concat(),
            Message::Text(text) => [&[2][..], text.as_bytes()].concat(),
            _ => continue,
        };
        socket.send(Message::binary(said)).await.unwrap();
    }
    socket.send(end()).await.unwrap();
}

fn cat() -> Exec {
    Exec { stdin: true, ..Exec::new(Command::Shell("cat".into())) }
}

#[tokio::test]
async fn input_signals_and_sizes_reach_the_command_in_order() {
    let client = in_process(|request| async { upgrade(request, echo) }).build().unwrap();
    let mut session = client.exec_session("s", &cat()).await.unwrap();
    let input = session.input.clone();
    input.write(b"hello").await.unwrap();
    input.resize(WindowSize { rows: 5, cols: 6 }).await.unwrap();
    input.signal(15).await.unwrap();
    input.end().await.unwrap();
    let mut said = Vec::new();
    while let Some(output) = session.output.next().await.unwrap() {
        said.push(output);
    }
    assert!(matches!(&said[0], Output::Started(started) if started.process == "p"));
    assert_eq!(said[1], Output::Stdout("hello".into()));
    assert_eq!(said[2], Output::Stderr(r#"{"resize":{"rows":5,"cols":6}}"#.into()));
    assert_eq!(said[3], Output::Stderr(r#"{"signal":15}"#.into()));
    assert!(matches!(&said[4], Output::Exit(end) if end.exit_code == Some(0)));
    assert_eq!(said.len(), 5);
}

#[tokio::test]
async fn long_input_comes_in_pieces_and_is_whole() {
    let client = in_process(|request| async { upgrade(request, echo) }).build().unwrap();
    let session = client.exec_session("s", &cat()).await.unwrap();
    let (mut output, input) = (session.output, session.input);
    let sent: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let writing = async {
        input.write(&sent).await.unwrap();
        input.end().await.unwrap();
    };
    let reading = async {
        let mut all = Vec::new();
        while let Some(piece) = output.next().await.unwrap() {
            if let Output::Stdout(bytes) = piece {
                all.extend_from_slice(&bytes);
            }
        }
        all
    };
    let ((), all) = tokio::join!(writing, reading);
    assert_eq!(all, sent);
}

#[tokio::test]
async fn a_refused_session_is_a_problem() {
    let client = in_process(|_| async {
        json(
            409,
            &json!({
                "type": "urn:sandforge:problem:wrong_state", "title": "t", "status": 409,
                "detail": "it is stopped", "code": "wrong_state",
            }),
        )
    });
    let error = client.build().unwrap().exec_session("s", &cat()).await.unwrap_err();
    assert_eq!(error.code(), Some(api::Code::WrongState));
}

#[tokio::test]
async fn a_problem_at_the_end_is_an_error() {
    let client = in_process(|request| async {
        upgrade(request, |mut socket| async move {
            text(&mut socket).await;
            let problem = json!({"error": {
                "type": "urn:sandforge:problem:policy_denied", "title": "t", "status": 403,
                "detail": "no", "code": "policy_denied",
            }});
            socket.send(Message::text(problem.to_string())).await.unwrap();
        })
    });
    let mut session = client.build().unwrap().exec_session("s", &cat()).await.unwrap();
    let error = session.output.next().await.unwrap_err();
    assert_eq!(error.code(), Some(api::Code::PolicyDenied));
    assert_eq!(session.output.next().await.unwrap(), None);
}

#[tokio::test]
async fn a_session_that_is_cut_off_is_not_taken_for_an_end() {
    let client = in_process(|request| async {
        upgrade(request, |mut socket| async move {
            text(&mut socket).await;
            socket.close(None).await.unwrap();
        })
    });
    let mut session = client.build().unwrap().exec_session("s", &cat()).await.unwrap();
    let error = session.output.next().await.unwrap_err();
    assert!(matches!(error, Error::Broken(_)), "{error:?}");
}
