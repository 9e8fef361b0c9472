//! The policy in force, which can be replaced while it is asked.

use std::sync::{Arc, PoisonError, RwLock};

use crate::decide::{Host, Policy};
use crate::decision::Generation;
use crate::error::Error;
use crate::layer::Layer;

/// The policy in force. Each decision is made by one edition of it, whole.
#[derive(Debug)]
pub struct Live {
    current: RwLock<Arc<Policy>>,
}

impl Live {
    /// Starts with an edition of this number: one more than the last that was recorded.
    ///
    /// # Errors
    /// As [`Policy::new`].
    pub fn new(host: Host, layers: Vec<Layer>, generation: Generation) -> Result<Self, Error> {
        let policy = Policy::new(host, layers)?.at(generation);
        Ok(Self { current: RwLock::new(Arc::new(policy)) })
    }

    /// The edition in force. Who holds it decides by it, also while another one comes.
    pub fn load(&self) -> Arc<Policy> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts other layers in the place of those that are there; the built-in one stays.
    ///
    /// # Errors
    /// As [`Policy::new`]; what was in force stays so.
    pub fn replace(&self, layers: Vec<Layer>) -> Result<Generation, Error> {
        let policy = Policy::new(self.load().host().clone(), layers)?;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let generation = Generation(current.generation().0.saturating_add(1));
        *current = Arc::new(policy.at(generation));
        Ok(generation)
    }
}
