use api::Timestamp;
use audit::Digest;
use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};

use crate::view::{decode, encode};
use crate::{Change, StoreError, View};

const KIND: &str = "answer";

/// What was answered to a request, to be answered again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers that are part of the answer.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// The body, which is JSON.
    pub body: String,
}

/// Whether a request that names a key is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// It is new: do it, then finish or abandon it.
    New,
    /// It is being done; with the sandbox that it makes, where that is known.
    InProgress(Option<String>),
    /// It was done: answer this.
    Done(Answer),
    /// The key was used for another request.
    Mismatch,
}

/// A request whose answer was never written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// Who asked.
    pub subject: String,
    /// The key.
    pub key: String,
    /// The sandbox that it was about to make.
    pub sandbox: Option<String>,
    /// When it was begun.
    pub begun_at: Timestamp,
}

impl View<'_> {
    /// Requests that an instance has begun and not finished.
    ///
    /// # Errors
    /// `Database`.
    pub fn unfinished(&self, instance: &str) -> Result<Vec<Unfinished>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT subject, key, sandbox, begun_at FROM idempotency \
             WHERE instance = ? AND answer IS NULL",
        )?;
        let rows = statement.query_map([instance], |row| {
            Ok(Unfinished {
                subject: row.get(0)?,
                key: row.get(1)?,
                sandbox: row.get(2)?,
                begun_at: Timestamp::from_unix_ms(row.get(3)?),
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

impl Change<'_> {
    /// Begins a request, once for each subject and key.
    ///
    /// # Errors
    /// `Database`.
    pub fn begin_idempotent(
        &mut self,
        subject: &str,
        key: &str,
        request: &Digest,
        instance: &str,
        at: Timestamp,
    ) -> Result<Begun, StoreError> {
        let added = self
            .connection
            .prepare_cached(
                "INSERT INTO idempotency (subject, key, request, instance, begun_at) \
                 VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            )?
            .execute(params![subject, key, request.as_bytes(), instance, at.unix_ms()])?;
        if added == 1 {
            return Ok(Begun::New);
        }
        let (known, sandbox, answer) = self
            .connection
            .prepare_cached(
                "SELECT request, sandbox, answer FROM idempotency WHERE subject = ? AND key = ?",
            )?
            .query_row([subject, key], |row| {
                let answer: Option<String> = row.get(2)?;
                Ok((row.get::<_, Vec<u8>>(0)?, row.get(1)?, answer))
            })?;
        Ok(match answer {
            _ if known != request.as_bytes() => Begun::Mismatch,
            None => Begun::InProgress(sandbox),
            Some(answer) => Begun::Done(decode(KIND, &answer)?),
        })
    }

    /// Notes the sandbox that a request makes, so that its answer can be found after a crash.
    ///
    /// # Errors
    /// `NotFound` and `Database`.
    pub fn bind_idempotent(
        &mut self,
        subject: &str,
        key: &str,
        sandbox: &str,
    ) -> Result<(), StoreError> {
        let changed = self
            .connection
            .prepare_cached("UPDATE idempotency SET sandbox = ? WHERE subject = ? AND key = ?")?
            .execute([sandbox, subject, key])?;
        found(changed, key)
    }

    /// Keeps the answer of a request.
    ///
    /// # Errors
    /// `NotFound` and `Database`.
    pub fn finish_idempotent(
        &mut self,
        subject: &str,
        key: &str,
        answer: &Answer,
    ) -> Result<(), StoreError> {
        let changed = self
            .connection
            .prepare_cached("UPDATE idempotency SET answer = ? WHERE subject = ? AND key = ?")?
            .execute([&encode(KIND, answer)?, subject, key])?;
        found(changed, key)
    }

    /// Forgets a request that came to nothing, so that it can be tried again. One that was
    /// answered stays.
    ///
    /// # Errors
    /// `Database`.
    pub fn abandon_idempotent(&mut self, subject: &str, key: &str) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "DELETE FROM idempotency WHERE subject = ? AND key = ? AND answer IS NULL",
            )?
            .execute([subject, key])?;
        Ok(())
    }

    /// The answer that is kept, where there is one.
    ///
    /// # Errors
    /// `Database`.
    pub fn answer(&self, subject: &str, key: &str) -> Result<Option<Answer>, StoreError> {
        let kept: Option<Option<String>> = self
            .connection
            .prepare_cached("SELECT answer FROM idempotency WHERE subject = ? AND key = ?")?
            .query_row([subject, key], |row| row.get(0))
            .optional()?;
        kept.flatten().map(|answer| decode(KIND, &answer)).transpose()
    }
}

fn found(changed: usize, key: &str) -> Result<(), StoreError> {
    match changed {
        0 => Err(StoreError::not_found("request", key)),
        _ => Ok(()),
    }
}
