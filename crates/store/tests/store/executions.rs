use api::{Outcome, PageQuery, Process, State};
use store::StoreError;

use crate::{Place, at, ready, sandbox};

fn process(name: &str) -> Process {
    Process {
        process: name.into(),
        sandbox: "sb-1".into(),
        command: Some("true".into()),
        created_by: Some("alice".into()),
        detached: false,
        tty: false,
        started_at: at(1),
        ended_at: None,
        outcome: Outcome::Running,
        exit_code: None,
        cpu_ms: None,
        memory_peak_bytes: None,
        task_digest: "ab".repeat(32),
    }
}

fn end(process: &mut Process) {
    process.ended_at = Some(at(5));
    process.outcome = Outcome::Exited { code: 0 };
}

#[tokio::test]
async fn a_sandbox_executes_while_a_process_runs() {
    let place = Place::new();
    ready(&place.store, "sb-1").await;
    let state = || async {
        let sandbox = place.store.read(|view| view.sandbox("sb-1")).await.unwrap().sandbox;
        (sandbox.state, sandbox.running, sandbox.idle_at)
    };
    for name in ["p-1", "p-2"] {
        place.store.write(move |change| change.begin_execution(&process(name))).await.unwrap();
    }
    assert_eq!(state().await, (State::Executing, 2, None));
    place.store.write(|change| change.end_execution("sb-1", "p-1", end)).await.unwrap();
    assert_eq!(state().await, (State::Executing, 1, None));
    place.store.write(|change| change.end_execution("sb-1", "p-2", end)).await.unwrap();
    assert_eq!(state().await, (State::Ready, 0, Some(at(5))));
    // Told twice, it ended once.
    place.store.write(|change| change.end_execution("sb-1", "p-2", end)).await.unwrap();
    assert_eq!(state().await, (State::Ready, 0, Some(at(5))));
}

#[tokio::test]
async fn a_process_that_ends_late_does_not_move_a_sandbox_that_stops() {
    let place = Place::new();
    ready(&place.store, "sb-1").await;
    let found = place
        .store
        .write(|change| {
            change.begin_execution(&process("p-1"))?;
            change.move_sandbox("sb-1", State::Executing, State::Stopping, |_| ())?;
            change.end_execution("sb-1", "p-1", end)?;
            change.sandbox("sb-1")
        })
        .await
        .unwrap();
    assert_eq!((found.sandbox.state, found.sandbox.running), (State::Stopping, 0));
}

#[tokio::test]
async fn a_process_needs_a_sandbox_that_takes_tasks_and_a_name_of_its_own() {
    let place = Place::new();
    place.store.write(|change| change.insert_sandbox(&sandbox("sb-1"))).await.unwrap();
    let begin = || place.store.write(move |change| change.begin_execution(&process("p-1")));
    let error = begin().await.unwrap_err();
    assert!(matches!(error, StoreError::WrongState { state: State::Requested, .. }), "{error}");
    place
        .store
        .write(|change| {
            change.move_sandbox("sb-1", State::Requested, State::Provisioning, |_| ())?;
            change.move_sandbox("sb-1", State::Provisioning, State::Ready, |_| ())
        })
        .await
        .unwrap();
    begin().await.unwrap();
    let error = begin().await.unwrap_err();
    assert!(matches!(error, StoreError::Exists { .. }), "{error}");
    let sandbox = place.store.read(|view| view.sandbox("sb-1")).await.unwrap().sandbox;
    assert_eq!(sandbox.running, 1);
}

#[tokio::test]
async fn processes_are_listed_newest_first() {
    let place = Place::new();
    ready(&place.store, "sb-1").await;
    place
        .store
        .write(|change| {
            for name in ["p-1", "p-2", "p-3"] {
                change.begin_execution(&process(name))?;
            }
            change.end_execution("sb-1", "p-2", end)
        })
        .await
        .unwrap();
    let names = |items: Vec<Process>| -> Vec<_> { items.into_iter().map(|p| p.process).collect() };
    let query = PageQuery { limit: Some(2), cursor: None };
    let page = place.store.read(move |view| view.executions("sb-1", &query)).await.unwrap();
    let query = PageQuery { limit: Some(2), cursor: page.next_cursor };
    assert_eq!(names(page.items), ["p-3", "p-2"]);
    let page = place.store.read(move |view| view.executions("sb-1", &query)).await.unwrap();
    assert_eq!(names(page.items), ["p-1"]);
    let running = place.store.read(|view| view.running_executions("sb-1")).await.unwrap();
    assert_eq!(names(running), ["p-1", "p-3"]);
}
