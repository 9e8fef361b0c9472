//! Who calls, and what that allows.

use std::collections::BTreeSet;

use api::{CallerInfo, CallerKind, Code, Operation, Problem, Reach, Role};

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Its name: of a token, of a JWT's `sub`, or of the user of this host.
    pub subject: String,
    /// How it was known.
    pub kind: CallerKind,
    /// What it may do.
    pub role: Role,
    /// The workspace that it is bound to; none is bound to none, and sees all.
    pub workspace: Option<String>,
    /// Only these operations, of those that the role has; all of them when absent.
    pub operations: Option<BTreeSet<Operation>>,
    /// Which token it presented, by id.
    pub token_id: Option<String>,
    /// Which key it signed the request with, by id.
    pub key_id: Option<String>,
}

/// Why a caller may not do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is another workspace's: for this caller it is not there.
    #[error("there is no such thing, or it is another workspace's")]
    NotFound,
    /// The role is too low.
    #[error("`{operation}` needs the role {needed} or above; the caller is {has}")]
    Role {
        /// What was to be done.
        operation: Operation,
        /// The least role for it.
        needed: Role,
        /// The caller's.
        has: Role,
    },
    /// The token is not for this operation.
    #[error("the token is not for `{0}`; make one whose operations include it")]
    Operation(Operation),
    /// It is about the host, and the caller is bound to a workspace.
    #[error("`{0}` is about the host: it needs a token that is not bound to a workspace")]
    Bound(Operation),
    /// A token is to be made that could do more than its maker.
    #[error("a token cannot have more rights than its maker: {0}")]
    Grant(&'static str),
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal {
            Refusal::NotFound => Code::NotFound,
            _ => Code::Forbidden,
        };
        Self::new(code, refusal.to_string())
    }
}

/// Whether the caller may do this with a thing of `workspace`. Without one it is about what the
/// caller sees by itself, a listing for example, which [`Caller::scope`] then narrows.
///
/// # Errors
/// `NotFound` where the thing is another workspace's, whatever the caller is there or here; else
/// the right that is missing.
pub fn authorise(
    caller: &Caller,
    operation: Operation,
    workspace: Option<&str>,
) -> Result<(), Refusal> {
    if let (Some(own), Some(of)) = (caller.workspace.as_deref(), workspace)
        && own != of
    {
        return Err(Refusal::NotFound);
    }
    if operation.reach() == Reach::Host && caller.workspace.is_some() {
        return Err(Refusal::Bound(operation));
    }
    let needed = operation.least_role();
    if caller.role < needed {
        return Err(Refusal::Role { operation, needed, has: caller.role });
    }
    match &caller.operations {
        Some(only) if !only.contains(&operation) => Err(Refusal::Operation(operation)),
        _ => Ok(()),
    }
}

impl Caller {
    /// A user of this host, by the socket's peer or because the program is its own: an
    /// administrator.
    pub fn local(uid: u32) -> Self {
        Self {
            subject: format!("uid:{uid}"),
            kind: CallerKind::Local,
            role: Role::Owner,
            workspace: None,
            operations: None,
            token_id: None,
            key_id: None,
        }
    }

    /// Whoever is an administrator: it may do everything.
    pub fn is_administrator(&self) -> bool {
        self.role == Role::Owner && self.workspace.is_none() && self.operations.is_none()
    }

    /// The name in audit records: how it was known, and who it is.
    pub fn actor(&self) -> String {
        match (&self.kind, &self.token_id) {
            (CallerKind::Token | CallerKind::Administrator, Some(id)) => {
                format!("{}:{id}", self.kind.as_str())
            }
            _ => format!("{}:{}", self.kind.as_str(), self.subject),
        }
    }

    /// What the API says about it.
    pub fn info(&self) -> CallerInfo {
        CallerInfo {
            subject: self.subject.clone(),
            kind: self.kind,
            role: self.role,
            workspace: self.workspace.clone(),
            operations: self.operations.clone(),
        }
    }

    /// Whether it sees what belongs to this workspace, or to none: that only those see who are
    /// bound to none.
    pub fn sees(&self, workspace: Option<&str>) -> bool {
        match self.workspace.as_deref() {
            None => true,
            Some(own) => workspace == Some(own),
        }
    }

    /// The workspace that a listing is narrowed to; `None` is all of them. `asked` is what the
    /// caller wants to see.
    ///
    /// # Errors
    /// `NotFound` where it asked for another's.
    pub fn scope<'a>(&'a self, asked: Option<&'a str>) -> Result<Option<&'a str>, Refusal> {
        match (self.workspace.as_deref(), asked) {
            (Some(own), Some(of)) if own != of => Err(Refusal::NotFound),
            (Some(own), _) => Ok(Some(own)),
            (None, asked) => Ok(asked),
        }
    }

    /// The workspace that a new thing belongs to: the caller's own, or for one that is bound to
    /// none what it `asked` for, or else `default`.
    ///
    /// # Errors
    /// `NotFound` where it asked for another's.
    pub fn home<'a>(
        &'a self,
        asked: Option<&'a str>,
        default: &'a str,
    ) -> Result<&'a str, Refusal> {
        Ok(self.scope(asked)?.unwrap_or(default))
    }

    /// Whether it may make a token or register a key with these rights.
    ///
    /// # Errors
    /// `NotFound` where it is for another workspace, `Grant` where it could do more.
    pub fn may_grant(
        &self,
        role: Role,
        workspace: Option<&str>,
        operations: Option<&BTreeSet<Operation>>,
    ) -> Result<(), Refusal> {
        match (self.workspace.as_deref(), workspace) {
            (Some(own), Some(of)) if own != of => return Err(Refusal::NotFound),
            (Some(_), None) => return Err(Refusal::Grant("it would not be bound to a workspace")),
            _ => {}
        }
        if role > self.role {
            return Err(Refusal::Grant("its role would be higher"));
        }
        match (&self.operations, operations) {
            (Some(_), None) => Err(Refusal::Grant("it would not be bound to operations")),
            (Some(own), Some(granted)) if !granted.is_subset(own) => {
                Err(Refusal::Grant("it would have other operations"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn caller(role: Role, workspace: Option<&str>) -> Caller {
        Caller {
            subject: "alice".into(),
            kind: CallerKind::Token,
            role,
            workspace: workspace.map(Into::into),
            operations: None,
            token_id: Some("tok-1".into()),
            key_id: None,
        }
    }

    #[test]
    fn another_workspaces_thing_is_not_found_by_an_owner_either() {
        let owner = caller(Role::Owner, Some("red"));
        assert_eq!(authorise(&owner, Operation::SandboxGet, Some("blue")), Err(Refusal::NotFound));
        assert_eq!(authorise(&owner, Operation::SandboxGet, Some("red")), Ok(()));
    }

    #[test]
    fn the_missing_right_is_named() {
        let viewer = caller(Role::Viewer, Some("red"));
        let refusal = authorise(&viewer, Operation::Exec, Some("red")).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "`exec` needs the role member or above; the caller is viewer"
        );
        assert_eq!(Problem::from(refusal).code, Code::Forbidden);
    }

    #[test]
    fn a_token_for_some_operations_is_for_no_others() {
        let mut owner = caller(Role::Owner, Some("red"));
        owner.operations = Some([Operation::SandboxGet].into());
        assert_eq!(authorise(&owner, Operation::SandboxGet, Some("red")), Ok(()));
        assert_eq!(
            authorise(&owner, Operation::Exec, Some("red")),
            Err(Refusal::Operation(Operation::Exec))
        );
    }

    #[test]
    fn operations_do_not_raise_a_role() {
        let mut viewer = caller(Role::Viewer, Some("red"));
        viewer.operations = Some([Operation::Exec].into());
        assert!(matches!(
            authorise(&viewer, Operation::Exec, Some("red")),
            Err(Refusal::Role { .. })
        ));
    }

    #[test]
    fn the_host_is_for_those_who_are_bound_to_no_workspace() {
        let owner = caller(Role::Owner, Some("red"));
        assert_eq!(
            authorise(&owner, Operation::PolicyReload, None),
            Err(Refusal::Bound(Operation::PolicyReload))
        );
        assert_eq!(authorise(&Caller::local(1000), Operation::PolicyReload, None), Ok(()));
    }

    #[test]
    fn a_listing_is_narrowed_to_what_is_seen() {
        let bound = caller(Role::Viewer, Some("red"));
        assert_eq!(bound.scope(None), Ok(Some("red")));
        assert_eq!(bound.scope(Some("red")), Ok(Some("red")));
        assert_eq!(bound.scope(Some("blue")), Err(Refusal::NotFound));
        let free = caller(Role::Viewer, None);
        assert_eq!(free.scope(None), Ok(None));
        assert_eq!(free.scope(Some("blue")), Ok(Some("blue")));
        assert_eq!(free.home(None, "default"), Ok("default"));
        assert_eq!(bound.home(None, "default"), Ok("red"));
    }

    #[test]
    fn what_belongs_to_no_workspace_is_not_everyones() {
        assert!(!caller(Role::Owner, Some("red")).sees(None));
        assert!(!caller(Role::Owner, Some("red")).sees(Some("blue")));
        assert!(caller(Role::Viewer, None).sees(None));
    }

    #[test]
    fn an_actor_is_named_by_what_it_presented() {
        assert_eq!(caller(Role::Owner, None).actor(), "token:tok-1");
        assert_eq!(Caller::local(1000).actor(), "local:uid:1000");
    }

    fn operations() -> impl Strategy<Value = Option<BTreeSet<Operation>>> {
        let one = prop::sample::select(Operation::ALL);
        prop::option::of(prop::collection::btree_set(one, 1..8))
    }

    fn roles() -> impl Strategy<Value = Role> {
        prop::sample::select(&Role::ALL[..])
    }

    fn workspaces() -> impl Strategy<Value = Option<&'static str>> {
        prop::sample::select(&[None, Some("red"), Some("blue")][..])
    }

    proptest! {
        /// Whatever is granted, it allows nothing that its maker could not do.
        #[test]
        fn a_grant_never_allows_more(
            (maker_role, maker_workspace, maker_operations) in (roles(), workspaces(), operations()),
            (role, workspace, granted) in (roles(), workspaces(), operations()),
            of in workspaces(),
        ) {
            let mut maker = caller(maker_role, maker_workspace);
            maker.operations = maker_operations;
            if maker.may_grant(role, workspace, granted.as_ref()).is_ok() {
                let mut made = caller(role, workspace);
                made.operations = granted;
                for &operation in Operation::ALL {
                    if authorise(&made, operation, of).is_ok() {
                        prop_assert_eq!(authorise(&maker, operation, of), Ok(()));
                    }
                }
                prop_assert!(!made.sees(of) || maker.sees(of));
            }
        }
    }
}
