//! The audit log of the store: verified, exported and moved to files.

use std::sync::Arc;

use api::{AuditRange, AuditReport, Timestamp};
use audit::{Entry, Export, Segment};

use crate::{Store, StoreError, directory};

/// Records that go to one file at most: their removal is one transaction.
const SEGMENT_RECORDS: u64 = 50_000;

/// An export under way.
#[derive(Debug)]
pub struct AuditExport {
    store: Store,
    export: Option<Export>,
}

impl AuditExport {
    /// The next JSON lines; `None` after the last, which is signed.
    ///
    /// # Errors
    /// `Audit` where a record was tampered with, and those of a read. Nothing follows then.
    pub async fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(mut export) = self.export.take() else { return Ok(None) };
        let (export, chunk) = self
            .store
            .read(move |view| {
                let chunk = export.next_chunk(view.connection)?;
                Ok::<_, StoreError>((export, chunk))
            })
            .await?;
        if chunk.is_some() {
            self.export = Some(export);
        }
        Ok(chunk)
    }
}

impl Store {
    /// Verifies the audit log, with the files that its old records moved to. A file that holds a
    /// part of the range is verified whole.
    ///
    /// # Errors
    /// Those of a read, and `Audit` where the head file cannot be read. What is wrong with the
    /// log is in the report.
    pub async fn verify_audit(&self, range: AuditRange) -> Result<AuditReport, StoreError> {
        let directory = self.directory().to_owned();
        let key = self.audit_public_key();
        self.read(move |view| {
            // First: the state is that of the first look at the database, and a head that is
            // signed after it would be ahead of it.
            let head = audit::read_head_file(&directory::audit_head(&directory))?;
            let files = directory::audit(&directory);
            Ok(audit::verify(view.connection, &files, head.as_ref(), range, &key)?)
        })
        .await
    }

    /// Exports a part of the audit log as JSON lines, which `audit::verify_lines` verifies.
    ///
    /// # Errors
    /// Those of a read.
    pub async fn export_audit(&self, range: AuditRange) -> Result<AuditExport, StoreError> {
        let files = directory::audit(self.directory());
        let key = Arc::clone(&self.inner.key);
        let export = self
            .read(move |view| {
                Ok::<_, StoreError>(Export::begin(view.connection, files, key, range)?)
            })
            .await?;
        Ok(AuditExport { store: self.clone(), export: Some(export) })
    }

    /// Moves all but the newest `keep` records of the audit log to signed files, which the chain
    /// goes on from. Gives the files' ranges; none where there were no more than `keep`.
    ///
    /// # Errors
    /// `Audit` where the chain does not hold, `File`, and those of a write.
    pub async fn rotate_audit(&self, keep: u64) -> Result<Vec<Segment>, StoreError> {
        let _one_at_a_time = self.inner.rotation.lock().await;
        let last = self.read(|view| view.audit_head()).await?.seq.saturating_sub(keep);
        let mut moved = Vec::new();
        loop {
            let files = directory::audit(self.directory());
            let key = Arc::clone(&self.inner.key);
            let written = self
                .read(move |view| {
                    let end = view.audit_head()?.seq + 1;
                    let first = end.saturating_sub(audit::count(view.connection)?);
                    if last < first {
                        return Ok(None);
                    }
                    let through = last.min(first.saturating_add(SEGMENT_RECORDS - 1));
                    let now = Timestamp::now();
                    let segment =
                        audit::write_segment(view.connection, &files, &key, through, now)?;
                    Ok::<_, StoreError>(Some(segment))
                })
                .await?;
            let Some(segment) = written else { return Ok(moved) };
            let done = segment.clone();
            let dropped = self
                .write(move |change| {
                    let dropped = audit::drop_segment(change.connection, &done, Timestamp::now())?;
                    if dropped {
                        let entry = Entry::allowed("sandforge", "audit_rotate")
                            .with_detail("first", done.first)
                            .with_detail("last", done.last);
                        change.audit(&entry)?;
                    }
                    Ok::<_, StoreError>(dropped)
                })
                .await?;
            if !dropped {
                // Another process rotates. The file stays: it may have written the same one.
                return Ok(moved);
            }
            moved.push(segment);
        }
    }
}
