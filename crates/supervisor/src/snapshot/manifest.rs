//! What is written down beside a saved machine, and looked at before it goes on.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use engine::Isolation;
use image::RootImage;
use serde::{Deserialize, Serialize};

use super::file::Sum;
use super::host::{self, Cpu};
use crate::Error;

/// How it is written. What says another number is refused.
const FORMAT: u32 = 1;
/// Where it is.
pub(super) const MANIFEST: &str = "manifest.json";
/// Longest manifest.
const MOST_BYTES: u64 = 1 << 20;

/// A saved machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: u32,
    /// The id that its agent answers to.
    pub sandbox: String,
    /// The engine that saved it.
    pub engine: String,
    /// Its tier.
    pub isolation: Isolation,
    /// The engine's monitor, with its version.
    pub monitor: String,
    /// The processor that it saw.
    pub cpu: Cpu,
    /// The host's kind of KVM, where it ran on that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kvm: Option<String>,
    /// What it runs.
    pub origin: Origin,
    /// The name of its root.
    pub image: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Guest memory in MiB.
    pub memory_mb: u32,
    /// Its scratch disk in GiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_gb: Option<u32>,
    /// It has a network, and goes on with one of its own.
    pub network: bool,
    /// When it was saved, in milliseconds since 1970.
    pub created_ms: u64,
    /// What is in each of the files beside this one.
    pub files: BTreeMap<String, Sum>,
    /// What whoever had it saved wants to know again.
    #[serde(default)]
    pub about: serde_json::Value,
}

/// What a machine was booted from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// SHA-256 of the kernel; of one of the user's own it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// SHA-256 of the agent.
    pub agent: String,
    /// The image's digest, where it is one of the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The layers of the root, the bottom first.
    #[serde(default)]
    pub layers: Vec<Layer>,
}

/// A layer of a root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// What it was made of, or when it was last changed where that has no digest.
    pub content: String,
    /// Its length.
    pub bytes: u64,
    /// The root of its hash tree, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verity: Option<String>,
}

impl Origin {
    /// The agent alone, on the host's kernel.
    pub(crate) fn of_host() -> Self {
        Self { agent: image::boot::agent_sha256(), ..Self::default() }
    }

    /// A machine with this root.
    pub(crate) fn of_machine(kernel: Option<&str>, root: &RootImage) -> Self {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let layer = |layer: &image::Layer| Layer {
            content: layer.digest.clone().unwrap_or_else(|| changed(&layer.file)),
            bytes: layer.size,
            verity: layer.verity.as_ref().map(|verity| hex(&verity.root)),
        };
        Self {
            kernel: kernel.map(str::to_owned),
            agent: image::boot::agent_sha256(),
            image: root.digest.clone(),
            layers: root.layers.iter().map(layer).collect(),
        }
    }
}

fn changed(file: &File) -> String {
    use std::os::unix::fs::MetadataExt as _;
    let told = file.metadata().map(|found| format!("{}.{:09}", found.mtime(), found.mtime_nsec()));
    format!("changed {}", told.unwrap_or_default())
}

/// What a machine is saved with.
pub(super) struct Saved<'a> {
    pub(super) info: &'a crate::KeptInfo,
    pub(super) origin: Origin,
    pub(super) monitor: String,
    pub(super) network: bool,
    pub(super) files: BTreeMap<String, Sum>,
    pub(super) about: serde_json::Value,
}

impl Manifest {
    pub(super) fn new(Saved { info, origin, monitor, network, files, about }: Saved<'_>) -> Self {
        Self {
            format: FORMAT,
            sandbox: info.id.clone(),
            engine: info.engine.clone(),
            isolation: info.isolation,
            monitor,
            cpu: Cpu::of(info.isolation),
            kvm: host::kvm(info.isolation),
            origin,
            image: info.image.clone(),
            cpus: info.cpus,
            memory_mb: info.memory_mb,
            disk_gb: info.disk_gb,
            network,
            created_ms: crate::kept::now_ms(),
            files,
            about,
        }
    }

    /// That of the snapshot in this directory.
    ///
    /// # Errors
    /// `Snapshot` where there is none, or one that this program does not understand.
    pub fn read(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(MANIFEST);
        let read = || {
            let mut text = Vec::new();
            File::open(&path)?.take(MOST_BYTES + 1).read_to_end(&mut text)?;
            Ok(text)
        };
        let text = read().map_err(super::failed("read", &path))?;
        Self::parse(&text)
    }

    /// A manifest's text, as hostile as where it comes from.
    ///
    /// # Errors
    /// `Damaged`.
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        let damaged = |why: String| Error::Damaged { file: MANIFEST.into(), why };
        if text.len() as u64 > MOST_BYTES {
            return Err(damaged(format!("it is longer than {MOST_BYTES} bytes")));
        }
        let value: serde_json::Value =
            serde_json::from_slice(text).map_err(|error| damaged(error.to_string()))?;
        match value.get("format").and_then(serde_json::Value::as_u64) {
            Some(format) if format == u64::from(FORMAT) => {}
            Some(format) => return Err(mismatch("format", &format, &FORMAT)),
            None => return Err(damaged("it says no format".into())),
        }
        serde_json::from_value(value).map_err(|error| damaged(error.to_string()))
    }

    /// As it is written.
    pub fn text(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("a manifest is plain JSON")
    }

    /// Whether a machine goes on here: what of this host, or of what is here of its image, is not
    /// as it was.
    pub(super) fn compare(&self, monitor: &str, here: &Origin) -> Result<(), Error> {
        let cpu = Cpu::of(self.isolation);
        let none = || "none".to_owned();
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(none);
        let kvm = host::kvm(self.isolation);
        let fields = [
            ("cpu.model", self.cpu.model.as_str(), cpu.model.as_str()),
            ("cpu.flags", self.cpu.flags.as_str(), cpu.flags.as_str()),
            ("kvm", &or_none(&self.kvm), &or_none(&kvm)),
            ("monitor", self.monitor.as_str(), monitor),
            ("kernel", &or_none(&self.origin.kernel), &or_none(&here.kernel)),
            ("agent", self.origin.agent.as_str(), here.agent.as_str()),
        ];
        if let Some((field, there, here)) = fields.iter().find(|(_, there, here)| there != here) {
            return Err(mismatch(field, there, here));
        }
        if self.origin.layers == here.layers {
            return Ok(());
        }
        let told = |origin: &Origin| match &origin.image {
            Some(digest) => digest.clone(),
            None => origin.layers.last().map_or_else(none, |layer| layer.content.clone()),
        };
        Err(mismatch("image", &told(&self.origin), &told(here)))
    }

    /// Whether the files of a directory are those that the machine was saved with.
    pub(super) fn check_files(&self, directory: &Path) -> Result<(), Error> {
        for (name, sum) in &self.files {
            let path = directory.join(super::checked_name(name)?);
            let found =
                super::open(&path).and_then(|file| match file.metadata()?.len() == sum.bytes {
                    true => Sum::of(&file),
                    false => Err(io::Error::other("it has another length")),
                });
            let damaged = |why: String| Error::Damaged { file: name.clone(), why };
            if found.map_err(|error| damaged(error.to_string()))? != *sum {
                return Err(damaged("its content is not what was saved".into()));
            }
        }
        Ok(())
    }
}

fn mismatch(field: &str, there: &dyn ToString, here: &dyn ToString) -> Error {
    const LONGEST: usize = 200;
    let short = |text: String| match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    };
    Error::Mismatch {
        field: field.to_owned(),
        there: short(there.to_string()),
        here: short(here.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let isolation = Isolation::Emulated;
        Manifest {
            format: FORMAT,
            sandbox: "sb-a".into(),
            engine: "qemu".into(),
            isolation,
            monitor: "QEMU 7.2".into(),
            cpu: Cpu::of(isolation),
            kvm: None,
            origin: Origin { kernel: Some("k".into()), agent: "a".into(), ..Origin::default() },
            image: "base".into(),
            cpus: 1,
            memory_mb: 128,
            disk_gb: None,
            network: false,
            created_ms: 0,
            files: BTreeMap::new(),
            about: serde_json::Value::Null,
        }
    }

    fn differing(change: impl FnOnce(&mut Manifest)) -> String {
        let here = manifest();
        let mut there = manifest();
        change(&mut there);
        match there.compare(&here.monitor, &here.origin) {
            Err(Error::Mismatch { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_was_saved_here_goes_on_here() {
        let here = manifest();
        assert!(manifest().compare(&here.monitor, &here.origin).is_ok());
        assert_eq!(Manifest::parse(&here.text()).unwrap(), here);
    }

    #[test]
    fn what_differs_is_named() {
        assert_eq!(differing(|there| there.cpu.model = "another".into()), "cpu.model");
        assert_eq!(differing(|there| there.cpu.flags = "avx".into()), "cpu.flags");
        assert_eq!(differing(|there| there.kvm = Some("kvm_amd".into())), "kvm");
        assert_eq!(differing(|there| there.monitor = "QEMU 8".into()), "monitor");
        assert_eq!(differing(|there| there.origin.kernel = None), "kernel");
        assert_eq!(differing(|there| there.origin.agent = "b".into()), "agent");
        let layer = Layer { content: "c".into(), bytes: 1, verity: None };
        assert_eq!(differing(|there| there.origin.layers.push(layer)), "image");
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        let mut value: serde_json::Value = serde_json::from_slice(&manifest().text()).unwrap();
        value["format"] = 2.into();
        let text = serde_json::to_vec(&value).unwrap();
        let refused = Manifest::parse(&text);
        assert!(matches!(refused, Err(Error::Mismatch { field, .. }) if field == "format"));
        value["format"] = 1.into();
        value["more"] = 1.into();
        let text = serde_json::to_vec(&value).unwrap();
        for text in [&b"{}"[..], b"", b"[]", b"\xff", &text, &vec![b' '; 2 << 20]] {
            assert!(matches!(Manifest::parse(text), Err(Error::Damaged { .. })));
        }
    }

    #[test]
    fn a_file_that_was_changed_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("memory");
        std::fs::write(&path, "what it was").unwrap();
        let mut manifest = manifest();
        let sum = Sum::of(&File::open(&path).unwrap()).unwrap();
        manifest.files.insert("memory".into(), sum);
        assert!(manifest.check_files(directory.path()).is_ok());
        for other in ["what it is", "what it wos"] {
            std::fs::write(&path, other).unwrap();
            let refused = manifest.check_files(directory.path());
            assert!(matches!(refused, Err(Error::Damaged { file, .. }) if file == "memory"));
        }
    }
}
