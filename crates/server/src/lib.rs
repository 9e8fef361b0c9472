//! The REST API over TLS and a unix socket.
//!
//! [`serve`] listens; [`embed`] is the same server within one process, for a command that runs
//! without one. What is routed is `api`'s table; every request passes `gate`, which lets it in or
//! not, and what is done for it is [`fleet::Manager`]'s. Nothing here decides who may do what.
#![forbid(unsafe_code)]

mod app;
mod ask;
mod certificate;
mod config;
mod connection;
mod gate;
mod host;
mod lingering;
mod listen;
mod metrics;
mod outbox;
mod patience;
mod problem;
mod range;
mod rate;
mod routes;
mod running;
mod sse;
mod telemetry;
mod websocket;

use std::sync::Arc;

use fleet::Manager;

use crate::app::App;
pub use certificate::{CertificateError, authority};
pub use config::{Certificate, Config, Limits};
pub use listen::ListenError;
pub use running::{Embedded, Running, ServeError};
pub use telemetry::{Telemetry, TelemetryError};

/// Listens everywhere that `config` names, and answers from then on. To be called where tokio
/// runs. The manager is its caller's to shut down, after the server.
///
/// # Errors
/// `ServeError` where it cannot listen or has no certificate; nothing listens then.
pub async fn serve(manager: Arc<Manager>, config: Config) -> Result<Running, ServeError> {
    let app = Arc::new(App::new(manager, &config));
    let (router, lifetime) = (routes::router(&app), app.lifetime.clone());
    let keeping = Arc::clone(&app);
    let running = tokio::task::spawn_blocking({
        let (lifetime, runtime) = (lifetime.clone(), tokio::runtime::Handle::current());
        move || {
            let _runtime = runtime.enter();
            Running::start(router, &config, lifetime)
        }
    });
    let running =
        running.await.unwrap_or_else(|defect| std::panic::resume_unwind(defect.into_panic()))?;
    let outbox = outbox::Outbox::new(&keeping);
    let courier = keeping.courier.clone();
    lifetime.spawn(async move { keep(&keeping).await });
    lifetime.spawn(webhook::run(Arc::new(outbox), courier));
    Ok(running)
}

/// The same server within this process, where each connection is this user's. Addresses, the
/// socket and the certificate of `config` are not used.
pub fn embed(manager: Arc<Manager>, config: &Config) -> Embedded {
    let app = Arc::new(App::new(manager, config));
    Embedded::new(routes::router(&app), config, app.lifetime.clone())
}

/// Forgets from time to time who has not called for a while.
async fn keep(app: &App) {
    const EVERY: std::time::Duration = std::time::Duration::from_secs(60);
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => app.rates.forget(),
            () = app.lifetime.stopping.cancelled() => return,
        }
    }
}
