//! Trees in and out: `tar-in` and `tar-out`.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;

use archive::{
    Existing, Extract, ExtractError, Inode, Kind, Member, Name, PackError, Packing, ReadError,
    Reader, Root, Writer,
};
use wire::op::{ErrorCode, OpError, TarIn, TarOut, Transferred};

use super::entry::walk_failed;
use super::{absolute, failed, invalid, output_failed, shown, told};

/// Permission bits of the directory that is unpacked into, where it is missing.
const DIRECTORY_MODE: u32 = 0o755;

pub(super) fn tar_in(op: &TarIn, input: File) -> Result<Transferred, OpError> {
    let path = absolute(&op.path)?;
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(path)
        .and_then(|()| Root::open(path))
        .map_err(|error| failed("unpack into", path, error))
        .and_then(|root| unpack(&root, op.read_only, input))
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

pub(super) fn tar_out(op: &TarOut, output: File) -> Result<Transferred, OpError> {
    let path = absolute(&op.path)?;
    let tried = |error| failed("pack", path, error);
    let mut count = Count(Transferred { bytes: 0, entries: 0 });
    let mut writer = Writer::new(output);
    let packed = if fs::symlink_metadata(path).map_err(tried)?.is_dir() {
        archive::pack(&Root::open(path).map_err(tried)?, &mut writer, &mut count)
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
    writer.finish().map_err(|error| output_failed(&error))?;
    Ok(count.0)
}

struct Count(Transferred);

impl Packing for Count {
    fn packed(&mut self, member: &Member, _: &Inode) {
        self.0.entries += 1;
        if let Kind::File { size } = member.kind {
            self.0.bytes += size;
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
