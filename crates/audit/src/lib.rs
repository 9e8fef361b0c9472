//! The hash-chained record of what was decided and done.
//!
//! A record is appended in the transaction of the change that it tells of. Its hash covers all
//! of it and the hash before, so that a record that is changed, removed or moved breaks the
//! chain. The head of the chain is signed now and then, into the database and into a file beside
//! it, so that an end that is cut off, or a chain that is made anew, is found too. Old records
//! move to files with a signed footer, and the chain goes on.
//!
//! Who can read the signing key can sign a false chain. Against them, keep heads elsewhere: the
//! event `audit.checkpoint` carries each one.
#![forbid(unsafe_code)]

mod chain;
mod checkpoint;
mod digest;
mod entry;
mod error;
mod export;
mod key;
mod row;
mod scan;
mod segment;
mod verify;

pub use chain::{Head, SCHEMA, append, append_all, count, get, list, tail};
pub use checkpoint::{checkpoint, latest_checkpoint, read_head_file, sign, write_head_file};
pub use digest::{Digest, NotADigest};
pub use ed25519_dalek::VerifyingKey;
pub use entry::{Details, Entry};
pub use error::AuditError;
pub use export::Export;
pub use key::Key;
pub use segment::{Segment, drop_segment, write_segment};
pub use verify::{check_head, verify, verify_lines};
