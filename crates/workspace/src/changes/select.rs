//! Which paths of a change set.

use archive::Name;
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

/// A pattern that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the path {pattern:?} cannot be used: {why}")]
pub struct PatternError {
    pattern: String,
    why: String,
}

/// Paths below a directory: each names an entry and all below it, as it is or as a glob, in which
/// `*` stays within a name and `**` does not.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    names: Vec<Name>,
    globs: GlobSet,
    all: bool,
}

impl Selection {
    /// Everything.
    pub fn all() -> Self {
        Self { all: true, ..Self::default() }
    }

    /// What these name; nothing where there are none.
    ///
    /// # Errors
    /// Which of them is no path below a directory, or no glob.
    pub fn of(patterns: &[impl AsRef<str>]) -> Result<Self, PatternError> {
        let mut selection = Self::default();
        let mut globs = GlobSetBuilder::new();
        for pattern in patterns {
            let pattern = pattern.as_ref();
            let bad = |why: String| PatternError { pattern: pattern.into(), why };
            let name = Name::parse(pattern.as_bytes()).map_err(|error| bad(format!("{error}")))?;
            if name.is_root() {
                selection.all = true;
                continue;
            }
            let text = name.as_path().to_string_lossy().into_owned();
            if text.contains(['*', '?', '[', '{']) {
                let glob = GlobBuilder::new(&text).literal_separator(true).build();
                // What is no glob can still be a name.
                if let Ok(glob) = glob {
                    globs.add(glob);
                }
            }
            selection.names.push(name);
        }
        selection.globs = globs
            .build()
            .map_err(|error| PatternError { pattern: String::new(), why: error.to_string() })?;
        Ok(selection)
    }

    /// Whether it names something below this, as it is.
    pub(crate) fn reaches(&self, directory: &Name) -> bool {
        self.names.iter().any(|name| name.starts_with(directory))
    }

    /// Whether it names this.
    pub fn has(&self, name: &Name) -> bool {
        if self.all {
            return true;
        }
        if self.names.iter().any(|one| name.starts_with(one)) {
            return true;
        }
        if self.globs.is_empty() {
            return false;
        }
        let mut at = Some(name.clone());
        while let Some(one) = at.filter(|one| !one.is_root()) {
            if self.globs.is_match(one.as_path()) {
                return true;
            }
            at = one.split().map(|(parent, _)| parent);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_what_is_below_it_and_a_glob_stays_within_a_name() {
        for (pattern, name, expected) in [
            ("src", "src/a/b", true),
            ("src/", "src", true),
            ("./src", "src/a", true),
            ("src", "srcs", false),
            ("*.rs", "a.rs", true),
            ("*.rs", "src/a.rs", false),
            ("**/*.rs", "src/x/a.rs", true),
            ("*", "src/a.rs", true),
            ("app/[id]", "app/[id]/page", true),
            ("app/[id", "app/[id/page", true),
            ("a{b", "a{b", true),
            (".", "anything", true),
        ] {
            let name = Name::parse(name.as_bytes()).unwrap();
            let selection = Selection::of(&[pattern]).unwrap();
            assert_eq!(selection.has(&name), expected, "{pattern} {name}");
        }
        assert!(!Selection::default().has(&Name::parse(b"a").unwrap()));
        for bad in ["", "/etc", "../x", "a/../../b"] {
            assert!(Selection::of(&[bad]).is_err(), "{bad}");
        }
    }
}
