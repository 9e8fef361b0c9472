//! What tasks find in their root because of the network: the nameserver, and everywhere that
//! programs look for it, the certificate of the authority that the host signs with.
//!
//! There is no one place. Programs with a variable for it get the variable; those that read the
//! system's bundle find it there; those that look into a directory by hash find a link. Most of the
//! variables name a bundle that takes the place of the program's own, so what they name holds the
//! system's certificates too. It is in a directory of its own, read-only also to a task's root.
//!
//! In a guest the root is the sandbox's, and its files are changed in place: then the tools that
//! make bundles anew (`update-ca-certificates`, `update-ca-trust`) find ours among their sources.
//! On the host's kernel the root is the host's, and is covered.

mod certificate;
mod java;
mod sha1;

use std::fs::{self, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};
use wire::op::{ErrorCode, OpError};
use wire::text::Text;

use crate::Kernel;

/// Ours alone, in every sandbox at the same place.
const DIRECTORY: &str = "/run/sandforge";
const AUTHORITY: &str = "/run/sandforge/authority.pem";
const BUNDLE: &str = "/run/sandforge/ca.pem";
const JAVA_STORE: &str = "/run/sandforge/ca.p12";
const NAMESERVER: &str = "/run/sandforge/resolv.conf";
/// What is to be seen over the host's directory of certificates.
const OVER_HASHED: &str = "/run/sandforge/certs";
const FILE_NAME: &str = "sandforge.pem";

/// Where bundles are: Debian, Alpine, Arch and Gentoo; Fedora and its kin; openSUSE; Alpine's and
/// FreeBSD's name; older Fedora; Nix. The first that is there is the system's.
const BUNDLES: [&str; 7] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/ssl/certs/ca-bundle.crt",
];
/// Where OpenSSL looks by hash.
const HASHED: &str = "/etc/ssl/certs";
/// Where tools that make bundles look for more: Debian and Alpine, Fedora, Arch.
const SOURCES: [(&str, &str); 3] = [
    ("/usr/local/share/ca-certificates", "sandforge.crt"),
    ("/etc/pki/ca-trust/source/anchors", "sandforge.pem"),
    ("/etc/ca-certificates/trust-source/anchors", "sandforge.pem"),
];
/// Where shells that begin anew, and have lost their variables, look.
const PROFILES: &str = "/etc/profile.d";
const RESOLVER: &str = "/etc/resolv.conf";
/// An address that questions are led away from on their way, of the interface's network.
const NAMES: &str = "nameserver 198.18.0.2\n";

/// A bundle is a quarter of a megabyte; what is much longer is none.
const BUNDLE_MOST: u64 = 4 << 20;

/// Variables that name the whole bundle, in the place of a program's own.
const OF_BUNDLE: [&str; 18] = [
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "BUNDLE_SSL_CA_CERT",
    "COMPOSER_CAFILE",
    "NIX_SSL_CERT_FILE",
    "HEX_CACERTS_PATH",
    "YARN_HTTPS_CA_FILE_PATH",
    "CODEX_CA_CERTIFICATE",
    "SYSTEM_CERTIFICATE_PATH",
    "PERL_LWP_SSL_CA_FILE",
    "HTTPLIB2_CA_CERTS",
];
/// Variables that name certificates beside a program's own.
const OF_AUTHORITY: [&str; 2] = ["NODE_EXTRA_CA_CERTS", "DENO_CERT"];

/// Tells the tasks of a root, which is the caller's for now, of the network and of the certificate;
/// the variables that do so.
///
/// # Errors
/// With the step that failed.
pub(crate) fn install(
    trust: Option<&str>,
    kernel: Kernel,
) -> Result<(Vec<(Text, Text)>, Traces), OpError> {
    let authority = trust.map(Authority::read).transpose()?;
    let failed = |step: &'static str| {
        move |error: io::Error| {
            OpError::new(ErrorCode::Failed, format!("could not {step}: {error}"))
        }
    };
    // Before anything of ours is in it.
    let system = system_bundle(authority.as_ref()).map_err(failed("read the certificates"))?;
    fill(authority.as_ref(), &system, kernel).map_err(failed("lay out /run/sandforge"))?;
    resolver(kernel).map_err(failed("set /etc/resolv.conf"))?;
    let Some(authority) = authority else { return Ok((Vec::new(), Traces::default())) };
    let bundles = match kernel {
        Kernel::Own => change_in_place(&authority).map_err(failed("add the certificate")),
        Kernel::Shared => cover().map(|()| Vec::new()).map_err(failed("add the certificate")),
    }?;
    Ok((variables(), Traces { certificate: Some(authority.pem), bundles }))
}

/// What [`install`] left in a root that is the sandbox's.
#[derive(Debug, Default)]
pub(crate) struct Traces {
    /// In PEM.
    certificate: Option<String>,
    /// The bundles that were changed, each with the digest of what it was.
    bundles: Vec<(PathBuf, [u8; 20])>,
}

/// Takes out of a root, which is the caller's for now, what [`install`] put there, also where a tool
/// of the root has copied it since. The bundles that are again as they were.
///
/// # Errors
/// With the step that failed.
pub(crate) fn remove(traces: &Traces) -> Result<Vec<PathBuf>, OpError> {
    let failed = |error: io::Error| {
        OpError::new(ErrorCode::Failed, format!("could not take the certificate out: {error}"))
    };
    let Some(certificate) = &traces.certificate else { return Ok(Vec::new()) };
    let mut unchanged = Vec::new();
    for path in BUNDLES {
        let Ok(path) = fs::canonicalize(path) else { continue };
        let Some(text) = read_bundle(&path).map_err(failed)? else { continue };
        let clean = without_ours(&text).replace(certificate.as_str(), "");
        if clean != text {
            write_new(&path, clean.as_bytes()).map_err(failed)?;
        }
        let was = traces.bundles.iter().find(|(known, _)| *known == path);
        if was.is_some_and(|(_, digest)| *digest == sha1::digest(clean.as_bytes())) {
            unchanged.push(path);
        }
    }
    let mut gone: Vec<PathBuf> =
        SOURCES.iter().map(|(directory, name)| Path::new(directory).join(name)).collect();
    gone.extend([Path::new(PROFILES).join("sandforge.sh"), Path::new(HASHED).join(FILE_NAME)]);
    for entry in fs::read_dir(HASHED).into_iter().flatten().flatten() {
        let leads_to_ours = |target: PathBuf| target.file_name() == Some(FILE_NAME.as_ref());
        if fs::read_link(entry.path()).is_ok_and(leads_to_ours) {
            gone.push(entry.path());
        }
    }
    for path in gone {
        match fs::remove_file(path) {
            Err(error) if !is_absent(&error) => return Err(failed(error)),
            _ => {}
        }
    }
    Ok(unchanged)
}

fn variables() -> Vec<(Text, Text)> {
    let java = format!(
        "-Djavax.net.ssl.trustStore={JAVA_STORE} -Djavax.net.ssl.trustStoreType=PKCS12 \
         -Djavax.net.ssl.trustStorePassword=changeit"
    );
    let of_bundle = OF_BUNDLE.iter().map(|name| (Text::from(*name), Text::from(BUNDLE)));
    let of_authority = OF_AUTHORITY.iter().map(|name| (Text::from(*name), Text::from(AUTHORITY)));
    of_bundle
        .chain(of_authority)
        .chain([("JAVA_TOOL_OPTIONS".into(), Text::from(java.as_str()))])
        .collect()
}

/// The host's certificate.
#[derive(Debug)]
struct Authority {
    pem: String,
    hash: Option<u32>,
}

impl Authority {
    fn read(pem: &str) -> Result<Self, OpError> {
        match &certificate::decode(pem)[..] {
            [der] => Ok(Self {
                pem: format!("{}\n", pem.trim_ascii()),
                hash: certificate::subject_hash(der),
            }),
            others => {
                let message = format!("{} certificates to trust, and it takes one", others.len());
                Err(OpError::new(ErrorCode::Invalid, message))
            }
        }
    }

    /// What is put into a bundle, with a mark by which it is found again.
    fn marked(&self) -> String {
        format!("{MARK}\n{}{MARK_END}\n", self.pem)
    }
}

const MARK: &str = "# Added by sandforge";
const MARK_END: &str = "# End of what sandforge added";

/// A bundle without what was added to it before.
fn without_ours(bundle: &str) -> String {
    match (bundle.find(MARK), bundle.find(MARK_END)) {
        (Some(from), Some(to)) if from < to => {
            let rest = &bundle[to + MARK_END.len()..];
            format!("{}{}", &bundle[..from], rest.strip_prefix('\n').unwrap_or(rest))
        }
        _ => bundle.to_owned(),
    }
}

fn joined(bundle: &str, authority: &Authority) -> String {
    let separator = if bundle.is_empty() || bundle.ends_with('\n') { "" } else { "\n" };
    format!("{bundle}{separator}{}", authority.marked())
}

/// The system's certificates; none where it has none, or where nobody asks.
fn system_bundle(authority: Option<&Authority>) -> io::Result<String> {
    if authority.is_none() {
        return Ok(String::new());
    }
    for path in BUNDLES {
        if let Some(text) = read_bundle(Path::new(path))? {
            return Ok(without_ours(&text));
        }
    }
    Ok(String::new())
}

/// A bundle, where there is one. The root may hold anything under its name.
fn read_bundle(path: &Path) -> io::Result<Option<String>> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = match File::options().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > BUNDLE_MOST {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(BUNDLE_MOST).read_to_end(&mut bytes)?;
    // Comments in it may be of any encoding.
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ENXIO))
}

/// Lays [`DIRECTORY`] out anew.
fn fill(authority: Option<&Authority>, system: &str, kernel: Kernel) -> io::Result<()> {
    fs::create_dir_all(DIRECTORY)?;
    match unmount(DIRECTORY, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // It was not there before.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("sandforge", DIRECTORY, "tmpfs", flags, Some(c"mode=755,size=16m"))?;
    write_new(Path::new(NAMESERVER), NAMES.as_bytes())?;
    if let Some(authority) = authority {
        let bundle = joined(system, authority);
        write_new(Path::new(AUTHORITY), authority.pem.as_bytes())?;
        write_new(Path::new(BUNDLE), bundle.as_bytes())?;
        let store = java::trust_store(&certificate::decode(&bundle));
        write_new(Path::new(JAVA_STORE), &store)?;
        if kernel == Kernel::Shared {
            fs::create_dir(OVER_HASHED)?;
            hashed_link(authority, Path::new(OVER_HASHED))?;
            for path in BUNDLES.map(Path::new) {
                if path.parent() == Some(Path::new(HASHED))
                    && let Some(name) = path.file_name()
                    && path.exists()
                {
                    write_new(&Path::new(OVER_HASHED).join(name), bundle.as_bytes())?;
                }
            }
        }
    }
    mount_remount(DIRECTORY, MountFlags::BIND | MountFlags::RDONLY | flags, "")?;
    Ok(())
}

/// A file that everybody may read, of this name, whatever was there before.
fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".sandforge-new");
    let temporary = PathBuf::from(name);
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::create_new(&temporary)?;
    file.write_all(bytes)?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    fs::rename(&temporary, path)
}

/// Puts the certificate into a directory where OpenSSL finds it.
fn hashed_link(authority: &Authority, directory: &Path) -> io::Result<()> {
    write_new(&directory.join(FILE_NAME), authority.pem.as_bytes())?;
    let Some(hash) = authority.hash else { return Ok(()) };
    // Others of the same hash have the numbers before.
    for number in 0..10 {
        let link = directory.join(format!("{hash:08x}.{number}"));
        match fs::read_link(&link) {
            Ok(target) if target == Path::new(FILE_NAME) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            Err(_) => return symlink(FILE_NAME, link),
        }
    }
    Ok(())
}

/// In a root that is the sandbox's.
fn change_in_place(authority: &Authority) -> io::Result<Vec<(PathBuf, [u8; 20])>> {
    let mut bundles = Vec::new();
    for path in BUNDLES {
        // Some are links to others; each file is changed once, where it is.
        let Ok(path) = fs::canonicalize(path) else { continue };
        let Some(text) = read_bundle(&path)? else { continue };
        let clean = without_ours(&text);
        write_new(&path, joined(&clean, authority).as_bytes())?;
        bundles.push((path, sha1::digest(clean.as_bytes())));
    }
    if Path::new(HASHED).is_dir() {
        hashed_link(authority, Path::new(HASHED))?;
    }
    for (directory, name) in SOURCES {
        if Path::new(directory).is_dir() {
            write_new(&Path::new(directory).join(name), authority.pem.as_bytes())?;
        }
    }
    if Path::new(PROFILES).is_dir() {
        write_new(&Path::new(PROFILES).join("sandforge.sh"), &profile())?;
    }
    Ok(bundles)
}

/// The variables, for those that are not set.
fn profile() -> Vec<u8> {
    let line = |(name, value): (Text, Text)| {
        let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
        format!("[ -n \"${{{name}+set}}\" ] || export {name}='{value}'\n")
    };
    variables().into_iter().map(line).collect::<String>().into_bytes()
}

/// In a root that is the host's.
fn cover() -> io::Result<()> {
    let read_only = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    let mut hashed = None;
    if let Ok(directory) = fs::canonicalize(HASHED) {
        let _ = unmount(&directory, UnmountFlags::DETACH);
        let layers = format!("lowerdir={OVER_HASHED}:{}", directory.display());
        let layers = std::ffi::CString::new(layers).map_err(io::Error::other)?;
        mount("sandforge", &directory, "overlay", read_only, Some(&*layers))?;
        hashed = Some(directory);
    }
    for path in BUNDLES {
        let Ok(path) = fs::canonicalize(path) else { continue };
        if !hashed.as_ref().is_some_and(|directory| path.starts_with(directory)) {
            cover_file(BUNDLE, &path)?;
        }
    }
    Ok(())
}

fn cover_file(by: &str, path: &Path) -> io::Result<()> {
    // What covered it before; where nothing did, that is refused.
    let _ = unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    mount_bind(by, path)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount_remount(path, MountFlags::BIND | MountFlags::RDONLY | flags, "")?)
}

/// Names the nameserver.
fn resolver(kernel: Kernel) -> io::Result<()> {
    let path = Path::new(RESOLVER);
    match (kernel, fs::symlink_metadata(path)) {
        (Kernel::Own, _) => {
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            write_new(path, NAMES.as_bytes())
        }
        (Kernel::Shared, Ok(metadata)) if metadata.is_symlink() => {
            // Into a part of the root that is the sandbox's own, as a rule: /run.
            let target = Path::new("/etc").join(fs::read_link(path)?);
            match fs::canonicalize(&target) {
                Ok(found) => cover_file(NAMESERVER, &found),
                Err(_) => {
                    target.parent().map_or(Ok(()), fs::create_dir_all)?;
                    write_new(&target, NAMES.as_bytes())
                }
            }
        }
        (Kernel::Shared, Ok(_)) => cover_file(NAMESERVER, path),
        (Kernel::Shared, Err(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEM: &str = include_str!("authority.pem");

    #[test]
    fn a_bundle_gets_the_certificate_once_however_often_it_is_added() {
        let authority = Authority::read(PEM).unwrap();
        let once = joined("# others", &authority);
        assert_eq!(certificate::decode(&once).len(), 1);
        let again = joined(&without_ours(&once), &authority);
        assert_eq!(again, once);
        assert_eq!(without_ours(&once), "# others\n");
    }

    #[test]
    fn one_certificate_is_taken_and_nothing_else() {
        for text in ["", "x", &format!("{PEM}{PEM}")] {
            assert_eq!(Authority::read(text).unwrap_err().code, ErrorCode::Invalid);
        }
        assert!(Authority::read(&format!("\n{PEM}\n")).is_ok());
    }

    #[test]
    fn a_hashed_link_makes_room_for_others_and_is_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::read(PEM).unwrap();
        let name = |number| directory.path().join(format!("1e620e52.{number}"));
        fs::write(name(0), "of another").unwrap();
        for _ in 0..2 {
            hashed_link(&authority, directory.path()).unwrap();
        }
        assert_eq!(fs::read_to_string(name(1)).unwrap(), authority.pem);
        assert!(!name(2).exists());
    }

    #[test]
    fn what_only_has_a_bundle_s_name_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bundle");
        assert!(read_bundle(&path).unwrap().is_none());
        assert!(read_bundle(directory.path()).unwrap().is_none());
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert!(read_bundle(&path).unwrap().is_none());
    }
}
