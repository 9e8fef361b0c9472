//! Whether something would be let through, for who has to know before it begins.

use access::Caller;
use api::Operation;

use crate::Error;
use crate::config::Provenance;
use crate::manager::Manager;

impl Manager {
    /// Whether the caller may do this to this sandbox. What it then does is asked again: this is
    /// for a server that has to answer before, as where a connection becomes a WebSocket.
    ///
    /// # Errors
    /// `Access`, `NotFound`.
    pub async fn may(
        &self,
        caller: &Caller,
        operation: Operation,
        sandbox: &str,
        by: &Provenance,
    ) -> Result<(), Error> {
        self.find_to_read(caller, operation, sandbox, by).await.map(drop)
    }
}
