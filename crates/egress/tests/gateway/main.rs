//! The gateway as a guest and as origins see it.

mod attacks;
mod flow;
mod support;
