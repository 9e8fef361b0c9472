//! From the kernel's hand-over to a mounted root.

use std::ffi::CString;
use std::fs;
use std::path::Path;

use rustix::fs::{Mode, Uid};
use rustix::mount::{MountFlags, mount};
use wire::envelope::key_from_hex;

/// Where the guest's root is mounted in the agent's own namespace.
pub(crate) const ROOT: &str = "/run/sandforge/root";

/// Where the workspace is, inside the root.
pub(crate) const WORKSPACE: &str = "workspace";

/// What the host says on the kernel command line. All of it is public.
#[derive(Debug)]
pub(crate) struct Arguments {
    pub(crate) sandbox: String,
    pub(crate) key: wire::envelope::VerifyingKey,
    root_device: String,
    root_file_system: String,
}

/// The machine cannot be set up; there is nobody to tell but the console.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error("kernel parameter {0} is missing or malformed")]
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
    Arguments::parse(&command_line)
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
fn workspace() -> Result<(), BootError> {
    let path = Path::new(ROOT).join(WORKSPACE);
    if !path.exists() {
        step("make the workspace", rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755)))?;
        let owner = Some(Uid::from_raw(1000));
        let group = Some(rustix::fs::Gid::from_raw(1000));
        step("own the workspace", rustix::fs::chown(&path, owner, group))?;
    }
    Ok(())
}

impl Arguments {
    fn parse(command_line: &str) -> Result<Self, BootError> {
        let value = |name: &str| {
            command_line
                .split_ascii_whitespace()
                .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        };
        let required =
            |name: &'static str| value(name).map(String::from).ok_or(BootError::Argument(name));
        let root_device = required("sandforge.root")?;
        if !root_device.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(BootError::Argument("sandforge.root"));
        }
        Ok(Self {
            sandbox: required("sandforge.id")?,
            key: value("sandforge.key")
                .and_then(key_from_hex)
                .ok_or(BootError::Argument("sandforge.key"))?,
            root_device,
            root_file_system: required("sandforge.rootfs")?,
        })
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
        let arguments = Arguments::parse(&line).unwrap();
        assert_eq!(arguments.sandbox, "sb-1");
        assert_eq!(arguments.root_file_system, "erofs");
    }

    #[test]
    fn a_missing_or_broken_argument_is_named() {
        let line = format!("sandforge.id=x sandforge.root=../etc sandforge.key={KEY}");
        let error = Arguments::parse(&line).unwrap_err().to_string();
        assert!(error.contains("sandforge.root"), "{error}");
        let error = Arguments::parse("sandforge.root=vda sandforge.id=x sandforge.rootfs=ext4");
        assert!(error.unwrap_err().to_string().contains("sandforge.key"));
    }
}
