//! A root file system from Debian's packages, straight into an image.
//!
//! mmdebstrap installs into a temporary directory and writes it as tar to a pipe; the image grows
//! at the other end, so the root never lies on the disk twice.

use crate::apt::{KEYRING, Mirrors, Settings};
use crate::erofs::{Limits, Summary, WriteError, Writer};
use crate::progress::{Progress, Stage, Step};
use crate::recipe::Recipe;
use crate::tar::{Entry, Kind, Reader, TarError, TarPath};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Lines of mmdebstrap's own words that go with an error.
const LAST_WORDS: usize = 12;
/// `/var/lib/dpkg/status` of a desktop has 6 MiB.
const MAX_STATUS: usize = 64 << 20;
/// The day on which every password "was changed", 2024-10-04: the real day would make two images
/// of the same packages differ.
const PASSWORD_DAY: &str = "20000";

/// Why a root file system could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootstrapError {
    /// A program or file that is needed is not installed.
    #[error("{what} is needed to build images; install it: apt-get install {package}")]
    Missing {
        /// What is missing.
        what: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// Without root, user ids of its own are needed for the owners of files.
    #[error(
        "{user} has no subordinate user ids, which building an image without root takes; \
         add them: sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"
    )]
    NoSubordinateIds {
        /// Who asked.
        user: String,
    },
    /// mmdebstrap could not be started.
    #[error("cannot start mmdebstrap: {0}")]
    Start(#[source] io::Error),
    /// mmdebstrap gave up.
    #[error("mmdebstrap failed ({status}); its last words:\n{words}")]
    Failed {
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said.
        words: String,
    },
    /// The image could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The installed system lacks a file that every Debian has.
    #[error("the installed system has no /{0}")]
    NoSuchFile(&'static str),
}

impl From<TarError> for BootstrapError {
    fn from(error: TarError) -> Self {
        Self::Write(error.into())
    }
}

/// An installed package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

enum Event {
    Said(String),
    Step(Step),
}

/// Installs what `recipe` asks for and writes it to `image`.
pub(crate) fn build(
    recipe: &Recipe,
    image: File,
    limits: Limits,
    progress: &mut dyn Progress,
) -> Result<(Summary, Vec<Package>), BootstrapError> {
    preflight()?;
    let mirrors = Mirrors::of_this_machine(&recipe.suite);
    run(command(recipe, &mirrors), recipe, &mirrors, image, limits, progress)
}

fn run(
    mut command: Command,
    recipe: &Recipe,
    mirrors: &Mirrors,
    image: File,
    limits: Limits,
    progress: &mut dyn Progress,
) -> Result<(Summary, Vec<Package>), BootstrapError> {
    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let list = mirrors.list(&recipe.suite, &recipe.components);
    let mut child = command.spawn().map_err(BootstrapError::Start)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A child that does not read any more has failed, and says why itself.
        let _ = stdin.write_all(list.as_bytes());
    }
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let mut words = VecDeque::new();
    let made = std::thread::scope(|scope| {
        let (events, received) = mpsc::channel();
        if let Some(stderr) = stderr {
            let events = events.clone();
            scope.spawn(move || {
                let mut stderr = BufReader::new(stderr);
                let mut line = Vec::new();
                while stderr.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                    let said = String::from_utf8_lossy(&line).trim_end().to_owned();
                    line.clear();
                    // The receiver outlives this thread.
                    let _ = events.send(Event::Said(said));
                }
            });
        }
        // Owns the pipe: when it gives up, mmdebstrap notices and cleans up behind itself.
        let writer = scope.spawn(move || {
            let tar: Box<dyn Read> = match stdout {
                Some(stdout) => Box::new(stdout),
                None => Box::new(io::empty()),
            };
            write(recipe, mirrors, started, tar, image, limits, |done| {
                let _ = events.send(Event::Step(Stage::Convert.at(done, None)));
            })
        });
        for event in received {
            match event {
                Event::Step(step) => progress.step(step),
                Event::Said(line) => {
                    if let Some(stage) = stage_of(&line) {
                        progress.step(stage.begins());
                    }
                    words.push_back(line);
                    if words.len() > LAST_WORDS {
                        words.pop_front();
                    }
                }
            }
        }
        writer.join()
    });
    let status = child.wait().map_err(BootstrapError::Start)?;
    let made = made.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    match made {
        // An archive that is cut short is the consequence; what mmdebstrap said is the cause.
        Err(BootstrapError::Write(WriteError::Archive(TarError::Truncated { .. }))) | Ok(_)
            if !status.success() =>
        {
            Err(BootstrapError::Failed { status, words: Vec::from(words).join("\n") })
        }
        other => other,
    }
}

/// Whether this machine and user can build images; the error says what to install. Asked before
/// the first package is fetched, and by `sandforge doctor`.
pub fn preflight() -> Result<(), BootstrapError> {
    let in_path = |program: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
    };
    let need = |there: bool, what, package| match there {
        true => Ok(()),
        false => Err(BootstrapError::Missing { what, package }),
    };
    need(in_path("mmdebstrap"), "mmdebstrap", "mmdebstrap")?;
    need(
        Path::new(KEYRING).is_file(),
        "the keyring of Debian's archive",
        "debian-archive-keyring",
    )?;
    let uid = rustix::process::geteuid();
    if !uid.is_root() {
        need(in_path("newuidmap"), "newuidmap", "uidmap")?;
        let user = std::env::var("USER").unwrap_or_else(|_| uid.as_raw().to_string());
        let ids = fs::read_to_string("/etc/subuid").unwrap_or_default();
        let id = uid.as_raw().to_string();
        if !ids.lines().filter_map(|l| l.split(':').next()).any(|who| who == user || who == id) {
            return Err(BootstrapError::NoSubordinateIds { user });
        }
    }
    Ok(())
}

fn command(recipe: &Recipe, mirrors: &Mirrors) -> Command {
    let settings = Settings::of_this_machine();
    let mut command = Command::new("mmdebstrap");
    let root = rustix::process::geteuid().is_root();
    command
        .arg(if root { "--mode=root" } else { "--mode=unshare" })
        .args(["--variant=minbase", "--format=tar"])
        .arg(format!("--components={}", recipe.components.join(",")))
        .arg(format!("--include={}", recipe.packages.join(",")))
        // The root lives for a minute: waiting for the disk after each package takes two more.
        .arg("--dpkgopt=force-unsafe-io");
    for (rule, patterns) in [("exclude", &recipe.drop), ("include", &recipe.keep)] {
        for pattern in patterns.iter().filter(|pattern| pattern.starts_with("/usr/share/")) {
            command.arg(format!("--dpkgopt=path-{rule}={pattern}"));
        }
    }
    for option in &settings.options {
        command.arg(format!("--aptopt={option}"));
    }
    for (name, value) in &settings.proxies {
        if std::env::var_os(name).is_none() {
            command.env(name, value);
        }
    }
    command.args([&recipe.suite, "-"]);
    if !mirrors.list(&recipe.suite, &recipe.components).is_empty() {
        // On standard input, not as arguments: a mirror can have a password in it.
        command.arg("-");
    }
    if !root {
        // Often a directory that subordinate user ids may not enter.
        command.env_remove("TMPDIR");
    }
    command
        .env("LC_ALL", "C.UTF-8")
        // Python would make its compiled files depend on hashes of their sources, which it then
        // reads at every start. Times are evened out by the writer instead.
        .env_remove("SOURCE_DATE_EPOCH")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn stage_of(line: &str) -> Option<Stage> {
    let said = line.strip_prefix("I: ")?;
    [
        ("running apt-get update", Stage::Index),
        ("downloading packages", Stage::Download),
        ("extracting archives", Stage::Unpack),
        ("installing ", Stage::Install),
        ("creating tarball", Stage::Convert),
    ]
    .into_iter()
    .find_map(|(start, stage)| said.starts_with(start).then_some(stage))
}

fn write(
    recipe: &Recipe,
    mirrors: &Mirrors,
    started: u64,
    tar: impl Read,
    image: File,
    limits: Limits,
    mut wrote: impl FnMut(u64),
) -> Result<(Summary, Vec<Package>), BootstrapError> {
    let mut writer = Writer::new(image, limits)?;
    let mut archive = Reader::new(tar);
    let mut told = 0;
    while let Some(entry) = archive.next_entry()? {
        if recipe.wants(&entry.path) {
            writer.add(entry, &mut archive.contents())?;
        }
        if archive.offset() - told > 1 << 20 {
            told = archive.offset();
            wrote(told);
        }
    }
    writer.settle_times(i64::try_from(started).unwrap_or(i64::MAX));
    for (entry, contents) in &recipe.overlay {
        writer.add(entry.clone(), &mut &contents[..])?;
    }
    let list = mirrors.without_credentials().list(&recipe.suite, &recipe.components);
    if !list.is_empty() {
        put(&mut writer, "etc/apt/sources.list", 0o644, 0, &list)?;
    }
    add_user(&mut writer, recipe)?;
    let status = text_of(&mut writer, "var/lib/dpkg/status")?;
    let summary = writer.finish()?.1;
    Ok((summary, packages(&status)))
}

/// Appends to the four files that make a user; `useradd` would want to run inside the root.
fn add_user(writer: &mut Writer<File>, recipe: &Recipe) -> Result<(), BootstrapError> {
    let user = &recipe.user;
    let (name, id) = (&user.name, user.id);
    const SHADOW_GROUP: u32 = 42;
    let lines = [
        ("etc/passwd", 0o644, 0, format!("{name}:x:{id}:{id}::{}:{}\n", user.home, user.shell)),
        ("etc/group", 0o644, 0, format!("{name}:x:{id}:\n")),
        ("etc/shadow", 0o640, SHADOW_GROUP, format!("{name}:!::0:99999:7:::\n")),
        ("etc/gshadow", 0o640, SHADOW_GROUP, format!("{name}:!::\n")),
    ];
    for (path, mode, group, line) in lines {
        let mut text = text_of(writer, path)? + &line;
        if path == "etc/shadow" {
            text = text.lines().map(on_password_day).collect();
        }
        put(writer, path, mode, group, &text)?;
    }
    Ok(())
}

fn on_password_day(line: &str) -> String {
    let mut fields: Vec<&str> = line.split(':').collect();
    if let Some(day) = fields.get_mut(2) {
        *day = PASSWORD_DAY;
    }
    fields.join(":") + "\n"
}

fn text_of(writer: &mut Writer<File>, path: &'static str) -> Result<String, BootstrapError> {
    let bytes = writer.read(&TarPath::parse(path.as_bytes())?, MAX_STATUS)?;
    bytes
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .ok_or(BootstrapError::NoSuchFile(path))
}

fn put(
    writer: &mut Writer<File>,
    path: &str,
    mode: u16,
    group: u32,
    text: &str,
) -> Result<(), BootstrapError> {
    let entry = Entry::new(path, Kind::File { size: text.len() as u64 }, mode)?;
    Ok(writer.add(entry.owned_by(0, group), &mut text.as_bytes())?)
}

/// The installed packages according to dpkg's database.
pub(crate) fn packages(status: &str) -> Vec<Package> {
    let mut packages: Vec<Package> = status
        .split("\n\n")
        .filter_map(|stanza| {
            let field = |key: &str| {
                stanza.lines().find_map(|line| line.strip_prefix(key)).map(|v| v.trim().to_owned())
            };
            (field("Status:")? == "install ok installed").then_some(())?;
            Some(Package { name: field("Package:")?, version: field("Version:")? })
        })
        .collect();
    packages.sort();
    packages
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a shell script in the place of mmdebstrap.
    fn run_script(script: &str) -> Result<Vec<Package>, BootstrapError> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let recipe = Recipe::named("base").unwrap();
        let image = tempfile::tempfile().unwrap();
        run(command, &recipe, &Mirrors::default(), image, Limits::default(), &mut ())
            .map(|(_, packages)| packages)
    }

    const ROOT: &str = "d=$(mktemp -d); cd $d; mkdir -p etc var/lib/dpkg; \
        touch etc/passwd etc/group etc/shadow etc/gshadow; \
        printf 'Package: a\\nStatus: install ok installed\\nVersion: 1\\n' > var/lib/dpkg/status; \
        tar cf - .; rm -r $d;";

    #[test]
    fn an_installed_root_becomes_an_image_with_its_packages() {
        let packages = run_script(ROOT).unwrap();
        assert_eq!(packages, [Package { name: "a".to_owned(), version: "1".to_owned() }]);
    }

    #[test]
    fn what_mmdebstrap_said_last_explains_its_failure() {
        let error = run_script("echo 'E: no such suite' >&2; exit 3").unwrap_err();
        assert!(matches!(error, BootstrapError::Failed { .. }), "{error}");
        assert!(error.to_string().contains("E: no such suite"), "{error}");
    }

    #[test]
    fn a_failure_after_a_whole_archive_counts() {
        let error = run_script(&format!("{ROOT} exit 1")).unwrap_err();
        assert!(matches!(error, BootstrapError::Failed { .. }), "{error}");
    }

    #[test]
    fn a_root_that_is_no_debian_is_refused() {
        let error = run_script("d=$(mktemp -d); tar cC $d .; rmdir $d").unwrap_err();
        assert!(matches!(error, BootstrapError::NoSuchFile("etc/passwd")), "{error}");
    }

    #[test]
    fn installed_packages_are_listed_and_removed_ones_are_not() {
        let status = "Package: b\nStatus: install ok installed\nVersion: 2\n\n\
                      Package: a\nStatus: deinstall ok config-files\nVersion: 1\n";
        let expected = [Package { name: "b".to_owned(), version: "2".to_owned() }];
        assert_eq!(packages(status), expected);
    }

    #[test]
    fn the_words_of_mmdebstrap_become_stages() {
        assert_eq!(stage_of("I: downloading packages with apt..."), Some(Stage::Download));
        assert_eq!(stage_of("W: downloading packages is fun"), None);
    }

    #[test]
    fn passwords_change_on_the_same_day_everywhere() {
        assert_eq!(on_password_day("root:*:20778:0:99999:7:::"), "root:*:20000:0:99999:7:::\n");
    }
}
