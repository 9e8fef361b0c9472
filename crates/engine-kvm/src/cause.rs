//! Why KVM does not run guests here, in words, and what would change that.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use engine::Unavailable;
use vmm::probe::{INSTRUCTIONS, Outcome};

use crate::DEVICE;

/// What can be seen of the host.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    /// The processor shows VT-x or AMD-V.
    has_extension: bool,
    /// This is a virtual machine itself.
    is_guest: bool,
    /// The processor's maker is AMD.
    is_amd: bool,
    /// PVM runs KVM's guests without hardware virtualization.
    has_pvm: bool,
    /// The group that the device belongs to.
    group: Option<String>,
}

impl Facts {
    pub(crate) fn gather() -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let flags = info.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
        let flags: Vec<&str> = flags.split_ascii_whitespace().collect();
        Self {
            has_extension: flags.contains(&"vmx") || flags.contains(&"svm"),
            is_guest: flags.contains(&"hypervisor"),
            is_amd: info.contains("AuthenticAMD"),
            has_pvm: Path::new("/sys/module/kvm_pvm").exists(),
            group: group_of(Path::new(DEVICE)),
        }
    }

    /// The device cannot be opened.
    pub(crate) fn explain_device(&self, error: &io::Error) -> Unavailable {
        match error.kind() {
            io::ErrorKind::NotFound => self.explain_absence(),
            io::ErrorKind::PermissionDenied => self.explain_permission(),
            _ => Unavailable {
                reason: format!("{DEVICE} cannot be opened: {error}"),
                remedy: "see what the kernel says of KVM: dmesg | grep -i kvm".into(),
            },
        }
    }

    fn explain_absence(&self) -> Unavailable {
        let module = if self.is_amd { "kvm_amd" } else { "kvm_intel" };
        if self.has_extension {
            return Unavailable {
                reason: format!("there is no {DEVICE}, although the processor has virtualization"),
                remedy: format!(
                    "load the module (sudo modprobe {module}); in a container, start it with \
                     --device {DEVICE}"
                ),
            };
        }
        self.explain_processor()
    }

    fn explain_permission(&self) -> Unavailable {
        let remedy = match &self.group {
            Some(group) => {
                format!("join its group (sudo usermod -aG {group} \"$USER\") and log in again")
            }
            None => format!("ask whoever runs this host for read and write access to {DEVICE}"),
        };
        Unavailable { reason: format!("{DEVICE} is not open to this user"), remedy }
    }

    /// The processor shows no virtualization.
    fn explain_processor(&self) -> Unavailable {
        if self.is_guest {
            return Unavailable {
                reason: "this is a virtual machine, and its host does not pass hardware \
                         virtualization on"
                    .into(),
                remedy: "switch nested virtualization on where this machine is hosted, or use a \
                         host of its own hardware"
                    .into(),
            };
        }
        let name = if self.is_amd { "SVM (AMD-V)" } else { "VT-x" };
        Unavailable {
            reason: "the processor's hardware virtualization is off, or it has none".into(),
            remedy: format!("switch {name} on in the settings of the BIOS or UEFI"),
        }
    }

    /// Why `outcome` means that guests do not run; nothing where they do.
    pub(crate) fn explain_outcome(&self, outcome: &Outcome) -> Option<Unavailable> {
        let what = match outcome {
            Outcome::Ran { .. } => return None,
            Outcome::Slow { at } => {
                format!("a guest of {INSTRUCTIONS} instructions was too slow, at {}", at.as_str())
            }
            Outcome::Stuck { at, reason } => {
                format!("a guest could not go on at {}: {reason}", at.as_str())
            }
        };
        let unavailable = if self.has_pvm || !self.has_extension && self.is_guest {
            let kind = if self.has_pvm { "PVM" } else { "KVM without hardware below it" };
            Unavailable {
                reason: format!(
                    "{DEVICE} is there, but it is {kind}, in which an ordinary Linux kernel does \
                     not run ({what})"
                ),
                remedy: "use a host with hardware virtualization (VT-x or AMD-V, or nested \
                         virtualization switched on)"
                    .into(),
            }
        } else if self.has_extension {
            Unavailable {
                reason: format!("{DEVICE} does not run a guest as it should: {what}"),
                remedy: "see what the kernel says of KVM (dmesg | grep -i kvm), and whether \
                         another hypervisor is running"
                    .into(),
            }
        } else {
            let Unavailable { reason, remedy } = self.explain_processor();
            Unavailable { reason: format!("{reason} ({what})"), remedy }
        };
        Some(unavailable)
    }
}

/// The name of a file's group, or its number.
fn group_of(path: &Path) -> Option<String> {
    let id = fs::metadata(path).ok()?.gid().to_string();
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let name = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == id).then(|| name.to_owned())
    });
    // A device of root's group is for root alone.
    Some(name.unwrap_or(id)).filter(|name| name != "root")
}

#[cfg(test)]
mod tests {
    use vmm::probe::Step;

    use super::*;

    const SLOW: Outcome = Outcome::Slow { at: Step::Loop };

    fn absent() -> io::Error {
        io::ErrorKind::NotFound.into()
    }

    #[test]
    fn a_guest_that_runs_needs_no_explanation() {
        assert_eq!(Facts::default().explain_outcome(&Outcome::Ran { microseconds: 90 }), None);
    }

    #[test]
    fn a_module_that_is_not_loaded_is_named() {
        let facts = Facts { has_extension: true, is_amd: true, ..Facts::default() };
        let told = facts.explain_device(&absent()).to_string();
        assert!(told.contains("modprobe kvm_amd") && told.contains("--device"), "{told}");
    }

    #[test]
    fn without_permission_the_group_is_named() {
        let facts = Facts { group: Some("kvm".into()), ..Facts::default() };
        let told = facts.explain_device(&io::ErrorKind::PermissionDenied.into()).to_string();
        assert!(told.contains("usermod -aG kvm"), "{told}");
    }

    #[test]
    fn a_virtual_machine_needs_nested_virtualization() {
        let facts = Facts { is_guest: true, ..Facts::default() };
        let told = facts.explain_device(&absent()).to_string();
        assert!(told.contains("nested virtualization"), "{told}");
    }

    #[test]
    fn a_processor_that_shows_nothing_has_it_off_in_the_bios() {
        let told = Facts::default().explain_device(&absent()).to_string();
        assert!(told.contains("VT-x") && told.contains("BIOS"), "{told}");
        let amd = Facts { is_amd: true, ..Facts::default() };
        assert!(amd.explain_device(&absent()).to_string().contains("AMD-V"));
    }

    #[test]
    fn pvm_is_called_by_its_name() {
        let facts = Facts { has_pvm: true, is_guest: true, ..Facts::default() };
        let told = facts.explain_outcome(&SLOW).unwrap().to_string();
        assert!(told.contains("PVM") && told.contains("200000 instructions"), "{told}");
    }

    #[test]
    fn hardware_that_fails_all_the_same_is_for_the_kernel_s_log() {
        let facts = Facts { has_extension: true, ..Facts::default() };
        let stuck = Outcome::Stuck { at: Step::Breakpoint, reason: "emulation failure".into() };
        let told = facts.explain_outcome(&stuck).unwrap().to_string();
        assert!(told.contains("INT3") && told.contains("dmesg"), "{told}");
    }
}
