//! The task sandbox, from inside a guest: what a task cannot do.

use supervisor::Sandbox;
use supervisor::wire::op::{Exec, Limits, Outcome};
use supervisor::wire::text::Text;

use crate::support::{run, sh, shell, with_guest, with_sandbox};

/// The same line as the ordinary user and as the sandbox's root.
fn both(line: &str) -> [Exec; 2] {
    let mut as_root = shell(line);
    as_root.user = Some(Text::from("root"));
    [shell(line), as_root]
}

async fn neither_prints(guest: &Sandbox, line: &str, forbidden: &str) {
    for exec in both(line) {
        let user = exec.user.clone();
        let ran = run(guest, exec).await;
        assert!(!ran.stdout.contains(forbidden), "{user:?}: {ran:?}");
    }
}

/// Runs Python that has to end with the named error.
async fn python_fails_with(guest: &Sandbox, code: &str, error: &str) {
    for exec in both(&format!("python3 - <<'EOF'\n{code}\nEOF")) {
        let user = exec.user.clone();
        let ran = run(guest, exec).await;
        assert!(ran.code() == Some(1) && ran.stderr.contains(error), "{user:?}: {ran:?}");
    }
}

#[test]
fn a_task_sees_its_own_processes_alone() {
    with_sandbox(async |guest| {
        let mut other = shell("exec sleep 3333");
        other.process = "other".into();
        other.detach = true;
        guest.guest().ask(&other).await.unwrap();
        neither_prints(guest, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '", "3333").await;
        let count = sh(guest, "ls -d /proc/[0-9]* | wc -l").await.ok();
        assert!(count.trim().parse::<u32>().unwrap() <= 4, "{count}");
    });
}

#[test]
fn a_task_s_tmp_is_its_own() {
    with_sandbox(async |guest| {
        let mut other =
            shell("echo private > /tmp/secret; echo ready > /workspace/ready; sleep 300");
        other.process = "other".into();
        other.detach = true;
        guest.guest().ask(&other).await.unwrap();
        while sh(guest, "test -s /workspace/ready").await.code() != Some(0) {}
        for exec in both("ls -A /tmp /var/tmp/secret 2>/dev/null") {
            assert!(!run(guest, exec).await.stdout.contains("secret"));
        }
    });
}

#[test]
fn vsock_is_out_of_reach() {
    with_sandbox(async |guest| {
        let code = "import socket; socket.socket(40, socket.SOCK_STREAM)";
        python_fails_with(guest, code, "Error").await;
    });
}

#[test]
fn the_carrier_and_the_disk_are_out_of_reach() {
    with_sandbox(async |guest| {
        neither_prints(guest, "ls /dev", "vport").await;
        neither_prints(guest, "ls /dev", "vda").await;
        for exec in both("mknod /tmp/port c 248 1 && cat /tmp/port") {
            assert_ne!(run(guest, exec).await.code(), Some(0));
        }
    });
}

#[test]
fn mounting_is_denied() {
    with_sandbox(async |guest| {
        for line in [
            "mount -t tmpfs none /mnt",
            "mount --bind /etc /mnt",
            "mount -o remount,rw /sys",
            "unshare -m true",
            "unshare -U true",
        ] {
            for exec in both(line) {
                assert_ne!(run(guest, exec).await.code(), Some(0), "{line}");
            }
        }
    });
}

#[test]
fn dangerous_system_calls_are_denied() {
    with_sandbox(async |guest| {
        // bpf, keyctl, userfaultfd, io_uring_setup, perf_event_open, open_by_handle_at, kexec_load,
        // init_module, mount_setattr, fsopen.
        for call in [321, 250, 323, 425, 298, 304, 246, 175, 442, 430] {
            let code = format!(
                "import ctypes,os,sys\nl=ctypes.CDLL(None,use_errno=True)\n\
                 r=l.syscall({call},0,0,0,0,0)\ne=ctypes.get_errno()\n\
                 sys.exit('denied-Error' if r<0 and e in (1,38) else 0)"
            );
            python_fails_with(guest, &code, "denied-Error").await;
        }
    });
}

#[test]
fn privileges_are_gone_for_good() {
    with_sandbox(async |guest| {
        let status = sh(guest, "cat /proc/self/status").await.ok();
        for line in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"] {
            assert!(status.contains(line), "{status}");
        }
        assert_ne!(sh(guest, "su root -c id </dev/null").await.code(), Some(0));
    });
}

#[test]
fn kernel_settings_are_read_only_even_for_root() {
    with_sandbox(async |guest| {
        for exec in both(
            "for f in /proc/sys/kernel/core_pattern /proc/sys/vm/overcommit_memory \
             /proc/sysrq-trigger /sys/kernel/mm/transparent_hugepage/enabled; do \
             echo 1 > $f && echo WROTE $f; done; true",
        ) {
            let ran = run(guest, exec).await;
            assert!(!ran.stdout.contains("WROTE"), "{ran:?}");
        }
    });
}

/// A guest's alone: without a control group a task is refused memory, and not killed.
#[test]
fn a_task_beyond_its_memory_is_told_so() {
    with_guest(async |guest| {
        let mut hungry = shell("python3 -c 'x = bytearray(300 << 20)'");
        hungry.limits = Limits { memory_bytes: Some(64 << 20), ..Limits::default() };
        let ran = run(guest, hungry).await;
        assert_eq!(ran.outcome, Outcome::OutOfMemory { limit_bytes: Some(64 << 20) });
        assert_eq!(sh(guest, "echo alive").await.ok(), "alive\n");
    });
}

#[test]
fn a_task_beyond_the_guest_s_memory_leaves_the_agent_alive() {
    with_sandbox(async |guest| {
        let ran = sh(guest, "python3 -c 'x = bytearray(2000 << 20)'").await;
        assert!(
            matches!(ran.outcome, Outcome::OutOfMemory { .. })
                || ran.stderr.contains("MemoryError"),
            "{ran:?}"
        );
        let ran = sh(guest, "head -c 2000000000 /dev/zero > /workspace/big").await;
        assert!(ran.code() == Some(1) && ran.stderr.contains("No space left"), "{ran:?}");
        assert_eq!(sh(guest, "rm -f /workspace/big; echo alive").await.ok(), "alive\n");
    });
}

/// Files in memory cannot be killed, so whatever else there is goes first.
#[test]
fn a_task_that_fills_the_memory_with_files_leaves_the_next_one_alone() {
    with_sandbox(async |guest| {
        let fill =
            "head -c 1000000000 /dev/zero > /tmp/a; head -c 1000000000 /dev/zero > /dev/shm/b";
        let ran = sh(guest, fill).await;
        assert_ne!(ran.code(), Some(0), "{ran:?}");
        for _ in 0..3 {
            assert_eq!(sh(guest, "echo alive").await.ok(), "alive\n");
        }
    });
}

#[test]
fn a_fork_bomb_is_contained() {
    with_sandbox(async |guest| {
        let mut bomb = shell("bomb() { bomb | bomb & }; bomb; sleep 2; echo survived");
        bomb.limits.pids = 50;
        bomb.timeout_ms = Some(10_000);
        bomb.kill_grace_ms = 100;
        run(guest, bomb).await;
        assert_eq!(sh(guest, "echo alive").await.ok(), "alive\n");
    });
}

#[test]
fn the_agent_cannot_be_killed() {
    with_sandbox(async |guest| {
        for exec in both("kill -9 1; kill -9 -1; sleep 0.1; true") {
            run(guest, exec).await;
        }
        assert_eq!(sh(guest, "echo alive").await.ok(), "alive\n");
    });
}

#[test]
fn the_agent_is_not_to_be_seen() {
    with_sandbox(async |guest| {
        neither_prints(guest, "ls -d /init /run/sandforge 2>/dev/null", "/").await;
        neither_prints(guest, "ls -l /proc/*/exe 2>/dev/null", "/init").await;
    });
}

#[test]
fn there_is_no_network_but_loopback() {
    with_sandbox(async |guest| {
        let out = sh(guest, "cat /proc/net/dev | tail -n +3 | cut -d: -f1 | tr -d ' '").await.ok();
        assert_eq!(out, "lo\n");
        let code = "import socket; socket.create_connection(('192.0.2.1', 80), 5)";
        python_fails_with(guest, code, "Error").await;
        for exec in both(
            "ip link set lo down || python3 -c 'import socket; \
                          socket.socket(socket.AF_PACKET, socket.SOCK_RAW)'",
        ) {
            assert_ne!(run(guest, exec).await.code(), Some(0));
        }
    });
}

/// A guest's alone: on a host `/etc` is the host's, and read-only.
#[test]
fn the_image_is_unchanged_by_what_a_task_writes() {
    with_guest(async |guest| {
        let mut as_root = shell("echo changed > /etc/issue && cat /etc/issue");
        as_root.user = Some(Text::from("root"));
        assert_eq!(run(guest, as_root).await.ok(), "changed\n");
    });
    with_guest(async |guest| {
        assert_ne!(sh(guest, "cat /etc/issue").await.ok(), "changed\n");
    });
}
