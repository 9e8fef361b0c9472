//! Why a secret cannot be kept or had.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What can go wrong with stored secrets. None of it names a value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the store cannot be read or written.
    #[error("cannot {action} {path:?}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The directory or a file in it is not this user's alone.
    #[error("{path:?} is not private: {reason}")]
    NotPrivate {
        /// Which.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: &'static str,
    },
    /// The file cannot be decrypted or makes no sense. Nothing was changed.
    #[error(
        "{path:?} is damaged ({reason}), and was left as it is; put back a copy, or give up what is in it \
         with `sandforge secret reset`"
    )]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// The passphrase is not the one that the secrets were encrypted with. Nothing was changed.
    #[error(
        "the passphrase is not the one that {path:?} was encrypted with, unless that is damaged"
    )]
    WrongPassphrase {
        /// The key that it does not open.
        path: PathBuf,
    },
    /// Nobody gave a passphrase.
    #[error(
        "the secrets are encrypted with a passphrase; run in a terminal, or name a file that holds it with \
         SANDFORGE_SECRETS_PASSPHRASE_FILE"
    )]
    NoPassphrase,
    /// It would be guessed.
    #[error("a passphrase has {least} characters at least")]
    WeakPassphrase {
        /// How many.
        least: usize,
    },
    /// The key of the file is gone, and with it what is in the file.
    #[error(
        "the key of the secrets, {place}, is gone; put it back, or give up what it encrypts with \
         `sandforge secret reset`"
    )]
    KeyGone {
        /// Where it was.
        place: String,
    },
    /// The kernel's keyring does not work here.
    #[error(
        "the kernel's keyring cannot be used: {reason}; choose another with SANDFORGE_SECRETS_STORE"
    )]
    KernelKeyring {
        /// What it said.
        reason: String,
    },
    /// The keychain holds the secrets, and does not answer.
    #[error(
        "the keychain cannot be used: {reason}; it has to be unlocked in your session, or choose another store \
         with SANDFORGE_SECRETS_STORE"
    )]
    Keychain {
        /// What it said.
        reason: String,
    },
    /// Secrets are somewhere else already.
    #[error(
        "the secrets are {stored} already, and {chosen} was asked for; `sandforge secret reset` gives them up"
    )]
    OtherStore {
        /// Where they are.
        stored: String,
        /// Where they were to be.
        chosen: String,
    },
    /// Written by a later version.
    #[error(
        "{path:?} is of a later version of Sandforge; use that, or a store in another directory"
    )]
    Later {
        /// Which.
        path: PathBuf,
    },
    /// More than the store takes.
    #[error("there are {limit} secrets already; remove some with `sandforge secret rm`")]
    Full {
        /// Most of them.
        limit: usize,
    },
    /// A value that no request could carry.
    #[error("the secret {problem}")]
    Value {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A name of a workspace, a sandbox or a service that cannot be kept.
    #[error("{what} {name:?} is empty, longer than {limit} bytes or has control characters")]
    Name {
        /// What it is a name of.
        what: &'static str,
        /// As it was given.
        name: String,
        /// Most bytes.
        limit: usize,
    },
    /// The command whose output is the secret did not give one.
    #[error("the command of {service} {problem}; run it by hand to see what it says")]
    Command {
        /// Whose it is.
        service: String,
        /// What it did.
        problem: String,
    },
    /// It took too long.
    #[error("the command of {service} did not end within {limit:?} and was killed")]
    CommandTimeout {
        /// Whose it is.
        service: String,
        /// How long it had.
        limit: Duration,
    },
    /// The variable that the secret is read from is not set.
    #[error(
        "{service} is read from the variable {variable}, which is not set where Sandforge runs"
    )]
    NoVariable {
        /// Whose it is.
        service: String,
        /// The variable.
        variable: String,
    },
    /// The service of a secret is not known, or lacks something.
    #[error(transparent)]
    Service(#[from] services::Unusable),
    /// A custom service is not well-formed.
    #[error("{service}: {fault}")]
    Custom {
        /// Which.
        service: String,
        /// What is wrong.
        fault: services::Fault,
    },
}

impl Error {
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { action, path: path.to_owned(), source }
    }
}
