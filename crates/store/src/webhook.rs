use api::{
    Delivery, DeliveryQuery, DeliveryState, Event, Page, PageQuery, Secret, Timestamp, Webhook,
};
use rusqlite::{OptionalExtension, Row, params};

use crate::view::{decode, encode};
use crate::{Change, StoreError, View, cursor};

const KIND: &str = "webhook";
const DELIVERY: &str = "delivery";

/// A delivery that is to be tried now.
#[derive(Debug, Clone, PartialEq)]
pub struct DueDelivery {
    /// What it is, with the attempts so far.
    pub delivery: Delivery,
    /// Where it goes.
    pub url: String,
    /// The key of its HMAC.
    pub secret: Secret,
    /// What it carries.
    pub event: Event,
}

/// How an attempt to deliver went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attempt {
    /// The receiver took it.
    Delivered {
        /// With this status.
        status: u16,
    },
    /// It did not; it is to be tried again.
    Retry {
        /// The status, where one came.
        status: Option<u16>,
        /// Why, in words.
        error: String,
        /// When to try again.
        next_at: Timestamp,
    },
    /// It did not, and that was the last time.
    Dead {
        /// The status, where one came.
        status: Option<u16>,
        /// Why, in words.
        error: String,
    },
}

impl View<'_> {
    /// The subscription of this id.
    ///
    /// # Errors
    /// `NotFound` and `Database`.
    pub fn webhook(&self, id: &str) -> Result<Webhook, StoreError> {
        let body: Option<String> = self
            .connection
            .prepare_cached("SELECT body FROM webhooks WHERE id = ?")?
            .query_row([id], |row| row.get(0))
            .optional()?;
        decode(KIND, &body.ok_or_else(|| StoreError::not_found(KIND, id))?)
    }

    /// Subscriptions, newest first; of a workspace, or all.
    ///
    /// # Errors
    /// `Cursor` and `Database`.
    pub fn webhooks(
        &self,
        workspace: Option<&str>,
        query: &PageQuery,
    ) -> Result<Page<Webhook>, StoreError> {
        let limit = query.limit.unwrap_or(PageQuery::LIMIT);
        let before = cursor::parse(query.cursor.as_deref())?;
        let mut statement = self.connection.prepare_cached(
            "SELECT number, body FROM webhooks WHERE (?1 IS NULL OR workspace = ?1) \
             AND (?2 IS NULL OR number < ?2) ORDER BY number DESC LIMIT ?3",
        )?;
        let mut rows = statement.query(params![workspace, before, i64::from(limit) + 1])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let body: String = row.get(1)?;
            found.push((row.get(0)?, decode(KIND, &body)?));
        }
        Ok(cursor::page(found, limit))
    }

    /// A delivery of a subscription.
    ///
    /// # Errors
    /// `NotFound` and `Database`.
    pub fn delivery(&self, webhook: &str, id: &str) -> Result<Delivery, StoreError> {
        let body: Option<String> = self
            .connection
            .prepare_cached("SELECT body FROM deliveries WHERE id = ? AND webhook = ?")?
            .query_row([id, webhook], |row| row.get(0))
            .optional()?;
        decode(DELIVERY, &body.ok_or_else(|| StoreError::not_found(DELIVERY, id))?)
    }

    /// Deliveries of a subscription, newest first; with the state `dead`, its dead letters.
    ///
    /// # Errors
    /// `Cursor` and `Database`.
    pub fn deliveries(
        &self,
        webhook: &str,
        query: &DeliveryQuery,
    ) -> Result<Page<Delivery>, StoreError> {
        let limit = query.limit.unwrap_or(PageQuery::LIMIT);
        let before = cursor::parse(query.cursor.as_deref())?;
        let mut statement = self.connection.prepare_cached(
            "SELECT number, body FROM deliveries WHERE webhook = ?1 \
             AND (?2 IS NULL OR state = ?2) AND (?3 IS NULL OR number < ?3) \
             ORDER BY number DESC LIMIT ?4",
        )?;
        let state = query.state.map(DeliveryState::as_str);
        let mut rows = statement.query(params![webhook, state, before, i64::from(limit) + 1])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let body: String = row.get(1)?;
            found.push((row.get(0)?, decode(DELIVERY, &body)?));
        }
        Ok(cursor::page(found, limit))
    }

    /// When the next delivery is to be tried; none where none waits.
    ///
    /// # Errors
    /// `Database`.
    pub fn next_delivery_at(&self) -> Result<Option<Timestamp>, StoreError> {
        let next: Option<i64> = self
            .connection
            .prepare_cached("SELECT MIN(next_at) FROM deliveries WHERE state = 'pending'")?
            .query_row([], |row| row.get(0))?;
        Ok(next.map(Timestamp::from_unix_ms))
    }
}

fn due(row: &Row<'_>) -> Result<DueDelivery, StoreError> {
    let (delivery, event, webhook): (String, String, String) =
        (row.get(0)?, row.get(1)?, row.get(2)?);
    let webhook: Webhook = decode(KIND, &webhook)?;
    Ok(DueDelivery {
        delivery: decode(DELIVERY, &delivery)?,
        url: webhook.url,
        secret: Secret::new(row.get(3)?)
            .map_err(|error| StoreError::Unreadable { kind: KIND, reason: error.to_string() })?,
        event: decode(DELIVERY, &event)?,
    })
}

impl Change<'_> {
    /// Puts a subscription on record, with the key that its deliveries are signed with.
    ///
    /// # Errors
    /// `Exists` and `Database`.
    pub fn insert_webhook(&mut self, webhook: &Webhook, secret: &Secret) -> Result<(), StoreError> {
        let added = self
            .connection
            .prepare_cached(
                "INSERT INTO webhooks (id, workspace, secret, body) VALUES (?, ?, ?, ?) \
                 ON CONFLICT DO NOTHING",
            )?
            .execute(params![
                webhook.id,
                webhook.workspace,
                secret.expose(),
                encode(KIND, webhook)?,
            ])?;
        match added {
            0 => Err(StoreError::Exists { kind: KIND, id: webhook.id.clone() }),
            _ => Ok(()),
        }
    }

    /// Removes a subscription with all of its deliveries.
    ///
    /// # Errors
    /// `NotFound` and `Database`.
    pub fn delete_webhook(&mut self, id: &str) -> Result<(), StoreError> {
        let removed =
            self.connection.prepare_cached("DELETE FROM webhooks WHERE id = ?")?.execute([id])?;
        match removed {
            0 => Err(StoreError::not_found(KIND, id)),
            _ => Ok(()),
        }
    }

    /// A delivery for each subscription that wants the event, in the event's own transaction.
    pub(crate) fn put_on_its_way(&mut self, event: &Event) -> Result<(), StoreError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT body FROM webhooks WHERE workspace IS NULL OR workspace = ?")?;
        let mut rows = statement.query([&event.workspace])?;
        while let Some(row) = rows.next()? {
            let body: String = row.get(0)?;
            let webhook: Webhook = decode(KIND, &body)?;
            if !webhook.kinds.is_empty() && !webhook.kinds.contains(&event.kind) {
                continue;
            }
            let delivery = Delivery {
                id: format!("{}-{}", webhook.id, event.id),
                webhook: webhook.id,
                event: event.id,
                kind: event.kind,
                state: DeliveryState::Pending,
                attempts: 0,
                created_at: event.at,
                attempted_at: None,
                next_at: Some(event.at),
                last_status: None,
                last_error: None,
            };
            self.connection
                .prepare_cached(
                    "INSERT INTO deliveries (id, webhook, state, next_at, event, body) \
                     VALUES (?, ?, ?, ?, ?, ?)",
                )?
                .execute(params![
                    delivery.id,
                    delivery.webhook,
                    delivery.state.as_str(),
                    event.at.unix_ms(),
                    encode(DELIVERY, event)?,
                    encode(DELIVERY, &delivery)?,
                ])?;
        }
        Ok(())
    }

    /// Takes up to `most` deliveries whose time has come. Nobody else gets them before `until`;
    /// where the taker does not say how it went, they are tried again then.
    ///
    /// # Errors
    /// `Database`.
    pub fn take_deliveries(
        &mut self,
        now: Timestamp,
        until: Timestamp,
        most: u32,
    ) -> Result<Vec<DueDelivery>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT deliveries.body, deliveries.event, webhooks.body, webhooks.secret \
             FROM deliveries JOIN webhooks ON webhooks.id = deliveries.webhook \
             WHERE deliveries.state = 'pending' AND deliveries.next_at <= ? \
             ORDER BY deliveries.next_at LIMIT ?",
        )?;
        let mut rows = statement.query(params![now.unix_ms(), most])?;
        let mut taken = Vec::new();
        while let Some(row) = rows.next()? {
            taken.push(due(row)?);
        }
        for due in &mut taken {
            due.delivery.next_at = Some(until);
            self.write_delivery(&due.delivery)?;
        }
        Ok(taken)
    }

    /// Notes how an attempt went.
    ///
    /// # Errors
    /// `NotFound` where the subscription is gone, and `Database`.
    pub fn attempted(
        &mut self,
        webhook: &str,
        id: &str,
        at: Timestamp,
        attempt: Attempt,
    ) -> Result<Delivery, StoreError> {
        let present = self.delivery(webhook, id)?;
        let (state, next_at, last_status, last_error) = match attempt {
            Attempt::Delivered { status } => (DeliveryState::Delivered, None, Some(status), None),
            Attempt::Retry { status, error, next_at } => {
                (DeliveryState::Pending, Some(next_at), status, Some(error))
            }
            Attempt::Dead { status, error } => (DeliveryState::Dead, None, status, Some(error)),
        };
        let delivery = Delivery {
            state,
            attempts: present.attempts.saturating_add(1),
            attempted_at: Some(at),
            next_at,
            last_status,
            last_error,
            ..present
        };
        self.write_delivery(&delivery)?;
        Ok(delivery)
    }

    /// Puts a delivery on its way again, with all of its attempts before it.
    ///
    /// # Errors
    /// `NotFound` and `Database`.
    pub fn redeliver(
        &mut self,
        webhook: &str,
        id: &str,
        at: Timestamp,
    ) -> Result<Delivery, StoreError> {
        let delivery = Delivery {
            state: DeliveryState::Pending,
            attempts: 0,
            next_at: Some(at),
            ..self.delivery(webhook, id)?
        };
        self.write_delivery(&delivery)?;
        Ok(delivery)
    }

    fn write_delivery(&mut self, delivery: &Delivery) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("UPDATE deliveries SET state = ?, next_at = ?, body = ? WHERE id = ?")?
            .execute(params![
                delivery.state.as_str(),
                delivery.next_at.map(Timestamp::unix_ms),
                encode(DELIVERY, delivery)?,
                delivery.id,
            ])?;
        Ok(())
    }
}
