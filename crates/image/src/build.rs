//! Recipes of the user's own: what an image is made of, and the steps that make it.
//!
//! Nothing here runs or writes anything. A step is known by what it does and by all that came before
//! it, so that what was made once is found again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::digest;
use crate::layers::ImageConfig;
use crate::source::ImageRef;

/// Changes when the same step would give another layer.
const BUILDER_VERSION: u32 = 1;
/// What a recipe is called in a directory.
pub const FILE_NAME: &str = "image.toml";
/// More is no recipe.
const MAX_TEXT: u64 = 1 << 20;
const MAX_STEPS: usize = 100;
const MAX_PACKAGES: usize = 1000;

/// Why a recipe cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// It could not be read.
    #[error("cannot read the recipe {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not what a recipe looks like.
    #[error("the recipe {}: {source}", .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: toml::de::Error,
    },
    /// A value in it cannot be used.
    #[error("the recipe {}: {what}: {why}", .path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Which value.
        what: String,
        /// What is wrong with it.
        why: String,
    },
}

/// How an image is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What the image is called, where the recipe says so.
    pub name: Option<String>,
    /// What it starts from; a relative path is one below the build directory.
    pub base: ImageRef,
    /// What is done, in this order.
    pub steps: Vec<Step>,
    /// What the recipe says about what runs in the image.
    pub says: Says,
}

/// What a recipe says about what runs in its image, over what the base says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Says {
    /// Variables.
    pub env: BTreeMap<String, String>,
    /// `NAME`, `UID`, or either with a group after a colon.
    pub user: Option<String>,
    /// An absolute path.
    pub workdir: Option<String>,
    /// What every command is an argument of.
    pub entrypoint: Option<Vec<String>>,
    /// What runs when nothing is said.
    pub cmd: Option<Vec<String>>,
    /// Notes.
    pub labels: BTreeMap<String, String>,
}

/// One thing that is done; it becomes one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Packages are installed.
    Packages(Manager, Vec<String>),
    /// Files of the build directory are put into the image.
    Files(Vec<Files>),
    /// A line for `/bin/sh`.
    Run(String),
}

/// What installs packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// Debian's.
    Apt,
    /// Alpine's.
    Apk,
    /// Fedora's.
    Dnf,
    /// Python's.
    Pip,
    /// Node's.
    Npm,
}

/// What of the build directory goes where.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Files {
    /// A file or directory below the build directory.
    pub from: String,
    /// An absolute path in the image. With a slash at its end, and for a file, the directory that it
    /// goes into.
    pub to: String,
    /// Permission bits of files; by default 0755 for those that can be run, 0644 for others.
    pub mode: Option<u16>,
    /// `UID` or `UID:GID`, in numbers; root by default.
    pub owner: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    name: Option<String>,
    base: String,
    #[serde(default)]
    packages: Packages,
    #[serde(default)]
    files: Vec<Files>,
    #[serde(default)]
    run: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    user: Option<String>,
    workdir: Option<String>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Packages {
    apt: Vec<String>,
    apk: Vec<String>,
    dnf: Vec<String>,
    pip: Vec<String>,
    npm: Vec<String>,
}

impl Plan {
    /// Reads a recipe.
    ///
    /// # Errors
    /// With what is wrong with it, and where.
    pub fn read(path: &Path) -> Result<Self, BuildError> {
        let read = |source| BuildError::Read { path: path.to_owned(), source };
        let mut text = String::new();
        let file = File::open(path).map_err(read)?;
        file.take(MAX_TEXT + 1).read_to_string(&mut text).map_err(read)?;
        if text.len() as u64 > MAX_TEXT {
            return Err(read(std::io::Error::other("it is longer than 1 MiB")));
        }
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, BuildError> {
        let text: Text = toml::from_str(text)
            .map_err(|source| BuildError::Parse { path: path.to_owned(), source })?;
        let refuse = |what: &str, why: &str| {
            Err(BuildError::Value { path: path.to_owned(), what: what.into(), why: why.into() })
        };
        if text.base.is_empty() {
            return refuse("base", "is empty");
        }
        let Packages { apt, apk, dnf, pip, npm } = text.packages;
        let mut steps = Vec::new();
        for (manager, names) in [
            (Manager::Apt, apt),
            (Manager::Apk, apk),
            (Manager::Dnf, dnf),
            (Manager::Pip, pip),
            (Manager::Npm, npm),
        ] {
            let what = format!("packages.{}", manager.as_str());
            if names.len() > MAX_PACKAGES {
                return refuse(&what, "has over 1000 names");
            }
            if let Some(wrong) = names.iter().find(|name| !is_package(name)) {
                return refuse(&what, &format!("{wrong:?} is no name of a package"));
            }
            if !names.is_empty() {
                steps.push(Step::Packages(manager, names));
            }
        }
        for files in &text.files {
            if let Err(why) = files.check() {
                return refuse("files", &why);
            }
        }
        if !text.files.is_empty() {
            steps.push(Step::Files(text.files));
        }
        steps.extend(text.run.into_iter().map(Step::Run));
        if steps.len() > MAX_STEPS {
            return refuse("run", "there are over 100 steps; join some with &&");
        }
        if let Some(name) = text.env.keys().find(|name| !is_variable(name)) {
            return refuse("env", &format!("{name:?} cannot be the name of a variable"));
        }
        if text.workdir.as_ref().is_some_and(|path| !path.starts_with('/')) {
            return refuse("workdir", "is not absolute");
        }
        if text.user.as_deref() == Some("") {
            return refuse("user", "is empty");
        }
        let says = Says {
            env: text.env,
            user: text.user,
            workdir: text.workdir,
            entrypoint: text.entrypoint,
            cmd: text.cmd,
            labels: text.labels,
        };
        if says.texts().any(|text| text.contains('\0'))
            || steps.iter().any(|step| matches!(step, Step::Run(line) if line.contains('\0')))
        {
            return refuse("a text", "has a NUL character");
        }
        let base = match text.base.parse() {
            Ok(base) => base,
            Err(never) => match never {},
        };
        Ok(Self { name: text.name, base, steps, says })
    }
}

impl Says {
    fn texts(&self) -> impl Iterator<Item = &String> {
        let pairs = self.env.iter().chain(&self.labels).flat_map(|(name, value)| [name, value]);
        let lists = self.entrypoint.iter().chain(&self.cmd).flatten();
        pairs.chain(lists).chain(&self.user).chain(&self.workdir)
    }

    /// What counts while the image is made: variables and the working directory.
    pub fn for_steps(&self, base: &ImageConfig) -> ImageConfig {
        let mut config = base.clone();
        for (name, value) in &self.env {
            match config.env.iter_mut().find(|(known, _)| known == name) {
                Some(known) => known.1.clone_from(value),
                None => config.env.push((name.clone(), value.clone())),
            }
        }
        if let Some(workdir) = &self.workdir {
            config.working_dir = Some(workdir.clone());
        }
        config
    }

    /// What the image says in the end.
    pub fn over(&self, base: &ImageConfig) -> ImageConfig {
        let mut config = self.for_steps(base);
        config.user = self.user.clone().or(config.user);
        if let Some(entrypoint) = &self.entrypoint {
            config.entrypoint.clone_from(entrypoint);
            // What the base would run was meant for its own.
            config.cmd = Vec::new();
        }
        if let Some(cmd) = &self.cmd {
            config.cmd.clone_from(cmd);
        }
        config.labels.extend(self.labels.clone());
        config
    }
}

impl Manager {
    /// The program's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Apt => "apt",
            Self::Apk => "apk",
            Self::Dnf => "dnf",
            Self::Pip => "pip",
            Self::Npm => "npm",
        }
    }

    /// Installs its arguments, and leaves nothing that only the next installation would need.
    fn script(self) -> &'static str {
        match self {
            Self::Apt => {
                "set -e\nexport DEBIAN_FRONTEND=noninteractive\napt-get -q update\n\
                 apt-get -q install -y --no-install-recommends -- \"$@\"\n\
                 rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb \
                 /var/log/apt /var/log/dpkg.log\n"
            }
            Self::Apk => "exec apk add --no-cache -- \"$@\"\n",
            Self::Dnf => {
                "set -e\ndnf install -y --setopt=install_weak_deps=False -- \"$@\"\ndnf clean all\n"
            }
            Self::Pip => {
                "export PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_CACHE_DIR=1 \
                 PIP_DISABLE_PIP_VERSION_CHECK=1\nexec python3 -m pip install -- \"$@\"\n"
            }
            Self::Npm => {
                "export npm_config_cache=/tmp/npm\n\
                 exec npm install --global --no-fund --no-audit -- \"$@\"\n"
            }
        }
    }
}

impl Step {
    /// In a few words, for people.
    pub fn title(&self) -> String {
        match self {
            Self::Packages(manager, names) => format!("{}: {}", manager.as_str(), names.join(" ")),
            Self::Files(files) => {
                let lead = |one: &Files| format!("{} to {}", one.from, one.to);
                format!("files: {}", files.iter().map(lead).collect::<Vec<_>>().join(", "))
            }
            Self::Run(line) => format!("run: {line}"),
        }
    }

    /// What runs in the sandbox, where anything does.
    pub fn command(&self) -> Option<Vec<String>> {
        let sh = |line: &str| vec!["/bin/sh".to_owned(), "-c".to_owned(), line.to_owned()];
        match self {
            Self::Packages(manager, names) => {
                let mut words = sh(manager.script());
                words.push("sh".to_owned());
                words.extend(names.iter().cloned());
                Some(words)
            }
            Self::Files(_) => None,
            Self::Run(line) => Some(sh(line)),
        }
    }

    /// What this step's result is known by: all that came before, what it does, and of files what is in
    /// them (`contents`, a digest).
    pub fn key(&self, parent: &str, contents: &str) -> String {
        let words = self.command().unwrap_or_default();
        digest::of(format!("step {BUILDER_VERSION} {parent} {words:?} {contents}").as_bytes())
    }
}

impl Files {
    fn check(&self) -> Result<(), String> {
        let Self { from, to, mode, .. } = self;
        if from.is_empty() || from.starts_with('/') || from.split('/').any(|name| name == "..") {
            return Err(format!("from = {from:?} does not stay in the build directory"));
        }
        if !to.starts_with('/') || to.split('/').any(|name| name == "..") || to.contains('\0') {
            return Err(format!("to = {to:?} is not absolute"));
        }
        if mode.is_some_and(|mode| mode > 0o7777) {
            return Err(format!("mode of {from:?} is not one: write 0o755"));
        }
        self.owner().map(drop)
    }

    /// Whose they are in the image: user and group.
    ///
    /// # Errors
    /// Where it is no number.
    pub fn owner(&self) -> Result<(u32, u32), String> {
        let Some(owner) = &self.owner else { return Ok((0, 0)) };
        let (user, group) = owner.split_once(':').unwrap_or((owner, owner));
        match (user.parse(), group.parse()) {
            (Ok(user), Ok(group)) => Ok((user, group)),
            _ => Err(format!("owner = {owner:?}: write numbers, as in \"1000:1000\"")),
        }
    }
}

/// What no shell and no package manager takes for anything but a name.
fn is_package(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._+-@/:=<>~!,[]^*".contains(&byte);
    (1..=200).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('-')
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Plan, BuildError> {
        Plan::parse(text, Path::new("image.toml"))
    }

    #[test]
    fn a_recipe_becomes_steps_in_the_order_packages_files_commands() {
        let plan = parse(
            r#"
            name = "tool"
            base = "base"
            run = ["make", "make install"]
            env = { A = "1" }
            [packages]
            pip = ["six==1.16"]
            apt = ["git", "g++"]
            [[files]]
            from = "src"
            to = "/src"
            "#,
        )
        .unwrap();
        let titles: Vec<String> = plan.steps.iter().map(Step::title).collect();
        assert_eq!(
            titles,
            [
                "apt: git g++",
                "pip: six==1.16",
                "files: src to /src",
                "run: make",
                "run: make install"
            ]
        );
        assert_eq!(plan.base, ImageRef::Name("base".into()));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_place() {
        for (text, says) in [
            ("base = \"\"", "base"),
            ("base = \"b\"\nrum = []", "rum"),
            ("base = \"b\"\npackages.apt = [\"-o\"]", "packages.apt"),
            ("base = \"b\"\npackages.pip = [\"a; rm\"]", "packages.pip"),
            ("base = \"b\"\nfiles = [{from = \"../x\", to = \"/x\"}]", "build directory"),
            ("base = \"b\"\nfiles = [{from = \"x\", to = \"x\"}]", "absolute"),
            ("base = \"b\"\nfiles = [{from = \"x\", to = \"/x\", owner = \"me\"}]", "numbers"),
            ("base = \"b\"\nfiles = [{from = \"x\", to = \"/x\", mode = 0o17777}]", "mode"),
            ("base = \"b\"\nworkdir = \"x\"", "workdir"),
            ("base = \"b\"\nenv = {\"A=B\" = \"x\"}", "env"),
            ("base = \"b\"\ncmd = [\"a\\u0000b\"]", "NUL"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn a_step_is_another_when_what_came_before_or_what_is_in_its_files_is() {
        let run = Step::Run("make".into());
        assert_eq!(run.key("a", ""), run.key("a", ""));
        assert_ne!(run.key("a", ""), run.key("b", ""));
        assert_ne!(run.key("a", ""), Step::Run("make all".into()).key("a", ""));
        let files = Step::Files(Vec::new());
        assert_ne!(files.key("a", "1"), files.key("a", "2"));
        let packages = |names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            Step::Packages(Manager::Apt, names).key("a", "")
        };
        assert_ne!(packages(&["a", "b"]), packages(&["a b"]));
    }

    #[test]
    fn an_entrypoint_of_its_own_does_not_get_the_command_of_the_base() {
        let base = ImageConfig {
            entrypoint: vec!["/a".into()],
            cmd: vec!["x".into()],
            env: vec![("A".into(), "1".into())],
            ..ImageConfig::default()
        };
        let says = Says { entrypoint: Some(vec!["/b".into()]), ..Says::default() };
        assert!(says.over(&base).cmd.is_empty());
        let says = Says { env: BTreeMap::from([("A".into(), "2".into())]), ..Says::default() };
        assert_eq!(says.over(&base).env, [("A".to_owned(), "2".to_owned())]);
        assert_eq!(says.over(&base).cmd, ["x"]);
    }
}
