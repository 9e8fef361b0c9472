//! Who calls, and what they may: tokens, roles, signatures of requests.
//!
//! A request has a [`Bearer`], or comes over a socket whose peer is known. That becomes a
//! [`Caller`], and nothing is done for a caller before [`authorise`] has been asked. Nothing here
//! does I/O but [`jwt::Verifier`], which gets the keys of an identity provider; what is stored,
//! the server's store looks up between two steps.
#![forbid(unsafe_code)]

pub mod jwt;
pub mod matrix;
pub mod signature;
pub mod token;

mod bearer;
mod caller;

pub use bearer::{Bearer, BearerError};
pub use caller::{Caller, Refusal, authorise};
