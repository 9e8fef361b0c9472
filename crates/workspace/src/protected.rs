//! What a guest may not change on the host without being looked at.

use archive::Name;

use crate::Node;

/// Whether this is a part of a git repository that makes git run programs: hooks, configuration
/// (`core.fsmonitor`, `core.sshCommand`, filters), and what points git to another repository
/// that may have them. Someone who lists the status of a workspace after a sync would run them.
///
/// Upper and lower case are the same here: on some file systems they are.
pub fn is_protected(name: &Name, node: &Node) -> bool {
    let components: Vec<_> = name.components().map(<[u8]>::to_ascii_lowercase).collect();
    (0..components.len())
        .any(|at| components[at] == b".git" && is_protected_in_git(&components[at + 1..], node))
}

fn is_protected_in_git(below: &[Vec<u8>], node: &Node) -> bool {
    match below.first().map(Vec::as_slice) {
        // A file or link in the place of the directory points to a repository elsewhere.
        None => !node.is_directory(),
        Some(b"hooks" | b"config" | b"config.worktree" | b"commondir") => true,
        // Repositories of submodules and of further work trees.
        Some(b"modules" | b"worktrees") => {
            matches!(node, Node::Symlink { .. })
                || below[1..].iter().any(|component| {
                    matches!(
                        component.as_slice(),
                        b"hooks" | b"config" | b"config.worktree" | b"commondir"
                    )
                })
        }
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_git_run_programs_is_protected_and_work_is_not() {
        let file = Node::File { mode: 0o644, size: 0, digest: [0; 32] };
        let directory = Node::Directory { mode: 0o755 };
        let link = Node::Symlink { target: b"x".to_vec() };
        for (path, node, expected) in [
            (".git/hooks", &directory, true),
            (".git/hooks", &link, true),
            (".git/hooks/pre-commit", &file, true),
            (".git/config", &file, true),
            (".git/config.worktree", &file, true),
            (".git/commondir", &file, true),
            (".git", &file, true),
            (".git", &link, true),
            ("sub/.git", &file, true),
            ("sub/.GIT/Hooks/x", &file, true),
            (".git/modules/lib/config", &file, true),
            (".git/modules/lib/hooks/x", &file, true),
            (".git/modules", &link, true),
            (".git/worktrees/x/config.worktree", &file, true),
            (".git", &directory, false),
            (".git/HEAD", &file, false),
            (".git/index", &file, false),
            (".git/objects/ab/cdef", &file, false),
            (".git/refs/heads/hooks", &file, false),
            (".git/refs/heads/config", &file, false),
            (".git/modules/lib/HEAD", &file, false),
            ("hooks/x", &file, false),
            ("config", &file, false),
            (".gitignore", &file, false),
        ] {
            let name = Name::parse(path.as_bytes()).unwrap();
            assert_eq!(is_protected(&name, node), expected, "{path}");
        }
    }
}
