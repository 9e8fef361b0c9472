use std::collections::BTreeMap;

use api::{ListSandboxes, Page, PageQuery, Sandbox, State};
use rusqlite::types::Value as Sql;
use rusqlite::{ErrorCode, OptionalExtension, Row, params, params_from_iter};
use serde_json::Value;

use crate::view::{decode, encode, signed, unsigned};
use crate::{Change, StoreError, View, cursor};

const KIND: &str = "sandbox";
const COLUMNS: &str = "number, instance, host, body";

/// A sandbox with what only the host knows of it.
#[derive(Debug, Clone, PartialEq)]
pub struct SandboxRecord {
    /// As callers see it.
    pub sandbox: Sandbox,
    /// The instance that looks after it; none once it is destroyed.
    pub instance: Option<String>,
    /// What is needed to find its machine again. No secret belongs in it.
    pub host: Value,
}

impl SandboxRecord {
    fn read(row: &Row<'_>) -> Result<(i64, Self), StoreError> {
        let host: String = row.get(2)?;
        let body: String = row.get(3)?;
        let record = Self {
            sandbox: decode(KIND, &body)?,
            instance: row.get(1)?,
            host: decode(KIND, &host)?,
        };
        Ok((row.get(0)?, record))
    }
}

impl View<'_> {
    /// The sandbox of this id.
    ///
    /// # Errors
    /// `NotFound` and `Database`.
    pub fn sandbox(&self, id: &str) -> Result<SandboxRecord, StoreError> {
        self.numbered(id).map(|(_, record)| record)
    }

    fn numbered(&self, id: &str) -> Result<(i64, SandboxRecord), StoreError> {
        self.connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM sandboxes WHERE id = ?"))?
            .query_row([id], |row| Ok(SandboxRecord::read(row)))
            .optional()?
            .unwrap_or_else(|| Err(StoreError::not_found(KIND, id)))
    }

    /// The sandbox of this name that is not destroyed; with `workspace` absent, the newest of
    /// any workspace.
    ///
    /// # Errors
    /// `NotFound` and `Database`.
    pub fn sandbox_named(
        &self,
        workspace: Option<&str>,
        name: &str,
    ) -> Result<SandboxRecord, StoreError> {
        self.connection
            .prepare_cached(&format!(
                "SELECT {COLUMNS} FROM sandboxes WHERE (?1 IS NULL OR workspace = ?1) \
                 AND name = ?2 AND state <> 'destroyed' ORDER BY number DESC LIMIT 1"
            ))?
            .query_row(params![workspace, name], |row| Ok(SandboxRecord::read(row)))
            .optional()?
            .unwrap_or_else(|| Err(StoreError::not_found(KIND, name)))
            .map(|(_, record)| record)
    }

    /// The sandboxes that fit, newest first. `query.workspace` is taken as it is: whose they
    /// may be is the caller's to decide.
    ///
    /// # Errors
    /// `Cursor` and `Database`.
    pub fn sandboxes(&self, query: &ListSandboxes) -> Result<Page<SandboxRecord>, StoreError> {
        let limit = query.limit.unwrap_or(PageQuery::LIMIT);
        let mut sql = format!("SELECT {COLUMNS} FROM sandboxes WHERE ");
        let mut values: Vec<Sql> = Vec::new();
        if query.state.is_empty() {
            sql.push_str("state <> 'destroyed'");
        } else {
            let marks = vec!["?"; query.state.len()].join(", ");
            sql.push_str(&format!("state IN ({marks})"));
            values.extend(query.state.iter().map(|state| Sql::Text(state.as_str().to_owned())));
        }
        if let Some(workspace) = &query.workspace {
            sql.push_str(" AND workspace = ?");
            values.push(Sql::Text(workspace.clone()));
        }
        if let Some(name) = &query.name {
            sql.push_str(" AND name = ?");
            values.push(Sql::Text(name.clone()));
        }
        for (key, value) in query.labels() {
            sql.push_str(
                " AND EXISTS (SELECT 1 FROM sandbox_labels WHERE sandbox = number AND key = ?",
            );
            values.push(Sql::Text(key.to_owned()));
            if let Some(value) = value {
                sql.push_str(" AND value = ?");
                values.push(Sql::Text(value.to_owned()));
            }
            sql.push(')');
        }
        if let Some(before) = cursor::parse(query.cursor.as_deref())? {
            sql.push_str(" AND number < ?");
            values.push(Sql::Integer(before));
        }
        sql.push_str(" ORDER BY number DESC LIMIT ?");
        values.push(Sql::Integer(i64::from(limit) + 1));
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut rows = statement.query(params_from_iter(values))?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(SandboxRecord::read(row)?);
        }
        Ok(cursor::page(found, limit))
    }

    /// What an instance looks after, oldest first.
    ///
    /// # Errors
    /// `Database`.
    pub fn sandboxes_of(&self, instance: &str) -> Result<Vec<SandboxRecord>, StoreError> {
        let mut statement = self.connection.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM sandboxes WHERE instance = ? AND state <> 'destroyed' \
             ORDER BY number"
        ))?;
        let mut rows = statement.query([instance])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(SandboxRecord::read(row)?.1);
        }
        Ok(found)
    }

    /// How many sandboxes there are in each state but `destroyed`, in a workspace or in all.
    ///
    /// # Errors
    /// `Database`.
    pub fn sandbox_counts(
        &self,
        workspace: Option<&str>,
    ) -> Result<BTreeMap<State, u64>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT state, COUNT(*) FROM sandboxes \
             WHERE state <> 'destroyed' AND (?1 IS NULL OR workspace = ?1) GROUP BY state",
        )?;
        let mut rows = statement.query([workspace])?;
        let mut counts = BTreeMap::new();
        while let Some(row) = rows.next()? {
            let state: String = row.get(0)?;
            let state = state.parse().map_err(|_| StoreError::Unreadable {
                kind: KIND,
                reason: format!("there is no state `{state}`"),
            })?;
            counts.insert(state, unsigned(row.get(1)?));
        }
        Ok(counts)
    }
}

impl Change<'_> {
    /// Puts a new sandbox on record, with version 1.
    ///
    /// # Errors
    /// `NameTaken`, `Exists` where the id was ever used, and `Database`.
    pub fn insert_sandbox(&mut self, record: &SandboxRecord) -> Result<Sandbox, StoreError> {
        let sandbox = Sandbox { version: 1, ..record.sandbox.clone() };
        let added = self
            .connection
            .prepare_cached(
                "INSERT INTO sandboxes (id, workspace, name, state, version, instance, \
                 created_at, ended_at, host, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                sandbox.id,
                sandbox.workspace,
                sandbox.name,
                sandbox.state.as_str(),
                signed(sandbox.version),
                record.instance,
                sandbox.created_at.unix_ms(),
                sandbox.ended_at.map(api::Timestamp::unix_ms),
                encode(KIND, &record.host)?,
                encode(KIND, &sandbox)?,
            ]);
        match added {
            Ok(_) => {}
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                return Err(match self.sandbox(&sandbox.id) {
                    Ok(_) => StoreError::Exists { kind: KIND, id: sandbox.id },
                    Err(StoreError::NotFound { .. }) => {
                        StoreError::NameTaken { workspace: sandbox.workspace, name: sandbox.name }
                    }
                    Err(other) => other,
                });
            }
            Err(error) => return Err(error.into()),
        }
        self.write_labels(self.connection.last_insert_rowid(), &sandbox.labels)?;
        Ok(sandbox)
    }

    /// Moves a sandbox from one state to the next, and lets `touch` change the rest of it.
    ///
    /// # Errors
    /// `IllegalMove`, `WrongState` where it is not in `from`, `NotFound`, `Untouchable` and
    /// `Database`. Nothing is written then.
    pub fn move_sandbox(
        &mut self,
        id: &str,
        from: State,
        to: State,
        touch: impl FnOnce(&mut SandboxRecord),
    ) -> Result<SandboxRecord, StoreError> {
        if !from.may_become(to) {
            return Err(StoreError::IllegalMove { from, to });
        }
        let (number, present) = self.numbered(id)?;
        if present.sandbox.state != from {
            let state = present.sandbox.state;
            return Err(StoreError::WrongState { id: id.to_owned(), state, expected: from });
        }
        let mut record = present.clone();
        touch(&mut record);
        if record.sandbox.state != from {
            return Err(StoreError::Untouchable { id: id.to_owned(), field: "state" });
        }
        record.sandbox.state = to;
        self.replace(number, &present, record)
    }

    /// Lets `touch` change a sandbox, but not its state; with `version`, only where it still has
    /// that one. Its version rises.
    ///
    /// # Errors
    /// `VersionMismatch`, `NotFound`, `Untouchable` and `Database`. Nothing is written then.
    pub fn update_sandbox(
        &mut self,
        id: &str,
        version: Option<u64>,
        touch: impl FnOnce(&mut SandboxRecord),
    ) -> Result<SandboxRecord, StoreError> {
        let (number, present) = self.numbered(id)?;
        if version.is_some_and(|version| version != present.sandbox.version) {
            let version = present.sandbox.version;
            return Err(StoreError::VersionMismatch { id: id.to_owned(), version });
        }
        let mut record = present.clone();
        touch(&mut record);
        if record.sandbox.state != present.sandbox.state {
            return Err(StoreError::Untouchable { id: id.to_owned(), field: "state" });
        }
        self.replace(number, &present, record)
    }

    fn replace(
        &mut self,
        number: i64,
        present: &SandboxRecord,
        mut record: SandboxRecord,
    ) -> Result<SandboxRecord, StoreError> {
        let (old, new) = (&present.sandbox, &mut record.sandbox);
        let kept = [
            ("id", old.id == new.id),
            ("workspace", old.workspace == new.workspace),
            ("name", old.name == new.name),
            ("created_at", old.created_at == new.created_at),
        ];
        if let Some((field, _)) = kept.iter().find(|(_, same)| !same) {
            return Err(StoreError::Untouchable { id: old.id.clone(), field });
        }
        new.version = old.version + 1;
        if new.state == State::Destroyed {
            record.instance = None;
        }
        self.connection
            .prepare_cached(
                "UPDATE sandboxes SET state = ?, version = ?, instance = ?, ended_at = ?, \
                 host = ?, body = ? WHERE number = ?",
            )?
            .execute(params![
                new.state.as_str(),
                signed(new.version),
                record.instance,
                new.ended_at.map(api::Timestamp::unix_ms),
                encode(KIND, &record.host)?,
                encode(KIND, new)?,
                number,
            ])?;
        if old.labels != new.labels {
            self.connection
                .prepare_cached("DELETE FROM sandbox_labels WHERE sandbox = ?")?
                .execute([number])?;
            self.write_labels(number, &record.sandbox.labels)?;
        }
        Ok(record)
    }

    fn write_labels(
        &self,
        number: i64,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), StoreError> {
        if labels.is_empty() {
            return Ok(());
        }
        let mut statement = self
            .connection
            .prepare_cached("INSERT INTO sandbox_labels (sandbox, key, value) VALUES (?, ?, ?)")?;
        for (key, value) in labels {
            statement.execute(params![number, key, value])?;
        }
        Ok(())
    }
}
