//! What would become of a request, in words: for people who try their rules.

use canonical::{Authority, Path, Query};

use crate::{Kind, Origin, Refusal, Request, Rules, Verdict};

/// A request as a person writes it.
#[derive(Debug, Clone, Copy)]
pub struct Probe<'a> {
    /// Its method; methods have a case.
    pub method: &'a str,
    /// `[SCHEME://]HOST[:PORT][/PATH][?QUERY]`, of https, http, wss or ws; https by default.
    pub url: &'a str,
    /// The whole of its body, for rules that look into it.
    pub body: Option<&'a [u8]>,
    /// The type of the body.
    pub content_type: &'a str,
}

/// What would become of it, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// It would be sent.
    pub is_allowed: bool,
    /// The rule that decides. `None`: no rule allows it, or more must be known.
    pub rule: Option<Origin>,
    /// Why, in one sentence.
    pub reason: String,
    /// The option that would allow it, where one would.
    pub remedy: Option<String>,
}

/// Why nothing can be said about a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// It goes by no protocol that is judged.
    #[error("{0}:// is none of https, http, wss and ws")]
    Scheme(String),
    /// The gateway would not even look at its rules.
    #[error("the request is refused whatever the rules: {0}")]
    Malformed(String),
}

fn malformed(error: impl std::fmt::Display) -> ProbeError {
    ProbeError::Malformed(error.to_string())
}

struct Target<'a> {
    authority: Authority,
    path: &'a str,
    query: &'a str,
    is_tls: bool,
    is_websocket: bool,
}

impl<'a> Target<'a> {
    fn parse(url: &'a str) -> Result<Self, ProbeError> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
        let (port, is_tls, is_websocket) = match scheme {
            "https" => (443, true, false),
            "wss" => (443, true, true),
            "http" => (80, false, false),
            "ws" => (80, false, true),
            _ => return Err(ProbeError::Scheme(scheme.to_owned())),
        };
        let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let path = if path.is_empty() { "/" } else { path };
        let authority = Authority::parse(authority, port).map_err(malformed)?;
        Ok(Self { authority, path, query, is_tls, is_websocket })
    }
}

impl Explanation {
    fn undecided(reason: String) -> Self {
        Self { is_allowed: false, rule: None, reason, remedy: None }
    }

    fn allowed(rule: &Origin, reason: String) -> Self {
        Self { is_allowed: true, rule: Some(rule.clone()), reason, remedy: None }
    }
}

impl From<Refusal> for Explanation {
    fn from(Refusal { rule, reason, hint }: Refusal) -> Self {
        let remedy = (!hint.is_empty()).then(|| format!("--allow {hint:?}"));
        Self { is_allowed: false, rule, reason, remedy }
    }
}

impl Rules {
    /// What would become of a request, by the same decisions that the gateway takes.
    ///
    /// # Errors
    /// Where the request is none that could be judged.
    pub fn explain(&self, probe: &Probe<'_>) -> Result<Explanation, ProbeError> {
        let target = Target::parse(probe.url)?;
        let Target { authority, is_tls, .. } = &target;
        let endpoint = match self.endpoint(&authority.host, authority.port) {
            Ok(endpoint) => endpoint,
            Err(refusal) => return Ok(refusal.into()),
        };
        match endpoint.kind {
            Kind::Tcp => {
                let reason = format!("any bytes may be sent to {authority}");
                return Ok(Explanation::allowed(endpoint.rule, reason));
            }
            Kind::Tunnel if *is_tls => {
                let reason =
                    format!("TLS to {authority} passes untouched, whatever is asked inside");
                return Ok(Explanation::allowed(endpoint.rule, reason));
            }
            Kind::Tunnel | Kind::Http => {}
        }
        let path = Path::parse(target.path, endpoint.leniency).map_err(malformed)?;
        let query = Query::parse(target.query).map_err(malformed)?;
        let verdict = self.request(&Request {
            host: &authority.host,
            port: authority.port,
            method: probe.method,
            path: &path,
            query: &query,
            websocket: target.is_websocket,
            grpc: probe.content_type.starts_with("application/grpc"),
            content_type: Some(probe.content_type),
        });
        let shown = format!("{} {authority}{path}", probe.method);
        let verdict = match (verdict, probe.body) {
            (Verdict::Body(_), None) => {
                let reason = format!("{shown} depends on its body");
                let remedy = Some("ask with the body".to_owned());
                return Ok(Explanation { remedy, ..Explanation::undecided(reason) });
            }
            (Verdict::Body(judge), Some(body)) => judge.judge(body, true),
            (verdict, _) => Some(verdict),
        };
        Ok(match verdict {
            Some(Verdict::Allow(allowed)) => {
                let carried = allowed.services().collect::<Vec<_>>().join(", ");
                let reason = match carried.is_empty() {
                    true => format!("{shown} is allowed"),
                    false => format!("{shown} is allowed, with the credential of {carried}"),
                };
                Explanation::allowed(allowed.rule, reason)
            }
            Some(Verdict::Deny(refusal)) => refusal.into(),
            Some(Verdict::Body(_)) | None => {
                Explanation::undecided(format!("{shown} is not judged"))
            }
        })
    }
}
