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

/// Headers that carry credentials, at whatever service.
const CREDENTIAL_HEADERS: [&str; 9] = [
    "authorization",
    "x-api-key",
    "api-key",
    "x-goog-api-key",
    "private-token",
    "job-token",
    "deploy-token",
    "x-amz-security-token",
    "x-auth-token",
];
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
        Ok(Self { service, placeholder, secret: Some(secret) })
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
    /// was put in is marked as sensitive. The query's text is what is sent after it.
    pub(crate) fn inject(
        &self,
        headers: &mut HeaderMap,
        query: &mut Zeroizing<String>,
        serves: impl Fn(&str) -> bool,
        is_secure: bool,
    ) -> Result<Option<String>, Misuse> {
        let mut used = None;
        for name in headers.keys() {
            let is_credential = CREDENTIAL_HEADERS.contains(&name.as_str());
            if is_credential && headers.get_all(name).iter().nth(1).is_some() {
                return Err(Misuse::Duplicate(name.as_str().to_owned()));
            }
        }
        for one in &self.bound {
            for slot in &one.service.slots {
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
            self.refuse_foreign(headers, query)?;
        }
        Ok(used)
    }

    fn refuse_foreign(&self, headers: &HeaderMap, query: &str) -> Result<(), Misuse> {
        let slots = || self.bound.iter().flat_map(|one| &one.service.slots);
        for (name, value) in headers {
            let is_slot = slots().any(
                |slot| matches!(slot, Slot::Header { name: slot, .. } if slot == name.as_str()),
            );
            let is_credential = is_slot || CREDENTIAL_HEADERS.contains(&name.as_str());
            if is_credential && !value.is_sensitive() {
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
        let Ok(query) = Query::parse(query) else { return Ok(()) };
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
    Header { name: HeaderName, before: String, after: String, is_basic: bool },
    QueryToHeader { key: String, header: HeaderName },
    Query { key: String },
    Protocol { prefix: String },
}

impl Bound {
    fn place(
        &self,
        slot: &Slot,
        headers: &HeaderMap,
        query: &str,
    ) -> Result<Option<Place>, Misuse> {
        let authorization = || headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        Ok(match slot {
            Slot::Header { name, scheme } => {
                let mut values = headers.get_all(name.as_str()).iter();
                let Some(value) = values.next() else { return Ok(None) };
                if values.next().is_some() {
                    return Err(Misuse::Duplicate(name.clone()));
                }
                let Ok(value) = value.to_str() else { return Ok(None) };
                let before = match scheme {
                    None => Some((String::new(), value)),
                    Some(scheme) => value
                        .split_once(' ')
                        .filter(|(word, _)| word.eq_ignore_ascii_case(scheme))
                        .map(|(word, token)| (format!("{word} "), token)),
                };
                before.filter(|(_, token)| self.is_placeholder(token.as_bytes())).and_then(
                    |(before, _)| {
                        Some(Place::Header {
                            name: HeaderName::from_bytes(name.as_bytes()).ok()?,
                            before,
                            after: String::new(),
                            is_basic: false,
                        })
                    },
                )
            }
            Slot::Basic { username } => {
                authorization().and_then(basic::read).and_then(|(user, password)| {
                    let fits = username.as_ref().is_none_or(|wanted| *wanted == user);
                    (fits && self.is_placeholder(password.as_bytes())).then(|| Place::Header {
                        name: AUTHORIZATION,
                        before: format!("{user}:"),
                        after: String::new(),
                        is_basic: true,
                    })
                })
            }
            Slot::BasicUser => {
                authorization().and_then(basic::read).and_then(|(user, password)| {
                    self.is_placeholder(user.as_bytes()).then(|| Place::Header {
                        name: AUTHORIZATION,
                        before: String::new(),
                        after: format!(":{password}"),
                        is_basic: true,
                    })
                })
            }
            Slot::Query { key, header } => {
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
                match header.as_ref().and_then(|name| HeaderName::from_bytes(name.as_bytes()).ok())
                {
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
            Self::Header { name, before, after, is_basic } => {
                let plain = Zeroizing::new(format!("{before}{secret}{after}"));
                let value = match is_basic {
                    false => plain,
                    true => basic::write(&plain),
                };
                headers.insert(name, sensitive(&value)?);
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
