//! A clone of a git repository in a guest, and what was committed to it.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;

use link::Guest;
use tempfile::NamedTempFile;
use wire::op::{Command, Exec, Mkdir, Outcome};
use wire::text::Text;
use workspace::{Bundle, Fetched, Repository, RepositoryError};

use crate::{Error, Observer, Phase, Step};

/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;
/// Longest bundle that is taken from a guest.
const MOST_BYTES: u64 = 8 << 30;
/// Longest complaint that is kept.
const MOST_SAID: usize = 4 << 10;

/// `$1` the directory, `$2` the branch or nothing, `$3` the commit, `$4` and `$5` who commits. The
/// host's branches are remembered as they were, so that only what is new comes back.
const CLONE: &str = r#"set -e
git init -q "$1"
cd "$1"
cat >.git/in.bundle
git fetch -q --update-head-ok .git/in.bundle '+refs/heads/*:refs/heads/*' '+refs/tags/*:refs/tags/*' '+refs/heads/*:refs/sandforge/base/*'
git fetch -q .git/in.bundle HEAD
rm .git/in.bundle .git/FETCH_HEAD
git update-ref refs/sandforge/base-HEAD "$3"
if [ -n "$2" ]; then
	git symbolic-ref HEAD "refs/heads/$2"
	git reset -q --hard
else
	git checkout -q --detach "$3"
fi
git config user.name "$4"
git config user.email "$5"
"#;

/// `$1` the directory. What was not committed, and commits of no branch, get branches of ours.
const BUNDLE: &str = r#"set -e
cd "$1"
if [ -n "$(git status --porcelain)" ]; then
	export GIT_INDEX_FILE=.git/sandforge-index
	cp .git/index "$GIT_INDEX_FILE" 2>/dev/null || true
	git add -A
	commit=$(git commit-tree "$(git write-tree)" -p HEAD -m 'What was not committed when the sandbox ended')
	unset GIT_INDEX_FILE
	git update-ref refs/heads/sandforge-uncommitted "$commit"
fi
git symbolic-ref -q HEAD >/dev/null || git update-ref refs/heads/sandforge-detached HEAD
new=$(git rev-list -n 1 --branches --not --glob='refs/sandforge/*')
if [ -n "$new" ]; then
	git bundle create -q - --branches --not --glob='refs/sandforge/*'
fi
"#;

fn failed(source: &RepositoryError) -> Error {
    Error::Clone(source.to_string())
}

/// Makes a clone at `target` in the guest.
pub(crate) async fn clone_in(
    guest: &Guest,
    directory: &Path,
    target: &str,
    observer: &mut dyn Observer,
) -> Result<(), Error> {
    let directory = directory.to_owned();
    let made = move || Repository::open(&directory)?.bundle();
    let Bundle { mut file, bytes, branch, tip, author } =
        blocking(made).await?.map_err(|error| failed(&error))?;
    let text = |value: &str| Text::new(value).map_err(|error| Error::Clone(error.to_string()));
    guest.ask(&Mkdir::to_fill(text(target)?, true)).await.map_err(Error::Guest)?;
    let (name, address) =
        author.unwrap_or_else(|| ("Sandforge".into(), "sandforge@localhost".into()));
    let branch = branch.unwrap_or_default();
    let words = [target, &branch, &tip, &name, &address];
    let exec = Exec { stdin: true, ..script("clone-in", CLONE, &words)? };
    let process = guest.exec(&exec).map_err(Error::Guest)?;
    let input = process.stdin();
    let said = process.stderr().await.map_err(Error::Guest)?;
    let mut chunk = vec![0; CHUNK];
    let mut done = 0;
    loop {
        let count = file.read(&mut chunk).map_err(|error| Error::Clone(error.to_string()))?;
        // One that does not read any more says below why.
        if count == 0 || input.write(&chunk[..count]).await.is_err() {
            break;
        }
        done += count as u64;
        observer.step(Step { phase: Phase::CopyIn, done, total: Some(bytes) });
    }
    input.finish();
    ended(process, said).await
}

/// Brings what was committed to the clone at `source` to the repository in `directory`, below
/// `refs/sandforge/NAME`.
pub(crate) async fn fetch_back(
    guest: &Guest,
    source: &str,
    directory: &Path,
    name: &str,
    observer: &mut dyn Observer,
) -> Result<Vec<Fetched>, Error> {
    let broken = |error: std::io::Error| Error::Clone(format!("keep a bundle: {error}"));
    let kept = NamedTempFile::new().map_err(broken)?;
    let mut file: &File = kept.as_file();
    let process = guest.exec(&script("clone-out", BUNDLE, &[source])?).map_err(Error::Guest)?;
    let said = process.stderr().await.map_err(Error::Guest)?;
    let output = process.stdout();
    let mut done = 0;
    while let Some(chunk) = output.read().await.map_err(Error::Guest)? {
        done += chunk.len() as u64;
        if done > MOST_BYTES {
            return Err(Error::Clone(format!(
                "what it committed is longer than {MOST_BYTES} bytes"
            )));
        }
        file.write_all(&chunk).map_err(broken)?;
        observer.step(Step { phase: Phase::CopyOut, done, total: None });
    }
    ended(process, said).await?;
    if done == 0 {
        return Ok(Vec::new());
    }
    let (directory, name) = (directory.to_owned(), name.to_owned());
    let fetch = move || Repository::open(&directory)?.fetch(kept.path(), &name);
    blocking(fetch).await?.map_err(|error| failed(&error))
}

fn script(process: &str, script: &str, words: &[&str]) -> Result<Exec, Error> {
    let shell = ["/bin/sh", "-c", script, "sh"];
    let words = shell.iter().chain(words).map(|word| Text::new(*word)).collect::<Result<_, _>>();
    let words = words.map_err(|error| Error::Clone(error.to_string()))?;
    Ok(Exec::new(process, Command::Argv(words)))
}

async fn ended(process: link::Process<Exec>, said: Option<link::Output>) -> Result<(), Error> {
    let mut words = Vec::new();
    if let Some(said) = said {
        while let Some(chunk) = said.read().await.map_err(Error::Guest)? {
            words.extend(chunk);
            words.truncate(MOST_SAID);
        }
    }
    let reply = process.wait().await.map_err(Error::Guest)?;
    match reply.outcome {
        Outcome::Exited { code: 0 } => Ok(()),
        Outcome::Exited { code: 127 } => {
            Err(Error::Clone("there is no git in the sandbox: take an image that has it".into()))
        }
        outcome => {
            let words = String::from_utf8_lossy(&words).trim().to_owned();
            Err(Error::Clone(format!("git in the sandbox: {outcome:?}: {words}")))
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::Internal(error.to_string()))
}
