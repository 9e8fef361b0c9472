//! Sandboxes on the host's own kernel, for code that is trusted more or less, where no machine
//! can be had.
//!
//! There is no second implementation: what is started is the agent of the guests, which enters a
//! cell ([`jail::cell`]) and confines its tasks as it does in a guest. The carrier is a unix
//! socket. What no cell can give is a kernel of one's own, and the engine's caveat says so.
#![forbid(unsafe_code)]

mod sandbox;

use std::os::fd::OwnedFd;
use std::time::Duration;

use async_trait::async_trait;
use engine::{
    BootSpec, Capabilities, EngineError, Isolation, Machine, Preflight, SandboxBackend, Unavailable,
};
use jail::cgroup::{Bounds, Group, Parent};
use launch::Ownership;
use tokio::time::timeout;

/// The engine.
#[derive(Debug)]
pub struct Process {
    /// Opens the agent, a program in memory.
    agent: fn() -> std::io::Result<std::fs::File>,
}

impl Process {
    /// An engine that tries itself with the agent that this function opens.
    pub fn new(agent: fn() -> std::io::Result<std::fs::File>) -> Self {
        Self { agent }
    }
}

/// Processes and threads of a sandbox.
const TASKS: u64 = 8192;

fn check_ids() -> Result<(), Unavailable> {
    jail::cell::check_ids()
        .map_err(|error| Unavailable { reason: error.to_string(), remedy: error.remedy() })
}

/// A control group for a sandbox, where the host gives one.
fn group(spec: &BootSpec) -> Result<Option<Group>, EngineError> {
    let Ok(parent) = Parent::find() else { return Ok(None) };
    let bounds = Bounds {
        memory: u64::from(spec.memory_mb) << 20,
        tasks: TASKS,
        processor_thousandths: u64::from(spec.cpus) * 1000,
    };
    let group = parent.group(&spec.sandbox, &bounds);
    let group = group.map_err(|error| sandbox::refused(error.to_string()))?;
    Ok(Some(group))
}

/// What no cell protects from.
const SHARED: &str = "the host's kernel is shared, so a flaw in it is a way out; files of the \
                      system that everybody may read (/usr, /etc, /opt) are readable";
/// What a sandbox cannot have without control groups.
const UNBOUNDED: &str =
    "memory is bounded for each process, not for all together, and CPU time not at all";

#[async_trait]
impl SandboxBackend for Process {
    fn name(&self) -> &'static str {
        "process"
    }

    fn isolation(&self) -> Isolation {
        Isolation::Process
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    fn caveat(&self) -> Option<String> {
        Some(match Parent::find() {
            Ok(_) => SHARED.into(),
            Err(_) => format!("{SHARED}; {UNBOUNDED}"),
        })
    }

    /// Has an agent make a cell and a task's sandbox in it.
    async fn preflight(&self) -> Result<Preflight, Unavailable> {
        check_ids()?;
        let failed = |reason: String| Unavailable {
            reason,
            remedy: "use an engine that has a kernel of its own (--engine kvm or qemu)".into(),
        };
        let agent = (self.agent)().map_err(|error| failed(error.to_string()))?;
        let (carrier, _ours) =
            std::os::unix::net::UnixStream::pair().map_err(|error| failed(error.to_string()))?;
        let words = sandbox::trial();
        let descriptors = vec![OwnedFd::from(carrier)];
        let (mut process, report) =
            sandbox::launch(&agent, &words, descriptors, Ownership::Owned, false)
                .await
                .map_err(|error| failed(error.to_string()))?;
        let end = timeout(Duration::from_secs(20), process.wait())
            .await
            .map_err(|_| failed("a sandbox was not ready in time".into()))?
            .map_err(|error| failed(error.to_string()))?;
        if !end.status.success() {
            let words = end.last_words().unwrap_or_else(|| end.status.to_string());
            return Err(failed(words));
        }
        let mut notes = report.missing;
        notes.push(SHARED.into());
        if let Err(missing) = Parent::find() {
            notes.push(format!("{UNBOUNDED}, for want of {missing}"));
        }
        let monitor = concat!("sandforge agent ", env!("CARGO_PKG_VERSION")).into();
        Ok(Preflight { monitor, confinement: report.layers, notes })
    }

    async fn boot(&self, spec: BootSpec) -> Result<Box<dyn Machine>, EngineError> {
        check_ids()?;
        let group = group(&spec)?;
        Ok(Box::new(sandbox::start(spec, group).await?))
    }
}
