use api::{Key, Page, Timestamp, TokenQuery};
use rusqlite::{OptionalExtension, params};

use crate::token::listed;
use crate::view::{decode, encode};
use crate::{Change, StoreError, View};

const KIND: &str = "key";

impl View<'_> {
    /// The key of this id, whether it is still good or not.
    ///
    /// # Errors
    /// `NotFound` and `Database`.
    pub fn key(&self, id: &str) -> Result<Key, StoreError> {
        let body: Option<String> = self
            .connection
            .prepare_cached("SELECT body FROM keys WHERE id = ?")?
            .query_row([id], |row| row.get(0))
            .optional()?;
        decode(KIND, &body.ok_or_else(|| StoreError::not_found(KIND, id))?)
    }

    /// Keys, newest first. `query.workspace` is taken as it is.
    ///
    /// # Errors
    /// `Cursor` and `Database`.
    pub fn keys(&self, query: &TokenQuery, now: Timestamp) -> Result<Page<Key>, StoreError> {
        listed(self, "keys", KIND, query, now)
    }
}

impl Change<'_> {
    /// Puts a public key on record.
    ///
    /// # Errors
    /// `Exists` and `Database`.
    pub fn insert_key(&mut self, key: &Key) -> Result<(), StoreError> {
        let added = self
            .connection
            .prepare_cached(
                "INSERT INTO keys (id, workspace, expires_at, revoked_at, body) \
                 VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            )?
            .execute(params![
                key.id,
                key.workspace,
                key.expires_at.map(Timestamp::unix_ms),
                key.revoked_at.map(Timestamp::unix_ms),
                encode(KIND, key)?,
            ])?;
        match added {
            0 => Err(StoreError::Exists { kind: KIND, id: key.id.clone() }),
            _ => Ok(()),
        }
    }

    /// Revokes a key; one that was revoked keeps its time.
    ///
    /// # Errors
    /// `NotFound` and `Database`.
    pub fn revoke_key(&mut self, id: &str, at: Timestamp) -> Result<Key, StoreError> {
        let mut key = self.key(id)?;
        if key.revoked_at.is_none() {
            key.revoked_at = Some(at);
            self.connection
                .prepare_cached("UPDATE keys SET revoked_at = ?, body = ? WHERE id = ?")?
                .execute(params![at.unix_ms(), encode(KIND, &key)?, id])?;
        }
        Ok(key)
    }

    /// Remembers the nonce of a signature until the signature has expired.
    ///
    /// # Errors
    /// `Replayed` where it was used before, and `Database`.
    pub fn use_nonce(
        &mut self,
        key: &str,
        nonce: &str,
        expires_at: Timestamp,
    ) -> Result<(), StoreError> {
        let added = self
            .connection
            .prepare_cached(
                "INSERT INTO nonces (key, nonce, expires_at) VALUES (?, ?, ?) \
                 ON CONFLICT DO NOTHING",
            )?
            .execute(params![key, nonce, expires_at.unix_ms()])?;
        match added {
            0 => Err(StoreError::Replayed),
            _ => Ok(()),
        }
    }
}
