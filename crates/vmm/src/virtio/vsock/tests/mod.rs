//! The device with a guest that does as the test says, and real sockets.

mod echo;
mod ending;
mod flow;
mod guest;
mod joining;
mod packets;
mod quiet;
