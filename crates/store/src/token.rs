use api::{Page, PageQuery, Timestamp, Token, TokenQuery};
use audit::Digest;
use rusqlite::{OptionalExtension, params};

use crate::view::{decode, encode};
use crate::{Change, StoreError, View, cursor};

const KIND: &str = "token";

impl View<'_> {
    /// The token whose secret has this SHA-256, whether it is still good or not: the caller
    /// looks at its expiry and its revocation.
    ///
    /// # Errors
    /// `Database`.
    pub fn token_by_hash(&self, hash: &Digest) -> Result<Option<Token>, StoreError> {
        let body: Option<String> = self
            .connection
            .prepare_cached("SELECT body FROM tokens WHERE hash = ?")?
            .query_row([hash.as_bytes()], |row| row.get(0))
            .optional()?;
        body.map(|body| decode(KIND, &body)).transpose()
    }

    /// The token of this id.
    ///
    /// # Errors
    /// `NotFound` and `Database`.
    pub fn token(&self, id: &str) -> Result<Token, StoreError> {
        let body: Option<String> = self
            .connection
            .prepare_cached("SELECT body FROM tokens WHERE id = ?")?
            .query_row([id], |row| row.get(0))
            .optional()?;
        decode(KIND, &body.ok_or_else(|| StoreError::not_found(KIND, id))?)
    }

    /// Tokens, newest first. `query.workspace` is taken as it is.
    ///
    /// # Errors
    /// `Cursor` and `Database`.
    pub fn tokens(&self, query: &TokenQuery, now: Timestamp) -> Result<Page<Token>, StoreError> {
        listed(self, "tokens", KIND, query, now)
    }
}

/// Tokens and keys are listed alike.
pub(crate) fn listed<T: serde::de::DeserializeOwned>(
    view: &View<'_>,
    table: &str,
    kind: &'static str,
    query: &TokenQuery,
    now: Timestamp,
) -> Result<Page<T>, StoreError> {
    let limit = query.limit.unwrap_or(PageQuery::LIMIT);
    let before = cursor::parse(query.cursor.as_deref())?;
    let mut statement = view.connection.prepare_cached(&format!(
        "SELECT number, body FROM {table} WHERE (?1 IS NULL OR workspace = ?1) \
         AND (?2 OR (revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?3))) \
         AND (?4 IS NULL OR number < ?4) ORDER BY number DESC LIMIT ?5"
    ))?;
    let mut rows = statement.query(params![
        query.workspace,
        query.all,
        now.unix_ms(),
        before,
        i64::from(limit) + 1,
    ])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let body: String = row.get(1)?;
        found.push((row.get(0)?, decode(kind, &body)?));
    }
    Ok(cursor::page(found, limit))
}

impl Change<'_> {
    /// Puts a token on record by the SHA-256 of its secret.
    ///
    /// # Errors
    /// `Exists` where a living token of the workspace has the name, since a name is whom a
    /// signing key stands for; and `Database`.
    pub fn insert_token(&mut self, token: &Token, hash: &Digest) -> Result<(), StoreError> {
        let is_taken: bool = self
            .connection
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM tokens WHERE workspace IS ?1 \
                 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?2) \
                 AND json_extract(body, '$.name') = ?3)",
            )?
            .query_row(params![token.workspace, token.created_at.unix_ms(), token.name], |row| {
                row.get(0)
            })?;
        if is_taken {
            return Err(StoreError::Exists { kind: KIND, id: token.name.clone() });
        }
        let added = self
            .connection
            .prepare_cached(
                "INSERT INTO tokens (id, hash, workspace, expires_at, revoked_at, body) \
                 VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            )?
            .execute(params![
                token.id,
                hash.as_bytes(),
                token.workspace,
                token.expires_at.map(Timestamp::unix_ms),
                token.revoked_at.map(Timestamp::unix_ms),
                encode(KIND, token)?,
            ])?;
        match added {
            0 => Err(StoreError::Exists { kind: KIND, id: token.id.clone() }),
            _ => Ok(()),
        }
    }

    /// Revokes a token; one that was revoked keeps its time.
    ///
    /// # Errors
    /// `NotFound` and `Database`.
    pub fn revoke_token(&mut self, id: &str, at: Timestamp) -> Result<Token, StoreError> {
        let mut token = self.token(id)?;
        if token.revoked_at.is_none() {
            token.revoked_at = Some(at);
            self.connection
                .prepare_cached("UPDATE tokens SET revoked_at = ?, body = ? WHERE id = ?")?
                .execute(params![at.unix_ms(), encode(KIND, &token)?, id])?;
        }
        Ok(token)
    }
}
