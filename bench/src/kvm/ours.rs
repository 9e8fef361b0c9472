//! Our monitor, as `sandforge run` starts it.

use std::path::Path;

use engine::{Attachment, BootSpec, Guest, Machine, SandboxBackend as _, System};
use engine_kvm::Kvm;

use super::{MEMORY_MB, Order, SANDBOX};
use crate::Outcome;

pub(super) async fn start(order: Order) -> Outcome<Box<dyn Machine>> {
    let Order { assets, root, agent } = order;
    let spec = BootSpec {
        sandbox: SANDBOX.into(),
        cpus: 1,
        memory_mb: MEMORY_MB,
        system: System::Guest(Guest {
            kernel: assets.kernel,
            initramfs: assets.initramfs,
            disks: supervisor::root_disks(vec![root])?,
        }),
        agent_arguments: agent.into(),
        attachment: Attachment::Owned,
        console: false,
    };
    // It keeps a verdict there, which only a choice between engines asks for.
    let engine = Kvm::new(Path::new("/nonexistent"));
    Ok(engine.boot(spec).await?)
}
