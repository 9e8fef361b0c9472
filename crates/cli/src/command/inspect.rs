//! `sandforge inspect`.

use std::fmt::Write as _;

use clap::Args;
use client::api::{Process, Sandbox, Timestamp};

use crate::connection;
use crate::failure::Failure;
use crate::filter;
use crate::units::readable;

/// Say all that is known of a sandbox
#[derive(Args)]
#[command(after_help = "\
Examples:
  sandforge inspect box
  sandforge inspect box --json
  sandforge inspect box --processes      the commands that were run in it")]
pub(crate) struct InspectArgs {
    /// Its name or id; `sandforge ls` lists them
    name: String,

    /// The commands that were run in it instead
    #[arg(long)]
    processes: bool,

    /// Print JSON: an object, or with --processes an array
    #[arg(long)]
    pub(crate) json: bool,
}

impl InspectArgs {
    pub(crate) fn run(&self) -> Result<u8, Failure> {
        if self.processes {
            return self.processes();
        }
        let sandbox = connection::ask(async |client| Ok(client.get_sandbox(&self.name).await?))?;
        match self.json {
            true => super::print_json(&sandbox)?,
            false => super::print(&describe(&sandbox))?,
        }
        Ok(0)
    }

    fn processes(&self) -> Result<u8, Failure> {
        let processes = connection::ask(async |client| {
            connection::all(async |cursor| {
                let query = client::api::PageQuery { cursor, limit: None };
                client.list_processes(&self.name, &query).await
            })
            .await
        })?;
        match self.json {
            true => super::print_json(&processes)?,
            false => super::print(&rows(&processes))?,
        }
        Ok(0)
    }
}

fn rows(processes: &[Process]) -> String {
    let mut rows = vec![["PROCESS", "AGE", "STATUS", "DETACHED", "COMMAND"].map(str::to_owned)];
    let now = Timestamp::now();
    for process in processes {
        rows.push([
            filter::plain(&process.process),
            super::list::age(now.since(process.started_at)),
            process.exit_code.map_or_else(|| "running".into(), |code| code.to_string()),
            if process.detached { "yes" } else { "no" }.into(),
            filter::plain(process.command.as_deref().unwrap_or_default()),
        ]);
    }
    super::list::table(&rows)
}

/// A line for each thing that is known.
fn describe(sandbox: &Sandbox) -> String {
    let mut text = String::new();
    let mut line = |what: &str, value: &str| {
        writeln!(text, "{what:<12} {}", filter::plain(value)).expect("a string takes everything");
    };
    line("name", &sandbox.name);
    line("id", &sandbox.id);
    line("workspace", &sandbox.workspace);
    line("state", sandbox.state.as_str());
    if let Some(reason) = &sandbox.reason {
        line("reason", reason);
    }
    line("image", &sandbox.image);
    if let (Some(engine), Some(isolation)) = (&sandbox.engine, sandbox.isolation) {
        line("engine", &format!("{engine} ({isolation})"));
    }
    if let Some(cpus) = sandbox.cpu {
        line("cpus", &cpus.to_string());
    }
    line("memory", &format!("{} MiB", sandbox.memory_mb));
    if let Some(disk) = sandbox.disk_gb {
        line("disk", &format!("{disk} GiB"));
    }
    line("network", sandbox.network.as_str());
    for mount in &sandbox.mounts {
        let how = if mount.read_only { " (read only)" } else { "" };
        line("mount", &format!("{} at {}{how}", mount.host_path, mount.guest_path));
    }
    for volume in &sandbox.volumes {
        let how = if volume.read_only { " (read only)" } else { "" };
        line("volume", &format!("{} at {}{how}", volume.name, volume.guest_path));
    }
    for cache in &sandbox.caches {
        let how = if cache.fill { " (filled)" } else { "" };
        line("cache", &format!("{}{how}", cache.tool));
    }
    if !sandbox.env_names.is_empty() {
        line("env", &sandbox.env_names.join(" "));
    }
    for (key, value) in &sandbox.labels {
        line("label", &format!("{key}={value}"));
    }
    line("created", &format!("{} by {}", sandbox.created_at, sandbox.created_by));
    for (what, time) in [
        ("started", sandbox.started_at),
        ("ended", sandbox.ended_at),
        ("expires", sandbox.expires_at),
        ("idle since", sandbox.idle_at),
    ] {
        if let Some(time) = time {
            line(what, &time.to_string());
        }
    }
    line("running", &format!("{} tasks", sandbox.running));
    line("allowed by", &format!("{} (policy {})", sandbox.policy.rule, sandbox.policy.generation));
    if let Some(usage) = &sandbox.usage {
        line("cpu time", &format!("{} ms", usage.cpu_ms));
        line("memory peak", &readable(usage.memory_peak_bytes));
        line("uptime", &format!("{} ms", usage.uptime_ms));
    }
    text
}
