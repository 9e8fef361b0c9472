//! What a machine's root is made of: file systems on top of each other, and what the image says
//! about what runs in it.

use std::collections::BTreeMap;
use std::fs::File;

use serde::{Deserialize, Serialize};

use crate::store::RootFs;

/// An image that is ready to be attached.
#[derive(Debug)]
pub struct RootImage {
    /// What the root is stacked of, the bottom first; never empty. A file system that was not made
    /// of an image in layers is the only one.
    pub layers: Vec<Layer>,
    /// What the image says about what runs in it; of a root that says nothing, the default.
    pub config: ImageConfig,
    /// SHA-256 of an image of the store, that of its manifest where it has layers; a file of the
    /// user's is not digested at each start.
    pub digest: Option<String>,
    /// Its name in the store, the path given, or the canonical reference.
    pub name: String,
    /// Length of all layers in bytes.
    pub size: u64,
}

/// One file system of a root.
#[derive(Debug)]
pub struct Layer {
    /// Open for reading. Whoever gets it needs no path, so no one can put another file there.
    pub file: File,
    /// What is in it.
    pub fs: RootFs,
    /// What it was made of: the digest of the uncompressed layer (`diff_id`), or of the image
    /// itself where that is one of the store without layers.
    pub digest: Option<String>,
    /// Length in bytes, the hash tree included.
    pub size: u64,
    /// The hash tree over it, where it has one.
    pub verity: Option<Verity>,
}

/// A hash tree of dm-verity in the same file as its data: format 1, SHA-256, blocks of 4096 bytes,
/// without a superblock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verity {
    /// Where the tree starts, in bytes; a multiple of 4096, and the length of the data.
    pub tree: u64,
    /// The hash that stands for all of the data.
    #[serde(with = "crate::digest::serde_hex_array")]
    pub root: [u8; 32],
    /// What is hashed before each block; may be empty.
    #[serde(with = "crate::digest::serde_hex")]
    pub salt: Vec<u8>,
    /// How many blocks the tree is over, from the start of the file.
    pub data_blocks: u64,
}

/// What an image says about the commands that run in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Variables, in the image's order, one value for each name.
    pub env: Vec<(String, String)>,
    /// `NAME`, `UID`, or either with a group after a colon.
    pub user: Option<String>,
    /// An absolute path.
    pub working_dir: Option<String>,
    /// What every command is an argument of, where it is not empty.
    pub entrypoint: Vec<String>,
    /// What runs when nothing is said.
    pub cmd: Vec<String>,
    /// What its maker noted about it.
    pub labels: BTreeMap<String, String>,
}

impl RootImage {
    /// Of one file system.
    pub(crate) fn of_one(
        file: File,
        fs: RootFs,
        digest: Option<String>,
        name: String,
        size: u64,
    ) -> Self {
        let layer = Layer { file, fs, digest: digest.clone(), size, verity: None };
        Self { layers: vec![layer], config: ImageConfig::default(), digest, name, size }
    }
}
