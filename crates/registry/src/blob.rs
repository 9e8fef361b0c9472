//! A blob comes.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::CONTENT_RANGE;
use tokio::task::JoinHandle;

use crate::error::PullError;
use crate::layout::{Claim, Layout, Partial};
use crate::manifest::Blob;
use crate::session::{Fault, Patience, Session};
use crate::upstream::reason;

/// How much is written at once.
const BATCH: usize = 512 << 10;
/// Who brings less than this each time does not get further.
const FURTHER: u64 = 64 << 10;
/// How often it is looked whether another process has finished.
const LOOK: Duration = Duration::from_millis(50);

/// Fetches a blob, or waits for whoever does.
pub(crate) async fn fetch(
    session: &Session<'_>,
    layout: &Layout,
    blob: &Blob,
) -> Result<(), PullError> {
    let Some(partial) = claim(session, layout, blob).await? else {
        session.progress.blob(&blob.digest, blob.size, blob.size);
        return Ok(());
    };
    let mut doubted = partial.have() > 0;
    let mut sink = Sink::new(partial);
    let mut patience = Patience::default();
    // What came twice is no progress: a registry without ranges would be asked for ever.
    let mut furthest = sink.have;
    loop {
        match stream(session, blob, &mut sink).await {
            Ok(()) => match sink.finish(blob).await? {
                None => {
                    session.progress.blob(&blob.digest, blob.size, blob.size);
                    return Ok(());
                }
                // What another process has left may be what is wrong.
                Some(_) if doubted => {
                    doubted = false;
                    sink.restart().await?;
                }
                Some(got) => {
                    sink.discard().await;
                    let what = blob.digest.to_string();
                    return Err(PullError::Digest { registry: session.registry(), what, got });
                }
            },
            Err(fault) => {
                sink.flush().await?;
                sink.settle().await?;
                if sink.have >= furthest.saturating_add(FURTHER) {
                    furthest = sink.have;
                    patience.restore();
                }
                if let Fault::Final(PullError::Length { .. }) = fault {
                    sink.discard().await;
                }
                patience.wait(fault, session).await?;
            }
        }
    }
}

/// Claims the blob; nothing where it is here.
async fn claim(
    session: &Session<'_>,
    layout: &Layout,
    blob: &Blob,
) -> Result<Option<Partial>, PullError> {
    let mut told = false;
    loop {
        let (layout, digest, size) = (layout.clone(), blob.digest, blob.size);
        let claimed = tokio::task::spawn_blocking(move || layout.claim(&digest, size));
        match claimed.await.map_err(|_| PullError::Interrupted)?? {
            Claim::Whole => return Ok(None),
            Claim::Ours(partial) => return Ok(Some(partial)),
            Claim::Taken if told => {}
            Claim::Taken => {
                told = true;
                session
                    .progress
                    .notice(&format!("{} is being fetched already: waiting", blob.digest));
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// One request for what is missing.
async fn stream(session: &Session<'_>, blob: &Blob, sink: &mut Sink) -> Result<(), Fault> {
    if sink.have == blob.size {
        return Ok(());
    }
    let length = |got: String| {
        let what = blob.digest.to_string();
        let registry = session.registry();
        Fault::Final(PullError::Length { registry, what, wanted: blob.size, got })
    };
    let path = format!("blobs/{}", blob.digest);
    let mut response = session.get(&path, None, sink.have).await?;
    match response.status().as_u16() {
        206 => {
            let range = response.headers().get(CONTENT_RANGE);
            let range = range.and_then(|value| value.to_str().ok()).and_then(begins);
            if range != Some(sink.have) {
                // It gave something else than was asked for: then all of it.
                sink.restart().await?;
                return Err(session.cut("it sent another part than was asked for".into()));
            }
        }
        200 if sink.have == 0 => {}
        200 => sink.restart().await?,
        _ => {
            sink.restart().await?;
            return Err(session.cut("it has no such part".into()));
        }
    }
    if let Some(said) = response.content_length() {
        let whole = sink.have.saturating_add(said);
        if whole != blob.size {
            return Err(length(format!("{whole}")));
        }
    }
    loop {
        match response.chunk().await {
            Ok(None) => break,
            Ok(Some(bytes)) => {
                if bytes.len() as u64 > blob.size - sink.have {
                    return Err(length("longer".into()));
                }
                sink.push(bytes).await?;
                // The last of it is told when it was verified.
                if sink.have < blob.size {
                    session.progress.blob(&blob.digest, sink.have, blob.size);
                }
            }
            Err(error) => return Err(session.cut(reason(&error))),
        }
    }
    match sink.have == blob.size {
        true => Ok(()),
        false => Err(session.cut(format!("it ended after {} of {} bytes", sink.have, blob.size))),
    }
}

/// The first byte of `bytes 5-9/10`.
fn begins(range: &str) -> Option<u64> {
    range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}

/// Writes and digests on another thread what has come, while more comes.
struct Sink {
    state: State,
    batch: Vec<Bytes>,
    batched: usize,
    /// With what is not written yet.
    have: u64,
}

enum State {
    Idle(Partial),
    Busy(JoinHandle<(Partial, Result<(), PullError>)>),
    /// Its thread did not come back.
    Lost,
}

impl Sink {
    fn new(partial: Partial) -> Self {
        let have = partial.have();
        Self { state: State::Idle(partial), batch: Vec::new(), batched: 0, have }
    }

    async fn push(&mut self, bytes: Bytes) -> Result<(), PullError> {
        self.have += bytes.len() as u64;
        self.batched += bytes.len();
        self.batch.push(bytes);
        if self.batched >= BATCH { self.flush().await } else { Ok(()) }
    }

    /// Gives what has come to be written.
    async fn flush(&mut self) -> Result<(), PullError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.batch);
        self.batched = 0;
        self.work(move |partial| partial.append(&batch)).await
    }

    /// Begins a piece of work when the one before is done.
    async fn work(
        &mut self,
        work: impl FnOnce(&mut Partial) -> Result<(), PullError> + Send + 'static,
    ) -> Result<(), PullError> {
        self.settle().await?;
        match std::mem::replace(&mut self.state, State::Lost) {
            State::Idle(mut partial) => {
                let task = move || {
                    let result = work(&mut partial);
                    (partial, result)
                };
                self.state = State::Busy(tokio::task::spawn_blocking(task));
                Ok(())
            }
            State::Busy(_) | State::Lost => Err(PullError::Interrupted),
        }
    }

    /// Waits until all that was given is done.
    async fn settle(&mut self) -> Result<(), PullError> {
        if let State::Busy(task) = &mut self.state {
            let (partial, result) = task.await.map_err(|_| PullError::Interrupted)?;
            self.state = State::Idle(partial);
            result?;
        }
        Ok(())
    }

    async fn restart(&mut self) -> Result<(), PullError> {
        self.batch.clear();
        self.batched = 0;
        self.have = 0;
        self.work(Partial::restart).await?;
        self.settle().await
    }

    async fn discard(&mut self) {
        self.batch.clear();
        let work = self.work(|partial| {
            partial.discard();
            Ok(())
        });
        // What it would say is of less use than why it is discarded.
        if work.await.is_ok() {
            let _ = self.settle().await;
        }
    }

    /// Gives the blob its name if it is what it should be, and its digest if not.
    async fn finish(&mut self, blob: &Blob) -> Result<Option<crate::digest::Digest>, PullError> {
        self.flush().await?;
        self.settle().await?;
        let State::Idle(partial) = &self.state else { return Err(PullError::Interrupted) };
        let got = partial.digest();
        if got != blob.digest || partial.have() != blob.size {
            return Ok(Some(got));
        }
        self.work(Partial::finish).await?;
        self.settle().await?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_a_range_is_read() {
        assert_eq!(begins("bytes 5-9/10"), Some(5));
        assert_eq!(begins("bytes 0-9/*"), Some(0));
        for text in ["", "bytes", "bytes */10", "items 5-9/10", "bytes -5/10"] {
            assert_eq!(begins(text), None, "{text}");
        }
    }
}
