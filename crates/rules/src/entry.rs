//! What a rule comes to: hosts, a path, and what a request there must be.

use std::net::IpAddr;

use canonical::{Host, Name};

use crate::glob::{self, Glob, Sequence, Step};
use crate::layer::is_forge;
use crate::line::{DEFAULT_PORT, Guards, Hosts, Line, Network, What};
use crate::method::Methods;
use crate::request::Request;

/// One place that a rule is about. Some rules are about several.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// The rule's number.
    pub(crate) rule: u32,
    pub(crate) hosts: EntryHosts,
    pub(crate) port: Option<u16>,
    pub(crate) path: Option<Box<[Step]>>,
    /// Its path is compared without case.
    pub(crate) folded: bool,
    pub(crate) gate: Gate,
    pub(crate) what: What,
}

/// The hosts of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EntryHosts {
    /// The outermost label first.
    Names(Box<[Step]>),
    Network(Network),
}

/// What a request there must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Gate {
    Whole,
    Tcp,
    Http(Methods, Guards),
    WebSocket(Guards),
    Grpc,
    /// `GET …/info/refs?service=…`, with the service.
    References(&'static str),
    /// `POST …/git-…-pack`, with the last segment.
    Pack(&'static str),
    /// `POST …/info/lfs/objects/batch`.
    LfsBatch,
    /// Other requests of LFS.
    Lfs(Methods),
    GraphQl,
    Mcp,
}

/// Whether a rule gives or takes. What takes is compared more widely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Allow,
    Deny,
}

/// Whether a request is what a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Match {
    No,
    Yes,
    /// It depends on the body.
    Body,
}

/// Labels of most names. Those of longer ones are on the heap.
const FEW: usize = 10;

/// Where a connection or a request goes.
pub(crate) struct Place<'a> {
    few: [&'a str; FEW],
    count: usize,
    many: Vec<&'a str>,
    pub(crate) address: Option<IpAddr>,
    /// Any, when absent.
    pub(crate) port: Option<u16>,
    pub(crate) segments: Option<&'a [String]>,
}

impl<'a> Place<'a> {
    pub(crate) fn of_name(name: &'a Name) -> Self {
        let mut place = Self {
            few: [""; FEW],
            count: 0,
            many: Vec::new(),
            address: None,
            port: None,
            segments: None,
        };
        for label in name.labels().rev() {
            match place.few.get_mut(place.count) {
                Some(slot) => *slot = label,
                None => {
                    place.many = name.labels().rev().collect();
                    break;
                }
            }
            place.count += 1;
        }
        place
    }

    pub(crate) fn of_host(host: &'a Host, port: Option<u16>) -> Self {
        let place = match host {
            Host::Name(name) => Self::of_name(name),
            Host::Address(address) => Self {
                few: [""; FEW],
                count: 0,
                many: Vec::new(),
                address: Some(*address),
                port: None,
                segments: None,
            },
        };
        Self { port, ..place }
    }

    pub(crate) fn of_request(request: &Request<'a>) -> Self {
        let place = Self::of_host(request.host, Some(request.port));
        Self { segments: Some(request.path.segments()), ..place }
    }

    /// The outermost first.
    pub(crate) fn labels(&self) -> &[&'a str] {
        if self.many.is_empty() { &self.few[..self.count] } else { &self.many }
    }

    /// Whether it is an address of a network.
    pub(crate) fn is_in(&self, network: Network, side: Side) -> bool {
        let Some(address) = self.address else { return false };
        let inner = match address {
            IpAddr::V6(v6) => address::unwrapped(v6).map(IpAddr::V4),
            IpAddr::V4(_) => None,
        };
        // An address in another is reached by few of those who dial it.
        network.contains(address.to_canonical())
            || (side == Side::Deny
                && (network.contains(address)
                    || inner.is_some_and(|inner| network.contains(inner))))
    }
}

impl Entry {
    /// The places that a line is about.
    pub(crate) fn compile(rule: u32, line: &Line) -> Vec<Self> {
        let hosts = match &line.hosts {
            Hosts::Names(names) => EntryHosts::Names(names.steps().iter().rev().cloned().collect()),
            Hosts::Network(network) => EntryHosts::Network(*network),
        };
        let entry = |path: Option<Sequence>, gate: Gate| Self {
            rule,
            hosts: hosts.clone(),
            port: line.port,
            path: path.map(|path| path.steps().into()),
            folded: false,
            gate,
            what: line.what.clone(),
        };
        match &line.what {
            What::Whole | What::Tunnel => vec![entry(None, Gate::Whole)],
            What::Tcp => vec![entry(None, Gate::Tcp)],
            What::Http { methods, path, query } => {
                vec![entry(path.clone(), Gate::Http(*methods, query.clone()))]
            }
            What::WebSocket { path, query } => {
                vec![entry(path.clone(), Gate::WebSocket(query.clone()))]
            }
            What::Grpc { path } => vec![entry(Some(path.clone()), Gate::Grpc)],
            What::GraphQl { path, .. } => vec![entry(Some(path.clone()), Gate::GraphQl)],
            What::Mcp { path, .. } => vec![entry(Some(path.clone()), Gate::Mcp)],
            What::Git { push, repository, .. } => {
                let host = line.hosts.to_string();
                let mut entries = Vec::new();
                for repository in repositories(repository.as_ref()) {
                    for (tail, gate) in git(*push) {
                        let tail = tail.iter().map(|part| match *part {
                            "**" => Step::Many,
                            "*" => Step::One(Glob::Any),
                            part => Step::One(Glob::Literal(part.into())),
                        });
                        let steps = repository.iter().cloned().chain(tail);
                        let mut entry = entry(Some(Sequence::of(steps)), gate);
                        entry.folded = is_forge(&host);
                        entries.push(entry);
                    }
                }
                entries
            }
        }
    }

    /// Whether it allows something at hosts, a port and a path.
    pub(crate) fn is_at(&self, place: &Place<'_>) -> bool {
        let is_host = match &self.hosts {
            EntryHosts::Names(steps) => {
                place.address.is_none() && glob::matches(steps, place.labels(), false)
            }
            EntryHosts::Network(network) => place.is_in(*network, Side::Allow),
        };
        let is_path = |segments: &[String]| {
            self.path.as_ref().is_none_or(|path| glob::matches(path, segments, self.folded))
        };
        is_host && self.is_at_port(place.port, Side::Allow) && place.segments.is_none_or(is_path)
    }

    pub(crate) fn is_at_port(&self, port: Option<u16>, side: Side) -> bool {
        match (self.port, port, side) {
            (_, None, _) | (None, _, Side::Deny) => true,
            (own, Some(port), _) => own.unwrap_or(DEFAULT_PORT) == port,
        }
    }

    /// Whether it names a network all of which is private, and the address with it.
    pub(crate) fn is_private(&self, address: IpAddr) -> bool {
        let EntryHosts::Network(network) = self.hosts else { return false };
        let is_private = |address| address::reach(address) == address::Reach::Private;
        [address, network.first(), network.last()].into_iter().all(is_private)
    }

    /// Whether a request at its place is what it is about.
    pub(crate) fn meets(&self, request: &Request<'_>, method: Methods, side: Side) -> Match {
        let is_deny = side == Side::Deny;
        let has_refs = matches!(&self.what, What::Git { refs, .. } if !refs.is_empty());
        // A denial of some refs says nothing about the rest of a push.
        if is_deny && has_refs && !matches!(self.gate, Gate::Pack(_)) {
            return Match::No;
        }
        let is_met = match &self.gate {
            Gate::Whole => true,
            Gate::Tcp => false,
            // To the server, what asks to become a WebSocket is a GET.
            Gate::Http(methods, guards) => {
                methods.meets(method)
                    && (is_deny || !request.websocket)
                    && guards.hold(request, side)
            }
            Gate::WebSocket(guards) => request.websocket && guards.hold(request, side),
            Gate::Grpc => {
                method == Methods::POST && (is_deny || (request.grpc && !request.websocket))
            }
            Gate::References(service) => match side {
                Side::Allow => {
                    let mut pairs = request.query.pairs();
                    method == Methods::GET
                        && !request.websocket
                        && pairs.next() == Some(("service", service))
                        && pairs.next().is_none()
                        && request.path.as_str().ends_with("/info/refs")
                }
                Side::Deny => request.query.pairs().any(|(key, value)| {
                    key.eq_ignore_ascii_case("service") && value.eq_ignore_ascii_case(service)
                }),
            },
            Gate::Pack(name) => {
                let is_head = is_deny
                    || (method == Methods::POST
                        && !request.websocket
                        && request.query.pairs().next().is_none()
                        && request.path.segments().last().is_some_and(|last| last == name));
                match (is_head, has_refs) {
                    (false, _) => return Match::No,
                    (true, true) => return Match::Body,
                    (true, false) => true,
                }
            }
            Gate::LfsBatch => {
                return match method == Methods::POST && (is_deny || !request.websocket) {
                    true => Match::Body,
                    false => Match::No,
                };
            }
            Gate::Lfs(methods) => methods.meets(method) && (is_deny || !request.websocket),
            Gate::GraphQl => return self.meets_graphql(request, method, side),
            Gate::Mcp => return self.meets_mcp(request, method, side),
        };
        if is_met { Match::Yes } else { Match::No }
    }

    fn meets_graphql(&self, request: &Request<'_>, method: Methods, side: Side) -> Match {
        if side == Side::Allow && request.websocket {
            return Match::No;
        }
        // In a GET the query of the address is what a body is otherwise.
        let is_get = method == Methods::GET || side == Side::Deny;
        let is_asked =
            method == Methods::POST || (is_get && request.query.pairs().next().is_some());
        match (is_asked, &self.what) {
            (true, What::GraphQl { kind: None, fields, .. })
                if side == Side::Deny && fields.is_empty() =>
            {
                Match::Yes
            }
            (true, _) => Match::Body,
            (false, _) => Match::No,
        }
    }

    fn meets_mcp(&self, request: &Request<'_>, method: Methods, side: Side) -> Match {
        let is_any = matches!(&self.what, What::Mcp { tools, .. } if tools.is_empty());
        match side {
            Side::Deny if is_any => Match::Yes,
            Side::Allow if request.websocket => Match::No,
            _ if method == Methods::POST => Match::Body,
            // The stream of what the server says by itself, and the end of a session.
            Side::Allow if Methods::GET.with(Methods::DELETE).meets(method) => Match::Yes,
            _ => Match::No,
        }
    }
}

impl Guards {
    fn hold(&self, request: &Request<'_>, side: Side) -> bool {
        self.list.iter().all(|(key, value)| match side {
            // A server may take any of the values.
            Side::Allow => {
                let mut values = request.query.values(key).peekable();
                values.peek().is_some() && values.all(|one| value.matches(one, false))
            }
            Side::Deny => request
                .query
                .pairs()
                .any(|(name, one)| name.eq_ignore_ascii_case(key) && value.matches(one, true)),
        })
    }
}

/// The paths of repositories that a pattern is about: with and without `.git`, which servers take
/// for one.
fn repositories(pattern: Option<&Sequence>) -> Vec<Vec<Step>> {
    let Some(pattern) = pattern else { return vec![vec![Step::Many]] };
    let steps = pattern.steps().to_vec();
    let with_suffix = match steps.last() {
        Some(Step::One(Glob::Literal(name))) => Some(Glob::Literal(format!("{name}.git").into())),
        Some(Step::One(Glob::Parts(parts)))
            if !parts.last().is_some_and(|last| last.is_empty()) =>
        {
            let mut parts = parts.to_vec();
            if let Some(last) = parts.last_mut() {
                *last = format!("{last}.git").into();
            }
            Some(Glob::Parts(parts.into()))
        }
        _ => None,
    };
    let mut all = vec![steps.clone()];
    if let Some(last) = with_suffix {
        let mut steps = steps;
        steps.pop();
        steps.push(Step::One(last));
        all.push(steps);
    }
    all
}

/// The requests of git's protocol and of LFS, below a repository.
fn git(push: bool) -> Vec<(&'static [&'static str], Gate)> {
    match push {
        false => vec![
            (&["info", "refs"], Gate::References("git-upload-pack")),
            (&["git-upload-pack"], Gate::Pack("git-upload-pack")),
            (&["info", "lfs", "objects", "batch"], Gate::LfsBatch),
            (&["info", "lfs", "objects", "*"], Gate::Lfs(Methods::READ)),
            (&["gitlab-lfs", "objects", "**"], Gate::Lfs(Methods::READ)),
        ],
        true => vec![
            (&["info", "refs"], Gate::References("git-receive-pack")),
            (&["git-receive-pack"], Gate::Pack("git-receive-pack")),
            (&["info", "lfs", "objects", "batch"], Gate::LfsBatch),
            (&["info", "lfs", "objects", "**"], Gate::Lfs(Methods::PUT)),
            (&["gitlab-lfs", "objects", "**"], Gate::Lfs(Methods::PUT)),
            (&["info", "lfs", "verify"], Gate::Lfs(Methods::POST)),
            (&["info", "lfs", "locks", "**"], Gate::Lfs(Methods::READ.with(Methods::POST))),
        ],
    }
}
