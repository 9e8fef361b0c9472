//! npm, pnpm, yarn and bun.

use rules::RegistryKind::Npm;
use toml::{Table, Value};

use crate::{Search, ini};

pub(crate) fn search(search: &mut Search<'_>) {
    let mut has_main = false;
    for name in [
        "npm_config_registry",
        "NPM_CONFIG_REGISTRY",
        "YARN_NPM_REGISTRY_SERVER",
        "BUN_CONFIG_REGISTRY",
    ] {
        if let Some(url) = search.variable(name) {
            search.add(Npm, &url, name);
            has_main = true;
        }
    }
    let around = search.surroundings;
    let named = |names: [&str; 2]| names.into_iter().find_map(|name| around.variable(name));
    let user = match named(["npm_config_userconfig", "NPM_CONFIG_USERCONFIG"]) {
        Some(path) => Some(path.into()),
        None => around.at_home(".npmrc"),
    };
    let global = match named(["npm_config_globalconfig", "NPM_CONFIG_GLOBALCONFIG"]) {
        Some(path) => vec![path.into()],
        None => ["etc/npmrc", "usr/etc/npmrc", "usr/local/etc/npmrc"]
            .map(|path| around.root.join(path))
            .to_vec(),
    };
    for path in user.into_iter().chain(global) {
        let Some((text, name)) = search.read(&path) else { continue };
        for entry in ini::entries(&text, &['='], false) {
            let is_scope = entry.key.starts_with('@') && entry.key.ends_with(":registry");
            if entry.section.is_empty() && (entry.key == "registry" || is_scope) {
                let url = expanded(search, &entry.value);
                search.add(Npm, &url, &format!("{name}:{}", entry.line));
                has_main |= entry.key == "registry";
            }
        }
    }
    has_main |= yarn(search) | bun(search);
    if !has_main {
        search.add_defaults(Npm, &(search.surroundings.built_in.npm)(), "npm");
    }
}

/// `${NAME}`, as npm has it. What is not set stays, and is no address then.
fn expanded(search: &Search<'_>, text: &str) -> String {
    let mut whole = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let Some((name, after)) = after.split_once('}') else { break };
        whole.push_str(before);
        let default = name.strip_suffix('?').map(|_| "");
        let value = search.surroundings.variable(name.trim_end_matches('?')).or(default);
        match value {
            Some(value) => whole.push_str(value),
            None => whole.push_str("${}"),
        }
        rest = after;
    }
    whole + rest
}

/// Whether the main registry is another. The file of newer versions is YAML, of which two keys are looked for.
fn yarn(search: &mut Search<'_>) -> bool {
    let around = search.surroundings;
    let mut has_main = false;
    for (path, keys, separator) in
        [(".yarnrc.yml", &["npmRegistryServer"][..], ':'), (".yarnrc", &["registry"][..], ' ')]
    {
        let Some(path) = around.at_home(path) else { continue };
        let Some((text, name)) = search.read(&path) else { continue };
        for entry in ini::entries(&text, &[separator], false) {
            if keys.contains(&entry.key.trim_matches('"')) {
                search.add(Npm, &entry.value, &format!("{name}:{}", entry.line));
                has_main = true;
            }
        }
    }
    has_main
}

/// Whether the main registry is another.
fn bun(search: &mut Search<'_>) -> bool {
    let around = search.surroundings;
    let mut has_main = false;
    for path in
        [around.at_home(".bunfig.toml"), around.config(".bunfig.toml")].into_iter().flatten()
    {
        let Some((text, name)) = search.read(&path) else { continue };
        let Ok(table) = text.parse::<Table>() else {
            search.note(&name, "it is not TOML");
            continue;
        };
        let Some(install) = table.get("install") else { continue };
        let scopes = install.get("scopes").and_then(Value::as_table);
        let all =
            install.get("registry").into_iter().chain(scopes.into_iter().flat_map(Table::values));
        let urls: Vec<&str> =
            all.filter_map(|value| value.as_str().or_else(|| value.get("url")?.as_str())).collect();
        for url in urls {
            search.add(Npm, url, &name);
        }
        has_main |= install.get("registry").is_some();
    }
    has_main
}
