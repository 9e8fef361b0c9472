//! QEMU's command line and the guest kernel's.

use serde::{Deserialize, Serialize};
use wire::disk::SECTOR;

/// What the launcher needs to know of a machine. Descriptors are told by position; see
/// [`Descriptors`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpus: u32,
    pub(crate) memory_mb: u32,
    pub(crate) disks: Vec<Disk>,
    /// What the agent needs to know, of the disks and otherwise.
    pub(crate) words: Vec<String>,
    pub(crate) tsc_khz: Option<u64>,
    pub(crate) console: bool,
    /// The carrier is a listening socket.
    pub(crate) listens: bool,
    /// It goes on from a state that comes over its control socket, and boots nothing.
    pub(crate) goes_on: bool,
}

/// A disk, whose files come with the order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Disk {
    pub(crate) name: String,
    /// Of each file.
    pub(crate) sectors: Vec<u64>,
    pub(crate) writable: bool,
}

/// The descriptors' numbers in the process that becomes QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Descriptors {
    pub(crate) memory: i32,
    pub(crate) control: i32,
    pub(crate) carrier: i32,
    /// Kernel and initramfs of a machine that boots.
    pub(crate) boot: Option<[i32; 2]>,
    /// The files of each disk, in order.
    pub(crate) disks: Vec<Content>,
}

/// What a disk of QEMU's is opened from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// A file that is the disk.
    File(i32),
    /// A description (see [`Disk::description`]), and the files that it names.
    Described(i32, Vec<i32>),
}

impl Disk {
    /// QEMU joins files to one disk by a description of VMware's: of each file how many sectors it
    /// has and what it is called (`RW` is the only kind of access that QEMU looks at; the disk is
    /// read-only all the same). `first` is the number of the first file's set of descriptors.
    pub(crate) fn description(&self, first: usize) -> String {
        let mut text = String::from(
            "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
             createType=\"monolithicFlat\"\n",
        );
        for (set, sectors) in (first..).zip(&self.sectors) {
            text += &format!("RW {sectors} FLAT \"/dev/fdset/{set}\" 0\n");
        }
        text + "ddb.adapterType = \"ide\"\n"
    }

    /// How many sets of descriptors it takes.
    pub(crate) fn sets(&self) -> usize {
        match self.sectors.len() {
            1 => 1,
            files => 1 + files,
        }
    }
}

/// Translated code that is kept, in MiB. QEMU would take 1 GiB of address space otherwise.
const TRANSLATION_MB: u32 = 256;

/// Most threads that QEMU has for its disks.
const DISK_THREADS: u32 = 64;
/// Address space that each of these reserves, with one arena of memory for all.
const STACK_MB: u32 = 10;

impl Machine {
    /// Bound of QEMU's address space in bytes: guest memory, translated code, and what its
    /// libraries and threads reserve, those that read and write disks among them.
    pub(crate) fn address_space(&self) -> u64 {
        let others = 1024 + 64 * self.cpus + DISK_THREADS * STACK_MB;
        u64::from(self.memory_mb + TRANSLATION_MB + others) << 20
    }

    /// Bytes of the largest disk that is written to.
    pub(crate) fn largest_written(&self) -> u64 {
        let written = self.disks.iter().filter(|disk| disk.writable);
        written.map(|disk| disk.sectors.iter().sum::<u64>() * SECTOR).max().unwrap_or(0)
    }

    /// The whole command line but the program.
    pub(crate) fn arguments(&self, at: &Descriptors) -> Vec<String> {
        let listen = if self.listens { ",server=on,wait=off" } else { "" };
        let serial = if self.console { "on" } else { "off" };
        let mut arguments: Vec<String> = [
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
            // The emulator runs the string instructions that these announce byte by byte.
            "-cpu",
            "max,-erms,-fsrm",
        ]
        .map(String::from)
        .into();
        let mut option = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        option(
            "-machine",
            format!(
                "microvm,acpi=off,pit=on,pic=on,rtc=on,usb=off,graphics=off,isa-serial={serial},\
                 memory-backend=memory"
            ),
        );
        option("-accel", format!("tcg,tb-size={TRANSLATION_MB}"));
        option("-smp", self.cpus.to_string());
        option("-m", format!("{}M", self.memory_mb));
        option(
            "-object",
            format!(
                "memory-backend-file,id=memory,size={}M,mem-path=/proc/self/fd/{},share=on",
                self.memory_mb, at.memory
            ),
        );
        option("-chardev", format!("socket,id=control,fd={}", at.control));
        option("-mon", "chardev=control,mode=control".into());
        if let Some([kernel, initramfs]) = at.boot {
            option("-kernel", format!("/proc/self/fd/{kernel}"));
            option("-initrd", format!("/proc/self/fd/{initramfs}"));
            option("-append", self.kernel_command_line());
        } else {
            option("-incoming", "defer".into());
        }
        let mut set = 1;
        for (disk, content) in self.disks.iter().zip(&at.disks) {
            let Disk { name, .. } = disk;
            let (first, node) = match content {
                Content::File(file) => (*file, name.clone()),
                Content::Described(description, files) => {
                    for (set, file) in (set + 1..).zip(files) {
                        option("-add-fd", format!("fd={file},set={set}"));
                    }
                    (*description, format!("{name}-files"))
                }
            };
            // A full disk of the host is an error to who writes, and does not stop the machine.
            let on_error = if disk.writable { ",werror=report,rerror=report" } else { "" };
            let read_only = if disk.writable { "off,discard=unmap" } else { "on" };
            option("-add-fd", format!("fd={first},set={set}"));
            option(
                "-blockdev",
                format!(
                    "driver=file,node-name={node},filename=/dev/fdset/{set},\
                     read-only={read_only},locking=off"
                ),
            );
            if node != *name {
                option(
                    "-blockdev",
                    format!("driver=vmdk,node-name={name},file={node},read-only=on"),
                );
            }
            option("-device", format!("virtio-blk-device,drive={name},serial={name}{on_error}"));
            set += disk.sets();
        }
        option("-chardev", format!("socket,id=carrier,fd={}{listen}", at.carrier));
        option("-device", "virtio-serial-device,max_ports=2".into());
        option("-device", "virtserialport,chardev=carrier,name=sandforge".into());
        if self.console {
            option("-chardev", "stdio,id=console,signal=off".into());
            option("-serial", "chardev:console".into());
        }
        arguments
    }

    fn kernel_command_line(&self) -> String {
        let mut words: Vec<String> = Vec::new();
        let mut word = |text: &str| words.push(text.to_owned());
        if self.console {
            word("console=ttyS0");
        } else {
            word("quiet");
            word("8250.nr_uarts=0");
        }
        // A triple fault resets at once, and -no-reboot makes a reset the end.
        word("reboot=t");
        word("panic=-1");
        // The emulator has RDRAND, so the generator is ready before the agent asks.
        word("random.trust_cpu=on");
        // Rewriting every lock prefix of the kernel costs more than the prefixes do.
        word("noreplace-smp");
        // The emulator keeps its translation of a program only while the program lies where it
        // lay: without this, a fork and exec takes 46 ms instead of 6.
        word("norandmaps");
        // What the kernel would measure or test with waits of 10 to 100 ms each is known here:
        // the emulated APIC timer counts at 1 GHz, and its interrupts arrive.
        word("lapic_timer_hz=1000000000");
        word("no_timer_check");
        if let Some(khz) = self.tsc_khz {
            word(&format!("tsc_early_khz={khz}"));
            word("tsc=reliable");
            // The delay loop is timed by the same counter, in ticks of 10 ms.
            word(&format!("lpj={}", khz * 10));
        }
        // The driver would come with a device; loopback is all there is.
        word("dummy.numdummies=0");
        words.extend(self.words.iter().cloned());
        words.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            cpus: 2,
            memory_mb: 512,
            disks: vec![root()],
            words: vec!["sandforge.id=sb".into()],
            tsc_khz: Some(2_000_000),
            console: false,
            listens: false,
            goes_on: false,
        }
    }

    fn root() -> Disk {
        Disk { name: "root".into(), sectors: vec![8], writable: false }
    }

    fn at(disks: Vec<Content>) -> Descriptors {
        Descriptors { memory: 3, control: 4, carrier: 5, boot: Some([11, 12]), disks }
    }

    #[test]
    fn there_is_no_device_but_the_disk_and_the_port() {
        let arguments = machine().arguments(&at(vec![Content::File(6)]));
        let devices: Vec<_> = arguments
            .windows(2)
            .filter(|pair| pair[0] == "-device")
            .map(|pair| pair[1].split(',').next().unwrap())
            .collect();
        assert_eq!(devices, ["virtio-blk-device", "virtio-serial-device", "virtserialport"]);
        assert!(arguments.contains(&"-nodefaults".into()));
        assert!(!arguments.iter().any(|argument| argument.contains("net")));
    }

    #[test]
    fn a_machine_that_goes_on_boots_nothing() {
        let at = Descriptors { boot: None, ..at(vec![Content::File(6)]) };
        let arguments = Machine { goes_on: true, ..machine() }.arguments(&at);
        assert!(!arguments.iter().any(|argument| argument == "-kernel" || argument == "-append"));
        let after = arguments.iter().skip_while(|argument| *argument != "-incoming").nth(1);
        assert_eq!(after.map(String::as_str), Some("defer"));
    }

    #[test]
    fn memory_is_the_file_that_came_with_the_order() {
        let arguments = machine().arguments(&at(vec![Content::File(6)]));
        let memory = "memory-backend-file,id=memory,size=512M,mem-path=/proc/self/fd/3,share=on";
        assert!(arguments.iter().any(|argument| argument == memory));
    }

    #[test]
    fn the_root_is_read_only() {
        let arguments = machine().arguments(&at(vec![Content::File(6)]));
        assert!(
            arguments.iter().any(|a| a.contains("node-name=root") && a.contains("read-only=on"))
        );
    }

    #[test]
    fn what_is_written_to_is_a_disk_of_its_own_behind_the_joined_root() {
        let root = Disk { sectors: vec![128, 8, 16], ..root() };
        let scratch = Disk { name: "scratch".into(), sectors: vec![2048], writable: true };
        assert!(root.description(2).contains("RW 16 FLAT \"/dev/fdset/4\" 0\n"));
        let machine = Machine { disks: vec![root, scratch], ..machine() };
        let content = vec![Content::Described(6, vec![7, 8, 9]), Content::File(10)];
        let arguments = machine.arguments(&at(content));
        let of = |name: &str| {
            let pairs = arguments.windows(2).filter(|pair| pair[0] == name);
            pairs.map(|pair| pair[1].as_str()).collect::<Vec<_>>()
        };
        assert_eq!(
            of("-add-fd"),
            ["fd=7,set=2", "fd=8,set=3", "fd=9,set=4", "fd=6,set=1", "fd=10,set=5"]
        );
        assert_eq!(
            of("-blockdev"),
            [
                "driver=file,node-name=root-files,filename=/dev/fdset/1,read-only=on,locking=off",
                "driver=vmdk,node-name=root,file=root-files,read-only=on",
                "driver=file,node-name=scratch,filename=/dev/fdset/5,read-only=off,\
                 discard=unmap,locking=off",
            ]
        );
    }

    #[test]
    fn the_guest_is_told_its_clock_and_its_sandbox() {
        let line = machine().kernel_command_line();
        assert!(line.contains("tsc_early_khz=2000000") && line.contains("sandforge.id=sb"));
    }
}
