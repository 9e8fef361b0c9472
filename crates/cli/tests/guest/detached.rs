//! Processes that go on by themselves, and their kept output.

use std::time::Duration;

use supervisor::wire::op::{
    Attach, ErrorCode, ExecReply, Outcome, ProcessList, Processes, Signal, Stdin,
};
use supervisor::{LinkError, Sandbox};

use crate::support::{put, refusal, sh, shell, with_sandbox};

async fn start(guest: &Sandbox, name: &str, line: &str) -> ExecReply {
    let mut detached = shell(line);
    detached.process = name.into();
    detached.detach = true;
    detached.stdin = true;
    guest.guest().ask(&detached).await.unwrap()
}

async fn attach(
    guest: &Sandbox,
    name: &str,
    offset: u64,
    follow: bool,
) -> Result<(String, ExecReply), LinkError> {
    let attach = Attach { process: name.into(), stdout_offset: offset, stderr_offset: 0, follow };
    let call = guest.guest().call(&attach)?;
    let out = call.output().read_to_end().await?;
    Ok((String::from_utf8(out).unwrap(), call.reply().await?))
}

#[test]
fn a_detached_process_answers_at_once_and_keeps_its_output() {
    with_sandbox(async |guest| {
        let line = "echo one; read go; echo two; exit 5";
        assert_eq!(start(guest, "job", line).await.outcome, Outcome::Running);
        while attach(guest, "job", 0, false).await.unwrap().0 != "one\n" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        put(guest, &Stdin { process: "job".into() }, b"go\n").await.unwrap();
        let (out, reply) = attach(guest, "job", 0, true).await.unwrap();
        assert_eq!(out, "one\ntwo\n");
        assert_eq!(reply.outcome, Outcome::Exited { code: 5 });
        // It can be read again, and from an offset.
        assert_eq!(attach(guest, "job", 4, true).await.unwrap().0, "two\n");
    });
}

#[test]
fn detached_processes_are_listed_and_can_be_signalled() {
    with_sandbox(async |guest| {
        start(guest, "server", "sleep 300").await;
        let ProcessList { processes } = guest.guest().ask(&Processes {}).await.unwrap();
        assert_eq!(processes.len(), 1);
        assert_eq!(processes[0].process, "server");
        assert_eq!(processes[0].outcome, Outcome::Running);
        guest.guest().ask(&Signal { process: "server".into(), signal: 9 }).await.unwrap();
        let (_, reply) = attach(guest, "server", 0, true).await.unwrap();
        assert_eq!(reply.outcome, Outcome::Signaled { signal: 9 });
    });
}

#[test]
fn a_server_of_one_task_is_reached_by_another() {
    with_sandbox(async |guest| {
        start(guest, "web", "cd /etc && exec python3 -m http.server 8000 --bind 127.0.0.1").await;
        let fetch = "for i in $(seq 100); do \
                     curl -sf http://localhost:8000/hostname && exit 0; sleep 0.2; done; exit 1";
        assert!(!sh(guest, fetch).await.ok().is_empty());
    });
}

#[test]
fn a_name_is_used_once_and_an_unknown_one_is_refused() {
    with_sandbox(async |guest| {
        start(guest, "job", "sleep 300").await;
        let mut again = shell("true");
        again.process = "job".into();
        again.detach = true;
        assert_eq!(refusal(guest.guest().ask(&again).await).code, ErrorCode::Exists);
        let error = refusal(attach(guest, "other", 0, false).await);
        assert_eq!(error.code, ErrorCode::NotFound);
    });
}

#[test]
fn a_log_that_is_full_drops_the_oldest_and_says_how_much() {
    with_sandbox(async |guest| {
        let mut noisy = shell("head -c 100000 /dev/zero | tr '\\0' a; echo END");
        noisy.process = "noisy".into();
        noisy.detach = true;
        noisy.limits.log_bytes = 1000;
        guest.guest().ask(&noisy).await.unwrap();
        let (_, reply) = attach(guest, "noisy", 0, true).await.unwrap();
        assert_eq!(reply.outcome, Outcome::Exited { code: 0 });
        let (out, reply) = attach(guest, "noisy", 0, true).await.unwrap();
        assert_eq!(out.len(), 1000);
        assert!(out.ends_with("aEND\n"));
        assert_eq!(reply.dropped.0, 100_004 - 1000);
    });
}
