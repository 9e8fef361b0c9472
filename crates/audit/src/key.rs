use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use rustix::fs::{CWD, OFlags, RenameFlags};
use zeroize::Zeroizing;

use crate::AuditError;
use crate::digest::to_hex;

/// The key that signs heads of the chain. It is wiped when it is dropped.
pub struct Key(SigningKey);

impl Key {
    /// Reads the key of `path`, a file of 32 bytes that nobody but its owner may read.
    ///
    /// # Errors
    /// `Key` where it is not such a file, `File` where it cannot be read.
    pub fn load(path: &Path) -> Result<Self, AuditError> {
        let unusable =
            |reason: &str| AuditError::Key { path: path.to_owned(), reason: reason.to_owned() };
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(no_follow())
            .open(path)
            .map_err(AuditError::file("open", path))?;
        let data = file.metadata().map_err(AuditError::file("look at", path))?;
        if !data.is_file() || data.len() != 32 {
            return Err(unusable("it is not a file of 32 bytes; restore it from a backup"));
        }
        if data.mode() & 0o077 != 0 {
            return Err(unusable("others may read or write it; run `chmod 600` on it"));
        }
        if data.uid() != rustix::process::geteuid().as_raw() {
            return Err(unusable("it belongs to another user"));
        }
        let mut seed = Zeroizing::new([0; 32]);
        file.read_exact(&mut *seed).map_err(AuditError::file("read", path))?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// Makes a key at `path` with mode 0600. Where one is there already, or comes at the same
    /// time from another process, that one is read.
    ///
    /// # Errors
    /// As `load`, and `Random`.
    pub fn create(path: &Path) -> Result<Self, AuditError> {
        if path.symlink_metadata().is_ok() {
            // Also where there is no room for another one.
            return Self::load(path);
        }
        let random = |bytes: &mut [u8]| {
            getrandom::fill(bytes).map_err(|error| AuditError::Random(error.to_string()))
        };
        let mut suffix = [0; 8];
        random(&mut suffix)?;
        let mut seed = Zeroizing::new([0; 32]);
        random(&mut *seed)?;
        // Whole or not at all: the file gets its name when all of it is on disk.
        let unfinished = path.with_extension(format!("{}.new", to_hex(&suffix)));
        let write = || {
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
            file.write_all(&*seed)?;
            file.sync_all()?;
            rustix::fs::renameat_with(CWD, &unfinished, CWD, path, RenameFlags::NOREPLACE)?;
            sync_directory_of(path)
        };
        match write() {
            Ok(()) => Ok(Self(SigningKey::from_bytes(&seed))),
            Err(error) => {
                // The failure that is told is the first one.
                let _ = std::fs::remove_file(&unfinished);
                if error.kind() == std::io::ErrorKind::AlreadyExists {
                    return Self::load(path);
                }
                Err(AuditError::file("create", path)(error))
            }
        }
    }

    /// The public half.
    pub fn public(&self) -> VerifyingKey {
        self.0.verifying_key()
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Signature {
        self.0.sign(message)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Key").field(&to_hex(self.public().as_bytes())).finish()
    }
}

/// `O_NOFOLLOW` as the standard library wants it.
pub(crate) fn no_follow() -> i32 {
    OFlags::NOFOLLOW.bits().cast_signed()
}

/// A name that was made, renamed or removed is on disk after this.
pub(crate) fn sync_directory_of(path: &Path) -> std::io::Result<()> {
    File::open(path.parent().unwrap_or_else(|| Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_read_again() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("key");
        let made = Key::create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(Key::load(&path).unwrap().public(), made.public());
        assert_eq!(Key::create(&path).unwrap().public(), made.public());
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("key");
        Key::create(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = Key::load(&path).unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_link_and_a_short_file_are_refused() {
        let place = tempfile::tempdir().unwrap();
        let (path, link) = (place.path().join("key"), place.path().join("link"));
        Key::create(&path).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(Key::load(&link), Err(AuditError::File { .. })));
        std::fs::write(&path, [1; 31]).unwrap();
        assert!(matches!(Key::load(&path), Err(AuditError::Key { .. })));
    }

    #[test]
    fn the_private_half_is_not_in_debug() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("key");
        let key = Key::create(&path).unwrap();
        let seed = to_hex(&std::fs::read(&path).unwrap());
        assert!(!format!("{key:?}").contains(&seed));
    }
}
