//! Signed notices to servers that asked for them.
//!
//! A [`Courier`] carries one body to one receiver: it resolves the receiver's name, refuses what does
//! not reach the internet, dials what it resolved and nothing else, follows no redirect, and signs
//! what it sends. [`run`] takes what is due from an [`Outbox`] and tells it what became of it; when to
//! try again is [`schedule`]'s.
#![forbid(unsafe_code)]

mod courier;
mod run;
pub mod schedule;
pub mod signature;

pub use courier::{Courier, Failure, Limits};
pub use run::{Due, Outbox, Outcome, run};
