//! How machines end, and what is left of them.

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use supervisor::wire::op::Shutdown;
use supervisor::{LinkError, Sandbox};

use crate::support::{block_on, engines, shell, spec_of, supervisor};

const PATIENCE: Duration = Duration::from_secs(60);

async fn guest(engine: &str) -> Sandbox {
    supervisor().create(spec_of(engine), &mut ()).await.expect("a guest")
}

fn process(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

#[test]
fn a_guest_that_is_told_to_stop_ends_its_machine() {
    for engine in engines() {
        block_on(async {
            let mut guest = guest(engine).await;
            let monitor = guest.monitor_pid().unwrap();
            // The answer may be lost with the machine.
            let _ = guest.guest().ask(&Shutdown {}).await;
            let end = tokio::time::timeout(PATIENCE, guest.ended()).await.expect("an end");
            assert!(end.contains("the guest stopped"), "{end}");
            drop(guest);
            assert!(!process(monitor).exists(), "the monitor is still there");
        });
    }
}

#[test]
fn a_monitor_that_is_killed_takes_its_guest_along() {
    for engine in engines() {
        block_on(async {
            let mut guest = guest(engine).await;
            let command = guest.guest().exec(&shell("echo begun; sleep 1000")).unwrap();
            assert_eq!(command.stdout().read().await.unwrap().unwrap(), b"begun\n");
            let monitor = guest.monitor_pid().unwrap();
            let pid = Pid::from_raw(monitor.try_into().unwrap()).unwrap();
            kill_process(pid, Signal::KILL).unwrap();
            let lost = tokio::time::timeout(PATIENCE, command.wait()).await.expect("an end");
            assert!(matches!(lost, Err(LinkError::Disconnected(_))), "{lost:?}");
            let end = tokio::time::timeout(PATIENCE, guest.ended()).await.expect("an end");
            assert!(end.contains("monitor ended"), "{end}");
            drop(guest);
            assert!(!process(monitor).exists(), "the monitor is still there");
        });
    }
}

const ALONE: &str = "SANDFORGE_TEST_ALONE";

#[test]
fn machines_one_after_another_leave_no_descriptor_behind() {
    // In a process of its own: the tests beside this one open descriptors too.
    if std::env::var_os(ALONE).is_none() {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "end::machines_one_after_another_leave_no_descriptor_behind"])
            .args(["--nocapture", "--test-threads", "1"])
            .env(ALONE, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    for engine in engines() {
        let cycle = || block_on(async { guest(engine).await.destroy().await.expect("its end") });
        cycle();
        let before = open();
        cycle();
        assert!(open() <= before, "{} descriptors were open, and {} are", before, open());
    }
}
