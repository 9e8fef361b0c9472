//! Tests that boot a guest: real kernel, real agent, real image. One body for every engine.

mod detached;
mod disks;
mod end;
mod exec;
mod files;
mod image;
mod internet;
mod isolation;
#[path = "../support/layout.rs"]
mod layout;
mod live;
mod network;
mod process;
mod saved;
mod stream;
mod support;
mod template;
mod trust;
