//! What is refused before a machine is started, with what words and what exit status. Each test
//! is named in docs/bad-input.md.

mod support;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use support::{Call, sandforge};
use tempfile::{TempDir, tempdir};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A directory with this file in it.
fn file(name: &str, content: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let directory = tempdir().unwrap();
    let path = directory.path().join(name);
    fs::write(&path, content).unwrap();
    (directory, path)
}

/// The smallest archive that is an image: a root with one empty directory.
fn tiny_root() -> (TempDir, PathBuf) {
    let mut header = [0_u8; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"etc/");
    put(100, b"0000755\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, b"00000000000\0");
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"5");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    file("root.tar", [&header[..], &[0; 1024]].concat())
}

#[test]
fn an_unknown_flag_is_not_taken_for_the_command() {
    sandforge(["run", "--memroy", "2g", "--", "true"])
        .exits(125)
        .says("sandforge: unexpected argument '--memroy' found")
        .says("'--memory'");
}

#[test]
fn a_usage_error_is_125_for_run_and_2_elsewhere() {
    sandforge(["run"]).exits(125).says("there is no command to run");
    sandforge(["exec", "box"]).exits(125);
    sandforge(["image", "frobnicate"]).exits(2).says("unrecognized subcommand 'frobnicate'");
}

#[test]
fn an_error_with_json_is_one_object_on_stdout() {
    let output = sandforge(["run", "--json", "-e", "SANDFORGE_TEST_NOT_SET", "true"]).exits(125);
    assert_eq!(output.stderr, "");
    assert_eq!(output.json()["error"]["kind"], json!("usage"));
    let output = sandforge(["run", "--json", "--nope", "true"]).exits(125);
    assert_eq!(output.json()["error"]["kind"], json!("usage"));
}

#[test]
fn a_variable_that_is_not_set_is_an_error() {
    sandforge(["run", "-e", "SANDFORGE_TEST_NOT_SET", "true"])
        .exits(125)
        .says("-e: SANDFORGE_TEST_NOT_SET is not set in your environment");
}

#[test]
fn a_variable_without_a_name_is_an_error_that_hides_the_value() {
    let output = sandforge(["run", "-e", "=canary", "true"]).exits(125);
    let output = output.says("-e: a variable has no name");
    assert!(!output.stderr.contains("canary"), "{output}");
}

#[test]
fn an_environment_file_that_is_not_there_is_an_error() {
    sandforge(["run", "--env-file", "/nonexistent/env", "true"])
        .exits(125)
        .says("cannot read the environment file \"/nonexistent/env\"")
        .says("cause: No such file or directory");
}

#[test]
fn a_nul_in_an_environment_file_is_told_with_its_line() {
    let (_directory, path) = file("env", b"A=1\nB=x\0y\n");
    sandforge(["run", "--env-file", text(&path), "true"])
        .exits(125)
        .says("env\" line 2: the value of B has a NUL byte in it");
}

#[test]
fn a_shells_export_in_an_environment_file_is_explained() {
    let (_directory, path) = file("env", "export TOKEN=canary\n");
    let output = sandforge(["run", "--env-file", text(&path), "true"]).exits(125);
    let output = output.says("leave out `export`");
    assert!(!output.stderr.contains("canary"), "{output}");
}

#[test]
fn a_size_that_is_none_is_refused() {
    sandforge(["run", "-m", "lots", "true"]).exits(125).says("\"lots\" is not a size");
    sandforge(["run", "-m", "0", "true"]).exits(125).says("\"0\" is not a size");
}

#[test]
fn more_memory_than_this_machine_has_is_refused() {
    sandforge(["run", "-m", "4000g", "true"]).exits(125).says("lower --memory");
}

#[test]
fn memory_that_no_guest_starts_in_is_refused() {
    sandforge(["run", "-m", "16", "true"]).exits(125).says("16 MB of memory are too few");
}

#[test]
fn no_cpu_is_refused() {
    sandforge(["run", "-c", "0", "true"]).exits(125).says("'--cpu <N>'");
}

#[test]
fn a_time_that_is_none_is_refused() {
    sandforge(["run", "--timeout", "soon", "true"]).exits(125).says("\"soon\" is not a time");
    sandforge(["run", "--timeout", "0", "true"]).exits(125).says("\"0\" is not a time");
}

#[test]
fn a_workspace_that_is_not_there_is_refused() {
    sandforge(["run", "-w", "/nonexistent", "true"])
        .exits(125)
        .says("cannot read the workspace \"/nonexistent\"")
        .says("cause: No such file or directory");
}

#[test]
fn a_workspace_that_is_a_file_is_refused() {
    let (_directory, path) = file("a", "");
    sandforge(["run", "-w", text(&path), "true"]).exits(125).says("cause: Not a directory");
}

#[test]
fn a_workspace_that_cannot_be_read_is_refused() {
    // Root reads everything: here only the name can be too long for anyone.
    let name = "x".repeat(300);
    sandforge(["run", "-w", &name, "true"]).exits(125).says("cause: File name too long");
}

#[test]
fn control_characters_in_a_name_do_not_reach_the_terminal() {
    let output = sandforge(["run", "-w", "/\x1b]0;owned\x07", "true"]).exits(125);
    assert!(!output.stderr.contains(['\x1b', '\x07']), "{:?}", output.stderr);
    let output = sandforge(["run", "--\x1b[2Jnope", "true"]).exits(125);
    assert!(!output.stderr.contains('\x1b'), "{:?}", output.stderr);
}

#[test]
fn a_name_that_is_not_utf8_is_told_as_it_can_be() {
    let name = OsStr::from_bytes(b"/nonexistent/\xff");
    sandforge([OsStr::new("run"), OsStr::new("-w"), name, OsStr::new("true")])
        .exits(125)
        .says("\"/nonexistent/\\xFF\"");
}

#[test]
fn a_mount_needs_an_absolute_path_in_the_sandbox() {
    sandforge(["run", "--mount", "data:relative", "true"])
        .exits(125)
        .says("--mount \"data:relative\" is not HOST:GUEST or HOST:GUEST:ro");
}

#[test]
fn a_mount_of_nothing_is_refused() {
    sandforge(["run", "--mount", "/nonexistent:/data", "true"])
        .exits(125)
        .says("cannot read \"/nonexistent\", which --mount names");
}

#[test]
fn results_do_not_go_into_a_directory_with_files() {
    let (directory, _) = file("precious", "");
    sandforge(["run", "--out", text(directory.path()), "true"]).exits(125).says("is not empty");
}

#[test]
fn there_is_nothing_to_sync_back_without_a_workspace() {
    sandforge(["run", "--sync-back", "true"]).exits(125).says("--workspace <DIR");
}

#[test]
fn a_working_directory_in_the_sandbox_is_absolute() {
    sandforge(["run", "--cwd", "src", "true"]).exits(125).says("--cwd \"src\" is not absolute");
}

#[test]
fn a_terminal_and_json_do_not_go_together() {
    sandforge(["run", "-t", "--json", "true"]).exits(125);
}

#[test]
fn an_unknown_image_is_told_with_those_there_are() {
    let call = Call::new(["run", "--image", "nope", "true"]).private();
    call.output().exits(125).says("there is no image \"nope\"").says("base or build");
    Call::new(["image", "rm", "nope"]).private().output().exits(3);
    Call::new(["image", "verify", "nope"]).private().output().exits(3);
    Call::new(["image", "build", "nope"]).private().output().exits(3);
}

#[test]
fn a_file_that_is_no_image_is_refused() {
    let (_directory, path) = file("notes", "This is not a root file system.\n".repeat(100));
    let call = Call::new(["run", "--image", text(&path), "true"]).private();
    call.output().exits(125).says("an image is EROFS, ext4, or a tar archive");
}

#[test]
fn an_image_file_that_is_not_there_is_told() {
    let call = Call::new(["run", "--image", "./nonexistent.img", "true"]).private();
    call.output().exits(125).says("cannot open the image ./nonexistent.img: No such file");
}

#[test]
fn a_file_that_is_no_kernel_is_refused() {
    let (_directory, root) = tiny_root();
    let call = Call::new(["run", "--image", text(&root), "--kernel", text(&root), "true"]);
    call.private().output().exits(125).says("is not a Linux kernel");
}

#[test]
fn an_unknown_engine_is_refused() {
    sandforge(["run", "--engine", "warp", "true"])
        .exits(125)
        .says("there is no engine \"warp\"; `sandforge doctor` lists them");
}

#[test]
fn weaker_isolation_than_asked_for_is_denied() {
    sandforge(["run", "--engine", "qemu", "--min-isolation", "vm", "true"])
        .exits(126)
        .says("no engine on this machine isolates as strongly as vm");
    sandforge(["run", "--engine", "process", "--min-isolation", "emulated", "true"])
        .exits(126)
        .says("no engine on this machine isolates as strongly as emulated");
    sandforge(["run", "--min-isolation", "strong", "true"])
        .exits(125)
        .says("`strong` is not one of vm, emulated, process");
}

#[test]
fn what_a_sandbox_on_the_host_s_kernel_does_not_have_is_refused() {
    for (option, value, why) in [
        ("--image", "base", "its programs are the host's"),
        ("--kernel", "/boot/vmlinuz", "its kernel is the host's"),
        ("--cpu", "1", "its processors are the host's"),
    ] {
        sandforge(["run", "--engine", "process", option, value, "true"])
            .exits(125)
            .says(&format!("{option} says nothing for a sandbox of the tier process: {why}"));
    }
}

#[test]
fn a_volume_that_is_not_one_is_refused() {
    for text in ["data", "/home:/data", "./data:/data", "data:data", "data:/"] {
        sandforge(["run", "-v", text, "true"]).exits(125).says("is not NAME:GUEST");
    }
    sandforge(["run", "--cache", "yarn", "true"]).exits(125).says("`yarn` is not one of");
    for (path, why) in [("/proc/x", "must not be in /proc"), ("/a/../b", "neither . nor ..")] {
        let volume = format!("data:{path}");
        let call = Call::new(["run", "-v", &volume, "true"]).private();
        call.output().exits(125).says("volumes[0].guest_path").says(why);
    }
}

#[test]
fn what_no_volume_is_made_of_is_refused() {
    let create = |arguments: &[&str]| {
        Call::new(["volume", "create"]).arguments(arguments).private().output()
    };
    create(&["../x"]).exits(2).says("name: must be");
    create(&["x", "--size", "1m"]).exits(2).says("size_bytes: must be");
    create(&["x", "--size", "much"]).exits(2).says("is not a size");
    let rm = Call::new(["volume", "rm", "nope"]).private().output();
    rm.exits(3).says("there is no volume \"nope\"");
}

#[test]
fn a_name_that_could_be_a_path_is_refused() {
    sandforge(["run", "--name", "../x", "true"]).exits(125).says("\"../x\" is not a name");
}

#[test]
fn an_unknown_machine_is_told() {
    let message = "there is no sandbox \"nope\"";
    Call::new(["exec", "nope", "true"]).private().output().exits(125).says(message);
    Call::new(["rm", "nope"]).private().output().exits(3).says(message);
}

#[test]
fn a_report_that_cannot_be_written_is_told_before_anything_runs() {
    sandforge(["run", "--json-file", "/nonexistent/report", "true"])
        .exits(125)
        .says("cannot write the report \"/nonexistent/report\"");
}

#[test]
fn a_missing_emulator_is_told_with_its_package() {
    let (_directory, root) = tiny_root();
    let call = Call::new(["run", "--engine", "qemu", "--image", text(&root), "true"]);
    call.env("PATH", "/nonexistent")
        .private()
        .output()
        .exits(125)
        .says("qemu-system-x86_64 is not on PATH")
        .says("apt install");
    let doctor = Call::new(["doctor"]).env("PATH", "/nonexistent").private().output();
    let report = String::from_utf8(doctor.stdout).unwrap();
    assert!(report.contains("engine qemu   emulated; qemu-system-x86_64 is not"), "{report}");
}

#[test]
fn a_corrupt_kernel_is_not_booted() {
    let (directory, root) = tiny_root();
    // Without an emulator the first call goes as far as unpacking the kernel.
    let call = || {
        Call::new(["run", "--engine", "qemu", "--image", text(&root), "true"])
            .env("PATH", "/nonexistent")
            .private_in(directory.path())
            .output()
            .exits(125)
    };
    call();
    let kernel = find(&directory.path().join("cache"), "vmlinux").expect("it is unpacked");
    let mut bytes = fs::read(&kernel).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(&kernel).unwrap();
    fs::write(&kernel, bytes).unwrap();
    call().says("is corrupt: its SHA-256 is ").says("delete it");
}

/// The file of this name below a directory.
fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    fs::read_dir(directory).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        if path.is_dir() { find(&path, name) } else { path.ends_with(name).then_some(path) }
    })
}

#[test]
fn a_full_disk_is_told_with_what_to_do() {
    let (directory, root) = tiny_root();
    let cache = directory.path().join("full");
    fs::create_dir(&cache).unwrap();
    let script = "mount -t tmpfs -o size=64k none \"$1\" && XDG_CACHE_HOME=$1 exec \"$2\" run --image \"$3\" true";
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .args([&cache, Path::new(env!("CARGO_BIN_EXE_sandforge")), &root])
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    assert!(stderr.contains("is full; free some space"), "{stderr}");
}

#[test]
fn a_cache_that_cannot_be_used_is_told() {
    let call = Call::new(["run", "true"]).env("XDG_CACHE_HOME", "/proc/nonexistent");
    call.output().exits(125).says("/proc/nonexistent");
    let call = Call::new(["run", "true"]).env("XDG_CACHE_HOME", "").env("HOME", "");
    call.output().exits(125).says("set XDG_CACHE_HOME or HOME");
}

#[test]
fn a_url_that_is_not_https_is_refused() {
    let (_directory, ca) = file("ca.pem", "");
    Call::new(["ls"])
        .private()
        .env("SANDFORGE_URL", "http://localhost:8585")
        .env("SANDFORGE_CA", &ca)
        .output()
        .exits(2)
        .says("only https:// is spoken over a network");
}

#[test]
fn a_server_without_a_certificate_to_trust_is_not_called() {
    Call::new(["exec", "box", "true"])
        .private()
        .env("SANDFORGE_URL", "https://localhost:8585")
        .env("SANDFORGE_CA", "/nonexistent/ca.pem")
        .output()
        .exits(125)
        .says("cannot read \"/nonexistent/ca.pem\"")
        .says("sandforge serve --print-ca");
}

#[test]
fn a_filter_that_there_is_not_is_refused() {
    Call::new(["ls", "--filter", "colour=red"])
        .private()
        .output()
        .exits(2)
        .says("--filter \"colour=red\" is not known")
        .says("state=STATE");
}

#[test]
fn an_address_without_numbers_is_refused() {
    sandforge(["serve", "--listen", "localhost:8585"])
        .exits(2)
        .says("\"localhost:8585\" is not an address with a port");
}

#[test]
fn a_mistake_in_a_policy_is_told_with_its_line() {
    let (_directory, path) = file("policy.toml", "[commands]\ndney = [\"git push **\"]\n");
    let arguments = ["policy", "check", "--file", text(&path), "exec", "--", "git", "push"];
    sandforge(arguments).exits(2).says("policy.toml:2:").says("deny");
}
