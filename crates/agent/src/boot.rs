//! From the kernel's hand-over to a mounted root.

use std::ffi::CString;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use rustix::fs::{Mode, Uid};
use rustix::mount::{MountFlags, mount};
use wire::envelope::key_from_hex;

/// Where the guest's root is mounted in the agent's own namespace.
pub(crate) const ROOT: &str = "/run/sandforge/root";

/// Where the workspace is, inside the root.
pub(crate) const WORKSPACE: &str = "workspace";

/// What the host says, in words like `sandforge.id=...`. All of it is public.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Words<'a>(pub(crate) &'a str);

/// Whose operations are taken.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) sandbox: String,
    pub(crate) key: wire::envelope::VerifyingKey,
}

/// What the kernel command line says.
#[derive(Debug)]
pub(crate) struct Arguments {
    pub(crate) identity: Identity,
    root_device: String,
    root_file_system: String,
}

/// The machine cannot be set up; there is nobody to tell but the console.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error("parameter {0} is missing or malformed")]
    Argument(&'static str),
    #[error("cannot {step}: {source}")]
    Step { step: String, source: std::io::Error },
}

fn step<T>(
    what: impl Into<String>,
    result: Result<T, impl Into<std::io::Error>>,
) -> Result<T, BootError> {
    result.map_err(|source| BootError::Step { step: what.into(), source: source.into() })
}

/// Mounts what PID 1 needs before it can do anything else, and reads its arguments.
pub(crate) fn begin() -> Result<Arguments, BootError> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        step(format!("make {target}"), fs::create_dir_all(target))?;
        let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
        step(format!("mount {target}"), mount(kind, target, kind, flags, None))?;
    }
    let command_line = step("read the command line", fs::read_to_string("/proc/cmdline"))?;
    Arguments::parse(Words(&command_line))
}

/// Mounts the root: the read-only image below, an overlay in memory above it, which takes up to
/// `changes_bytes`.
pub(crate) fn mount_root(arguments: &Arguments, changes_bytes: u64) -> Result<(), BootError> {
    for directory in ["/run/sandforge/image", "/run/sandforge/changes", ROOT] {
        step(format!("make {directory}"), fs::create_dir_all(directory))?;
    }
    let device = format!("/dev/{}", arguments.root_device);
    step(
        format!("mount the root image {device} as {}", arguments.root_file_system),
        mount(
            device.as_str(),
            "/run/sandforge/image",
            arguments.root_file_system.as_str(),
            MountFlags::RDONLY | MountFlags::NODEV,
            None,
        ),
    )?;
    let size = CString::new(format!("size={changes_bytes}")).expect("digits");
    step(
        "mount the memory for changes",
        mount("tmpfs", "/run/sandforge/changes", "tmpfs", MountFlags::NODEV, Some(&*size)),
    )?;
    for directory in ["/run/sandforge/changes/upper", "/run/sandforge/changes/work"] {
        step(format!("make {directory}"), fs::create_dir(directory))?;
    }
    let layers = c"lowerdir=/run/sandforge/image,upperdir=/run/sandforge/changes/upper,\
        workdir=/run/sandforge/changes/work,volatile,xino=off";
    step("mount the overlay", mount("overlay", ROOT, "overlay", MountFlags::NODEV, Some(layers)))?;
    workspace()
}

/// The workspace is there whatever the image, and the default user's.
pub(crate) fn workspace() -> Result<(), BootError> {
    directory_of_user(WORKSPACE)
}

/// Makes a directory of the default user's in the root, where there is none.
pub(crate) fn directory_of_user(name: &str) -> Result<(), BootError> {
    let path = Path::new(ROOT).join(name);
    if !path.exists() {
        step(format!("make /{name}"), rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755)))?;
        let owner = Some(Uid::from_raw(1000));
        let group = Some(rustix::fs::Gid::from_raw(1000));
        step(format!("own /{name}"), rustix::fs::chown(&path, owner, group))?;
    }
    Ok(())
}

impl<'a> Words<'a> {
    fn find(self, name: &str) -> Option<&'a str> {
        let mut words = self.0.split_ascii_whitespace();
        words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }

    fn text(self, name: &'static str) -> Result<String, BootError> {
        self.find(name).map(String::from).ok_or(BootError::Argument(name))
    }

    /// Whether there is this word, without a value.
    pub(crate) fn has(self, word: &str) -> bool {
        self.0.split_ascii_whitespace().any(|other| other == word)
    }

    pub(crate) fn number<T: FromStr>(self, name: &'static str) -> Result<T, BootError> {
        self.find(name).and_then(|text| text.parse().ok()).ok_or(BootError::Argument(name))
    }
}

impl Identity {
    pub(crate) fn parse(words: Words<'_>) -> Result<Self, BootError> {
        const KEY: &str = "sandforge.key";
        let key = words.find(KEY).and_then(key_from_hex).ok_or(BootError::Argument(KEY))?;
        Ok(Self { sandbox: words.text("sandforge.id")?, key })
    }
}

impl Arguments {
    fn parse(words: Words<'_>) -> Result<Self, BootError> {
        const ROOT_DEVICE: &str = "sandforge.root";
        let root_device = words.text(ROOT_DEVICE)?;
        if !root_device.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(BootError::Argument(ROOT_DEVICE));
        }
        let root_file_system = words.text("sandforge.rootfs")?;
        Ok(Self { identity: Identity::parse(words)?, root_device, root_file_system })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

    #[test]
    fn arguments_are_found_among_the_kernel_s_own() {
        let line = format!(
            "quiet panic=-1 sandforge.id=sb-1 sandforge.key={KEY} sandforge.root=vda \
             sandforge.rootfs=erofs\n"
        );
        let arguments = Arguments::parse(Words(&line)).unwrap();
        assert_eq!(arguments.identity.sandbox, "sb-1");
        assert_eq!(arguments.root_file_system, "erofs");
    }

    #[test]
    fn a_missing_or_broken_argument_is_named() {
        let line = format!("sandforge.id=x sandforge.root=../etc sandforge.key={KEY}");
        let error = Arguments::parse(Words(&line)).unwrap_err().to_string();
        assert!(error.contains("sandforge.root"), "{error}");
        let error =
            Arguments::parse(Words("sandforge.root=vda sandforge.id=x sandforge.rootfs=ext4"));
        assert!(error.unwrap_err().to_string().contains("sandforge.key"));
    }
}
