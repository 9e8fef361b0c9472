//! A directory of 50,000 files in and its changes out, against `tar` and `rsync` on the host.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use supervisor::workspace::{About, ApplyOptions};
use supervisor::{CopyIn, Sandbox, SandboxSpec};

use crate::{Outcome, command, head, ms, row, with_spec};

const DIRECTORIES: usize = 500;
const FILES: usize = 100;
/// Bytes of a file, as of source code.
const BYTES: usize = 4000;
const RUNS: usize = 3;

pub(crate) fn run() -> Outcome {
    let spec = SandboxSpec { engine: Some("process".into()), ..SandboxSpec::default() };
    with_spec(spec, measure)
}

async fn measure(sandbox: &Sandbox) -> Outcome {
    let place = tempfile::tempdir()?;
    let source = place.path().join("source");
    for directory in 0..DIRECTORIES {
        let directory = source.join(format!("d{directory:03}"));
        fs::create_dir_all(&directory)?;
        for file in 0..FILES {
            let line = format!("{file} of {}\n", directory.display());
            let content = line.repeat(BYTES / line.len());
            fs::write(directory.join(format!("f{file:03}.txt")), content)?;
        }
    }
    let (mut tar, mut copied) = (Vec::new(), Vec::new());
    let (mut rsync, mut collected, mut applied) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..RUNS {
        let unpacked = place.path().join(format!("unpacked-{number}"));
        fs::create_dir(&unpacked)?;
        let begun = Instant::now();
        let line = "tar -C \"$0\" -c . | tar -C \"$1\" -x";
        host(Command::new("sh").args(["-c", line]).arg(&source).arg(&unpacked))?;
        tar.push(ms(begun.elapsed()));

        let target = format!("/workspace/{number}");
        let options = CopyIn { reviewed: true, ..CopyIn::default() };
        let begun = Instant::now();
        sandbox.copy_in(&source, &target, options, &mut ()).await?;
        copied.push(ms(begun.elapsed()));

        // One file in each of half of the directories.
        let change = "for f in $0/d*[0-4]/f007.txt; do echo changed >> $f; done";
        host(Command::new("sh").args(["-c", change]).arg(&unpacked))?;
        let exec = command(format!("c{number}"), &["sh", "-c", change, &target]);
        sandbox.guest().exec(&exec)?.wait().await?;

        let mirrored = place.path().join(format!("mirrored-{number}"));
        host(Command::new("cp").arg("-a").arg(&source).arg(&mirrored))?;
        let begun = Instant::now();
        let slash = |path: &Path| format!("{}/", path.display());
        host(Command::new("rsync").args(["-a", "--delete", &slash(&unpacked), &slash(&mirrored)]))?;
        rsync.push(ms(begun.elapsed()));

        let about = About {
            sandbox: sandbox.id().to_owned(),
            name: sandbox.name().to_owned(),
            host: source.clone(),
            guest: target,
            collected_at_ms: 0,
        };
        let begun = Instant::now();
        let set = place.path().join(format!("changes/{number}"));
        let found = sandbox.collect(about, &set, false, &mut ()).await?;
        collected.push(ms(begun.elapsed()));
        let begun = Instant::now();
        if let Some(set) = found.set {
            set.apply(&mirrored, &ApplyOptions::default())?;
        }
        applied.push(ms(begun.elapsed()));
    }
    head("A directory of 50,000 files of 4 kB, in a sandbox on the host's own kernel");
    row("`tar` to `tar` on the host", &mut tar, "ms");
    row("copied in, each file's digest remembered", &mut copied, "ms");
    row("`rsync -a` of what changed, on the host", &mut rsync, "ms");
    row("what changed, collected", &mut collected, "ms");
    row("and applied", &mut applied, "ms");
    println!();
    Ok(())
}

fn host(command: &mut Command) -> Outcome {
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}").into()) }
}
