//! Where a sandbox is in its life, and where it can go from there.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::operation::UnknownName;

/// Where a sandbox is in its life.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Accepted and on record; nothing of it exists yet.
    Requested,
    /// Its machine is being made.
    Provisioning,
    /// Its agent takes tasks, and none runs.
    Ready,
    /// At least one task runs.
    Executing,
    /// Its machine stands still.
    Paused,
    /// Its machine is being brought to disk.
    Hibernating,
    /// Its machine is on disk, and goes on from there with the next request.
    Hibernated,
    /// Its machine is being taken away; the sandbox stays on record.
    Stopping,
    /// It has no machine and can be started again.
    Stopped,
    /// Everything of it is being taken away.
    Destroying,
    /// Nothing of it is left.
    Destroyed,
    /// It could not be made, or its machine ended by itself.
    Failed,
}

impl State {
    /// All of them, in the order of a life.
    pub const ALL: [Self; 12] = [
        Self::Requested,
        Self::Provisioning,
        Self::Ready,
        Self::Executing,
        Self::Paused,
        Self::Hibernating,
        Self::Hibernated,
        Self::Stopping,
        Self::Stopped,
        Self::Destroying,
        Self::Destroyed,
        Self::Failed,
    ];

    /// Whether `next` may follow. Staying is not a move. Every state but the last can go to
    /// `destroying`, so that a delete is possible at any time.
    pub fn may_become(self, next: Self) -> bool {
        use State::{
            Destroyed, Destroying, Executing, Failed, Hibernated, Hibernating, Paused,
            Provisioning, Ready, Requested, Stopped, Stopping,
        };
        match self {
            Requested => matches!(next, Provisioning | Stopping | Destroying | Failed),
            // One that was to go on from disk, and did not.
            Provisioning => {
                matches!(next, Ready | Executing | Hibernated | Stopping | Destroying | Failed)
            }
            Ready => {
                matches!(next, Executing | Paused | Hibernating | Stopping | Destroying | Failed)
            }
            Executing => {
                matches!(next, Ready | Paused | Hibernating | Stopping | Destroying | Failed)
            }
            Paused => {
                matches!(next, Ready | Executing | Hibernating | Stopping | Destroying | Failed)
            }
            Hibernating => {
                matches!(next, Ready | Executing | Hibernated | Stopping | Destroying | Failed)
            }
            Hibernated => matches!(next, Provisioning | Stopping | Destroying | Failed),
            Stopping => matches!(next, Stopped | Destroying | Failed),
            Stopped | Failed => matches!(next, Provisioning | Destroying),
            Destroying => matches!(next, Destroyed),
            Destroyed => false,
        }
    }

    /// Whether tasks can be started.
    pub fn takes_tasks(self) -> bool {
        matches!(self, Self::Ready | Self::Executing)
    }

    /// Whether it has a machine, or may have one.
    pub fn has_machine(self) -> bool {
        matches!(
            self,
            Self::Provisioning
                | Self::Ready
                | Self::Executing
                | Self::Paused
                | Self::Hibernating
                | Self::Stopping
                | Self::Destroying
        )
    }

    /// Whether nothing follows.
    pub fn is_final(self) -> bool {
        self == Self::Destroyed
    }

    /// The name in JSON and in queries.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Provisioning => "provisioning",
            Self::Ready => "ready",
            Self::Executing => "executing",
            Self::Paused => "paused",
            Self::Hibernating => "hibernating",
            Self::Hibernated => "hibernated",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Destroying => "destroying",
            Self::Destroyed => "destroyed",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for State {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        UnknownName::find(&Self::ALL, text, Self::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::State::{self, *};

    #[test]
    fn the_legal_moves_are_these_and_no_others() {
        let legal: &[(State, &[State])] = &[
            (Requested, &[Provisioning, Stopping, Destroying, Failed]),
            (Provisioning, &[Ready, Executing, Hibernated, Stopping, Destroying, Failed]),
            (Ready, &[Executing, Paused, Hibernating, Stopping, Destroying, Failed]),
            (Executing, &[Ready, Paused, Hibernating, Stopping, Destroying, Failed]),
            (Paused, &[Ready, Executing, Hibernating, Stopping, Destroying, Failed]),
            (Hibernating, &[Ready, Executing, Hibernated, Stopping, Destroying, Failed]),
            (Hibernated, &[Provisioning, Stopping, Destroying, Failed]),
            (Stopping, &[Stopped, Destroying, Failed]),
            (Stopped, &[Provisioning, Destroying]),
            (Destroying, &[Destroyed]),
            (Destroyed, &[]),
            (Failed, &[Provisioning, Destroying]),
        ];
        assert_eq!(legal.len(), State::ALL.len());
        for (from, targets) in legal {
            for next in State::ALL {
                assert_eq!(from.may_become(next), targets.contains(&next), "{from} -> {next}");
            }
        }
    }

    #[test]
    fn a_delete_ends_in_destroyed_from_every_state() {
        for state in State::ALL {
            let reaches = state == Destroyed
                || state == Destroying
                || (state.may_become(Destroying) && Destroying.may_become(Destroyed));
            assert!(reaches, "{state}");
        }
    }

    #[test]
    fn a_state_has_one_name_everywhere() {
        for state in State::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
            assert_eq!(state.as_str().parse(), Ok(state));
        }
    }
}
