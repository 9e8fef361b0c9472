//! A git repository of the host's, and what a guest commits to a clone of it.
//!
//! Both ways it is a bundle: a file of objects and references, without configuration and without
//! hooks. What comes back goes below `refs/sandforge/` and nowhere else: no branch, no index and no
//! file of the work tree changes. Objects are checked as git checks what it fetches from strangers.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where what guests commit is kept.
const REFERENCES: &str = "refs/sandforge";
/// More of what git says would hide the rest.
const MOST_SAID: usize = 2000;

/// Why there is no clone, or nothing comes back from one.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// There is no git here.
    #[error("cannot start git: {0}; :clone needs it here and in the sandbox")]
    Start(io::Error),
    /// It is not the top of a repository.
    #[error("{} is not the top directory of a git repository; {hint}", .directory.display())]
    None {
        /// What was given.
        directory: PathBuf,
        /// What to do.
        hint: String,
    },
    /// There is nothing to clone.
    #[error("the repository {} has no commit yet", .0.display())]
    Empty(PathBuf),
    /// Git failed.
    #[error("git {what} failed: {said}")]
    Git {
        /// Which command.
        what: &'static str,
        /// Its words.
        said: String,
    },
    /// A file for the bundle cannot be had.
    #[error("cannot keep a bundle: {0}")]
    Io(#[from] io::Error),
}

/// A repository.
#[derive(Debug)]
pub struct Repository {
    directory: PathBuf,
}

/// What a clone is made of.
#[derive(Debug)]
pub struct Bundle {
    /// All branches and tags, read from the beginning.
    pub file: File,
    /// Its length.
    pub bytes: u64,
    /// The branch that is checked out; none where that is a commit.
    pub branch: Option<String>,
    /// The commit that is checked out.
    pub tip: String,
    /// Who commits here: name and address.
    pub author: Option<(String, String)>,
}

/// A branch that came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Below `refs/sandforge/`, whole.
    pub reference: String,
    /// How many commits it has that no branch here has.
    pub commits: u64,
}

impl Repository {
    /// # Errors
    /// `None` where it is not the top of one.
    pub fn open(directory: &Path) -> Result<Self, RepositoryError> {
        let directory = directory.canonicalize()?;
        let this = Self { directory };
        let top = match this.git("rev-parse", &["--show-toplevel"]) {
            Ok(top) => PathBuf::from(std::ffi::OsString::from_vec(trimmed(top))),
            Err(RepositoryError::Git { said, .. }) => {
                return Err(RepositoryError::None { directory: this.directory, hint: said });
            }
            Err(error) => return Err(error),
        };
        if top.canonicalize().ok().as_ref() != Some(&this.directory) {
            let hint = format!("give {}", top.display());
            return Err(RepositoryError::None { directory: this.directory, hint });
        }
        Ok(this)
    }

    /// The files of the commit that is checked out.
    ///
    /// # Errors
    /// `Empty`, `Git`.
    pub fn tracked(&self) -> Result<Vec<PathBuf>, RepositoryError> {
        self.tip()?;
        let names = self.git("ls-tree", &["-r", "-z", "--name-only", "--full-tree", "HEAD"])?;
        let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        Ok(names.map(|name| std::ffi::OsString::from_vec(name.to_vec()).into()).collect())
    }

    fn tip(&self) -> Result<String, RepositoryError> {
        let tip = self.git("rev-parse", &["--quiet", "--verify", "HEAD^{commit}"]);
        tip.map(text).map_err(|error| match error {
            RepositoryError::Git { .. } => RepositoryError::Empty(self.directory.clone()),
            error => error,
        })
    }

    /// All branches and tags with their history.
    ///
    /// # Errors
    /// `Empty`, `Git`, `Io`.
    pub fn bundle(&self) -> Result<Bundle, RepositoryError> {
        let tip = self.tip()?;
        let setting = |name| self.git("config", &["--get", name]).map(text).ok();
        let author = setting("user.name").zip(setting("user.email"));
        let branch = self.git("symbolic-ref", &["--quiet", "--short", "HEAD"]).map(text).ok();
        let mut file = tempfile::tempfile()?;
        let mut command = self.command("bundle");
        command.args(["create", "--quiet", "-", "--branches", "--tags", "HEAD"]);
        run("bundle", command.stdout(file.try_clone()?))?;
        let bytes = file.seek(SeekFrom::End(0))?;
        file.rewind()?;
        Ok(Bundle { file, bytes, branch, tip, author })
    }

    /// Takes the branches of a bundle that nobody vouches for to `refs/sandforge/NAME/`. What was
    /// there under the same names is replaced.
    ///
    /// # Errors
    /// `Git` where it is no bundle, or not one of what was given.
    pub fn fetch(&self, bundle: &Path, name: &str) -> Result<Vec<Fetched>, RepositoryError> {
        let place = format!("{REFERENCES}/{name}");
        let mut command = self.command("fetch");
        command
            .args(["--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance"])
            .args(["--no-recurse-submodules", "--end-of-options"])
            .arg(bundle)
            .arg(format!("+refs/heads/*:{place}/*"));
        run("fetch", &mut command)?;
        let listed = self.git("for-each-ref", &["--format=%(refname)", &format!("{place}/")])?;
        let references =
            String::from_utf8_lossy(&listed).lines().map(str::to_owned).collect::<Vec<_>>();
        references
            .into_iter()
            .map(|reference| {
                let new = ["--count", &*reference, "--not", "--branches"];
                let commits = text(self.git("rev-list", &new)?).parse().unwrap_or(0);
                Ok(Fetched { reference, commits })
            })
            .collect()
    }

    /// Output of a command that changes nothing.
    fn git(&self, what: &'static str, arguments: &[&str]) -> Result<Vec<u8>, RepositoryError> {
        let mut command = self.command(what);
        run(what, command.args(arguments).stdout(Stdio::piped()))
    }

    /// Nothing that a repository or its guest says makes this run something else, ask anybody, or
    /// go anywhere.
    fn command(&self, what: &str) -> Command {
        let mut command = Command::new("git");
        for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY"] {
            command.env_remove(name);
        }
        command
            .env("LC_ALL", "C")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_OPTIONAL_LOCKS", "0")
            .env("GIT_NO_LAZY_FETCH", "1")
            .env("GIT_ALLOW_PROTOCOL", "file")
            .args(["-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false"])
            .args(["-c", "fetch.fsckObjects=true", "-c", "transfer.fsckObjects=true"])
            .args(["-c", "gc.auto=0", "-c", "maintenance.auto=false"])
            .arg("-C")
            .arg(&self.directory)
            .arg(what)
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        command
    }
}

fn run(what: &'static str, command: &mut Command) -> Result<Vec<u8>, RepositoryError> {
    let output = command.spawn().and_then(std::process::Child::wait_with_output);
    let output = output.map_err(RepositoryError::Start)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let mut said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if said.is_empty() {
        said = output.status.to_string();
    }
    Err(RepositoryError::Git { what, said: said.chars().take(MOST_SAID).collect() })
}

fn trimmed(mut bytes: Vec<u8>) -> Vec<u8> {
    while bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    bytes
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&trimmed(bytes)).into_owned()
}
