//! From the kernel's hand-over to a mounted root.

use std::ffi::CString;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::str::FromStr;

use rustix::fs::{Mode, Uid};
use rustix::mount::{MountFlags, mount};
use wire::disk::{TABLE_BYTES, Table};
use wire::envelope::key_from_hex;
use wire::op::{ErrorCode, OpError};

use crate::device_mapper::DeviceMapper;

/// Where the guest's root is mounted in the agent's own namespace.
pub(crate) const ROOT: &str = "/run/sandforge/root";

/// Where the workspace is, inside the root.
pub(crate) const WORKSPACE: &str = "workspace";

/// What the host calls the file system of a root of several.
const LAYERED: &str = "layers";

/// What the host says, in words like `sandforge.id=...`. All of it is public.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Words<'a>(pub(crate) &'a str);

/// Whose operations are taken.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) sandbox: String,
    pub(crate) key: wire::envelope::VerifyingKey,
}

/// In the place of an identity: there will be one when this machine goes on somewhere else.
const TEMPLATE: &str = "sandforge.template";

/// What the kernel command line says.
#[derive(Debug)]
pub(crate) struct Arguments {
    /// Nobody's, in a machine that is to be a template.
    pub(crate) identity: Option<Identity>,
    /// Its serial number.
    root_device: String,
    root_file_system: String,
    /// That of the disk for what is changed, where there is one.
    scratch_device: Option<String>,
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

/// Where what the sandbox changes is, and where the layers below that are.
pub(crate) const CHANGES: &str = "/run/sandforge/changes";
pub(crate) const UPPER: &str = "/run/sandforge/changes/upper";
pub(crate) const LAYERS: &str = "/run/sandforge/layers";

/// Mounts the root: the read-only layers below, above them what is changed, in memory of up to
/// `changes_bytes` or on a disk of its own.
pub(crate) fn mount_root(arguments: &Arguments, changes_bytes: u64) -> Result<(), BootError> {
    for directory in [CHANGES, ROOT] {
        step(format!("make {directory}"), fs::create_dir_all(directory))?;
    }
    let mut layers = mount_layers(arguments)?;
    // The first in the option is the uppermost.
    layers.reverse();
    match &arguments.scratch_device {
        Some(name) => {
            let device = device(name)?;
            // Nobody needs what is on it after the machine. What is removed is the host's again.
            let options = c"nobarrier,discard";
            step(
                "mount the disk for changes",
                mount(
                    &*device,
                    CHANGES,
                    "ext4",
                    MountFlags::NODEV | MountFlags::NOATIME,
                    Some(options),
                ),
            )?;
        }
        None => {
            let size = CString::new(format!("size={changes_bytes}")).expect("digits");
            step(
                "mount the memory for changes",
                mount("tmpfs", CHANGES, "tmpfs", MountFlags::NODEV, Some(&*size)),
            )?;
        }
    }
    for directory in ["upper", "work"] {
        let directory = Path::new(CHANGES).join(directory);
        step(format!("make {}", directory.display()), fs::create_dir(directory))?;
    }
    let options = format!(
        "lowerdir={},upperdir={CHANGES}/upper,workdir={CHANGES}/work,volatile,xino=off",
        layers.join(":")
    );
    let options = CString::new(options).expect("no zeroes");
    let flags = MountFlags::NODEV;
    step("mount the overlay", mount("overlay", ROOT, "overlay", flags, Some(&*options)))?;
    workspace()
}

/// Mounts each layer, and tells where, the lowest first.
fn mount_layers(arguments: &Arguments) -> Result<Vec<String>, BootError> {
    let disk = device(&arguments.root_device)?;
    if arguments.root_file_system != LAYERED {
        return Ok(vec![mount_layer(0, &disk, &arguments.root_file_system)?]);
    }
    let mut table = vec![0; TABLE_BYTES];
    let read = fs::File::open(&disk).and_then(|mut disk| disk.read_exact(&mut table));
    step("read the table of layers", read)?;
    let table = step("read the table of layers", Table::decode(&table).map_err(io::Error::other))?;
    let mapper = step("find the device mapper", DeviceMapper::open())?;
    let layers = table.layers.iter().enumerate();
    let mounted = layers.map(|(index, layer)| {
        let part = step(format!("find layer {index}"), mapper.layer(index, &disk, layer))?;
        mount_layer(index, &part, &layer.file_system)
    });
    mounted.collect()
}

fn mount_layer(index: usize, device: &str, file_system: &str) -> Result<String, BootError> {
    let place = format!("{LAYERS}/{index}");
    step(format!("make {place}"), fs::create_dir_all(&place))?;
    let flags = MountFlags::RDONLY | MountFlags::NODEV;
    let mounted = mount(device, &*place, file_system, flags, None);
    step(format!("mount the root image {device} as {file_system}"), mounted)?;
    Ok(place)
}

/// The disk with this serial number.
pub(crate) fn device(serial: &str) -> Result<String, BootError> {
    let disks = step("list the disks", fs::read_dir("/sys/block"))?;
    for disk in disks.flatten() {
        let its = fs::read_to_string(disk.path().join("serial")).unwrap_or_default();
        if its.trim_end() == serial {
            return Ok(format!("/dev/{}", disk.file_name().display()));
        }
    }
    let source = io::Error::new(io::ErrorKind::NotFound, "no disk has this serial number");
    Err(BootError::Step { step: format!("find the disk {serial}"), source })
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

/// Makes the directory that an image names for its tasks, where there is none. With the sandbox's
/// root as `/`.
pub(crate) fn directory_of_image(path: &[u8], owner: (u32, u32)) -> Result<(), OpError> {
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    if !path.is_absolute() {
        let message = format!("working directory {}: is not absolute", path.display());
        return Err(OpError::new(ErrorCode::Invalid, message));
    }
    if path.is_dir() {
        return Ok(());
    }
    let made = fs::create_dir_all(path)
        .and_then(|()| std::os::unix::fs::chown(path, Some(owner.0), Some(owner.1)));
    made.map_err(|error| {
        let message = format!("make the image's working directory {}: {error}", path.display());
        OpError::new(ErrorCode::Failed, message)
    })
}

/// Gives the workspace to the image's user, where it is still the sandbox's own. With the sandbox's
/// root as `/`.
pub(crate) fn give_workspace(owner: (u32, u32)) -> Result<(), OpError> {
    use std::os::unix::fs::{MetadataExt as _, lchown};
    let path = Path::new("/").join(WORKSPACE);
    let is_ours = fs::symlink_metadata(&path)
        .is_ok_and(|found| found.is_dir() && found.uid() == wire::op::USER);
    if !is_ours {
        return Ok(());
    }
    lchown(&path, Some(owner.0), Some(owner.1)).map_err(|error| {
        let message = format!("give /{WORKSPACE} to the image's user: {error}");
        OpError::new(ErrorCode::Failed, message)
    })
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
        let identity = match words.has(TEMPLATE) {
            false => Some(Identity::parse(words)?),
            true if ["sandforge.id", "sandforge.key"]
                .iter()
                .any(|name| words.find(name).is_some()) =>
            {
                return Err(BootError::Argument(TEMPLATE));
            }
            true => None,
        };
        Ok(Self {
            identity,
            root_device: words.text("sandforge.root")?,
            root_file_system: words.text("sandforge.rootfs")?,
            scratch_device: words.find("sandforge.scratch").map(String::from),
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
            "quiet panic=-1 sandforge.id=sb-1 sandforge.key={KEY} sandforge.root=root \
             sandforge.rootfs=erofs\n"
        );
        let arguments = Arguments::parse(Words(&line)).unwrap();
        assert_eq!(arguments.identity.unwrap().sandbox, "sb-1");
        assert_eq!(arguments.root_file_system, "erofs");
        assert_eq!(arguments.scratch_device, None);
    }

    #[test]
    fn a_template_is_nobody_s() {
        let line = "sandforge.template sandforge.root=root sandforge.rootfs=erofs";
        assert!(Arguments::parse(Words(line)).unwrap().identity.is_none());
        for also in ["sandforge.id=sb-1".to_owned(), format!("sandforge.key={KEY}")] {
            let error = Arguments::parse(Words(&format!("{line} {also}"))).unwrap_err();
            assert!(error.to_string().contains("sandforge.template"), "{error}");
        }
    }

    #[test]
    fn a_missing_or_broken_argument_is_named() {
        let line = format!("sandforge.id=x sandforge.key={KEY}");
        let error = Arguments::parse(Words(&line)).unwrap_err().to_string();
        assert!(error.contains("sandforge.root"), "{error}");
        let error =
            Arguments::parse(Words("sandforge.root=root sandforge.id=x sandforge.rootfs=ext4"));
        assert!(error.unwrap_err().to_string().contains("sandforge.key"));
    }
}
