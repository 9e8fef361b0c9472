//! Archives of images: what `docker save`, `podman save` and `skopeo copy oci-archive:` write. Its
//! files become the blobs of a layout, in one pass over the archive.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use serde::Deserialize;

use super::OciError;
use super::document::{self, Config, Descriptor, Platform};
use super::layout::{INDEX, Layout, PutError};
use crate::compression::Compression;
use crate::progress::{Progress, Stage};
use crate::tar::{Kind, Reader, TarPath};

/// Files of one archive: an image has a few for each layer.
const MAX_FILES: usize = 4096;
const DOCKER_MANIFEST: &str = "manifest.json";

/// Whether an archive whose first entry has this path holds an image rather than a root.
pub(crate) fn begins_like_one(path: &TarPath) -> bool {
    let Some(first) = path.names().next() else { return false };
    let first = String::from_utf8_lossy(first);
    let stem = [".json", ".tar"].iter().find_map(|end| first.strip_suffix(end));
    let stem = stem.unwrap_or(&first);
    matches!(&*first, "blobs" | "oci-layout" | INDEX | DOCKER_MANIFEST | "repositories")
        || (stem.len() == 64 && stem.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// A file of the archive, or another name of one.
enum Member {
    File { digest: String, size: u64 },
    Link(String),
}

/// What an archive holds.
pub(crate) struct Contents {
    members: BTreeMap<String, Member>,
}

/// Writes all files of an archive into `to` as blobs.
pub(crate) fn unpack(
    file: &File,
    compression: Compression,
    limit: u64,
    to: &Layout,
    progress: &mut dyn Progress,
) -> Result<Contents, OciError> {
    let mut file = file;
    file.rewind().map_err(|source| OciError::Read { path: to.dir().to_owned(), source })?;
    let plain = compression.decoder(BufReader::with_capacity(256 << 10, file));
    let mut archive = Reader::new(BufReader::with_capacity(64 << 10, plain.take(limit)));
    let mut members = BTreeMap::new();
    let mut done = 0;
    while let Some(entry) = archive.next_entry().map_err(OciError::Archive)? {
        let name = String::from_utf8_lossy(entry.path.as_bytes()).into_owned();
        let member = match entry.kind {
            Kind::File { .. } => {
                let (digest, size) = to.put(archive.contents()).map_err(|error| match error {
                    PutError::Read(source) => {
                        OciError::Archive(crate::tar::TarError::Read { offset: done, source })
                    }
                    error @ PutError::Write(_) => to.put_error(error),
                })?;
                done += size;
                progress.step(Stage::Unpack.at(done, None));
                Member::File { digest, size }
            }
            Kind::HardLink(target) => {
                Member::Link(String::from_utf8_lossy(target.as_bytes()).into_owned())
            }
            // Layers that are there already are links to them in what docker once wrote.
            Kind::Symlink(target) => match beside(&name, &target) {
                Some(target) => Member::Link(target),
                None => continue,
            },
            _ => continue,
        };
        members.insert(name, member);
        if members.len() > MAX_FILES {
            return Err(OciError::Many { limit: MAX_FILES });
        }
    }
    Ok(Contents { members })
}

/// The path that a relative link leads to, by its letters.
fn beside(link: &str, target: &[u8]) -> Option<String> {
    let target = std::str::from_utf8(target).ok().filter(|target| !target.starts_with('/'))?;
    let mut names: Vec<&str> = link.split('/').collect();
    names.pop();
    for name in target.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                names.pop()?;
            }
            name => names.push(name),
        }
    }
    Some(names.join("/"))
}

impl Contents {
    /// Digest and length of the file with that name.
    fn file(&self, name: &str) -> Option<(&str, u64)> {
        let mut name = name;
        // Links to links end, or are not followed.
        for _ in 0..8 {
            match self.members.get(name)? {
                Member::File { digest, size } => return Some((digest, *size)),
                Member::Link(target) => name = target,
            }
        }
        None
    }

    /// The descriptor of the image, with what the archive calls it. `layout` is where its blobs are;
    /// a manifest is added there when the archive has none of its own.
    pub(crate) fn image(
        &self,
        layout: &Layout,
        path: &Path,
        name: Option<&str>,
    ) -> Result<(Descriptor, Option<String>), OciError> {
        let read = |file: &str| -> Result<Option<Vec<u8>>, OciError> {
            self.file(file).map(|(digest, _)| layout.document_by_digest(digest)).transpose()
        };
        if let (Some(index), true) = (read(INDEX)?, self.file("oci-layout").is_some()) {
            return super::choose(layout, &index, None, name);
        }
        let Some(saved) = read(DOCKER_MANIFEST)? else {
            return Err(OciError::NoImage { path: path.to_owned() });
        };
        self.saved(&saved, layout, path, name)
    }

    fn saved(
        &self,
        manifest: &[u8],
        layout: &Layout,
        path: &Path,
        name: Option<&str>,
    ) -> Result<(Descriptor, Option<String>), OciError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Saved {
            config: String,
            #[serde(default)]
            repo_tags: Option<Vec<String>>,
            layers: Vec<String>,
        }
        let refuse = |source| OciError::Document { what: DOCKER_MANIFEST.to_owned(), source };
        let mut saved: Vec<Saved> = serde_json::from_slice(manifest)
            .map_err(|error| refuse(document::DocumentError::Json(error.to_string())))?;
        if saved.len() > 1 {
            let tags = |saved: &Saved| saved.repo_tags.clone().unwrap_or_default();
            let all: Vec<String> = saved.iter().flat_map(tags).collect();
            saved.retain(|saved| name.is_some_and(|name| super::has_tag(&tags(saved), name)));
            if saved.len() != 1 {
                return Err(refuse(document::DocumentError::Several(all.join(", "))));
            }
        }
        let Some(saved) = saved.pop() else {
            return Err(OciError::NoImage { path: path.to_owned() });
        };
        let find = |file: &str| {
            let missing = || OciError::Missing { digest: file.chars().take(200).collect() };
            self.file(file).ok_or_else(missing)
        };
        let describe = |media_type: &str, (digest, size): (&str, u64)| Descriptor {
            media_type: media_type.to_owned(),
            digest: digest.to_owned(),
            size,
            platform: None,
            annotations: BTreeMap::new(),
        };
        let config = describe(document::CONFIG, find(&saved.config)?);
        // Judged before a manifest is made that leads to it.
        Config::parse(&layout.document(&config)?, saved.layers.len(), &Platform::of_guests())
            .map_err(|source| OciError::Document { what: saved.config.clone(), source })?;
        let mut layers = Vec::new();
        for layer in &saved.layers {
            let mut layer = describe(document::LAYER, find(layer)?);
            let mut head = Vec::new();
            layout
                .open(&layer)?
                .take(4)
                .read_to_end(&mut head)
                .map_err(|source| OciError::Read { path: path.to_owned(), source })?;
            layer.media_type += match Compression::of(&head) {
                Compression::None => "",
                Compression::Gzip => "+gzip",
                Compression::Zstd => "+zstd",
            };
            layers.push(layer);
        }
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": document::MANIFEST, "config": config, "layers": layers,
        });
        let manifest = manifest.to_string();
        let put = layout.put(manifest.as_bytes()).map_err(|error| layout.put_error(error))?;
        let called = saved.repo_tags.unwrap_or_default().into_iter().next();
        Ok((describe(document::MANIFEST, (&put.0, put.1)), called))
    }
}
