//! A host's directory, and a guest's copy of it.

use std::fs;
use std::path::{Path, PathBuf};

use archive::{Existing, Extract, Reader, Root};
use workspace::{Manifest, PackOptions, pack};

/// A host directory and the guest's copy of it.
pub(crate) struct Pair {
    pub(crate) place: tempfile::TempDir,
    pub(crate) manifest: Manifest,
}

impl Pair {
    /// Builds the host's directory, sends it, and unpacks it as the guest does.
    pub(crate) fn new(build: impl FnOnce(&Path)) -> Self {
        Self::with(&PackOptions { manifest: true, ..PackOptions::default() }, build)
    }

    pub(crate) fn with(options: &PackOptions, build: impl FnOnce(&Path)) -> Self {
        let place = tempfile::tempdir().unwrap();
        let (host, guest) = (place.path().join("host"), place.path().join("guest"));
        fs::create_dir(&host).unwrap();
        fs::create_dir(&guest).unwrap();
        build(&host);
        let mut tar = Vec::new();
        let packed = pack(&host, options, &mut tar, &mut |_| {}).unwrap();
        let root = Root::open(&guest).unwrap();
        let mut reader = Reader::new(&tar[..]);
        let mut extract = Extract::new(&root, Existing::Replace);
        while let Some(member) = reader.next_member().unwrap() {
            extract.add(&member, &mut reader.content()).unwrap();
        }
        extract.finish().unwrap();
        Self { place, manifest: packed.manifest }
    }

    pub(crate) fn host(&self, name: &str) -> PathBuf {
        self.place.path().join("host").join(name)
    }

    pub(crate) fn guest(&self, name: &str) -> PathBuf {
        self.place.path().join("guest").join(name)
    }

    /// All that the guest has, as it sends it.
    pub(crate) fn sent(&self) -> Vec<u8> {
        let mut tar = Vec::new();
        pack(&self.guest(""), &PackOptions::default(), &mut tar, &mut |_| {}).unwrap();
        tar
    }
}

pub(crate) fn write(path: PathBuf, content: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

pub(crate) fn read(path: PathBuf) -> String {
    fs::read_to_string(path).unwrap()
}
