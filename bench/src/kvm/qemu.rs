//! QEMU as anyone would start it for this guest: `microvm` with its defaults, on KVM.

use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use rustix::io::{FdFlags, fcntl_setfd};

use super::{MEMORY_MB, Order};
use crate::Outcome;

/// The command line of `engine-qemu`, less what is for its emulator alone.
pub(super) fn start(order: &Order, carrier: &UnixStream) -> Outcome<Child> {
    let kernel = inherited(&order.assets.kernel)?;
    let initramfs = inherited(&order.assets.initramfs)?;
    let root = inherited(&order.root.file)?;
    let carrier = inherited(carrier)?;
    let words = format!(
        "quiet 8250.nr_uarts=0 reboot=t panic=-1 random.trust_cpu=on dummy.numdummies=0 \
         sandforge.root=root sandforge.rootfs={} {}",
        order.root.fs.as_str(),
        order.agent.join(" ")
    );
    let child = Command::new("qemu-system-x86_64")
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
        .args(["-machine", "microvm,acpi=off,usb=off,graphics=off,isa-serial=off"])
        .args(["-accel", "kvm", "-cpu", "host", "-smp", "1"])
        .args(["-m", &format!("{MEMORY_MB}M")])
        .args(["-kernel", &format!("/proc/self/fd/{kernel}")])
        .args(["-initrd", &format!("/proc/self/fd/{initramfs}")])
        .args(["-append", &words])
        .args(["-add-fd", &format!("fd={root},set=1")])
        .args([
            "-blockdev",
            "driver=file,node-name=root,filename=/dev/fdset/1,read-only=on,locking=off",
        ])
        .args(["-device", "virtio-blk-device,drive=root,serial=root"])
        .args(["-chardev", &format!("socket,id=carrier,fd={carrier}")])
        .args(["-device", "virtio-serial-device,max_ports=2"])
        .args(["-device", "virtserialport,chardev=carrier,name=sandforge"])
        .stdin(Stdio::null())
        .spawn()?;
    Ok(child)
}

/// The descriptor's number, which it keeps in the child.
fn inherited(descriptor: &impl AsFd) -> Outcome<i32> {
    fcntl_setfd(descriptor, FdFlags::empty())?;
    Ok(descriptor.as_fd().as_raw_fd())
}
