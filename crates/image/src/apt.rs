//! Where this machine gets Debian's packages from: its own apt configuration, so that mirrors and
//! proxies which someone set up for it are used for images too.

use std::fs;
use std::path::Path;
use std::process::Command;

pub(crate) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The archives of Debian that the machine uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Mirrors {
    main: Option<String>,
    security: Option<String>,
}

/// Settings of apt that decide whether its fetches succeed here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    /// By environment variable, not by option: a proxy can have a password in it.
    pub(crate) proxies: Vec<(&'static str, String)>,
    pub(crate) options: Vec<String>,
}

impl Mirrors {
    /// Reads `/etc/apt`; on a machine that is not Debian there is nothing to find.
    pub(crate) fn of_this_machine(suite: &str) -> Self {
        let mut files = vec![Path::new("/etc/apt/sources.list").to_path_buf()];
        let mut parts: Vec<_> = fs::read_dir("/etc/apt/sources.list.d")
            .map(|dir| dir.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default();
        parts.sort();
        files.extend(parts);
        let mut sources = Vec::new();
        for path in files {
            let Ok(text) = fs::read_to_string(&path) else { continue };
            match path.extension().and_then(|ext| ext.to_str()) {
                Some("list") => sources.extend(one_line(&text)),
                Some("sources") => sources.extend(deb822(&text)),
                _ => {}
            }
        }
        Self::among(&sources, suite)
    }

    fn among(sources: &[Source], suite: &str) -> Self {
        // An archive that has the suite itself is surer to have it than one that may.
        let best = |archive: &str, suite: &str| {
            let of_archive = || sources.iter().filter(|source| source.is(archive));
            of_archive()
                .find(|source| source.suites.iter().any(|has| has == suite))
                .or_else(|| of_archive().next())
                .map(|source| source.uri.trim_end_matches('/').to_owned())
        };
        Self {
            main: best("debian", suite),
            security: best("debian-security", &format!("{suite}-security")),
        }
    }

    /// Lines for a `sources.list`; empty when the machine knows no archive of Debian.
    pub(crate) fn list(&self, suite: &str, components: &[String]) -> String {
        let Some(main) = &self.main else { return String::new() };
        let components = components.join(" ");
        let line = |uri: &str, suite: &str| {
            format!("deb [signed-by={KEYRING}] {uri} {suite} {components}\n")
        };
        let mut list = line(main, suite) + &line(main, &format!("{suite}-updates"));
        if let Some(security) = &self.security {
            list += &line(security, &format!("{suite}-security"));
        }
        list
    }

    /// The same without user names and passwords, as it may stand in an image.
    pub(crate) fn without_credentials(&self) -> Self {
        let strip = |uri: &String| match uri.split_once("://") {
            Some((scheme, rest)) => {
                let authority = rest.split('/').next().unwrap_or_default();
                let user = authority.rfind('@').map_or(0, |at| at + 1);
                format!("{scheme}://{}", &rest[user..])
            }
            None => uri.clone(),
        };
        Self { main: self.main.as_ref().map(strip), security: self.security.as_ref().map(strip) }
    }
}

impl Settings {
    pub(crate) fn of_this_machine() -> Self {
        match Command::new("apt-config").args(["dump", "Acquire"]).output() {
            Ok(done) => Self::parse(&String::from_utf8_lossy(&done.stdout)),
            Err(_) => Self::default(),
        }
    }

    fn parse(dump: &str) -> Self {
        let mut settings = Self::default();
        for line in dump.lines() {
            let Some((key, value)) = line.split_once(' ') else { continue };
            let value = value.trim_end_matches(';').trim_matches('"');
            match key.to_ascii_lowercase().as_str() {
                _ if value.is_empty() => {}
                "acquire::http::proxy" => settings.proxies.push(("http_proxy", value.to_owned())),
                "acquire::https::proxy" => settings.proxies.push(("https_proxy", value.to_owned())),
                "acquire::check-valid-until"
                | "acquire::check-date"
                | "acquire::retries"
                | "acquire::forceipv4" => settings.options.push(format!("{key} \"{value}\"")),
                _ => {}
            }
        }
        settings
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Source {
    uri: String,
    suites: Vec<String>,
}

impl Source {
    /// By a segment of its path: mirrors have all kinds of hosts, but keep Debian's own names.
    fn is(&self, archive: &str) -> bool {
        let path = self.uri.split_once("://").map_or("", |(_, rest)| rest);
        path.split('/').skip(1).any(|segment| segment == archive)
    }

    fn new(uri: &str, suites: &[&str]) -> Option<Self> {
        let fetched = ["http://", "https://"].iter().any(|scheme| uri.starts_with(scheme));
        fetched.then(|| Self {
            uri: uri.to_owned(),
            suites: suites.iter().map(|&suite| suite.to_owned()).collect(),
        })
    }
}

/// `deb [options] uri suite component…`
fn one_line(text: &str) -> Vec<Source> {
    let parse = |line: &str| {
        let rest = line.split('#').next()?.trim().strip_prefix("deb ")?.trim_start();
        let rest = match rest.strip_prefix('[') {
            Some(options) => options.split_once(']')?.1,
            None => rest,
        };
        let mut words = rest.split_whitespace();
        Source::new(words.next()?, &[words.next()?])
    };
    text.lines().filter_map(parse).collect()
}

/// Stanzas of `Key: value`, continued on indented lines.
fn deb822(text: &str) -> Vec<Source> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let mut sources = Vec::new();
    for stanza in lines.split(|line| line.trim().is_empty()) {
        let field = |wanted: &str| -> Vec<&str> {
            let starts = |line: &&str| {
                line.split_once(':').is_some_and(|(key, _)| key.eq_ignore_ascii_case(wanted))
            };
            let Some(at) = stanza.iter().position(starts) else { return Vec::new() };
            let first = stanza[at].split_once(':').map_or("", |(_, value)| value);
            let more = stanza[at + 1..].iter().take_while(|line| line.starts_with([' ', '\t']));
            std::iter::once(first).chain(more.copied()).flat_map(str::split_whitespace).collect()
        };
        let off = field("Enabled").first().is_some_and(|value| value.eq_ignore_ascii_case("no"));
        if !off && field("Types").contains(&"deb") {
            let suites = field("Suites");
            sources.extend(field("URIs").iter().filter_map(|uri| Source::new(uri, &suites)));
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "\
Types: deb deb-src
# a comment inside
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: https://user:word@mirror.example/debian-security/
Suites:
 bookworm-security
Components: main

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: trixie
";

    #[test]
    fn deb822_sources_are_understood() {
        let mirrors = Mirrors::among(&deb822(DEB822), "bookworm");
        assert_eq!(mirrors.main.as_deref(), Some("http://mirror.example/debian"));
        assert!(mirrors.security.unwrap().ends_with("@mirror.example/debian-security"));
    }

    #[test]
    fn one_line_sources_are_understood() {
        let sources = one_line(
            "deb [arch=amd64 signed-by=/k] http://a.example/archive/debian/20250520T000000Z bookworm main # x\n\
             #deb http://b.example/debian bookworm main\n\
             deb-src http://c.example/debian bookworm main\n\
             deb file:/srv/debian bookworm main\n",
        );
        assert_eq!(sources.len(), 1);
        assert!(sources[0].is("debian"));
    }

    #[test]
    fn an_archive_with_the_suite_goes_before_one_without() {
        let sources = one_line(
            "deb http://a.example/debian trixie main\ndeb http://b.example/debian bookworm main\n",
        );
        let mirrors = Mirrors::among(&sources, "bookworm");
        assert_eq!(mirrors.main.as_deref(), Some("http://b.example/debian"));
    }

    #[test]
    fn another_distribution_gives_no_mirror() {
        let sources = one_line("deb http://a.example/ubuntu noble main\n");
        assert_eq!(Mirrors::among(&sources, "bookworm").list("bookworm", &[]), "");
    }

    #[test]
    fn the_list_covers_updates_and_security() {
        let list = Mirrors::among(&deb822(DEB822), "bookworm")
            .without_credentials()
            .list("bookworm", &["main".to_owned()]);
        let expected = format!(
            "deb [signed-by={KEYRING}] http://mirror.example/debian bookworm main\n\
             deb [signed-by={KEYRING}] http://mirror.example/debian bookworm-updates main\n\
             deb [signed-by={KEYRING}] https://mirror.example/debian-security bookworm-security main\n"
        );
        assert_eq!(list, expected);
    }

    #[test]
    fn a_proxy_is_not_an_option_and_lifetime_checks_are() {
        let settings = Settings::parse(
            "Acquire \"\";\nAcquire::http::Proxy \"http://u:p@proxy.example:3128\";\n\
             Acquire::Check-Valid-Until \"false\";\nAcquire::Languages \"none\";\n",
        );
        assert_eq!(settings.proxies, [("http_proxy", "http://u:p@proxy.example:3128".to_owned())]);
        assert_eq!(settings.options, ["Acquire::Check-Valid-Until \"false\""]);
    }
}
