//! What is done for each route. The paths are `api`'s; here is a handler for each of them.

mod audit;
mod changes;
mod event;
mod exec;
mod file;
mod policy;
mod sandbox;
mod secret;
mod snapshot;
mod system;
mod token;
mod volume;
mod webhook;

use std::sync::Arc;

use api::ROUTES;
use axum::Router;
use axum::extract::Request;
use axum::routing::{MethodFilter, MethodRouter, on};

use crate::app::App;
use crate::gate::{self, Handler, Target};

macro_rules! handlers {
    ($($id:literal => $handler:path,)*) => {
        /// What answers the route of this id.
        fn handler(id: &str) -> Option<Handler> {
            match id {
                $($id => Some(|ask| Box::pin($handler(ask))),)*
                _ => None,
            }
        }
    };
}

handlers! {
    "health" => system::health,
    "ready" => system::ready,
    "openapi" => system::openapi,
    "version" => system::version,
    "metrics" => system::metrics,
    "whoami" => system::whoami,
    "doctor" => system::doctor,
    "list_images" => system::images,
    "create_sandbox" => sandbox::create,
    "list_sandboxes" => sandbox::list,
    "get_sandbox" => sandbox::get,
    "update_sandbox" => sandbox::update,
    "attach_mount" => sandbox::attach_mount,
    "detach_mount" => sandbox::detach_mount,
    "delete_sandbox" => sandbox::delete,
    "start_sandbox" => sandbox::start,
    "stop_sandbox" => sandbox::stop,
    "pause_sandbox" => sandbox::pause,
    "resume_sandbox" => sandbox::resume,
    "sandbox_stats" => sandbox::stats,
    "sandbox_logs" => sandbox::logs,
    "exec" => exec::exec,
    "exec_websocket" => exec::websocket,
    "pty_websocket" => exec::pty,
    "list_processes" => exec::list,
    "get_process" => exec::get,
    "process_output" => exec::output,
    "attach_websocket" => exec::attach,
    "process_stdin" => exec::stdin,
    "signal_process" => exec::signal,
    "resize_process" => exec::resize,
    "read_file" => file::read,
    "write_file" => file::write,
    "remove_file" => file::remove,
    "stat_file" => file::stat,
    "list_files" => file::list,
    "watch_files" => file::watch,
    "make_directory" => file::mkdir,
    "move_file" => file::rename,
    "pack_files" => file::pack,
    "unpack_files" => file::unpack,
    "list_changes" => changes::list,
    "sandbox_changes" => changes::of_sandbox,
    "diff_changes" => changes::diff,
    "apply_changes" => changes::apply,
    "discard_changes" => changes::discard,
    "hibernate_sandbox" => sandbox::hibernate,
    "create_snapshot" => snapshot::create,
    "fork_sandbox" => snapshot::fork,
    "list_snapshots" => snapshot::list,
    "get_snapshot" => snapshot::get,
    "remove_snapshot" => snapshot::remove,
    "restore_snapshot" => snapshot::restore,
    "create_volume" => volume::create,
    "list_volumes" => volume::list,
    "get_volume" => volume::get,
    "remove_volume" => volume::remove,
    "list_events" => event::list,
    "create_token" => token::create,
    "list_tokens" => token::list,
    "revoke_token" => token::revoke,
    "create_key" => token::create_key,
    "list_keys" => token::list_keys,
    "revoke_key" => token::revoke_key,
    "list_secrets" => secret::list,
    "reset_secrets" => secret::reset,
    "set_secret" => secret::set,
    "remove_secret" => secret::remove,
    "set_sandbox_secret" => secret::set_own,
    "remove_sandbox_secret" => secret::remove_own,
    "show_policy" => policy::show,
    "check_policy" => policy::check,
    "reload_policy" => policy::reload,
    "list_audit" => audit::list,
    "export_audit" => audit::export,
    "verify_audit" => audit::verify,
    "checkpoint_audit" => audit::checkpoint,
    "create_webhook" => webhook::create,
    "list_webhooks" => webhook::list,
    "get_webhook" => webhook::get,
    "delete_webhook" => webhook::delete,
    "list_deliveries" => webhook::deliveries,
    "redeliver" => webhook::redeliver,
}

/// Every route, and what is said to everything else.
pub(crate) fn router(app: &Arc<App>) -> Router {
    let answer = |target: Target| {
        let app = Arc::clone(app);
        move |request: Request| gate::answer(Arc::clone(&app), target, request)
    };
    let mut router = Router::new();
    for route in ROUTES {
        // A route without a handler is caught by a test, and otherwise not there.
        let target = handler(route.id).map_or(Target::Nowhere, |handler| Target::Route {
            route,
            handler,
            has_query: !route.query().is_empty(),
        });
        let method: MethodRouter = on(filter(route.method), answer(target));
        router = router.route(route.path, method);
    }
    router.fallback(answer(Target::Nowhere)).method_not_allowed_fallback(answer(Target::Otherwise))
}

fn filter(method: api::Method) -> MethodFilter {
    match method {
        api::Method::Get => MethodFilter::GET,
        api::Method::Post => MethodFilter::POST,
        api::Method::Put => MethodFilter::PUT,
        api::Method::Patch => MethodFilter::PATCH,
        api::Method::Delete => MethodFilter::DELETE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_has_a_handler() {
        for route in ROUTES {
            assert!(handler(route.id).is_some(), "{route:?}");
        }
    }
}
