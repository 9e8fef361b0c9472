//! Trees in and out: `tar-in` and `tar-out`.

use std::collections::{HashMap, HashSet};
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use archive::{
    Answer, Existing, Extract, ExtractError, Inode, InodeKind, Kind, Member, Name, PackError,
    Packing, ReadError, Reader, Root, Step, WalkError, Writer,
};
use wire::op::{ErrorCode, OpError, TarIn, TarOut, Transferred};

use super::entry::walk_failed;
use super::{absolute, failed, invalid, output_failed, shown, told};

/// Permission bits of the directory that is unpacked into, where it is missing.
const DIRECTORY_MODE: u32 = 0o755;

pub(super) fn tar_in(op: &TarIn, input: File, output: File) -> Result<Transferred, OpError> {
    let path = absolute(&op.path)?;
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(path)
        .and_then(|()| Root::open(path))
        .map_err(|error| failed("unpack into", path, error))
        .and_then(|root| {
            let sent = unpack(&root, op.read_only, input)?;
            if op.remember {
                Memory::of(&root)?.tell(output).map_err(|error| output_failed(&error))?;
            }
            Ok(sent)
        })
}

fn unpack(root: &Root, read_only: bool, input: File) -> Result<Transferred, OpError> {
    let mut reader = Reader::new(input);
    let mut extract = Extract::new(root, Existing::Replace);
    let mut sent = Transferred { bytes: 0, entries: 0 };
    while let Some(mut member) = reader.next_member().map_err(|error| unreadable(&error))? {
        if read_only {
            member.mode &= !0o222;
        }
        extract.add(&member, &mut reader.content()).map_err(|error| misplaced(&error))?;
        sent.entries += 1;
        if let Kind::File { size } = member.kind {
            sent.bytes += size;
        }
    }
    extract.finish().map_err(|error| misplaced(&error))?;
    // What archivers add after the end marker is read, so that the sender's last write succeeds.
    io::copy(&mut reader.into_inner(), &mut io::sink())
        .map_err(|error| unreadable(&ReadError::Stream(error)))?;
    Ok(sent)
}

fn unreadable(error: &ReadError) -> OpError {
    match error {
        ReadError::Stream(source) => told(error, source),
        ReadError::Truncated => OpError::new(ErrorCode::Cancelled, error.to_string()),
        _ => invalid(error.to_string()),
    }
}

fn misplaced(error: &ExtractError) -> OpError {
    match error {
        ExtractError::Occupied { .. } => OpError::new(ErrorCode::Exists, error.to_string()),
        ExtractError::Parent { .. } | ExtractError::HardLink { .. } => invalid(error.to_string()),
        ExtractError::Receive { source, .. } if source.kind() == io::ErrorKind::UnexpectedEof => {
            OpError::new(ErrorCode::Cancelled, error.to_string())
        }
        ExtractError::Create { source, .. }
        | ExtractError::Receive { source, .. }
        | ExtractError::WriteFile { source, .. }
        | ExtractError::SetMetadata { source, .. } => told(error, source),
    }
}

pub(super) fn tar_out(op: &TarOut, input: File, output: File) -> Result<Transferred, OpError> {
    let path = absolute(&op.path)?;
    let tried = |error| failed("pack", path, error);
    let mut input = BufReader::with_capacity(64 << 10, input);
    let memory = match op.changed {
        true => {
            Memory::read(&mut input).map_err(|error| invalid(format!("what was told: {error}")))?
        }
        false => Memory::default(),
    };
    let sent = Transferred { bytes: 0, entries: 0 };
    let mut count = Count { sent, memory, standing: Vec::new(), questions: None };
    let mut writer = Writer::new(output);
    let packed = if fs::symlink_metadata(path).map_err(tried)?.is_dir() {
        let root = Root::open(path).map_err(tried)?;
        if op.changed && op.asks {
            let known = count.memory.directories();
            let below = Root::open(path).map_err(tried)?;
            count.questions = Some(Questions { input, root: below, known });
        }
        archive::pack(&root, &mut writer, &mut count)
    } else {
        let name = path.file_name().and_then(|name| Name::parse(name.as_bytes()).ok());
        let (Some(parent), Some(name)) = (path.parent(), name) else {
            return Err(invalid(format!("cannot pack '{}': it has no name", shown(path))));
        };
        let root = Root::open(parent).map_err(tried)?;
        archive::pack_one(&root, &name, &name, &mut writer, &mut count)
    };
    packed.map_err(|error| match &error {
        PackError::Walk(error) => walk_failed(error),
        PackError::ReadFile { source, .. } => told(&error, source),
        PackError::Send(source) => output_failed(source),
    })?;
    writer
        .finish()
        .and_then(|mut output| output.write_all(&count.standing))
        .map_err(|error| output_failed(&error))?;
    Ok(count.sent)
}

struct Count {
    sent: Transferred,
    memory: Memory,
    /// Names of what is as it was.
    standing: Vec<u8>,
    questions: Option<Questions>,
}

/// A file of this size is worth a question.
const LARGE: u64 = 256 << 10;

/// What the host is asked, so that what it would throw away is not sent.
struct Questions {
    input: BufReader<File>,
    root: Root,
    /// Directories that hold something of what was told.
    known: HashSet<Vec<u8>>,
}

impl Questions {
    /// What is in a directory that is not sent: how many entries, and the bytes of their content.
    fn count(&self, name: &Name) -> [u8; 16] {
        let (mut entries, mut content) = (0_u64, 0_u64);
        // It is for a person to read: what of it cannot be looked at does not count.
        let _ = archive::walk(&self.root, name, |entry| {
            entries += 1;
            if entry.inode.kind == InodeKind::File {
                content = content.saturating_add(entry.inode.size);
            }
            Ok::<_, WalkError>(Step::Into)
        });
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&entries.to_le_bytes());
        bytes[8..].copy_from_slice(&content.to_le_bytes());
        bytes
    }
}

impl Packing for Count {
    fn wants(&mut self, name: &Name, inode: &Inode) -> bool {
        let stands = inode.kind != InodeKind::Directory
            && self.memory.0.get(name.as_bytes()) == Some(&Mark::of(inode));
        if stands {
            self.standing.extend_from_slice(name.as_bytes());
            self.standing.push(0);
        }
        !stands
    }

    fn asks(&mut self, name: &Name, inode: &Inode) -> bool {
        self.questions.as_ref().is_some_and(|questions| match inode.kind {
            InodeKind::Directory => !questions.known.contains(name.as_bytes()),
            _ => inode.size > LARGE && !self.memory.0.contains_key(name.as_bytes()),
        })
    }

    fn follows(
        &mut self,
        name: &Name,
        inode: &Inode,
        output: &mut dyn io::Write,
    ) -> io::Result<bool> {
        let Some(questions) = &mut self.questions else { return Ok(true) };
        let mut byte = [0];
        questions.input.read_exact(&mut byte)?;
        match Answer::parse(byte[0]).ok_or(io::ErrorKind::InvalidData)? {
            Answer::Into => Ok(true),
            Answer::All => {
                self.questions = None;
                Ok(true)
            }
            Answer::Over => {
                // Of a file it has the size already.
                if inode.kind == InodeKind::Directory {
                    output.write_all(&questions.count(name))?;
                }
                Ok(false)
            }
        }
    }

    fn packed(&mut self, member: &Member, _: &Inode) {
        self.sent.entries += 1;
        if let Kind::File { size } = member.kind {
            self.sent.bytes += size;
        }
    }
}

/// Bytes of a memory: names of a million entries.
const MAX_MEMORY: u64 = 64 << 20;

/// The kernel stamps files with the time of its last tick: what changes within one looks as it
/// did before. No kernel ticks more slowly than this.
const TICK: Duration = Duration::from_millis(10);

/// What an inode looks like that nobody has changed: nothing can set its ctime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    number: u64,
    ctime: (i64, u32),
    size: u64,
}

impl Mark {
    const LENGTH: usize = 28;

    fn of(inode: &Inode) -> Self {
        Self { number: inode.id.1, ctime: inode.ctime, size: inode.size }
    }

    fn bytes(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..8].copy_from_slice(&self.number.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.ctime.0.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.ctime.1.to_le_bytes());
        bytes[20..].copy_from_slice(&self.size.to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (number, bytes) = bytes.split_first_chunk()?;
        let (seconds, bytes) = bytes.split_first_chunk()?;
        let (nanoseconds, bytes) = bytes.split_first_chunk()?;
        let size = u64::from_le_bytes(bytes.try_into().ok()?);
        let ctime = (i64::from_le_bytes(*seconds), u32::from_le_bytes(*nanoseconds));
        Some(Self { number: u64::from_le_bytes(*number), ctime, size })
    }
}

/// What of a tree is known, by name. Directories are not: what is in them is.
#[derive(Debug, Default)]
struct Memory(HashMap<Vec<u8>, Mark>);

impl Memory {
    /// All that is below a root. When it returns, what changes from then on looks different.
    fn of(root: &Root) -> Result<Self, OpError> {
        let mut marks = HashMap::new();
        let mut newest = Duration::ZERO;
        archive::walk(root, &Name::ROOT, |entry| {
            if matches!(entry.inode.kind, InodeKind::File | InodeKind::Symlink) {
                let mark = Mark::of(&entry.inode);
                let seconds = u64::try_from(mark.ctime.0).unwrap_or(0);
                newest = newest.max(Duration::new(seconds, mark.ctime.1));
                marks.insert(entry.name.as_bytes().to_vec(), mark);
            }
            Ok(Step::Into)
        })
        .map_err(|error: WalkError| walk_failed(&error))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // A clock that was set back is not waited for.
        std::thread::sleep((newest + TICK).saturating_sub(now).min(TICK));
        Ok(Self(marks))
    }

    fn tell(&self, output: File) -> io::Result<()> {
        let mut output = BufWriter::with_capacity(64 << 10, output);
        for (name, mark) in &self.0 {
            output.write_all(name)?;
            output.write_all(&[0])?;
            output.write_all(&mark.bytes())?;
        }
        output.flush()
    }

    /// The directories that hold something of it.
    fn directories(&self) -> HashSet<Vec<u8>> {
        let mut found = HashSet::new();
        for name in self.0.keys() {
            let mut name = &name[..];
            while let Some(end) = name.iter().rposition(|&byte| byte == b'/') {
                name = &name[..end];
                if !found.insert(name.to_vec()) {
                    break;
                }
            }
        }
        found
    }

    /// Up to the end of the input, or a name of no bytes.
    fn read(input: &mut BufReader<File>) -> io::Result<Self> {
        let mut input = input.take(MAX_MEMORY);
        let mut marks = HashMap::new();
        loop {
            let mut name = Vec::new();
            input.by_ref().take(archive::MAX_NAME as u64 + 1).read_until(0, &mut name)?;
            match name.pop() {
                None => return Ok(Self(marks)),
                Some(0) if name.is_empty() => return Ok(Self(marks)),
                Some(0) => {}
                Some(_) => return Err(io::ErrorKind::InvalidData.into()),
            }
            let mut bytes = [0; Mark::LENGTH];
            input.read_exact(&mut bytes)?;
            marks.insert(name, Mark::parse(&bytes).ok_or(io::ErrorKind::InvalidData)?);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
    use std::path::Path;

    use serde_json::json;

    use super::super::tests::{ask, path, with_input};
    use super::*;

    fn packed(from: &Path) -> Vec<u8> {
        let (reply, output) = ask("tar-out", json!({"path": path(from)}));
        reply.unwrap();
        output
    }

    fn unpacked(into: &Path, tar: &[u8]) -> Result<Transferred, OpError> {
        let (reply, _) = with_input("tar-in", json!({"path": path(into)}), tar);
        reply.map(|reply| serde_json::from_value(reply).unwrap())
    }

    #[test]
    fn a_tree_comes_out_as_it_went_in() {
        let tree = tempfile::tempdir().unwrap();
        let from = tree.path().join("from");
        fs::create_dir_all(from.join("empty")).unwrap();
        fs::create_dir_all(from.join("d".repeat(200))).unwrap();
        fs::write(from.join("d".repeat(200)).join("long"), "long").unwrap();
        fs::write(from.join("run"), "#!").unwrap();
        fs::set_permissions(from.join("run"), fs::Permissions::from_mode(0o750)).unwrap();
        fs::hard_link(from.join("run"), from.join("run2")).unwrap();
        symlink("../../outside", from.join("link")).unwrap();
        fs::set_permissions(from.join("empty"), fs::Permissions::from_mode(0o555)).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap();
        let tar = packed(&from);
        assert_eq!(tar, packed(&from), "the same tree gives the same bytes");
        let to = tree.path().join("to/new");
        let sent = unpacked(&to, &tar).unwrap();
        assert_eq!((sent.entries, sent.bytes), (6, 6));
        assert_eq!(fs::read(to.join("d".repeat(200)).join("long")).unwrap(), b"long");
        let run = fs::metadata(to.join("run")).unwrap();
        assert_eq!((run.mode() & 0o7777, run.nlink()), (0o750, 2));
        assert_eq!(run.mtime(), fs::metadata(from.join("run")).unwrap().mtime());
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("../../outside"));
        assert_eq!(fs::metadata(to.join("empty")).unwrap().mode() & 0o7777, 0o555);
        assert!(!to.join("socket").exists());
        drop(socket);
    }

    #[test]
    fn only_what_is_not_as_it_was_comes_out_again_and_the_rest_by_its_name() {
        let tree = tempfile::tempdir().unwrap();
        let (from, to) = (tree.path().join("from"), tree.path().join("to"));
        fs::create_dir_all(from.join("d")).unwrap();
        fs::create_dir_all(from.join("e")).unwrap();
        for file in ["same", "touched", "moved", "d/x", "e/x", "gone"] {
            fs::write(from.join(file), "content").unwrap();
        }
        symlink("same", from.join("link")).unwrap();
        let input = packed(&from);
        let (reply, memory) =
            with_input("tar-in", json!({"path": path(&to), "remember": true}), &input);
        reply.unwrap();

        let times = fs::metadata(to.join("touched")).unwrap().modified().unwrap();
        fs::write(to.join("touched"), "CONTENT").unwrap();
        let touched = File::options().write(true).open(to.join("touched")).unwrap();
        touched.set_modified(times).unwrap();
        fs::rename(to.join("moved"), to.join("new")).unwrap();
        // Files that nobody touched are others when their directories change places.
        fs::rename(to.join("d"), to.join("t")).unwrap();
        fs::rename(to.join("e"), to.join("d")).unwrap();
        fs::rename(to.join("t"), to.join("e")).unwrap();
        fs::remove_file(to.join("gone")).unwrap();

        let (reply, output) =
            with_input("tar-out", json!({"path": path(&to), "changed": true}), &memory);
        reply.unwrap();
        let mut reader = Reader::new(&output[..]);
        let mut came = Vec::new();
        while let Some(member) = reader.next_member().unwrap() {
            if !matches!(member.kind, Kind::Directory) {
                came.push(member.name.to_string());
            }
        }
        assert_eq!(came, ["d/x", "e/x", "new", "touched"]);
        let mut rest = Vec::new();
        reader.into_inner().read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"link\0same\0");
        for wrong in [&memory[..memory.len() - 1], b"no end"] {
            let asked = json!({"path": path(&to), "changed": true});
            let error = with_input("tar-out", asked, wrong).0.unwrap_err();
            assert_eq!(error.code, ErrorCode::Invalid, "{error}");
        }
    }

    #[test]
    fn what_the_host_does_not_want_is_not_sent() {
        let tree = tempfile::tempdir().unwrap();
        let (from, to) = (tree.path().join("from"), tree.path().join("to"));
        fs::create_dir_all(from.join("src/deep")).unwrap();
        fs::write(from.join("src/deep/a"), "1").unwrap();
        let (reply, mut asked) =
            with_input("tar-in", json!({"path": path(&to), "remember": true}), &packed(&from));
        reply.unwrap();
        fs::create_dir_all(to.join("src/new")).unwrap();
        fs::write(to.join("src/new/b"), "2").unwrap();
        fs::create_dir_all(to.join("target/debug")).unwrap();
        fs::write(to.join("target/debug/x"), "unwanted").unwrap();
        fs::write(to.join("core"), vec![7; 300 << 10]).unwrap();

        // Told from the start: nothing of a core, all of src/new, nothing of target.
        asked.extend([0, Answer::Over.byte(), Answer::Into.byte(), Answer::Over.byte()]);
        let asks = json!({"path": path(&to), "changed": true, "asks": true});
        let (reply, output) = with_input("tar-out", asks, &asked);

        reply.unwrap();
        let mut reader = Reader::new(&output[..]);
        let mut came = Vec::new();
        while let Some(member) = reader.next_member().unwrap() {
            came.push((member.name.to_string(), reader.is_question()));
            if reader.is_question() && member.name.to_string() != "src/new" {
                let rest = reader.forgo();
                if member.kind == Kind::Directory {
                    let mut told = [0; 16];
                    rest.read_exact(&mut told).unwrap();
                    assert_eq!((told[0], told[8]), (2, 8), "two entries of 8 bytes");
                }
            }
        }
        let came: Vec<_> = came.iter().map(|(name, asked)| (name.as_str(), *asked)).collect();
        let expected = [
            ("core", true),
            ("src", false),
            ("src/deep", false),
            ("src/new", true),
            ("src/new/b", false),
            ("target", true),
        ];
        assert_eq!(came, expected);
    }

    #[test]
    fn one_file_is_packed_under_its_own_name_and_a_link_as_a_link() {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("a"), "x").unwrap();
        symlink("a", tree.path().join("link")).unwrap();
        let to = tree.path().join("to");
        unpacked(&to, &packed(&tree.path().join("a"))).unwrap();
        unpacked(&to, &packed(&tree.path().join("link"))).unwrap();
        assert_eq!(fs::read(to.join("a")).unwrap(), b"x");
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("a"));
    }

    #[test]
    fn unpacking_again_replaces_files_and_keeps_what_else_is_there() {
        let tree = tempfile::tempdir().unwrap();
        let (from, to) = (tree.path().join("from"), tree.path().join("to"));
        fs::create_dir_all(from.join("d")).unwrap();
        fs::write(from.join("d/a"), "1").unwrap();
        unpacked(&to, &packed(&from)).unwrap();
        fs::write(to.join("d/mine"), "kept").unwrap();
        fs::write(from.join("d/a"), "2").unwrap();
        unpacked(&to, &packed(&from)).unwrap();
        assert_eq!(fs::read(to.join("d/a")).unwrap(), b"2");
        assert_eq!(fs::read(to.join("d/mine")).unwrap(), b"kept");
    }

    #[test]
    fn hostile_archives_write_nothing_outside() {
        let outside = tempfile::tempdir().unwrap();
        let tree = tempfile::tempdir().unwrap();
        let name = |text: &str| Name::parse(text.as_bytes()).unwrap();
        let mut through_link = Writer::new(Vec::new());
        let target = outside.path().as_os_str().as_bytes();
        through_link.symlink(&name("out"), target, 0).unwrap();
        through_link.directory(&name("out/d"), 0o755, 0).unwrap();
        let through_link = through_link.finish().unwrap();
        let mut linked = Writer::new(Vec::new());
        linked.hard_link(&name("shadow"), &name("etc/shadow"), 0o644, 0).unwrap();
        let linked = linked.finish().unwrap();
        let escape = {
            let mut header = [0; 512];
            header[..9].copy_from_slice(b"../../esc");
            header[100..107].copy_from_slice(b"0000644");
            header[124..135].copy_from_slice(b"00000000000");
            header[136..147].copy_from_slice(b"00000000000");
            header[148..156].copy_from_slice(b"        ");
            header[156] = b'0';
            let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
            header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            [&header[..], &[0; 1024]].concat()
        };
        for (tar, named) in
            [(through_link, "'out/d'"), (linked, "'shadow'"), (escape, "'../../esc'")]
        {
            let to = tree.path().join("to");
            let error = unpacked(&to, &tar).unwrap_err();
            assert_eq!(error.code, ErrorCode::Invalid, "{error}");
            assert!(error.message.contains(named), "{error}");
            fs::remove_dir_all(&to).unwrap();
        }
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        assert_eq!(fs::read_dir(tree.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_sender_that_stops_half_way_is_cancelled() {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("a"), vec![1; 5000]).unwrap();
        let tar = packed(&tree.path().join("a"));
        for length in [0, 100, 512, 3000, tar.len() - 1024, tar.len() - 1] {
            let to = tree.path().join("to");
            let error = unpacked(&to, &tar[..length]).unwrap_err();
            assert_eq!(error.code, ErrorCode::Cancelled, "{length}: {error}");
        }
    }

    #[test]
    fn an_unreadable_file_is_named() {
        if rustix::process::geteuid().is_root() {
            eprintln!("NOT RUN: root reads every file");
            return;
        }
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("locked"), "").unwrap();
        fs::set_permissions(tree.path().join("locked"), fs::Permissions::from_mode(0o000)).unwrap();
        let error = ask("tar-out", json!({"path": path(tree.path())})).0.unwrap_err();
        assert_eq!(error.code, ErrorCode::PermissionDenied);
        assert!(error.message.contains("'locked'"), "{error}");
    }
}
