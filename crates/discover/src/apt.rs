//! apt: lines of `sources.list`, and stanzas of the newer files.

use rules::RegistryKind::Apt;

use crate::Search;

pub(crate) fn search(search: &mut Search<'_>) {
    let around = search.surroundings;
    let directory = around.etc("apt/sources.list.d");
    let mut paths = vec![around.etc("apt/sources.list")];
    paths.extend(around.list(&directory, &["list", "sources"]));
    for path in paths {
        let Some((text, name)) = search.read(&path) else { continue };
        let found = match path.extension().is_some_and(|ending| ending == "sources") {
            true => of_stanzas(&text),
            false => of_lines(&text),
        };
        for (line, url) in found {
            // Ways of getting there that end at the same place.
            let url =
                ["mirror+", "tor+"].iter().find_map(|way| url.strip_prefix(way)).unwrap_or(&url);
            if url.starts_with("http:") || url.starts_with("https:") {
                search.add(Apt, url, &format!("{name}:{line}"));
            }
        }
    }
}

/// `deb [options] address suite component...`
fn of_lines(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some((kind, rest)) = line.split_once(char::is_whitespace) else { continue };
        if !matches!(kind, "deb" | "deb-src") {
            continue;
        }
        let rest = rest.trim_start();
        let rest = match rest.strip_prefix('[') {
            Some(options) => options.split_once(']').map_or("", |(_, rest)| rest),
            None => rest,
        };
        if let Some(url) = rest.split_whitespace().next() {
            found.push((index + 1, url.to_owned()));
        }
    }
    found
}

/// Fields of `Name: value`, whose lines go on when they begin with a space; empty lines between
/// stanzas.
fn of_stanzas(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut stanza: Vec<(usize, String)> = Vec::new();
    let mut is_enabled = true;
    let mut field = String::new();
    for (index, line) in text.lines().chain([""]).enumerate() {
        if line.trim().is_empty() {
            let urls = std::mem::take(&mut stanza);
            if std::mem::replace(&mut is_enabled, true) {
                found.extend(urls);
            }
            field.clear();
            continue;
        }
        if line.starts_with('#') {
            continue;
        }
        let value = match line.starts_with([' ', '\t']) {
            true => line,
            false => {
                let (name, value) = line.split_once(':').unwrap_or((line, ""));
                field = name.trim().to_ascii_lowercase();
                value
            }
        };
        match field.as_str() {
            "uris" => {
                stanza.extend(value.split_whitespace().map(|url| (index + 1, url.to_owned())))
            }
            "enabled" => {
                is_enabled =
                    !matches!(value.trim(), "no" | "false" | "0" | "off" | "without" | "disable")
            }
            _ => {}
        }
    }
    found
}
