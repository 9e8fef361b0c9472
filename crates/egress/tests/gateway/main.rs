//! The gateway as a guest and as origins see it.

mod attacks;
mod bodies;
mod flow;
mod support;
