//! Disks that outlive sandboxes, as a sandbox is given them.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use engine::Disks;
use wire::op::{FreezeVolumes, MountVolume};
use wire::text::Text;

pub use wire::op::VolumeAccess;

use crate::{Error, Guest};

/// Most volumes of a sandbox: with its root, its scratch disk and its carrier, that is all that a
/// machine has room for.
pub const MAX_VOLUMES: usize = 5;
/// How long a guest may take to bring to its disks what was written to its memory.
const FREEZE_PATIENCE: Duration = Duration::from_secs(20);

/// A disk that outlives the sandbox.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Holds an ext4. Opened for writing where the sandbox writes, or else for reading alone. A lock
    /// that is held by this open file is held for as long as the machine lives.
    pub file: Arc<File>,
    /// Where it is mounted.
    pub guest_path: String,
    /// What tasks may do with it.
    pub access: VolumeAccess,
}

/// Adds the disks of volumes, and says how each is mounted.
pub(crate) fn attach(volumes: &[Volume], disks: &mut Disks) -> Result<Vec<MountVolume>, Error> {
    if volumes.len() > MAX_VOLUMES {
        return Err(Error::Request(format!(
            "{} volumes and caches were asked for: a machine has room for {MAX_VOLUMES}",
            volumes.len()
        )));
    }
    let attached = volumes.iter().map(|volume| {
        let Volume { file, guest_path, access } = volume;
        let path = Text::new(guest_path.as_str())
            .map_err(|error| Error::Request(format!("{guest_path:?}: {error}")))?;
        let file = file.try_clone();
        let file = file.map_err(|error| Error::Internal(format!("open a volume: {error}")))?;
        let disk = disks.add_volume(file, *access == VolumeAccess::Write);
        Ok(MountVolume { disk, path, access: *access })
    });
    attached.collect()
}

/// Has what was written to volumes brought to their disks, if the guest does that soon. Where it does
/// not, the next machine's kernel reads their journals.
pub(crate) async fn freeze(guest: &Guest) {
    let _ = tokio::time::timeout(FREEZE_PATIENCE, guest.ask(&FreezeVolumes {})).await;
}
