//! `-w DIR:clone`: a sandbox works on a clone, and what it commits comes back below
//! `refs/sandforge/` and nowhere else.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{Call, Output, engines};
use tempfile::{TempDir, tempdir};

struct Repository {
    own: TempDir,
    work: PathBuf,
}

impl Repository {
    /// One with a commit of these files.
    fn new(files: &[(&str, &str)]) -> Self {
        let own = tempdir().unwrap();
        let work = own.path().join("work");
        fs::create_dir(&work).unwrap();
        let this = Self { own, work };
        this.git(&["init", "-q", "-b", "trunk"]);
        this.git(&["config", "user.name", "A. Person"]);
        this.git(&["config", "user.email", "person@example.org"]);
        for (name, content) in files {
            fs::write(this.work.join(name), content).unwrap();
        }
        this.git(&["add", "-A", "-f"]);
        this.git(&["commit", "-qm", "begin"]);
        this
    }

    fn git(&self, arguments: &[&str]) -> String {
        let output = Command::new("git").current_dir(&self.work).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn run(&self, engine: &str, name: &str, script: &str) -> Output {
        let call = Call::new(["run", "--name", name, "-w", ".:clone", script])
            .private_in(self.own.path())
            .directory(&self.work)
            .env("SANDFORGE_ENGINE", engine)
            .env("SANDFORGE_MIN_ISOLATION", "process");
        let home = std::env::var_os("HOME").filter(|_| engine != "process");
        match home {
            Some(home) => call.env("XDG_CACHE_HOME", Path::new(&home).join(".cache")).output(),
            None => call.output(),
        }
    }
}

#[test]
fn what_is_committed_to_a_clone_comes_back_as_references() {
    for engine in engines() {
        let repository = Repository::new(&[("file", "one\n")]);
        fs::write(repository.work.join("draft"), "not committed\n").unwrap();
        let hook = repository.work.join(".git/hooks/reference-transaction");
        fs::write(&hook, "#!/bin/sh\ntouch ../ran\n").unwrap();
        fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let script = "set -e; ls; git log -1 --format='%an <%ae>'; git branch --show-current
            echo two >> file; git commit -qam 'by the agent'
            git checkout -qb other; echo x > new; git add new; git commit -qm other
            echo left > left; echo '[core]' >> .git/config";
        let ran = repository.run(engine, "box", script).exits(0);
        let ran = ran.prints("file\nA. Person <person@example.org>\ntrunk\n");
        ran.says("refs/sandforge/box/trunk: 1 commits; git merge refs/sandforge/box/trunk");

        assert_eq!(fs::read_to_string(repository.work.join("file")).unwrap(), "one\n");
        assert_eq!(repository.git(&["status", "--porcelain"]), "?? draft\n");
        assert_eq!(repository.git(&["branch", "--format=%(refname)"]), "refs/heads/trunk\n");
        assert_eq!(
            repository.git(&["for-each-ref", "--format=%(refname) %(subject)", "refs/sandforge"]),
            "refs/sandforge/box/other other\n\
             refs/sandforge/box/sandforge-uncommitted What was not committed when the sandbox ended\n\
             refs/sandforge/box/trunk by the agent\n"
        );
        let left = repository.git(&["show", "refs/sandforge/box/sandforge-uncommitted:left"]);
        assert_eq!(left, "left\n");
        assert!(!repository.own.path().join("ran").exists(), "a hook ran");
        repository.git(&[
            "-c",
            "core.hooksPath=/dev/null",
            "merge",
            "-q",
            "refs/sandforge/box/other",
        ]);
        assert!(repository.work.join("new").exists());
    }
}

#[test]
fn a_clone_that_was_left_alone_leaves_no_reference() {
    if !engines().contains(&"process") {
        return;
    }
    let repository = Repository::new(&[("file", "one\n")]);
    repository.git(&["checkout", "-q", "--detach"]);
    repository.run("process", "box", "cat file").exits(0).prints("one\n");
    assert_eq!(repository.git(&["for-each-ref", "refs/sandforge"]), "");
    repository.run("process", "box", "echo x > file; git commit -qam detached").exits(0);
    assert_eq!(
        repository.git(&["for-each-ref", "--format=%(refname)", "refs/sandforge"]),
        "refs/sandforge/box/sandforge-detached\n"
    );
}

#[test]
fn what_cannot_be_cloned_is_said_before_the_command_runs() {
    if !engines().contains(&"process") {
        return;
    }
    let repository = Repository::new(&[("file", "x"), (".env", "KEY=value\n")]);
    repository.run("process", "a", "cat .env").exits(126).says(".env").says("without :clone");
    let inner = Repository::new(&[("file", "x")]);
    let below = Repository { work: inner.work.join("below"), own: inner.own };
    fs::create_dir(&below.work).unwrap();
    below.run("process", "b", "true").exits(125).says("is not the top directory");
    fs::remove_dir_all(inner.work.join(".git")).unwrap();
    below.run("process", "c", "true").exits(125).says("not a git repository");
}
