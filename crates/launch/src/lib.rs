//! Starting a process that confines itself before it does its work.
//!
//! The two sides:
//!
//! - The starting side, feature `host`: a [`Launcher`] starts a program, without a fork of its
//!   own, and hands it its orders and descriptors. The [`Process`] takes its reports, asks it
//!   things, counts what it uses, and kills it.
//! - The started side: [`Owner`] is where orders and requests come from and reports go to. It
//!   blocks, and knows no runtime.
//!
//! Between them are three streams, which the started program finds in place of the standard
//! ones:
//!
//! | descriptor | what |
//! |---|---|
//! | 0 | a `SOCK_SEQPACKET` socket: first the orders, then requests and their answers, one at a time. Descriptors go one way only, to the started program |
//! | 1 | a pipe for reports: lines of JSON |
//! | 2 | a pipe for words, the last of which are kept and told when it ends |
//!
//! The started side is trusted until it has done its work for a while: what it says later may
//! be a guest's doing. So what it sends is bounded, parsed as what is expected and nothing
//! else, and made harmless before it is shown.
#![forbid(unsafe_code)]

#[cfg(feature = "host")]
mod host;
#[cfg(feature = "machine")]
pub mod machine;
mod message;
mod owner;

#[cfg(feature = "host")]
pub use host::{Control, End, LaunchError, Launcher, Ownership, Process, Start, Usage};
pub use message::{MAX_DESCRIPTORS, MAX_MESSAGE, MessageError};
pub use owner::{Orders, Owner, OwnerError, Request, Ticket};
