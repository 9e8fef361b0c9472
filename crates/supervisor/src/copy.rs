//! Files in and out of a guest, as tar streams between a thread that walks the host's files
//! and an operation of the agent.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use link::{Guest, LinkError};
use tokio::sync::{mpsc, watch};
use wire::op::{LayerOut, Mkdir, TarIn, TarOut, Transferred};
use wire::text::Text;
use workspace::{
    About, Answer, CollectOptions, Collected, Hidden, Manifest, OutsideLinks, PackOptions,
    Progress, UnpackError, UnpackOptions, collect_asked, pack, unpack,
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
    /// What is changed of them will be collected, so that what is sent has to be remembered.
    pub reviewed: bool,
}

/// What was sent, and what the guest's agent says that it looked like.
#[derive(Debug)]
pub(crate) struct Sent {
    manifest: Mutex<Manifest>,
    memory: Option<Vec<u8>>,
}

/// Most bytes that an agent may have us remember for it: names of a million files.
const MAX_MEMORY: usize = 64 << 20;

/// How files come out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CopyOut {
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

/// Sends a host's directory, or one file, to `target` in the guest.
pub(crate) async fn copy_in(
    guest: &Guest,
    host: &Path,
    target: &str,
    options: CopyIn,
    hidden: Option<Hidden>,
    observer: &mut dyn Observer,
) -> Result<(CopySummary, Sent), Error> {
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
    let mkdir = Mkdir::to_fill(directory.clone(), !options.read_only);
    guest.ask(&mkdir).await.map_err(Error::Guest)?;
    let tar_in = TarIn {
        path: directory,
        read_only: options.read_only,
        user: options.read_only.then(|| Text::from("root")),
        remember: options.reviewed,
    };
    let call = guest.call(&tar_in).map_err(Error::Guest)?;
    let input = call.input();

    let (sender, mut chunks) = mpsc::channel::<Vec<u8>>(CHUNKS);
    let (report, mut progress) = watch::channel(Progress::default());
    let pack_options =
        PackOptions { gitignore: options.gitignore, manifest: options.reviewed, name, hidden };
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
    let refused = |error| match error {
        LinkError::Operation(error) => failed(error.into()),
        error => Error::Guest(error),
    };
    let mut memory = options.reviewed.then(Vec::new);
    if options.reviewed {
        let output = call.output();
        while let Some(bytes) = output.read().await.map_err(refused)? {
            // Without it, all comes back.
            memory = memory.filter(|memory| memory.len() + bytes.len() <= MAX_MEMORY);
            if let Some(memory) = &mut memory {
                memory.extend_from_slice(&bytes);
            }
        }
    }
    call.reply().await.map_err(refused)?;
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
    Ok((summary, Sent { manifest: Mutex::new(packed.manifest), memory }))
}

/// Brings a directory of the guest to the host: what it sends is hostile until it was checked.
pub(crate) async fn copy_out(
    guest: &Guest,
    source: &str,
    host: &Path,
    outside_links: OutsideLinks,
    observer: &mut dyn Observer,
) -> Result<CopySummary, Error> {
    let destination = host.to_owned();
    let done = take_out(guest, source, host, None, observer, move |input, _, progress| {
        let options = UnpackOptions { outside_links, ..UnpackOptions::default() };
        unpack(input, &destination, &options, progress)
    })
    .await?;
    let held_back = done.held_back.iter().map(ToString::to_string).collect();
    Ok(CopySummary { entries: done.entries, bytes: done.bytes, held_back })
}

/// Has a thread take what was changed in a guest's root, as a layer. What it made of it is good only
/// where the agent says so at the end, too.
pub(crate) async fn layer_out<T: Send + 'static>(
    guest: &Guest,
    take: impl FnOnce(&mut dyn Read) -> Result<T, image::ImageError> + Send + 'static,
    observer: &mut dyn Observer,
) -> Result<T, Error> {
    let call = guest.call(&LayerOut {}).map_err(Error::Guest)?;
    let output = call.output();
    call.input().finish();
    let (sender, chunks) = mpsc::channel::<Vec<u8>>(CHUNKS);
    let taking = tokio::task::spawn_blocking(move || take(&mut ChannelReader::new(chunks)));
    let mut done = 0;
    let broken = loop {
        match output.read().await {
            Ok(Some(chunk)) => {
                done += chunk.len() as u64;
                // Whoever stopped reading says why below.
                if sender.send(chunk).await.is_err() {
                    break None;
                }
                observer.step(Step { phase: Phase::CopyOut, done, total: None });
            }
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    drop(sender);
    let taken = taking.await.map_err(|error| Error::Internal(error.to_string()))?;
    if let Some(error) = broken {
        return Err(Error::Guest(error));
    }
    let taken = taken?;
    let _: Transferred = call.reply().await.map_err(Error::Guest)?;
    Ok(taken)
}

/// Keeps what a guest changed in a directory in `to`.
pub(crate) async fn collect_changes(
    guest: &Guest,
    sent: std::sync::Arc<Sent>,
    about: About,
    to: &Path,
    ignored: bool,
    observer: &mut dyn Observer,
) -> Result<Collected, Error> {
    let (source, host, to) = (about.guest.clone(), about.host.clone(), to.to_owned());
    let options =
        CollectOptions { ignored, partial: sent.memory.is_some(), ..CollectOptions::default() };
    let remembered = std::sync::Arc::clone(&sent);
    take_out(
        guest,
        &source,
        &host,
        remembered.memory.as_deref(),
        observer,
        move |input, answer, progress| {
            let mut manifest = sent.manifest.lock().unwrap_or_else(PoisonError::into_inner);
            let mut collected =
                collect_asked(input, answer, &manifest, about, &to, &options, progress)?;
            manifest.agree(std::mem::take(&mut collected.agreed));
            Ok(collected)
        },
    )
    .await
}

/// Has a thread take what comes of a directory.
async fn take_out<T: Send + 'static>(
    guest: &Guest,
    source: &str,
    host: &Path,
    memory: Option<&[u8]>,
    observer: &mut dyn Observer,
    take: impl FnOnce(
        &mut ChannelReader,
        &mut dyn FnMut(Answer) -> io::Result<()>,
        &mut dyn FnMut(Progress),
    ) -> Result<T, UnpackError>
    + Send
    + 'static,
) -> Result<T, Error> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| Error::CopyOut {
        guest: source.to_owned(),
        path: host.to_owned(),
        source: error,
    };
    let path = Text::new(source).map_err(|error| failed(error.into()))?;
    let tar_out = TarOut { path, user: None, changed: memory.is_some(), asks: memory.is_some() };
    let call = guest.call(&tar_out).map_err(Error::Guest)?;
    let output = call.output();
    let input = call.input();
    // All of it is read before anything comes.
    if let Some(memory) = memory {
        for chunk in memory.chunks(CHUNK).chain([&[0][..]]) {
            match input.write(chunk).await {
                Ok(()) => {}
                // Why is told below.
                Err(LinkError::Operation(_)) => break,
                Err(error) => return Err(Error::Guest(error)),
            }
        }
    }
    let asks = memory.is_some();
    if !asks {
        input.clone().finish();
    }
    let (answers, runtime) = (input.clone(), tokio::runtime::Handle::current());

    let (sender, chunks) = mpsc::channel::<Vec<u8>>(CHUNKS);
    let (report, mut progress) = watch::channel(Progress::default());
    let taking = tokio::task::spawn_blocking(move || {
        let mut input = ChannelReader::new(chunks);
        let mut answer = |answer: Answer| {
            let told = runtime.block_on(answers.write(&[answer.byte()]));
            told.map_err(|error| io::Error::new(io::ErrorKind::BrokenPipe, error.to_string()))
        };
        take(&mut input, &mut answer, &mut |progress| {
            report.send_replace(progress);
        })
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
    // Whoever still waits for an answer gets none.
    if asks {
        input.finish();
    }
    let taken = taking.await.map_err(|error| Error::Internal(error.to_string()))?;
    match broken {
        Some(LinkError::Operation(error)) => return Err(failed(error.into())),
        Some(error) => return Err(Error::Guest(error)),
        None => {}
    }
    let taken = taken.map_err(|error| failed(error.into()))?;
    let _: Transferred = call.reply().await.map_err(Error::Guest)?;
    Ok(taken)
}
