//! QEMU's command line and the guest kernel's.

use serde::{Deserialize, Serialize};

/// What the launcher needs to know of a machine. Descriptors are told by position; see
/// [`Descriptors`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpus: u32,
    pub(crate) memory_mb: u32,
    pub(crate) root_file_system: String,
    pub(crate) agent_arguments: Vec<String>,
    pub(crate) tsc_khz: Option<u64>,
    pub(crate) console: bool,
    /// The carrier is a listening socket.
    pub(crate) listens: bool,
}

/// The descriptors' numbers in the process that becomes QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Descriptors {
    pub(crate) kernel: i32,
    pub(crate) initramfs: i32,
    pub(crate) root: i32,
    pub(crate) carrier: i32,
}

/// Translated code that is kept, in MiB. QEMU would take 1 GiB of address space otherwise.
const TRANSLATION_MB: u32 = 256;

impl Machine {
    /// Bound of QEMU's address space in bytes: guest memory, translated code, and what its
    /// libraries and threads reserve.
    pub(crate) fn address_space(&self) -> u64 {
        u64::from(self.memory_mb + TRANSLATION_MB + 1024 + 64 * self.cpus) << 20
    }

    /// The whole command line but the program.
    pub(crate) fn arguments(&self, at: Descriptors) -> Vec<String> {
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
                "microvm,acpi=off,pit=on,pic=on,rtc=on,usb=off,graphics=off,isa-serial={serial}"
            ),
        );
        option("-accel", format!("tcg,tb-size={TRANSLATION_MB}"));
        option("-smp", self.cpus.to_string());
        option("-m", format!("{}M", self.memory_mb));
        option("-kernel", format!("/proc/self/fd/{}", at.kernel));
        option("-initrd", format!("/proc/self/fd/{}", at.initramfs));
        option("-append", self.kernel_command_line());
        option("-add-fd", format!("fd={},set=1", at.root));
        option(
            "-blockdev",
            "driver=file,node-name=root,filename=/dev/fdset/1,read-only=on,locking=off".into(),
        );
        option("-device", "virtio-blk-device,drive=root".into());
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
        word("sandforge.root=vda");
        word(&format!("sandforge.rootfs={}", self.root_file_system));
        words.extend(self.agent_arguments.iter().cloned());
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
            root_file_system: "erofs".into(),
            agent_arguments: vec!["sandforge.id=sb".into()],
            tsc_khz: Some(2_000_000),
            console: false,
            listens: false,
        }
    }

    const AT: Descriptors = Descriptors { kernel: 3, initramfs: 4, root: 5, carrier: 6 };

    #[test]
    fn there_is_no_device_but_the_disk_and_the_port() {
        let arguments = machine().arguments(AT);
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
    fn the_root_is_read_only() {
        let arguments = machine().arguments(AT);
        assert!(
            arguments.iter().any(|a| a.contains("node-name=root") && a.contains("read-only=on"))
        );
    }

    #[test]
    fn the_guest_is_told_its_clock_and_its_sandbox() {
        let line = machine().kernel_command_line();
        assert!(line.contains("tsc_early_khz=2000000") && line.contains("sandforge.id=sb"));
    }
}
