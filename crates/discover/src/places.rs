//! The user's home and environment.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::BuiltIn;

/// Longest file of configuration that is read.
const MAX_FILE: u64 = 1 << 20;
/// Most files of one directory, and most names of it that are looked at.
const MAX_FILES: usize = 200;
const MAX_NAMES: usize = 10_000;

/// Whose configuration is read. A value of its own, so that it can be any directory.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Where `/etc` is; `/` but for tests.
    pub root: PathBuf,
    /// The user's home directory.
    pub home: Option<PathBuf>,
    /// The user's environment.
    pub environment: BTreeMap<String, String>,
    /// Who tells what the tools take where nothing is configured.
    pub built_in: BuiltIn,
}

impl Surroundings {
    /// Those of this process, and the tools that are there.
    pub fn of_process() -> Self {
        let environment: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let home = environment.get("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        let built_in = BuiltIn::of_tools();
        Self { root: PathBuf::from("/"), home, environment, built_in }
    }

    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        self.environment.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A file of the computer's configuration.
    pub(crate) fn etc(&self, path: &str) -> PathBuf {
        self.root.join("etc").join(path)
    }

    /// Files of the user's configuration: none where there is no home.
    pub(crate) fn at_home(&self, path: &str) -> Option<PathBuf> {
        self.home.as_ref().map(|home| home.join(path))
    }

    pub(crate) fn config(&self, path: &str) -> Option<PathBuf> {
        match self.variable("XDG_CONFIG_HOME") {
            Some(directory) => Some(Path::new(directory).join(path)),
            None => self.at_home(&format!(".config/{path}")),
        }
    }

    /// A path as people write it.
    pub(crate) fn shown(&self, path: &Path) -> String {
        if let Some(below) = self.home.as_ref().and_then(|home| path.strip_prefix(home).ok()) {
            return format!("~/{}", below.display());
        }
        match path.strip_prefix(&self.root) {
            Ok(below) => format!("/{}", below.display()),
            Err(_) => path.display().to_string(),
        }
    }

    /// Text of a file. None where there is no file.
    pub(crate) fn read(&self, path: &Path) -> Result<Option<String>, String> {
        // A device or a pipe would be waited for.
        if !path.is_file() {
            return Ok(None);
        }
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) => return Err(format!("it cannot be read: {error}")),
        };
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| format!("it cannot be read: {error}"))?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(format!("it is longer than {MAX_FILE} bytes and was not read"));
        }
        String::from_utf8(bytes).map(Some).map_err(|_| "it is not text".to_owned())
    }

    /// Files of a directory with these endings, in their order.
    pub(crate) fn list(&self, directory: &Path, endings: &[&str]) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
        let is_meant = |path: &PathBuf| {
            let ending = path.extension().and_then(|ending| ending.to_str());
            ending.is_some_and(|ending| endings.contains(&ending))
        };
        let mut files: Vec<PathBuf> =
            entries.flatten().take(MAX_NAMES).map(|entry| entry.path()).filter(is_meant).collect();
        files.sort();
        files.truncate(MAX_FILES);
        files
    }
}
