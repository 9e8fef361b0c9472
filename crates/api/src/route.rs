//! The paths of the API: what is routed, who may call it, what it takes and gives.
//!
//! The server routes exactly [`ROUTES`] and the document is made of them. `{sandbox}` is an id or
//! a name; `{process}` a process's name. Paths of the guest are always in the query (`?path=`),
//! so that there is one parser for them and none for slashes within a segment.
//!
//! A route that has both JSON and server-sent events chooses by `Accept: text/event-stream`.
//! A GET route without `Upgrade: websocket` that speaks WebSocket only answers 426.

use std::borrow::Cow;
use std::fmt;

use utoipa::openapi::path::{Parameter, ParameterIn};
use utoipa::{IntoParams, ToSchema};

use crate::bound::Schemas;
use crate::*;

/// A method of HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    /// Reads.
    Get,
    /// Does something.
    Post,
    /// Sets content.
    Put,
    /// Changes.
    Patch,
    /// Removes.
    Delete,
}

impl Method {
    /// In capitals.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anyone, without credentials.
    Public,
    /// Whoever may do this.
    Needs(Operation),
}

/// A type as the document has it.
#[derive(Clone, Copy)]
pub struct SchemaOf {
    pub(crate) name: fn() -> Cow<'static, str>,
    pub(crate) collect: fn(&mut Schemas),
}

impl SchemaOf {
    const fn new<T: ToSchema>() -> Self {
        Self {
            name: T::name,
            collect: |schemas| {
                schemas.push((T::name().into_owned(), T::schema()));
                T::schemas(schemas);
            },
        }
    }
}

impl fmt::Debug for SchemaOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&(self.name)())
    }
}

/// What a request or an answer carries.
#[derive(Debug, Clone, Copy)]
pub enum Body {
    /// Nothing.
    Empty,
    /// JSON of this type.
    Json(SchemaOf),
    /// JSON of this type; without a body it is the default.
    OptionalJson(SchemaOf),
    /// JSON, or server-sent events whose data are JSON of the second type.
    JsonOrEvents(SchemaOf, SchemaOf),
    /// Server-sent events whose data are JSON of this type.
    Events(SchemaOf),
    /// Bytes, as `application/octet-stream`.
    Octets,
    /// A tar, as `application/x-tar`.
    Tar,
    /// JSON objects of this type, one a line, as `application/jsonl`.
    JsonLines(SchemaOf),
    /// OpenMetrics text.
    Metrics,
    /// A JSON object that has no type here: the document itself.
    Document,
    /// None: the connection becomes a WebSocket.
    WebSocket,
}

/// One method of one path.
#[derive(Clone, Copy)]
pub struct Route {
    /// The method.
    pub method: Method,
    /// The path, with its parameters in braces, as axum writes them too.
    pub path: &'static str,
    /// A name of its own, in snake_case.
    pub id: &'static str,
    /// Who may call it.
    pub access: Access,
    /// What it does.
    pub summary: &'static str,
    /// What it takes.
    pub request: Body,
    /// What it gives, by status.
    pub answers: &'static [(u16, Body)],
    /// It takes an Idempotency-Key header.
    pub idempotent: bool,
    /// It gives an ETag and takes If-Match, or If-None-Match where it reads.
    pub versioned: bool,
    /// Problems beyond those that every route has.
    pub problems: &'static [Code],
    pub(crate) query: fn() -> Vec<Parameter>,
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

impl Route {
    /// The names of the path's parameters, in order.
    pub fn parameters(&self) -> impl Iterator<Item = &'static str> {
        self.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
    }

    /// Query parameters that the route takes; all others are refused.
    pub fn query(&self) -> Vec<Parameter> {
        (self.query)()
    }
}

fn no_query() -> Vec<Parameter> {
    Vec::new()
}

fn query_of<T: IntoParams>() -> Vec<Parameter> {
    T::into_params(|| Some(ParameterIn::Query))
}

const PUBLIC: Route = Route {
    method: Method::Get,
    path: "",
    id: "",
    access: Access::Public,
    summary: "",
    request: Body::Empty,
    answers: &[],
    idempotent: false,
    versioned: false,
    problems: &[],
    query: no_query,
};

const fn public(path: &'static str, id: &'static str, summary: &'static str) -> Route {
    Route { path, id, summary, ..PUBLIC }
}

const fn route(
    method: Method,
    path: &'static str,
    id: &'static str,
    operation: Operation,
    summary: &'static str,
) -> Route {
    Route { method, path, id, access: Access::Needs(operation), summary, ..PUBLIC }
}

impl Route {
    const fn takes(self, request: Body) -> Self {
        Self { request, ..self }
    }

    const fn query_is<T: IntoParams>(self) -> Self {
        Self { query: query_of::<T>, ..self }
    }

    const fn gives(self, answers: &'static [(u16, Body)]) -> Self {
        Self { answers, ..self }
    }

    const fn idempotent(self) -> Self {
        Self { idempotent: true, ..self }
    }

    const fn versioned(self) -> Self {
        Self { versioned: true, ..self }
    }

    const fn may_fail(self, problems: &'static [Code]) -> Self {
        Self { problems, ..self }
    }
}

const fn json<T: ToSchema>() -> Body {
    Body::Json(SchemaOf::new::<T>())
}

const fn json_or_events<T: ToSchema, E: ToSchema>() -> Body {
    Body::JsonOrEvents(SchemaOf::new::<T>(), SchemaOf::new::<E>())
}

use Method::{Delete, Get, Patch, Post, Put};

/// What can go wrong where a guest is asked.
const GUEST: &[Code] =
    &[Code::WrongState, Code::Unsupported, Code::GuestFailed, Code::GuestTimeout];
const GUEST_FILE: &[Code] = &[
    Code::FileNotFound,
    Code::PermissionDenied,
    Code::AlreadyExists,
    Code::WrongState,
    Code::Unsupported,
    Code::GuestFailed,
    Code::GuestTimeout,
    Code::GuestFull,
];
const CHANGES: &[Code] =
    &[Code::PolicyDenied, Code::FileNotFound, Code::WrongState, Code::Busy, Code::GuestFailed];
const MOUNTS: &[Code] = &[
    Code::PolicyDenied,
    Code::FileNotFound,
    Code::AlreadyExists,
    Code::WrongState,
    Code::Unsupported,
    Code::GuestFailed,
    Code::GuestTimeout,
];
const GUEST_PROCESS: &[Code] = &[
    Code::ProcessNotFound,
    Code::WrongState,
    Code::Unsupported,
    Code::GuestFailed,
    Code::GuestTimeout,
];
const LIFECYCLE: &[Code] = &[
    Code::PolicyDenied,
    Code::WrongState,
    Code::IdempotencyInProgress,
    Code::IdempotencyMismatch,
    Code::Unsupported,
    Code::BootFailed,
    Code::GuestFailed,
    Code::Busy,
    Code::EngineUnavailable,
    Code::GuestTimeout,
];

/// What a sandbox that goes on from another may meet.
const MAKES: &[Code] = &[
    Code::PolicyDenied,
    Code::WrongState,
    Code::NameTaken,
    Code::IdempotencyInProgress,
    Code::IdempotencyMismatch,
    Code::Unsupported,
    Code::BootFailed,
    Code::GuestFailed,
    Code::Busy,
    Code::EngineUnavailable,
    Code::GuestTimeout,
];

/// Every method of every path.
pub const ROUTES: &[Route] = &[
    public("/healthz", "health", "Whether the server answers.").gives(&[(200, json::<Health>())]),
    public("/readyz", "ready", "Whether the server takes work; 503 where it does not.")
        .gives(&[(200, json::<Ready>()), (503, json::<Ready>())]),
    public("/openapi.json", "openapi", "This document.").gives(&[(200, Body::Document)]),
    public("/v1/version", "version", "What the server is.").gives(&[(200, json::<Version>())]),
    route(Get, "/metrics", "metrics", Operation::Metrics, "The server's metrics.")
        .gives(&[(200, Body::Metrics)]),
    route(Get, "/v1/whoami", "whoami", Operation::Whoami, "Who the caller is.")
        .gives(&[(200, json::<CallerInfo>())]),
    route(
        Get,
        "/v1/doctor",
        "doctor",
        Operation::Doctor,
        "Everything that a sandbox needs, looked at.",
    )
    .gives(&[(200, json::<Doctor>())]),
    // Sandboxes
    route(
        Post,
        "/v1/sandboxes",
        "create_sandbox",
        Operation::SandboxCreate,
        "Creates a sandbox: 201 when it is ready, 202 at once with `wait: false`.",
    )
    .takes(Body::OptionalJson(SchemaOf::new::<CreateSandbox>()))
    .gives(&[(201, json::<Sandbox>()), (202, json::<Sandbox>())])
    .idempotent()
    .may_fail(&[
        Code::PolicyDenied,
        Code::NameTaken,
        Code::IdempotencyInProgress,
        Code::Unsupported,
        Code::IdempotencyMismatch,
        Code::BootFailed,
        Code::GuestFailed,
        Code::Busy,
        Code::EngineUnavailable,
        Code::GuestTimeout,
    ]),
    route(
        Get,
        "/v1/sandboxes",
        "list_sandboxes",
        Operation::SandboxList,
        "Lists sandboxes, newest first. As server-sent events (`sandbox`), those there are and \
         then each that changes.",
    )
    .query_is::<ListSandboxes>()
    .gives(&[(200, json_or_events::<Page<Sandbox>, Sandbox>())]),
    route(Get, "/v1/sandboxes/{sandbox}", "get_sandbox", Operation::SandboxGet, "One sandbox.")
        .gives(&[(200, json::<Sandbox>()), (304, Body::Empty)])
        .versioned(),
    route(
        Patch,
        "/v1/sandboxes/{sandbox}",
        "update_sandbox",
        Operation::SandboxUpdate,
        "Changes labels, times or network. What is absent stays.",
    )
    .takes(json::<UpdateSandbox>())
    .gives(&[(200, json::<Sandbox>())])
    .versioned()
    .may_fail(&[
        Code::PolicyDenied,
        Code::WrongState,
        Code::PreconditionFailed,
        Code::Unsupported,
    ]),
    route(
        Post,
        "/v1/sandboxes/{sandbox}/mounts",
        "attach_mount",
        Operation::MountAttach,
        "Shares a directory of the host live with a sandbox that runs. Its `mode` is `live`; tasks \
         that run see it too.",
    )
    .takes(json::<Mount>())
    .gives(&[(200, json::<Sandbox>())])
    .may_fail(MOUNTS),
    route(
        Delete,
        "/v1/sandboxes/{sandbox}/mounts",
        "detach_mount",
        Operation::MountDetach,
        "Takes a directory that is shared live away. Tasks that have files of it open get errors.",
    )
    .query_is::<MountQuery>()
    .gives(&[(200, json::<Sandbox>())])
    .may_fail(MOUNTS),
    route(
        Delete,
        "/v1/sandboxes/{sandbox}",
        "delete_sandbox",
        Operation::SandboxDelete,
        "Destroys a sandbox, in whatever state: 200 when nothing is left, 202 at once with \
         `wait=false`.",
    )
    .query_is::<DeleteQuery>()
    .gives(&[(200, json::<Sandbox>()), (202, json::<Sandbox>())]),
    route(
        Post,
        "/v1/sandboxes/{sandbox}/start",
        "start_sandbox",
        Operation::SandboxStart,
        "Gives a stopped or failed sandbox a new machine.",
    )
    .gives(&[(200, json::<Sandbox>())])
    .idempotent()
    .may_fail(LIFECYCLE),
    route(
        Post,
        "/v1/sandboxes/{sandbox}/stop",
        "stop_sandbox",
        Operation::SandboxStop,
        "Takes a sandbox's machine away; its record stays.",
    )
    .gives(&[(200, json::<Sandbox>())])
    .idempotent()
    .may_fail(LIFECYCLE),
    route(
        Post,
        "/v1/sandboxes/{sandbox}/pause",
        "pause_sandbox",
        Operation::SandboxPause,
        "Lets a sandbox's machine stand still.",
    )
    .gives(&[(200, json::<Sandbox>())])
    .idempotent()
    .may_fail(LIFECYCLE),
    route(
        Post,
        "/v1/sandboxes/{sandbox}/resume",
        "resume_sandbox",
        Operation::SandboxResume,
        "Lets a sandbox go on that is paused or hibernated.",
    )
    .gives(&[(200, json::<Sandbox>())])
    .idempotent()
    .may_fail(LIFECYCLE),
    route(
        Post,
        "/v1/sandboxes/{sandbox}/hibernate",
        "hibernate_sandbox",
        Operation::SandboxHibernate,
        "Brings a sandbox's machine to disk, and frees its memory. It goes on from there when it is \
         resumed, or with the next request that needs it. Commands that are attached end; those that \
         are detached go on.",
    )
    .gives(&[(200, json::<Sandbox>())])
    .idempotent()
    .may_fail(LIFECYCLE),
    route(
        Post,
        "/v1/sandboxes/{sandbox}/snapshot",
        "create_snapshot",
        Operation::SandboxSnapshot,
        "Makes a snapshot of a sandbox that runs: of its memory and its scratch disk. It holds what \
         the sandbox held, what was given to commands in their environment included. The sandbox \
         stands still meanwhile, and goes on.",
    )
    .takes(Body::OptionalJson(SchemaOf::new::<CreateSnapshot>()))
    .gives(&[(201, json::<Snapshot>())])
    .idempotent()
    .may_fail(MAKES),
    route(
        Post,
        "/v1/sandboxes/{sandbox}/fork",
        "fork_sandbox",
        Operation::SandboxFork,
        "Makes sandboxes that go on from one that runs, each with a clock, randomness, keys and a \
         network of its own. The one that is forked stands still meanwhile, and goes on.",
    )
    .takes(Body::OptionalJson(SchemaOf::new::<ForkSandbox>()))
    .gives(&[(201, json::<ForkedSandboxes>())])
    .idempotent()
    .may_fail(MAKES),
    route(
        Get,
        "/v1/sandboxes/{sandbox}/stats",
        "sandbox_stats",
        Operation::SandboxStats,
        "What a sandbox uses. As server-sent events (`stats`), every second.",
    )
    .gives(&[(200, json_or_events::<Stats, Stats>())]),
    route(
        Get,
        "/v1/sandboxes/{sandbox}/logs",
        "sandbox_logs",
        Operation::SandboxLogs,
        "A sandbox's log. As server-sent events (`log`), it goes on.",
    )
    .query_is::<LogQuery>()
    .gives(&[(200, json_or_events::<Page<LogRecord>, LogRecord>())]),
    // Commands
    route(
        Post,
        "/v1/sandboxes/{sandbox}/exec",
        "exec",
        Operation::Exec,
        "Runs a command: its result (200), its process with `detach: true` (202), or server-sent \
         events `started`, `stdout`, `stderr`, and `exit` or `error`.",
    )
    .takes(json::<Exec>())
    .gives(&[(200, json_or_events::<ExecResult, ExecEvent>()), (202, json::<Process>())])
    .idempotent()
    .may_fail(&[
        Code::PolicyDenied,
        Code::WrongState,
        Code::NameTaken,
        Code::IdempotencyInProgress,
        Code::Unsupported,
        Code::IdempotencyMismatch,
        Code::GuestFailed,
        Code::Busy,
        Code::GuestTimeout,
        Code::GuestFull,
    ]),
    route(
        Get,
        "/v1/sandboxes/{sandbox}/exec",
        "exec_websocket",
        Operation::Exec,
        "Runs a command over WebSocket, sub-protocol `sandforge.exec.v1`.",
    )
    .gives(&[(101, Body::WebSocket)])
    .may_fail(&[Code::WrongState, Code::UpgradeRequired]),
    route(
        Get,
        "/v1/sandboxes/{sandbox}/pty",
        "pty_websocket",
        Operation::Exec,
        "Runs a command in a terminal over WebSocket, sub-protocol `sandforge.exec.v1`.",
    )
    .query_is::<PtyQuery>()
    .gives(&[(101, Body::WebSocket)])
    .may_fail(&[Code::WrongState, Code::UpgradeRequired]),
    route(
        Get,
        "/v1/sandboxes/{sandbox}/processes",
        "list_processes",
        Operation::ProcessList,
        "Lists the processes of a sandbox, newest first: each command that was run.",
    )
    .query_is::<PageQuery>()
    .gives(&[(200, json::<Page<Process>>())])
    .may_fail(GUEST),
    route(
        Get,
        "/v1/sandboxes/{sandbox}/processes/{process}",
        "get_process",
        Operation::ProcessGet,
        "One process.",
    )
    .gives(&[(200, json::<Process>())])
    .may_fail(GUEST_PROCESS),
    route(
        Get,
        "/v1/sandboxes/{sandbox}/processes/{process}/output",
        "process_output",
        Operation::ProcessOutput,
        "Output of a detached process, from an offset on; as JSON, or as server-sent events like \
         those of exec.",
    )
    .query_is::<AttachQuery>()
    .gives(&[(200, json_or_events::<AttachResult, ExecEvent>())])
    .may_fail(GUEST_PROCESS),
    route(
        Get,
        "/v1/sandboxes/{sandbox}/processes/{process}/attach",
        "attach_websocket",
        Operation::ProcessInput,
        "Output and input of a detached process over WebSocket, sub-protocol \
         `sandforge.exec.v1`, without the first message.",
    )
    .query_is::<AttachQuery>()
    .gives(&[(101, Body::WebSocket)])
    .may_fail(&[Code::ProcessNotFound, Code::WrongState, Code::UpgradeRequired]),
    route(
        Post,
        "/v1/sandboxes/{sandbox}/processes/{process}/stdin",
        "process_stdin",
        Operation::ProcessInput,
        "Writes the body to a detached process.",
    )
    .query_is::<StdinQuery>()
    .takes(Body::Octets)
    .gives(&[(204, Body::Empty)])
    .may_fail(GUEST_PROCESS),
    route(
        Post,
        "/v1/sandboxes/{sandbox}/processes/{process}/signal",
        "signal_process",
        Operation::ProcessSignal,
        "Sends a signal to a process.",
    )
    .takes(json::<Signal>())
    .gives(&[(204, Body::Empty)])
    .may_fail(GUEST_PROCESS),
    route(
        Post,
        "/v1/sandboxes/{sandbox}/processes/{process}/resize",
        "resize_process",
        Operation::ProcessResize,
        "Gives a process's terminal a new size.",
    )
    .takes(json::<WindowSize>())
    .gives(&[(204, Body::Empty)])
    .may_fail(GUEST_PROCESS),
    // Files
    route(
        Get,
        "/v1/sandboxes/{sandbox}/files",
        "read_file",
        Operation::FileRead,
        "A file's content, or with a Range header a part of it (206).",
    )
    .query_is::<ReadQuery>()
    .gives(&[(200, Body::Octets), (206, Body::Octets)])
    .may_fail(&[
        Code::FileNotFound,
        Code::PermissionDenied,
        Code::WrongState,
        Code::RangeNotSatisfiable,
        Code::Unsupported,
        Code::GuestFailed,
        Code::GuestTimeout,
    ]),
    route(
        Put,
        "/v1/sandboxes/{sandbox}/files",
        "write_file",
        Operation::FileWrite,
        "Writes the body to a file.",
    )
    .query_is::<WriteQuery>()
    .takes(Body::Octets)
    .gives(&[(200, json::<Transferred>())])
    .may_fail(GUEST_FILE),
    route(
        Delete,
        "/v1/sandboxes/{sandbox}/files",
        "remove_file",
        Operation::FileRemove,
        "Removes a file, or a directory with all that is in it.",
    )
    .query_is::<PathQuery>()
    .gives(&[(204, Body::Empty)])
    .may_fail(GUEST_FILE),
    route(
        Get,
        "/v1/sandboxes/{sandbox}/files/stat",
        "stat_file",
        Operation::FileStat,
        "A file's metadata.",
    )
    .query_is::<StatQuery>()
    .gives(&[(200, json::<FileInfo>())])
    .may_fail(GUEST_FILE),
    route(
        Get,
        "/v1/sandboxes/{sandbox}/files/list",
        "list_files",
        Operation::FileList,
        "A directory's entries.",
    )
    .query_is::<ListFilesQuery>()
    .gives(&[(200, json::<FileList>())])
    .may_fail(GUEST_FILE),
    route(
        Get,
        "/v1/sandboxes/{sandbox}/files/watch",
        "watch_files",
        Operation::FileWatch,
        "Changes below a path, as server-sent events `change`.",
    )
    .query_is::<WatchQuery>()
    .gives(&[(200, Body::Events(SchemaOf::new::<WatchEvent>()))])
    .may_fail(GUEST_FILE),
    route(
        Post,
        "/v1/sandboxes/{sandbox}/files/mkdir",
        "make_directory",
        Operation::FileMkdir,
        "Makes a directory.",
    )
    .takes(json::<MakeDirectory>())
    .gives(&[(204, Body::Empty)])
    .may_fail(GUEST_FILE),
    route(
        Post,
        "/v1/sandboxes/{sandbox}/files/move",
        "move_file",
        Operation::FileMove,
        "Moves a file or directory.",
    )
    .takes(json::<MoveFile>())
    .gives(&[(204, Body::Empty)])
    .may_fail(GUEST_FILE),
    route(
        Get,
        "/v1/sandboxes/{sandbox}/files/tar",
        "pack_files",
        Operation::FileRead,
        "A directory, or one file, as a tar.",
    )
    .query_is::<PathQuery>()
    .gives(&[(200, Body::Tar)])
    .may_fail(GUEST_FILE),
    route(
        Put,
        "/v1/sandboxes/{sandbox}/files/tar",
        "unpack_files",
        Operation::FileWrite,
        "Unpacks the body, a tar, below a directory.",
    )
    .query_is::<TarInQuery>()
    .takes(Body::Tar)
    .gives(&[(200, json::<Transferred>())])
    .may_fail(GUEST_FILE),
    // Changes
    route(
        Get,
        "/v1/changes",
        "list_changes",
        Operation::ChangesRead,
        "Changes of sandboxes that wait to be applied or discarded, the newest first.",
    )
    .gives(&[(200, json::<ChangeSets>())]),
    route(
        Get,
        "/v1/sandboxes/{sandbox}/changes",
        "sandbox_changes",
        Operation::ChangesRead,
        "What a sandbox changed in directories that are reviewed; of one that runs, as it is now.",
    )
    .query_is::<ChangesQuery>()
    .gives(&[(200, json::<ChangeSets>())])
    .may_fail(GUEST_FILE),
    route(
        Get,
        "/v1/sandboxes/{sandbox}/changes/diff",
        "diff_changes",
        Operation::ChangesRead,
        "The changes of one directory, as they were looked at last.",
    )
    .query_is::<DiffQuery>()
    .gives(&[(200, json::<Diff>())])
    .may_fail(CHANGES),
    route(
        Post,
        "/v1/sandboxes/{sandbox}/changes/apply",
        "apply_changes",
        Operation::ChangesApply,
        "Brings changes to the host's directory, all or none. What the host changed as well is \
         merged or held back.",
    )
    .takes(Body::OptionalJson(SchemaOf::new::<ApplyChanges>()))
    .gives(&[(200, json::<AppliedChanges>())])
    .may_fail(CHANGES),
    route(
        Post,
        "/v1/sandboxes/{sandbox}/changes/discard",
        "discard_changes",
        Operation::ChangesDiscard,
        "Forgets changes. The sandbox keeps them.",
    )
    .takes(Body::OptionalJson(SchemaOf::new::<DiscardChanges>()))
    .gives(&[(204, Body::Empty)])
    .may_fail(CHANGES),
    // Events and images
    route(
        Get,
        "/v1/events",
        "list_events",
        Operation::EventList,
        "What happened, oldest first. As server-sent events, each named by its kind, it goes on; \
         without `since`, from now.",
    )
    .query_is::<EventQuery>()
    .gives(&[(200, json_or_events::<Page<Event>, Event>())]),
    route(Get, "/v1/images", "list_images", Operation::ImageList, "Images of the host.")
        .query_is::<PageQuery>()
        .gives(&[(200, json::<Page<Image>>())]),
    // Volumes
    route(
        Post,
        "/v1/volumes",
        "create_volume",
        Operation::VolumeCreate,
        "Makes a volume, empty: a disk that outlives sandboxes.",
    )
    .takes(json::<CreateVolume>())
    .gives(&[(201, json::<Volume>())])
    .may_fail(&[Code::PolicyDenied, Code::AlreadyExists, Code::Unsupported]),
    route(
        Get,
        "/v1/volumes",
        "list_volumes",
        Operation::VolumeList,
        "The volumes of a workspace, by name.",
    )
    .query_is::<VolumeQuery>()
    .gives(&[(200, json::<VolumeList>())]),
    route(Get, "/v1/volumes/{volume}", "get_volume", Operation::VolumeGet, "One volume.")
        .query_is::<VolumeQuery>()
        .gives(&[(200, json::<Volume>())]),
    route(
        Delete,
        "/v1/volumes/{volume}",
        "remove_volume",
        Operation::VolumeRemove,
        "Removes a volume with all that is on it, where no sandbox has it.",
    )
    .query_is::<VolumeQuery>()
    .gives(&[(204, Body::Empty)])
    .may_fail(&[Code::WrongState]),
    // Snapshots
    route(
        Get,
        "/v1/snapshots",
        "list_snapshots",
        Operation::SnapshotList,
        "The snapshots of a workspace, the newest first.",
    )
    .query_is::<SnapshotQuery>()
    .gives(&[(200, json::<SnapshotList>())]),
    route(Get, "/v1/snapshots/{snapshot}", "get_snapshot", Operation::SnapshotGet, "One snapshot.")
        .query_is::<SnapshotQuery>()
        .gives(&[(200, json::<Snapshot>())]),
    route(
        Delete,
        "/v1/snapshots/{snapshot}",
        "remove_snapshot",
        Operation::SnapshotRemove,
        "Removes a snapshot with all that is in it. Sandboxes that went on from it stay.",
    )
    .query_is::<SnapshotQuery>()
    .gives(&[(204, Body::Empty)]),
    route(
        Post,
        "/v1/snapshots/{snapshot}/restore",
        "restore_snapshot",
        Operation::SnapshotRestore,
        "Makes a sandbox that goes on from a snapshot, where host, engine and image are as they were.",
    )
    .query_is::<SnapshotQuery>()
    .takes(Body::OptionalJson(SchemaOf::new::<RestoreSnapshot>()))
    .gives(&[(201, json::<Sandbox>())])
    .idempotent()
    .may_fail(MAKES),
    // Tokens and keys
    route(
        Post,
        "/v1/tokens",
        "create_token",
        Operation::TokenCreate,
        "Makes a token; its secret is shown this once.",
    )
    .takes(json::<CreateToken>())
    .gives(&[(201, json::<CreatedToken>())])
    .may_fail(&[Code::NameTaken]),
    route(
        Get,
        "/v1/tokens",
        "list_tokens",
        Operation::TokenList,
        "Tokens, newest first, without their secrets.",
    )
    .query_is::<TokenQuery>()
    .gives(&[(200, json::<Page<Token>>())]),
    route(
        Delete,
        "/v1/tokens/{id}",
        "revoke_token",
        Operation::TokenRevoke,
        "Revokes a token, at once and for good.",
    )
    .gives(&[(204, Body::Empty)]),
    route(
        Post,
        "/v1/keys",
        "create_key",
        Operation::KeyCreate,
        "Registers a public key for signed requests.",
    )
    .takes(json::<CreateKey>())
    .gives(&[(201, json::<Key>())])
    .may_fail(&[Code::AlreadyExists]),
    route(Get, "/v1/keys", "list_keys", Operation::KeyList, "Registered keys, newest first.")
        .query_is::<TokenQuery>()
        .gives(&[(200, json::<Page<Key>>())]),
    route(
        Delete,
        "/v1/keys/{id}",
        "revoke_key",
        Operation::KeyRevoke,
        "Revokes a key, at once and for good.",
    )
    .gives(&[(204, Body::Empty)]),
    // Secrets
    route(
        Get,
        "/v1/secrets",
        "list_secrets",
        Operation::SecretList,
        "Secrets of the workspace and of its sandboxes, without values.",
    )
    .query_is::<SecretQuery>()
    .gives(&[(200, json::<SecretList>())])
    .may_fail(&[Code::Unsupported]),
    route(
        Delete,
        "/v1/secrets",
        "reset_secrets",
        Operation::SecretReset,
        "Gives up all secrets of all workspaces, readable or not.",
    )
    .gives(&[(204, Body::Empty)])
    .may_fail(&[Code::Unsupported]),
    route(
        Put,
        "/v1/secrets/{service}",
        "set_secret",
        Operation::SecretSet,
        "Sets a service's secret for every sandbox that is created from now on.",
    )
    .takes(json::<SetSecret>())
    .gives(&[(200, json::<StoredSecret>())])
    .may_fail(&[Code::Unsupported]),
    route(
        Delete,
        "/v1/secrets/{service}",
        "remove_secret",
        Operation::SecretRemove,
        "Removes a service's secret from the workspace.",
    )
    .query_is::<SecretQuery>()
    .gives(&[(204, Body::Empty)])
    .may_fail(&[Code::Unsupported]),
    route(
        Put,
        "/v1/sandboxes/{sandbox}/secrets/{service}",
        "set_sandbox_secret",
        Operation::SandboxSecretSet,
        "Sets a service's secret for one sandbox, at once. It wins over the workspace's.",
    )
    .takes(json::<SetSecret>())
    .gives(&[(200, json::<StoredSecret>())])
    .may_fail(&[Code::WrongState, Code::Unsupported]),
    route(
        Delete,
        "/v1/sandboxes/{sandbox}/secrets/{service}",
        "remove_sandbox_secret",
        Operation::SandboxSecretRemove,
        "Removes a service's secret from one sandbox.",
    )
    .gives(&[(204, Body::Empty)])
    .may_fail(&[Code::Unsupported]),
    // Policy
    route(Get, "/v1/policy", "show_policy", Operation::PolicyShow, "The policy in force.")
        .gives(&[(200, json::<PolicyInfo>())]),
    route(
        Post,
        "/v1/policy/check",
        "check_policy",
        Operation::PolicyCheck,
        "What policy would decide, by which rule, and what would allow it. A denial is a 200 too.",
    )
    .takes(json::<PolicyCheck>())
    .gives(&[(200, json::<PolicyDecision>())])
    .may_fail(&[Code::Unsupported]),
    route(
        Post,
        "/v1/policy/reload",
        "reload_policy",
        Operation::PolicyReload,
        "Loads the policy's files again; where they are wrong, the policy in force stays.",
    )
    .gives(&[(200, json::<PolicyInfo>())]),
    // Audit
    route(Get, "/v1/audit", "list_audit", Operation::AuditRead, "Records of the audit log.")
        .query_is::<AuditQuery>()
        .gives(&[(200, json::<Page<AuditRecord>>())]),
    route(
        Get,
        "/v1/audit/export",
        "export_audit",
        Operation::AuditExport,
        "The audit log, a record a line, and a signed line at the end.",
    )
    .query_is::<AuditRange>()
    .gives(&[(200, Body::JsonLines(SchemaOf::new::<AuditLine>()))]),
    route(
        Get,
        "/v1/audit/verify",
        "verify_audit",
        Operation::AuditVerify,
        "Verifies the chain; what is wrong with it is in the report.",
    )
    .query_is::<AuditRange>()
    .gives(&[(200, json::<AuditReport>())]),
    route(
        Post,
        "/v1/audit/checkpoint",
        "checkpoint_audit",
        Operation::AuditCheckpoint,
        "Signs the head of the chain.",
    )
    .gives(&[(201, json::<Checkpoint>())]),
    // Webhooks
    route(
        Post,
        "/v1/webhooks",
        "create_webhook",
        Operation::WebhookCreate,
        "Subscribes a URL to events; its secret is shown this once.",
    )
    .takes(json::<CreateWebhook>())
    .gives(&[(201, json::<CreatedWebhook>())])
    .may_fail(&[Code::PolicyDenied]),
    route(
        Get,
        "/v1/webhooks",
        "list_webhooks",
        Operation::WebhookList,
        "Subscriptions, newest first.",
    )
    .query_is::<PageQuery>()
    .gives(&[(200, json::<Page<Webhook>>())]),
    route(Get, "/v1/webhooks/{id}", "get_webhook", Operation::WebhookList, "One subscription.")
        .gives(&[(200, json::<Webhook>())]),
    route(
        Delete,
        "/v1/webhooks/{id}",
        "delete_webhook",
        Operation::WebhookDelete,
        "Removes a subscription; what is on its way is dropped.",
    )
    .gives(&[(204, Body::Empty)]),
    route(
        Get,
        "/v1/webhooks/{id}/deliveries",
        "list_deliveries",
        Operation::WebhookList,
        "Deliveries of a subscription; with `state=dead` its dead letters.",
    )
    .query_is::<DeliveryQuery>()
    .gives(&[(200, json::<Page<Delivery>>())]),
    route(
        Post,
        "/v1/webhooks/{id}/deliveries/{delivery}/redeliver",
        "redeliver",
        Operation::WebhookRedeliver,
        "Tries a delivery again, a dead one too.",
    )
    .gives(&[(202, json::<Delivery>())]),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_path_has_a_method_once_and_an_id_of_its_own() {
        let paths: BTreeSet<_> = ROUTES.iter().map(|route| (route.path, route.method)).collect();
        let ids: BTreeSet<_> = ROUTES.iter().map(|route| route.id).collect();
        assert_eq!(paths.len(), ROUTES.len());
        assert_eq!(ids.len(), ROUTES.len());
    }

    #[test]
    fn every_operation_can_be_called() {
        for &operation in Operation::ALL {
            let routed = ROUTES.iter().any(|route| route.access == Access::Needs(operation));
            assert!(routed, "{operation}");
        }
    }

    #[test]
    fn what_changes_something_needs_more_than_a_viewer() {
        for route in ROUTES.iter().filter(|route| route.method != Get) {
            let Access::Needs(operation) = route.access else { panic!("{route:?} is public") };
            let harmless = operation == Operation::PolicyCheck;
            assert!(harmless || operation.least_role() > Role::Viewer, "{route:?}");
        }
    }

    #[test]
    fn answers_are_there_and_succeed_first() {
        for route in ROUTES {
            let (status, _) = route.answers[0];
            assert!(status < 400, "{route:?}");
        }
    }
}
