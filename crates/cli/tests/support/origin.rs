//! Servers that sandboxes reach: programs on this host, with certificates of an authority of the test.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

/// Writes `ca.pem`, and for servers of these names `server.pem` and `server.key`.
pub(crate) fn certify(directory: &Path, names: &[&str]) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    fs::write(directory.join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let names = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let mut params = CertificateParams::new(names).unwrap();
    // Newer versions of Python insist on it.
    params.use_authority_key_identifier_extension = true;
    let leaf = params.signed_by(&key, &issuer).unwrap();
    fs::write(directory.join("server.pem"), leaf.pem()).unwrap();
    fs::write(directory.join("server.key"), key.serialize_pem()).unwrap();
}

/// A server in another program, which tells its port in its first line. It ends with this.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Server {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).unwrap();
        let port: u16 = line.trim().parse().expect("the port of a server");
        Self { child, address: SocketAddr::from(([127, 0, 0, 1], port)) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `upstream.toml` for these names, with the test's authority.
pub(crate) fn upstream(directory: &Path, addresses: &[(String, SocketAddr)]) -> String {
    let mut text = format!("ca = {:?}\n[addresses]\n", directory.join("ca.pem"));
    for (name, address) in addresses {
        writeln!(text, "{name:?} = \"{address}\"").unwrap();
    }
    text
}

/// The host of a registry that a tool of this user is configured for, and where this host finds it,
/// which may be where no sandbox would be let through to.
pub(crate) fn registry(command: &mut Command) -> Option<(String, SocketAddr)> {
    let output = command.stderr(Stdio::null()).output().ok().filter(|one| one.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?;
    resolved(text.trim())
}

/// The registries of a file that `sandforge policy init` wrote, which this host can find: of what kind,
/// their hosts, and where they are.
pub(crate) fn registries(text: &str) -> Vec<(String, String, SocketAddr)> {
    let mut found = Vec::new();
    let mut kind = "";
    for line in text.lines() {
        let value = |key: &str| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"');
        kind = value("kind").unwrap_or(kind);
        if let Some((host, address)) = value("url").and_then(resolved)
            && matches!(kind, "npm" | "pip" | "cargo")
            && TcpStream::connect_timeout(&address, Duration::from_secs(5)).is_ok()
        {
            found.push((kind.to_owned(), host, address));
        }
    }
    found
}

fn resolved(url: &str) -> Option<(String, SocketAddr)> {
    let authority = url.strip_prefix("https://")?.split('/').next()?;
    let (host, port) = match authority.split_once(':') {
        Some((host, port)) => (host, port.parse().ok()?),
        None => (authority, 443),
    };
    let address = (host, port).to_socket_addrs().ok()?.next()?;
    Some((host.to_owned(), address))
}
