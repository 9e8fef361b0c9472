//! `sandforge image build`: images by recipes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use client::api::{CreateSandbox, NetworkMode};
use fleet::Manager;
use serde::Serialize;
use supervisor::image::build::{FILE_NAME, Plan, Step};
use supervisor::image::oci::{Built, NewLayer, StepLock};
use supervisor::image::{ImageError, ImageRef, Progress, Store, recipe};
use wire::op::{Command, Outcome};
use wire::text::Text;

use super::image::{Shown, familiar, image_failure};
use super::{Context, run};
use crate::errand::{self, Said};
use crate::failure::{Failure, Kind};
use crate::progress::{Line, Verbosity};
use crate::signals::Signals;
use crate::units::{self, readable};
use crate::{embedded, exit, filter};

/// Memory of a sandbox that runs a step, in MiB.
const MEMORY_MB: u32 = 2048;
/// Room for what a step changes, in GiB; it takes up what is written.
const DISK_GB: u32 = 20;
/// Lines of a step's output that go with its failure.
const LAST_LINES: usize = 40;

#[derive(Args)]
#[command(after_help = "\
A recipe is a file in TOML; docs/images.md has all of it:

  base = \"base\"                     or a reference, or ./layout, or ./saved.tar
  run = [\"make\", \"make install\"]    lines for /bin/sh, as root, in a sandbox
  cmd = [\"tool\"]
  [packages]
  apt = [\"gcc\", \"make\"]            also apk, dnf, pip, npm
  [[files]]
  from = \"src\"
  to = \"/src\"

Each step runs in a sandbox of its own that reaches package registries and git, to read, and
nothing else. It becomes a layer, and is not done again until it, or something before it, changes.

Exit status: 0 done, 1 Sandforge failed, 2 usage, 3 what was named is not there, 4 a command of
the recipe failed.")]
pub(crate) struct BuildArgs {
    /// The directory with the recipe and its files; or base or build, which are Sandforge's own
    /// [default: . where it has image.toml, or else base]
    #[arg(value_name = "DIR|NAME")]
    place: Option<PathBuf>,
    /// The recipe [default: image.toml in DIR]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// What the image is called [default: as its recipe says, or like the directory]
    #[arg(short, long, value_name = "NAME")]
    tag: Option<String>,
    /// Do every step again
    #[arg(long)]
    no_cache: bool,
    /// Memory of the sandbox of a step: 512 (MiB), 512m, 2g [default: 2048]
    #[arg(short, long, value_name = "SIZE", value_parser = units::memory_mb)]
    memory: Option<u32>,
    /// Let the steps reach this too, as `run --allow` does
    #[arg(long, value_name = "RULE")]
    allow: Vec<String>,
    /// What runs the sandboxes, by name [default: the strongest]
    #[arg(long, value_name = "NAME", env = "SANDFORGE_ENGINE")]
    engine: Option<String>,
    /// Print a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// What was built.
#[derive(Serialize)]
struct Report {
    name: String,
    digest: String,
    steps: Vec<Told>,
}

/// What became of a step.
#[derive(Serialize)]
struct Told {
    step: String,
    is_cached: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    layer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    layer_bytes: Option<u64>,
    ms: u64,
}

impl BuildArgs {
    pub(crate) fn run(self, context: &Context, store: &Store) -> Result<(), Failure> {
        let named = |name: &str| recipe::names().find(|known| *known == name);
        let ours = match (&self.place, &self.file) {
            (Some(place), None) => place.to_str().and_then(named),
            (None, None) if !Path::new(FILE_NAME).exists() => Some("base"),
            _ => None,
        };
        if let Some(name) = ours {
            return self.rebuild(name, context, store);
        }
        let directory = self.place.clone().unwrap_or_else(|| PathBuf::from("."));
        let file = self.file.clone().unwrap_or_else(|| directory.join(FILE_NAME));
        if !directory.is_dir() {
            // A word alone is rather a recipe of ours, misspelt.
            if let Some(name) = directory.to_str().filter(|name| !name.contains(['/', '.'])) {
                return self.rebuild(name, context, store);
            }
            let failure = Failure::usage(format!("{directory:?} is no directory"));
            return Err(failure.help("a directory with a recipe (image.toml), or base, or build"));
        }
        let mut plan =
            Plan::read(&file).map_err(|error| Failure::from_error(Kind::Usage, &error))?;
        if let ImageRef::Path(path) = &plan.base {
            plan.base = ImageRef::Path(directory.join(path));
        }
        let name = match self.tag.clone().or_else(|| plan.name.clone()) {
            Some(name) => name,
            None => named_like(&directory)?,
        };
        super::block_on(self.build(plan, name, directory, context, store.clone()))
    }

    /// One of Sandforge's own, with today's packages.
    fn rebuild(&self, name: &str, context: &Context, store: &Store) -> Result<(), Failure> {
        if self.tag.is_some() {
            return Err(Failure::usage(format!("the image of the recipe {name} is called {name}"))
                .help("--tag is for recipes of your own"));
        }
        let mut line = Shown(Line::new(context.verbosity));
        let image = store.build(name, &mut line).map_err(|error| image_failure(&error))?;
        line.0.clear();
        let digest = image.digest.unwrap_or_default();
        match self.json {
            true => super::print_json(&serde_json::json!({"name": name, "digest": digest})),
            false => super::print(&format!("{name} {digest}\n")),
        }
    }

    async fn build(
        self,
        plan: Plan,
        name: String,
        directory: PathBuf,
        context: &Context,
        store: Store,
    ) -> Result<(), Failure> {
        let mut signals = Signals::catch()?;
        let line = Line::new(context.verbosity);
        let manager = signals.unless_asked(embedded::manager()).await??;
        let mut builder = Builder {
            manager: Arc::clone(&manager),
            store,
            directory,
            base: run::image(plan.base.to_string().into())?,
            memory_mb: self.memory.unwrap_or(MEMORY_MB),
            engine: self.engine,
            allow: self.allow,
            no_cache: self.no_cache,
            is_loud: context.verbosity == Verbosity::Verbose,
            line,
            signals,
        };
        let built = builder.all(&plan, &name).await;
        builder.line.clear();
        manager.shutdown(embedded::DEADLINE).await;
        let report = built?;
        match self.json {
            true => super::print_json(&report),
            false => super::print(&format!(
                "{} {}\n",
                filter::plain(&familiar(&report.name)),
                report.digest
            )),
        }
    }
}

fn named_like(directory: &Path) -> Result<String, Failure> {
    let real = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    let name = real.file_name().map(|name| name.to_string_lossy().to_lowercase());
    name.ok_or_else(|| {
        Failure::usage("the image needs a name")
            .help("give it one: --tag NAME, or name in the recipe")
    })
}

/// What builds one image.
struct Builder {
    manager: Arc<Manager>,
    store: Store,
    directory: PathBuf,
    /// What policy is asked about.
    base: String,
    memory_mb: u32,
    engine: Option<String>,
    allow: Vec<String>,
    no_cache: bool,
    is_loud: bool,
    line: Line,
    signals: Signals,
}

impl Builder {
    async fn all(&mut self, plan: &Plan, name: &str) -> Result<Report, Failure> {
        // What a step has made stays until the image has its name.
        let _hold = self.store.hold_blobs().map_err(|error| super::image::store_failure(&error))?;
        let base = self.base_of(plan).await?;
        let says = plan.says.for_steps(base.config());
        let key = key_of("environment", &base, &says);
        let mut built = match says == *base.config() {
            true => base.clone(),
            false => {
                let from = base.clone();
                self.with_store(move |store, line| store.configure(&from, &key, &says, line))
                    .await?
            }
        };
        let mut steps = Vec::new();
        let count = plan.steps.len();
        for (index, step) in plan.steps.iter().enumerate() {
            let begun = Instant::now();
            let label = format!("step {}/{count}: {}", index + 1, step.title());
            let (next, layer) = self.step(&built, step, &label).await?;
            self.line.clear();
            self.line.notice(&match &layer {
                Some(layer) => {
                    let (size, took) = (readable(layer.size()), begun.elapsed().as_secs_f64());
                    format!("{label}: {size} in {took:.1} s")
                }
                None => format!("{label}: done before"),
            });
            steps.push(Told {
                step: step.title(),
                is_cached: layer.is_none(),
                layer: layer.as_ref().map(|layer| layer.digest().to_owned()),
                layer_bytes: layer.as_ref().map(NewLayer::size),
                ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            });
            built = next;
        }
        // What the recipe says comes upon what the base says, whatever was said for the steps.
        let config = plan.says.over(base.config());
        if config != *built.config() {
            let key = key_of("configuration", &built, &config);
            let from = built.clone();
            built = self
                .with_store(move |store, line| store.configure(&from, &key, &config, line))
                .await?;
        }
        let (done, name) = (built.clone(), name.to_owned());
        let image =
            self.with_store(move |store, line| store.name_build(&done, &name, line)).await?;
        Ok(Report { name: image.name, digest: built.digest().to_owned(), steps })
    }

    async fn base_of(&mut self, plan: &Plan) -> Result<Built, Failure> {
        let base = plan.base.clone();
        let store = self.store.clone();
        let tried = self.on_thread(move |line| store.build_base(&base, line)).await?;
        match tried {
            Err(ImageError::Absent(reference)) => {
                let supervisor = super::supervisor()?;
                let pulling = supervisor.pull(&reference, None, &mut self.line);
                self.signals
                    .unless_asked(pulling)
                    .await?
                    .map_err(|error| super::supervisor_failure(&error))?;
                let base = ImageRef::Oci(reference);
                self.with_store(move |store, line| store.build_base(&base, line)).await
            }
            tried => tried.map_err(|error| image_failure(&error)),
        }
    }

    /// What a step makes, and its layer where it had to be made.
    async fn step(
        &mut self,
        on: &Built,
        step: &Step,
        label: &str,
    ) -> Result<(Built, Option<NewLayer>), Failure> {
        let packed = match step {
            Step::Files(files) => {
                let (on, directory, files) = (on.clone(), self.directory.clone(), files.clone());
                let packing = self
                    .with_store(move |store, line| store.pack_files(&on, &directory, &files, line));
                Some(packing.await?)
            }
            Step::Packages(..) | Step::Run(_) => None,
        };
        let contents = packed.as_ref().map_or("", NewLayer::digest);
        let key = step.key(on.digest(), contents);
        if let Some(built) = self.found(&key).await? {
            return Ok((built, None));
        }
        let locked = key.clone();
        let lock: StepLock =
            self.with_store(move |store, line| store.lock_step(&locked, line)).await?;
        // Another build may have made it meanwhile.
        if let Some(built) = self.found(&key).await? {
            return Ok((built, None));
        }
        let layer = match (packed, step.command()) {
            (Some(layer), _) => layer,
            (None, command) => {
                self.line.long(label, 0, None);
                self.in_sandbox(on, command.unwrap_or_default(), step, label).await?
            }
        };
        let (on, new, note) = (on.clone(), layer.clone(), step.title());
        let made =
            self.with_store(move |store, line| store.add_layer(&on, &key, &new, &note, line));
        let built = made.await?;
        drop(lock);
        Ok((built, Some(layer)))
    }

    async fn found(&mut self, key: &str) -> Result<Option<Built>, Failure> {
        if self.no_cache {
            return Ok(None);
        }
        let key = key.to_owned();
        self.with_store(move |store, line| store.build_step(&key, line)).await
    }

    /// Runs a command in a sandbox that starts from what there is, and takes what it changed.
    async fn in_sandbox(
        &mut self,
        on: &Built,
        words: Vec<String>,
        step: &Step,
        label: &str,
    ) -> Result<NewLayer, Failure> {
        let sandbox = CreateSandbox {
            image: Some(self.base.clone()),
            memory_mb: Some(self.memory_mb),
            disk_gb: Some(DISK_GB),
            engine: self.engine.clone(),
            network: Some(NetworkMode::Fetch),
            allow: self.allow.clone(),
            ..CreateSandbox::default()
        };
        let words = words.into_iter().map(Text::new).collect::<Result<Vec<_>, _>>();
        let words = words.map_err(|error| Failure::usage(format!("the step {error}")))?;
        let exec = wire::op::Exec {
            user: Some(Text::from("0")),
            cwd: Some(Text::from(on.config().working_dir.as_deref().unwrap_or("/"))),
            kill_grace_ms: 0,
            ..wire::op::Exec::new("p1", Command::Argv(words))
        };
        let beginning = errand::begin_from(
            &self.manager,
            sandbox,
            Some(on.image()),
            &exec,
            &mut self.line,
            &mut self.signals,
        );
        let mut sandbox = beginning.await?;
        self.line.long(label, 0, None);
        let said = errand::run(&mut sandbox, &exec, &mut self.signals).await;
        let layer = match &said {
            Ok(said) if matches!(said.reply.outcome, Outcome::Exited { code: 0 }) => {
                let store = self.store.clone();
                let taking = sandbox
                    .sandbox()
                    .layer_out(move |layer| store.put_layer(layer), &mut self.line);
                let taken = self.signals.unless_asked(taking).await;
                Some(taken.map(|taken| taken.map_err(|error| super::supervisor_failure(&error))))
            }
            _ => None,
        };
        let denied = sandbox.denied();
        let reply = said.as_ref().ok().map(|said| said.reply.clone());
        let finished = sandbox.finish(reply, None).await;
        let said = said?;
        if self.is_loud {
            for line in String::from_utf8_lossy(&[&said.stdout[..], &said.stderr].concat()).lines()
            {
                self.line.notice(&format!("  {line}"));
            }
        }
        let Some(layer) = layer else {
            return Err(failed(step, &said, &denied));
        };
        finished.map_err(|error| run::fleet_failure(&error))?;
        layer?
    }

    /// Work on the store that fails in its own words.
    async fn with_store<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&Store, &mut dyn Progress) -> Result<T, ImageError> + Send + 'static,
    ) -> Result<T, Failure> {
        let store = self.store.clone();
        let done = self.on_thread(move |line| work(&store, line)).await?;
        done.map_err(|error| image_failure(&error))
    }

    /// Work on a thread of its own, so that the user can interrupt it.
    async fn on_thread<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut dyn Progress) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let (sender, mut steps) = tokio::sync::mpsc::unbounded_channel();
        let mut working = tokio::task::spawn_blocking(move || {
            work(&mut |step: supervisor::image::Step| {
                // Nobody listens any more where the user gave up.
                let _ = sender.send(step);
            })
        });
        loop {
            tokio::select! {
                biased;
                Some(step) = steps.recv() => {
                    self.line.long(step.stage.label(), step.done, step.total);
                }
                done = &mut working => {
                    return done.map_err(|error| Failure::failed(error.to_string()));
                }
                signal = self.signals.next() => return Err(Failure::interrupted(signal)),
            }
        }
    }
}

fn key_of(what: &str, on: &Built, config: &supervisor::image::ImageConfig) -> String {
    let step = Step::Run(String::new());
    let config = serde_json::to_string(config).unwrap_or_default();
    step.key(on.digest(), &format!("{what} {config}"))
}

/// A command of the recipe failed: what it said last, and what it was denied.
fn failed(step: &Step, said: &Said, denied: &[fleet::Denied]) -> Failure {
    let how = match &said.reply.outcome {
        Outcome::Exited { code } => format!("ended with status {code}"),
        Outcome::Signaled { signal } => format!("was ended by signal {signal}"),
        Outcome::OutOfMemory { .. } => "ran out of memory: try --memory".to_owned(),
        Outcome::NotFound { command } => {
            format!("needs {command:?}, which the image does not have")
        }
        Outcome::NotExecutable { reason } => format!("cannot be run: {reason}"),
        Outcome::TimedOut { .. } | Outcome::Running => "did not end".to_owned(),
    };
    let mut failure = Failure::failed(format!("{}: the command {how}", step.title()));
    failure.status = Some(exit::STEP_FAILED);
    let both = [&said.stdout[..], &said.stderr[..]].concat();
    let text = String::from_utf8_lossy(&both);
    let lines: Vec<&str> = text.lines().collect();
    let last = lines.len().saturating_sub(LAST_LINES);
    failure.causes.extend(lines[last..].iter().map(|line| filter::plain(line)));
    for one in denied {
        failure.causes.push(format!("it was denied {}: {}", one.host, one.reason));
    }
    failure
}
