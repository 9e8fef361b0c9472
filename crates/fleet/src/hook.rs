//! Somebody who is told how far things are, for tests that stop the world there.

use api::State;

/// Is told of each committed step.
pub trait Hook: Send + Sync + 'static {
    /// The sandbox's row has this state from now on, and nothing was done about it yet.
    fn reached(&self, _sandbox: &str, _state: State) {}

    /// The command was accepted and not yet sent.
    fn accepted(&self, _sandbox: &str, _process: &str) {}
}

/// Nobody.
impl Hook for () {}
