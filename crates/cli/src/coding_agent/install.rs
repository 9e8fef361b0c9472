//! Bringing an agent here: a sandbox that may read from the package registries fetches it, and what
//! it unpacked is kept in the cache. None of it is run here, nor there.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use client::api::{CreateSandbox, NetworkMode};
use fleet::{Manager, Run};
use serde::Deserialize;
use supervisor::CopyOut;
use wire::op::{Exec, ExecReply, Outcome};

use super::{Asked, MEMORY_MB, Package};
use crate::command::run::fleet_failure;
use crate::command::supervisor_failure;
use crate::errand;
use crate::failure::Failure;
use crate::progress::Line;
use crate::signals::Signals;

const SCRIPT: &str = include_str!("install.py");
/// Where the script leaves the package.
const PACKAGE: &str = "/workspace/package";
/// Changes when the same version would be laid out otherwise.
const LAYOUT: &str = "1";
/// Longest version.
const MOST_VERSION: usize = 64;

/// Where the agent is in the cache; brings it there if it is not, or if another version was asked for.
///
/// # Errors
/// It cannot be fetched, or not be kept.
pub(crate) async fn install(
    asked: &Asked,
    like: &CreateSandbox,
    manager: &Manager,
    line: &mut Line,
    signals: &mut Signals,
) -> Result<PathBuf, Failure> {
    let name = asked.agent.name;
    let Some(package) = &asked.agent.package else {
        return Err(Failure::usage(format!("{name} is not to be had as a package")));
    };
    let place = cache()?.join("agents").join(format!("{name}-{LAYOUT}"));
    let kept = |error: &io::Error| Failure::failed(format!("cannot use {place:?}")).because(error);
    let present = present(&place).map_err(|error| kept(&error))?;
    let version = asked.version.as_deref();
    let is_wanted = |one: &&(String, SystemTime)| version.is_none_or(|version| one.0 == version);
    if let Some((version, _)) = present.iter().filter(is_wanted).max_by_key(|(_, at)| *at) {
        return Ok(place.join(version));
    }
    line.notice(&format!("fetching {name}, in a sandbox of its own that may only read"));
    fs::create_dir_all(&place).map_err(|error| kept(&error))?;
    let staging = tempfile::Builder::new()
        .prefix(".new-")
        .tempdir_in(&place)
        .map_err(|error| kept(&error))?;
    let registries = manager.registry_urls("npm").await.map_err(|error| fleet_failure(&error))?;
    let exec = command(package, version.unwrap_or("latest"), &present, registries)?;
    let sandbox = CreateSandbox {
        network: Some(NetworkMode::Fetch),
        memory_mb: Some(MEMORY_MB),
        engine: like.engine.clone(),
        min_isolation: like.min_isolation,
        ..CreateSandbox::default()
    };
    let mut run = errand::begin(manager, sandbox, &exec, line, signals).await?;
    let fetched = fetch(&mut run, &exec, staging.path(), line, signals).await;
    line.clear();
    let denied = run.denied();
    let reply = fetched.as_ref().ok().map(|fetched| fetched.reply.clone());
    let over = signals.unless_asked(run.finish(reply, None)).await;
    let Fetched { said: Said { version, is_new }, .. } = fetched.map_err(|mut failure| {
        let told = denied.iter().map(|one| format!("it was denied {}: {}", one.host, one.reason));
        failure.causes.extend(told);
        Failure { message: format!("cannot fetch {name}: {}", failure.message), ..failure }
    })?;
    over?.map_err(|error| fleet_failure(&error))?;
    let to = place.join(&version);
    if is_new {
        settle(staging.path(), name, package).map_err(|error| kept(&error))?;
        match fs::rename(staging.path(), &to) {
            // Somebody else was faster, and has the same.
            Err(_) if to.is_dir() => {}
            renamed => renamed.map_err(|error| kept(&error))?,
        }
    }
    line.notice(&format!("{name} {version} is in {:?}", to));
    Ok(to)
}

/// `$XDG_CACHE_HOME/sandforge`, by default `~/.cache/sandforge`.
fn cache() -> Result<PathBuf, Failure> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("sandforge"))
        .ok_or_else(|| Failure::usage("there is no place for a cache: set XDG_CACHE_HOME or HOME"))
}

/// The versions that are there, and since when.
fn present(place: &Path) -> io::Result<Vec<(String, SystemTime)>> {
    let entries = match fs::read_dir(place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut present = Vec::new();
    for entry in entries {
        let entry = entry?;
        if let Some(version) = entry.file_name().to_str().filter(|name| is_version(name)) {
            present.push((version.to_owned(), entry.metadata()?.modified()?));
        }
    }
    Ok(present)
}

/// It becomes the name of a directory.
fn is_version(text: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'+' | b'_');
    text.len() <= MOST_VERSION
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(is_plain)
}

fn command(
    package: &Package,
    version: &str,
    present: &[(String, SystemTime)],
    registries: Vec<String>,
) -> Result<Exec, Failure> {
    let kind = match std::env::consts::ARCH {
        "x86_64" => "x64",
        "aarch64" => "arm64",
        other => return Err(Failure::usage(format!("there is no agent for computers of {other}"))),
    };
    let present: Vec<&str> = present.iter().map(|(version, _)| version.as_str()).collect();
    let fixed = [
        "python3",
        "-c",
        SCRIPT,
        package.name,
        &format!("{}{kind}", package.platform),
        version,
        package.left_out,
        &present.join(","),
    ];
    errand::exec(fixed.into_iter().map(str::to_owned).chain(registries))
}

/// What the script says when all went well.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    version: String,
    /// It was fetched now.
    is_new: bool,
}

struct Fetched {
    said: Said,
    reply: ExecReply,
}

/// Runs the script, and takes out what it fetched, if it fetched anything.
async fn fetch(
    run: &mut Run,
    exec: &Exec,
    staging: &Path,
    line: &mut Line,
    signals: &mut Signals,
) -> Result<Fetched, Failure> {
    let errand::Said { reply, stdout, stderr } = errand::run(run, exec, signals).await?;
    if !matches!(reply.outcome, Outcome::Exited { code: 0 }) {
        let said = String::from_utf8_lossy(&stderr);
        return Err(Failure::failed(said.lines().last().unwrap_or("it says nothing")));
    }
    let said: Said = serde_json::from_slice(&stdout)
        .ok()
        .filter(|said: &Said| is_version(&said.version))
        .ok_or_else(|| Failure::failed("it does not say which version it fetched"))?;
    if said.is_new {
        let to = staging.join("package");
        let copied = run.sandbox().copy_out(PACKAGE, &to, CopyOut::default(), line);
        signals.unless_asked(copied).await?.map_err(|error| supervisor_failure(&error))?;
    }
    Ok(Fetched { said, reply })
}

/// Makes what was taken out an installation: with the script that starts it, and for reading.
fn settle(staging: &Path, name: &str, package: &Package) -> io::Result<()> {
    let bin = staging.join("bin");
    fs::create_dir(&bin)?;
    let start = bin.join(name);
    fs::write(&start, package.start)?;
    fs::set_permissions(&start, fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(staging, fs::Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_the_name_of_a_directory_and_nothing_else() {
        for good in ["2.1.330", "0.169.0-alpha.1", "1.0.0+build_5"] {
            assert!(is_version(good), "{good}");
        }
        for bad in ["", ".", "..", "../x", "1/2", "-1", ".new-abc", "1 2", &"1".repeat(65)] {
            assert!(!is_version(bad), "{bad}");
        }
    }

    #[test]
    fn an_installation_has_a_script_that_starts_it() {
        let directory = tempfile::tempdir().unwrap();
        let package =
            Package { name: "x", platform: "x-", left_out: "", start: "#!/bin/sh\necho it\n" };
        settle(directory.path(), "agent", &package).unwrap();
        let said = std::process::Command::new(directory.path().join("bin/agent")).output().unwrap();
        assert_eq!(said.stdout, b"it\n");
    }

    #[test]
    fn versions_are_found_and_what_is_unfinished_is_not() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["1.0.0", "1.1.0", ".new-x"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        let present = present(directory.path()).unwrap();
        let mut names: Vec<&str> = present.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["1.0.0", "1.1.0"]);
    }
}
