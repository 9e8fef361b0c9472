//! Verdicts that wait for the body of a request.

use std::fmt;

use crate::entry::{Entry, Gate, Side};
use crate::line::{Operation, What, Word};
use crate::request::{Refusal, Request, Verdict};
use crate::rules::{At, Inner, Shown, pattern_text, repository_text};
use crate::{git, graphql, mcp};

/// Rules of one list that are about a request.
#[derive(Clone, Default)]
pub(crate) struct Tier<'r> {
    /// Nothing need be allowed by a rule.
    pub(crate) is_open: bool,
    /// The rule that allows it whatever the body is.
    pub(crate) rule: Option<u32>,
    /// Services of such rules.
    pub(crate) services: u128,
    /// Rules that it depends on the body for.
    pub(crate) waiting: Vec<&'r Entry>,
}

/// A verdict that waits for the body.
#[derive(Clone)]
pub struct BodyRule<'r> {
    inner: &'r Inner,
    denials: Vec<&'r Entry>,
    own: Tier<'r>,
    bounds: Vec<Tier<'r>>,
    content_type: Option<Box<str>>,
    has_query: bool,
    /// The request, for a refusal.
    text: String,
    /// Where it goes, for a refusal.
    place: String,
    path: String,
}

impl fmt::Debug for BodyRule<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyRule").field("request", &self.text).finish_non_exhaustive()
    }
}

/// A reason where no rule says more.
const UNKNOWN: &str = "it is not known what it asks for";

/// What a body can be read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    /// Commands of a push.
    Push,
    /// A batch of LFS.
    Lfs,
    GraphQl,
    Mcp,
}

/// One thing that a body asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ask {
    /// A ref is changed.
    Ref(String),
    /// Objects are sent, or got.
    Objects { upload: bool },
    /// A field of an operation.
    Field(Operation, String),
    /// A tool is called.
    Tool(String),
    /// What every rule of its protocol allows, and none denies.
    Harmless,
}

/// Why a body cannot be judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unread {
    /// More of it is needed.
    More,
    /// It is not what it has to be.
    Wrong(String),
}

/// The rule that allows what is asked, and the services of such rules.
type Met = (Option<u32>, u128);

/// Why it is not allowed, and what of it is not.
type Unmet<'a> = (String, Option<&'a Ask>);

impl Entry {
    fn protocol(&self) -> Option<Protocol> {
        match self.what {
            What::Git { .. } if self.gate == Gate::LfsBatch => Some(Protocol::Lfs),
            What::Git { .. } => Some(Protocol::Push),
            What::GraphQl { .. } => Some(Protocol::GraphQl),
            What::Mcp { .. } => Some(Protocol::Mcp),
            _ => None,
        }
    }

    /// Whether it is about this.
    fn is_about(&self, ask: &Ask, side: Side) -> bool {
        let is_deny = side == Side::Deny;
        let among = |words: &[Word], text: &str| {
            words.is_empty() || words.iter().any(|word| word.glob.matches(text, is_deny))
        };
        match (&self.what, ask) {
            (What::Git { refs, .. }, Ask::Ref(name)) => {
                let parts: Vec<&str> = name.split('/').collect();
                refs.is_empty() || refs.iter().any(|pattern| pattern.matches(&parts, is_deny))
            }
            (What::Git { push, .. }, Ask::Objects { upload }) if is_deny => push == upload,
            // Who may push may also ask for what is there already.
            (What::Git { push, .. }, Ask::Objects { upload }) => *push || !upload,
            (What::GraphQl { kind, fields, .. }, Ask::Field(operation, name)) => {
                // It says nothing but the name of the type.
                let is_plain = !is_deny && name == "__typename";
                kind.is_none_or(|kind| kind == *operation) && (is_plain || among(fields, name))
            }
            (What::Mcp { tools, .. }, Ask::Tool(name)) => among(tools, name),
            (What::Mcp { .. }, Ask::Harmless) => !is_deny,
            _ => false,
        }
    }
}

impl<'r> BodyRule<'r> {
    pub(crate) fn new(
        inner: &'r Inner,
        denials: Vec<&'r Entry>,
        own: Tier<'r>,
        bounds: Vec<Tier<'r>>,
        request: &Request<'_>,
    ) -> Self {
        Self {
            inner,
            denials,
            own,
            bounds,
            content_type: request.content_type.map(Into::into),
            has_query: request.query.pairs().next().is_some(),
            text: Shown(request).to_string(),
            place: At(request.host, request.port).to_string(),
            path: pattern_text(request.path).into_owned(),
        }
    }

    /// Bytes of the body to hold at most. What is longer is judged as if nothing were known of it.
    pub fn most(&self) -> usize {
        1 << 20
    }

    /// Judges what is there of the body, decoded (no `content-encoding` is left). `None` wants more
    /// of it; never when `is_whole`, nor when [`Self::most`] bytes are there. The answer is never
    /// another [`Verdict::Body`].
    pub fn judge(&self, body: &[u8], is_whole: bool) -> Option<Verdict<'r>> {
        let is_last = is_whole || body.len() >= self.most();
        let is_whole = is_whole && body.len() <= self.most();
        let mut read: Vec<(Protocol, Result<Vec<Ask>, Unread>)> = Vec::new();
        let entries = self.denials.iter().chain(&self.own.waiting);
        for entry in entries.chain(self.bounds.iter().flat_map(|tier| &tier.waiting)) {
            let Some(protocol) = entry.protocol() else { continue };
            if read.iter().any(|(known, _)| *known == protocol) {
                continue;
            }
            let asks = self.read(protocol, body, is_whole);
            if asks == Err(Unread::More) && !is_last {
                return None;
            }
            read.push((protocol, asks));
        }
        Some(self.decide(&read))
    }

    /// The verdict where the query of the address is all that there is to judge.
    pub(crate) fn of_query(&self, request: &Request<'_>) -> Option<Verdict<'r>> {
        if request.method == "POST" {
            return None;
        }
        let asks = graphql::of_pairs(request.query.pairs()).map_err(Unread::Wrong);
        Some(self.decide(&[(Protocol::GraphQl, asks)]))
    }

    fn read(&self, protocol: Protocol, body: &[u8], is_whole: bool) -> Result<Vec<Ask>, Unread> {
        if protocol == Protocol::Push {
            return self
                .of_type(&["application/x-git-receive-pack-request"])
                .and_then(|_| git::push(body, is_whole));
        }
        if !is_whole {
            return Err(Unread::More);
        }
        // Servers differ about which of the two they take.
        if self.has_query {
            return Err(Unread::Wrong("it has a query besides its body".to_owned()));
        }
        let asks = match protocol {
            Protocol::Push => return git::push(body, is_whole),
            Protocol::Lfs => {
                self.of_type(&["application/vnd.git-lfs+json", "application/json"])?;
                git::lfs(body)
            }
            Protocol::Mcp => {
                self.of_type(&["application/json"])?;
                mcp::of_json(body)
            }
            Protocol::GraphQl => {
                match self.of_type(&["application/json", "application/graphql"])? {
                    0 => graphql::of_json(body),
                    _ => match std::str::from_utf8(body) {
                        Ok(text) => graphql::of_document(text),
                        Err(_) => Err("it is not text".to_owned()),
                    },
                }
            }
        };
        asks.map_err(Unread::Wrong)
    }

    /// Which of these types the body has. A charset other than UTF-8 is none of them.
    fn of_type(&self, types: &[&str]) -> Result<usize, Unread> {
        let all = self.content_type.as_deref().unwrap_or_default();
        let (essence, parameters) = all.split_once(';').unwrap_or((all, ""));
        let parameters = parameters.trim();
        let is_plain = parameters.is_empty()
            || ["charset=utf-8", "charset=\"utf-8\""]
                .iter()
                .any(|plain| parameters.eq_ignore_ascii_case(plain));
        let found = types.iter().position(|one| one.eq_ignore_ascii_case(essence.trim()));
        found
            .filter(|_| is_plain)
            .ok_or_else(|| Unread::Wrong(format!("its content-type is not {}", types.join(" or "))))
    }

    fn decide(&self, read: &[(Protocol, Result<Vec<Ask>, Unread>)]) -> Verdict<'r> {
        let asked = |protocol: Option<Protocol>| {
            read.iter().find(|(known, _)| Some(*known) == protocol).map(|(_, asks)| asks)
        };
        for denial in &self.denials {
            let except = &self.inner.compiled(denial).except;
            let asks = match asked(denial.protocol()) {
                Some(Ok(asks)) => asks,
                Some(Err(unread)) => return self.refuse(Some(denial.rule), unread.reason(), None),
                None => return self.refuse(Some(denial.rule), UNKNOWN, None),
            };
            let is_denied = |ask: &&Ask| {
                let is_left_out = |except: &Entry| {
                    except.protocol() == denial.protocol() && except.is_about(ask, Side::Allow)
                };
                denial.is_about(ask, Side::Deny) && !except.iter().any(is_left_out)
            };
            if let Some(ask) = asks.iter().find(is_denied) {
                return self.refuse(Some(denial.rule), &ask.to_string(), None);
            }
        }
        let (rule, services) = match self.meets(&self.own, &asked) {
            Ok(own) => own,
            Err((reason, ask)) => return self.refuse(None, &reason, ask),
        };
        for bound in &self.bounds {
            if let Err((reason, _)) = self.meets(bound, &asked) {
                return self.refuse(None, &reason, None);
            }
        }
        Verdict::Allow(self.inner.allowed(rule, services))
    }

    /// Whether a list allows all that is asked, by which rule, and of which services.
    fn meets<'a>(
        &self,
        tier: &Tier<'_>,
        asked: &impl Fn(Option<Protocol>) -> Option<&'a Result<Vec<Ask>, Unread>>,
    ) -> Result<Met, Unmet<'a>> {
        let mut best = tier.rule;
        let mut services = tier.services;
        let mut is_met = tier.is_open || tier.rule.is_some();
        let mut unmet = (UNKNOWN.to_owned(), None);
        for protocol in [Protocol::Push, Protocol::Lfs, Protocol::GraphQl, Protocol::Mcp] {
            let is_of = |entry: &&&Entry| entry.protocol() == Some(protocol);
            let entries: Vec<&Entry> = tier.waiting.iter().filter(is_of).copied().collect();
            let asks = match asked(Some(protocol)) {
                Some(Ok(asks)) if !entries.is_empty() => asks,
                Some(Err(unread)) if !entries.is_empty() => {
                    unmet = (unread.reason().to_owned(), None);
                    continue;
                }
                _ => continue,
            };
            let missing = |entries: &[&Entry]| {
                asks.iter()
                    .find(|ask| !entries.iter().any(|entry| entry.is_about(ask, Side::Allow)))
            };
            if let Some(ask) = missing(&entries) {
                unmet = (ask.to_string(), Some(ask));
                continue;
            }
            is_met = true;
            let is_used = |entry: &&&Entry| {
                asks.is_empty() || asks.iter().any(|ask| entry.is_about(ask, Side::Allow))
            };
            let used = entries.iter().filter(is_used).map(|entry| entry.rule);
            best = best.into_iter().chain(used).min();
            let bit = |entry: &Entry| self.inner.compiled(entry).service;
            let mut bits = entries.iter().fold(0, |bits, entry| bits | bit(entry));
            while bits != 0 {
                let one = bits & bits.wrapping_neg();
                bits &= !one;
                let of_one: Vec<&Entry> =
                    entries.iter().copied().filter(|entry| bit(entry) == one).collect();
                if missing(&of_one).is_none() {
                    services |= one;
                }
            }
        }
        if is_met { Ok((best, services)) } else { Err(unmet) }
    }

    fn refuse(&self, rule: Option<u32>, reason: &str, ask: Option<&Ask>) -> Verdict<'r> {
        let rule = rule.map(|rule| self.inner.origin(rule).clone());
        let by = match &rule {
            Some(rule) => format!("is denied by {rule}"),
            None => "is allowed by no rule".to_owned(),
        };
        let hint = match (&rule, ask) {
            (None, Some(ask)) => self.hint(ask),
            _ => String::new(),
        };
        Verdict::Deny(Refusal { rule, reason: format!("{} {by}: {reason}", self.text), hint })
    }

    /// The line that would allow this.
    fn hint(&self, ask: &Ask) -> String {
        let Self { place, path, .. } = self;
        match ask {
            Ask::Ref(name) => format!("git push {place}{} {name}", repository_text(path)),
            Ask::Objects { upload: true } => format!("git push {place}{}", repository_text(path)),
            Ask::Objects { upload: false } => format!("git fetch {place}{}", repository_text(path)),
            Ask::Field(kind, name) if path == "/graphql" => {
                format!("graphql {place} {} {name}", kind.as_str())
            }
            Ask::Field(kind, name) => format!("graphql {place}{path} {} {name}", kind.as_str()),
            Ask::Tool(name) => {
                let is_word = !name.is_empty()
                    && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'*');
                match is_word {
                    true => format!("mcp {place}{path} {name}"),
                    false => String::new(),
                }
            }
            Ask::Harmless => format!("mcp {place}{path}"),
        }
    }
}

impl Unread {
    fn reason(&self) -> &str {
        match self {
            Self::More => "its body is too long to be judged",
            Self::Wrong(reason) => reason,
        }
    }
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ref(name) => write!(f, "it changes {name:?}"),
            Self::Objects { upload: true } => f.write_str("it sends objects of LFS"),
            Self::Objects { upload: false } => f.write_str("it gets objects of LFS"),
            Self::Field(kind, name) => write!(f, "it asks for {} {name}", kind.as_str()),
            Self::Tool(name) => write!(f, "it calls {name:?}"),
            Self::Harmless => f.write_str("it asks for nothing that rules are about"),
        }
    }
}
