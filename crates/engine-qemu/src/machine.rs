//! A running QEMU.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use engine::{Attachment, BootSpec, Carrier, EngineError, Machine, Stats};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    sendmsg, socketpair,
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use crate::Launcher;
use crate::arguments;
use crate::launch::{LaunchReport, MAX_DESCRIPTORS, Order, Task};

/// What is kept of the monitor's own words.
const KEPT_WORDS: usize = 16 << 10;

/// A launcher that has become QEMU.
pub(crate) struct Launched {
    pub(crate) child: Child,
    pub(crate) report: LaunchReport,
}

fn failed(step: &'static str) -> impl Fn(std::io::Error) -> EngineError {
    move |error| EngineError::Boot { step, reason: error.to_string() }
}

/// Starts a launcher, hands it its orders, and waits until it is QEMU. With descriptors it is
/// owned, unless told otherwise by `Task`.
pub(crate) async fn launch(
    launcher: &Launcher,
    program: &Path,
    task: Task,
    descriptors: Vec<OwnedFd>,
) -> Result<Launched, EngineError> {
    let owned = !matches!(&task, Task::Machine(machine) if machine.listens);
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|error| failed("make a socket for the launcher")(error.into()))?;
    let mut command = Command::new(&launcher.program);
    command
        .args(&launcher.arguments)
        .env_clear()
        .stdin(theirs)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(owned);
    if owned {
        // The terminal's Ctrl-C is for the command in the guest, not for the machine. One that
        // is to outlive this process makes itself a session instead.
        command.process_group(0);
    }
    let mut child = command.spawn().map_err(failed("start the launcher"))?;
    drop(command);
    let order = Order { program: program.to_owned(), task, owner: owned.then(std::process::id) };
    give_orders(&ours, &order, &descriptors)?;
    drop((ours, descriptors));
    let mut said = Vec::new();
    let mut stdout = child.stdout.take().expect("it is piped");
    stdout.read_to_end(&mut said).await.map_err(failed("hear from the launcher"))?;
    let mut report = LaunchReport::default();
    // A second line means that the exec failed after all.
    for line in said.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        report = serde_json::from_slice(line).map_err(|_| EngineError::Boot {
            step: "hear from the launcher",
            reason: format!("it said {:?}", String::from_utf8_lossy(line)),
        })?;
    }
    if let Some(reason) = report.error {
        return Err(EngineError::Boot { step: "launch the monitor", reason });
    }
    if said.is_empty() {
        let status = child.wait().await.map_err(failed("wait for the launcher"))?;
        return Err(EngineError::Boot {
            step: "launch the monitor",
            reason: format!("the launcher ended without a word ({status})"),
        });
    }
    Ok(Launched { child, report })
}

fn give_orders(
    socket: &OwnedFd,
    order: &Order,
    descriptors: &[OwnedFd],
) -> Result<(), EngineError> {
    let text = serde_json::to_vec(order).expect("orders are plain JSON");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    if !borrowed.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)), "four at most");
    }
    sendmsg(socket, &[IoSlice::new(&text)], &mut ancillary, SendFlags::NOSIGNAL)
        .map(drop)
        .map_err(|error| failed("give the launcher its orders")(error.into()))
}

/// Starts a machine.
pub(crate) async fn boot(
    launcher: &Launcher,
    program: &Path,
    spec: BootSpec,
    tsc_khz: Option<u64>,
) -> Result<QemuMachine, EngineError> {
    let (monitor_end, carrier) = match &spec.attachment {
        Attachment::Owned => {
            let (ours, theirs) =
                std::os::unix::net::UnixStream::pair().map_err(failed("make the carrier"))?;
            ours.set_nonblocking(true).map_err(failed("make the carrier"))?;
            let ours = UnixStream::from_std(ours).map_err(failed("make the carrier"))?;
            (OwnedFd::from(theirs), Some(ours))
        }
        Attachment::Detached(path) => {
            let listener = std::os::unix::net::UnixListener::bind(path)
                .map_err(failed("listen for the carrier"))?;
            let private = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(path, private).map_err(failed("listen for the carrier"))?;
            (OwnedFd::from(listener), None)
        }
    };
    let detached = match &spec.attachment {
        Attachment::Owned => None,
        Attachment::Detached(path) => Some(path.clone()),
    };
    let machine = arguments::Machine {
        cpus: spec.cpus,
        memory_mb: spec.memory_mb,
        root_file_system: spec.root.file_system.to_owned(),
        agent_arguments: spec.agent_arguments,
        tsc_khz,
        console: spec.console,
        listens: detached.is_some(),
    };
    let descriptors = vec![
        OwnedFd::from(spec.kernel),
        OwnedFd::from(spec.initramfs),
        OwnedFd::from(spec.root.file),
        monitor_end,
    ];
    let Launched { mut child, .. } =
        launch(launcher, program, Task::Machine(machine), descriptors).await?;
    let carrier = match (&detached, carrier) {
        (Some(path), _) => UnixStream::connect(path).await.map_err(failed("reach the carrier"))?,
        (None, carrier) => carrier.expect("an owned machine has a pair"),
    };
    let words = Arc::new(Mutex::new(Vec::new()));
    if let Some(stderr) = child.stderr.take() {
        tokio::spawn(listen(stderr, words.clone(), spec.console));
    }
    Ok(QemuMachine { child, carrier: Some(carrier), words, owned: detached.is_none() })
}

/// Keeps the last of what the monitor says; shows it where the console was asked for.
async fn listen(mut from: impl AsyncRead + Unpin, words: Arc<Mutex<Vec<u8>>>, show: bool) {
    let mut bytes = vec![0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        if show {
            // The guest's kernel wrote this: nothing in it may steer the user's terminal.
            let harmless: Vec<u8> = bytes[..count]
                .iter()
                .map(|byte| if matches!(byte, b'\n' | b'\t' | 0x20..=0x7e) { *byte } else { b' ' })
                .collect();
            let _ = tokio::io::stderr().write_all(&harmless).await;
        }
        let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
        words.extend_from_slice(&bytes[..count]);
        let excess = words.len().saturating_sub(KEPT_WORDS);
        words.drain(..excess);
    }
}

#[derive(Debug)]
pub(crate) struct QemuMachine {
    child: Child,
    carrier: Option<UnixStream>,
    words: Arc<Mutex<Vec<u8>>>,
    owned: bool,
}

impl QemuMachine {
    fn last_words(&self) -> Option<String> {
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&words);
        let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
        Some(line.chars().filter(|c| !c.is_control()).take(300).collect())
    }
}

#[async_trait]
impl Machine for QemuMachine {
    fn carrier(&mut self) -> Result<Box<dyn Carrier>, EngineError> {
        match self.carrier.take() {
            Some(carrier) => Ok(Box::new(carrier)),
            None => Err(EngineError::Ended("its carrier was taken already".into())),
        }
    }

    fn monitor_pid(&self) -> Option<u32> {
        self.child.id()
    }

    fn stats(&self) -> Result<Stats, EngineError> {
        let ended = || EngineError::Ended("its monitor is gone".into());
        let pid = self.child.id().ok_or_else(ended)?;
        let read = |file: &str| {
            std::fs::read_to_string(format!("/proc/{pid}/{file}")).map_err(|_| ended())
        };
        Ok(Stats { cpu: cpu_time(&read("stat")?), memory_peak_bytes: peak(&read("status")?) })
    }

    async fn ended(&mut self) -> String {
        let how = match self.child.wait().await {
            Ok(status) if status.success() => "the guest stopped or its kernel gave up".into(),
            Ok(status) => format!("its monitor ended ({status})"),
            Err(error) => format!("its monitor is gone ({error})"),
        };
        match self.last_words() {
            Some(words) => format!("{how}; the monitor's last words: {words}"),
            None => how,
        }
    }

    async fn kill(&mut self) -> Result<(), EngineError> {
        self.child.kill().await.map_err(|error| EngineError::Ended(error.to_string()))
    }
}

impl Drop for QemuMachine {
    fn drop(&mut self) {
        if self.owned {
            let _ = self.child.start_kill();
        }
    }
}

/// utime and stime of proc_pid_stat(5), which follow the parenthesised name.
fn cpu_time(stat: &str) -> Duration {
    let ticks = rustix::param::clock_ticks_per_second().max(1);
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let field = |index: usize| {
        after_name.split_ascii_whitespace().nth(index).and_then(|text| text.parse::<u64>().ok())
    };
    // State is field 3 there and 0 here; utime is 14, stime 15.
    let used = field(11).unwrap_or(0) + field(12).unwrap_or(0);
    Duration::from_millis(used * 1000 / ticks)
}

fn peak(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok())
        .map_or(0, |kib: u64| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_behind_any_name() {
        let stat = "42 (a) b) S 1 42 42 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 1 0 1";
        let tick = 1000 / rustix::param::clock_ticks_per_second();
        assert_eq!(cpu_time(stat), Duration::from_millis(200 * tick));
    }

    #[test]
    fn the_peak_is_in_bytes() {
        assert_eq!(peak("Name:\tx\nVmHWM:\t   2048 kB\n"), 2 << 20);
    }
}
