//! Directories of blobs: OCI image layouts, our own and other people's.

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufReader, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{FlockOperation, flock};

use super::OciError;
use super::document::{Descriptor, MAX_DOCUMENT};
use crate::cache::CacheError;
use crate::digest::Digesting;
use crate::reference::is_digest;

/// What makes a directory a layout.
const MARK: &str = "oci-layout";
const MARK_TEXT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
pub(crate) const INDEX: &str = "index.json";
/// How the names of files begin that are not whole yet. All are among the blobs.
pub(crate) const WORKING: &str = ".new-";

/// `oci-layout`, `index.json` and `blobs/sha256/…`.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// Somebody else's.
    pub(crate) fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Whether a directory is one.
    pub(crate) fn is_at(dir: &Path) -> bool {
        dir.join(MARK).is_file()
    }

    /// One of ours, made if need be.
    pub(crate) fn make(dir: &Path) -> Result<Self, CacheError> {
        let layout = Self::at(dir);
        let blobs = layout.blobs();
        let mut builder = DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(&blobs)
            .map_err(CacheError::of("create", &blobs))?;
        if !Self::is_at(dir) {
            layout.replace(MARK, MARK_TEXT)?;
        }
        Ok(layout)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.dir.join("blobs/sha256")
    }

    /// Where a blob is, or would be. What is no digest has no place.
    pub(crate) fn path(&self, digest: &str) -> Option<PathBuf> {
        let hex = digest.strip_prefix("sha256:").filter(|_| is_digest(digest))?;
        Some(self.blobs().join(hex))
    }

    pub(crate) fn has(&self, digest: &str) -> bool {
        self.path(digest).is_some_and(|path| path.is_file())
    }

    /// Opens a blob; its length is as the descriptor says, its contents are still to be verified.
    pub(crate) fn open(&self, descriptor: &Descriptor) -> Result<File, OciError> {
        let missing = || OciError::Missing { digest: descriptor.digest.clone() };
        let path = self.path(&descriptor.digest).ok_or_else(missing)?;
        let file = match open_file(&path) {
            Ok(Some(file)) => file,
            Ok(None) => return Err(missing()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(missing()),
            Err(source) => return Err(OciError::Read { path, source }),
        };
        let found = file.metadata().map_err(|source| OciError::Read { path, source })?.len();
        if found != descriptor.size {
            let (digest, expected) = (descriptor.digest.clone(), descriptor.size);
            return Err(OciError::Size { digest, found, expected });
        }
        Ok(file)
    }

    /// A document, verified.
    pub(crate) fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, OciError> {
        self.bounded(&descriptor.digest, self.open(descriptor)?)
    }

    /// A document of which only the digest is known, verified.
    pub(crate) fn document_by_digest(&self, digest: &str) -> Result<Vec<u8>, OciError> {
        let missing = || OciError::Missing { digest: digest.to_owned() };
        let path = self.path(digest).ok_or_else(missing)?;
        let file = open_file(&path).ok().flatten().ok_or_else(missing)?;
        self.bounded(digest, file)
    }

    fn bounded(&self, digest: &str, file: File) -> Result<Vec<u8>, OciError> {
        let mut bytes = Vec::new();
        let path = || self.path(digest).unwrap_or_default();
        file.take(MAX_DOCUMENT + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| OciError::Read { path: path(), source })?;
        let found = format!("sha256:{}", crate::digest::of(&bytes));
        if found != digest {
            return Err(OciError::Digest { found, expected: digest.to_owned() });
        }
        Ok(bytes)
    }

    /// A file beside the blobs, where there is one.
    pub(crate) fn file(&self, name: &str) -> Result<Option<Vec<u8>>, OciError> {
        let path = self.dir.join(name);
        let read = |source| OciError::Read { path: path.clone(), source };
        match open_file(&path) {
            Ok(Some(file)) => {
                let mut bytes = Vec::new();
                file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).map_err(read)?;
                Ok(Some(bytes))
            }
            Ok(None) => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(read(source)),
        }
    }

    /// Keeps everybody else who writes into this layout from changing its index meanwhile.
    pub(crate) fn lock_index(&self) -> Result<File, CacheError> {
        let path = self.dir.join(MARK);
        let file = File::open(&path).map_err(CacheError::of("open", &path))?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(CacheError::of("lock", &path)(e.into())),
            }
        }
    }

    /// Writes a file beside the blobs: all of it or nothing.
    pub(crate) fn replace(&self, name: &str, contents: &[u8]) -> Result<(), CacheError> {
        let (path, new) = (self.dir.join(name), self.working_name());
        let written = create(&new)
            .and_then(|mut file| file.write_all(contents).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&new, &path))
            .and_then(|()| File::open(&self.dir)?.sync_all());
        written.map_err(|error| {
            let _ = fs::remove_file(&new);
            CacheError::of("write", &path)(error)
        })
    }

    /// Adds a blob, whatever it is. Returns its digest and length.
    pub(crate) fn put(&self, contents: impl Read) -> Result<(String, u64), PutError> {
        let new = self.working_name();
        let put = (|| {
            let mut file = create(&new).map_err(PutError::Write)?;
            let mut contents = Digesting::new(contents);
            copy(&mut contents, &mut file)?;
            let (digest, size) = contents.finish_counted().map_err(PutError::Read)?;
            file.sync_all().map_err(PutError::Write)?;
            let path = self.blobs().join(&digest);
            fs::rename(&new, path).map_err(PutError::Write)?;
            Ok((format!("sha256:{digest}"), size))
        })();
        if put.is_err() {
            let _ = fs::remove_file(&new);
        }
        put
    }

    /// Adds a blob of another layout, if it is not there yet and is what its digest says.
    pub(crate) fn adopt(&self, from: &Self, descriptor: &Descriptor) -> Result<(), OciError> {
        if from.dir == self.dir || self.has(&descriptor.digest) {
            return Ok(());
        }
        let file = from.open(descriptor)?;
        let (found, _) = self.put(file).map_err(|error| self.put_error(error))?;
        if found != descriptor.digest {
            if let Some(path) = self.path(&found) {
                let _ = fs::remove_file(path);
            }
            return Err(OciError::Digest { found, expected: descriptor.digest.clone() });
        }
        Ok(())
    }

    pub(crate) fn put_error(&self, error: PutError) -> OciError {
        let path = self.blobs();
        match error {
            PutError::Read(source) => OciError::Read { path, source },
            PutError::Write(source) => CacheError::of("write", &path)(source).into(),
        }
    }

    fn working_name(&self) -> PathBuf {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        self.blobs().join(format!("{WORKING}{}-{number}", std::process::id()))
    }
}

/// Which end of a copy failed.
#[derive(Debug)]
pub(crate) enum PutError {
    Read(io::Error),
    Write(io::Error),
}

fn copy(from: &mut impl Read, to: &mut File) -> Result<(), PutError> {
    let mut buf = vec![0; 256 << 10];
    loop {
        match from.read(&mut buf) {
            Ok(0) => return Ok(()),
            Ok(n) => to.write_all(&buf[..n]).map_err(PutError::Write)?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(PutError::Read(e)),
        }
    }
}

fn create(path: &Path) -> io::Result<File> {
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

/// A file, not a pipe that would be waited for. Links are followed: whose directory it is may lay
/// it out as they like, and what is read is verified.
fn open_file(path: &Path) -> io::Result<Option<File>> {
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    Ok(file.metadata()?.is_file().then_some(file))
}

/// Writes an archive of a layout with one image.
pub(crate) fn write_archive(
    from: &Layout,
    index: &[u8],
    blobs: &[&Descriptor],
    to: &mut impl Write,
) -> Result<(), OciError> {
    let written = |source| CacheError::of("write", Path::new("the archive"))(source);
    let mut add = |name: &str, size: u64, contents: &mut dyn Read| -> Result<(), OciError> {
        to.write_all(&header(name, size)).map_err(written)?;
        let mut contents = Digesting::new(contents.take(size));
        io::copy(&mut contents, to).map_err(written)?;
        let (digest, copied) = contents.finish_counted().map_err(written)?;
        let padding = usize::try_from(size.next_multiple_of(512) - size).unwrap_or(0);
        to.write_all(&[0; 512][..padding]).map_err(written)?;
        if let Some(expected) = name.strip_prefix("blobs/sha256/")
            && (expected != digest || copied != size)
        {
            let expected = format!("sha256:{expected}");
            return Err(OciError::Digest { found: format!("sha256:{digest}"), expected });
        }
        Ok(())
    };
    add(MARK, MARK_TEXT.len() as u64, &mut &*MARK_TEXT)?;
    add(INDEX, index.len() as u64, &mut &*index)?;
    for descriptor in blobs {
        let hex = descriptor.digest.trim_start_matches("sha256:");
        let mut file = BufReader::with_capacity(256 << 10, from.open(descriptor)?);
        file.rewind().map_err(written)?;
        add(&format!("blobs/sha256/{hex}"), descriptor.size, &mut file)?;
    }
    to.write_all(&[0; 1024]).map_err(written)?;
    Ok(())
}

/// A header of ustar for a file that anybody may read, with no time: equal images give equal
/// archives.
fn header(name: &str, size: u64) -> [u8; 512] {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[108..115].copy_from_slice(b"0000000");
    header[116..123].copy_from_slice(b"0000000");
    if size < 1 << 33 {
        header[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    } else {
        // Base 256, as GNU tar and POSIX readers know it.
        header[124] = 0x80;
        header[128..136].copy_from_slice(&size.to_be_bytes());
    }
    header[136..147].copy_from_slice(b"00000000000");
    header[148..156].fill(b' ');
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header
}
