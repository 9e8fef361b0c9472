//! What stands at a path: `stat` and `list`.

use std::ffi::OsStr;
use std::fs;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;

use archive::{Inode, InodeKind, Name, Root, Step, WalkError, walk};
use rustix::io::Errno;
use wire::op::{ErrorCode, FileInfo, FileKind, List, OpError, Stat, Transferred};
use wire::text::Text;

use super::{absolute, failed, invalid, output_failed, told};

pub(super) fn stat(op: &Stat) -> Result<FileInfo, OpError> {
    let path = absolute(&op.path)?;
    let tried = |error| failed("look at", path, error);
    let metadata =
        if op.follow { fs::metadata(path) } else { fs::symlink_metadata(path) }.map_err(tried)?;
    let kind = metadata.file_type();
    let target = if kind.is_symlink() {
        Text::new(fs::read_link(path).map_err(tried)?.into_os_string().into_vec()).ok()
    } else {
        None
    };
    Ok(FileInfo {
        path: op.path.clone(),
        kind: if kind.is_file() {
            FileKind::File
        } else if kind.is_dir() {
            FileKind::Directory
        } else if kind.is_symlink() {
            FileKind::Symlink
        } else {
            FileKind::Other
        },
        size: metadata.size(),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime_ms: milliseconds(metadata.mtime(), metadata.mtime_nsec()),
        target,
    })
}

/// One line an entry, a directory before what it holds, siblings by their bytes. A directory below
/// that may not be read is listed, its entries are not.
pub(super) fn list(op: &List, output: File) -> Result<Transferred, OpError> {
    let path = absolute(&op.path)?;
    if op.depth == 0 {
        return Err(invalid("the depth of a list starts at 1"));
    }
    let root = Root::open(path).map_err(|error| failed("list", path, error))?;
    let mut lines =
        Lines { output: BufWriter::new(output), sent: Transferred { bytes: 0, entries: 0 } };
    walk(&root, &Name::ROOT, |entry| {
        lines.send(&info(entry.name, &entry.inode, entry.directory, entry.component))?;
        let depth = entry.name.components().count();
        let deeper = u32::try_from(depth).is_ok_and(|depth| depth < op.depth)
            && entry.inode.kind == InodeKind::Directory
            && may_list(&root, entry.name);
        Ok::<_, ListError>(if deeper { Step::Into } else { Step::Over })
    })
    .map_err(|ListError(error)| error)?;
    lines.output.flush().map_err(|error| output_failed(&error))?;
    Ok(lines.sent)
}

fn may_list(root: &Root, name: &Name) -> bool {
    match root.listing(name) {
        Err(error) => !matches!(Errno::from_io_error(&error), Some(Errno::ACCESS | Errno::PERM)),
        Ok(_) => true,
    }
}

struct Lines {
    output: BufWriter<File>,
    sent: Transferred,
}

impl Lines {
    fn send(&mut self, info: &FileInfo) -> Result<(), ListError> {
        let mut line = serde_json::to_vec(info)
            .map_err(|error| ListError(OpError::new(ErrorCode::Failed, error.to_string())))?;
        line.push(b'\n');
        self.output.write_all(&line).map_err(|error| ListError(output_failed(&error)))?;
        self.sent.bytes += line.len() as u64;
        self.sent.entries += 1;
        Ok(())
    }
}

struct ListError(OpError);

impl From<WalkError> for ListError {
    fn from(error: WalkError) -> Self {
        Self(walk_failed(&error))
    }
}

pub(super) fn walk_failed(error: &WalkError) -> OpError {
    match error {
        WalkError::ReadDirectory { source, .. } | WalkError::Look { source, .. } => {
            told(error, source)
        }
        WalkError::Name { .. } => invalid(error.to_string()),
    }
}

fn info(name: &Name, inode: &Inode, directory: BorrowedFd<'_>, component: &OsStr) -> FileInfo {
    let target = match inode.kind {
        InodeKind::Symlink => rustix::fs::readlinkat(directory.as_fd(), component, Vec::new())
            .ok()
            .and_then(|target| Text::new(target.into_bytes()).ok()),
        _ => None,
    };
    FileInfo {
        path: Text::new(name.as_bytes()).unwrap_or_default(),
        kind: match inode.kind {
            InodeKind::File => FileKind::File,
            InodeKind::Directory => FileKind::Directory,
            InodeKind::Symlink => FileKind::Symlink,
            InodeKind::Fifo | InodeKind::Socket | InodeKind::Device => FileKind::Other,
        },
        size: inode.size,
        mode: inode.mode,
        uid: inode.owner.0,
        gid: inode.owner.1,
        mtime_ms: milliseconds(inode.mtime.0, inode.mtime.1.into()),
        target,
    }
}

fn milliseconds(seconds: i64, nanoseconds: i64) -> i64 {
    seconds.saturating_mul(1000).saturating_add(nanoseconds / 1_000_000)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::path::Path;

    use serde_json::json;

    use super::super::tests::{ask, path, refusal};
    use super::*;

    fn list_of(directory: &Path, depth: u32) -> Vec<FileInfo> {
        let (reply, output) = ask("list", json!({"path": path(directory), "depth": depth}));
        let lines: Vec<FileInfo> = output
            .split_inclusive(|&byte| byte == b'\n')
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect();
        let sent: Transferred = serde_json::from_value(reply.unwrap()).unwrap();
        assert_eq!((sent.bytes, sent.entries), (output.len() as u64, lines.len() as u64));
        lines
    }

    #[test]
    fn stat_tells_a_link_from_what_it_names() {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("a"), "12345").unwrap();
        fs::set_permissions(tree.path().join("a"), fs::Permissions::from_mode(0o640)).unwrap();
        symlink("a", tree.path().join("link")).unwrap();
        let at = path(&tree.path().join("link"));
        let link = ask("stat", json!({"path": at})).0.unwrap();
        assert_eq!((&link["kind"], &link["target"]), (&json!("symlink"), &json!("a")));
        let file = ask("stat", json!({"path": at, "follow": true})).0.unwrap();
        assert_eq!(
            (&file["kind"], &file["size"], &file["mode"]),
            (&json!("file"), &json!(5), &json!(0o640))
        );
        assert!(file.get("target").is_none());
        assert!(file["mtime_ms"].as_i64().unwrap() > 1_600_000_000_000);
    }

    #[test]
    fn a_list_is_ordered_as_deep_as_asked_and_follows_nothing() {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir_all(tree.path().join("d/e")).unwrap();
        fs::write(tree.path().join("d/e/f"), "x").unwrap();
        fs::write(tree.path().join("c"), "x").unwrap();
        symlink("/etc", tree.path().join("etc")).unwrap();
        let names = |depth| -> Vec<String> {
            list_of(tree.path(), depth).iter().map(|info| info.path.to_string_lossy()).collect()
        };
        assert_eq!(names(1), ["c", "d", "etc"]);
        assert_eq!(names(2), ["c", "d", "d/e", "etc"]);
        assert_eq!(names(u32::MAX), ["c", "d", "d/e", "d/e/f", "etc"]);
        let etc = list_of(tree.path(), 9).pop().unwrap();
        assert_eq!((etc.kind, etc.target), (FileKind::Symlink, Some(Text::from("/etc"))));
    }

    #[test]
    fn names_that_are_not_text_and_directories_of_thousands_are_listed() {
        let tree = tempfile::tempdir().unwrap();
        for at in 0..5000 {
            fs::write(tree.path().join(format!("{at:05}")), "").unwrap();
        }
        let odd = std::ffi::OsString::from_vec(b"\xff\n".to_vec());
        fs::write(tree.path().join(odd), "").unwrap();
        let list = list_of(tree.path(), 1);
        assert_eq!(list.len(), 5001);
        assert_eq!(list[5000].path.as_bytes(), b"\xff\n");
    }

    #[test]
    fn what_cannot_be_listed_says_why() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (code, message) = refusal("list", json!({"path": path(file.path())}));
        assert_eq!(code, ErrorCode::Invalid);
        assert!(message.ends_with("Not a directory"), "{message}");
        assert_eq!(refusal("list", json!({"path": "/no/such"})).0, ErrorCode::NotFound);
        assert_eq!(refusal("list", json!({"path": "/", "depth": 0})).0, ErrorCode::Invalid);
    }
}
