//! Templates: that nothing is shared which may not be, and that whoever goes on from one is nobody
//! before.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use engine::{Attachment, BootSpec, Machine, SandboxBackend, Saved, Snapshot, System};
use link::{Guest, LinkError, SigningKey};
use supervisor::wire::op::{ErrorCode, Processes};
use supervisor::{Launcher, SandboxSpec, Supervisor, TemplateOrder};

use crate::support::{block_on, engines, run_in, sh, shell, supervisor};
use crate::trust::system;

const MEMORY_MB: u32 = 256;

/// The engines that keep templates.
fn keepers() -> impl Iterator<Item = &'static str> {
    let keeps = |engine: &&str| {
        let keeps = supervisor().engine(engine).unwrap().snapshot_basis().is_some();
        if !keeps {
            eprintln!("not run: the engine {engine} keeps no templates");
        }
        keeps
    };
    engines().iter().map(String::as_str).filter(keeps)
}

fn with_templates() -> Supervisor {
    supervisor().with_templates(Launcher {
        program: env!("CARGO_BIN_EXE_sandforge").into(),
        arguments: vec!["__template".into()],
    })
}

fn spec(engine: &str) -> SandboxSpec {
    SandboxSpec {
        cpus: Some(1),
        memory_mb: MEMORY_MB,
        engine: Some(engine.into()),
        ..SandboxSpec::default()
    }
}

async fn make(engine: &str) {
    let order = TemplateOrder {
        cache: supervisor().images().directory().to_owned(),
        engine: engine.into(),
        image: "base".into(),
        cpus: 1,
        memory_mb: MEMORY_MB,
    };
    let maker = Launcher { program: "/bin/true".into(), arguments: Vec::new() };
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        supervisor().make_template(&order).await.unwrap();
        let others = supervisor().with_templates(maker.clone());
        let sandbox = others.create(spec(engine), &mut ()).await.unwrap();
        let is_there = sandbox.timings().kernel_ms == 0.0;
        sandbox.destroy().await.unwrap();
        if is_there {
            return;
        }
        // Somebody else is at one of another kind.
        assert!(Instant::now() < deadline, "no template was made");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap()
}

/// Each line of it is another in every machine.
const DRAWN: &str = "od -An -tx1 -N32 /dev/urandom | tr -d ' \\n'; echo; \
                     cat /proc/sys/kernel/random/uuid /proc/sys/kernel/random/boot_id \
                     /etc/machine-id; mktemp -u; date +%s%N";

#[test]
fn sandboxes_of_one_template_draw_name_and_date_for_themselves() {
    for engine in keepers() {
        block_on(async {
            make(engine).await;
            let supervisor = with_templates();
            let mut sandboxes = Vec::new();
            for _ in 0..4 {
                let sandbox = supervisor.create(spec(engine), &mut ()).await.unwrap();
                assert!(sandbox.timings().kernel_ms == 0.0, "a kernel booted");
                sandboxes.push(sandbox);
            }
            let mut seen = BTreeSet::new();
            for sandbox in &sandboxes {
                let before = now();
                let said = sh(sandbox, DRAWN).await.ok();
                let after = now();
                let lines: Vec<_> = said.lines().collect();
                let [drawn @ .., date] = lines.as_slice() else { panic!("{said}") };
                assert_eq!(drawn.len(), 5, "{said}");
                for line in drawn {
                    assert!(line.len() >= 8 && seen.insert((*line).to_owned()), "again: {line}");
                }
                let date = Duration::from_nanos(date.parse().unwrap());
                let slack = Duration::from_millis(50);
                assert!(
                    before - slack <= date && date <= after + slack,
                    "{before:?} {date:?} {after:?}"
                );
            }
            for sandbox in sandboxes {
                sandbox.destroy().await.unwrap();
            }
        });
    }
}

#[test]
fn twenty_sandboxes_in_a_row_go_on_from_one_template() {
    for engine in keepers() {
        block_on(async {
            make(engine).await;
            let supervisor = with_templates();
            for _ in 0..20 {
                let sandbox = supervisor.create(spec(engine), &mut ()).await.unwrap();
                assert!(sandbox.timings().kernel_ms == 0.0, "a kernel booted");
                assert_eq!(sh(&sandbox, "echo here").await.ok(), "here\n");
                sandbox.destroy().await.unwrap();
            }
        });
    }
}

async fn machine(engine: &dyn SandboxBackend, system: System, words: &[&str]) -> Box<dyn Machine> {
    let spec = BootSpec {
        sandbox: "sb-template".into(),
        cpus: 1,
        memory_mb: MEMORY_MB,
        system,
        agent_arguments: words.iter().map(|&word| word.to_owned()).collect(),
        attachment: Attachment::Owned,
        console: false,
    };
    engine.boot(spec).await.unwrap()
}

async fn connect(machine: &mut dyn Machine, sandbox: &str, key: &SigningKey) -> Guest {
    let carrier = machine.carrier().unwrap();
    let patience = Duration::from_secs(120);
    Guest::connect(carrier, sandbox, key.clone(), patience, None).await.unwrap()
}

fn code(error: LinkError) -> ErrorCode {
    match error {
        LinkError::Operation(error) => error.code,
        other => panic!("{other}"),
    }
}

#[test]
fn who_goes_on_from_a_template_is_nobody_before_and_somebody_once() {
    for engine in engines() {
        let supervisor = supervisor();
        let backend = supervisor.engine(engine).unwrap();
        if !backend.capabilities().snapshot {
            eprintln!("not run: the engine {engine} does not save machines");
            continue;
        }
        block_on(async {
            let nobodys = link::generate_key().unwrap();
            let mut template = machine(backend, system(engine), &["sandforge.template"]).await;
            let guest = connect(template.as_mut(), "sb-template", &nobodys).await;
            guest.ping().await.unwrap();
            assert_eq!(code(guest.freshen().await.unwrap_err()), ErrorCode::NotReady);
            template.pause().await.unwrap();
            let file = || tempfile::tempfile().unwrap();
            let snapshot = Snapshot { memory: file(), state: file() };
            template.save(&snapshot).await.unwrap();
            template.kill().await.unwrap();

            let disks = system(engine).guest().unwrap().disks;
            let saved = System::Saved(Saved { snapshot, disks });
            let mut machine = machine(backend, saved, &[]).await;
            let key = link::generate_key().unwrap();
            let guest = connect(machine.as_mut(), "sb-one", &key).await;
            assert_eq!(code(guest.ask(&Processes {}).await.unwrap_err()), ErrorCode::NotReady);
            guest.take_identity(Some("box-1".into())).await.unwrap();
            let named = run_in(&guest, shell("hostname")).await.unwrap().ok();
            assert_eq!(named, "box-1\n");
            assert_eq!(code(guest.take_identity(None).await.unwrap_err()), ErrorCode::Exists);
            assert_eq!(run_in(&guest, shell("echo on")).await.unwrap().ok(), "on\n");
            machine.kill().await.unwrap();
        });
    }
}

/// Directories of templates.
fn templates() -> BTreeSet<PathBuf> {
    let directory = supervisor().images().directory().join("templates");
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let finished = |path: &PathBuf| path.join("manifest.json").exists() && is_key(path);
    entries.map(|entry| entry.path()).filter(finished).collect()
}

fn is_key(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.len() == 64)
}

/// Whether a file has these bytes somewhere.
fn has(path: &Path, canary: &[u8]) -> bool {
    fs::read(path).unwrap().windows(canary.len()).any(|window| window == canary)
}

#[test]
fn a_template_is_made_behind_the_user_s_back_and_holds_nothing_of_his() {
    if !keepers().any(|engine| engine == "qemu") {
        return;
    }
    let canary = format!("canary-{:032x}", now().as_nanos());
    let before = templates();
    // A size that nobody else has, so that there is no template yet.
    let memory = format!("{}", 260 + std::process::id() % 200);
    let run = || {
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        let directory = tempfile::Builder::new().permissions(private).tempdir().unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_sandforge"))
            .args(["-q", "run", "--engine", "qemu", "--cpu", "1", "--memory", &memory])
            .args(["-e", "CANARY", "echo $CANARY"])
            .env("CANARY", &canary)
            .env("SANDFORGE_DATA_DIR", directory.path())
            .env("SANDFORGE_TEMPLATES", "on")
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{canary}\n"), "{output:?}");
    };
    run();
    let deadline = Instant::now() + Duration::from_secs(120);
    let made = loop {
        let new: Vec<_> = templates().difference(&before).cloned().collect();
        let of_ours = |path: &PathBuf| {
            let bytes = fs::metadata(path.join("memory")).map_or(0, |found| found.len());
            bytes == memory.parse::<u64>().unwrap() << 20
        };
        match new.into_iter().find(of_ours) {
            Some(made) => break made,
            // Another test's may have been in the way of ours.
            None if Instant::now() < deadline => run(),
            None => panic!("no template was made"),
        }
        std::thread::sleep(Duration::from_secs(1));
    };
    run();
    for name in ["memory", "state", "manifest.json"] {
        assert!(!has(&made.join(name), canary.as_bytes()), "the canary is in {name}");
    }
    let _ = fs::remove_dir_all(&made);
}
