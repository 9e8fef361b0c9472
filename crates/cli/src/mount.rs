//! What of the host a sandbox is given, as it is written: `-w` and `--mount`.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use client::api::MountMode;

use crate::command::create::absolute;
use crate::failure::Failure;
use crate::units;

/// Where the first `-w` is in the sandbox.
pub(crate) const WORKSPACE: &str = "/workspace";
/// Where those behind it are, each by its own name.
const FURTHER: &str = "/workspaces";

/// How a directory or file is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As the API has it.
    Api(MountMode),
    /// As a git clone of its own.
    Clone,
}

/// One directory or file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) host: PathBuf,
    pub(crate) guest: String,
    pub(crate) mode: Mode,
    pub(crate) read_only: bool,
    /// What is said of it where it is shared live.
    pub(crate) live: LiveArgs,
}

/// What is said of directories that are shared live.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub(crate) struct LiveArgs {
    /// What a command may add to a directory that is shared live: 512 (MiB), 512m, 2g
    /// [default: as much as there is room for]
    #[arg(long, value_name = "SIZE", value_parser = units::memory_mb)]
    live_quota: Option<u32>,

    /// Let what is shared live be changed here, too, though other programs run what it says
    #[arg(long, value_name = "PATH")]
    live_allow: Vec<String>,
}

impl LiveArgs {
    /// Says it of each of these that is shared live.
    pub(crate) fn apply(&self, mounts: &mut [Mount]) -> Result<(), Failure> {
        let is_live = |mount: &&mut Mount| mount.mode == Mode::Api(MountMode::Live);
        let mut live = mounts.iter_mut().filter(is_live).peekable();
        if *self != Self::default() && live.peek().is_none() {
            return Err(Failure::usage(
                "--live-quota and --live-allow are of directories that are shared live, and none is",
            )
            .help("share one: -w DIR:live"));
        }
        live.for_each(|mount| mount.live = self.clone());
        Ok(())
    }
}

impl Mount {
    /// `HOST:GUEST[:MODE][:ro]`. A colon may be in HOST, since GUEST begins with a slash.
    pub(crate) fn parse(text: &OsStr) -> Result<Self, Failure> {
        let bad = || {
            Failure::usage(format!("--mount {text:?} is not HOST:GUEST or HOST:GUEST:ro")).help(
                "GUEST is an absolute path in the sandbox, such as /data; :review, :live or :clone \
                 may stand before :ro",
            )
        };
        let text = text.to_str().ok_or_else(bad)?;
        let (rest, read_only) = match text.strip_suffix(":ro") {
            Some(rest) => (rest, true),
            None => (text.strip_suffix(":rw").unwrap_or(text), false),
        };
        let (rest, mode) = mode_of(rest.as_bytes());
        let rest = std::str::from_utf8(rest).map_err(|_| bad())?;
        let (host, guest) = rest.rsplit_once(":/").ok_or_else(bad)?;
        if host.is_empty() || guest.is_empty() {
            return Err(bad());
        }
        let mode = mode.unwrap_or(Mode::Api(MountMode::Copy));
        let (host, guest) = (host.into(), format!("/{guest}"));
        Ok(Self { host, guest, mode, read_only, live: LiveArgs::default() })
    }

    /// What `-w` names, each `DIR[:MODE][:ro]`. A directory of which this is the whole name comes
    /// before one with a mode behind it.
    pub(crate) fn workspaces(texts: &[OsString]) -> Result<Vec<Self>, Failure> {
        let mut mounts: Vec<Self> = Vec::with_capacity(texts.len());
        for text in texts {
            let (host, mode, read_only) = workspace(text);
            fs::read_dir(&host).map_err(|error| {
                Failure::usage(format!("cannot read the workspace {host:?}")).because(&error)
            })?;
            let guest = match mounts.is_empty() {
                true => WORKSPACE.to_owned(),
                false => further(&host)?,
            };
            if mounts.iter().any(|mount| mount.guest == guest) {
                return Err(Failure::usage(format!("two workspaces would be {guest}")).help(
                    format!(
                        "give one of them a place of its own: --mount {}:/PLACE:review",
                        host.display()
                    ),
                ));
            }
            mounts.push(Self { host, guest, mode, read_only, live: LiveArgs::default() });
        }
        Ok(mounts)
    }

    /// As the API has it; what it has not is refused.
    pub(crate) fn request(&self) -> Result<client::api::Mount, Failure> {
        match self.mode {
            Mode::Api(mode) => self.request_as(mode),
            Mode::Clone => Err(Failure::usage(format!("{:?}: only `run` has :clone", self.host))
                .help("without it the directory is copied, and its changes are reviewed")),
        }
    }

    /// What policy is asked before `run` gives it: a clone is a copy of what is in it.
    pub(crate) fn request_of_run(&self) -> Result<client::api::Mount, Failure> {
        match self.mode {
            Mode::Api(mode) => self.request_as(mode),
            Mode::Clone if self.read_only => Err(Failure::usage(format!(
                "{:?}: a clone is the sandbox's own to change",
                self.host
            ))
            .help("take :ro away, or :clone")),
            Mode::Clone => self.request_as(MountMode::Copy),
        }
    }

    fn request_as(&self, mode: MountMode) -> Result<client::api::Mount, Failure> {
        Ok(client::api::Mount {
            quota_mb: self.live.live_quota,
            allow_protected: self.live.live_allow.clone(),
            ..client::api::Mount::new(absolute(&self.host)?, &*self.guest, mode, self.read_only)
        })
    }

    /// Whether what the guest changes is to be reviewed. A single file is copied and no more.
    pub(crate) fn is_reviewed(&self) -> bool {
        self.mode == Mode::Api(MountMode::Review) && !self.read_only && self.host.is_dir()
    }
}

/// Where a further workspace is in the sandbox.
fn further(host: &Path) -> Result<String, Failure> {
    let real = fs::canonicalize(host);
    let name = real.as_deref().ok().and_then(Path::file_name).and_then(OsStr::to_str);
    match name {
        Some(name) => Ok(format!("{FURTHER}/{name}")),
        None => Err(Failure::usage(format!("the workspace {host:?} has no name to be found by"))
            .help("give it a place: --mount DIR:/PLACE:review")),
    }
}

/// A mode at the end, and what stands before it.
fn mode_of(text: &[u8]) -> (&[u8], Option<Mode>) {
    for (suffix, mode) in [
        (":review", Mode::Api(MountMode::Review)),
        (":live", Mode::Api(MountMode::Live)),
        (":copy", Mode::Api(MountMode::Copy)),
        (":clone", Mode::Clone),
    ] {
        if let Some(rest) = text.strip_suffix(suffix.as_bytes()) {
            return (rest, Some(mode));
        }
    }
    (text, None)
}

fn workspace(text: &OsStr) -> (PathBuf, Mode, bool) {
    let review = Mode::Api(MountMode::Review);
    if Path::new(text).exists() {
        return (text.into(), review, false);
    }
    let bytes = text.as_bytes();
    let (rest, read_only) = match bytes.strip_suffix(b":ro") {
        Some(rest) => (rest, true),
        None => (bytes, false),
    };
    if read_only && Path::new(OsStr::from_bytes(rest)).exists() {
        return (OsStr::from_bytes(rest).into(), review, true);
    }
    match mode_of(rest) {
        ([], _) => (text.into(), review, false),
        (host, mode) => (OsStr::from_bytes(host).into(), mode.unwrap_or(review), read_only),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(text: &str) -> Option<(String, String, Mode, bool)> {
        let mount = Mount::parse(OsStr::new(text)).ok()?;
        let host = mount.host.into_os_string().into_string().ok()?;
        Some((host, mount.guest, mount.mode, mount.read_only))
    }

    #[test]
    fn a_mount_names_a_host_and_a_guest_path() {
        let copy = Mode::Api(MountMode::Copy);
        let live = Mode::Api(MountMode::Live);
        let expected =
            |host: &str, guest: &str, mode, ro| Some((host.into(), guest.into(), mode, ro));
        assert_eq!(mount("data:/data"), expected("data", "/data", copy, false));
        assert_eq!(mount("/a:b:/c:ro"), expected("/a:b", "/c", copy, true));
        assert_eq!(mount("a:/b:rw"), expected("a", "/b", copy, false));
        assert_eq!(mount("a:/b:live"), expected("a", "/b", live, false));
        assert_eq!(mount("a:/b:live:ro"), expected("a", "/b", live, true));
        assert_eq!(mount("a:live:/b"), expected("a:live", "/b", copy, false));
        assert_eq!(mount("a:/b:clone"), expected("a", "/b", Mode::Clone, false));
    }

    #[test]
    fn a_mount_without_an_absolute_guest_path_is_refused() {
        for text in ["", "data", "data:", ":/data", "data:relative", "data:/", "data:live"] {
            assert_eq!(mount(text), None, "{text}");
        }
    }

    #[test]
    fn a_workspace_is_reviewed_unless_it_says_otherwise() {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("src")).unwrap();
        let at = place.path().to_str().unwrap();
        let review = Mode::Api(MountMode::Review);
        for (suffix, mode, read_only) in [
            ("", review, false),
            (":ro", review, true),
            (":review", review, false),
            (":live", Mode::Api(MountMode::Live), false),
            (":live:ro", Mode::Api(MountMode::Live), true),
            (":clone", Mode::Clone, false),
        ] {
            let found = workspace(OsStr::new(&format!("{at}/src{suffix}")));
            assert_eq!(found, (format!("{at}/src").into(), mode, read_only), "{suffix}");
        }
    }

    #[test]
    fn a_directory_of_that_very_name_comes_first() {
        let place = tempfile::tempdir().unwrap();
        for name in ["src", "src:live", "src:ro"] {
            fs::create_dir(place.path().join(name)).unwrap();
        }
        let at = place.path().to_str().unwrap();
        let host = |suffix: &str| workspace(OsStr::new(&format!("{at}/src{suffix}")));
        let review = Mode::Api(MountMode::Review);
        assert_eq!(host(":live"), (format!("{at}/src:live").into(), review, false));
        assert_eq!(host(":live:ro"), (format!("{at}/src:live").into(), review, true));
        assert_eq!(host(":live:live").1, Mode::Api(MountMode::Live));
        assert_eq!(host(":ro"), (format!("{at}/src:ro").into(), review, false));
    }

    #[test]
    fn further_workspaces_have_places_of_their_own() {
        let place = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c/b"] {
            fs::create_dir_all(place.path().join(name)).unwrap();
        }
        let text = |name: &str| place.path().join(name).into_os_string();
        let two = Mount::workspaces(&[text("a"), text("b")]).unwrap();
        let guests: Vec<_> = two.iter().map(|mount| mount.guest.as_str()).collect();
        assert_eq!(guests, ["/workspace", "/workspaces/b"]);
        assert!(Mount::workspaces(&[text("a"), text("b"), text("c/b")]).is_err());
    }
}
