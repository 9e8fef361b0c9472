//! The `sandforge` command.
//!
//! It has no logic of its own about machines: it turns a command line into a request, joins the
//! user's streams, terminal and signals to a guest, and tells how it ended.
#![forbid(unsafe_code)]

mod arguments;
mod coding_agent;
mod command;
mod connection;
mod embedded;
mod env;
mod errand;
mod exit;
mod failure;
mod filter;
mod hygiene;
mod input;
mod keyfile;
mod mount;
mod network;
mod output;
mod progress;
mod prompt;
mod remote;
mod report;
mod secrets;
mod service;
mod session;
mod signals;
mod task;
mod terminal;
mod units;
mod volume;

use std::alloc::System;
use std::env::args_os;
use std::process::ExitCode;
use std::time::Instant;

use zeroizing_alloc::ZeroAlloc;

/// Credentials pass through buffers of HTTP and TLS that nobody else wipes.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

/// Makes this program the confined launcher of a monitor. Not for people.
const LAUNCH: &str = "__launch";

/// Makes this program the maker of a template. Not for people.
const TEMPLATE: &str = "__template";

fn main() -> ExitCode {
    // Before anything else: the launcher must not have started a thread.
    if args_os().nth(1).is_some_and(|first| first == LAUNCH) {
        return supervisor::qemu_monitor::main();
    }
    if args_os().nth(1).is_some_and(|first| first == TEMPLATE) {
        return command::template::run();
    }
    hygiene::close();
    let begun = Instant::now();
    let arguments: Vec<_> = args_os().collect();
    match arguments::parse(&arguments) {
        Ok(parsed) => command::run(parsed, begun),
        Err(status) => ExitCode::from(status),
    }
}
