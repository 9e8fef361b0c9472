//! Bundles that nobody vouches for.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::{TempDir, tempdir};
use workspace::{Repository, RepositoryError};

fn git(directory: &Path, arguments: &[&str], input: &[u8]) -> String {
    let mut child = Command::new("git")
        .current_dir(directory)
        .args(["-c", "user.name=a", "-c", "user.email=a@b"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{arguments:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn repository() -> TempDir {
    let directory = tempdir().unwrap();
    git(directory.path(), &["init", "-q", "-b", "trunk"], b"");
    fs::write(directory.path().join("file"), "x").unwrap();
    git(directory.path(), &["add", "file"], b"");
    git(directory.path(), &["commit", "-qm", "begin"], b"");
    directory
}

fn references(directory: &Path) -> String {
    git(directory, &["for-each-ref", "--format=%(refname)", "refs/sandforge"], b"")
}

#[test]
fn garbage_is_refused_and_leaves_nothing() {
    let own = repository();
    let bundle = own.path().join("bundle");
    for content in [&b""[..], b"# v2 git bundle\n", b"# v3 git bundle\n@evil=1\n\nPACK", &[0; 4096]]
    {
        fs::write(&bundle, content).unwrap();
        let fetched = Repository::open(own.path()).unwrap().fetch(&bundle, "box");
        assert!(matches!(fetched, Err(RepositoryError::Git { .. })) || fetched.unwrap().is_empty());
    }
    assert_eq!(references(own.path()), "");
}

#[test]
fn a_tree_that_would_write_into_git_s_own_directory_is_refused() {
    let (own, theirs) = (repository(), repository());
    let theirs = theirs.path();
    let blob =
        git(theirs, &["hash-object", "-w", "--stdin"], b"[core]\n\tfsmonitor = touch /tmp/x\n");
    let mut tree = b"100644 config\0".to_vec();
    tree.extend((0..20).map(|at| u8::from_str_radix(&blob[2 * at..2 * at + 2], 16).unwrap()));
    let inner = git(theirs, &["hash-object", "-t", "tree", "-w", "--literally", "--stdin"], &tree);
    let mut tree = b"40000 .git\0".to_vec();
    tree.extend((0..20).map(|at| u8::from_str_radix(&inner[2 * at..2 * at + 2], 16).unwrap()));
    let outer = git(theirs, &["hash-object", "-t", "tree", "-w", "--literally", "--stdin"], &tree);
    let commit = git(theirs, &["commit-tree", &outer, "-m", "evil"], b"");
    git(theirs, &["update-ref", "refs/heads/evil", &commit], b"");
    git(theirs, &["bundle", "create", "-q", "bundle", "--branches"], b"");
    let fetched = Repository::open(own.path()).unwrap().fetch(&theirs.join("bundle"), "box");
    let Err(RepositoryError::Git { said, .. }) = fetched else { panic!("it was taken") };
    assert!(said.contains(".git"), "{said}");
    assert_eq!(references(own.path()), "");
}

#[test]
fn only_the_top_of_a_repository_with_a_commit_is_cloned() {
    let own = repository();
    let below = own.path().join("below");
    fs::create_dir(&below).unwrap();
    assert!(matches!(Repository::open(&below), Err(RepositoryError::None { .. })));
    assert!(matches!(
        Repository::open(tempdir().unwrap().path()),
        Err(RepositoryError::None { .. })
    ));
    let empty = tempdir().unwrap();
    git(empty.path(), &["init", "-q"], b"");
    let bundled = Repository::open(empty.path()).unwrap().bundle();
    assert!(matches!(bundled, Err(RepositoryError::Empty(_))));
}
