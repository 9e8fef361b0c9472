//! `sandforge image`: the root file systems that machines start from.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use supervisor::ImageInfo;
use supervisor::image::oci::Import;
use supervisor::image::{
    ImageError, Progress, RecipeError, RootImage, Step, Store, StoreError, recipe,
};

use super::Context;
use super::list::{age, table};
use crate::failure::{Failure, Kind};
use crate::filter;
use crate::progress::Line;
use crate::units::readable;

/// The images that machines start from: list, look into, bring in and out, build, check, remove
#[derive(Args)]
#[command(after_help = "\
Examples:
  sandforge image ls
  sandforge image build -t tool:1 .             by the recipe ./image.toml
  sandforge image build base      build it anew, with today's packages
  sandforge image pull python:3.12-slim         which `sandforge run --image` does too
  sandforge image verify base     compare every byte with its digest
  sandforge image rm base         the next `sandforge run` builds it again
  sandforge image import ./saved.tar tool:1     what `docker save` wrote, or a directory that is an
                                                OCI layout
  sandforge image export tool:1 tool.tar        as an OCI archive, which skopeo and podman read
  sandforge image prune           remove the layers that no image needs

An image made elsewhere needs none of this: sandforge run --image ./root.tar true")]
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
    /// Build an image by a recipe: your own, or one of Sandforge's anew
    Build(super::build::BuildArgs),
    /// Print what is known about an image, as JSON
    Inspect {
        /// Its name or digest
        image: String,
    },
    /// Bring in an image: a directory that is an OCI layout, or an archive of one or of `docker save`
    Import {
        /// The directory, or the archive: plain, gzip or zstd
        path: PathBuf,
        /// What it is called from then on; by default like the file. Of several images, this one
        name: Option<String>,
        /// Do not keep its compressed layers, which only an export or a repair needs
        #[arg(long)]
        no_blobs: bool,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Write an image as an archive that is an OCI layout
    Export {
        /// Its name or digest
        image: String,
        /// Where to; a file that is there is replaced
        file: PathBuf,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Pull an image from its registry, or what its tag has become
    Pull(super::pull::PullArgs),
    /// Remove images, by name or digest
    Rm {
        /// Which
        #[arg(required = true)]
        image: Vec<String>,
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Remove the layers and blobs that no image needs, and templates; what runs keeps its own
    Prune {
        /// The compressed layers of images too, which only an export or a repair needs
        #[arg(long)]
        blobs: bool,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Read every byte of an image and compare it with its digests
    Verify {
        /// Its name or digest
        image: String,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
}

impl ImageArgs {
    pub(crate) fn json(&self) -> bool {
        match self.action {
            Action::Ls { json }
            | Action::Import { json, .. }
            | Action::Export { json, .. }
            | Action::Rm { json, .. }
            | Action::Prune { json, .. }
            | Action::Verify { json, .. } => json,
            Action::Pull(ref args) => args.json,
            Action::Inspect { .. } => true,
            Action::Build(ref args) => args.json,
        }
    }

    pub(crate) fn run(self, context: &Context) -> Result<u8, Failure> {
        let store = Store::open_default().map_err(|error| store_failure(&error))?;
        let mut line = Shown(Line::new(context.verbosity));
        match self.action {
            Action::Ls { json } => list(&store, json, &mut line.0)?,
            Action::Build(args) => args.run(context, &store)?,
            Action::Pull(args) => args.run(context)?,
            Action::Inspect { image } => inspect(&store, &image)?,
            Action::Import { path, name, no_blobs, json } => {
                let import = Import { name: name.as_deref(), keep_blobs: !no_blobs };
                let image = store
                    .import_from(&path, import, &mut line)
                    .map_err(|error| image_failure(&error))?;
                line.0.clear();
                imported(&image, json)?;
            }
            Action::Export { image, file, json } => {
                let bytes = export(&store, &image, &file)?;
                match json {
                    true => super::print_json(&serde_json::json!({"bytes": bytes}))?,
                    false => line.0.notice(&format!("{image}: {}", readable(bytes))),
                }
            }
            Action::Rm { image, json } => {
                let mut all = Vec::new();
                for name in image {
                    let removed = store.remove(&name).map_err(|error| store_failure(&error))?;
                    match json {
                        true => {
                            all.push(serde_json::json!({"image": name, "bytes": removed.bytes}));
                        }
                        false => {
                            line.0.notice(&format!("{name}: {} freed", readable(removed.bytes)))
                        }
                    }
                }
                if json {
                    super::print_json(&all)?;
                }
            }
            Action::Prune { blobs, json } => {
                let mut pruned = store.prune(blobs).map_err(|error| store_failure(&error))?;
                pruned.bytes += supervisor::remove_templates(store.directory())
                    .map_err(|error| Failure::failed("cannot remove templates").because(&error))?;
                if json {
                    super::print_json(&pruned)?;
                } else {
                    line.0.notice(&format!("{} freed", readable(pruned.bytes)));
                    if pruned.in_use > 0 {
                        line.0.notice(&format!("{} layers are in use and stay", pruned.in_use));
                    }
                    if pruned.blobs_are_held {
                        line.0.notice("an image is just arriving: its blobs were left alone");
                    }
                }
            }
            Action::Verify { image, json } => {
                store.verify(&image, &mut line).map_err(|error| store_failure(&error))?;
                line.0.clear();
                match json {
                    true => super::print_json(&serde_json::json!({"image": image, "ok": true}))?,
                    false => super::print(&format!("{}: ok\n", filter::plain(&image)))?,
                }
            }
        }
        Ok(0)
    }
}

/// Steps of the store, in a line.
pub(super) struct Shown(pub(super) Line);

impl Progress for Shown {
    fn step(&mut self, step: Step) {
        self.0.long(step.stage.label(), step.done, step.total);
    }
}

fn list(store: &Store, json: bool, line: &mut Line) -> Result<(), Failure> {
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
            filter::plain(&familiar(&image.manifest.name)),
            digest.get(..12).unwrap_or(digest).to_owned(),
            readable(image.disk_bytes),
            age(made.elapsed().unwrap_or_default()),
            note(image),
        ]);
    }
    for name in recipe::names() {
        if !images.iter().any(|image| image.manifest.name == name) {
            let note = "not built yet: its first use builds it";
            rows.push([name, "-", "-", "-", note].map(str::to_owned));
        }
    }
    super::print(&table(&rows))?;
    if images.iter().any(|image| image.shared_bytes > 0) {
        let all = store.disk_bytes_of_all().map_err(|error| store_failure(&error))?;
        line.notice(&format!("{} in all: what images share is there once", readable(all)));
    }
    Ok(())
}

fn note(image: &ImageInfo) -> String {
    match image {
        ImageInfo { stale: true, .. } => "outdated: its next use builds it anew".to_owned(),
        ImageInfo { shared_bytes: 0, .. } => String::new(),
        ImageInfo { shared_bytes, .. } => format!("{} of it shared", readable(*shared_bytes)),
    }
}

/// A reference as people write it, and any other name as it is.
pub(super) fn familiar(name: &str) -> String {
    let reference = name.parse::<supervisor::image::Reference>();
    match reference {
        Ok(reference) if reference.to_string() == name => reference.familiar(),
        _ => name.to_owned(),
    }
}

fn inspect(store: &Store, name: &str) -> Result<(), Failure> {
    let flat = store.find(name).map_err(|error| store_failure(&error))?;
    if let Some(image) = flat {
        return super::print_json(&image);
    }
    match store.inspect(name).map_err(|error| store_failure(&error))? {
        Some(image) => super::print_json(&image),
        None => Err(store_failure(&store.unknown(name))),
    }
}

fn imported(image: &RootImage, json: bool) -> Result<(), Failure> {
    let digest = image.digest.as_deref().unwrap_or_default();
    if json {
        return super::print_json(&serde_json::json!({
            "name": image.name, "digest": format!("sha256:{digest}"),
            "layers": image.layers.len(), "bytes": image.size,
        }));
    }
    super::print(&format!("{} {digest}\n", filter::plain(&familiar(&image.name))))
}

/// To a file beside the one that is meant, which is replaced when all is written.
fn export(store: &Store, name: &str, file: &Path) -> Result<u64, Failure> {
    let failed = |error: &std::io::Error| {
        Failure::failed(format!("cannot write {}", file.display())).because(error)
    };
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    let mut new = tempfile::Builder::new()
        .prefix(".sandforge-export-")
        .tempfile_in(parent.unwrap_or_else(|| Path::new(".")))
        .map_err(|error| failed(&error))?;
    let mut to = BufWriter::with_capacity(1 << 20, new.as_file_mut());
    store.export(name, &mut to).map_err(|error| image_failure(&error))?;
    to.flush().map_err(|error| failed(&error))?;
    drop(to);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(new.path(), mode).map_err(|error| failed(&error))?;
    let kept: File = new.persist(file).map_err(|error| failed(&error.error))?;
    Ok(kept.metadata().map_err(|error| failed(&error))?.len())
}

pub(super) fn store_failure(error: &StoreError) -> Failure {
    let kind = match error {
        StoreError::Unknown { .. } => Kind::NotFound,
        _ => Kind::Failed,
    };
    Failure::from_error(kind, error)
}

pub(super) fn image_failure(error: &ImageError) -> Failure {
    match error {
        ImageError::Store(error) => store_failure(error),
        ImageError::Recipe(RecipeError::Unknown(_)) => Failure::from_error(Kind::NotFound, error),
        other => Failure::from_error(Kind::Failed, other),
    }
}
