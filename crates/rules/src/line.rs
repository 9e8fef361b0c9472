//! A rule as a line of text.

use std::fmt;
use std::net::IpAddr;

use canonical::{Authority, Host, Leniency, Path, Query};
use mistake::nearest;
use services::Service;

use crate::glob::{Glob, Sequence};
use crate::method::Methods;

/// Longest rule, in bytes.
const MAX_LINE: usize = 1024;

/// Words that are not about methods.
const PROTOCOLS: [&str; 7] = ["git", "graphql", "mcp", "ws", "grpc", "tcp", "tunnel"];

/// The path of GraphQL where none is named.
const GRAPHQL: &str = "/graphql";

/// A rule: hosts, and what may be done there. Its text ([`fmt::Display`]) is the same rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Line {
    pub(crate) hosts: Hosts,
    pub(crate) port: Option<u16>,
    pub(crate) what: What,
}

/// Whom a rule is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Hosts {
    Names(Sequence),
    Network(Network),
}

/// Addresses that begin alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Network {
    pub(crate) address: IpAddr,
    pub(crate) length: u8,
}

/// What a rule is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum What {
    /// A host alone: everything over HTTP and TLS.
    Whole,
    Tunnel,
    Tcp,
    Http {
        methods: Methods,
        path: Option<Sequence>,
        query: Guards,
    },
    WebSocket {
        path: Option<Sequence>,
        query: Guards,
    },
    /// `/package.Service/Method`.
    Grpc {
        path: Sequence,
    },
    Git {
        push: bool,
        repository: Option<Sequence>,
        refs: Vec<Sequence>,
    },
    GraphQl {
        path: Sequence,
        kind: Option<Operation>,
        fields: Vec<Word>,
    },
    Mcp {
        path: Sequence,
        tools: Vec<Word>,
    },
}

/// A kind of operation of GraphQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Operation {
    Query,
    Mutation,
    Subscription,
}

impl Operation {
    const ALL: [Self; 3] = [Self::Query, Self::Mutation, Self::Subscription];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Mutation => "mutation",
            Self::Subscription => "subscription",
        }
    }

    pub(crate) fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

/// A word with stars, and its text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Word {
    pub(crate) glob: Glob,
    text: Box<str>,
}

/// Values that keys of the query must have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Guards {
    text: Box<str>,
    pub(crate) list: Vec<(Box<str>, Glob)>,
}

/// What is wrong with a line, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// In bytes.
    pub(crate) at: usize,
    pub(crate) text: String,
}

fn problem<T>(at: usize, text: impl Into<String>) -> Result<T, Problem> {
    Err(Problem { at, text: text.into() })
}

type Words<'a> = std::iter::Peekable<std::vec::IntoIter<(usize, &'a str)>>;

impl Line {
    /// Reads a line that names its hosts.
    ///
    /// # Errors
    /// What is wrong with it, and what to write.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::anywhere(text).map_err(|problem| problem.text)
    }

    pub(crate) fn anywhere(text: &str) -> Result<Self, Problem> {
        let lines = Reader { service: None }.lines(text)?;
        lines.into_iter().next().map_or_else(|| problem(0, "the rule is empty"), Ok)
    }

    /// Reads a line of a service, which is about its hosts: a rule for each.
    pub(crate) fn of_service(text: &str, service: &Service) -> Result<Vec<Self>, Problem> {
        Reader { service: Some(service) }.lines(text)
    }
}

/// What a rule is aimed at, as it is written.
struct Target<'a> {
    at: usize,
    authority: Option<&'a str>,
    /// With its `/`.
    path: Option<&'a str>,
    query: Option<&'a str>,
}

/// Who, and at which port.
type Place = (Hosts, Option<u16>);

struct Reader<'s> {
    service: Option<&'s Service>,
}

impl Reader<'_> {
    fn lines(&self, text: &str) -> Result<Vec<Line>, Problem> {
        if text.len() > MAX_LINE {
            return problem(0, format!("the rule is longer than {MAX_LINE} bytes"));
        }
        if let Some((at, char)) = text.char_indices().find(|(_, char)| char.is_control()) {
            return problem(at, format!("the rule has a control character, {char:?}"));
        }
        let all = words(text);
        let mut words = all.clone().into_iter().peekable();
        let Some((at, first)) = words.next() else { return problem(0, "the rule is empty") };
        if let Some((at, word)) = all.iter().find(|(_, word)| word.contains("://")) {
            let scheme = word.split(':').next().unwrap_or_default();
            return problem(*at, format!("leave out {scheme}://; a rule begins with the host"));
        }
        let lines = match first {
            "git" => self.git(&mut words, text.len())?,
            "graphql" => self.graphql(&mut words, text.len())?,
            "mcp" => self.mcp(&mut words, text.len())?,
            "grpc" => self.grpc(&mut words, text.len())?,
            "ws" => {
                let target = self.target(&mut words, text.len(), "ws example.com/stream")?;
                let (path, query) = (self.path(&target)?, self.query(&target)?);
                self.at_each(&target, &What::WebSocket { path, query })?
            }
            "tcp" | "tunnel" => self.bytes(first, &mut words, text.len())?,
            _ => self.http((at, first), &mut words)?,
        };
        match words.next() {
            Some((at, word)) => problem(
                at,
                format!(
                    "{word:?} is left over; a rule is verbs, a host with a path, and for git, graphql and mcp what they are about"
                ),
            ),
            None => Ok(lines),
        }
    }

    fn http(&self, first: (usize, &str), words: &mut Words<'_>) -> Result<Vec<Line>, Problem> {
        let (at, word) = first;
        let (methods, target) = match words.next() {
            Some((target_at, target)) => (Some(methods(at, word)?), self.split(target_at, target)),
            None if Methods::word(word).is_some() => {
                let example = match self.service {
                    Some(_) => "/path/**",
                    None => "example.com/path/**",
                };
                return problem(
                    at,
                    format!("what may be read or written is missing: {word} {example}"),
                );
            }
            None => (None, self.split(at, word)),
        };
        let (path, query) = (self.path(&target)?, self.query(&target)?);
        let what = match (methods, &path) {
            (None, None) if query.list.is_empty() => What::Whole,
            (methods, _) => What::Http { methods: methods.unwrap_or(Methods::ANY), path, query },
        };
        self.at_each(&target, &what)
    }

    fn bytes(&self, word: &str, words: &mut Words<'_>, end: usize) -> Result<Vec<Line>, Problem> {
        if self.service.is_some() {
            return problem(
                0,
                format!(
                    "a service has requests only; write {word} among the rules that name hosts"
                ),
            );
        }
        let target = self.target(words, end, &format!("{word} db.example.com:5432"))?;
        if target.path.is_some() || target.query.is_some() {
            return problem(
                target.at,
                format!("{word} looks at no path; write the host and port alone"),
            );
        }
        let what = if word == "tcp" { What::Tcp } else { What::Tunnel };
        let lines = self.at_each(&target, &what)?;
        if word == "tcp" && lines.iter().any(|line| line.port.is_none()) {
            return problem(target.at, "a port is missing: tcp db.example.com:5432");
        }
        Ok(lines)
    }

    fn grpc(&self, words: &mut Words<'_>, end: usize) -> Result<Vec<Line>, Problem> {
        let example = match self.service {
            Some(_) => "grpc package.Service/Method",
            None => "grpc example.com package.Service/Method",
        };
        let target = match self.service {
            Some(_) => Target { at: end, authority: None, path: None, query: None },
            None => self.target(words, end, example)?,
        };
        if target.path.is_some() || target.query.is_some() {
            return problem(target.at, format!("the method is a word of its own: {example}"));
        }
        let path = match words.next() {
            None => path_of(end, "/*/*", Leniency::default())?,
            Some((at, method)) => {
                let parts = method.split('/').count();
                if parts != 2 || method.starts_with('/') || method.ends_with('/') {
                    return problem(at, format!("a method is its service and its name: {example}"));
                }
                path_of(at, &format!("/{method}"), Leniency::default())?
            }
        };
        self.at_each(&target, &What::Grpc { path })
    }

    fn git(&self, words: &mut Words<'_>, end: usize) -> Result<Vec<Line>, Problem> {
        let Some((at, verb)) = words.next() else {
            return problem(end, "say whether to fetch or to push: git fetch github.com/acme/*");
        };
        let push = match verb {
            "fetch" => false,
            "push" => true,
            "clone" | "pull" => return problem(at, format!("git {verb} is: git fetch")),
            _ => {
                let hint = nearest(verb, ["fetch", "push"]);
                return problem(at, format!("there is no git {verb:?}; {hint}"));
            }
        };
        let example = match self.service {
            Some(_) => "git fetch acme/*",
            None => "git fetch github.com/acme/*",
        };
        let Some((at, word)) = words.next() else {
            return problem(end, format!("a repository is missing: {example}"));
        };
        let target = match self.service {
            Some(service) => repository_of(service, at, word),
            None => self.split(at, word),
        };
        if target.query.is_some() {
            return problem(at, format!("a repository has no query: {example}"));
        }
        let repository = match target.path {
            None | Some("/") => None,
            Some(path) if path.ends_with('/') => {
                return problem(at, "a repository does not end with `/`; all below is `/**`");
            }
            // Servers take both names for one.
            Some(path) => {
                let path = path.strip_suffix(".git").unwrap_or(path);
                let slash = if path.starts_with('/') { "" } else { "/" };
                Some(path_of(at, &format!("{slash}{path}"), LENIENT)?)
            }
        };
        let mut refs = Vec::new();
        for (at, word) in words.by_ref() {
            if !push {
                return problem(at, "a fetch is of a whole repository; refs are for git push");
            }
            refs.push(reference(at, word)?);
        }
        let what = What::Git { push, repository, refs };
        let Some(service) = self.service else { return self.at_each(&target, &what) };
        let Some(git) = &service.git else {
            return problem(0, format!("the service {} has no git", service.name));
        };
        let hosts = git.hosts.iter().filter(|host| match target.authority {
            Some(authority) => is_at(host, authority),
            None => true,
        });
        Ok(hosts.map(|host| at_host(host, &what)).collect())
    }

    fn graphql(&self, words: &mut Words<'_>, end: usize) -> Result<Vec<Line>, Problem> {
        let example = "graphql api.example.com mutation createIssue";
        let target = match (self.service, words.peek()) {
            (Some(_), Some((_, word))) if word.starts_with('/') || word.contains('.') => {
                self.target(words, end, example)?
            }
            (Some(_), _) => Target { at: 0, authority: None, path: None, query: None },
            (None, _) => self.target(words, end, example)?,
        };
        if target.query.is_some() {
            return problem(target.at, "what GraphQL asks for is not said by a query of the path");
        }
        let path = match self.path(&target)? {
            Some(path) => path,
            None => path_of(0, GRAPHQL, Leniency::default())?,
        };
        let kind = match words.next() {
            None => None,
            Some((at, word)) => match Operation::parse(word) {
                Some(kind) => Some(kind),
                None => {
                    let hint = nearest(word, Operation::ALL.map(Operation::as_str));
                    return problem(at, format!("there is no operation {word:?}; {hint}"));
                }
            },
        };
        let mut fields = Vec::new();
        for (at, word) in words.by_ref() {
            if Operation::parse(word).is_some() {
                return problem(at, "write one rule for each kind of operation");
            }
            let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'*';
            if !word.bytes().all(is_name) || word.contains("**") {
                return problem(
                    at,
                    format!("{word:?} is not the name of a field, such as createIssue"),
                );
            }
            fields.push(Word::new(word));
        }
        self.at_each(&target, &What::GraphQl { path, kind, fields })
    }

    fn mcp(&self, words: &mut Words<'_>, end: usize) -> Result<Vec<Line>, Problem> {
        let example = match self.service {
            Some(_) => "mcp /mcp search_code",
            None => "mcp example.com/mcp search_code",
        };
        let target = self.target(words, end, example)?;
        if target.query.is_some() {
            return problem(target.at, format!("an MCP server is a host and a path: {example}"));
        }
        // Without one, a request to any path whose body looks like a call would be one.
        let Some(path) = self.path(&target)? else {
            return problem(target.at, format!("the path of the MCP server is missing: {example}"));
        };
        let mut tools = Vec::new();
        for (at, word) in words.by_ref() {
            if !word.bytes().all(|byte| byte.is_ascii_graphic()) || word.contains("**") {
                return problem(
                    at,
                    format!("{word:?} is not the name of a tool, such as search_code"),
                );
            }
            tools.push(Word::new(word));
        }
        self.at_each(&target, &What::Mcp { path, tools })
    }

    fn target<'a>(
        &self,
        words: &mut Words<'a>,
        end: usize,
        example: &str,
    ) -> Result<Target<'a>, Problem> {
        match words.next() {
            Some((at, word)) => Ok(self.split(at, word)),
            None => problem(end, format!("a host is missing: {example}")),
        }
    }

    fn split<'a>(&self, at: usize, word: &'a str) -> Target<'a> {
        let end = authority_end(word);
        let (authority, rest) = word.split_at(end);
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (rest, None),
        };
        Target {
            at,
            authority: (!authority.is_empty()).then_some(authority),
            path: (!path.is_empty()).then_some(path),
            query,
        }
    }

    fn leniency(&self) -> Leniency {
        match self.service {
            Some(service) => {
                Leniency { empty_segments: service.leniency.empty_segments, ..LENIENT }
            }
            None => LENIENT,
        }
    }

    fn path(&self, target: &Target<'_>) -> Result<Option<Sequence>, Problem> {
        let at = target.at + target.authority.map_or(0, str::len);
        target.path.map(|path| path_of(at, path, self.leniency())).transpose()
    }

    fn query(&self, target: &Target<'_>) -> Result<Guards, Problem> {
        let Some(text) = target.query else { return Ok(Guards::default()) };
        let before = target.authority.map_or(0, str::len) + target.path.map_or(0, str::len);
        guards(target.at + before + 1, text)
    }

    /// The rule for each host that it is about.
    fn at_each(&self, target: &Target<'_>, what: &What) -> Result<Vec<Line>, Problem> {
        match (self.service, target.authority) {
            (None, None) => {
                problem(target.at, "a host is missing before the path: example.com/path")
            }
            (None, Some(authority)) => {
                let (hosts, port) = place(target.at, authority)?;
                let after = target.path.unwrap_or_default().trim_start_matches('/');
                let length = after.split(':').next().unwrap_or_default();
                if authority.ends_with(']') && length.parse::<u8>().is_ok() {
                    let inner = &authority[1..authority.len() - 1];
                    return problem(target.at, format!("write the network as [{inner}/{length}]"));
                }
                Ok(vec![Line { hosts, port, what: what.clone() }])
            }
            (Some(service), None) => {
                Ok(service.inject_hosts.iter().map(|host| at_host(host, what)).collect())
            }
            (Some(service), Some(authority)) => {
                if let Some(host) = service.inject_hosts.iter().find(|host| is_at(host, authority))
                {
                    return Ok(vec![at_host(host, what)]);
                }
                if Operation::parse(authority).is_some() || methods(0, authority).is_ok() {
                    return problem(target.at, format!("{authority:?} is out of place here"));
                }
                let (hosts, port) = place(target.at, authority)?;
                let is_plain = service.plain_hosts.iter().any(|plain| {
                    let covers =
                        place(0, &plain.pattern).is_ok_and(|(all, _)| all.covers(&hosts, false));
                    covers && plain.port == port.unwrap_or(DEFAULT_PORT)
                });
                match is_plain {
                    true => Ok(vec![Line { hosts, port, what: what.clone() }]),
                    false => problem(
                        target.at,
                        format!(
                            "{authority} is not a host of the service {}; a path begins with `/`, and a rule for another host stands among those that name hosts",
                            service.name
                        ),
                    ),
                }
            }
        }
    }
}

/// The port where none is named.
pub(crate) const DEFAULT_PORT: u16 = 443;

/// Patterns may name what only some services take: requests that are ambiguous are refused before.
const LENIENT: Leniency =
    Leniency { encoded_separators: true, parameters: true, empty_segments: false };

fn at_host(host: &Authority, what: &What) -> Line {
    let port = (host.port != DEFAULT_PORT).then_some(host.port);
    Line { hosts: Hosts::of(&host.host), port, what: what.clone() }
}

fn is_at(host: &Authority, text: &str) -> bool {
    Authority::parse(text, DEFAULT_PORT).is_ok_and(|authority| authority == *host)
}

fn repository_of<'a>(service: &Service, at: usize, word: &'a str) -> Target<'a> {
    let (first, rest) = word.split_at(word.find('/').unwrap_or(word.len()));
    let is_host = service.git.iter().flat_map(|git| &git.hosts).any(|host| is_at(host, first));
    match is_host {
        true => {
            let path = (!rest.is_empty()).then_some(rest);
            Target { at, authority: Some(first), path, query: None }
        }
        false => Target { at, authority: None, path: Some(word), query: None },
    }
}

fn words(text: &str) -> Vec<(usize, &str)> {
    let start = text.as_ptr().addr();
    text.split_whitespace().map(|word| (word.as_ptr().addr() - start, word)).collect()
}

fn methods(at: usize, text: &str) -> Result<Methods, Problem> {
    let mut all: Option<Methods> = None;
    for word in text.split(',') {
        let Some(methods) = Methods::word(word) else {
            let hint = match word.contains('|') {
                true => "write `,` between verbs".to_owned(),
                false => nearest(word, Methods::words().chain(PROTOCOLS)),
            };
            return problem(at, format!("there is no verb {word:?}; {hint}"));
        };
        all = Some(all.map_or(methods, |all| all.with(methods)));
    }
    all.map_or_else(|| problem(at, "a verb is missing"), Ok)
}

/// Where the host and port of a target end.
fn authority_end(word: &str) -> usize {
    let after_brackets = match word.starts_with('[') {
        true => word.find(']').map_or(word.len(), |at| at + 1),
        false => 0,
    };
    let end = |from: usize| word[from..].find(['/', '?']).map_or(word.len(), |at| from + at);
    let first = end(after_brackets);
    // `10.0.0.0/8:5432` is a network. The path `/8` of an address is not written so.
    let is_address = word[..first].parse::<IpAddr>().is_ok();
    if is_address && word[first..].starts_with('/') {
        let second = end(first + 1);
        let length = word[first + 1..second].split(':').next().unwrap_or_default();
        if !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit()) {
            return second;
        }
    }
    first
}

fn place(at: usize, text: &str) -> Result<Place, Problem> {
    let (host, port) = match text.rfind(':') {
        Some(colon) if !text[colon..].contains(']') => (&text[..colon], Some(&text[colon + 1..])),
        _ => (text, None),
    };
    let port = match port {
        None => None,
        Some(port) => match Authority::parse(&format!("a:{port}"), DEFAULT_PORT) {
            Ok(authority) => Some(authority.port),
            Err(error) => return problem(at + host.len() + 1, error.to_string()),
        },
    };
    Ok((hosts(at, host)?, port))
}

fn hosts(at: usize, text: &str) -> Result<Hosts, Problem> {
    let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    if let Some((address, length)) = inner.unwrap_or(text).split_once('/') {
        return network(at, address, length).map(Hosts::Network);
    }
    if !text.contains('*') {
        return match Host::parse(text) {
            Ok(host) if host.to_string() != text => {
                problem(at, format!("write the host as {host}"))
            }
            Ok(Host::Address(address)) if address.to_canonical() != address => {
                problem(at, format!("write the address as {}", address.to_canonical()))
            }
            Ok(host) => Ok(Hosts::of(&host)),
            Err(error) if !text.is_ascii() => {
                problem(at, format!("{error}; names of other alphabets are written as xn--..."))
            }
            Err(error) => problem(at, format!("{error}: {text:?}")),
        };
    }
    let labels: Vec<&str> = text.split('.').collect();
    let is_number = |label: &&str| label.bytes().all(|byte| byte.is_ascii_digit() || byte == b'*');
    if labels.len() == 4
        && labels.iter().all(is_number)
        && labels.iter().any(|one| !one.contains('*'))
    {
        return problem(at, "addresses have no `*`; write a network, such as 10.0.0.0/8:443");
    }
    // What a star stands for does not matter to how the rest is written.
    let sample = text.replace("**", "a").replace('*', "a");
    match Host::parse(&sample) {
        Ok(host) if host.to_string() == sample => {}
        Ok(_) => {
            let plain = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
            return problem(at, format!("write the host as {plain}"));
        }
        Err(error) => return problem(at, format!("{error}: {text:?}")),
    }
    match Sequence::new(text, labels.into_iter(), str::to_owned) {
        Ok(sequence) => Ok(Hosts::Names(sequence)),
        Err(_) => problem(at, "`**` is a part of the host by itself: **.example.com"),
    }
}

fn network(at: usize, address: &str, length: &str) -> Result<Network, Problem> {
    let Ok(ip) = address.parse::<IpAddr>() else {
        return problem(at, format!("{address:?} is not an address"));
    };
    let most = if ip.is_ipv4() { 32 } else { 128 };
    let plain = length == "0" || !length.starts_with('0');
    let length = match length.parse::<u8>() {
        Ok(length) if length <= most && plain => length,
        _ => {
            return problem(
                at + address.len() + 1,
                format!("the length of a network is 0 to {most}"),
            );
        }
    };
    let network = Network { address: ip, length };
    if let (IpAddr::V4(inner), Some(length)) = (ip.to_canonical(), length.checked_sub(96))
        && ip.is_ipv6()
    {
        return problem(at, format!("write the network as {inner}/{length}"));
    }
    let first = network.first();
    if first != ip {
        let first = Network { address: first, length };
        return problem(at, format!("write the network as {first}, or the address alone"));
    }
    if ip.to_string() != address {
        return problem(at, format!("write the network as {network}"));
    }
    Ok(network)
}

fn path_of(at: usize, text: &str, leniency: Leniency) -> Result<Sequence, Problem> {
    match Path::parse(text, leniency) {
        Ok(path) if path.as_str() == text => {}
        Ok(path) => return problem(at, format!("write the path as {path}")),
        Err(_) if text.contains(['{', '}']) => {
            return problem(at, format!("a part that varies is `*`, not braces: {text:?}"));
        }
        Err(error) => return problem(at, format!("{error}: {text:?}")),
    }
    match Sequence::new(text, text[1..].split('/'), decoded) {
        Ok(sequence) => Ok(sequence),
        Err(_) => problem(at, "`**` is a part of the path by itself: /a/**"),
    }
}

fn guards(at: usize, text: &str) -> Result<Guards, Problem> {
    match Query::parse(text) {
        Ok(query) if query.as_str() == text => {}
        Ok(query) => return problem(at, format!("write the query as {query}")),
        Err(error) => return problem(at, format!("{error}: {text:?}")),
    }
    let mut list: Vec<(Box<str>, Glob)> = Vec::new();
    for pair in text.split('&') {
        let Some((key, value)) = pair.split_once('=').filter(|(key, _)| !key.is_empty()) else {
            return problem(at, format!("a query is written key=value, not {pair:?}"));
        };
        if key.contains('*') {
            return problem(at, "a key has no `*`, only a value");
        }
        if value.contains("**") {
            return problem(at, "a value has no `**`; `*` is any characters");
        }
        let key = form(key).into_boxed_str();
        if list.iter().any(|(known, _)| *known == key) {
            return problem(
                at,
                format!("{key} is there twice; all of its values must match one pattern"),
            );
        }
        list.push((key, Glob::new(value, form)));
    }
    Ok(Guards { text: text.into(), list })
}

fn reference(at: usize, text: &str) -> Result<Sequence, Problem> {
    if !text.starts_with("refs/") {
        return problem(at, format!("write the whole name of a ref: refs/heads/{text}"));
    }
    let is_known = |byte: u8| byte.is_ascii_graphic() && !b"~^:?[\\".contains(&byte);
    let is_well_formed = text
        .split('/')
        .all(|part| !part.is_empty() && !part.starts_with('.') && !part.contains(".."));
    if !text.bytes().all(is_known) || !is_well_formed {
        return problem(
            at,
            format!("{text:?} is not the name of a ref, such as refs/heads/agent/**"),
        );
    }
    match Sequence::new(text, text.split('/'), str::to_owned) {
        Ok(sequence) => Ok(sequence),
        Err(_) => problem(at, "`**` is a part of a ref by itself: refs/heads/agent/**"),
    }
}

/// Of what is canonical, so that every `%` is followed by two digits.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        let digits = rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(decoded) if *byte == b'%' => {
                bytes.push(decoded);
                rest = &rest[2..];
            }
            _ => bytes.push(*byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn form(text: &str) -> String {
    decoded(&text.replace('+', " "))
}

impl Word {
    fn new(text: &str) -> Self {
        Self { glob: Glob::new(text, str::to_owned), text: text.into() }
    }
}

impl Network {
    /// Its first address.
    pub(crate) fn first(self) -> IpAddr {
        self.with(|bits, mask| bits & mask, |bits, mask| bits & mask)
    }

    /// Its last address.
    pub(crate) fn last(self) -> IpAddr {
        self.with(|bits, mask| bits | !mask, |bits, mask| bits | !mask)
    }

    /// An address of its bits and the mask of those that all of its addresses have.
    fn with(self, v4: fn(u32, u32) -> u32, v6: fn(u128, u128) -> u128) -> IpAddr {
        let length = u32::from(self.length);
        match self.address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
                IpAddr::V4(v4(address.to_bits(), mask).into())
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
                IpAddr::V6(v6(address.to_bits(), mask).into())
            }
        }
    }

    pub(crate) fn contains(self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4()
            && Self { address, length: self.length }.first() == self.address
    }
}

impl Hosts {
    pub(crate) fn of(host: &Host) -> Self {
        match host {
            Host::Name(name) => {
                let sequence = Sequence::new(name.as_str(), name.labels(), str::to_owned);
                // A name has no star.
                Self::Names(sequence.unwrap_or_else(|_| Sequence::of([])))
            }
            Host::Address(address) => {
                let length = if address.is_ipv4() { 32 } else { 128 };
                Self::Network(Network { address: *address, length })
            }
        }
    }

    pub(crate) fn covers(&self, other: &Self, folded: bool) -> bool {
        match (self, other) {
            (Self::Names(one), Self::Names(other)) => one.covers(other, folded),
            (Self::Network(one), Self::Network(other)) => {
                one.length <= other.length && one.contains(other.address)
            }
            _ => false,
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address, self.length) {
            (address, 32) if address.is_ipv4() => write!(f, "{address}"),
            (address, length) if address.is_ipv4() => write!(f, "{address}/{length}"),
            (address, 128) => write!(f, "[{address}]"),
            (address, length) => write!(f, "[{address}/{length}]"),
        }
    }
}

impl fmt::Display for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Names(sequence) => sequence.fmt(f),
            Self::Network(network) => network.fmt(f),
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whom = |f: &mut fmt::Formatter<'_>| match self.port {
            Some(port) => write!(f, "{}:{port}", self.hosts),
            None => self.hosts.fmt(f),
        };
        let target = |f: &mut fmt::Formatter<'_>, path: Option<&Sequence>, query: &Guards| {
            whom(f)?;
            path.map_or(Ok(()), |path| path.fmt(f))?;
            match query.list.is_empty() {
                true => Ok(()),
                false => write!(f, "?{}", query.text),
            }
        };
        match &self.what {
            What::Whole => whom(f),
            What::Tunnel => f.write_str("tunnel ").and_then(|()| whom(f)),
            What::Tcp => f.write_str("tcp ").and_then(|()| whom(f)),
            What::Http { methods, path, query } => {
                write!(f, "{methods} ")?;
                target(f, path.as_ref(), query)
            }
            What::WebSocket { path, query } => {
                f.write_str("ws ")?;
                target(f, path.as_ref(), query)
            }
            What::Grpc { path } => {
                f.write_str("grpc ")?;
                whom(f)?;
                write!(f, " {}", &path.text()[1..])
            }
            What::Git { push, repository, refs } => {
                f.write_str(if *push { "git push " } else { "git fetch " })?;
                whom(f)?;
                repository.as_ref().map_or(Ok(()), |path| path.fmt(f))?;
                refs.iter().try_for_each(|name| write!(f, " {name}"))
            }
            What::GraphQl { path, kind, fields } => {
                f.write_str("graphql ")?;
                whom(f)?;
                if path.text() != GRAPHQL {
                    path.fmt(f)?;
                }
                kind.map_or(Ok(()), |kind| write!(f, " {}", kind.as_str()))?;
                fields.iter().try_for_each(|field| write!(f, " {}", field.text))
            }
            What::Mcp { path, tools } => {
                f.write_str("mcp ")?;
                whom(f)?;
                path.fmt(f)?;
                tools.iter().try_for_each(|tool| write!(f, " {}", tool.text))
            }
        }
    }
}

impl Line {
    /// Whether a denial of this denies everything that `other` allows. May say no where it is so.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        let port = self.port.is_none_or(|port| port == other.port.unwrap_or(DEFAULT_PORT));
        port && self.hosts.covers(&other.hosts, true) && self.what.covers(&other.what)
    }

    /// Whether its path has an encoded `/` or `\\`.
    pub(crate) fn has_encoded_separators(&self) -> bool {
        let has = |path: &Sequence| path.text().contains("%2F") || path.text().contains("%5C");
        match &self.what {
            What::Http { path, .. } | What::WebSocket { path, .. } => {
                path.as_ref().is_some_and(has)
            }
            _ => false,
        }
    }

    /// Whether it says what is done, and not only where.
    pub(crate) fn names_what(&self) -> bool {
        match &self.what {
            What::Whole | What::Tunnel | What::Tcp => false,
            What::Http { methods, .. } => *methods != Methods::ANY,
            What::GraphQl { fields, .. } => !fields.is_empty(),
            What::Mcp { tools, .. } => !tools.is_empty(),
            What::WebSocket { .. } | What::Grpc { .. } | What::Git { .. } => true,
        }
    }

    /// How much of it is fixed: of two rules, the one with more is shown.
    pub(crate) fn weight(&self) -> usize {
        let path = |path: &Option<Sequence>| path.as_ref().map_or(0, Sequence::weight);
        let words = |words: &[Word]| words.iter().map(|word| word.glob.weight()).sum::<usize>();
        let hosts = match &self.hosts {
            Hosts::Names(names) => names.weight(),
            Hosts::Network(network) => usize::from(network.length),
        };
        let what = match &self.what {
            What::Whole => 0,
            What::Tunnel | What::Tcp => 1,
            What::Http { methods, path: pattern, query } => {
                let query: usize =
                    query.list.iter().map(|(key, value)| key.len() + value.weight()).sum();
                usize::from(*methods != Methods::ANY) + path(pattern) + query
            }
            What::WebSocket { path: pattern, .. } => 1 + path(pattern),
            What::Grpc { path } => 1 + path.weight(),
            What::Git { repository, refs, .. } => {
                1 + path(repository) + refs.iter().map(Sequence::weight).sum::<usize>()
            }
            What::GraphQl { path, fields, .. } => 1 + path.weight() + words(fields),
            What::Mcp { path, tools } => 1 + path.weight() + words(tools),
        };
        hosts + what
    }
}

impl What {
    fn covers(&self, other: &Self) -> bool {
        let paths = |one: &Option<Sequence>, other: &Option<Sequence>| match (one, other) {
            (None, _) => true,
            (Some(one), Some(other)) => one.covers(other, true),
            (Some(one), None) => one.is_everything(),
        };
        let words = |one: &[Word], other: &[Word]| {
            let covered = |word: &Word| one.iter().any(|wide| wide.glob.covers(&word.glob, true));
            one.is_empty() || (!other.is_empty() && other.iter().all(covered))
        };
        match (self, other) {
            (Self::Whole, other) => *other != Self::Tcp,
            (Self::Tcp, Self::Tcp) => true,
            (Self::Http { methods, path, query }, other) if query.list.is_empty() => match other {
                Self::Http { methods: some, path: below, .. } => {
                    methods.covers(*some) && paths(path, below)
                }
                Self::WebSocket { path: below, .. } => {
                    methods.covers(Methods::GET) && paths(path, below)
                }
                Self::Grpc { path: below } => {
                    methods.covers(Methods::POST)
                        && path.as_ref().is_none_or(|path| path.covers(below, true))
                }
                _ => false,
            },
            (Self::WebSocket { path, query }, Self::WebSocket { path: below, .. }) => {
                query.list.is_empty() && paths(path, below)
            }
            (Self::Grpc { path }, Self::Grpc { path: below }) => path.covers(below, true),
            (
                Self::Git { push, repository, refs },
                Self::Git { push: other, repository: below, refs: some },
            ) => {
                let covered = |name: &Sequence| refs.iter().any(|wide| wide.covers(name, true));
                push == other
                    && paths(repository, below)
                    && (refs.is_empty() || (!some.is_empty() && some.iter().all(covered)))
            }
            (
                Self::GraphQl { path, kind, fields },
                Self::GraphQl { path: below, kind: other, fields: some },
            ) => {
                path.covers(below, true) && (kind.is_none() || kind == other) && words(fields, some)
            }
            (Self::Mcp { path, tools }, Self::Mcp { path: below, tools: some }) => {
                path.covers(below, true) && words(tools, some)
            }
            _ => false,
        }
    }
}
