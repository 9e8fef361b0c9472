//! What the agent accepts, and from whom.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use engine::{Attachment, BootSpec, Carrier, Guest, Machine, System};
use supervisor::SandboxSpec;
use supervisor::wire::connection::{Connection, Event, Side};
use supervisor::wire::envelope::{Sealer, SigningKey, key_to_hex};
use supervisor::wire::frame::StreamId;
use supervisor::wire::handshake::{Hello, Scanner, knock};
use supervisor::wire::op::{Clock, ErrorCode, GuestInfo, Info, OpError, Operation, Processes};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{
    PROCESS, block_on, engines, env, has_process, run, sh, shell, supervisor, with_guest,
    with_sandbox,
};

#[test]
fn the_guest_says_what_it_is() {
    with_sandbox(async |guest| {
        let info: GuestInfo = guest.guest().ask(&Info {}).await.unwrap();
        assert_eq!(info.agent, env!("CARGO_PKG_VERSION"));
        assert!(info.landlock_abi >= 6, "{info:?}");
        assert!(info.memory_bytes > 400 << 20 && info.memory_bytes <= 512 << 20, "{info:?}");
    });
}

#[test]
fn an_empty_exchange_is_answered() {
    with_sandbox(async |guest| {
        assert!(guest.guest().ping().await.unwrap() < Duration::from_secs(10));
    });
}

#[test]
fn two_guests_draw_different_random_numbers() {
    let draw = || {
        let mut drawn = String::new();
        with_sandbox(async |guest| {
            drawn = sh(guest, "head -c 16 /dev/urandom | base64").await.ok()
        });
        drawn
    };
    assert_ne!(draw(), draw());
}

/// The canary is looked for wherever a careless step would leave it.
/// A guest's alone: on a host the task is a process like others, whose environment root can read.
#[test]
fn a_secret_stays_in_the_task_s_environment() {
    const CANARY: &str = "canary-5f1e9d0c7b";
    with_guest(async |guest| {
        let mut holder = shell("echo ${#TOKEN}; read wait");
        holder.env = env(&[("TOKEN", CANARY)]);
        holder.stdin = true;
        let process = guest.guest().exec(&holder).unwrap();
        let out = process.stdout();
        assert_eq!(out.read().await.unwrap().unwrap(), b"17\n");

        // The host: our process and the monitor, their arguments and environments.
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            for file in ["cmdline", "environ"] {
                let bytes = std::fs::read(entry.path().join(file)).unwrap_or_default();
                let found = bytes.windows(CANARY.len()).any(|w| w == CANARY.as_bytes());
                assert!(!found, "{:?}/{file} holds the secret", entry.path());
            }
        }
        // The guest: every file that a task can read, as root, and other tasks' view of /proc.
        let mut search = shell(&format!(
            "find / -xdev -newer /proc/1 -type f -size -4096 -exec grep -l {} {{}} + 2>/dev/null; \
             cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -c ^TOKEN=; true",
            &CANARY[..12]
        ));
        search.user = Some("root".into());
        let ran = run(guest, search).await;
        assert_eq!(ran.stdout, "0\n", "{ran:?}");
        drop(process);
    });
}

#[test]
fn a_request_for_more_isolation_than_there_is_is_refused_before_a_boot() {
    let spec = SandboxSpec {
        min_isolation: Some(supervisor::Isolation::Vm),
        engine: Some("qemu".into()),
        ..SandboxSpec::default()
    };
    let error = block_on(supervisor().create(spec, &mut ())).unwrap_err();
    assert_eq!(error.kind(), supervisor::ErrorKind::Policy, "{error}");
}

/// A machine without anything of ours on the host's side, and what speaks to its agent raw.
struct Raw {
    // Ends the machine when it is dropped.
    _machine: Box<dyn Machine>,
    carrier: Box<dyn Carrier>,
    connection: Connection,
    hello: Hello,
}

/// What boots on an engine.
pub(crate) fn system(engine: &str) -> System {
    if engine == PROCESS {
        return System::Process { agent: image::boot::agent().unwrap() };
    }
    let store = image::Store::open_default().unwrap();
    let root = store.resolve(&image::ImageRef::Name("base".into()), &mut ()).unwrap();
    let assets = image::boot::assets(&store, &image::boot::Kernel::Ours, &mut ()).unwrap();
    System::Guest(Guest {
        kernel: assets.kernel,
        initramfs: assets.initramfs,
        disks: supervisor::root_disks(root.layers).unwrap(),
    })
}

/// The names of all engines that run here.
fn all_engines() -> impl Iterator<Item = &'static str> {
    engines().iter().map(String::as_str).chain(has_process().then_some(PROCESS))
}

impl Raw {
    async fn boot(key: &SigningKey, engine: &str) -> Self {
        let spec = BootSpec {
            sandbox: "sb-raw".into(),
            cpus: 1,
            memory_mb: 256,
            system: system(engine),
            agent_arguments: vec![
                "sandforge.id=sb-raw".into(),
                format!("sandforge.key={}", key_to_hex(&key.verifying_key())),
            ],
            attachment: Attachment::Owned,
            console: false,
        };
        let supervisor = supervisor();
        let mut machine = supervisor.engine(engine).unwrap().boot(spec).await.unwrap();
        let mut carrier = machine.carrier().unwrap();
        let (connection, hello) = greet(&mut carrier).await;
        Self { _machine: machine, carrier, connection, hello }
    }

    /// Sends an envelope; the agent's reply or refusal.
    async fn send(&mut self, envelope: &[u8]) -> Result<Vec<u8>, OpError> {
        let id = self.connection.open(envelope.to_vec().into()).unwrap();
        self.transmit().await;
        loop {
            if let Some(end) = self.end_of(id) {
                return end;
            }
            self.receive().await;
        }
    }

    fn end_of(&mut self, id: StreamId) -> Option<Result<Vec<u8>, OpError>> {
        std::iter::from_fn(|| self.connection.poll_event()).find_map(|event| match event {
            Event::Closed(stream, reply) if stream == id => Some(Ok(reply)),
            Event::Reset(stream, error) if stream == id => Some(Err(error)),
            _ => None,
        })
    }

    async fn transmit(&mut self) {
        let mut out = Default::default();
        self.connection.transmit(&mut out, usize::MAX);
        self.carrier.write_all(&out).await.unwrap();
    }

    async fn receive(&mut self) {
        let mut bytes = vec![0; 4096];
        let count = self.carrier.read(&mut bytes).await.unwrap();
        assert!(count > 0, "the machine ended");
        self.connection.receive(&bytes[..count]).unwrap();
    }
}

async fn greet(carrier: &mut Box<dyn Carrier>) -> (Connection, Hello) {
    let nonce = [7; 16];
    carrier.write_all(&knock(&nonce)).await.unwrap();
    let mut scanner = Scanner::echo_of(nonce);
    let hello = serde_json::to_vec(&Hello::new("test", 0)).unwrap();
    let mut connection = Connection::new(Side::Host, hello);
    let mut bytes = vec![0; 4096];
    let rest = loop {
        let count = carrier.read(&mut bytes).await.unwrap();
        assert!(count > 0, "the machine ended");
        if let Some((_, used)) = scanner.scan(&bytes[..count]) {
            break bytes[used..count].to_vec();
        }
    };
    connection.receive(&rest).unwrap();
    let mut out = Default::default();
    connection.transmit(&mut out, usize::MAX);
    carrier.write_all(&out).await.unwrap();
    loop {
        if let Some(Event::Hello(hello)) = connection.poll_event() {
            return (connection, serde_json::from_slice(&hello).unwrap());
        }
        let count = carrier.read(&mut bytes).await.unwrap();
        connection.receive(&bytes[..count]).unwrap();
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

fn seal<O: Operation>(sealer: &mut Sealer, operation: &O, expires_ms: u64) -> Vec<u8> {
    sealer.seal(operation, expires_ms, &[1; 16]).unwrap().0.to_vec()
}

#[test]
fn the_agent_does_only_what_was_signed_for_it_once_and_in_time() {
    for engine in all_engines() {
        block_on(only_what_was_signed(engine));
    }
}

async fn only_what_was_signed(engine: &str) {
    let key = SigningKey::from_bytes(&[3; 32]);
    let mut guest = Raw::boot(&key, engine).await;
    assert_eq!(guest.hello.sequence, 0);
    let later = now_ms() + 60_000;
    let mut ours = Sealer::new(key.clone(), "sb-raw", 0);

    // Another's signature, another sandbox's operation, no operation at all.
    let mut stranger = Sealer::new(SigningKey::from_bytes(&[4; 32]), "sb-raw", 100);
    let forged = seal(&mut stranger, &Info {}, later);
    assert_eq!(guest.send(&forged).await.unwrap_err().code, ErrorCode::BadSignature);
    let mut elsewhere = Sealer::new(key.clone(), "sb-other", 100);
    let misdirected = seal(&mut elsewhere, &Info {}, later);
    assert_eq!(guest.send(&misdirected).await.unwrap_err().code, ErrorCode::WrongSandbox);
    assert_eq!(guest.send(b"{}").await.unwrap_err().code, ErrorCode::Invalid);

    // Nothing runs before the guest has time and randomness.
    let early = seal(&mut ours, &Processes {}, later);
    assert_eq!(guest.send(&early).await.unwrap_err().code, ErrorCode::NotReady);

    let clock = Clock { unix_ns: now_ms() * 1_000_000 };
    let clock = seal(&mut ours, &clock, later);
    guest.send(&clock).await.unwrap();
    assert_eq!(guest.send(&clock).await.unwrap_err().code, ErrorCode::Replayed);
    let late = seal(&mut ours, &Info {}, now_ms() - 1000);
    assert_eq!(guest.send(&late).await.unwrap_err().code, ErrorCode::Expired);
    let fine = seal(&mut ours, &Info {}, later);
    guest.send(&fine).await.unwrap();

    // One byte of it changed.
    let mut changed = seal(&mut ours, &Info {}, later);
    let position = changed.windows(4).position(|w| w == b"info").unwrap();
    changed[position..position + 4].copy_from_slice(b"exec");
    assert_eq!(guest.send(&changed).await.unwrap_err().code, ErrorCode::BadSignature);
}

#[test]
fn a_host_that_takes_over_is_heard_and_goes_on_above_the_last_number() {
    for engine in all_engines() {
        block_on(taken_over(engine));
    }
}

async fn taken_over(engine: &str) {
    let key = SigningKey::from_bytes(&[5; 32]);
    let mut guest = Raw::boot(&key, engine).await;
    let mut ours = Sealer::new(key, "sb-raw", 0);
    let info = seal(&mut ours, &Info {}, now_ms() + 60_000);
    guest.send(&info).await.unwrap();
    // The host before this one died in the middle of a frame.
    guest.carrier.write_all(&[0, 0, 0x10, 0, 3, 0, 0, 0, 1]).await.unwrap();
    guest.carrier.write_all(&[0xff; 8192]).await.unwrap();
    let (connection, hello) = greet(&mut guest.carrier).await;
    guest.connection = connection;
    assert_eq!(hello.sequence, 1);
    assert_eq!(guest.send(&info).await.unwrap_err().code, ErrorCode::Replayed);
}
