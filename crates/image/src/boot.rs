//! What a guest boots: our kernel, and an initramfs with the agent as `/init`.
//!
//! Both are in this binary. The kernel is unpacked once into the cache, because unpacking takes
//! longer than booting should, and its digest is checked at every start. The initramfs is a header
//! and the agent's bytes; it is written into sealed memory once for each process, which is faster
//! than checking a file would be, and cannot be tampered with.

use crate::cache::CacheError;
use crate::cpio::{self, Member};
use crate::digest;
use crate::progress::{Progress, Stage};
use crate::store::{self, Store};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::fs::{File, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, OnceLock};

static KERNEL: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/vmlinux.zst"));
static KERNEL_SUMS: &str = include_str!(concat!(env!("OUT_DIR"), "/SHA256SUMS"));
static AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agent"));

const VMLINUX: &str = "vmlinux";
/// Shorter than any kernel; long enough to know one by.
const MAGIC_END: u64 = 0x206;

/// Which kernel to boot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Kernel {
    /// The one that comes with Sandforge.
    #[default]
    Ours,
    /// A file of the user's, trusted as it is: `vmlinux` or `bzImage`.
    File(PathBuf),
}

/// What a guest boots, as open files: hand on the descriptors, not paths.
#[derive(Debug)]
pub struct BootAssets {
    /// The kernel, its digest checked on this very descriptor.
    pub kernel: File,
    /// SHA-256 of our kernel; none for a file of the user's.
    pub kernel_sha256: Option<&'static str>,
    /// Uncompressed cpio in sealed memory.
    pub initramfs: File,
    /// Its length in bytes.
    pub initramfs_size: u64,
}

/// Why there is nothing to boot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// The cache directory made trouble.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The unpacked kernel is not the one that was put there.
    #[error(
        "the guest kernel {0} is corrupt: its SHA-256 is {found}, not {expected}; delete it \
         (rm {0}) and it is unpacked again on the next start", .path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The kernel inside this program does not unpack to what it should be.
    #[error("the guest kernel inside this program is damaged ({0}); install Sandforge again")]
    Damaged(String),
    /// The user's kernel could not be opened.
    #[error("cannot open the kernel {}: {source}", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The user's kernel is something else.
    #[error("{} is not a Linux kernel (vmlinux or bzImage)", .path.display())]
    NotAKernel {
        /// The file.
        path: PathBuf,
    },
    /// There is no memory for the initramfs.
    #[error("cannot hold the initramfs in memory: {0}")]
    Initramfs(#[source] io::Error),
}

/// Opens the kernel and makes the initramfs. The first call unpacks the kernel into `store`.
pub fn assets(
    store: &Store,
    kernel: &Kernel,
    progress: &mut dyn Progress,
) -> Result<BootAssets, BootError> {
    let (kernel, kernel_sha256) = match kernel {
        Kernel::Ours => (ours(store, progress)?, Some(*KERNEL_SHA256)),
        Kernel::File(path) => (theirs(path)?, None),
    };
    let (initramfs, initramfs_size) = initramfs().map_err(BootError::Initramfs)?;
    Ok(BootAssets { kernel, kernel_sha256, initramfs, initramfs_size })
}

/// SHA-256 of the agent inside this program.
pub fn agent_sha256() -> String {
    digest::of(AGENT)
}

/// SHA-256 of the kernel inside this program, once unpacked.
pub fn kernel_sha256() -> &'static str {
    *KERNEL_SHA256
}

static KERNEL_SHA256: LazyLock<&'static str> = LazyLock::new(|| {
    let sum = |line: &'static str| line.split_once("  ").filter(|(_, name)| *name == VMLINUX);
    KERNEL_SUMS.lines().find_map(sum).map_or("unknown", |(sum, _)| sum)
});

fn ours(store: &Store, progress: &mut dyn Progress) -> Result<File, BootError> {
    let expected = *KERNEL_SHA256;
    let path = store.boot.path(expected).join(VMLINUX);
    if let Some(kernel) = checked(&path, expected)? {
        return Ok(kernel);
    }
    let lock = store.boot.lock(expected, progress)?;
    if let Some(kernel) = checked(&path, expected)? {
        return Ok(kernel);
    }
    store.boot.publish(&lock, |dir| unpack(&dir.join(VMLINUX), expected, progress))?;
    for other in store.boot.keys()?.into_iter().filter(|key| key != expected) {
        store.boot.discard(&store.boot.lock(&other, progress)?)?;
    }
    let gone = || io::Error::from(io::ErrorKind::NotFound);
    checked(&path, expected)?.ok_or_else(|| CacheError::of("open", &path)(gone()).into())
}

/// The kernel at `path`, if there is one, as the descriptor over which it was digested.
fn checked(path: &Path, expected: &'static str) -> Result<Option<File>, BootError> {
    let mut kernel = match store::open(path) {
        Ok(kernel) => kernel,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(CacheError::of("open", path)(e).into()),
    };
    let (found, _) = digest::of_reader(&kernel, |_| ()).map_err(CacheError::of("read", path))?;
    if found != expected {
        return Err(BootError::Corrupt { path: path.to_owned(), found, expected });
    }
    kernel.rewind().map_err(CacheError::of("read", path))?;
    Ok(Some(kernel))
}

fn unpack(path: &Path, expected: &str, progress: &mut dyn Progress) -> Result<(), BootError> {
    progress.step(Stage::Kernel.begins());
    let damaged = |why: &dyn std::fmt::Display| BootError::Damaged(why.to_string());
    let mut kernel = Vec::new();
    ruzstd::decoding::StreamingDecoder::new(KERNEL)
        .map_err(|e| damaged(&e))?
        .read_to_end(&mut kernel)
        .map_err(|e| damaged(&e))?;
    let found = digest::of(&kernel);
    if found != expected {
        return Err(damaged(&format_args!("its SHA-256 is {found}, not {expected}")));
    }
    File::create_new(path)
        .and_then(|mut file| {
            file.write_all(&kernel)?;
            // For everybody, whatever the umask: a monitor that gave up its identity opens the
            // descriptor again. The path to it is closed to others by the cache directory.
            file.set_permissions(Permissions::from_mode(0o444))?;
            file.sync_all()
        })
        .map_err(CacheError::of("write", path))?;
    Ok(())
}

fn theirs(path: &Path) -> Result<File, BootError> {
    let failed = |source| BootError::Open { path: path.to_owned(), source };
    let mut kernel = File::open(path).map_err(failed)?;
    let mut head = Vec::new();
    (&kernel).take(MAGIC_END).read_to_end(&mut head).map_err(failed)?;
    kernel.rewind().map_err(failed)?;
    if head.starts_with(b"\x7fELF") || head.ends_with(b"HdrS") {
        Ok(kernel)
    } else {
        Err(BootError::NotAKernel { path: path.to_owned() })
    }
}

/// The agent as a program of its own, in sealed memory: for where it needs no kernel brought along.
///
/// # Errors
/// Where there is no memory for it.
pub fn agent() -> io::Result<File> {
    static WRITTEN: OnceLock<File> = OnceLock::new();
    once(&WRITTEN, written_agent)
}

/// What was written once, opened again: everybody has a place of their own in it. It is sealed, so
/// that nobody can change it for others.
fn once(written: &OnceLock<File>, write: impl Fn() -> io::Result<File>) -> io::Result<File> {
    let file = match written.get() {
        Some(file) => file,
        None => {
            let file = write()?;
            written.get_or_init(|| file)
        }
    };
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn written_agent() -> io::Result<File> {
    let memory = memfd_create("sandforge-agent", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(memory);
    file.write_all(AGENT)?;
    seal(&file)?;
    Ok(file)
}

fn seal(file: &File) -> io::Result<()> {
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    Ok(fcntl_add_seals(file, seals)?)
}

/// `/init`, the console that the kernel opens for it, and what its runtime puts in the place of
/// standard streams where there is no console.
fn initramfs() -> io::Result<(File, u64)> {
    static WRITTEN: OnceLock<File> = OnceLock::new();
    let file = once(&WRITTEN, written_initramfs)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

fn written_initramfs() -> io::Result<File> {
    let memory = memfd_create("initramfs", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut cpio = cpio::Writer::new(io::BufWriter::new(File::from(memory)));
    cpio.add("dev", Member::Dir)?;
    cpio.add("dev/console", Member::CharDevice { major: 5, minor: 1 })?;
    cpio.add("dev/null", Member::CharDevice { major: 1, minor: 3 })?;
    cpio.add("init", Member::Program(AGENT))?;
    let file = cpio.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    seal(&file)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        (dir, store)
    }

    fn kernel_path(store: &Store) -> PathBuf {
        store.boot.path(kernel_sha256()).join(VMLINUX)
    }

    #[test]
    fn the_kernel_unpacks_to_its_digest() {
        let (_dir, store) = store();
        let mut kernel = assets(&store, &Kernel::Ours, &mut ()).unwrap().kernel;
        let mut bytes = Vec::new();
        kernel.read_to_end(&mut bytes).unwrap();
        assert_eq!(digest::of(&bytes), kernel_sha256());
    }

    #[test]
    fn a_kernel_with_a_flipped_bit_is_refused_with_the_remedy() {
        let (_dir, store) = store();
        assets(&store, &Kernel::Ours, &mut ()).unwrap();
        let path = kernel_path(&store);
        let mut bytes = fs::read(&path).unwrap();
        bytes[1000] ^= 1;
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        let error = assets(&store, &Kernel::Ours, &mut ()).unwrap_err();
        assert!(matches!(error, BootError::Corrupt { .. }), "{error}");
        let remedy = format!("rm {}", path.display());
        assert!(error.to_string().contains(&remedy), "{error}");
        fs::remove_file(&path).unwrap();
        assets(&store, &Kernel::Ours, &mut ()).unwrap();
    }

    #[test]
    fn a_monitor_without_identity_can_open_the_kernel_again() {
        let (_dir, store) = store();
        let kernel = assets(&store, &Kernel::Ours, &mut ()).unwrap().kernel;
        assert_eq!(kernel.metadata().unwrap().permissions().mode() & 0o777, 0o444);
    }

    #[test]
    fn kernels_of_other_versions_make_room() {
        let (dir, store) = store();
        fs::create_dir(dir.path().join("boot/0123")).unwrap();
        assets(&store, &Kernel::Ours, &mut ()).unwrap();
        assert_eq!(store.boot.keys().unwrap(), [kernel_sha256()]);
    }

    #[test]
    fn a_kernel_of_the_users_is_taken_as_it_is() {
        let (dir, store) = store();
        let path = dir.path().join("mine");
        fs::write(&path, b"\x7fELF and so on").unwrap();
        let assets = assets(&store, &Kernel::File(path), &mut ()).unwrap();
        assert_eq!(assets.kernel_sha256, None);
    }

    #[test]
    fn something_else_is_not_booted() {
        let (dir, store) = store();
        let path = dir.path().join("mine");
        fs::write(&path, b"hello").unwrap();
        let error = assets(&store, &Kernel::File(path), &mut ()).unwrap_err();
        assert!(matches!(error, BootError::NotAKernel { .. }), "{error}");
    }

    #[test]
    fn the_initramfs_cannot_be_changed() {
        assert!(initramfs().unwrap().1 > AGENT.len() as u64);
        for mut file in [written_initramfs().unwrap(), written_agent().unwrap()] {
            let error = file.write(b"x").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        }
    }

    #[test]
    fn whoever_reads_the_agent_begins_at_its_beginning() {
        for _ in 0..2 {
            let mut bytes = Vec::new();
            agent().unwrap().read_to_end(&mut bytes).unwrap();
            assert!(bytes == AGENT);
        }
    }

    /// Without a loader in the initramfs a dynamic `/init` would panic the kernel.
    #[test]
    fn the_agent_is_static() {
        assert!(AGENT.starts_with(b"\x7fELF"));
        let word = |at: usize| u64::from_le_bytes(AGENT[at..at + 8].try_into().unwrap());
        let half = |at: usize| u16::from_le_bytes(AGENT[at..at + 2].try_into().unwrap());
        let (table, entry, count) = (word(32), usize::from(half(54)), usize::from(half(56)));
        let table = usize::try_from(table).unwrap();
        const PT_INTERP: u8 = 3;
        let kinds = (0..count).map(|i| AGENT[table + i * entry]);
        assert!(!kinds.into_iter().any(|kind| kind == PT_INTERP));
    }
}
