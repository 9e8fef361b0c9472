//! What this process holds stays in it: no dump has it, no swap, and no debugger of the same user's.
//! Its memory is wiped when it is given back (see the allocator in `main.rs`).

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};

/// No core dump, and nobody but root looks inside. Programs that are started have the limit too, and
/// are their own user's otherwise.
pub(crate) fn close() {
    // Neither can fail for a process that asks for less than it has.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// Keeps the memory that is used out of swap, for as long as this process lives, where it may lock as
/// much as it likes: with a limit it would run into that some day.
pub(crate) fn lock_memory() {
    let is_free =
        rustix::process::geteuid().is_root() || getrlimit(Resource::Memlock).current.is_none();
    if is_free
        && let Err(error) =
            mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)
    {
        tracing::debug!(%error, "memory is not kept out of swap");
    }
}
