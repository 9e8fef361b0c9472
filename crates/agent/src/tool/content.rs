//! What is in a file: `read` and `write`.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, FileType, Metadata, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _,
};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use wire::op::{OpError, Read, Transferred, Write, WriteAt};

use super::{absolute, failed, invalid, shown};

/// Permission bits of parent directories that `parents` asked for.
const PARENT_MODE: u32 = 0o755;

pub(super) fn read(op: &Read, output: &File) -> Result<Transferred, OpError> {
    let path = absolute(&op.path)?;
    let tried = |error| failed("read", path, error);
    // Opening a FIFO or a terminal must neither hang nor change anything.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .map_err(tried)?;
    let metadata = file.metadata().map_err(tried)?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        return Err(invalid(format!(
            "cannot read '{}': it is a directory; list it, or take it out as a tar",
            shown(path)
        )));
    }
    if !kind.is_file() && !is_harmless(&metadata) {
        return Err(special("read", path, kind));
    }
    if kind.is_file() && op.offset > 0 {
        file.seek(SeekFrom::Start(op.offset)).map_err(tried)?;
    }
    let mut range = (&file).take(op.length.unwrap_or(u64::MAX));
    // The standard library moves the bytes inside the kernel where it can.
    let bytes = io::copy(&mut range, &mut &*output).map_err(tried)?;
    Ok(Transferred { bytes, entries: 0 })
}

/// `/dev/null`, `zero`, `random` and `urandom`: reading them waits for nothing and takes nothing
/// from anyone.
fn is_harmless(metadata: &Metadata) -> bool {
    let device = metadata.rdev();
    metadata.file_type().is_char_device()
        && rustix::fs::major(device) == 1
        && matches!(rustix::fs::minor(device), 3 | 5 | 8 | 9)
}

fn special(tried: &str, path: &Path, kind: FileType) -> OpError {
    let what = if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    invalid(format!("cannot {tried} '{}': it is {what}, not a file", shown(path)))
}

pub(super) fn write(op: &Write, input: &File) -> Result<Transferred, OpError> {
    let path = absolute(&op.path)?;
    if op.parents
        && let Some(parent) = path.parent()
    {
        DirBuilder::new()
            .recursive(true)
            .mode(PARENT_MODE)
            .create(parent)
            .map_err(|error| failed("make the directory", parent, error))?;
    }
    let bytes = match op.at {
        WriteAt::Replace => replace(path, op.mode, input)?,
        WriteAt::Append => write_into(path, op.mode, None, input)?,
        WriteAt::Offset(offset) => write_into(path, op.mode, Some(offset), input)?,
    };
    Ok(Transferred { bytes, entries: 0 })
}

/// Writes to the file that is there, or a new one: at the end, or at an offset.
fn write_into(path: &Path, mode: u32, at: Option<u64>, input: &File) -> Result<u64, OpError> {
    let tried = |error| failed("write", path, error);
    let mut options = OpenOptions::new();
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    options.create(true).mode(mode & 0o7777).custom_flags(flags.bits().cast_signed());
    match at {
        None => options.append(true),
        Some(_) => options.write(true),
    };
    let mut file = match options.open(path) {
        Ok(file) => file,
        // A FIFO without a reader.
        Err(error) if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => {
            return Err(invalid(format!(
                "cannot write '{}': it is a FIFO or a socket, not a file",
                shown(path)
            )));
        }
        Err(error) => return Err(tried(error)),
    };
    let kind = file.metadata().map_err(tried)?.file_type();
    if !kind.is_file() {
        return Err(special("write", path, kind));
    }
    if let Some(offset) = at {
        file.seek(SeekFrom::Start(offset)).map_err(tried)?;
    }
    io::copy(&mut &*input, &mut file).map_err(tried)
}

/// Puts a new file with the whole input in the place of what is there, in one step.
fn replace(path: &Path, mode: u32, input: &File) -> Result<u64, OpError> {
    let (path, mode) = replaced(path, mode)?;
    let tried = |error| failed("write", &path, error);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(invalid(format!("cannot write '{}': it is a directory", shown(&path))));
    };
    let parent =
        rustix::fs::open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| failed("write", &path, error))?;
    let mut partial = Partial::create(&parent).map_err(tried)?;
    let bytes = io::copy(&mut &*input, &mut partial.file).map_err(tried)?;
    rustix::fs::fchmod(&partial.file, Mode::from_raw_mode(mode))
        .map_err(|error| failed("write", &path, error))?;
    partial.put(name).map_err(tried)?;
    Ok(bytes)
}

/// The path that a replacing write ends at, and the new file's mode. Through a symbolic link the
/// file is replaced and not the link, as an editor does.
fn replaced(path: &Path, mode: u32) -> Result<(PathBuf, u32), OpError> {
    let tried = |error| failed("write", path, error);
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok((path.to_owned(), mode & 0o7777));
        }
        metadata => metadata.map_err(tried)?,
    };
    if metadata.is_symlink() {
        let end = fs::canonicalize(path).map_err(tried)?;
        return replaced(&end, mode);
    }
    let kind = metadata.file_type();
    if kind.is_dir() {
        return Err(invalid(format!("cannot write '{}': it is a directory", shown(path))));
    }
    if !kind.is_file() {
        return Err(special("write", path, kind));
    }
    Ok((path.to_owned(), metadata.mode() & 0o7777))
}

/// A file that is being written and has no place yet. Where the file system can, it has no name
/// either, so that nothing stays behind even when this process is killed.
struct Partial<'a> {
    directory: &'a OwnedFd,
    file: File,
    name: Option<OsString>,
}

impl<'a> Partial<'a> {
    fn create(directory: &'a OwnedFd) -> io::Result<Self> {
        let mode = Mode::RUSR | Mode::WUSR;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        // It gets its name by way of /proc.
        if Path::new("/proc/self/fd").exists()
            && let Ok(fd) = rustix::fs::openat(directory, ".", flags | OFlags::TMPFILE, mode)
        {
            return Ok(Self { directory, file: fd.into(), name: None });
        }
        let name = partial_name()?;
        let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(directory, &name, flags, mode)?;
        Ok(Self { directory, file: fd.into(), name: Some(name) })
    }

    fn put(&mut self, name: &OsStr) -> io::Result<()> {
        let directory = self.directory.as_fd();
        if self.name.is_none() {
            let partial = partial_name()?;
            let file = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            let flags = AtFlags::SYMLINK_FOLLOW;
            rustix::fs::linkat(rustix::fs::CWD, file, directory, &partial, flags)?;
            self.name = Some(partial);
        }
        if let Some(partial) = &self.name {
            rustix::fs::renameat(directory, partial, directory, name)?;
        }
        self.name = None;
        Ok(())
    }
}

impl Drop for Partial<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _ = rustix::fs::unlinkat(self.directory, name, AtFlags::empty());
        }
    }
}

fn partial_name() -> io::Result<OsString> {
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    Ok(format!(".{:016x}.partial", u64::from_ne_bytes(random)).into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use serde_json::json;
    use wire::op::ErrorCode;

    use super::super::tests::{ask, path, pipe, refusal, with_input};
    use super::*;

    fn listing(directory: &Path) -> Vec<OsString> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }

    fn fifo(at: &Path) {
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, at, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    }

    #[test]
    fn a_range_is_cut_where_the_file_ends() {
        let tree = tempfile::tempdir().unwrap();
        let file = tree.path().join("a");
        fs::write(&file, "0123456789").unwrap();
        for (offset, length, expected) in [
            (0_u64, None, "0123456789"),
            (4, None, "456789"),
            (4, Some(3), "456"),
            (8, Some(100), "89"),
            (10, None, ""),
            (1 << 40, Some(1), ""),
            (0, Some(0), ""),
        ] {
            let mut op = json!({"path": path(&file), "offset": offset});
            if let Some(length) = length {
                op["length"] = json!(length);
            }
            let (reply, output) = ask("read", op);
            assert_eq!(output, expected.as_bytes());
            assert_eq!(reply.unwrap(), json!({"bytes": expected.len(), "entries": 0}));
        }
    }

    #[test]
    fn more_than_a_pipe_holds_goes_through() {
        let tree = tempfile::tempdir().unwrap();
        let file = tree.path().join("a");
        let content: Vec<u8> = (0..3_000_001_u32).map(|at| at.to_le_bytes()[0]).collect();
        let (reply, _) = with_input("write", json!({"path": path(&file)}), &content);
        assert_eq!(reply.unwrap()["bytes"], content.len());
        let (_, output) = ask("read", json!({"path": path(&file)}));
        assert!(output == content);
    }

    #[test]
    fn what_is_not_a_file_is_named_and_does_not_hang() {
        let tree = tempfile::tempdir().unwrap();
        fifo(&tree.path().join("pipe"));
        let directory = json!({"path": path(tree.path())});
        let pipe = json!({"path": path(&tree.path().join("pipe"))});
        let append = json!({"path": path(&tree.path().join("pipe")), "at": "append"});
        for (op, payload, expected) in [
            ("read", directory.clone(), "it is a directory; list it"),
            ("read", pipe.clone(), "it is a FIFO"),
            ("write", directory, "it is a directory"),
            ("write", pipe, "it is a FIFO"),
            ("write", append, "it is a FIFO"),
        ] {
            let (code, message) = refusal(op, payload);
            assert_eq!(code, ErrorCode::Invalid);
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn a_harmless_device_can_be_read() {
        let (_, output) = ask("read", json!({"path": "/dev/zero", "length": 3}));
        assert_eq!(output, [0; 3]);
        assert_eq!(ask("read", json!({"path": "/dev/null"})).1, b"");
    }

    #[test]
    fn a_host_that_gave_up_is_cancelled() {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("a"), vec![0; 1 << 20]).unwrap();
        let (input, _) = pipe();
        let (gone, output) = pipe();
        drop(gone);
        let payload = json!({"path": path(&tree.path().join("a"))}).to_string();
        let error = super::super::run("read", payload.as_bytes(), input, output).unwrap_err();
        assert_eq!(error.code, ErrorCode::Cancelled);
    }

    #[test]
    fn replacing_keeps_the_mode_and_other_names_of_the_file() {
        let tree = tempfile::tempdir().unwrap();
        let file = tree.path().join("a");
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o750)).unwrap();
        fs::hard_link(&file, tree.path().join("b")).unwrap();
        with_input("write", json!({"path": path(&file), "mode": 0o600}), b"new").0.unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o750);
        assert_eq!(fs::read(tree.path().join("b")).unwrap(), b"old");
        assert_eq!(listing(tree.path()), ["a", "b"]);
    }

    #[test]
    fn a_new_file_gets_the_mode_and_its_parents() {
        let tree = tempfile::tempdir().unwrap();
        let file = tree.path().join("x/y/a");
        let op = json!({"path": path(&file), "mode": 0o666});
        assert_eq!(refusal("write", op.clone()).0, ErrorCode::NotFound);
        let mut op = op;
        op["parents"] = json!(true);
        with_input("write", op, b"1").0.unwrap();
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o666);
        assert_eq!(listing(file.parent().unwrap()), ["a"]);
    }

    #[test]
    fn the_file_behind_a_link_is_replaced_and_the_link_stays() {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("a"), "old").unwrap();
        symlink("a", tree.path().join("link")).unwrap();
        symlink("nothing", tree.path().join("dangling")).unwrap();
        let op = json!({"path": path(&tree.path().join("link"))});
        with_input("write", op, b"new").0.unwrap();
        assert!(tree.path().join("link").is_symlink());
        assert_eq!(fs::read(tree.path().join("a")).unwrap(), b"new");
        let op = json!({"path": path(&tree.path().join("dangling"))});
        assert_eq!(refusal("write", op).0, ErrorCode::NotFound);
    }

    #[test]
    fn appending_and_offsets_leave_the_rest() {
        let tree = tempfile::tempdir().unwrap();
        let file = tree.path().join("a");
        let write = |at, input: &[u8]| {
            with_input("write", json!({"path": path(&file), "at": at}), input).0.unwrap();
            fs::read(&file).unwrap()
        };
        assert_eq!(write(json!("append"), b"abc"), b"abc");
        assert_eq!(write(json!("append"), b"def"), b"abcdef");
        assert_eq!(write(json!({"offset": 2}), b"XY"), b"abXYef");
        assert_eq!(write(json!({"offset": 8}), b"Z"), b"abXYef\0\0Z");
    }

    #[test]
    fn a_named_partial_goes_when_the_write_fails() {
        let tree = tempfile::tempdir().unwrap();
        let directory = rustix::fs::open(tree.path(), OFlags::PATH, Mode::empty()).unwrap();
        let name = partial_name().unwrap();
        let file = File::create(tree.path().join(&name)).unwrap();
        drop(Partial { directory: &directory, file, name: Some(name) });
        assert!(listing(tree.path()).is_empty());
    }

    /// A file system of 64 KiB, where this process may mount one.
    fn tiny_disk(at: &Path) -> bool {
        let data = Some(c"size=64k");
        let flags = rustix::mount::MountFlags::empty();
        let mounted = rustix::mount::mount("tmpfs", at, "tmpfs", flags, data).is_ok();
        if !mounted {
            eprintln!("NOT RUN: a full disk needs the right to mount a tmpfs");
        }
        mounted
    }

    #[test]
    fn a_full_disk_is_exhausted_and_leaves_what_was_there() {
        let tree = tempfile::tempdir().unwrap();
        if !tiny_disk(tree.path()) {
            return;
        }
        let file = tree.path().join("a");
        fs::write(&file, "old").unwrap();
        let op = json!({"path": path(&file)});
        let error = with_input("write", op, &vec![1; 200_000]).0.unwrap_err();
        let left = (fs::read(&file).unwrap(), listing(tree.path()));
        rustix::mount::unmount(tree.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
        assert_eq!(error.code, ErrorCode::Exhausted, "{error}");
        assert!(error.message.contains("No space left"), "{error}");
        assert_eq!(left, (b"old".to_vec(), vec![OsString::from("a")]));
    }
}
