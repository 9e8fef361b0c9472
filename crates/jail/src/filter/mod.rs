//! seccomp filters that name what is allowed.
//!
//! A process gets one by its [`Policy`]; a thread that needs less of it can put a narrower one on
//! top with [`Filter::install`]. The kernel asks all of them, and the strictest wins.

mod program;

use std::io;

use libc::c_long;

use crate::record::Record;
use crate::{JailError, step, trap};

/// What a filter says of one system call. A call that has several rules is allowed by any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    call: u32,
    verdict: Verdict,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Allowed,
    AllowedWhere(Vec<Condition>),
    Failing(u16),
}

impl Rule {
    /// The call is allowed.
    pub fn call(call: c_long) -> Self {
        Self::new(call, Verdict::Allowed)
    }

    /// The call is allowed where all conditions hold.
    pub fn when(call: c_long, conditions: impl Into<Vec<Condition>>) -> Self {
        Self::new(call, Verdict::AllowedWhere(conditions.into()))
    }

    /// The call does nothing and returns this error: for what callers ask out of curiosity, and
    /// do without. It goes before other rules for the call.
    pub fn fails(call: c_long, errno: u16) -> Self {
        Self::new(call, Verdict::Failing(errno))
    }

    fn new(call: c_long, verdict: Verdict) -> Self {
        // No kernel has a call of a number that does not fit; its rule would match nothing.
        Self { call: u32::try_from(call).unwrap_or(u32::MAX - 1), verdict }
    }
}

/// What an argument has to be. Pointers cannot be followed, so only numbers can be checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    argument: u8,
    expected: Expected,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Expected {
    OneOf(Vec<u32>),
    Bits { mask: u32, value: u32 },
    Null,
    ThisProcess,
}

/// An argument of a system call, by its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Argument {
    /// The first.
    A = 0,
    /// The second.
    B = 1,
    /// The third.
    C = 2,
    /// The fourth.
    D = 3,
    /// The fifth.
    E = 4,
    /// The sixth.
    F = 5,
}

impl Argument {
    /// It has this value, of 32 bits: the kernel's type for flags, commands and descriptors.
    pub fn is(self, value: u32) -> Condition {
        self.is_one_of(&[value])
    }

    /// It has one of these values, which are tried in their order.
    pub fn is_one_of(self, values: &[u32]) -> Condition {
        self.expecting(Expected::OneOf(values.into()))
    }

    /// Of the bits in the mask, exactly these are set.
    pub fn bits(self, mask: u32, value: u32) -> Condition {
        self.expecting(Expected::Bits { mask, value })
    }

    /// It is a null pointer.
    pub fn is_null(self) -> Condition {
        self.expecting(Expected::Null)
    }

    /// It is the id of the process in which the filter is compiled.
    pub fn is_this_process(self) -> Condition {
        self.expecting(Expected::ThisProcess)
    }

    fn expecting(self, expected: Expected) -> Condition {
        Condition { argument: self as u8, expected }
    }
}

/// What becomes of a call that no rule allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The process ends; where it has [entered](crate::enter) its jail, with a line that names
    /// the call.
    Trap,
    /// The call fails with this error, and whoever tries can try on: for tests.
    Fail(u16),
}

/// A filter cannot be made or installed.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The rules are more than a program can have.
    #[error("compile the rules: they are too many for one filter")]
    TooLong,
    /// The kernel does not take it.
    #[error("install the filter: {0}")]
    Install(#[source] io::Error),
}

/// Compiled rules.
#[derive(Debug, Clone)]
pub struct Filter(Vec<program::Instruction>);

impl Filter {
    /// Compiles rules, beyond which a call ends the process.
    ///
    /// # Errors
    /// `TooLong`.
    pub fn allow(rules: &[Rule]) -> Result<Self, FilterError> {
        Self::allow_or(rules, Refusal::Trap)
    }

    /// Compiles rules, beyond which a call has this effect.
    ///
    /// # Errors
    /// `TooLong`.
    pub fn allow_or(rules: &[Rule], refusal: Refusal) -> Result<Self, FilterError> {
        program::compile(rules, refusal).map(Self)
    }

    /// Filters the calling thread, and those that it starts from now on, for good. It gives up
    /// new privileges, without which the kernel takes no filter from an unprivileged thread.
    ///
    /// A thread that does without write and `exit_group` cannot name what it was refused.
    ///
    /// # Errors
    /// `Install`.
    pub fn install(&self) -> Result<(), FilterError> {
        rustix::thread::set_no_new_privs(true)
            .map_err(|error| FilterError::Install(error.into()))?;
        let length = u16::try_from(self.0.len()).map_err(|_| FilterError::TooLong)?;
        let program = libc::sock_fprog { len: length, filter: self.0.as_ptr().cast_mut() };
        let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, 0);
        // SAFETY: the kernel reads `length` instructions from there, and changes none.
        let result = unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program) };
        match result {
            0 => Ok(()),
            _ => Err(FilterError::Install(io::Error::last_os_error())),
        }
    }
}

/// What a process may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<Rule>,
    refusal: Refusal,
}

impl Policy {
    /// These calls, and the end for any other.
    pub fn new(rules: Vec<Rule>) -> Self {
        Self { rules, refusal: Refusal::Trap }
    }

    /// The same calls, and this for any other.
    #[must_use]
    pub fn refusing_by(self, refusal: Refusal) -> Self {
        Self { refusal, ..self }
    }
}

/// Filters the process by its policy.
pub(crate) fn enforce(record: &mut Record, policy: Option<Policy>) -> Result<(), JailError> {
    let Some(Policy { rules, refusal }) = policy else {
        record.lacks("seccomp", "it was not asked for");
        return Ok(());
    };
    step("listen for refused calls", trap::name_refused_calls())?;
    let filter = step("make the seccomp filter", Filter::allow_or(&rules, refusal))?;
    record.done("seccomp, compiled");
    step("enter seccomp", filter.install())?;
    record.holds("seccomp: the system calls of its work, and no others");
    record.done("seccomp, installed");
    Ok(())
}
