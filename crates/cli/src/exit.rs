//! Exit statuses: those of `run` and `exec` as containers and `timeout` have them, those of
//! everything else.

use wire::op::Outcome;

use crate::failure::Kind;

/// The command's time was up.
pub(crate) const TIMED_OUT: u8 = 124;
/// Sandforge itself failed, so the command's status is not known.
pub(crate) const SANDFORGE_FAILED: u8 = 125;
/// A policy forbids it, or the file cannot be run.
pub(crate) const DENIED: u8 = 126;
/// There is no such command in the guest.
pub(crate) const COMMAND_NOT_FOUND: u8 = 127;

/// A command of the recipe of `image build` failed, and not Sandforge.
pub(crate) const STEP_FAILED: u8 = 4;

/// SIGKILL, which the kernel sends when memory runs out.
const KILL: i32 = 9;
/// SIGPIPE, as a program that writes into a closed pipe would have died.
pub(crate) const PIPE: i32 = 13;

/// Whose failure a status is to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// `run`, `exec` and `attach`, whose status is the command's.
    Runs,
    /// Everything else.
    Manages,
}

/// The status for a process that has ended.
pub(crate) fn of_outcome(outcome: &Outcome) -> u8 {
    match outcome {
        Outcome::Exited { code } => *code,
        Outcome::Signaled { signal } => of_signal(*signal),
        Outcome::TimedOut { .. } => TIMED_OUT,
        Outcome::OutOfMemory { .. } => of_signal(KILL),
        Outcome::NotFound { .. } => COMMAND_NOT_FOUND,
        Outcome::NotExecutable { .. } => DENIED,
        Outcome::Running => SANDFORGE_FAILED,
    }
}

/// The shell's status for a process that a signal ended.
pub(crate) fn of_signal(signal: i32) -> u8 {
    u8::try_from(signal).ok().and_then(|signal| signal.checked_add(128)).unwrap_or(u8::MAX)
}

/// The status for a failure.
pub(crate) fn of_failure(kind: Kind, family: Family) -> u8 {
    match (family, kind) {
        (Family::Runs, Kind::Denied) => DENIED,
        (Family::Runs, _) => SANDFORGE_FAILED,
        (Family::Manages, Kind::Usage) => 2,
        (Family::Manages, Kind::NotFound) => 3,
        (Family::Manages, _) => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_own_status_passes_whatever_it_is() {
        for code in [0, 1, 123, 124, 125, 255] {
            assert_eq!(of_outcome(&Outcome::Exited { code }), code);
        }
    }

    #[test]
    fn every_other_end_has_the_status_that_shells_give_it() {
        let not_found = Outcome::NotFound { command: "x".into() };
        let not_executable = Outcome::NotExecutable { reason: "x".into() };
        assert_eq!(of_outcome(&Outcome::Signaled { signal: 15 }), 143);
        assert_eq!(of_outcome(&Outcome::TimedOut { signal: 9 }), 124);
        assert_eq!(of_outcome(&Outcome::OutOfMemory { limit_bytes: None }), 137);
        assert_eq!(of_outcome(&not_found), 127);
        assert_eq!(of_outcome(&not_executable), 126);
    }

    #[test]
    fn a_signal_beyond_linux_does_not_wrap() {
        assert_eq!(of_signal(1000), 255);
        assert_eq!(of_signal(-1), 255);
    }

    #[test]
    fn a_usage_error_of_run_is_not_mistaken_for_the_commands_status() {
        assert_eq!(of_failure(Kind::Usage, Family::Runs), 125);
        assert_eq!(of_failure(Kind::Usage, Family::Manages), 2);
        assert_eq!(of_failure(Kind::NotFound, Family::Manages), 3);
        assert_eq!(of_failure(Kind::Denied, Family::Runs), 126);
    }
}
