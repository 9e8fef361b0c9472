//! `sandforge image pull`: an image out of its registry.

use clap::Args;
use serde::Serialize;
use supervisor::image::{Reference, ReferenceError};
use supervisor::registry::{Platform, PlatformError};

use super::Context;
use crate::failure::Failure;
use crate::filter;
use crate::progress::Layers;
use crate::units::readable;

#[derive(Args)]
pub(crate) struct PullArgs {
    /// Which: python:3.12-slim, ghcr.io/acme/tool:1, host:5000/a/b@sha256:…
    #[arg(value_name = "REFERENCE")]
    reference: String,
    /// The platform, of those that it is there for, such as linux/amd64; by default the host's
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<String>,
    /// Print a JSON object; on stderr, one for each layer that begins and that is here
    #[arg(long)]
    pub(crate) json: bool,
}

/// What was pulled.
#[derive(Serialize)]
struct Shown {
    reference: String,
    digest: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<String>,
    config: String,
    platform: String,
    layers: Vec<Layer>,
    bytes: u64,
}

#[derive(Serialize)]
struct Layer {
    digest: String,
    bytes: u64,
    media_type: String,
}

impl PullArgs {
    pub(crate) fn run(self, context: &Context) -> Result<(), Failure> {
        let usage = |error: &dyn std::error::Error| Failure::usage(error.to_string());
        let reference: Reference =
            self.reference.parse().map_err(|error: ReferenceError| usage(&error))?;
        let platform = self.platform.map(|text| text.parse::<Platform>()).transpose();
        let platform = platform.map_err(|error: PlatformError| usage(&error))?;
        let supervisor = super::supervisor()?;
        let mut layers = Layers::new(context.verbosity, self.json);
        let pulled = super::block_on(async {
            let pulled = supervisor.pull(&reference, platform.as_ref(), &mut layers).await;
            pulled.map_err(|error| super::supervisor_failure(&error))
        });
        let mut line = layers.into_line();
        let pulled = pulled?;
        let shown = Shown {
            reference: reference.to_string(),
            digest: pulled.manifest_digest.to_string(),
            index: pulled.index_digest.map(|digest| digest.to_string()),
            config: pulled.config_digest.to_string(),
            platform: pulled.platform.to_string(),
            bytes: pulled.layers.iter().map(|layer| layer.size).sum(),
            layers: pulled
                .layers
                .into_iter()
                .map(|layer| Layer {
                    digest: layer.digest.to_string(),
                    bytes: layer.size,
                    media_type: filter::plain(&layer.media_type),
                })
                .collect(),
        };
        match self.json {
            true => super::print_json(&shown),
            false => {
                let bytes = readable(shown.bytes);
                let (count, platform) = (shown.layers.len(), &shown.platform);
                line.notice(&format!("{count} layers of {bytes}, for {platform}"));
                super::print(&format!("{} {}\n", shown.reference, shown.digest))
            }
        }
    }
}
