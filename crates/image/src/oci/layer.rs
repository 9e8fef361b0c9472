//! One layer: a tar archive with whiteouts in, an EROFS image for overlayfs out.

use std::io::{self, BufReader, Read, Seek, Write};

use serde::{Deserialize, Serialize};

use super::place::Context;
use super::view::Seen;
use crate::compression::Compression;
use crate::digest::Digesting;
use crate::erofs::{self, Summary, What, WriteError, Writer};
use crate::tar::{Entry, Kind, Reader, TarPath};

/// What hides a name of the layers below: `.wh.NAME`.
const WHITEOUT: &[u8] = b".wh.";
/// What hides all that the layers below have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What another builder once noted for itself beside the files of a layer.
const NOTES: &[u8] = b".wh..wh.";
/// Nobody's builder links more than a few.
const MAX_FOREIGN: usize = 100_000;
/// Decompressors read ahead; what fits in here is no bomb.
const ALWAYS_ALLOWED: u64 = 64 << 20;

/// What one layer may cost. A few bytes can be compressed terabytes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Of the image that is made of it.
    pub image: erofs::Limits,
    /// Bytes of the archive without compression.
    pub unpacked_bytes: u64,
    /// Bytes without compression for each compressed one, after the first 64 MiB. What gzip can do
    /// at most is 1032; zstd has no bound of its own.
    pub ratio: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { image: erofs::Limits::default(), unpacked_bytes: 64 << 30, ratio: 1100 }
    }
}

/// What a layer has to be.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// `sha256:…` of the layer as it is transported.
    pub digest: &'a str,
    /// Its length.
    pub size: u64,
    /// `sha256:…` of the layer without compression.
    pub diff_id: &'a str,
    /// How it is compressed.
    pub compression: Compression,
}

/// Why a layer was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The archive is malformed or asks for too much, or the image could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// It could not be read.
    #[error("it cannot be read: {0}")]
    Read(#[source] io::Error),
    /// It is not what was announced.
    #[error("its SHA-256 is {found}, not {expected}; it was damaged or replaced")]
    Digest {
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// What is in it is not what the image's configuration announces.
    #[error(
        "without compression its SHA-256 is {found}, not {expected}; the image is inconsistent"
    )]
    DiffId {
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// It has another length than announced.
    #[error("it has {found} bytes, not {expected}")]
    Size {
        /// Its length; one more than expected stands for any that is longer.
        found: u64,
        /// What it should be.
        expected: u64,
    },
    /// It starts with other bytes than its media type says.
    #[error("it is not compressed as its media type says: {0:?} instead")]
    Compression(Compression),
    /// It would grow beyond all measure.
    #[error("it unpacks to over {limit} bytes, which is taken for an attack")]
    Bomb {
        /// How much was unpacked.
        limit: u64,
    },
    /// A name that no builder writes.
    #[error("{path}: {why}")]
    Whiteout {
        /// The entry.
        path: TarPath,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// What became of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    /// The image.
    pub summary: Summary,
    /// Directories that no entry describes: `/`-separated, the root's is empty.
    pub implied: Vec<Vec<u8>>,
    /// All layers below are hidden.
    pub hides_all: bool,
    /// Hard links to what is not in the layer. They are not in the image.
    pub foreign: Vec<Foreign>,
}

/// A hard link to what is not in its layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Foreign {
    /// Its path, `/`-separated.
    pub path: Vec<u8>,
    /// What it names.
    pub target: Vec<u8>,
}

/// Turns a layer into an image at the start of `image`, in one pass over `blob`, and says no unless
/// every digest is as expected. `image` may have been written to even so.
pub fn convert<W: Read + Write + Seek>(
    blob: impl Read,
    expected: Expected<'_>,
    image: W,
    limits: Limits,
) -> Result<(W, Converted), LayerError> {
    convert_in(blob, expected, image, limits, None)
}

/// The same upon the layers below, where the layer needs them.
pub(crate) fn convert_in<W: Read + Write + Seek>(
    blob: impl Read,
    expected: Expected<'_>,
    image: W,
    limits: Limits,
    context: Option<&Context<'_>>,
) -> Result<(W, Converted), LayerError> {
    // One byte more, so that a longer one shows.
    let blob = Digesting::new(blob.take(expected.size.saturating_add(1)));
    let mut blob = BufReader::with_capacity(256 << 10, blob);
    let converted = unpack(&mut blob, expected, image, limits, context);
    // Whatever else is wrong with it: that it is not the right blob is what there is to know.
    let (found, size) = blob.into_inner().finish_counted().map_err(LayerError::Read)?;
    if size != expected.size {
        return Err(LayerError::Size { found: size, expected: expected.size });
    }
    same(&found, expected.digest)
        .map_err(|(found, expected)| LayerError::Digest { found, expected })?;
    let (image, converted, diff_id) = converted?;
    same(&diff_id, expected.diff_id)
        .map_err(|(found, expected)| LayerError::DiffId { found, expected })?;
    Ok((image, converted))
}

fn same(found: &str, expected: &str) -> Result<(), (String, String)> {
    let found = format!("sha256:{found}");
    if found == expected { Ok(()) } else { Err((found, expected.to_owned())) }
}

fn unpack<W: Read + Write + Seek>(
    blob: &mut impl io::BufRead,
    expected: Expected<'_>,
    image: W,
    limits: Limits,
    context: Option<&Context<'_>>,
) -> Result<(W, Converted, String), LayerError> {
    let found = Compression::of(blob.fill_buf().map_err(LayerError::Read)?);
    if found != expected.compression {
        return Err(LayerError::Compression(found));
    }
    let most = expected.size.saturating_mul(limits.ratio).max(ALWAYS_ALLOWED);
    let limit = most.min(limits.unpacked_bytes);
    let mut plain =
        Digesting::new(Bounded { input: found.decoder(blob), left: limit, is_over: false });
    let input = BufReader::with_capacity(64 << 10, &mut plain);
    let mut archive = Reader::new(input).without_marker();
    let written = (|| -> Result<_, LayerError> {
        let mut writer = Writer::new(image, limits.image)?;
        let mut foreign = Vec::new();
        while let Some(entry) = archive.next_entry().map_err(WriteError::from)? {
            add(&mut writer, entry, &mut archive.contents(), context, &mut foreign)?;
        }
        if let (Some(_), Some(Foreign { path, target })) = (context, foreign.first()) {
            let name = |bytes: &[u8]| TarPath::parse(bytes).unwrap_or_default();
            let (path, target) = (name(path), name(target));
            return Err(WriteError::LinkTarget { path, target }.into());
        }
        writer.settle_whiteouts()?;
        let (implied, hides_all) = (writer.implied_directories(), writer.hides_all());
        let (image, summary) = writer.finish()?;
        Ok((image, Converted { summary, implied, hides_all, foreign }))
    })();
    drop(archive);
    if plain.get_ref().is_over {
        return Err(LayerError::Bomb { limit });
    }
    let (image, converted) = written?;
    // The reader of archives has read to the end.
    let diff_id = plain.finish().map_err(LayerError::Read)?;
    Ok((image, converted, diff_id))
}

/// Adds one entry, or does what it says about the layers below.
fn add<W: Read + Write + Seek>(
    writer: &mut Writer<W>,
    entry: Entry,
    contents: &mut dyn Read,
    context: Option<&Context<'_>>,
    foreign: &mut Vec<Foreign>,
) -> Result<(), LayerError> {
    let mut names: Vec<&[u8]> = entry.path.names().collect();
    let last = names.pop().unwrap_or_default();
    if names.iter().chain([&last]).any(|name| name.starts_with(NOTES)) && last != OPAQUE {
        return Ok(());
    }
    let refuse = |why| LayerError::Whiteout { path: entry.path.clone(), why };
    if names.iter().any(|name| name.starts_with(WHITEOUT)) {
        return Err(refuse("a whiteout is not a directory"));
    }
    let parent = match context {
        Some(context) => context.place(&names.join(&b'/')),
        None => names.join(&b'/'),
    };
    let in_place =
        |name: &[u8]| TarPath::parse(&[&parent[..], b"/", name].concat()).map_err(WriteError::from);
    let Some(hidden) = last.strip_prefix(WHITEOUT) else {
        let path = in_place(last)?;
        match entry.kind {
            Kind::Device => writer.skip_device(path)?,
            Kind::HardLink(ref target) => {
                let meant = match context {
                    Some(context) => TarPath::parse(&context.place(target.as_bytes())),
                    None => Ok(target.clone()),
                };
                let meant = meant.map_err(WriteError::from)?;
                let found = context.and_then(|context| context.link(entry.path.as_bytes()));
                match (writer.contains(&meant), found) {
                    (false, Some(found)) => copy(writer, path, found)?,
                    (false, None) => {
                        if foreign.len() >= MAX_FOREIGN {
                            let (what, limit) = ("hard links to other layers", MAX_FOREIGN as u64);
                            return Err(WriteError::Limit { what, limit }.into());
                        }
                        let (path, target) = (entry.path.as_bytes(), target.as_bytes());
                        foreign.push(Foreign { path: path.to_vec(), target: target.to_vec() });
                    }
                    (true, _) => {
                        let kind = Kind::HardLink(meant);
                        writer.add(Entry { path, kind, ..entry }, contents)?;
                    }
                }
            }
            _ => writer.add(Entry { path, ..entry }, contents)?,
        }
        return Ok(());
    };
    if last == OPAQUE {
        let parent = TarPath::parse(&parent).map_err(WriteError::from)?;
        return Ok(writer.hide_below(parent)?);
    }
    if matches!(hidden, b"" | b"." | b"..") {
        return Err(refuse("a whiteout of no name"));
    }
    Ok(writer.whiteout(in_place(hidden)?)?)
}

/// Puts a file of a layer below into this one, too.
fn copy<W: Read + Write + Seek>(
    writer: &mut Writer<W>,
    path: TarPath,
    found: &Seen<'_>,
) -> Result<(), LayerError> {
    let item = &found.item;
    let kind = match item.what {
        What::File { size } => Kind::File { size },
        What::Symlink => Kind::Symlink(found.image.target(item).map_err(LayerError::Read)?),
        What::Fifo => Kind::Fifo,
        What::Dir | What::Whiteout => return Err(WriteError::Directory { path }.into()),
    };
    let owner = item.owner;
    let entry = Entry {
        path,
        kind,
        mode: owner.mode,
        uid: owner.uid,
        gid: owner.gid,
        mtime: owner.mtime,
        xattrs: item.xattrs.clone(),
    };
    Ok(writer.add(entry, &mut found.image.contents(item))?)
}

/// Gives up after so many bytes.
struct Bounded<R> {
    input: R,
    left: u64,
    is_over: bool,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(buf)?;
        match self.left.checked_sub(n as u64) {
            Some(left) => {
                self.left = left;
                Ok(n)
            }
            None => {
                self.is_over = true;
                Err(io::Error::new(io::ErrorKind::InvalidData, "more than is taken"))
            }
        }
    }
}
