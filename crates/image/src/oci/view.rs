//! The tree that layers give together, as overlayfs shows it, without mounting anything.

use std::fs::File;
use std::io;

use crate::erofs::{Image, Item, Owner, What};

/// As many links as the kernel follows for one path (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// The layers below some place, the bottom first.
pub(crate) struct View<'a> {
    layers: Vec<Image<'a>>,
}

/// What is at a path.
pub(crate) struct Seen<'a> {
    pub(crate) image: &'a Image<'a>,
    pub(crate) item: Item,
}

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Way {
    /// There, in names below the root: no name of it is a link. What is not there may be made.
    To(Vec<Vec<u8>>),
    /// Into a file, or round in circles.
    Nowhere,
}

impl<'a> View<'a> {
    pub(crate) fn of(layers: impl IntoIterator<Item = &'a File>) -> io::Result<Self> {
        let layers = layers.into_iter().map(Image::open).collect::<io::Result<_>>()?;
        Ok(Self { layers })
    }

    /// What has this path, where nothing on the way to it is a link.
    pub(crate) fn find(&self, names: &[Vec<u8>]) -> io::Result<Option<Seen<'_>>> {
        for image in self.layers.iter().rev() {
            let mut at = image.root()?;
            let mut is_hidden = at.owner.is_opaque;
            let mut left = names.iter();
            let found = loop {
                let Some(name) = left.next() else { break Some(at) };
                if at.what != What::Dir {
                    return Ok(None);
                }
                match image.find(&at, name)? {
                    Some(Item { what: What::Whiteout, .. }) => return Ok(None),
                    Some(item) => {
                        is_hidden |= item.what == What::Dir && item.owner.is_opaque;
                        at = item;
                    }
                    None => break None,
                }
            };
            match found {
                // A directory whose own entry is below shows as the uppermost describes it.
                Some(item) => return Ok(Some(Seen { image, item })),
                // What is not a directory here hides what is below it there.
                None if is_hidden => return Ok(None),
                None => {}
            }
        }
        Ok(None)
    }

    /// Whose the directory of this path is, where there is one.
    pub(crate) fn directory(&self, names: &[Vec<u8>]) -> io::Result<Option<Owner>> {
        let seen = self.find(names)?;
        Ok(seen.filter(|seen| seen.item.what == What::Dir).map(|seen| seen.item.owner))
    }

    /// Follows the links of a path, of its last name too; never out of the root, which is its own
    /// parent.
    pub(crate) fn resolve(&self, path: &[u8]) -> io::Result<Way> {
        let mut left: Vec<Vec<u8>> = reversed(path);
        let mut at: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        while let Some(name) = left.pop() {
            match &name[..] {
                b"." => continue,
                b".." => {
                    at.pop();
                    continue;
                }
                _ => at.push(name),
            }
            let Some(seen) = self.find(&at)? else { continue };
            match seen.item.what {
                What::Symlink => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Ok(Way::Nowhere);
                    }
                    let target = seen.image.target(&seen.item)?;
                    at.pop();
                    if target.starts_with(b"/") {
                        at.clear();
                    }
                    left.extend(reversed(&target));
                }
                What::Dir => {}
                What::File { .. } | What::Fifo | What::Whiteout if left.is_empty() => {}
                What::File { .. } | What::Fifo | What::Whiteout => return Ok(Way::Nowhere),
            }
        }
        Ok(Way::To(at))
    }
}

/// The names of a path, the last one first.
fn reversed(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|&byte| byte == b'/')
        .filter(|name| !name.is_empty())
        .rev()
        .map(<[u8]>::to_vec)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::erofs::{Limits, Writer};
    use crate::tar::{Entry, Kind, TarPath};

    fn layer(fill: impl FnOnce(&mut Writer<File>)) -> File {
        let mut writer = Writer::new(tempfile::tempfile().unwrap(), Limits::default()).unwrap();
        fill(&mut writer);
        writer.finish().unwrap().0
    }

    fn add(writer: &mut Writer<File>, path: &str, kind: Kind) {
        writer.add(Entry::new(path, kind, 0o755).unwrap(), &mut io::empty()).unwrap();
    }

    fn link(writer: &mut Writer<File>, path: &str, target: &str) {
        add(writer, path, Kind::Symlink(target.as_bytes().to_vec()));
    }

    fn joined(way: Way) -> String {
        match way {
            Way::To(names) => String::from_utf8(names.join(&b'/')).unwrap(),
            Way::Nowhere => "nowhere".to_owned(),
        }
    }

    #[test]
    fn links_are_followed_within_the_root_and_as_the_layers_stand() {
        let bottom = layer(|it| {
            add(it, "usr/lib", Kind::Dir);
            add(it, "file", Kind::File { size: 0 });
            link(it, "lib", "usr/lib");
            link(it, "up", "../../../../usr/./lib");
            link(it, "abs", "/usr//lib/");
            link(it, "usr/back", "../lib");
            link(it, "round", "round");
            link(it, "dangling", "not/there");
            link(it, "changed", "usr");
            add(it, "hidden/below", Kind::Dir);
            add(it, "gone", Kind::Dir);
        });
        let top = layer(|it| {
            add(it, "changed", Kind::Dir);
            add(it, "usr/bin", Kind::Dir);
            it.whiteout(TarPath::parse(b"gone").unwrap()).unwrap();
            it.hide_below(TarPath::parse(b"hidden").unwrap()).unwrap();
        });
        let view = View::of([&bottom, &top]).unwrap();
        for (path, leads_to) in [
            ("lib/x", "usr/lib/x"),
            ("up/x", "usr/lib/x"),
            ("abs", "usr/lib"),
            ("usr/back/x", "usr/lib/x"),
            ("dangling/x", "not/there/x"),
            ("changed/x", "changed/x"),
            ("../../new/x", "new/x"),
            ("round", "nowhere"),
            ("file/x", "nowhere"),
            ("file", "file"),
        ] {
            assert_eq!(joined(view.resolve(path.as_bytes()).unwrap()), leads_to, "{path}");
        }
        let there = |path: &str| {
            let names: Vec<_> = path.split('/').map(|name| name.as_bytes().to_vec()).collect();
            view.find(&names).unwrap().is_some()
        };
        assert!(there("usr/lib") && there("usr/bin") && there("hidden"));
        assert!(!there("gone") && !there("hidden/below"));
    }
}
