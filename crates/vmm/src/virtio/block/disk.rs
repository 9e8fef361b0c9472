//! The files behind a disk.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::ops::Range;
use std::os::fd::AsRawFd as _;

use libc::{c_int, iovec, off_t, ssize_t};
use rustix::fs::{FallocateFlags, OFlags, fallocate, fcntl_getfl, fdatasync};
use rustix::io::{Errno, pwrite, retry_on_intr};

use super::request::Malformed;
use crate::virtio::buffers::{Buffers, MAX_BUFFERS};

/// Bytes of the unit that requests count in (section 5.2.4), whatever the block size.
pub(super) const SECTOR: u64 = 512;

/// A file cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// What the descriptor can do is not known.
    #[error("cannot tell how the disk's file was opened: {0}")]
    Flags(io::Error),
    /// There is no file, or several where one is written to.
    #[error("a disk has one file, or several that are only read; this has {0}")]
    Files(usize),
    /// It cannot be read, or not be written although the disk can.
    #[error("the disk's file is not open for {0}; open it so, or make the disk read-only")]
    Access(&'static str),
    /// Whatever is written to it is added at the end.
    #[error("the disk's file is open for appending, which moves all writes to its end")]
    Appending,
    /// Its size is not known.
    #[error("cannot tell the size of the disk's file: {0}")]
    Size(io::Error),
    /// The id is longer than the driver can read.
    #[error("the disk's id {0:?} is longer than {most} bytes", most = super::device::ID)]
    Id(String),
    /// There are no descriptors for the rate limit's timer.
    #[error("cannot make a timer for the disk's rate limit: {0}; try a higher limit of open files")]
    Timer(io::Error),
}

/// Whole sectors of files, one after another.
#[derive(Debug)]
pub(super) struct Disk {
    parts: Vec<Part>,
    read_only: bool,
}

/// One of the files.
#[derive(Debug)]
struct Part {
    file: File,
    /// Where on the disk it begins and ends, in bytes.
    place: Range<u64>,
}

/// A part of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    offset: u64,
    length: u64,
}

/// `preadv` or `pwritev`.
type Transfer = unsafe extern "C" fn(c_int, *const iovec, c_int, off_t) -> ssize_t;

impl Disk {
    pub(super) fn new(files: Vec<File>, read_only: bool) -> Result<Self, DiskError> {
        if files.is_empty() || (files.len() > 1 && !read_only) {
            return Err(DiskError::Files(files.len()));
        }
        let mut parts: Vec<Part> = Vec::with_capacity(files.len());
        for mut file in files {
            let flags = fcntl_getfl(&file).map_err(|error| DiskError::Flags(error.into()))?;
            match flags & OFlags::RWMODE {
                OFlags::WRONLY => return Err(DiskError::Access("reading")),
                OFlags::RDONLY if !read_only => return Err(DiskError::Access("writing")),
                _ => {}
            }
            if flags.contains(OFlags::APPEND) {
                return Err(DiskError::Appending);
            }
            // Unlike what stat(2) says, this is right for block devices, too.
            let bytes = file.seek(SeekFrom::End(0)).map_err(DiskError::Size)?;
            let start = parts.last().map_or(0, |part| part.place.end);
            let end = start.saturating_add(bytes - bytes % SECTOR);
            parts.push(Part { file, place: start..end });
        }
        Ok(Self { parts, read_only })
    }

    fn bytes(&self) -> u64 {
        self.parts.last().map_or(0, |part| part.place.end)
    }

    pub(super) fn sectors(&self) -> u64 {
        self.bytes() / SECTOR
    }

    /// The only file of a disk that is written to.
    fn file(&self) -> &File {
        &self.parts[0].file
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// So many bytes from a sector on, where the disk has them.
    pub(super) fn extent(&self, sector: u64, length: u64) -> Result<Extent, Malformed> {
        if length == 0 || !length.is_multiple_of(SECTOR) {
            return Err(Malformed::Length);
        }
        let offset = sector.checked_mul(SECTOR).ok_or(Malformed::BeyondEnd)?;
        match offset.checked_add(length) {
            Some(end) if end <= self.bytes() => Ok(Extent { offset, length }),
            _ => Err(Malformed::BeyondEnd),
        }
    }

    /// Fills `to`, which is as long, from the extent.
    pub(super) fn read(&self, from: Extent, to: Buffers<'_>) -> io::Result<()> {
        self.transfer(libc::preadv, from.offset, to)
    }

    /// Writes `from`, which is as long, to the extent.
    pub(super) fn write(&self, to: Extent, from: Buffers<'_>) -> io::Result<()> {
        self.transfer(libc::pwritev, to.offset, from)
    }

    fn transfer(&self, call: Transfer, mut at: u64, mut data: Buffers<'_>) -> io::Result<()> {
        while !data.is_empty() {
            let next = self.parts.partition_point(|part| part.place.end <= at);
            let Some(part) = self.parts.get(next) else {
                return Err(io::ErrorKind::UnexpectedEof.into());
            };
            let here = usize::try_from(part.place.end - at).unwrap_or(usize::MAX);
            let moved = match data.len() as usize <= here {
                true => part.transfer(call, at, &data),
                false => part.transfer(call, at, &data.first(here)),
            };
            match moved {
                // The file has become shorter.
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => {
                    data.advance(bytes);
                    at += widened(bytes);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Returns when all that was written is where it survives the host.
    pub(super) fn flush(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        Ok(retry_on_intr(|| fdatasync(self.file()))?)
    }

    /// Gives the extent's room back to the host; it reads as zeroes.
    pub(super) fn discard(&self, extent: Extent) -> Result<(), Errno> {
        self.allocate(FallocateFlags::PUNCH_HOLE, extent)
    }

    /// Makes the extent read as zeroes; it keeps its room where it may not be given back.
    pub(super) fn write_zeroes(&self, extent: Extent, may_give_back: bool) -> Result<(), Errno> {
        let by =
            if may_give_back { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
        match self.allocate(by, extent) {
            // Not every file system has it: tmpfs has no ZERO_RANGE.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.write_zeroes_out(extent),
            done => done,
        }
    }

    fn allocate(&self, how: FallocateFlags, extent: Extent) -> Result<(), Errno> {
        let flags = how | FallocateFlags::KEEP_SIZE;
        retry_on_intr(|| fallocate(self.file(), flags, extent.offset, extent.length))
    }

    fn write_zeroes_out(&self, extent: Extent) -> Result<(), Errno> {
        const AT_ONCE: u64 = 64 << 10;
        let most = usize::try_from(extent.length.min(AT_ONCE)).expect("a few KiB");
        let zeroes = vec![0; most];
        let mut done = 0;
        while done < extent.length {
            let left = usize::try_from(extent.length - done).unwrap_or(most).min(most);
            let written =
                retry_on_intr(|| pwrite(self.file(), &zeroes[..left], extent.offset + done))?;
            if written == 0 {
                return Err(Errno::NOSPC);
            }
            done += widened(written);
        }
        Ok(())
    }
}

impl Part {
    /// Moves some of `data`, of which none is beyond the end of this part.
    fn transfer(&self, call: Transfer, at: u64, data: &Buffers<'_>) -> io::Result<usize> {
        let mut vectors = [iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; MAX_BUFFERS];
        let vectors = data.io_vectors(&mut vectors);
        let count = c_int::try_from(vectors.len()).expect("there are few");
        let at = off_t::try_from(at - self.place.start).map_err(io::Error::other)?;
        // SAFETY: the vectors are mapped memory of the guest for as long as `data` lives, of which
        // there are no references, only volatile accesses: the guest may write it meanwhile.
        let moved = unsafe { call(self.file.as_raw_fd(), vectors.as_ptr(), count, at) };
        usize::try_from(moved).map_err(|_| io::Error::last_os_error())
    }
}

fn widened(length: usize) -> u64 {
    u64::try_from(length).expect("64 bits")
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write as _;
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};
    use std::process::Command;

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    /// A file of eight sectors of ones, on a file system of the host's.
    fn file() -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 8 * 512]).unwrap();
        file
    }

    /// The same in memory.
    fn memfd() -> File {
        let mut file = File::from(memfd_create("disk", MemfdFlags::CLOEXEC).unwrap());
        file.write_all(&[1; 8 * 512]).unwrap();
        file
    }

    fn content(disk: &Disk) -> Vec<u8> {
        let mut content = vec![0; usize::try_from(disk.file().metadata().unwrap().len()).unwrap()];
        disk.file().read_exact_at(&mut content, 0).unwrap();
        content
    }

    #[test]
    fn a_disk_is_whole_sectors_of_its_file() {
        let mut file = file();
        file.write_all(&[1; 511]).unwrap();
        assert_eq!(Disk::new(vec![file], false).unwrap().sectors(), 8);
    }

    #[test]
    fn files_that_are_only_read_are_one_disk() {
        let odd = {
            let mut file = file();
            file.write_all(&[1; 100]).unwrap();
            file
        };
        let disk = Disk::new(vec![odd, tempfile::tempfile().unwrap(), file()], true).unwrap();
        assert_eq!(disk.sectors(), 16);
        assert!(disk.extent(15, 512).is_ok() && disk.extent(16, 512).is_err());
        for (files, read_only) in [(vec![file(), file()], false), (Vec::new(), true)] {
            assert!(matches!(Disk::new(files, read_only), Err(DiskError::Files(_))));
        }
    }

    #[test]
    fn an_empty_file_is_an_empty_disk() {
        let disk = Disk::new(vec![tempfile::tempfile().unwrap()], false).unwrap();
        assert_eq!(disk.sectors(), 0);
        assert_eq!(disk.extent(0, 512), Err(Malformed::BeyondEnd));
    }

    #[test]
    fn a_file_that_cannot_be_written_is_a_read_only_disk_alone() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let open = || File::open(named.path()).unwrap();
        assert!(matches!(Disk::new(vec![open()], false), Err(DiskError::Access("writing"))));
        assert!(Disk::new(vec![open()], true).is_ok());
    }

    #[test]
    fn a_file_that_cannot_be_read_is_no_disk() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let file = OpenOptions::new().write(true).open(named.path()).unwrap();
        assert!(matches!(Disk::new(vec![file], false), Err(DiskError::Access("reading"))));
    }

    #[test]
    fn a_file_that_is_appended_to_is_no_disk() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let file = OpenOptions::new().read(true).append(true).open(named.path()).unwrap();
        assert!(matches!(Disk::new(vec![file], false), Err(DiskError::Appending)));
    }

    #[test]
    fn something_without_a_size_is_no_disk() {
        let (end, _other) = io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(end));
        assert!(matches!(Disk::new(vec![file], true), Err(DiskError::Size(_))));
    }

    #[test]
    fn an_extent_ends_with_the_disk() {
        let disk = Disk::new(vec![file()], false).unwrap();
        assert!(disk.extent(0, 8 * 512).is_ok());
        assert!(disk.extent(7, 512).is_ok());
        for (sector, length) in [(7, 1024), (8, 512), (1 << 55, 512), (u64::MAX / 512, 512)] {
            assert_eq!(disk.extent(sector, length), Err(Malformed::BeyondEnd), "{sector}");
        }
        let whole = u64::MAX - u64::MAX % 512;
        assert_eq!(disk.extent(1, whole), Err(Malformed::BeyondEnd));
    }

    #[test]
    fn an_extent_is_whole_sectors() {
        let disk = Disk::new(vec![file()], false).unwrap();
        for length in [0, 1, 511, 513] {
            assert_eq!(disk.extent(0, length), Err(Malformed::Length), "{length}");
        }
    }

    #[test]
    fn what_is_discarded_is_the_hosts_again() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 1 << 20]).unwrap();
        file.sync_all().unwrap();
        let disk = Disk::new(vec![file], false).unwrap();
        let before = disk.file().metadata().unwrap().blocks();
        disk.discard(disk.extent(0, 1 << 20).unwrap()).unwrap();
        assert!(disk.file().metadata().unwrap().blocks() < before / 2);
        assert_eq!(content(&disk), vec![0; 1 << 20]);
    }

    #[test]
    fn zeroes_are_written_on_any_file_system() {
        for file in [file(), memfd()] {
            for may_give_back in [false, true] {
                let disk = Disk::new(vec![file.try_clone().unwrap()], false).unwrap();
                file.write_all_at(&[1; 8 * 512], 0).unwrap();
                disk.write_zeroes(disk.extent(1, 6 * 512).unwrap(), may_give_back).unwrap();
                let expected = [[1; 512].as_slice(), &[0; 6 * 512], &[1; 512]].concat();
                assert_eq!(content(&disk), expected);
            }
        }
    }

    #[test]
    fn zeroes_keep_their_room_where_they_have_to() {
        let disk = Disk::new(vec![memfd()], false).unwrap();
        disk.write_zeroes(disk.extent(0, 8 * 512).unwrap(), false).unwrap();
        assert_ne!(disk.file().metadata().unwrap().blocks(), 0);
        disk.write_zeroes(disk.extent(0, 8 * 512).unwrap(), true).unwrap();
        assert_eq!(disk.file().metadata().unwrap().blocks(), 0);
    }

    /// A block device whose content is a file's.
    struct Loop(String);

    impl Loop {
        fn new(file: &std::path::Path) -> Result<Self, String> {
            let made = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
            let made = made.map_err(|error| format!("losetup: {error}"))?;
            let name = String::from_utf8_lossy(&made.stdout).trim().to_owned();
            let failed = || String::from_utf8_lossy(&made.stderr).into_owned();
            if made.status.success() { Ok(Self(name)) } else { Err(failed()) }
        }
    }

    impl Drop for Loop {
        fn drop(&mut self) {
            let _ = Command::new("losetup").args(["--detach", &self.0]).status();
        }
    }

    #[test]
    fn a_block_device_is_a_disk() {
        let mut content = tempfile::NamedTempFile::new().unwrap();
        content.write_all(&[1; 8 * 512]).unwrap();
        let device = match Loop::new(content.path()) {
            Ok(device) => device,
            Err(reason) => return eprintln!("not run: no loop device to be had: {reason}"),
        };
        let file = OpenOptions::new().read(true).write(true).open(&device.0).unwrap();
        let disk = Disk::new(vec![file], false).unwrap();
        assert_eq!(disk.sectors(), 8);
        for (sector, may_give_back) in [(1, false), (3, true)] {
            disk.write_zeroes(disk.extent(sector, 512).unwrap(), may_give_back).unwrap();
        }
        disk.discard(disk.extent(5, 512).unwrap()).unwrap();
        let mut read = [0; 8 * 512];
        disk.file().read_exact_at(&mut read, 0).unwrap();
        let sectors = [1, 0, 1, 0, 1, 0, 1, 1].map(|byte| [byte; 512]);
        assert_eq!(read, *sectors.as_flattened());
    }

    #[test]
    fn many_zeroes_are_written_in_parts() {
        let file = memfd();
        file.set_len(200 << 10).unwrap();
        let disk = Disk::new(vec![file], false).unwrap();
        disk.write_zeroes_out(disk.extent(1, (200 << 10) - 512).unwrap()).unwrap();
        let content = content(&disk);
        assert_eq!(content.len(), 200 << 10);
        assert!(content[512..].iter().all(|&byte| byte == 0));
    }
}
