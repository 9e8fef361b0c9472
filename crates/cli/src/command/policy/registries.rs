//! `sandforge policy init`: which registries network mode `fetch` may read from.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use discover::{Discovery, FILE, Surroundings};
use fleet::paths;
use serde::Serialize;

use crate::failure::Failure;
use crate::filter;

#[derive(Serialize)]
struct Written<'a> {
    file: String,
    registries: Vec<Registry<'a>>,
    notes: Vec<Note<'a>>,
}

#[derive(Serialize)]
struct Registry<'a> {
    kind: &'static str,
    url: &'a str,
    from: &'a str,
}

#[derive(Serialize)]
struct Note<'a> {
    from: &'a str,
    text: &'a str,
}

fn file() -> Result<PathBuf, Failure> {
    let directory = paths::config().map_err(|error| Failure::usage(error.to_string()))?;
    Ok(directory.join(FILE))
}

/// The registries that were written down, or else those that are found now.
pub(super) fn known() -> Result<Discovery, Failure> {
    discover::known(Some(&file()?)).map_err(|error| Failure::usage(error.to_string()))
}

/// Finds them, writes them down and shows them.
pub(super) fn init(force: bool, json: bool) -> Result<u8, Failure> {
    let path = file()?;
    let discovery = discover::discover(&Surroundings::of_process());
    write(&path, &discovery.to_toml(), force)?;
    match json {
        true => super::super::print_json(&shown(&path, &discovery))?,
        false => super::super::print(&described(&path, &discovery))?,
    }
    Ok(0)
}

/// All of it or nothing, and not over what somebody may have changed.
fn write(path: &std::path::Path, text: &str, force: bool) -> Result<(), Failure> {
    let fail =
        |error: &std::io::Error| Failure::failed(format!("cannot write {path:?}")).because(error);
    let directory = path.parent().unwrap_or(path);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| fail(&error))?;
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(|error| fail(&error))?;
    file.write_all(text.as_bytes()).map_err(|error| fail(&error))?;
    let written = match force {
        true => file.persist(path),
        false => file.persist_noclobber(path),
    };
    match written {
        Ok(_) => Ok(()),
        Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(Failure::failed(format!("there is {path:?} already"))
                .help("change it, or write it anew with --force"))
        }
        Err(error) => Err(fail(&error.error)),
    }
}

fn shown<'a>(path: &std::path::Path, discovery: &'a Discovery) -> Written<'a> {
    let registry = |found: &'a discover::Found| Registry {
        kind: found.registry.kind.as_str(),
        url: &found.registry.url,
        from: &found.from,
    };
    let note = |note: &'a discover::Note| Note { from: &note.from, text: &note.text };
    Written {
        file: path.display().to_string(),
        registries: discovery.found.iter().map(registry).collect(),
        notes: discovery.notes.iter().map(note).collect(),
    }
}

fn described(path: &std::path::Path, discovery: &Discovery) -> String {
    use std::fmt::Write as _;
    let mut text = format!("wrote {}: network mode fetch reads from\n", path.display());
    let width = discovery.found.iter().map(|found| found.registry.url.len()).max().unwrap_or(0);
    for found in &discovery.found {
        let registry = &found.registry;
        let _ = writeln!(text, "  {:5}  {:width$}  {}", registry.kind, registry.url, found.from);
    }
    for note in &discovery.notes {
        let _ = writeln!(text, "note: {}: {}", note.from, note.text);
    }
    filter::plain(&text)
}
