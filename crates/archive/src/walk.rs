//! A tree below a root in one order, with a bounded number of open files.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::Dir;

use crate::root::is_gone;
use crate::{Inode, InodeKind, Name, NameError, Root};

/// Directories kept open on the way down. Deeper trees reopen the upper ones on the way back, so
/// that no tree is too deep for the limit on open files.
const OPEN_DIRECTORIES: usize = 32;

/// What a walk meets.
#[derive(Debug)]
pub struct Entry<'a> {
    /// Below the root.
    pub name: &'a Name,
    /// Its metadata.
    pub inode: Inode,
    /// The directory that holds it.
    pub directory: BorrowedFd<'a>,
    /// What it is called there.
    pub component: &'a OsStr,
}

/// Where to go from an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Into it, if it is a directory.
    Into,
    /// On to the next.
    Over,
}

/// Why a walk ended early.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// A directory could not be opened or read.
    #[error("cannot read the directory '{name}': {source}")]
    ReadDirectory {
        /// Which.
        name: Name,
        /// The system's reason.
        source: io::Error,
    },
    /// An entry's metadata could not be read.
    #[error("cannot look at '{name}': {source}")]
    Look {
        /// Which.
        name: Name,
        /// The system's reason.
        source: io::Error,
    },
    /// The tree is deeper than a path can be long.
    #[error("the directory '{directory}' holds an entry that cannot be named: {source}")]
    Name {
        /// Where.
        directory: Name,
        /// What is wrong with the name.
        source: NameError,
    },
}

struct Frame {
    name: Name,
    directory: Option<Dir>,
    children: std::vec::IntoIter<Vec<u8>>,
}

impl Frame {
    fn open(root: &Root, name: Name) -> io::Result<Self> {
        let mut directory = Dir::new(root.listing(&name)?)?;
        let mut children = Vec::new();
        while let Some(entry) = directory.read() {
            let entry = entry?;
            let child = entry.file_name().to_bytes();
            if !matches!(child, b"." | b"..") {
                children.push(child.to_vec());
            }
        }
        children.sort_unstable();
        Ok(Self { name, directory: Some(directory), children: children.into_iter() })
    }
}

/// Visits everything below `from`, a directory before what it holds, siblings by their bytes.
/// Nothing is followed. What goes away during the walk is passed over in silence.
///
/// # Errors
/// The visitor's own, or what kept the walk from going on.
pub fn walk<E: From<WalkError>>(
    root: &Root,
    from: &Name,
    mut visit: impl FnMut(Entry<'_>) -> Result<Step, E>,
) -> Result<(), E> {
    let start = Frame::open(root, from.clone())
        .map_err(|source| WalkError::ReadDirectory { name: from.clone(), source })?;
    let mut frames = vec![start];
    while let Some(frame) = frames.last_mut() {
        let Some(child) = frame.children.next() else {
            frames.pop();
            continue;
        };
        let directory = match frame.directory.take() {
            Some(directory) => directory,
            None => match root.listing(&frame.name).and_then(|fd| Ok(Dir::new(fd)?)) {
                Ok(directory) => directory,
                Err(error) if is_gone(&error) => {
                    frames.pop();
                    continue;
                }
                Err(source) => {
                    return Err(
                        WalkError::ReadDirectory { name: frame.name.clone(), source }.into()
                    );
                }
            },
        };
        let directory = frame.directory.insert(directory);
        let name = frame
            .name
            .join(&child)
            .map_err(|source| WalkError::Name { directory: frame.name.clone(), source })?;
        let component = OsStr::from_bytes(&child);
        let fd = directory
            .fd()
            .map_err(|error| WalkError::Look { name: name.clone(), source: error.into() })?;
        let inode = match Inode::at(fd.as_fd(), component) {
            Ok(inode) => inode,
            Err(error) if is_gone(&error) => continue,
            Err(source) => return Err(WalkError::Look { name, source }.into()),
        };
        let step = visit(Entry { name: &name, inode, directory: fd.as_fd(), component })?;
        if step == Step::Into && inode.kind == InodeKind::Directory {
            match Frame::open(root, name.clone()) {
                Ok(frame) => {
                    if frames.len() >= OPEN_DIRECTORIES {
                        let far = frames.len() - OPEN_DIRECTORIES;
                        frames[far].directory = None;
                    }
                    frames.push(frame);
                }
                Err(error) if is_gone(&error) => {}
                Err(source) => return Err(WalkError::ReadDirectory { name, source }.into()),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(root: &Root) -> Vec<String> {
        let mut names = Vec::new();
        walk(root, &Name::ROOT, |entry| {
            names.push(entry.name.to_string());
            Ok::<_, WalkError>(Step::Into)
        })
        .unwrap();
        names
    }

    #[test]
    fn directories_come_before_their_entries_and_siblings_by_bytes() {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir_all(tree.path().join("b/c")).unwrap();
        for file in ["z", "b/y", "b/c/x", "B", "b-"] {
            fs::write(tree.path().join(file), "").unwrap();
        }
        symlink(".", tree.path().join("loop")).unwrap();
        let root = Root::open(tree.path()).unwrap();
        assert_eq!(names(&root), ["B", "b", "b/c", "b/c/x", "b/y", "b-", "loop", "z"]);
    }

    #[test]
    fn a_deep_tree_needs_few_open_files() {
        let tree = tempfile::tempdir().unwrap();
        let mut path = tree.path().to_owned();
        for _ in 0..200 {
            path.push("d");
            fs::create_dir(&path).unwrap();
            fs::write(path.join("e"), "").unwrap();
        }
        let root = Root::open(tree.path()).unwrap();
        let open = || fs::read_dir("/proc/self/fd").unwrap().count();
        let before = open();
        let mut most = 0;
        let mut count = 0;
        walk(&root, &Name::ROOT, |_| {
            most = most.max(open());
            count += 1;
            Ok::<_, WalkError>(Step::Into)
        })
        .unwrap();
        assert_eq!(count, 400);
        // Other tests of this process open files too.
        assert!(most <= before + OPEN_DIRECTORIES + 64, "{before} {most}");
    }

    #[test]
    fn an_unreadable_directory_is_named() {
        if rustix::process::geteuid().is_root() {
            eprintln!("NOT RUN: root reads every directory");
            return;
        }
        let tree = tempfile::tempdir().unwrap();
        let locked = tree.path().join("locked");
        fs::create_dir(&locked).unwrap();
        fs::set_permissions(&locked, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
        let root = Root::open(tree.path()).unwrap();
        let error = walk(&root, &Name::ROOT, |_| Ok::<_, WalkError>(Step::Into)).unwrap_err();
        assert!(error.to_string().contains("'locked'"), "{error}");
    }
}
