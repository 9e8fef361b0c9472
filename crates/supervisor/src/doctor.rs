//! Everything that a sandbox needs, looked at.

use std::path::Path;

use engine::{Capabilities, Isolation, Preflight, SandboxBackend, Unavailable};
use image::boot::Kernel;
use serde::Serialize;

/// What is there and what is missing, with what to do.
#[derive(Debug, Serialize)]
pub struct Doctor {
    /// Version of this program.
    pub version: &'static str,
    /// The engines, strongest first.
    pub engines: Vec<EngineReport>,
    /// The guest's kernel.
    pub kernel: Finding,
    /// The default image.
    pub image: Finding,
    /// Free space where images are kept, in MiB.
    pub disk_free_mb: Option<u64>,
    /// Memory that new machines could have, in MiB.
    pub memory_available_mb: Option<u64>,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// What to do, most important first.
    pub advice: Vec<String>,
}

/// One engine.
#[derive(Debug, Serialize)]
pub struct EngineReport {
    /// Its name.
    pub name: &'static str,
    /// The tier that its machines have.
    pub isolation: Isolation,
    /// What it can do.
    pub capabilities: Capabilities,
    /// What it found when it tried.
    #[serde(flatten)]
    pub verdict: Verdict,
}

impl EngineReport {
    /// Whether it can run guests here.
    pub fn is_usable(&self) -> bool {
        matches!(self.verdict, Verdict::Usable(_))
    }
}

/// An engine's verdict on this machine.
#[derive(Debug, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// It can run guests here.
    Usable(Preflight),
    /// It cannot.
    Unusable(Unavailable),
}

/// Whether something is there.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// It can be used, or made at first use.
    pub ok: bool,
    /// In words.
    pub detail: String,
}

impl Doctor {
    /// Whether a sandbox could be made now.
    pub fn usable(&self) -> bool {
        let engine = self
            .engines
            .iter()
            .any(|engine| engine.isolation >= Isolation::Emulated && engine.is_usable());
        engine && self.kernel.ok && self.image.ok
    }
}

/// Least free disk for the default image and what its making needs, in MiB.
const DISK_MB: u64 = 1024;

pub(crate) async fn examine(store: &image::Store, engines: &[Box<dyn SandboxBackend>]) -> Doctor {
    let mut advice = Vec::new();
    let mut reports = Vec::new();
    for engine in engines {
        let verdict = match engine.preflight().await {
            Ok(preflight) => Verdict::Usable(preflight),
            Err(reason) => {
                // Whoever has a stronger engine does not need this one.
                if !reports.iter().any(EngineReport::is_usable) {
                    advice.push(reason.remedy.clone());
                }
                Verdict::Unusable(reason)
            }
        };
        reports.push(EngineReport {
            name: engine.name(),
            isolation: engine.isolation(),
            capabilities: engine.capabilities(),
            verdict,
        });
    }
    let kernel = match image::boot::assets(store, &Kernel::Ours, &mut ()) {
        Ok(assets) => Finding {
            ok: true,
            detail: format!(
                "{} (SHA-256 verified)",
                assets.kernel_sha256.map_or("your own", |digest| &digest[..12])
            ),
        },
        Err(error) => {
            advice.push(error.to_string());
            Finding { ok: false, detail: error.to_string() }
        }
    };
    let disk_free_mb = free_mb(&std::env::var_os("XDG_CACHE_HOME").map_or_else(
        || std::env::var_os("HOME").map_or_else(|| "/".into(), std::path::PathBuf::from),
        std::path::PathBuf::from,
    ));
    let image = default_image(store, disk_free_mb, &mut advice);
    let memory_available_mb = available_mb();
    if memory_available_mb.is_some_and(|mb| mb < 512) {
        advice.push("free some memory: a sandbox takes 1024 MB by default (--memory)".into());
    }
    Doctor {
        version: env!("CARGO_PKG_VERSION"),
        engines: reports,
        kernel,
        image,
        disk_free_mb,
        memory_available_mb,
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        advice,
    }
}

fn default_image(
    store: &image::Store,
    disk_free_mb: Option<u64>,
    advice: &mut Vec<String>,
) -> Finding {
    match store.list() {
        Ok(images) => {
            if let Some(found) = images.iter().find(|i| i.manifest.name == "base" && !i.stale) {
                let size = found.manifest.size >> 20;
                return Finding { ok: true, detail: format!("base, {size} MB") };
            }
            let can_build = match image::preflight() {
                Ok(()) => true,
                Err(error) => {
                    advice.push(format!("{error}; or bring a root with --image PATH"));
                    false
                }
            };
            let has_room = disk_free_mb.is_none_or(|mb| mb >= DISK_MB);
            if !has_room {
                advice.push(format!("free some disk: the default image needs {DISK_MB} MB"));
            }
            let detail = "base is not built yet; the first run builds it, or `sandforge image \
                          build base` does";
            Finding { ok: can_build && has_room, detail: detail.into() }
        }
        Err(error) => Finding { ok: false, detail: error.to_string() },
    }
}

fn free_mb(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|ancestor| ancestor.exists())?;
    let stat = rustix::fs::statvfs(existing).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize) >> 20)
}

fn available_mb() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? >> 10)
}
