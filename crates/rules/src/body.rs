//! Verdicts that wait for the body of a request.

use std::fmt;

use crate::entry::Entry;
use crate::line::{Operation, What, Word};
use crate::request::{Refusal, Request, Verdict};
use crate::rules::{Inner, hint, request_text};

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
    /// The request, for a refusal.
    text: String,
    hint: String,
}

impl fmt::Debug for BodyRule<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyRule").field("request", &self.text).finish_non_exhaustive()
    }
}

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

impl Entry {
    fn protocol(&self) -> Option<Protocol> {
        match self.what {
            What::Git { .. } if self.gate == crate::entry::Gate::LfsBatch => Some(Protocol::Lfs),
            What::Git { .. } => Some(Protocol::Push),
            What::GraphQl { .. } => Some(Protocol::GraphQl),
            What::Mcp { .. } => Some(Protocol::Mcp),
            _ => None,
        }
    }

    /// Whether it is about this. `folded` for denials.
    fn is_about(&self, ask: &Ask, folded: bool) -> bool {
        let among = |words: &[Word], text: &str| {
            words.is_empty() || words.iter().any(|word| word.glob.matches(text, folded))
        };
        match (&self.what, ask) {
            (What::Git { refs, .. }, Ask::Ref(name)) => {
                let parts: Vec<&str> = name.split('/').collect();
                refs.is_empty() || refs.iter().any(|pattern| pattern.matches(&parts, folded))
            }
            // Who may push may also get what is there already.
            (What::Git { push, .. }, Ask::Objects { upload }) => {
                if folded {
                    push == upload
                } else {
                    *push || !upload
                }
            }
            (What::GraphQl { kind, fields, .. }, Ask::Field(operation, name)) => {
                let is_kind = kind.is_none_or(|kind| kind == *operation);
                let is_name = !folded && name == "__typename";
                is_kind && (is_name || among(fields, name))
            }
            (What::Mcp { tools, .. }, Ask::Tool(name)) => among(tools, name),
            (_, Ask::Harmless) => !folded,
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
            text: request_text(request),
            hint: hint(request),
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
        (request.method != "POST").then(|| {
            let wrong = Unread::Wrong("what it asks for cannot be read".to_owned());
            self.decide(&[(Protocol::GraphQl, Err(wrong))])
        })
    }

    fn read(&self, _: Protocol, _: &[u8], is_whole: bool) -> Result<Vec<Ask>, Unread> {
        match is_whole {
            false => Err(Unread::More),
            true => {
                Err(Unread::Wrong(format!("its body cannot be read as {:?}", self.content_type)))
            }
        }
    }

    fn decide(&self, read: &[(Protocol, Result<Vec<Ask>, Unread>)]) -> Verdict<'r> {
        let asked = |entry: &Entry| {
            let found = read.iter().find(|(known, _)| Some(*known) == entry.protocol());
            found.map(|(_, asks)| asks)
        };
        for denial in &self.denials {
            let compiled = self.inner.compiled(denial);
            let asks = match asked(denial) {
                Some(Ok(asks)) => asks,
                Some(Err(unread)) => return self.refuse(Some(denial.rule), unread.reason()),
                None => return self.refuse(Some(denial.rule), "its body is not known"),
            };
            let is_denied = |ask: &Ask| {
                denial.is_about(ask, true)
                    && !compiled.except.iter().any(|except| except.is_about(ask, false))
            };
            if let Some(ask) = asks.iter().find(|ask| is_denied(ask)) {
                return self.refuse(Some(denial.rule), &ask.to_string());
            }
        }
        let own = match self.meets(&self.own, &asked) {
            Ok(own) => own,
            Err(reason) => return self.refuse(None, &reason),
        };
        for bound in &self.bounds {
            if let Err(reason) = self.meets(bound, &asked) {
                return self.refuse(None, &reason);
            }
        }
        let (rule, services) = own;
        Verdict::Allow(self.inner.allowed(rule, services))
    }

    /// Whether a list allows all that is asked, by which rule, and of which services.
    fn meets<'a>(
        &self,
        tier: &Tier<'_>,
        asked: &impl Fn(&Entry) -> Option<&'a Result<Vec<Ask>, Unread>>,
    ) -> Result<(Option<u32>, u128), String> {
        let mut best = tier.rule;
        let mut services = tier.services;
        let mut is_met = tier.is_open || tier.rule.is_some();
        let mut reason = String::from("it is not known what it asks for");
        for protocol in [Protocol::Push, Protocol::Lfs, Protocol::GraphQl, Protocol::Mcp] {
            let entries: Vec<&Entry> = tier
                .waiting
                .iter()
                .copied()
                .filter(|one| one.protocol() == Some(protocol))
                .collect();
            let Some(asks) = entries.first().and_then(|entry| asked(entry)) else { continue };
            let asks = match asks {
                Ok(asks) => asks,
                Err(unread) => {
                    unread.reason().clone_into(&mut reason);
                    continue;
                }
            };
            let all = |entries: &[&Entry]| {
                asks.iter().find(|ask| !entries.iter().any(|entry| entry.is_about(ask, false)))
            };
            if let Some(ask) = all(&entries) {
                reason = ask.to_string();
                continue;
            }
            is_met = true;
            let first = entries
                .iter()
                .filter(|entry| {
                    asks.is_empty() || asks.iter().any(|ask| entry.is_about(ask, false))
                })
                .map(|entry| entry.rule)
                .min();
            best = match (best, first) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
            let bit = |entry: &Entry| self.inner.compiled(entry).service;
            let mut bits = entries.iter().fold(0, |bits, entry| bits | bit(entry));
            while bits != 0 {
                let one = bits & bits.wrapping_neg();
                bits &= !one;
                let of_one: Vec<&Entry> =
                    entries.iter().copied().filter(|entry| bit(entry) == one).collect();
                if all(&of_one).is_none() {
                    services |= one;
                }
            }
        }
        if is_met { Ok((best, services)) } else { Err(reason) }
    }

    fn refuse(&self, rule: Option<u32>, reason: &str) -> Verdict<'r> {
        let rule = rule.map(|rule| self.inner.origin(rule).clone());
        let by = match &rule {
            Some(rule) => format!("is denied by {rule}"),
            None => "is allowed by no rule".to_owned(),
        };
        let hint = if rule.is_some() { String::new() } else { self.hint.clone() };
        Verdict::Deny(Refusal { rule, reason: format!("{} {by}: {reason}", self.text), hint })
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
