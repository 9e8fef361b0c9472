//! The byte stream to the host, whichever this machine has.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::io::Errno;

/// The vsock port that the host connects to.
const VSOCK_PORT: u32 = 2222;
/// The name of the virtio-serial port.
const PORT_NAME: &str = "sandforge";

/// Where the host's bytes come from.
#[derive(Debug)]
pub(crate) enum Carrier {
    /// One stream for the machine's life. That of a virtio-serial port has another end that comes
    /// and goes.
    Stream(File),
    /// A socket that takes one host after another; the newest counts.
    Listener {
        /// Listens.
        listener: OwnedFd,
        /// The host that is connected.
        peer: Option<OwnedFd>,
    },
}

/// What a read gave.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// This many bytes.
    Bytes(usize),
    /// Nothing now.
    Nothing,
    /// The host's end is closed.
    Gone,
}

impl Carrier {
    /// The machine's carrier: the virtio-serial port named `sandforge`, or else vsock.
    pub(crate) fn find() -> io::Result<Self> {
        if let Some(port) = named_port(Path::new("/sys/class/virtio-ports"))? {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(port)?;
            return Ok(Self::Stream(file));
        }
        Ok(Self::Listener { listener: listen_vsock(VSOCK_PORT)?, peer: None })
    }

    /// A socket that the process that started this one handed over: connected, or listening.
    pub(crate) fn handed_over(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(match rustix::net::sockopt::socket_acceptconn(&socket)? {
            true => Self::Listener { listener: socket, peer: None },
            false => Self::Stream(socket.into()),
        })
    }

    /// A unix socket at `path`: stands in for vsock where there is none.
    #[cfg(test)]
    pub(crate) fn listen_unix(path: &Path) -> io::Result<Self> {
        let listener = std::os::unix::net::UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self::Listener { listener: listener.into(), peer: None })
    }

    /// What to wait on for a new host, where that is apart from the stream.
    pub(crate) fn listener(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Stream(_) => None,
            Self::Listener { listener, .. } => Some(listener.as_fd()),
        }
    }

    /// What to wait on for bytes.
    pub(crate) fn stream(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Stream(file) => Some(file.as_fd()),
            Self::Listener { peer, .. } => peer.as_ref().map(AsFd::as_fd),
        }
    }

    /// Takes a waiting host in place of the one before; whether there was one.
    pub(crate) fn accept(&mut self) -> io::Result<bool> {
        use rustix::net::{SocketFlags, accept_with};
        let Self::Listener { listener, peer } = self else { return Ok(false) };
        match accept_with(&*listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(new) => {
                *peer = Some(new);
                Ok(true)
            }
            Err(Errno::AGAIN | Errno::CONNABORTED) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads what is there.
    pub(crate) fn read(&mut self, bytes: &mut [u8]) -> Received {
        let Some(stream) = self.stream() else { return Received::Nothing };
        loop {
            return match rustix::io::read(stream, &mut *bytes) {
                Ok(0) => Received::Gone,
                Ok(count) => Received::Bytes(count),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => Received::Nothing,
                Err(_) => Received::Gone,
            };
        }
    }

    /// Writes what fits; how much did.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> usize {
        let Some(stream) = self.stream() else { return 0 };
        let mut written = 0;
        while written < bytes.len() {
            match rustix::io::write(stream, &bytes[written..]) {
                Ok(count) => written += count,
                Err(Errno::INTR) => {}
                // A broken stream is noticed, and answered, where it is read.
                Err(_) => break,
            }
        }
        written
    }

    /// Forgets a host that is gone.
    pub(crate) fn hang_up(&mut self) {
        if let Self::Listener { peer, .. } = self {
            *peer = None;
        }
    }
}

fn named_port(class: &Path) -> io::Result<Option<std::path::PathBuf>> {
    let entries = match fs::read_dir(class) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim_end() == PORT_NAME {
            return Ok(Some(Path::new("/dev").join(entry.file_name())));
        }
    }
    Ok(None)
}

/// rustix has no vsock addresses, so these calls go to libc.
fn listen_vsock(port: u32) -> io::Result<OwnedFd> {
    let socket = vsock()?;
    let (address, length) = vsock_address(libc::VMADDR_CID_ANY, port);
    // SAFETY: `address` lives through the call and `length` is its size.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } != 0 {
        return Err(io::Error::last_os_error());
    }
    rustix::net::listen(&socket, 8)?;
    announce(port);
    Ok(socket)
}

/// Lets the host know that somebody listens now: it has asked for this port before, in vain, and
/// asks again when it is asked for the same one. That this is refused is of no matter.
fn announce(port: u32) {
    let Ok(socket) = vsock() else { return };
    let (address, length) = vsock_address(libc::VMADDR_CID_HOST, port);
    // SAFETY: `address` lives through the call and `length` is its size.
    unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) };
}

fn vsock() -> io::Result<OwnedFd> {
    let flags = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket(2) takes no pointers.
    let raw = unsafe { libc::socket(libc::AF_VSOCK, flags, 0) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above returned this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn vsock_address(cid: u32, port: u32) -> (libc::sockaddr_vm, libc::socklen_t) {
    // SAFETY: all zeroes is a valid sockaddr_vm.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::sa_family_t::try_from(libc::AF_VSOCK).expect("a small number");
    address.svm_cid = cid;
    address.svm_port = port;
    let length = libc::socklen_t::try_from(size_of_val(&address)).expect("a small structure");
    (address, length)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_port_is_found_by_its_name() {
        let class = tempfile::tempdir().unwrap();
        for (port, name) in [("vport0p0", "console\n"), ("vport0p1", "sandforge\n")] {
            fs::create_dir(class.path().join(port)).unwrap();
            fs::write(class.path().join(port).join("name"), name).unwrap();
        }
        let found = named_port(class.path()).unwrap();
        assert_eq!(found, Some("/dev/vport0p1".into()));
    }

    #[test]
    fn no_ports_at_all_is_no_port() {
        assert_eq!(named_port(Path::new("/nowhere")).unwrap(), None);
    }

    #[test]
    fn the_newest_host_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let mut carrier = Carrier::listen_unix(&path).unwrap();
        assert!(!carrier.accept().unwrap());
        let _first = UnixStream::connect(&path).unwrap();
        assert!(carrier.accept().unwrap());
        let mut second = UnixStream::connect(&path).unwrap();
        assert!(carrier.accept().unwrap());
        second.write_all(b"hello").unwrap();
        let mut bytes = [0; 16];
        assert_eq!(carrier.read(&mut bytes), Received::Bytes(5));
        drop(second);
        assert_eq!(carrier.read(&mut bytes), Received::Gone);
    }
}
