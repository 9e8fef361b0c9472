//! Where connections come from: TLS on addresses, a unix socket, and this process.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio_rustls::TlsAcceptor;

use crate::connection::{Connections, Http, Peer};

/// After an accept that failed, as for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);
const BACKLOG: u32 = 1024;

/// Why the server does not listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// An address cannot be had.
    #[error("cannot listen on {0}; another server may be there, or name another with --listen")]
    Address(SocketAddr, #[source] io::Error),
    /// The unix socket cannot be made.
    #[error("cannot make the socket {}", .0.display())]
    Socket(PathBuf, #[source] io::Error),
    /// Somebody else's directory would decide who connects.
    #[error("the directory {} belongs to somebody else, or others may write to it", .0.display())]
    Directory(PathBuf),
    /// Another server has the socket.
    #[error("another server has the socket {}", .0.display())]
    Taken(PathBuf),
}

/// Listens on an address. An IPv6 address takes no IPv4.
pub(crate) fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let bound = || {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => {
                let socket = TcpSocket::new_v6()?;
                rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
                socket
            }
        };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bound().map_err(|error| ListenError::Address(address, error))
}

/// Takes TLS connections until the server stops.
pub(crate) async fn accept_tls(listener: TcpListener, tls: TlsAcceptor, all: Connections) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = all.stopping().cancelled() => return,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(place) = all.place().await else { return };
        let (tls, connections) = (tls.clone(), all.clone());
        all.spawn(async move {
            let _place = place;
            if stream.set_nodelay(true).is_err() {
                return;
            }
            let shaken = tokio::time::timeout(connections.limits().handshake, tls.accept(stream));
            let stream = match shaken.await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::debug!(%address, %error, "no TLS"),
                Err(_) => return tracing::debug!(%address, "no TLS in time"),
            };
            let http = match stream.get_ref().1.alpn_protocol() {
                Some(b"h2") => Http::Two,
                _ => Http::One,
            };
            connections.serve(stream, Peer::Remote(address), http).await;
        });
    }
}

/// A unix socket that its owner alone can reach, and its file's end with it.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: UnixListener,
    file: SocketFile,
}

/// The socket's name in the file system, and the lock that says whose it is.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: u64,
    _lock: File,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Not another's that took its place.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Socket {
    /// Makes the socket, and its directory where there is none. What a dead server left is
    /// replaced.
    pub(crate) fn bind(path: &Path) -> Result<Self, ListenError> {
        let failed = |error| ListenError::Socket(path.to_owned(), error);
        let directory = path.parent().unwrap_or_else(|| Path::new("."));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let found = fs::metadata(directory).map_err(failed)?;
        if found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o022 != 0 {
            return Err(ListenError::Directory(directory.to_owned()));
        }
        let mut lock = path.as_os_str().to_owned();
        lock.push(".lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(PathBuf::from(lock))
            .map_err(failed)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(ListenError::Taken(path.to_owned())),
            taken => taken.map_err(|error| failed(error.into()))?,
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        // Until here the directory's own mode kept others out, or the check of credentials would.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        let inode = fs::symlink_metadata(path).map_err(failed)?.ino();
        Ok(Self { listener, file: SocketFile { path: path.to_owned(), inode, _lock: lock } })
    }

    /// Takes connections of this user and of root until the server stops.
    pub(crate) async fn accept(self, all: Connections) {
        let own = rustix::process::geteuid().as_raw();
        let _file = &self.file;
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = all.stopping().cancelled() => return,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let uid = match stream.peer_cred() {
                Ok(credentials) if may_connect(credentials.uid(), own) => credentials.uid(),
                Ok(credentials) => {
                    tracing::warn!(
                        uid = credentials.uid(),
                        "somebody else's connection is refused"
                    );
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection without credentials is refused");
                    continue;
                }
            };
            let Some(place) = all.place().await else { return };
            let connections = all.clone();
            all.spawn(async move {
                let _place = place;
                connections.serve(stream, Peer::Local { uid }, Http::One).await;
            });
        }
    }
}

/// Root can read this process's memory: refusing it would protect nothing.
fn may_connect(peer: u32, own: u32) -> bool {
    peer == own || peer == 0
}

/// Reads or renews the certificate from time to time until the server stops.
pub(crate) async fn refresh(certificate: Arc<crate::certificate::Current>, all: Connections) {
    const EVERY: Duration = Duration::from_secs(3600);
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = all.stopping().cancelled() => return,
        }
        let certificate = Arc::clone(&certificate);
        match tokio::task::spawn_blocking(move || certificate.refresh()).await {
            Ok(Err(error)) => tracing::warn!(%error, "the certificate stays as it is"),
            Err(error) => tracing::error!(%error, "the certificate stays as it is"),
            Ok(Ok(())) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_user_and_root_may_connect() {
        assert!(may_connect(1000, 1000));
        assert!(may_connect(0, 1000));
        assert!(!may_connect(1001, 1000));
        assert!(!may_connect(1000, 0));
    }

    #[tokio::test]
    async fn the_socket_is_for_its_owner_only_and_goes_with_the_server() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/api.sock");
        let socket = Socket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
        assert!(matches!(Socket::bind(&path), Err(ListenError::Taken(_))));
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_that_a_dead_server_left_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        assert!(Socket::bind(&path).is_ok());
    }

    #[tokio::test]
    async fn a_directory_that_others_may_write_to_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let bound = Socket::bind(&directory.path().join("api.sock"));
        assert!(matches!(bound, Err(ListenError::Directory(_))));
    }
}
