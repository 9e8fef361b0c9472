//! Records of the audit log, as this crate writes them.

use access::Caller;
use api::{AuditDecision, Operation, PolicyRef, Sandbox, Timestamp};
use audit::{Digest, Entry};

use crate::config::Provenance;

/// Who does what nobody asked for.
pub(crate) const SUPERVISOR: &str = "supervisor";

/// Something that a caller asks for.
pub(crate) fn entry(caller: &Caller, operation: Operation, by: &Provenance) -> Entry {
    let mut entry = Entry::allowed(caller.actor(), operation.as_str());
    entry.workspace = caller.workspace.clone();
    entry.request_digest = by.request_digest.as_deref().and_then(|text| text.parse().ok());
    if let Some(signature) = &by.signature {
        entry = entry
            .with_detail("signed_with", signature.key_id.clone())
            .with_detail("signed_digest", signature.digest.clone());
    }
    if !by.remote.is_empty() {
        entry = entry.with_detail("remote", by.remote.clone());
    }
    entry
}

/// Something that was refused to a caller and is no operation.
pub(crate) fn denied(caller: &Caller, what: &str, outcome: &str) -> Entry {
    let mut entry = Entry::denied(caller.actor(), what, outcome);
    entry.workspace = caller.workspace.clone();
    entry
}

/// Something that this process does by itself.
pub(crate) fn own(operation: &str) -> Entry {
    Entry::allowed(SUPERVISOR, operation)
}

/// What else an entry tells.
pub(crate) trait Tell: Sized {
    fn about(self, sandbox: &Sandbox) -> Self;
    fn decided(self, policy: &PolicyRef, decision: AuditDecision, outcome: &str) -> Self;
    fn with_task(self, digest: [u8; 32]) -> Self;
    fn now(self) -> Self;
}

impl Tell for Entry {
    fn about(self, sandbox: &Sandbox) -> Self {
        self.in_workspace(sandbox.workspace.clone()).on_sandbox(sandbox.id.clone())
    }

    fn decided(self, policy: &PolicyRef, decision: AuditDecision, outcome: &str) -> Self {
        Self {
            decision,
            rule: Some(policy.rule.clone()),
            generation: Some(policy.generation),
            ..self.with_outcome(outcome)
        }
    }

    fn with_task(self, digest: [u8; 32]) -> Self {
        Self { task_digest: Some(Digest::from(digest)), ..self }
    }

    fn now(self) -> Self {
        Self { at: Timestamp::now(), ..self }
    }
}

/// A digest in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
