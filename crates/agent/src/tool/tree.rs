//! Where things stand: `mkdir`, `rename` and `remove`.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;
use wire::op::{Done, Mkdir, OpError, Remove, Rename};

use super::{absolute, failed, invalid, shown};

/// Permission bits of parent directories that `parents` asked for.
const PARENT_MODE: u32 = 0o755;

pub(super) fn mkdir(op: &Mkdir) -> Result<Done, OpError> {
    let path = absolute(&op.path)?;
    let tried = |error| failed("make the directory", path, error);
    if op.parents
        && let Some(parent) = path.parent()
    {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(PARENT_MODE).create(parent).map_err(tried)?;
    }
    match DirBuilder::new().mode(op.mode & 0o7777).create(path) {
        // The mode is what was asked for, whatever the umask.
        Ok(()) => {
            if op.owner.is_some() {
                std::os::unix::fs::chown(path, op.owner, op.group.or(op.owner)).map_err(tried)?;
            }
            fs::set_permissions(path, Permissions::from_mode(op.mode & 0o7777)).map_err(tried)?;
        }
        Err(error)
            if error.kind() == io::ErrorKind::AlreadyExists && op.parents && path.is_dir() => {}
        Err(error) => return Err(tried(error)),
    }
    Ok(Done {})
}

pub(super) fn rename(op: &Rename) -> Result<Done, OpError> {
    let (from, to) = (absolute(&op.from)?, absolute(&op.to)?);
    let flags = if op.replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
    rustix::fs::renameat_with(CWD, from, CWD, to, flags).map_err(|error| {
        let tried = format!("rename '{}' to", shown(from));
        match error {
            Errno::XDEV => invalid(format!(
                "cannot {tried} '{}': they are on different file systems; copy it and remove it",
                shown(to)
            )),
            // The system does not say which of the two is missing.
            Errno::NOENT if from.symlink_metadata().is_err() => failed("rename", from, error),
            _ => failed(&tried, to, error),
        }
    })?;
    Ok(Done {})
}

pub(super) fn remove(op: &Remove) -> Result<Done, OpError> {
    let path = absolute(&op.path)?;
    let tried = |error| failed("remove", path, error);
    if fs::canonicalize(path).is_ok_and(|end| end == Path::new("/")) {
        return Err(invalid(format!("cannot remove '{}': it is the root directory", shown(path))));
    }
    let is_directory = fs::symlink_metadata(path).map_err(tried)?.is_dir();
    // The standard library's walk goes by descriptors and follows no link.
    let removed = match (is_directory, op.recursive) {
        (false, _) => fs::remove_file(path),
        (true, false) => fs::remove_dir(path),
        (true, true) => fs::remove_dir_all(path),
    };
    removed.map_err(|error| match error.kind() {
        io::ErrorKind::DirectoryNotEmpty if !op.recursive => {
            let error = failed("remove", path, error);
            OpError { message: format!("{}; ask for recursive", error.message), ..error }
        }
        _ => tried(error),
    })?;
    Ok(Done {})
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use serde_json::json;
    use wire::op::ErrorCode;

    use super::super::tests::{ask, path, refusal};
    use super::*;

    #[test]
    fn a_directory_is_made_with_its_mode_and_parents() {
        let tree = tempfile::tempdir().unwrap();
        let deep = tree.path().join("a/b");
        let op = json!({"path": path(&deep), "mode": 0o777});
        assert_eq!(refusal("mkdir", op).0, ErrorCode::NotFound);
        let op = json!({"path": path(&deep), "mode": 0o777, "parents": true});
        ask("mkdir", op.clone()).0.unwrap();
        assert_eq!(fs::metadata(&deep).unwrap().mode() & 0o7777, 0o777);
        ask("mkdir", op).0.unwrap();
        assert_eq!(refusal("mkdir", json!({"path": path(&deep)})).0, ErrorCode::Exists);
    }

    #[test]
    fn a_file_is_no_directory_that_is_already_there() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let op = json!({"path": path(file.path()), "parents": true});
        assert_eq!(refusal("mkdir", op).0, ErrorCode::Exists);
    }

    #[test]
    fn renaming_replaces_only_when_asked() {
        let tree = tempfile::tempdir().unwrap();
        let at = |name| tree.path().join(name);
        fs::write(at("a"), "a").unwrap();
        fs::write(at("b"), "b").unwrap();
        let mut op = json!({"from": path(&at("a")), "to": path(&at("b"))});
        assert_eq!(refusal("rename", op.clone()).0, ErrorCode::Exists);
        op["replace"] = json!(true);
        ask("rename", op.clone()).0.unwrap();
        assert_eq!(fs::read(at("b")).unwrap(), b"a");
        let (code, message) = refusal("rename", op);
        assert_eq!(code, ErrorCode::NotFound);
        assert!(message.contains("/a'"), "{message}");
    }

    #[test]
    fn removing_takes_a_link_and_not_what_it_names() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("kept"), "").unwrap();
        let tree = tempfile::tempdir().unwrap();
        let victim = tree.path().join("d");
        fs::create_dir_all(victim.join("e")).unwrap();
        symlink(outside.path(), victim.join("out")).unwrap();
        let (code, message) = refusal("remove", json!({"path": path(&victim)}));
        assert_eq!(code, ErrorCode::Exists);
        assert!(message.ends_with("ask for recursive"), "{message}");
        ask("remove", json!({"path": path(&victim), "recursive": true})).0.unwrap();
        assert!(!victim.exists());
        symlink(outside.path(), &victim).unwrap();
        ask("remove", json!({"path": path(&victim), "recursive": true})).0.unwrap();
        assert!(outside.path().join("kept").exists());
    }

    #[test]
    fn the_root_directory_stays_however_it_is_spelt() {
        for root in ["/", "//", "/tmp/..", "/."] {
            let (code, message) = refusal("remove", json!({"path": root, "recursive": true}));
            assert_eq!(code, ErrorCode::Invalid);
            assert!(message.contains("root directory"), "{message}");
        }
    }
}
