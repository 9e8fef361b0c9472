//! Images that are well: brought in from wherever they come, shared, counted, taken out again.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use image::oci::{Import, OciError};
use image::{
    CacheError, ImageError, ImageRef, Progress, RootImage, Stage, Step, Store, StoreError,
};
use serde_json::json;

use crate::judge::{self, check_layers, stacked, umoci, walk};
use crate::make::{self, Blob, Tar};

pub(crate) struct Bench {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: Store,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("cache")).unwrap();
        Self { dir, store }
    }
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    pub(crate) fn resolve(&self, path: &Path) -> Result<RootImage, ImageError> {
        self.store.resolve(&ImageRef::Path(path.to_owned()), &mut ())
    }
    /// A layout of these layers, which is the judge's too.
    pub(crate) fn layout(&self, name: &str, layers: &[Blob]) -> PathBuf {
        let path = self.path(name);
        make::layout(&path, layers);
        path
    }
    pub(crate) fn names(&self, below: &str) -> Vec<String> {
        let dir = self.path("cache").join(below);
        let names = fs::read_dir(dir).unwrap();
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
    fn pulled(&self, name: &str, layers: &[Blob]) -> RootImage {
        let manifest = make::add(&self.store.layout(), layers);
        let digest = manifest["digest"].as_str().unwrap();
        self.store.import(&name.parse().unwrap(), digest, &mut ()).unwrap()
    }
}

fn layers() -> Vec<Blob> {
    let base = Tar::default()
        .dir("./", 0o755)
        .dir("etc", 0o755)
        .file("etc/gone", b"below")
        .file("etc/stays", b"below")
        .file("etc/changes", b"below")
        .dir("opt", 0o750)
        .file("opt/one", b"1")
        .file("opt/two", b"2")
        .dir("var", 0o755)
        .dir("var/cache", 0o755)
        .file("var/cache/x", b"x")
        .mode("su", 0o4755, &[7; 9000])
        .hard_link("sudo", "su")
        .symlink("sh", "/bin/busybox")
        .dir("tmp", 0o1777)
        .end();
    let middle = Tar::default()
        .dir("etc", 0o711)
        .file("etc/changes", b"middle")
        .file("etc/.wh.gone", b"")
        .dir("opt", 0o755)
        .file("opt/.wh..wh..opq", b"")
        .file("opt/three", b"3")
        .end();
    let top = Tar::default()
        .dir("etc", 0o755)
        .file("etc/changes", b"top")
        .file("etc/gone", b"back again")
        .file(".wh.var", b"")
        .file("file", &[b'x'; 5000])
        .end();
    vec![Blob::plain(&base), Blob::gzip(&middle), Blob::zstd(&top)]
}

#[test]
fn the_kernel_stacks_the_layers_to_what_umoci_unpacks() {
    let bench = Bench::new();
    let layout = bench.layout("image", &layers());
    let image = bench.resolve(&layout).unwrap();
    assert_eq!(image.layers.len(), 3);
    check_layers(&image);
    let Some(ours) = stacked(&image, walk) else { return };
    let at = |path: &str| ours.get(Path::new(path)).map(String::as_str);
    assert_eq!(at("etc/gone"), Some("644 0:0 1 \"back again\""));
    assert_eq!(at("etc/changes"), Some("644 0:0 1 \"top\""));
    assert_eq!(at("etc/stays"), Some("644 0:0 1 \"below\""));
    assert_eq!((at("opt/one"), at("opt/three").is_some(), at("var")), (None, true, None));
    assert!(at("su").unwrap().starts_with("4755 0:0 2 "));
    // The judge does not know zstd.
    let layers = layers().into_iter().enumerate().map(|(at, layer)| match at {
        2 => Blob::gzip(
            &Tar::default()
                .dir("etc", 0o755)
                .file("etc/changes", b"top")
                .file("etc/gone", b"back again")
                .file(".wh.var", b"")
                .file("file", &[b'x'; 5000])
                .end(),
        ),
        _ => layer,
    });
    let judged = bench.layout("judged", &layers.collect::<Vec<_>>());
    if let Some(theirs) = umoci(&judged) {
        assert_eq!(ours, theirs);
    }
}

#[test]
fn what_an_image_says_about_its_commands_comes_with_it() {
    let bench = Bench::new();
    let image = bench.resolve(&bench.layout("image", &layers())).unwrap();
    assert_eq!(image.config.env, [("PATH".to_owned(), "/bin".to_owned())]);
    assert_eq!(image.config.user.as_deref(), Some("1000"));
    assert_eq!(image.config.working_dir.as_deref(), Some("/srv"));
    assert_eq!(image.config.cmd, ["sh"]);
}

#[test]
fn an_archive_of_docker_or_of_a_layout_gives_the_layers_of_the_layout() {
    let bench = Bench::new();
    let layers = layers();
    let layout = bench.layout("image", &layers);
    let digests = |image: &RootImage| -> Vec<_> {
        image.layers.iter().map(|layer| layer.digest.clone().unwrap()).collect()
    };
    let of_layout = digests(&bench.resolve(&layout).unwrap());
    for (name, contents) in [
        ("oci.tar", make::archive(&layout)),
        ("oci.tar.gz", make::gzip(&make::archive(&layout))),
        ("saved.tar", make::saved(&layers, &["tool:1"])),
        ("saved.tar.zst", make::zstd(&make::saved(&layers, &["tool:1"]))),
    ] {
        fs::write(bench.path(name), contents).unwrap();
        for _ in 0..2 {
            let image = bench.resolve(&bench.path(name)).unwrap();
            assert_eq!((digests(&image), &*image.name), (of_layout.clone(), name));
        }
    }
    assert_eq!(bench.names("layers").len(), 3, "each layer once");
}

#[test]
fn what_skopeo_writes_is_read_and_what_is_exported_skopeo_reads() {
    if !judge::has("skopeo", "skopeo") {
        return;
    }
    let bench = Bench::new();
    let layout = bench.layout("image", &layers()[..2]);
    let from = format!("oci:{}:latest", layout.display());
    let path = |name: &str| bench.path(name).display().to_string();
    let digest = bench.resolve(&layout).unwrap().layers[1].digest.clone();
    for (kind, file) in [("docker-archive", "docker.tar"), ("oci-archive", "oci.tar")] {
        let to = format!("{kind}:{}:tool:1", path(file));
        judge::run("skopeo", &["copy", "--quiet", "--insecure-policy", &from, &to]);
        let image = bench.resolve(&bench.path(file)).unwrap();
        assert_eq!(image.layers[1].digest, digest, "{kind}");
    }
    let import = Import { name: Some("tool:2"), keep_blobs: true };
    bench.store.import_from(&layout, import, &mut ()).unwrap();
    bench.store.export("tool:2", &mut File::create(bench.path("out.tar")).unwrap()).unwrap();
    let out = format!("oci-archive:{}:2", path("out.tar"));
    let seen = judge::run("skopeo", &["inspect", "--raw", &out]);
    assert!(seen.contains(&make::sha256(&layers()[1].bytes)), "{seen}");
    // The table of names is an index that other tools read.
    let ours = format!("oci:{}:docker.io/library/tool:2", bench.store.layout().display());
    assert_eq!(judge::run("skopeo", &["inspect", "--raw", &ours]), seen);
}

#[test]
fn an_export_is_the_same_image_again() {
    let bench = Bench::new();
    let layout = bench.layout("image", &layers());
    let import = Import { name: Some("tool"), keep_blobs: true };
    let image = bench.store.import_from(&layout, import, &mut ()).unwrap();
    let mut archive = Vec::new();
    bench.store.export("tool", &mut archive).unwrap();
    let mut again = Vec::new();
    bench.store.export("docker.io/library/tool:latest", &mut again).unwrap();
    assert!(archive == again);
    fs::write(bench.path("out.tar"), archive).unwrap();
    let other = Bench::new();
    let copy = other.resolve(&bench.path("out.tar")).unwrap();
    assert_eq!((copy.digest, copy.layers.len()), (image.digest, 3));
}

#[test]
fn an_image_without_blobs_cannot_be_exported_and_says_so() {
    let bench = Bench::new();
    bench.resolve(&bench.layout("image", &layers())).unwrap();
    let error = bench.store.export("image", &mut Vec::new()).unwrap_err();
    assert!(matches!(error, ImageError::Oci { source: OciError::NoBlobs, .. }), "{error}");
}

#[test]
fn what_was_pulled_is_found_by_every_spelling_of_its_name() {
    let bench = Bench::new();
    let digest = bench.pulled("python:3.12-slim", &layers()).digest.unwrap();
    for name in [
        "python:3.12-slim",
        "docker.io/library/python:3.12-slim",
        "index.docker.io/python:3.12-slim",
    ] {
        let image = bench.store.resolve(&name.parse().unwrap(), &mut ()).unwrap();
        assert_eq!(image.name, "docker.io/library/python:3.12-slim");
    }
    for name in [digest.clone(), format!("sha256:{digest}"), digest[..12].to_owned()] {
        bench.store.resolve(&ImageRef::Name(name), &mut ()).unwrap();
    }
    bench.store.resolve(&format!("python@sha256:{digest}").parse().unwrap(), &mut ()).unwrap();
    let error = bench.store.resolve(&"python:3.13".parse().unwrap(), &mut ()).unwrap_err();
    assert!(matches!(error, ImageError::Absent(_)), "{error}");
}

#[test]
fn a_tag_that_moves_takes_the_new_image_and_the_old_one_can_be_pruned() {
    let bench = Bench::new();
    bench.pulled("tool", &layers());
    bench.pulled("tool", &layers()[..1]);
    assert_eq!(bench.store.list().unwrap().len(), 1);
    let pruned = bench.store.prune(false).unwrap();
    assert_eq!((pruned.layers, pruned.blobs, pruned.in_use), (2, 4, 0));
    assert!(pruned.bytes > 0);
    bench.store.resolve(&"tool".parse().unwrap(), &mut ()).unwrap();
}

#[test]
fn shared_layers_are_counted_once_and_stay_while_anybody_needs_them() {
    let bench = Bench::new();
    drop(bench.pulled("one", &layers()));
    drop(bench.pulled("two", &layers()[..2]));
    let list = bench.store.list().unwrap();
    assert_eq!((list[0].layers, list[1].layers), (3, 2));
    let own = |at: usize| list[at].disk_bytes - list[at].shared_bytes;
    let total = bench.store.disk_bytes_of_all().unwrap();
    assert_eq!(total, own(0) + own(1) + list[0].shared_bytes);
    let removed = bench.store.remove("one").unwrap();
    assert_eq!((removed.images, removed.bytes), (1, own(0)));
    assert_eq!(bench.names("layers").len(), 2);
    bench.store.resolve(&"two:latest".parse().unwrap(), &mut ()).unwrap();
    bench.store.remove("two").unwrap();
    assert!(bench.names("layers").is_empty() && bench.names("oci/blobs/sha256").is_empty());
}

#[test]
fn what_runs_is_not_pruned() {
    let bench = Bench::new();
    let image = bench.pulled("tool", &layers());
    // As a machine has it: a descriptor that another process inherited.
    let inherited = image.layers[1].file.try_clone().unwrap();
    drop(image);
    bench.store.remove("tool").unwrap();
    assert_eq!(bench.names("layers").len(), 1);
    assert_eq!(bench.store.prune(false).unwrap().in_use, 1);
    drop(inherited);
    assert_eq!(bench.store.prune(false).unwrap().layers, 1);
    assert!(bench.names("layers").is_empty());
}

#[test]
fn blobs_that_arrive_are_not_pruned() {
    let bench = Bench::new();
    let hold = bench.store.hold_blobs().unwrap();
    make::add(&bench.store.layout(), &layers());
    assert!(bench.store.prune(false).unwrap().blobs_are_held);
    assert_eq!(bench.names("oci/blobs/sha256").len(), 5);
    drop(hold);
    assert_eq!(bench.store.prune(false).unwrap().blobs, 5);
}

#[test]
fn compressed_layers_can_go_and_the_image_stays() {
    let bench = Bench::new();
    bench.pulled("tool", &layers());
    assert_eq!(bench.store.prune(true).unwrap().blobs, 3);
    let image = bench.store.resolve(&"tool:latest".parse().unwrap(), &mut ()).unwrap();
    assert_eq!(image.layers.len(), 3);
    let seen = bench.store.inspect("tool").unwrap().unwrap();
    assert!(seen.layers.iter().all(|layer| !layer.is_kept && layer.bytes.is_some()));
    bench.store.verify("tool", &mut ()).unwrap();
}

#[test]
fn a_changed_byte_is_found_and_the_layer_made_again() {
    let bench = Bench::new();
    let image = bench.pulled("tool", &layers());
    let verity = image.layers[0].verity.clone().unwrap();
    let key = format!("{}.1", image.layers[0].digest.as_ref().unwrap());
    drop(image);
    bench.store.verify("tool", &mut ()).unwrap();
    let path = bench.path("cache/layers").join(key).join("layer.erofs");
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let damage = |at: u64| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    };
    damage(5000);
    let error = bench.store.verify("tool", &mut ()).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    if judge::has("veritysetup", "cryptsetup-bin") {
        assert!(judge::verify(&path.display().to_string(), &verity).is_err());
    }
    // What is looked at on each start: the first block and the top of the hash tree.
    damage(verity.tree + 7);
    bench.store.resolve(&"tool:latest".parse().unwrap(), &mut ()).unwrap();
    bench.store.verify("tool", &mut ()).unwrap();
    // With nothing to make it of, it is refused.
    bench.store.prune(true).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(4096).unwrap();
    let error = bench.store.resolve(&"tool:latest".parse().unwrap(), &mut ()).unwrap_err();
    assert!(error.to_string().contains("tool"), "{error}");
}

#[test]
fn equal_layers_and_empty_ones_take_no_disk_of_the_machine() {
    let bench = Bench::new();
    let empty = Blob::gzip(&Tar::default().end());
    let [base, middle, top] = layers().try_into().ok().unwrap();
    let stack = [base.clone(), empty.clone(), middle.clone(), base, middle, empty.clone(), top];
    let image = bench.resolve(&bench.layout("image", &stack)).unwrap();
    assert_eq!(image.layers.len(), 3);
    let image = bench.resolve(&bench.layout("empty", &[empty.clone(), empty])).unwrap();
    assert_eq!(image.layers.len(), 1);
}

#[test]
fn a_directory_without_an_entry_is_whose_it_was_in_the_layers_below() {
    let bench = Bench::new();
    let owned = [("uid", &b"1234"[..]), ("gid", b"4321")];
    let base = Tar::default()
        .dir("tmp", 0o1777)
        .pax(&owned)
        .dir("home", 0o750)
        .pax(&owned)
        .dir("home/app", 0o700)
        .dir("srv", 0o2775)
        .dir("gone", 0o700)
        .end();
    let middle = Tar::default().file("home/app/file", b"1").file("srv/.wh..wh..opq", b"").end();
    let top = Tar::default()
        .file("tmp/file", b"2")
        .dir("srv/new", 0o700)
        .file(".wh.gone", b"")
        .file("new/deep/file", b"3")
        .end();
    let over = Tar::default().file("gone/file", b"4").end();
    let image = bench
        .resolve(&bench.layout("image", &[base, middle, top, over].map(|tar| Blob::gzip(&tar))));
    let image = image.unwrap();
    assert_eq!(image.layers.len(), 5);
    check_layers(&image);
    let again = bench.resolve(&bench.path("image")).unwrap();
    assert_eq!(again.layers[4].verity, image.layers[4].verity);
    let Some(found) = stacked(&image, walk) else { return };
    for (path, expected) in [
        ("tmp", "1777 0:0 dir"),
        ("home", "750 1234:4321 dir"),
        ("home/app", "700 1234:4321 dir"),
        ("srv", "2775 0:0 dir"),
        ("srv/new", "700 0:0 dir"),
        ("new/deep", "755 0:0 dir"),
        ("gone", "755 0:0 dir"),
        ("home/app/file", "644 0:0 1 \"1\""),
    ] {
        assert_eq!(found.get(Path::new(path)).map(String::as_str), Some(expected), "{path}");
    }
    if let Some(theirs) = umoci(&bench.path("image")) {
        assert_eq!(found, theirs);
    }
    drop((image, again));
    assert_eq!(bench.store.prune(false).unwrap().layers, 0, "it belongs to the image");
    bench.store.remove("image").unwrap();
    assert!(bench.names("layers").is_empty());
}

#[test]
fn a_layer_that_hides_the_whole_root_leaves_nothing_below() {
    let bench = Bench::new();
    let top = Blob::plain(&Tar::default().file(".wh..wh..opq", b"").file("only", b"1").end());
    let image = bench.resolve(&bench.layout("image", &[layers().remove(0), top])).unwrap();
    let Some(found) = stacked(&image, walk) else { return };
    assert_eq!(found.len(), 1);
}

#[test]
fn many_processes_make_each_layer_once() {
    let bench = Bench::new();
    let layout = bench.layout("image", &layers());
    let made = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for taker in 0..6 {
            let (bench, layout, made) = (&bench, &layout, &made);
            scope.spawn(move || {
                let store = Store::open(&bench.path("cache")).unwrap();
                let mut note = |step: Step| {
                    if step.stage == Stage::Convert && Some(step.done) == step.total {
                        made.lock().unwrap().push(taker);
                    }
                };
                let image = store.resolve(&ImageRef::Path(layout.clone()), &mut note).unwrap();
                assert_eq!(image.layers.len(), 3);
                store.prune(false).unwrap();
            });
        }
    });
    assert_eq!(bench.names("layers").len(), 3);
}

/// Set in the process that is to be killed.
const VICTIM: &str = "SANDFORGE_TEST_VICTIM_OF_LAYERS";

#[test]
fn a_process_killed_while_it_imports_leaves_a_store_that_works() {
    const NAME: &str = "store::a_process_killed_while_it_imports_leaves_a_store_that_works";
    if let Some(victim) = std::env::var_os(VICTIM) {
        let victim = victim.into_string().unwrap();
        let (stage, dir) = victim.split_once(':').unwrap();
        return be_killed(stage, Path::new(dir));
    }
    for stage in ["Unpack", "Convert", "Digest"] {
        let bench = Bench::new();
        let layout = bench.layout("image", &layers());
        fs::write(bench.path("image.tar"), make::archive(&layout)).unwrap();
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME])
            .env(VICTIM, format!("{stage}:{}", bench.dir.path().display()))
            .output()
            .unwrap()
            .status;
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
        let store = Store::open(&bench.path("cache")).unwrap();
        let left: Vec<String> = ["layers", "oci", "oci/blobs/sha256"]
            .iter()
            .flat_map(|below| bench.names(below))
            .filter(|name| name.starts_with('.'))
            .collect();
        assert!(left.is_empty(), "{stage}: {left:?}");
        let path = ImageRef::Path(bench.path("image.tar"));
        assert_eq!(store.resolve(&path, &mut ()).unwrap().layers.len(), 3);
    }
}

fn be_killed(stage: &str, dir: &Path) {
    struct Kill(String, usize);
    impl Progress for Kill {
        fn step(&mut self, step: Step) {
            self.1 += usize::from(format!("{:?}", step.stage) == self.0);
            if self.1 > 2 {
                let me = rustix::process::getpid();
                rustix::process::kill_process(me, rustix::process::Signal::KILL).unwrap();
            }
        }
    }
    let store = Store::open(&dir.join("cache")).unwrap();
    let path = ImageRef::Path(dir.join("image.tar"));
    store.resolve(&path, &mut Kill(stage.to_owned(), 0)).unwrap();
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    if !rustix::process::geteuid().is_root() {
        judge::not_run("a full disk needs root, to mount a small one");
        return;
    }
    let bench = Bench::new();
    let small = bench.path("small");
    fs::create_dir(&small).unwrap();
    let mut noise = vec![0; 600_000];
    let mut state = 1_u32;
    for byte in &mut noise {
        state = state.wrapping_mul(69069).wrapping_add(5);
        *byte = state.to_be_bytes()[0];
    }
    let layer = Blob::gzip(&Tar::default().file("large", &noise).end());
    let layout = bench.layout("image", &[layer]);
    fs::write(bench.path("image.tar"), make::archive(&layout)).unwrap();
    let at = small.display().to_string();
    judge::run("mount", &["-t", "tmpfs", "-o", "size=400k", "none", &at]);
    let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let store = Store::open(&small.join("cache")).unwrap();
        for path in [&layout, &bench.path("image.tar")] {
            let error = store.resolve(&ImageRef::Path(path.clone()), &mut ()).unwrap_err();
            let full =
                matches!(error, ImageError::Store(StoreError::Cache(CacheError::Full { .. })));
            assert!(full, "{error}");
            for below in ["layers", "oci/blobs/sha256"] {
                assert_eq!(fs::read_dir(small.join("cache").join(below)).unwrap().count(), 0);
            }
        }
    }));
    judge::run("umount", &[&at]);
    seen.unwrap();
}

#[test]
fn a_damaged_table_of_names_is_told_with_the_remedy() {
    let bench = Bench::new();
    bench.pulled("tool", &layers());
    fs::write(bench.path("cache/oci/index.json"), "{").unwrap();
    let error = bench.store.list().unwrap_err();
    assert!(error.to_string().contains("remove it"), "{error}");
    fs::remove_file(bench.path("cache/oci/index.json")).unwrap();
    bench.pulled("tool", &layers());
    bench.store.verify("tool", &mut ()).unwrap();
}

#[test]
fn of_a_layout_with_several_images_the_one_that_is_named_is_taken() {
    let bench = Bench::new();
    let dir = bench.path("image");
    let named = |name: &str, layers: &[Blob]| {
        let mut entry = make::add(&dir, layers);
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        entry
    };
    make::index(&dir, &[named("one", &layers()[..1]), named("two", &layers()[..2])]);
    let error = bench.resolve(&dir).unwrap_err().to_string();
    assert!(error.contains("one, two"), "{error}");
    let import = Import { name: Some("two"), keep_blobs: false };
    assert_eq!(bench.store.import_from(&dir, import, &mut ()).unwrap().layers.len(), 2);
}

#[test]
fn nothing_is_waited_for_where_a_blob_is_a_pipe() {
    let bench = Bench::new();
    let layers = layers();
    let layout = bench.layout("image", &layers[..1]);
    let blob = layout.join("blobs/sha256").join(&make::sha256(&layers[0].bytes)[7..]);
    fs::remove_file(&blob).unwrap();
    judge::run("mkfifo", &[&blob.display().to_string()]);
    let error = bench.resolve(&layout).unwrap_err();
    assert!(matches!(error, ImageError::Oci { source: OciError::Missing { .. }, .. }), "{error}");
    std::io::stderr().flush().unwrap();
}
