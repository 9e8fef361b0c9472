//! Layers that mean something only upon those below them: files behind a lower layer's symbolic link,
//! hard links to a lower layer's files.
//!
//! A layer's file system is made of the layer alone, for all images that have it. Where that is not
//! enough, an image gets a file system of the layer of its own: what lies behind a link is put where
//! the link leads, within the root and as the layers below stand, as if they had been unpacked one over
//! another; what is linked is there once more, as a copy. A directory that the layer describes itself
//! takes the place of the link, as overlayfs has it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;

use super::OciError;
use super::layer::{Foreign, LayerError};
use super::view::{Seen, View, Way};
use crate::digest;
use crate::erofs::{What, WriteError};
use crate::tar::TarPath;

/// Lookups for one image.
const MAX_WALKS: usize = 1 << 20;

/// What a layer needs of those below it.
pub(crate) struct Context<'a> {
    /// Directories that are elsewhere, by their path in the layer.
    moves: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What hard links stand for, by the link's path in the layer, with the path that was found.
    links: BTreeMap<Vec<u8>, (Vec<u8>, Seen<'a>)>,
}

impl<'a> Context<'a> {
    /// What a layer with these implied directories and hard links needs; nothing where it can be taken as
    /// it is.
    pub(crate) fn of(
        view: &'a View<'a>,
        layers: usize,
        diff_id: &str,
        implied: &BTreeSet<Vec<u8>>,
        foreign: &[Foreign],
    ) -> Result<Option<Self>, OciError> {
        if (implied.len() + foreign.len()).saturating_mul(layers.max(1)) > MAX_WALKS {
            return Err(OciError::Many { limit: MAX_WALKS });
        }
        let read = |source| OciError::Read { path: "a layer".into(), source };
        let mut context = Self { moves: BTreeMap::new(), links: BTreeMap::new() };
        // Parents come before what is in them.
        for path in implied.iter().filter(|path| !path.is_empty()) {
            let nowhere = || OciError::Through {
                diff_id: diff_id.to_owned(),
                path: TarPath::parse(path)
                    .map_or_else(|_| String::new(), |path| path.to_string())
                    .trim_start_matches('/')
                    .to_owned(),
            };
            if context.is_new(view, implied, path).map_err(read)? {
                continue;
            }
            let here = context.place(path);
            match view.resolve(&here).map_err(read)? {
                Way::To(names) => {
                    let there = names.join(&b'/');
                    // A file that is in the way is found where the link leads.
                    if view.find(&names).map_err(read)?.is_some_and(|it| it.item.what != What::Dir)
                        && there != here
                    {
                        return Err(nowhere());
                    }
                    if there != here {
                        context.moves.insert(path.clone(), there);
                    }
                }
                Way::Nowhere => return Err(nowhere()),
            }
        }
        let mut linked = BTreeSet::new();
        for Foreign { path, target } in foreign {
            // By then, what it names is in the layer, as a copy.
            let is_there = linked.contains(target);
            linked.insert(path);
            if is_there {
                continue;
            }
            let (parent, last) = split(target);
            let found = match view.resolve(&context.place(parent)).map_err(read)? {
                Way::To(mut names) => {
                    names.push(last.to_vec());
                    let found = view.find(&names).map_err(read)?;
                    found.map(|found| (names.join(&b'/'), found))
                }
                Way::Nowhere => None,
            };
            let found = found.filter(|(_, found)| found.item.what != What::Dir);
            let Some(found) = found else {
                let name = |bytes: &[u8]| TarPath::parse(bytes).unwrap_or_default();
                let (path, target) = (name(path), name(target));
                let source = LayerError::Write(WriteError::LinkTarget { path, target });
                return Err(OciError::Layer { diff_id: diff_id.to_owned(), source });
            };
            context.links.insert(path.clone(), found);
        }
        Ok((!context.moves.is_empty() || !context.links.is_empty()).then_some(context))
    }

    /// Whether a directory above this one is the layer's own where those below have none: then nothing of
    /// theirs is in it.
    fn is_new(
        &self,
        view: &View<'_>,
        implied: &BTreeSet<Vec<u8>>,
        path: &[u8],
    ) -> std::io::Result<bool> {
        let ends = path.iter().enumerate().filter(|&(_, &byte)| byte == b'/').map(|(at, _)| at);
        for end in ends {
            let above = &path[..end];
            if implied.contains(above) {
                continue;
            }
            let place = self.place(above);
            let names: Vec<Vec<u8>> = place.split(|&b| b == b'/').map(<[u8]>::to_vec).collect();
            if view.directory(&names)?.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Where a path of the layer is in the image.
    pub(crate) fn place(&self, path: &[u8]) -> Vec<u8> {
        let mut end = path.len();
        loop {
            if let Some(there) = self.moves.get(&path[..end]) {
                return match (&there[..], &path[end..]) {
                    (b"", rest) => rest.strip_prefix(b"/").unwrap_or(rest).to_vec(),
                    (there, rest) => [there, rest].concat(),
                };
            }
            match path[..end].iter().rposition(|&byte| byte == b'/') {
                Some(slash) => end = slash,
                None => return path.to_vec(),
            }
        }
    }

    /// What the hard link of this path stands for.
    pub(crate) fn link(&self, path: &[u8]) -> Option<&Seen<'a>> {
        self.links.get(path).map(|(_, seen)| seen)
    }

    /// What a layer is known by in this context; `below` are the keys of those below it.
    pub(crate) fn key(&self, diff_id: &str, below: &[String]) -> String {
        let mut text = format!("context 1 {diff_id} {:?}", self.moves);
        for (path, (target, _)) in &self.links {
            text += &format!(" {path:?} {target:?}");
        }
        if !self.links.is_empty() {
            text += &format!(" {below:?}");
        }
        digest::of(text.as_bytes())
    }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// The layers below, opened for lookups.
pub(crate) fn view<'a>(layers: impl IntoIterator<Item = &'a File>) -> Result<View<'a>, OciError> {
    View::of(layers).map_err(|source| OciError::Read { path: "a layer".into(), source })
}
