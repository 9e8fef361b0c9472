use rusqlite::{OptionalExtension, params};

use crate::{Change, StoreError, View};

impl View<'_> {
    /// A setting by its name.
    ///
    /// # Errors
    /// `Database`.
    pub fn setting(&self, name: &str) -> Result<Option<String>, StoreError> {
        Ok(self
            .connection
            .prepare_cached("SELECT value FROM settings WHERE name = ?")?
            .query_row([name], |row| row.get(0))
            .optional()?)
    }
}

impl Change<'_> {
    /// Sets a setting.
    ///
    /// # Errors
    /// `Database`.
    pub fn set_setting(&mut self, name: &str, value: &str) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "INSERT INTO settings (name, value) VALUES (?, ?) \
                 ON CONFLICT DO UPDATE SET value = excluded.value",
            )?
            .execute(params![name, value])?;
        Ok(())
    }

    /// The next number of a counter that never goes back, from 1; generations of policy are
    /// counted so.
    ///
    /// # Errors
    /// `Unreadable` where the setting is no number, and `Database`.
    pub fn next_number(&mut self, name: &str) -> Result<u64, StoreError> {
        let last = match self.setting(name)? {
            None => 0,
            Some(text) => text.parse::<u64>().map_err(|error| StoreError::Unreadable {
                kind: "counter",
                reason: error.to_string(),
            })?,
        };
        let next = last + 1;
        self.set_setting(name, &next.to_string())?;
        Ok(next)
    }
}
