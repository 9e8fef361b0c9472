//! Lifecycle of sandboxes: create, run, copy, destroy; the only crate that knows all below.
#![forbid(unsafe_code)]
