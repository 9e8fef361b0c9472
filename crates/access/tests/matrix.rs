//! The authorisation matrix: each role, each operation, its own workspace's things and another's.

use access::matrix::{Cell, Whose, cell, markdown};
use access::{Caller, authorise};
use api::{Operation, Reach, Role};

/// What the rules are meant to be, written down a second time: whoever changes a right changes
/// it here too, and knows it.
const VIEWERS_MAY: &[&str] = &[
    "sandbox_list",
    "sandbox_get",
    "sandbox_stats",
    "sandbox_logs",
    "process_list",
    "process_get",
    "process_output",
    "file_read",
    "file_stat",
    "file_list",
    "file_watch",
    "changes_read",
    "volume_list",
    "volume_get",
    "snapshot_list",
    "snapshot_get",
    "event_list",
    "image_list",
    "policy_show",
    "policy_check",
    "whoami",
];
const MEMBERS_MAY_TOO: &[&str] = &[
    "sandbox_create",
    "sandbox_update",
    "mount_attach",
    "mount_detach",
    "sandbox_delete",
    "sandbox_start",
    "sandbox_stop",
    "sandbox_pause",
    "sandbox_resume",
    "exec",
    "process_input",
    "process_signal",
    "process_resize",
    "file_write",
    "file_mkdir",
    "file_move",
    "file_remove",
    "changes_apply",
    "changes_discard",
    "volume_create",
    "volume_remove",
    "sandbox_hibernate",
    "sandbox_snapshot",
    "sandbox_fork",
    "snapshot_restore",
    "snapshot_remove",
    "secret_list",
    "sandbox_secret_set",
    "sandbox_secret_remove",
];
const OWNERS_MAY_TOO: &[&str] = &[
    "token_create",
    "token_list",
    "token_revoke",
    "key_create",
    "key_list",
    "key_revoke",
    "webhook_create",
    "webhook_list",
    "webhook_delete",
    "webhook_redeliver",
    "audit_read",
    "secret_set",
    "secret_remove",
];
/// Of the host: the least role, not bound to a workspace.
const OF_THE_HOST: &[(&str, Role)] = &[
    ("policy_reload", Role::Owner),
    ("audit_export", Role::Owner),
    ("audit_verify", Role::Owner),
    ("audit_checkpoint", Role::Owner),
    ("doctor", Role::Viewer),
    ("metrics", Role::Viewer),
    ("secret_reset", Role::Owner),
];

fn least_role(operation: Operation) -> Role {
    let name = operation.as_str();
    if let Some(&(_, role)) = OF_THE_HOST.iter().find(|&&(host, _)| host == name) {
        return role;
    }
    let listed = [
        (Role::Viewer, VIEWERS_MAY),
        (Role::Member, MEMBERS_MAY_TOO),
        (Role::Owner, OWNERS_MAY_TOO),
    ];
    let found = listed.iter().find(|(_, names)| names.contains(&name));
    found.unwrap_or_else(|| panic!("{name} is in no list")).0
}

#[test]
fn the_lists_name_every_operation_once() {
    let listed =
        VIEWERS_MAY.len() + MEMBERS_MAY_TOO.len() + OWNERS_MAY_TOO.len() + OF_THE_HOST.len();
    assert_eq!(listed, Operation::ALL.len());
    for &operation in Operation::ALL {
        least_role(operation);
    }
}

#[test]
fn every_role_gets_for_every_operation_what_the_lists_say() {
    for &operation in Operation::ALL {
        let of_the_host = OF_THE_HOST.iter().any(|&(name, _)| name == operation.as_str());
        for role in Role::ALL {
            let enough = role >= least_role(operation);
            let by_role = if enough { Cell::Allowed } else { Cell::Forbidden };
            for whose in Whose::ALL {
                let expected = match whose {
                    Whose::Any => by_role,
                    Whose::Own | Whose::Other if of_the_host => Cell::Forbidden,
                    Whose::Own => by_role,
                    Whose::Other if operation.reach() == Reach::Shared => by_role,
                    Whose::Other => Cell::NotFound,
                };
                assert_eq!(cell(operation, role, whose), expected, "{operation} {role} {whose:?}");
            }
        }
    }
}

#[test]
fn whoever_is_local_may_do_everything_everywhere() {
    for &operation in Operation::ALL {
        for workspace in [None, Some("red"), Some("blue")] {
            assert_eq!(authorise(&Caller::local(1000), operation, workspace), Ok(()));
        }
    }
}

#[test]
fn the_page_of_the_documentation_is_the_matrix() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/api-authorisation.md");
    if std::env::var_os("SANDFORGE_BLESS").is_some() {
        std::fs::write(path, markdown()).unwrap();
    }
    let page = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(page, markdown(), "run the test with SANDFORGE_BLESS=1 and look at what changed");
}
