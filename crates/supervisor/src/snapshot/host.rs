//! What of this host a saved machine depends on.

use std::fs;
use std::path::Path;

use engine::Isolation;
use serde::{Deserialize, Serialize};

/// Longest model of a processor, and longest list of its flags.
const LONGEST: usize = 16 << 10;

/// A processor, as guests see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpu {
    /// Its model, in its maker's words.
    pub model: String,
    /// What it can do, in the kernel's words and in its order.
    pub flags: String,
}

impl Cpu {
    /// The one that guests of this tier see here.
    pub(crate) fn of(isolation: Isolation) -> Self {
        match isolation {
            // The emulator's, on every host; which emulator it is stands beside it.
            Isolation::Emulated => Self { model: "emulated".into(), flags: String::new() },
            Isolation::Vm | Isolation::Process => {
                let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
                Self::told(&text)
            }
        }
    }

    fn told(text: &str) -> Self {
        let field = |name: &str| {
            let line =
                text.lines().find(|line| line.split(':').next().map(str::trim) == Some(name));
            let value = line.and_then(|line| line.split_once(':')).map_or("", |(_, value)| value);
            value.trim().chars().take(LONGEST).collect()
        };
        Self { model: field("model name"), flags: field("flags") }
    }
}

/// Which of the kernel's ways to KVM there is here, where the tier depends on it.
pub(crate) fn kvm(isolation: Isolation) -> Option<String> {
    if isolation != Isolation::Vm {
        return None;
    }
    let known = ["kvm_intel", "kvm_amd", "kvm_pvm"];
    let there = known.into_iter().find(|name| Path::new("/sys/module").join(name).is_dir());
    Some(there.unwrap_or("kvm").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_told_by_its_model_and_its_flags() {
        let text = "processor\t: 0\nmodel\t\t: 6\nmodel name\t: A CPU: fast\nflags\t\t: fpu vme\n\n\
                    processor\t: 1\nmodel name\t: another\n";
        let cpu = Cpu::told(text);
        assert_eq!((cpu.model.as_str(), cpu.flags.as_str()), ("A CPU: fast", "fpu vme"));
    }
}
