//! Directories that a guest works in as they are: each served by threads of its own, which may reach
//! nothing else of the host's files.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use link::{Call, Guest, Input, Output};
use share::request::length;
use share::{Confined, Options, Share, Stop, confine};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use wire::op::MountWorkspace;
use wire::text::Text;

use crate::Error;

/// Whether what has this path in a workspace is not a guest's to change without being looked at: see
/// [`workspace::is_protected`]. What is no name of an archive is held back too.
pub fn is_protected_path(path: &std::path::Path, is_directory: bool) -> bool {
    use std::os::unix::ffi::OsStrExt as _;
    let node = match is_directory {
        true => workspace::Node::Directory { mode: 0o755 },
        false => workspace::Node::File { mode: 0o644, size: 0, digest: [0; 32] },
    };
    workspace::Name::parse(path.as_os_str().as_bytes())
        .map_or(true, |name| workspace::is_protected(&name, &node))
}

/// Threads of one directory. A request that waits, for a disk or for a file system of the network,
/// holds up none of the others but one.
const THREADS: usize = 4;

/// A directory that is shared. Dropping it unmounts it in the guest.
#[derive(Debug)]
pub struct Live {
    stop: Stop,
    input: Option<Input>,
    call: Option<Call<MountWorkspace>>,
    confined: Confined,
    share: Arc<Share>,
}

impl Live {
    /// Mounts an open directory of the host at `target` in the guest.
    ///
    /// # Errors
    /// `Share` where it cannot be shared, `Guest` where the guest does not take it.
    pub(crate) async fn start(
        guest: &Guest,
        directory: OwnedFd,
        target: &str,
        options: Options,
    ) -> Result<Self, Error> {
        let path = Text::new(target).map_err(|error| Error::Request(error.to_string()))?;
        let read_only = options.read_only;
        let share = Arc::new(Share::new(&directory, options).map_err(Error::Share)?);
        let failed = |error: &dyn std::fmt::Display| {
            Error::Internal(format!("start to serve a shared directory: {error}"))
        };
        let stop = Stop::new().map_err(|error| failed(&error))?;
        let call = guest.call(&MountWorkspace { path, read_only }).map_err(Error::Guest)?;
        let output = call.output();
        // The kernel's first request tells that it is mounted.
        let Some(first) = output.read().await.map_err(Error::Guest)? else {
            return Err(match call.reply().await {
                Ok(_) => Error::Internal("the guest unmounted the directory at once".into()),
                Err(error) => Error::Guest(error),
            });
        };
        let served = Arc::new(Served {
            share: share.clone(),
            source: Mutex::new(Source { output, bytes: first, start: 0 }),
            sink: Mutex::new(call.input()),
            runtime: Handle::current(),
        });
        let directory = Arc::new(directory);
        let (tell, confined) = oneshot::channel();
        let mut tell = Some(tell);
        for number in 0..=THREADS {
            let (served, directory) = (served.clone(), directory.clone());
            let (stop, tell) = (stop.clone(), tell.take());
            let work = move || {
                let confined = confine(&directory);
                drop(directory);
                if let Some(tell) = tell {
                    let _ = tell.send(confined);
                }
                match number {
                    0 => served.watch(&stop),
                    _ => served.serve(&stop),
                }
            };
            let builder = thread::Builder::new().name(format!("share-{number}"));
            builder.spawn(work).map_err(|error| failed(&error))?;
        }
        let confined = confined.await.map_err(|error| failed(&error))?;
        Ok(Self { stop, input: Some(call.input()), call: Some(call), confined, share })
    }

    /// What stands between its threads and other files of the host, beside their own care.
    pub fn confined(&self) -> &Confined {
        &self.confined
    }

    /// Files and directories that the guest knows of it.
    pub fn nodes(&self) -> usize {
        self.share.nodes()
    }

    /// Unmounts it, and waits until the guest has.
    ///
    /// # Errors
    /// `Guest` where the guest is gone.
    pub async fn end(mut self) -> Result<(), Error> {
        self.finish();
        match self.call.take() {
            Some(call) => call.reply().await.map(drop).map_err(Error::Guest),
            None => Ok(()),
        }
    }

    fn finish(&mut self) {
        self.stop.stop();
        if let Some(input) = self.input.take() {
            input.finish();
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.finish();
    }
}

/// What the threads have in common.
struct Served {
    share: Arc<Share>,
    source: Mutex<Source>,
    sink: Mutex<Input>,
    runtime: Handle,
}

/// What came from the guest and is not taken yet.
struct Source {
    output: Output,
    bytes: Vec<u8>,
    start: usize,
}

impl Source {
    /// The next request. Nothing where there is none any more, or what came is none.
    fn next(&mut self, runtime: &Handle) -> Option<Vec<u8>> {
        loop {
            let rest = &self.bytes[self.start..];
            if let Some(start) = rest.first_chunk::<4>() {
                let length = length(*start).ok()?;
                if let Some(message) = rest.get(..length) {
                    let message = message.to_vec();
                    self.start += length;
                    return Some(message);
                }
            }
            let more = runtime.block_on(self.output.read()).ok()??;
            self.bytes.drain(..self.start);
            self.start = 0;
            match self.bytes.is_empty() {
                true => self.bytes = more,
                false => self.bytes.extend_from_slice(&more),
            }
        }
    }
}

impl Served {
    /// One thread waits for the next request at a time, and goes on to serve what it got, while another
    /// waits: so no request is handed from thread to thread.
    fn serve(&self, stop: &Stop) {
        while let Some(request) = self.next() {
            self.share.serve(&request, |answer| self.send(&answer));
        }
        stop.stop();
    }

    fn next(&self) -> Option<Vec<u8>> {
        lock(&self.source).next(&self.runtime)
    }

    /// Answers go whole, one after another. Where the guest is gone nobody waits for them.
    fn send(&self, message: &[u8]) {
        let sink = lock(&self.sink);
        let _ = self.runtime.block_on(sink.write(message));
    }

    fn watch(&self, stop: &Stop) {
        // Without it the guest sees the host's changes a moment later.
        let _ = self.share.watch(stop, |notice| self.send(&notice));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
