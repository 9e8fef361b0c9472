//! What the first disk of a machine holds where its root is more than one image: a table, then one
//! image after another.
//!
//! A machine has room for few disks, and an image in layers may have more than a hundred of these.
//! The table is made by the host for each machine, in memory: what it says of a layer does not
//! come from where the layer is kept.

use serde::{Deserialize, Serialize};

/// Bytes of the table, of which the layers follow.
pub const TABLE_BYTES: usize = 64 << 10;
/// Most layers of a root.
pub const MAX_LAYERS: usize = 128;
/// Bytes of a block of a hash tree and of what it covers.
pub const VERITY_BLOCK: u64 = 4096;
/// Bytes of the unit that disks are addressed in.
pub const SECTOR: u64 = 512;

const MAGIC: &[u8; 16] = b"sandforge-layers";

/// The layers of a root, the lowest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// At least one, at most [`MAX_LAYERS`].
    pub layers: Vec<Layer>,
}

/// One file system of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Where it begins, in sectors of the disk.
    pub start: u64,
    /// How many sectors it has.
    pub sectors: u64,
    /// The kernel's name of it.
    pub file_system: String,
    /// What its content is checked against, block by block, as it is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verity: Option<Verity>,
}

/// A hash tree of dm-verity, version 1 with SHA-256, in the same layer as what it covers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verity {
    /// Blocks of [`VERITY_BLOCK`] that it covers, from the layer's first byte.
    pub data_blocks: u64,
    /// Block of the layer that the tree begins at.
    pub tree: u64,
    /// What it all comes to, in hexadecimal.
    pub root: String,
    /// What is put in front of each block, in hexadecimal; may be empty.
    pub salt: String,
}

/// A table cannot be written or read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TableError {
    /// None, or more than [`MAX_LAYERS`], or names longer than the table has room for.
    #[error(
        "a root has 1 to {MAX_LAYERS} layers, and a table of {TABLE_BYTES} bytes; these are {0}"
    )]
    Size(usize),
    /// Not what [`Table::encode`] writes.
    #[error("the disk does not begin with a table of layers: {0}")]
    Malformed(String),
}

impl Table {
    /// The disk's first [`TABLE_BYTES`].
    ///
    /// # Errors
    /// `Size`.
    pub fn encode(&self) -> Result<Vec<u8>, TableError> {
        let size = TableError::Size(self.layers.len());
        if self.layers.is_empty() || self.layers.len() > MAX_LAYERS {
            return Err(size);
        }
        let text = serde_json::to_vec(self).map_err(|error| malformed(&error))?;
        let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
        let mut bytes = [MAGIC.as_slice(), &length.to_be_bytes(), &text].concat();
        if bytes.len() > TABLE_BYTES {
            return Err(size);
        }
        bytes.resize(TABLE_BYTES, 0);
        Ok(bytes)
    }

    /// Reads them back.
    ///
    /// # Errors
    /// `Malformed`, `Size`.
    pub fn decode(bytes: &[u8]) -> Result<Self, TableError> {
        let text = bytes
            .strip_prefix(MAGIC)
            .and_then(|rest| rest.split_first_chunk::<4>())
            .and_then(|(length, rest)| {
                rest.get(..usize::try_from(u32::from_be_bytes(*length)).ok()?)
            })
            .ok_or_else(|| malformed(&"it has another beginning, or is cut short"))?;
        let table: Self = serde_json::from_slice(text).map_err(|error| malformed(&error))?;
        match table.layers.len() {
            1..=MAX_LAYERS => Ok(table),
            count => Err(TableError::Size(count)),
        }
    }
}

fn malformed(why: &dyn ToString) -> TableError {
    TableError::Malformed(why.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer() -> Layer {
        let (root, salt) = ("ab".repeat(32), "cd".repeat(32));
        let verity = Some(Verity { data_blocks: u64::MAX, tree: u64::MAX, root, salt });
        Layer { start: u64::MAX, sectors: u64::MAX, file_system: "erofs".into(), verity }
    }

    #[test]
    fn the_largest_table_is_read_as_it_was_written() {
        let table = Table { layers: vec![layer(); MAX_LAYERS] };
        let bytes = table.encode().unwrap();
        assert_eq!(bytes.len(), TABLE_BYTES);
        assert_eq!(Table::decode(&bytes), Ok(table));
    }

    #[test]
    fn a_root_has_layers_and_not_too_many() {
        for count in [0, MAX_LAYERS + 1] {
            let table = Table { layers: vec![layer(); count] };
            assert_eq!(table.encode(), Err(TableError::Size(count)));
        }
        let mut long = layer();
        long.file_system = "x".repeat(TABLE_BYTES);
        assert_eq!(Table { layers: vec![long] }.encode(), Err(TableError::Size(1)));
    }

    #[test]
    fn what_is_no_table_is_refused() {
        let whole = Table { layers: vec![layer()] }.encode().unwrap();
        let mut longer = whole.clone();
        longer[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
        let none = [MAGIC.as_slice(), &13_u32.to_be_bytes(), br#"{"layers":[]}"#].concat();
        for bytes in [b"".as_slice(), &whole[1..], &whole[..100], &longer, &none] {
            assert!(Table::decode(bytes).is_err());
        }
    }
}
