//! What a guest asks for, in one spelling.
//!
//! A name, a path or a query is parsed here once. What comes out has one form for everything that is
//! the same to a server, so that what a rule judges, what is dialled or sent, and what a log shows
//! cannot differ. What servers are known to read in more than one way is refused instead of repaired.
#![forbid(unsafe_code)]

mod host;
mod path;
mod percent;
mod query;

pub use host::{Authority, Host, HostError, Name};
pub use path::{Leniency, Path, PathError};
pub use query::{Query, QueryError};
