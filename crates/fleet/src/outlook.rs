//! What is to be expected of the credentials of a sandbox, before it does anything.

use std::collections::BTreeMap;

use api::{NetworkMode, Sandbox};
use canonical::Authority;
use rules::Rules;
use secrets::Origin;
use services::Service;

use crate::Error;
use crate::config::Mode;
use crate::manager::Manager;
use crate::network::{Used, Wanted};
use crate::seat::Seat;

/// A credential that is set, and whether requests of a sandbox will have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// The service.
    pub service: String,
    /// Where it comes from: `from $GITHUB_TOKEN`.
    pub origin: String,
    /// The sandbox has a placeholder for it.
    pub is_given: bool,
    /// Hosts of the service that no rule lets through.
    pub shut: Vec<String>,
    /// The service has hosts that some rule lets through.
    pub is_open: bool,
}

impl Manager {
    /// Every credential that a sandbox has, and those that are set beside them. The store is not opened
    /// for a sandbox that has none.
    pub(crate) async fn outlook(&self, seat: &Seat) -> Result<Vec<Expected>, Error> {
        let row = seat.row();
        if row.network == NetworkMode::Offline {
            return Ok(Vec::new());
        }
        let used = self.used_by(seat, &row).await?;
        let rules = self.rules(&Wanted::of(&row), &used).await?;
        let mut set = self.set_for(&row).await?;
        let mut expected = Vec::new();
        for Used { service, .. } in &*used {
            let origin = set.remove(&service.name).map(|origin| origin.to_string());
            expected.push(expect(service, origin.unwrap_or_default(), true, &rules));
        }
        for (name, origin) in set {
            // One of the user's own has no sample, and is for who asks for it.
            if let Ok(service) = self.config.catalogue.sample(&name) {
                expected.push(expect(service, origin.to_string(), false, &rules));
            }
        }
        Ok(expected)
    }

    async fn set_for(&self, row: &Sandbox) -> Result<BTreeMap<String, Origin>, Error> {
        let has_environment = self.config.mode == Mode::Embedded;
        let environment = move |name: &str| {
            std::env::var_os(name).filter(|value| has_environment && !value.is_empty())
        };
        let (store, catalogue) = (self.secrets.clone(), self.config.catalogue.clone());
        if row.credentials.is_empty() {
            let of = |name: &str| {
                let variables = &catalogue.sample(name).ok()?.env;
                let set = variables.iter().find(|name| environment(name).is_some())?;
                Some((name.to_owned(), Origin::Environment(set.clone())))
            };
            return Ok(catalogue.names().filter_map(of).collect());
        }
        let (workspace, id) = (row.workspace.clone(), row.id.clone());
        let finding = tokio::task::spawn_blocking(move || {
            store.available(&catalogue, &workspace, Some(&id), &environment)
        });
        let available = finding.await.map_err(|error| Error::Internal(error.to_string()))?;
        // What the sandbox has was found before; not to know the others is not worth failing for.
        Ok(available.unwrap_or_default())
    }
}

fn expect(service: &Service, origin: String, is_given: bool, rules: &Rules) -> Expected {
    let is_shut = |host: &&Authority| rules.endpoint(&host.host, host.port).is_err();
    let shut: Vec<String> =
        service.inject_hosts.iter().filter(is_shut).map(|one| one.host.to_string()).collect();
    let is_open = shut.len() < service.inject_hosts.len();
    Expected { service: service.name.clone(), origin, is_given, shut, is_open }
}
