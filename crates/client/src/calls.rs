//! One method for each route. `sandbox` is an id or a name everywhere, `process` a name.

use api::*;
use http::StatusCode;

use crate::request::collect;
use crate::route::route;
use crate::transfer::{self, Download, Upload};
use crate::{Client, Error, Events, Output, Session};

const OCTETS: &str = "application/octet-stream";
const TAR: &str = "application/x-tar";
/// The longest answer to a question about readiness.
const MAX_READY: usize = 64 << 10;

/// The route of this name, found when this is compiled.
macro_rules! call {
    ($client:ident, $id:literal $(, $parameter:expr)*) => {
        $client.request(const { route($id) }, &[$($parameter),*])
    };
}

/// The server.
///
/// Every method fails with [`Error::Problem`] where the server refuses, and with the other kinds
/// where it cannot be reached or understood.
#[allow(clippy::missing_errors_doc, reason = "it is said once, above")]
impl Client {
    /// Whether the server answers.
    pub async fn health(&self) -> Result<Health, Error> {
        call!(self, "health").value().await
    }

    /// Whether the server takes work, and what is missing where it does not.
    pub async fn ready(&self) -> Result<Ready, Error> {
        let response = call!(self, "ready").answer(&[StatusCode::SERVICE_UNAVAILABLE]).await?;
        let bytes = collect(response.into_body(), MAX_READY).await?;
        serde_json::from_slice(&bytes).map_err(Error::malformed)
    }

    /// The OpenAPI document.
    pub async fn openapi(&self) -> Result<serde_json::Value, Error> {
        call!(self, "openapi").value().await
    }

    /// What the server is.
    pub async fn version(&self) -> Result<Version, Error> {
        call!(self, "version").value().await
    }

    /// The server's metrics, as OpenMetrics text.
    pub async fn metrics(&self) -> Result<String, Error> {
        call!(self, "metrics").text("application/openmetrics-text").await
    }

    /// Who the server takes us for.
    pub async fn whoami(&self) -> Result<CallerInfo, Error> {
        call!(self, "whoami").value().await
    }

    /// Everything that a sandbox needs, looked at.
    pub async fn doctor(&self) -> Result<Doctor, Error> {
        call!(self, "doctor").value().await
    }

    /// Creates a sandbox; it is ready when this returns, unless `wait` is false.
    pub async fn create_sandbox(&self, create: &CreateSandbox) -> Result<Sandbox, Error> {
        call!(self, "create_sandbox").json(create)?.value().await
    }

    /// A page of sandboxes, newest first.
    pub async fn list_sandboxes(&self, query: &ListSandboxes) -> Result<Page<Sandbox>, Error> {
        call!(self, "list_sandboxes").query(query).value().await
    }

    /// The sandboxes there are, and then each that changes.
    pub async fn watch_sandboxes(&self, query: &ListSandboxes) -> Result<Events<Sandbox>, Error> {
        call!(self, "list_sandboxes").query(query).events().await
    }

    /// One sandbox.
    pub async fn get_sandbox(&self, sandbox: &str) -> Result<Sandbox, Error> {
        call!(self, "get_sandbox", sandbox).value().await
    }

    /// Changes a sandbox; with `version`, only where it still has that one.
    pub async fn update_sandbox(
        &self,
        sandbox: &str,
        update: &UpdateSandbox,
        version: Option<u64>,
    ) -> Result<Sandbox, Error> {
        call!(self, "update_sandbox", sandbox).if_match(version).json(update)?.value().await
    }

    /// Shares a directory of the host live with a sandbox that runs.
    pub async fn attach_mount(&self, sandbox: &str, mount: &Mount) -> Result<Sandbox, Error> {
        call!(self, "attach_mount", sandbox).json(mount)?.value().await
    }

    /// Takes a directory that is shared live away.
    pub async fn detach_mount(&self, sandbox: &str, query: &MountQuery) -> Result<Sandbox, Error> {
        call!(self, "detach_mount", sandbox).query(query).value().await
    }

    /// Destroys a sandbox, in whatever state. With `wait`, nothing is left of it when this
    /// returns.
    pub async fn delete_sandbox(&self, sandbox: &str, wait: bool) -> Result<Sandbox, Error> {
        call!(self, "delete_sandbox", sandbox).query(&DeleteQuery { wait }).value().await
    }

    /// Gives a stopped or failed sandbox a new machine.
    pub async fn start_sandbox(&self, sandbox: &str) -> Result<Sandbox, Error> {
        call!(self, "start_sandbox", sandbox).value().await
    }

    /// Takes a sandbox's machine away; its record stays.
    pub async fn stop_sandbox(&self, sandbox: &str) -> Result<Sandbox, Error> {
        call!(self, "stop_sandbox", sandbox).value().await
    }

    /// Lets a sandbox's machine stand still.
    pub async fn pause_sandbox(&self, sandbox: &str) -> Result<Sandbox, Error> {
        call!(self, "pause_sandbox", sandbox).value().await
    }

    /// Lets a sandbox go on that is paused or hibernated.
    pub async fn resume_sandbox(&self, sandbox: &str) -> Result<Sandbox, Error> {
        call!(self, "resume_sandbox", sandbox).value().await
    }

    /// Brings a sandbox's machine to disk. It goes on from there when it is resumed, or with the
    /// next call that needs it.
    pub async fn hibernate_sandbox(&self, sandbox: &str) -> Result<Sandbox, Error> {
        call!(self, "hibernate_sandbox", sandbox).value().await
    }

    /// Makes a snapshot of a sandbox.
    pub async fn create_snapshot(
        &self,
        sandbox: &str,
        create: &CreateSnapshot,
    ) -> Result<Snapshot, Error> {
        call!(self, "create_snapshot", sandbox).json(create)?.value().await
    }

    /// Makes sandboxes that go on from this one.
    pub async fn fork_sandbox(
        &self,
        sandbox: &str,
        fork: &ForkSandbox,
    ) -> Result<ForkedSandboxes, Error> {
        call!(self, "fork_sandbox", sandbox).json(fork)?.value().await
    }

    /// The snapshots of a workspace, the newest first.
    pub async fn list_snapshots(&self, query: &SnapshotQuery) -> Result<SnapshotList, Error> {
        call!(self, "list_snapshots").query(query).value().await
    }

    /// One snapshot.
    pub async fn get_snapshot(
        &self,
        snapshot: &str,
        query: &SnapshotQuery,
    ) -> Result<Snapshot, Error> {
        call!(self, "get_snapshot", snapshot).query(query).value().await
    }

    /// Removes a snapshot with all that is in it.
    pub async fn remove_snapshot(
        &self,
        snapshot: &str,
        query: &SnapshotQuery,
    ) -> Result<(), Error> {
        call!(self, "remove_snapshot", snapshot).query(query).done().await
    }

    /// Makes a sandbox that goes on from a snapshot.
    pub async fn restore_snapshot(
        &self,
        snapshot: &str,
        query: &SnapshotQuery,
        restore: &RestoreSnapshot,
    ) -> Result<Sandbox, Error> {
        call!(self, "restore_snapshot", snapshot).query(query).json(restore)?.value().await
    }

    /// What a sandbox uses.
    pub async fn sandbox_stats(&self, sandbox: &str) -> Result<Stats, Error> {
        call!(self, "sandbox_stats", sandbox).value().await
    }

    /// What a sandbox uses, every second.
    pub async fn watch_stats(&self, sandbox: &str) -> Result<Events<Stats>, Error> {
        call!(self, "sandbox_stats", sandbox).events().await
    }

    /// A page of a sandbox's log.
    pub async fn sandbox_logs(
        &self,
        sandbox: &str,
        query: &LogQuery,
    ) -> Result<Page<LogRecord>, Error> {
        call!(self, "sandbox_logs", sandbox).query(query).value().await
    }

    /// A sandbox's log, as it grows.
    pub async fn follow_logs(
        &self,
        sandbox: &str,
        query: &LogQuery,
    ) -> Result<Events<LogRecord>, Error> {
        call!(self, "sandbox_logs", sandbox).query(query).events().await
    }

    /// Runs a command to its end and gives its output, up to [`Exec::max_output_bytes`].
    pub async fn exec(&self, sandbox: &str, exec: &Exec) -> Result<ExecResult, Error> {
        let exec = Exec { detach: false, ..exec.clone() };
        call!(self, "exec", sandbox).json(&exec)?.value().await
    }

    /// Starts a command and leaves it.
    pub async fn exec_detached(&self, sandbox: &str, exec: &Exec) -> Result<Process, Error> {
        let exec = Exec { detach: true, ..exec.clone() };
        call!(self, "exec", sandbox).json(&exec)?.value().await
    }

    /// Runs a command and gives its output as it comes. Dropping the stream ends the command.
    pub async fn exec_stream(&self, sandbox: &str, exec: &Exec) -> Result<Events<Output>, Error> {
        let exec = Exec { detach: false, ..exec.clone() };
        call!(self, "exec", sandbox).json(&exec)?.events().await
    }

    /// Runs a command, joined to this program: output, input, signals, the terminal's size.
    pub async fn exec_session(&self, sandbox: &str, exec: &Exec) -> Result<Session, Error> {
        Session::open(call!(self, "exec_websocket", sandbox), Some(exec)).await
    }

    /// Runs a command in a terminal, joined to this program. Where the query has a command,
    /// `exec` is not sent.
    pub async fn pty_session(
        &self,
        sandbox: &str,
        query: &PtyQuery,
        exec: &Exec,
    ) -> Result<Session, Error> {
        let first = query.cmd.is_none().then_some(exec);
        Session::open(call!(self, "pty_websocket", sandbox).query(query), first).await
    }

    /// A page of a sandbox's processes, newest first.
    pub async fn list_processes(
        &self,
        sandbox: &str,
        query: &PageQuery,
    ) -> Result<Page<Process>, Error> {
        call!(self, "list_processes", sandbox).query(query).value().await
    }

    /// One process.
    pub async fn get_process(&self, sandbox: &str, process: &str) -> Result<Process, Error> {
        call!(self, "get_process", sandbox, process).value().await
    }

    /// What a detached process has written, from an offset on.
    pub async fn process_output(
        &self,
        sandbox: &str,
        process: &str,
        query: &AttachQuery,
    ) -> Result<AttachResult, Error> {
        call!(self, "process_output", sandbox, process).query(query).value().await
    }

    /// What a detached process has written, and then what it writes.
    pub async fn follow_process(
        &self,
        sandbox: &str,
        process: &str,
        query: &AttachQuery,
    ) -> Result<Events<Output>, Error> {
        call!(self, "process_output", sandbox, process).query(query).events().await
    }

    /// Joins a detached process to this program. Dropping the session leaves the process.
    pub async fn attach_session(
        &self,
        sandbox: &str,
        process: &str,
        query: &AttachQuery,
    ) -> Result<Session, Error> {
        let request = call!(self, "attach_websocket", sandbox, process).query(query);
        Session::open(request, None).await
    }

    /// Writes to a detached process; with `end`, its stdin ends behind it.
    pub async fn process_stdin(
        &self,
        sandbox: &str,
        process: &str,
        bytes: impl Into<bytes::Bytes>,
        end: bool,
    ) -> Result<(), Error> {
        let request = call!(self, "process_stdin", sandbox, process).query(&StdinQuery { end });
        request.bytes(OCTETS, bytes.into()).done().await
    }

    /// Sends a signal to a process, by its Linux number.
    pub async fn signal_process(
        &self,
        sandbox: &str,
        process: &str,
        signal: i32,
    ) -> Result<(), Error> {
        call!(self, "signal_process", sandbox, process).json(&Signal { signal })?.done().await
    }

    /// Gives a process's terminal a new size.
    pub async fn resize_process(
        &self,
        sandbox: &str,
        process: &str,
        size: WindowSize,
    ) -> Result<(), Error> {
        call!(self, "resize_process", sandbox, process).json(&size)?.done().await
    }

    /// A file's content.
    pub async fn read_file(&self, sandbox: &str, query: &ReadQuery) -> Result<Download, Error> {
        call!(self, "read_file", sandbox).query(query).raw(OCTETS).await.map(Download::new)
    }

    /// A part of a file: from byte `from`, to byte `to` (included) or the end.
    pub async fn read_file_range(
        &self,
        sandbox: &str,
        query: &ReadQuery,
        from: u64,
        to: Option<u64>,
    ) -> Result<Download, Error> {
        let request = call!(self, "read_file", sandbox).query(query).range(from, to);
        request.raw(OCTETS).await.map(Download::new)
    }

    /// Writes a file.
    pub async fn write_file(
        &self,
        sandbox: &str,
        query: &WriteQuery,
        content: impl Into<Upload>,
    ) -> Result<Transferred, Error> {
        let request = call!(self, "write_file", sandbox).query(query);
        transfer::send(request, OCTETS, content.into()).await
    }

    /// Removes a file, or a directory with all that is in it.
    pub async fn remove_file(&self, sandbox: &str, query: &PathQuery) -> Result<(), Error> {
        call!(self, "remove_file", sandbox).query(query).done().await
    }

    /// A file's metadata.
    pub async fn stat_file(&self, sandbox: &str, query: &StatQuery) -> Result<FileInfo, Error> {
        call!(self, "stat_file", sandbox).query(query).value().await
    }

    /// A directory's entries.
    pub async fn list_files(
        &self,
        sandbox: &str,
        query: &ListFilesQuery,
    ) -> Result<FileList, Error> {
        call!(self, "list_files", sandbox).query(query).value().await
    }

    /// Changes below a path. The first event says that the watches are in place.
    pub async fn watch_files(
        &self,
        sandbox: &str,
        query: &WatchQuery,
    ) -> Result<Events<WatchEvent>, Error> {
        call!(self, "watch_files", sandbox).query(query).events().await
    }

    /// Makes a directory.
    pub async fn make_directory(
        &self,
        sandbox: &str,
        directory: &MakeDirectory,
    ) -> Result<(), Error> {
        call!(self, "make_directory", sandbox).json(directory)?.done().await
    }

    /// Moves a file or directory.
    pub async fn move_file(&self, sandbox: &str, moved: &MoveFile) -> Result<(), Error> {
        call!(self, "move_file", sandbox).json(moved)?.done().await
    }

    /// Changes of sandboxes that wait to be applied or discarded, the newest first.
    pub async fn list_changes(&self) -> Result<ChangeSets, Error> {
        call!(self, "list_changes").value().await
    }

    /// What a sandbox changed in directories that are reviewed; of one that runs, as it is now.
    pub async fn sandbox_changes(
        &self,
        sandbox: &str,
        query: &ChangesQuery,
    ) -> Result<ChangeSets, Error> {
        call!(self, "sandbox_changes", sandbox).query(query).value().await
    }

    /// The changes of one directory, as they were looked at last.
    pub async fn diff_changes(&self, sandbox: &str, query: &DiffQuery) -> Result<Diff, Error> {
        call!(self, "diff_changes", sandbox).query(query).value().await
    }

    /// Brings changes to the host's directory.
    pub async fn apply_changes(
        &self,
        sandbox: &str,
        apply: &ApplyChanges,
    ) -> Result<AppliedChanges, Error> {
        call!(self, "apply_changes", sandbox).json(apply)?.value().await
    }

    /// Forgets changes.
    pub async fn discard_changes(
        &self,
        sandbox: &str,
        discard: &DiscardChanges,
    ) -> Result<(), Error> {
        call!(self, "discard_changes", sandbox).json(discard)?.done().await
    }

    /// A directory, or one file, as a tar.
    pub async fn pack_files(&self, sandbox: &str, query: &PathQuery) -> Result<Download, Error> {
        call!(self, "pack_files", sandbox).query(query).raw(TAR).await.map(Download::new)
    }

    /// Unpacks a tar below a directory.
    pub async fn unpack_files(
        &self,
        sandbox: &str,
        query: &TarInQuery,
        tar: impl Into<Upload>,
    ) -> Result<Transferred, Error> {
        let request = call!(self, "unpack_files", sandbox).query(query);
        transfer::send(request, TAR, tar.into()).await
    }

    /// A page of what happened, oldest first.
    pub async fn list_events(&self, query: &EventQuery) -> Result<Page<Event>, Error> {
        call!(self, "list_events").query(query).value().await
    }

    /// What happens from now on, or from `since` on.
    pub async fn follow_events(&self, query: &EventQuery) -> Result<Events<Event>, Error> {
        call!(self, "list_events").query(query).events().await
    }

    /// A page of the host's images.
    pub async fn list_images(&self, query: &PageQuery) -> Result<Page<Image>, Error> {
        call!(self, "list_images").query(query).value().await
    }

    /// Makes a volume: a disk that outlives sandboxes.
    pub async fn create_volume(&self, create: &CreateVolume) -> Result<Volume, Error> {
        call!(self, "create_volume").json(create)?.value().await
    }

    /// The volumes of a workspace, by name.
    pub async fn list_volumes(&self, query: &VolumeQuery) -> Result<VolumeList, Error> {
        call!(self, "list_volumes").query(query).value().await
    }

    /// One volume.
    pub async fn get_volume(&self, volume: &str, query: &VolumeQuery) -> Result<Volume, Error> {
        call!(self, "get_volume", volume).query(query).value().await
    }

    /// Removes a volume with all that is on it, where no sandbox has it.
    pub async fn remove_volume(&self, volume: &str, query: &VolumeQuery) -> Result<(), Error> {
        call!(self, "remove_volume", volume).query(query).done().await
    }

    /// The secrets of a workspace and of its sandboxes, without values.
    pub async fn list_secrets(&self, query: &SecretQuery) -> Result<SecretList, Error> {
        call!(self, "list_secrets").query(query).value().await
    }

    /// Sets a service's secret for every sandbox that is created from now on.
    pub async fn set_secret(&self, service: &str, set: &SetSecret) -> Result<StoredSecret, Error> {
        call!(self, "set_secret", service).json(set)?.value().await
    }

    /// Sets a service's secret for one sandbox, at once.
    pub async fn set_sandbox_secret(
        &self,
        sandbox: &str,
        service: &str,
        set: &SetSecret,
    ) -> Result<StoredSecret, Error> {
        call!(self, "set_sandbox_secret", sandbox, service).json(set)?.value().await
    }

    /// Removes a service's secret from the workspace.
    pub async fn remove_secret(&self, service: &str, query: &SecretQuery) -> Result<(), Error> {
        call!(self, "remove_secret", service).query(query).done().await
    }

    /// Removes a service's secret from one sandbox.
    pub async fn remove_sandbox_secret(&self, sandbox: &str, service: &str) -> Result<(), Error> {
        call!(self, "remove_sandbox_secret", sandbox, service).done().await
    }

    /// Gives up all secrets of all workspaces.
    pub async fn reset_secrets(&self) -> Result<(), Error> {
        call!(self, "reset_secrets").done().await
    }

    /// Makes a token. Its secret is in the answer and nowhere else.
    pub async fn create_token(&self, create: &CreateToken) -> Result<CreatedToken, Error> {
        call!(self, "create_token").json(create)?.value().await
    }

    /// A page of tokens, newest first.
    pub async fn list_tokens(&self, query: &TokenQuery) -> Result<Page<Token>, Error> {
        call!(self, "list_tokens").query(query).value().await
    }

    /// Revokes a token, at once and for good.
    pub async fn revoke_token(&self, id: &str) -> Result<(), Error> {
        call!(self, "revoke_token", id).done().await
    }

    /// Registers a public key for signed requests.
    pub async fn create_key(&self, create: &CreateKey) -> Result<Key, Error> {
        call!(self, "create_key").json(create)?.value().await
    }

    /// A page of registered keys, newest first.
    pub async fn list_keys(&self, query: &TokenQuery) -> Result<Page<Key>, Error> {
        call!(self, "list_keys").query(query).value().await
    }

    /// Revokes a key, at once and for good.
    pub async fn revoke_key(&self, id: &str) -> Result<(), Error> {
        call!(self, "revoke_key", id).done().await
    }

    /// The policy in force.
    pub async fn show_policy(&self) -> Result<PolicyInfo, Error> {
        call!(self, "show_policy").value().await
    }

    /// What policy would decide.
    pub async fn check_policy(&self, check: &PolicyCheck) -> Result<PolicyDecision, Error> {
        call!(self, "check_policy").json(check)?.value().await
    }

    /// Loads the policy's files again.
    pub async fn reload_policy(&self) -> Result<PolicyInfo, Error> {
        call!(self, "reload_policy").value().await
    }

    /// A page of the audit log.
    pub async fn list_audit(&self, query: &AuditQuery) -> Result<Page<AuditRecord>, Error> {
        call!(self, "list_audit").query(query).value().await
    }

    /// The audit log, one JSON object a line.
    pub async fn export_audit(&self, range: &AuditRange) -> Result<Download, Error> {
        let request = call!(self, "export_audit").query(range);
        request.raw("application/jsonl").await.map(Download::new)
    }

    /// Verifies the audit log.
    pub async fn verify_audit(&self, range: &AuditRange) -> Result<AuditReport, Error> {
        call!(self, "verify_audit").query(range).value().await
    }

    /// Signs the head of the audit log.
    pub async fn checkpoint_audit(&self) -> Result<Checkpoint, Error> {
        call!(self, "checkpoint_audit").value().await
    }

    /// Subscribes a URL to events. The secret is in the answer and nowhere else.
    pub async fn create_webhook(&self, create: &CreateWebhook) -> Result<CreatedWebhook, Error> {
        call!(self, "create_webhook").json(create)?.value().await
    }

    /// A page of subscriptions, newest first.
    pub async fn list_webhooks(&self, query: &PageQuery) -> Result<Page<Webhook>, Error> {
        call!(self, "list_webhooks").query(query).value().await
    }

    /// One subscription.
    pub async fn get_webhook(&self, id: &str) -> Result<Webhook, Error> {
        call!(self, "get_webhook", id).value().await
    }

    /// Removes a subscription.
    pub async fn delete_webhook(&self, id: &str) -> Result<(), Error> {
        call!(self, "delete_webhook", id).done().await
    }

    /// A page of a subscription's deliveries, newest first.
    pub async fn list_deliveries(
        &self,
        webhook: &str,
        query: &DeliveryQuery,
    ) -> Result<Page<Delivery>, Error> {
        call!(self, "list_deliveries", webhook).query(query).value().await
    }

    /// Tries a delivery again.
    pub async fn redeliver(&self, webhook: &str, delivery: &str) -> Result<Delivery, Error> {
        call!(self, "redeliver", webhook, delivery).value().await
    }
}
