//! What a sandbox changed in a directory of `-w`: it waits, is shown, applied in parts, merged,
//! held back, discarded. On the engine `process`, which needs no image; the first test on each
//! engine that works here.

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use support::{Call, Output, engines};
use tempfile::{TempDir, tempdir};

/// A directory to work on, and a place for our own.
struct Place {
    own: TempDir,
    work: PathBuf,
    engine: &'static str,
}

impl Place {
    fn new(engine: &'static str, files: &[(&str, &str)]) -> Self {
        let own = tempdir().unwrap();
        let work = own.path().join("work");
        fs::create_dir(&work).unwrap();
        let place = Self { own, work, engine };
        for (name, content) in files {
            place.write(name, content);
        }
        place
    }

    /// One where the engine `process` runs, or nothing.
    fn quick(files: &[(&str, &str)]) -> Option<Self> {
        engines().contains(&"process").then(|| Self::new("process", files))
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.work.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.work.join(name)).ok()
    }

    fn call(&self, arguments: &[&str]) -> Call {
        let call = Call::new(arguments)
            .private_in(self.own.path())
            .directory(&self.work)
            .env("SANDFORGE_ENGINE", self.engine)
            .env("SANDFORGE_MIN_ISOLATION", "process");
        // The images that there are: none is made for a test.
        match (self.engine, std::env::var_os("HOME")) {
            ("process", _) | (_, None) => call,
            (_, Some(home)) => call.env("XDG_CACHE_HOME", Path::new(&home).join(".cache")),
        }
    }

    fn run(&self, script: &str) -> Output {
        self.call(&["run", "-w", ".", script]).output()
    }

    fn ask(&self, arguments: &[&str]) -> Output {
        self.call(arguments).output()
    }

    fn shown(&self, arguments: &[&str]) -> String {
        String::from_utf8(self.ask(arguments).exits(0).stdout).unwrap()
    }

    /// Nothing of ours is beside the directory.
    #[track_caller]
    fn assert_clean(&self) {
        let beside = fs::read_dir(self.own.path()).unwrap();
        let names: Vec<_> = beside.map(|entry| entry.unwrap().file_name()).collect();
        let staged = names.iter().any(|name| name.to_string_lossy().starts_with(".sandforge-"));
        assert!(!staged, "{names:?}");
    }
}

#[test]
fn what_a_run_changed_waits_to_be_shown_and_applied_in_parts() {
    for engine in engines() {
        let files = [("src/a.rs", "one\ntwo\n"), ("gone", "x\n"), ("same", "s\n")];
        let place = Place::new(engine, &files);
        let said =
            place.run("printf 'one\\n2\\n' > src/a.rs; rm gone; mkdir d; echo n > d/new").exits(0);
        let said = said.says(": 2 created, 1 changed, 1 removed").says("sandforge apply sb-");
        assert_eq!(place.read("src/a.rs").as_deref(), Some("one\ntwo\n"), "{said}");

        assert_eq!(
            place.shown(&["diff", "src"]),
            "--- a/src/a.rs\n+++ b/src/a.rs\n@@ -1,2 +1,2 @@\n one\n-two\n+2\n"
        );
        assert_eq!(place.shown(&["diff", "--name-only"]), "d\nd/new\ngone\nsrc/a.rs\n");
        assert_eq!(
            place.shown(&["diff", "--stat"]),
            "created d/\ncreated d/new  +1 -0\nremoved gone  +0 -1\nchanged src/a.rs  +1 -1\n"
        );
        let diff = place.ask(&["diff", "--json", "gone"]).exits(0).json();
        assert_eq!(diff["changes"][0]["change"], json!("deleted"));

        place.ask(&["apply", "src", "d/*"]).exits(0).says("2 created, 1 changed, 0 removed");
        assert_eq!(place.read("src/a.rs").as_deref(), Some("one\n2\n"));
        assert_eq!(place.read("d/new").as_deref(), Some("n\n"));
        assert_eq!(place.read("gone").as_deref(), Some("x\n"), "it was not chosen");
        assert_eq!(place.shown(&["diff", "--name-only"]), "gone\n");
        place.ask(&["apply"]).exits(0);
        assert_eq!(place.read("gone"), None);
        place.ask(&["apply"]).exits(3).says("no changes of a sandbox wait for this directory");
        place.assert_clean();
    }
}

#[test]
fn a_run_that_changed_nothing_leaves_nothing_to_look_at() {
    let Some(place) = Place::quick(&[("a", "a\n")]) else { return };
    let output = place.run("cat a; touch a").exits(0).prints("a\n");
    assert!(!output.stderr.contains("apply"), "{output}");
    place.ask(&["diff"]).exits(3);
    assert_eq!(place.shown(&["diff", "--list"]), "");
}

#[test]
fn changes_are_discarded_by_the_directory_or_by_name() {
    let Some(place) = Place::quick(&[("a", "a\n")]) else { return };
    place.run("echo b > a").exits(0);
    assert!(place.shown(&["diff", "--list"]).contains(": 1 changed\n"));
    place.ask(&["discard"]).exits(0);
    place.ask(&["diff"]).exits(3);
    place.call(&["run", "--name", "first", "-w", ".", "echo b > a"]).output().exits(0);
    place.ask(&["discard", "nobody"]).exits(3).says("there is no sandbox \"nobody\"");
    assert!(place.shown(&["diff", "first"]).contains("+b\n"));
    place.ask(&["discard", "first"]).exits(0);
    place.ask(&["diff", "first"]).exits(3);
    assert_eq!(place.read("a").as_deref(), Some("a\n"));
}

#[test]
fn what_both_sides_changed_is_merged_or_held_back() {
    let lines = "1\n2\n3\n4\n5\n6\n7\n";
    let Some(place) = Place::quick(&[("merges", lines), ("fights", lines)]) else { return };
    place.run("sed -i s/7/seven/ merges; sed -i s/4/four/ fights").exits(0);
    place.write("merges", "one\n2\n3\n4\n5\n6\n7\n");
    place.write("fights", "1\n2\n3\nmine\n5\n6\n7\n");
    assert!(place.shown(&["diff", "--stat"]).contains("(changed here as well)"));

    let applied = place.ask(&["apply"]).exits(1);
    applied.says("1 changed (1 merged)").says("not applied: fights (changed): it was changed here");
    assert_eq!(place.read("merges").as_deref(), Some("one\n2\n3\n4\n5\n6\nseven\n"));
    assert_eq!(place.read("fights").as_deref(), Some("1\n2\n3\nmine\n5\n6\n7\n"));
    place.ask(&["apply", "--theirs", "fights"]).exits(0);
    assert_eq!(place.read("fights").as_deref(), Some("1\n2\n3\nfour\n5\n6\n7\n"));
}

#[test]
fn what_other_programs_would_run_is_shown_apart_and_applied_by_name_only() {
    let Some(place) = Place::quick(&[("a", "a\n"), (".envrc", "old\n")]) else { return };
    let script = "echo b > a; echo evil > .envrc; mkdir -p .vscode .claude; \
                  echo evil > .vscode/tasks.json; echo x > .claude/settings.json";
    place.run(script).exits(0).says("of them other programs would run");
    let shown = place.shown(&["diff"]);
    let (open, apart) = shown.split_once("Other programs would run these").unwrap();
    assert!(open.contains("b/a\n") && !open.contains("envrc"), "{shown}");
    assert!(apart.contains("b/.envrc") && apart.contains("b/.vscode/tasks.json"), "{shown}");
    place.ask(&["apply"]).exits(1).says("not applied: .envrc (changed)");
    assert_eq!(place.read("a").as_deref(), Some("b\n"));
    assert_eq!(place.read(".envrc").as_deref(), Some("old\n"));
    assert!(!place.work.join(".vscode").exists());
    place.ask(&["apply", "--allow-protected", ".vscode/tasks.json"]).exits(1);
    assert_eq!(place.read(".vscode/tasks.json").as_deref(), Some("evil\n"));
    assert!(!place.work.join(".claude").exists());
    assert_eq!(place.read(".envrc").as_deref(), Some("old\n"));
}

#[test]
fn what_git_ignores_is_counted_and_not_among_the_changes() {
    let Some(place) = Place::quick(&[(".gitignore", "target/\n"), ("target/mine", "m\n")]) else {
        return;
    };
    let script = "echo n > new; mkdir -p target/debug; head -c 5000 /dev/zero > target/debug/big";
    place.run(script).exits(0).says("1 created").says("2 new entries (4.8 KiB) that git ignores");
    assert_eq!(place.shown(&["diff", "--name-only"]), "new\n");
    place.call(&["run", "--ignored", "-w", ".", script]).output().exits(0).says("3 created");
    assert_eq!(place.shown(&["diff", "--name-only"]), "new\ntarget/debug\ntarget/debug/big\n");
}

#[test]
fn escapes_in_names_and_contents_are_made_visible_unless_they_are_wanted() {
    let Some(place) = Place::quick(&[("a", "a\n")]) else { return };
    place
        .run("printf 'x\\033]0;owned\\007\\n' > a; printf x > \"$(printf 'n\\033[2Jm')\"")
        .exits(0);
    let shown = place.shown(&["diff"]);
    assert!(shown.contains("+x^[]0;owned^G\n"), "{shown}");
    assert!(shown.contains("b/n\\u{1b}[2Jm\n"), "{shown}");
    assert!(!place.shown(&["diff", "--stat"]).contains('\x1b'));
    assert!(place.shown(&["diff", "--raw", "a"]).contains("+x\x1b]0;owned\x07\n"));
}

#[test]
fn a_patch_is_one_that_git_takes() {
    let Some(place) = Place::quick(&[("a", "1\n2\n"), ("gone", "g\n")]) else { return };
    place.run("echo 3 >> a; rm gone; echo n > new").exits(0);
    fs::write(place.own.path().join("patch"), place.shown(&["diff", "--raw"])).unwrap();
    let applied = std::process::Command::new("git")
        .args(["apply", "../patch"])
        .current_dir(&place.work)
        .env("GIT_CEILING_DIRECTORIES", place.own.path())
        .status();
    match applied {
        Err(error) => eprintln!("not run: there is no git here: {error}"),
        Ok(status) => {
            assert!(status.success());
            assert_eq!(place.read("a").as_deref(), Some("1\n2\n3\n"));
            assert_eq!((place.read("gone"), place.read("new").as_deref()), (None, Some("n\n")));
        }
    }
}

#[test]
fn links_that_lead_out_and_kinds_that_change_do_not_reach_further() {
    let Some(place) = Place::quick(&[("d/f", "f\n")]) else { return };
    let outside = place.own.path().join("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, place.work.join("out")).unwrap();
    place
        .run("rm out; mkdir out; echo evil > out/f; ln -s /etc/passwd evil; rm -r d; ln -s out d")
        .exits(0);
    place.ask(&["apply"]).exits(1).says("not applied: evil (created): the link leads out");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert_eq!(place.read("out/f").as_deref(), Some("evil\n"));
    assert_eq!(fs::read_link(place.work.join("d")).unwrap(), Path::new("out"));
    assert!(place.work.join("evil").symlink_metadata().is_err());
}

#[test]
fn two_workspaces_have_changes_of_their_own_and_one_to_read_has_none() {
    let Some(place) = Place::quick(&[("a", "a\n")]) else { return };
    let other = place.own.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("b"), "b\n").unwrap();
    let script = "echo A > a; echo B > /workspaces/other/b; touch /data/x 2>/dev/null || echo no";
    place
        .call(&["run", "-w", ".", "-w", "../other", "--mount", "../other:/data:review:ro", script])
        .output()
        .exits(0)
        .prints("no\n");
    assert_eq!(place.shown(&["diff", "--name-only"]), "a\n");
    place.call(&["apply"]).directory(&other).output().exits(0);
    assert_eq!(fs::read_to_string(other.join("b")).unwrap(), "B\n");
    assert_eq!(place.read("a").as_deref(), Some("a\n"));
    place.ask(&["apply"]).exits(0);
    assert_eq!(place.read("a").as_deref(), Some("A\n"));
}

#[test]
fn taking_changes_over_at_once_leaves_what_is_held_back_to_wait() {
    let Some(place) = Place::quick(&[("a", "a\n")]) else { return };
    let call = place.call(&["run", "-w", ".", "--sync-back", "echo b > a; echo evil > .envrc"]);
    call.output().exits(0).says("not applied: .envrc (created)");
    assert_eq!(place.read("a").as_deref(), Some("b\n"));
    assert_eq!(place.shown(&["diff", "--name-only"]), ".envrc\n");
}

#[test]
fn a_mode_stands_behind_a_directory_unless_a_directory_is_called_so() {
    let Some(place) = Place::quick(&[("a", "a\n")]) else { return };
    place
        .call(&["run", "-w", ".:clone", "true"])
        .output()
        .exits(125)
        .says("is not the top directory of a git repository");
    let named = place.own.path().join("work:clone");
    fs::create_dir(&named).unwrap();
    place.call(&["run", "-w", "../work:clone", "ls -A"]).output().exits(0).prints("");
}

/// Kills `apply` when it has begun to replace files. Whether it was in the middle.
fn killed_half_way(place: &Place, files: usize) -> bool {
    let mut child: Child = place.call(&["apply"]).spawn();
    let pid = Pid::from_child(&child);
    let first = place.work.join("f00000");
    while fs::read(&first).unwrap() == b"old\n" {
        assert!(child.try_wait().unwrap().is_none(), "it ended without applying");
    }
    kill_process(pid, Signal::KILL).unwrap();
    child.wait().unwrap();
    place.read(&format!("f{:05}", files - 1)).as_deref() == Some("old\n")
}

#[test]
fn an_apply_that_is_killed_half_way_loses_nothing_and_the_next_finishes() {
    const FILES: usize = 2500;
    let Some(place) = Place::quick(&[("gone/x", "x\n")]) else { return };
    let script = "for f in f*; do echo new > $f; done; rm -r gone; echo n > made";
    let mut was_half_way = false;
    for _ in 0..5 {
        for number in 0..FILES {
            place.write(&format!("f{number:05}"), "old\n");
        }
        place.write("gone/x", "x\n");
        let _ = fs::remove_file(place.work.join("made"));
        place.run(script).exits(0);
        was_half_way = killed_half_way(&place, FILES);
        if was_half_way {
            place.ask(&["discard"]).exits(1).says("interrupted");
            place.ask(&["diff", "--stat", "made"]).exits(0);
        }
        place.ask(&["apply"]).exits(0);
        for number in 0..FILES {
            assert_eq!(place.read(&format!("f{number:05}")).as_deref(), Some("new\n"), "{number}");
        }
        assert_eq!((place.read("gone/x"), place.read("made").as_deref()), (None, Some("n\n")));
        place.assert_clean();
        place.ask(&["diff"]).exits(3);
        if was_half_way {
            break;
        }
    }
    assert!(was_half_way, "no kill came in the middle");
}

#[test]
fn changes_of_a_sandbox_that_runs_are_looked_at_anew() {
    let Some(place) = Place::quick(&[("a", "1\n"), ("b", "b\n")]) else { return };
    let mut server = place.call(&["serve", "--listen", "none"]).spawn();
    let mut lines = BufReader::new(server.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("serving on /") {
        assert_ne!(lines.read_line(&mut said).unwrap(), 0, "it ended: {said}");
    }
    thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
    place.call(&["-q", "create", "--name", "box", "--mount", ".:/work:review"]).output().exits(0);
    let exec = |line: &str| place.call(&["-q", "exec", "box", line]).output().exits(0);
    place.ask(&["diff", "box"]).exits(3).says("box has no changes");
    exec("echo 2 > /work/a");
    assert!(place.shown(&["diff", "box"]).contains("-1\n+2\n"));
    exec("echo 3 > /work/a; chmod 600 /work/b");
    assert!(place.shown(&["diff"]).contains("-1\n+3\n"));
    assert!(place.shown(&["diff", "--stat", "box", "b"]).contains("mode 0644 -> 0600"));
    place.ask(&["apply", "box"]).exits(0);
    assert_eq!(place.read("a").as_deref(), Some("3\n"));
    let mode = fs::metadata(place.work.join("b")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // What was applied is no change any more, and what comes on top of it is one.
    place.ask(&["diff", "box"]).exits(3);
    exec("echo 4 > /work/a");
    assert!(place.shown(&["diff", "box"]).contains("+4\n"));
    place.ask(&["rm", "--all"]).exits(0);
    kill_process(Pid::from_child(&server), Signal::TERM).unwrap();
    server.wait().unwrap();
}
