//! Protocol between host and guest: frames, streams, signed operations. No I/O of its own.
//!
//! From the outside in: [`handshake`] finds the other side on a carrier, [`connection`] turns
//! the carrier into streams of [`frame`]s with flow control, [`envelope`] says which of the
//! host's requests are genuine, and [`op`] says what they ask for. [`disk`] is what is told before
//! there is a carrier.
#![forbid(unsafe_code)]

pub mod connection;
pub mod disk;
pub mod envelope;
pub mod frame;
pub mod handshake;
pub mod op;
pub mod text;
