//! What a process has used, from proc(5).

use std::fs;
use std::io;
use std::time::Duration;

/// What a process has used so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// CPU time, in user and kernel mode, with that of the children that it has waited for.
    pub cpu: Duration,
    /// Highest resident memory in bytes.
    pub memory_peak_bytes: u64,
}

impl Usage {
    /// Of this process.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn of(pid: u32) -> io::Result<Self> {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
        Ok(Self { cpu: cpu_time(&read("stat")?), memory_peak_bytes: peak(&read("status")?) })
    }
}

/// The parent's process id.
pub(super) fn parent(pid: u32) -> Option<u32> {
    field(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?, 4)
}

/// A field of proc_pid_stat(5) by the number it has there, from the third on: those behind the
/// parenthesised name.
fn field<T: std::str::FromStr>(stat: &str, number: usize) -> Option<T> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

fn cpu_time(stat: &str) -> Duration {
    let ticks = rustix::param::clock_ticks_per_second().max(1);
    // utime, stime, cutime and cstime.
    let spent: u64 = (14..=17).filter_map(|number| field::<u64>(stat, number)).sum();
    Duration::from_millis(spent * 1000 / ticks)
}

fn peak(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok())
        .map_or(0, |kib: u64| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "42 (a) b) S 7 42 42 0 -1 4194560 1 0 0 0 150 50 30 10 20 0 1 0 1";

    #[test]
    fn cpu_time_is_read_behind_any_name() {
        let tick = 1000 / rustix::param::clock_ticks_per_second();
        assert_eq!(cpu_time(STAT), Duration::from_millis(240 * tick));
    }

    #[test]
    fn the_parent_is_read_behind_any_name() {
        assert_eq!(field(STAT, 4), Some(7));
    }

    #[test]
    fn the_peak_is_in_bytes() {
        assert_eq!(peak("Name:\tx\nVmHWM:\t   2048 kB\n"), 2 << 20);
    }
}
