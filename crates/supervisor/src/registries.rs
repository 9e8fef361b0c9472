//! Images that are not here come from their registries.

use std::collections::HashMap;

use image::{Reference, RootImage, Stage, Store};
use registry::{
    Credentials, Digest, Limits, Platform, Progress, Pull, PullError, Pulled, Settings, Source,
    Upstream, Version,
};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::{Error, Observer, Phase, Step};

/// Pulls what is not here.
#[derive(Debug, Clone, Default)]
pub(crate) struct Registries {
    pub(crate) settings: Settings,
}

/// What a pull says while it works.
enum Told {
    Total(u64),
    Blob(Digest, u64, u64),
    Notice(String),
}

struct Teller(UnboundedSender<Told>);

impl Progress for Teller {
    fn total(&self, bytes: u64) {
        // Nobody listens any more where the caller gave up.
        let _ = self.0.send(Told::Total(bytes));
    }

    fn blob(&self, digest: &Digest, done: u64, total: u64) {
        let _ = self.0.send(Told::Blob(*digest, done, total));
    }

    fn notice(&self, text: &str) {
        let _ = self.0.send(Told::Notice(text.into()));
    }
}

impl Registries {
    /// Pulls an image into the store, where it has its name from then on.
    pub(crate) async fn pull(
        &self,
        store: &Store,
        reference: &Reference,
        platform: Option<&Platform>,
        observer: &mut dyn Observer,
    ) -> Result<(RootImage, Pulled), Error> {
        let (sender, mut told) = unbounded_channel();
        let hold = store.hold_blobs()?;
        let pulled = {
            let mut shown = Shown::default();
            let fetching = self.fetch(store, reference, platform, Teller(sender));
            tokio::pin!(fetching);
            loop {
                tokio::select! {
                    biased;
                    Some(told) = told.recv() => shown.tell(told, observer),
                    pulled = &mut fetching => break pulled?,
                }
            }
        };
        let (store, reference) = (store.clone(), reference.clone());
        let digest = pulled.manifest_digest.to_string();
        let (sender, mut steps) = unbounded_channel();
        let work = tokio::task::spawn_blocking(move || {
            let image = store.import(&reference, &digest, &mut |step: image::Step| {
                let _ = sender.send(step);
            });
            drop(hold);
            image
        });
        while let Some(step) = steps.recv().await {
            let phase = Phase::Prepare(step.stage);
            observer.step(Step { phase, done: step.done, total: step.total });
        }
        let image = work.await.map_err(|error| Error::Internal(error.to_string()))??;
        Ok((image, pulled))
    }

    async fn fetch(
        &self,
        store: &Store,
        reference: &Reference,
        platform: Option<&Platform>,
        progress: Teller,
    ) -> Result<Pulled, Error> {
        let failed =
            |error: PullError| Error::Pull { image: reference.clone(), source: error.into() };
        let name = |error| failed(PullError::from(error));
        let source = Source::new(reference.registry(), reference.repository()).map_err(name)?;
        let version = Version::parse(reference.version()).map_err(name)?;
        let unusable = |error: &dyn std::error::Error| Error::Registries(error.to_string());
        let rules = self.settings.rules().map_err(|error| unusable(&error))?;
        let key = self.settings.key(&source).map_err(|error| unusable(&error))?;
        let upstream = Upstream::new(&self.settings).map_err(|error| unusable(&error))?;
        let credentials = Credentials::load().map_err(|error| unusable(&error))?;
        let layout = store.layout();
        let pull = registry::pull(Pull {
            source: &source,
            version: &version,
            platform,
            layout: &layout,
            names: false,
            credentials: &credentials,
            policy: &rules,
            signature: key.as_ref(),
            upstream: &upstream,
            limits: Limits::default(),
            progress: &progress,
        });
        pull.await.map_err(failed)
    }
}

/// All blobs as one.
#[derive(Default)]
struct Shown {
    blobs: HashMap<Digest, u64>,
    done: u64,
    total: Option<u64>,
}

impl Shown {
    fn tell(&mut self, told: Told, observer: &mut dyn Observer) {
        match told {
            Told::Notice(text) => return observer.notice(&text),
            Told::Total(total) => self.total = Some(total),
            Told::Blob(digest, done, total) => {
                observer.part(&digest.to_string(), done, total);
                let before = self.blobs.insert(digest, done).unwrap_or(0);
                self.done = (self.done + done).saturating_sub(before);
            }
        }
        let phase = Phase::Prepare(Stage::Pull);
        observer.step(Step { phase, done: self.done, total: self.total });
    }
}
