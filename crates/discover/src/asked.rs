//! What the tools take where nothing is configured: they are asked, since they know.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::Surroundings;

/// How long a tool may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest answer, in bytes.
const MAX_ANSWER: u64 = 16 << 10;

/// Who tells which addresses tools have built in. Asked only where nothing is configured.
#[derive(Debug, Clone, Copy)]
pub struct BuiltIn {
    /// npm's registry.
    pub npm: fn() -> Vec<String>,
    /// pip's index, and where its files are.
    pub pip: fn() -> Vec<String>,
    /// Go's proxy and its database of checksums, by the names of their settings.
    pub go: fn() -> Vec<(&'static str, String)>,
}

impl BuiltIn {
    /// The tools that are there, which are run. Of one that is not, there is nothing.
    pub fn of_tools() -> Self {
        Self {
            npm: || answer("npm", &["config", "get", "registry"]),
            pip: || {
                let program = "from pip._internal.models.index import PyPI as P; \
                               print(P.simple_url); print('https://' + P.file_storage_domain + '/')";
                answer("python3", &["-I", "-c", program])
            },
            go: || {
                let values = answer("go", &["env", "GOPROXY", "GOSUMDB"]);
                ["GOPROXY", "GOSUMDB"].into_iter().zip(values).collect()
            },
        }
    }
}

impl Default for BuiltIn {
    /// Nothing.
    fn default() -> Self {
        Self { npm: Vec::new, pip: Vec::new, go: Vec::new }
    }
}

/// The lines that a tool prints. It runs where there is no project that could tell it otherwise.
fn answer(tool: &str, arguments: &[&str]) -> Vec<String> {
    let mut command = Command::new(tool);
    command.args(arguments).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else { return Vec::new() };
    // Read while it runs: one that says more than is wanted finds nobody who listens, and ends.
    let stdout = child.stdout.take();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        let read = stdout.map(|stdout| stdout.take(MAX_ANSWER).read_to_string(&mut text));
        if matches!(read, Some(Ok(_))) {
            // Who waits no more needs no answer.
            let _ = sender.send(text);
        }
    });
    let begun = Instant::now();
    let ended = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status.success(),
            Ok(None) if begun.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(10));
            }
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                break false;
            }
        }
    };
    if !ended {
        return Vec::new();
    }
    // What it started may hold its output open for longer than it was there.
    match receiver.recv_timeout(PATIENCE.saturating_sub(begun.elapsed())) {
        Ok(text) => text.lines().map(|line| line.trim().to_owned()).collect(),
        Err(_) => Vec::new(),
    }
}

/// The registry that Cargo has fetched from: it keeps each index by the name of its host, with the
/// address of the packages.
pub(crate) fn of_cargo(around: &Surroundings, home: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(home.join("registry/index")) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let mut found = Vec::new();
    for path in paths {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some((host, _)) = name.rsplit_once('-') else { continue };
        let Ok(Some(text)) = around.read(&path.join("config.json")) else { continue };
        found.push(format!("https://{host}/"));
        found.extend(download(&text));
    }
    found
}

/// `dl` of an index's configuration: everything up to the path of its host.
fn download(json: &str) -> Option<String> {
    let url = json.split("\"dl\"").nth(1)?.split('"').nth(1)?;
    let (scheme, rest) = url.split_once("://")?;
    let host = rest.split('/').next()?;
    Some(format!("{scheme}://{}/", host.strip_suffix(":443").unwrap_or(host)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_packages_are_is_in_the_configuration_of_their_index() {
        let json = r#"{"dl": "https://index.example:443/api/crates", "api": "https://x"}"#;
        assert_eq!(download(json).as_deref(), Some("https://index.example/"));
        assert_eq!(download("{}"), None);
    }

    #[test]
    fn a_tool_that_is_not_there_tells_nothing() {
        assert_eq!(answer("no-such-tool-of-sandforge", &[]), Vec::<String>::new());
        assert_eq!(answer("false", &[]), Vec::<String>::new());
        assert_eq!(answer("echo", &["one"]), ["one"]);
    }

    #[test]
    fn a_tool_that_says_too_much_is_not_waited_for() {
        let begun = Instant::now();
        assert_eq!(answer("yes", &["https://registry.example/"]), Vec::<String>::new());
        assert!(begun.elapsed() < PATIENCE);
    }
}
