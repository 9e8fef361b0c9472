//! `sandforge image build`, as its users call it.

#[path = "support/layout.rs"]
mod layout;
mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use support::{Call, Output, engines};
use tempfile::TempDir;

/// A build directory upon an image of busybox, and a place for all that is ours.
struct Project {
    directory: TempDir,
    layout: TempDir,
}

impl Project {
    /// None where the host has no busybox.
    fn new() -> Option<Self> {
        let layout = layout::layout()?;
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("tool/src")).unwrap();
        Some(Self { directory, layout })
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join("tool").join(name)
    }

    /// Writes the recipe but for its base.
    fn recipe(&self, text: &str) {
        let base = format!("base = {:?}\n{text}", self.layout.path());
        fs::write(self.path("image.toml"), base).unwrap();
    }

    fn call(&self, arguments: &[&str]) -> Call {
        Call::new(arguments).private_in(self.directory.path()).directory(self.directory.path())
    }

    fn build(&self, arguments: &[&str]) -> Output {
        self.call(&["image", "build", "tool"]).arguments(arguments).output()
    }
}

const RECIPE: &str = r#"
run = ["busybox rm /opt/stays; busybox touch /bin/owned; busybox chmod 4755 /bin/owned; cat /srv/a > /opt/made",
       "echo $GREETING $EXTRA > /opt/said; id -u > /opt/who"]
env = { EXTRA = "world" }
workdir = "/opt"
entrypoint = ["/bin/tool"]
cmd = ["by", "itself"]
labels = { maker = "me" }
[[files]]
from = "src"
to = "/srv"
[[files]]
from = "tool"
to = "/bin/"
"#;

#[test]
fn an_image_is_built_by_its_recipe_runs_and_is_not_built_again() {
    let Some(project) = Project::new() else { return };
    fs::write(project.path("src/a"), "one\n").unwrap();
    symlink("a", project.path("src/link")).unwrap();
    fs::write(project.path("tool"), "#!/bin/sh\necho tool \"$@\"\n").unwrap();
    fs::set_permissions(project.path("tool"), fs::Permissions::from_mode(0o700)).unwrap();
    project.recipe(RECIPE);
    for engine in engines().into_iter().filter(|engine| *engine != "process") {
        let built = project.build(&["--engine", engine, "--json", "--no-cache"]).exits(0).json();
        assert_eq!(built["name"], "docker.io/library/tool:latest");
        assert_eq!(built["steps"].as_array().unwrap().len(), 3);
        let line = "cat /srv/link /opt/made /opt/said /opt/who; ls /opt; pwd; /bin/tool x";
        let run = ["-q", "run", "--engine", engine, "--image", "tool", "--", "sh", "-c", line];
        project
            .call(&run)
            .output()
            .exits(0)
            .prints("one\none\nhello world\n0\ncomes\nmade\nsaid\nwho\n/opt\ntool x\n");
    }
    let again = project.build(&["--json"]).exits(0).json();
    let cached = |built: &serde_json::Value| -> Vec<bool> {
        let steps = built["steps"].as_array().unwrap();
        steps.iter().map(|step| step["is_cached"].as_bool().unwrap()).collect()
    };
    assert_eq!(cached(&again), [true, true, true]);
    let inspected = project.call(&["image", "inspect", "tool"]).output().exits(0).json();
    assert_eq!(inspected["digest"], again["digest"]);
    assert_eq!(inspected["config"]["entrypoint"][0], "/bin/tool");
    assert_eq!(inspected["config"]["labels"]["maker"], "me");

    fs::write(project.path("src/a"), "two\n").unwrap();
    let changed = project.build(&["--json", "-t", "changed:2"]).exits(0).json();
    assert_eq!(cached(&changed), [false, false, false]);
    assert_eq!(changed["name"], "docker.io/library/changed:2");
    unpacks(&project);
    project.call(&["image", "prune"]).output().exits(0);
    assert_eq!(cached(&project.build(&["--json"]).exits(0).json()), [false, false, false]);
}

/// What is exported is what umoci and skopeo take for an image.
fn unpacks(project: &Project) {
    let directory = project.directory.path();
    project.call(&["image", "export", "changed:2", "out.tar"]).output().exits(0);
    let tool = |program: &str, arguments: &[&str]| {
        let done = Command::new(program).args(arguments).current_dir(directory).output();
        match done {
            Ok(done) => {
                assert!(done.status.success(), "{program}: {done:?}");
                true
            }
            Err(error) => {
                eprintln!("not run: {program}: {error}; install {program}");
                false
            }
        }
    };
    let copy = ["--insecure-policy", "copy", "--quiet", "oci-archive:out.tar", "oci:out:changed"];
    if !tool("skopeo", &copy)
        || !tool("umoci", &["unpack", "--rootless", "--image", "out:changed", "bundle"])
    {
        return;
    }
    let root = directory.join("bundle/rootfs");
    assert_eq!(fs::read_to_string(root.join("opt/made")).unwrap(), "two\n");
    assert_eq!(fs::read_link(root.join("srv/link")).unwrap(), Path::new("a"));
    assert!(!root.join("opt/stays").exists() && root.join("opt/comes").exists());
    assert_eq!(fs::metadata(root.join("bin/owned")).unwrap().mode() & 0o7777, 0o4755);
    assert!(!root.join("etc/resolv.conf").exists() && !root.join("workspace").exists());
}

#[test]
fn a_command_of_a_recipe_that_fails_is_told_from_a_failure_of_ours() {
    let Some(project) = Project::new() else { return };
    let build = |text: &str| {
        project.recipe(text);
        project.build(&[])
    };
    build("run = [\"echo so; echo far >&2; exit 7\"]")
        .exits(4)
        .says("ended with status 7")
        .says("far");
    build("run = 5").exits(2).says("run");
    build("[packages]\napt = [\"--yes\"]").exits(2).says("packages.apt");
    build("files = [{ from = \"src/not\", to = \"/x\" }]").exits(1).says("no such file");
    fs::write(project.path("image.toml"), "base = \"nowhere\"").unwrap();
    project.build(&[]).exits(3).says("nowhere");
    project.call(&["image", "build", "./not-there"]).output().exits(2).says("no directory");
    project.call(&["image", "build", "not-there"]).output().exits(3).says("no recipe");
    project.call(&["image", "build", "base", "-t", "x"]).output().exits(2).says("--tag");
}

#[test]
fn nothing_outside_of_the_build_directory_goes_into_an_image() {
    let Some(project) = Project::new() else { return };
    let secret = project.directory.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let source = "files = [{ from = \"src\", to = \"/srv\" }]";
    let refused = |text: &str, says: &str| {
        project.recipe(text);
        project.build(&[]).exits(1).says(says);
    };
    symlink("../../secret", project.path("src/out")).unwrap();
    refused(source, "link out of");
    fs::remove_file(project.path("src/out")).unwrap();
    symlink(&secret, project.path("src/out")).unwrap();
    refused(source, "link out of");
    fs::remove_file(project.path("src/out")).unwrap();
    symlink("..", project.path("up")).unwrap();
    refused("files = [{ from = \"up/secret\", to = \"/srv/x\" }]", "no such file");
    refused("files = [{ from = \"up\", to = \"/srv/x\" }]", "link out of");
    let fifo = project.path("src/fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    refused(source, "a FIFO");
    project.recipe("files = [{ from = \"../secret\", to = \"/srv/x\" }]");
    project.build(&[]).exits(2).says("build directory");
}

#[test]
fn an_image_s_own_command_and_user_count() {
    let Some(project) = Project::new() else { return };
    fs::write(project.path("src/passwd"), "root:x:0:0::/:/bin/sh\nme:x:77:78::/home:/bin/sh\n")
        .unwrap();
    let recipe = "files = [{ from = \"src/passwd\", to = \"/etc/\" }]\nworkdir = \"/made\"\n\
        entrypoint = [\"/bin/sh\", \"-c\"]\ncmd = [\"id -u; id -g; busybox stat -c %u:%g /workspace /workspace/a\"]";
    project.recipe(&format!("{recipe}\nuser = \"me\""));
    project.build(&[]).exits(0);
    fs::write(project.path("src/a"), "").unwrap();
    let source = project.path("src");
    let engine = engines().into_iter().rfind(|engine| *engine != "process");
    let Some(engine) = engine else { return };
    let run = |more: &[&str]| {
        let call = project.call(&["-q", "run", "--engine", engine, "--image", "tool"]);
        call.arguments(more).output()
    };
    run(&["--mount", &format!("{}:/workspace", source.display())])
        .exits(0)
        .prints("77\n78\n77:78\n77:78\n");
    run(&["--", "busybox", "stat", "-c", "%u:%g", "/made"]).exits(0).prints("77:78\n");
    run(&["--entrypoint", "--", "echo with"]).exits(0).prints("with\n");
    run(&["--user", "0", "--", "id", "-u"]).exits(0).prints("0\n");

    project.recipe(&format!("{recipe}\nuser = \"root\""));
    project.build(&[]).exits(0);
    run(&["id", "-u"]).exits(0).prints("1000\n");
    project.recipe("user = \"nobody-here\"");
    project.build(&[]).exits(0);
    run(&["true"]).exits(125).says("nobody-here");
    run(&[]).exits(125).says("says none either");
}

#[test]
fn two_builds_of_one_recipe_do_its_steps_once() {
    let Some(project) = Project::new() else { return };
    project.recipe("run = [\"echo once > /opt/once\"]");
    let begin = || project.call(&["image", "build", "tool", "--json"]).spawn();
    let both = [begin(), begin()].map(|child| child.wait_with_output().unwrap());
    let made = both.iter().filter(|output| {
        assert!(output.status.success(), "{output:?}");
        let built: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        built["steps"][0]["is_cached"] == false
    });
    assert_eq!(made.count(), 1);
}
