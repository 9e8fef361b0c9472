//! The key of the encrypted file, and where it is kept.

use std::fmt;
use std::io::{Read as _, Write as _};
use std::iter;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use age::secrecy::{ExposeSecret as _, SecretString};
use age::x25519::Identity;
use age::{DecryptError, scrypt};
use wire::text::Secret;
use zeroize::Zeroizing;

use crate::Error;
use crate::directory::{Directory, Lock};

/// The key as it is.
const PLAIN: &str = "key";
/// The key, encrypted with a passphrase.
const SEALED: &str = "key.age";
/// Longest of either.
const MAX_FILE: usize = 4096;
/// Shortest passphrase that is taken for a new store, in bytes.
const MIN_PASSPHRASE: usize = 8;
/// Costliest passphrase that is tried, as a power of two: 4 GiB of memory. Ours take 256 MiB.
const MAX_WORK: u8 = 22;
/// What a passphrase costs to try, as a power of two: a second, as the `age` program has it.
pub(crate) const WORK: u8 = 18;

/// Asks for a passphrase.
pub type Ask = dyn Fn(Purpose) -> std::io::Result<Secret> + Send + Sync;

/// What a passphrase is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// For a new store: it is asked for twice.
    New,
    /// To open one.
    Open,
}

/// Where a passphrase comes from.
#[derive(Clone, Default)]
pub enum Passphrase {
    /// There is nobody to ask.
    #[default]
    None,
    /// The first line of a file.
    File(PathBuf),
    /// A person.
    Ask(Arc<Ask>),
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::File(path) => write!(f, "File({path:?})"),
            Self::Ask(_) => f.write_str("Ask"),
        }
    }
}

impl Passphrase {
    fn get(&self, purpose: Purpose) -> Result<SecretString, Error> {
        let bytes = match self {
            Self::None => return Err(Error::NoPassphrase),
            Self::Ask(ask) => {
                // Who does not answer gives none.
                let secret = ask(purpose).map_err(|_| Error::NoPassphrase)?;
                Zeroizing::new(secret.expose().to_vec())
            }
            Self::File(path) => {
                let read = Error::file("read", path);
                let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FILE + 1));
                std::fs::File::open(path)
                    .and_then(|file| file.take(MAX_FILE as u64).read_to_end(&mut bytes))
                    .map_err(read)?;
                let end = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
                let end = end.unwrap_or(bytes.len());
                bytes.truncate(end);
                bytes
            }
        };
        if purpose == Purpose::New && bytes.len() < MIN_PASSPHRASE {
            return Err(Error::WeakPassphrase { least: MIN_PASSPHRASE });
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| Error::NoPassphrase)?;
        Ok(SecretString::from(text))
    }
}

/// Where the key is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Passphrase,
    KeyFile,
    KernelKeyring,
}

/// The key, once it was got.
#[derive(Debug)]
pub(crate) struct Holder {
    place: Place,
    passphrase: Passphrase,
    work: u8,
    identity: Mutex<Held>,
}

#[derive(Default)]
struct Held(Option<Arc<Identity>>);

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "[key]" } else { "None" })
    }
}

impl Holder {
    pub(crate) fn new(place: Place, passphrase: Passphrase, work: u8) -> Self {
        Self { place, passphrase, work, identity: Mutex::default() }
    }

    /// Gets it again the next time: somebody made another.
    pub(crate) fn forget(&self) {
        self.lock().0 = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Held> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key, which has to be there.
    pub(crate) fn get(&self, directory: &Directory) -> Result<Arc<Identity>, Error> {
        let mut held = self.lock();
        if let Some(identity) = &held.0 {
            return Ok(identity.clone());
        }
        let identity = Arc::new(self.stored(directory)?.ok_or_else(|| Error::KeyGone {
            place: match self.place {
                Place::Passphrase => format!("{:?}", directory.path(SEALED)),
                Place::KeyFile => format!("{:?}", directory.path(PLAIN)),
                Place::KernelKeyring => {
                    "which the kernel kept until this computer was restarted".into()
                }
            },
        })?);
        held.0 = Some(identity.clone());
        Ok(identity)
    }

    /// The key, made where there is none.
    pub(crate) fn get_or_make(
        &self,
        directory: &Directory,
        lock: &Lock,
    ) -> Result<Arc<Identity>, Error> {
        if self.lock().0.is_none() && self.stored_bytes(directory)?.is_none() {
            let identity = Identity::generate();
            self.keep(&identity, directory, lock)?;
            self.lock().0 = Some(Arc::new(identity));
        }
        self.get(directory)
    }

    pub(crate) fn remove(&self, directory: &Directory, lock: &Lock) -> Result<(), Error> {
        self.forget();
        directory.remove(lock, PLAIN)?;
        directory.remove(lock, SEALED)?;
        if self.place == Place::KernelKeyring {
            kernel::remove(&directory.path(""))?;
        }
        Ok(())
    }

    fn stored_bytes(&self, directory: &Directory) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        match self.place {
            Place::KeyFile => directory.read(PLAIN, MAX_FILE),
            Place::Passphrase => directory.read(SEALED, MAX_FILE),
            Place::KernelKeyring => kernel::read(&directory.path("")),
        }
    }

    fn stored(&self, directory: &Directory) -> Result<Option<Identity>, Error> {
        let Some(bytes) = self.stored_bytes(directory)? else { return Ok(None) };
        let (path, plain) = match self.place {
            Place::Passphrase => {
                let path = directory.path(SEALED);
                let mut identity = scrypt::Identity::new(self.passphrase.get(Purpose::Open)?);
                identity.set_max_work_factor(MAX_WORK);
                let plain = decrypt(&identity, &bytes).map_err(|error| match error {
                    DecryptError::KeyDecryptionFailed | DecryptError::DecryptionFailed => {
                        Error::WrongPassphrase { path: path.clone() }
                    }
                    error => Error::Damaged { path: path.clone(), reason: error.to_string() },
                })?;
                (path, plain)
            }
            _ => (directory.path(PLAIN), bytes),
        };
        let damaged = || Error::Damaged { path, reason: "it is not a key".to_owned() };
        let text = std::str::from_utf8(&plain).unwrap_or_default();
        text.trim().parse().map(Some).map_err(|_| damaged())
    }

    fn keep(&self, identity: &Identity, directory: &Directory, lock: &Lock) -> Result<(), Error> {
        let text = identity.to_string();
        let line = Zeroizing::new(format!("{}\n", text.expose_secret()).into_bytes());
        match self.place {
            Place::KeyFile => directory.write(lock, PLAIN, &line),
            Place::KernelKeyring => kernel::write(&directory.path(""), &line),
            Place::Passphrase => {
                let mut recipient = scrypt::Recipient::new(self.passphrase.get(Purpose::New)?);
                recipient.set_work_factor(self.work);
                directory.write(lock, SEALED, &encrypt(&recipient, &line))
            }
        }
    }
}

pub(crate) fn encrypt(recipient: &dyn age::Recipient, plain: &[u8]) -> Vec<u8> {
    let encryptor = age::Encryptor::with_recipients(iter::once(recipient)).expect("there is one");
    let mut sealed = Vec::with_capacity(plain.len() + 1024);
    let written = encryptor.wrap_output(&mut sealed).and_then(|mut writer| {
        writer.write_all(plain)?;
        writer.finish()
    });
    written.expect("a vector takes everything");
    sealed
}

pub(crate) fn decrypt(
    identity: &dyn age::Identity,
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, DecryptError> {
    let mut reader = age::Decryptor::new(sealed)?.decrypt(iter::once(identity))?;
    // What is encrypted is longer than what it says; a vector that grows would leave copies behind.
    let mut plain = Zeroizing::new(Vec::with_capacity(sealed.len()));
    reader.read_to_end(&mut plain)?;
    Ok(plain)
}

/// The keyring of this user in the kernel: in memory, for as long as the computer runs.
mod kernel {
    use std::path::Path;

    use linux_keyutils::{KeyError, KeyPermissionsBuilder, KeyRing, KeyRingIdentifier, Permission};
    use zeroize::Zeroizing;

    use crate::Error;

    fn failed(error: KeyError) -> Error {
        Error::KernelKeyring { reason: format!("{error:?}") }
    }

    fn ring() -> Result<KeyRing, Error> {
        KeyRing::from_special_id(KeyRingIdentifier::User, true).map_err(failed)
    }

    fn name(directory: &Path) -> String {
        format!("sandforge:{}", directory.display())
    }

    pub(super) fn read(directory: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        match ring()?.search(&name(directory)) {
            Ok(key) => key.read_to_vec().map(|bytes| Some(Zeroizing::new(bytes))).map_err(failed),
            Err(KeyError::KeyDoesNotExist | KeyError::KeyExpired | KeyError::KeyRevoked) => {
                Ok(None)
            }
            Err(error) => Err(failed(error)),
        }
    }

    pub(super) fn write(directory: &Path, bytes: &[u8]) -> Result<(), Error> {
        let key = ring()?.add_key(&name(directory), bytes).map_err(failed)?;
        // Another session of this user has it by being this user, not by having made it.
        let permissions = KeyPermissionsBuilder::builder()
            .posessor(Permission::ALL)
            .user(Permission::VIEW | Permission::READ | Permission::SEARCH | Permission::WRITE)
            .build();
        key.set_perms(permissions).map_err(failed)
    }

    pub(super) fn remove(directory: &Path) -> Result<(), Error> {
        let ring = ring()?;
        match ring.search(&name(directory)) {
            Ok(key) => ring.unlink_key(key).map_err(failed),
            Err(KeyError::KeyDoesNotExist) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }
}
