//! `sandforge image`: the root file systems that machines start from.

use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use supervisor::image::{ImageError, Progress, RecipeError, Step, Store, StoreError, recipe};

use super::Context;
use super::list::{age, table};
use crate::failure::{Failure, Kind};
use crate::filter;
use crate::progress::Line;
use crate::units::readable;

/// List, build, check and remove the images that machines start from
#[derive(Args)]
#[command(after_help = "\
Examples:
  sandforge image ls
  sandforge image build base      build it anew, with today's packages
  sandforge image verify base     compare every byte with its digest
  sandforge image rm base         the next `sandforge run` builds it again

A root made elsewhere needs none of this: sandforge run --image ./root.tar true")]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List the images
    Ls {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Build an image from its recipe, in place of the one that is there
    Build {
        /// The recipe: base, or build (base with a C tool chain)
        #[arg(default_value = "base")]
        name: String,
    },
    /// Remove images, by name or digest
    Rm {
        /// Which
        #[arg(required = true)]
        image: Vec<String>,
    },
    /// Compare an image with its digest
    Verify {
        /// Its name or digest
        image: String,
    },
}

impl ImageArgs {
    pub(crate) fn json(&self) -> bool {
        matches!(self.action, Action::Ls { json: true })
    }

    pub(crate) fn run(self, context: &Context) -> Result<u8, Failure> {
        let store = Store::open_default().map_err(|error| store_failure(&error))?;
        let mut line = Shown(Line::new(context.verbosity));
        match self.action {
            Action::Ls { json } => list(&store, json)?,
            Action::Build { name } => {
                let image = store.build(&name, &mut line).map_err(|error| image_failure(&error))?;
                line.0.clear();
                let digest = image.digest.unwrap_or_default();
                super::print(&format!("{name} {digest}\n"))?;
            }
            Action::Rm { image } => {
                for name in image {
                    let removed = store.remove(&name).map_err(|error| store_failure(&error))?;
                    line.0.notice(&format!("{name}: {} freed", readable(removed.bytes)));
                }
            }
            Action::Verify { image } => {
                store.verify(&image, &mut line).map_err(|error| store_failure(&error))?;
                line.0.clear();
                super::print(&format!("{}: ok\n", filter::plain(&image)))?;
            }
        }
        Ok(0)
    }
}

struct Shown(Line);

impl Progress for Shown {
    fn step(&mut self, step: Step) {
        self.0.long(step.stage.label(), step.done, step.total);
    }
}

fn list(store: &Store, json: bool) -> Result<(), Failure> {
    let images = store.list().map_err(|error| store_failure(&error))?;
    if json {
        return super::print_json(&images);
    }
    let mut rows = vec![["NAME", "DIGEST", "SIZE", "AGE", ""].map(str::to_owned)];
    for image in &images {
        let made = SystemTime::UNIX_EPOCH + Duration::from_secs(image.manifest.created);
        let digest = &image.manifest.digest;
        let digest = digest.strip_prefix("sha256:").unwrap_or(digest);
        rows.push([
            filter::plain(&image.manifest.name),
            digest.get(..12).unwrap_or(digest).to_owned(),
            readable(image.disk_bytes),
            age(made.elapsed().unwrap_or_default()),
            if image.stale { "outdated: its next use builds it anew" } else { "" }.to_owned(),
        ]);
    }
    for name in recipe::names() {
        if !images.iter().any(|image| image.manifest.name == name) {
            let note = "not built yet: its first use builds it";
            rows.push([name, "-", "-", "-", note].map(str::to_owned));
        }
    }
    super::print(&table(&rows))
}

fn store_failure(error: &StoreError) -> Failure {
    let kind = match error {
        StoreError::Unknown { .. } => Kind::NotFound,
        _ => Kind::Failed,
    };
    Failure::from_error(kind, error)
}

fn image_failure(error: &ImageError) -> Failure {
    match error {
        ImageError::Store(error) => store_failure(error),
        ImageError::Recipe(RecipeError::Unknown(_)) => Failure::from_error(Kind::NotFound, error),
        other => Failure::from_error(Kind::Failed, other),
    }
}
