//! What the agent accepts, and from whom.

use std::time::Duration;

use supervisor::SandboxSpec;
use supervisor::wire::op::{GuestInfo, Info};

use crate::support::{env, run, sh, shell, supervisor, with_guest};

#[test]
fn the_guest_says_what_it_is() {
    with_guest(async |guest| {
        let info: GuestInfo = guest.guest().ask(&Info {}).await.unwrap();
        assert_eq!(info.agent, env!("CARGO_PKG_VERSION"));
        assert!(info.landlock_abi >= 6, "{info:?}");
        assert!(info.memory_bytes > 400 << 20 && info.memory_bytes <= 512 << 20, "{info:?}");
    });
}

#[test]
fn an_empty_exchange_is_answered() {
    with_guest(async |guest| {
        assert!(guest.guest().ping().await.unwrap() < Duration::from_secs(10));
    });
}

#[test]
fn two_guests_draw_different_random_numbers() {
    let draw = || {
        let mut drawn = String::new();
        with_guest(async |guest| drawn = sh(guest, "head -c 16 /dev/urandom | base64").await.ok());
        drawn
    };
    assert_ne!(draw(), draw());
}

/// The canary is looked for wherever a careless step would leave it.
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
        min_isolation: supervisor::Isolation::Vm,
        engine: Some("qemu".into()),
        ..SandboxSpec::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let error = runtime.block_on(supervisor().create(spec, &mut ())).unwrap_err();
    assert_eq!(error.kind(), supervisor::ErrorKind::Policy, "{error}");
}
