//! Machines come and go without a trace. Alone in its process, as it counts what is in there.

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use vmm::memory::Backing;
use vmm::payload::{self, Script};
use vmm::{Config, End, Vm};

const CYCLES: usize = 2000;

#[test]
fn two_thousand_machines_leave_nothing_behind() {
    let kvm = match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(kvm) => kvm,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return eprintln!("not run: no /dev/kvm");
        }
        Err(error) => panic!("/dev/kvm is there and cannot be opened: {error}"),
    };
    // What a process allocates once is no leak.
    (0..20).for_each(|_| cycle(&kvm));
    let before = Traces::now();
    (0..CYCLES).for_each(|_| cycle(&kvm));
    let after = Traces::now();
    assert_eq!(after.descriptors, before.descriptors);
    assert_eq!(after.threads, before.threads);
    let grown = after.resident_kib.saturating_sub(before.resident_kib);
    assert!(grown < 1024, "{grown} KiB more are resident: {before:?}, {after:?}");
}

fn cycle(kvm: &File) {
    let vm = Vm::new(Config {
        kvm: kvm.try_clone().unwrap().into(),
        cpus: 1,
        memory_bytes: 8 << 20,
        backing: Backing::default(),
        boot: payload::boot().unwrap(),
        devices: Vec::new(),
        console: None,
        confine: Arc::new(|_| {}),
    })
    .unwrap();
    Script::default().install(vm.memory());
    vm.resume();
    poll(&mut [PollFd::new(vm.ended(), PollFlags::IN)], None).unwrap();
    assert_eq!(vm.end(), Some(End::Reset));
}

#[derive(Debug)]
struct Traces {
    descriptors: usize,
    threads: usize,
    resident_kib: usize,
}

impl Traces {
    fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").parse().unwrap()
        };
        Self {
            descriptors: std::fs::read_dir("/proc/self/fd").unwrap().count(),
            threads: field("Threads:"),
            resident_kib: field("VmRSS:"),
        }
    }
}
