//! Landlock: which files there are at all, and that signals and sockets end at the jail.

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, PathBeneath, PathFd,
    Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus, Scope,
};

use crate::record::Record;
use crate::{JailError, Then, step};

/// Reads where the next program needs them, nothing else on any file system, no TCP, and no
/// signals or abstract sockets beyond the jail where the kernel knows these.
pub(crate) fn restrict(record: &mut Record, then: &Then<'_>) -> Result<(), JailError> {
    let newest = ABI::V6;
    let reading = AccessFs::from_read(newest);
    let mut ruleset = step(
        "make a landlock ruleset",
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(newest))
            .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(newest)))
            .and_then(|ruleset| ruleset.scope(Scope::from_all(newest)))
            .and_then(Ruleset::create),
    )?;
    let mut files = "no file";
    if let Then::Exec { readable, reopenable } = then {
        files = "reads its program alone";
        for path in readable {
            let Ok(descriptor) = PathFd::new(path) else { continue };
            let access =
                if path.is_dir() { reading } else { reading & AccessFs::from_file(newest) };
            let rule = PathBeneath::new(descriptor, access);
            ruleset = step("allow a path", ruleset.add_rule(rule))?;
        }
        for file in reopenable {
            // A memfd lies in no file system, so it takes no rule and needs none. Any other
            // file that takes none stays closed.
            let _ = (&mut ruleset).add_rule(PathBeneath::new(file, AccessFs::ReadFile));
        }
    }
    let status = step("enter landlock", ruleset.restrict_self())?;
    match status.ruleset {
        RulesetStatus::NotEnforced => record.lacks("landlock", "the kernel does not offer it"),
        RulesetStatus::PartiallyEnforced => {
            record.holds(format!("landlock: {files} (an older kernel's rules)"));
        }
        RulesetStatus::FullyEnforced => {
            record.holds(format!("landlock: {files}, no TCP, no signals to others"));
        }
    }
    record.done("landlock");
    Ok(())
}
