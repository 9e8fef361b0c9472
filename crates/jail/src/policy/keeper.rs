//! The keeper: waits for one process, and ends as it did.

use crate::filter::{Argument, Rule};

/// What it calls.
pub fn keeper() -> Vec<Rule> {
    vec![
        Rule::call(libc::SYS_wait4),
        Rule::call(libc::SYS_restart_syscall),
        Rule::call(libc::SYS_getpid),
        Rule::when(libc::SYS_kill, [Argument::A.is_this_process()]),
        Rule::call(libc::SYS_exit_group),
    ]
}
