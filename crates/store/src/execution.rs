use api::{Page, PageQuery, Process, State};
use rusqlite::{ErrorCode, OptionalExtension, params};

use crate::view::{decode, encode};
use crate::{Change, SandboxRecord, StoreError, View, cursor};

const KIND: &str = "process";

impl View<'_> {
    /// A process of a sandbox.
    ///
    /// # Errors
    /// `NotFound` and `Database`.
    pub fn execution(&self, sandbox: &str, process: &str) -> Result<Process, StoreError> {
        let body: Option<String> = self
            .connection
            .prepare_cached("SELECT body FROM executions WHERE sandbox = ? AND process = ?")?
            .query_row([sandbox, process], |row| row.get(0))
            .optional()?;
        decode(KIND, &body.ok_or_else(|| StoreError::not_found(KIND, process))?)
    }

    /// Processes of a sandbox, newest first.
    ///
    /// # Errors
    /// `Cursor` and `Database`.
    pub fn executions(
        &self,
        sandbox: &str,
        query: &PageQuery,
    ) -> Result<Page<Process>, StoreError> {
        let limit = query.limit.unwrap_or(PageQuery::LIMIT);
        let before = cursor::parse(query.cursor.as_deref())?;
        let mut statement = self.connection.prepare_cached(
            "SELECT number, body FROM executions WHERE sandbox = ?1 \
             AND (?2 IS NULL OR number < ?2) ORDER BY number DESC LIMIT ?3",
        )?;
        let mut rows = statement.query(params![sandbox, before, i64::from(limit) + 1])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let body: String = row.get(1)?;
            found.push((row.get(0)?, decode(KIND, &body)?));
        }
        Ok(cursor::page(found, limit))
    }

    /// Processes of a sandbox that are not known to have ended.
    ///
    /// # Errors
    /// `Database`.
    pub fn running_executions(&self, sandbox: &str) -> Result<Vec<Process>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT body FROM executions WHERE sandbox = ? AND running = 1 ORDER BY number",
        )?;
        let mut rows = statement.query([sandbox])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let body: String = row.get(0)?;
            found.push(decode(KIND, &body)?);
        }
        Ok(found)
    }
}

impl Change<'_> {
    /// Puts a process that starts on record. Its sandbox becomes, or stays, executing.
    ///
    /// # Errors
    /// `Exists` where the sandbox has a process of that name, `WrongState` where it takes no
    /// tasks, `NotFound` and `Database`.
    pub fn begin_execution(&mut self, process: &Process) -> Result<SandboxRecord, StoreError> {
        let sandbox = self.sandbox(&process.sandbox)?.sandbox;
        if !sandbox.state.takes_tasks() {
            let (id, state) = (sandbox.id, sandbox.state);
            return Err(StoreError::WrongState { id, state, expected: State::Ready });
        }
        let added = self
            .connection
            .prepare_cached(
                "INSERT INTO executions (sandbox, process, running, body) VALUES (?, ?, 1, ?)",
            )?
            .execute(params![process.sandbox, process.process, encode(KIND, process)?]);
        match added {
            Ok(_) => {}
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                return Err(StoreError::Exists { kind: KIND, id: process.process.clone() });
            }
            Err(error) => return Err(error.into()),
        }
        let touch = |record: &mut SandboxRecord| {
            record.sandbox.running += 1;
            record.sandbox.idle_at = None;
        };
        match sandbox.state {
            State::Ready => self.move_sandbox(&sandbox.id, State::Ready, State::Executing, touch),
            _ => self.update_sandbox(&sandbox.id, None, touch),
        }
    }

    /// Puts the end of a process on record: what `touch` makes of it. Its sandbox is ready again
    /// where that was the last one. The end of a process that has ended changes nothing.
    ///
    /// # Errors
    /// `NotFound` and `Database`.
    pub fn end_execution(
        &mut self,
        sandbox: &str,
        process: &str,
        touch: impl FnOnce(&mut Process),
    ) -> Result<Process, StoreError> {
        let mut ended = self.execution(sandbox, process)?;
        if !ended.outcome.is_running() {
            return Ok(ended);
        }
        touch(&mut ended);
        self.connection
            .prepare_cached(
                "UPDATE executions SET running = ?, body = ? WHERE sandbox = ? AND process = ?",
            )?
            .execute(params![
                ended.outcome.is_running(),
                encode(KIND, &ended)?,
                sandbox,
                process,
            ])?;
        if ended.outcome.is_running() {
            return Ok(ended);
        }
        let present = self.sandbox(sandbox)?.sandbox;
        let running = present.running.saturating_sub(1);
        let idle_at = ended.ended_at.or_else(|| Some(api::Timestamp::now()));
        let touch = |record: &mut SandboxRecord| {
            record.sandbox.running = running;
            if running == 0 {
                record.sandbox.idle_at = idle_at;
            }
        };
        if running == 0 && present.state == State::Executing {
            self.move_sandbox(sandbox, State::Executing, State::Ready, touch)?;
        } else {
            self.update_sandbox(sandbox, None, touch)?;
        }
        Ok(ended)
    }
}
