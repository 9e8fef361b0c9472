//! Secrets by workspace, scope and service.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use services::{Catalogue, Kind, Service, Unusable};
use wire::text::Secret;
use zeroize::Zeroizing;

use crate::directory::{Directory, Lock};
use crate::key::{self, Holder, Passphrase, WORK};
use crate::keychain::Keychain;
use crate::record::{Entry, Key, New, Record, Scope, Source, check_value};
use crate::vault::{Sealed, Vault};
use crate::{Error, source};

/// Says where the secrets are, in the clear.
const MARK: &str = "store.json";

/// Where secrets are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// The keychain of the operating system.
    Keychain,
    /// A file, encrypted with a passphrase.
    Passphrase,
    /// A file whose key is in another file.
    KeyFile,
    /// A file whose key is in the kernel's memory, until this computer is restarted.
    KernelKeyring,
}

impl Place {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::Keychain, Self::Passphrase, Self::KeyFile, Self::KernelKeyring];

    /// As it is written in a setting.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Keychain => "keychain",
            Self::Passphrase => "passphrase",
            Self::KeyFile => "key-file",
            Self::KernelKeyring => "kernel-keyring",
        }
    }

    fn in_words(self) -> &'static str {
        match self {
            Self::Keychain => "in the keychain",
            Self::Passphrase => "in a file encrypted with a passphrase",
            Self::KeyFile => "in an encrypted file with a key file",
            Self::KernelKeyring => "in a file encrypted with a key in the kernel",
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// No place has that name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none of keychain, passphrase, key-file and kernel-keyring")]
pub struct UnknownPlace(String);

impl FromStr for Place {
    type Err = UnknownPlace;

    fn from_str(text: &str) -> Result<Self, UnknownPlace> {
        let found = Self::ALL.into_iter().find(|place| place.as_str() == text);
        found.ok_or_else(|| UnknownPlace(text.to_owned()))
    }
}

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where secrets go. `None`: into the keychain where there is one, else into a file.
    pub place: Option<Place>,
    /// Where a passphrase comes from.
    pub passphrase: Passphrase,
    /// How long a command that prints a secret may take.
    pub command_timeout: Duration,
    /// What a passphrase costs to try, as a power of two. `None`: about a second.
    pub work_factor: Option<u8>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            place: None,
            passphrase: Passphrase::None,
            command_timeout: Duration::from_secs(30),
            work_factor: None,
        }
    }
}

/// Where the secrets are, and why there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Where.
    pub place: Place,
    /// The store's directory.
    pub directory: PathBuf,
    /// Why not in the keychain, if the choice was ours.
    pub reason: Option<String>,
    /// There is something in it, or was.
    pub is_made: bool,
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.directory.join("secrets.age");
        match self.place {
            Place::Keychain => f.write_str("in the keychain of your session (Secret Service)"),
            Place::Passphrase => write!(f, "in {file:?}, encrypted with a passphrase"),
            Place::KeyFile => {
                let key = self.directory.join("key");
                write!(
                    f,
                    "in {file:?}, encrypted; its key is in {key:?}, and who reads both reads them"
                )
            }
            Place::KernelKeyring => {
                write!(
                    f,
                    "in {file:?}, encrypted with a key that is lost when this computer restarts"
                )
            }
        }?;
        match &self.reason {
            Some(reason) => write!(f, " (there is no keychain here: {reason})"),
            None => Ok(()),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mark {
    version: u32,
    place: Place,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// The secrets below a directory. Calls block: on files, on the keychain, and on its user.
#[derive(Debug)]
pub struct Store {
    directory: Directory,
    path: PathBuf,
    options: Options,
    vaults: [OnceLock<Box<dyn Vault>>; Place::ALL.len()],
}

/// A credential that was asked for.
#[derive(Debug, Clone)]
pub struct Found {
    /// Whose it is.
    pub service: Arc<Service>,
    /// The value.
    pub secret: Secret,
    /// Where it came from.
    pub origin: Origin,
}

/// Where a credential comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The store.
    Stored(Scope),
    /// A variable that the service's own programs read too.
    Environment(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stored(Scope::Global) => f.write_str("stored for every sandbox"),
            Self::Stored(Scope::Sandbox(_)) => f.write_str("stored for this sandbox"),
            Self::Environment(variable) => write!(f, "from ${variable}"),
        }
    }
}

impl Store {
    /// The store below a directory, which is made when something is kept. Nothing is asked yet.
    pub fn open(directory: &Path, options: Options) -> Self {
        Self {
            directory: Directory::new(directory),
            path: directory.to_owned(),
            options,
            vaults: Default::default(),
        }
    }

    /// Where secrets are, or would go.
    ///
    /// # Errors
    /// The directory cannot be read, or holds a store of another kind than was asked for.
    pub fn describe(&self) -> Result<Description, Error> {
        let (mark, is_made) = match self.mark()? {
            Some(mark) => (mark, true),
            None => (self.choose()?, false),
        };
        Ok(Description {
            place: mark.place,
            directory: self.path.clone(),
            reason: mark.reason,
            is_made,
        })
    }

    /// Keeps a secret, in place of the one that is there.
    ///
    /// # Errors
    /// It is not well-formed, its service is not known, or it cannot be kept. What was there before
    /// is there still.
    pub fn set(&self, catalogue: &Catalogue, key: &Key, new: New) -> Result<Entry, Error> {
        key.check()?;
        new.source.check()?;
        let now = now_ms();
        let mut record = Record {
            version: Record::VERSION,
            source: new.source,
            parameters: new.parameters,
            custom: new.custom,
            created_ms: now,
            changed_ms: now,
        };
        let service = record.service(key, catalogue)?;
        if let Source::Value(secret) = &record.source {
            check_kind(&service, secret)?;
        }
        let lock = self.directory.lock()?;
        let mark = match self.mark()? {
            Some(mark) => mark,
            None => self.make(&lock)?,
        };
        let vault = self.vault(mark.place);
        if let Some(before) = vault.get(key)? {
            record.created_ms = before.created_ms;
        }
        vault.put(&lock, key, &record)?;
        Ok(record.entry(key))
    }

    /// The secrets of a workspace, without values, by scope and name.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn list(&self, workspace: &str) -> Result<Vec<Entry>, Error> {
        let mut entries: Vec<Entry> = self
            .records()?
            .into_iter()
            .filter(|(key, _)| key.workspace == workspace)
            .map(|(key, record)| record.entry(&key))
            .collect();
        entries.sort_by(|one, other| one.key.cmp(&other.key));
        Ok(entries)
    }

    /// A secret, without its value.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        let Some(mark) = self.mark()? else { return Ok(None) };
        Ok(self.vault(mark.place).get(key)?.map(|record| record.entry(key)))
    }

    /// Removes a secret; whether there was one.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub fn remove(&self, key: &Key) -> Result<bool, Error> {
        Ok(self.remove_all(|other| other == key)? > 0)
    }

    /// Removes the secrets of a sandbox that is no more; how many there were.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub fn remove_sandbox(&self, workspace: &str, sandbox: &str) -> Result<usize, Error> {
        self.remove_all(|key| {
            key.workspace == workspace && matches!(&key.scope, Scope::Sandbox(id) if id == sandbox)
        })
    }

    /// Gives up all secrets of all workspaces, readable or not, and the key.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn reset(&self) -> Result<(), Error> {
        if !self.directory.exists() {
            return Ok(());
        }
        let lock = self.directory.lock()?;
        let Some(mark) = self.read_mark()? else { return Ok(()) };
        self.vault(mark.place).clear(&lock)?;
        self.directory.remove(&lock, MARK)
    }

    /// The credential of a service for a sandbox: its own before the workspace's before a variable of
    /// `environment`. `sandbox` is `None` for one that is yet to be.
    ///
    /// # Errors
    /// The store cannot be read, the value not be had, or the service not be used.
    pub fn find(
        &self,
        catalogue: &Catalogue,
        workspace: &str,
        sandbox: Option<&str>,
        service: &str,
        environment: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Option<Found>, Error> {
        let scopes = sandbox.map(|id| Scope::Sandbox(id.to_owned())).into_iter();
        for scope in scopes.chain([Scope::Global]) {
            let key = Key { workspace: workspace.to_owned(), scope, service: service.to_owned() };
            let Some(mark) = self.mark()? else { break };
            let Some(record) = self.vault(mark.place).get(&key)? else { continue };
            let found = record.service(&key, catalogue)?;
            let timeout = self.options.command_timeout;
            let secret = source::value(service, &record.source, timeout, environment)?;
            check_kind(&found, &secret)?;
            return Ok(Some(Found { service: found, secret, origin: Origin::Stored(key.scope) }));
        }
        let found = match catalogue.get(service) {
            Ok(found) => found,
            // Of one's own, and there is none.
            Err(Unusable::Unknown { .. }) => return Ok(None),
            Err(error) => match variable(&catalogue.sample(service)?.env, environment) {
                Some(_) => return Err(error.into()),
                None => return Ok(None),
            },
        };
        from_environment(found, environment)
    }

    /// The services that `find` would have a credential for, with where it would come from. No
    /// command is run, and no value is looked at.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn available(
        &self,
        catalogue: &Catalogue,
        workspace: &str,
        sandbox: Option<&str>,
        environment: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<BTreeMap<String, Origin>, Error> {
        let mut available = BTreeMap::new();
        for name in catalogue.names() {
            let service = catalogue.sample(name)?;
            if let (Some(variable), Ok(_)) =
                (variable(&service.env, environment), catalogue.get(name))
            {
                available.insert(name.to_owned(), Origin::Environment(variable.to_owned()));
            }
        }
        let mut entries = self.list(workspace)?;
        // Sandboxes come after what is global, and win.
        entries.retain(|entry| match &entry.key.scope {
            Scope::Global => true,
            Scope::Sandbox(id) => Some(id.as_str()) == sandbox,
        });
        for entry in entries {
            available.insert(entry.key.service, Origin::Stored(entry.key.scope));
        }
        Ok(available)
    }

    fn records(&self) -> Result<Vec<(Key, Record)>, Error> {
        match self.mark()? {
            Some(mark) => self.vault(mark.place).all(),
            None => Ok(Vec::new()),
        }
    }

    fn remove_all(&self, is_meant: impl Fn(&Key) -> bool) -> Result<usize, Error> {
        if self.mark()?.is_none() {
            return Ok(0);
        }
        let lock = self.directory.lock()?;
        let Some(mark) = self.mark()? else { return Ok(0) };
        let vault = self.vault(mark.place);
        let keys = vault.all()?.into_iter().map(|(key, _)| key).filter(|key| is_meant(key));
        let keys: Vec<Key> = keys.collect();
        match keys.is_empty() {
            true => Ok(0),
            false => vault.remove(&lock, &keys),
        }
    }

    /// What says where the secrets are, if there are any and it is where they were asked for.
    fn mark(&self) -> Result<Option<Mark>, Error> {
        let mark = self.read_mark()?;
        match (&mark, self.options.place) {
            (Some(mark), Some(asked)) if mark.place != asked => Err(Error::OtherStore {
                stored: mark.place.in_words().to_owned(),
                chosen: asked.to_string(),
            }),
            _ => Ok(mark),
        }
    }

    fn read_mark(&self) -> Result<Option<Mark>, Error> {
        let Some(bytes) = self.directory.read(MARK, 4096)? else { return Ok(None) };
        let path = self.directory.path(MARK);
        let mark: Mark = serde_json::from_slice(&bytes)
            .map_err(|error| Error::Damaged { path: path.clone(), reason: error.to_string() })?;
        match mark.version {
            1 => Ok(Some(mark)),
            _ => Err(Error::Later { path }),
        }
    }

    fn choose(&self) -> Result<Mark, Error> {
        let (place, reason) = match (self.options.place, &self.options.passphrase) {
            (Some(Place::Keychain), _) => {
                Keychain::probe()?;
                (Place::Keychain, None)
            }
            (Some(place), _) => (place, None),
            (None, passphrase) => match (Keychain::probe(), passphrase) {
                (Ok(()), _) => (Place::Keychain, None),
                (Err(error), passphrase) => {
                    let reason = match error {
                        Error::Keychain { reason } => reason,
                        error => error.to_string(),
                    };
                    let place = match passphrase {
                        Passphrase::File(_) => Place::Passphrase,
                        _ => Place::KeyFile,
                    };
                    (place, Some(reason))
                }
            },
        };
        Ok(Mark { version: 1, place, reason })
    }

    fn make(&self, lock: &Lock) -> Result<Mark, Error> {
        let mark = self.choose()?;
        let text = serde_json::to_vec(&mark).expect("it has no keys that are no text");
        self.directory.write(lock, MARK, &text)?;
        Ok(mark)
    }

    fn vault(&self, place: Place) -> &dyn Vault {
        let index = Place::ALL.iter().position(|other| *other == place).unwrap_or_default();
        let make = || -> Box<dyn Vault> {
            let key = match place {
                Place::Keychain => {
                    // Its items are found by the name, whichever way the directory is come by.
                    let path = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
                    return Box::new(Keychain::new(path));
                }
                Place::Passphrase => key::Place::Passphrase,
                Place::KeyFile => key::Place::KeyFile,
                Place::KernelKeyring => key::Place::KernelKeyring,
            };
            let work = self.options.work_factor.unwrap_or(WORK);
            let holder = Holder::new(key, self.options.passphrase.clone(), work);
            Box::new(Sealed::new(self.directory.clone(), holder))
        };
        &**self.vaults[index].get_or_init(make)
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn check_kind(service: &Service, secret: &Secret) -> Result<(), Error> {
    let parts = secret.expose().split(|byte| *byte == b':').collect::<Vec<_>>();
    match service.kind {
        Kind::Aws { .. }
            if !(2..=3).contains(&parts.len()) || parts.iter().any(|one| one.is_empty()) =>
        {
            Err(Error::Value { problem: "is not of the form ID:KEY or ID:KEY:TOKEN" })
        }
        _ => Ok(()),
    }
}

/// The first variable that is set.
fn variable<'a>(
    names: &'a [String],
    environment: &dyn Fn(&str) -> Option<OsString>,
) -> Option<&'a str> {
    let is_set = |name: &&String| environment(name).is_some_and(|value| !value.is_empty());
    names.iter().find(is_set).map(String::as_str)
}

fn from_environment(
    service: Arc<Service>,
    environment: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Option<Found>, Error> {
    let get = |name: &String| {
        let value = environment(name).map(|value| Zeroizing::new(value.into_vec()));
        value.filter(|value| !value.is_empty())
    };
    let (name, value) = match service.kind {
        Kind::Static => match service.env.iter().find_map(|name| Some((name, get(name)?))) {
            Some(found) => found,
            None => return Ok(None),
        },
        Kind::Aws { .. } => {
            let parts: Vec<_> = service.env.iter().map_while(get).collect();
            let [name, ..] = &service.env[..] else { return Ok(None) };
            if parts.len() < 2 {
                return Ok(None);
            }
            let length = parts.iter().map(|part| part.len() + 1).sum();
            let mut joined = Zeroizing::new(Vec::with_capacity(length));
            for (index, part) in parts.iter().enumerate() {
                if index > 0 {
                    joined.push(b':');
                }
                joined.extend_from_slice(part);
            }
            (name, joined)
        }
    };
    check_value(&value)?;
    let secret = Secret::new(value.to_vec()).map_err(|_| Error::Value { problem: "has a NUL" })?;
    check_kind(&service, &secret)?;
    let origin = Origin::Environment(name.clone());
    Ok(Some(Found { service, secret, origin }))
}
