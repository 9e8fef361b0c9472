//! What sandboxes changed in directories that are reviewed.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::bound::RelativePath;
use crate::object::objects;
use crate::{FileKind, FileMode, Problem, Text, Timestamp, Validate, bound};

/// Most paths of a request.
const MAX_PATHS: usize = 1024;

pub(crate) fn check_paths(field: &str, paths: &[String]) -> Result<(), Problem> {
    if paths.len() > MAX_PATHS {
        return Err(Problem::invalid(field, format!("must have at most {MAX_PATHS} paths")));
    }
    let check =
        |(index, path): (usize, &String)| RelativePath::check(&format!("{field}[{index}]"), path);
    paths.iter().enumerate().try_for_each(check)
}

/// What a sandbox did to an entry of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// It was not there before.
    Created,
    /// It is another now.
    Updated,
    /// It is gone.
    Deleted,
}

/// What a sandbox changed in one directory of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChangeSet {
    /// The sandbox's id.
    pub sandbox: String,
    /// What it is called.
    pub name: String,
    /// Which of its mounts, from 0.
    pub mount: u32,
    /// The directory of the host.
    pub host_path: String,
    /// Where it is in the sandbox.
    pub guest_path: String,
    /// When the changes were looked at last.
    pub collected_at: Timestamp,
    /// Entries that are new.
    pub created: u64,
    /// Entries that are not what they were.
    pub updated: u64,
    /// Entries that are gone.
    pub deleted: u64,
    /// Of these, what other programs would run, which is applied only where it is allowed by name.
    pub protected: u64,
    /// Entries that git would ignore, which are not part of it.
    pub ignored: u64,
    /// Bytes of those.
    pub ignored_bytes: u64,
    /// An apply of it was killed half-way; applying it again finishes.
    pub interrupted: bool,
}

/// Sets of changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChangeSets {
    /// The newest first.
    pub sets: Vec<ChangeSet>,
}

/// Which changes of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ChangesQuery {
    /// Of a sandbox that runs: what git would ignore, too.
    #[serde(default)]
    pub ignored: bool,
}

impl Validate for ChangesQuery {
    fn validate(&self) -> Result<(), Problem> {
        Ok(())
    }
}

/// Which changes are to be shown, and how.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DiffQuery {
    /// Which of its mounts, from 0; the first that has changes when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(nullable = false)]
    pub mount: Option<u32>,
    /// Paths below the directory, or globs; everything when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[param(value_type = Vec<bound::RelativePath>, max_items = 1024)]
    pub path: Vec<String>,
    /// Without the lines that came and went.
    #[serde(default)]
    pub brief: bool,
}

impl Validate for DiffQuery {
    fn validate(&self) -> Result<(), Problem> {
        check_paths("path", &self.path)
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileChange {
    /// Below the directory.
    #[schema(value_type = bound::Bytes)]
    pub path: Text,
    /// What was done.
    pub change: ChangeKind,
    /// What it is now, or was where it is gone.
    pub kind: FileKind,
    /// Other programs would run what it says: it is applied only where it is allowed by name.
    pub protected: bool,
    /// The host changed it, too.
    pub changed_here: bool,
    /// Permission bits before, where they are others now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::Mode>)]
    pub mode_before: Option<FileMode>,
    /// Permission bits now, where they were others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::Mode>)]
    pub mode_after: Option<FileMode>,
    /// Lines that came, of a text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub added: Option<u64>,
    /// Lines that went, of a text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<u64>,
    /// The hunks of a unified diff, of a text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::Bytes>)]
    pub hunks: Option<Text>,
    /// Bytes before, of a file that is no text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_before: Option<u64>,
    /// Bytes now, of a file that is no text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_after: Option<u64>,
    /// Where it pointed, if it was a link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::Bytes>)]
    pub target_before: Option<Text>,
    /// Where it points, if it is a link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::Bytes>)]
    pub target_after: Option<Text>,
}

/// Changes of one directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Diff {
    /// Of which.
    pub set: ChangeSet,
    /// In the order of their paths.
    pub changes: Vec<FileChange>,
    /// There are more than one answer has: ask for some paths.
    pub truncated: bool,
}

impl Diff {
    /// Most changes of one answer.
    pub const MAX: usize = 20_000;
    /// Most bytes of hunks of one answer.
    pub const MAX_BYTES: usize = 4 << 20;
}

/// Brings changes to the host's directory.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct ApplyChanges {
    /// Which of its mounts, from 0; the first that has changes when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<u32>,
    /// Paths below the directory, or globs; everything when there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<bound::RelativePath>, max_items = 1024)]
    pub paths: Vec<String>,
    /// What is applied though other programs would run what it says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<bound::RelativePath>, max_items = 1024)]
    pub allow_protected: Vec<String>,
    /// Where both sides changed the same, the sandbox's version is taken.
    #[serde(default)]
    pub theirs: bool,
}

impl Validate for ApplyChanges {
    fn validate(&self) -> Result<(), Problem> {
        check_paths("paths", &self.paths)?;
        check_paths("allow_protected", &self.allow_protected)
    }
}

/// Forgets changes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct DiscardChanges {
    /// Which of its mounts, from 0; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<u32>,
}

impl Validate for DiscardChanges {
    fn validate(&self) -> Result<(), Problem> {
        Ok(())
    }
}

/// Why a change was not applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HeldBackWhy {
    /// Other programs would run what it says, and it was not allowed by name.
    Protected,
    /// The host changed the same.
    ChangedOnHost,
    /// It is a link that leads out of the directory.
    LeavesTree,
    /// Policy hides it from sandboxes.
    Hidden,
}

/// A change that was not applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HeldBackChange {
    /// Below the directory; of all below it, too.
    #[schema(value_type = bound::Bytes)]
    pub path: Text,
    /// What the sandbox did.
    pub change: ChangeKind,
    /// Why.
    pub why: HeldBackWhy,
}

/// What was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AppliedChanges {
    /// The directory of the host.
    pub host_path: String,
    /// Entries that are new there.
    pub created: u64,
    /// Entries that are not what they were.
    pub updated: u64,
    /// Entries that are gone, a directory with all in it being one.
    pub deleted: u64,
    /// Of those that are not what they were, texts that both sides changed in different lines.
    pub merged: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// What was not applied though it was chosen. It is kept.
    pub held_back: Vec<HeldBackChange>,
    /// There are more of them than one answer has.
    pub truncated: bool,
}

impl AppliedChanges {
    /// Most changes that are named as held back.
    pub const MAX: usize = 10_000;
}

objects!(ApplyChanges, DiscardChanges);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn requests_name_the_field_that_is_out_of_bounds() {
        let apply: ApplyChanges = serde_json::from_value(json!({"paths": ["a", ""]})).unwrap();
        assert_eq!(apply.validate().unwrap_err().field(), Some("paths[1]"));
        let apply: ApplyChanges =
            serde_json::from_value(json!({"allow_protected": ["x".repeat(4097)]})).unwrap();
        assert_eq!(apply.validate().unwrap_err().field(), Some("allow_protected[0]"));
        assert!(serde_json::from_value::<ApplyChanges>(json!({"force": true})).is_err());
        assert!(serde_json::from_value::<DiscardChanges>(json!([])).is_err());
    }
}
