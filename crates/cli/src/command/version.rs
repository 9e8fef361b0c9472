//! `sandforge version`.

use clap::Args;
use serde::Serialize;

use crate::failure::Failure;

/// Print the version
#[derive(Args)]
pub(crate) struct VersionArgs {
    /// Print a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Serialize)]
struct Version {
    version: &'static str,
    os: &'static str,
    arch: &'static str,
}

impl VersionArgs {
    pub(crate) fn run(&self) -> Result<u8, Failure> {
        let version = Version {
            version: env!("CARGO_PKG_VERSION"),
            os: std::env::consts::OS,
            arch: std::env::consts::ARCH,
        };
        if self.json {
            super::print_json(&version)?;
        } else {
            super::print(&format!("sandforge {}\n", version.version))?;
        }
        Ok(0)
    }
}
