//! What the payload is sent for: planted where it would find it, if it could look.

use std::fs::{self, File, Permissions};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::Failed;

/// Where it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Target {
    /// A directory like a home, which everybody may read.
    pub(crate) home: PathBuf,
    pub(crate) secret: PathBuf,
    /// A TCP port of the host, over IPv4.
    pub(crate) port: u16,
    /// One over IPv6, where the host has it.
    pub(crate) port_6: Option<u16>,
    /// The name of an abstract stream socket, and of a datagram socket with `-datagram` behind.
    pub(crate) abstract_name: String,
    pub(crate) socket: PathBuf,
    /// The process that owns the payload.
    pub(crate) owner: u32,
}

/// What is there while it lives.
pub(crate) struct Prey {
    pub(crate) target: Target,
    directory: TempDir,
    _sockets: Vec<OwnedFd>,
}

/// The descriptors' places in the orders.
pub(crate) const HANDED_FILE: usize = 0;
pub(crate) const HANDED_DIRECTORY: usize = 1;
pub(crate) const HANDED_NAMESPACE: usize = 2;
pub(crate) const HANDED: usize = 3;

/// What the secret says.
pub(crate) const SECRET: &str = "the combination is 1-2-3-4-5";

impl Prey {
    pub(crate) fn plant() -> Result<Self, Failed> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let everybody = || Permissions::from_mode(0o777);
        let directory = tempfile::tempdir_in("/tmp")?;
        let home = directory.path().to_owned();
        fs::set_permissions(&home, everybody())?;
        let secret = home.join("secret");
        fs::write(&secret, SECRET)?;
        fs::set_permissions(&secret, Permissions::from_mode(0o666))?;
        fs::create_dir(home.join("handed"))?;
        fs::write(home.join("handed/file"), "handed over")?;
        fs::set_permissions(home.join("handed/file"), Permissions::from_mode(0o666))?;

        let ipv4 = TcpListener::bind("127.0.0.1:0")?;
        let ipv6 = TcpListener::bind("[::1]:0").ok();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let abstract_name = format!("takeover-{}-{number}", std::process::id());
        let name = SocketAddr::from_abstract_name(&abstract_name)?;
        let stream = UnixListener::bind_addr(&name)?;
        let name = SocketAddr::from_abstract_name(format!("{abstract_name}-datagram"))?;
        let datagram = UnixDatagram::bind_addr(&name)?;
        let socket = home.join("socket");
        let listener = UnixListener::bind(&socket)?;
        fs::set_permissions(&socket, everybody())?;

        let port_6 = ipv6.as_ref().and_then(|ipv6| Some(ipv6.local_addr().ok()?.port()));
        let target = Target {
            home,
            secret,
            port: ipv4.local_addr()?.port(),
            port_6,
            abstract_name,
            socket,
            owner: std::process::id(),
        };
        let mut sockets: Vec<OwnedFd> =
            vec![ipv4.into(), stream.into(), datagram.into(), listener.into()];
        sockets.extend(ipv6.map(OwnedFd::from));
        Ok(Self { target, directory, _sockets: sockets })
    }

    /// What is handed to the payload: more than a monitor has.
    pub(crate) fn descriptors(&self) -> Result<Vec<OwnedFd>, Failed> {
        let handed = self.directory.path().join("handed");
        Ok(vec![
            File::open(handed.join("file"))?.into(),
            File::open(handed)?.into(),
            File::open("/proc/self/ns/net")?.into(),
        ])
    }
}
