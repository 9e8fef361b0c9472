//! What outlives a sandbox, as it is written: `-v` and `--cache`.

use clap::Args;
use client::api::{Cache, CacheTool, CreateSandbox, VolumeMount};

/// Disks that a sandbox is given.
#[derive(Args)]
#[command(next_help_heading = "Volumes")]
pub(crate) struct VolumeArgs {
    /// Mount a volume at an absolute path; `sandforge volume create NAME` makes one
    ///
    /// What is written to it outlives the sandbox. One sandbox that writes has it alone, and several can
    /// have it with :ro.
    #[arg(short = 'v', long, value_name = "NAME:GUEST[:ro]", value_parser = volume)]
    volume: Vec<VolumeMount>,

    /// Keep what tools download and build: cargo, go, npm, pip
    ///
    /// The sandbox reads what the volume `cache-TOOL` holds, and what it adds is gone with it, so that
    /// none spoils what others read. With :fill it has the volume alone, and what it adds stays.
    #[arg(long, value_name = "TOOL[:fill],...", value_delimiter = ',', value_parser = cache)]
    cache: Vec<Cache>,
}

impl VolumeArgs {
    /// The request, with these.
    pub(crate) fn fill(&self, request: CreateSandbox) -> CreateSandbox {
        CreateSandbox { volumes: self.volume.clone(), caches: self.cache.clone(), ..request }
    }
}

fn volume(text: &str) -> Result<VolumeMount, String> {
    let bad = || {
        "is not NAME:GUEST or NAME:GUEST:ro; GUEST is an absolute path in the sandbox, such as \
         /data, and what is on the host goes in with --mount"
            .to_owned()
    };
    let (rest, read_only) = match text.strip_suffix(":ro") {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    let (name, guest) = rest.split_once(":/").ok_or_else(bad)?;
    if !client::api::bound::VolumeName::is(name) || guest.is_empty() || guest.contains(':') {
        return Err(bad());
    }
    Ok(VolumeMount { name: name.into(), guest_path: format!("/{guest}"), read_only })
}

fn cache(text: &str) -> Result<Cache, String> {
    let (tool, fill) = match text.strip_suffix(":fill") {
        Some(tool) => (tool, true),
        None => (text, false),
    };
    let tool = tool.parse::<CacheTool>().map_err(|error| error.to_string())?;
    Ok(Cache { tool, fill })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_names_itself_and_a_path() {
        let mount = |name: &str, guest_path: &str, read_only| {
            Ok(VolumeMount { name: name.into(), guest_path: guest_path.into(), read_only })
        };
        assert_eq!(volume("data:/data"), mount("data", "/data", false));
        assert_eq!(volume("data:/a/b:ro"), mount("data", "/a/b", true));
        for text in
            ["", "data", "data:", "data:x", ":/x", "/host:/x", "./a:/x", "a:/", "a:/x:rw", "A:/x"]
        {
            assert!(volume(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_cache_is_read_unless_it_is_to_be_filled() {
        assert_eq!(cache("npm"), Ok(Cache { tool: CacheTool::Npm, fill: false }));
        assert_eq!(cache("cargo:fill"), Ok(Cache { tool: CacheTool::Cargo, fill: true }));
        assert_eq!(cache("yarn"), Err("`yarn` is not one of cargo, go, npm, pip".into()));
    }
}
