//! Prints the figures of docs/benchmarks.md, one table a measurement.
//!
//! `cargo run --release -p bench [cold|warm|create|exec|fork|process|stream|parallel|serve|workspace]...`, all of them
//! without a name; `kvm-boot` has to be asked for by its name. `serve --minutes N` goes on making
//! sandboxes for so long. Figures are medians and 90th percentiles of runs in a row; see how loaded
//! the machine was in the first line. `egress` has options of its own, after its name.
#![forbid(unsafe_code)]

mod create;
mod fork;
mod kvm;
mod serve;
mod workspace;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use supervisor::wire::op::{self, Exec, Info, Limits};
use supervisor::wire::text::Text;
use supervisor::{Launcher, Sandbox, SandboxSpec, Supervisor};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

const RUNS: usize = 10;

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "__launch") {
        return supervisor::qemu_monitor::main();
    }
    if let Some(status) = serve::child(&arguments).or_else(|| bench_egress::child(&arguments)) {
        return status;
    }
    if let Some((word, options)) = arguments.split_first()
        && word == "egress"
    {
        return match bench_egress::run(options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("bench: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let churn = match minutes(&mut arguments) {
        Ok(churn) => churn,
        Err(error) => {
            eprintln!("bench: {error}");
            return ExitCode::FAILURE;
        }
    };
    let wanted = |name: &str| arguments.is_empty() || arguments.iter().any(|word| word == name);
    let run = || -> Outcome {
        machine()?;
        if wanted("cold") {
            cold()?;
        }
        if wanted("warm") {
            warm()?;
        }
        if wanted("create") {
            create::run()?;
        }
        if wanted("fork") {
            fork::run()?;
        }
        if wanted("exec") {
            with_guest(exec)?;
        }
        if wanted("process") {
            process()?;
        }
        if wanted("stream") {
            with_guest(stream)?;
        }
        if wanted("parallel") {
            parallel()?;
        }
        if wanted("serve") {
            serve::run(churn)?;
        }
        if wanted("workspace") {
            workspace::run()?;
        }
        if arguments.iter().any(|word| word == "kvm-boot") {
            kvm::boot()?;
        }
        Ok(())
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Takes `--minutes N` out of the arguments.
fn minutes(arguments: &mut Vec<String>) -> Outcome<Option<Duration>> {
    let Some(at) = arguments.iter().position(|word| word == "--minutes") else { return Ok(None) };
    let number = arguments.get(at + 1).and_then(|text| text.parse().ok());
    let number: u64 = number.ok_or("--minutes needs a number")?;
    arguments.drain(at..at + 2);
    Ok(Some(Duration::from_secs(60 * number)))
}

fn machine() -> Outcome {
    let cpus = std::thread::available_parallelism()?;
    let info = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = info.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("?");
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or("?");
    println!("{cpus} CPUs, {model}, load {load}\n");
    Ok(())
}

/// The command that users run, built beside this program.
fn sandforge() -> Result<PathBuf, Box<dyn std::error::Error>> {
    let path = std::env::current_exe()?.with_file_name("sandforge");
    if path.exists() {
        return Ok(path);
    }
    Err(format!("{} is not there: cargo build --release", path.display()).into())
}

fn row(name: &str, samples: &mut [f64], unit: &str) {
    samples.sort_by(f64::total_cmp);
    let at = |share: f64| {
        // A share of a small count.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let index = ((samples.len() - 1) as f64 * share).round() as usize;
        samples[index]
    };
    println!(
        "| {name} | {:.2} | {:.2} | {:.2} | {unit} | {} |",
        at(0.0),
        at(0.5),
        at(0.9),
        samples.len()
    );
}

fn head(title: &str) {
    println!("### {title}\n\n| what | min | p50 | p90 | unit | runs |\n|---|---|---|---|---|---|");
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Where a run's time goes, as its report names it.
const PHASES: [&str; 7] = ["prepare", "process", "kernel", "agent", "exec", "teardown", "total"];

/// Runs of a command, phase by phase, and as they were on the clock of who called it.
#[derive(Default)]
struct Commands {
    phases: [Vec<f64>; PHASES.len()],
    wall: Vec<f64>,
}

impl Commands {
    /// `sandforge run -- true` as a user has it, from a template or without one.
    fn once(&mut self, templates: &str) -> Outcome {
        let begun = Instant::now();
        let output = Command::new(sandforge()?)
            .args(["run", "-q", "--json", "--", "true"])
            .env("SANDFORGE_TEMPLATES", templates)
            .stdin(Stdio::null())
            .output()?;
        self.wall.push(ms(begun.elapsed()));
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        for (phase, samples) in PHASES.iter().zip(&mut self.phases) {
            let timing = &report["timings"][format!("{phase}_ms")];
            samples.push(timing.as_f64().ok_or_else(|| format!("no {phase}_ms in {report}"))?);
        }
        Ok(())
    }

    /// Whether the last one booted no kernel.
    fn was_warm(&self) -> bool {
        let kernel = PHASES.iter().position(|phase| *phase == "kernel").expect("it is one");
        self.phases[kernel].last() == Some(&0.0)
    }

    fn print(&mut self, title: &str) {
        head(title);
        for (phase, samples) in PHASES.iter().zip(&mut self.phases) {
            row(phase, samples, "ms");
        }
        row("wall time of the command", &mut self.wall, "ms");
    }
}

/// Longest wait for a template that is made behind a command's back.
const MAKING: Duration = Duration::from_secs(60);

/// `sandforge run -- true` from a template and without one, in turn.
fn warm() -> Outcome {
    let begun = Instant::now();
    loop {
        let mut first = Commands::default();
        first.once("on")?;
        if first.was_warm() {
            break;
        }
        if begun.elapsed() > MAKING {
            println!("\nnot run: the runs from a template, because none is made here\n");
            return Ok(());
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    let (mut cold, mut warm) = (Commands::default(), Commands::default());
    for _ in 0..5 * RUNS {
        cold.once("off")?;
        warm.once("on")?;
        if !warm.was_warm() {
            return Err("a run did not go on from the template that was there".into());
        }
    }
    cold.print("`sandforge run -- true`, with a kernel that boots");
    println!();
    warm.print("The same from a template, in turn with those");
    println!();
    Ok(())
}

/// `sandforge run -- true` without a template, and what it takes without Sandforge: the same
/// emulator with the stock kernel of a distribution, to its first line of user space.
fn cold() -> Outcome {
    let mut commands = Commands::default();
    for _ in 0..RUNS {
        commands.once("off")?;
    }
    commands.print("Cold `sandforge run -- true`");
    match stock_kernel() {
        Some(kernel) => {
            let mut samples = Vec::new();
            for _ in 0..RUNS {
                samples.push(ms(boot_stock(&kernel)?));
            }
            let name = format!("without Sandforge: QEMU microvm, {} to its init", kernel.display());
            row(&name, &mut samples, "ms");
        }
        None => println!(
            "\nnot run: the comparison with a stock kernel, because there is no \
             /boot/vmlinuz-*-cloud-* (apt install linux-image-cloud-amd64)"
        ),
    }
    println!();
    Ok(())
}

fn stock_kernel() -> Option<PathBuf> {
    let entries = std::fs::read_dir("/boot").ok()?.flatten();
    entries.map(|entry| entry.path()).find(|path| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        name.is_some_and(|name| name.starts_with("vmlinuz-") && name.contains("cloud"))
    })
}

/// Boots a kernel without an initramfs: it has come to user space when it finds no init.
fn boot_stock(kernel: &Path) -> Result<Duration, Box<dyn std::error::Error>> {
    let begun = Instant::now();
    let output = Command::new("qemu-system-x86_64")
        .args(["-M", "microvm,acpi=off", "-accel", "tcg", "-cpu", "max", "-m", "512"])
        .args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial", "stdio"])
        .arg("-kernel")
        .arg(kernel)
        .args(["-append", "console=ttyS0 reboot=t panic=-1 quiet"])
        .stdin(Stdio::null())
        .output()?;
    let elapsed = begun.elapsed();
    let text = String::from_utf8_lossy(&output.stdout);
    if text.contains("Unable to mount root") || text.contains("No working init") {
        return Ok(elapsed);
    }
    Err(format!("the stock kernel did not get as far as its init: {text}").into())
}

fn supervisor() -> Result<Supervisor, Box<dyn std::error::Error>> {
    let launcher =
        Launcher { program: "/proc/self/exe".into(), arguments: vec!["__launch".into()] };
    Ok(Supervisor::new(launcher)?)
}

fn with_guest(measure: impl AsyncFnOnce(&Sandbox) -> Outcome) -> Outcome {
    with_spec(SandboxSpec { cpus: Some(1), memory_mb: 512, ..SandboxSpec::default() }, measure)
}

/// A sandbox on the host's own kernel: what is left is the agent, the wire and the task's sandbox.
fn process() -> Outcome {
    let spec = || SandboxSpec { engine: Some("process".into()), ..SandboxSpec::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let supervisor = supervisor()?;
    let (mut starts, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..100 {
        let begun = Instant::now();
        let sandbox = runtime.block_on(supervisor.create(spec(), &mut ()))?;
        starts.push(ms(begun.elapsed()));
        ends.push(runtime.block_on(sandbox.destroy())?.teardown_ms);
    }
    head("A sandbox on the host's own kernel");
    row("from nothing to an agent that takes tasks", &mut starts, "ms");
    row("its end", &mut ends, "ms");
    println!();
    with_spec(spec(), exec)
}

fn with_spec(spec: SandboxSpec, measure: impl AsyncFnOnce(&Sandbox) -> Outcome) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let sandbox = supervisor()?.create(spec, &mut ()).await?;
        measure(&sandbox).await?;
        sandbox.destroy().await?;
        Ok(())
    })
}

fn command(process: String, argv: &[&str]) -> Exec {
    Exec {
        process,
        command: op::Command::Argv(argv.iter().map(|argument| Text::from(*argument)).collect()),
        cwd: None,
        env: std::collections::BTreeMap::new(),
        user: None,
        tty: None,
        stdin: false,
        timeout_ms: None,
        kill_grace_ms: 1000,
        limits: Limits::default(),
        detach: false,
    }
}

/// Round trips to a guest that runs.
async fn exec(sandbox: &Sandbox) -> Outcome {
    let guest = sandbox.guest();
    let mut pings = Vec::new();
    for _ in 0..1000 {
        pings.push(ms(guest.ping().await?));
    }
    let mut operations = Vec::new();
    for _ in 0..200 {
        let begun = Instant::now();
        guest.ask(&Info {}).await?;
        operations.push(ms(begun.elapsed()));
    }
    let mut execs = Vec::new();
    for number in 0..100 {
        // A person's or an agent's next command does not come within the same millisecond.
        tokio::time::sleep(Duration::from_millis(30)).await;
        let begun = Instant::now();
        let process = guest.exec(&command(format!("e{number}"), &["true"]))?;
        process.wait().await?;
        execs.push(ms(begun.elapsed()));
    }
    let mut plain = Vec::new();
    for _ in 0..100 {
        let begun = Instant::now();
        Command::new("true").status()?;
        plain.push(ms(begun.elapsed()));
    }
    head("Round trips to a running guest");
    row("empty exchange (ping)", &mut pings, "ms");
    row("signed operation (info)", &mut operations, "ms");
    row("exec of `true`", &mut execs, "ms");
    row("for comparison: `true` on the host", &mut plain, "ms");
    println!();
    Ok(())
}

/// 1 GiB from a guest's stdout to the host.
async fn stream(sandbox: &Sandbox) -> Outcome {
    const BYTES: u64 = 1 << 30;
    let before = resident()?;
    let mut peak = before;
    let size = BYTES.to_string();
    let begun = Instant::now();
    let process =
        sandbox.guest().exec(&command("stream".into(), &["head", "-c", &size, "/dev/zero"]))?;
    let output = process.stdout();
    let mut total = 0_u64;
    let mut chunks = 0_u64;
    while let Some(chunk) = output.read().await? {
        total += chunk.len() as u64;
        chunks += 1;
        if chunks.is_multiple_of(256) {
            peak = peak.max(resident()?);
        }
    }
    let elapsed = begun.elapsed();
    process.wait().await?;
    if total != BYTES {
        return Err(format!("{total} bytes came instead of {BYTES}").into());
    }
    head("1 GiB from a guest's stdout");
    row("throughput", &mut [BYTES as f64 / 1e6 / elapsed.as_secs_f64()], "MB/s");
    row("growth of this process meanwhile", &mut [(peak - before) as f64 / 1024.0], "KiB");
    println!();
    Ok(())
}

/// Resident memory of this process in bytes.
fn resident() -> Result<u64, Box<dyn std::error::Error>> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = text.split(' ').nth(1).ok_or("statm")?.parse()?;
    Ok(pages * 4096)
}

/// Eight commands from eight shells at once.
fn parallel() -> Outcome {
    const SHELLS: usize = 8;
    let sandforge = sandforge()?;
    let begun = Instant::now();
    let children: Vec<_> = (0..SHELLS)
        .map(|number| {
            Command::new(&sandforge)
                .args(["run", "-q", "-m", "256", &format!("echo {number}")])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
        })
        .collect::<Result<_, _>>()?;
    for (number, child) in children.into_iter().enumerate() {
        let output = child.wait_with_output()?;
        if output.stdout != format!("{number}\n").into_bytes() {
            return Err(format!("shell {number} got {output:?}").into());
        }
    }
    head("Eight sandboxes at once");
    row("all eight done", &mut [ms(begun.elapsed())], "ms");
    println!();
    std::io::stdout().flush()?;
    Ok(())
}
