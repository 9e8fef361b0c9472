//! The server within this process, where no other runs.

use std::sync::Arc;
use std::time::Duration;

use client::{Builder, Client};
use fleet::{Manager, Mode, OpenError, paths};
use server::Embedded;

use crate::failure::{Failure, Kind};

/// What is still under way when the command has ended has so long.
pub(crate) const DEADLINE: Duration = Duration::from_secs(5);

/// It, for as long as the command takes.
#[derive(Debug)]
pub(crate) struct Local {
    manager: Arc<Manager>,
    server: Embedded,
}

/// The fleet of this user, for one command.
pub(crate) async fn manager() -> Result<Arc<Manager>, Failure> {
    let supervisor = crate::command::supervisor()?;
    let data = paths::data().map_err(|error| Failure::usage(error.to_string()))?;
    let mut config = fleet::Config::new(Mode::Embedded, data);
    if let Ok(directory) = paths::config() {
        config.policy = Some(directory.join("policy.toml"));
        config.upstream = fleet::upstream(&directory).map_err(|error| open_failure(&error))?;
    }
    config.secrets = crate::secrets::options(true)?;
    config.catalogue = crate::secrets::catalogue()?;
    Manager::open(config, supervisor).await.map_err(|error| open_failure(&error))
}

pub(crate) fn open_failure(error: &OpenError) -> Failure {
    match error {
        OpenError::Policy(_) | OpenError::ReadPolicy { .. } | OpenError::Upstream { .. } => {
            Failure::from_error(Kind::Usage, error)
        }
        OpenError::Supervisor(error) => crate::command::supervisor_failure(error),
        OpenError::Recover(error) => Failure::from_problem(&error.problem()),
        other => Failure::from_error(Kind::Failed, other),
    }
}

impl Local {
    pub(crate) async fn start() -> Result<Self, Failure> {
        let manager = manager().await?;
        let data = manager.config().data.clone();
        let server = server::embed(Arc::clone(&manager), &server::Config::new(data));
        Ok(Self { manager, server })
    }

    /// A client of it that is to be put together.
    pub(crate) fn builder(&self) -> Builder {
        let server = self.server.clone();
        Client::builder().streams(move || {
            let stream = server.connect();
            async { Ok(stream) }
        })
    }

    /// Waits for what the command began, and lets go of the machines.
    pub(crate) async fn stop(self) {
        self.server.shutdown(DEADLINE).await;
        self.manager.shutdown(DEADLINE).await;
    }
}
