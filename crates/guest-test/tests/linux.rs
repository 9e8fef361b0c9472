//! The monitor's devices under Linux's own drivers: a kernel boots on the host's KVM, and its
//! first process tries what it finds.
//!
//! Where KVM runs no Linux, nothing here can run, and says so; `lab/run` has a KVM that does.

use std::fs::File;
use std::io::{BufRead as _, BufReader, PipeReader, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::sync::Arc;

use guest_test::INIT;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _};
use vmm::boot::Boot;
use vmm::memory::{self, Backing};
use vmm::probe::{self, Outcome};
use vmm::virtio::Device;
use vmm::virtio::balloon::Balloon;
use vmm::virtio::block::{self, Block};
use vmm::virtio::rng::{DEFAULT_RATE, Rng};
use vmm::{Config, End, Restore, State, Vm};

const BLOCK: usize = 4096;
const MIB: u64 = 1 << 20;

type Devices = Vec<(&'static str, Box<dyn Device>)>;

/// Runs `test` with a KVM that runs Linux.
fn with_kvm(test: impl FnOnce(File)) {
    let open = || File::options().read(true).write(true).open("/dev/kvm");
    let Ok(kvm) = open() else { return eprintln!("not run: no /dev/kvm to be opened") };
    match probe::run(&kvm.into()) {
        Ok(Outcome::Ran { .. }) => test(open().unwrap()),
        other => eprintln!("not run: KVM runs no Linux here: {other:?}"),
    }
}

/// A guest, with what its console has said.
struct Guest {
    vm: Vm,
    console: BufReader<PipeReader>,
    said: Vec<String>,
}

impl Guest {
    fn boot(kvm: File, cpus: u8, kernel: File, devices: Devices, trials: &str) -> Self {
        let (reader, writer) = std::io::pipe().unwrap();
        let vm = Vm::new(Config {
            kvm: kvm.into(),
            cpus,
            memory_bytes: 256 * MIB,
            backing: Backing::default(),
            boot: Boot {
                kernel,
                initramfs: Some(initramfs()),
                command_line: format!("console=ttyS0 reboot=k panic=-1 trials={trials}"),
            },
            devices,
            console: Some(writer.into()),
            confine: Arc::new(|_| {}),
        })
        .unwrap();
        vm.resume();
        Self { vm, console: BufReader::new(reader), said: Vec::new() }
    }

    /// A guest that goes on from where another stood still.
    fn restore(kvm: File, state: &State, memory: &File, devices: Devices) -> Self {
        let (reader, writer) = std::io::pipe().unwrap();
        let vm = Vm::restore(Restore {
            kvm: kvm.into(),
            state,
            memory: memory.try_clone().unwrap(),
            devices,
            console: Some(writer.into()),
            confine: Arc::new(|_| {}),
        })
        .unwrap();
        vm.resume();
        Self { vm, console: BufReader::new(reader), said: Vec::new() }
    }

    /// Reads on to a line that holds `text`.
    fn hear(&mut self, text: &str) -> String {
        loop {
            let mut line = String::new();
            self.console.read_line(&mut line).unwrap();
            let line = line.trim_end().to_owned();
            self.said.push(line.clone());
            assert!(!line.contains("Kernel panic"), "{:#?}", self.said);
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Waits for its end; every trial must have gone well.
    fn finish(&mut self) {
        self.hear("goodbye");
        let failed: Vec<_> = self.said.iter().filter(|line| line.contains("FAILED")).collect();
        assert!(failed.is_empty(), "{failed:#?}");
        poll(&mut [PollFd::new(self.vm.ended(), PollFlags::IN)], None).unwrap();
        assert_eq!(self.vm.end(), Some(End::Reset));
    }

    fn went_well(&self, trial: &str) -> bool {
        let line = format!("trial {trial}: ok");
        self.said.iter().any(|said| said.contains(&line))
    }

    /// Guest memory that the host holds, in bytes.
    fn held(&self) -> u64 {
        let file = self.vm.memory().iter().find_map(|region| region.file_offset()).unwrap();
        file.file().metadata().unwrap().blocks() * 512
    }
}

fn our_kernel() -> File {
    let store = image::Store::open_default().unwrap();
    image::boot::assets(&store, &image::boot::Kernel::Ours, &mut ()).unwrap().kernel
}

/// A cpio archive (newc, Documentation/driver-api/early-userspace/buffer-format.rst) of `/init`
/// and of the console that the kernel opens for it.
fn initramfs() -> File {
    let mut archive = Vec::new();
    let mut member = |name: &str, mode: u32, device: (u32, u32), content: &[u8]| {
        let size = |length: usize| u32::try_from(length).unwrap();
        let (major, minor) = device;
        let name_size = size(name.len() + 1);
        let fields = [0, mode, 0, 0, 1, 0, size(content.len()), 0, 0, major, minor, name_size, 0];
        archive.extend(b"070701");
        fields.iter().for_each(|field| write!(archive, "{field:08x}").unwrap());
        archive.extend(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    };
    member("dev", 0o040_755, (0, 0), &[]);
    member("dev/console", 0o020_600, (5, 1), &[]);
    member("init", 0o100_755, (0, 0), INIT);
    member("TRAILER!!!", 0, (0, 0), &[]);
    memory_file(&archive)
}

fn memory_file(content: &[u8]) -> File {
    let mut file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
    file.write_all(content).unwrap();
    file
}

/// Block number N is full of the byte N.
fn root() -> Box<dyn Device> {
    let content: Vec<u8> = (0..=255_u8).flat_map(|number| [number; BLOCK]).collect();
    disk(memory_file(&content), true, "root-disk")
}

fn disk(file: File, read_only: bool, id: &str) -> Box<dyn Device> {
    let config = block::Config { files: vec![file], read_only, id: id.into(), rate: None };
    Box::new(Block::new(config).unwrap())
}

#[test]
fn disks_are_read_written_discarded_and_zeroed() {
    with_kvm(|kvm| {
        let scratch = tempfile::tempfile().unwrap();
        scratch.set_len(16 * MIB).unwrap();
        let writable = disk(scratch.try_clone().unwrap(), false, "scratch");
        let devices: Devices = vec![("root", root()), ("scratch", writable)];
        let mut guest = Guest::boot(kvm, 1, our_kernel(), devices, "disks");
        guest.finish();
        assert!(guest.went_well("scratch_keeps_what_is_written"));
        let byte = |block: usize| {
            let mut byte = [0];
            scratch.read_exact_at(&mut byte, (block * BLOCK) as u64).unwrap();
            byte[0]
        };
        // What was written is in the host's file; what was discarded or zeroed is not.
        assert_eq!([0, 31, 48, 80, 255].map(byte), [255, 224, 207, 175, 0]);
        assert_eq!([32, 47, 64, 79].map(byte), [0; 4]);
    });
}

#[test]
fn two_cpus_keep_time_and_draw_random_numbers() {
    with_kvm(|kvm| {
        let rng: Devices = vec![("rng", Box::new(Rng::new(DEFAULT_RATE).unwrap()))];
        let mut guest = Guest::boot(kvm, 2, our_kernel(), rng, "rng,time");
        assert!(guest.hear("hello").contains("2 CPUs"));
        guest.finish();
        assert!(guest.went_well("random_bytes_differ") && guest.went_well("time_passes"));
    });
}

#[test]
fn a_kernel_that_was_saved_goes_on_in_others() {
    /// The numbers of whole lines.
    fn turns<'l>(lines: impl IntoIterator<Item = &'l str>) -> Vec<u32> {
        let number = |line: &str| line.strip_prefix("turn ")?.trim_end().parse().ok();
        lines.into_iter().filter_map(number).collect()
    }
    with_kvm(|kvm| {
        let devices = || -> Devices {
            let rng = Rng::new(DEFAULT_RATE).unwrap();
            vec![
                ("root", root()),
                ("rng", Box::new(rng)),
                ("balloon", Box::new(Balloon::new().unwrap())),
            ]
        };
        let again = || kvm.try_clone().unwrap();
        let mut guest = Guest::boot(again(), 2, our_kernel(), devices(), "work");
        guest.hear("turn 5");
        guest.vm.pause();
        let memory = memory_file(&[]);
        let written = memory::save(guest.vm.memory(), &memory).unwrap();
        let state = guest.vm.save().unwrap().encode();
        let Guest { vm, mut console, .. } = guest;
        drop(vm);
        let mut rest = String::new();
        console.read_to_string(&mut rest).unwrap();
        let last = turns(rest.lines()).last().copied().unwrap_or(5);
        println!("{written} bytes of memory, {} of state, after turn {last}", state.len());
        let state = State::decode(&state).unwrap();
        for _ in 0..2 {
            let mut fork = Guest::restore(again(), &state, &memory, devices());
            fork.finish();
            assert!(fork.went_well("work_goes_on"));
            let turns = turns(fork.said.iter().map(String::as_str));
            // It may have been in the middle of a line.
            assert!((last + 1..=last + 2).contains(&turns[0]), "{turns:?} after {last}");
            assert!(turns.iter().copied().eq(turns[0]..=40), "{turns:?}");
        }
    });
}

#[test]
fn memory_goes_back_to_the_host() {
    with_kvm(|kvm| {
        let balloon = Balloon::new().unwrap();
        let (target, metrics) = (balloon.target(), balloon.metrics());
        let devices: Devices = vec![("balloon", Box::new(balloon))];
        let mut guest = Guest::boot(kvm, 1, our_kernel(), devices, "balloon,reporting");
        guest.hear("ready for the balloon");
        target.set_mib(32);
        guest.hear("memory is in use");
        let used = guest.held();
        guest.finish();
        assert!(guest.went_well("memory_goes_to_the_balloon"));
        let freed = used.saturating_sub(guest.held());
        assert!(freed > 16 * MIB, "{freed} bytes came back: {:?}", metrics.snapshot());
    });
}

#[test]
fn a_distribution_s_kernel_boots_with_an_initramfs() {
    with_kvm(|kvm| {
        let Some(kernel) = stock_kernel() else {
            return eprintln!("not run: there is no /boot/vmlinuz-*-cloud-amd64");
        };
        let kernel = File::open(kernel).unwrap();
        let mut guest = Guest::boot(kvm, 1, kernel, Vec::new(), "time");
        assert!(guest.hear("hello").contains("1 CPUs"));
        guest.finish();
    });
}

fn stock_kernel() -> Option<PathBuf> {
    let entries = std::fs::read_dir("/boot").ok()?.flatten();
    entries.map(|entry| entry.path()).find(|path| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        name.is_some_and(|name| name.starts_with("vmlinuz-") && name.contains("cloud"))
    })
}
