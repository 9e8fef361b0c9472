//! The authorisation matrix: what each role may do, in its own workspace and in another's.

use std::fmt::Write as _;

use api::{CallerKind, Operation, Reach, Role};

use crate::{Caller, Refusal, authorise};

/// What a caller of one kind gets for one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    /// It is done.
    Allowed,
    /// 403.
    Forbidden,
    /// 404.
    NotFound,
}

impl Cell {
    fn of(result: &Result<(), Refusal>) -> Self {
        match result {
            Ok(()) => Self::Allowed,
            Err(Refusal::NotFound) => Self::NotFound,
            Err(_) => Self::Forbidden,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "yes",
            Self::Forbidden => "403",
            Self::NotFound => "404",
        }
    }
}

/// Whose thing an operation is about, seen from the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Its own workspace's.
    Own,
    /// Another workspace's.
    Other,
    /// Any workspace's; the caller is bound to none.
    Any,
}

impl Whose {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Own, Self::Other, Self::Any];
}

/// What a caller of this role gets.
pub fn cell(operation: Operation, role: Role, whose: Whose) -> Cell {
    let workspace = match whose {
        Whose::Own | Whose::Other => Some("own".to_owned()),
        Whose::Any => None,
    };
    let caller = Caller {
        subject: "anyone".into(),
        kind: CallerKind::Token,
        role,
        workspace,
        operations: None,
        token_id: None,
        key_id: None,
    };
    let of = match (operation.reach(), whose) {
        // These are about no workspace's thing.
        (Reach::Host | Reach::Shared, _) => None,
        (Reach::Workspace, Whose::Other) => Some("other"),
        (Reach::Workspace, Whose::Own | Whose::Any) => Some("own"),
    };
    Cell::of(&authorise(&caller, operation, of))
}

/// The matrix as a page of the documentation.
pub fn markdown() -> String {
    let mut page = String::from(
        "# Who may do what\n\n\
         Made by `crates/access` from the rules themselves; its tests hold both to each other.\n\n\
         A caller is bound to a workspace, or to none: then it sees all of them. Viewers read, \
         members run, owners configure. `403` names the missing right. What is another workspace's \
         is not there (`404`), whatever the caller's role. A token may be for fewer operations \
         than its role has, never for more.\n\n\
         | operation | what it does | viewer, own | member, own | owner, own | any, another's | \
         viewer of all | member of all | owner of all |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for &operation in Operation::ALL {
        let own = Role::ALL.map(|role| cell(operation, role, Whose::Own).as_str());
        let any = Role::ALL.map(|role| cell(operation, role, Whose::Any).as_str());
        let other = match operation.reach() {
            Reach::Workspace => cell(operation, Role::Owner, Whose::Other).as_str(),
            Reach::Host | Reach::Shared => "",
        };
        let _ = writeln!(
            page,
            "| `{operation}` | {} | {} | {other} | {} |",
            operation.summary(),
            own.join(" | "),
            any.join(" | "),
        );
    }
    page
}
