//! From a template to a guest that goes on.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes as _, GuestAddress};
use vmm::memory::{self, Backing};
use vmm::payload::{self, FREE, Script};
use vmm::{Config, Restore, State, Vm};

use crate::create::{MEMORY, devices};
use crate::{Outcome, head, ms, row};

const RUNS: usize = 300;
/// Forks that live at once, for what each holds.
const TOGETHER: usize = 50;
/// The guest says here that it is ready, and is told to go on.
const READY: u64 = FREE;
const GO: u64 = FREE + 8;
const PAGE: u64 = 4096;

struct Template {
    kvm: File,
    disk: File,
    state: State,
    memory: File,
}

/// Forks of a machine with all devices, whose guest writes to some pages and resets it.
pub(crate) fn run() -> Outcome {
    let kvm = match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(kvm) => kvm,
        Err(error) => {
            println!("not run: fork, because /dev/kvm cannot be opened: {error}\n");
            return Ok(());
        }
    };
    head("A fork of a template, KVM, payload guest, disk, vsock, rng, balloon");
    for pages in [0, 64, 2000] {
        let template = Template::new(&kvm, pages)?;
        let (mut made, mut ran) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            let [making, running] = template.once()?;
            made.push(ms(making));
            ran.push(ms(running));
        }
        row("made", &mut made, "ms");
        row(&format!("to its end, {pages} pages written"), &mut ran, "ms");
    }
    let template = Template::new(&kvm, 64)?;
    let before = private_kib()?;
    let forks = (0..TOGETHER).map(|_| template.fork()).collect::<Result<Vec<_>, _>>()?;
    for fork in &forks {
        fork.resume();
        poll(&mut [PollFd::new(fork.ended(), PollFlags::IN)], None)?;
    }
    let each = private_kib()?.saturating_sub(before) / u64::try_from(TOGETHER)?;
    println!(
        "  {each} KiB of this process's own for each of {TOGETHER} forks that wrote 64 pages\n"
    );
    Ok(())
}

impl Template {
    fn new(kvm: &File, pages: u64) -> Result<Self, Box<dyn std::error::Error>> {
        let writes = (1..=pages)
            .fold(Script::default().write(READY, 1, 2).watch(GO, 1), |script, page| {
                script.write(FREE + page * PAGE, page, 8)
            });
        let disk = File::from(memfd_create("disk", MemfdFlags::CLOEXEC)?);
        disk.set_len(1 << 20)?;
        let (_ours, theirs) = UnixStream::pair()?;
        let vm = Vm::new(Config {
            kvm: kvm.try_clone()?.into(),
            cpus: 1,
            memory_bytes: MEMORY,
            backing: Backing::of_host(),
            boot: payload::boot()?,
            devices: devices(disk.try_clone()?, theirs)?,
            console: None,
            confine: Arc::new(|_| {}),
        })?;
        writes.install(vm.memory());
        vm.resume();
        while vm.memory().read_obj::<u16>(GuestAddress(READY))? != 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
        vm.pause();
        vm.memory().write_obj(1_u16, GuestAddress(GO))?;
        let memory = File::from(memfd_create("template", MemfdFlags::CLOEXEC)?);
        memory::save(vm.memory(), &memory)?;
        let state = State::decode(&vm.save()?.encode())?;
        Ok(Self { kvm: kvm.try_clone()?, disk, state, memory })
    }

    fn fork(&self) -> Result<Vm, Box<dyn std::error::Error>> {
        let (_ours, theirs) = UnixStream::pair()?;
        Ok(Vm::restore(Restore {
            kvm: self.kvm.try_clone()?.into(),
            state: &self.state,
            memory: self.memory.try_clone()?,
            devices: devices(self.disk.try_clone()?, theirs)?,
            console: None,
            confine: Arc::new(|_| {}),
        })?)
    }

    /// Until it is made, and until its guest has come to its end.
    fn once(&self) -> Result<[Duration; 2], Box<dyn std::error::Error>> {
        let begun = Instant::now();
        let vm = self.fork()?;
        let made = begun.elapsed();
        vm.resume();
        poll(&mut [PollFd::new(vm.ended(), PollFlags::IN)], None)?;
        let ran = begun.elapsed();
        if let Some(reaper) = vm.retire() {
            reaper.join().map_err(|_| "a reaper panicked")?;
        }
        Ok([made, ran])
    }
}

/// Memory of this process that nobody shares (proc(5), smaps_rollup).
fn private_kib() -> Result<u64, Box<dyn std::error::Error>> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup")?;
    let lines = text.lines().filter(|line| line.starts_with("Private_"));
    let kib = lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    Ok(kib.sum())
}
