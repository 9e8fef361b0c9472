//! Hosts of repositories that the user's git has credentials for, or takes in the place of others.

use rules::RegistryKind::Git;

use crate::{Search, ini};

pub(crate) fn search(search: &mut Search<'_>) {
    let around = search.surroundings;
    let paths =
        [Some(around.etc("gitconfig")), around.config("git/config"), around.at_home(".gitconfig")];
    for path in paths.into_iter().flatten() {
        let Some((text, name)) = search.read(&path) else { continue };
        let mut seen: Vec<String> = Vec::new();
        for entry in ini::entries(&text, &['='], false) {
            let Some((section, url)) = entry.section.split_once(char::is_whitespace) else {
                continue;
            };
            let is_meant = match section.to_ascii_lowercase().as_str() {
                "credential" => true,
                "url" => entry.key.eq_ignore_ascii_case("insteadOf"),
                _ => false,
            };
            let url = url.trim().trim_matches('"');
            if is_meant && url.starts_with("https://") && !seen.iter().any(|known| known == url) {
                seen.push(url.to_owned());
                search.add(Git, url, &name);
            }
        }
    }
}
