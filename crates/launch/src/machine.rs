//! A machine that is a process.

use std::io;

use async_trait::async_trait;
use engine::attach::HostEnd;
use engine::{Carrier, EngineError, Machine, Stats};
use jail::cgroup::Group;
use tokio::net::UnixStream;

use crate::Process;

/// A process that runs a sandbox, its carrier, and the control group that it is in.
#[derive(Debug)]
pub struct ProcessMachine {
    process: Process,
    carrier: Option<UnixStream>,
    /// Kills what is left in it, and removes it, when the machine is dropped.
    _group: Option<Group>,
    stopped: &'static str,
}

impl ProcessMachine {
    /// Connects to a process that has its end of the carrier. `stopped` says what it means that it
    /// ends well. A machine that listens outlives us, and its group with it.
    ///
    /// # Errors
    /// `Boot` where the carrier cannot be reached.
    pub async fn take_up(
        process: Process,
        carrier: HostEnd,
        group: Option<Group>,
        stopped: &'static str,
    ) -> Result<Self, EngineError> {
        let outlives = carrier.listens();
        let carrier = carrier.connect().await.map_err(|error: io::Error| EngineError::Boot {
            step: "reach the carrier",
            reason: error.to_string(),
        })?;
        let group = match group {
            Some(group) if outlives => {
                group.leave();
                None
            }
            group => group,
        };
        Ok(Self { process, carrier: Some(carrier), _group: group, stopped })
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

#[async_trait]
impl Machine for ProcessMachine {
    fn carrier(&mut self) -> Result<Box<dyn Carrier>, EngineError> {
        match self.carrier.take() {
            Some(carrier) => Ok(Box::new(carrier)),
            None => Err(EngineError::Ended("its carrier was taken already".into())),
        }
    }

    fn monitor_pid(&self) -> Option<u32> {
        self.process.pid()
    }

    fn stats(&self) -> Result<Stats, EngineError> {
        let used = self.process.usage();
        let used = used.map_err(|_| EngineError::Ended("its process is gone".into()))?;
        Ok(Stats { cpu: used.cpu, memory_peak_bytes: used.memory_peak_bytes })
    }

    async fn ended(&mut self) -> String {
        self.process.ended(self.stopped).await
    }

    async fn kill(&mut self) -> Result<(), EngineError> {
        self.process.kill().await.map_err(|error| EngineError::Ended(error.to_string()))
    }
}
