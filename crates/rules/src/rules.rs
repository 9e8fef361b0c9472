//! Layers put together, and decisions.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use canonical::{Authority, Host, Leniency, Name, Path};

use crate::body::{BodyRule, Tier};
use crate::entry::{Entry, Gate, Match, Place, Side};
use crate::error::{Error, Fault};
use crate::index::Index;
use crate::layer::{Layer, Rule};
use crate::line::{DEFAULT_PORT, Line, What};
use crate::method::Methods;
use crate::origin::Origin;
use crate::request::{Allowed, Endpoint, Kind, Mode, Refusal, Request, Verdict};
use crate::tenants::shared_suffix;

/// What a sandbox may reach: what any of its own layers allows, each narrowing layer that has a list
/// allows too, and no layer denies. Cheap to clone.
#[derive(Clone)]
pub struct Rules(Arc<Inner>);

/// Something about rules that are well-formed and yet perhaps not what was meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Warning {
    /// The rule.
    pub rule: Origin,
    /// What is the matter with it.
    pub text: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.text)
    }
}

pub(crate) struct Inner {
    mode: Mode,
    /// All rules, the most specific first: of several that match, the first is shown.
    rules: Vec<Compiled>,
    own: Index,
    deny: Index,
    bounds: Vec<Bound>,
    owned: Vec<Owned>,
    /// Of services, by the bits of [`Allowed`].
    names: Vec<Box<str>>,
    open: Origin,
    warnings: Vec<Warning>,
}

pub(crate) struct Compiled {
    pub(crate) rule: Rule,
    /// The bit of its service.
    pub(crate) service: u128,
    /// What a denial leaves out.
    pub(crate) except: Vec<Entry>,
}

/// What a narrowing layer allows.
struct Bound {
    /// The hosts that it is about, if not all.
    only: Option<Vec<Authority>>,
    list: Index,
}

/// A host of a service.
struct Owned {
    host: Authority,
    leniency: Leniency,
    service: Box<str>,
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { mode, rules, .. } = &*self.0;
        f.debug_struct("Rules").field("mode", mode).field("rules", &rules.len()).finish()
    }
}

impl Rules {
    /// Most services that rules of one sandbox can be about.
    pub const MAX_SERVICES: usize = 128;

    /// Puts layers together. `own` add up; each of `bounds` narrows; denials of all add up.
    ///
    /// # Errors
    /// Rules that cannot hold together: a tunnel to a host of a service, or too many services.
    pub fn new(mode: Mode, own: Vec<Layer>, bounds: Vec<Layer>) -> Result<Self, Error> {
        Builder::default().build(mode, own, bounds).map(|inner| Self(Arc::new(inner)))
    }

    /// Rules that allow nothing.
    pub fn offline() -> Self {
        Self(Arc::new(Inner::empty(Mode::Offline)))
    }

    /// The mode that they were made for.
    pub fn mode(&self) -> Mode {
        self.0.mode
    }

    /// What is well-formed and perhaps not meant: an allowed line that a denial covers wholly, or one
    /// for hosts that anybody can have.
    pub fn warnings(&self) -> &[Warning] {
        &self.0.warnings
    }

    /// Whether any connection to a name could be allowed. For DNS.
    ///
    /// # Errors
    /// Why none could.
    pub fn resolves(&self, name: &Name) -> Result<(), Refusal> {
        self.0.reachable(&Host::Name(name.clone()), None).map(|_| ())
    }

    /// Whether a connection may be made, and what it may carry.
    ///
    /// # Errors
    /// Why not.
    pub fn endpoint(&self, host: &Host, port: u16) -> Result<Endpoint<'_>, Refusal> {
        self.0.endpoint(host, port)
    }

    /// Decides about a request.
    pub fn request(&self, request: &Request<'_>) -> Verdict<'_> {
        self.0.request(request)
    }
}

/// What was found in a list.
#[derive(Default, Clone, Copy)]
struct Found {
    rule: Option<u32>,
    services: u128,
    /// Services of rules that depend on the body.
    waiting: u128,
    /// Some rule depends on the body.
    waits: bool,
}

impl Inner {
    fn empty(mode: Mode) -> Self {
        Self {
            mode,
            rules: Vec::new(),
            own: Index::new(Side::Allow),
            deny: Index::new(Side::Deny),
            bounds: Vec::new(),
            owned: Vec::new(),
            names: Vec::new(),
            open: Origin { source: "network mode".into(), line: 0, text: "open".into() },
            warnings: Vec::new(),
        }
    }

    pub(crate) fn compiled(&self, entry: &Entry) -> &Compiled {
        &self.rules[entry.rule as usize]
    }

    pub(crate) fn origin(&self, rule: u32) -> &Origin {
        &self.rules[rule as usize].rule.origin
    }

    fn bounds_at<'a>(&'a self, host: &Host, port: Option<u16>) -> impl Iterator<Item = &'a Index> {
        self.bounds.iter().filter_map(move |bound| {
            let is_about = bound.only.as_ref().is_none_or(|hosts| {
                hosts
                    .iter()
                    .any(|one| one.host == *host && port.is_none_or(|port| one.port == port))
            });
            is_about.then_some(&bound.list)
        })
    }

    /// Whether any rule lets something through to a host, at a port or at any.
    fn reachable(&self, host: &Host, port: Option<u16>) -> Result<(), Refusal> {
        let whom = || match port {
            Some(port) => At(host, port).to_string(),
            None => host.to_string(),
        };
        if self.mode == Mode::Offline {
            return Err(Refusal {
                rule: None,
                reason: format!("the network is offline; {} is not reached", whom()),
                hint: whom(),
            });
        }
        let place = Place::of_host(host, port);
        let mut denied: Option<u32> = None;
        self.deny.each(&place, |entry| {
            if matches!(entry.gate, Gate::Whole) && (port.is_some() || entry.port.is_none()) {
                denied = Some(denied.map_or(entry.rule, |rule| rule.min(entry.rule)));
            }
        });
        if let Some(rule) = denied {
            return Err(self.denied(rule, &whom()));
        }
        let is_there = |list: &Index| {
            let mut found = false;
            list.each(&place, |_| found = true);
            found
        };
        if self.mode != Mode::Open && !is_there(&self.own) {
            return Err(Refusal {
                rule: None,
                reason: format!("no rule allows {}", whom()),
                hint: whom(),
            });
        }
        if !self.bounds_at(host, port).all(is_there) {
            return Err(Refusal {
                rule: None,
                reason: format!("the policy above does not allow {}", whom()),
                hint: String::new(),
            });
        }
        Ok(())
    }

    fn denied(&self, rule: u32, what: &dyn fmt::Display) -> Refusal {
        let origin = self.origin(rule);
        Refusal {
            rule: Some(origin.clone()),
            reason: format!("{what} is denied by {origin}"),
            hint: String::new(),
        }
    }

    fn endpoint(&self, host: &Host, port: u16) -> Result<Endpoint<'_>, Refusal> {
        self.reachable(host, Some(port))?;
        let place = Place::of_host(host, Some(port));
        #[derive(Default, Clone, Copy)]
        struct Seen {
            tcp: Option<u32>,
            whole: Option<u32>,
            inside: Option<u32>,
        }
        let see = |list: &Index| {
            let mut seen = Seen::default();
            list.each(&place, |entry| {
                let slot = match entry.gate {
                    Gate::Tcp => &mut seen.tcp,
                    Gate::Whole => &mut seen.whole,
                    _ => &mut seen.inside,
                };
                *slot = Some(slot.map_or(entry.rule, |rule| rule.min(entry.rule)));
            });
            seen
        };
        let own = see(&self.own);
        let deny = see(&self.deny);
        let bounds: Vec<Seen> = self.bounds_at(host, Some(port)).map(see).collect();
        let owner =
            self.owned.iter().find(|owned| owned.host.host == *host && owned.host.port == port);
        let looks_inside = deny.inside.is_some() || owner.is_some();

        let is_tcp = own.tcp.is_some()
            && deny.tcp.is_none()
            && !looks_inside
            && bounds.iter().all(|seen| seen.tcp.is_some());
        let may_request = (own.whole.is_some() || own.inside.is_some() || self.mode == Mode::Open)
            && bounds.iter().all(|seen| seen.whole.is_some() || seen.inside.is_some());
        let is_tunnel = (own.whole.is_some() || self.mode == Mode::Open)
            && !looks_inside
            && bounds.iter().all(|seen| seen.whole.is_some());
        let kind = match (is_tcp, is_tunnel, may_request) {
            (true, ..) => Kind::Tcp,
            (_, true, _) => Kind::Tunnel,
            (.., true) => Kind::Http,
            _ => {
                let whom = At(host, port);
                return Err(match deny.tcp {
                    Some(rule) => self.denied(rule, &whom),
                    None => Refusal {
                        rule: None,
                        reason: format!(
                            "the rules for {whom} leave nothing that may be sent there"
                        ),
                        hint: String::new(),
                    },
                });
            }
        };
        let rule = match kind {
            Kind::Tcp => own.tcp,
            Kind::Tunnel => own.whole,
            Kind::Http => own.whole.or(own.inside),
        };
        let mut private = false;
        if let Host::Address(address) = host {
            self.own.each(&place, |entry| private |= entry.is_private(*address));
        }
        let mut leniency = Leniency::default();
        if let Some(owned) = owner {
            leniency = owned.leniency;
        }
        // Who writes an encoded separator in a rule expects requests to have one.
        self.own.each(&place, |entry| {
            let Rule { line, encoded_separators, .. } = &self.compiled(entry).rule;
            leniency.encoded_separators |= *encoded_separators || line.has_encoded_separators();
        });
        Ok(Endpoint {
            kind,
            rule: rule.map_or(&self.open, |rule| self.origin(rule)),
            allow_private: private,
            leniency,
        })
    }

    fn request<'r>(&'r self, request: &Request<'_>) -> Verdict<'r> {
        if self.mode == Mode::Offline {
            return Verdict::Deny(Refusal {
                rule: None,
                reason: format!("the network is offline; {} is not sent", Shown(request)),
                hint: String::new(),
            });
        }
        // Over HTTP/2 a WebSocket is asked for by CONNECT (RFC 8441). To rules it is the same.
        let word = match request.method {
            "CONNECT" if request.websocket => "GET",
            word => word,
        };
        let Some(method) = Methods::of(word) else {
            return Verdict::Deny(Refusal {
                rule: None,
                reason: format!("no rule can allow the method {:?}", request.method),
                hint: String::new(),
            });
        };
        let place = Place::of_request(request);
        let mut denied: Option<u32> = None;
        let mut deny_waits = false;
        self.deny.each(&place, |entry| match self.meets_denial(entry, request, method) {
            Match::No => {}
            Match::Yes => denied = Some(denied.map_or(entry.rule, |rule| rule.min(entry.rule))),
            Match::Body => deny_waits = true,
        });
        if let Some(rule) = denied {
            return Verdict::Deny(self.denied(rule, &Shown(request)));
        }
        let own = self.look(&self.own, &place, request, method);
        let is_allowed = own.rule.is_some() || self.mode == Mode::Open;
        if !is_allowed && !own.waits {
            return Verdict::Deny(self.unmentioned(request, method));
        }
        let mut bound_waits = false;
        for list in self.bounds_at(request.host, Some(request.port)) {
            let found = self.look(list, &place, request, method);
            if found.rule.is_none() {
                if !found.waits {
                    return Verdict::Deny(Refusal {
                        rule: None,
                        reason: format!("the policy above does not allow {}", Shown(request)),
                        hint: String::new(),
                    });
                }
                bound_waits = true;
            }
        }
        let credential_waits = own.waiting & !own.services != 0;
        if is_allowed && !deny_waits && !bound_waits && !credential_waits {
            return Verdict::Allow(self.allowed(own.rule, own.services));
        }
        self.body(&place, request, method)
    }

    pub(crate) fn allowed(&self, rule: Option<u32>, services: u128) -> Allowed<'_> {
        let rule = rule.map_or(&self.open, |rule| self.origin(rule));
        Allowed { rule, names: &self.names, services }
    }

    fn look(
        &self,
        list: &Index,
        place: &Place<'_>,
        request: &Request<'_>,
        method: Methods,
    ) -> Found {
        let mut found = Found::default();
        list.each(place, |entry| match entry.meets(request, method, Side::Allow) {
            Match::No => {}
            Match::Yes => {
                found.rule = Some(found.rule.map_or(entry.rule, |rule| rule.min(entry.rule)));
                found.services |= self.compiled(entry).service;
            }
            Match::Body => {
                found.waits = true;
                found.waiting |= self.compiled(entry).service;
            }
        });
        found
    }

    fn meets_denial(&self, entry: &Entry, request: &Request<'_>, method: Methods) -> Match {
        let met = entry.meets(request, method, Side::Deny);
        if met == Match::Yes {
            let place = Place::of_request(request);
            let is_left_out = self.compiled(entry).except.iter().any(|except| {
                except.is_at(&place) && except.meets(request, method, Side::Allow) == Match::Yes
            });
            if is_left_out {
                return Match::No;
            }
        }
        met
    }

    fn unmentioned(&self, request: &Request<'_>, method: Methods) -> Refusal {
        Refusal {
            rule: None,
            reason: format!("no rule allows {}", Shown(request)),
            hint: hint(request, method),
        }
    }

    /// The decision that waits for the body.
    fn body<'r>(
        &'r self,
        place: &Place<'_>,
        request: &Request<'_>,
        method: Methods,
    ) -> Verdict<'r> {
        let tier = |list: &'r Index, is_open: bool| {
            let mut tier = Tier { is_open, ..Tier::default() };
            list.each(place, |entry| match entry.meets(request, method, Side::Allow) {
                Match::No => {}
                Match::Yes => {
                    tier.rule = Some(tier.rule.map_or(entry.rule, |rule| rule.min(entry.rule)));
                    tier.services |= self.compiled(entry).service;
                }
                Match::Body => tier.waiting.push(entry),
            });
            tier
        };
        let mut denials = Vec::new();
        self.deny.each(place, |entry| {
            if self.meets_denial(entry, request, method) == Match::Body {
                denials.push(entry);
            }
        });
        let own = tier(&self.own, self.mode == Mode::Open);
        let bounds = self
            .bounds_at(request.host, Some(request.port))
            .map(|list| tier(list, false))
            .collect();
        let rule = BodyRule::new(self, denials, own, bounds, request);
        match rule.of_query(request) {
            Some(verdict) => verdict,
            None => Verdict::Body(rule),
        }
    }
}

/// A request as refusals show it.
pub(crate) struct Shown<'a, 'b>(pub(crate) &'b Request<'a>);

impl fmt::Display for Shown<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(request) = self;
        let word = if request.websocket { "ws" } else { request.method };
        write!(f, "{word} {}{}", At(request.host, request.port), request.path)
    }
}

/// A host and its port, where it is not the one that lines mean by themselves.
pub(crate) struct At<'a>(pub(crate) &'a Host, pub(crate) u16);

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Host::Name(name) => f.write_str(name.as_str())?,
            Host::Address(address) => Host::Address(address.to_canonical()).fmt(f)?,
        }
        match self.1 {
            DEFAULT_PORT => Ok(()),
            port => write!(f, ":{port}"),
        }
    }
}

/// The line that would allow a request, as little as possible besides.
fn hint(request: &Request<'_>, method: Methods) -> String {
    let place = At(request.host, request.port);
    let path = pattern_text(request.path);
    let git = |word: &str| format!("git {word} {place}{}", repository_text(&path));
    let service = || request.query.values("service").next();
    let special = match path.rsplit('/').next() {
        Some("git-upload-pack") => git("fetch"),
        Some("git-receive-pack") => git("push"),
        Some("refs") if service() == Some("git-upload-pack") => git("fetch"),
        Some("refs") if service() == Some("git-receive-pack") => git("push"),
        _ if request.grpc => format!("grpc {place} {}", &path[1..]),
        _ => String::new(),
    };
    if !special.is_empty() && allows(&special, request, method) {
        return special;
    }
    let word = if request.websocket { "ws" } else { request.method };
    format!("{word} {place}{path}")
}

/// Whether a line is about a request.
fn allows(line: &str, request: &Request<'_>, method: Methods) -> bool {
    let place = Place::of_request(request);
    let meets = |entry: &Entry| {
        entry.is_at(&place) && entry.meets(request, method, Side::Allow) != Match::No
    };
    Line::parse(line).is_ok_and(|line| Entry::compile(0, &line).iter().any(meets))
}

/// A path as the pattern that matches it alone.
pub(crate) fn pattern_text(path: &Path) -> Cow<'_, str> {
    match path.as_str().contains('*') {
        true => path.as_str().replace('*', "%2A").into(),
        false => path.as_str().into(),
    }
}

/// The repository that a request of git's protocol is about.
pub(crate) fn repository_text(path: &str) -> &str {
    const TAILS: [&str; 4] =
        ["/git-upload-pack", "/git-receive-pack", "/info/refs", "/info/lfs/objects/batch"];
    let path = TAILS.iter().find_map(|tail| path.strip_suffix(tail)).unwrap_or(path);
    path.strip_suffix(".git").unwrap_or(path)
}

/// A layer's list while it is put together.
#[derive(Default)]
struct Builder {
    names: Vec<Box<str>>,
}

impl Builder {
    fn build(mut self, mode: Mode, own: Vec<Layer>, bounds: Vec<Layer>) -> Result<Inner, Error> {
        #[derive(Clone, Copy, PartialEq)]
        enum Part {
            Own,
            Deny,
            Bound(usize),
        }
        let mut inner = Inner::empty(mode);
        let mut all: Vec<(Part, Rule)> = Vec::new();
        for layer in own {
            for section in layer.services {
                let owned = section.hosts.into_iter().map(|host| Owned {
                    host,
                    leniency: section.leniency,
                    service: section.name.as_ref().into(),
                });
                inner.owned.extend(owned);
                all.extend(section.allow.into_iter().map(|rule| (Part::Own, rule)));
            }
            all.extend(layer.allow.into_iter().flatten().map(|rule| (Part::Own, rule)));
            all.extend(layer.deny.into_iter().map(|rule| (Part::Deny, rule)));
        }
        for layer in bounds {
            all.extend(layer.deny.into_iter().map(|rule| (Part::Deny, rule)));
            if layer.allow.is_none() && layer.services.is_empty() {
                continue;
            }
            let part = Part::Bound(inner.bounds.len());
            let hosts = layer.services.iter().flat_map(|section| section.hosts.clone());
            let only = layer.allow.is_none().then(|| hosts.collect());
            inner.bounds.push(Bound { only, list: Index::new(Side::Allow) });
            let of_services = layer.services.into_iter().flat_map(|section| section.allow);
            let rules = layer.allow.into_iter().flatten().chain(of_services);
            all.extend(rules.map(|rule| (part, rule)));
        }
        self.check_tunnels(
            &inner,
            all.iter().filter(|(part, _)| *part == Part::Own).map(|(_, rule)| rule),
        )?;

        // Not by the order in which they came: it never matters.
        all.sort_by(|(_, one), (_, other)| {
            let key = |rule: &Rule| std::cmp::Reverse(rule.line.weight());
            (key(one), &one.origin, &one.line).cmp(&(key(other), &other.origin, &other.line))
        });
        for (index, (part, rule)) in all.iter().enumerate() {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            let entries = Entry::compile(index, &rule.line);
            let list = match part {
                Part::Own => &mut inner.own,
                Part::Deny => &mut inner.deny,
                Part::Bound(bound) => &mut inner.bounds[*bound].list,
            };
            entries.into_iter().for_each(|entry| list.insert(entry));
        }
        let of = |wanted: Part| {
            all.iter().filter(move |(part, _)| *part == wanted).map(|(_, rule)| rule)
        };
        inner.warnings = warnings(of(Part::Own), &of(Part::Deny).collect::<Vec<_>>());
        for (_, rule) in all {
            let service = match &rule.service {
                Some(name) => self.bit(name, &rule)?,
                None => 0,
            };
            let except =
                rule.except.iter().flat_map(|line| Entry::compile(u32::MAX, line)).collect();
            inner.rules.push(Compiled { rule, service, except });
        }
        inner.names = self.names;
        Ok(inner)
    }

    fn bit(&mut self, name: &str, rule: &Rule) -> Result<u128, Error> {
        let index = match self.names.iter().position(|known| **known == *name) {
            Some(index) => index,
            None => {
                self.names.push(name.into());
                self.names.len() - 1
            }
        };
        if index >= Rules::MAX_SERVICES {
            let fault = Fault::TooMany { limit: Rules::MAX_SERVICES };
            return Err(error(rule, fault));
        }
        Ok(1 << index)
    }

    /// A tunnel was asked for by that word: it is not quietly made something else.
    fn check_tunnels<'a>(
        &self,
        inner: &Inner,
        own: impl Iterator<Item = &'a Rule>,
    ) -> Result<(), Error> {
        for rule in own.filter(|rule| rule.line.what == What::Tunnel) {
            let entries = Entry::compile(0, &rule.line);
            let owner = inner.owned.iter().find(|owned| {
                let place = Place::of_host(&owned.host.host, Some(owned.host.port));
                entries.iter().any(|entry| entry.is_at(&place))
            });
            if let Some(owned) = owner {
                let fault = Fault::TunnelOfService {
                    host: owned.host.to_string(),
                    service: owned.service.to_string(),
                };
                return Err(error(rule, fault));
            }
        }
        Ok(())
    }
}

/// What is said of lines that somebody wrote. They are sorted by their text, and one may have become
/// a rule for each of several hosts.
fn warnings<'a>(own: impl Iterator<Item = &'a Rule>, denials: &[&Rule]) -> Vec<Warning> {
    let mut warnings: Vec<Warning> = Vec::new();
    // Lines, and what denies the rules of each, as long as something denies all.
    let mut denied: BTreeMap<&Origin, Option<&Origin>> = BTreeMap::new();
    for rule in own.filter(|rule| !rule.is_ours) {
        let deny = denials
            .iter()
            .filter(|deny| deny.except.is_empty())
            .find(|deny| deny.line.covers(&rule.line))
            .map(|deny| &deny.origin);
        denied.entry(&rule.origin).and_modify(|all| *all = all.and(deny)).or_insert(deny);
        let hosts = rule.line.hosts.to_string();
        // Whoever writes `**` means everybody.
        let is_meant = matches!(hosts.as_str(), "*" | "**");
        if let Some(suffix) = shared_suffix(&hosts).filter(|_| !is_meant) {
            let text = format!("anybody can have a host below {suffix}; name the exact host");
            warnings.push(Warning { rule: rule.origin.clone(), text });
        }
    }
    let denied = denied.into_iter().filter_map(|(rule, deny)| Some((rule, deny?)));
    warnings.extend(denied.map(|(rule, deny)| Warning {
        rule: rule.clone(),
        text: format!("allows nothing, since it is denied by {deny}"),
    }));
    warnings.sort();
    warnings
}

fn error(rule: &Rule, fault: Fault) -> Error {
    Error {
        source: Arc::clone(&rule.origin.source),
        line: rule.origin.line,
        column: 1,
        text: Some(Arc::clone(&rule.origin.text)),
        fault,
    }
}
