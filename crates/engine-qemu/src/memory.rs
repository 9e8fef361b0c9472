//! The guest's memory: a file without a name, which the emulator opens by its descriptor.
//!
//! The emulator opens it for writing, so what it gets is its machine's alone: a machine that goes on
//! from a snapshot gets a copy, whatever the snapshot is kept in.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{MemfdFlags, SealFlags, SeekFrom, fcntl_add_seals, ftruncate, memfd_create, seek};
use rustix::io::Errno;

/// What is copied at once; holes are found in these.
const PIECE: usize = 64 << 10;

/// Memory of `bytes`, all zeros. Pages are taken from the host when they are first used.
pub(crate) fn create(bytes: u64) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("guest", flags)?;
    ftruncate(&file, bytes)?;
    // Nobody who gets hold of the descriptor can pull a page away under the guest.
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?;
    Ok(File::from(file))
}

/// Copies what is in a snapshot to memory that is all zeros.
///
/// # Errors
/// Where the snapshot is not as long, or cannot be read.
pub(crate) fn load(snapshot: &File, memory: &File) -> io::Result<()> {
    let (kept, bytes) = (snapshot.metadata()?.len(), memory.metadata()?.len());
    if kept != bytes {
        let wrong = format!("the snapshot is of a machine with {kept} bytes of memory");
        return Err(io::Error::other(wrong));
    }
    copy(snapshot, memory, bytes)
}

/// Writes what is in memory to a file, whose content it becomes. Zeros become holes. Nobody writes
/// to the memory meanwhile.
pub(crate) fn save(memory: &File, into: &File) -> io::Result<()> {
    let bytes = memory.metadata()?.len();
    into.set_len(0)?;
    into.set_len(bytes)?;
    copy(memory, into, bytes)
}

fn copy(from: &File, to: &File, bytes: u64) -> io::Result<()> {
    static ZEROS: [u8; PIECE] = [0; PIECE];
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while let Some(next) = next_data(from, at)?.filter(|next| *next < bytes) {
        at = next - next % PIECE as u64;
        let length = PIECE.min(usize::try_from(bytes - at).unwrap_or(PIECE));
        let piece = &mut piece[..length];
        from.read_exact_at(piece, at)?;
        if *piece != ZEROS[..length] {
            to.write_all_at(piece, at)?;
        }
        at += length as u64;
    }
    Ok(())
}

/// Where the next bytes are that are no hole.
fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(next) => Ok(Some(next)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    const BYTES: u64 = 4 << 20;

    #[test]
    fn what_was_saved_is_loaded_and_holes_stay_holes() {
        let memory = create(BYTES).unwrap();
        memory.write_all_at(b"early", 0).unwrap();
        memory.write_all_at(b"late", BYTES - 4).unwrap();
        memory.write_all_at(&[0; 4096], 1 << 20).unwrap();
        let kept = tempfile::tempfile().unwrap();
        kept.write_all_at(b"of before", 2 << 20).unwrap();
        save(&memory, &kept).unwrap();
        assert!(kept.metadata().unwrap().blocks() * 512 <= 2 * PIECE as u64);

        let other = create(BYTES).unwrap();
        load(&kept, &other).unwrap();
        let read = |at, length| {
            let mut bytes = vec![1; length];
            other.read_exact_at(&mut bytes, at).unwrap();
            bytes
        };
        assert_eq!((read(0, 6), read(BYTES - 4, 4)), (b"early\0".to_vec(), b"late".to_vec()));
        assert_eq!(read(2 << 20, 9), [0; 9]);
        other.write_all_at(b"its own", 0).unwrap();
        let mut bytes = [0; 5];
        kept.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"early");
    }

    #[test]
    fn memory_of_another_size_is_refused() {
        let kept = tempfile::tempfile().unwrap();
        kept.set_len(BYTES / 2).unwrap();
        let error = load(&kept, &create(BYTES).unwrap()).unwrap_err().to_string();
        assert!(error.contains("2097152 bytes"), "{error}");
    }

    #[test]
    fn memory_keeps_its_size() {
        let memory = create(BYTES).unwrap();
        assert!(memory.set_len(0).is_err() && memory.set_len(2 * BYTES).is_err());
    }
}
