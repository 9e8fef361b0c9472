//! What others make of the same image.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use image::RootImage;
use rustix::process::geteuid;

/// What is at one path: kind, mode, owner, contents or target.
pub(crate) type Tree = BTreeMap<PathBuf, String>;

pub(crate) fn not_run(reason: &str) {
    std::io::stderr().write_all(format!("\nnot run: {reason}\n").as_bytes()).unwrap();
}

pub(crate) fn has(program: &str, package: &str) -> bool {
    let there = ["/usr/bin", "/usr/sbin", "/sbin", "/bin", "/usr/local/bin"]
        .iter()
        .any(|dir| Path::new(dir).join(program).exists());
    if !there {
        not_run(&format!("{program} is not installed (apt-get install {package})"));
    }
    there
}

pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let done = Command::new(program).args(args).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{program} {args:?}: {out}{err}");
    out.into_owned()
}

/// Everything below a directory. What a judge cannot keep the same is left out: times.
pub(crate) fn walk(root: &Path) -> Tree {
    let mut found = Tree::new();
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let what = if meta.is_dir() {
                dirs.push(path.clone());
                "dir".to_owned()
            } else if meta.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else if meta.file_type().is_fifo() {
                "fifo".to_owned()
            } else if meta.is_file() && meta.len() < 1 << 20 {
                format!("{} {:?}", meta.nlink(), String::from_utf8_lossy(&fs::read(&path).unwrap()))
            } else if meta.is_file() {
                format!("{} bytes", meta.len())
            } else {
                "device".to_owned()
            };
            let what = format!("{:o} {}:{} {what}", meta.mode() & 0o7777, meta.uid(), meta.gid());
            found.insert(path.strip_prefix(root).unwrap().to_path_buf(), what);
        }
    }
    found
}

/// The root as the kernel stacks it of the layers, as the guest's does. `None` where that cannot
/// be tried, which is said.
pub(crate) fn stacked<T>(image: &RootImage, look: impl FnOnce(&Path) -> T) -> Option<T> {
    let kernel = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !geteuid().is_root() || !kernel.contains("\terofs\n") || !kernel.contains("\toverlay\n") {
        not_run("stacking layers needs root, and erofs and overlay in this kernel");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut mounts: Vec<PathBuf> = Vec::new();
    let unmount = |mounts: &mut Vec<PathBuf>| {
        while let Some(at) = mounts.pop() {
            let _ = Command::new("umount").arg(&at).status();
        }
    };
    let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut lower = Vec::new();
        for (number, layer) in image.layers.iter().enumerate() {
            let (file, at) =
                (dir.path().join(format!("{number}.erofs")), dir.path().join(number.to_string()));
            let mut input = layer.file.try_clone().unwrap();
            std::io::Seek::rewind(&mut input).unwrap();
            std::io::copy(&mut input, &mut fs::File::create(&file).unwrap()).unwrap();
            fs::create_dir(&at).unwrap();
            let (file, path) = (file.display().to_string(), at.display().to_string());
            run("mount", &["-t", "erofs", "-o", "loop,ro,nodev", &file, &path]);
            mounts.push(at);
            lower.insert(0, path);
        }
        let at = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            path.display().to_string()
        };
        let (upper, work, root) = (at("upper"), at("work"), at("root"));
        let options =
            format!("lowerdir={},upperdir={upper},workdir={work},xino=off", lower.join(":"));
        run("mount", &["-t", "overlay", "overlay", "-o", &options, &root]);
        mounts.push(root.clone().into());
        look(Path::new(&root))
    }));
    unmount(&mut mounts);
    Some(seen.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

/// The root as umoci unpacks it.
pub(crate) fn umoci(layout: &Path) -> Option<Tree> {
    if !has("umoci", "umoci") {
        return None;
    }
    if !geteuid().is_root() {
        not_run("umoci keeps owners for root only");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("bundle").display().to_string();
    let image = format!("{}:latest", layout.display());
    run("umoci", &["unpack", "--image", &image, &to]);
    Some(walk(&dir.path().join("bundle/rootfs")))
}

/// Each layer, by `fsck.erofs` and, with its hash tree, by `veritysetup`.
pub(crate) fn check_layers(image: &RootImage) {
    for layer in &image.layers {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layer").display().to_string();
        let mut input = layer.file.try_clone().unwrap();
        std::io::Seek::rewind(&mut input).unwrap();
        std::io::copy(&mut input, &mut fs::File::create(&path).unwrap()).unwrap();
        if has("fsck.erofs", "erofs-utils") {
            run("fsck.erofs", &[&path]);
        }
        let verity = layer.verity.as_ref().expect("each layer has a hash tree");
        if verity.data_blocks > 1 && has("veritysetup", "cryptsetup-bin") {
            verify(&path, verity).unwrap_or_else(|error| panic!("{error}"));
        }
    }
}

/// `veritysetup verify`, which reads every block in its own program.
pub(crate) fn verify(path: &str, verity: &image::Verity) -> Result<(), String> {
    let root: String = verity.root.iter().map(|byte| format!("{byte:02x}")).collect();
    let done = Command::new("veritysetup")
        .args(["verify", "--no-superblock", "--format=1", "--hash=sha256", "--salt=-"])
        .args(["--data-block-size=4096", "--hash-block-size=4096"])
        .arg(format!("--data-blocks={}", verity.data_blocks))
        .arg(format!("--hash-offset={}", verity.tree))
        .args([path, path, &root])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    if done.status.success() { Ok(()) } else { Err(said) }
}
