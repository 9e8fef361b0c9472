//! Credentials at rest: in the keychain of the operating system or in an encrypted file, for a workspace
//! or one sandbox of it. What is kept is a value, or where one comes from.
#![forbid(unsafe_code)]

mod directory;
mod error;
mod import;
mod key;
mod keychain;
mod record;
mod source;
mod store;
mod vault;

pub use error::Error;
pub use import::{Candidate, Fate, ImportError, Variable, plan, variables};
pub use key::{Ask, Passphrase, Purpose};
pub use record::{
    Characters, Custom, Entry, Key, MAX_SECRET, MIN_SECRET, New, Place as SlotPlace, Scope, Source,
    SourceKind,
};
pub use store::{Description, Found, Options, Origin, Place, Store, UnknownPlace};
