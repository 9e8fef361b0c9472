//! pip and uv.

use rules::RegistryKind::Pip;
use toml::{Table, Value};

use crate::{Search, ini};

pub(crate) fn search(search: &mut Search<'_>) {
    // Who has named another index for one of the tools means it for both.
    let has_main = pip(search) | uv(search);
    if !has_main {
        search.add_defaults(Pip, &(search.surroundings.built_in.pip)(), "pip");
    }
}

/// Whether the index that is there by default is another.
fn pip(search: &mut Search<'_>) -> bool {
    let mut has_main = false;
    for name in ["PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"] {
        if let Some(urls) = search.variable(name) {
            add(search, &urls, name);
            has_main |= name == "PIP_INDEX_URL";
        }
    }
    let around = search.surroundings;
    let user = [around.at_home(".pip/pip.conf"), around.config("pip/pip.conf")];
    let named = around.variable("PIP_CONFIG_FILE");
    let paths = match named {
        // pip reads no other file then.
        Some("/dev/null") => Vec::new(),
        _ => {
            let etc = [around.etc("pip.conf"), around.etc("xdg/pip/pip.conf")];
            etc.into_iter().chain(user.into_iter().flatten()).chain(named.map(Into::into)).collect()
        }
    };
    for path in paths {
        let Some((text, name)) = search.read(&path) else { continue };
        for entry in ini::entries(&text, &['=', ':'], true) {
            let key = entry.key.replace('_', "-");
            if matches!(key.as_str(), "index-url" | "extra-index-url" | "find-links") {
                add(search, &entry.value, &format!("{name}:{}", entry.line));
                has_main |= key == "index-url" && entry.section == "global";
            }
        }
    }
    has_main
}

/// Whether the index that is there by default is another.
fn uv(search: &mut Search<'_>) -> bool {
    let mut has_main = false;
    for name in
        ["UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS"]
    {
        if let Some(urls) = search.variable(name) {
            add(search, &urls, name);
            has_main |= matches!(name, "UV_DEFAULT_INDEX" | "UV_INDEX_URL");
        }
    }
    let around = search.surroundings;
    let paths = [Some(around.etc("uv/uv.toml")), around.config("uv/uv.toml")];
    for path in paths.into_iter().flatten() {
        let Some((text, name)) = search.read(&path) else { continue };
        let Ok(table) = text.parse::<Table>() else {
            search.note(&name, "it is not TOML");
            continue;
        };
        let sections = [Some(&table), table.get("pip").and_then(Value::as_table)];
        for section in sections.into_iter().flatten() {
            for key in ["index-url", "extra-index-url", "find-links"] {
                for url in texts(section.get(key)) {
                    add(search, url, &name);
                    has_main |= key == "index-url";
                }
            }
        }
        let indexes = table.get("index").and_then(Value::as_array);
        for index in indexes.into_iter().flatten() {
            if let Some(url) = index.get("url").and_then(Value::as_str) {
                add(search, url, &name);
                has_main |= index.get("default").and_then(Value::as_bool) == Some(true);
            }
        }
    }
    has_main
}

fn texts(value: Option<&Value>) -> Vec<&str> {
    match value {
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// Several addresses may stand beside each other, uv's with a name before a `=`. A path is none.
fn add(search: &mut Search<'_>, urls: &str, from: &str) {
    for word in urls.split_whitespace() {
        let url = match word.split_once('=') {
            Some((name, url)) if !name.contains(':') && url.contains("://") => url,
            _ => word,
        };
        if url.contains("://") && !url.starts_with("file:") {
            search.add(Pip, url, from);
        }
    }
}
