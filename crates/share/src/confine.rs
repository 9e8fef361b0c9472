//! What a thread that serves a guest may do beside, and how much it may hold.

use std::os::fd::AsFd;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, PathBeneath, Ruleset,
    RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus, Scope,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What came of [`confine`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Confined {
    /// The thread reaches files of the directory alone.
    Wholly,
    /// An older kernel's rules hold.
    Partly,
    /// The kernel has none; why.
    Not(String),
}

/// Takes from the calling thread, for ever, all files but those below `directory`, and TCP. Descriptors
/// that are open stay so. A second lock behind the first: [`Share`](crate::Share) leaves the directory
/// by itself at no time.
pub fn confine(directory: &impl AsFd) -> Confined {
    let newest = ABI::V6;
    let rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(newest))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(newest)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(newest)))
        .and_then(Ruleset::create)
        .and_then(|ruleset| {
            let all = AccessFs::from_all(newest) & !AccessFs::Execute;
            let unused = AccessFs::MakeChar
                | AccessFs::MakeBlock
                | AccessFs::MakeFifo
                | AccessFs::MakeSock
                | AccessFs::IoctlDev;
            ruleset.add_rule(PathBeneath::new(directory.as_fd(), all & !unused))
        })
        .and_then(landlock::RulesetCreated::restrict_self);
    match rules.map(|status| status.ruleset) {
        Ok(RulesetStatus::FullyEnforced) => Confined::Wholly,
        Ok(RulesetStatus::PartiallyEnforced) => Confined::Partly,
        Ok(RulesetStatus::NotEnforced) => Confined::Not("the kernel does not offer it".into()),
        Err(error) => Confined::Not(error.to_string()),
    }
}

/// How many descriptors this process may have, once it has asked for all that it may.
pub(crate) fn descriptors() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let allowed = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    allowed.map_or(usize::MAX, |allowed| usize::try_from(allowed).unwrap_or(usize::MAX))
}
