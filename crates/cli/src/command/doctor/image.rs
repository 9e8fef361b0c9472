//! `sandforge doctor --in IMAGE`: which programs of an image trust the sandbox.

use std::fmt::Write as _;

use client::api::{CreateSandbox, NetworkMode};
use serde::Serialize;

use crate::command::run::fleet_failure;
use crate::command::{Context, block_on};
use crate::failure::Failure;
use crate::progress::Line;
use crate::signals::Signals;
use crate::{embedded, errand};

const SCRIPT: &str = include_str!("probe.sh");
/// Some of the programs are large.
const MEMORY_MB: u32 = 2048;
/// Most characters of a version in the table.
const MOST_VERSION: usize = 40;

/// What was found.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Report {
    image: String,
    engine: String,
    programs: Vec<Program>,
}

/// A program that was tried.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Program {
    name: String,
    version: String,
    /// It read what the gateway answered.
    ok: bool,
    /// What it said instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    said: Option<String>,
}

impl Report {
    /// Whether all that was found gets through.
    pub(super) fn is_ok(&self) -> bool {
        self.programs.iter().all(|program| program.ok)
    }

    pub(super) fn described(&self) -> String {
        let mut text = format!("image {}, engine {}\n\n", self.image, self.engine);
        for Program { name, version, ok, said } in &self.programs {
            let mark = if *ok { "ok" } else { "FAILED" };
            let version: String = version.chars().take(MOST_VERSION).collect();
            let line = format!("{mark:7} {name:16} {version}");
            writeln!(text, "{}", line.trim_end()).expect("a string takes everything");
            if let Some(said) = said {
                writeln!(text, "        {said}").expect("a string takes everything");
            }
        }
        text.push_str(match (self.programs.is_empty(), self.is_ok()) {
            (true, _) => "There is no program in it that could be tried.\n",
            (false, true) => "\nEach of them gets through to a host that is looked into.\n",
            (false, false) => {
                "\nWhat fails does not trust the sandbox's certificates: give it a base URL with \
                 --gateway SERVICE, or allow `tunnel HOST`.\n"
            }
        });
        text
    }
}

/// The lines of the script.
fn programs(text: &str) -> Vec<Program> {
    let program = |line: &str| {
        let mut fields = line.splitn(3, '\t').map(|field| field.trim().to_owned());
        let (name, version, answer) = (fields.next()?, fields.next()?, fields.next()?);
        let ok = answer == "ok";
        Some(Program { name, version, ok, said: Some(answer).filter(|_| !ok) })
    };
    text.lines().filter_map(program).collect()
}

/// Tries them, in a sandbox whose network allows nothing: what is denied is answered by the gateway.
pub(super) fn look(
    image: Option<String>,
    engine: Option<String>,
    context: &Context,
) -> Result<Report, Failure> {
    let sandbox = CreateSandbox {
        image,
        engine,
        memory_mb: Some(MEMORY_MB),
        network: Some(NetworkMode::Allow),
        ..CreateSandbox::default()
    };
    block_on(async {
        let mut signals = Signals::catch()?;
        let mut line = Line::new(context.verbosity);
        let manager = signals.unless_asked(embedded::manager()).await??;
        let exec = errand::exec(["/bin/sh", "-c", SCRIPT].map(str::to_owned))?;
        let done = async {
            let mut run = errand::begin(&manager, sandbox, &exec, &mut line, &mut signals).await?;
            line.brief("trying its programs");
            let said = errand::run(&mut run, &exec, &mut signals).await;
            let sandbox = run.sandbox();
            let (image, engine) = (sandbox.image().to_owned(), sandbox.engine().to_owned());
            let reply = said.as_ref().ok().map(|said| said.reply.clone());
            let over = signals.unless_asked(run.finish(reply, None)).await;
            let programs = programs(&String::from_utf8_lossy(&said?.stdout));
            over?.map_err(|error| fleet_failure(&error))?;
            Ok(Report { image, engine, programs })
        }
        .await;
        line.clear();
        manager.shutdown(embedded::DEADLINE).await;
        done
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_says_what_it_said_and_what_to_do() {
        let programs =
            programs("curl\tcurl 8\tok\npip\tpip 23\tcertificate verify failed\nnoise\n");
        let report = Report { image: "base".into(), engine: "kvm".into(), programs };
        assert!(!report.is_ok());
        let text = report.described();
        assert!(text.contains("ok      curl             curl 8\n"), "{text}");
        assert!(
            text.contains("FAILED  pip              pip 23\n        certificate verify"),
            "{text}"
        );
        assert!(text.contains("--gateway SERVICE"), "{text}");
        assert!(!text.contains("noise"), "{text}");
    }

    #[test]
    fn an_image_without_programs_says_so() {
        let report = Report { image: "x".into(), engine: "kvm".into(), programs: Vec::new() };
        assert!(report.is_ok() && report.described().contains("no program"));
    }
}
