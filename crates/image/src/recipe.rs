//! How the images that Sandforge makes itself are made.

use crate::digest;
use crate::tar::{Entry, Kind, TarError, TarPath};
use serde::Deserialize;

/// Changes when the same recipe would give another image: the writer, the options of mmdebstrap,
/// what is done to the files.
const BUILDER_VERSION: u32 = 1;

const TEXTS: [(&str, &str); 2] = [
    ("base", include_str!("../../../guest/image/base.toml")),
    ("build", include_str!("../../../guest/image/build.toml")),
];

/// Names of the recipes that come with Sandforge.
pub fn names() -> impl Iterator<Item = &'static str> {
    TEXTS.iter().map(|(name, _)| *name)
}

/// Why a recipe cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// There is no recipe of that name.
    #[error("there is no recipe {0:?}; there are: {known}", known = names().collect::<Vec<_>>().join(", "))]
    Unknown(String),
    /// It is not what a recipe looks like.
    #[error("recipe {name}: {source}")]
    Parse {
        /// The recipe.
        name: String,
        /// Where and why.
        source: toml::de::Error,
    },
    /// A path in it cannot be.
    #[error("recipe {name}: {source}")]
    Path {
        /// The recipe.
        name: String,
        /// Which and why.
        source: TarError,
    },
}

/// What is installed, what is left out and what is put on top.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Its name, and that of the image.
    pub name: String,
    /// Stands for everything that decides about the image but the versions of packages.
    pub digest: String,
    pub(crate) suite: String,
    pub(crate) components: Vec<String>,
    pub(crate) packages: Vec<String>,
    pub(crate) drop: Vec<String>,
    pub(crate) keep: Vec<String>,
    pub(crate) user: User,
    pub(crate) overlay: Vec<(Entry, Vec<u8>)>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) id: u32,
    pub(crate) home: String,
    pub(crate) shell: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Base {
    suite: String,
    components: Vec<String>,
    packages: Vec<String>,
    drop: Vec<String>,
    keep: Vec<String>,
    user: User,
    #[serde(default)]
    dir: Vec<Dir>,
    #[serde(default)]
    file: Vec<File>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Extension {
    extends: String,
    packages: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Text {
    Extension(Extension),
    Base(Base),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Dir {
    path: String,
    owner: u32,
    mode: u16,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    path: String,
    contents: String,
}

impl Recipe {
    /// The recipe of that name among those that come with Sandforge.
    pub fn named(name: &str) -> Result<Self, RecipeError> {
        let text = text_of(name)?;
        let parse = |name: &str, text| {
            toml::from_str::<Text>(text)
                .map_err(|source| RecipeError::Parse { name: name.to_owned(), source })
        };
        let mut described = format!("builder {BUILDER_VERSION}\n{text}");
        let (base, more) = match parse(name, text)? {
            Text::Base(base) => (base, Vec::new()),
            Text::Extension(extension) => {
                let text = text_of(&extension.extends)?;
                described.push_str(text);
                match parse(&extension.extends, text)? {
                    Text::Base(base) => (base, extension.packages),
                    Text::Extension(_) => return Err(RecipeError::Unknown(extension.extends)),
                }
            }
        };
        let overlay =
            overlay(&base).map_err(|source| RecipeError::Path { name: name.to_owned(), source })?;
        Ok(Self {
            name: name.to_owned(),
            digest: digest::of(described.as_bytes()),
            suite: base.suite,
            components: base.components,
            packages: base.packages.into_iter().chain(more).collect(),
            drop: base.drop,
            keep: base.keep,
            user: base.user,
            overlay,
        })
    }

    /// Whether the image is to have this path.
    pub(crate) fn wants(&self, path: &TarPath) -> bool {
        let absolute = [b"/", path.as_bytes()].concat();
        let among = |patterns: &[String]| {
            patterns.iter().any(|pattern| matches(pattern.as_bytes(), &absolute))
        };
        !among(&self.drop) || among(&self.keep)
    }
}

fn text_of(name: &str) -> Result<&'static str, RecipeError> {
    TEXTS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, text)| *text)
        .ok_or_else(|| RecipeError::Unknown(name.to_owned()))
}

fn overlay(base: &Base) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let home = Dir { path: base.user.home.clone(), owner: base.user.id, mode: 0o755 };
    let mut overlay = Vec::new();
    for dir in base.dir.iter().chain([&home]) {
        let entry = Entry::new(&dir.path, Kind::Dir, dir.mode)?.owned_by(dir.owner, dir.owner);
        overlay.push((entry, Vec::new()));
    }
    for file in &base.file {
        let contents = file.contents.trim_start_matches('\n').as_bytes().to_vec();
        let kind = Kind::File { size: contents.len() as u64 };
        overlay.push((Entry::new(&file.path, kind, 0o644)?, contents));
    }
    Ok(overlay)
}

/// `*` stands for any bytes, slashes too; everything else for itself.
fn matches(pattern: &[u8], path: &[u8]) -> bool {
    let mut parts = pattern.split(|&b| b == b'*');
    let Some(mut rest) = parts.next().and_then(|first| path.strip_prefix(first)) else {
        return false;
    };
    let mut parts: Vec<&[u8]> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let found = rest.windows(part.len().max(1)).position(|window| window.starts_with(part));
        let Some(at) = found else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_is_well_formed() {
        for name in names() {
            Recipe::named(name).unwrap();
        }
    }

    #[test]
    fn the_base_image_can_run_make() {
        assert!(Recipe::named("base").unwrap().packages.contains(&"make".to_owned()));
    }

    #[test]
    fn an_extension_adds_packages_and_has_another_digest() {
        let (base, build) = (Recipe::named("base").unwrap(), Recipe::named("build").unwrap());
        assert!(build.packages.len() > base.packages.len());
        assert_ne!(base.digest, build.digest);
    }

    #[test]
    fn an_unknown_recipe_is_answered_with_the_known_ones() {
        let error = Recipe::named("bsae").unwrap_err().to_string();
        assert!(error.contains("base, build"), "{error}");
    }

    #[test]
    fn documents_go_and_copyrights_stay() {
        let recipe = Recipe::named("base").unwrap();
        let wants = |path: &str| recipe.wants(&TarPath::parse(path.as_bytes()).unwrap());
        assert!(!wants("usr/share/doc/git/changelog.gz"));
        assert!(wants("usr/share/doc/git/copyright"));
        assert!(wants("usr/share/doc"));
        assert!(!wants("etc/passwd-"));
        assert!(wants("etc/passwd"));
        assert!(!wants("var/log/apt/history.log"));
    }

    #[test]
    fn stars_match_across_slashes() {
        assert!(matches(b"/a/*/c", b"/a/x/y/c"));
        assert!(matches(b"/a/*", b"/a/"));
        assert!(!matches(b"/a/*/c", b"/a/c"));
        assert!(!matches(b"/a*bc", b"/abd"));
        assert!(matches(b"/exact", b"/exact"));
        assert!(!matches(b"/exact", b"/exactly"));
    }
}
