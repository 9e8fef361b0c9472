//! Tests on the real `/dev/kvm`, with guests that follow a script: every access is one of a real
//! virtual CPU. A device that cannot be opened is no reason to fail; a guest that does something
//! else than its script is.

mod machine;
mod queues;
mod rig;
mod snapshot;
