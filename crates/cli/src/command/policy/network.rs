//! `sandforge policy check network`: of a mode, or of a request.

use std::fs;
use std::path::PathBuf;

use canonical::{Authority, Path, Query};
use clap::Args;
use client::api::{PolicyDecision, RuleRef};
use rules::{Access, Allowed, Kind, Layer, Mode, Origin, Refusal, Request, Rules, Verdict};

use super::{read, registries};
use crate::failure::Failure;

/// A body longer than this is none that rules look into.
const MAX_BODY: u64 = 8 << 20;

#[derive(Args)]
pub(super) struct NetworkArgs {
    /// A mode (offline, fetch, allow, open), or the method of a request
    #[arg(value_name = "MODE|METHOD")]
    pub(super) asked: String,

    /// The address of the request; without a scheme it is https. With wss:// it is a WebSocket
    #[arg(value_name = "URL")]
    pub(super) url: Option<String>,

    /// The network of the sandbox that would send it. By default, `allow` where there are rules, and
    /// otherwise `open`: what policy leaves
    #[arg(long, value_name = "MODE", requires = "url")]
    mode: Option<policy::Network>,

    /// A rule of the sandbox, such as "READ example.com/docs/**"; may be given several times
    #[arg(long, value_name = "RULE", requires = "url")]
    allow: Vec<String>,

    /// A rule of the sandbox that denies; may be given several times
    #[arg(long, value_name = "RULE", requires = "url")]
    deny: Vec<String>,

    /// A file of rules of the sandbox; may be given several times
    #[arg(long, value_name = "FILE", requires = "url")]
    rules: Vec<PathBuf>,

    /// A service of the sandbox, and what may be done with it: full or read-only
    #[arg(long, value_name = "NAME[=ACCESS]", requires = "url")]
    service: Vec<String>,

    /// The request's body, for rules that look into it
    #[arg(long, value_name = "FILE", requires = "url")]
    body: Option<PathBuf>,

    /// The type of the body [default: application/json]
    #[arg(long, value_name = "TYPE", requires = "body")]
    content_type: Option<String>,
}

impl NetworkArgs {
    /// Decides about the request, within what layers of policy leave.
    pub(super) fn decide(
        &self,
        url: &str,
        bounds: Vec<Layer>,
        generation: u64,
    ) -> Result<PolicyDecision, Failure> {
        let usage = |error: rules::Error| Failure::usage(error.to_string());
        let (mode, own) = self.own()?;
        let rules = Rules::new(mode, own, bounds).map_err(usage)?;
        let url = Url::parse(url)?;
        let endpoint = match rules.endpoint(&url.authority.host, url.authority.port) {
            Ok(endpoint) => endpoint,
            Err(refusal) => return Ok(denied(refusal, generation)),
        };
        if endpoint.kind == Kind::Tcp || (endpoint.kind == Kind::Tunnel && url.is_tls) {
            let reason = match endpoint.kind {
                Kind::Tcp => format!("any bytes may be sent to {}", url.authority),
                _ => format!("TLS to {} passes untouched, whatever is asked inside", url.authority),
            };
            return Ok(decision(true, rule(endpoint.rule), reason, None, generation));
        }
        let path = Path::parse(&url.path, endpoint.leniency)
            .map_err(|error| Failure::usage(format!("the request is refused: {error}")))?;
        let query = Query::parse(&url.query)
            .map_err(|error| Failure::usage(format!("the request is refused: {error}")))?;
        let content_type = self.content_type.as_deref().unwrap_or("application/json");
        let request = Request {
            host: &url.authority.host,
            port: url.authority.port,
            method: &self.asked,
            path: &path,
            query: &query,
            websocket: url.is_websocket,
            grpc: content_type.starts_with("application/grpc"),
            content_type: Some(content_type),
        };
        let shown = format!("{} {}{path}", self.asked, url.authority);
        let verdict = match rules.request(&request) {
            Verdict::Body(judge) => match self.body()? {
                Some(body) => judge.judge(&body, true),
                None => {
                    let reason = format!("{shown} depends on its body; name it with --body");
                    return Ok(decision(false, no_rule(), reason, None, generation));
                }
            },
            verdict => Some(verdict),
        };
        Ok(match verdict {
            Some(Verdict::Allow(allowed)) => self.allowed(&allowed, &shown, generation),
            Some(Verdict::Deny(refusal)) => denied(refusal, generation),
            _ => decision(false, no_rule(), format!("{shown} is not judged"), None, generation),
        })
    }

    /// The rules of the sandbox that is asked about.
    fn own(&self) -> Result<(Mode, Vec<Layer>), Failure> {
        let usage = |error: rules::Error| Failure::usage(error.to_string());
        let catalogue = services::Catalogue::built_in();
        let names: Vec<String> = catalogue.names().map(str::to_owned).collect();
        let known: Vec<_> = names.iter().filter_map(|name| catalogue.get(name).ok()).collect();
        let mut own = vec![Layer::from_lines("--allow", &self.allow, &self.deny).map_err(usage)?];
        for path in &self.rules {
            let text = read(path)?;
            own.push(Layer::from_toml(&path.display().to_string(), &text, &known).map_err(usage)?);
        }
        for text in &self.service {
            let (name, access) = text.split_once('=').unwrap_or((text, "full"));
            let access = match access {
                "full" => Access::Full,
                "read-only" => Access::ReadOnly,
                other => {
                    let message = format!("there is no access {other:?}: it is full or read-only");
                    return Err(Failure::usage(message));
                }
            };
            let service = catalogue.get(name).map_err(|error| Failure::usage(error.to_string()))?;
            own.push(Layer::service(&service, &access).map_err(usage)?);
        }
        let is_ruled = [&self.allow, &self.service].iter().any(|list| !list.is_empty())
            || !self.rules.is_empty();
        let mode = match self.mode {
            Some(policy::Network::Offline) => Mode::Offline,
            Some(policy::Network::Fetch) => {
                own.push(Layer::fetch(&registries::known()?.registries()));
                Mode::Fetch
            }
            Some(policy::Network::Allow) => Mode::Allow,
            Some(policy::Network::Open) => Mode::Open,
            None if is_ruled => Mode::Allow,
            None => Mode::Open,
        };
        Ok((mode, own))
    }

    fn body(&self) -> Result<Option<Vec<u8>>, Failure> {
        let Some(path) = &self.body else { return Ok(None) };
        let fail = |error: &std::io::Error| {
            Failure::usage(format!("cannot read the body {path:?}")).because(error)
        };
        if fs::metadata(path).map_err(|error| fail(&error))?.len() > MAX_BODY {
            return Err(Failure::usage(format!("the body {path:?} is longer than 8 MiB")));
        }
        fs::read(path).map(Some).map_err(|error| fail(&error))
    }

    fn allowed(&self, allowed: &Allowed<'_>, shown: &str, generation: u64) -> PolicyDecision {
        let names = self.service.iter().map(|text| text.split('=').next().unwrap_or(text));
        let carried: Vec<&str> = names.filter(|name| allowed.serves(name)).collect();
        let reason = match carried.is_empty() {
            true => format!("{shown} is allowed"),
            false => format!("{shown} is allowed, with the credential of {}", carried.join(", ")),
        };
        decision(true, rule(allowed.rule), reason, None, generation)
    }
}

fn denied(refusal: Refusal, generation: u64) -> PolicyDecision {
    let remedy = (!refusal.hint.is_empty()).then(|| format!("--allow {:?}", refusal.hint));
    let rule = refusal.rule.as_ref().map_or_else(no_rule, rule);
    decision(false, rule, refusal.reason, remedy, generation)
}

fn decision(
    allowed: bool,
    rule: RuleRef,
    reason: String,
    remedy: Option<String>,
    generation: u64,
) -> PolicyDecision {
    PolicyDecision { allowed, rule, reason, remedy, generation }
}

fn rule(origin: &Origin) -> RuleRef {
    RuleRef { file: origin.source.to_string(), line: origin.line, text: origin.text.to_string() }
}

fn no_rule() -> RuleRef {
    let text = "what no rule allows is denied".to_owned();
    RuleRef { file: "built-in".to_owned(), line: 0, text }
}

struct Url {
    authority: Authority,
    path: String,
    query: String,
    is_tls: bool,
    is_websocket: bool,
}

impl Url {
    fn parse(text: &str) -> Result<Self, Failure> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("https", text));
        let (port, is_tls, is_websocket) = match scheme {
            "https" => (443, true, false),
            "wss" => (443, true, true),
            "http" => (80, false, false),
            "ws" => (80, false, true),
            _ => {
                let message = format!("{scheme}:// is none of https, http, wss and ws");
                return Err(Failure::usage(message));
            }
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let authority = Authority::parse(authority, port)
            .map_err(|error| Failure::usage(format!("{text:?}: {error}")))?;
        let path = if path.is_empty() { "/" } else { path };
        Ok(Self { authority, path: path.to_owned(), query: query.to_owned(), is_tls, is_websocket })
    }
}
