//! All services that are known: those that come with the program, and the user's own.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, LazyLock};

use canonical::{Authority, Host};
use mistake::nearest;

use crate::definition::{Definition, Parameter, Values};
use crate::error::{Error, Fault, Unusable};
use crate::parse::File;
use crate::{Service, Shape};

/// The files that come with the program.
const BUILT_IN: &[(&str, &str)] = &[
    ("anthropic-oauth.toml", include_str!("../catalogue/anthropic-oauth.toml")),
    ("anthropic.toml", include_str!("../catalogue/anthropic.toml")),
    ("aws.toml", include_str!("../catalogue/aws.toml")),
    ("azure-openai.toml", include_str!("../catalogue/azure-openai.toml")),
    ("bedrock.toml", include_str!("../catalogue/bedrock.toml")),
    ("cargo.toml", include_str!("../catalogue/cargo.toml")),
    ("cohere.toml", include_str!("../catalogue/cohere.toml")),
    ("deepseek.toml", include_str!("../catalogue/deepseek.toml")),
    ("docker.toml", include_str!("../catalogue/docker.toml")),
    ("ghcr.toml", include_str!("../catalogue/ghcr.toml")),
    ("github.toml", include_str!("../catalogue/github.toml")),
    ("gitlab.toml", include_str!("../catalogue/gitlab.toml")),
    ("google.toml", include_str!("../catalogue/google.toml")),
    ("groq.toml", include_str!("../catalogue/groq.toml")),
    ("huggingface.toml", include_str!("../catalogue/huggingface.toml")),
    ("mistral.toml", include_str!("../catalogue/mistral.toml")),
    ("nebius.toml", include_str!("../catalogue/nebius.toml")),
    ("npm.toml", include_str!("../catalogue/npm.toml")),
    ("openai.toml", include_str!("../catalogue/openai.toml")),
    ("openrouter.toml", include_str!("../catalogue/openrouter.toml")),
    ("pypi.toml", include_str!("../catalogue/pypi.toml")),
    ("xai.toml", include_str!("../catalogue/xai.toml")),
];

/// Services by name. Cheap to clone.
#[derive(Clone, Default)]
pub struct Catalogue {
    services: BTreeMap<String, Arc<Entry>>,
}

#[derive(Debug)]
struct Entry {
    definition: Definition,
    /// With the parameters as they are when nobody says. `None`: somebody has to.
    plain: Option<Arc<Service>>,
    /// With samples for what somebody has to say, to be checked and shown.
    sample: Service,
    source: Arc<str>,
}

impl fmt::Debug for Catalogue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

impl Catalogue {
    /// The services that come with the program.
    pub fn built_in() -> Self {
        static LOADED: LazyLock<Catalogue> = LazyLock::new(|| {
            BUILT_IN.iter().fold(Catalogue::default(), |catalogue, (source, text)| {
                catalogue.with_file(source, text).expect("the tests load every file")
            })
        });
        LOADED.clone()
    }

    /// With one more service, of a file; one of the same name is replaced.
    ///
    /// # Errors
    /// The first mistake in the file, or what of another service it collides with.
    pub fn with_file(mut self, source: &str, text: &str) -> Result<Self, Error> {
        let file = File::new(source, text);
        let definition = file.definition()?;
        let sample =
            definition.service(&definition.samples()).map_err(|failure| file.error(failure))?;
        let plain = match definition.values(&BTreeMap::new()) {
            Ok(Ok(values)) => {
                let service = definition.service(&values).map_err(|failure| file.error(failure))?;
                Some(Arc::new(service))
            }
            _ => None,
        };
        let key = |key: &str| definition.keys.get(key).cloned().unwrap_or(0..0);
        for (name, other) in &self.services {
            if *name == sample.name {
                continue;
            }
            if let Some(fault) = same_slot(&sample, &other.sample) {
                return Err(file.error((key("slots"), fault)));
            }
            if let Some(variable) = sample.env.iter().find(|one| other.sample.env.contains(one)) {
                let fault = Fault::SameVariable { variable: variable.clone(), other: name.clone() };
                return Err(file.error((key("env"), fault)));
            }
        }
        let entry = Entry { plain, sample, definition, source: source.into() };
        self.services.insert(entry.sample.name.clone(), Arc::new(entry));
        Ok(self)
    }

    /// Names of all services, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.services.keys().map(String::as_str)
    }

    /// A service whose parameters are as they are when nobody says.
    ///
    /// # Errors
    /// There is none of the name, or it has a parameter that somebody has to say.
    pub fn get(&self, name: &str) -> Result<Arc<Service>, Unusable> {
        let entry = self.entry(name)?;
        match &entry.plain {
            Some(service) => Ok(service.clone()),
            None => self.get_with(name, &BTreeMap::new()),
        }
    }

    /// A service with what a user says of it: `resource` is `acme`.
    ///
    /// # Errors
    /// There is none of the name, a parameter is missing or not known, or what is given makes no
    /// service.
    pub fn get_with(
        &self,
        name: &str,
        given: &BTreeMap<String, String>,
    ) -> Result<Arc<Service>, Unusable> {
        let definition = &self.entry(name)?.definition;
        let known: Vec<&str> =
            definition.parameters.iter().map(|parameter| parameter.name.as_str()).collect();
        if let Some(parameter) = given.keys().find(|key| !known.contains(&key.as_str())) {
            let hint = match known.is_empty() {
                true => "it takes none".to_owned(),
                false => nearest(parameter, &known),
            };
            let (service, parameter) = (name.to_owned(), parameter.clone());
            return Err(Unusable::UnknownParameter { service, parameter, hint });
        }
        let wrong = |fault| Unusable::Wrong { service: name.to_owned(), fault };
        let values: Values = match definition.values(given).map_err(wrong)? {
            Ok(values) => values,
            Err(parameter) => {
                return Err(Unusable::Needs {
                    service: name.to_owned(),
                    parameter: parameter.name.clone(),
                    about: parameter.about.clone(),
                });
            }
        };
        definition.service(&values).map(Arc::new).map_err(|(_, fault)| wrong(fault))
    }

    /// What a user can or must say of a service.
    ///
    /// # Errors
    /// There is none of the name.
    pub fn parameters(&self, name: &str) -> Result<&[Parameter], Unusable> {
        Ok(&self.entry(name)?.definition.parameters)
    }

    /// The service with samples for what has to be said of it: to be shown, not to be used.
    ///
    /// # Errors
    /// There is none of the name.
    pub fn sample(&self, name: &str) -> Result<&Service, Unusable> {
        Ok(&self.entry(name)?.sample)
    }

    /// The file that a service is of.
    ///
    /// # Errors
    /// There is none of the name.
    pub fn source(&self, name: &str) -> Result<&str, Unusable> {
        Ok(&self.entry(name)?.source)
    }

    /// The name of the service whose credential a variable holds.
    pub fn by_env(&self, variable: &str) -> Option<&str> {
        self.services
            .iter()
            .find(|(_, entry)| entry.sample.env.iter().any(|name| name == variable))
            .map(|(name, _)| name.as_str())
    }

    /// The services that have a credential for a host, whatever the port, of those that are the same
    /// for everyone.
    pub fn at(&self, host: &Host) -> impl Iterator<Item = &Arc<Service>> {
        self.services
            .values()
            .filter_map(|entry| entry.plain.as_ref())
            .filter(move |service| service.inject_hosts.iter().any(|at| at.host == *host))
    }

    fn entry(&self, name: &str) -> Result<&Entry, Unusable> {
        self.services.get(name).map(|entry| &**entry).ok_or_else(|| {
            let known: Vec<&str> = self.names().collect();
            Unusable::Unknown { name: name.to_owned(), hint: nearest(name, &known) }
        })
    }
}

/// Whether two services could be taken for each other at some host: by the place of the credential
/// and by how its placeholder begins.
///
/// # Errors
/// The host at which they could.
pub fn distinct(service: &Service, other: &Service) -> Result<(), Fault> {
    same_slot(service, other).map_or(Ok(()), Err)
}

fn same_slot(service: &Service, other: &Service) -> Option<Fault> {
    let host: &Authority =
        service.inject_hosts.iter().find(|host| other.inject_hosts.contains(host))?;
    let is_shared =
        service.slots.iter().any(|slot| other.slots.iter().any(|place| slot.overlaps(place)));
    (is_shared && begin_alike(&service.placeholder, &other.placeholder)).then(|| Fault::SameSlot {
        host: host.to_string(),
        service: service.name.clone(),
        other: other.name.clone(),
    })
}

fn begin_alike(one: &Shape, other: &Shape) -> bool {
    one.prefix.starts_with(&other.prefix) || other.prefix.starts_with(&one.prefix)
}
