use rusqlite::Connection;

use crate::StoreError;

/// What is in the store, at one moment. Its methods are in the modules of what they look up.
#[derive(Debug, Clone, Copy)]
pub struct View<'c> {
    pub(crate) connection: &'c Connection,
}

impl View<'_> {
    /// Records of the audit log that fit, in the order of the chain, and the place to go on
    /// from where there are more.
    ///
    /// # Errors
    /// `Audit` where a record cannot be read, and `Database`.
    pub fn audit_records(
        &self,
        query: &api::AuditQuery,
    ) -> Result<api::Page<api::AuditRecord>, StoreError> {
        let limit = query.limit.unwrap_or(api::PageQuery::LIMIT);
        let mut items = audit::list(self.connection, query, limit.saturating_add(1))?;
        let whole = usize::try_from(limit).unwrap_or(usize::MAX);
        let next_cursor = items.get(whole).map(|record| record.seq.to_string());
        items.truncate(whole);
        Ok(api::Page { items, next_cursor })
    }

    /// The end of the audit chain.
    ///
    /// # Errors
    /// `Audit` and `Database`.
    pub fn audit_head(&self) -> Result<audit::Head, StoreError> {
        Ok(audit::Head::read(self.connection)?)
    }
}

/// A stored body as its type.
pub(crate) fn decode<T: serde::de::DeserializeOwned>(
    kind: &'static str,
    text: &str,
) -> Result<T, StoreError> {
    serde_json::from_str(text)
        .map_err(|error| StoreError::Unreadable { kind, reason: error.to_string() })
}

/// A body to be stored.
pub(crate) fn encode<T: serde::Serialize>(
    kind: &'static str,
    value: &T,
) -> Result<String, StoreError> {
    serde_json::to_string(value)
        .map_err(|error| StoreError::Unreadable { kind, reason: error.to_string() })
}

/// SQLite's numbers have a sign; ours that are stored never need its bit.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(crate) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
