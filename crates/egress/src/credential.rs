//! Credentials of one sandbox: where they go, and what of a request says that they should.
//!
//! A guest has placeholders. Where one stands alone in a slot of its service, at a host of its
//! service, in a request that a rule of its service allows, the credential takes its place. Anywhere
//! else it is a sign that something is wrong, and the request goes nowhere.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use canonical::{Authority, Path, Query};
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use redact::{Covered, Redactor};
use services::{Kind, Service, Slot};
use subtle::ConstantTimeEq as _;
use wire::text::Secret;
use zeroize::Zeroizing;

use crate::{Error, basic};

/// Whether a header carries credentials, at whatever service.
fn is_credential(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "authorization"
            | "x-api-key"
            | "api-key"
            | "x-goog-api-key"
            | "private-token"
            | "job-token"
            | "deploy-token"
            | "x-amz-security-token"
            | "x-auth-token"
    )
}

/// Keys of queries that do.
const CREDENTIAL_KEYS: [&str; 6] = [
    "access_token",
    "private_token",
    "X-Amz-Credential",
    "X-Amz-Signature",
    "X-Goog-Signature",
    "X-Amz-Security-Token",
];

/// A credential, and what the guest has in its place.
pub struct Credential {
    /// What it is for.
    pub service: Arc<Service>,
    /// What no guest sees; of AWS `ID:SECRET[:TOKEN]`.
    pub secret: Secret,
    /// What stands for it in the guest; of AWS `ID:SECRET`.
    pub placeholder: String,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("service", &self.service.name).finish_non_exhaustive()
    }
}

/// A credential or what is left of one that was taken away.
pub(crate) struct Bound {
    pub(crate) service: Arc<Service>,
    pub(crate) placeholder: String,
    pub(crate) secret: Option<Secret>,
    slots: Arc<[Prepared]>,
}

/// A slot of a service, with what is looked up for each request read once.
struct Prepared {
    slot: Slot,
    /// The header that it is, or that its value is moved to.
    header: Option<HeaderName>,
}

impl Prepared {
    fn all(service: &Service) -> Arc<[Self]> {
        let prepared = |slot: &Slot| {
            let name = match slot {
                Slot::Header { name, .. } => Some(name),
                Slot::Query { header, .. } => header.as_ref(),
                _ => None,
            };
            let header = name.and_then(|name| HeaderName::from_bytes(name.as_bytes()).ok());
            Self { slot: slot.clone(), header }
        };
        service.slots.iter().map(prepared).collect()
    }

    /// The header that it is.
    fn own_header(&self) -> Option<&HeaderName> {
        self.header.as_ref().filter(|_| matches!(self.slot, Slot::Header { .. }))
    }
}

/// What is known of a host that credentials are for.
pub(crate) struct Managed {
    pub(crate) bound: Vec<Arc<Bound>>,
    pub(crate) redactor: Option<Arc<Redactor>>,
}

/// All of a sandbox.
#[derive(Default)]
pub(crate) struct Credentials {
    pub(crate) bound: Vec<Arc<Bound>>,
    hosts: HashMap<Authority, Managed>,
    finder: Option<AhoCorasick>,
}

/// Why a request's credentials are not as they must be. Never says whether there is a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Misuse {
    #[error("the request has `{0}` more than once")]
    Duplicate(String),
    #[error("the placeholder for {0} stands where no credential belongs")]
    Misplaced(String),
    #[error("no rule of {0} allows this request, so its credential is not for it")]
    Unserved(String),
    #[error("the credential for {0} was taken away")]
    Revoked(String),
    #[error("credentials do not go over connections that are not encrypted")]
    Cleartext,
    #[error("requests to this host are signed, and this one is not")]
    Unsigned,
    #[error("the request's signature: {0}")]
    Signature(String),
    #[error(
        "`{0}` holds a credential that is not this sandbox's own, which this host does not get"
    )]
    Foreign(String),
}

impl Credentials {
    pub(crate) fn new(bound: Vec<Arc<Bound>>) -> Result<Self, Error> {
        let mut hosts: HashMap<Authority, Managed> = HashMap::new();
        for one in &bound {
            for authority in &one.service.inject_hosts {
                let managed = hosts
                    .entry(authority.clone())
                    .or_insert_with(|| Managed { bound: Vec::new(), redactor: None });
                managed.bound.push(one.clone());
            }
        }
        for managed in hosts.values_mut() {
            let mut parts: Vec<(Secret, &[u8])> = Vec::new();
            for one in &managed.bound {
                let Some(secret) = &one.secret else { continue };
                match one.service.kind {
                    Kind::Static => parts.push((secret.clone(), one.placeholder.as_bytes())),
                    // The ID is public.
                    Kind::Aws { .. } => {
                        for part in secret.expose().split(|byte| *byte == b':').skip(1) {
                            parts.push((
                                Secret::new(part.to_vec())
                                    .map_err(|_| Error::Secret(one.service.name.clone()))?,
                                b"",
                            ));
                        }
                    }
                }
            }
            if parts.is_empty() {
                continue;
            }
            let covered = parts.iter().map(|(secret, placeholder)| Covered { secret, placeholder });
            managed.redactor = Some(Arc::new(Redactor::new(covered).map_err(Error::Redact)?));
        }
        let finder = match bound.is_empty() {
            true => None,
            false => Some(
                AhoCorasick::builder()
                    .match_kind(MatchKind::LeftmostFirst)
                    .build(bound.iter().map(|one| one.mark()))
                    .map_err(|error| {
                        Error::Redact(redact::RedactError::Automaton(error.to_string()))
                    })?,
            ),
        };
        Ok(Self { bound, hosts, finder })
    }

    pub(crate) fn at(&self, authority: &Authority) -> Option<&Managed> {
        self.hosts.get(authority)
    }

    /// The service whose placeholder is in `text`.
    pub(crate) fn found_in(&self, text: &[u8]) -> Option<&str> {
        let found = self.finder.as_ref()?.find(text)?;
        Some(&self.bound[found.pattern().as_usize()].service.name)
    }

    /// No placeholder may be here, where nothing is put in.
    pub(crate) fn forbid(
        &self,
        headers: &HeaderMap,
        path: &Path,
        query: &str,
    ) -> Result<(), Misuse> {
        let misplaced = |name: &str| Misuse::Misplaced(name.to_owned());
        if self.finder.is_none() {
            return Ok(());
        }
        for (name, value) in headers {
            if value.is_sensitive() {
                continue;
            }
            let basic = value
                .as_bytes()
                .split(|byte| *byte == b' ')
                .nth(1)
                .and_then(|text| STANDARD.decode(text).ok());
            let found = self
                .found_in(value.as_bytes())
                .or_else(|| self.found_in(name.as_str().as_bytes()))
                .or_else(|| basic.as_deref().and_then(|text| self.found_in(text)));
            if let Some(service) = found {
                return Err(misplaced(service));
            }
        }
        for text in [path.as_str(), query] {
            if let Some(service) = self.found_in(text.as_bytes()) {
                return Err(misplaced(service));
            }
        }
        Ok(())
    }
}

impl Bound {
    pub(crate) fn new(credential: Credential) -> Result<Self, Error> {
        let Credential { service, secret, placeholder } = credential;
        let plain = |bytes: &[u8]| {
            !bytes.is_empty() && bytes.iter().all(|byte| (0x21..0x7f).contains(byte))
        };
        if !plain(secret.expose()) {
            return Err(Error::Secret(service.name.clone()));
        }
        if placeholder.len() < 12 || !plain(placeholder.as_bytes()) {
            return Err(Error::Placeholder(service.name.clone()));
        }
        let slots = Prepared::all(&service);
        Ok(Self { service, placeholder, secret: Some(secret), slots })
    }

    /// The same without its secret, which was taken away.
    pub(crate) fn revoked(&self) -> Self {
        Self {
            service: self.service.clone(),
            placeholder: self.placeholder.clone(),
            secret: None,
            slots: self.slots.clone(),
        }
    }

    /// What gives the placeholder away in other text.
    fn mark(&self) -> &str {
        match self.service.kind {
            Kind::Static => &self.placeholder,
            Kind::Aws { .. } => self.placeholder.split(':').nth(1).unwrap_or(&self.placeholder),
        }
    }

    fn is_placeholder(&self, text: &[u8]) -> bool {
        matches!(self.service.kind, Kind::Static)
            && bool::from(text.ct_eq(self.placeholder.as_bytes()))
    }
}

impl Managed {
    /// Puts the credential in, if its placeholder asks for it, and gives its service's name. What
    /// was put in is marked as sensitive. The query's text is what is sent after it, of which `asked`
    /// is what came.
    pub(crate) fn inject(
        &self,
        headers: &mut HeaderMap,
        query: &mut Zeroizing<String>,
        asked: &Query,
        serves: impl Fn(&str) -> bool,
        is_secure: bool,
    ) -> Result<Option<String>, Misuse> {
        let mut used = None;
        for name in headers.keys() {
            if is_credential(name) && headers.get_all(name).iter().nth(1).is_some() {
                return Err(Misuse::Duplicate(name.as_str().to_owned()));
            }
        }
        for one in &self.bound {
            for slot in &*one.slots {
                let Some(place) = one.place(slot, headers, query)? else { continue };
                let name = &one.service.name;
                if !serves(name) {
                    return Err(Misuse::Unserved(name.clone()));
                }
                if !is_secure {
                    return Err(Misuse::Cleartext);
                }
                let secret = one.secret.as_ref().ok_or_else(|| Misuse::Revoked(name.clone()))?;
                place.fill(secret, headers, query).ok_or_else(|| Misuse::Revoked(name.clone()))?;
                used = Some(name.clone());
            }
        }
        let lenient = self.bound.iter().any(|one| one.service.foreign_credentials);
        if !lenient {
            self.refuse_foreign(headers, query, asked)?;
        }
        Ok(used)
    }

    fn refuse_foreign(
        &self,
        headers: &HeaderMap,
        query: &str,
        asked: &Query,
    ) -> Result<(), Misuse> {
        let prepared = || self.bound.iter().flat_map(|one| &*one.slots);
        let slots = || prepared().map(|prepared| &prepared.slot);
        for (name, value) in headers {
            let is_slot = || prepared().any(|slot| slot.own_header() == Some(name));
            if !value.is_sensitive() && (is_credential(name) || is_slot()) {
                return Err(Misuse::Foreign(name.as_str().to_owned()));
            }
        }
        for slot in slots() {
            let Slot::WebSocketProtocol { prefix } = slot else { continue };
            for value in
                headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter(|value| !value.is_sensitive())
            {
                let text = value.to_str().unwrap_or_default();
                if text.split(',').any(|item| item.trim().starts_with(prefix.as_str())) {
                    return Err(Misuse::Foreign(SEC_WEBSOCKET_PROTOCOL.as_str().to_owned()));
                }
            }
        }
        let changed;
        let query = match query == asked.as_str() {
            true => asked,
            false => {
                let Ok(query) = Query::parse(query) else { return Ok(()) };
                changed = query;
                &changed
            }
        };
        for (key, value) in query.pairs() {
            let of_slot =
                slots().any(|slot| matches!(slot, Slot::Query { key: slot, .. } if slot == key));
            let is_own = self.bound.iter().any(|one| {
                one.secret
                    .as_ref()
                    .is_some_and(|secret| bool::from(secret.expose().ct_eq(value.as_bytes())))
            });
            if (of_slot || CREDENTIAL_KEYS.iter().any(|known| known.eq_ignore_ascii_case(key)))
                && !is_own
            {
                return Err(Misuse::Foreign(key.to_owned()));
            }
        }
        Ok(())
    }
}

/// Where a placeholder stands.
enum Place {
    /// After a scheme, which stays as it is spelled.
    Header {
        name: HeaderName,
        scheme: usize,
    },
    Basic {
        before: String,
        after: String,
    },
    QueryToHeader {
        key: String,
        header: HeaderName,
    },
    Query {
        key: String,
    },
    Protocol {
        prefix: String,
    },
}

impl Bound {
    fn place(
        &self,
        prepared: &Prepared,
        headers: &HeaderMap,
        query: &str,
    ) -> Result<Option<Place>, Misuse> {
        let authorization = || headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        Ok(match &prepared.slot {
            Slot::Header { scheme, .. } => {
                let Some(name) = &prepared.header else { return Ok(None) };
                let mut values = headers.get_all(name).iter();
                let Some(value) = values.next() else { return Ok(None) };
                if values.next().is_some() {
                    return Err(Misuse::Duplicate(name.as_str().to_owned()));
                }
                let value = value.as_bytes();
                let before = match scheme {
                    None => Some(0),
                    Some(scheme) => value
                        .iter()
                        .position(|byte| *byte == b' ')
                        .filter(|at| value[..*at].eq_ignore_ascii_case(scheme.as_bytes()))
                        .map(|at| at + 1),
                };
                before
                    .filter(|at| self.is_placeholder(&value[*at..]))
                    .map(|scheme| Place::Header { name: name.clone(), scheme })
            }
            Slot::Basic { username } => {
                authorization().and_then(basic::read).and_then(|(user, password)| {
                    let fits = username.as_ref().is_none_or(|wanted| *wanted == user);
                    (fits && self.is_placeholder(password.as_bytes()))
                        .then(|| Place::Basic { before: format!("{user}:"), after: String::new() })
                })
            }
            Slot::BasicUser => {
                authorization().and_then(basic::read).and_then(|(user, password)| {
                    self.is_placeholder(user.as_bytes()).then(|| Place::Basic {
                        before: String::new(),
                        after: format!(":{password}"),
                    })
                })
            }
            Slot::Query { key, .. } => {
                let parsed = Query::parse(query).unwrap_or_default();
                let mut values = parsed.values(key);
                let found =
                    values.next().is_some_and(|value| self.is_placeholder(value.as_bytes()));
                if !found {
                    return Ok(None);
                }
                if values.next().is_some() {
                    return Err(Misuse::Duplicate(key.clone()));
                }
                let key = key.clone();
                match prepared.header.clone() {
                    Some(header) if headers.contains_key(&header) => {
                        return Err(Misuse::Duplicate(header.as_str().to_owned()));
                    }
                    Some(header) => Some(Place::QueryToHeader { key, header }),
                    None => Some(Place::Query { key }),
                }
            }
            Slot::WebSocketProtocol { prefix } => {
                let mut values = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
                let Some(text) = values.next().and_then(|value| value.to_str().ok()) else {
                    return Ok(None);
                };
                let is_here = |item: &str| {
                    item.trim()
                        .strip_prefix(prefix.as_str())
                        .is_some_and(|token| self.is_placeholder(token.as_bytes()))
                };
                match text.split(',').filter(|item| is_here(item)).count() {
                    0 => None,
                    1 if values.next().is_none() => {
                        Some(Place::Protocol { prefix: prefix.clone() })
                    }
                    _ => return Err(Misuse::Duplicate(SEC_WEBSOCKET_PROTOCOL.as_str().to_owned())),
                }
            }
        })
    }
}

impl Place {
    /// Puts the secret there; nothing if it does not fit, which a secret that was checked does.
    fn fill(
        self,
        secret: &Secret,
        headers: &mut HeaderMap,
        query: &mut Zeroizing<String>,
    ) -> Option<()> {
        let secret = std::str::from_utf8(secret.expose()).ok()?;
        match self {
            Self::Header { name, scheme: 0 } => {
                headers.insert(name, sensitive(secret)?);
            }
            Self::Header { name, scheme } => {
                let value = headers.get_mut(&name)?;
                let scheme = std::str::from_utf8(value.as_bytes().get(..scheme)?).ok()?;
                let whole = Zeroizing::new([scheme, secret].concat());
                *value = sensitive(&whole)?;
            }
            Self::Basic { before, after } => {
                let plain = Zeroizing::new([before.as_str(), secret, after.as_str()].concat());
                headers.insert(AUTHORIZATION, sensitive(&basic::write(&plain))?);
            }
            Self::QueryToHeader { key, header } => {
                *query = Zeroizing::new(without(query, &key).join("&"));
                headers.insert(header, sensitive(secret)?);
            }
            Self::Query { key } => {
                let encoded: String = secret
                    .bytes()
                    .map(|byte| match byte {
                        b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
                        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
                        byte => format!("%{byte:02X}"),
                    })
                    .collect();
                let own = format!("{key}={encoded}");
                let mut parts = without(query, &key);
                parts.push(&own);
                *query = Zeroizing::new(parts.join("&"));
            }
            Self::Protocol { prefix } => {
                let text = headers.get(SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
                let items: Vec<String> = text
                    .split(',')
                    .map(|item| match item.trim() {
                        item if item.starts_with(&prefix) => format!("{prefix}{secret}"),
                        item => item.to_owned(),
                    })
                    .collect();
                headers
                    .insert(SEC_WEBSOCKET_PROTOCOL, sensitive(&Zeroizing::new(items.join(", ")))?);
            }
        }
        Some(())
    }
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The parts of a query without those of a key.
fn without<'a>(query: &'a str, key: &str) -> Vec<&'a str> {
    let is_of = |part: &str| Query::parse(part).is_ok_and(|one| one.values(key).next().is_some());
    query.split('&').filter(|part| !is_of(part)).collect()
}
