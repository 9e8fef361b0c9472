use std::sync::Arc;

use api::{Event, EventKind, EventQuery, PageQuery, Timestamp};
use rusqlite::types::Value as Sql;
use rusqlite::{params, params_from_iter};
use serde_json::{Map, Value};

use crate::view::{decode, encode, signed, unsigned};
use crate::{Change, StoreError, View};

const KIND: &str = "event";
/// Old events go so many at a time.
const RING_STEP: u64 = 256;

impl View<'_> {
    /// Events that fit, oldest first, at most `query.limit`. Only the newest are kept.
    ///
    /// # Errors
    /// `Database`.
    pub fn events(&self, query: &EventQuery) -> Result<Vec<Event>, StoreError> {
        let mut sql =
            "SELECT id, at, kind, sandbox, workspace, data FROM events WHERE id > ?".to_owned();
        let mut values = vec![Sql::Integer(signed(query.since.unwrap_or(0)))];
        if !query.kind.is_empty() {
            let marks = vec!["?"; query.kind.len()].join(", ");
            sql.push_str(&format!(" AND kind IN ({marks})"));
            values.extend(query.kind.iter().map(|kind| Sql::Text(kind.as_str().to_owned())));
        }
        for (column, value) in [("sandbox", &query.sandbox), ("workspace", &query.workspace)] {
            if let Some(value) = value {
                sql.push_str(&format!(" AND {column} = ?"));
                values.push(Sql::Text(value.clone()));
            }
        }
        sql.push_str(" ORDER BY id LIMIT ?");
        values.push(Sql::Integer(query.limit.unwrap_or(PageQuery::LIMIT).into()));
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut rows = statement.query(params_from_iter(values))?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let (kind, data): (String, String) = (row.get(2)?, row.get(5)?);
            found.push(Event {
                id: unsigned(row.get(0)?),
                at: Timestamp::from_unix_ms(row.get(1)?),
                kind: kind.parse().map_err(|_| StoreError::Unreadable {
                    kind: KIND,
                    reason: format!("there is no kind `{kind}`"),
                })?,
                sandbox: row.get(3)?,
                workspace: row.get(4)?,
                data: decode(KIND, &data)?,
            });
        }
        Ok(found)
    }

    /// The id of the last event; 0 where there was none.
    ///
    /// # Errors
    /// `Database`.
    pub fn last_event(&self) -> Result<u64, StoreError> {
        let last: i64 = self
            .connection
            .prepare_cached("SELECT COALESCE(MAX(id), 0) FROM events")?
            .query_row([], |row| row.get(0))?;
        Ok(unsigned(last))
    }
}

impl Change<'_> {
    /// Something happened: it is kept, put on its way to the webhooks that want it, and told to
    /// listeners after the commit.
    ///
    /// # Errors
    /// `Database`.
    pub fn event(
        &mut self,
        kind: EventKind,
        sandbox: Option<&str>,
        workspace: Option<&str>,
        data: Map<String, Value>,
    ) -> Result<Arc<Event>, StoreError> {
        let at = Timestamp::now();
        self.connection
            .prepare_cached(
                "INSERT INTO events (at, kind, sandbox, workspace, data) VALUES (?, ?, ?, ?, ?)",
            )?
            .execute(params![
                at.unix_ms(),
                kind.as_str(),
                sandbox,
                workspace,
                encode(KIND, &data)?,
            ])?;
        let id = unsigned(self.connection.last_insert_rowid());
        if id.is_multiple_of(RING_STEP) {
            self.connection
                .prepare_cached("DELETE FROM events WHERE id <= ?")?
                .execute([signed(id.saturating_sub(self.events_kept))])?;
        }
        let event = Arc::new(Event {
            id,
            at,
            kind,
            sandbox: sandbox.map(str::to_owned),
            workspace: workspace.map(str::to_owned),
            data,
        });
        self.put_on_its_way(&event)?;
        self.events.push(Arc::clone(&event));
        Ok(event)
    }
}
