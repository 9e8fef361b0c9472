//! The archive that the kernel unpacks into its first root: cpio in the `newc` format
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::io::{self, Write};

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Member<'a> {
    Dir,
    Program(&'a [u8]),
    CharDevice { major: u32, minor: u32 },
}

pub(crate) struct Writer<W> {
    out: W,
    inode: u32,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, inode: 0 }
    }

    pub(crate) fn add(&mut self, name: &str, member: Member<'_>) -> io::Result<()> {
        self.inode += 1;
        match member {
            Member::Dir => self.member(name, 0o040_755, 2, (0, 0), &[]),
            Member::Program(data) => self.member(name, 0o100_755, 1, (0, 0), data),
            Member::CharDevice { major, minor } => {
                self.member(name, 0o020_600, 1, (major, minor), &[])
            }
        }
    }

    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.member("TRAILER!!!", 0, 1, (0, 0), &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn member(
        &mut self,
        name: &str,
        mode: u32,
        links: u32,
        device: (u32, u32),
        data: &[u8],
    ) -> io::Result<()> {
        let size = |len: usize| u32::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge);
        let name_len = name.len() + 1;
        write!(self.out, "070701")?;
        for field in [
            self.inode,
            mode,
            0, // uid
            0, // gid
            links,
            0, // mtime
            size(data.len())?,
            0, // device of the file system
            0,
            device.0,
            device.1,
            size(name_len)?,
            0, // checksum, of another format
        ] {
            write!(self.out, "{field:08x}")?;
        }
        const HEADER: usize = 110;
        self.out.write_all(name.as_bytes())?;
        self.pad(1 + (4 - (HEADER + name_len) % 4) % 4)?;
        self.out.write_all(data)?;
        self.pad((4 - data.len() % 4) % 4)
    }

    fn pad(&mut self, zeros: usize) -> io::Result<()> {
        self.out.write_all(&[0; 4][..zeros])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn archive() -> Vec<u8> {
        let mut cpio = Writer::new(Vec::new());
        cpio.add("dev", Member::Dir).unwrap();
        cpio.add("dev/console", Member::CharDevice { major: 5, minor: 1 }).unwrap();
        cpio.add("init", Member::Program(b"#!odd length")).unwrap();
        cpio.finish().unwrap()
    }

    #[test]
    fn members_start_on_four_byte_boundaries() {
        let cpio = archive();
        let starts: Vec<usize> =
            cpio.windows(6).enumerate().filter(|(_, w)| w == b"070701").map(|(at, _)| at).collect();
        assert_eq!(starts.len(), 4);
        assert!(starts.iter().all(|at| at % 4 == 0), "{starts:?}");
        assert_eq!(cpio.len() % 4, 0);
    }

    #[test]
    fn cpio_lists_it() {
        let child = Command::new("cpio")
            .arg("-tv")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut child = child.expect("cpio judges this; apt-get install cpio");
        child.stdin.take().unwrap().write_all(&archive()).unwrap();
        let listed = child.wait_with_output().unwrap();
        let listed = String::from_utf8_lossy(&listed.stdout);
        assert!(listed.lines().any(|l| l.starts_with("crw-") && l.contains("5,   1")), "{listed}");
        assert!(listed.lines().any(|l| l.starts_with("-rwxr-xr-x") && l.ends_with("init")));
    }
}
