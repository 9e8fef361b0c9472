//! The disks of a machine, and what its agent is told of them.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsRawFd as _;

use wire::disk::{SECTOR, TABLE_BYTES, Table, TableError, Verity};

/// A file system that is a layer of the guest's root.
#[derive(Debug)]
pub struct Layer {
    /// Opened for reading and not for writing, which an engine may refuse.
    pub file: File,
    /// The kernel's name of its file system.
    pub file_system: &'static str,
    /// What the guest's kernel checks its content against.
    pub verity: Option<Verity>,
}

/// A disk, as an engine attaches it.
#[derive(Debug)]
pub struct Disk {
    /// What the guest knows it by: its serial number, at most 20 of `[a-z0-9]`.
    pub name: String,
    /// What it holds, one file after another, each rounded down to sectors. A disk that is written
    /// to is one file.
    pub files: Vec<File>,
    /// Whether the guest may write to it.
    pub writable: bool,
}

/// Disks, the root's first.
#[derive(Debug)]
pub struct Disks {
    disks: Vec<Disk>,
    words: Vec<String>,
    volumes: usize,
}

/// The disks cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// There are too many layers, or none.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A layer's size is not known, or there is no memory for the table.
    #[error("cannot put the root's layers together: {0}")]
    Io(#[from] io::Error),
}

impl Disks {
    /// The guest's root: layers, the lowest first. One alone is a disk; several become one disk
    /// that begins with a [`Table`].
    ///
    /// # Errors
    /// `DiskError`.
    pub fn new(mut layers: Vec<Layer>) -> Result<Self, DiskError> {
        let (files, file_system) = match layers.pop() {
            Some(Layer { file, file_system, verity: None }) if layers.is_empty() => {
                (vec![file], file_system)
            }
            last => {
                layers.extend(last);
                (joined(layers)?, "layers")
            }
        };
        let root = Disk { name: "root".into(), files, writable: false };
        let words = vec!["sandforge.root=root".into(), format!("sandforge.rootfs={file_system}")];
        Ok(Self { disks: vec![root], words, volumes: 0 })
    }

    /// None: for what goes on without a machine.
    pub fn none() -> Self {
        Self { disks: Vec::new(), words: Vec::new(), volumes: 0 }
    }

    /// What the guest changes goes to this file, which holds an ext4, and not into its memory.
    #[must_use]
    pub fn with_scratch(mut self, file: File) -> Self {
        self.disks.push(Disk { name: "scratch".into(), files: vec![file], writable: true });
        self.words.push("sandforge.scratch=scratch".into());
        self
    }

    /// A further disk, and the name that the guest knows it by.
    pub fn add_volume(&mut self, file: File, writable: bool) -> String {
        let name = format!("volume{}", self.volumes);
        self.volumes += 1;
        self.disks.push(Disk { name: name.clone(), files: vec![file], writable });
        name
    }

    /// Other handles of the same files.
    ///
    /// # Errors
    /// Where there are no descriptors to be had.
    pub fn try_clone(&self) -> io::Result<Self> {
        let disks = self.disks.iter().map(|disk| {
            let files = disk.files.iter().map(File::try_clone).collect::<io::Result<_>>()?;
            Ok(Disk { name: disk.name.clone(), files, writable: disk.writable })
        });
        let disks = disks.collect::<io::Result<_>>()?;
        Ok(Self { disks, words: self.words.clone(), volumes: self.volumes })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.disks.len()
    }

    /// The disks in their order, and words for the guest's kernel parameters.
    pub fn take(self) -> (Vec<Disk>, Vec<String>) {
        (self.disks, self.words)
    }
}

/// A table, and what it is of.
fn joined(layers: Vec<Layer>) -> Result<Vec<File>, DiskError> {
    let mut start = TABLE_BYTES as u64 / SECTOR;
    let mut table = Table { layers: Vec::with_capacity(layers.len()) };
    let mut files = Vec::with_capacity(layers.len() + 1);
    for Layer { mut file, file_system, verity } in layers {
        let sectors = file.seek(SeekFrom::End(0))? / SECTOR;
        let file_system = file_system.to_owned();
        table.layers.push(wire::disk::Layer { start, sectors, file_system, verity });
        start += sectors;
        files.push(file);
    }
    files.insert(0, in_memory("layers", &table.encode()?)?);
    Ok(files)
}

/// A file in memory, opened for reading, as who attaches it expects of what is only read.
///
/// # Errors
/// That there is no memory, or no `/proc`.
pub fn in_memory(name: &str, content: &[u8]) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?);
    file.write_all(content)?;
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn layer(bytes: u64) -> Layer {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        Layer { file, file_system: "erofs", verity: None }
    }

    #[test]
    fn a_root_of_one_layer_is_that_file() {
        let (disks, words) = Disks::new(vec![layer(8192)]).unwrap().take();
        assert_eq!(words, ["sandforge.root=root", "sandforge.rootfs=erofs"]);
        assert_eq!((disks.len(), disks[0].files.len(), disks[0].writable), (1, 1, false));
    }

    #[test]
    fn several_layers_are_one_disk_behind_a_table_of_them() {
        let (mut disks, words) = Disks::new(vec![layer(8192), layer(4096 + 100)]).unwrap().take();
        assert_eq!(words[1], "sandforge.rootfs=layers");
        let files = &mut disks[0].files;
        assert_eq!(files.len(), 3);
        let mut bytes = Vec::new();
        files[0].seek(SeekFrom::Start(0)).unwrap();
        files[0].read_to_end(&mut bytes).unwrap();
        let places: Vec<_> = Table::decode(&bytes)
            .unwrap()
            .layers
            .iter()
            .map(|layer| (layer.start, layer.sectors))
            .collect();
        assert_eq!(places, [(128, 16), (144, 8)]);
    }

    #[test]
    fn a_layer_that_is_checked_is_told_in_a_table_even_alone() {
        let (root, salt) = ("00".repeat(32), String::new());
        let verity = Some(Verity { data_blocks: 1, tree: 1, root, salt });
        let (disks, words) = Disks::new(vec![Layer { verity, ..layer(8192) }]).unwrap().take();
        assert_eq!((disks[0].files.len(), words[1].as_str()), (2, "sandforge.rootfs=layers"));
    }

    #[test]
    fn there_is_no_root_without_a_layer() {
        assert!(matches!(Disks::new(Vec::new()), Err(DiskError::Table(_))));
    }

    #[test]
    fn scratch_and_volumes_follow_the_root() {
        let file = || tempfile::tempfile().unwrap();
        let mut disks = Disks::new(vec![layer(4096)]).unwrap().with_scratch(file());
        assert_eq!(disks.add_volume(file(), true), "volume0");
        assert_eq!(disks.add_volume(file(), false), "volume1");
        let (disks, words) = disks.take();
        let names: Vec<_> = disks.iter().map(|disk| (disk.name.as_str(), disk.writable)).collect();
        let expected = [("root", false), ("scratch", true), ("volume0", true), ("volume1", false)];
        assert_eq!(names, expected);
        assert_eq!(words.last().unwrap(), "sandforge.scratch=scratch");
    }
}
