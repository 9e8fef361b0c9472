//! What each kind of process may call: one list each.

mod keeper;
mod kvm;
mod monitor;

pub use keeper::keeper;
pub use monitor::monitor;
