//! What the probe found, remembered until the host starts again.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vmm::probe::Outcome;

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Verdict {
    pub(crate) outcome: Outcome,
    pub(crate) jail: jail::Report,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// What the verdict holds for: a start of the host, a KVM module, a version of ours, a user.
    key: String,
    verdict: Verdict,
}

/// A file that holds the verdict.
#[derive(Debug)]
pub(crate) struct Cache {
    path: PathBuf,
}

impl Cache {
    pub(crate) fn new(directory: &Path) -> Self {
        Self { path: directory.join("kvm-verdict.json") }
    }

    /// The verdict, where there is one that holds here and now.
    pub(crate) fn load(&self) -> Option<Verdict> {
        let record: Record = serde_json::from_slice(&fs::read(&self.path).ok()?).ok()?;
        (Some(record.key) == key()).then_some(record.verdict)
    }

    /// Remembers it. Where that fails the next one to ask finds out anew.
    pub(crate) fn store(&self, verdict: &Verdict) {
        let Some(key) = key() else { return };
        let record = Record { key, verdict: verdict.clone() };
        let text = serde_json::to_vec(&record).expect("a record is plain JSON");
        // Another process may be reading: it sees the old one or the new one.
        let scratch = self.path.with_extension(format!("{}", std::process::id()));
        let _ = self.path.parent().map(fs::create_dir_all);
        if fs::write(&scratch, text).and_then(|()| fs::rename(&scratch, &self.path)).is_err() {
            let _ = fs::remove_file(&scratch);
        }
    }
}

fn key() -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let modules: Vec<&str> = ["kvm_intel", "kvm_amd", "kvm_pvm"]
        .into_iter()
        .filter(|module| Path::new("/sys/module").join(module).exists())
        .collect();
    let user = rustix::process::getuid().as_raw();
    Some(format!("{} {} {user} {}", boot.trim(), modules.join("+"), env!("CARGO_PKG_VERSION")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict() -> Verdict {
        Verdict { outcome: Outcome::Ran { microseconds: 90 }, jail: jail::Report::default() }
    }

    #[test]
    fn what_was_stored_is_known_again() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::new(&directory.path().join("sandforge"));
        assert_eq!(cache.load(), None);
        cache.store(&verdict());
        assert_eq!(cache.load(), Some(verdict()));
    }

    #[test]
    fn a_verdict_of_another_start_of_the_host_does_not_hold() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::new(directory.path());
        cache.store(&verdict());
        let text = fs::read_to_string(&cache.path).unwrap();
        fs::write(&cache.path, text.replacen("\"key\":\"", "\"key\":\"x", 1)).unwrap();
        assert_eq!(cache.load(), None);
    }

    #[test]
    fn a_damaged_file_is_no_verdict() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::new(directory.path());
        fs::write(&cache.path, "{").unwrap();
        assert_eq!(cache.load(), None);
    }
}
