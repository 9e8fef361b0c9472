//! Where the mock's guests live.

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::unix::net::UnixListener as StdListener;
use std::process::Stdio;

use async_trait::async_trait;
use tokio::io::DuplexStream;
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use wire::connection::WINDOW;

use super::Host;
use super::agent::{Agent, Switches};
use crate::attach::Attached;
use crate::{Carrier, EngineError, Machine, Snapshot, Stats};

fn taken() -> EngineError {
    EngineError::Ended("its carrier was taken already".into())
}

/// A task of this process.
#[derive(Debug)]
pub(super) struct LocalMachine {
    carrier: Option<LocalCarrier>,
    task: JoinHandle<()>,
    switches: Switches,
    owned: bool,
}

#[derive(Debug)]
enum LocalCarrier {
    Pair(DuplexStream),
    Socket(UnixStream),
}

impl LocalMachine {
    pub(super) fn owned(mut agent: Agent) -> Self {
        let (host, guest) = tokio::io::duplex(WINDOW);
        let switches = agent.switches();
        let task = tokio::spawn(async move { agent.serve(guest).await });
        Self { carrier: Some(LocalCarrier::Pair(host)), task, switches, owned: true }
    }

    pub(super) async fn listening(mut agent: Agent, attached: Attached) -> io::Result<Self> {
        let listener = StdListener::from(attached.monitor_end);
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let switches = agent.switches();
        let task = tokio::spawn(async move { agent.listen(&listener).await });
        let carrier = attached.host_end.connect().await?;
        Ok(Self { carrier: Some(LocalCarrier::Socket(carrier)), task, switches, owned: false })
    }
}

#[async_trait]
impl Machine for LocalMachine {
    fn carrier(&mut self) -> Result<Box<dyn Carrier>, EngineError> {
        match self.carrier.take() {
            Some(LocalCarrier::Pair(carrier)) => Ok(Box::new(carrier)),
            Some(LocalCarrier::Socket(carrier)) => Ok(Box::new(carrier)),
            None => Err(taken()),
        }
    }

    fn monitor_pid(&self) -> Option<u32> {
        None
    }

    fn stats(&self) -> Result<Stats, EngineError> {
        Ok(Stats::default())
    }

    async fn pause(&mut self) -> Result<(), EngineError> {
        self.switches.paused.send_replace(true);
        Ok(())
    }

    async fn resume(&mut self) -> Result<(), EngineError> {
        self.switches.paused.send_replace(false);
        Ok(())
    }

    async fn save(&mut self, into: &Snapshot) -> Result<(), EngineError> {
        if !*self.switches.paused.borrow() {
            return Err(EngineError::Save("it is not paused".into()));
        }
        let gone = || EngineError::Ended("the mock was told to stop".into());
        let (reply, memory) = oneshot::channel();
        self.switches.saves.send(reply).map_err(|_| gone())?;
        let memory = memory.await.map_err(|_| gone())?;
        let failed = |error: io::Error| EngineError::Save(error.to_string());
        rewrite(&into.memory, &memory).map_err(failed)?;
        rewrite(&into.state, STATE).map_err(failed)
    }

    async fn ended(&mut self) -> String {
        let _ = (&mut self.task).await;
        "the mock was told to stop".into()
    }

    async fn kill(&mut self) -> Result<(), EngineError> {
        self.task.abort();
        Ok(())
    }
}

/// What a mock's machine has beside its memory.
pub(super) const STATE: &[u8] = b"mock";

fn rewrite(mut file: &File, bytes: &[u8]) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(bytes)
}

impl Drop for LocalMachine {
    fn drop(&mut self) {
        if self.owned {
            self.task.abort();
        }
    }
}

/// A process, which outlives this one.
#[derive(Debug)]
pub(super) struct HostedMachine {
    carrier: Option<UnixStream>,
    child: Child,
}

impl HostedMachine {
    pub(super) async fn start(
        host: &Host,
        sandbox: &str,
        key: &str,
        attached: Attached,
    ) -> io::Result<Self> {
        let child = Command::new(&host.program)
            .args(&host.arguments)
            .args([sandbox, key])
            .stdin(attached.monitor_end)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let carrier = attached.host_end.connect().await?;
        Ok(Self { carrier: Some(carrier), child })
    }
}

#[async_trait]
impl Machine for HostedMachine {
    fn carrier(&mut self) -> Result<Box<dyn Carrier>, EngineError> {
        match self.carrier.take() {
            Some(carrier) => Ok(Box::new(carrier)),
            None => Err(taken()),
        }
    }

    fn monitor_pid(&self) -> Option<u32> {
        self.child.id()
    }

    fn stats(&self) -> Result<Stats, EngineError> {
        Ok(Stats::default())
    }

    async fn ended(&mut self) -> String {
        match self.child.wait().await {
            Ok(status) => format!("the mock's process ended ({status})"),
            Err(error) => format!("the mock's process is gone ({error})"),
        }
    }

    async fn kill(&mut self) -> Result<(), EngineError> {
        self.child.kill().await.map_err(|error| EngineError::Ended(error.to_string()))
    }
}
