//! Directories of the host that guests work in as they are.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use supervisor::share::{Options, Rules};
use supervisor::{Error, LinkError, Sandbox};

use crate::support::{run, shell, with_guest, with_process};

/// Longer than a notice takes, and shorter than the guest believes what it was told.
const PATIENCE: Duration = Duration::from_secs(60);

fn open(path: &Path) -> OwnedFd {
    fs::File::open(path).unwrap().into()
}

async fn sh(guest: &Sandbox, line: &str) -> String {
    run(guest, shell(line)).await.ok()
}

async fn share(guest: &Sandbox, directory: &Path, options: Options) {
    let lacks = guest.share(open(directory), "/workspace", options).await.unwrap();
    if let Some(lacks) = lacks {
        eprintln!("{lacks}");
    }
}

#[derive(Debug)]
struct Ruled;

impl Rules for Ruled {
    fn hides(&self, path: &Path) -> bool {
        path.file_name().is_some_and(|name| name == ".env")
    }

    fn protects(&self, path: &Path, is_directory: bool) -> bool {
        supervisor::is_protected_path(path, is_directory)
    }
}

#[test]
fn what_the_guest_changes_the_host_has_and_the_other_way_round() {
    with_guest(async |guest| {
        let host = tempfile::tempdir().unwrap();
        fs::write(host.path().join("from-host"), "one\n").unwrap();
        share(guest, host.path(), Options::default()).await;
        assert_eq!(
            sh(guest, "cat /workspace/from-host; stat -c %u /workspace").await,
            "one\n1000\n"
        );
        let work = "cd /workspace && mkdir -p a/b && echo two >a/b/new && ln -s b/new a/link \
                    && chmod 700 a/b/new && mv from-host renamed && cat a/link";
        assert_eq!(sh(guest, work).await, "two\n");
        assert_eq!(fs::read_to_string(host.path().join("a/b/new")).unwrap(), "two\n");
        assert!(!host.path().join("from-host").exists());
        let big = "head -c 5000000 /dev/zero | tr '\\0' x >/workspace/big && wc -c </workspace/big";
        assert_eq!(sh(guest, big).await, "5000000\n");
        assert_eq!(fs::metadata(host.path().join("big")).unwrap().len(), 5_000_000);
    });
}

#[test]
fn the_host_s_changes_are_seen_by_a_task_that_looked_before() {
    with_guest(async |guest| {
        let host = tempfile::tempdir().unwrap();
        fs::write(host.path().join("file"), "before").unwrap();
        fs::write(host.path().join("gone"), "").unwrap();
        share(guest, host.path(), Options::default()).await;
        // Looked at, and remembered, by a task that goes on.
        let wait = "cd /workspace; cat file; ls -la >/dev/null; test ! -e new; touch /workspace/ready; \
                    while test ! -e new || test -e gone || ! grep -q after file; do sleep 0.1; done; \
                    cat file new";
        let begun = Instant::now();
        let change = async {
            while !host.path().join("ready").exists() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            fs::write(host.path().join("file"), "after").unwrap();
            fs::write(host.path().join("new"), "new").unwrap();
            fs::remove_file(host.path().join("gone")).unwrap();
        };
        let (seen, ()) = tokio::join!(sh(guest, wait), change);
        assert_eq!(seen, "beforeafternew");
        assert!(begun.elapsed() < PATIENCE);
    });
}

#[test]
fn read_only_holds_whatever_root_does_in_the_guest() {
    with_guest(async |guest| {
        let host = tempfile::tempdir().unwrap();
        fs::write(host.path().join("file"), "host").unwrap();
        share(guest, host.path(), Options { read_only: true, ..Options::default() }).await;
        let mut attack = shell(
            "cd /workspace; mount -o remount,rw /workspace; echo x >file; rm -f file; mkdir d; \
             chmod 777 file; truncate -s 0 file; cat file",
        );
        attack.user = Some("root".into());
        let ran = run(guest, attack).await;
        assert_eq!(ran.stdout, "host", "{}", ran.stderr);
        assert_eq!(fs::read_to_string(host.path().join("file")).unwrap(), "host");
        assert_eq!(fs::read_dir(host.path()).unwrap().count(), 1);
    });
}

#[test]
fn what_is_masked_is_empty_and_what_is_protected_stays() {
    with_guest(async |guest| {
        let host = tempfile::tempdir().unwrap();
        fs::create_dir_all(host.path().join(".git/hooks")).unwrap();
        fs::write(host.path().join(".git/config"), "[core]\n").unwrap();
        fs::write(host.path().join(".env"), "TOKEN=secret").unwrap();
        let options = Options { rules: Arc::new(Ruled), ..Options::default() };
        share(guest, host.path(), options).await;
        assert_eq!(
            sh(guest, "cd /workspace; cat .env; stat -c %s .env; cat .git/config").await,
            "0\n[core]\n"
        );
        let attack = "cd /workspace; mv .env seen; ln .env seen; echo x >.git/hooks/pre-commit; \
                      echo x >>.git/config; mv .git g; rm -rf .git/config; cat seen";
        let ran = run(guest, shell(attack)).await;
        assert_eq!(ran.stdout, "", "{}", ran.stderr);
        assert_eq!(fs::read_to_string(host.path().join(".git/config")).unwrap(), "[core]\n");
        assert_eq!(fs::read_dir(host.path().join(".git/hooks")).unwrap().count(), 0);
        assert_eq!(fs::read_to_string(host.path().join(".env")).unwrap(), "TOKEN=secret");
        assert!(!host.path().join("seen").exists());
    });
}

#[test]
fn a_directory_that_is_taken_away_is_gone_for_running_tasks_too() {
    with_guest(async |guest| {
        let host = tempfile::tempdir().unwrap();
        fs::write(host.path().join("file"), "x").unwrap();
        share(guest, host.path(), Options::default()).await;
        let wait = "cd /workspace; touch ready; while cat file >/dev/null 2>&1; do sleep 0.1; done";
        let take = async {
            while !host.path().join("ready").exists() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            guest.unshare("/workspace").await.unwrap();
        };
        tokio::join!(sh(guest, wait), take);
        assert_eq!(sh(guest, "ls /workspace").await, "");
        assert!(matches!(guest.unshare("/workspace").await, Err(Error::Request(_))));
        // And it can be given again.
        share(guest, host.path(), Options::default()).await;
        assert_eq!(sh(guest, "cat /workspace/file").await, "x");
    });
}

#[test]
fn a_sandbox_on_the_host_s_kernel_is_told_that_it_cannot_have_one() {
    with_process(async |sandbox| {
        let host = tempfile::tempdir().unwrap();
        let refused = sandbox.share(open(host.path()), "/workspace", Options::default()).await;
        let Err(Error::Guest(LinkError::Operation(error))) = refused else { panic!("{refused:?}") };
        assert!(error.message.contains("kernel of its own"), "{error}");
    });
}
