//! Files in and out of a guest, as tar streams between a thread that walks the host's files
//! and an operation of the agent.

use std::io::{self, Read, Write};
use std::path::Path;

use link::{Guest, LinkError};
use tokio::sync::{mpsc, watch};
use wire::op::{Mkdir, TarIn, TarOut, Transferred};
use wire::text::Text;
use workspace::{
    Hidden, Manifest, OutsideLinks, PackOptions, Progress, SyncOptions, UnpackOptions, pack,
    sync_back, unpack,
};

use crate::{Error, Observer, Phase, Step};

/// Chunks between the thread and the operation: enough that neither waits for a switch.
const CHUNKS: usize = 8;
/// Bytes of a chunk.
const CHUNK: usize = 64 << 10;

/// How files go in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CopyIn {
    /// Leave out what `.gitignore` files name.
    pub gitignore: bool,
    /// The sandbox's user may read them only.
    pub read_only: bool,
    /// They will be brought back with [`CopyOut::back`], so that what is sent has to be
    /// remembered.
    pub for_sync_back: bool,
}

/// How files come out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CopyOut {
    /// The guest's changes, into the directory that they came from, which was copied in
    /// [`CopyIn::for_sync_back`]; otherwise everything, into a directory that is new or empty.
    pub back: bool,
    /// Leave out symbolic links that lead out of the directory, instead of refusing all.
    pub leave_out_links: bool,
}

/// What was copied.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct CopySummary {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// What was left out, and why, for a person.
    pub held_back: Vec<String>,
}

/// The thread's end of a channel to an operation.
struct ChannelWriter(mpsc::Sender<Vec<u8>>);

impl Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let chunk = &bytes[..bytes.len().min(CHUNK)];
        self.0
            .blocking_send(chunk.to_vec())
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the guest takes no more"))?;
        Ok(chunk.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The thread's end of a channel from an operation.
struct ChannelReader {
    chunks: mpsc::Receiver<Vec<u8>>,
    current: io::Cursor<Vec<u8>>,
}

impl ChannelReader {
    fn new(chunks: mpsc::Receiver<Vec<u8>>) -> Self {
        Self { chunks, current: io::Cursor::default() }
    }
}

impl Read for ChannelReader {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.current.read(bytes)?;
            if count > 0 || bytes.is_empty() {
                return Ok(count);
            }
            match self.chunks.blocking_recv() {
                Some(chunk) => self.current = io::Cursor::new(chunk),
                None => return Ok(0),
            }
        }
    }
}

/// The sandbox's default user and group.
const USER: u32 = 1000;

/// Sends a host's directory, or one file, to `target` in the guest.
pub(crate) async fn copy_in(
    guest: &Guest,
    host: &Path,
    target: &str,
    options: CopyIn,
    hidden: Option<Hidden>,
    observer: &mut dyn Observer,
) -> Result<(CopySummary, Manifest), Error> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::CopyIn {
        path: host.to_owned(),
        source,
    };
    let is_file = std::fs::metadata(host).map_err(|error| failed(error.into()))?.is_file();
    let (directory, name) = match target.trim_end_matches('/').rsplit_once('/') {
        Some((parent, name)) if is_file => {
            (if parent.is_empty() { "/" } else { parent }, Some(name))
        }
        _ => (target, None),
    };
    let name = name
        .map(|name| workspace::Name::parse(name.as_bytes()))
        .transpose()
        .map_err(|error| failed(error.into()))?;
    let directory = Text::new(directory).map_err(|error| failed(error.into()))?;
    let mkdir = Mkdir {
        path: directory.clone(),
        parents: true,
        mode: 0o755,
        owner: (!options.read_only).then_some(USER),
        user: Some(Text::from("root")),
    };
    guest.ask(&mkdir).await.map_err(Error::Guest)?;
    let tar_in = TarIn {
        path: directory,
        read_only: options.read_only,
        user: options.read_only.then(|| Text::from("root")),
    };
    let call = guest.call(&tar_in).map_err(Error::Guest)?;
    let input = call.input();

    let (sender, mut chunks) = mpsc::channel::<Vec<u8>>(CHUNKS);
    let (report, mut progress) = watch::channel(Progress::default());
    let pack_options =
        PackOptions { gitignore: options.gitignore, manifest: options.for_sync_back, name, hidden };
    let path = host.to_owned();
    let total =
        workspace::estimate(host, &pack_options).map_err(|error| failed(error.into()))?.bytes;
    let packing = tokio::task::spawn_blocking(move || {
        let mut output = io::BufWriter::with_capacity(CHUNK, ChannelWriter(sender));
        pack(&path, &pack_options, &mut output, &mut |progress| {
            report.send_replace(progress);
        })
        // What is left in the buffer goes out with it; a receiver that is gone is told below.
        .inspect(|_| drop(output.flush()))
    });
    let sent = async {
        while let Some(chunk) = chunks.recv().await {
            input.write(&chunk).await?;
            let done = progress.borrow_and_update().bytes;
            observer.step(Step { phase: Phase::CopyIn, done, total: Some(total) });
        }
        Ok::<_, LinkError>(())
    };
    sent.await.map_err(Error::Guest)?;
    let packed = packing.await.map_err(|error| Error::Internal(error.to_string()))?;
    // Without a good end the agent must not take what came for the whole.
    let packed = packed.map_err(|error| failed(error.into()))?;
    input.finish();
    call.reply().await.map_err(|error| match error {
        LinkError::Operation(error) => failed(error.into()),
        error => Error::Guest(error),
    })?;
    let mut held_back: Vec<String> = packed
        .left_out_names
        .iter()
        .map(|(name, passed)| match passed {
            workspace::Passed::Special(_) => format!("{name}: a socket, FIFO or device"),
            workspace::Passed::Vanished => format!("{name}: it went away meanwhile"),
        })
        .collect();
    let unnamed = packed.left_out.saturating_sub(packed.left_out_names.len() as u64);
    if unnamed > 0 {
        held_back.push(format!("and {unnamed} more"));
    }
    let summary = CopySummary { entries: packed.entries, bytes: packed.bytes, held_back };
    Ok((summary, packed.manifest))
}

/// Brings a directory of the guest to the host: what it sends is hostile until it was checked.
pub(crate) async fn copy_out(
    guest: &Guest,
    source: &str,
    host: &Path,
    manifest: Option<Manifest>,
    outside_links: OutsideLinks,
    observer: &mut dyn Observer,
) -> Result<CopySummary, Error> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| Error::CopyOut {
        guest: source.to_owned(),
        path: host.to_owned(),
        source: error,
    };
    let path = Text::new(source).map_err(|error| failed(error.into()))?;
    let call = guest.call(&TarOut { path, user: None }).map_err(Error::Guest)?;
    let output = call.output();

    let (sender, chunks) = mpsc::channel::<Vec<u8>>(CHUNKS);
    let (report, mut progress) = watch::channel(Progress::default());
    let destination = host.to_owned();
    let taking = tokio::task::spawn_blocking(move || {
        let mut input = ChannelReader::new(chunks);
        let mut report = |progress| {
            report.send_replace(progress);
        };
        match manifest {
            Some(manifest) => {
                let options = SyncOptions { outside_links, ..SyncOptions::default() };
                sync_back(&mut input, &destination, &manifest, &options, &mut report).map(|done| {
                    let entries = done.created + done.updated + done.deleted;
                    (entries, done.bytes, done.held_back)
                })
            }
            None => {
                let options = UnpackOptions { outside_links, ..UnpackOptions::default() };
                unpack(&mut input, &destination, &options, &mut report)
                    .map(|done| (done.entries, done.bytes, done.held_back))
            }
        }
    });
    let mut broken = None;
    loop {
        match output.read().await {
            Ok(Some(chunk)) => {
                // Whoever stopped reading says why below.
                if sender.send(chunk).await.is_err() {
                    break;
                }
                let done = progress.borrow_and_update().bytes;
                observer.step(Step { phase: Phase::CopyOut, done, total: None });
            }
            Ok(None) => break,
            Err(error) => {
                broken = Some(error);
                break;
            }
        }
    }
    drop(sender);
    let taken = taking.await.map_err(|error| Error::Internal(error.to_string()))?;
    match broken {
        Some(LinkError::Operation(error)) => return Err(failed(error.into())),
        Some(error) => return Err(Error::Guest(error)),
        None => {}
    }
    let (entries, bytes, held_back) = taken.map_err(|error| failed(error.into()))?;
    let _: Transferred = call.reply().await.map_err(Error::Guest)?;
    let held_back = held_back.iter().map(ToString::to_string).collect();
    Ok(CopySummary { entries, bytes, held_back })
}
