//! Puts the guest into the binary: its kernel, and the agent.
//!
//! `SANDFORGE_AGENT_BIN` takes an agent made beforehand, and `SANDFORGE_KERNEL_DIR` a kernel, for
//! distributions that build them as packages of their own.

use std::env;
use std::error::Error;
use std::path::PathBuf;

use embed::Program;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=SANDFORGE_KERNEL_DIR");
    let out = PathBuf::from(embed::variable("OUT_DIR")?);
    let root = embed::workspace()?;
    let kernel = match env::var_os("SANDFORGE_KERNEL_DIR") {
        Some(path) => root.join(path),
        None => root.join("guest/kernel"),
    };
    for name in ["vmlinux.zst", "SHA256SUMS"] {
        embed::take(&kernel.join(name), &out.join(name), "guest/kernel/build --commit makes it")?;
    }
    let agent = Program {
        name: "agent",
        variable: "SANDFORGE_AGENT_BIN",
        flags: &[
            "-Crelocation-model=static",
            // An emulator runs vector instructions one element at a time: a signature is verified
            // in 0.6 ms by this one, in 3.5 by the vector code.
            "--cfg=curve25519_dalek_backend=\"serial\"",
        ],
    };
    agent.embed()
}
