//! The `sandforge` command as its users call it.
#![allow(dead_code, reason = "every test file is a program of its own and uses its part of this")]

pub(crate) mod origin;

use std::ffi::OsStr;
use std::fmt;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use tempfile::TempDir;

/// Runs `sandforge` with these arguments, `/dev/null` as stdin, to its end.
pub(crate) fn sandforge<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Output {
    Call::new(arguments).output()
}

/// A call of `sandforge` that is being put together.
#[derive(Debug)]
pub(crate) struct Call {
    command: Command,
    stdin: Option<Vec<u8>>,
    /// The caller of [`Self::spawn`] writes to stdin.
    open_stdin: bool,
    private: Option<TempDir>,
}

impl Call {
    pub(crate) fn new<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sandforge"));
        command.args(arguments);
        for variable in [
            "SANDFORGE_IMAGE",
            "SANDFORGE_ENGINE",
            "SANDFORGE_MIN_ISOLATION",
            "SANDFORGE_URL",
            "SANDFORGE_TOKEN",
            "SANDFORGE_CA",
            "SANDFORGE_KEY",
        ] {
            command.env_remove(variable);
        }
        // Machines boot, and nothing goes on behind the tests.
        command.env("SANDFORGE_TEMPLATES", "off");
        Self { command, stdin: None, open_stdin: false, private: None }
    }

    /// With more arguments.
    pub(crate) fn arguments<A: AsRef<OsStr>>(
        mut self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        self.command.args(arguments);
        self
    }

    /// With this variable in Sandforge's own environment.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// With these bytes on stdin, from a pipe.
    pub(crate) fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// With a pipe as stdin that the caller gets.
    pub(crate) fn open_stdin(mut self) -> Self {
        self.open_stdin = true;
        self
    }

    /// In this directory.
    pub(crate) fn directory(mut self, path: &Path) -> Self {
        self.command.current_dir(path);
        self
    }

    /// With empty directories of its own: no image is there, no record, and nothing that others
    /// keep.
    pub(crate) fn private(self) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut call = self.private_in(directory.path());
        call.private = Some(directory);
        call
    }

    /// With all directories of ours in this one, which several calls may share.
    pub(crate) fn private_in(self, path: &Path) -> Self {
        let (cache, runtime) = (path.join("cache"), path.join("run"));
        std::fs::create_dir_all(&runtime).unwrap();
        self.env("XDG_CACHE_HOME", cache)
            .env("XDG_RUNTIME_DIR", runtime)
            .env("XDG_DATA_HOME", path.join("data"))
            .env("XDG_CONFIG_HOME", path.join("config"))
    }

    /// Starts it and leaves it to the caller.
    pub(crate) fn spawn(mut self) -> Child {
        assert!(self.private.is_none(), "a private directory would not outlive this");
        let piped = self.open_stdin || self.stdin.is_some();
        let stdin = if piped { Stdio::piped() } else { Stdio::null() };
        self.command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap();
        if let Some(bytes) = self.stdin {
            let mut stdin = child.stdin.take().expect("it is a pipe");
            thread::spawn(move || {
                // It may end without reading all.
                let _ = stdin.write_all(&bytes);
            });
        }
        child
    }

    /// Runs it to its end.
    pub(crate) fn output(mut self) -> Output {
        let private = self.private.take();
        let output = self.spawn().wait_with_output().unwrap();
        drop(private);
        Output {
            status: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr).expect("what we say is UTF-8"),
        }
    }
}

/// The engines that run here, weakest first.
pub(crate) fn engines() -> Vec<&'static str> {
    let report = sandforge(["doctor", "--json"]).json();
    let usable = |name: &&str| {
        let engines = report["engines"].as_array().expect("a list");
        let found = engines.iter().any(|one| one["name"] == *name && one["verdict"] == "usable");
        if !found {
            eprintln!("not run on engine {name}: it does not work here");
        }
        found
    };
    ["process", "qemu", "kvm"].into_iter().filter(usable).collect()
}

/// How a call ended.
pub(crate) struct Output {
    /// None where a signal ended it.
    pub(crate) status: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Output {
    /// Expects this exit status.
    #[track_caller]
    pub(crate) fn exits(self, status: i32) -> Self {
        assert_eq!(self.status, Some(status), "{self}");
        self
    }

    /// Expects this text on stderr.
    #[track_caller]
    pub(crate) fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "{text:?} is not in {self}");
        self
    }

    /// Expects exactly this on stdout.
    #[track_caller]
    pub(crate) fn prints(self, text: impl AsRef<[u8]>) -> Self {
        assert!(self.stdout == text.as_ref(), "{self}");
        self
    }

    /// Stdout as the one JSON object that it should be.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self}"))
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stdout = String::from_utf8_lossy(&self.stdout);
        write!(f, "status {:?}\nstdout: {stdout}\nstderr: {}", self.status, self.stderr)
    }
}
