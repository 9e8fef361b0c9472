//! Builds the agent, so that the one `sandforge` binary carries its guest with it.
//!
//! The agent is a static program of its own profile; cargo cannot yet make one package an
//! artefact of another on stable (`-Z bindeps`). `SANDFORGE_AGENT_BIN` takes a binary made
//! beforehand instead, and `SANDFORGE_KERNEL_DIR` a kernel, for distributions that build them as
//! packages of their own.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=SANDFORGE_AGENT_BIN");
    println!("cargo::rerun-if-env-changed=SANDFORGE_KERNEL_DIR");
    let out = PathBuf::from(variable("OUT_DIR")?);
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("../..").canonicalize()?;

    let kernel = match env::var_os("SANDFORGE_KERNEL_DIR") {
        Some(path) => root.join(path),
        None => root.join("guest/kernel"),
    };
    for name in ["vmlinux.zst", "SHA256SUMS"] {
        take(&kernel.join(name), &out.join(name), "guest/kernel/build --commit makes it")?;
    }

    let agent = match env::var_os("SANDFORGE_AGENT_BIN") {
        Some(path) => root.join(path),
        None => build_agent(&root, &out.join("agent-target"))?,
    };
    take(&agent, &out.join("agent"), "SANDFORGE_AGENT_BIN names it")?;
    Ok(())
}

/// Copies a file to where `include_bytes!` finds it, whichever way it came.
fn take(from: &Path, to: &Path, hint: &str) -> Result<(), String> {
    println!("cargo::rerun-if-changed={}", from.display());
    fs::copy(from, to).map_err(|e| format!("cannot read {}: {e}; {hint}", from.display()))?;
    Ok(())
}

fn build_agent(root: &Path, target_dir: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let target = variable("TARGET")?.into_string().map_err(|_| "TARGET is not text")?;
    if !target.ends_with("-linux-gnu") {
        let hint = "the agent is a Linux program; build it there and set SANDFORGE_AGENT_BIN";
        return Err(hint.into());
    }
    let cargo_home = env::var("CARGO_HOME")
        .or_else(|_| env::var("HOME").map(|home| home + "/.cargo"))
        .unwrap_or_default();
    let flags = [
        "-Ctarget-feature=+crt-static".to_owned(),
        "-Crelocation-model=static".to_owned(),
        // An emulator runs vector instructions one element at a time: a signature is verified in
        // 0.6 ms by this one, in 3.5 by the vector code.
        "--cfg=curve25519_dalek_backend=\"serial\"".to_owned(),
        // Messages of panics name files; they need not name this machine's directories.
        format!("--remap-path-prefix={}=sandforge", root.display()),
        format!("--remap-path-prefix={cargo_home}/registry/src=crates"),
    ];

    // Whoever works on Sandforge builds the agent often and ships it never: less optimisation,
    // still small enough to boot quickly under emulation.
    let draft = ["lto=false", "codegen-units=16", "incremental=true"]
        .map(|setting| format!("--config=profile.agent.{setting}"));
    let is_draft = variable("PROFILE")? != "release";

    let mut cargo = Command::new(variable("CARGO")?);
    for (name, _) in env::vars_os().filter(|(name, _)| belongs_to_this_build(name)) {
        cargo.env_remove(name);
    }
    let done = cargo
        .args(["build", "--package=agent", "--profile=agent", "--bin=agent", "--quiet"])
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
            "the agent does not build (SANDFORGE_AGENT_BIN takes one made elsewhere):\n{}",
            String::from_utf8_lossy(&done.stderr)
        )
        .into());
    }

    let binary = target_dir.join(&target).join("agent/agent");
    watch_sources(root, &binary.with_extension("d"))?;
    Ok(binary)
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

/// Asks cargo to come back when a source of the agent changes. Cargo lists them all, those of the
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

fn variable(name: &str) -> Result<OsString, String> {
    env::var_os(name).ok_or_else(|| format!("cargo did not set {name}"))
}
