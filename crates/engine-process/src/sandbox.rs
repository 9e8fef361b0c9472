//! A running agent.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use engine::attach::Attached;
use engine::{BootSpec, EngineError};
use jail::cgroup::Group;
use launch::machine::ProcessMachine;
use launch::{LaunchError, Launcher, Ownership, Process, Start};

/// Tells the agent that it is started on the host.
const HOSTED: &str = "hosted";

fn failed(step: &'static str) -> impl Fn(io::Error) -> EngineError {
    move |error| EngineError::Boot { step, reason: error.to_string() }
}

pub(crate) fn refused(reason: String) -> EngineError {
    EngineError::Boot { step: "start the sandbox", reason }
}

fn unlaunched(error: &LaunchError) -> EngineError {
    refused(error.to_string())
}

/// Words for an agent that only tries.
pub(crate) fn trial() -> Vec<String> {
    // Nobody has the other half of this key, and nobody is heard.
    let key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    vec![
        "sandforge.id=trial".into(),
        format!("sandforge.key={key}"),
        memory(128),
        "sandforge.probe".into(),
    ]
}

fn memory(mb: u32) -> String {
    format!("sandforge.memory={}", u64::from(mb) << 20)
}

/// Starts an agent and waits until it is in its cell.
pub(crate) async fn launch(
    agent: &File,
    words: &[String],
    descriptors: Vec<OwnedFd>,
    ownership: Ownership,
    shown: bool,
) -> Result<(Process, jail::Report), EngineError> {
    // The name is looked up by the child, before its exec closes the descriptor.
    let program = format!("/proc/self/fd/{}", agent.as_raw_fd()).into();
    let launcher = Launcher { program, arguments: vec![HOSTED.into()] };
    let start = Start { orders: &words, descriptors, ownership, shown };
    let mut process = launcher.start(start).map_err(|error| unlaunched(&error))?;
    let mut last: Option<Result<jail::Report, String>> = None;
    // A second report means that the exec failed after all.
    while let Some(report) = process.report().await.map_err(|error| unlaunched(&error))? {
        last = Some(report);
    }
    match last {
        Some(Ok(report)) => {
            if let Some(inner) = report.inner {
                process.follow(inner).map_err(|error| unlaunched(&error))?;
            }
            Ok((process, report))
        }
        Some(Err(reason)) => Err(refused(reason)),
        None => {
            let end = process.wait().await.map_err(failed("wait for the agent"))?;
            Err(refused(format!("the agent ended without a word ({end})")))
        }
    }
}

/// Starts a sandbox.
pub(crate) async fn start(
    spec: BootSpec,
    group: Option<Group>,
) -> Result<ProcessMachine, EngineError> {
    let agent = spec.system.process()?;
    let Attached { monitor_end, host_end } =
        Attached::new(&spec.attachment).map_err(failed("make the carrier"))?;
    let ownership = if host_end.listens() { Ownership::Detached } else { Ownership::Owned };
    let mut words = spec.agent_arguments;
    words.push(memory(spec.memory_mb));
    let mut descriptors = vec![monitor_end];
    if let Some(group) = &group {
        descriptors.push(group.door().map_err(|error| refused(error.to_string()))?);
    }
    let (process, _) = launch(&agent, &words, descriptors, ownership, spec.console).await?;
    ProcessMachine::take_up(process, host_end, group, "its agent was asked to stop").await
}
