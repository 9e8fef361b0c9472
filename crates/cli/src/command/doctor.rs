//! `sandforge doctor`.

mod image;

use std::ffi::OsString;
use std::fmt::Write as _;

use clap::Args;
use serde_json::Value;

use super::Context;
use crate::failure::{Failure, without_numbers};
use crate::filter;

/// Say what this computer can run, and what is missing
///
/// Exit status: 0 where a machine could be started now, 1 where not. With --in: 0 where each program
/// gets through, 1 where not.
#[derive(Args)]
#[command(after_help = "\
Examples:
  sandforge doctor
  sandforge doctor --in base    which programs of an image trust a sandbox's certificates")]
pub(crate) struct DoctorArgs {
    /// Try the programs of this image instead (curl, git, Python, Node.js, Java and others): each asks
    /// a host that is looked into, and nothing leaves this computer
    #[arg(long = "in", value_name = "IMAGE")]
    image: Option<OsString>,

    /// What runs the image, by name [default: the strongest]
    #[arg(long, value_name = "NAME", env = "SANDFORGE_ENGINE")]
    engine: Option<String>,

    /// Print a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

impl DoctorArgs {
    pub(crate) fn run(self, context: &Context) -> Result<u8, Failure> {
        if let Some(image) = self.image {
            // On the host's kernel there is none to choose.
            let has_choice = self.engine.as_deref() != Some("process");
            let image = super::run::image(image)?;
            let report = image::look(Some(image).filter(|_| has_choice), self.engine, context)?;
            match self.json {
                true => super::print_json(&report)?,
                false => super::print(&filter::plain(&report.described()))?,
            }
            return Ok(u8::from(!report.is_ok()));
        }
        let supervisor = super::supervisor()?;
        let doctor = super::block_on(async { Ok(supervisor.doctor().await) })?;
        if self.json {
            super::print_json(&doctor)?;
        } else {
            let report = serde_json::to_value(&doctor).expect("our own types are plain JSON");
            let text = described(&report, doctor.usable());
            super::print(&filter::plain(&without_numbers(&text)))?;
        }
        Ok(u8::from(!doctor.usable()))
    }
}

/// The report in words: the same that `--json` has, so that neither knows more.
fn described(report: &Value, usable: bool) -> String {
    let mut lines = Vec::new();
    for engine in items(&report["engines"]) {
        let name = format!("engine {}", text(&engine["name"]));
        let isolation = text(&engine["isolation"]);
        if engine["verdict"] == "usable" {
            lines.push(("ok", name, format!("{isolation}; {}", text(&engine["monitor"]))));
            for layer in items(&engine["confinement"]) {
                lines.push(("", "  confined by".into(), text(layer)));
            }
            for note in items(&engine["notes"]) {
                lines.push(("", "  weaker".into(), text(note)));
            }
        } else {
            let mark = if usable { "no" } else { "MISSING" };
            lines.push((mark, name, format!("{isolation}; {}", text(&engine["reason"]))));
        }
    }
    for name in ["kernel", "image"] {
        let mark = if report[name]["ok"] == true { "ok" } else { "MISSING" };
        lines.push((mark, name.into(), text(&report[name]["detail"])));
    }
    lines.push(("", "cpus".into(), text(&report["cpus"])));
    for (name, key) in [("free memory", "memory_available_mb"), ("free disk", "disk_free_mb")] {
        lines.push(("", name.into(), format!("{} MiB", text(&report[key]))));
    }

    let mut out = format!("sandforge {}\n\n", text(&report["version"]));
    for (mark, name, detail) in lines {
        writeln!(out, "{mark:7} {name:13} {detail}").expect("a string takes everything");
    }
    let advice = items(&report["advice"]);
    if !advice.is_empty() {
        out.push_str("\nWhat to do:\n");
        for advice in advice {
            writeln!(out, "  - {}", text(advice)).expect("a string takes everything");
        }
    }
    out.push_str(if usable {
        "\nReady: sandforge run \"uname -a\"\n"
    } else {
        "\nNothing can run here yet.\n"
    });
    out
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "unknown".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report(engine: &Value) -> Value {
        json!({
            "version": "1", "engines": [engine],
            "kernel": {"ok": true, "detail": "abc"}, "image": {"ok": false, "detail": "not built"},
            "disk_free_mb": null, "memory_available_mb": 2048, "cpus": 2, "advice": ["do this"],
        })
    }

    #[test]
    fn an_engine_that_runs_tells_what_confines_it() {
        let engine = json!({
            "name": "qemu", "isolation": "emulated", "verdict": "usable", "monitor": "QEMU 7",
            "confinement": ["landlock"], "notes": ["no namespaces"],
        });
        let text = described(&report(&engine), true);
        assert!(text.contains("ok      engine qemu   emulated; QEMU 7\n"), "{text}");
        assert!(text.contains("confined by landlock\n"), "{text}");
        assert!(text.contains("weaker      no namespaces\n"), "{text}");
        assert!(text.contains("free disk     unknown MiB\n"), "{text}");
        assert!(text.ends_with("Ready: sandforge run \"uname -a\"\n"), "{text}");
    }

    #[test]
    fn what_is_missing_comes_with_what_to_do() {
        let engine = json!({"name": "qemu", "isolation": "emulated", "verdict": "unusable",
            "reason": "it is not on PATH", "remedy": "do this"});
        let text = described(&report(&engine), false);
        assert!(text.contains("MISSING engine qemu   emulated; it is not on PATH\n"), "{text}");
        assert!(text.contains("MISSING image         not built\n"), "{text}");
        assert!(text.contains("What to do:\n  - do this\n"), "{text}");
        assert!(text.ends_with("Nothing can run here yet.\n"), "{text}");
    }
}
