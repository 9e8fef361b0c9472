//! What callers see of the host: events, the policy, the audit log, webhooks, images, engines.

use std::time::Duration;

use access::Caller;
use api::{
    AuditQuery, AuditRange, AuditRecord, AuditReport, Checkpoint, CreateWebhook, CreatedWebhook,
    Delivery, DeliveryQuery, Doctor, EngineReport, Event, EventKind, EventQuery, Finding, Image,
    LayerKind, Operation, Page, PageQuery, PolicyCheck, PolicyDecision, PolicyInfo, PolicyLayer,
    PolicyRequest, Secret, Timestamp, Validate as _, Webhook,
};
use futures_util::Stream;
use policy::{Kind, MountRequest, NetworkRequest, Request};
use serde_json::json;
use store::StoreError;
use supervisor::Verdict;
use tokio::sync::broadcast::error::RecvError;

use crate::config::Provenance;
use crate::credentials::missing;
use crate::ledger::Batch;
use crate::manager::Manager;
use crate::mount::Mounted;
use crate::{Error, rules};

/// Events that are read at once.
const BATCH: u32 = 500;
/// How late an event of another process may be told.
const OTHERS: Duration = Duration::from_millis(500);

impl Manager {
    /// Events that are kept, oldest first.
    ///
    /// # Errors
    /// `Access`, `Refused`.
    pub async fn events(&self, caller: &Caller, query: &EventQuery) -> Result<Page<Event>, Error> {
        let query = self.scope_events(caller, query).await?;
        Ok(Page::whole(self.store().read(move |view| view.events(&query)).await?))
    }

    async fn scope_events(&self, caller: &Caller, query: &EventQuery) -> Result<EventQuery, Error> {
        query.validate()?;
        let workspace = caller.scope(query.workspace.as_deref())?.map(str::to_owned);
        let by = Provenance::default();
        self.authorise(caller, Operation::EventList, workspace.as_deref(), &by).await?;
        Ok(EventQuery { workspace, ..query.clone() })
    }

    /// Events after `since`, or from now on, as they happen.
    ///
    /// # Errors
    /// `Access`, `Refused`.
    pub async fn follow_events(
        &self,
        caller: &Caller,
        query: EventQuery,
    ) -> Result<impl Stream<Item = Result<Event, Error>> + Send + use<>, Error> {
        let mut query = self.scope_events(caller, &query).await?;
        let mut live = self.ledger.events();
        let mut last = match query.since {
            Some(since) => since,
            None => self.store().read(|view| view.last_event()).await?,
        };
        query.limit = Some(BATCH);
        let (sender, receiver) = tokio::sync::mpsc::channel(64);
        let manager = self.arc();
        tokio::spawn(async move {
            loop {
                // What is kept comes first; what happens meanwhile is kept by then.
                query.since = Some(last);
                let asked = query.clone();
                let kept = manager.store().read(move |view| view.events(&asked)).await;
                let kept: Vec<Event> = match kept {
                    Ok(kept) => kept,
                    Err(error) => {
                        let _ = sender.send(Err(Error::from(error))).await;
                        return;
                    }
                };
                let more = kept.len() >= BATCH as usize;
                for event in kept {
                    last = event.id;
                    if sender.send(Ok(event)).await.is_err() {
                        return;
                    }
                }
                if more {
                    continue;
                }
                tokio::select! {
                    heard = live.recv() => if let Err(RecvError::Closed) = heard { return },
                    // Another process's events are not told here.
                    () = tokio::time::sleep(OTHERS) => {}
                    () = sender.closed() => return,
                    () = manager.closed() => return,
                }
            }
        });
        Ok(tokio_stream::wrappers::ReceiverStream::new(receiver))
    }

    /// The policy in force.
    ///
    /// # Errors
    /// `Access`.
    pub async fn policy(&self, caller: &Caller) -> Result<PolicyInfo, Error> {
        let by = Provenance::default();
        self.authorise(caller, Operation::PolicyShow, None, &by).await?;
        Ok(self.policy_info())
    }

    fn policy_info(&self) -> PolicyInfo {
        let policy = self.policy.load();
        let layers = policy.layers().map(|layer| PolicyLayer {
            file: layer.source().to_owned(),
            kind: match layer.kind() {
                Kind::BuiltIn => LayerKind::BuiltIn,
                Kind::Administrator => LayerKind::Administrator,
                Kind::Project => LayerKind::Project,
            },
            text: layer.text().to_owned(),
        });
        PolicyInfo {
            generation: policy.generation().0,
            loaded_at: *crate::seat::lock(&self.policy_loaded),
            layers: layers.collect(),
        }
    }

    /// What policy would decide. Nothing is done.
    ///
    /// # Errors
    /// `Access`, `Refused`.
    pub async fn check_policy(
        &self,
        caller: &Caller,
        check: PolicyCheck,
        by: &Provenance,
    ) -> Result<PolicyDecision, Error> {
        check.validate()?;
        if let PolicyRequest::Reach(reach) = &check.request {
            return self.check_reach(caller, reach, by).await;
        }
        let subject = check.subject.unwrap_or_default();
        let asked = match &check.request {
            PolicyRequest::Create(create) => create.workspace.as_deref(),
            _ => None,
        };
        let workspace = subject.workspace.as_deref().or(asked);
        let home = caller.home(workspace, &self.config.default_workspace)?.to_owned();
        self.authorise(caller, Operation::PolicyCheck, Some(&home), by).await?;
        let mut who = rules::subject(caller, &home);
        if let Some(name) = subject.name {
            who.name = name;
        }
        if let Some(role) = subject.role {
            who.role = rules::role(role);
        }
        // What cannot be looked at is judged as it is written; who may not have it is not told
        // whether it is there.
        let mut unseen = None;
        let request = match check.request {
            PolicyRequest::Create(create) => {
                let mounts = crate::sandboxes::resolve(create.mounts.clone()).await;
                let sandboxes = self.count_of(&home);
                Request::Create(self.question(who, &create, &mounts, sandboxes)?)
            }
            PolicyRequest::Exec(exec) => rules::exec_in(who, &[], &exec),
            PolicyRequest::Mount(mount) => {
                let mount = match Mounted::resolve(&mount, "request.mount.host_path") {
                    Ok(mounted) => mounted.request(),
                    Err(cannot) => {
                        unseen = Some(cannot);
                        Mounted::unseen(&mount)
                    }
                };
                Request::Mount(MountRequest { who, mount })
            }
            PolicyRequest::Reach(_) => unreachable!("it was answered above"),
            PolicyRequest::Network(mode) => {
                Request::Network(NetworkRequest { who, mode: rules::network(mode) })
            }
        };
        let decision = self.policy.load().decide(&request);
        if let Some(error) = unseen.filter(|_| decision.allowed) {
            return Err(error);
        }
        Ok(PolicyDecision {
            allowed: decision.allowed,
            rule: rules::rule(&decision.rule),
            reason: decision.reason,
            remedy: decision.remedy.map(|remedy| remedy.to_string()),
            generation: decision.generation.0,
        })
    }

    /// Puts the policy's files, as they are now, in force. Where one is not a policy, what was in
    /// force stays.
    ///
    /// # Errors
    /// `Access`, `Refused`.
    pub async fn reload_policy(
        &self,
        caller: &Caller,
        by: &Provenance,
    ) -> Result<PolicyInfo, Error> {
        let operation = Operation::PolicyReload;
        self.authorise(caller, operation, None, by).await?;
        let entry = self.entry(caller, operation, by);
        let layers = match rules::layers(&self.config) {
            Ok(layers) => layers,
            Err(error) => {
                let entry = entry.with_outcome("invalid_request");
                self.ledger.commit(Batch::entry(entry)).await?;
                return Err(api::Problem::invalid("policy", error.to_string()).into());
            }
        };
        let number = self.ledger.next_generation().await?;
        let generation = self
            .policy
            .replace(layers)
            .map_err(|error| api::Problem::invalid("policy", error.to_string()))?;
        debug_assert!(generation.0 <= number, "generations on record are never behind");
        *crate::seat::lock(&self.policy_loaded) = Timestamp::now();
        let mut entry = entry;
        entry.generation = Some(generation.0);
        let mut batch = Batch::entry(entry);
        let data = json!({"generation": generation.0});
        batch.event(EventKind::PolicyReloaded, None, None, data);
        self.ledger.commit(batch).await?;
        Ok(self.policy_info())
    }

    /// Records of the audit log.
    ///
    /// # Errors
    /// `Access`, `Refused`.
    pub async fn audit(
        &self,
        caller: &Caller,
        query: &AuditQuery,
        by: &Provenance,
    ) -> Result<Page<AuditRecord>, Error> {
        query.validate()?;
        let workspace = caller.scope(query.workspace.as_deref())?.map(str::to_owned);
        self.authorise(caller, Operation::AuditRead, workspace.as_deref(), by).await?;
        let query = AuditQuery { workspace, ..query.clone() };
        Ok(self.store().read(move |view| view.audit_records(&query)).await?)
    }

    /// Whether the caller may do this to the audit log; that it did is on record too.
    async fn allow_audit(
        &self,
        caller: &Caller,
        operation: Operation,
        by: &Provenance,
    ) -> Result<(), Error> {
        self.authorise(caller, operation, None, by).await?;
        self.ledger.commit(Batch::entry(self.entry(caller, operation, by))).await?;
        Ok(())
    }

    /// A part of the audit log as JSON lines, chunk by chunk: each record in the order of the
    /// chain, also of those that moved to files, and a signed line at the end.
    ///
    /// # Errors
    /// `Access`, `Refused`, `Store`.
    pub async fn export_audit(
        &self,
        caller: &Caller,
        range: AuditRange,
        by: &Provenance,
    ) -> Result<impl Stream<Item = Result<Vec<u8>, Error>> + Send + use<>, Error> {
        range.validate()?;
        self.allow_audit(caller, Operation::AuditExport, by).await?;
        let export = self.store().export_audit(range).await?;
        Ok(futures_util::stream::try_unfold(export, |mut export| async {
            let chunk = export.next_chunk().await?;
            Ok(chunk.map(|chunk| (chunk, export)))
        }))
    }

    /// Whether the audit log holds, with the files that its old records moved to.
    ///
    /// # Errors
    /// `Access`, `Refused`, `Store`.
    pub async fn verify_audit(
        &self,
        caller: &Caller,
        range: AuditRange,
        by: &Provenance,
    ) -> Result<AuditReport, Error> {
        range.validate()?;
        self.allow_audit(caller, Operation::AuditVerify, by).await?;
        Ok(self.store().verify_audit(range).await?)
    }

    /// Signs the head of the audit log. There is one: that this was asked for is on record.
    ///
    /// # Errors
    /// `Access`, `Store`.
    pub async fn checkpoint_audit(
        &self,
        caller: &Caller,
        by: &Provenance,
    ) -> Result<Checkpoint, Error> {
        self.allow_audit(caller, Operation::AuditCheckpoint, by).await?;
        let signed: Result<_, StoreError> =
            self.store().write(|change| change.sign_audit_head()).await;
        signed?.ok_or_else(|| Error::Internal("the audit log has no record to sign".into()))
    }

    /// Subscribes a URL to events. The secret that signs them is shown this once.
    ///
    /// # Errors
    /// `Access`, `Refused`.
    pub async fn create_webhook(
        &self,
        caller: &Caller,
        request: CreateWebhook,
        by: &Provenance,
    ) -> Result<CreatedWebhook, Error> {
        request.validate()?;
        let workspace = request.workspace.clone().or_else(|| caller.workspace.clone());
        let operation = Operation::WebhookCreate;
        self.authorise(caller, operation, workspace.as_deref(), by).await?;
        let (secret, _) =
            access::token::generate().map_err(|error| Error::Internal(error.to_string()))?;
        let secret = webhook_secret(&secret)?;
        let webhook = Webhook {
            id: supervisor::generate_id()?.replacen("sb", "wh", 1),
            url: request.url,
            kinds: request.kinds,
            name: request.name,
            workspace,
            created_at: Timestamp::now(),
            created_by: caller.subject.clone(),
        };
        let entry = self.entry(caller, operation, by).with_detail("webhook", webhook.id.clone());
        let (kept, with) = (webhook.clone(), secret.clone());
        self.store()
            .write(move |change| {
                change.insert_webhook(&kept, &with)?;
                change.audit(&entry).map(drop)
            })
            .await?;
        Ok(CreatedWebhook { webhook, secret })
    }

    /// Subscriptions.
    ///
    /// # Errors
    /// `Access`, `Refused`.
    pub async fn webhooks(
        &self,
        caller: &Caller,
        query: &PageQuery,
    ) -> Result<Page<Webhook>, Error> {
        query.validate()?;
        let workspace = caller.workspace.clone();
        let by = Provenance::default();
        self.authorise(caller, Operation::WebhookList, workspace.as_deref(), &by).await?;
        let query = query.clone();
        Ok(self.store().read(move |view| view.webhooks(workspace.as_deref(), &query)).await?)
    }

    /// One subscription.
    ///
    /// # Errors
    /// `Access`, `NotFound`.
    pub async fn webhook(&self, caller: &Caller, id: &str) -> Result<Webhook, Error> {
        let by = Provenance::default();
        self.own_webhook(caller, Operation::WebhookList, id, &by).await
    }

    async fn own_webhook(
        &self,
        caller: &Caller,
        operation: Operation,
        id: &str,
        by: &Provenance,
    ) -> Result<Webhook, Error> {
        let owned = id.to_owned();
        let found = self.store().read(move |view| view.webhook(&owned)).await;
        let found: Webhook = found.map_err(|error| missing("webhook", id, error))?;
        self.own(caller, operation, "webhook", id, found.workspace.as_deref(), by).await?;
        Ok(found)
    }

    /// Ends a subscription.
    ///
    /// # Errors
    /// `Access`, `NotFound`.
    pub async fn delete_webhook(
        &self,
        caller: &Caller,
        id: &str,
        by: &Provenance,
    ) -> Result<(), Error> {
        let operation = Operation::WebhookDelete;
        self.own_webhook(caller, operation, id, by).await?;
        let entry = self.entry(caller, operation, by).with_detail("webhook", id);
        let id = id.to_owned();
        let deleted = self.store().write(move |change| {
            change.delete_webhook(&id)?;
            change.audit(&entry).map(drop)
        });
        Ok(deleted.await?)
    }

    /// What became of a subscription's deliveries, newest first.
    ///
    /// # Errors
    /// `Access`, `NotFound`, `Refused`.
    pub async fn deliveries(
        &self,
        caller: &Caller,
        id: &str,
        query: &DeliveryQuery,
    ) -> Result<Page<Delivery>, Error> {
        query.validate()?;
        let webhook = self.webhook(caller, id).await?.id;
        let query = query.clone();
        Ok(self.store().read(move |view| view.deliveries(&webhook, &query)).await?)
    }

    /// Puts a delivery on its way again.
    ///
    /// # Errors
    /// `Access`, `NotFound`.
    pub async fn redeliver(
        &self,
        caller: &Caller,
        id: &str,
        delivery: &str,
        by: &Provenance,
    ) -> Result<Delivery, Error> {
        let operation = Operation::WebhookRedeliver;
        let webhook = self.own_webhook(caller, operation, id, by).await?.id;
        let entry = self.entry(caller, operation, by).with_detail("delivery", delivery);
        let owned = delivery.to_owned();
        let put = self.store().write(move |change| {
            let put = change.redeliver(&webhook, &owned, Timestamp::now())?;
            change.audit(&entry)?;
            Ok::<_, StoreError>(put)
        });
        put.await.map_err(|error| missing("delivery", delivery, error))
    }

    /// The images of this host.
    ///
    /// # Errors
    /// `Access`, `Internal`.
    pub async fn images(&self, caller: &Caller, query: &PageQuery) -> Result<Page<Image>, Error> {
        query.validate()?;
        let by = Provenance::default();
        self.authorise(caller, Operation::ImageList, None, &by).await?;
        let images = self.supervisor.images().clone();
        let listed = tokio::task::spawn_blocking(move || images.list()).await;
        let listed = listed.map_err(|error| Error::Internal(error.to_string()))?;
        let listed = listed.map_err(|error| Error::from(supervisor::Error::from(error)))?;
        Ok(Page::whole(listed.into_iter().map(rules::image_info).collect()))
    }

    /// Looks at everything that a sandbox needs.
    ///
    /// # Errors
    /// `Access`.
    pub async fn doctor(&self, caller: &Caller, by: &Provenance) -> Result<Doctor, Error> {
        self.authorise(caller, Operation::Doctor, None, by).await?;
        let found = self.supervisor.doctor().await;
        let finding = |finding: &supervisor::Finding| Finding {
            ok: finding.ok,
            detail: finding.detail.clone(),
        };
        let engine = |report: &supervisor::EngineReport| {
            let mut told = EngineReport {
                name: report.name.to_owned(),
                isolation: crate::life::tier(report.isolation),
                usable: report.is_usable(),
                reason: None,
                remedy: None,
                monitor: None,
                confinement: Vec::new(),
                notes: Vec::new(),
                pause: report.capabilities.pause,
                max_cpus: report.capabilities.max_cpus,
            };
            match &report.verdict {
                Verdict::Usable(preflight) => {
                    told.monitor = Some(preflight.monitor.clone());
                    told.confinement = preflight.confinement.clone();
                    told.notes = preflight.notes.clone();
                }
                Verdict::Unusable(why) => {
                    told.reason = Some(why.reason.clone());
                    told.remedy = Some(why.remedy.clone());
                }
            }
            told
        };
        Ok(Doctor {
            version: found.version.to_owned(),
            usable: found.engines.iter().any(supervisor::EngineReport::is_usable),
            engines: found.engines.iter().map(engine).collect(),
            kernel: finding(&found.kernel),
            image: finding(&found.image),
            disk_free_mb: found.disk_free_mb,
            memory_available_mb: found.memory_available_mb,
            cpus: u32::try_from(found.cpus).unwrap_or(u32::MAX),
            advice: found.advice,
        })
    }

    /// Sandboxes of a workspace that are not destroyed.
    pub(crate) fn count_of(&self, workspace: &str) -> u64 {
        let all = self.all();
        let mine = all
            .iter()
            .map(|seat| seat.row())
            .filter(|row| row.workspace == workspace && !row.state.is_final());
        mine.count() as u64
    }
}

/// A secret of another form than tokens have, so that none is taken for one.
fn webhook_secret(random: &Secret) -> Result<Secret, Error> {
    let random = random.expose();
    let text = [b"whsec_", &random[access::token::PREFIX.len()..]].concat();
    Secret::new(text).map_err(|error| Error::Internal(error.to_string()))
}
