//! Cargo.

use rules::RegistryKind::{Cargo, Git};
use toml::{Table, Value};

use crate::{Search, asked};

const CRATES_IO: &str = "crates-io";

pub(crate) fn search(search: &mut Search<'_>) {
    let around = search.surroundings;
    let home = match around.variable("CARGO_HOME") {
        Some(directory) => Some(directory.into()),
        None => around.at_home(".cargo"),
    };
    let mut is_replaced = false;
    // The older name wins where both are there; what is named by either is no secret to the user.
    for path in home.iter().flat_map(|home| [home.join("config"), home.join("config.toml")]) {
        let Some((text, name)) = search.read(&path) else { continue };
        let Ok(table) = text.parse::<Table>() else {
            search.note(&name, "it is not TOML");
            continue;
        };
        let section = |name: &str| table.get(name).and_then(Value::as_table);
        for registry in section("registries").into_iter().flat_map(Table::values) {
            if let Some(index) = registry.get("index").and_then(Value::as_str) {
                add(search, index, &name);
            }
        }
        if let Some(sources) = section("source") {
            is_replaced |= replaced(search, sources, &name);
        }
    }
    let named: Vec<(String, String)> = around
        .environment
        .iter()
        .filter(|(name, _)| name.starts_with("CARGO_REGISTRIES_") && name.ends_with("_INDEX"))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    for (name, index) in named {
        add(search, &index, &name);
    }
    if !is_replaced {
        let urls: Vec<String> =
            home.iter().flat_map(|home| asked::of_cargo(around, home)).collect();
        search.add_defaults(Cargo, &urls, "cargo");
    }
}

/// Adds what takes the place of the public registry, by whatever way. Whether anything does.
fn replaced(search: &mut Search<'_>, sources: &Table, from: &str) -> bool {
    let mut at = CRATES_IO;
    let mut seen = vec![at];
    while let Some(next) =
        sources.get(at).and_then(|one| one.get("replace-with")).and_then(Value::as_str)
    {
        // A circle is Cargo's to complain about.
        if seen.contains(&next) {
            return true;
        }
        seen.push(next);
        at = next;
    }
    if at == CRATES_IO {
        return false;
    }
    let source = sources.get(at);
    let text = |key: &str| source.and_then(|source| source.get(key)).and_then(Value::as_str);
    if let Some(index) = text("registry") {
        add(search, index, from);
    } else if let Some(url) = text("git") {
        search.add(Git, url, from);
    }
    // Of a directory or a local registry nothing is fetched.
    true
}

/// An index that is served over HTTP begins with `sparse+`; another is a repository.
fn add(search: &mut Search<'_>, index: &str, from: &str) {
    match index.strip_prefix("sparse+") {
        Some(url) => {
            search.add(Cargo, url, from);
            let text = "packages may come from another host than the index: `dl` in its config.json names it";
            search.note(from, text);
        }
        None if index.contains("://") && !index.starts_with("file:") => {
            search.add(Git, index, from)
        }
        None => {}
    }
}
