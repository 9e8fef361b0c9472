//! Where things lie: descriptors below the shared directory, and nothing else.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use rustix::fs::{
    FileType, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags, Stat, fstat, fstatfs, open, openat,
    openat2, readlinkat,
};
use rustix::io::Errno;
use rustix::path::DecInt;

use crate::ShareError;
use crate::request::Component;

/// How often a lookup that met a change is made again.
const TRIES: usize = 16;
/// What the kernel writes behind the path of something that has no name any more.
const DELETED: &[u8] = b" (deleted)";

/// The shared directory, and the way back from a descriptor to what it is of.
#[derive(Debug)]
pub(crate) struct Place {
    root: OwnedFd,
    /// `/proc/self/fd`.
    descriptors: OwnedFd,
    /// Where the directory lay when it was last looked.
    path: RwLock<PathBuf>,
    resolve: ResolveFlags,
}

impl Place {
    /// Also a second descriptor of the directory, for its node.
    pub(crate) fn open(
        directory: &OwnedFd,
        cross_mounts: bool,
    ) -> Result<(Self, OwnedFd, Stat), ShareError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptors = open("/proc/self/fd", flags, Mode::empty()).map_err(ShareError::Proc)?;
        let system = fstatfs(&descriptors).map_err(ShareError::Proc)?;
        if system.f_type != PROC_SUPER_MAGIC {
            return Err(ShareError::Proc(Errno::NOSYS));
        }
        let stat = fstat(directory).map_err(ShareError::Open)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Err(ShareError::NotADirectory);
        }
        let again = || openat(directory, ".", flags, Mode::empty()).map_err(ShareError::Open);
        let (root, node) = (again()?, again()?);
        let mut resolve = ResolveFlags::BENEATH
            | ResolveFlags::NO_MAGICLINKS
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_XDEV;
        resolve.set(ResolveFlags::NO_XDEV, !cross_mounts);
        let place = Self { root, descriptors, path: RwLock::default(), resolve };
        let path = place.absolute(&place.root).map_err(ShareError::Open)?;
        *place.path.write().unwrap_or_else(PoisonError::into_inner) = path;
        Ok((place, node, stat))
    }

    pub(crate) fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Opens a name in a directory, and never what it leads to.
    pub(crate) fn enter(
        &self,
        directory: impl AsFd,
        name: Component<'_>,
        flags: OFlags,
        mode: Mode,
    ) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for _ in 0..TRIES {
            match openat2(&directory, name.as_os_str(), flags, mode, self.resolve) {
                // Something was renamed meanwhile.
                Err(Errno::AGAIN | Errno::INTR) => {}
                // Another file system is mounted there.
                Err(Errno::XDEV) => return Err(Errno::ACCESS),
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// What a name stands for, without opening it.
    pub(crate) fn find(
        &self,
        directory: impl AsFd,
        name: Component<'_>,
    ) -> Result<(OwnedFd, Stat), Errno> {
        let found = self.enter(directory, name, OFlags::PATH, Mode::empty())?;
        let stat = fstat(&found)?;
        Ok((found, stat))
    }

    /// Opens what a descriptor is of: what is not a file or a directory is not touched.
    pub(crate) fn reopen(
        &self,
        descriptor: &OwnedFd,
        kind: FileType,
        flags: OFlags,
    ) -> Result<OwnedFd, Errno> {
        let flags = match kind {
            FileType::RegularFile => flags,
            FileType::Directory => flags | OFlags::DIRECTORY,
            _ => return Err(Errno::ACCESS),
        };
        // What kind of thing a descriptor is of never changes, so nothing here can wait for a writer.
        let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        openat(&self.descriptors, Self::number(descriptor), flags, Mode::empty())
    }

    /// The directory and the name by which system calls that take no descriptor find what it is of.
    pub(crate) fn link(&self, descriptor: &OwnedFd) -> (&OwnedFd, DecInt) {
        (&self.descriptors, Self::number(descriptor))
    }

    fn number(descriptor: &OwnedFd) -> DecInt {
        DecInt::new(descriptor.as_raw_fd())
    }

    /// For calls that take a path alone.
    pub(crate) fn path_to(descriptor: &OwnedFd) -> String {
        format!("/proc/self/fd/{}", descriptor.as_raw_fd())
    }

    fn absolute(&self, descriptor: &OwnedFd) -> Result<PathBuf, Errno> {
        let link = readlinkat(&self.descriptors, Self::number(descriptor), Vec::new())?;
        Ok(PathBuf::from(std::ffi::OsString::from_vec(link.into_bytes())))
    }

    /// Where it lies below the shared directory at this moment; empty for that itself.
    ///
    /// # Errors
    /// `ESTALE` where it lies elsewhere: somebody of the host moved it away.
    pub(crate) fn path(&self, descriptor: &OwnedFd) -> Result<PathBuf, Errno> {
        let path = self.absolute(descriptor)?;
        let below = |root: &Path| path.strip_prefix(root).map(Path::to_owned).ok();
        if let Some(path) = below(&self.path.read().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(path);
        }
        let root = self.absolute(&self.root)?;
        let found = below(&root);
        *self.path.write().unwrap_or_else(PoisonError::into_inner) = root;
        found.ok_or(Errno::STALE)
    }
}

/// The path without what the kernel adds once it is nobody's any more, where it could be that.
pub(crate) fn last_known(path: &Path) -> Option<&Path> {
    let bytes = path.as_os_str().as_bytes().strip_suffix(DELETED)?;
    Some(Path::new(OsStr::from_bytes(bytes)))
}

/// Whether a symbolic link in a directory of this depth leads out, or could once others are moved:
/// steps up come first, and are no more than there are directories above.
pub(crate) fn leads_out(depth: usize, target: &[u8]) -> bool {
    if target.starts_with(b"/") {
        return true;
    }
    let mut parts = target.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    let up = parts.by_ref().take_while(|part| *part == b"..").count();
    // `take_while` took the first that is not; the rest must have no step up either.
    up > depth || parts.any(|part| part == b"..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_could_lead_out_are_known() {
        for (depth, target, expected) in [
            (0, "a", false),
            (0, "./a/b", false),
            (1, "../a", false),
            (0, "..", true),
            (1, "../..", true),
            (1, "/etc/passwd", true),
            // `s` may itself be a link that leads up.
            (2, "s/../x", true),
            (2, ".././../x", false),
        ] {
            assert_eq!(leads_out(depth, target.as_bytes()), expected, "{target} at {depth}");
        }
    }
}
