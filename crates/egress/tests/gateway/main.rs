//! The gateway as a guest and as origins see it.

mod flow;
mod support;
