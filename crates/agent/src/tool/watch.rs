//! Changes as they happen: `watch`.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use wire::op::{Done, ErrorCode, OpError, Watch, WatchEvent};
use wire::text::Text;

use super::{absolute, failed, output_failed, shown};

/// How the watched path itself is named.
const ITSELF: &[u8] = b".";

/// Room for some hundred events: one read takes many, and the kernel's queue stays short.
const BUFFER: usize = 32 << 10;

/// Writes events until the host ends the stream or gives up, or the watched directory is gone
/// (`removed` of `.`, after which nothing more can come). What is told is told at least once;
/// renaming within the watched tree is a removal and a creation of everything below.
pub(super) fn watch(op: &Watch, input: &File, output: File) -> Result<Done, OpError> {
    let path = absolute(&op.path)?;
    let tried = |error| failed("watch", path, error);
    let metadata = fs::metadata(path).map_err(tried)?;
    let mut watcher = if metadata.is_dir() {
        Watcher::new(path, op.recursive, None, output)
    } else {
        // A file is watched from its directory: editors put a new one in its place.
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(tried(Errno::INVAL.into()));
        };
        Watcher::new(parent, false, Some(name.as_bytes().to_vec()), output)
    }
    .map_err(|error| failed("watch", path, error))?;
    watcher.watch_below(&[], false)?;
    watcher.tell(&WatchEvent::Ready)?;
    watcher.run(input)?;
    Ok(Done {})
}

/// One event of the kernel's.
struct Change {
    watch: i32,
    what: ReadFlags,
    name: Option<Vec<u8>>,
}

struct Watcher {
    inotify: OwnedFd,
    base: PathBuf,
    recursive: bool,
    /// Tell of this name alone.
    only: Option<Vec<u8>>,
    /// The watched directories, relative to the base, which is empty.
    directories: HashMap<i32, Vec<u8>>,
    root: Option<i32>,
    /// Entries of new directories that were found by looking. The kernel's own word may follow
    /// and is not repeated.
    found: HashSet<(i32, Vec<u8>)>,
    output: BufWriter<File>,
}

impl Watcher {
    fn new(
        base: &Path,
        recursive: bool,
        only: Option<Vec<u8>>,
        output: File,
    ) -> Result<Self, Errno> {
        Ok(Self {
            inotify: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?,
            base: base.to_owned(),
            recursive,
            only,
            directories: HashMap::new(),
            root: None,
            found: HashSet::new(),
            output: BufWriter::new(output),
        })
    }

    fn run(&mut self, input: &File) -> Result<(), OpError> {
        loop {
            self.output.flush().map_err(|error| output_failed(&error))?;
            let output = self.output.get_ref();
            let mut waits = [
                PollFd::new(&self.inotify, PollFlags::IN),
                PollFd::new(input, PollFlags::IN),
                // Asked for nothing, it still tells that nobody reads any more.
                PollFd::new(output, PollFlags::empty()),
            ];
            match poll(&mut waits, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(failed("watch", &self.base, error)),
            }
            let [changed, from_host, to_host] = waits.map(|wait| wait.revents());
            if to_host.contains(PollFlags::ERR) {
                return Err(OpError::new(ErrorCode::Cancelled, "nobody reads the changes"));
            }
            if changed.contains(PollFlags::IN) {
                for change in self.changes()? {
                    if self.take(&change)? == Next::Nothing {
                        return self.output.flush().map_err(|error| output_failed(&error));
                    }
                }
            }
            if !from_host.is_empty() && has_ended(input) {
                return Ok(());
            }
        }
    }

    /// What the kernel has for us now.
    fn changes(&self) -> Result<Vec<Change>, OpError> {
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        let mut changes = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => changes.push(Change {
                    watch: event.wd(),
                    what: event.events(),
                    name: event.file_name().map(|name| name.to_bytes().to_vec()),
                }),
                Err(Errno::WOULDBLOCK) => return Ok(changes),
                Err(Errno::INTR) => {}
                Err(error) => return Err(failed("watch", &self.base, error)),
            }
            if reader.is_buffer_empty() {
                return Ok(changes);
            }
        }
    }

    fn take(&mut self, change: &Change) -> Result<Next, OpError> {
        let Change { watch, what, name } = change;
        if what.contains(ReadFlags::QUEUE_OVERFLOW) {
            self.tell(&WatchEvent::Overflow)?;
            self.watch_below(&[], false)?;
            return Ok(Next::More);
        }
        let gone = ReadFlags::IGNORED | ReadFlags::MOVE_SELF;
        if self.root == Some(*watch) && what.intersects(gone) {
            self.tell(&WatchEvent::Removed { path: text(ITSELF) })?;
            return Ok(Next::Nothing);
        }
        if what.contains(ReadFlags::IGNORED) {
            self.directories.remove(watch);
            self.found.retain(|(found, _)| found != watch);
            return Ok(Next::More);
        }
        let (Some(directory), Some(name)) = (self.directories.get(watch), name) else {
            return Ok(Next::More);
        };
        let path = match &self.only {
            Some(only) if only != name => return Ok(Next::More),
            Some(_) => text(ITSELF),
            None => text(&below(directory, name)),
        };
        let child = below(directory, name);
        let entry = (*watch, name.clone());
        let is_directory = what.contains(ReadFlags::ISDIR);
        if what.contains(ReadFlags::CREATE) && self.found.remove(&entry) {
            return Ok(Next::More);
        }
        if what.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
            self.found.remove(&entry);
            self.tell(&WatchEvent::Created { path })?;
            if is_directory && self.recursive {
                self.watch_below(&child, true)?;
            }
        } else if what.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM) {
            self.found.remove(&entry);
            self.tell(&WatchEvent::Removed { path })?;
            if is_directory && what.contains(ReadFlags::MOVED_FROM) {
                self.forget_below(&child);
            }
        } else if what.intersects(ReadFlags::MODIFY | ReadFlags::ATTRIB) {
            self.tell(&WatchEvent::Modified { path })?;
        }
        Ok(Next::More)
    }

    /// Watches a directory and, when recursive, those in it. The watch is there before the
    /// directory is read, so that nothing is missed between the two; what is found by reading is
    /// told as created, if asked.
    fn watch_below(&mut self, directory: &[u8], tell: bool) -> Result<(), OpError> {
        let mut waiting = vec![directory.to_vec()];
        while let Some(directory) = waiting.pop() {
            let path = self.base.join(OsStr::from_bytes(&directory));
            let watch = match self.add(&path, directory.is_empty()) {
                Ok(watch) => watch,
                Err(Errno::NOSPC) => {
                    return Err(OpError::new(
                        ErrorCode::Exhausted,
                        format!(
                            "cannot watch '{}': no watches are left; watch a smaller directory, \
                             or raise fs.inotify.max_user_watches",
                            shown(&path)
                        ),
                    ));
                }
                Err(error) if directory.is_empty() && self.root.is_none() => {
                    return Err(failed("watch", &path, error));
                }
                // Gone or a link by now, or not ours to see.
                Err(_) => continue,
            };
            if directory.is_empty() {
                self.root = Some(watch);
            }
            self.directories.insert(watch, directory.clone());
            if !self.recursive {
                return Ok(());
            }
            let Ok(entries) = fs::read_dir(&path) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name().into_vec();
                let child = below(&directory, &name);
                if tell {
                    self.tell(&WatchEvent::Created { path: text(&child) })?;
                    self.found.insert((watch, name));
                }
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    waiting.push(child);
                }
            }
        }
        Ok(())
    }

    fn add(&self, path: &Path, is_root: bool) -> Result<i32, Errno> {
        let mut flags = WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::ONLYDIR
            | WatchFlags::EXCL_UNLINK;
        flags |= if is_root { WatchFlags::MOVE_SELF } else { WatchFlags::DONT_FOLLOW };
        inotify::add_watch(&self.inotify, path, flags)
    }

    /// Ends the watches of a directory that was moved away: its paths are not true any more.
    fn forget_below(&mut self, directory: &[u8]) {
        let inotify = &self.inotify;
        self.directories.retain(|&watch, path| {
            let is_below =
                path.strip_prefix(directory).is_some_and(|rest| matches!(rest, [] | [b'/', ..]));
            if is_below {
                let _ = inotify::remove_watch(inotify, watch);
            }
            !is_below
        });
    }

    fn tell(&mut self, event: &WatchEvent) -> Result<(), OpError> {
        let mut line = serde_json::to_vec(event)
            .map_err(|error| OpError::new(ErrorCode::Failed, error.to_string()))?;
        line.push(b'\n');
        self.output.write_all(&line).map_err(|error| output_failed(&error))
    }
}

#[derive(PartialEq, Eq)]
enum Next {
    More,
    /// What was watched is gone.
    Nothing,
}

/// Whether the host has ended the stream; what it says before means nothing here.
fn has_ended(input: &File) -> bool {
    let mut ignored = [0; 512];
    matches!(std::io::Read::read(&mut &*input, &mut ignored), Ok(0))
}

fn below(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

fn text(bytes: &[u8]) -> Text {
    Text::new(bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::thread::{self, JoinHandle};

    use serde_json::{Value, json};

    use super::super::run;
    use super::super::tests::{path, pipe, refusal};
    use super::*;

    /// A running watch, told to end when this is dropped.
    struct Watching {
        input: Option<File>,
        events: BufReader<File>,
        ended: Option<JoinHandle<Result<Value, OpError>>>,
    }

    impl Watching {
        fn start(at: &Path, recursive: bool) -> Self {
            let (input_read, input_write) = pipe();
            let (output_read, output_write) = pipe();
            let op = json!({"path": path(at), "recursive": recursive}).to_string();
            let ended =
                thread::spawn(move || run("watch", op.as_bytes(), input_read, output_write));
            let mut watching = Self {
                input: Some(input_write),
                events: BufReader::new(output_read),
                ended: Some(ended),
            };
            assert_eq!(watching.next(), Some(WatchEvent::Ready));
            watching
        }

        fn next(&mut self) -> Option<WatchEvent> {
            let mut line = String::new();
            match self.events.read_line(&mut line).unwrap() {
                0 => None,
                _ => Some(serde_json::from_str(&line).unwrap()),
            }
        }

        /// Skips events until this one has come.
        fn until(&mut self, event: &WatchEvent) {
            while self.next().expect("the watch has ended") != *event {}
        }

        /// Ends the stream as the host does and gives what was told until then.
        fn end(mut self) -> Vec<WatchEvent> {
            drop(self.input.take());
            let events = std::iter::from_fn(|| self.next()).collect();
            self.ended.take().unwrap().join().unwrap().unwrap();
            events
        }
    }

    fn created(path: &str) -> WatchEvent {
        WatchEvent::Created { path: path.into() }
    }

    fn removed(path: &str) -> WatchEvent {
        WatchEvent::Removed { path: path.into() }
    }

    fn modified(path: &str) -> WatchEvent {
        WatchEvent::Modified { path: path.into() }
    }

    #[test]
    fn a_directory_tells_what_comes_changes_and_goes() {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir(tree.path().join("d")).unwrap();
        let mut watching = Watching::start(tree.path(), false);
        fs::write(tree.path().join("a"), "x").unwrap();
        fs::write(tree.path().join("d/unseen"), "x").unwrap();
        fs::rename(tree.path().join("a"), tree.path().join("b")).unwrap();
        fs::remove_file(tree.path().join("b")).unwrap();
        for event in [created("a"), modified("a"), removed("a"), created("b"), removed("b")] {
            assert_eq!(watching.next(), Some(event));
        }
        assert_eq!(watching.end(), []);
    }

    #[test]
    fn directories_made_later_are_watched_whatever_the_order() {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir_all(tree.path().join("old/deep")).unwrap();
        let mut watching = Watching::start(tree.path(), true);
        fs::write(tree.path().join("old/deep/a"), "").unwrap();
        watching.until(&created("old/deep/a"));
        // Made faster than any watch can follow.
        fs::create_dir_all(tree.path().join("new/deep/deeper")).unwrap();
        fs::write(tree.path().join("new/deep/deeper/b"), "").unwrap();
        watching.until(&created("new/deep/deeper/b"));
        fs::write(tree.path().join("new/deep/c"), "").unwrap();
        watching.until(&created("new/deep/c"));
    }

    #[test]
    fn a_directory_that_moves_is_watched_under_its_new_name() {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir_all(tree.path().join("d/e")).unwrap();
        fs::write(tree.path().join("d/e/a"), "").unwrap();
        let mut watching = Watching::start(tree.path(), true);
        fs::rename(tree.path().join("d"), tree.path().join("f")).unwrap();
        watching.until(&removed("d"));
        watching.until(&created("f/e/a"));
        fs::write(tree.path().join("f/e/b"), "").unwrap();
        watching.until(&created("f/e/b"));
    }

    #[test]
    fn what_was_found_by_looking_is_not_told_twice() {
        let tree = tempfile::tempdir().unwrap();
        let watching = Watching::start(tree.path(), true);
        for at in 0..50 {
            fs::create_dir_all(tree.path().join(format!("{at}/x"))).unwrap();
            fs::write(tree.path().join(format!("{at}/x/y")), "").unwrap();
        }
        thread::sleep(std::time::Duration::from_millis(200));
        let events = watching.end();
        for at in 0..50 {
            for name in [format!("{at}"), format!("{at}/x"), format!("{at}/x/y")] {
                let told = events.iter().filter(|event| **event == created(&name)).count();
                assert_eq!(told, 1, "{name}");
            }
        }
    }

    #[test]
    fn a_file_that_an_editor_replaces_stays_watched() {
        let tree = tempfile::tempdir().unwrap();
        let file = tree.path().join("a");
        fs::write(&file, "1").unwrap();
        let mut watching = Watching::start(&file, false);
        fs::write(tree.path().join("new"), "2").unwrap();
        fs::rename(tree.path().join("new"), &file).unwrap();
        assert_eq!(watching.next(), Some(created(".")));
        fs::write(&file, "3").unwrap();
        assert_eq!(watching.next(), Some(modified(".")));
    }

    #[test]
    fn the_watch_ends_with_its_directory() {
        let tree = tempfile::tempdir().unwrap();
        let directory = tree.path().join("d");
        fs::create_dir(&directory).unwrap();
        let mut watching = Watching::start(&directory, true);
        fs::remove_dir(&directory).unwrap();
        assert_eq!(watching.next(), Some(removed(".")));
        assert_eq!(watching.next(), None);
        assert!(watching.ended.take().unwrap().join().unwrap().is_ok());
    }

    #[test]
    fn a_host_that_gave_up_ends_it() {
        let tree = tempfile::tempdir().unwrap();
        let Watching { input, events, ended } = Watching::start(tree.path(), false);
        drop(events);
        let error = ended.unwrap().join().unwrap().unwrap_err();
        assert_eq!(error.code, ErrorCode::Cancelled);
        drop(input);
    }

    #[test]
    fn what_is_not_there_cannot_be_watched() {
        assert_eq!(refusal("watch", json!({"path": "/no/such"})).0, ErrorCode::NotFound);
    }
}
