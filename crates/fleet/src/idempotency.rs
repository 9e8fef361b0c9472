//! Requests that may come more than once, and are done once.

use std::sync::Arc;

use access::Caller;
use api::{Code, Problem};
use audit::Digest;
use store::{Answer, Begun};

use crate::Error;
use crate::manager::Manager;
use crate::seat::lock;

/// The header of an answer that says which version it tells of.
const ETAG: &str = "etag";

/// What is to be done with a request that has an Idempotency-Key.
#[derive(Debug)]
pub enum Idempotent {
    /// It is new: do it, and say with the guard what was answered.
    Fresh(Guard),
    /// It was done: answer this again.
    Replay(Stored),
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The HTTP status.
    pub status: u16,
    /// The ETag header.
    pub etag: Option<String>,
    /// The body: JSON.
    pub body: Vec<u8>,
}

/// A request under way. Dropped without an answer, it may come again as a new one.
#[derive(Debug)]
pub struct Guard {
    manager: Arc<Manager>,
    subject: String,
    key: String,
    is_done: bool,
}

impl Manager {
    /// Whether a request with this key, and this digest in hexadecimal, is to be done.
    ///
    /// # Errors
    /// `Refused` where the same is being done, or the key was used for another request.
    pub async fn idempotent(
        &self,
        caller: &Caller,
        key: &str,
        digest: &str,
    ) -> Result<Idempotent, Error> {
        let digest: Digest =
            digest.parse().map_err(|_| Error::Internal("a request's digest is not one".into()))?;
        let subject = caller.actor();
        let guard = || Guard {
            manager: self.arc(),
            subject: subject.clone(),
            key: key.to_owned(),
            is_done: false,
        };
        match self.ledger.begin_request(&subject, key, digest).await? {
            Begun::New => {
                lock(&self.under_way).insert((subject.clone(), key.to_owned()));
                Ok(Idempotent::Fresh(guard()))
            }
            Begun::Done(answer) => Ok(Idempotent::Replay(stored(answer))),
            Begun::Mismatch => {
                let words = "the Idempotency-Key was used for another request";
                Err(Problem::new(Code::IdempotencyMismatch, words).into())
            }
            // Its first process was killed before it answered: what was made for it is known.
            Begun::InProgress(_)
                if self.ledger.is_unanswered(&subject, key)
                    && lock(&self.under_way).insert((subject.clone(), key.to_owned())) =>
            {
                Ok(Idempotent::Fresh(guard()))
            }
            Begun::InProgress(_) => {
                let words = "a request with this Idempotency-Key has not ended";
                let problem = Problem::new(Code::IdempotencyInProgress, words);
                Err(problem.with_retry_after_sec(1).into())
            }
        }
    }
}

impl Guard {
    /// Keeps the answer, for as long as the store keeps it.
    ///
    /// # Errors
    /// `Store`.
    pub async fn done(mut self, stored: Stored) -> Result<(), Error> {
        let body = String::from_utf8(stored.body)
            .map_err(|_| Error::Internal("an answer is not UTF-8".into()))?;
        let headers = stored.etag.into_iter().map(|etag| (ETAG.to_owned(), etag)).collect();
        let answer = Answer { status: stored.status, headers, body };
        let (subject, key) = (self.subject.clone(), self.key.clone());
        let store = self.manager.store();
        store.write(move |change| change.finish_idempotent(&subject, &key, &answer)).await?;
        self.is_done = true;
        self.manager.ledger.answered(&self.subject, &self.key);
        Ok(())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let key = (self.subject.clone(), self.key.clone());
        lock(&self.manager.under_way).remove(&key);
        if self.is_done || self.manager.ledger.is_unanswered(&self.subject, &self.key) {
            return;
        }
        let (manager, (subject, key)) = (self.manager.clone(), key);
        self.manager.tasks.spawn(async move {
            let store = manager.store();
            let forgotten =
                store.write(move |change| change.abandon_idempotent(&subject, &key)).await;
            if let Err(error) = forgotten {
                tracing::warn!(%error, "a request that came to nothing is not forgotten");
            }
        });
    }
}

fn stored(answer: Answer) -> Stored {
    let etag = answer.headers.into_iter().find(|(name, _)| name == ETAG).map(|(_, value)| value);
    Stored { status: answer.status, etag, body: answer.body.into_bytes() }
}
