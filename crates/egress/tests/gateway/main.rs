//! The gateway as a guest and as origins see it.

mod attacks;
mod bodies;
mod connections;
mod flow;
mod frames;
mod servers;
mod support;
