//! For build scripts: a static program of this workspace, built to be carried in another.
//!
//! The one `sandforge` binary has its guest's agent and its monitor with it. Both are programs of
//! their own profile; cargo cannot yet make one package an artefact of another on stable
//! (`-Z bindeps`).
#![forbid(unsafe_code)]

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program to be carried.
#[derive(Debug, Clone, Copy)]
pub struct Program<'a> {
    /// Package and binary, which have one name; the profile has it too.
    pub name: &'a str,
    /// Names a binary that was made beforehand, for distributions that build it as a package of
    /// its own.
    pub variable: &'a str,
    /// Flags of rustc besides those that make it static.
    pub flags: &'a [&'a str],
}

impl Program<'_> {
    /// Builds it, or takes what its variable names, and puts it into `OUT_DIR` by its name.
    ///
    /// # Errors
    /// Where it does not build; in words for the terminal of whoever builds.
    pub fn embed(&self) -> Result<(), Box<dyn Error>> {
        println!("cargo::rerun-if-changed=build.rs");
        println!("cargo::rerun-if-env-changed={}", self.variable);
        let out = PathBuf::from(variable("OUT_DIR")?);
        let root = workspace()?;
        let binary = match env::var_os(self.variable) {
            Some(path) => root.join(path),
            None => self.build(&root, &out.join(format!("{}-target", self.name)))?,
        };
        take(&binary, &out.join(self.name), &format!("{} names it", self.variable))?;
        Ok(())
    }

    fn build(&self, root: &Path, target_dir: &Path) -> Result<PathBuf, Box<dyn Error>> {
        let target = variable("TARGET")?.into_string().map_err(|_| "TARGET is not text")?;
        if !target.ends_with("-linux-gnu") {
            let hint = format!("the {} is a Linux program; build it there", self.name);
            return Err(format!("{hint} and set {}", self.variable).into());
        }
        let cargo_home = env::var("CARGO_HOME")
            .or_else(|_| env::var("HOME").map(|home| home + "/.cargo"))
            .unwrap_or_default();
        let mut flags: Vec<String> = self.flags.iter().map(|flag| (*flag).to_owned()).collect();
        flags.extend([
            "-Ctarget-feature=+crt-static".to_owned(),
            // Messages of panics name files; they need not name this machine's directories.
            format!("--remap-path-prefix={}=sandforge", root.display()),
            format!("--remap-path-prefix={cargo_home}/registry/src=crates"),
        ]);

        // Whoever works on Sandforge builds these often and ships them never: less optimisation,
        // still small enough to start quickly.
        let draft = ["lto=false", "codegen-units=16", "incremental=true"]
            .map(|setting| format!("--config=profile.{}.{setting}", self.name));
        let is_draft = variable("PROFILE")? != "release";

        let mut cargo = Command::new(variable("CARGO")?);
        for (name, _) in env::vars_os().filter(|(name, _)| belongs_to_this_build(name)) {
            cargo.env_remove(name);
        }
        let done = cargo
            .arg("build")
            .arg(format!("--package={}", self.name))
            .arg(format!("--profile={}", self.name))
            .arg(format!("--bin={}", self.name))
            .arg("--quiet")
            .args(draft.iter().filter(|_| is_draft))
            .arg(format!("--target={target}"))
            // Not the one in use: this very build holds its lock.
            .arg("--target-dir")
            .arg(target_dir)
            .arg("--manifest-path")
            .arg(root.join("Cargo.toml"))
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
            .output()?;
        if !done.status.success() {
            return Err(format!(
                "the {} does not build ({} takes one made elsewhere):\n{}",
                self.name,
                self.variable,
                String::from_utf8_lossy(&done.stderr)
            )
            .into());
        }
        let binary = target_dir.join(&target).join(self.name).join(self.name);
        watch_sources(root, &binary.with_extension("d"))?;
        Ok(binary)
    }
}

/// The workspace that the package of this build script is in.
///
/// # Errors
/// Where cargo did not start it.
pub fn workspace() -> Result<PathBuf, Box<dyn Error>> {
    Ok(PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("../..").canonicalize()?)
}

/// Copies a file to where `include_bytes!` finds it, and has cargo come back when it changes.
///
/// # Errors
/// Where it cannot be read; `hint` says what to do.
pub fn take(from: &Path, to: &Path, hint: &str) -> Result<(), String> {
    println!("cargo::rerun-if-changed={}", from.display());
    fs::copy(from, to).map_err(|e| format!("cannot read {}: {e}; {hint}", from.display()))?;
    Ok(())
}

/// A variable that cargo sets for build scripts.
///
/// # Errors
/// Where cargo did not start it.
pub fn variable(name: &str) -> Result<OsString, String> {
    env::var_os(name).ok_or_else(|| format!("cargo did not set {name}"))
}

/// What cargo and clippy set for this build would change the other: its flags, its wrappers, its
/// target directory. The job server and the registries are meant for both.
fn belongs_to_this_build(name: &OsString) -> bool {
    let Some(name) = name.to_str() else { return false };
    let shared = ["CARGO_HOME", "CARGO_MAKEFLAGS"].contains(&name)
        || ["CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_"]
            .iter()
            .any(|prefix| name.starts_with(prefix));
    let own = name.starts_with("CARGO")
        || name.starts_with("DEP_")
        || name.starts_with("CLIPPY_")
        || name.starts_with("__CARGO")
        || [
            "RUSTFLAGS",
            "RUSTDOCFLAGS",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "TARGET",
            "HOST",
            "OUT_DIR",
            "PROFILE",
            "OPT_LEVEL",
            "DEBUG",
            "NUM_JOBS",
        ]
        .contains(&name);
    own && !shared
}

/// Asks cargo to come back when a source of the program changes. Cargo lists them all, those of the
/// crates it is made of too, in a file for make beside the binary.
fn watch_sources(root: &Path, list: &Path) -> Result<(), Box<dyn Error>> {
    let list = fs::read_to_string(list)?;
    let (_, sources) = list.split_once(": ").ok_or("cargo's list of sources has no colon")?;
    let crates = root.join("crates");
    let mut watched = vec![root.join("Cargo.toml"), root.join("Cargo.lock")];
    // A space in a path is written as "\ ".
    for source in sources.replace("\\ ", "\0").split_whitespace() {
        let source = PathBuf::from(source.replace('\0', " "));
        let name = source.strip_prefix(&crates).ok().and_then(|path| path.iter().next());
        watched.extend(name.map(|name| crates.join(name).join("Cargo.toml")));
        watched.push(source);
    }
    watched.sort();
    watched.dedup();
    for path in watched {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    Ok(())
}
