//! `sandforge ls`.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use clap::Args;

use crate::failure::Failure;
use crate::filter;

/// List the machines that were kept
#[derive(Args)]
pub(crate) struct ListArgs {
    /// Print a JSON array
    #[arg(long)]
    pub(crate) json: bool,
}

impl ListArgs {
    pub(crate) fn run(&self) -> Result<u8, Failure> {
        let kept =
            super::supervisor()?.kept().map_err(|error| super::supervisor_failure(&error))?;
        if self.json {
            super::print_json(&kept)?;
            return Ok(0);
        }
        let mut rows =
            vec![["NAME", "AGE", "CPUS", "MEMORY", "IMAGE", "ENGINE"].map(str::to_owned)];
        for machine in &kept {
            let since = SystemTime::UNIX_EPOCH + Duration::from_millis(machine.created_ms);
            rows.push([
                filter::plain(&machine.name),
                age(since.elapsed().unwrap_or_default()),
                machine.cpus.to_string(),
                format!("{} MiB", machine.memory_mb),
                filter::plain(&machine.image),
                format!("{} ({})", machine.engine, machine.isolation),
            ]);
        }
        super::print(&table(&rows))?;
        Ok(0)
    }
}

/// The largest unit alone: `5s`, `12m`, `3h`, `2d`.
pub(super) fn age(age: Duration) -> String {
    match age.as_secs() {
        seconds @ ..120 => format!("{seconds}s"),
        seconds @ ..7200 => format!("{}m", seconds / 60),
        seconds @ ..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// Columns as wide as their widest cell.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            write!(line, "{cell:width$}  ").expect("a string takes everything");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_end_without_spaces() {
        let rows = [["A", "BB"], ["long", "x"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "A     BB\nlong  x\n");
    }

    #[test]
    fn an_age_has_one_unit() {
        for (seconds, text) in
            [(0, "0s"), (119, "119s"), (120, "2m"), (7200, "2h"), (172_800, "2d")]
        {
            assert_eq!(age(Duration::from_secs(seconds)), text);
        }
    }
}
