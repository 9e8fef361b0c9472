//! Renames between the staging directory and the destination that can all be undone.

use std::io;
use std::os::fd::OwnedFd;

use archive::{Name, Root};
use rustix::fs::{RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::receive::UnpackError;
use crate::staging::Staging;

/// One step that was taken.
#[derive(Debug)]
enum Done {
    /// New to destination.
    Brought(Name),
    /// New and destination changed places.
    Exchanged(Name),
    /// Destination to old.
    Taken(Name),
    /// Permission bits were these.
    Moded(Name, u32),
}

/// Moves entries and remembers how to move them back. Parents are looked up without following
/// links on either side, and a rename does not follow the last component, so nothing lands
/// outside whatever stands in the destination.
#[derive(Debug)]
pub(crate) struct Moves<'a> {
    staging: &'a mut Staging,
    destination: &'a Root,
    done: Vec<Done>,
}

impl<'a> Moves<'a> {
    pub(crate) fn new(staging: &'a mut Staging, destination: &'a Root) -> Self {
        Self { staging, destination, done: Vec::new() }
    }

    /// Runs `steps`; if they fail, undoes what they did.
    pub(crate) fn all_or_none(
        mut self,
        steps: impl FnOnce(&mut Self) -> Result<(), UnpackError>,
    ) -> Result<(), UnpackError> {
        let Err(cause) = steps(&mut self) else { return Ok(()) };
        while let Some(done) = self.done.pop() {
            if let Err((name, source)) = self.undo(done) {
                self.staging.keep();
                let kept = self.staging.path().to_owned();
                return Err(UnpackError::Undo { name, source, cause: Box::new(cause), kept });
            }
        }
        Err(cause)
    }

    /// Puts a new entry, with all in it, where nothing stands.
    pub(crate) fn bring(&mut self, name: &Name) -> Result<(), UnpackError> {
        rename_to_nothing(&self.staging.new, self.destination, name).map_err(placing(name))?;
        self.done.push(Done::Brought(name.clone()));
        Ok(())
    }

    /// Puts a new entry in the place of what stands there. On file systems that can, there is no
    /// moment at which the name is missing.
    pub(crate) fn replace(&mut self, name: &Name) -> Result<(), UnpackError> {
        match rename(&self.staging.new, self.destination, name, RenameFlags::EXCHANGE) {
            Ok(()) => self.done.push(Done::Exchanged(name.clone())),
            Err(error) if is_unsupported(&error) => {
                self.take(name)?;
                self.bring(name)?;
            }
            Err(error) => return Err(placing(name)(error)),
        }
        Ok(())
    }

    /// Takes an entry, with all in it, out of the destination.
    pub(crate) fn take(&mut self, name: &Name) -> Result<(), UnpackError> {
        if let Some((parent, _)) = name.split() {
            self.staging.old.make_directories(&parent).map_err(placing(name))?;
        }
        rename_to_nothing(self.destination, &self.staging.old, name).map_err(placing(name))?;
        self.done.push(Done::Taken(name.clone()));
        Ok(())
    }

    /// Sets a directory's permission bits.
    pub(crate) fn set_mode(&mut self, name: &Name, mode: u32) -> Result<(), UnpackError> {
        let before = self.destination.inode(name).map_err(placing(name))?;
        self.destination.set_directory(name, mode, None).map_err(placing(name))?;
        if let Some(before) = before {
            self.done.push(Done::Moded(name.clone(), before.mode));
        }
        Ok(())
    }

    /// Gives a directory that was brought its metadata.
    pub(crate) fn finish(&self, directory: &archive::Directory) -> Result<(), UnpackError> {
        let archive::Directory { name, mode, mtime } = directory;
        self.destination.set_directory(name, *mode, Some(*mtime)).map_err(placing(name))
    }

    fn undo(&self, done: Done) -> Result<(), (Name, io::Error)> {
        let new = &self.staging.new;
        let (name, undone) = match done {
            Done::Brought(name) => {
                // It may have its final permissions, which may forbid to move it.
                let _ = self.destination.set_directory(&name, 0o700, None);
                let undone = rename_to_nothing(self.destination, new, &name);
                (name, undone)
            }
            Done::Exchanged(name) => {
                let undone = rename(new, self.destination, &name, RenameFlags::EXCHANGE);
                (name, undone)
            }
            Done::Taken(name) => {
                let undone = rename_to_nothing(&self.staging.old, self.destination, &name);
                (name, undone)
            }
            Done::Moded(name, mode) => {
                let undone = self.destination.set_directory(&name, mode, None);
                (name, undone)
            }
        };
        undone.map_err(|source| (name, source))
    }
}

fn placing(name: &Name) -> impl FnOnce(io::Error) -> UnpackError + '_ {
    move |source| UnpackError::Place { name: name.clone(), source }
}

/// File systems, and kernels, that lack a way of renaming say so by one of these.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP))
}

fn rename_to_nothing(from: &Root, to: &Root, name: &Name) -> io::Result<()> {
    match rename(from, to, name, RenameFlags::NOREPLACE) {
        Err(error) if is_unsupported(&error) => match to.inode(name)? {
            Some(_) => Err(Errno::EXIST.into()),
            None => rename(from, to, name, RenameFlags::empty()),
        },
        renamed => renamed,
    }
}

fn rename(from: &Root, to: &Root, name: &Name, flags: RenameFlags) -> io::Result<()> {
    let (parent, component) = name.split().ok_or(Errno::BUSY)?;
    let [from, to]: [OwnedFd; 2] = [from.directory(&parent)?, to.directory(&parent)?];
    Ok(renameat_with(from, component, to, component, flags)?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn every_kind_of_step_is_undone() {
        let place = tempfile::tempdir().unwrap();
        let host = place.path().join("host");
        fs::create_dir_all(host.join("d/e")).unwrap();
        for file in ["a", "b", "d/e/f"] {
            fs::write(host.join(file), file).unwrap();
        }
        let mut staging = Staging::beside(&host).unwrap();
        for file in ["a", "b", "n"] {
            fs::write(staging.new_path().join(file), "new").unwrap();
        }
        let root = Root::open(&host).unwrap();
        let failed = Moves::new(&mut staging, &root).all_or_none(|moves| {
            moves.bring(&name("n"))?;
            moves.replace(&name("a"))?;
            // What a replacement is on a file system without RENAME_EXCHANGE.
            moves.take(&name("b"))?;
            moves.bring(&name("b"))?;
            moves.set_mode(&name("d"), 0o700)?;
            moves.take(&name("d/e"))?;
            assert_eq!(fs::read(host.join("a")).unwrap(), b"new");
            assert_eq!(fs::read(host.join("b")).unwrap(), b"new");
            assert!(!host.join("d/e").exists());
            moves.bring(&name("missing"))
        });
        assert!(matches!(failed, Err(UnpackError::Place { .. })));
        drop(staging);
        for file in ["a", "b", "d/e/f"] {
            assert_eq!(fs::read(host.join(file)).unwrap(), file.as_bytes());
        }
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(host.join("d")).unwrap());
        assert_ne!(mode & 0o777, 0o700);
        assert!(!host.join("n").exists());
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1, "no staging stays");
    }

    #[test]
    fn nothing_new_takes_the_place_of_what_nobody_expected() {
        let place = tempfile::tempdir().unwrap();
        let host = place.path().join("host");
        fs::create_dir(&host).unwrap();
        let mut staging = Staging::beside(&host).unwrap();
        fs::write(staging.new_path().join("a"), "new").unwrap();
        fs::write(host.join("a"), "made meanwhile").unwrap();
        let root = Root::open(&host).unwrap();
        let brought = Moves::new(&mut staging, &root).all_or_none(|moves| moves.bring(&name("a")));
        assert!(brought.is_err());
        assert_eq!(fs::read(host.join("a")).unwrap(), b"made meanwhile");
    }
}
