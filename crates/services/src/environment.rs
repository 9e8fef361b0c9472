//! What the tasks of a guest get in their environment.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use canonical::Authority;

use crate::{Git, Kind, Service, Slot};

/// What stands for the placeholder in a value of `extra_env`.
pub(crate) const PLACEHOLDER: &str = "{placeholder}";
/// What stands for base64 of `user:placeholder` there.
pub(crate) const BASIC: &str = "{basic}";

/// A service in a sandbox.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a> {
    /// Which.
    pub service: &'a Service,
    /// What its variables hold.
    pub placeholder: &'a str,
    /// Where clients are to send its requests, without a slash at the end:
    /// `http://169.254.169.254:8586/proxy/openai`. Without it they go to the service itself.
    pub gateway: Option<&'a str>,
}

/// The environment for all services of a sandbox: names and values, each name once, of the first that
/// has it. Git's settings are numbered through, and docker's registries are in one list.
pub fn environment(services: &[Given<'_>]) -> Vec<(String, String)> {
    let mut variables: Vec<(String, String)> = Vec::new();
    let mut settings: Vec<(String, String)> = Vec::new();
    let mut registries: Vec<String> = Vec::new();
    for given in services {
        for (name, value) in given.service.variables(given.placeholder, given.gateway) {
            if !variables.iter().any(|(other, _)| *other == name) {
                variables.push((name, value));
            }
        }
        if let Some(git) = &given.service.git {
            settings.extend(git_settings(git, given.placeholder));
        }
        for registry in &given.service.docker {
            let login = basic(given.service.username(), given.placeholder);
            registries.push(format!("\"{registry}\":{{\"auth\":\"{login}\"}}"));
        }
    }
    if !registries.is_empty() {
        let auths = format!("{{\"auths\":{{{}}}}}", registries.join(","));
        variables.push(("DOCKER_AUTH_CONFIG".to_owned(), auths));
    }
    if !settings.is_empty() {
        variables.push(("GIT_CONFIG_COUNT".to_owned(), settings.len().to_string()));
        for (index, (key, value)) in settings.into_iter().enumerate() {
            variables.push((format!("GIT_CONFIG_KEY_{index}"), key));
            variables.push((format!("GIT_CONFIG_VALUE_{index}"), value));
        }
    }
    variables
}

impl Service {
    /// The environment for this service alone; `environment` is for several.
    pub fn environment(
        &self,
        placeholder: &str,
        gateway_base: Option<&str>,
    ) -> Vec<(String, String)> {
        environment(&[Given { service: self, placeholder, gateway: gateway_base }])
    }

    fn variables(&self, placeholder: &str, gateway: Option<&str>) -> Vec<(String, String)> {
        let own = |name: &String, value: &str| (name.clone(), value.to_owned());
        let mut variables = Vec::new();
        match (&self.kind, placeholder.split_once(':')) {
            // The third is for tokens of a session, which a placeholder does not need.
            (Kind::Aws { .. }, Some((id, secret))) => {
                variables.extend(self.env.iter().zip([id, secret]).map(|(n, v)| own(n, v)));
            }
            _ => variables.extend(self.env.iter().map(|name| own(name, placeholder))),
        }
        if let Some(base) = gateway {
            for url in &self.base_url_env {
                variables.push((url.variable.clone(), format!("{base}{}", url.path)));
            }
        }
        // After the base URLs, which say the same without a gateway.
        for (name, value) in &self.extra_env {
            let value = value.replace(PLACEHOLDER, placeholder);
            let value = value.replace(BASIC, &basic(self.username(), placeholder));
            variables.push((name.clone(), value));
        }
        variables
    }

    /// Who logs in where a name is asked for.
    fn username(&self) -> &str {
        let slots = self.slots.iter().find_map(|slot| match slot {
            Slot::Basic { username } => username.as_deref(),
            _ => None,
        });
        slots.or_else(|| self.git.as_ref().map(|git| git.username.as_str())).unwrap_or_default()
    }
}

fn basic(username: &str, placeholder: &str) -> String {
    BASE64.encode(format!("{username}:{placeholder}"))
}

/// Git sends no credential before it was refused once, and then asks a helper or the terminal. The
/// header is sent from the beginning, to these hosts only, and holds for submodules and LFS too.
fn git_settings(git: &Git, placeholder: &str) -> Vec<(String, String)> {
    let header = format!("Authorization: Basic {}", basic(&git.username, placeholder));
    let mut settings = Vec::new();
    for host in &git.hosts {
        settings.push((format!("http.{}.extraHeader", url(host)), header.clone()));
    }
    if let Some(host) = git.hosts.first() {
        for prefix in &git.instead_of {
            settings.push((format!("url.{}.insteadOf", url(host)), prefix.clone()));
        }
    }
    settings
}

fn url(host: &Authority) -> String {
    match host.port {
        443 => format!("https://{}/", host.host),
        _ => format!("https://{host}/"),
    }
}
