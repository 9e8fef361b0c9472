//! Pulls from registries that fail in every way, in this process, and from Debian's own.
#![forbid(unsafe_code)]

mod auth;
mod bench;
mod debian;
mod faults;
mod process;
mod server;
mod signed;
mod whom;
