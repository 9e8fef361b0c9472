//! What a guest may not change on the host without being looked at.

use archive::Name;

use crate::Node;

/// Whose parts make other programs run something, by the path that they look at, wherever it
/// begins. What is below counts, too.
const PROTECTED: &[&str] = &[
    // Agents and their tools.
    ".aider.conf.yml",
    ".claude",
    ".claude.json",
    ".clinerules",
    ".codex",
    ".continue",
    ".cursor",
    ".gemini",
    ".kiro",
    ".mcp.json",
    ".opencode",
    ".roo",
    ".windsurf",
    "mcp.json",
    "opencode.json",
    // Editors.
    ".dir-locals.el",
    ".exrc",
    ".fleet",
    ".idea",
    ".nvim.lua",
    ".nvimrc",
    ".vim",
    ".vimrc",
    ".vs",
    ".vscode",
    ".zed",
    // What a directory does when it is entered or opened.
    ".devcontainer",
    ".devcontainer.json",
    ".envrc",
    ".mise.toml",
    "mise.toml",
    // Git, beside its own directory.
    ".git-hooks",
    ".gitconfig",
    ".githooks",
    ".gitmodules",
    ".husky",
    ".lefthook",
    ".lefthook.yml",
    ".pre-commit-config.yaml",
    "lefthook.yml",
    // Continuous integration.
    ".appveyor.yml",
    ".azure-pipelines",
    ".buildkite",
    ".circleci",
    ".cirrus.yml",
    ".drone.yml",
    ".forgejo/actions",
    ".forgejo/workflows",
    ".gitea/actions",
    ".gitea/workflows",
    ".github/actions",
    ".github/workflows",
    ".gitlab-ci.yml",
    ".gitlab/ci",
    ".semaphore",
    ".teamcity",
    ".travis.yml",
    ".woodpecker",
    ".woodpecker.yml",
    "appveyor.yml",
    "azure-pipelines.yml",
    "bitbucket-pipelines.yml",
    "cloudbuild.yaml",
    "jenkinsfile",
    // What shells read when they start.
    ".bash_aliases",
    ".bash_login",
    ".bash_logout",
    ".bash_profile",
    ".bashrc",
    ".config/fish",
    ".config/git",
    ".cshrc",
    ".inputrc",
    ".kshrc",
    ".login",
    ".profile",
    ".tcshrc",
    ".xprofile",
    ".zlogin",
    ".zlogout",
    ".zprofile",
    ".zshenv",
    ".zshrc",
    // Tools whose configuration names programs.
    ".bazelrc",
    ".cargo/config",
    ".cargo/config.toml",
    ".gdbinit",
    ".lldbinit",
    ".npmrc",
    ".pnpmfile.cjs",
    ".pypirc",
    ".ssh",
    ".yarn/plugins",
    ".yarn/releases",
    ".yarnrc",
    ".yarnrc.yml",
    "pip.conf",
];

/// Whether this is something that makes other programs run what it says: the parts of a git
/// repository that make git run programs (hooks; `core.fsmonitor`, `core.sshCommand` and filters
/// of its configuration), what points git to another repository, and what agents, editors,
/// shells, package managers and continuous integration read. Someone who lists the status of a
/// workspace after a sync, or opens it, would run them.
///
/// A link or a file in the place of a directory on the way to one counts, since another may lead
/// there. Upper and lower case are the same here, and letters that cannot be seen do not count: on
/// some file systems they are, and do not.
pub fn is_protected(name: &Name, node: &Node) -> bool {
    let components: Vec<_> = name.components().map(folded).collect();
    (0..components.len()).any(|at| {
        let below = &components[at..];
        (below[0] == ".git" && is_protected_in_git(&below[1..], node))
            || PROTECTED.iter().any(|path| leads_to(below, path, node))
    })
}

/// As a file system sees it that does not tell upper from lower case, and leaves out what has no
/// width.
fn folded(component: &[u8]) -> String {
    let is_seen = |letter: &char| {
        !matches!(letter, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let text = String::from_utf8_lossy(component);
    let letters = text.chars().filter(is_seen);
    letters.flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect()
}

/// Whether these components are the path, something below it, or no directory on the way to it.
fn leads_to(components: &[String], path: &str, node: &Node) -> bool {
    let mut path = path.split('/');
    for component in components {
        match path.next() {
            Some(wanted) if component == wanted => {}
            Some(_) => return false,
            None => return true,
        }
    }
    path.next().is_none() || !node.is_directory()
}

fn is_protected_in_git(below: &[String], node: &Node) -> bool {
    let runs = |component: &str| {
        matches!(component, "hooks" | "config" | "config.worktree" | "commondir" | "gitdir")
    };
    match below.first().map(String::as_str) {
        // A file or link in the place of the directory points to a repository elsewhere.
        None => !node.is_directory(),
        Some("hooks" | "config" | "config.worktree" | "commondir") => true,
        // Objects that are another repository's.
        Some("objects") => {
            below.get(1).is_some_and(|name| name == "info")
                && below.get(2).is_some_and(|name| name.ends_with("alternates"))
        }
        // What git asks which files it works on, and by which filters.
        Some("info") => below.get(1).is_some_and(|name| name == "attributes"),
        // Repositories of submodules and of further work trees.
        Some("modules" | "worktrees") => {
            matches!(node, Node::Symlink { .. })
                || below[1..].iter().any(|component| runs(component))
        }
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(path: &str) -> Name {
        Name::parse(path.as_bytes()).unwrap()
    }

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
            (".git/info/attributes", &file, true),
            (".git/objects/info/alternates", &file, true),
            (".git", &file, true),
            (".git", &link, true),
            ("sub/.git", &file, true),
            ("sub/.GIT/Hooks/x", &file, true),
            (".g\u{200c}it/hooks/x", &file, true),
            (".git/modules/lib/config", &file, true),
            (".git/modules/lib/hooks/x", &file, true),
            (".git/modules", &link, true),
            (".git/worktrees/x/config.worktree", &file, true),
            (".git/worktrees/x/gitdir", &file, true),
            (".git", &directory, false),
            (".git/HEAD", &file, false),
            (".git/index", &file, false),
            (".git/objects/ab/cdef", &file, false),
            (".git/objects/info", &directory, false),
            (".git/refs/heads/hooks", &file, false),
            (".git/refs/heads/config", &file, false),
            (".git/modules/lib/HEAD", &file, false),
            ("hooks/x", &file, false),
            ("config", &file, false),
            (".gitignore", &file, false),
        ] {
            assert_eq!(is_protected(&name(path), node), expected, "{path}");
        }
    }

    #[test]
    fn what_other_programs_run_is_protected_by_its_name_wherever_it_is() {
        let file = Node::File { mode: 0o644, size: 0, digest: [0; 32] };
        let directory = Node::Directory { mode: 0o755 };
        let link = Node::Symlink { target: b"x".to_vec() };
        for (path, node, expected) in [
            (".gitmodules", &file, true),
            (".mcp.json", &file, true),
            (".claude/settings.json", &file, true),
            ("packages/web/.claude", &directory, true),
            (".codex", &link, true),
            (".vscode/tasks.json", &file, true),
            (".V\u{17f}code/tasks.json", &file, true),
            (".idea/workspace.xml", &file, true),
            (".envrc", &file, true),
            (".github/workflows/ci.yml", &file, true),
            (".github", &link, true),
            (".github", &file, true),
            (".gitlab-ci.yml", &file, true),
            (".circleci/config.yml", &file, true),
            ("Jenkinsfile", &file, true),
            ("home/.bashrc", &file, true),
            (".zshrc", &file, true),
            (".npmrc", &file, true),
            (".cargo/config.toml", &file, true),
            (".cargo", &link, true),
            (".config/fish/config.fish", &file, true),
            (".github", &directory, false),
            (".github/ISSUE_TEMPLATE.md", &file, false),
            (".cargo/registry/x", &file, false),
            ("Makefile", &file, false),
            ("claude", &directory, false),
            ("vscode.md", &file, false),
            ("Jenkinsfile.md", &file, false),
            ("src/profile", &file, false),
        ] {
            assert_eq!(is_protected(&name(path), node), expected, "{path}");
        }
    }

    #[test]
    fn the_list_is_in_small_letters_and_has_nothing_twice() {
        let mut seen = std::collections::BTreeSet::new();
        for path in PROTECTED {
            assert_eq!(*path, path.to_lowercase());
            assert!(seen.insert(path), "{path}");
        }
    }
}
