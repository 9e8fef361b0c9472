//! REST types, problem codes and the OpenAPI document.
//!
//! Everything that crosses the API has its type here, once: the server takes and gives these,
//! the client likewise, and the document at `/openapi.json` is made of them. Requests refuse
//! unknown fields and have [`Validate`], whose bounds are the ones that the document states.
//! What the server routes is [`ROUTES`], one line for each method of each path.
#![forbid(unsafe_code)]

pub mod bound;
mod changes;

mod audit;
mod event;
mod exec;
mod file;
mod json;
mod log;
mod object;
mod openapi;
mod operation;
mod page;
mod policy;
mod problem;
mod query;
mod route;
mod sandbox;
mod secret;
mod snapshot;
mod state;
mod system;
mod timestamp;
mod token;
mod volume;
mod webhook;

pub use audit::{
    AuditDecision, AuditFooter, AuditLine, AuditQuery, AuditRange, AuditRecord, AuditReport,
    Checkpoint, Fault, FaultKind,
};
pub use bound::Validate;
pub use changes::{
    AppliedChanges, ApplyChanges, ChangeKind, ChangeSet, ChangeSets, ChangesQuery, Diff, DiffQuery,
    DiscardChanges, FileChange, HeldBackChange, HeldBackWhy,
};
pub use event::{Event, EventKind, EventQuery};
pub use exec::{
    AttachQuery, AttachResult, Chunk, Exec, ExecControl, ExecEnd, ExecEvent, ExecFinal, ExecResult,
    ExecStarted, Limits, Outcome, Process, PtyQuery, Signal, StdinQuery, Truncated, UnknownEvent,
    WindowSize, channel,
};
pub use file::{
    FileInfo, FileKind, FileList, FileMode, ListFilesQuery, MakeDirectory, MoveFile, PathQuery,
    ReadQuery, StatQuery, TarInQuery, Transferred, WatchEvent, WatchQuery, WriteAt, WriteQuery,
};
pub use json::parse_json;
pub use log::{LogQuery, LogRecord, LogSource};
pub use openapi::openapi;
pub use operation::{Operation, Reach, Role, UnknownName};
pub use page::{NoQuery, Page, PageQuery};
pub use policy::{
    LayerKind, PolicyCheck, PolicyDecision, PolicyInfo, PolicyLayer, PolicyRef, PolicyRequest,
    PolicySubject, ReachRequest, RuleRef,
};
pub use problem::{Code, Problem};
pub use query::{parse_query, render_query};
pub use route::{Access, Body, Method, ROUTES, Route, SchemaOf};
pub use sandbox::{
    Change, CreateSandbox, DeleteQuery, Isolation, ListSandboxes, Mount, MountMode, MountQuery,
    NetworkMode, Sandbox, SandboxCredential, Stats, Timings, UpdateSandbox, Usage, WhenIdle,
    WhenTimedOut,
};
pub use secret::{
    CustomService, PlaceholderCharacters, SecretList, SecretQuery, SecretSlot, SecretSource,
    SetSecret, StoredSecret,
};
pub use snapshot::{
    CreateSnapshot, ForkSandbox, ForkedSandboxes, RestoreSnapshot, Snapshot, SnapshotList,
    SnapshotQuery,
};
pub use state::State;
pub use system::{
    CallerInfo, CallerKind, Doctor, EngineReport, Finding, Health, Image, Ready, ReadyCheck,
    Version,
};
pub use timestamp::Timestamp;
pub use token::{CreateKey, CreateToken, CreatedToken, Key, Token, TokenQuery};
pub use volume::{
    Cache, CacheTool, CreateVolume, MAX_VOLUMES, Volume, VolumeList, VolumeMount, VolumeQuery,
};
pub use webhook::{CreateWebhook, CreatedWebhook, Delivery, DeliveryQuery, DeliveryState, Webhook};
pub use wire::op::Command;
pub use wire::text::{Secret, Text};
