//! Where the mock's guests live.

use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::process::Stdio;

use async_trait::async_trait;
use tokio::io::DuplexStream;
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use wire::connection::WINDOW;

use super::Host;
use super::agent::Agent;
use crate::attach::Attached;
use crate::{Carrier, EngineError, Machine, Stats};

fn taken() -> EngineError {
    EngineError::Ended("its carrier was taken already".into())
}

/// A task of this process.
#[derive(Debug)]
pub(super) struct LocalMachine {
    carrier: Option<LocalCarrier>,
    task: JoinHandle<()>,
    paused: watch::Sender<bool>,
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
        let paused = agent.pause_switch();
        let task = tokio::spawn(async move { agent.serve(guest).await });
        Self { carrier: Some(LocalCarrier::Pair(host)), task, paused, owned: true }
    }

    pub(super) async fn listening(mut agent: Agent, attached: Attached) -> io::Result<Self> {
        let listener = StdListener::from(attached.monitor_end);
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let paused = agent.pause_switch();
        let task = tokio::spawn(async move { agent.listen(&listener).await });
        let carrier = attached.host_end.connect().await?;
        Ok(Self { carrier: Some(LocalCarrier::Socket(carrier)), task, paused, owned: false })
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
        self.paused.send_replace(true);
        Ok(())
    }

    async fn resume(&mut self) -> Result<(), EngineError> {
        self.paused.send_replace(false);
        Ok(())
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
