//! When the guest runs and when it does not, from the kernel's tracing.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::Outcome;

const ROOT: &str = "/sys/kernel/tracing";

/// A recording that goes on until it is stopped.
pub(crate) struct Tracing;

/// What one kind of exit took.
#[derive(Default)]
pub(crate) struct Exit {
    pub(crate) times: u32,
    /// In the guest before.
    pub(crate) in_guest: Duration,
    /// From the exit until the guest was entered again.
    pub(crate) outside: Duration,
}

impl Tracing {
    /// Records the first entry of a guest and then nothing more, so that it costs nothing.
    pub(crate) fn first_entry() -> Outcome<Self> {
        Self::begin(&["kvm_entry"], "traceoff:1")
    }

    /// Records every entry and every exit, which takes some time of its own.
    pub(crate) fn every_exit() -> Outcome<Self> {
        Self::begin(&["kvm_entry", "kvm_exit"], "!traceoff:1")
    }

    fn begin(events: &[&str], trigger: &str) -> Outcome<Self> {
        if !Path::new(ROOT).join("events/kvm").exists() {
            return Err(format!("{ROOT} has no events of KVM; this needs root and tracefs").into());
        }
        set("tracing_on", "0")?;
        set("trace_clock", "mono")?;
        set("buffer_size_kb", "16384")?;
        set("trace", "")?;
        set("events/enable", "0")?;
        // There is none to remove the first time.
        let _ = set("events/kvm/kvm_entry/trigger", "!traceoff:1");
        if !trigger.starts_with('!') {
            set("events/kvm/kvm_entry/trigger", trigger)?;
        }
        for event in events {
            set(&format!("events/kvm/{event}/enable"), "1")?;
        }
        set("tracing_on", "1")?;
        Ok(Self)
    }

    /// No more is recorded.
    pub(crate) fn stop(&self) -> Outcome {
        set("tracing_on", "0")
    }

    /// When a guest was entered first.
    pub(crate) fn first(&self) -> Outcome<Duration> {
        let trace = fs::read_to_string(format!("{ROOT}/trace"))?;
        let first = trace.lines().find_map(Event::parse).ok_or("no guest ran")?;
        Ok(first.at)
    }

    /// Exits by their reason, the most expensive first.
    pub(crate) fn exits(&self) -> Outcome<Vec<(String, Exit)>> {
        let trace = fs::read_to_string(format!("{ROOT}/trace"))?;
        let mut exits: BTreeMap<&str, Exit> = BTreeMap::new();
        let mut entered = None;
        let mut left: Option<(Duration, &str)> = None;
        for event in trace.lines().filter_map(Event::parse) {
            match event.exit {
                None => {
                    if let Some((at, reason)) = left.take() {
                        exits.entry(reason).or_default().outside += event.at - at;
                    }
                    entered = Some(event.at);
                }
                Some(reason) => {
                    let exit = exits.entry(reason).or_default();
                    exit.times += 1;
                    exit.in_guest += entered.take().map_or(Duration::ZERO, |at| event.at - at);
                    left = Some((event.at, reason));
                }
            }
        }
        let mut exits: Vec<_> =
            exits.into_iter().map(|(reason, exit)| (reason.to_owned(), exit)).collect();
        exits.sort_by_key(|(_, exit)| std::cmp::Reverse(exit.outside));
        Ok(exits)
    }
}

fn set(file: &str, value: &str) -> Outcome {
    let path = format!("{ROOT}/{file}");
    fs::write(&path, value).map_err(|error| format!("cannot write to {path}: {error}").into())
}

/// A line of the trace.
struct Event<'a> {
    at: Duration,
    /// The reason of an exit; none for an entry.
    exit: Option<&'a str>,
}

impl<'a> Event<'a> {
    /// `qemu-166 [000] d..1. 8.153172: kvm_exit: vcpu 0 reason npf rip 0x…`
    fn parse(line: &'a str) -> Option<Self> {
        let (head, rest) = line.split_once(": kvm_")?;
        let seconds: f64 = head.rsplit(' ').next()?.parse().ok()?;
        let at = Duration::from_secs_f64(seconds);
        match rest.split_once(": ")? {
            ("entry", _) => Some(Self { at, exit: None }),
            ("exit", fields) => {
                let (_, after) = fields.split_once("reason ")?;
                Some(Self { at, exit: after.split(' ').next() })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_has_a_time_and_a_reason() {
        let line =
            " CPU 0/KVM-166     [000] d..1.     8.153172: kvm_exit: vcpu 0 reason npf rip 0x1";
        let event = Event::parse(line).unwrap();
        assert_eq!(event.at, Duration::from_micros(8_153_172));
        assert_eq!(event.exit, Some("npf"));
    }

    #[test]
    fn an_entry_has_no_reason() {
        let line = " CPU 0/KVM-166     [000] d..1.     8.153172: kvm_entry: vcpu 0, rip 0xfff0";
        assert!(Event::parse(line).unwrap().exit.is_none());
    }
}
