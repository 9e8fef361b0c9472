//! The link against the mock engine's agent: the real wire, without a machine.

use std::time::Duration;

use engine::mock::{Mock, Reply};
use engine::{Attachment, BootSpec, Machine, SandboxBackend, System};
use link::{Guest, LinkError, SigningKey, generate_key};
use wire::op::{Command, ErrorCode, Exec, Limits, Outcome, Stat};
use wire::text::Text;

fn null() -> std::fs::File {
    std::fs::File::open("/dev/null").unwrap()
}

async fn boot(mock: &Mock, key: &SigningKey) -> Box<dyn Machine> {
    let spec = BootSpec {
        sandbox: "sb".into(),
        cpus: 1,
        memory_mb: 1,
        system: System::Process { agent: null() },
        agent_arguments: vec![format!(
            "sandforge.key={}",
            wire::envelope::key_to_hex(&key.verifying_key())
        )],
        attachment: Attachment::Owned,
        console: false,
    };
    mock.boot(spec).await.unwrap()
}

async fn connect(machine: &mut dyn Machine, sandbox: &str, key: SigningKey) -> Guest {
    let carrier = machine.carrier().unwrap();
    Guest::connect(carrier, sandbox, key, Duration::from_secs(5), None).await.unwrap()
}

async fn guest(mock: &Mock) -> (Box<dyn Machine>, Guest) {
    let key = generate_key().unwrap();
    let mut machine = boot(mock, &key).await;
    let guest = connect(machine.as_mut(), "sb", key).await;
    (machine, guest)
}

fn exec(argv: &[&str]) -> Exec {
    Exec {
        process: "p1".into(),
        command: Command::Argv(argv.iter().map(|a| Text::from(*a)).collect()),
        cwd: None,
        env: Default::default(),
        user: None,
        tty: None,
        stdin: false,
        timeout_ms: None,
        kill_grace_ms: 1,
        limits: Limits::default(),
        detach: false,
    }
}

#[tokio::test]
async fn a_command_s_output_error_and_exit_arrive() {
    let mock = Mock::default().on(["greet"], Reply::exit(3).stdout("hi\n").stderr("oops\n"));
    let (_machine, guest) = guest(&mock).await;
    let process = guest.exec(&exec(&["greet"])).unwrap();
    let stderr = process.stderr().await.unwrap().unwrap();
    assert_eq!(process.stdout().read_to_end().await.unwrap(), b"hi\n");
    assert_eq!(stderr.read_to_end().await.unwrap(), b"oops\n");
    assert_eq!(process.wait().await.unwrap().outcome, Outcome::Exited { code: 3 });
    assert_eq!(mock.commands(), [["greet"]]);
}

#[tokio::test]
async fn a_template_s_machine_is_nobody_s_until_it_becomes_a_sandbox() {
    let mock = Mock::default().on(["true"], Reply::exit(0));
    let spec = BootSpec {
        sandbox: "template".into(),
        cpus: 1,
        memory_mb: 1,
        system: System::Process { agent: null() },
        agent_arguments: vec!["sandforge.template".into()],
        attachment: Attachment::Owned,
        console: false,
    };
    let mut machine = mock.boot(spec).await.unwrap();
    let guest = connect(machine.as_mut(), "sb", generate_key().unwrap()).await;
    let refused = |error| matches!(error, LinkError::Operation(e) if e.code == ErrorCode::NotReady);
    assert!(refused(guest.freshen().await.unwrap_err()));
    assert!(refused(guest.exec(&exec(&["true"])).unwrap().wait().await.unwrap_err()));

    guest.take_identity(Some("box".into())).await.unwrap();
    let reply = guest.exec(&exec(&["true"])).unwrap().wait().await.unwrap();
    assert_eq!(reply.outcome, Outcome::Exited { code: 0 });
    let again = guest.take_identity(None).await.unwrap_err();
    assert!(matches!(again, LinkError::Operation(ref e) if e.code == ErrorCode::Exists), "{again}");
}

#[tokio::test]
async fn a_refused_operation_says_why() {
    let (_machine, guest) = guest(&Mock::default()).await;
    let stat = Stat { path: Text::from("/"), follow: false, user: None };
    let error = guest.ask(&stat).await.unwrap_err();
    assert!(matches!(error, LinkError::Operation(e) if e.code == ErrorCode::Unsupported));
}

#[tokio::test]
async fn an_operation_for_another_sandbox_is_refused() {
    let mock = Mock::default();
    let key = generate_key().unwrap();
    let mut machine = boot(&mock, &key).await;
    let guest = connect(machine.as_mut(), "other", key).await;
    let error = guest.exec(&exec(&["true"])).unwrap().wait().await.unwrap_err();
    assert!(matches!(error, LinkError::Operation(e) if e.code == ErrorCode::WrongSandbox));
}

#[tokio::test]
async fn an_operation_signed_with_another_key_is_refused() {
    let mock = Mock::default();
    let mut machine = boot(&mock, &generate_key().unwrap()).await;
    let guest = connect(machine.as_mut(), "sb", generate_key().unwrap()).await;
    let error = guest.exec(&exec(&["true"])).unwrap().wait().await.unwrap_err();
    assert!(matches!(error, LinkError::Operation(e) if e.code == ErrorCode::BadSignature));
    assert!(mock.commands().is_empty());
}

#[tokio::test]
async fn a_guest_that_goes_away_ends_every_call() {
    let (mut machine, guest) = guest(&Mock::default()).await;
    machine.kill().await.unwrap();
    assert!(matches!(guest.closed().await, LinkError::Disconnected(_)));
    assert!(matches!(guest.ping().await, Err(LinkError::Disconnected(_))));
    assert!(guest.exec(&exec(&["true"])).is_err());
}

#[tokio::test]
async fn silence_is_reported_after_the_caller_s_patience() {
    let (host, _guest) = tokio::io::duplex(1024);
    let patience = Duration::from_millis(50);
    let error =
        Guest::connect(host, "sb", generate_key().unwrap(), patience, None).await.unwrap_err();
    assert!(matches!(error, LinkError::Unanswered(_)));
}

#[tokio::test]
async fn garbage_from_a_guest_is_a_protocol_error() {
    let (host, mut evil) = tokio::io::duplex(1024);
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut knock = [0; wire::handshake::KNOCK];
        evil.read_exact(&mut knock).await.unwrap();
        evil.write_all(&knock).await.unwrap();
        evil.write_all(&[0xff; 64]).await.unwrap();
        std::future::pending::<()>().await;
    });
    let error =
        Guest::connect(host, "sb", generate_key().unwrap(), Duration::from_secs(5), None).await;
    assert!(matches!(error.unwrap_err(), LinkError::Protocol(_)));
}

#[tokio::test]
async fn dropping_the_guest_ends_the_carrier() {
    let mock = Mock::default();
    let (mut machine, guest) = guest(&mock).await;
    guest.ping().await.unwrap();
    drop(guest);
    let ended = tokio::time::timeout(Duration::from_secs(5), machine.ended()).await;
    assert!(ended.is_ok(), "the agent did not see the end of its carrier");
}
