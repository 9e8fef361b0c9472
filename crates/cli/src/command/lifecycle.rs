//! `sandforge stop`, `start`, `pause`, `resume` and `hibernate`.

use clap::Args;
use client::Client;
use client::api::Sandbox;

use crate::connection;
use crate::failure::Failure;

/// The sandboxes that something is done to.
#[derive(Args)]
pub(crate) struct LifecycleArgs {
    /// Their names or ids; `sandforge ls` lists them
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,

    /// Print each sandbox as a JSON object, one a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Stop,
    Start,
    Pause,
    Resume,
    Hibernate,
}

impl Step {
    async fn take(self, client: &Client, name: &str) -> Result<Sandbox, client::Error> {
        match self {
            Self::Stop => client.stop_sandbox(name).await,
            Self::Start => client.start_sandbox(name).await,
            Self::Pause => client.pause_sandbox(name).await,
            Self::Resume => client.resume_sandbox(name).await,
            Self::Hibernate => client.hibernate_sandbox(name).await,
        }
    }
}

impl LifecycleArgs {
    pub(crate) fn run(&self, step: Step) -> Result<u8, Failure> {
        connection::ask(async |client| {
            for name in &self.names {
                let sandbox = step.take(client, name).await?;
                if self.json {
                    super::print_json(&sandbox)?;
                }
            }
            Ok(0)
        })
    }
}
