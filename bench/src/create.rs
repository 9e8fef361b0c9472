//! From nothing to a guest's first instruction.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use vmm::memory::Backing;
use vmm::virtio::Device;
use vmm::virtio::balloon::Balloon;
use vmm::virtio::block::{self, Block};
use vmm::virtio::rng::{DEFAULT_RATE, Rng};
use vmm::virtio::vsock::{self, Vsock};
use vmm::{Config, Vm, payload};

use crate::{Outcome, head, ms, row};

const RUNS: usize = 1000;
pub(crate) const MEMORY: u64 = 128 << 20;

type Devices = Vec<(&'static str, Box<dyn Device>)>;

/// A machine whose guest resets it in its second instruction, in this process.
pub(crate) fn run() -> Outcome {
    let kvm = match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(kvm) => kvm,
        Err(error) => {
            println!("not run: create, because /dev/kvm cannot be opened: {error}\n");
            return Ok(());
        }
    };
    head("A machine's first instruction, KVM, payload guest");
    for (what, with_devices) in [("no device", false), ("disk, vsock, rng, balloon", true)] {
        let (mut made, mut ran, mut freed) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..RUNS {
            let [making, running, freeing] = once(&kvm, with_devices)?;
            made.push(ms(making));
            ran.push(ms(running));
            freed.push(ms(freeing));
        }
        row(&format!("made ({what})"), &mut made, "ms");
        row(&format!("to its first instruction ({what})"), &mut ran, "ms");
        row(&format!("given up, off the caller's path ({what})"), &mut freed, "ms");
    }
    println!();
    Ok(())
}

/// Until it is made, until its guest has run, and what the caller waits for its end.
fn once(kvm: &File, with_devices: bool) -> Result<[Duration; 3], Box<dyn std::error::Error>> {
    let boot = payload::brief()?;
    let kvm = kvm.try_clone()?.into();
    // What the machine is made of is there before it is asked for.
    let disk = File::from(memfd_create("disk", MemfdFlags::CLOEXEC)?);
    disk.set_len(1 << 20)?;
    let (_ours, theirs) = UnixStream::pair()?;
    let begun = Instant::now();
    let devices = if with_devices { devices(disk, theirs)? } else { Devices::new() };
    let vm = Vm::new(Config {
        kvm,
        cpus: 1,
        memory_bytes: MEMORY,
        backing: Backing::of_host(),
        boot,
        devices,
        console: None,
        confine: Arc::new(|_| {}),
    })?;
    let made = begun.elapsed();
    vm.resume();
    poll(&mut [PollFd::new(vm.ended(), PollFlags::IN)], None)?;
    let ran = begun.elapsed();
    let reaper = vm.retire();
    let freed = begun.elapsed() - ran;
    // The next one is asked for later, and not in the middle of this one's end.
    if let Some(reaper) = reaper {
        reaper.join().map_err(|_| "a reaper panicked")?;
    }
    Ok([made, ran, freed])
}

pub(crate) fn devices(
    disk: File,
    carrier: UnixStream,
) -> Result<Devices, Box<dyn std::error::Error>> {
    let disk = block::Config { files: vec![disk], read_only: false, id: "root".into(), rate: None };
    let mut ports = vsock::Config::new(3);
    ports.connect = vec![(2222, carrier.into())];
    Ok(vec![
        ("root", Box::new(Block::new(disk)?)),
        ("vsock", Box::new(Vsock::new(ports)?)),
        ("rng", Box::new(Rng::new(DEFAULT_RATE)?)),
        ("balloon", Box::new(Balloon::new()?)),
    ])
}
