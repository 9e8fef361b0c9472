//! `sandforge diff`, `sandforge apply` and `sandforge discard`.

use std::env;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Component, Path, PathBuf};

use clap::Args;
use client::api::{
    AppliedChanges, ApplyChanges, ChangeKind, ChangeSet, ChangesQuery, Code, Diff, DiffQuery,
    DiscardChanges, FileChange, FileKind, HeldBackWhy, Text,
};
use client::{Client, Error};

use super::Context;
use crate::connection;
use crate::failure::{Failure, Kind};
use crate::filter;
use crate::units::readable;

/// Show what a sandbox changed in a directory of -w
///
/// Without a name it is the newest set of changes of the directory that you are in. Of a sandbox
/// that runs, the changes are looked at anew.
#[derive(Args)]
#[command(after_help = "\
Examples:
  sandforge diff                       what the last run changed in this directory
  sandforge diff box src '**/*.rs'     of this sandbox, these paths
  sandforge diff --stat                which files, and how many lines
  sandforge diff --raw                 as a patch, such as git apply takes
  sandforge diff --list                all changes that wait")]
pub(crate) struct DiffArgs {
    /// A sandbox, and paths below the directory; globs in quotes
    #[arg(value_name = "[NAME] PATH")]
    words: Vec<String>,

    /// Each change in a line
    #[arg(long, conflicts_with_all = ["name_only", "json", "raw"])]
    stat: bool,

    /// Paths and no more
    #[arg(long, conflicts_with_all = ["json", "raw"])]
    name_only: bool,

    /// The bytes as they are, for programs; otherwise controls are made visible
    #[arg(long, conflicts_with = "json")]
    raw: bool,

    /// Of a sandbox that runs: also what git would ignore
    #[arg(long)]
    ignored: bool,

    /// All sets of changes that wait
    #[arg(long, conflicts_with_all = ["words", "stat", "name_only", "raw"])]
    list: bool,

    /// Print the changes as a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Bring what a sandbox changed to the directory of -w
///
/// All that was chosen, or nothing. What you changed meanwhile is merged where it is in other lines
/// of a text, and is not touched otherwise. What is not applied waits.
#[derive(Args)]
#[command(after_help = "\
Examples:
  sandforge apply                      all of what the last run changed in this directory
  sandforge apply src '*.md'           these paths
  sandforge apply box --allow-protected .envrc
  sandforge apply --theirs Cargo.lock  the sandbox's version, whatever was changed here

The exit status is 1 where something that was chosen was not applied.")]
pub(crate) struct ApplyArgs {
    /// A sandbox, and paths below the directory; globs in quotes
    #[arg(value_name = "[NAME] PATH")]
    words: Vec<String>,

    /// Apply this, too, though other programs run what it says
    #[arg(long, value_name = "PATH")]
    allow_protected: Vec<String>,

    /// Where both sides changed the same, take the sandbox's version
    #[arg(long)]
    theirs: bool,

    /// Print what was done as a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Forget what a sandbox changed in a directory of -w
#[derive(Args)]
#[command(after_help = "\
Examples:
  sandforge discard          what the last run changed in this directory
  sandforge discard box")]
pub(crate) struct DiscardArgs {
    /// A sandbox
    name: Option<String>,
}

/// What is meant: sets of one sandbox, and paths below their directory.
struct Meant {
    sets: Vec<ChangeSet>,
    paths: Vec<String>,
    /// Where we are below the directory.
    here: PathBuf,
}

/// Finds out what is meant. With `anew`, a sandbox that runs is looked at now.
async fn meant(
    client: &Client,
    words: &[String],
    anew: Option<&ChangesQuery>,
) -> Result<Meant, Failure> {
    let list = client.list_changes().await?.sets;
    let query = anew.cloned().unwrap_or_default();
    if let Some((first, paths)) = words.split_first()
        && !first.contains('/')
    {
        let known = list.iter().find(|set| set.sandbox == *first || set.name == *first);
        let id = known.map_or(first.as_str(), |set| set.sandbox.as_str());
        let found = match (known, anew) {
            (Some(_), None) => {
                Ok(list.iter().filter(|set| set.sandbox == id).cloned().collect::<Vec<_>>())
            }
            _ => client.sandbox_changes(id, &query).await.map(|found| found.sets),
        };
        match found {
            Ok(mut sets) if !sets.is_empty() => {
                sets.sort_by_key(|set| set.mount);
                return Ok(Meant { sets, paths: paths.to_vec(), here: PathBuf::new() });
            }
            Ok(_) => {
                return Err(Failure::new(
                    Kind::NotFound,
                    format!("{first} has no changes that wait to be applied or discarded"),
                ));
            }
            // It is a path.
            Err(Error::Problem(problem))
                if matches!(problem.code, Code::NotFound | Code::InvalidRequest) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let here = env::current_dir()
        .and_then(|here| here.canonicalize())
        .map_err(|error| Failure::failed("cannot tell which directory this is").because(&error))?;
    let mut newest = list.into_iter().filter(|set| here.starts_with(&set.host_path));
    let Some(set) = newest.next() else {
        let what = "no changes of a sandbox wait for this directory";
        return Err(Failure::new(Kind::NotFound, what)
            .help("sandforge diff --list lists all; a sandbox that runs has to be named"));
    };
    let below = here.strip_prefix(&set.host_path).map(Path::to_owned).unwrap_or_default();
    let set = match anew {
        None => set,
        Some(query) => match client.sandbox_changes(&set.sandbox, query).await {
            Ok(sets) => sets.sets.into_iter().find(|one| one.mount == set.mount).unwrap_or(set),
            Err(Error::Problem(problem)) if problem.code == Code::NotFound => set,
            Err(error) => return Err(error.into()),
        },
    };
    Ok(Meant { sets: vec![set], paths: words.to_vec(), here: below })
}

impl Meant {
    /// A path as the server takes it: below the directory, whether it was written so, absolute, or
    /// from where we are.
    fn path(&self, path: &str) -> Result<String, Failure> {
        let outside = || Failure::usage(format!("{path:?} is not below the directory"));
        let mut whole = PathBuf::new();
        let written = Path::new(path);
        let written = match self.sets.first() {
            Some(set) if written.is_absolute() => {
                written.strip_prefix(&set.host_path).map_err(|_| outside())?
            }
            _ => {
                whole.clone_from(&self.here);
                written
            }
        };
        for component in written.components() {
            match component {
                Component::Normal(name) => whole.push(name),
                Component::CurDir => {}
                Component::ParentDir if whole.pop() => {}
                Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                    return Err(outside());
                }
            }
        }
        let whole = whole.to_string_lossy().into_owned();
        Ok(if whole.is_empty() { ".".into() } else { whole })
    }

    fn paths(&self, paths: &[String]) -> Result<Vec<String>, Failure> {
        paths.iter().map(|path| self.path(path)).collect()
    }
}

/// A name as it may be shown.
fn shown(text: &Text) -> String {
    supervisor::workspace::Name::parse(text.as_bytes())
        .map_or_else(|_| filter::plain(&text.to_string_lossy()), |name| name.to_string())
}

fn word(change: ChangeKind) -> &'static str {
    match change {
        ChangeKind::Created => "created",
        ChangeKind::Updated => "changed",
        ChangeKind::Deleted => "removed",
    }
}

fn target(text: Option<&Text>) -> String {
    text.map_or_else(String::new, |text| filter::plain(&text.to_string_lossy()))
}

/// What of a repository is not for people to read.
fn is_of_git(change: &FileChange) -> bool {
    !change.protected && change.path.as_bytes().split(|&byte| byte == b'/').any(|c| c == b".git")
}

/// A change in a line.
fn line(change: &FileChange) -> String {
    let mut text = format!("{} {}", word(change.change), shown(&change.path));
    let more = match (change.added, change.removed, change.kind) {
        (Some(added), Some(removed), _) => format!("  +{added} -{removed}"),
        (_, _, FileKind::Symlink) => format!("  -> {}", target(change.target_after.as_ref())),
        (_, _, FileKind::Directory) => "/".into(),
        _ => match (change.size_before, change.size_after) {
            (Some(before), Some(after)) => {
                format!("  {} -> {}", readable(before), readable(after))
            }
            (None, Some(size)) | (Some(size), None) => format!("  {}", readable(size)),
            (None, None) => String::new(),
        },
    };
    text.push_str(&more);
    if let (Some(before), Some(after)) = (change.mode_before, change.mode_after) {
        let _ = write!(text, "  mode {before} -> {after}");
    }
    if change.changed_here {
        text.push_str("  (changed here as well)");
    }
    text
}

/// A change as a patch has it, or in a line where a patch has no words for it.
fn patch(change: &FileChange, raw: bool, out: &mut Vec<u8>) {
    let name = |side: &str| match raw {
        true => [side.as_bytes(), change.path.as_bytes()].concat(),
        false => format!("{side}{}", shown(&change.path)).into_bytes(),
    };
    let Some(hunks) = &change.hunks else {
        out.extend_from_slice(line(change).as_bytes());
        out.push(b'\n');
        return;
    };
    if change.mode_before.is_some() || change.changed_here || hunks.as_bytes().is_empty() {
        out.extend_from_slice(line(change).as_bytes());
        out.push(b'\n');
    }
    if hunks.as_bytes().is_empty() {
        return;
    }
    let none = b"/dev/null".to_vec();
    let before = if change.change == ChangeKind::Created { none.clone() } else { name("a/") };
    let after = if change.change == ChangeKind::Deleted { none } else { name("b/") };
    for (mark, name) in [(&b"--- "[..], before), (&b"+++ "[..], after)] {
        out.extend_from_slice(mark);
        out.extend_from_slice(&name);
        out.push(b'\n');
    }
    match raw {
        true => out.extend_from_slice(hunks.as_bytes()),
        // Each line by itself: a sequence that is not ended does not eat the next.
        false => {
            for line in hunks.as_bytes().split_inclusive(|&byte| byte == b'\n') {
                let ended = line.ends_with(b"\n");
                let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(line));
                out.extend_from_slice(filter::plain(&text).as_bytes());
                if ended {
                    out.push(b'\n');
                }
            }
        }
    }
    if !out.ends_with(b"\n") {
        out.push(b'\n');
    }
}

/// A set in a line.
fn summary(set: &ChangeSet) -> String {
    let counts = [(set.created, "created"), (set.updated, "changed"), (set.deleted, "removed")];
    let counts = counts.iter().filter(|(count, _)| *count > 0);
    let counts: Vec<_> = counts.map(|(count, what)| format!("{count} {what}")).collect();
    let mut text = format!("{}: {}", set.host_path, counts.join(", "));
    if set.protected > 0 {
        let _ = write!(text, "; {} of them other programs would run", set.protected);
    }
    text
}

/// What is said of a set when a run has ended.
pub(crate) fn after_run(set: &ChangeSet, tell: &mut impl FnMut(&str)) {
    tell(&summary(set));
    let id = &set.sandbox;
    tell(&format!("  sandforge diff {id}, sandforge apply {id}, sandforge discard {id}"));
}

/// What git would ignore, in a line.
pub(crate) fn ignored(entries: u64, bytes: u64) -> Option<String> {
    (entries > 0).then(|| {
        format!(
            "{entries} new entries ({}) that git ignores are not among the changes; --ignored \
             takes them",
            readable(bytes)
        )
    })
}

impl DiffArgs {
    pub(crate) fn run(self, context: &Context) -> Result<u8, Failure> {
        let mut notices = crate::progress::Line::new(context.verbosity);
        connection::ask(async |client| {
            if self.list {
                return self.list(client).await;
            }
            let query = ChangesQuery { ignored: self.ignored };
            let meant = meant(client, &self.words, Some(&query)).await?;
            let path = meant.paths(&meant.paths)?;
            for set in &meant.sets {
                let query = DiffQuery {
                    mount: Some(set.mount),
                    path: path.clone(),
                    brief: self.stat || self.name_only,
                };
                let diff = client.diff_changes(&set.sandbox, &query).await?;
                if self.json {
                    super::print_json(&diff)?;
                    continue;
                }
                self.print(&diff)?;
                if diff.truncated {
                    notices.notice("there are more changes: name paths, or look with --stat");
                }
                if set.interrupted {
                    notices.notice(
                        "an apply of these changes was killed half-way; `sandforge apply` finishes",
                    );
                }
                if let Some(text) = ignored(set.ignored, set.ignored_bytes) {
                    notices.notice(&text);
                }
            }
            Ok(0)
        })
    }

    async fn list(&self, client: &Client) -> Result<u8, Failure> {
        let sets = client.list_changes().await?;
        if self.json {
            super::print_json(&sets)?;
            return Ok(0);
        }
        for set in &sets.sets {
            let text = format!("{}  {}  {}", set.sandbox, set.collected_at, summary(set));
            super::print(&format!("{}\n", filter::plain(&text)))?;
        }
        Ok(0)
    }

    fn print(&self, diff: &Diff) -> Result<(), Failure> {
        let mut out = Vec::new();
        let (protected, open): (Vec<_>, Vec<_>) =
            diff.changes.iter().partition(|change| change.protected);
        let (git, open): (Vec<_>, Vec<_>) = open.into_iter().partition(|one| is_of_git(one));
        let one = |change: &FileChange, out: &mut Vec<u8>| {
            if self.name_only {
                out.extend_from_slice(shown(&change.path).as_bytes());
                out.push(b'\n');
            } else if self.stat {
                out.extend_from_slice(line(change).as_bytes());
                out.push(b'\n');
            } else {
                patch(change, self.raw, out);
            }
        };
        open.into_iter().for_each(|change| one(change, &mut out));
        if self.name_only {
            git.into_iter().chain(protected).for_each(|change| one(change, &mut out));
        } else {
            if !git.is_empty() {
                let text = format!(".git: {} entries of the repository\n", git.len());
                out.extend_from_slice(text.as_bytes());
            }
            if !protected.is_empty() {
                out.extend_from_slice(
                    b"\nOther programs would run these; apply takes them with \
                      --allow-protected PATH:\n",
                );
                protected.into_iter().for_each(|change| one(change, &mut out));
            }
        }
        print_bytes(&out)
    }
}

/// Bytes to stdout; that nobody reads them any more is not a failure of ours.
fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if !crate::output::is_closed(&error) => {
            Err(Failure::failed("cannot write to stdout").because(&error))
        }
        _ => Ok(()),
    }
}

/// What was applied, in lines.
pub(crate) fn tell_applied(applied: &AppliedChanges) -> Vec<String> {
    let AppliedChanges { created, updated, deleted, merged, .. } = applied;
    let mut lines = vec![format!(
        "{}: {created} created, {updated} changed{}, {deleted} removed",
        applied.host_path,
        if *merged > 0 { format!(" ({merged} merged)") } else { String::new() },
    )];
    for held in applied.held_back.iter().take(MAX_HELD_BACK) {
        let why = match held.why {
            HeldBackWhy::Protected => "other programs would run it (--allow-protected)",
            HeldBackWhy::ChangedOnHost => "it was changed here as well (--theirs)",
            HeldBackWhy::LeavesTree => "the link leads out of the directory",
            HeldBackWhy::Hidden => "policy hides it",
        };
        lines.push(format!("not applied: {} ({}): {why}", shown(&held.path), word(held.change)));
    }
    if applied.held_back.len() > MAX_HELD_BACK {
        lines.push(format!("not applied: {} more", applied.held_back.len() - MAX_HELD_BACK));
    }
    lines
}

/// More would hide the rest.
const MAX_HELD_BACK: usize = 20;

impl ApplyArgs {
    pub(crate) fn run(self, context: &Context) -> Result<u8, Failure> {
        let mut notices = crate::progress::Line::new(context.verbosity);
        connection::ask(async |client| {
            let meant = meant(client, &self.words, None).await?;
            let (paths, allow_protected) =
                (meant.paths(&meant.paths)?, meant.paths(&self.allow_protected)?);
            let mut status = 0;
            for set in &meant.sets {
                let apply = ApplyChanges {
                    mount: Some(set.mount),
                    paths: paths.clone(),
                    allow_protected: allow_protected.clone(),
                    theirs: self.theirs,
                };
                let applied = client.apply_changes(&set.sandbox, &apply).await?;
                if !applied.held_back.is_empty() {
                    status = 1;
                }
                if self.json {
                    super::print_json(&applied)?;
                } else {
                    tell_applied(&applied).iter().for_each(|line| notices.notice(line));
                }
            }
            Ok(status)
        })
    }
}

impl DiscardArgs {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        connection::ask(async |client| {
            let words: Vec<String> = self.name.iter().cloned().collect();
            let meant = meant(client, &words, None).await?;
            if let Some(path) = meant.paths.first() {
                let what = format!("there is no sandbox {path:?} with changes");
                return Err(Failure::new(Kind::NotFound, what));
            }
            for set in &meant.sets {
                let discard = DiscardChanges { mount: Some(set.mount) };
                client.discard_changes(&set.sandbox, &discard).await?;
            }
            Ok(0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meant(here: &str) -> Meant {
        let set = ChangeSet {
            sandbox: "sb-1".into(),
            name: "sb-1".into(),
            mount: 0,
            host_path: "/home/ann/project".into(),
            guest_path: "/workspace".into(),
            collected_at: client::api::Timestamp::from_unix_ms(0),
            created: 1,
            updated: 0,
            deleted: 2,
            protected: 1,
            ignored: 0,
            ignored_bytes: 0,
            interrupted: false,
        };
        Meant { sets: vec![set], paths: Vec::new(), here: here.into() }
    }

    #[test]
    fn a_path_is_below_the_directory_however_it_is_written() {
        for (here, written, expected) in [
            ("", "src/a.rs", Some("src/a.rs")),
            ("", "./src/", Some("src")),
            ("", ".", Some(".")),
            ("src", "a.rs", Some("src/a.rs")),
            ("src", "../*.md", Some("*.md")),
            ("src", "/home/ann/project/x", Some("x")),
            ("", "..", None),
            ("src", "../../x", None),
            ("", "/etc/passwd", None),
        ] {
            let found = meant(here).path(written).ok();
            assert_eq!(found.as_deref(), expected, "{here} {written}");
        }
    }

    #[test]
    fn a_set_is_told_in_a_line() {
        let expected =
            "/home/ann/project: 1 created, 2 removed; 1 of them other programs would run";
        assert_eq!(summary(&meant("").sets[0]), expected);
    }
}
