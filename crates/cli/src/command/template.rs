//! The process that makes a template. Nobody waits for it, and it says nothing.

use std::process::ExitCode;

use supervisor::{Launcher, Supervisor, TemplateOrder};

/// Makes the template that the last argument tells.
pub(crate) fn run() -> ExitCode {
    match make() {
        Some(()) => ExitCode::SUCCESS,
        None => ExitCode::FAILURE,
    }
}

fn make() -> Option<()> {
    crate::hygiene::close();
    // Apart from the terminal of whoever started it, and after everything else that wants to run.
    let _ = rustix::process::setsid();
    let _ = rustix::process::nice(19);
    let order = std::env::args().next_back()?;
    let order: TemplateOrder = serde_json::from_str(&order).ok()?;
    let launcher =
        Launcher { program: "/proc/self/exe".into(), arguments: vec![crate::LAUNCH.into()] };
    let store = supervisor::image::Store::open(&order.cache).ok()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let supervisor = runtime.block_on(async { Supervisor::with_store(launcher, store) });
    runtime.block_on(supervisor.make_template(&order)).ok()
}
