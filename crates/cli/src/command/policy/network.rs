//! `sandforge policy check network`: of a mode, or of a request.

use std::fs;
use std::path::PathBuf;

use clap::Args;
use client::api::{CreateSandbox, NetworkMode, PolicyDecision};
use rules::{Layer, Probe};

use super::registries;
use crate::failure::Failure;
use crate::network::NetworkArgs;

/// A body longer than this is none that rules look into.
const MAX_BODY: u64 = 8 << 20;

#[derive(Args)]
pub(super) struct AboutNetwork {
    /// A mode (offline, fetch, allow, open), or the method of a request
    #[arg(value_name = "MODE|METHOD")]
    pub(super) asked: String,

    /// The address of the request; without a scheme it is https. With wss:// it is a WebSocket
    #[arg(value_name = "URL")]
    pub(super) url: Option<String>,

    /// The sandbox that would send it, by id or name. Without, one that is made with the flags below;
    /// without these too, the answer is what policy leaves
    #[arg(long, value_name = "SANDBOX", requires = "url")]
    pub(super) sandbox: Option<String>,

    /// The request's body, for rules that look into it
    #[arg(long, value_name = "FILE", requires = "url", conflicts_with = "sandbox")]
    body: Option<PathBuf>,

    /// The type of the body [default: application/json]
    #[arg(long, value_name = "TYPE", requires = "body")]
    content_type: Option<String>,

    #[command(flatten)]
    network: NetworkArgs,
}

impl AboutNetwork {
    /// Decides about the request, within what layers of policy leave.
    pub(super) fn decide(
        self,
        url: &str,
        bounds: Vec<Layer>,
        generation: u64,
    ) -> Result<PolicyDecision, Failure> {
        let body = self.body()?;
        let mut create = self.network.fill(CreateSandbox::default());
        if create.network_mode() == NetworkMode::Offline && create.network.is_none() {
            create.network = Some(NetworkMode::Open);
        }
        let registries = match create.network_mode() {
            NetworkMode::Fetch => registries::known()?.registries(),
            _ => Vec::new(),
        };
        let probe = Probe {
            method: &self.asked,
            url,
            body: body.as_deref(),
            content_type: self.content_type.as_deref().unwrap_or("application/json"),
        };
        let catalogue = services::Catalogue::built_in();
        let explained = fleet::explain(&create, &catalogue, &registries, bounds, &probe)
            .map_err(|problem| Failure::usage(problem.to_string()))?;
        Ok(fleet::decision(explained, generation))
    }

    fn body(&self) -> Result<Option<Vec<u8>>, Failure> {
        let Some(path) = &self.body else { return Ok(None) };
        let fail = |error: &std::io::Error| {
            Failure::usage(format!("cannot read the body {path:?}")).because(error)
        };
        if fs::metadata(path).map_err(|error| fail(&error))?.len() > MAX_BODY {
            return Err(Failure::usage(format!("the body {path:?} is longer than 8 MiB")));
        }
        fs::read(path).map(Some).map_err(|error| fail(&error))
    }
}
