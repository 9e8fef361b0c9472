//! Commands, and the processes that come of them.

use api::{
    AttachQuery, AttachResult, Chunk, Exec, ExecEvent, ExecStarted, Operation, PageQuery, Problem,
    PtyQuery, Signal, StdinQuery, WindowSize,
};
use fleet::{Output, Stream, Task};
use futures_util::Stream as Events;
use http::StatusCode;

use crate::ask::{Answer, Ask, done, ok};
use crate::sse::{self, Event};
use crate::websocket::{self, Begin};

pub(super) async fn exec(ask: Ask) -> Answer {
    let exec: Exec = ask.json()?;
    let name = ask.sandbox()?.to_owned();
    if ask.wants_events() && !exec.detach {
        let task = ask.app.manager.exec(&ask.caller, &name, exec, &ask.provenance).await;
        let task = task.map_err(|error| error.problem())?;
        let started = ExecStarted {
            process: task.process().to_owned(),
            task_digest: task.task_digest().to_owned(),
        };
        return Ok(sse::until_end(events(Some(started), task)));
    }
    if exec.detach {
        return ask
            .once(move |ask| async move {
                let task = ask.app.manager.exec(&ask.caller, &name, exec, &ask.provenance).await?;
                let process = ask.app.manager.process(&ask.caller, &name, task.process()).await?;
                Ok((StatusCode::ACCEPTED, None, process))
            })
            .await;
    }
    let most = exec.max_output_bytes.unwrap_or(Exec::MAX_OUTPUT_BYTES);
    ask.once(move |ask| async move {
        let task = ask.app.manager.exec(&ask.caller, &name, exec, &ask.provenance).await?;
        Ok((StatusCode::OK, None, task.collect(most).await?))
    })
    .await
}

/// What a task says, as events, to its end.
fn events(started: Option<ExecStarted>, task: Task) -> impl Events<Item = Event> + Send + 'static {
    enum Next {
        Started(ExecStarted, Task),
        Output(Task),
        Over,
    }
    let first = match started {
        Some(started) => Next::Started(started, task),
        None => Next::Output(task),
    };
    futures_util::stream::unfold(first, |next| async {
        let (event, next) = match next {
            Next::Over => return None,
            Next::Started(started, task) => (ExecEvent::Started(started), Next::Output(task)),
            Next::Output(mut task) => match task.output().await {
                Some(output) => (chunk(&output), Next::Output(task)),
                None => match task.end().await {
                    Ok(end) => (ExecEvent::Exit(end), Next::Over),
                    Err(error) => (ExecEvent::Error(error.problem()), Next::Over),
                },
            },
        };
        Some((Event::new(event.name(), &event), next))
    })
}

fn chunk(output: &Output) -> ExecEvent {
    match output.stream {
        Stream::Stdout => ExecEvent::Stdout(Chunk::from(output)),
        Stream::Stderr => ExecEvent::Stderr(Chunk::from(output)),
    }
}

pub(super) async fn websocket(ask: Ask) -> Answer {
    let name = ask.sandbox()?.to_owned();
    may(&ask, &name, Operation::Exec).await?;
    websocket::open(ask, name, Begin::Message { tty: None }).await
}

/// That the caller may not is told before there is a WebSocket, by status.
async fn may(ask: &Ask, sandbox: &str, operation: Operation) -> Result<(), Problem> {
    let may = ask.app.manager.may(&ask.caller, operation, sandbox, &ask.provenance).await;
    may.map_err(|error| error.problem())
}

pub(super) async fn pty(ask: Ask) -> Answer {
    let PtyQuery { cols, rows, cmd } = ask.query()?;
    let name = ask.sandbox()?.to_owned();
    may(&ask, &name, Operation::Exec).await?;
    let size = WindowSize { rows: rows.unwrap_or(24), cols: cols.unwrap_or(80) };
    let begin = match cmd {
        None => Begin::Message { tty: Some(size) },
        Some(line) => {
            let line = api::Text::from(line.as_str());
            let mut exec = Exec::new(api::Command::Shell(line));
            (exec.tty, exec.stdin) = (Some(size), true);
            Begin::Exec(Box::new(exec))
        }
    };
    websocket::open(ask, name, begin).await
}

pub(super) async fn list(ask: Ask) -> Answer {
    let query: PageQuery = ask.query()?;
    let page = ask.app.manager.processes(&ask.caller, ask.sandbox()?, &query).await;
    ok(&page.map_err(|error| error.problem())?)
}

pub(super) async fn get(ask: Ask) -> Answer {
    let (sandbox, process) = (ask.sandbox()?, ask.parameter("process")?);
    let process = ask.app.manager.process(&ask.caller, sandbox, process).await;
    ok(&process.map_err(|error| error.problem())?)
}

async fn task(ask: &Ask, query: AttachQuery) -> Result<Task, Problem> {
    let (sandbox, process) = (ask.sandbox()?, ask.parameter("process")?);
    let (manager, by) = (&ask.app.manager, &ask.provenance);
    let task = manager.attach(&ask.caller, sandbox, process, query, by).await;
    task.map_err(|error| error.problem())
}

pub(super) async fn output(ask: Ask) -> Answer {
    let query: AttachQuery = ask.query()?;
    if ask.wants_events() {
        return Ok(sse::until_end(events(None, task(&ask, query).await?)));
    }
    let most = query.max_output_bytes.unwrap_or(Exec::MAX_OUTPUT_BYTES);
    let result = task(&ask, query).await?.collect(most).await;
    let result = result.map_err(|error| error.problem())?;
    let length = |text: &str, base64: Option<&String>, dropped: u64| {
        let bytes = match base64 {
            // Four characters for three bytes, less what fills up the last four.
            Some(text) => {
                text.len() / 4 * 3 - text.bytes().rev().take_while(|&b| b == b'=').count()
            }
            None => text.len(),
        };
        bytes as u64 + dropped
    };
    let lost = result.end.truncated;
    let next_stdout_offset =
        query.stdout_offset + length(&result.stdout, result.stdout_base64.as_ref(), lost.stdout);
    let next_stderr_offset =
        query.stderr_offset + length(&result.stderr, result.stderr_base64.as_ref(), lost.stderr);
    ok(&AttachResult { result, next_stdout_offset, next_stderr_offset })
}

pub(super) async fn attach(ask: Ask) -> Answer {
    let query: AttachQuery = ask.query()?;
    let name = ask.sandbox()?.to_owned();
    may(&ask, &name, Operation::ProcessInput).await?;
    let task = task(&ask, AttachQuery { follow: true, ..query }).await?;
    websocket::open(ask, name, Begin::Task(Box::new(task))).await
}

pub(super) async fn stdin(ask: Ask) -> Answer {
    let StdinQuery { end } = ask.query()?;
    let mut upload = ask.take_upload()?;
    let (sandbox, process) = (ask.sandbox()?, ask.parameter("process")?);
    let stdin = ask.app.manager.stdin(&ask.caller, sandbox, process, &ask.provenance).await;
    let stdin = stdin.map_err(|error| error.problem())?;
    while let Some(bytes) = upload.next().await? {
        stdin.write(&bytes).await.map_err(|error| error.problem())?;
    }
    if end {
        stdin.finish().await.map_err(|error| error.problem())?;
    }
    done()
}

pub(super) async fn signal(ask: Ask) -> Answer {
    let Signal { signal } = ask.json()?;
    let (sandbox, process) = (ask.sandbox()?, ask.parameter("process")?);
    let (manager, by) = (&ask.app.manager, &ask.provenance);
    let sent = manager.signal(&ask.caller, sandbox, process, signal, by).await;
    sent.map_err(|error| error.problem())?;
    done()
}

pub(super) async fn resize(ask: Ask) -> Answer {
    let size: WindowSize = ask.json()?;
    let (sandbox, process) = (ask.sandbox()?, ask.parameter("process")?);
    let (manager, by) = (&ask.app.manager, &ask.provenance);
    let resized = manager.resize(&ask.caller, sandbox, process, size, by).await;
    resized.map_err(|error| error.problem())?;
    done()
}
