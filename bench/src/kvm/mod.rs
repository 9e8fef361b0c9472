//! From the start of a monitor's process until its guest's agent takes tasks, on KVM.
//!
//! To be run as root where KVM runs real guests; `lab/boot-time` runs it in the lab, whose clock
//! counts instructions. The guest is that of `engine-qemu`: the same kernel, initramfs, root disk
//! and carrier.

mod ours;
mod qemu;
mod tracing;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use engine::{Carrier, Machine};
use image::boot::{self, BootAssets, Kernel};
use image::{ImageRef, Layer, Store};
use link::Guest;
use rustix::time::{ClockId, clock_gettime};
use wire::op::Info;

use crate::{Outcome, head, ms, row};
use tracing::Tracing;

const RUNS: usize = 5;
const MEMORY_MB: u32 = 512;
const SANDBOX: &str = "bench";
const PATIENCE: Duration = Duration::from_secs(120);

/// What a monitor is given.
struct Order {
    assets: BootAssets,
    root: Layer,
    /// For the kernel's command line: the agent's part.
    agent: [String; 2],
}

/// A monitor that can be measured.
#[derive(Clone, Copy)]
enum Monitor {
    Ours,
    Qemu,
}

const MONITORS: [Monitor; 2] = [Monitor::Ours, Monitor::Qemu];

impl Monitor {
    fn name(self) -> &'static str {
        match self {
            Self::Ours => "Sandforge's monitor, in its jail",
            Self::Qemu => "QEMU microvm",
        }
    }

    async fn start(self, order: Order) -> Outcome<(Started, Box<dyn Carrier>)> {
        match self {
            Self::Ours => {
                let mut machine = ours::start(order).await?;
                let carrier = machine.carrier()?;
                Ok((Started::Ours(machine), carrier))
            }
            Self::Qemu => {
                let (ours, theirs) = UnixStream::pair()?;
                ours.set_nonblocking(true)?;
                let child = qemu::start(&order, &theirs)?;
                // The carrier is to end with the monitor.
                drop(theirs);
                let carrier = tokio::net::UnixStream::from_std(ours)?;
                Ok((Started::Qemu(child), Box::new(carrier)))
            }
        }
    }
}

/// A monitor that was started.
enum Started {
    Ours(Box<dyn Machine>),
    Qemu(Child),
}

impl Started {
    fn pid(&self) -> Outcome<u32> {
        match self {
            Self::Ours(machine) => machine.monitor_pid().ok_or_else(|| "it has ended".into()),
            Self::Qemu(child) => Ok(child.id()),
        }
    }

    /// All processes of the monitor: ours has a keeper.
    fn memory(&self) -> Outcome<Memory> {
        let pid = self.pid()?;
        let mut memory = Memory::of(pid)?;
        if let Self::Ours(_) = self {
            let keeper = Memory::of(parent(pid)?)?;
            memory.share += keeper.share;
            memory.own += keeper.own;
        }
        Ok(memory)
    }

    async fn kill(self) -> Outcome {
        match self {
            Self::Ours(mut machine) => machine.kill().await?,
            Self::Qemu(mut child) => {
                child.kill()?;
                child.wait()?;
            }
        }
        Ok(())
    }
}

/// One start.
struct Boot {
    answered: Duration,
    ready: Duration,
    first_entry: Duration,
    /// By the guest's own clock.
    guest: Duration,
    cpu: CpuTime,
    /// Beside the guest's memory.
    memory: Memory,
    counters: BTreeMap<String, u64>,
    tracing: Tracing,
}

/// Measures each monitor.
pub(crate) fn boot() -> Outcome {
    let store = Store::open_default()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let measure = |monitor: Monitor, tracing| runtime.block_on(run(&store, monitor, tracing));
    for monitor in MONITORS {
        // The first one reads programs and images from the disk.
        measure(monitor, Tracing::first_entry()?)?;
        let boots = (0..RUNS)
            .map(|_| measure(monitor, Tracing::first_entry()?))
            .collect::<Outcome<Vec<_>>>()?;
        print(monitor.name(), &boots);
        print_exits(&measure(monitor, Tracing::every_exit()?)?)?;
    }
    Ok(())
}

async fn run(store: &Store, monitor: Monitor, tracing: Tracing) -> Outcome<Boot> {
    let assets = boot::assets(store, &Kernel::Ours, &mut |_| {})?;
    let image = store.resolve(&ImageRef::default(), &mut |_| {})?;
    let root = image.layers.into_iter().next().ok_or("an image without layers")?;
    let key = link::generate_key()?;
    let agent = [
        format!("sandforge.id={SANDBOX}"),
        format!("sandforge.key={}", wire::envelope::key_to_hex(&key.verifying_key())),
    ];

    let begun = now();
    let (monitor, carrier) = monitor.start(Order { assets, root, agent }).await?;
    let pid = monitor.pid()?;
    let guest = Guest::connect(carrier, SANDBOX, key, PATIENCE, None).await?;
    let answered = now() - begun;
    guest.freshen().await?;
    let ready = now() - begun;
    tracing.stop()?;

    let boot = Boot {
        answered,
        ready,
        first_entry: tracing.first()?.saturating_sub(begun),
        guest: Duration::from_millis(guest.ask(&Info {}).await?.ready_ms),
        cpu: CpuTime::of(pid)?,
        memory: monitor.memory()?,
        counters: counters(pid),
        tracing,
    };
    monitor.kill().await?;
    Ok(boot)
}

/// The clock that tracefs is told to use as well.
fn now() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Monotonic)).expect("it counts from the boot on")
}

fn print(name: &str, boots: &[Boot]) {
    head(&format!("Start on KVM: {name}, {MEMORY_MB} MB, 1 CPU"));
    let line = |name: &str, unit, value: fn(&Boot) -> f64| {
        row(name, &mut boots.iter().map(value).collect::<Vec<_>>(), unit);
    };
    line("process start to the agent's answer", "ms", |boot| ms(boot.answered));
    line("process start to taking tasks", "ms", |boot| ms(boot.ready));
    line("process start to the first guest instruction", "ms", |boot| ms(boot.first_entry));
    line("the guest's kernel to its agent, on the guest's clock", "ms", |boot| ms(boot.guest));
    line("monitor's CPU time: user", "ms", |boot| ms(boot.cpu.user));
    line("monitor's CPU time: system", "ms", |boot| ms(boot.cpu.system));
    line("monitor's CPU time: guest", "ms", |boot| ms(boot.cpu.guest));
    line("monitor's memory beside the guest's (PSS)", "KiB", |boot| boot.memory.share);
    line("of it in no other process", "KiB", |boot| boot.memory.own);
    for (counter, name) in [
        ("exits", "exits"),
        ("mmio_exits", "exits to the monitor for MMIO"),
        ("io_exits", "exits to the monitor for ports"),
        ("pf_taken", "page faults of the guest's memory"),
        ("halt_exits", "halts"),
    ] {
        let mut counts: Vec<f64> = boots.iter().map(|boot| boot.count(counter)).collect();
        row(name, &mut counts, "times");
    }
    println!();
}

fn print_exits(boot: &Boot) -> Outcome {
    let exits = boot.tracing.exits()?;
    let total = exits.iter().map(|(_, exit)| exit.in_guest).sum();
    println!(
        "Of {:.1} ms while exits were recorded, {:.1} were in the guest.\n",
        ms(boot.ready),
        ms(total)
    );
    println!("| exit | times | outside of the guest, us each | in sum, ms |\n|---|---|---|---|");
    for (reason, exit) in exits {
        let each = ms(exit.outside) * 1e3 / f64::from(exit.times);
        println!("| {reason} | {} | {each:.1} | {:.2} |", exit.times, ms(exit.outside));
    }
    println!();
    Ok(())
}

impl Boot {
    fn count(&self, name: &str) -> f64 {
        // Thousands.
        #[expect(clippy::cast_precision_loss)]
        self.counters.get(name).map_or(f64::NAN, |count| *count as f64)
    }
}

/// CPU time of a process so far; what the guest took is not part of the user time here.
struct CpuTime {
    user: Duration,
    system: Duration,
    guest: Duration,
}

impl CpuTime {
    fn of(pid: u32) -> Outcome<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, after_name) = stat.rsplit_once(')').ok_or("no name in stat")?;
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        // Numbers as in proc_pid_stat(5), in ticks of 10 ms; the state, which is field 3, is first.
        let ticks = |field: usize| -> Outcome<Duration> {
            let ticks: u64 = fields.get(field - 3).ok_or("too few fields in stat")?.parse()?;
            Ok(Duration::from_millis(ticks * 10))
        };
        let guest = ticks(43)?;
        Ok(Self { user: ticks(14)?.saturating_sub(guest), system: ticks(15)?, guest })
    }
}

/// Field 4 of proc_pid_stat(5).
fn parent(pid: u32) -> Outcome<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, after_name) = stat.rsplit_once(')').ok_or("no name in stat")?;
    Ok(after_name.split_whitespace().nth(1).ok_or("too few fields in stat")?.parse()?)
}

/// Memory of a process beside its guest's, in KiB.
struct Memory {
    /// Each page divided by the number of processes that have it.
    share: f64,
    /// Pages that no other process has.
    own: f64,
}

impl Memory {
    /// From proc_pid_smaps(5): the guest's memory is the mapping of its size.
    fn of(pid: u32) -> Outcome<Self> {
        let maps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
        let (mut share, mut own, mut is_guest) = (0.0, 0.0, false);
        for line in maps.lines() {
            let Some((name, rest)) = line.split_once(':') else { continue };
            let Some(kib) = rest.trim().strip_suffix(" kB") else { continue };
            let kib: f64 = kib.parse()?;
            match name {
                "Size" => is_guest = kib >= f64::from(MEMORY_MB) * 1024.0,
                "Pss" if !is_guest => share += kib,
                "Private_Clean" | "Private_Dirty" if !is_guest => own += kib,
                _ => {}
            }
        }
        Ok(Self { share, own })
    }
}

/// KVM's counters of one machine, from debugfs.
fn counters(pid: u32) -> BTreeMap<String, u64> {
    let entries = |dir: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let name = |path: &PathBuf| Some(path.file_name()?.to_string_lossy().into_owned());
    let machine = format!("{pid}-");
    let of_machine = |path: &PathBuf| name(path).is_some_and(|name| name.starts_with(&machine));
    let machines = entries(Path::new("/sys/kernel/debug/kvm")).into_iter().filter(of_machine);
    let count = |path: &PathBuf| fs::read_to_string(path).ok()?.trim().parse().ok();
    machines
        .flat_map(|machine| entries(&machine))
        .filter_map(|path| Some((name(&path)?, count(&path)?)))
        .collect()
}
