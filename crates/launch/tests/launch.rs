//! Both sides. This program is what it starts: with an argument it is the started side, which
//! does what the argument says.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use launch::{LaunchError, Launcher, MAX_MESSAGE, MessageError, Owner, Ownership, Process, Start};
use libtest_mimic::{Arguments, Trial};
use serde_json::{Value, json};

type Failed = Box<dyn std::error::Error>;

const STARTED: &str = "__started";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(STARTED) {
        return match started(&arguments.next().unwrap_or_default()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    let tests = vec![
        Trial::test("orders_arrive_with_their_descriptors", || on_tokio(orders_arrive)),
        Trial::test("nothing_else_of_the_owner_arrives", || on_tokio(nothing_else_arrives)),
        Trial::test("questions_get_their_own_answers", || on_tokio(questions_get_answers)),
        Trial::test("a_late_answer_is_not_the_next_ones", || on_tokio(late_answers)),
        Trial::test("descriptors_come_with_questions", || on_tokio(descriptors_with_questions)),
        Trial::test("no_descriptor_comes_back", || on_tokio(no_descriptor_comes_back)),
        Trial::test("asking_who_is_gone_fails_at_once", || on_tokio(asking_who_is_gone)),
        Trial::test("a_message_beyond_the_bound_does_not_go", || on_tokio(long_messages)),
        Trial::test("a_report_that_does_not_end_is_refused", || on_tokio(endless_report)),
        Trial::test("the_end_is_told_with_the_last_words", || on_tokio(last_words)),
        Trial::test("usage_is_counted", || on_tokio(usage)),
        Trial::test("killing_leaves_nothing", || on_tokio(killing)),
        Trial::test("dropping_an_owned_process_kills_it", || on_tokio(dropping_owned)),
        Trial::test("a_detached_process_stays_in_its_own_session", || on_tokio(detached)),
        Trial::test("the_inner_process_is_followed", || on_tokio(following)),
        Trial::test("a_stranger_is_not_followed", || on_tokio(strangers)),
        Trial::test("a_program_that_is_not_there_is_named", || on_tokio(no_program)),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn on_tokio(test: impl AsyncFnOnce() -> Result<(), Failed>) -> Result<(), libtest_mimic::Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(test()).map_err(|error| error.to_string().into())
}

// The started side.

fn started(role: &str) -> Result<(), Failed> {
    let mut owner = Owner::take()?;
    let orders = owner.orders::<Value>()?;
    match role {
        "report" => {
            let mut texts = Vec::new();
            for descriptor in orders.descriptors {
                let mut text = String::new();
                File::from(descriptor).read_to_string(&mut text)?;
                texts.push(text);
            }
            let order = orders.body;
            owner.report(&json!({"order": order, "texts": texts, "owner": orders.owner}))?;
        }
        "look-around" => {
            let open: Vec<String> = std::fs::read_dir("/proc/self/fd")?
                .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
                .map(|target| target.to_string_lossy().into_owned())
                .collect();
            let variables = std::env::vars_os().count();
            owner.report(&json!({"open": open, "variables": variables}))?;
        }
        "answer" => answer(&mut owner)?,
        "send-a-descriptor" => send_a_descriptor(&mut owner)?,
        "chatter" => loop {
            std::io::stdout().flush()?;
            let [_, reports] = owner.descriptors();
            rustix::io::write(reports, &[b'x'; 4096])?;
        },
        "fail" => {
            eprintln!("a guest says \x1b[31mred\n");
            return Err("this was all".into());
        }
        "burn" => {
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(200) {}
            owner.report(&json!({}))?;
            stay();
        }
        "stay" => {
            let session = rustix::process::getsid(None)?.as_raw_nonzero().get();
            owner.report(&json!({"session": session}))?;
            stay();
        }
        "keep" => {
            let mut inner = std::process::Command::new("/bin/sleep").arg("1000").spawn()?;
            owner.report(&json!({"inner": inner.id()}))?;
            let status = inner.wait()?;
            eprintln!("the inner process ended: {status}");
        }
        other => return Err(format!("no role {other}").into()),
    }
    Ok(())
}

fn stay() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(1000));
    }
}

fn answer(owner: &mut Owner) -> Result<(), Failed> {
    while let Some(request) = owner.request::<Value>()? {
        for descriptor in request.descriptors {
            File::from(descriptor).write_all(b"was here")?;
        }
        if let Some(delay) = request.body["delay_ms"].as_u64() {
            std::thread::sleep(Duration::from_millis(delay));
        }
        request.ticket.answer(owner, &json!({"to": request.body}))?;
    }
    Ok(())
}

/// What a taken-over process would do.
fn send_a_descriptor(owner: &mut Owner) -> Result<(), Failed> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let Some(request) = owner.request::<Value>()? else { return Ok(()) };
    let _ = request.ticket;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let null = File::open("/dev/null")?;
    let descriptors = [null.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    let text = std::io::IoSlice::new(br#"{"number":1,"body":{}}"#);
    sendmsg(owner.as_fd(), &[text], &mut ancillary, SendFlags::empty())?;
    stay()
}

// The starting side.

fn launcher(role: &str) -> Launcher {
    Launcher { program: "/proc/self/exe".into(), arguments: vec![STARTED.into(), role.into()] }
}

fn start(role: &str) -> Result<Process, LaunchError> {
    start_with(role, Vec::new(), Ownership::Owned)
}

fn start_with(
    role: &str,
    descriptors: Vec<OwnedFd>,
    ownership: Ownership,
) -> Result<Process, LaunchError> {
    let orders = json!({"do": role});
    launcher(role).start(Start { orders: &orders, descriptors, ownership, shown: false })
}

async fn reported(process: &mut Process) -> Result<Value, Failed> {
    let report = process.report().await?;
    report.ok_or_else(|| "it ended without a report".into())
}

fn file_with(text: &str) -> Result<File, Failed> {
    let memory = rustix::fs::memfd_create("text", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(memory);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) -> Result<(), Failed> {
    let begun = Instant::now();
    while !holds() {
        if begun.elapsed() > Duration::from_secs(10) {
            return Err(format!("after ten seconds still not: {what}").into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

async fn orders_arrive() -> Result<(), Failed> {
    let descriptors = vec![file_with("one")?.into(), file_with("two")?.into()];

    let mut process = start_with("report", descriptors, Ownership::Owned)?;

    let report = reported(&mut process).await?;
    assert_eq!(report["order"], json!({"do": "report"}));
    assert_eq!(report["texts"], json!(["one", "two"]));
    assert_eq!(report["owner"], json!(std::process::id()));
    assert!(process.report::<Value>().await?.is_none());
    Ok(())
}

async fn nothing_else_arrives() -> Result<(), Failed> {
    let _ours = file_with("planted")?;
    let mut process = start("look-around")?;

    let report = reported(&mut process).await?;

    assert!(!report["open"].to_string().contains("memfd"), "{report}");
    assert_eq!(report["variables"], json!(0));
    Ok(())
}

async fn questions_get_answers() -> Result<(), Failed> {
    let mut process = start("answer")?;
    for question in 0..100 {
        let answer: Value = process.control().ask(&question, &[]).await?;
        assert_eq!(answer, json!({"to": question}));
    }
    Ok(())
}

async fn late_answers() -> Result<(), Failed> {
    let mut process = start("answer")?;
    let slow = json!({"delay_ms": 100});
    let given_up =
        tokio::time::timeout(Duration::from_millis(20), process.control().ask(&slow, &[]));
    let given_up: Result<Result<Value, _>, _> = given_up.await;
    assert!(given_up.is_err());

    let answer: Value = process.control().ask(&"second", &[]).await?;

    assert_eq!(answer, json!({"to": "second"}));
    Ok(())
}

async fn descriptors_with_questions() -> Result<(), Failed> {
    let mut process = start("answer")?;
    let mut file = file_with("")?;

    let _: Value = process.control().ask(&"write", &[file.as_fd()]).await?;

    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;
    assert_eq!(text, "was here");
    Ok(())
}

async fn no_descriptor_comes_back() -> Result<(), Failed> {
    let mut process = start("send-a-descriptor")?;

    let answer = process.control().ask::<_, Value>(&"anything", &[]).await;

    assert!(matches!(answer, Err(MessageError::Incomplete)), "{answer:?}");
    Ok(())
}

async fn asking_who_is_gone() -> Result<(), Failed> {
    let mut process = start("fail")?;
    process.wait().await?;

    let answer = process.control().ask::<_, Value>(&"anything", &[]).await;

    assert!(answer.is_err(), "{answer:?}");
    Ok(())
}

async fn long_messages() -> Result<(), Failed> {
    let mut process = start("answer")?;
    let long = "x".repeat(MAX_MESSAGE);
    let answer = process.control().ask::<_, Value>(&long, &[]).await;
    assert!(matches!(answer, Err(MessageError::TooLong(_))), "{answer:?}");
    Ok(())
}

async fn endless_report() -> Result<(), Failed> {
    let mut process = start("chatter")?;
    let report = process.report::<Value>().await;
    assert!(matches!(report, Err(LaunchError::NoReport(_))), "{report:?}");
    Ok(())
}

async fn last_words() -> Result<(), Failed> {
    let mut process = start("fail")?;
    let ended = process.ended("it stopped").await;
    let expected = "its monitor ended (exit status: 1); the monitor's last words: this was all";
    assert_eq!(ended, expected);
    Ok(())
}

async fn usage() -> Result<(), Failed> {
    let mut process = start("burn")?;
    reported(&mut process).await?;

    let used = process.usage()?;

    // On a busy machine 200 ms of waiting are less of work.
    assert!(used.cpu >= Duration::from_millis(20), "{used:?}");
    assert!(used.memory_peak_bytes > 100 << 10, "{used:?}");
    Ok(())
}

async fn killing() -> Result<(), Failed> {
    let mut process = start("stay")?;
    let pid = process.pid().ok_or("no pid")?;

    process.kill().await?;

    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert!(process.pid().is_none());
    Ok(())
}

async fn dropping_owned() -> Result<(), Failed> {
    let process = start("stay")?;
    let pid = process.pid().ok_or("no pid")?;
    drop(process);
    until("it is gone", || !is_running(pid)).await
}

async fn detached() -> Result<(), Failed> {
    let mut process = start_with("stay", Vec::new(), Ownership::Detached)?;
    let pid = process.pid().ok_or("no pid")?;
    let report = reported(&mut process).await?;
    drop(process);

    let still_runs = is_running(pid);

    let raw = rustix::process::Pid::from_raw(pid.cast_signed()).ok_or("no pid")?;
    rustix::process::kill_process(raw, rustix::process::Signal::KILL)?;
    assert!(still_runs);
    assert_eq!(report, json!({"session": pid}));
    Ok(())
}

async fn following() -> Result<(), Failed> {
    let mut process = start("keep")?;
    let report = reported(&mut process).await?;
    let inner = u32::try_from(report["inner"].as_u64().ok_or("no inner process")?)?;

    process.follow(inner)?;

    assert_eq!(process.pid(), Some(inner));
    process.kill().await?;
    let end = process.wait().await?;
    assert!(end.status.success(), "{end}");
    let expected = "the inner process ended: signal: 9 (SIGKILL)";
    assert_eq!(end.last_words().as_deref(), Some(expected));
    Ok(())
}

async fn strangers() -> Result<(), Failed> {
    let mut process = start("stay")?;
    let followed = process.follow(std::process::id());
    assert!(matches!(followed, Err(LaunchError::Stranger(_))), "{followed:?}");
    Ok(())
}

async fn no_program() -> Result<(), Failed> {
    let launcher = Launcher { program: "/nowhere/monitor".into(), arguments: Vec::new() };
    let start =
        Start { orders: &(), descriptors: Vec::new(), ownership: Ownership::Owned, shown: false };
    let error = launcher.start(start).expect_err("there is no such program");
    assert!(error.to_string().starts_with("start /nowhere/monitor: "), "{error}");
    Ok(())
}
