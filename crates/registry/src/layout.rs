//! A directory that is an OCI image layout, used by several processes at once.
//!
//! A blob that has its name is whole. One that is coming is `NAME.partial`, under an exclusive `flock`
//! of whoever fetches it. The kernel drops the lock of a process that dies; the next goes on there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::{FlockOperation, OFlags, flock};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::error::PullError;

const VERSION: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// An index that is longer is not ours.
const LONGEST_INDEX: u64 = 16 << 20;

/// The directory.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
    blobs: PathBuf,
}

/// What became of a try to fetch a blob.
pub(crate) enum Claim {
    /// It is here.
    Whole,
    /// Another task or process fetches it.
    Taken,
    /// It is ours to fetch.
    Ours(Partial),
}

/// A blob that is coming, locked.
pub(crate) struct Partial {
    file: File,
    path: PathBuf,
    whole: PathBuf,
    hash: Sha256,
    have: u64,
}

impl Layout {
    /// Opens or makes it.
    pub(crate) fn open(root: &Path) -> Result<Self, PullError> {
        let blobs = root.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(PullError::disk("create", &blobs))?;
        let layout = Self { root: root.into(), blobs };
        let version = root.join("oci-layout");
        if !version.exists() {
            layout.replace(&version, VERSION)?;
        }
        Ok(layout)
    }

    pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }

    /// A short blob that is here and is what its name says.
    pub(crate) fn read(&self, digest: &Digest, most: usize) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = File::open(self.path(digest)).ok()?;
        file.take(most as u64 + 1).read_to_end(&mut bytes).ok()?;
        (bytes.len() <= most && Digest::of(&bytes) == *digest).then_some(bytes)
    }

    /// Keeps a short blob.
    pub(crate) fn keep(&self, digest: &Digest, bytes: &[u8]) -> Result<(), PullError> {
        if self.read(digest, bytes.len()).is_some() {
            return Ok(());
        }
        self.replace(&self.path(digest), bytes)
    }

    /// Claims a blob of this length.
    pub(crate) fn claim(&self, digest: &Digest, size: u64) -> Result<Claim, PullError> {
        let whole = self.path(digest);
        let path = self.blobs.join(format!("{}.partial", digest.hex()));
        let is_whole = || fs::metadata(&whole).is_ok_and(|found| found.len() == size);
        if is_whole() {
            return Ok(Claim::Whole);
        }
        let no_follow = OFlags::NOFOLLOW.bits().cast_signed();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(no_follow)
            .open(&path)
            .map_err(PullError::disk("open", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(Claim::Taken),
            Err(error) => return Err(PullError::disk("lock", &path)(error.into())),
        }
        // Who had it may have finished, and the name may be another file's by now.
        let ours = file.metadata().map_err(PullError::disk("read", &path))?;
        let named = fs::symlink_metadata(&path);
        if !named.is_ok_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino())) {
            return Ok(Claim::Taken);
        }
        let mut partial =
            Partial { file, path, whole: whole.clone(), hash: Sha256::new(), have: 0 };
        if is_whole() {
            partial.discard();
            return Ok(Claim::Whole);
        }
        if ours.len() > size {
            partial.restart()?;
        } else {
            partial.reread()?;
        }
        Ok(Claim::Ours(partial))
    }

    /// Names an image in the index, in place of what had the name.
    pub(crate) fn name(&self, name: &str, descriptor: Value) -> Result<(), PullError> {
        let version = self.root.join("oci-layout");
        let lock = File::open(&version).map_err(PullError::disk("open", &version))?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|error| PullError::disk("lock", &version)(error.into()))?;
        let path = self.root.join("index.json");
        let mut others = self.index(&path);
        others.retain(|entry| entry["annotations"][REF_NAME] != name);
        let mut entry = descriptor;
        entry["annotations"] = json!({ REF_NAME: name });
        others.push(entry);
        let index = json!({"schemaVersion": 2, "manifests": others});
        self.replace(&path, index.to_string().as_bytes())
    }

    /// What is not an index names nothing.
    fn index(&self, path: &Path) -> Vec<Value> {
        let mut bytes = Vec::new();
        let read =
            File::open(path).and_then(|file| file.take(LONGEST_INDEX).read_to_end(&mut bytes));
        let Ok(mut index) = read.and_then(|_| Ok(serde_json::from_slice::<Value>(&bytes)?)) else {
            return Vec::new();
        };
        match index["manifests"].take() {
            Value::Array(entries) => entries,
            _ => Vec::new(),
        }
    }

    /// Writes a file that is there whole or not at all.
    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), PullError> {
        let failed = || PullError::disk("write", path);
        let suffix = getrandom::u64().map_err(|error| failed()(io::Error::other(error)))?;
        let temporary = self.root.join(format!(".{suffix:016x}.tmp"));
        let write = || {
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, path)?;
            sync_directory(path)
        };
        write().map_err(|error| {
            // What is half there is of no use; the first error is the one to tell.
            let _ = fs::remove_file(&temporary);
            failed()(error)
        })
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

impl Partial {
    /// How many bytes are here.
    pub(crate) fn have(&self) -> u64 {
        self.have
    }

    /// Reads what another process has left, which is as good as its digest in the end.
    fn reread(&mut self) -> Result<(), PullError> {
        let mut buffer = vec![0; 256 << 10];
        loop {
            let count = match self.file.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(PullError::disk("read", &self.path)(error)),
            };
            self.hash.update(&buffer[..count]);
            self.have += count as u64;
        }
    }

    /// Adds what has come.
    pub(crate) fn append(&mut self, batch: &[Bytes]) -> Result<(), PullError> {
        for bytes in batch {
            if let Err(error) = self.file.write_all(bytes) {
                let error = PullError::disk("write", &self.path)(error);
                if matches!(error, PullError::Full { .. }) {
                    self.discard();
                }
                return Err(error);
            }
            self.hash.update(bytes);
            self.have += bytes.len() as u64;
        }
        Ok(())
    }

    /// Begins anew.
    pub(crate) fn restart(&mut self) -> Result<(), PullError> {
        self.hash = Sha256::new();
        self.have = 0;
        self.file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)))
            .map(drop)
            .map_err(PullError::disk("truncate", &self.path))
    }

    /// What its bytes are called.
    pub(crate) fn digest(&self) -> Digest {
        Digest::finish(self.hash.clone())
    }

    /// Gives it its name, for good.
    pub(crate) fn finish(&mut self) -> Result<(), PullError> {
        let done = self
            .file
            .sync_all()
            .and_then(|()| fs::rename(&self.path, &self.whole))
            .and_then(|()| sync_directory(&self.whole));
        done.map_err(|error| {
            let error = PullError::disk("keep", &self.path)(error);
            if matches!(error, PullError::Full { .. }) {
                self.discard();
            }
            error
        })
    }

    /// Takes it away, and the space that it takes.
    pub(crate) fn discard(&mut self) {
        // Nothing depends on it: what stays is read again, and found wrong again.
        let _ = fs::remove_file(&self.path);
        let _ = self.file.set_len(0);
    }
}
