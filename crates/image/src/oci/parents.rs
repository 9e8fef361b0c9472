//! Directories that a layer puts files into without describing them.
//!
//! A builder need not write an entry for a directory that the layers below have. In the file system
//! of the layer there has to be one all the same, and overlayfs takes owner and mode of the
//! uppermost. So an image with such layers gets one more on top, with nothing but these directories
//! as the layers below describe them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;

use super::OciError;
use crate::erofs::{Found, Limits, Owner, Writer, walk};
use crate::tar::{Entry, Kind, TarPath};

/// Lookups for one image. Builders that leave out parents leave out hundreds of them.
const MAX_WALKS: usize = 1 << 20;

/// A layer of which this has to be known; the bottom comes first.
pub(crate) struct Seen<'a> {
    pub(crate) diff_id: &'a str,
    pub(crate) file: &'a File,
    /// Directories that no entry describes.
    pub(crate) implied: &'a BTreeSet<Vec<u8>>,
}

/// A directory as it should be.
pub(crate) type Parent = (Vec<u8>, Owner);

/// The directories that would be another's for no reason, with what they are below.
pub(crate) fn lost(layers: &[Seen<'_>]) -> Result<Vec<Parent>, OciError> {
    let mut lost = Vec::new();
    // Below the bottom there is nothing that could have described them.
    let paths: BTreeSet<&Vec<u8>> = layers.iter().skip(1).flat_map(|layer| layer.implied).collect();
    if paths.len().saturating_mul(layers.len()) > MAX_WALKS {
        return Err(OciError::Many { limit: MAX_WALKS });
    }
    // The root's belong to whoever makes the machine.
    for path in paths.into_iter().filter(|path| !path.is_empty()) {
        if let Some(owner) = meant(layers, path)? {
            lost.push((path.clone(), owner));
        }
    }
    Ok(lost)
}

/// What a directory is by the uppermost layer that describes it, where one above it does not.
fn meant(layers: &[Seen<'_>], path: &[u8]) -> Result<Option<Owner>, OciError> {
    // The uppermost layer in which it is there only because of what is in it.
    let mut through = None;
    for layer in layers.iter().rev() {
        let read = |source| OciError::Read { path: "a layer".into(), source };
        let steps = walk(layer.file, path).map_err(read)?;
        let is_there = steps.len() == 1 + path.split(|&b| b == b'/').count();
        let hides = |found: &Found| match found {
            Found::Nothing => false,
            Found::Dir(owner) => owner.is_opaque,
            Found::Whiteout | Found::Other => true,
        };
        match steps.last() {
            Some(Found::Dir(owner)) if is_there => {
                if !layer.implied.contains(path) {
                    return Ok(through.and(Some(*owner)));
                }
                through = through.or(Some(layer.diff_id));
            }
            // What was a link is one no longer, and the files that were meant to be behind it are
            // not there either: nothing that we could stack is what the builder meant.
            Some(Found::Other) if is_there => {
                return match through {
                    Some(diff_id) => Err(OciError::Through {
                        diff_id: diff_id.to_owned(),
                        path: TarPath::parse(path).map_or_else(
                            |_| String::new(),
                            |path| path.to_string().trim_start_matches('/').to_owned(),
                        ),
                    }),
                    None => Ok(None),
                };
            }
            _ => {}
        }
        // A directory that is emptied keeps its owner.
        let above = if is_there { &steps[..steps.len() - 1] } else { &steps[..] };
        if above.iter().any(hides) || matches!(steps.last(), Some(Found::Whiteout)) {
            return Ok(None);
        }
    }
    Ok(None)
}

/// The layer on top.
pub(crate) fn write(parents: &[Parent], to: File) -> Result<(File, u64), crate::erofs::WriteError> {
    let mut writer = Writer::new(to, Limits::default())?;
    for (path, owner) in parents {
        let entry = Entry {
            path: TarPath::parse(path)?,
            kind: Kind::Dir,
            mode: owner.mode,
            uid: owner.uid,
            gid: owner.gid,
            mtime: owner.mtime,
            xattrs: std::collections::BTreeMap::new(),
        };
        writer.add(entry, &mut io::empty())?;
    }
    let (file, summary) = writer.finish()?;
    Ok((file, summary.bytes))
}
