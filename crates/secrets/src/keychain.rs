//! The keychain of a Linux desktop: whoever serves `org.freedesktop.secrets` on the session bus, such as
//! GNOME Keyring, KWallet and KeePassXC. What crosses the bus is encrypted.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use secret_service::{EncryptionType, Item, SecretService};
use zeroize::Zeroizing;

use crate::Error;
use crate::directory::Lock;
use crate::record::{Key, Record, Scope};
use crate::vault::{MAX_SECRETS, Vault};

/// How long a keychain may take to say that it is there.
const ANSWER: Duration = Duration::from_secs(5);
/// How long the user may take to unlock it.
const UNLOCK: Duration = Duration::from_secs(120);

const APPLICATION: &str = "sandforge";

/// The items of one directory: another has its own.
#[derive(Debug)]
pub(crate) struct Keychain {
    directory: PathBuf,
}

impl Keychain {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Whether there is one that keeps something longer than the session.
    pub(crate) fn probe() -> Result<(), Error> {
        with(ANSWER, async |service| {
            service.get_default_collection().await.map(|_| ()).map_err(|error| match error {
                secret_service::Error::NoResult => Problem::new("it has no keyring by default"),
                error => error.into(),
            })
        })
    }

    fn application(&self) -> HashMap<String, String> {
        [("application", APPLICATION), ("directory", &self.directory.to_string_lossy())]
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    fn attributes(&self, key: &Key) -> HashMap<String, String> {
        let (scope, sandbox) = match &key.scope {
            Scope::Global => ("global", ""),
            Scope::Sandbox(id) => ("sandbox", id.as_str()),
        };
        let mut attributes = self.application();
        for (name, value) in [
            ("workspace", key.workspace.as_str()),
            ("scope", scope),
            ("sandbox", sandbox),
            ("service", &key.service),
        ] {
            attributes.insert(name.to_owned(), value.to_owned());
        }
        attributes
    }

    /// The records of all items with these attributes.
    fn read(attributes: &HashMap<String, String>) -> Result<Vec<(Key, Record)>, Error> {
        let items = with(UNLOCK, async |service| {
            // Without one there is another login's keychain, or none yet, and ours are not in it.
            service.get_default_collection().await?;
            let mut secrets = Vec::new();
            for item in found(service, attributes).await? {
                item.ensure_unlocked_by_user().await?;
                let secret = Zeroizing::new(item.get_secret().await?);
                secrets.push((item.get_attributes().await?, secret));
            }
            Ok(secrets)
        })?;
        items.into_iter().map(|(attributes, secret)| record(&attributes, &secret)).collect()
    }
}

impl Vault for Keychain {
    fn all(&self) -> Result<Vec<(Key, Record)>, Error> {
        Self::read(&self.application())
    }

    fn get(&self, key: &Key) -> Result<Option<Record>, Error> {
        Ok(Self::read(&self.attributes(key))?.into_iter().next().map(|(_, record)| record))
    }

    fn put(&self, _: &Lock, key: &Key, record: &Record) -> Result<(), Error> {
        let attributes = self.attributes(key);
        let application = self.application();
        let label = format!("Sandforge: {} {}", key.service, key.scope);
        let secret = record.render();
        let is_full = with(UNLOCK, async |service| {
            let others = found(service, &application).await?.len();
            if others >= MAX_SECRETS && found(service, &attributes).await?.is_empty() {
                return Ok(true);
            }
            let collection = service.get_default_collection().await?;
            if collection.is_locked().await? {
                collection.unlock().await?;
            }
            let borrowed = borrowed(&attributes);
            collection.create_item(&label, borrowed, &secret, true, "application/json").await?;
            Ok(false)
        })?;
        if is_full { Err(Error::Full { limit: MAX_SECRETS }) } else { Ok(()) }
    }

    fn remove(&self, _: &Lock, keys: &[Key]) -> Result<usize, Error> {
        let all: Vec<_> = keys.iter().map(|key| self.attributes(key)).collect();
        with(UNLOCK, async |service| {
            let mut removed = 0;
            for attributes in &all {
                for item in found(service, attributes).await? {
                    item.ensure_unlocked_by_user().await?;
                    item.delete().await?;
                    removed += 1;
                }
            }
            Ok(removed)
        })
    }

    fn clear(&self, _: &Lock) -> Result<(), Error> {
        let attributes = self.application();
        with(UNLOCK, async |service| {
            for item in found(service, &attributes).await? {
                item.ensure_unlocked_by_user().await?;
                item.delete().await?;
            }
            Ok(())
        })
    }
}

trait Unlock {
    async fn ensure_unlocked_by_user(&self) -> Result<(), secret_service::Error>;
}

impl Unlock for Item<'_> {
    async fn ensure_unlocked_by_user(&self) -> Result<(), secret_service::Error> {
        if self.is_locked().await? { self.unlock().await } else { Ok(()) }
    }
}

fn borrowed(attributes: &HashMap<String, String>) -> HashMap<&str, &str> {
    attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

async fn found<'a>(
    service: &'a SecretService<'a>,
    attributes: &HashMap<String, String>,
) -> Result<Vec<Item<'a>>, Problem> {
    let items = service.search_items(borrowed(attributes)).await?;
    Ok(items.unlocked.into_iter().chain(items.locked).collect())
}

fn record(attributes: &HashMap<String, String>, secret: &[u8]) -> Result<(Key, Record), Error> {
    let get = |name: &str| attributes.get(name).cloned().unwrap_or_default();
    let scope = match get("scope").as_str() {
        "sandbox" => Scope::Sandbox(get("sandbox")),
        _ => Scope::Global,
    };
    let key = Key { workspace: get("workspace"), scope, service: get("service") };
    let unreadable = |reason: &str| Error::Keychain {
        reason: format!("its item for {} {} {reason}", key.service, key.scope),
    };
    // The message of the parser may quote what it read.
    let record: Record = serde_json::from_slice(secret)
        .map_err(|_| unreadable("makes no sense; remove it there"))?;
    if record.version > Record::VERSION {
        return Err(unreadable("is of a later version of Sandforge"));
    }
    Ok((key, record))
}

/// What the keychain said.
struct Problem(String);

impl Problem {
    fn new(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<secret_service::Error> for Problem {
    fn from(error: secret_service::Error) -> Self {
        use secret_service::Error as E;
        Self(match error {
            E::Unavailable => "there is none on this session's bus".to_owned(),
            E::Locked => "it is locked".to_owned(),
            E::Prompt | E::PromptDisconnected => "it was not unlocked".to_owned(),
            E::NoResult => "it has no keyring by default".to_owned(),
            error => {
                let text = error.to_string();
                text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
            }
        })
    }
}

impl fmt::Debug for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Runs something on the bus, on a thread of its own: whoever calls may be on a runtime already.
fn with<T: Send>(
    limit: Duration,
    run: impl AsyncFnOnce(&SecretService<'_>) -> Result<T, Problem> + Send,
) -> Result<T, Error> {
    let done = thread::scope(|scope| {
        let work = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|error| Problem(error.to_string()))?;
            runtime.block_on(async {
                let connected = SecretService::connect(EncryptionType::Dh);
                let service = tokio::time::timeout(ANSWER, connected)
                    .await
                    .map_err(|_| Problem::new("it does not answer"))??;
                tokio::time::timeout(limit, run(&service))
                    .await
                    .map_err(|_| Problem::new("it was not unlocked in time"))?
            })
        };
        scope.spawn(work).join()
    });
    match done {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(Problem(reason))) => Err(Error::Keychain { reason }),
        Err(_) => Err(Error::Keychain { reason: "what it said makes no sense".to_owned() }),
    }
}
