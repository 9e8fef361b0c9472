//! What keeps secrets: an encrypted file here, the keychain of the operating system there.

use std::fmt;

use age::DecryptError;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::Error;
use crate::directory::{Directory, Lock};
use crate::key::{self, Holder};
use crate::record::{Key, MAX_SECRET, Record};

/// Most secrets of a store.
pub(crate) const MAX_SECRETS: usize = 1000;

/// The encrypted file.
const SEALED: &str = "secrets.age";
/// Longest of it.
const MAX_FILE: usize = MAX_SECRETS * 8 * MAX_SECRET;

/// Where records are. Whoever changes something holds the lock of the store's directory.
pub(crate) trait Vault: fmt::Debug + Send + Sync {
    /// All records, in no order.
    fn all(&self) -> Result<Vec<(Key, Record)>, Error>;
    /// One.
    fn get(&self, key: &Key) -> Result<Option<Record>, Error>;
    /// Keeps one, in place of the one that is there.
    fn put(&self, lock: &Lock, key: &Key, record: &Record) -> Result<(), Error>;
    /// Removes some; how many there were.
    fn remove(&self, lock: &Lock, keys: &[Key]) -> Result<usize, Error>;
    /// Removes everything, readable or not.
    fn clear(&self, lock: &Lock) -> Result<(), Error>;
}

/// A file that is encrypted as a whole, names and all.
#[derive(Debug)]
pub(crate) struct Sealed {
    directory: Directory,
    holder: Holder,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    secrets: Vec<(Key, Record)>,
}

const VERSION: u32 = 1;

impl Sealed {
    pub(crate) fn new(directory: Directory, holder: Holder) -> Self {
        Self { directory, holder }
    }

    fn open(&self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let damaged = |error: DecryptError| Error::Damaged {
            path: self.directory.path(SEALED),
            reason: error.to_string(),
        };
        let identity = self.holder.get(&self.directory)?;
        match key::decrypt(&*identity, sealed) {
            // Another process may have given everything up and begun anew.
            Err(DecryptError::NoMatchingKeys) => {
                self.holder.forget();
                let identity = self.holder.get(&self.directory)?;
                key::decrypt(&*identity, sealed).map_err(damaged)
            }
            opened => opened.map_err(damaged),
        }
    }

    fn load(&self) -> Result<Vec<(Key, Record)>, Error> {
        let Some(sealed) = self.directory.read(SEALED, MAX_FILE)? else { return Ok(Vec::new()) };
        let plain = self.open(&sealed)?;
        let path = || self.directory.path(SEALED);
        let damaged = |error: serde_json::Error| Error::Damaged {
            path: path(),
            // Its message may quote what it read.
            reason: format!("it makes no sense at byte {}", error.column()),
        };
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let version: Version = serde_json::from_slice(&plain).map_err(damaged)?;
        if version.version > VERSION {
            return Err(Error::Later { path: path() });
        }
        let document: Document = serde_json::from_slice(&plain).map_err(damaged)?;
        Ok(document.secrets)
    }

    fn save(&self, lock: &Lock, secrets: Vec<(Key, Record)>) -> Result<(), Error> {
        let identity = match self.directory.read(SEALED, MAX_FILE)? {
            Some(_) => self.holder.get(&self.directory)?,
            None => self.holder.get_or_make(&self.directory, lock)?,
        };
        let size = secrets.len() * (2048 + 6 * MAX_SECRET) + 1024;
        let mut plain = Zeroizing::new(Vec::with_capacity(size));
        serde_json::to_writer(&mut *plain, &Document { version: VERSION, secrets })
            .expect("it has no keys that are no text");
        let sealed = key::encrypt(&identity.to_public(), &plain);
        self.directory.write(lock, SEALED, &sealed)
    }
}

impl Vault for Sealed {
    fn all(&self) -> Result<Vec<(Key, Record)>, Error> {
        self.load()
    }

    fn get(&self, key: &Key) -> Result<Option<Record>, Error> {
        let found = self.load()?.into_iter().find(|(other, _)| other == key);
        Ok(found.map(|(_, record)| record))
    }

    fn put(&self, lock: &Lock, key: &Key, record: &Record) -> Result<(), Error> {
        let mut secrets = self.load()?;
        secrets.retain(|(other, _)| other != key);
        if secrets.len() >= MAX_SECRETS {
            return Err(Error::Full { limit: MAX_SECRETS });
        }
        secrets.push((key.clone(), record.clone()));
        self.save(lock, secrets)
    }

    fn remove(&self, lock: &Lock, keys: &[Key]) -> Result<usize, Error> {
        let mut secrets = self.load()?;
        let before = secrets.len();
        secrets.retain(|(key, _)| !keys.contains(key));
        let removed = before - secrets.len();
        if removed > 0 {
            self.save(lock, secrets)?;
        }
        Ok(removed)
    }

    fn clear(&self, lock: &Lock) -> Result<(), Error> {
        self.directory.remove(lock, SEALED)?;
        self.holder.remove(&self.directory, lock)
    }
}
