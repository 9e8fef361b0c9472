use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use api::{Checkpoint, Timestamp};
use ed25519_dalek::{Signature, VerifyingKey};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::digest::{from_hex, to_hex};
use crate::key::{no_follow, sync_directory_of};
use crate::{AuditError, Digest, Head, Key};

const DOMAIN: &[u8] = b"sandforge audit checkpoint v1\0";
/// Most bytes of a head file; what is longer was not written here.
const MAX_HEAD_FILE: u64 = 4096;

pub(crate) const COLUMNS: &str = "seq, at, head_hash, signature, public_key";

fn message(seq: u64, at: Timestamp, hash: Digest) -> Vec<u8> {
    let mut message = DOMAIN.to_vec();
    message.extend(seq.to_be_bytes());
    message.extend(at.unix_ms().to_be_bytes());
    message.extend(hash.as_bytes());
    message
}

/// Signs a head. That of an empty chain can be signed too, so that there is a head file from the
/// first moment on.
pub fn sign(head: Head, key: &Key, at: Timestamp) -> Checkpoint {
    let signature = key.sign(&message(head.seq, at, head.hash));
    Checkpoint {
        seq: head.seq,
        at,
        head_hash: head.hash.to_string(),
        signature: to_hex(&signature.to_bytes()),
        public_key: to_hex(key.public().as_bytes()),
    }
}

/// Signs `head`, which must be the head of the open transaction, and puts the checkpoint on
/// record. `None` where the chain is empty or its head is signed already.
///
/// # Errors
/// `NoTransaction` and `Database`.
pub fn checkpoint(
    connection: &Connection,
    head: Head,
    key: &Key,
    at: Timestamp,
) -> Result<Option<Checkpoint>, AuditError> {
    if connection.is_autocommit() {
        return Err(AuditError::NoTransaction);
    }
    if head.seq == 0 {
        return Ok(None);
    }
    let signature = key.sign(&message(head.seq, at, head.hash));
    let public = key.public();
    let added = connection
        .prepare_cached(
            "INSERT INTO audit_checkpoint (seq, at, head_hash, signature, public_key) \
             VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        )?
        .execute(params![
            head.seq.cast_signed(),
            at.unix_ms(),
            head.hash.as_bytes(),
            signature.to_bytes(),
            public.as_bytes(),
        ])?;
    Ok((added == 1).then(|| Checkpoint {
        seq: head.seq,
        at,
        head_hash: head.hash.to_string(),
        signature: to_hex(&signature.to_bytes()),
        public_key: to_hex(public.as_bytes()),
    }))
}

/// The last checkpoint; none where none was made. It is not verified.
///
/// # Errors
/// `Unreadable` and `Database`.
pub fn latest_checkpoint(connection: &Connection) -> Result<Option<Checkpoint>, AuditError> {
    let query = format!("SELECT {COLUMNS} FROM audit_checkpoint ORDER BY seq DESC LIMIT 1");
    let mut statement = connection.prepare_cached(&query)?;
    let found = statement.query_row([], |row| Ok(read(row))).optional()?;
    found.transpose().map_err(|reason| AuditError::Unreadable { seq: 0, reason })
}

/// From the columns [`COLUMNS`].
pub(crate) fn read(row: &Row<'_>) -> Result<Checkpoint, String> {
    let words = |error: rusqlite::Error| error.to_string();
    let seq: i64 = row.get(0).map_err(words)?;
    let blob = |index: usize| row.get::<_, Vec<u8>>(index).map_err(words);
    Ok(Checkpoint {
        seq: u64::try_from(seq).map_err(|_| "seq is negative")?,
        at: Timestamp::from_unix_ms(row.get(1).map_err(words)?),
        head_hash: to_hex(&blob(2)?),
        signature: to_hex(&blob(3)?),
        public_key: to_hex(&blob(4)?),
    })
}

/// The hash that a checkpoint vouches for.
///
/// # Errors
/// Why its signature is not one of `key`, in words.
pub(crate) fn verify(checkpoint: &Checkpoint, key: &VerifyingKey) -> Result<Digest, String> {
    let public: [u8; 32] =
        from_hex(&checkpoint.public_key).ok_or("its public key is not 32 bytes")?;
    if &public != key.as_bytes() {
        return Err("it is signed with another key".to_owned());
    }
    let signature: [u8; 64] =
        from_hex(&checkpoint.signature).ok_or("its signature is not 64 bytes")?;
    let hash: Digest = checkpoint.head_hash.parse().map_err(|_| "its hash is not 32 bytes")?;
    key.verify_strict(
        &message(checkpoint.seq, checkpoint.at, hash),
        &Signature::from_bytes(&signature),
    )
    .map_err(|_| "its signature does not verify".to_owned())?;
    Ok(hash)
}

/// Writes `checkpoint` to the file `path`, whole or not at all. Call it after the commit of the
/// checkpoint: a head that is ahead of the chain says that the chain was cut. What is there
/// stays where it is a later one, of another process.
///
/// # Errors
/// `File`.
pub fn write_head_file(path: &Path, checkpoint: &Checkpoint) -> Result<(), AuditError> {
    if let Ok(Some(present)) = read_head_file(path)
        && present.seq >= checkpoint.seq
        && present.public_key == checkpoint.public_key
    {
        return Ok(());
    }
    let text = serde_json::to_string(checkpoint)
        .map_err(|error| AuditError::file("write", path)(error.into()))?;
    let unfinished = path.with_extension(format!("{}.new", std::process::id()));
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(no_follow())
            .open(&unfinished)?;
        writeln!(file, "{text}")?;
        file.sync_all()?;
        std::fs::rename(&unfinished, path)?;
        sync_directory_of(path)
    };
    write().map_err(|error| {
        // The failure that is told is the first one.
        let _ = std::fs::remove_file(&unfinished);
        AuditError::file("write", path)(error)
    })
}

/// The checkpoint in the file `path`; none where there is no file. It is not verified.
///
/// # Errors
/// `File` where it cannot be read or is no checkpoint.
pub fn read_head_file(path: &Path) -> Result<Option<Checkpoint>, AuditError> {
    let read = || -> std::io::Result<Checkpoint> {
        let file = OpenOptions::new().read(true).custom_flags(no_follow()).open(path)?;
        let mut text = Vec::new();
        file.take(MAX_HEAD_FILE).read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    };
    match read() {
        Ok(checkpoint) => Ok(Some(checkpoint)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(AuditError::file("read", path)(error)),
    }
}
