//! A service as it is written, with what differs from user to user left open; and the service that it
//! becomes.

use std::collections::BTreeMap;
use std::ops::Range;

use canonical::{Authority, Leniency};

use crate::environment::{BASIC, PLACEHOLDER};
use crate::error::Fault;
use crate::placeholder::{MAX_LENGTH, MIN_BITS};
use crate::{BaseUrl, Git, HostPattern, Kind, Service, Shape, Slot};

/// Most entries of a list.
pub(crate) const MAX_ENTRIES: usize = 256;
/// Longest string of a service.
pub(crate) const MAX_STRING: usize = 1024;

/// Headers that say how a message is read or where it goes. A credential in one of them would change
/// that.
const NEVER_A_SLOT: &[&str] = &[
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) span: Range<usize>,
}

impl<T> At<T> {
    /// One that stands in no file.
    pub(crate) fn nowhere(value: T) -> Self {
        Self { value, span: 0..0 }
    }
}

/// A name and a text.
pub(crate) type Pair = (At<String>, At<String>);

/// A fault and where it is.
pub(crate) type Failure = (Range<usize>, Fault);

/// Something that each user says of a service: their resource, their region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Its name, as in `resource=acme`.
    pub name: String,
    /// What it is, for the one who is asked for it.
    pub about: String,
    /// What it may be.
    pub kind: ParameterKind,
    /// Several values are given with commas between them.
    pub many: bool,
    /// What it is when nobody says. `None`: it has to be said.
    pub default: Option<Vec<String>>,
}

/// What a parameter may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParameterKind {
    /// One label of a host's name.
    Label,
    /// A host, with a port where it is not 443; below one of these names, if there are any.
    Host {
        /// `amazonaws.com` is for all that end in `.amazonaws.com`.
        below: Vec<String>,
        /// None of these, whatever else is said: `sts.*.amazonaws.com`.
        except: Vec<HostPattern>,
    },
    /// A word: letters, digits and `-._~@+`.
    Word,
}

impl Parameter {
    /// Checks what a user gave for it.
    fn values(&self, text: &str) -> Result<Vec<String>, Fault> {
        let values: Vec<String> = match self.many {
            true => text.split(',').map(|one| one.trim().to_owned()).collect(),
            false => vec![text.to_owned()],
        };
        if values.len() > MAX_ENTRIES {
            return Err(Fault::TooMany { key: self.name.clone(), limit: MAX_ENTRIES });
        }
        values.iter().try_for_each(|value| self.check(value))?;
        Ok(values)
    }

    pub(crate) fn check(&self, value: &str) -> Result<(), Fault> {
        let fault = |problem: String| Err(wrong(&self.name, problem));
        match &self.kind {
            ParameterKind::Label => {
                let is_label = canonical::Host::parse(value).is_ok_and(|host| {
                    host.name().is_some_and(|name| name.as_str() == value && !value.contains('.'))
                });
                match is_label {
                    true => Ok(()),
                    false => {
                        fault(format!("{value:?} is not one part of a host's name, in lower case"))
                    }
                }
            }
            ParameterKind::Host { below, except } => {
                let authority = host(&self.name, value)?;
                let name = authority.host.to_string();
                let is_below = below.iter().any(|suffix| {
                    name.strip_suffix(suffix.as_str()).is_some_and(|rest| rest.ends_with('.'))
                });
                if except
                    .iter()
                    .any(|one| one.matches(&Authority { port: one.port, ..authority.clone() }))
                {
                    return fault(format!("{value:?} is one that the credential never goes to"));
                }
                match below.is_empty() || is_below {
                    true => Ok(()),
                    false => fault(format!("{value:?} is not below {}", below.join(" or "))),
                }
            }
            ParameterKind::Word => {
                let is_word = (1..=128).contains(&value.len())
                    && value
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || b"-._~@+".contains(&byte));
                match is_word {
                    true => Ok(()),
                    false => {
                        fault(format!("{value:?} is not a word of letters, digits and -._~@+"))
                    }
                }
            }
        }
    }

    /// What a service is checked with where the user's own is not known yet.
    fn sample(&self) -> String {
        match &self.kind {
            ParameterKind::Host { below, .. } => {
                format!("sample.{}", below.first().map_or("example", String::as_str))
            }
            ParameterKind::Label | ParameterKind::Word => "sample".to_owned(),
        }
    }
}

/// A service as it is written.
#[derive(Debug, Clone)]
pub(crate) struct Definition {
    /// Where the keys stand.
    pub(crate) keys: BTreeMap<&'static str, Range<usize>>,
    pub(crate) name: At<String>,
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) env: Vec<At<String>>,
    pub(crate) extra_env: Vec<Pair>,
    pub(crate) base_url_env: Vec<Pair>,
    pub(crate) placeholder: Shape,
    pub(crate) inject_hosts: Vec<At<String>>,
    pub(crate) plain_hosts: Vec<At<String>>,
    pub(crate) slots: Vec<At<Slot>>,
    pub(crate) aws: Option<Aws>,
    pub(crate) leniency: Leniency,
    pub(crate) git: Option<GitDefinition>,
    pub(crate) docker: Vec<At<String>>,
    pub(crate) foreign_credentials: bool,
    pub(crate) read_only: Vec<At<String>>,
    pub(crate) full: Vec<At<String>>,
    pub(crate) deny: Vec<At<String>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Aws {
    pub(crate) services: Vec<At<String>>,
    pub(crate) regions: Vec<At<String>>,
}

#[derive(Debug, Clone)]
pub(crate) struct GitDefinition {
    pub(crate) hosts: Vec<At<String>>,
    pub(crate) username: At<String>,
    pub(crate) instead_of: Vec<At<String>>,
}

/// What the parameters are.
pub(crate) type Values = BTreeMap<String, Vec<String>>;

impl Definition {
    /// What the parameters are for one user. `None`: one that has to be given was not.
    pub(crate) fn values(
        &self,
        given: &BTreeMap<String, String>,
    ) -> Result<Result<Values, &Parameter>, Fault> {
        let mut values = Values::new();
        for parameter in &self.parameters {
            let of_this = match (given.get(&parameter.name), &parameter.default) {
                (Some(text), _) => parameter.values(text)?,
                (None, Some(default)) => default.clone(),
                (None, None) => return Ok(Err(parameter)),
            };
            values.insert(parameter.name.clone(), of_this);
        }
        Ok(Ok(values))
    }

    /// Defaults, and samples where there is none.
    pub(crate) fn samples(&self) -> Values {
        let one = |parameter: &Parameter| match &parameter.default {
            Some(default) => default.clone(),
            None => vec![parameter.sample()],
        };
        self.parameters.iter().map(|parameter| (parameter.name.clone(), one(parameter))).collect()
    }

    /// The service with these parameters.
    pub(crate) fn service(&self, values: &Values) -> Result<Service, Failure> {
        check_name(&self.name.value).map_err(|fault| (self.name.span.clone(), fault))?;
        for (index, variable) in self.env.iter().enumerate() {
            check_variable(&variable.value).map_err(|fault| (variable.span.clone(), fault))?;
            if self.env[..index].iter().any(|other| other.value == variable.value) {
                let problem = format!("{} is there twice", variable.value);
                return Err((variable.span.clone(), wrong("env", problem)));
            }
        }
        let service = Service {
            name: self.name.value.clone(),
            env: self.env.iter().map(|variable| variable.value.clone()).collect(),
            extra_env: self.extra_env(values)?,
            base_url_env: self.base_urls(values)?,
            placeholder: self.placeholder.clone(),
            inject_hosts: hosts("inject_hosts", &self.inject_hosts, values)?,
            plain_hosts: self
                .plain_hosts
                .iter()
                .map(|text| pattern("plain_hosts", text))
                .collect::<Result<_, _>>()?,
            slots: self
                .slots
                .iter()
                .map(|slot| check_slot(slot, values))
                .collect::<Result<_, _>>()?,
            kind: self.kind(values)?,
            leniency: self.leniency,
            git: self.git.as_ref().map(|git| git.filled(values)).transpose()?,
            docker: registries(&self.docker)?,
            foreign_credentials: self.foreign_credentials,
            read_only: lines("read_only", &self.read_only)?,
            full: lines("full", &self.full)?,
            deny: lines("deny", &self.deny)?,
        };
        self.check(&service)?;
        Ok(service)
    }

    fn at(&self, key: &str) -> Range<usize> {
        self.keys.get(key).cloned().unwrap_or(0..0)
    }

    fn extra_env(&self, values: &Values) -> Result<Vec<(String, String)>, Failure> {
        let mut variables = Vec::new();
        for (name, value) in &self.extra_env {
            let is_name = (1..=128).contains(&name.value.len())
                && name.value.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'=');
            if !is_name {
                let problem = format!("{:?} is not the name of a variable", name.value);
                return Err((name.span.clone(), wrong("extra_env", problem)));
            }
            if self.env.iter().any(|other| other.value == name.value) {
                let problem = format!("{} holds the credential already, by `env`", name.value);
                return Err((name.span.clone(), wrong("extra_env", problem)));
            }
            let (mut names, mut all) =
                (expand("extra_env", name, values)?, expand("extra_env", value, values)?);
            // A variable cannot hold several regions, say, so the user sets it by themselves.
            let only = (names.pop(), all.pop(), names.is_empty() && all.is_empty());
            if let (Some(name), Some(value), true) = only {
                variables.push((name, value));
            }
        }
        Ok(variables)
    }

    fn base_urls(&self, values: &Values) -> Result<Vec<BaseUrl>, Failure> {
        let mut urls = Vec::new();
        for (variable, path) in &self.base_url_env {
            check_variable(&variable.value).map_err(|fault| (variable.span.clone(), fault))?;
            let parsed = canonical::Path::parse(&path.value, self.leniency);
            if !path.value.is_empty() && parsed.is_err() {
                let problem = format!("{:?} is not a path, such as \"/v1\", or \"\"", path.value);
                return Err((path.span.clone(), wrong("base_url_env", problem)));
            }
            urls.push(BaseUrl { variable: variable.value.clone(), path: path.value.clone() });
        }
        // The gateway's requests go to the first host, which has to be the only one of its kind.
        let first = self.inject_hosts.first().map(|host| expand("inject_hosts", host, values));
        match first.transpose()? {
            Some(hosts) if hosts.len() == 1 => Ok(urls),
            _ => Ok(Vec::new()),
        }
    }

    fn kind(&self, values: &Values) -> Result<Kind, Failure> {
        let Some(aws) = &self.aws else { return Ok(Kind::Static) };
        let words = |key, list: &[At<String>]| {
            let mut words = Vec::new();
            for text in list {
                for word in expand(key, text, values)? {
                    if word.is_empty()
                        || !word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                    {
                        let problem = format!("{word:?} is not a name such as \"bedrock\"");
                        return Err((text.span.clone(), wrong(key, problem)));
                    }
                    words.push(word);
                }
            }
            Ok(words)
        };
        Ok(Kind::Aws {
            services: words("services", &aws.services)?,
            regions: words("regions", &aws.regions)?,
        })
    }

    /// What concerns several keys.
    fn check(&self, service: &Service) -> Result<(), Failure> {
        let shape = &service.placeholder;
        let fault = |key: &str, problem: &str| Err((self.at(key), wrong(key, problem)));
        let is_unreserved = shape
            .prefix
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte));
        if !is_unreserved || shape.prefix.len() > 64 {
            return fault("placeholder", "the prefix is at most 64 of letters, digits and -._~");
        }
        let least = shape.prefix.len() + shape.charset.characters_for(MIN_BITS);
        match shape.length {
            Some(length) if length > MAX_LENGTH => {
                return fault(
                    "placeholder",
                    "no client looks at a length beyond 4096; leave it out",
                );
            }
            // The other half of a pair has bits enough.
            Some(length) if length < least && matches!(service.kind, Kind::Static) => {
                let problem = format!(
                    "a placeholder of {length} characters could be guessed; its length has to be {least} at least, for 96 random bits"
                );
                return fault("placeholder", &problem);
            }
            Some(length) if length < shape.prefix.len() + 8 => {
                return fault("placeholder", "the length leaves too little behind the prefix");
            }
            _ => {}
        }
        if service.slots.is_empty() {
            return fault("slots", "there is none, so the credential would be put nowhere");
        }
        for (index, slot) in service.slots.iter().enumerate() {
            if service.slots[..index].iter().any(|other| other.overlaps(slot)) {
                return Err((self.slots[index].span.clone(), wrong("slots", "it is there twice")));
            }
        }
        if matches!(service.kind, Kind::Aws { .. }) && !(2..=3).contains(&service.env.len()) {
            return fault(
                "env",
                "for AWS there are the variables of the identifier, the secret key and, where there is one, the token of the session",
            );
        }
        for (index, host) in service.inject_hosts.iter().enumerate() {
            if service.plain_hosts.iter().any(|plain| plain.matches(host)) {
                let problem =
                    format!("{host} is among plain_hosts too, which never get the credential");
                return fault("inject_hosts", &problem);
            }
            if service.inject_hosts[..index].contains(host) {
                return fault("inject_hosts", &format!("{host} is there twice"));
            }
        }
        if let Some(git) = &service.git
            && let Some(host) = git.hosts.iter().find(|host| !service.inject_hosts.contains(host))
        {
            return fault("git", &format!("{host} is not among inject_hosts"));
        }
        Ok(())
    }
}

impl GitDefinition {
    fn filled(&self, values: &Values) -> Result<Git, Failure> {
        let mut instead_of = Vec::new();
        for text in &self.instead_of {
            for prefix in expand("instead_of", text, values)? {
                let is_remote = prefix.ends_with([':', '/'])
                    && prefix.len() >= 4
                    && prefix.bytes().all(|byte| byte.is_ascii_graphic());
                if !is_remote {
                    let problem = format!(
                        "{prefix:?} is not how a remote begins, such as \"git@github.com:\""
                    );
                    return Err((text.span.clone(), wrong("instead_of", problem)));
                }
                instead_of.push(prefix);
            }
        }
        let hosts = hosts("hosts", &self.hosts, values)?;
        if hosts.is_empty() {
            let problem = "there is none; name one, such as \"github.com\"";
            return Err((self.username.span.clone(), wrong("hosts", problem)));
        }
        Ok(Git { hosts, username: username(&self.username, values)?, instead_of })
    }
}

fn wrong(key: &str, problem: impl Into<String>) -> Fault {
    Fault::Value { key: key.to_owned(), problem: problem.into() }
}

/// All texts that come of one with parameters in braces.
fn expand(key: &str, text: &At<String>, values: &Values) -> Result<Vec<String>, Failure> {
    let mut texts = vec![String::new()];
    let mut rest = text.value.as_str();
    while let Some(open) = rest.find('{') {
        let (before, after) = rest.split_at(open);
        let name = after[1..].split(|c: char| !c.is_ascii_lowercase() && c != '_').next();
        let name = name.filter(|name| !name.is_empty() && after[1 + name.len()..].starts_with('}'));
        // JSON has braces of its own.
        let Some(name) = name else {
            texts.iter_mut().for_each(|text| text.push_str(&rest[..=open]));
            rest = &after[1..];
            continue;
        };
        let whole = &after[..name.len() + 2];
        texts.iter_mut().for_each(|text| text.push_str(before));
        rest = &after[whole.len()..];
        if key == "extra_env" && [PLACEHOLDER, BASIC].contains(&whole) {
            texts.iter_mut().for_each(|text| text.push_str(whole));
            continue;
        }
        let Some(all) = values.get(name) else {
            let problem = format!("there is no parameter {name:?}; add [parameters.{name}]");
            return Err((text.span.clone(), wrong(key, problem)));
        };
        if texts.len() * all.len() > MAX_ENTRIES {
            let fault = Fault::TooMany { key: key.to_owned(), limit: MAX_ENTRIES };
            return Err((text.span.clone(), fault));
        }
        texts = texts
            .iter()
            .flat_map(|text| all.iter().map(move |one| format!("{text}{one}")))
            .collect();
    }
    texts.iter_mut().for_each(|text| text.push_str(rest));
    Ok(texts)
}

fn hosts(key: &str, list: &[At<String>], values: &Values) -> Result<Vec<Authority>, Failure> {
    let mut hosts = Vec::new();
    for text in list {
        for one in expand(key, text, values)? {
            hosts.push(host(key, &one).map_err(|fault| (text.span.clone(), fault))?);
        }
        if hosts.len() > MAX_ENTRIES {
            let fault = Fault::TooMany { key: key.to_owned(), limit: MAX_ENTRIES };
            return Err((text.span.clone(), fault));
        }
    }
    Ok(hosts)
}

/// A host that a credential may go to: one, over TLS, in the spelling that everything is compared in.
pub(crate) fn host(key: &str, text: &str) -> Result<Authority, Fault> {
    if text.contains('*') {
        let problem = format!(
            "{text:?} has a wildcard, and anybody may have a host there; name the very host"
        );
        return Err(wrong(key, problem));
    }
    let authority =
        Authority::parse(text, 443).map_err(|error| wrong(key, format!("{text:?}: {error}")))?;
    let shown = match authority.port {
        443 => authority.host.to_string(),
        80 => return Err(wrong(key, format!("{text:?}: a credential never goes over cleartext"))),
        _ => authority.to_string(),
    };
    match shown == text {
        true => Ok(authority),
        false => Err(wrong(key, format!("write {shown:?} for {text:?}"))),
    }
}

pub(crate) fn pattern(key: &str, text: &At<String>) -> Result<HostPattern, Failure> {
    let fault = |problem: String| (text.span.clone(), wrong(key, problem));
    let sample: Vec<&str> = text
        .value
        .split('.')
        .map(|label| if matches!(label, "*" | "**") { "x" } else { label })
        .collect();
    let sample = sample.join(".");
    if sample.contains('*') {
        return Err(fault(format!("in {:?}, `*` is not a whole part of the name", text.value)));
    }
    let authority = Authority::parse(&sample, 443)
        .map_err(|error| fault(format!("{:?}: {error}", text.value)))?;
    if authority.host.name().is_none() {
        return Err(fault(format!("{:?} is an address; name a host", text.value)));
    }
    let shown = match authority.port {
        443 => authority.host.to_string(),
        _ => authority.to_string(),
    };
    if shown != sample {
        return Err(fault(format!(
            "{:?} is not in its plain form: lower case, no port 443",
            text.value
        )));
    }
    let name = text.value.split(':').next().unwrap_or_default();
    Ok(HostPattern { pattern: name.to_owned(), port: authority.port })
}

fn check_slot(slot: &At<Slot>, values: &Values) -> Result<Slot, Failure> {
    let fault = |problem: String| Err((slot.span.clone(), wrong("slots", problem)));
    match &slot.value {
        Slot::Header { name, scheme } => {
            if !is_header(name) {
                return fault(format!(
                    "{name:?} is not a header in lower case that can hold a credential"
                ));
            }
            match scheme {
                Some(scheme) if scheme.eq_ignore_ascii_case("basic") => {
                    return fault("write { basic = \"USER\" } for a password".to_owned());
                }
                Some(scheme) if !is_token(scheme) => {
                    return fault(format!("{scheme:?} is not a scheme such as \"Bearer\""));
                }
                _ => {}
            }
        }
        Slot::Basic { username: Some(user) } => {
            let user = At { value: user.clone(), span: slot.span.clone() };
            return Ok(Slot::Basic { username: Some(username(&user, values)?) });
        }
        Slot::Query { key, header } => {
            let is_key = (1..=64).contains(&key.len())
                && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte));
            if !is_key {
                return fault(format!("{key:?} is not a key of letters, digits and -._~"));
            }
            if let Some(name) = header.as_ref().filter(|name| !is_header(name)) {
                return fault(format!(
                    "{name:?} is not a header in lower case that can hold a credential"
                ));
            }
        }
        Slot::WebSocketProtocol { prefix } => {
            if !is_token(prefix) {
                return fault(format!("{prefix:?} is not how a protocol begins"));
            }
        }
        Slot::Basic { username: None } | Slot::BasicUser => {}
    }
    Ok(slot.value.clone())
}

fn username(text: &At<String>, values: &Values) -> Result<String, Failure> {
    let mut all = expand("username", text, values)?;
    let is_name = |name: &String| {
        (1..=128).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':')
    };
    match (all.pop().filter(is_name), all.is_empty()) {
        (Some(name), true) => Ok(name),
        _ => {
            let problem = format!("{:?} is not one user's name", text.value);
            Err((text.span.clone(), wrong("username", problem)))
        }
    }
}

/// A token of HTTP (RFC 9110, section 5.6.2).
fn is_token(text: &str) -> bool {
    let is_char = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    (1..=64).contains(&text.len()) && text.bytes().all(is_char)
}

fn is_header(name: &str) -> bool {
    is_token(name) && *name == name.to_ascii_lowercase() && !NEVER_A_SLOT.contains(&name)
}

fn check_name(name: &str) -> Result<(), Fault> {
    let is_name = (1..=63).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    match is_name {
        true => Ok(()),
        false => {
            Err(wrong("name", format!("{name:?} is not of lower-case letters, digits and `-`")))
        }
    }
}

fn check_variable(name: &str) -> Result<(), Fault> {
    let is_name = (1..=128).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && !name.starts_with(|first: char| first.is_ascii_digit());
    match is_name {
        true => Ok(()),
        false => Err(wrong("env", format!("{name:?} is not the name of a variable"))),
    }
}

/// A name that needs no escapes in JSON.
fn registries(list: &[At<String>]) -> Result<Vec<String>, Failure> {
    let is_name = |name: &String| {
        !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.:/_".contains(&byte))
    };
    if let Some(name) = list.iter().find(|name| !is_name(&name.value)) {
        let problem = format!("{:?} is not a registry such as \"ghcr.io\"", name.value);
        return Err((name.span.clone(), wrong("docker", problem)));
    }
    Ok(list.iter().map(|name| name.value.clone()).collect())
}

/// Rules are parsed where they are judged; here they are lines.
fn lines(key: &str, list: &[At<String>]) -> Result<Vec<String>, Failure> {
    for line in list {
        if line.value.trim().is_empty() || line.value.chars().any(char::is_control) {
            return Err((
                line.span.clone(),
                wrong(key, "a rule is one line, such as \"READ /v1/**\""),
            ));
        }
    }
    Ok(list.iter().map(|line| line.value.clone()).collect())
}

impl HostPattern {
    /// Whether a host is meant.
    pub fn matches(&self, host: &Authority) -> bool {
        let Some(name) = host.host.name() else { return false };
        let pattern: Vec<&str> = self.pattern.split('.').collect();
        let labels: Vec<&str> = name.labels().collect();
        host.port == self.port && labels_match(&pattern, &labels)
    }
}

/// `*` is one label, `**` any number, also none.
fn labels_match(pattern: &[&str], labels: &[&str]) -> bool {
    // What can be left of the labels once the patterns so far are used up.
    let mut open = vec![false; labels.len() + 1];
    open[0] = true;
    for part in pattern {
        let mut next = vec![false; labels.len() + 1];
        for at in 0..=labels.len() {
            match *part {
                "**" => next[at] = open[at] || (at > 0 && next[at - 1]),
                _ => next[at] = at > 0 && open[at - 1] && (*part == "*" || *part == labels[at - 1]),
            }
        }
        open = next;
    }
    open[labels.len()]
}

impl Slot {
    /// Whether one place could be read as both.
    pub fn overlaps(&self, other: &Self) -> bool {
        let is_authorization = |name: &String| name == "authorization";
        match (self, other) {
            (Self::Header { name: a, scheme: x }, Self::Header { name: b, scheme: y }) => {
                let same = match (x, y) {
                    (Some(x), Some(y)) => x.eq_ignore_ascii_case(y),
                    _ => true,
                };
                a == b && same
            }
            (Self::Header { name, scheme: None }, Self::Basic { .. } | Self::BasicUser)
            | (Self::Basic { .. } | Self::BasicUser, Self::Header { name, scheme: None }) => {
                is_authorization(name)
            }
            (Self::Basic { username: x }, Self::Basic { username: y }) => {
                x.is_none() || y.is_none() || x == y
            }
            (Self::Basic { .. } | Self::BasicUser, Self::BasicUser)
            | (Self::BasicUser, Self::Basic { .. }) => true,
            (Self::Query { key: a, .. }, Self::Query { key: b, .. }) => a == b,
            (Self::WebSocketProtocol { prefix: a }, Self::WebSocketProtocol { prefix: b }) => {
                a.starts_with(b.as_str()) || b.starts_with(a.as_str())
            }
            _ => false,
        }
    }
}
