//! Volumes: disks that outlive sandboxes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::bound::{self, GuestPath, VolumeBytes, VolumeName, Workspace};
use crate::object::objects;
use crate::operation::UnknownName;
use crate::{Problem, Timestamp, Validate};

/// Most volumes and caches of a sandbox: a machine has room for so many disks.
pub const MAX_VOLUMES: usize = 5;

/// A volume as it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct CreateVolume {
    /// What it is called, once in a workspace.
    #[schema(value_type = bound::VolumeName)]
    pub name: String,
    /// How much it holds, in bytes; 10 GiB when absent. It takes up what is written to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::VolumeBytes>)]
    pub size_bytes: Option<u64>,
    /// In which workspace; the caller's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::Workspace>)]
    pub workspace: Option<String>,
}

impl Validate for CreateVolume {
    fn validate(&self) -> Result<(), Problem> {
        VolumeName::check("name", &self.name)?;
        VolumeBytes::check_some("size_bytes", self.size_bytes)?;
        Workspace::check_some("workspace", self.workspace.as_deref())
    }
}

/// Whose volumes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct VolumeQuery {
    /// Of this workspace; the caller's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::Workspace>, nullable = false)]
    pub workspace: Option<String>,
}

impl Validate for VolumeQuery {
    fn validate(&self) -> Result<(), Problem> {
        Workspace::check_some("workspace", self.workspace.as_deref())
    }
}

/// A disk that outlives sandboxes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// What it is called in its workspace.
    pub name: String,
    /// Whose it is.
    pub workspace: String,
    /// How much it holds, in bytes.
    pub size_bytes: u64,
    /// What it takes up of the host's disk, in bytes.
    pub used_bytes: u64,
    /// Whether a sandbox has it now.
    pub in_use: bool,
    /// When it was made, where the host's file system knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
}

/// The volumes of a workspace, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeList {
    /// All of them.
    pub volumes: Vec<Volume>,
}

/// A volume in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct VolumeMount {
    /// Which of the workspace.
    #[schema(value_type = bound::VolumeName)]
    pub name: String,
    /// Absolute path of the guest, made if missing; not in `/dev`, `/proc`, `/sys` or `/tmp`.
    #[schema(value_type = bound::GuestPath)]
    pub guest_path: String,
    /// Tasks can read it and no more. Several sandboxes can have it so at once; one that writes has it
    /// alone.
    #[serde(default)]
    pub read_only: bool,
}

impl Validate for VolumeMount {
    fn validate(&self) -> Result<(), Problem> {
        VolumeName::check("name", &self.name)?;
        GuestPath::check("guest_path", &self.guest_path)?;
        check_place("guest_path", &self.guest_path)
    }
}

/// What is a task's own or the kernel's, and would hide what is mounted there.
const TAKEN: [&str; 4] = ["/dev", "/proc", "/sys", "/tmp"];

fn check_place(field: &str, path: &str) -> Result<(), Problem> {
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
    if parts.is_empty() || parts.iter().any(|part| matches!(*part, "." | "..")) {
        let problem = "must not be the root, and have neither . nor .. in it";
        return Err(Problem::invalid(field, problem));
    }
    match TAKEN.iter().find(|taken| taken[1..] == *parts[0]) {
        Some(taken) => Err(Problem::invalid(field, format!("must not be in {taken}"))),
        None => Ok(()),
    }
}

/// A tool whose downloads and builds are kept from sandbox to sandbox.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum CacheTool {
    /// Rust's, by `CARGO_HOME`.
    Cargo,
    /// Go's, by `GOMODCACHE` and `GOCACHE`.
    Go,
    /// Node's, by `npm_config_cache`.
    Npm,
    /// Python's, by `PIP_CACHE_DIR`.
    Pip,
}

impl CacheTool {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Cargo, Self::Go, Self::Npm, Self::Pip];

    /// The name in JSON and flags.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cargo => "cargo",
            Self::Go => "go",
            Self::Npm => "npm",
            Self::Pip => "pip",
        }
    }

    /// The volume of a workspace that holds it.
    pub fn volume(self) -> String {
        format!("cache-{self}")
    }

    /// Where it is in a sandbox.
    pub fn guest_path(self) -> String {
        format!("/cache/{self}")
    }

    /// What leads the tool there.
    pub fn variables(self) -> Vec<(String, String)> {
        let at = self.guest_path();
        let variables: &[(&str, &str)] = match self {
            Self::Cargo => &[("CARGO_HOME", "")],
            Self::Go => &[("GOMODCACHE", "/mod"), ("GOCACHE", "/build")],
            Self::Npm => &[("npm_config_cache", "")],
            Self::Pip => &[("PIP_CACHE_DIR", "")],
        };
        variables.iter().map(|(name, below)| ((*name).to_owned(), format!("{at}{below}"))).collect()
    }
}

impl fmt::Display for CacheTool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for CacheTool {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        UnknownName::find(&Self::ALL, text, Self::as_str)
    }
}

/// A tool's cache in a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Cache {
    /// Whose. It is the volume `cache-TOOL` of the workspace, at `/cache/TOOL`.
    pub tool: CacheTool,
    /// What is added stays for others, and the sandbox has the cache alone; the volume is made if
    /// missing. Without this, it reads what is there, and what it adds is gone with it.
    #[serde(default)]
    pub fill: bool,
}

objects!(CreateVolume, VolumeMount, Cache);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_volume_s_name_is_a_plain_file_name() {
        for name in ["a", "cache-npm", "data.2", "x_y"] {
            let create: CreateVolume = serde_json::from_value(json!({"name": name})).unwrap();
            assert_eq!(create.validate(), Ok(()), "{name}");
        }
        for name in ["", ".", "..", "a/b", "-x", "A", "a.", &"x".repeat(64)] {
            let create: CreateVolume = serde_json::from_value(json!({"name": name})).unwrap();
            assert_eq!(create.validate().unwrap_err().field(), Some("name"), "{name}");
        }
    }

    #[test]
    fn a_volume_is_neither_tiny_nor_without_end() {
        for size in [0, 1 << 20, (16_u64 << 40) + 1] {
            let create = CreateVolume { name: "a".into(), size_bytes: Some(size), workspace: None };
            assert_eq!(create.validate().unwrap_err().field(), Some("size_bytes"), "{size}");
        }
    }

    #[test]
    fn a_volume_is_mounted_where_nothing_hides_it() {
        let at = |path: &str| {
            let mount = json!({"name": "a", "guest_path": path});
            serde_json::from_value::<VolumeMount>(mount).unwrap().validate()
        };
        for path in ["/data", "/a/b", "/processes", "/workspace", "/a..b"] {
            assert_eq!(at(path), Ok(()), "{path}");
        }
        for path in ["", "data", "/", "//", "/tmp", "/dev/x", "//proc", "/sys/", "/a/../b", "/."] {
            assert_eq!(at(path).unwrap_err().field(), Some("guest_path"), "{path}");
        }
    }

    #[test]
    fn a_cache_has_one_name_everywhere() {
        for tool in CacheTool::ALL {
            assert_eq!(serde_json::to_value(tool).unwrap(), tool.as_str());
            assert_eq!(tool.as_str().parse(), Ok(tool));
            assert!(VolumeName::is(&tool.volume()));
            assert!(tool.variables().iter().all(|(_, at)| at.starts_with(&tool.guest_path())));
        }
    }
}
