//! Tokens, keys, and who presents them.

use access::signature::{BodyDigest, Parts, Presented, Verified};
use access::token::{TokenHash, TokenRecord};
use access::{Bearer, Caller};
use api::{
    CallerKind, CreateKey, CreateToken, CreatedToken, Key, Operation, Page, Problem, Role,
    Timestamp, Token, TokenQuery, Validate as _,
};
use audit::Digest;
use std::collections::BTreeSet;
use std::time::Duration;
use store::StoreError;

use crate::config::Provenance;
use crate::manager::Manager;
use crate::{Error, record};

/// The name of the token that the environment seeds.
const SEEDED: &str = "seed";

fn ids(kind: &str) -> Result<String, Error> {
    // The same alphabet as sandboxes' ids, and as unlikely to come twice.
    Ok(supervisor::generate_id()?.replacen("sb", kind, 1))
}

fn expires(at: Timestamp, seconds: Option<u64>) -> Option<Timestamp> {
    seconds.map(|seconds| at.after(Duration::from_secs(seconds)))
}

impl Manager {
    /// Who presents this Authorization header.
    ///
    /// # Errors
    /// `Refused`, with no part of the header in it.
    pub async fn authenticate(&self, header: &[u8]) -> Result<Caller, Error> {
        let now = Timestamp::now();
        let token = match Bearer::parse(header).map_err(Problem::from)? {
            Bearer::Token(token) => TokenHash::of(token).map_err(Problem::from)?,
            Bearer::Jwt(token) => {
                let Some(provider) = &self.provider else {
                    let unknown = "tokens of identity providers are not taken here";
                    return Err(Problem::new(api::Code::Unauthenticated, unknown).into());
                };
                let admitted = provider.admit(token, now).await;
                return admitted.map_err(|error| Problem::from(error).into());
            }
        };
        let seeded = self.config.administrator_token.as_ref().and_then(|secret| {
            let text = std::str::from_utf8(secret.expose()).ok()?;
            Some(seed(TokenHash::of(text).ok()?))
        });
        if let Some(seeded) = seeded
            && let Ok(caller) = access::token::admit(Some(&seeded), &token, now)
        {
            return Ok(caller);
        }
        let digest = Digest::from(*token.as_bytes());
        let found =
            self.store().look_up(|view| view.token_by_hash(&digest)).await?.map(|found: Token| {
                TokenRecord {
                    id: found.id,
                    hash: token,
                    subject: found.name,
                    kind: CallerKind::Token,
                    role: found.role,
                    workspace: found.workspace,
                    operations: found.operations,
                    expires_at: found.expires_at,
                    revoked_at: found.revoked_at,
                }
            });
        let admitted = access::token::admit(found.as_ref(), &token, now);
        admitted.map_err(|error| Problem::from(error).into())
    }

    /// Whether the caller's request is signed by a key of its own, with a nonce that is new. The
    /// body is to be compared by [`Verified::check_body`].
    ///
    /// # Errors
    /// `Refused`; that it was refused is on record.
    pub async fn verify(
        &self,
        caller: &Caller,
        presented: Presented,
        parts: &Parts<'_>,
    ) -> Result<Verified, Error> {
        let id = presented.key_id().to_owned();
        let now = Timestamp::now();
        let found: Result<Key, StoreError> = self.store().look_up(|view| view.key(&id)).await;
        let mine = |key: &Key| {
            let lives = key.revoked_at.is_none() && key.expires_at.is_none_or(|end| end > now);
            // A key stands for its subject, in its workspace and nowhere else.
            lives && key.subject == caller.subject && key.workspace == caller.workspace
        };
        let key = match found {
            Ok(key) => Some(key).filter(mine),
            Err(StoreError::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let public = key.and_then(|key| access::signature::public_key(&key.public_key).ok());
        let verified = match presented.verify(parts, public.as_ref(), now) {
            Ok(verified) => {
                let (nonce, until) = (verified.nonce.clone(), verified.expires);
                let used =
                    self.store().write(move |change| change.use_nonce(&id, &nonce, until)).await;
                match used {
                    Ok(()) => return Ok(verified),
                    Err(StoreError::Replayed) => {
                        Problem::new(api::Code::BadSignature, "this nonce was used before")
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => Problem::from(error),
        };
        let entry = record::denied(caller, "signature", verified.code.as_str())
            .with_detail("target", format!("{} {}", parts.method, parts.path));
        self.ledger.commit(crate::ledger::Batch::entry(entry)).await?;
        Err(verified.into())
    }

    /// Whether what arrived is what was signed.
    ///
    /// # Errors
    /// `Refused`; that it was refused is on record.
    pub async fn verify_body(
        &self,
        caller: &Caller,
        verified: &Verified,
        arrived: &BodyDigest,
        target: &str,
    ) -> Result<(), Error> {
        let Err(error) = verified.check_body(arrived) else { return Ok(()) };
        let problem = Problem::from(error);
        let entry = record::denied(caller, "signature", problem.code.as_str())
            .with_detail("target", target.to_owned())
            .with_detail("key", verified.key_id.clone());
        self.ledger.commit(crate::ledger::Batch::entry(entry)).await?;
        Err(problem.into())
    }

    /// Makes a token, whose secret is shown this once. Its name is that of no other living one of
    /// the workspace.
    ///
    /// # Errors
    /// `Access`, `Refused`, `Store`.
    pub async fn create_token(
        &self,
        caller: &Caller,
        request: CreateToken,
        by: &Provenance,
    ) -> Result<CreatedToken, Error> {
        request.validate()?;
        let operation = Operation::TokenCreate;
        let rights = (request.role, request.operations.as_ref());
        let workspace =
            self.grant(caller, operation, request.workspace.as_deref(), rights, by).await?;
        let (secret, hash) =
            access::token::generate().map_err(|error| Error::Internal(error.to_string()))?;
        let created_at = Timestamp::now();
        let token = Token {
            id: ids("tok")?,
            name: request.name,
            role: request.role,
            workspace,
            operations: request.operations,
            created_at,
            created_by: caller.subject.clone(),
            expires_at: expires(created_at, request.expires_in_sec),
            revoked_at: None,
        };
        let entry = self
            .entry(caller, operation, by)
            .with_detail("token", token.id.clone())
            .with_detail("role", token.role.as_str());
        let entry = match &token.workspace {
            Some(workspace) => entry.in_workspace(workspace.clone()),
            None => entry,
        };
        let (kept, digest) = (token.clone(), Digest::from(*hash.as_bytes()));
        self.store()
            .write(move |change| {
                change.insert_token(&kept, &digest)?;
                change.audit(&entry).map(drop)
            })
            .await?;
        Ok(CreatedToken { token, secret })
    }

    /// The workspace of a new token or key, where the caller may make one with these rights; that
    /// it may not is recorded.
    async fn grant(
        &self,
        caller: &Caller,
        operation: Operation,
        asked: Option<&str>,
        (role, operations): (Role, Option<&BTreeSet<Operation>>),
        by: &Provenance,
    ) -> Result<Option<String>, Error> {
        let workspace = asked.or(caller.workspace.as_deref());
        self.authorise(caller, operation, workspace, by).await?;
        let Err(refusal) = caller.may_grant(role, workspace, operations) else {
            return Ok(workspace.map(str::to_owned));
        };
        self.refuse(caller, operation, &refusal, by).await?;
        Err(refusal.into())
    }

    /// Tokens, newest first.
    ///
    /// # Errors
    /// `Access`, `Refused`.
    pub async fn tokens(&self, caller: &Caller, query: &TokenQuery) -> Result<Page<Token>, Error> {
        let query = self.scoped(caller, Operation::TokenList, query).await?;
        Ok(self.store().read(move |view| view.tokens(&query, Timestamp::now())).await?)
    }

    async fn scoped(
        &self,
        caller: &Caller,
        operation: Operation,
        query: &TokenQuery,
    ) -> Result<TokenQuery, Error> {
        query.validate()?;
        let workspace = caller.scope(query.workspace.as_deref())?.map(str::to_owned);
        let by = Provenance::default();
        self.authorise(caller, operation, workspace.as_deref(), &by).await?;
        Ok(TokenQuery { workspace, ..query.clone() })
    }

    /// Revokes a token: from the next request on, it is not taken.
    ///
    /// # Errors
    /// `Access`, `NotFound`.
    pub async fn revoke_token(
        &self,
        caller: &Caller,
        id: &str,
        by: &Provenance,
    ) -> Result<Token, Error> {
        let operation = Operation::TokenRevoke;
        let owned = id.to_owned();
        let found = self.store().read(move |view| view.token(&owned)).await;
        let found: Token = found.map_err(|error| missing("token", id, error))?;
        self.own(caller, operation, "token", id, found.workspace.as_deref(), by).await?;
        let entry = self.entry(caller, operation, by).with_detail("token", id);
        let owned = id.to_owned();
        let revoked = self
            .store()
            .write(move |change| {
                let token = change.revoke_token(&owned, Timestamp::now())?;
                change.audit(&entry)?;
                Ok::<_, StoreError>(token)
            })
            .await?;
        Ok(revoked)
    }

    /// Registers a public key.
    ///
    /// # Errors
    /// `Access`, `Refused`.
    pub async fn create_key(
        &self,
        caller: &Caller,
        request: CreateKey,
        by: &Provenance,
    ) -> Result<Key, Error> {
        request.validate()?;
        access::signature::public_key(&request.public_key)
            .map_err(|error| Problem::invalid("public_key", error.to_string()))?;
        let operation = Operation::KeyCreate;
        // A key gives no right by itself: it stands for a subject that has its own.
        let rights = (Role::Viewer, caller.operations.as_ref());
        let workspace =
            self.grant(caller, operation, request.workspace.as_deref(), rights, by).await?;
        let created_at = Timestamp::now();
        let key = Key {
            id: ids("key")?,
            name: request.name,
            public_key: request.public_key,
            subject: request.subject.unwrap_or_else(|| caller.subject.clone()),
            workspace,
            created_at,
            created_by: caller.subject.clone(),
            expires_at: expires(created_at, request.expires_in_sec),
            revoked_at: None,
        };
        let entry = self
            .entry(caller, operation, by)
            .with_detail("key", key.id.clone())
            .with_detail("subject", key.subject.clone());
        let kept = key.clone();
        self.store()
            .write(move |change| {
                change.insert_key(&kept)?;
                change.audit(&entry).map(drop)
            })
            .await?;
        Ok(key)
    }

    /// Keys, newest first.
    ///
    /// # Errors
    /// `Access`, `Refused`.
    pub async fn keys(&self, caller: &Caller, query: &TokenQuery) -> Result<Page<Key>, Error> {
        let query = self.scoped(caller, Operation::KeyList, query).await?;
        Ok(self.store().read(move |view| view.keys(&query, Timestamp::now())).await?)
    }

    /// Revokes a key.
    ///
    /// # Errors
    /// `Access`, `NotFound`.
    pub async fn revoke_key(
        &self,
        caller: &Caller,
        id: &str,
        by: &Provenance,
    ) -> Result<Key, Error> {
        let operation = Operation::KeyRevoke;
        let owned = id.to_owned();
        let found = self.store().read(move |view| view.key(&owned)).await;
        let found: Key = found.map_err(|error| missing("key", id, error))?;
        self.own(caller, operation, "key", id, found.workspace.as_deref(), by).await?;
        let entry = self.entry(caller, operation, by).with_detail("key", id);
        let owned = id.to_owned();
        let revoked = self
            .store()
            .write(move |change| {
                let key = change.revoke_key(&owned, Timestamp::now())?;
                change.audit(&entry)?;
                Ok::<_, StoreError>(key)
            })
            .await?;
        Ok(revoked)
    }

    /// Whether the caller may do this to a thing of `workspace`. One that it does not see is not
    /// there.
    pub(crate) async fn own(
        &self,
        caller: &Caller,
        operation: Operation,
        what: &'static str,
        id: &str,
        workspace: Option<&str>,
        by: &Provenance,
    ) -> Result<(), Error> {
        if !caller.sees(workspace) {
            self.refuse(caller, operation, &access::Refusal::NotFound, by).await?;
            return Err(Error::not_found(what, id));
        }
        self.authorise(caller, operation, workspace, by).await
    }
}

pub(crate) fn missing(what: &'static str, id: &str, error: StoreError) -> Error {
    match error {
        StoreError::NotFound { .. } => Error::not_found(what, id),
        error => error.into(),
    }
}

fn seed(hash: TokenHash) -> TokenRecord {
    TokenRecord {
        id: SEEDED.into(),
        hash,
        subject: "administrator".into(),
        kind: CallerKind::Administrator,
        role: Role::Owner,
        workspace: None,
        operations: None,
        expires_at: None,
        revoked_at: None,
    }
}
