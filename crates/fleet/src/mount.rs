//! What of the host is copied in when a sandbox comes up.

use std::path::Path;

use api::Mount;
use supervisor::{CopyIn, Sandbox};

use crate::Error;
use crate::error::chain;
use crate::host_path::{HostPath, HostPathError};

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
        let hidden = self
            .masks
            .map(|masks| supervisor::Hidden::new(move |relative: &Path| masks.hides(relative)));
        let options = CopyIn { read_only: self.asked.read_only, ..CopyIn::default() };
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
