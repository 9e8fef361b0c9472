//! Credentials of a workspace and of its sandboxes: what is kept of them, never their values.

use std::sync::Arc;

use access::Caller;
use api::{
    CustomService, Operation, PlaceholderCharacters, Problem, Sandbox, SecretList, SecretQuery,
    SecretSlot, SecretSource, SetSecret, StoredSecret, Timestamp, Validate as _,
};
use audit::Entry;
use secrets::{
    Characters, Custom, Error as SecretError, Key, New, Scope, SlotPlace, Source, SourceKind,
};
use tracing::warn;

use crate::Error;
use crate::config::Provenance;
use crate::ledger::Batch;
use crate::manager::Manager;
use crate::record::Tell as _;

impl Manager {
    /// Where credentials are kept. Its calls block.
    pub fn secrets(&self) -> &Arc<secrets::Store> {
        &self.secrets
    }

    /// The secrets of a workspace and of its sandboxes.
    ///
    /// # Errors
    /// `Access`, `Refused`.
    pub async fn list_secrets(
        &self,
        caller: &Caller,
        query: &SecretQuery,
    ) -> Result<SecretList, Error> {
        query.validate()?;
        let workspace = self.workspace(caller, query.workspace.as_deref())?;
        let operation = Operation::SecretList;
        self.authorise(caller, operation, Some(&workspace), &Provenance::default()).await?;
        let sees_all = caller.workspace.is_none();
        let (entries, store) = self
            .blocking(move |store| {
                let place = match sees_all {
                    true => Some(store.describe()?.to_string()),
                    false => None,
                };
                Ok((store.list(&workspace)?, place))
            })
            .await?;
        Ok(SecretList { secrets: entries.into_iter().map(stored).collect(), store })
    }

    /// Sets a secret for every sandbox of a workspace; those that run and use it have the new value
    /// from the next request on.
    ///
    /// # Errors
    /// `Access`, `Refused`.
    pub async fn set_secret(
        &self,
        caller: &Caller,
        service: &str,
        request: SetSecret,
        by: &Provenance,
    ) -> Result<StoredSecret, Error> {
        let operation = Operation::SecretSet;
        let workspace = self.workspace(caller, request.workspace.as_deref())?;
        self.authorise(caller, operation, Some(&workspace), by).await?;
        let entry = self.entry(caller, operation, by).in_workspace(workspace.clone());
        let key = Key { workspace, scope: Scope::Global, service: service.to_owned() };
        self.set(caller, entry, key, request).await
    }

    /// Sets a secret for one sandbox.
    ///
    /// # Errors
    /// `Access`, `NotFound`, `State`, `Refused`.
    pub async fn set_sandbox_secret(
        &self,
        caller: &Caller,
        sandbox: &str,
        service: &str,
        request: SetSecret,
        by: &Provenance,
    ) -> Result<StoredSecret, Error> {
        let operation = Operation::SandboxSecretSet;
        let row = self.find_to_read(caller, operation, sandbox, by).await?.row();
        if request.workspace.as_ref().is_some_and(|workspace| *workspace != row.workspace) {
            let problem = "must be the sandbox's own, or be absent";
            return Err(Problem::invalid("workspace", problem).into());
        }
        if row.state.is_final() {
            return Err(Error::State { state: row.state, remedy: "set it for one that lives" });
        }
        let entry = self.entry(caller, operation, by).about(&row);
        self.set(caller, entry, own(&row, service), request).await
    }

    async fn set(
        &self,
        caller: &Caller,
        entry: Entry,
        key: Key,
        request: SetSecret,
    ) -> Result<StoredSecret, Error> {
        request.validate()?;
        // By the digest of a request with a short value in it, the value could be guessed.
        let entry = Entry { request_digest: None, ..entry };
        // Both are of the host: what the one prints and the other holds is its user's.
        if request.value.is_none() && !caller.is_administrator() {
            let problem =
                "only administrators may name a command or a variable of the host; send the value";
            let refused = Problem::new(api::Code::Forbidden, problem);
            self.not_set(entry, refused.code.as_str(), &key).await?;
            return Err(refused.into());
        }
        let new = new(request)?;
        let entry = entry
            .with_detail("service", key.service.clone())
            .with_detail("source", source_name(&new.source));
        self.ledger.commit(Batch::entry(entry.clone())).await?;
        let (catalogue, kept) = (self.config.catalogue.clone(), key.clone());
        match self.blocking(move |store| store.set(&catalogue, &kept, new)).await {
            Ok(entry) => {
                self.renew_by(&key).await;
                Ok(stored(entry))
            }
            Err(error) => {
                self.not_set(entry, error.problem().code.as_str(), &key).await?;
                Err(error)
            }
        }
    }

    /// Removes a workspace's secret; sandboxes that run have it no more.
    ///
    /// # Errors
    /// `Access`, `NotFound`, `Refused`.
    pub async fn remove_secret(
        &self,
        caller: &Caller,
        service: &str,
        query: &SecretQuery,
        by: &Provenance,
    ) -> Result<(), Error> {
        query.validate()?;
        let operation = Operation::SecretRemove;
        let workspace = self.workspace(caller, query.workspace.as_deref())?;
        self.authorise(caller, operation, Some(&workspace), by).await?;
        let entry = self.entry(caller, operation, by).in_workspace(workspace.clone());
        let key = Key { workspace, scope: Scope::Global, service: service.to_owned() };
        self.remove(entry, key).await
    }

    /// Removes a sandbox's secret, also while it runs.
    ///
    /// # Errors
    /// `Access`, `NotFound`, `Refused`.
    pub async fn remove_sandbox_secret(
        &self,
        caller: &Caller,
        sandbox: &str,
        service: &str,
        by: &Provenance,
    ) -> Result<(), Error> {
        let operation = Operation::SandboxSecretRemove;
        let row = self.find_to_read(caller, operation, sandbox, by).await?.row();
        let entry = self.entry(caller, operation, by).about(&row);
        self.remove(entry, own(&row, service)).await
    }

    async fn remove(&self, entry: Entry, key: Key) -> Result<(), Error> {
        let looked_for = key.clone();
        if self.blocking(move |store| store.get(&looked_for)).await?.is_none() {
            return Err(Error::not_found("secret", &key.service));
        }
        let entry = entry.with_detail("service", key.service.clone());
        self.ledger.commit(Batch::entry(entry.clone())).await?;
        let gone = key.clone();
        if let Err(error) = self.blocking(move |store| store.remove(&gone)).await {
            self.not_set(entry, error.problem().code.as_str(), &key).await?;
            return Err(error);
        }
        self.renew_by(&key).await;
        Ok(())
    }

    async fn renew_by(&self, key: &Key) {
        let sandbox = match &key.scope {
            Scope::Global => None,
            Scope::Sandbox(id) => Some(id.as_str()),
        };
        self.renew(Some(&key.workspace), sandbox, Some(&key.service)).await;
    }

    /// Gives up all secrets of all workspaces.
    ///
    /// # Errors
    /// `Access`, `Refused`.
    pub async fn reset_secrets(&self, caller: &Caller, by: &Provenance) -> Result<(), Error> {
        let operation = Operation::SecretReset;
        self.authorise(caller, operation, None, by).await?;
        let entry = self.entry(caller, operation, by);
        self.ledger.commit(Batch::entry(entry)).await?;
        self.blocking(|store| store.reset()).await?;
        self.renew(None, None, None).await;
        Ok(())
    }

    /// The secrets of a sandbox go with it.
    pub(crate) fn forget_secrets(&self, row: &Sandbox) {
        let (store, id, workspace) = (self.secrets.clone(), row.id.clone(), row.workspace.clone());
        self.tasks.spawn_blocking(move || {
            if let Err(error) = store.remove_sandbox(&workspace, &id) {
                warn!(sandbox = id, %error, "the secrets of a sandbox that is no more are there still");
            }
        });
    }

    fn workspace(&self, caller: &Caller, asked: Option<&str>) -> Result<String, Error> {
        Ok(caller.home(asked, &self.config.default_workspace)?.to_owned())
    }

    /// Records that what was accepted was not done.
    async fn not_set(&self, mut entry: Entry, outcome: &str, key: &Key) -> Result<(), Error> {
        if outcome == api::Code::Forbidden.as_str() {
            entry.decision = api::AuditDecision::Denied;
            entry = entry.with_detail("service", key.service.clone());
        }
        self.ledger.commit(Batch::entry(entry.with_outcome(outcome))).await?;
        Ok(())
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&secrets::Store) -> Result<T, SecretError> + Send + 'static,
    ) -> Result<T, Error> {
        let store = self.secrets.clone();
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        done.map_err(|error| Error::Internal(error.to_string()))?.map_err(|error| refused(&error))
    }
}

fn own(row: &Sandbox, service: &str) -> Key {
    let scope = Scope::Sandbox(row.id.clone());
    Key { workspace: row.workspace.clone(), scope, service: service.to_owned() }
}

/// What the caller is told.
fn refused(error: &SecretError) -> Error {
    let text = crate::error::chain(error);
    match error {
        SecretError::Value { .. } => Problem::invalid("value", text).into(),
        SecretError::Service(_) => Problem::invalid("service", text).into(),
        SecretError::Custom { .. } => Problem::invalid("custom", text).into(),
        SecretError::Name { .. } => Problem::invalid("service", text).into(),
        SecretError::File { .. } => Error::Internal(text),
        _ => Problem::new(api::Code::Unsupported, text).into(),
    }
}

fn new(request: SetSecret) -> Result<New, Error> {
    let source = match (request.value, request.command, request.env) {
        (Some(value), _, _) => Source::Value(value),
        (_, Some(command), _) => Source::Command(command),
        (_, _, Some(variable)) => Source::Env(variable),
        _ => return Err(Problem::invalid("value", "is missing").into()),
    };
    let custom = request.custom.map(|custom| Custom {
        hosts: custom.hosts,
        env: custom.env,
        slots: custom.slots.into_iter().map(place).collect(),
        prefix: custom.prefix,
        characters: match custom.characters {
            PlaceholderCharacters::Alphanumeric => Characters::Alphanumeric,
            PlaceholderCharacters::Base32 => Characters::Base32,
            PlaceholderCharacters::Base64url => Characters::Base64url,
            PlaceholderCharacters::Hex => Characters::Hex,
        },
        length: custom.length.map(|length| usize::try_from(length).unwrap_or(usize::MAX)),
    });
    Ok(New { source, parameters: request.parameters, custom })
}

fn place(slot: SecretSlot) -> SlotPlace {
    match slot {
        SecretSlot::Header { name, scheme } => SlotPlace::Header { name, scheme },
        SecretSlot::Basic { username } => SlotPlace::Basic { username },
        SecretSlot::Query { key, header } => SlotPlace::Query { key, header },
    }
}

fn source_name(source: &Source) -> &'static str {
    match source {
        Source::Value(_) => SecretSource::Value,
        Source::Command(_) => SecretSource::Command,
        Source::Env(_) => SecretSource::Env,
    }
    .as_str()
}

fn stored(entry: secrets::Entry) -> StoredSecret {
    let at = |ms: u64| Timestamp::from_unix_ms(i64::try_from(ms).unwrap_or(i64::MAX));
    StoredSecret {
        service: entry.key.service,
        workspace: entry.key.workspace,
        sandbox: match entry.key.scope {
            Scope::Global => None,
            Scope::Sandbox(id) => Some(id),
        },
        source: match entry.source {
            SourceKind::Value => SecretSource::Value,
            SourceKind::Command => SecretSource::Command,
            SourceKind::Env => SecretSource::Env,
        },
        masked: entry.masked,
        parameters: entry.parameters,
        custom: entry.custom.map(|custom| CustomService {
            hosts: custom.hosts,
            env: custom.env,
            slots: custom.slots.into_iter().map(slot).collect(),
            prefix: custom.prefix,
            characters: match custom.characters {
                Characters::Alphanumeric => PlaceholderCharacters::Alphanumeric,
                Characters::Base32 => PlaceholderCharacters::Base32,
                Characters::Base64url => PlaceholderCharacters::Base64url,
                Characters::Hex => PlaceholderCharacters::Hex,
            },
            length: custom.length.and_then(|length| u32::try_from(length).ok()),
        }),
        created_at: at(entry.created_ms),
        changed_at: at(entry.changed_ms),
    }
}

fn slot(place: SlotPlace) -> SecretSlot {
    match place {
        SlotPlace::Header { name, scheme } => SecretSlot::Header { name, scheme },
        SlotPlace::Basic { username } => SecretSlot::Basic { username },
        SlotPlace::Query { key, header } => SecretSlot::Query { key, header },
    }
}
