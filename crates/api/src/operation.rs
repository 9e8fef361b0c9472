//! What a caller can do, and what it must be for it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A text is none of the names that were possible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not one of {known}")]
pub struct UnknownName {
    text: String,
    known: String,
}

impl UnknownName {
    pub(crate) fn find<T: Copy>(
        all: &[T],
        text: &str,
        name: impl Fn(T) -> &'static str,
    ) -> Result<T, Self> {
        all.iter().copied().find(|&one| name(one) == text).ok_or_else(|| Self {
            text: text.chars().take(40).collect(),
            known: all.iter().map(|&one| name(one)).collect::<Vec<_>>().join(", "),
        })
    }
}

/// What a caller may do in its workspace, least first: viewers read, members run, owners
/// configure. Each may do what those before it may.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Reads.
    Viewer,
    /// Runs.
    Member,
    /// Configures.
    Owner,
}

impl Role {
    /// All of them, least first.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Member, Self::Owner];

    /// The name in JSON, flags and claims.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Member => "member",
            Self::Owner => "owner",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        UnknownName::find(&Self::ALL, text, Self::as_str)
    }
}

/// Whose things an operation is about, and so who can see them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Those of one workspace.
    Workspace,
    /// What is the same for all workspaces and shows none of them.
    Shared,
    /// The host's own; only callers that are bound to no workspace.
    Host,
}

macro_rules! operations {
    ($($variant:ident = $name:literal, $role:ident, $reach:ident, $doc:literal;)*) => {
        /// One thing that a caller can do: the unit of rights, of audit and of metrics.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum Operation {
            $(#[doc = $doc] $variant,)*
        }

        impl Operation {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name in tokens, audit records and metrics.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// The least role that may do it.
            pub fn least_role(self) -> Role {
                match self { $(Self::$variant => Role::$role),* }
            }

            /// Whose things it is about.
            pub fn reach(self) -> Reach {
                match self { $(Self::$variant => Reach::$reach),* }
            }

            /// What it does, in a few words.
            pub fn summary(self) -> &'static str {
                match self { $(Self::$variant => $doc),* }
            }
        }
    };
}

operations! {
    SandboxCreate = "sandbox_create", Member, Workspace, "Create a sandbox.";
    SandboxList = "sandbox_list", Viewer, Workspace, "List and watch sandboxes.";
    SandboxGet = "sandbox_get", Viewer, Workspace, "See one sandbox.";
    SandboxUpdate = "sandbox_update", Member, Workspace, "Change a sandbox's labels, times or network.";
    MountAttach = "mount_attach", Member, Workspace, "Share a directory of the host live with a sandbox that runs.";
    MountDetach = "mount_detach", Member, Workspace, "Take a directory that is shared live away.";
    SandboxDelete = "sandbox_delete", Member, Workspace, "Destroy a sandbox.";
    SandboxStart = "sandbox_start", Member, Workspace, "Start a stopped sandbox.";
    SandboxStop = "sandbox_stop", Member, Workspace, "Stop a sandbox.";
    SandboxPause = "sandbox_pause", Member, Workspace, "Pause a sandbox.";
    SandboxResume = "sandbox_resume", Member, Workspace, "Resume a paused sandbox.";
    SandboxHibernate = "sandbox_hibernate", Member, Workspace, "Bring a sandbox's machine to disk.";
    SandboxSnapshot = "sandbox_snapshot", Member, Workspace, "Make a snapshot of a sandbox.";
    SandboxFork = "sandbox_fork", Member, Workspace, "Make sandboxes that go on from one that runs.";
    SandboxStats = "sandbox_stats", Viewer, Workspace, "See what a sandbox uses.";
    SandboxLogs = "sandbox_logs", Viewer, Workspace, "Read a sandbox's log.";
    Exec = "exec", Member, Workspace, "Run a command.";
    ProcessList = "process_list", Viewer, Workspace, "List processes.";
    ProcessGet = "process_get", Viewer, Workspace, "See one process.";
    ProcessOutput = "process_output", Viewer, Workspace, "Read the output of a process.";
    ProcessInput = "process_input", Member, Workspace, "Write to a process.";
    ProcessSignal = "process_signal", Member, Workspace, "Send a signal to a process.";
    ProcessResize = "process_resize", Member, Workspace, "Resize a terminal.";
    FileRead = "file_read", Viewer, Workspace, "Read a file or pack a directory.";
    FileWrite = "file_write", Member, Workspace, "Write a file or unpack a tar.";
    FileStat = "file_stat", Viewer, Workspace, "See a file's metadata.";
    FileList = "file_list", Viewer, Workspace, "List a directory.";
    FileWatch = "file_watch", Viewer, Workspace, "Watch a directory.";
    FileMkdir = "file_mkdir", Member, Workspace, "Make a directory.";
    FileMove = "file_move", Member, Workspace, "Move a file.";
    FileRemove = "file_remove", Member, Workspace, "Remove a file or a directory.";
    ChangesRead = "changes_read", Viewer, Workspace, "See what a sandbox changed in directories that are reviewed.";
    ChangesApply = "changes_apply", Member, Workspace, "Bring a sandbox's changes to the host's directory.";
    ChangesDiscard = "changes_discard", Member, Workspace, "Forget a sandbox's changes.";
    VolumeCreate = "volume_create", Member, Workspace, "Make a volume.";
    VolumeList = "volume_list", Viewer, Workspace, "List volumes.";
    VolumeGet = "volume_get", Viewer, Workspace, "See one volume.";
    VolumeRemove = "volume_remove", Member, Workspace, "Remove a volume.";
    SnapshotList = "snapshot_list", Viewer, Workspace, "List snapshots.";
    SnapshotGet = "snapshot_get", Viewer, Workspace, "See one snapshot.";
    SnapshotRestore = "snapshot_restore", Member, Workspace, "Make a sandbox that goes on from a snapshot.";
    SnapshotRemove = "snapshot_remove", Member, Workspace, "Remove a snapshot.";
    EventList = "event_list", Viewer, Workspace, "List and watch events.";
    ImageList = "image_list", Viewer, Shared, "List images.";
    PolicyShow = "policy_show", Viewer, Shared, "See the policy.";
    PolicyCheck = "policy_check", Viewer, Workspace, "Ask policy for a decision.";
    PolicyReload = "policy_reload", Owner, Host, "Load the policy's files again.";
    TokenCreate = "token_create", Owner, Workspace, "Make a token.";
    TokenList = "token_list", Owner, Workspace, "List tokens.";
    TokenRevoke = "token_revoke", Owner, Workspace, "Revoke a token.";
    KeyCreate = "key_create", Owner, Workspace, "Register a key for signed requests.";
    KeyList = "key_list", Owner, Workspace, "List keys.";
    KeyRevoke = "key_revoke", Owner, Workspace, "Revoke a key.";
    SecretList = "secret_list", Member, Workspace, "List secrets, without values.";
    SecretSet = "secret_set", Owner, Workspace, "Set a secret for every sandbox of the workspace.";
    SecretRemove = "secret_remove", Owner, Workspace, "Remove a secret of the workspace.";
    SandboxSecretSet = "sandbox_secret_set", Member, Workspace, "Set a secret for one sandbox.";
    SandboxSecretRemove = "sandbox_secret_remove", Member, Workspace, "Remove a secret of one sandbox.";
    SecretReset = "secret_reset", Owner, Host, "Give up all secrets of all workspaces.";
    WebhookCreate = "webhook_create", Owner, Workspace, "Subscribe a URL to events.";
    WebhookList = "webhook_list", Owner, Workspace, "List webhooks and their deliveries.";
    WebhookDelete = "webhook_delete", Owner, Workspace, "Remove a webhook.";
    WebhookRedeliver = "webhook_redeliver", Owner, Workspace, "Deliver an event again.";
    AuditRead = "audit_read", Owner, Workspace, "Read the audit log.";
    AuditExport = "audit_export", Owner, Host, "Export the audit log with its hashes.";
    AuditVerify = "audit_verify", Owner, Host, "Verify the audit log.";
    AuditCheckpoint = "audit_checkpoint", Owner, Host, "Sign the audit log's head.";
    Doctor = "doctor", Viewer, Host, "Examine the host.";
    Metrics = "metrics", Viewer, Host, "Read the server's metrics.";
    Whoami = "whoami", Viewer, Shared, "See who the caller is.";
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Operation {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        UnknownName::find(Self::ALL, text, Self::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_has_one_name_everywhere() {
        for &operation in Operation::ALL {
            assert_eq!(serde_json::to_value(operation).unwrap(), operation.as_str());
            assert_eq!(operation.as_str().parse(), Ok(operation));
        }
    }

    #[test]
    fn roles_are_ordered() {
        assert!(Role::Viewer < Role::Member && Role::Member < Role::Owner);
        for role in Role::ALL {
            assert_eq!(serde_json::to_value(role).unwrap(), role.as_str());
            assert_eq!(role.as_str().parse(), Ok(role));
        }
    }

    #[test]
    fn an_unknown_name_is_told_with_those_that_are_known() {
        let error = "root".parse::<Role>().unwrap_err();
        assert_eq!(error.to_string(), "`root` is not one of viewer, member, owner");
    }
}
