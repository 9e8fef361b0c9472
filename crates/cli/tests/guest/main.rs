//! Tests that boot a guest: real kernel, real agent, real image. One body for every engine.

mod detached;
mod exec;
mod files;
mod isolation;
mod stream;
mod support;
mod trust;
