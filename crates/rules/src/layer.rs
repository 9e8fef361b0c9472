//! Lists of rules, each from one source.

use std::sync::Arc;

use canonical::{Authority, Leniency};
use services::Service;

use crate::error::{Error, Fault};
use crate::line::{DEFAULT_PORT, Hosts, Line, What};
use crate::origin::Origin;
use crate::registry::{Registry, RegistryKind};

/// What may be done with a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// What its catalogue calls full.
    Full,
    /// What its catalogue calls read-only.
    ReadOnly,
    /// These lines, without hosts: `READ /repos/acme/**`.
    Lines {
        /// What is allowed.
        allow: Vec<String>,
        /// What is denied.
        deny: Vec<String>,
    },
}

/// Rules of one source: an administrator's file, a project's, a profile, a request or a service.
#[derive(Debug, Clone, Default)]
pub struct Layer {
    /// None is no list, which is not an empty list: as a bound, it takes nothing away.
    pub(crate) allow: Option<Vec<Rule>>,
    pub(crate) deny: Vec<Rule>,
    pub(crate) services: Vec<Section>,
}

/// What a layer says of one service.
#[derive(Debug, Clone)]
pub(crate) struct Section {
    pub(crate) name: Arc<str>,
    pub(crate) hosts: Vec<Authority>,
    pub(crate) leniency: Leniency,
    pub(crate) allow: Vec<Rule>,
}

/// A line of a file that somebody else reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed<'a> {
    /// The line of rules.
    pub text: &'a str,
    /// Where it stands, from 1.
    pub line: u32,
    /// Where the string begins there, from 1.
    pub column: u32,
}

/// A line, where it stands and whose it is.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) line: Line,
    pub(crate) origin: Origin,
    /// The service whose credential requests may carry that this rule allows.
    pub(crate) service: Option<Arc<str>>,
    /// What a denial leaves out.
    pub(crate) except: Vec<Line>,
    /// Names of packages have an encoded `/` there.
    pub(crate) encoded_separators: bool,
    /// It comes with the program, and nobody need be told about it.
    pub(crate) is_ours: bool,
}

/// A line of a file, in its place.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    pub(crate) origin: Origin,
    /// Of its first character, in characters from 1.
    pub(crate) column: u32,
    /// It stands in one line, as it is: a column within it can be counted.
    pub(crate) is_plain: bool,
}

/// What is allowed of a service, as it is written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    pub(crate) access: Option<(bool, Written)>,
    pub(crate) allow: Vec<Written>,
    pub(crate) deny: Vec<Written>,
}

impl Layer {
    /// Most bytes of a file.
    pub const MAX_TEXT: usize = 256 << 10;
    /// Most rules of a layer.
    pub const MAX_RULES: usize = 2000;

    /// Most of them when those of a service are counted for each of its hosts.
    const MAX_EXPANDED: usize = 20_000;

    /// Reads lines that name their hosts, as on the command line. `source` is what they came from:
    /// `--allow`.
    ///
    /// # Errors
    /// The first line that is wrong.
    pub fn from_lines(
        source: &str,
        allow: &[impl AsRef<str>],
        deny: &[impl AsRef<str>],
    ) -> Result<Self, Error> {
        let source: Arc<str> = source.into();
        let of = |text: &str| Written::new(&source, text);
        let allow = allow.iter().map(|text| host_rule(of(text.as_ref()), false));
        let deny = deny.iter().map(|text| host_rule(of(text.as_ref()), true));
        let layer = Self {
            allow: Some(allow.collect::<Result<_, _>>()?),
            deny: deny.collect::<Result<_, _>>()?,
            services: Vec::new(),
        };
        layer.bounded(&source)
    }

    /// Takes lines of a file that holds other things too. Without a list, it is a bound that only
    /// denies.
    ///
    /// # Errors
    /// The first line that is wrong.
    pub fn from_file(
        source: &str,
        allow: Option<&[Placed<'_>]>,
        deny: &[Placed<'_>],
    ) -> Result<Self, Error> {
        let name: Arc<str> = source.into();
        let rules = |list: &[Placed<'_>], is_deny: bool| -> Result<Vec<Rule>, Error> {
            let written = |placed: &Placed<'_>| Written {
                origin: Origin {
                    source: Arc::clone(&name),
                    line: placed.line,
                    text: placed.text.into(),
                },
                column: placed.column,
                is_plain: false,
            };
            list.iter().map(|placed| host_rule(written(placed), is_deny)).collect()
        };
        let layer = Self {
            allow: allow.map(|allow| rules(allow, false)).transpose()?,
            deny: rules(deny, true)?,
            services: Vec::new(),
        };
        layer.bounded(source)
    }

    /// The rules of a service: requests to its hosts that these allow may carry its credential.
    ///
    /// With [`Access::Full`] and with [`Access::ReadOnly`] the hosts that belong to it and never get the
    /// credential may be read; with lines, nothing but the lines. What the catalogue denies stays
    /// denied, but for what a line of the user's names: by its methods and by a path that the denial's
    /// path covers.
    ///
    /// # Errors
    /// The first line that is wrong, or a host of the service that anybody can have one beside.
    pub fn service(service: &Service, access: &Access) -> Result<Self, Error> {
        let source: Arc<str> = format!("service {}", service.name).into();
        let written =
            |lines: &[String]| lines.iter().map(|text| Written::new(&source, text)).collect();
        let wanted = match access {
            Access::Full => {
                let place = Written::new(&source, "access = \"full\"");
                Wanted { access: Some((true, place)), ..Wanted::default() }
            }
            Access::ReadOnly => {
                let place = Written::new(&source, "access = \"read-only\"");
                Wanted { access: Some((false, place)), ..Wanted::default() }
            }
            Access::Lines { allow, deny } => {
                Wanted { access: None, allow: written(allow), deny: written(deny) }
            }
        };
        let mut layer = Self::default();
        layer.add(service, &wanted)?;
        layer.bounded(&source)
    }

    /// What fetching needs: to read from these registries, and to fetch with git from public
    /// forges and from the registries of that kind.
    pub fn fetch(registries: &[Registry]) -> Self {
        let source: Arc<str> = "fetch mode".into();
        let lines = registries.iter().map(|registry| {
            let host = registry.host.to_string();
            let path = registry.path.trim_end_matches('/');
            let place = at(&host, registry.port);
            let text = match registry.kind {
                RegistryKind::Git => format!("git fetch {place}{path}/**"),
                // What a registry serves is anywhere below its host. A forge has more than that.
                _ if is_forge(&host) => format!("READ {place}{path}/**"),
                _ => format!("READ {place}/**"),
            };
            (text, registry.kind == RegistryKind::Npm)
        });
        let forges = FORGES.iter().map(|forge| (format!("git fetch {forge}/**"), false));
        let rules = lines.chain(forges).filter_map(|(text, encoded_separators)| {
            let line = Line::parse(&text).ok()?;
            let origin = Origin { source: Arc::clone(&source), line: 0, text: text.into() };
            let except = Vec::new();
            Some(Rule { line, origin, service: None, except, encoded_separators, is_ours: true })
        });
        Self { allow: Some(rules.collect()), ..Self::default() }
    }

    /// The services that the layer speaks of.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.services.iter().map(|section| &*section.name)
    }

    pub(crate) fn bounded(self, source: &str) -> Result<Self, Error> {
        let of_services: usize = self.services.iter().map(|section| section.allow.len()).sum();
        let by_host = self.allow.iter().flatten().count();
        let expanded = of_services + by_host + self.deny.len();
        let limit = match () {
            () if by_host > Self::MAX_RULES => Self::MAX_RULES,
            () if expanded > Self::MAX_EXPANDED => Self::MAX_EXPANDED,
            () => return Ok(self),
        };
        let fault = Fault::TooMany { limit };
        Err(Error { source: source.into(), line: 0, column: 0, text: None, fault })
    }

    /// Adds what is wanted of a service.
    pub(crate) fn add(&mut self, service: &Service, wanted: &Wanted) -> Result<(), Error> {
        let name: Arc<str> = service.name.as_str().into();
        let catalogue: Arc<str> = format!("service {name}").into();
        let rules = |written: &Written| -> Result<Vec<Rule>, Error> {
            let lines = Line::of_service(&written.origin.text, service)
                .map_err(|problem| written.error(problem.at, problem.text))?;
            let is_managed = |line: &Line| {
                let at = |host: &Authority| {
                    line.hosts == Hosts::of(&host.host)
                        && line.port.unwrap_or(DEFAULT_PORT) == host.port
                };
                service.inject_hosts.iter().any(at)
                    || service.git.iter().flat_map(|git| &git.hosts).any(at)
            };
            let rule = |line: Line| Rule {
                service: is_managed(&line).then(|| Arc::clone(&name)),
                line,
                origin: written.origin.clone(),
                except: Vec::new(),
                encoded_separators: false,
                is_ours: Arc::ptr_eq(&written.origin.source, &catalogue),
            };
            Ok(lines.into_iter().map(rule).collect())
        };
        let all = |list: &[Written]| -> Result<Vec<Rule>, Error> {
            list.iter().map(rules).collect::<Result<Vec<_>, _>>().map(|rules| rules.concat())
        };
        let of_catalogue = |lines: &[String]| -> Result<Vec<Rule>, Error> {
            let lines: Vec<_> = lines.iter().map(|text| Written::new(&catalogue, text)).collect();
            all(&lines)
        };

        let named = all(&wanted.allow)?;
        let mut allow = named.clone();
        if let Some((is_full, place)) = &wanted.access {
            allow.extend(of_catalogue(if *is_full { &service.full } else { &service.read_only })?);
            for plain in &service.plain_hosts {
                // To write there takes somebody else's credential, which nobody looks at.
                let text = format!("READ {}", at(&plain.pattern, plain.port));
                let origin = Origin { text: text.into(), ..place.origin.clone() };
                let written = Written { origin, column: place.column, is_plain: false };
                let rule = host_rule(written, false)?;
                allow.push(Rule { is_ours: true, ..rule });
            }
        }
        let mut deny = of_catalogue(&service.deny)?;
        for rule in &mut deny {
            let is_meant = |line: &&Line| line.names_what() && rule.line.covers(line);
            rule.except = named.iter().map(|rule| &rule.line).filter(is_meant).cloned().collect();
        }
        deny.extend(all(&wanted.deny)?);
        for rule in &mut deny {
            rule.service = None;
        }
        self.deny.extend(deny);
        let mut hosts = service.inject_hosts.clone();
        hosts.extend(service.git.iter().flat_map(|git| git.hosts.clone()));
        let section = Section { name, hosts, leniency: service.leniency, allow };
        self.services.push(section);
        Ok(())
    }
}

/// Public hosts of repositories, whose names of owners and repositories have no case.
const FORGES: [&str; 4] = ["github.com", "gitlab.com", "bitbucket.org", "codeberg.org"];

/// Whether a host is a public one of repositories.
pub(crate) fn is_forge(host: &str) -> bool {
    FORGES.contains(&host)
}

fn at(host: &str, port: u16) -> String {
    match port {
        DEFAULT_PORT => host.to_owned(),
        port => format!("{host}:{port}"),
    }
}

/// Reads a line that names its hosts.
pub(crate) fn host_rule(written: Written, is_deny: bool) -> Result<Rule, Error> {
    let line = Line::anywhere(&written.origin.text)
        .map_err(|problem| written.error(problem.at, problem.text))?;
    if is_deny && line.what == What::Tunnel {
        let text = "to deny a host, write it alone, without `tunnel`".to_owned();
        return Err(written.error(0, text));
    }
    Ok(Rule {
        line,
        origin: written.origin,
        service: None,
        except: Vec::new(),
        encoded_separators: false,
        is_ours: false,
    })
}

impl Written {
    fn new(source: &Arc<str>, text: &str) -> Self {
        let origin = Origin { source: Arc::clone(source), line: 0, text: text.into() };
        Self { origin, column: 1, is_plain: true }
    }

    /// A mistake at a byte of the line.
    pub(crate) fn error(&self, at: usize, text: String) -> Error {
        let before = match self.is_plain {
            true => self.origin.text.get(..at).map_or(0, |before| before.chars().count()),
            false => 0,
        };
        Error {
            source: Arc::clone(&self.origin.source),
            line: self.origin.line,
            column: self.column.saturating_add(u32::try_from(before).unwrap_or(u32::MAX)),
            text: Some(Arc::clone(&self.origin.text)),
            fault: Fault::Rule(text),
        }
    }
}
