//! Go.

use rules::RegistryKind::Go;

use crate::{Search, ini};

pub(crate) fn search(search: &mut Search<'_>) {
    let around = search.surroundings;
    let file = match around.variable("GOENV") {
        Some("off") => None,
        Some(path) => Some(path.into()),
        None => around.config("go/env"),
    };
    let root =
        around.variable("GOROOT").map_or_else(|| around.root.join("usr/local/go"), Into::into);
    let mut settings: Vec<(String, String, String)> = Vec::new();
    for key in ["GOPROXY", "GOSUMDB"] {
        if let Some(value) = search.variable(key) {
            settings.push((key.to_owned(), value, key.to_owned()));
        }
    }
    for path in file.into_iter().chain([root.join("go.env")]) {
        let Some((text, name)) = search.read(&path) else { continue };
        for entry in ini::entries(&text, &['='], false) {
            settings.push((entry.key, entry.value, format!("{name}:{}", entry.line)));
        }
    }
    let is_set =
        |key: &str| settings.iter().any(|(name, value, _)| name == key && !value.is_empty());
    if !(is_set("GOPROXY") && is_set("GOSUMDB")) {
        for (key, value) in (around.built_in.go)() {
            settings.push((key.to_owned(), value, "go's default".to_owned()));
        }
    }
    // The first that says something is the one that holds.
    let of = |key: &str| settings.iter().find(|(name, value, _)| name == key && !value.is_empty());
    match of("GOPROXY") {
        None => search.add_defaults(Go, &[], "go"),
        Some((_, list, from)) => {
            for url in list.split([',', '|']).map(str::trim) {
                if !matches!(url, "" | "direct" | "off") && !url.starts_with("file:") {
                    search.add(Go, url, from);
                }
            }
        }
    }
    match of("GOSUMDB").map(|(_, value, from)| (value.as_str(), from)) {
        Some(("off", _)) => {}
        // The name of the database, its key, and where it is if that is another place.
        Some((value, from)) => match value.split_whitespace().nth(1) {
            Some(url) => search.add(Go, url, from),
            None => {
                let name = value.split(['+', ' ']).next().unwrap_or_default();
                search.add(Go, &format!("https://{name}"), from);
            }
        },
        None => {}
    }
}
