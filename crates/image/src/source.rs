//! Roots made elsewhere: what kind of file it is, and what to do with it.

use crate::compression::Compression;
use crate::digest::{self, Digesting};
use crate::erofs::{Limits, Summary, SuperblockError, WriteError, Writer};
use crate::mmdebstrap::{self, Package};
use crate::progress::{Progress, Stage};
use crate::reference::{Reference, is_digest};
use crate::store::{self, RootFs};
use crate::tar::{Reader, TarError, TarPath};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Changes when the same archive would give another image.
const CONVERTER_VERSION: u32 = 1;

/// Which image is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageRef {
    /// One of the store, by name or digest.
    Name(String),
    /// A file: an EROFS or ext4 image, or a tar archive of a root.
    Path(PathBuf),
    /// One of a registry, of which there may be a copy here.
    Oci(Reference),
}

impl Default for ImageRef {
    fn default() -> Self {
        Self::Name("base".to_owned())
    }
}

impl FromStr for ImageRef {
    type Err = std::convert::Infallible;

    /// With a slash or a dot in front it is a path. A word alone is a name of the store, and so
    /// is a digest; what has a registry, a path, a tag or a digest is a reference.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with(['/', '.']) {
            return Ok(Self::Path(text.into()));
        }
        if !text.contains(['/', ':', '@']) || is_digest(text) {
            return Ok(Self::Name(text.to_owned()));
        }
        // No name of the store is like that, and the message says why it is no reference.
        Ok(text.parse().map_or_else(|_| Self::Name(text.to_owned()), Self::Oci))
    }
}

impl std::fmt::Display for ImageRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Oci(reference) => write!(f, "{reference}"),
        }
    }
}

/// Why a file cannot be the root of a sandbox.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// It could not be opened.
    #[error("cannot open the image {}: {source}", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It could not be read.
    #[error("cannot read the image {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A directory, a pipe, a device.
    #[error(
        "{} is not a file; pack a directory first: tar -C DIR -cf root.tar .", .path.display()
    )]
    NotAFile {
        /// What was given.
        path: PathBuf,
    },
    /// None of the formats that are supported.
    #[error(
        "{} is {what}; an image is EROFS, ext4, or a tar archive of a root file system \
         (plain, gzip or zstd)", .path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// What it looks like.
        what: &'static str,
    },
    /// EROFS, but damaged or with features that the guest kernel lacks.
    #[error("{} cannot be mounted by the guest: {source}", .path.display())]
    Erofs {
        /// The file.
        path: PathBuf,
        /// Why.
        source: SuperblockError,
    },
    /// The file is shorter than the file system in it.
    #[error("{} is cut short: the file system in it has {expected} bytes", .path.display())]
    Short {
        /// The file.
        path: PathBuf,
        /// Length it should have.
        expected: u64,
    },
    /// The file system has a journal that was not replayed.
    #[error("{} was not unmounted cleanly; repair it: e2fsck -f {0}", .path.display())]
    Journal {
        /// The file.
        path: PathBuf,
    },
    /// The archive is malformed, or the image could not be written.
    #[error("cannot use {}: {source}", .path.display())]
    Convert {
        /// The archive.
        path: PathBuf,
        /// Why.
        source: WriteError,
    },
    /// It holds layers of an image, not a root.
    #[error(
        "{} holds an image in layers; export a container's root instead: \
         docker export CONTAINER > root.tar", .path.display()
    )]
    Layers {
        /// The archive.
        path: PathBuf,
    },
    /// Its contents were other ones the second time.
    #[error("{} was changed while it was read", .path.display())]
    Changed {
        /// The archive.
        path: PathBuf,
    },
}

/// An opened file that can become a root.
#[derive(Debug)]
pub(crate) enum Source {
    /// Attached as it is.
    Image { file: File, fs: RootFs, size: u64 },
    /// Converted first.
    Archive(Archive),
}

/// A tar archive of a root.
#[derive(Debug)]
pub(crate) struct Archive {
    path: PathBuf,
    file: File,
    size: u64,
    compression: Compression,
}

impl Source {
    /// Goes by what is in the file; its name says nothing.
    pub(crate) fn open(path: &Path) -> Result<Self, SourceError> {
        let read = |source| SourceError::Read { path: path.to_owned(), source };
        // Not blocking: a named pipe must be refused, not waited for.
        let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
        let mut file = {
            use std::os::unix::fs::OpenOptionsExt;
            File::options()
                .read(true)
                .custom_flags(flags)
                .open(path)
                .map_err(|source| SourceError::Open { path: path.to_owned(), source })?
        };
        let meta = file.metadata().map_err(read)?;
        if !meta.is_file() {
            return Err(SourceError::NotAFile { path: path.to_owned() });
        }
        let size = meta.len();
        let mut head = Vec::new();
        (&file).take(4096).read_to_end(&mut head).map_err(read)?;
        match store::superblock(&mut file).map_err(read)? {
            Ok(superblock) if superblock.bytes > size => {
                let path = path.to_owned();
                return Err(SourceError::Short { path, expected: superblock.bytes });
            }
            Ok(_) => return Ok(Self::Image { file, fs: RootFs::Erofs, size }),
            Err(SuperblockError::Magic) => {}
            Err(source) => return Err(SourceError::Erofs { path: path.to_owned(), source }),
        }
        if let Some(ext) = ext(&head) {
            if ext.bytes > size {
                return Err(SourceError::Short { path: path.to_owned(), expected: ext.bytes });
            }
            if ext.needs_recovery {
                return Err(SourceError::Journal { path: path.to_owned() });
            }
            return Ok(Self::Image { file, fs: RootFs::Ext4, size });
        }
        let compression = compression(&head)
            .map_err(|what| SourceError::Format { path: path.to_owned(), what })?;
        Ok(Self::Archive(Archive { path: path.to_owned(), file, size, compression }))
    }
}

struct Ext {
    bytes: u64,
    needs_recovery: bool,
}

/// The superblock of ext2, 3 or 4 (`fs/ext4/ext4.h`, `struct ext4_super_block`).
fn ext(head: &[u8]) -> Option<Ext> {
    let sb = head.get(1024..2048)?;
    let word = |at: usize| u32::from_le_bytes([sb[at], sb[at + 1], sb[at + 2], sb[at + 3]]);
    let block_bits = word(0x18).checked_add(10).filter(|&bits| bits <= 16)?;
    let (incompat_recover, incompat_64bit) = (0x4, 0x80);
    let incompat = word(0x60);
    let high = if incompat & incompat_64bit != 0 { word(0x150) } else { 0 };
    let blocks = u64::from(word(4)) | u64::from(high) << 32;
    (sb[0x38..0x3a] == [0x53, 0xef]).then(|| Ext {
        bytes: blocks.saturating_mul(1 << block_bits),
        needs_recovery: incompat & incompat_recover != 0,
    })
}

/// How the archive is compressed, or what the file is instead.
fn compression(head: &[u8]) -> Result<Compression, &'static str> {
    let others: [(&[u8], &str); 7] = [
        (b"\xfd7zXZ\0", "compressed with xz"),
        (b"BZh", "compressed with bzip2"),
        (b"QFI\xfb", "a QCOW2 disk"),
        (b"hsqs", "a squashfs image"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\x7fELF", "a program"),
        (b"#!", "a script"),
    ];
    let compression = Compression::of(head);
    if compression != Compression::None {
        Ok(compression)
    } else if let Some((_, what)) = others.iter().find(|(magic, _)| head.starts_with(magic)) {
        Err(what)
    } else if head.is_empty() {
        Err("empty")
    } else if Reader::new(head).next_entry().is_err_and(|e| matches!(e, TarError::Header { .. })) {
        Err("of an unknown format")
    } else {
        Ok(Compression::None)
    }
}

/// The key under which the image made from an archive with that digest is stored.
pub(crate) fn key(source_digest: &str) -> String {
    digest::of(format!("converter {CONVERTER_VERSION} {source_digest}").as_bytes())
}

impl Archive {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn compression(&self) -> Compression {
        self.compression
    }

    /// Whether it holds an image in layers, by its first entry but the root.
    pub(crate) fn holds_layers(&self) -> Result<bool, SourceError> {
        (&self.file).rewind().map_err(self.read_error())?;
        let plain = self.compression.decoder(BufReader::new(&self.file));
        let mut archive = Reader::new(plain);
        // An error is told by whoever reads it all.
        while let Ok(Some(entry)) = archive.next_entry() {
            if entry.path.names().next().is_some() {
                return Ok(crate::oci::begins_like_one(&entry.path));
            }
        }
        Ok(false)
    }

    /// The name that its image gets.
    pub(crate) fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or(self.path.as_os_str());
        name.to_string_lossy().into_owned()
    }

    pub(crate) fn digest(&self, progress: &mut dyn Progress) -> Result<String, SourceError> {
        (&self.file).rewind().map_err(self.read_error())?;
        let read = |done| progress.step(Stage::Digest.at(done, Some(self.size)));
        digest::of_reader(&self.file, read).map(|(digest, _)| digest).map_err(self.read_error())
    }

    /// Writes it as an image. It is digested again on the way: what was converted is what the
    /// store's key says, even if someone writes to the file meanwhile.
    pub(crate) fn convert(
        &self,
        image: File,
        expected: &str,
        progress: &mut dyn Progress,
    ) -> Result<(Summary, Vec<Package>), SourceError> {
        let failed = |source| SourceError::Convert { path: self.path.clone(), source };
        (&self.file).rewind().map_err(self.read_error())?;
        let mut done = 0;
        let counted = Counting {
            input: &self.file,
            read: |n| {
                done += n;
                progress.step(Stage::Convert.at(done, Some(self.size)));
            },
        };
        let mut file = BufReader::with_capacity(256 << 10, Digesting::new(counted));
        let mut writer = Writer::new(image, Limits::default()).map_err(failed)?;
        let plain = self.compression.decoder(&mut file);
        writer.add_archive(&mut Reader::new(plain), |_| true).map_err(failed)?;
        let digest = file.into_inner().finish().map_err(self.read_error())?;
        if digest != expected {
            return Err(SourceError::Changed { path: self.path.clone() });
        }
        let has = |writer: &Writer<File>, path: &str| {
            TarPath::parse(path.as_bytes()).is_ok_and(|path| writer.contains(&path))
        };
        if ["manifest.json", "index.json"].iter().any(|file| has(&writer, file))
            && !has(&writer, "usr")
            && !has(&writer, "bin")
        {
            return Err(SourceError::Layers { path: self.path.clone() });
        }
        let status = TarPath::parse(b"var/lib/dpkg/status")
            .map_err(|e| failed(e.into()))
            .and_then(|path| writer.read(&path, 64 << 20).map_err(failed))?;
        let packages = status
            .map(|status| mmdebstrap::packages(&String::from_utf8_lossy(&status)))
            .unwrap_or_default();
        let summary = writer.finish().map_err(failed)?.1;
        Ok((summary, packages))
    }

    fn read_error(&self) -> impl FnOnce(io::Error) -> SourceError {
        let path = self.path.clone();
        move |source| SourceError::Read { path, source }
    }
}

/// Tells how much was read.
pub(crate) struct Counting<R, F> {
    pub(crate) input: R,
    pub(crate) read: F,
}

impl<R: Read, F: FnMut(u64)> Read for Counting<R, F> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(buf)?;
        (self.read)(n as u64);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slash_or_a_dot_in_front_makes_a_path_and_a_tag_a_reference() {
        let parse = |text: &str| text.parse::<ImageRef>().unwrap();
        assert_eq!(parse("base"), ImageRef::Name("base".to_owned()));
        assert_eq!(parse("root.tar"), ImageRef::Name("root.tar".to_owned()));
        assert_eq!(parse("./root.tar"), ImageRef::Path("./root.tar".into()));
        assert_eq!(parse("/x"), ImageRef::Path("/x".into()));
        assert_eq!(parse("a/b"), ImageRef::Oci("docker.io/a/b:latest".parse().unwrap()));
        assert_eq!(parse("python:3"), ImageRef::Oci("python:3".parse().unwrap()));
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(parse(&digest), ImageRef::Name(digest.clone()));
        assert_eq!(parse("no name:"), ImageRef::Name("no name:".to_owned()));
    }
}
