//! The way out of a sandbox: its rules and credentials put together, its gateway, and what that
//! writes down.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, UNIX_EPOCH};

use access::Caller;
use api::{
    AuditDecision, CreateSandbox, NetworkMode, Operation, PolicyDecision, Problem, ReachRequest,
    RuleRef, Sandbox, SandboxCredential, Timestamp, UpdateSandbox,
};
use audit::{Details, Entry};
use egress::{Credential, Decision, Event, Gateway, Journal, Kind, Upstream};
use rules::{Access, Explanation, Layer, Probe, Rules};
use serde::Deserialize;
use services::{Catalogue, Service};
use supervisor::wire::op;
use supervisor::wire::text::Text;
use supervisor::{GuestStream, GuestStreams};
use tokio::sync::{OnceCell, mpsc};

use crate::config::{Mode, Provenance};
use crate::error::chain;
use crate::ledger::Batch;
use crate::manager::Manager;
use crate::mount::Mounted;
use crate::record::{self, Tell as _};
use crate::seat::{Seat, lock};
use crate::{Error, OpenError};

/// Events that wait to be written. Beyond, nothing more is let through.
const WAITING: usize = 4096;
/// Most events of one transaction.
const TOGETHER: usize = 512;
/// How long the first waits for others: each transaction costs as much as many events do.
const GATHERED: Duration = Duration::from_millis(20);
/// Most hosts that are remembered as denied.
const MOST_DENIED: usize = 64;

/// A named set of rules and credentials.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Profile {
    #[serde(default)]
    credentials: Vec<String>,
    #[serde(default)]
    allow: Vec<String>,
}

fn profiles() -> &'static BTreeMap<String, Profile> {
    static PROFILES: OnceLock<BTreeMap<String, Profile>> = OnceLock::new();
    PROFILES.get_or_init(|| {
        toml::from_str(include_str!("profiles.toml")).expect("the tests read the profiles")
    })
}

/// The names of the profiles that there are.
pub fn profile_names() -> impl Iterator<Item = &'static str> {
    profiles().keys().map(String::as_str)
}

/// Something that a sandbox was denied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// The host.
    pub host: String,
    /// How often.
    pub times: u64,
    /// Why, the last time.
    pub reason: String,
    /// What would allow it.
    pub hint: Option<String>,
}

/// What is shared by the gateways of all sandboxes.
pub(crate) struct Network {
    upstream: OnceLock<Result<Arc<Upstream>, String>>,
    registries: OnceCell<Vec<rules::Registry>>,
    /// Counts changes of credentials.
    renewals: AtomicU64,
    sender: mpsc::Sender<Written>,
    receiver: Mutex<Option<mpsc::Receiver<Written>>>,
}

/// An event, and whose it is.
struct Written {
    sandbox: Arc<Sandbox>,
    event: Event,
}

impl Default for Network {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        Self {
            upstream: OnceLock::new(),
            registries: OnceCell::new(),
            renewals: AtomicU64::new(0),
            sender,
            receiver: Mutex::new(Some(receiver)),
        }
    }
}

/// Writes down what one sandbox does.
pub(crate) struct Recorder {
    sandbox: Arc<Sandbox>,
    sender: mpsc::Sender<Written>,
    denied: Mutex<BTreeMap<String, Denied>>,
}

impl Journal for Recorder {
    fn record(&self, event: Event) {
        if event.decision == Decision::Denied {
            self.remember(&event);
        }
        // Nothing new is let through while there is no room; see `is_ready`.
        if self.sender.try_send(Written { sandbox: self.sandbox.clone(), event }).is_err() {
            tracing::warn!(
                sandbox = self.sandbox.id,
                "an event of the network was not written down"
            );
        }
    }

    fn is_ready(&self) -> bool {
        self.sender.capacity() > TOGETHER && !self.sender.is_closed()
    }
}

impl Recorder {
    fn remember(&self, event: &Event) {
        let mut denied = lock(&self.denied);
        if denied.len() >= MOST_DENIED && !denied.contains_key(&event.host) {
            return;
        }
        let one = denied.entry(event.host.clone()).or_insert_with(|| Denied {
            host: event.host.clone(),
            times: 0,
            reason: String::new(),
            hint: None,
        });
        // A lookup is followed by what it was for.
        if event.kind != Kind::Lookup || one.times == 0 {
            one.times += 1;
            one.reason = event.reason.clone().unwrap_or_default();
            one.hint = event.hint.clone().or_else(|| one.hint.take());
        }
    }
}

/// A sandbox's gateway, and who writes down what it does.
#[derive(Clone)]
pub(crate) struct WayOut {
    pub(crate) gateway: Gateway,
    recorder: Arc<Recorder>,
    used: Arc<[Used]>,
}

impl fmt::Debug for WayOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WayOut").finish_non_exhaustive()
    }
}

impl WayOut {
    pub(crate) fn denied(&self) -> Vec<Denied> {
        lock(&self.recorder.denied).values().cloned().collect()
    }
}

/// What a guest opens goes to its gateway.
#[derive(Debug)]
struct Streams(Gateway);

impl GuestStreams for Streams {
    fn connect(&self, address: IpAddr, port: u16, stream: GuestStream) {
        let gateway = self.0.clone();
        tokio::spawn(async move { gateway.connect(address, port, Box::new(stream)).await });
    }

    fn dns(&self, stream: GuestStream) {
        let gateway = self.0.clone();
        tokio::spawn(async move { gateway.dns(stream).await });
    }
}

/// A service of a request: its name, and `=read-only` where it is to be read only.
fn split(credential: &str) -> Result<(&str, Option<Access>), Problem> {
    match credential.split_once('=') {
        None => Ok((credential, None)),
        Some((name, "full")) => Ok((name, Some(Access::Full))),
        Some((name, "read-only")) => Ok((name, Some(Access::ReadOnly))),
        Some((_, other)) => Err(Problem::invalid(
            "credentials",
            format!("`{other}` is no access; there are `full` and `read-only`"),
        )),
    }
}

/// Lines that begin with `@SERVICE `, without it, by service; and the others.
fn sorted(lines: &[String]) -> (BTreeMap<String, Vec<String>>, Vec<String>) {
    let mut of_services: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut others = Vec::new();
    for line in lines {
        match line.strip_prefix('@').and_then(|rest| rest.split_once(' ')) {
            Some((service, rest)) => {
                of_services.entry(service.to_owned()).or_default().push(rest.trim().to_owned());
            }
            None => others.push(line.clone()),
        }
    }
    (of_services, others)
}

/// What a request or a row says about the network.
pub(crate) struct Wanted<'a> {
    pub(crate) mode: NetworkMode,
    pub(crate) allow: &'a [String],
    pub(crate) deny: &'a [String],
    pub(crate) profiles: &'a [String],
}

impl<'a> Wanted<'a> {
    pub(crate) fn of(row: &'a Sandbox) -> Self {
        Self { mode: row.network, allow: &row.allow, deny: &row.deny, profiles: &row.profiles }
    }

    fn by(request: &'a CreateSandbox) -> Self {
        let CreateSandbox { allow, deny, profiles, .. } = request;
        Self { mode: request.network_mode(), allow, deny, profiles }
    }
}

/// A credential, and how much of its service it is for.
type Given = (secrets::Found, Option<Access>);

/// A service that a sandbox uses, and how much of it.
#[derive(Clone)]
pub(crate) struct Used {
    pub(crate) service: Arc<Service>,
    access: Option<Access>,
}

/// A credential with the placeholder that a sandbox has for it.
fn for_gateway(row: &Sandbox, found: secrets::Found) -> Credential {
    let placeholder = row.credentials[&found.service.name].placeholder.clone();
    Credential { placeholder, service: found.service, secret: found.secret }
}

fn used(given: &[Given]) -> Vec<Used> {
    given
        .iter()
        .map(|(found, access)| Used { service: found.service.clone(), access: access.clone() })
        .collect()
}

/// Where the gateway takes requests of a service, if its clients are to be told.
fn base_url(row: &Sandbox, service: &str) -> Option<String> {
    row.credentials.get(service).filter(|credential| credential.gateway)?;
    Some(format!("http://{}:{}/proxy/{service}", egress::OWN_ADDRESS, egress::GATEWAY_PORT))
}

/// The services of a request, with those of its profiles.
fn services_of(request: &CreateSandbox) -> Result<Vec<String>, Problem> {
    let mut names = request.credentials.clone();
    for name in &request.profiles {
        let profile = profiles().get(name).ok_or_else(|| {
            let known: Vec<&str> = profile_names().collect();
            Problem::invalid("profiles", format!("there is no profile `{name}`"))
                .with_remedy(format!("there are: {}", known.join(", ")))
        })?;
        for credential in &profile.credentials {
            if !names.iter().any(|given| given.split('=').next() == Some(credential)) {
                names.push(credential.clone());
            }
        }
    }
    Ok(names)
}

/// The services of a request as the catalogue has them, whether there are credentials or not.
fn catalogued(request: &CreateSandbox, catalogue: &Catalogue) -> Result<Vec<Used>, Problem> {
    let service = |given: &String| {
        let (name, access) = split(given)?;
        let service = catalogue.get(name);
        let service = service.map_err(|error| Problem::invalid("credentials", chain(&error)))?;
        Ok(Used { service, access })
    };
    services_of(request)?.iter().map(service).collect()
}

/// Puts the rules of a sandbox together. `registries` are asked for where it may fetch from them.
fn build(
    wanted: &Wanted<'_>,
    used: &[Used],
    registries: &[rules::Registry],
    bounds: Vec<Layer>,
) -> Result<Rules, Problem> {
    let wrong = |field: &str, error: rules::Error| Problem::invalid(field, error.to_string());
    let mode = match wanted.mode {
        NetworkMode::Offline => return Ok(Rules::offline()),
        NetworkMode::Fetch => rules::Mode::Fetch,
        NetworkMode::Allow => rules::Mode::Allow,
        NetworkMode::Open => rules::Mode::Open,
    };
    let (allow_of, allow) = sorted(wanted.allow);
    let (deny_of, deny) = sorted(wanted.deny);
    let mut own = vec![
        Layer::from_lines("the sandbox's rules", &allow, &deny)
            .map_err(|error| wrong("allow", error))?,
    ];
    for name in allow_of.keys().chain(deny_of.keys()) {
        if !used.iter().any(|one| one.service.name == *name) {
            let problem = format!("`@{name}` needs the credential `{name}`");
            return Err(Problem::invalid("allow", problem));
        }
    }
    for Used { service, access } in used {
        let lines = |of: &BTreeMap<String, Vec<String>>| of.get(&service.name).cloned();
        let access = match (lines(&allow_of), lines(&deny_of), access) {
            (None, None, access) => access.clone().unwrap_or(Access::Full),
            (allow, deny, _) => {
                Access::Lines { allow: allow.unwrap_or_default(), deny: deny.unwrap_or_default() }
            }
        };
        own.push(Layer::service(service, &access).map_err(|error| wrong("credentials", error))?);
    }
    for name in wanted.profiles {
        if let Some(profile) = profiles().get(name) {
            let source = format!("profile {name}");
            own.push(
                Layer::from_lines(&source, &profile.allow, &[] as &[&str])
                    .map_err(|error| wrong("profiles", error))?,
            );
        }
    }
    if mode == rules::Mode::Fetch {
        own.push(Layer::fetch(registries));
    }
    Rules::new(mode, own, bounds).map_err(|error| wrong("allow", error))
}

/// What would become of a request of a sandbox that is made like this, within the rules of policy.
/// No credential is looked for.
///
/// # Errors
/// Where the sandbox's rules or the request make no sense.
pub fn explain(
    create: &CreateSandbox,
    catalogue: &Catalogue,
    registries: &[rules::Registry],
    bounds: Vec<Layer>,
    probe: &Probe<'_>,
) -> Result<Explanation, Problem> {
    let rules = build(&Wanted::by(create), &catalogued(create, catalogue)?, registries, bounds)?;
    explained(&rules, probe)
}

fn explained(rules: &Rules, probe: &Probe<'_>) -> Result<Explanation, Problem> {
    rules.explain(probe).map_err(|error| Problem::invalid("url", error.to_string()))
}

/// The same as a decision of policy.
pub fn decision(explanation: Explanation, generation: u64) -> PolicyDecision {
    let Explanation { is_allowed, rule, reason, remedy } = explanation;
    let rule = match rule {
        Some(rule) => rule_ref(&rule),
        None => RuleRef {
            file: "built-in".into(),
            line: 0,
            text: "what no rule allows is denied".into(),
        },
    };
    PolicyDecision { allowed: is_allowed, rule, reason, remedy, generation }
}

fn rule_ref(rule: &rules::Origin) -> RuleRef {
    RuleRef { file: rule.source.to_string(), line: rule.line, text: rule.text.to_string() }
}

impl Manager {
    /// The rules of a sandbox.
    ///
    /// # Errors
    /// `Refused` where a line or a combination of them is wrong.
    pub(crate) async fn rules(&self, wanted: &Wanted<'_>, used: &[Used]) -> Result<Rules, Error> {
        let registries = match wanted.mode {
            NetworkMode::Fetch => self.registries().await?,
            _ => &[],
        };
        Ok(build(wanted, used, registries, self.policy.load().endpoints())?)
    }

    /// Fetches the credentials of a sandbox.
    pub(crate) async fn credentials(
        &self,
        workspace: &str,
        sandbox: Option<&str>,
        names: Vec<String>,
    ) -> Result<Vec<Given>, Error> {
        let (store, catalogue) = (self.secrets.clone(), self.config.catalogue.clone());
        let (workspace, sandbox) = (workspace.to_owned(), sandbox.map(str::to_owned));
        // A daemon's own variables are nobody's credentials.
        let has_environment = self.config.mode == Mode::Embedded;
        let finding = tokio::task::spawn_blocking(move || {
            let environment = |name: &str| std::env::var_os(name).filter(|_| has_environment);
            let find = |given: &String| {
                let (name, access) = split(given)?;
                let found = store
                    .find(&catalogue, &workspace, sandbox.as_deref(), name, &environment)
                    .map_err(|error| Problem::invalid("credentials", chain(&error)))?;
                found.map(|found| (found, access)).ok_or_else(|| {
                    Problem::invalid("credentials", format!("there is no credential for `{name}`"))
                        .with_remedy(format!("sandforge secret set -g {name}"))
                })
            };
            names.iter().map(find).collect::<Result<Vec<_>, Problem>>()
        });
        let found = finding.await.map_err(|error| Error::Internal(error.to_string()))?;
        Ok(found?)
    }

    /// What a new sandbox uses and never sees, each with a placeholder of its own. Its rules are
    /// checked. A request that policy denies gets none: nothing is fetched for it.
    pub(crate) async fn settle(
        &self,
        caller: &Caller,
        workspace: &str,
        request: &CreateSandbox,
        mounts: &Result<Vec<Mounted>, Error>,
    ) -> Result<BTreeMap<String, SandboxCredential>, Error> {
        let names = services_of(request)?;
        if request.network_mode() == NetworkMode::Offline {
            let lists = [&names, &request.allow, &request.gateways];
            let is_asked = lists.iter().any(|list| !list.is_empty());
            return match is_asked {
                true => Err(Problem::invalid("network", "is `offline`, with rules or credentials")
                    .with_remedy("leave it out, or use `allow`")
                    .into()),
                false => Ok(BTreeMap::new()),
            };
        }
        let who = crate::rules::subject(caller, workspace);
        let question = self.question(who, request, mounts, self.count_of(workspace))?;
        if !self.policy.load().decide(&policy::Request::Create(question)).allowed {
            return Ok(BTreeMap::new());
        }
        let found = self.credentials(workspace, None, names).await?;
        let mut credentials = BTreeMap::new();
        for (found, access) in &found {
            let mut random = [0; 32];
            getrandom::fill(&mut random).map_err(|error| Error::Internal(error.to_string()))?;
            let length = found.secret.expose().len();
            let placeholder = found.service.placeholder(Some(length), &random);
            let read_only = *access == Some(Access::ReadOnly);
            let gateway = request.gateways.contains(&found.service.name);
            if gateway && found.service.base_url_env.is_empty() {
                let problem = format!("clients of `{}` take no base URL", found.service.name);
                return Err(Problem::invalid("gateways", problem).into());
            }
            let credential = SandboxCredential { placeholder, read_only, gateway };
            credentials.insert(found.service.name.clone(), credential);
        }
        if let Some(name) = request.gateways.iter().find(|name| !credentials.contains_key(*name)) {
            let problem = format!("`{name}` needs the credential `{name}`");
            return Err(Problem::invalid("gateways", problem).into());
        }
        self.rules(&Wanted::by(request), &used(&found)).await?;
        Ok(credentials)
    }

    /// Whether a change of the network makes sense.
    pub(crate) async fn check_change(
        &self,
        seat: &Seat,
        row: &Sandbox,
        change: &UpdateSandbox,
    ) -> Result<(), Error> {
        let next = crate::rules::changed(row, change.clone());
        if row.network == NetworkMode::Offline && next.network != NetworkMode::Offline {
            let remedy = "it was made without a network; make another";
            return Err(Error::State { state: row.state, remedy });
        }
        let used = self.used_by(seat, &next).await?;
        self.rules(&Wanted::of(&next), &used).await.map(drop)
    }

    /// The services of a sandbox; those of its gateway where it runs.
    pub(crate) async fn used_by(&self, seat: &Seat, row: &Sandbox) -> Result<Arc<[Used]>, Error> {
        let running = lock(&seat.way_out).as_ref().map(|way| way.used.clone());
        match running {
            Some(used) => Ok(used),
            None => Ok(used(&self.credentials_of(row).await?).into()),
        }
    }

    async fn credentials_of(&self, row: &Sandbox) -> Result<Vec<Given>, Error> {
        let use_of = |(name, credential): (&String, &SandboxCredential)| match credential.read_only
        {
            true => format!("{name}=read-only"),
            false => name.clone(),
        };
        let names = row.credentials.iter().map(use_of).collect();
        self.credentials(&row.workspace, Some(&row.id), names).await
    }

    /// The gateway of a sandbox that is to have a network, and what its guest is told.
    pub(crate) async fn way_out(
        &self,
        row: &Arc<Sandbox>,
    ) -> Result<Option<(WayOut, supervisor::Network)>, Error> {
        if row.network == NetworkMode::Offline {
            return Ok(None);
        }
        let found = self.credentials_of(row).await?;
        let used: Arc<[Used]> = used(&found).into();
        let rules = self.rules(&Wanted::of(row), &used).await?;
        let bases: Vec<Option<String>> =
            found.iter().map(|(found, _)| base_url(row, &found.service.name)).collect();
        let given: Vec<services::Given<'_>> = found
            .iter()
            .zip(&bases)
            .map(|((found, _), base)| services::Given {
                service: &found.service,
                placeholder: &row.credentials[&found.service.name].placeholder,
                gateway: base.as_deref(),
            })
            .collect();
        let environment = services::environment(&given);
        let credentials = found.into_iter().map(|(found, _)| for_gateway(row, found)).collect();
        let recorder = Arc::new(Recorder {
            sandbox: row.clone(),
            sender: self.network.sender.clone(),
            denied: Mutex::default(),
        });
        let failed = |error: egress::Error| Error::Internal(chain(&error));
        let gateway = Gateway::new(egress::Config {
            sandbox: row.id.clone(),
            rules,
            credentials,
            journal: recorder.clone(),
            upstream: self.upstream()?,
        })
        .map_err(failed)?;
        let text = |text: String| Text::new(text).map_err(|_| Error::Internal("a NUL".into()));
        let env = environment
            .into_iter()
            .map(|(name, value)| Ok((text(name)?, text(value)?)))
            .collect::<Result<_, Error>>()?;
        let operation = op::Network { trust: Some(gateway.authority_pem().to_owned()), env };
        let network =
            supervisor::Network { streams: Arc::new(Streams(gateway.clone())), operation };
        Ok(Some((WayOut { gateway, recorder, used }, network)))
    }

    /// The same, kept with the sandbox.
    pub(crate) async fn give_way_out(
        &self,
        seat: &Seat,
        row: &Arc<Sandbox>,
    ) -> Result<Option<supervisor::Network>, Error> {
        let before = self.network.renewals.load(Ordering::SeqCst);
        let (way_out, network) = self.way_out(row).await?.unzip();
        lock(&seat.way_out).clone_from(&way_out);
        // What was changed meanwhile did not see this one.
        if self.network.renewals.load(Ordering::SeqCst) != before
            && let Some(way) = way_out
        {
            self.renew_of(&way, row, None).await;
        }
        Ok(network)
    }

    /// Credentials of running sandboxes become what is kept now: of all workspaces, sandboxes or
    /// services where none is named. Those that are kept no more are taken away.
    pub(crate) async fn renew(
        &self,
        workspace: Option<&str>,
        sandbox: Option<&str>,
        service: Option<&str>,
    ) {
        self.network.renewals.fetch_add(1, Ordering::SeqCst);
        for seat in self.all() {
            let row = seat.row();
            let is_meant = workspace.is_none_or(|workspace| workspace == row.workspace)
                && sandbox.is_none_or(|id| id == row.id);
            let way = lock(&seat.way_out).clone();
            if let Some(way) = way.filter(|_| is_meant) {
                self.renew_of(&way, &row, service).await;
            }
        }
    }

    async fn renew_of(&self, way: &WayOut, row: &Sandbox, service: Option<&str>) {
        let is_meant = |name: &&String| service.is_none_or(|service| service == *name);
        for name in row.credentials.keys().filter(is_meant) {
            let found = self.credentials(&row.workspace, Some(&row.id), vec![name.clone()]).await;
            let given =
                found.map(|mut found| found.pop().map(|(found, _)| for_gateway(row, found)));
            let is_set = match given {
                Ok(Some(credential)) => way.gateway.set_credential(credential).is_ok(),
                Ok(None) | Err(_) => false,
            };
            if !is_set {
                way.gateway.revoke(name);
            }
        }
    }

    /// Other rules for a sandbox that runs.
    pub(crate) async fn change_rules(&self, seat: &Seat, row: &Sandbox) -> Result<(), Error> {
        let Some(way) = lock(&seat.way_out).clone() else { return Ok(()) };
        way.gateway.set_rules(self.rules(&Wanted::of(row), &way.used).await?);
        Ok(())
    }

    /// The registries of `fetch`: what was found of the user's own tools.
    async fn registries(&self) -> Result<&[rules::Registry], Error> {
        let find = async || {
            let beside = self.config.policy.as_ref().and_then(|policy| policy.parent());
            let file = beside.map(|directory| directory.join(discover::FILE));
            // The tools may have to be asked, which are other programs.
            tokio::task::spawn_blocking(move || match discover::known(file.as_deref()) {
                Ok(discovery) => discovery.registries(),
                Err(error) => {
                    tracing::error!(%error, "the registries cannot be read, so that none is reached");
                    Vec::new()
                }
            })
            .await
        };
        let found = self.network.registries.get_or_try_init(find).await;
        Ok(found.map_err(|error| Error::Internal(error.to_string()))?)
    }

    /// The addresses of the registries that `fetch` reads from, of one kind: `npm`.
    ///
    /// # Errors
    /// `Internal`.
    pub async fn registry_urls(&self, kind: &str) -> Result<Vec<String>, Error> {
        let known = self.registries().await?.iter();
        let urls = known.filter(|one| one.kind.as_str() == kind).map(|one| one.url.clone());
        Ok(urls.collect())
    }

    /// What would become of a request of a sandbox.
    pub(crate) async fn check_reach(
        &self,
        caller: &Caller,
        reach: &ReachRequest,
        by: &Provenance,
    ) -> Result<PolicyDecision, Error> {
        let rules = match &reach.sandbox {
            Some(name) => {
                let seat = self.find_to_read(caller, Operation::PolicyCheck, name, by).await?;
                let row = seat.row();
                self.rules(&Wanted::of(&row), &self.used_by(&seat, &row).await?).await?
            }
            None => {
                let asked = reach.create.workspace.as_deref();
                let home = caller.home(asked, &self.config.default_workspace)?.to_owned();
                self.authorise(caller, Operation::PolicyCheck, Some(&home), by).await?;
                let used = catalogued(&reach.create, &self.config.catalogue)?;
                self.rules(&Wanted::by(&reach.create), &used).await?
            }
        };
        let probe = Probe {
            method: &reach.method,
            url: &reach.url,
            body: None,
            content_type: "application/json",
        };
        let explained = explained(&rules, &probe);
        let explained = explained.map_err(|problem| problem.within("request.reach"))?;
        Ok(decision(explained, self.policy.load().generation().0))
    }

    fn upstream(&self) -> Result<Arc<Upstream>, Error> {
        let made = self.network.upstream.get_or_init(|| {
            Upstream::new(self.config.upstream.clone()).map(Arc::new).map_err(|error| chain(&error))
        });
        made.clone().map_err(Error::Internal)
    }

    /// Writes events down as they come, many in one transaction, until it closes.
    pub(crate) fn spawn_network(&self) {
        let Some(mut receiver) = lock(&self.network.receiver).take() else { return };
        let manager = self.arc();
        self.tasks.spawn(async move {
            let mut events = Vec::new();
            loop {
                let count = tokio::select! {
                    count = receiver.recv_many(&mut events, TOGETHER) => count,
                    () = manager.closed() => {
                        receiver.close();
                        receiver.recv_many(&mut events, WAITING).await
                    }
                };
                if count == 0 {
                    return;
                }
                if count < TOGETHER && !receiver.is_closed() {
                    tokio::time::sleep(GATHERED).await;
                    while events.len() < TOGETHER
                        && let Ok(written) = receiver.try_recv()
                    {
                        events.push(written);
                    }
                }
                manager.write_down(std::mem::take(&mut events)).await;
            }
        });
    }

    async fn write_down(&self, written: Vec<Written>) {
        let batch = || {
            let mut batch = Batch::default();
            batch.entries.extend(written.iter().map(entry));
            batch
        };
        while let Err(error) = self.ledger.commit(batch()).await {
            // The queue fills meanwhile, and then nothing more is let through.
            tracing::error!(error = chain(&error), "events of the network cannot be written down");
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
                () = self.closed() => return,
            }
        }
    }
}

/// `upstream.toml`: how servers are reached from this host.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct UpstreamFile {
    /// `http://host:port` or `socks5h://host:port`.
    proxy: Option<String>,
    /// A file of certificates in PEM, trusted beside the host's own.
    ca: Option<PathBuf>,
    /// Names and where they are, also where that is a private address.
    #[serde(default)]
    addresses: BTreeMap<String, SocketAddr>,
}

/// How servers are reached, by the file `upstream.toml` of a directory, where there is one.
///
/// # Errors
/// `ReadPolicy` and `Upstream`.
pub fn upstream(directory: &std::path::Path) -> Result<egress::Options, OpenError> {
    let path = directory.join("upstream.toml");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Default::default()),
        Err(source) => return Err(OpenError::ReadPolicy { path, source }),
    };
    let wrong = |problem: String| OpenError::Upstream { path: path.clone(), problem };
    let file: UpstreamFile = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let mut options = egress::Options { proxy: file.proxy, ..Default::default() };
    if let Some(ca) = file.ca {
        options.extra_roots =
            std::fs::read(&ca).map_err(|source| OpenError::ReadPolicy { path: ca, source })?;
    }
    for (name, address) in file.addresses {
        let host =
            canonical::Host::parse(&name).map_err(|error| wrong(format!("{name}: {error}")))?;
        let host = host.name().ok_or_else(|| wrong(format!("{name} is no name")))?;
        options.pins.insert(host.clone(), address);
    }
    Ok(options)
}

/// The record of an event.
fn entry(written: &Written) -> Entry {
    let Written { sandbox, event } = written;
    let operation = match event.kind {
        Kind::Lookup => "egress_lookup",
        Kind::Connection => "egress_connection",
        Kind::Request => "egress_request",
    };
    let outcome = match event.decision {
        Decision::Allowed => "allowed",
        Decision::Denied => "denied",
        Decision::Failed => "failed",
    };
    let mut entry = record::own(operation).about(sandbox).with_outcome(outcome);
    entry.actor = sandbox.id.clone();
    let since = event.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    entry.at = Timestamp::from_unix_ms(i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
    entry.rule = event.rule.as_ref().map(rule_ref);
    entry.generation = Some(event.generation);
    if event.decision == Decision::Denied {
        entry.decision = AuditDecision::Denied;
    }
    match Details::of(event) {
        Ok(details) => entry.details = details,
        Err(error) => entry = entry.with_detail("error", error.to_string()),
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_is_made_of_services_and_rules_that_there_are() {
        let catalogue = services::Catalogue::built_in();
        for (name, profile) in profiles() {
            for credential in &profile.credentials {
                catalogue.get(credential).unwrap();
            }
            Layer::from_lines(name, &profile.allow, &[] as &[&str]).unwrap();
        }
    }

    #[test]
    fn the_page_about_the_way_out_shows_a_file_that_is_one() {
        let page = include_str!("../../../docs/upstream.md");
        let text = page.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let ca = directory.path().join("company.pem");
        std::fs::write(&ca, "none").unwrap();
        let text = text.replace("/etc/ssl/company.pem", ca.to_str().unwrap());
        std::fs::write(directory.path().join("upstream.toml"), text).unwrap();
        let options = upstream(directory.path()).unwrap();
        assert_eq!(options.proxy.as_deref(), Some("http://proxy.example.com:3128"));
        assert_eq!((options.pins.len(), options.extra_roots.as_slice()), (1, &b"none"[..]));
        std::fs::write(directory.path().join("upstream.toml"), "proxies = []").unwrap();
        assert!(matches!(upstream(directory.path()), Err(OpenError::Upstream { .. })));
    }

    #[test]
    fn lines_of_services_are_told_from_others() {
        let lines = ["@github READ /repos/**", "example.com", "@github git fetch acme/*"];
        let (of, others) = sorted(&lines.map(str::to_owned));
        assert_eq!(of["github"], ["READ /repos/**", "git fetch acme/*"]);
        assert_eq!(others, ["example.com"]);
    }
}
