//! The command with a machine behind it: what passes between a guest and the user.

mod support;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::json;
use support::{Call, sandforge};
use tempfile::tempdir;

/// Longer than any of this takes on a machine with other things to do.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn output_and_status_are_the_commands() {
    let output = sandforge(["-q", "run", "echo out; echo err >&2; exit 123"]).exits(123);
    assert_eq!(output.prints("out\n").stderr, "err\n");
}

#[test]
fn a_machine_says_once_why_it_is_not_stronger() {
    let output = sandforge(["run", "true"]).exits(0);
    if strongest() == "vm" {
        return assert_eq!(output.stderr, "", "there is nothing to explain");
    }
    let output = output.says("isolation: emulated, because ");
    assert_eq!(output.stderr.lines().count(), 1, "{output}");
}

#[test]
fn a_command_that_is_not_there_is_127() {
    sandforge(["-q", "run", "--", "nosuch"])
        .exits(127)
        .says("sandforge: \"nosuch\": no such command in the sandbox");
}

#[test]
fn a_file_that_cannot_be_run_is_126() {
    sandforge(["-q", "run", "--", "/etc/passwd"]).exits(126).says("sandforge: cannot be run: ");
}

#[test]
fn a_signal_that_ends_the_command_is_in_the_status() {
    sandforge(["-q", "run", "kill -TERM $$"]).exits(143);
}

#[test]
fn a_command_that_takes_too_long_is_124() {
    sandforge(["-q", "run", "--timeout", "1", "sleep 100"]).exits(124).says("timed out after 1s");
}

#[test]
fn a_command_that_takes_too_much_memory_is_told_so() {
    // Tail keeps the last line, which here is all there is.
    sandforge(["-q", "run", "-m", "256", "tail /dev/zero"])
        .exits(137)
        .says("sandforge: out of memory")
        .says("raise it with --memory");
}

#[test]
fn a_working_directory_that_is_not_there_is_told() {
    let output = sandforge(["-q", "run", "--cwd", "/nope", "true"]).exits(125);
    output.says("sandforge: working directory /nope: No such file or directory\n");
}

#[test]
fn a_user_that_is_not_there_is_told() {
    let output = sandforge(["-q", "run", "-u", "nobody2", "true"]).exits(125);
    output.says("there is no user 'nobody2' in the image's /etc/passwd");
}

#[test]
fn bytes_that_are_not_utf8_reach_the_command() {
    let arguments: [&[u8]; 8] =
        [b"-q", b"run", b"-e", b"V=\xfe", b"--", b"sh", b"-c", b"printf '%s\xff' \"$V\""];
    sandforge(arguments.map(OsStr::from_bytes)).exits(0).prints(b"\xfe\xff");
}

#[test]
fn variables_come_from_the_environment_from_files_and_from_arguments() {
    let directory = tempdir().unwrap();
    let file = directory.path().join("env");
    std::fs::write(&file, "A=file\nB=file\nTOKEN\n").unwrap();
    let file = file.to_str().unwrap();
    Call::new(["-q", "run", "--env-file", file, "-e", "B=argument", "echo $A $B $TOKEN"])
        .env("TOKEN", "token")
        .output()
        .exits(0)
        .prints("file argument token\n");
}

#[test]
fn a_pipe_is_passed_on_as_stdin() {
    let lines = "line\n".repeat(100_000);
    Call::new(["-q", "run", "wc -c"]).stdin(lines).output().exits(0).prints("500000\n");
}

#[test]
fn without_a_pipe_stdin_is_empty() {
    sandforge(["-q", "run", "wc -c"]).exits(0).prints("0\n");
}

#[test]
fn json_holds_the_end_and_the_output() {
    let call = Call::new(["run", "--json", "-e", "TOKEN", "echo out; printf '\\377' >&2; exit 3"])
        .env("TOKEN", "canary");
    let output = call.output().exits(3);
    let report = output.json();
    assert_eq!(report["exit"], json!({"code": 3, "result": "exited", "signal": null}));
    assert_eq!(report["stdout"], json!("out\n"));
    assert_eq!(report["stderr"], json!({"base64": "/w=="}));
    assert_eq!(report["isolation"], strongest());
    assert!(report["digest"].as_str().is_some_and(|digest| digest.starts_with("sha256:")));
    assert!(report["timings"]["kernel_ms"].as_f64().is_some_and(|ms| ms > 1.0), "{report}");
    assert!(!report.to_string().contains("canary") && !report.to_string().contains("TOKEN"));
}

#[test]
fn json_in_a_file_leaves_the_output_alone() {
    let directory = tempdir().unwrap();
    let file = directory.path().join("report.json");
    let arguments = ["-q", "run", "--json-file", file.to_str().unwrap(), "echo out"];
    sandforge(arguments).exits(0).prints("out\n");
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(report["exit"]["code"], json!(0));
    assert_eq!(report.get("stdout"), None);
}

#[test]
fn a_reader_that_goes_ends_the_command() {
    let mut child = Call::new(["-q", "run", "yes"]).spawn();
    let mut first = [0; 2];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    drop(child.stdout.take());
    assert_eq!(ended(&mut child), Some(141));
}

#[test]
fn a_signal_is_passed_to_the_command() {
    let mut child =
        started(&["-q", "run", "trap 'echo told; exit 9' TERM; echo begun; sleep 100 & wait"]);
    signal(&child, Signal::TERM);
    let mut rest = String::new();
    child.stdout.take().unwrap().read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), ended(&mut child)), ("told\n", Some(9)));
}

#[test]
fn the_second_interrupt_takes_the_machine_away() {
    let mut child = started(&["-q", "run", "trap '' INT; echo begun; sleep 100"]);
    signal(&child, Signal::INT);
    thread::sleep(Duration::from_millis(200));
    signal(&child, Signal::INT);
    assert_eq!(ended(&mut child), Some(130));
}

#[test]
fn an_interrupt_before_the_command_runs_is_enough() {
    let mut child = Call::new(["-q", "run", "echo begun; sleep 100"]).spawn();
    thread::sleep(Duration::from_millis(100));
    signal(&child, Signal::INT);
    assert_eq!(ended(&mut child), Some(130));
}

#[test]
fn a_secret_is_in_no_process_file_or_message_of_ours() {
    // Put together here, so that no file or command line of the test has it.
    let canary = format!("{}-{}", "canary", std::process::id());
    let home = tempdir().unwrap();
    let report = home.path().join("report.json");
    let mut child = Call::new(["-v", "run", "--keep", "--name", "box", "-e", "TOKEN", "-i"])
        .arguments(["--json-file", report.to_str().unwrap(), "echo begun; read go"])
        .env("TOKEN", &canary)
        .env("XDG_RUNTIME_DIR", home.path())
        .env("XDG_DATA_HOME", home.path())
        .open_stdin()
        .spawn();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();

    for process in descendants(child.id()) {
        for file in ["cmdline", "environ"] {
            let path = format!("/proc/{process}/{file}");
            assert!(!contains(&std::fs::read(&path).unwrap_or_default(), &canary), "{path}");
        }
    }
    let own = std::fs::read(format!("/proc/{}/cmdline", child.id())).unwrap();
    assert!(!contains(&own, &canary));

    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(ended(&mut child), Some(0), "{said}");
    assert!(!said.contains(&canary), "{said}");
    for file in files(home.path()) {
        assert!(!contains(&std::fs::read(&file).unwrap_or_default(), &canary), "{file:?}");
    }
    Call::new(["rm", "box"])
        .env("XDG_RUNTIME_DIR", home.path())
        .env("XDG_DATA_HOME", home.path())
        .output()
        .exits(0);
}

#[test]
fn a_killed_sandforge_leaves_nothing_behind() {
    let temporary = tempdir().unwrap();
    let mut child = Call::new(["-q", "run", "echo begun; sleep 1000"])
        .env("TMPDIR", temporary.path())
        .env("XDG_RUNTIME_DIR", temporary.path())
        .spawn();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    let processes = descendants(child.id());
    assert!(!processes.is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    let begun = Instant::now();
    while processes.iter().any(|process| is_running(*process)) {
        assert!(begun.elapsed() < Duration::from_secs(10), "{processes:?} go on");
        thread::sleep(Duration::from_millis(10));
    }
    // A directory that a kept machine would be in may stay, empty.
    assert_eq!(files(temporary.path()), Vec::<PathBuf>::new());
}

#[test]
fn a_monitor_gets_nothing_that_its_caller_had_open() {
    let line = "exec 9</etc/hostname; exec \"$0\" -q run 'echo begun; sleep 100'";
    let mut child = Command::new("bash")
        .args(["-c", line, env!("CARGO_BIN_EXE_sandforge")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    let monitors = descendants(child.id());
    assert!(!monitors.is_empty());
    for monitor in monitors {
        for entry in std::fs::read_dir(format!("/proc/{monitor}/fd")).unwrap().flatten() {
            let target = std::fs::read_link(entry.path()).unwrap_or_default();
            assert!(!target.starts_with("/etc"), "{target:?} is open in the monitor");
        }
    }
    signal(&child, Signal::KILL);
    ended(&mut child);
}

#[test]
fn a_kept_machine_takes_more_commands_until_it_is_removed() {
    let home = tempdir().unwrap();
    // The cache that everyone has, with the image in it; kept machines of our own.
    let call = |arguments: &[&str]| {
        Call::new(arguments)
            .env("XDG_RUNTIME_DIR", home.path())
            .env("XDG_DATA_HOME", home.path())
            .output()
    };
    call(&["run", "--keep", "--name", "box", "echo hello > note"]).exits(0).says("box is kept");
    assert_eq!(call(&["ls", "--json"]).exits(0).json()[0]["name"], json!("box"));
    call(&["exec", "box", "cat note; exit 4"]).exits(4).prints("hello\n");
    call(&["run", "--keep", "--name", "box", "true"]).exits(125).says("the name `box` is in use");
    call(&["rm", "box"]).exits(0);
    call(&["ls", "--json"]).exits(0).prints("[]\n");
    call(&["exec", "box", "true"]).exits(125).says("there is no sandbox \"box\"");
}

#[test]
fn a_workspace_goes_in_and_its_changes_come_back() {
    let directory = tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let read = |name: &str| std::fs::read_to_string(path(name)).ok();
    for (name, content) in [("a", "old"), ("gone", "x"), ("out.o", "x"), (".gitignore", "*.o")] {
        std::fs::write(path(name), content).unwrap();
    }
    Call::new(["-q", "run", "-w", ".", "--gitignore", "--sync-back"])
        .arguments(["ls; printf new > a; rm gone; mkdir d; printf made > d/b; exit 3"])
        .directory(directory.path())
        .output()
        .exits(3)
        .prints("a\ngone\n");
    assert_eq!(read("a").as_deref(), Some("new"));
    assert_eq!(read("d/b").as_deref(), Some("made"));
    assert_eq!(read("gone"), None);
    assert_eq!(read("out.o").as_deref(), Some("x"));
}

#[test]
fn results_come_out_into_a_new_directory() {
    let directory = tempdir().unwrap();
    let out = directory.path().join("results");
    sandforge(["-q", "run", "--out", out.to_str().unwrap(), "echo made > it"]).exits(0);
    assert_eq!(std::fs::read(out.join("it")).unwrap(), b"made\n");
}

#[test]
fn results_that_would_leave_the_directory_change_nothing() {
    let directory = tempdir().unwrap();
    let out = directory.path().join("results");
    sandforge(["-q", "run", "--out", out.to_str().unwrap(), "echo x > it; ln -s /etc/passwd link"])
        .exits(125)
        .says("the symbolic link 'link' to '/etc/passwd' leads out of the directory")
        .says("the command's own exit status was 0");
    assert!(!out.exists());
}

#[test]
fn links_that_lead_out_can_be_left_out() {
    let directory = tempdir().unwrap();
    let out = directory.path().join("results");
    let line = "echo x > it; ln -s /usr/bin/python3 python3";
    sandforge(["-q", "run", "--leave-out-links", "--out", out.to_str().unwrap(), line]).exits(0);
    assert_eq!(std::fs::read_to_string(out.join("it")).unwrap(), "x\n");
    assert!(out.join("python3").symlink_metadata().is_err());
}

#[test]
fn a_mount_that_is_read_only_cannot_be_written() {
    let directory = tempdir().unwrap();
    std::fs::write(directory.path().join("file"), "content\n").unwrap();
    Call::new(["-q", "run", "--mount", "file:/data/file:ro", "--mount", ".:/data/all"])
        .arguments([
            "cat /data/file; touch /data/file 2>/dev/null || touch /data/all/new && echo ok",
        ])
        .directory(directory.path())
        .output()
        .exits(0)
        .prints("content\nok\n");
}

#[test]
fn escapes_are_shown_on_a_terminal_and_not_obeyed() {
    let line = r"printf '\033]0;title\007 \033[31mred\033[2J \233\n'";
    let mut terminal = Terminal::open(&["-q", "run", line]);
    assert_eq!(terminal.rest(), "^[]0;title^G \x1b[31mred^[[2J \\x9b\r\n\x1b[0m");
    assert_eq!(ended(&mut terminal.child), Some(0));
}

#[test]
fn a_terminal_has_the_users_size_and_passes_keys() {
    let mut terminal = Terminal::open(&["-q", "run", "-t", "--", "sh"]);
    terminal.expect("$ ");
    terminal.send("stty size; tty\r");
    terminal.expect("33 99\r\n/dev/pts/");
    terminal.resize(44, 111);
    terminal.send("sleep 1; stty size\r");
    terminal.expect("44 111");
    // Ctrl-C is a key like others: it ends the command, not the shell.
    terminal.send("sh -c 'echo sleeping; exec sleep 100'\r");
    terminal.expect("sleeping\r\n");
    terminal.send("\x03");
    terminal.expect("$ ");
    terminal.send("exit 5\r");
    assert_eq!(ended(&mut terminal.child), Some(5));
}

/// The size was read first and asked for last, with the boot in between.
#[test]
fn a_resize_while_the_machine_starts_is_not_lost() {
    let mut terminal = Terminal::open(&["-q", "run", "-t", "sleep 2; stty size"]);
    thread::sleep(Duration::from_millis(200));
    terminal.resize(41, 121);
    terminal.expect("41 121");
    assert_eq!(ended(&mut terminal.child), Some(0));
}

#[test]
fn tilde_dot_leaves_a_command_that_does_not_listen() {
    let mut terminal =
        Terminal::open(&["-q", "run", "-t", "trap '' INT HUP; echo begun; sleep 100"]);
    terminal.expect("begun");
    terminal.send("\x03~.");
    assert_eq!(ended(&mut terminal.child), Some(130));
}

/// Starts `sandforge` and waits until its command printed `begun`.
/// The isolation of the strongest engine that runs guests here.
fn strongest() -> serde_json::Value {
    let report = sandforge(["doctor", "--json"]).json();
    let engines = report["engines"].as_array().unwrap().iter();
    let mut usable = engines.filter(|engine| engine["verdict"] == "usable");
    usable.next().expect("an engine")["isolation"].clone()
}

fn started(arguments: &[&str]) -> Child {
    let mut child = Call::new(arguments).spawn();
    let mut first = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"begun\n");
    child
}

/// The processes that it started, and those that these did.
fn descendants(process: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut parents = vec![process];
    while let Some(parent) = parents.pop() {
        for task in
            std::fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten()
        {
            let children = std::fs::read_to_string(task.path().join("children"));
            let children = children.unwrap_or_default();
            for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
                parents.push(child);
                found.push(child);
            }
        }
    }
    found
}

/// Neither gone nor waiting for whoever started it.
fn is_running(process: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// All files and sockets below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&entry.path())),
            _ => found.push(entry.path()),
        }
    }
    found
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// The exit status, which must come in time.
#[track_caller]
fn ended(child: &mut Child) -> Option<i32> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    panic!("it did not end");
}

fn set_size(master: impl AsFd, ws_row: u16, ws_col: u16) {
    let size = Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(master, size).unwrap();
}

/// `sandforge` on a terminal of its own.
struct Terminal {
    child: Child,
    master: File,
    seen: String,
}

impl Terminal {
    fn open(arguments: &[&str]) -> Self {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        set_size(&master, 33, 99);
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave: OwnedFd = File::options()
            .read(true)
            .write(true)
            .open(Path::new(OsStr::from_bytes(name.to_bytes())))
            .unwrap()
            .into();
        let end = || Stdio::from(slave.try_clone().unwrap());
        // Makes the terminal the controlling one, so that its keys become signals.
        let child = Command::new("setsid")
            .args(["--ctty", "--wait", env!("CARGO_BIN_EXE_sandforge")])
            .args(arguments)
            .env("TERM", "xterm")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        Self { child, master: master.into(), seen: String::new() }
    }

    fn resize(&self, rows: u16, cols: u16) {
        set_size(&self.master, rows, cols);
    }

    fn send(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// Reads until this is seen, and forgets it with all before it.
    #[track_caller]
    fn expect(&mut self, text: &str) {
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            assert!(self.read(), "{text:?} is not in {:?}", self.seen);
        }
    }

    /// All that comes until the end.
    fn rest(&mut self) -> String {
        while self.read() {}
        std::mem::take(&mut self.seen)
    }

    fn read(&mut self) -> bool {
        let mut bytes = [0; 4096];
        let mut waiting = [PollFd::new(&self.master, PollFlags::IN)];
        let patience = Timespec { tv_sec: 120, tv_nsec: 0 };
        let came = poll(&mut waiting, Some(&patience)).unwrap();
        assert!(came > 0, "nothing comes any more behind {:?}", self.seen);
        // The end of the other side is an error on Linux.
        match self.master.read(&mut bytes) {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
                true
            }
        }
    }
}
