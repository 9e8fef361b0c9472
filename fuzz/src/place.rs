//! A directory tree on disk, and what it looked like before.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use archive::Name;
use workspace::{Below, Resolution, Steps, resolve};

/// Where something happens, with what must not change beside it.
#[derive(Debug)]
pub struct Place {
    directory: tempfile::TempDir,
}

/// All that can be seen of a tree, but for times.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture(BTreeMap<Vec<u8>, Seen>);

/// All that can be seen of an entry.
#[derive(Clone, PartialEq, Eq)]
pub enum Seen {
    /// Its permission bits.
    Directory(u32),
    /// Its permission bits and content.
    File(u32, Vec<u8>),
    /// Its target.
    Symlink(Vec<u8>),
    /// A FIFO, a socket or a device.
    Special,
}

impl fmt::Debug for Picture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(name, seen)| write!(f, "\n  {} {seen:?}", name.escape_ascii()))
    }
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(mode) => write!(f, "is a directory {mode:o}"),
            Self::File(mode, content) => {
                let start = &content[..content.len().min(32)];
                write!(f, "is a file {mode:o} {} '{}'", content.len(), start.escape_ascii())
            }
            Self::Symlink(target) => write!(f, "-> {}", target.escape_ascii()),
            Self::Special => f.write_str("is special"),
        }
    }
}

impl Place {
    /// `dest` is empty; what is beside it would be hit by `../beside/kept`.
    pub fn new() -> Self {
        let place = Self { directory: tempfile::tempdir().expect("a temporary directory") };
        let beside = place.path().join("beside");
        fs::create_dir_all(beside.join("d")).expect("the tree beside");
        fs::write(beside.join("kept"), "kept").expect("the tree beside");
        set_mode(&beside, 0o750);
        std::os::unix::fs::symlink("kept", place.path().join("a")).expect("the link beside");
        place
    }

    /// What holds everything.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Where things are allowed to happen.
    pub fn destination(&self) -> PathBuf {
        self.path().join("dest")
    }

    /// How everything looks.
    pub fn picture(&self) -> Picture {
        Picture::of(self.path())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Directories that their owner may not write cannot be emptied.
        Hidden::below(self.path()).forget();
    }
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}

impl Picture {
    /// How a tree looks.
    pub fn of(root: &Path) -> Self {
        let hidden = Hidden::below(root);
        let mut picture = BTreeMap::new();
        let mut ahead = vec![root.to_owned()];
        while let Some(directory) = ahead.pop() {
            for entry in fs::read_dir(&directory).expect("a directory can be read") {
                let path = entry.expect("an entry can be read").path();
                let metadata = fs::symlink_metadata(&path).expect("an entry can be looked at");
                let mode = hidden.mode(&path).unwrap_or(metadata.mode() & 0o7777);
                let seen = if metadata.is_dir() {
                    ahead.push(path.clone());
                    Seen::Directory(mode)
                } else if metadata.is_symlink() {
                    let target = fs::read_link(&path).expect("a link can be read");
                    Seen::Symlink(target.as_os_str().as_bytes().to_vec())
                } else if metadata.is_file() {
                    Seen::File(mode, fs::read(&path).expect("a file can be read"))
                } else {
                    Seen::Special
                };
                let name = path.strip_prefix(root).expect("it is below");
                picture.insert(name.as_os_str().as_bytes().to_vec(), seen);
            }
        }
        drop(hidden);
        Self(picture)
    }

    /// Whether the owner may read all of it.
    pub fn is_readable(&self) -> bool {
        self.0.values().all(|seen| match seen {
            Seen::Directory(mode) => mode & 0o500 == 0o500,
            Seen::File(mode, _) => mode & 0o400 != 0,
            Seen::Symlink(_) | Seen::Special => true,
        })
    }

    /// Without what is in `dest`, and `dest` itself.
    pub fn beside(&self) -> Self {
        let is_beside = |name: &[u8]| name != b"dest" && !name.starts_with(b"dest/");
        Self(self.0.iter().filter(|(name, _)| is_beside(name)).map(clone).collect())
    }

    /// What is at a name.
    pub fn at(&self, name: &[u8]) -> Option<&Seen> {
        self.0.get(name)
    }

    /// Names and what is there.
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], &Seen)> {
        self.0.iter().map(|(name, seen)| (&name[..], seen))
    }

    /// The symbolic links that lead out of this tree, with those on their way.
    pub fn leaving(&self) -> Vec<(Name, Vec<Name>)> {
        let below = |name: &Name| match self.at(name.as_bytes()) {
            Some(Seen::Symlink(target)) => Below::Link(target.clone()),
            _ => Below::Plain,
        };
        let mut leaving = Vec::new();
        for (name, seen) in self.entries() {
            let Seen::Symlink(target) = seen else { continue };
            let name = Name::parse(name).expect("an entry has a usable name");
            let resolution = resolve(&name, target, below, &mut Steps::default());
            if let Some(Resolution::Leaves { through }) = resolution {
                leaving.push((name, through));
            }
        }
        leaving
    }
}

fn clone((name, seen): (&Vec<u8>, &Seen)) -> (Vec<u8>, Seen) {
    (name.clone(), seen.clone())
}

/// Entries that their owner may not look into or change, which are opened up for a while. Only
/// root needs no such thing.
struct Hidden(Vec<(PathBuf, u32)>);

impl Hidden {
    fn below(root: &Path) -> Self {
        let mut hidden = Vec::new();
        let mut ahead = vec![root.to_owned()];
        while let Some(directory) = ahead.pop() {
            for entry in fs::read_dir(&directory).expect("a directory can be read") {
                let path = entry.expect("an entry can be read").path();
                let metadata = fs::symlink_metadata(&path).expect("an entry can be looked at");
                let mode = metadata.mode() & 0o7777;
                let wanted = if metadata.is_dir() { 0o700 } else { 0o400 };
                if !metadata.is_symlink() && mode & wanted != wanted {
                    set_mode(&path, mode | wanted);
                    hidden.push((path.clone(), mode));
                }
                if metadata.is_dir() {
                    ahead.push(path);
                }
            }
        }
        Self(hidden)
    }

    fn mode(&self, path: &Path) -> Option<u32> {
        self.0.iter().find(|(hidden, _)| hidden == path).map(|(_, mode)| *mode)
    }

    /// Leaves them open.
    fn forget(mut self) {
        self.0.clear();
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // What is in a directory comes behind it.
        for (path, mode) in self.0.iter().rev() {
            set_mode(path, *mode);
        }
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("we own it");
}

/// Asks the kernel: every link below `root` that it follows to a place outside must be in
/// `leaving`, which is what [`resolve`] says.
pub fn check_with_the_kernel(root: &Path, picture: &Picture, leaving: &[(Name, Vec<Name>)]) {
    let root = root.canonicalize().expect("the root is there");
    for (name, seen) in picture.entries() {
        let name = Name::parse(name).expect("an entry has a usable name");
        if matches!(seen, Seen::Symlink(_))
            && let Ok(end) = root.join(name.as_path()).canonicalize()
            && !end.starts_with(&root)
        {
            assert!(
                leaving.iter().any(|(leaves, _)| *leaves == name),
                "{name} leads to {end:?}, and resolve() does not know"
            );
        }
    }
}
