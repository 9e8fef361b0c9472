//! The gateway as a guest and as origins see it.

mod attacks;
mod aws;
mod bodies;
mod connections;
mod drift;
mod flow;
mod frames;
#[expect(dead_code, reason = "the real key and the time of day are the server's here")]
#[path = "../../../sigv4/tests/sdk/mod.rs"]
mod sdk;
mod servers;
mod support;
