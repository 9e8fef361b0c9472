//! Commands: argv and shell, directories, users, environment, input, ends.

use std::time::{Duration, Instant};

use supervisor::SandboxSpec;
use supervisor::wire::op::{
    Command, ErrorCode, Outcome, ProcessList, Processes, Resize, Signal, WindowSize,
};
use supervisor::wire::text::{Secret, Text};

use crate::support::{
    argv, env, exec, refusal, run, sh, shell, try_run, with_guest, with_sandbox, with_spec,
};

/// A guest's alone: what it is about.
#[test]
fn a_shell_line_runs_in_a_kernel_of_its_own() {
    with_guest(async |guest| {
        let kernel = sh(guest, "uname -r").await.ok();
        assert!(kernel.starts_with("6.12."), "{kernel}");
        let host = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let theirs = sh(guest, "cat /proc/sys/kernel/random/boot_id").await.ok();
        assert_ne!(host, theirs);
    });
}

#[test]
fn outputs_are_apart_and_the_code_is_the_command_s() {
    with_sandbox(async |guest| {
        let ran = sh(guest, "echo out; echo err >&2; exit 3").await;
        assert_eq!(ran.stdout, "out\n");
        assert_eq!(ran.stderr, "err\n");
        assert_eq!(ran.outcome, Outcome::Exited { code: 3 });
    });
}

#[test]
fn arguments_arrive_as_they_are() {
    with_sandbox(async |guest| {
        let odd = Text::new(b"a b\n\"'$HOME\\ \xff\xfe".to_vec()).unwrap();
        let command = vec![Text::from("/bin/printf"), Text::from("%s|%s|"), Text::from(""), odd];
        let process = guest.guest().exec(&exec(Command::Argv(command))).unwrap();
        let bytes = process.stdout().read_to_end().await.unwrap();
        assert_eq!(bytes, b"|a b\n\"'$HOME\\ \xff\xfe|");
    });
}

#[test]
fn the_environment_is_what_was_given_and_little_more() {
    with_sandbox(async |guest| {
        let mut with_env = argv(&["env"]);
        with_env.env = env(&[("GREETING", "hello world"), ("EMPTY", "")]);
        let bytes = Secret::new(b"\xf0\x28".to_vec()).unwrap();
        with_env.env.insert(Text::from("BYTES"), bytes);
        let out = run(guest, with_env).await.ok();
        let names: Vec<_> = out.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
        assert!(out.contains("GREETING=hello world\n") && out.contains("EMPTY=\n"), "{out}");
        assert!(out.contains("BYTES="), "{out}");
        for name in ["PATH", "HOME", "USER"] {
            assert!(names.contains(&name), "{name} in {out}");
        }
        assert!(names.len() < 14, "{out}");
    });
}

#[test]
fn tasks_run_as_an_ordinary_user_in_the_workspace() {
    with_sandbox(async |guest| {
        let out = sh(guest, "id -u; pwd; echo $HOME; touch x && stat -c %u x").await.ok();
        assert_eq!(out, "1000\n/workspace\n/home/agent\n1000\n");
    });
}

#[test]
fn root_is_had_by_asking() {
    with_sandbox(async |guest| {
        let mut as_root = shell("id -u; touch /root/x && chown 1000 /root/x && stat -c %u /root/x");
        as_root.user = Some(Text::from("root"));
        assert_eq!(run(guest, as_root).await.ok(), "0\n1000\n");
        let mut unknown = shell("true");
        unknown.user = Some(Text::from("nobody-knows-me"));
        let error = refusal(try_run(guest, unknown).await);
        assert_eq!(error.code, ErrorCode::NotFound);
        assert!(error.message.contains("nobody-knows-me"), "{error}");
    });
}

#[test]
fn the_directory_is_the_one_asked_for() {
    with_sandbox(async |guest| {
        let mut elsewhere = shell("pwd");
        elsewhere.cwd = Some(Text::from("/usr/lib"));
        assert_eq!(run(guest, elsewhere).await.ok(), "/usr/lib\n");
        let mut nowhere = shell("pwd");
        nowhere.cwd = Some(Text::from("/no/such/place"));
        let error = refusal(try_run(guest, nowhere).await);
        assert!(error.message.contains("/no/such/place"), "{error}");
    });
}

#[test]
fn an_unknown_command_and_an_unusable_one_are_told_apart() {
    with_sandbox(async |guest| {
        let ran = run(guest, argv(&["no-such-command"])).await;
        assert!(matches!(ran.outcome, Outcome::NotFound { .. }), "{ran:?}");
        let ran = run(guest, argv(&["/etc/passwd"])).await;
        assert!(matches!(ran.outcome, Outcome::NotExecutable { .. }), "{ran:?}");
    });
}

#[test]
fn input_reaches_the_command_and_its_end_does_too() {
    with_sandbox(async |guest| {
        let mut cat = argv(&["sha256sum"]);
        cat.stdin = true;
        let process = guest.guest().exec(&cat).unwrap();
        let input = process.stdin();
        for _ in 0..40 {
            input.write(&[b'x'; 100_000]).await.unwrap();
        }
        input.finish();
        let out = process.stdout().read_to_end().await.unwrap();
        // sha256sum of 4,000,000 times `x`.
        let expected = "b125c9a74229a20076e418798b2067389b2150e389e5738e07fbf05afb4deef6  -\n";
        assert_eq!(String::from_utf8_lossy(&out), expected);
        assert_eq!(process.wait().await.unwrap().outcome, Outcome::Exited { code: 0 });
    });
}

#[test]
fn without_input_there_is_the_end_of_it() {
    with_sandbox(async |guest| assert_eq!(sh(guest, "cat | wc -c").await.ok(), "0\n"));
}

#[test]
fn a_signal_reaches_the_command_and_its_children() {
    with_sandbox(async |guest| {
        let sleeper = shell("trap 'echo caught; exit 7' TERM; echo up; sleep 60 & wait");
        let process = guest.guest().exec(&sleeper).unwrap();
        let out = process.stdout();
        assert_eq!(out.read().await.unwrap().unwrap(), b"up\n");
        let signal = Signal { process: sleeper.process.clone(), signal: 15 };
        guest.guest().ask(&signal).await.unwrap();
        assert_eq!(out.read_to_end().await.unwrap(), b"caught\n");
        assert_eq!(process.wait().await.unwrap().outcome, Outcome::Exited { code: 7 });
    });
}

#[test]
fn a_command_killed_by_a_signal_says_which() {
    with_sandbox(async |guest| {
        let ran = sh(guest, "kill -SEGV $$").await;
        assert_eq!(ran.outcome, Outcome::Signaled { signal: 11 });
    });
}

#[test]
fn time_is_up_with_term_and_then_with_kill() {
    with_sandbox(async |guest| {
        let mut polite = shell("sleep 60");
        polite.timeout_ms = Some(300);
        let begun = Instant::now();
        let ran = run(guest, polite).await;
        assert_eq!(ran.outcome, Outcome::TimedOut { signal: 15 });
        assert!(begun.elapsed() < Duration::from_secs(20));

        let mut stubborn = shell("trap '' TERM; while :; do sleep 1; done");
        stubborn.timeout_ms = Some(300);
        stubborn.kill_grace_ms = 300;
        let ran = run(guest, stubborn).await;
        assert_eq!(ran.outcome, Outcome::TimedOut { signal: 9 });
    });
}

#[test]
fn nothing_of_a_command_outlives_it() {
    with_sandbox(async |guest| {
        let begun = Instant::now();
        let ran = sh(guest, "sleep 300 & echo left it behind").await;
        assert_eq!(ran.ok(), "left it behind\n");
        assert!(begun.elapsed() < Duration::from_secs(60), "the background child held the output");
        let ProcessList { processes } = guest.guest().ask(&Processes {}).await.unwrap();
        assert!(processes.is_empty(), "{processes:?}");
    });
}

#[test]
fn a_terminal_has_a_size_that_changes_and_one_output() {
    with_sandbox(async |guest| {
        let mut terminal = shell("stty size; read line; stty size; tty >&2; echo \"got $line\"");
        terminal.tty = Some(WindowSize { rows: 24, cols: 80 });
        terminal.stdin = true;
        let process = guest.guest().exec(&terminal).unwrap();
        let out = process.stdout();
        assert_eq!(out.read().await.unwrap().unwrap(), b"24 80\r\n");
        let size = WindowSize { rows: 50, cols: 132 };
        let resize = Resize { process: terminal.process.clone(), size };
        guest.guest().ask(&resize).await.unwrap();
        let input = process.stdin();
        input.write(b"hello\n").await.unwrap();
        let rest = String::from_utf8(out.read_to_end().await.unwrap()).unwrap();
        assert!(rest.contains("50 132") && rest.contains("/dev/pts/"), "{rest}");
        assert!(rest.contains("got hello"), "{rest}");
        drop(input);
        assert_eq!(process.wait().await.unwrap().outcome, Outcome::Exited { code: 0 });
    });
}

#[test]
fn a_closed_input_ends_a_terminal_s_reader() {
    with_sandbox(async |guest| {
        let mut terminal = argv(&["cat"]);
        terminal.tty = Some(WindowSize { rows: 24, cols: 80 });
        terminal.stdin = true;
        let process = guest.guest().exec(&terminal).unwrap();
        let input = process.stdin();
        input.write(b"line\n").await.unwrap();
        input.finish();
        let out = process.stdout().read_to_end().await.unwrap();
        assert!(String::from_utf8_lossy(&out).contains("line"), "{out:?}");
        assert_eq!(process.wait().await.unwrap().outcome, Outcome::Exited { code: 0 });
    });
}

#[test]
fn dropping_a_call_kills_its_command() {
    with_sandbox(async |guest| {
        let process = guest.guest().exec(&shell("touch started; sleep 300")).unwrap();
        while sh(guest, "test -e /workspace/started").await.code() != Some(0) {}
        drop(process);
        for _ in 0..200 {
            let ProcessList { processes } = guest.guest().ask(&Processes {}).await.unwrap();
            if processes.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the command is still there");
    });
}

#[test]
fn a_machine_has_the_processors_that_were_asked_for() {
    let spec = SandboxSpec { cpus: Some(2), memory_mb: 512, ..SandboxSpec::default() };
    with_spec(&spec, async |guest| assert_eq!(sh(guest, "nproc").await.ok(), "2\n"));
}

#[test]
fn the_clock_is_the_host_s() {
    with_sandbox(async |guest| {
        let out = sh(guest, "date +%s").await.ok();
        let guest_time: i64 = out.trim().parse().unwrap();
        let host_time = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs()
            .cast_signed();
        assert!((guest_time - host_time).abs() <= 5, "{guest_time} and {host_time}");
    });
}
