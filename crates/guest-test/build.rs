//! Compiles the guest's first process. It is C because it is static without further ado, and the
//! C compiler is there: it links everything else.

use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/init.c");
    println!("cargo::rerun-if-env-changed=CC");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo did not set OUT_DIR")?);
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".into());
    let status = Command::new(&compiler)
        .args(["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-static", "-o"])
        .arg(out.join("init"))
        .arg("src/init.c")
        .status()
        .map_err(|error| format!("cannot run {compiler}: {error}"))?;
    if !status.success() {
        return Err(format!("{compiler} does not compile src/init.c").into());
    }
    Ok(())
}
