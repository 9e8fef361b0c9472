//! A record as it is stored, hashed and exported.

use api::{AuditDecision, AuditRecord, RuleRef, Timestamp};
use rusqlite::types::ValueRef;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::{Digest, Entry};

/// What is hashed says what it is: a signature or a hash of one kind never stands for another.
const DOMAIN: &[u8] = b"sandforge audit record v1\0";

/// The columns of a record, in the order in which [`Row::read`] wants them.
pub(crate) const COLUMNS: &str = "seq, at, actor, operation, workspace, sandbox, request_digest, \
     task_digest, decision, rule_file, rule_line, rule_text, generation, outcome, details, \
     prev_hash, hash";

/// A record. Its JSON is a line of an export, and the same as an [`AuditRecord`]'s; details stay
/// the text that was hashed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Row {
    pub(crate) seq: u64,
    pub(crate) at: Timestamp,
    pub(crate) actor: String,
    pub(crate) operation: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) workspace: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sandbox: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) request_digest: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) task_digest: Option<Digest>,
    pub(crate) decision: AuditDecision,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rule: Option<Rule>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) generation: Option<u64>,
    pub(crate) outcome: String,
    pub(crate) details: Box<RawValue>,
    pub(crate) prev_hash: Digest,
    pub(crate) hash: Digest,
}

/// A rule, without room for anything that is not hashed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    pub(crate) file: String,
    pub(crate) line: u32,
    pub(crate) text: String,
}

/// What of a record is hashed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Content<'a> {
    pub(crate) at: Timestamp,
    pub(crate) actor: &'a str,
    pub(crate) operation: &'a str,
    pub(crate) workspace: Option<&'a str>,
    pub(crate) sandbox: Option<&'a str>,
    pub(crate) request_digest: Option<&'a Digest>,
    pub(crate) task_digest: Option<&'a Digest>,
    pub(crate) decision: AuditDecision,
    /// Its file, line and text.
    pub(crate) rule: Option<(&'a str, u32, &'a str)>,
    pub(crate) generation: Option<u64>,
    pub(crate) outcome: &'a str,
    pub(crate) details: &'a str,
}

impl<'a> Content<'a> {
    /// Of `entry`, whose details are this text.
    pub(crate) fn of(entry: &'a Entry, details: &'a str) -> Self {
        let rule = entry.rule.as_ref();
        Self {
            at: entry.at,
            actor: &entry.actor,
            operation: &entry.operation,
            workspace: entry.workspace.as_deref(),
            sandbox: entry.sandbox.as_deref(),
            request_digest: entry.request_digest.as_ref(),
            task_digest: entry.task_digest.as_ref(),
            decision: entry.decision,
            rule: rule.map(|rule| (rule.file.as_str(), rule.line, rule.text.as_str())),
            generation: entry.generation,
            outcome: &entry.outcome,
            details,
        }
    }

    /// The hash that this content has at a place. Every field is there with its length or its
    /// absence, so that no two contents have one encoding.
    pub(crate) fn hash_at(&self, seq: u64, prev: Digest) -> Digest {
        let mut hash = Sha256::new();
        hash.update(DOMAIN);
        hash.update(prev.as_bytes());
        hash.update(seq.to_be_bytes());
        hash.update(self.at.unix_ms().to_be_bytes());
        put(&mut hash, self.actor.as_bytes());
        put(&mut hash, self.operation.as_bytes());
        put_some(&mut hash, self.workspace.map(str::as_bytes));
        put_some(&mut hash, self.sandbox.map(str::as_bytes));
        put_some(&mut hash, self.request_digest.map(|d| &d.as_bytes()[..]));
        put_some(&mut hash, self.task_digest.map(|d| &d.as_bytes()[..]));
        put(&mut hash, self.decision.as_str().as_bytes());
        put_some(&mut hash, self.rule.map(|(file, ..)| file.as_bytes()));
        put_some(
            &mut hash,
            self.rule.map(|(_, line, _)| line.to_be_bytes()).as_ref().map(|b| &b[..]),
        );
        put_some(&mut hash, self.rule.map(|(.., text)| text.as_bytes()));
        put_some(&mut hash, self.generation.map(u64::to_be_bytes).as_ref().map(|b| &b[..]));
        put(&mut hash, self.outcome.as_bytes());
        put(&mut hash, self.details.as_bytes());
        Digest::from(<[u8; 32]>::from(hash.finalize()))
    }
}

impl Row {
    /// The hash that this content has at a place.
    pub(crate) fn hash_at(&self, seq: u64, prev: Digest) -> Digest {
        let rule = self.rule.as_ref();
        let content = Content {
            at: self.at,
            actor: &self.actor,
            operation: &self.operation,
            workspace: self.workspace.as_deref(),
            sandbox: self.sandbox.as_deref(),
            request_digest: self.request_digest.as_ref(),
            task_digest: self.task_digest.as_ref(),
            decision: self.decision,
            rule: rule.map(|rule| (rule.file.as_str(), rule.line, rule.text.as_str())),
            generation: self.generation,
            outcome: &self.outcome,
            details: self.details.get(),
        };
        content.hash_at(seq, prev)
    }

    /// From the columns [`COLUMNS`].
    ///
    /// # Errors
    /// What is not as it was ever written, in words.
    pub(crate) fn read(row: &rusqlite::Row<'_>) -> Result<Self, String> {
        let rule = match (text(row, 9)?, integer(row, 10)?, text(row, 11)?) {
            (None, None, None) => None,
            (Some(file), Some(line), Some(text)) => {
                let line = u32::try_from(line).map_err(|_| "rule_line is no line")?;
                Some(Rule { file, line, text })
            }
            _ => return Err("a part of its rule is missing".to_owned()),
        };
        let at = integer(row, 1)?.ok_or("at is missing")?;
        let time = Timestamp::from_unix_ms(at);
        if time.unix_ms() != at {
            return Err("at is no time".to_owned());
        }
        let generation = integer(row, 12)?
            .map(|value| u64::try_from(value).map_err(|_| "generation is negative"))
            .transpose()?;
        let details = text(row, 14)?.ok_or("details are missing")?;
        let raw = RawValue::from_string(details.clone()).map_err(|_| "details are not JSON")?;
        // Space around the value is not kept by the parser, and would be lost unseen.
        if raw.get() != details {
            return Err("details are not as they were written".to_owned());
        }
        Ok(Self {
            seq: place(row)?,
            at: time,
            actor: text(row, 2)?.ok_or("actor is missing")?,
            operation: text(row, 3)?.ok_or("operation is missing")?,
            workspace: text(row, 4)?,
            sandbox: text(row, 5)?,
            request_digest: digest(row, 6)?,
            task_digest: digest(row, 7)?,
            decision: match text(row, 8)?.as_deref() {
                Some("allowed") => AuditDecision::Allowed,
                Some("denied") => AuditDecision::Denied,
                _ => return Err("decision is neither allowed nor denied".to_owned()),
            },
            rule,
            generation,
            outcome: text(row, 13)?.ok_or("outcome is missing")?,
            details: raw,
            prev_hash: digest(row, 15)?.ok_or("prev_hash is missing")?,
            hash: digest(row, 16)?.ok_or("hash is missing")?,
        })
    }

    /// As callers see it.
    pub(crate) fn into_record(self) -> Result<AuditRecord, String> {
        let details = serde_json::from_str(self.details.get())
            .map_err(|_| "details are no JSON object".to_owned())?;
        Ok(AuditRecord {
            seq: self.seq,
            at: self.at,
            actor: self.actor,
            operation: self.operation,
            workspace: self.workspace,
            sandbox: self.sandbox,
            request_digest: self.request_digest.map(|digest| digest.to_string()),
            task_digest: self.task_digest.map(|digest| digest.to_string()),
            decision: self.decision,
            rule: self.rule.map(|rule| RuleRef {
                file: rule.file,
                line: rule.line,
                text: rule.text,
            }),
            generation: self.generation,
            outcome: self.outcome,
            details,
            prev_hash: self.prev_hash.to_string(),
            hash: self.hash.to_string(),
        })
    }
}

/// The place alone, which stands whatever else is wrong: it is the table's key.
pub(crate) fn place(row: &rusqlite::Row<'_>) -> Result<u64, String> {
    let seq = integer(row, 0)?.ok_or("seq is missing")?;
    u64::try_from(seq).map_err(|_| "seq is negative".to_owned())
}

fn put(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_be_bytes());
    hash.update(bytes);
}

fn put_some(hash: &mut Sha256, bytes: Option<&[u8]>) {
    match bytes {
        None => hash.update([0]),
        Some(bytes) => {
            hash.update([1]);
            put(hash, bytes);
        }
    }
}

fn column<'r>(row: &'r rusqlite::Row<'_>, index: usize) -> Result<ValueRef<'r>, String> {
    row.get_ref(index).map_err(|error| error.to_string())
}

fn text(row: &rusqlite::Row<'_>, index: usize) -> Result<Option<String>, String> {
    match column(row, index)? {
        ValueRef::Null => Ok(None),
        ValueRef::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Some(text.to_owned())),
            Err(_) => Err(format!("column {index} is not UTF-8")),
        },
        _ => Err(format!("column {index} is not text")),
    }
}

fn integer(row: &rusqlite::Row<'_>, index: usize) -> Result<Option<i64>, String> {
    match column(row, index)? {
        ValueRef::Null => Ok(None),
        ValueRef::Integer(value) => Ok(Some(value)),
        _ => Err(format!("column {index} is no number")),
    }
}

fn digest(row: &rusqlite::Row<'_>, index: usize) -> Result<Option<Digest>, String> {
    match column(row, index)? {
        ValueRef::Null => Ok(None),
        ValueRef::Blob(bytes) => match Digest::try_from(bytes) {
            Ok(digest) => Ok(Some(digest)),
            Err(_) => Err(format!("column {index} is no digest")),
        },
        _ => Err(format!("column {index} is no digest")),
    }
}
