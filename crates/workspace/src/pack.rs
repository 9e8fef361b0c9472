//! A host directory, or one file, to a tar stream.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use archive::{
    Inode, InodeKind, Kind, Member, Name, Packing, Passed, Printable, Root, Step, WalkError, Writer,
};
use ignore::WalkBuilder;
use sha2::{Digest as _, Sha256};

use crate::{Manifest, Node};

/// Entries that are left out are counted; this many of them are also named.
pub const NAMED_LEFT_OUT: usize = 100;

/// How to pack.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackOptions {
    /// Leave out what git would ignore, by `.gitignore` files and the user's own list. `.git`
    /// itself goes in. A file that is ignored but tracked is left out too.
    pub gitignore: bool,
    /// Remember what was sent, which a later [`crate::sync_back`] needs.
    pub manifest: bool,
    /// What the one file is to be called, when a file is packed; its own name when absent.
    pub name: Option<Name>,
    /// What is left out beside that.
    pub hidden: Option<Hidden>,
}

/// Tells of a path below the directory whether it is left out, and all that is below it.
#[derive(Clone)]
pub struct Hidden(Arc<dyn Fn(&Path) -> bool + Send + Sync>);

impl Hidden {
    /// Leaves out what `hides` says.
    pub fn new(hides: impl Fn(&Path) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(hides))
    }

    /// Whether this path, or a directory that it is in, is hidden.
    pub fn covers(&self, path: &Path) -> bool {
        let above = path.ancestors().filter(|path| !path.as_os_str().is_empty());
        above.into_iter().any(|path| (self.0)(path))
    }

    pub(crate) fn hides(hidden: Option<&Self>, name: &Name) -> bool {
        hidden.is_some_and(|hidden| !name.is_root() && (hidden.0)(name.as_path()))
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hidden")
    }
}

/// Where they are the same, not where they say the same.
impl PartialEq for Hidden {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Hidden {}

/// How far it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of content.
    pub bytes: u64,
}

/// What there is to pack.
pub type Estimate = Progress;

/// What was packed.
#[derive(Debug, Clone, Default)]
pub struct Packed {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// Sockets, FIFOs, devices, and what went away before it was read.
    pub left_out: u64,
    /// The first [`NAMED_LEFT_OUT`] of them.
    pub left_out_names: Vec<(Name, Passed)>,
    /// What was sent; empty unless asked for.
    pub manifest: Manifest,
}

/// Why a directory could not be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// It could not be opened.
    #[error("cannot read '{}': {source}; give a directory or file that you can read", shown(path))]
    Open {
        /// What was asked for.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It is neither a file nor a directory.
    #[error("cannot copy '{}': it is neither a directory nor a file", shown(path))]
    Special {
        /// What was asked for.
        path: PathBuf,
    },
    /// Something in it could not be read.
    #[error(
        "cannot read '{}': {source}; make it readable, or move it out of the directory",
        shown(path)
    )]
    Read {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Something in it has a name that no archive can carry.
    #[error("cannot copy what is in '{}': {source}", shown(path))]
    Name {
        /// The directory that holds it.
        path: PathBuf,
        /// What is wrong.
        source: archive::NameError,
    },
    /// The list of ignored files could not be made.
    #[error("cannot tell what git ignores: {0}")]
    Ignore(#[source] ignore::Error),
    /// What was read could not be passed on.
    #[error("cannot send the files: {0}")]
    Send(#[source] io::Error),
}

fn shown(path: &Path) -> Printable<'_> {
    Printable(path.as_os_str().as_bytes())
}

/// Streams a tar of what is in a directory, or of one file: `.git` and empty directories
/// included, links as links and never followed (only `path` itself may be one), permissions and
/// times (in seconds) kept, owners not. Files that change meanwhile do no harm to the archive. The
/// same tree gives the same bytes.
///
/// # Errors
/// What could not be read or sent. The archive is unusable then: a workspace with a silent gap
/// would be worse.
pub fn pack(
    path: &Path,
    options: &PackOptions,
    output: &mut impl Write,
    progress: &mut dyn FnMut(Progress),
) -> Result<Packed, PackError> {
    let source = Source::open(path, options)?;
    let mut writer = Writer::new(output);
    let mut sending = Sending {
        kept: source.kept.as_ref(),
        hidden: options.hidden.as_ref(),
        manifest: options.manifest,
        hash: Sha256::new(),
        packed: Packed::default(),
        progress,
    };
    match &source.file {
        None => archive::pack(&source.root, &mut writer, &mut sending),
        Some((from, name)) => {
            archive::pack_one(&source.root, from, name, &mut writer, &mut sending)
        }
    }
    .map_err(|error| match error {
        archive::PackError::Walk(error) => source.walk_failed(error),
        archive::PackError::ReadFile { name, source: error } => {
            PackError::Read { path: source.path(&name), source: error }
        }
        archive::PackError::Send(error) => PackError::Send(error),
    })?;
    writer.finish().map_err(PackError::Send)?;
    Ok(sending.packed)
}

/// Counts what [`pack`] would send, and finds directories that cannot be read before anything is
/// sent.
///
/// # Errors
/// As [`pack`].
pub fn estimate(path: &Path, options: &PackOptions) -> Result<Estimate, PackError> {
    let source = Source::open(path, options)?;
    let mut found = Estimate::default();
    if let Some((from, _)) = &source.file {
        let inode = source.root.inode(from).map_err(|error| source.opened(error))?;
        return Ok(Estimate { entries: 1, bytes: inode.map_or(0, |inode| inode.size) });
    }
    let mut linked = HashSet::new();
    archive::walk(&source.root, &Name::ROOT, |entry| {
        let hidden = Hidden::hides(options.hidden.as_ref(), entry.name);
        if hidden || !is_kept(source.kept.as_ref(), entry.name) {
            return Ok(Step::Over);
        }
        let inode = &entry.inode;
        if matches!(inode.kind, InodeKind::File | InodeKind::Directory | InodeKind::Symlink) {
            found.entries += 1;
        }
        if inode.kind == InodeKind::File && (inode.links == 1 || linked.insert(inode.id)) {
            found.bytes += inode.size;
        }
        Ok(Step::Into)
    })
    .map_err(|error| source.walk_failed(error))?;
    Ok(found)
}

struct Source {
    /// As the user gave it, for messages.
    shown: PathBuf,
    root: Root,
    /// The name below the root and the name in the archive, when it is one file.
    file: Option<(Name, Name)>,
    /// What git does not ignore, when that matters.
    kept: Option<HashSet<Name>>,
}

impl Source {
    fn open(path: &Path, options: &PackOptions) -> Result<Self, PackError> {
        let opened = |source| PackError::Open { path: path.to_owned(), source };
        // A descriptor is what the caller has looked at; its path may be another's by now.
        let real = match path.starts_with("/proc/self/fd") {
            true => path.to_owned(),
            false => fs::canonicalize(path).map_err(opened)?,
        };
        let kind = fs::metadata(&real).map_err(opened)?.file_type();
        if kind.is_dir() {
            let root = Root::open(&real).map_err(opened)?;
            let kept = if options.gitignore { Some(not_ignored(&real)?) } else { None };
            return Ok(Self { shown: path.to_owned(), root, file: None, kept });
        }
        let special = || PackError::Special { path: path.to_owned() };
        if !kind.is_file() {
            return Err(special());
        }
        let name_of = |path: &Path| Name::parse(path.file_name()?.as_bytes()).ok();
        let (Some(parent), Some(from)) = (real.parent(), name_of(&real)) else {
            return Err(special());
        };
        let name = options.name.clone().or_else(|| name_of(path)).unwrap_or_else(|| from.clone());
        let root = Root::open(parent).map_err(opened)?;
        Ok(Self { shown: parent.to_owned(), root, file: Some((from, name)), kept: None })
    }

    fn path(&self, name: &Name) -> PathBuf {
        if name.is_root() { self.shown.clone() } else { self.shown.join(name.as_path()) }
    }

    fn opened(&self, source: io::Error) -> PackError {
        PackError::Open { path: self.shown.clone(), source }
    }

    fn walk_failed(&self, error: WalkError) -> PackError {
        match error {
            WalkError::ReadDirectory { name, source } | WalkError::Look { name, source } => {
                PackError::Read { path: self.path(&name), source }
            }
            WalkError::Name { directory, source } => {
                PackError::Name { path: self.path(&directory), source }
            }
        }
    }
}

/// All names below a directory that git does not ignore.
fn not_ignored(directory: &Path) -> Result<HashSet<Name>, PackError> {
    let mut names = HashSet::new();
    let walk = WalkBuilder::new(directory)
        .standard_filters(false)
        .git_ignore(true)
        .git_exclude(true)
        .git_global(true)
        .parents(true)
        // A workspace is often a copy without its repository.
        .require_git(false)
        .follow_links(false)
        .filter_entry(|entry| entry.file_name() != ".git")
        .build();
    for entry in walk {
        let entry = entry.map_err(PackError::Ignore)?;
        let below = entry.path().strip_prefix(directory).unwrap_or_else(|_| entry.path());
        if let Ok(name) = Name::parse(below.as_os_str().as_bytes()) {
            names.insert(name);
        }
    }
    Ok(names)
}

/// Git has no say about its own directory.
fn is_kept(kept: Option<&HashSet<Name>>, name: &Name) -> bool {
    kept.is_none_or(|kept| {
        kept.contains(name) || name.components().any(|component| component == b".git")
    })
}

struct Sending<'a> {
    kept: Option<&'a HashSet<Name>>,
    hidden: Option<&'a Hidden>,
    manifest: bool,
    hash: Sha256,
    packed: Packed,
    progress: &'a mut dyn FnMut(Progress),
}

impl Sending<'_> {
    fn tell(&mut self) {
        let Packed { entries, bytes, .. } = self.packed;
        (self.progress)(Progress { entries, bytes });
    }
}

impl Packing for Sending<'_> {
    fn wants(&mut self, name: &Name, _: &Inode) -> bool {
        is_kept(self.kept, name) && !Hidden::hides(self.hidden, name)
    }

    fn content(&mut self, part: &[u8]) {
        if self.manifest {
            self.hash.update(part);
        }
        self.packed.bytes += part.len() as u64;
        self.tell();
    }

    fn packed(&mut self, member: &Member, inode: &Inode) {
        self.packed.entries += 1;
        self.tell();
        if !self.manifest {
            return;
        }
        let mode = member.mode & 0o777;
        let node = match &member.kind {
            Kind::Directory => Node::Directory { mode },
            Kind::Symlink { target } => Node::Symlink { target: target.clone() },
            Kind::File { size } => {
                let digest = self.hash.finalize_reset().into();
                Node::File { mode, size: *size, digest }
            }
            Kind::HardLink { target } => match self.packed.manifest.node(target) {
                Some(node) => node.clone(),
                None => return,
            },
        };
        self.packed.manifest.insert(member.name.clone(), node, *inode);
    }

    fn passed(&mut self, name: &Name, why: Passed) {
        self.packed.left_out += 1;
        if self.packed.left_out_names.len() < NAMED_LEFT_OUT {
            self.packed.left_out_names.push((name.clone(), why));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::os::unix::net::UnixListener;

    use archive::Reader;

    use super::*;

    fn members(path: &Path, options: &PackOptions) -> (Vec<Member>, Packed) {
        let mut tar = Vec::new();
        let packed = pack(path, options, &mut tar, &mut |_| {}).unwrap();
        let mut reader = Reader::new(&tar[..]);
        let mut members = Vec::new();
        while let Some(member) = reader.next_member().unwrap() {
            members.push(member);
        }
        (members, packed)
    }

    fn names(path: &Path, options: &PackOptions) -> Vec<String> {
        members(path, options).0.iter().map(|member| member.name.to_string()).collect()
    }

    #[test]
    fn what_is_hidden_does_not_go_in() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("a/.ssh")).unwrap();
        fs::write(directory.path().join("a/.ssh/id"), "x").unwrap();
        fs::write(directory.path().join("a/b"), "x").unwrap();
        let hidden = Hidden::new(|path| path.ends_with(".ssh"));
        let options = PackOptions { hidden: Some(hidden), ..PackOptions::default() };

        let (members, _) = members(directory.path(), &options);

        let names: Vec<_> = members.iter().map(|member| member.name.to_string()).collect();
        assert_eq!(names, ["a", "a/b"]);
        assert_eq!(estimate(directory.path(), &options).unwrap().entries, 2);
    }

    #[test]
    fn an_open_directory_is_packed_wherever_it_lies_by_now() {
        use std::os::fd::AsRawFd as _;
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("here")).unwrap();
        fs::write(directory.path().join("here/file"), "x").unwrap();
        let open = fs::File::open(directory.path().join("here")).unwrap();
        fs::rename(directory.path().join("here"), directory.path().join("there")).unwrap();

        let handle = format!("/proc/self/fd/{}/.", open.as_raw_fd());
        let (members, _) = members(Path::new(&handle), &PackOptions::default());

        assert_eq!(members.len(), 1);
    }

    #[test]
    fn git_and_empty_directories_go_in_and_sockets_do_not() {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir_all(tree.path().join(".git/refs")).unwrap();
        fs::write(tree.path().join(".git/HEAD"), "ref").unwrap();
        fs::create_dir(tree.path().join("empty")).unwrap();
        let _socket = UnixListener::bind(tree.path().join("socket")).unwrap();
        let (members, packed) = members(tree.path(), &PackOptions::default());
        let names: Vec<_> = members.iter().map(|member| member.name.to_string()).collect();
        assert_eq!(names, [".git", ".git/HEAD", ".git/refs", "empty"]);
        assert_eq!((packed.entries, packed.bytes, packed.left_out), (4, 3, 1));
        assert_eq!(packed.left_out_names[0].0.to_string(), "socket");
        assert_eq!(packed.left_out_names[0].1, Passed::Special(InodeKind::Socket));
        let expected = Estimate { entries: 4, bytes: 3 };
        assert_eq!(estimate(tree.path(), &PackOptions::default()).unwrap(), expected);
    }

    #[test]
    fn gitignore_counts_only_when_asked() {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir_all(tree.path().join("target/x")).unwrap();
        fs::create_dir_all(tree.path().join("sub/.git")).unwrap();
        fs::create_dir_all(tree.path().join(".git")).unwrap();
        fs::write(tree.path().join(".gitignore"), "target/\n*.log\n!keep.log\n/config\n").unwrap();
        for file in ["a.log", "keep.log", "sub/b.log", "sub/.gitignore", "sub/c", ".git/config"] {
            fs::write(tree.path().join(file), "c\n").unwrap();
        }
        let all = names(tree.path(), &PackOptions::default());
        assert!(all.contains(&"target/x".into()) && all.contains(&"a.log".into()));
        let options = PackOptions { gitignore: true, ..PackOptions::default() };
        let kept =
            [".git", ".git/config", ".gitignore", "keep.log", "sub", "sub/.git", "sub/.gitignore"];
        assert_eq!(names(tree.path(), &options), kept);
        assert_eq!(estimate(tree.path(), &options).unwrap().entries, 7);
    }

    #[test]
    fn one_file_is_packed_under_the_name_that_was_asked_for() {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("a"), "123").unwrap();
        symlink("a", tree.path().join("link")).unwrap();
        assert_eq!(names(&tree.path().join("a"), &PackOptions::default()), ["a"]);
        let (members, packed) = members(&tree.path().join("link"), &PackOptions::default());
        assert_eq!(members[0].name.to_string(), "link");
        assert_eq!((&members[0].kind, packed.bytes), (&Kind::File { size: 3 }, 3));
        let options =
            PackOptions { name: Some(Name::parse(b"other").unwrap()), ..PackOptions::default() };
        assert_eq!(names(&tree.path().join("a"), &options), ["other"]);
    }

    #[test]
    fn what_cannot_be_packed_is_named_with_what_to_do() {
        let error = |path: &Path| {
            pack(path, &PackOptions::default(), &mut io::sink(), &mut |_| {})
                .unwrap_err()
                .to_string()
        };
        let missing = error(Path::new("/no/\u{1b}such"));
        assert!(missing.contains("'/no/\\u{1b}such'"), "{missing}");
        assert!(missing.contains("directory or file that you can read"), "{missing}");
        assert!(error(Path::new("/dev/null")).contains("neither a directory nor a file"));
    }

    #[test]
    fn an_unreadable_directory_or_file_is_named_by_its_path() {
        if rustix::process::geteuid().is_root() {
            eprintln!("NOT RUN: root reads everything");
            return;
        }
        for directory in [true, false] {
            let tree = tempfile::tempdir().unwrap();
            let locked = tree.path().join("d/locked");
            fs::create_dir(tree.path().join("d")).unwrap();
            if directory {
                fs::create_dir(&locked).unwrap();
            } else {
                fs::write(&locked, "").unwrap();
            }
            fs::set_permissions(&locked, fs::Permissions::from_mode(0o000)).unwrap();
            let packed = pack(tree.path(), &PackOptions::default(), &mut io::sink(), &mut |_| {});
            fs::set_permissions(&locked, fs::Permissions::from_mode(0o755)).unwrap();
            let message = packed.unwrap_err().to_string();
            assert!(message.contains(locked.to_str().unwrap()), "{message}");
            assert!(message.contains("make it readable"), "{message}");
        }
    }

    #[test]
    fn a_receiver_that_gives_up_ends_it() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let packed = pack(file.path(), &PackOptions::default(), &mut Closed, &mut |_| {});
        assert!(matches!(packed, Err(PackError::Send(_))));
    }
}
