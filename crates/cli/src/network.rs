//! Flags about the network, which several commands have.

use clap::Args;
use client::api::{CreateSandbox, NetworkMode};

/// What a sandbox may reach, and with whose credentials.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Network")]
pub(crate) struct NetworkArgs {
    /// What it can reach: offline, fetch (package registries and git, to read), allow (what rules
    /// say) or open (everything but private addresses) [default: offline; allow with rules]
    #[arg(long, value_name = "MODE")]
    network: Option<policy::Network>,

    /// Let it reach this: `[METHOD[,METHOD] ]HOST[:PORT][/PATH]`, `git fetch HOST/PATH`, `@SERVICE RULE`
    ///
    /// `*` is one label or segment, `**` any number. What is denied wins. docs/network.md has all of
    /// it, and `sandforge policy check network METHOD URL` tells what would be decided.
    #[arg(long, value_name = "RULE")]
    allow: Vec<String>,

    /// Never let it reach this, whatever allows it
    #[arg(long, value_name = "RULE")]
    deny: Vec<String>,

    /// Use the credential of this service in its requests, which never enters the sandbox
    ///
    /// From `sandforge secret set`, or else from the variable that the service's own programs read.
    /// With `=read-only` only what the service calls reading may be done with it.
    #[arg(long, value_name = "SERVICE[=read-only]")]
    credential: Vec<String>,

    /// Tell clients of this service a base URL within the sandbox (`*_BASE_URL`), for those that do not
    /// trust its certificates
    #[arg(long, value_name = "SERVICE")]
    gateway: Vec<String>,

    /// Use this named set of rules and credentials: claude-code, codex, opencode, pi, github
    #[arg(long, value_name = "NAME")]
    profile: Vec<String>,
}

pub(crate) fn mode(mode: policy::Network) -> NetworkMode {
    match mode {
        policy::Network::Offline => NetworkMode::Offline,
        policy::Network::Fetch => NetworkMode::Fetch,
        policy::Network::Allow => NetworkMode::Allow,
        policy::Network::Open => NetworkMode::Open,
    }
}

impl NetworkArgs {
    /// Adds a profile, if it is not there.
    pub(crate) fn add_profile(&mut self, name: &str) {
        if !self.profile.iter().any(|one| one == name) {
            self.profile.push(name.to_owned());
        }
    }

    /// Puts them into a request.
    pub(crate) fn fill(self, request: CreateSandbox) -> CreateSandbox {
        CreateSandbox {
            network: self.network.map(mode),
            allow: self.allow,
            deny: self.deny,
            credentials: self.credential,
            gateways: self.gateway,
            profiles: self.profile,
            ..request
        }
    }
}
