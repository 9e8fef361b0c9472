//! The host's paths that a caller names, resolved so that what was decided about is what is used.
//!
//! A path is walked one component at a time from the root, each opened in the directory before
//! it with openat2(2), which follows nothing; symbolic links are read from the descriptor that
//! was found and walked in the same way. What comes out is the real path and a descriptor of
//! exactly what lies there. Policy decides about the path, and the descriptor is what is copied;
//! [`HostPath::recheck`] tells if the two have come apart in between.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Symbolic links that one path may lead through: the kernel's own bound (path_resolution(7)).
const MAX_LINKS: usize = 40;
/// Directories that one path may lie below: each takes a descriptor while it is walked.
const MAX_DEPTH: usize = 256;

/// A path of the host, resolved.
#[derive(Debug)]
pub struct HostPath {
    requested: PathBuf,
    real: PathBuf,
    descriptor: OwnedFd,
    device: u64,
    inode: u64,
    is_directory: bool,
}

/// Why a path of the host cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostPathError {
    /// It does not begin at the root.
    #[error("{} is not an absolute path", .0.display())]
    Relative(PathBuf),
    /// Something on the way is not there, or not to be entered.
    #[error("cannot open {}: {source}", .path.display())]
    Open {
        /// How far it goes, and the component that does not.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Its links lead in a circle, or nearly.
    #[error("{} leads through more than {MAX_LINKS} symbolic links", .0.display())]
    Links(PathBuf),
    /// It is too deep.
    #[error("{} lies below more than {MAX_DEPTH} directories", .0.display())]
    Deep(PathBuf),
    /// It has no name in UTF-8, so that no rule can name it.
    #[error("{} is not UTF-8, so that no rule of policy could name it", .0.display())]
    Unnamed(PathBuf),
    /// It is neither a directory nor a file.
    #[error("{} is neither a directory nor a file", .0.display())]
    Special(PathBuf),
    /// It is another one than policy decided about.
    #[error("{} was changed after policy had decided about it", .0.display())]
    Changed(PathBuf),
}

/// A directory on the way, and the name that it was found by.
struct Step {
    name: OsString,
    descriptor: OwnedFd,
}

/// A path without `.` and `..`, by its text alone.
pub(crate) fn folded(path: &Path) -> PathBuf {
    let mut folded = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => folded.push(name),
            Component::ParentDir => {
                folded.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    folded
}

impl HostPath {
    /// Walks the path.
    ///
    /// # Errors
    /// `HostPathError`.
    pub fn resolve(requested: &Path) -> Result<Self, HostPathError> {
        if !requested.is_absolute() {
            return Err(HostPathError::Relative(requested.into()));
        }
        let walk = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let failed =
            |path: PathBuf| move |error: Errno| HostPathError::Open { path, source: error.into() };
        let root = rustix::fs::openat(CWD, "/", walk | OFlags::DIRECTORY, Mode::empty())
            .map_err(failed("/".into()))?;
        let mut steps: Vec<Step> = Vec::new();
        let mut rest: VecDeque<OsString> = components(requested.as_os_str()).collect();
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            match name.as_bytes() {
                b"" | b"." => continue,
                // What is walked is the real path, so that its parent is the step before.
                b".." => {
                    steps.pop();
                    continue;
                }
                _ => {}
            }
            let here = steps.last().map_or_else(|| root.as_fd(), |step| step.descriptor.as_fd());
            let strict = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            let within = strict | ResolveFlags::BENEATH;
            let found = rustix::fs::openat2(here, name.as_os_str(), walk, Mode::empty(), within)
                .map_err(failed(real_path(&steps).join(&name)))?;
            let stat = rustix::fs::fstat(&found).map_err(failed(real_path(&steps).join(&name)))?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
                if steps.len() >= MAX_DEPTH {
                    return Err(HostPathError::Deep(requested.into()));
                }
                steps.push(Step { name, descriptor: found });
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(HostPathError::Links(requested.into()));
            }
            let target = rustix::fs::readlinkat(&found, "", Vec::new())
                .map_err(failed(real_path(&steps).join(&name)))?;
            let target = OsString::from_vec(target.into_bytes());
            if target.as_bytes().starts_with(b"/") {
                steps.clear();
            }
            for component in components(&target).collect::<Vec<_>>().into_iter().rev() {
                rest.push_front(component);
            }
        }
        let real = real_path(&steps);
        let descriptor = steps.pop().map_or(root, |step| step.descriptor);
        let stat = rustix::fs::fstat(&descriptor).map_err(failed(real.clone()))?;
        let is_directory = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => true,
            FileType::RegularFile => false,
            _ => return Err(HostPathError::Special(real)),
        };
        if real.to_str().is_none() {
            return Err(HostPathError::Unnamed(real));
        }
        Ok(Self {
            requested: requested.into(),
            real,
            descriptor,
            device: stat.st_dev,
            inode: stat.st_ino,
            is_directory,
        })
    }

    /// The path as it was asked for.
    pub fn requested(&self) -> &Path {
        &self.requested
    }

    /// The path without links, which policy decides about.
    pub fn real(&self) -> &str {
        self.real.to_str().expect("it was looked at")
    }

    /// Whether it is a directory, and not a file.
    pub fn is_directory(&self) -> bool {
        self.is_directory
    }

    /// A path to what was found, wherever that lies meanwhile. It holds as long as this does.
    pub fn handle(&self) -> PathBuf {
        // The link in /proc would be copied as a link without the dot.
        let mut handle = format!("/proc/self/fd/{}", self.descriptor.as_raw_fd());
        if self.is_directory {
            handle.push_str("/.");
        }
        handle.into()
    }

    /// Another descriptor of what was found.
    ///
    /// # Errors
    /// Where the system has none to give.
    pub fn descriptor(&self) -> std::io::Result<OwnedFd> {
        self.descriptor.try_clone()
    }

    /// Looks whether what was found still lies at the path that policy decided about.
    ///
    /// # Errors
    /// `Changed` where it was moved, removed or replaced.
    pub fn recheck(&self) -> Result<(), HostPathError> {
        let changed = || HostPathError::Changed(self.requested.clone());
        let link = format!("/proc/self/fd/{}", self.descriptor.as_raw_fd());
        let now = std::fs::read_link(link).map_err(|_| changed())?;
        let again = Self::resolve(&self.requested).map_err(|_| changed())?;
        let same = now == self.real
            && again.real == self.real
            && (again.device, again.inode) == (self.device, self.inode);
        if same { Ok(()) } else { Err(changed()) }
    }
}

fn components(path: &OsStr) -> impl Iterator<Item = OsString> {
    path.as_bytes().split(|byte| *byte == b'/').map(|part| OsStr::from_bytes(part).to_owned())
}

fn real_path(steps: &[Step]) -> PathBuf {
    let mut path = PathBuf::from("/");
    path.extend(steps.iter().map(|step| &step.name));
    path
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::fs::{RenameFlags, renameat_with};

    use super::*;

    fn directory() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().canonicalize().unwrap();
        (directory, real)
    }

    fn real_of(path: &Path) -> PathBuf {
        HostPath::resolve(path).unwrap().real().into()
    }

    #[test]
    fn links_of_every_kind_are_followed_to_where_they_lead() {
        let (_directory, base) = directory();
        fs::create_dir_all(base.join("a/b")).unwrap();
        fs::write(base.join("a/b/file"), "x").unwrap();
        symlink("a", base.join("relative")).unwrap();
        symlink(base.join("a/b"), base.join("absolute")).unwrap();
        symlink("../relative/b/file", base.join("a/up")).unwrap();

        assert_eq!(real_of(&base.join("relative/b")), base.join("a/b"));
        assert_eq!(real_of(&base.join("absolute/file")), base.join("a/b/file"));
        assert_eq!(real_of(&base.join("a/up")), base.join("a/b/file"));
        assert_eq!(real_of(&base.join("a//./b/../b/")), base.join("a/b"));
        assert_eq!(real_of(Path::new("/../..")), Path::new("/"));
    }

    #[test]
    fn what_is_no_file_and_no_directory_is_refused() {
        let (_directory, base) = directory();
        symlink("circle", base.join("circle")).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(base.join("socket")).unwrap();
        let resolve = |path: &str| HostPath::resolve(&base.join(path)).unwrap_err();

        assert!(matches!(resolve("circle"), HostPathError::Links(_)));
        assert!(matches!(resolve("socket"), HostPathError::Special(_)));
        assert!(matches!(resolve("missing"), HostPathError::Open { .. }));
        let relative = HostPath::resolve(Path::new("a")).unwrap_err();
        assert!(matches!(relative, HostPathError::Relative(_)));
        drop(socket);
    }

    #[test]
    fn a_link_of_proc_is_not_magic() {
        let (_directory, base) = directory();
        fs::write(base.join("file"), "x").unwrap();
        let file = fs::File::open(base.join("file")).unwrap();
        // The descriptor would be reached by magic even where no path leads there.
        fs::remove_file(base.join("file")).unwrap();
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        assert!(HostPath::resolve(&path).is_err());
    }

    #[test]
    fn what_was_decided_about_is_what_is_read_or_the_change_is_seen() {
        let (_directory, base) = directory();
        fs::create_dir(base.join("allowed")).unwrap();
        fs::write(base.join("allowed/file"), "harmless").unwrap();
        let path = HostPath::resolve(&base.join("allowed")).unwrap();
        assert!(path.recheck().is_ok());

        fs::rename(base.join("allowed"), base.join("moved")).unwrap();
        assert!(matches!(path.recheck(), Err(HostPathError::Changed(_))));
        symlink("moved", base.join("allowed")).unwrap();
        assert!(matches!(path.recheck(), Err(HostPathError::Changed(_))));
        // Still the same directory, whatever its name leads to.
        assert_eq!(fs::read_to_string(path.handle().join("file")).unwrap(), "harmless");
    }

    /// Somebody swaps a component for a link to a secret, as fast as it goes, while the path is
    /// resolved: whenever the secret is what was found, its own path is what policy is asked about.
    #[test]
    fn a_component_that_is_swapped_meanwhile_never_hides_where_it_leads() {
        const TRIES: usize = 20_000;
        let (_directory, base) = directory();
        fs::create_dir_all(base.join("allowed/project/src")).unwrap();
        fs::create_dir_all(base.join("secret/src")).unwrap();
        fs::write(base.join("allowed/project/src/name"), "project").unwrap();
        fs::write(base.join("secret/src/name"), "secret").unwrap();
        symlink("../secret", base.join("allowed/link")).unwrap();
        let stop = AtomicBool::new(false);
        let mut seen = (0, 0);

        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (one, other) = (base.join("allowed/project"), base.join("allowed/link"));
                while !stop.load(Ordering::Relaxed) {
                    renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).unwrap();
                }
            });
            for _ in 0..TRIES {
                // A directory that is renamed while it is entered may be missed, which is a refusal.
                let Ok(path) = HostPath::resolve(&base.join("allowed/project/src")) else {
                    continue;
                };
                let found = fs::read_to_string(path.handle().join("name")).unwrap();
                match found.as_str() {
                    "secret" => {
                        assert_eq!(Path::new(path.real()), base.join("secret/src"));
                        seen.0 += 1;
                    }
                    _ => {
                        assert!(Path::new(path.real()).starts_with(base.join("allowed")));
                        seen.1 += 1;
                    }
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(seen.0 > 0 && seen.1 > 0, "both were met: {seen:?}");
    }
}
