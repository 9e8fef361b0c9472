//! A sandbox that runs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use engine::{EngineError, Isolation, Machine, Snapshot, Stats};
use launch::Usage;
use link::{Guest, SigningKey};
use serde::Serialize;
use share::Confined;
use workspace::{About, Collected, Fetched, Hidden, OutsideLinks};

use crate::copy::{self, CopyIn, CopyOut, CopySummary, Sent};
use crate::kept::{KeptInfo, Shelf};
use crate::live::Live;
use crate::template::Wanted;
use crate::{Error, Observer, clone, milliseconds, volume};

/// How long each step to a usable sandbox took, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Timings {
    /// Finding, or making, the image, the kernel and the initramfs.
    pub prepare_ms: f64,
    /// Starting the confined monitor.
    pub process_ms: f64,
    /// From there until the agent's greeting: firmware, kernel, the agent's own start. 0 where it went
    /// on from a template, and booted nothing.
    pub kernel_ms: f64,
    /// Fresh clock and entropy, after which tasks are taken; from a template, its identity and the
    /// greeting as well.
    pub agent_ms: f64,
}

/// How the end of a sandbox went.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Teardown {
    /// Until nothing of the machine was left, in milliseconds.
    pub teardown_ms: f64,
    /// CPU time of the monitor, guest included, in milliseconds.
    pub cpu_ms: f64,
    /// Highest resident memory of the monitor, guest memory included, in bytes.
    pub memory_peak_bytes: u64,
}

/// A machine, its agent, and what is known of both.
#[derive(Debug)]
pub struct Sandbox {
    info: KeptInfo,
    machine: Option<Box<dyn Machine>>,
    guest: Guest,
    timings: Timings,
    /// Where it is on record, if it is kept.
    kept: Option<Shelf>,
    /// What its operations are signed with.
    key: SigningKey,
    /// Its disk for what it changes, where this process has it.
    scratch: Option<File>,
    /// What was sent to be reviewed, by the guest's path.
    sent: Mutex<BTreeMap<String, Arc<Sent>>>,
    /// Directories that are shared live, by the guest's path.
    live: Mutex<BTreeMap<String, Live>>,
    /// What the next like it could go on from, to be made when this one has gone.
    wanted: Option<Wanted>,
}

/// What a snapshot is made of beside the machine.
pub(crate) struct Parts<'a> {
    pub(crate) info: &'a KeptInfo,
    pub(crate) key: &'a SigningKey,
    pub(crate) scratch: Option<&'a File>,
}

impl Sandbox {
    pub(crate) fn new(
        info: KeptInfo,
        machine: Option<Box<dyn Machine>>,
        guest: Guest,
        timings: Timings,
        kept: Option<Shelf>,
        key: SigningKey,
    ) -> Self {
        let (sent, live) = (Mutex::default(), Mutex::default());
        Self { info, machine, guest, timings, kept, key, scratch: None, sent, live, wanted: None }
    }

    pub(crate) fn with_scratch(self, scratch: Option<File>) -> Self {
        Self { scratch, ..self }
    }

    pub(crate) fn parts(&self) -> Parts<'_> {
        let Self { info, key, scratch, .. } = self;
        Parts { info, key, scratch: scratch.as_ref() }
    }

    /// Writes what is in its machine, which is paused.
    pub(crate) async fn save(&mut self, into: &Snapshot) -> Result<(), Error> {
        self.machine()?.save(into).await.map_err(Error::Engine)
    }

    /// Has this template made: now where the machine stays, else once it has gone.
    pub(crate) fn want(&mut self, template: Wanted) {
        match self.kept {
            Some(_) => template.make(),
            None => self.wanted = Some(template),
        }
    }

    /// Its id, which every operation's signature covers.
    pub fn id(&self) -> &str {
        &self.info.id
    }

    /// What the user calls it.
    pub fn name(&self) -> &str {
        &self.info.name
    }

    /// The engine that runs it.
    pub fn engine(&self) -> &str {
        &self.info.engine
    }

    /// What stands between its tasks and the host.
    pub fn isolation(&self) -> Isolation {
        self.info.isolation
    }

    /// Its root.
    pub fn image(&self) -> &str {
        &self.info.image
    }

    /// Virtual CPUs.
    pub fn cpus(&self) -> u32 {
        self.info.cpus
    }

    /// Guest memory in MiB.
    pub fn memory_mb(&self) -> u32 {
        self.info.memory_mb
    }

    /// The process that runs it, where there is one.
    pub fn monitor_pid(&self) -> Option<u32> {
        match &self.machine {
            Some(machine) => machine.monitor_pid(),
            None => Some(self.info.pid).filter(|pid| *pid != 0 && *pid != std::process::id()),
        }
    }

    /// What it has used so far.
    ///
    /// # Errors
    /// `Engine` where its process is gone.
    pub fn stats(&self) -> Result<Stats, Error> {
        if let Some(machine) = &self.machine {
            return machine.stats().map_err(Error::Engine);
        }
        let Some(pid) = self.monitor_pid() else { return Ok(Stats::default()) };
        let ended = |_| Error::Engine(EngineError::Ended("its process is gone".into()));
        let used = Usage::of(pid).map_err(ended)?;
        Ok(Stats { cpu: used.cpu, memory_peak_bytes: used.memory_peak_bytes })
    }

    /// Stops its virtual CPUs; what is in it stays.
    ///
    /// # Errors
    /// `Engine` where its engine cannot do that, or could do it only for the process that made
    /// the machine.
    pub async fn pause(&mut self) -> Result<(), Error> {
        self.machine()?.pause().await.map_err(Error::Engine)
    }

    /// Lets its virtual CPUs go on.
    ///
    /// # Errors
    /// As [`Self::pause`].
    pub async fn resume(&mut self) -> Result<(), Error> {
        self.machine()?.resume().await.map_err(Error::Engine)
    }

    fn machine(&mut self) -> Result<&mut Box<dyn Machine>, Error> {
        self.machine.as_mut().ok_or_else(|| {
            Error::Engine(EngineError::Unsupported(
                "another process started this machine, and that alone can stop or save it; start \
                 the sandbox anew under `sandforge serve`, which keeps the machines that it starts"
                    .into(),
            ))
        })
    }

    /// How long it took to come up.
    pub fn timings(&self) -> &Timings {
        &self.timings
    }

    /// Its agent.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// Makes a clone of a git repository of the host at `target` in the guest.
    ///
    /// # Errors
    /// `Clone` where it is no repository, or there is no git.
    pub async fn clone_in(
        &self,
        directory: &Path,
        target: &str,
        observer: &mut dyn Observer,
    ) -> Result<(), Error> {
        clone::clone_in(&self.guest, directory, target, observer).await
    }

    /// Brings what was committed to the clone at `source`, and what was not, to the repository: as
    /// references below `refs/sandforge/NAME`, and nothing else of it changes.
    ///
    /// # Errors
    /// `Clone`.
    pub async fn fetch_back(
        &self,
        source: &str,
        directory: &Path,
        name: &str,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Fetched>, Error> {
        clone::fetch_back(&self.guest, source, directory, name, observer).await
    }

    /// Copies a directory, or one file, of the host to `target` in the guest.
    ///
    /// # Errors
    /// `CopyIn` where it cannot be read or the guest does not take it.
    pub async fn copy_in(
        &self,
        host: &Path,
        target: &str,
        options: CopyIn,
        observer: &mut dyn Observer,
    ) -> Result<CopySummary, Error> {
        self.copy_in_without(host, target, options, None, observer).await
    }

    /// The same, without what is `hidden`.
    ///
    /// # Errors
    /// As [`Self::copy_in`].
    pub async fn copy_in_without(
        &self,
        host: &Path,
        target: &str,
        options: CopyIn,
        hidden: Option<Hidden>,
        observer: &mut dyn Observer,
    ) -> Result<CopySummary, Error> {
        let (summary, sent) =
            copy::copy_in(&self.guest, host, target, options, hidden, observer).await?;
        if options.reviewed {
            self.sent().insert(target.to_owned(), Arc::new(sent));
        }
        Ok(summary)
    }

    /// Brings a directory of the guest to the host, into one that is new or empty and where
    /// nothing changes unless all of it can be taken.
    ///
    /// # Errors
    /// `CopyOut` with what was wrong with what came.
    pub async fn copy_out(
        &self,
        source: &str,
        host: &Path,
        options: CopyOut,
        observer: &mut dyn Observer,
    ) -> Result<CopySummary, Error> {
        let links = match options.leave_out_links {
            true => OutsideLinks::LeaveOut,
            false => OutsideLinks::Refuse,
        };
        copy::copy_out(&self.guest, source, host, links, observer).await
    }

    /// Shares an open directory of the host at `target`, for every later task: both sides see what the
    /// other changes. It lasts until [`Self::unshare`], or as long as this process has the sandbox.
    /// Says what its threads lack of a second lock, for a person.
    ///
    /// # Errors
    /// `Share` where it cannot be shared, `Guest` where the guest does not take it.
    pub async fn share(
        &self,
        directory: OwnedFd,
        target: &str,
        options: share::Options,
    ) -> Result<Option<String>, Error> {
        let live = Live::start(&self.guest, directory, target, options).await?;
        let lacks = match live.confined() {
            Confined::Wholly | Confined::Partly => None,
            Confined::Not(why) => Some(format!("live sharing runs without landlock: {why}")),
        };
        self.live().insert(target.to_owned(), live);
        Ok(lacks)
    }

    /// Takes a shared directory away again. Tasks that run get errors where they still use it.
    ///
    /// # Errors
    /// `Request` where none is shared there, `Guest` where the guest is gone.
    pub async fn unshare(&self, target: &str) -> Result<(), Error> {
        let live = self.live().remove(target);
        let missing = || Error::Request(format!("no directory is shared live at {target}"));
        live.ok_or_else(missing)?.end().await
    }

    fn live(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether what is changed in a directory can be collected.
    pub fn is_reviewed(&self, guest: &str) -> bool {
        self.sent().contains_key(guest)
    }

    /// Keeps what was changed in a directory since it was copied in to be [`CopyIn::reviewed`], in
    /// `to`, in the place of what was collected there before. With `ignored`, also what git would
    /// ignore.
    ///
    /// # Errors
    /// `CopyOut` with what was wrong with what came; `Request` for what was not copied in so.
    pub async fn collect(
        &self,
        about: About,
        to: &Path,
        ignored: bool,
        observer: &mut dyn Observer,
    ) -> Result<Collected, Error> {
        let sent = self.sent().get(&about.guest).cloned().ok_or_else(|| {
            Error::Request(format!(
                "what was copied to {} is not known any more: its changes cannot be told",
                about.guest
            ))
        })?;
        copy::collect_changes(&self.guest, sent, about, to, ignored, observer).await
    }

    /// Has a thread take what was changed in the root since the sandbox was made, as a layer of an
    /// image. No task may run meanwhile. What comes is as hostile as the guest.
    ///
    /// # Errors
    /// `Guest`, and what `take` says.
    pub async fn layer_out<T: Send + 'static>(
        &self,
        take: impl FnOnce(&mut dyn Read) -> Result<T, image::ImageError> + Send + 'static,
        observer: &mut dyn Observer,
    ) -> Result<T, Error> {
        copy::layer_out(&self.guest, take, observer).await
    }

    fn sent(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Sent>>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the guest is gone, and says why, in words.
    pub async fn ended(&mut self) -> String {
        let error = self.guest.closed().await;
        match &mut self.machine {
            Some(machine) => machine.ended().await,
            None => error.to_string(),
        }
    }

    /// Takes the machine away.
    ///
    /// # Errors
    /// `Engine` where it cannot be ended, `Record` where a kept one's record cannot be removed.
    pub async fn destroy(mut self) -> Result<Teardown, Error> {
        let begun = Instant::now();
        if self.info.writes_volumes {
            volume::freeze(&self.guest).await;
        }
        let stats = self.stats().unwrap_or_default();
        match (self.machine.take(), &self.kept) {
            (Some(mut machine), kept) => {
                machine.kill().await.map_err(Error::Engine)?;
                if let Some(kept) = kept {
                    kept.forget(&self.info.name)?;
                }
            }
            (None, Some(kept)) => match kept.remove(&self.info.name).await {
                // It ended by itself, and somebody swept.
                Err(Error::NoSuchSandbox(_)) => {}
                removed => removed?,
            },
            (None, None) => {}
        }
        if let Some(template) = self.wanted.take() {
            template.make();
        }
        Ok(Teardown {
            teardown_ms: milliseconds(begun.elapsed()),
            cpu_ms: milliseconds(stats.cpu),
            memory_peak_bytes: stats.memory_peak_bytes,
        })
    }

    /// Lets go of a kept machine, which goes on.
    pub fn leave(self) {
        debug_assert!(self.kept.is_some(), "only a kept machine outlives its caller");
    }
}
