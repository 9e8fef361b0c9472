//! Virtio devices over MMIO, after the Virtual I/O Device specification 1.2.
//!
//! A device is three things: the [`transport`], which is its registers and runs on the threads of
//! the virtual CPUs; the [`worker`], a thread that waits for the driver's notifications; and the
//! [`Device`] itself, which lives on that thread and serves the queues.

pub mod balloon;
pub mod block;
mod buffers;
#[cfg(test)]
mod confined;
mod device;
mod drain;
#[cfg(test)]
mod driver;
#[cfg(test)]
mod recorder;
pub mod rng;
mod state;
mod throttle;
mod transport;
pub mod vsock;
mod worker;

pub use device::{Active, ConfigSpace, Device, DeviceError, Identity, Interrupt, Kicks};
pub use drain::{Answer, Chain};
pub use state::{DeviceState, DeviceStateError, Own};
pub use transport::Transport;
pub(crate) use transport::WINDOW;
pub use worker::{SYSTEM_CALLS, Worker};
