//! A service that a user makes up.

use std::collections::BTreeMap;

use canonical::Leniency;

use crate::definition::{At, Definition};
use crate::{Fault, Service, Shape, Slot};

impl Service {
    /// A service of the user's own: a credential for some hosts, of whose operations nothing is known.
    ///
    /// # Errors
    /// What is wrong with a part of it: the same as in a file.
    pub fn custom(
        name: &str,
        hosts: &[String],
        env: &[String],
        slots: Vec<Slot>,
        placeholder: Shape,
    ) -> Result<Self, Fault> {
        let all = |texts: &[String]| texts.iter().cloned().map(At::nowhere).collect();
        let definition = Definition {
            keys: BTreeMap::new(),
            name: At::nowhere(name.to_owned()),
            parameters: Vec::new(),
            env: all(env),
            extra_env: Vec::new(),
            base_url_env: Vec::new(),
            placeholder,
            inject_hosts: all(hosts),
            plain_hosts: Vec::new(),
            slots: slots.into_iter().map(At::nowhere).collect(),
            aws: None,
            leniency: Leniency::default(),
            git: None,
            docker: Vec::new(),
            foreign_credentials: false,
            read_only: vec![At::nowhere("READ /**".to_owned())],
            full: vec![At::nowhere("ANY /**".to_owned())],
            deny: Vec::new(),
        };
        let service = definition.service(&BTreeMap::new()).map_err(|(_, fault)| fault)?;
        if service.inject_hosts.is_empty() {
            let problem = "there is none; name whom the credential is for".to_owned();
            return Err(Fault::Value { key: "hosts".to_owned(), problem });
        }
        Ok(service)
    }
}
