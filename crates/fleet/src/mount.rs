//! What of the host is copied in when a sandbox comes up.

use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use api::{Mount, MountMode};
use supervisor::wire::op::{Mkdir, Write, WriteAt};
use supervisor::wire::text::Text;
use supervisor::workspace::{Name, Selection};
use supervisor::{CopyIn, Guest, Hidden, Sandbox, share};
use tokio::io::AsyncReadExt as _;

use crate::Error;
use crate::error::chain;
use crate::host_path::{HostPath, HostPathError};

/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;

/// A mount that policy has decided about: the descriptor is what it decided about.
#[derive(Debug)]
pub(crate) struct Mounted {
    pub(crate) asked: Mount,
    pub(crate) host: HostPath,
    /// What must not be seen of it.
    pub(crate) masks: Option<policy::Masks>,
}

impl Mounted {
    /// Resolves what was asked for, which policy is to decide about.
    pub(crate) fn resolve(asked: &Mount, field: &str) -> Result<Self, Error> {
        let host = HostPath::resolve(Path::new(&asked.host_path))
            .map_err(|error| api::Problem::invalid(field, error.to_string()))?;
        Ok(Self { asked: asked.clone(), host, masks: None })
    }

    /// What policy is asked about a path that cannot be looked at: the path as it is written.
    pub(crate) fn unseen(asked: &Mount) -> policy::Mount {
        policy::Mount {
            host_path: crate::host_path::folded(Path::new(&asked.host_path)),
            requested: asked.host_path.clone().into(),
            guest_path: asked.guest_path.clone(),
            read_only: asked.read_only,
        }
    }

    pub(crate) fn request(&self) -> policy::Mount {
        policy::Mount {
            host_path: self.host.real().into(),
            requested: self.host.requested().into(),
            guest_path: self.asked.guest_path.clone(),
            read_only: self.asked.read_only,
        }
    }

    /// Copies it in, if it is still what policy decided about.
    pub(crate) async fn copy(self, sandbox: &Sandbox) -> Result<(), Error> {
        let host = self.host;
        let host = tokio::task::spawn_blocking(move || host.recheck().map(|()| host));
        let host = match host.await {
            Ok(Ok(host)) => host,
            Ok(Err(error @ HostPathError::Changed(_))) => {
                let problem = api::Problem::new(api::Code::PolicyDenied, error.to_string());
                return Err(problem.with_field("mounts").into());
            }
            Ok(Err(error)) => return Err(Error::Internal(error.to_string())),
            Err(error) => return Err(Error::Internal(error.to_string())),
        };
        if self.asked.mode == MountMode::Live {
            let shared = share_live(&host, self.masks, &self.asked, sandbox);
            return shared.await.map(|lacks| {
                if let Some(lacks) = lacks {
                    tracing::warn!(path = host.real(), "{lacks}");
                }
            });
        }
        if !host.is_directory() {
            return copy_file(&host, &self.asked, sandbox.guest()).await;
        }
        let hidden = self.masks.map(hidden);
        let options = CopyIn {
            read_only: self.asked.read_only,
            reviewed: self.asked.mode == MountMode::Review && !self.asked.read_only,
            ..CopyIn::default()
        };
        let handle = host.handle();
        let copied = sandbox
            .copy_in_without(&handle, &self.asked.guest_path, options, hidden, &mut ())
            .await;
        // The handle's name means nothing to anybody else.
        let words = |error: supervisor::Error| {
            chain(&error).replace(&*handle.to_string_lossy(), host.real())
        };
        copied.map(drop).map_err(|error| match error {
            error @ supervisor::Error::Guest(_) => error.into(),
            error => Error::Internal(words(error)),
        })
    }
}

/// What must not go in, by policy.
pub(crate) fn hidden(masks: policy::Masks) -> Hidden {
    Hidden::new(move |path: &Path| masks.hides(path))
}

/// What of a shared directory is hidden by policy, and what is protected in every workspace but for
/// what was allowed by name.
#[derive(Debug)]
struct LiveRules {
    masks: Option<policy::Masks>,
    allowed: Selection,
}

impl share::Rules for LiveRules {
    fn hides(&self, path: &Path) -> bool {
        self.masks.as_ref().is_some_and(|masks| masks.hides(path))
    }

    fn protects(&self, path: &Path, is_directory: bool) -> bool {
        let is_allowed =
            || Name::parse(path.as_os_str().as_bytes()).is_ok_and(|name| self.allowed.has(&name));
        supervisor::is_protected_path(path, is_directory) && !is_allowed()
    }
}

/// Shares a directory by its descriptor. What its threads lack of a second lock, for a person.
pub(crate) async fn share_live(
    host: &HostPath,
    masks: Option<policy::Masks>,
    asked: &Mount,
    sandbox: &Sandbox,
) -> Result<Option<String>, Error> {
    let allowed = Selection::of(&asked.allow_protected)
        .map_err(|error| api::Problem::invalid("mounts.allow_protected", error.to_string()))?;
    let failed = |error: std::io::Error| Error::Internal(format!("open {}: {error}", host.real()));
    let directory = host.descriptor().map_err(failed)?;
    let rules = std::sync::Arc::new(LiveRules { masks, allowed });
    let quota = asked.quota_mb.map(|quota_mb| u64::from(quota_mb) << 20);
    let options =
        share::Options { read_only: asked.read_only, rules, quota, ..share::Options::default() };
    sandbox.share(directory, &asked.guest_path, options).await.map_err(|error| match error {
        error @ supervisor::Error::Guest(_) => error.into(),
        supervisor::Error::Share(error) => {
            api::Problem::invalid("mounts.host_path", error.to_string()).into()
        }
        error => Error::Internal(chain(&error)),
    })
}

/// Copies one file from its descriptor, as the sandbox's user or, to be read only, as root.
pub(crate) async fn copy_file(host: &HostPath, asked: &Mount, guest: &Guest) -> Result<(), Error> {
    let failed = |error: std::io::Error| Error::Internal(format!("read {}: {error}", host.real()));
    let file = std::fs::File::open(host.handle()).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
    let mut file = tokio::fs::File::from_std(file);
    let (mode, user) = match asked.read_only {
        true => (mode & !0o222 | 0o444, Some(Text::from("root"))),
        false => (mode, None),
    };
    let text = |path: &str| {
        let field = "mounts.guest_path";
        Text::new(path).map_err(|error| api::Problem::invalid(field, error.to_string()))
    };
    let parent = asked.guest_path.rsplit_once('/').map(|(parent, _)| parent);
    if let Some(parent) = parent.filter(|parent| !parent.is_empty()) {
        let mkdir = Mkdir::to_fill(text(parent)?, !asked.read_only);
        guest.ask(&mkdir).await.map_err(Error::Guest)?;
    }
    let path = text(&asked.guest_path)?;
    let write = Write { path, at: WriteAt::Replace, mode, parents: false, user };
    let call = guest.call(&write).map_err(Error::Guest)?;
    let input = call.input();
    let mut bytes = vec![0; CHUNK];
    loop {
        match file.read(&mut bytes).await.map_err(failed)? {
            0 => break,
            count => input.write(&bytes[..count]).await.map_err(Error::Guest)?,
        }
    }
    input.finish();
    call.reply().await.map(drop).map_err(Error::Guest)
}
