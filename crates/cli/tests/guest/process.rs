//! Sandboxes on the host's own kernel: what of the host is out of their reach, and what they
//! refuse because they do not have it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use supervisor::wire::op::{ErrorCode, Exec, Limits, Outcome};
use supervisor::wire::text::Text;
use supervisor::{ErrorKind, Observer, Sandbox, SandboxSpec, Step};

use crate::support::{
    PROCESS, block_on, has_process, refusal, run, sh, shell, supervisor, try_run, with_process,
};

const SECRET: &str = "the combination is 1-2-3-4-5";

fn as_root(line: &str) -> Exec {
    Exec { user: Some(Text::from("root")), ..shell(line) }
}

/// Runs a line as the ordinary user and as the sandbox's root; neither may print the words.
async fn neither_prints(sandbox: &Sandbox, line: &str, words: &str) {
    for exec in [shell(line), as_root(line)] {
        let ran = run(sandbox, exec).await;
        assert!(!ran.stdout.contains(words), "{ran:?}");
    }
}

/// A file of the user's that everybody may read, in a place of this kind.
fn planted(directory: &Path) -> tempfile::NamedTempFile {
    use std::os::unix::fs::PermissionsExt as _;
    let file = tempfile::NamedTempFile::new_in(directory).unwrap();
    fs::write(&file, SECRET).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    file
}

#[test]
fn the_user_s_files_are_out_of_reach() {
    let home = std::env::home_dir().expect("a home");
    for directory in [&home, Path::new("/tmp"), Path::new("/var/tmp")] {
        let file = planted(directory);
        with_process(async |sandbox| {
            let path = file.path().display();
            neither_prints(sandbox, &format!("cat {path}"), SECRET).await;
            neither_prints(sandbox, &format!("ls -A {}", directory.display()), "tmp").await;
        });
    }
}

#[test]
fn places_that_belong_to_somebody_are_not_there() {
    with_process(async |sandbox| {
        let line = "ls -A /root /srv /mnt /media /run /boot /sys /var/lib /var/run /lost+found";
        let ran = run(sandbox, as_root(line)).await;
        let listed = ran.stdout.lines().filter(|line| !line.is_empty() && !line.ends_with(':'));
        assert_eq!(listed.collect::<Vec<_>>(), Vec::<&str>::new());
    });
}

#[test]
fn what_only_root_may_read_stays_so() {
    with_process(async |sandbox| {
        let line = "cat /etc/shadow /etc/gshadow /etc/sudoers /etc/ssh/ssh_host_*_key";
        for exec in [shell(line), as_root(line)] {
            let ran = run(sandbox, exec).await;
            assert_eq!((ran.stdout.as_str(), ran.code()), ("", Some(1)), "{ran:?}");
        }
    });
}

#[test]
fn who_uses_the_host_is_not_told() {
    with_process(async |sandbox| {
        let users = sh(sandbox, "cut -d: -f1 /etc/passwd; cat /etc/passwd-").await.stdout;
        assert_eq!(users, "root\nagent\nnobody\n");
        assert_eq!(sh(sandbox, "cat /etc/machine-id; hostname").await.stdout, "sandbox\n");
    });
}

#[test]
fn system_directories_cannot_be_written_even_by_root() {
    with_process(async |sandbox| {
        for directory in ["/usr", "/usr/local/bin", "/etc", "/opt"] {
            let ran = run(sandbox, as_root(&format!("touch {directory}/x"))).await;
            assert!(ran.stderr.contains("Read-only file system"), "{ran:?}");
        }
    });
}

#[test]
fn other_processes_of_the_host_are_out_of_sight() {
    let mut other = Command::new("sleep").arg("98765").spawn().unwrap();
    with_process(async |sandbox| {
        neither_prints(sandbox, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '", "98765").await;
        let kill = format!("kill -9 {}", other.id());
        assert_ne!(run(sandbox, as_root(&kill)).await.code(), Some(0));
    });
    assert_eq!(other.try_wait().unwrap(), None);
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn the_environment_of_whoever_started_it_is_not_there() {
    with_process(async |sandbox| {
        let ours = sh(sandbox, "env | grep -c CARGO; cat /proc/*/environ | grep -c CARGO").await;
        assert_eq!(ours.stdout, "0\n0\n");
    });
}

#[test]
fn servers_of_the_host_are_out_of_reach() {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixListener};
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = tcp.local_addr().unwrap().port();
    let name = format!("sandforge-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let _abstract = UnixListener::bind_addr(&address).unwrap();
    with_process(async |sandbox| {
        for connect in [
            format!("s = socket.socket(); s.connect(('127.0.0.1', {port}))"),
            format!("s = socket.socket(socket.AF_UNIX); s.connect('\\0{name}')"),
        ] {
            let line = format!("python3 -c \"import socket; {connect}; print('connected')\"");
            let ran = run(sandbox, as_root(&line)).await;
            assert!(ran.stderr.contains("Error") && ran.stdout.is_empty(), "{ran:?}");
        }
    });
}

#[test]
fn a_process_has_no_more_memory_than_was_said() {
    with_process(async |sandbox| {
        let mut hungry = shell("python3 -c 'x = bytearray(300 << 20)'");
        hungry.limits = Limits { memory_bytes: Some(64 << 20), ..Limits::default() };
        let ran = run(sandbox, hungry).await;
        assert!(ran.code() == Some(1) && ran.stderr.contains("MemoryError"), "{ran:?}");
    });
}

#[test]
fn a_task_has_no_more_processes_than_was_said() {
    with_process(async |sandbox| {
        for make in [shell, as_root] {
            let mut many = make("for i in $(seq 20); do sleep 5 & done; echo all");
            many.limits.pids = 10;
            let ran = run(sandbox, many).await;
            assert!(!ran.stdout.contains("all"), "{ran:?}");
            assert!(ran.stderr.contains("fork") || ran.stderr.contains("Resource"), "{ran:?}");
        }
    });
}

#[test]
fn a_limit_that_cannot_be_held_is_refused() {
    with_process(async |sandbox| {
        let mut slow = shell("true");
        slow.limits.cpu_millis = Some(500);
        let error = refusal(try_run(sandbox, slow).await);
        assert_eq!(error.code, ErrorCode::Unsupported);
        assert!(error.message.contains("control group"), "{error}");
    });
}

#[test]
fn what_a_task_used_is_told() {
    with_process(async |sandbox| {
        let busy = shell("python3 -c 'x = bytearray(50 << 20); [i * i for i in range(2000000)]'");
        let reply = sandbox.guest().exec(&busy).unwrap().wait().await.unwrap();
        assert_eq!(reply.outcome, Outcome::Exited { code: 0 });
        assert!(reply.cpu_usec > 10_000, "{reply:?}");
        assert!(reply.memory_peak_bytes > 50 << 20, "{reply:?}");
    });
}

#[derive(Default)]
struct Notices(Vec<String>);

impl Observer for Notices {
    fn step(&mut self, _: Step) {}

    fn notice(&mut self, line: &str) {
        self.0.push(line.into());
    }
}

#[test]
fn what_it_does_not_protect_from_is_said() {
    if !has_process() {
        return;
    }
    let mut notices = Notices::default();
    let spec = SandboxSpec { engine: Some(PROCESS.into()), ..SandboxSpec::default() };
    block_on(async {
        let sandbox = supervisor().create(spec, &mut notices).await.unwrap();
        sandbox.destroy().await.unwrap();
    });
    assert_eq!(notices.0.len(), 1, "{:?}", notices.0);
    assert!(notices.0[0].starts_with("isolation: process: the host's kernel is shared"));
}

#[test]
fn a_floor_above_it_refuses_it() {
    let spec = SandboxSpec {
        engine: Some(PROCESS.into()),
        min_isolation: Some(supervisor::Isolation::Emulated),
        ..SandboxSpec::default()
    };
    let error = block_on(supervisor().create(spec, &mut ())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Policy, "{error}");
}

fn sandforge(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sandforge"));
    command.args(arguments);
    command
}

/// The processes of the host that have these words among their arguments.
fn running(words: &str) -> usize {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let command_lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    command_lines.filter(|line| String::from_utf8_lossy(line).contains(words)).count()
}

fn eventually(mut holds: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while !holds() {
        if begun.elapsed() > Duration::from_secs(10) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

#[test]
fn nothing_of_it_outlives_a_sandforge_that_is_killed() {
    if !has_process() {
        return;
    }
    let arguments = ["run", "-q", "--engine", PROCESS, "sleep 4567801 & sleep 4567801"];
    let mut owner = sandforge(&arguments).stdout(Stdio::null()).spawn().unwrap();
    let up = eventually(|| running("sleep\u{0}4567801") == 2);
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert!(up, "it did not come up");
    assert!(eventually(|| running("4567801") == 0), "something still runs");
}

#[test]
fn a_kept_one_takes_commands_until_it_is_removed() {
    if !has_process() {
        return;
    }
    let own = tempfile::tempdir().unwrap();
    let kept = |arguments: &[&str]| {
        let mut command = sandforge(arguments);
        for (variable, name) in [("RUNTIME", "run"), ("DATA", "data"), ("CONFIG", "config")] {
            command.env(format!("SANDFORGE_{variable}_DIR"), own.path().join(name));
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    kept(&["run", "--engine", PROCESS, "--keep", "--name", "box", "--", "touch", "mark"]);
    assert_eq!(kept(&["exec", "box", "--", "ls"]), "mark\n");
    assert!(kept(&["ls"]).contains("process"));
    kept(&["rm", "box"]);
    assert!(!kept(&["ls"]).contains("box"));
}
