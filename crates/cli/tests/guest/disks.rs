//! What a machine's root is made of, below the tasks.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{Attachment, BootSpec, Disks, Guest, Layer, System};
use image::erofs::{Limits, from_tar};
use supervisor::wire::envelope::key_to_hex;
use supervisor::{Error, LinkError, SandboxSpec, Volume, VolumeAccess};

use crate::support::{block_on, engines, run_in, sh, shell, spec_of, supervisor, with_spec};

/// A layer of these files.
fn layer(files: &[(&str, &str)]) -> Layer {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, content.as_bytes()).unwrap();
    }
    let mut image = tempfile::NamedTempFile::new().unwrap();
    from_tar(&*tar.into_inner().unwrap(), image.as_file_mut(), Limits::default()).unwrap();
    Layer { file: File::open(image.path()).unwrap(), file_system: "erofs", verity: None }
}

fn base() -> Layer {
    let store = image::Store::open_default().unwrap();
    let root = store.resolve(&image::ImageRef::Name("base".into()), &mut ()).unwrap();
    let [layer] = <[image::Layer; 1]>::try_from(root.layers).unwrap();
    Layer { file: layer.file, file_system: layer.fs.as_str(), verity: None }
}

/// What a shell line prints in a machine with these disks, on each engine.
fn printed(disks: impl Fn() -> Disks, line: &str) -> Vec<String> {
    let run = async |engine: &String| {
        let key = link::generate_key().unwrap();
        let assets = image::boot::assets(
            &image::Store::open_default().unwrap(),
            &image::boot::Kernel::Ours,
            &mut (),
        )
        .unwrap();
        let spec = BootSpec {
            sandbox: "sb-disks".into(),
            cpus: 1,
            memory_mb: 256,
            system: System::Guest(Guest {
                kernel: assets.kernel,
                initramfs: assets.initramfs,
                disks: disks(),
            }),
            agent_arguments: vec![
                "sandforge.id=sb-disks".into(),
                format!("sandforge.key={}", key_to_hex(&key.verifying_key())),
            ],
            attachment: Attachment::Owned,
            console: false,
        };
        let mut machine = supervisor().engine(engine).unwrap().boot(spec).await.unwrap();
        let carrier = machine.carrier().unwrap();
        let patience = Duration::from_secs(120);
        let guest = link::Guest::connect(carrier, "sb-disks", key, patience, None).await.unwrap();
        guest.freshen().await.unwrap();
        let ran = run_in(&guest, shell(line)).await.unwrap();
        machine.kill().await.unwrap();
        ran.ok()
    };
    engines().iter().map(|engine| block_on(run(engine))).collect()
}

#[test]
fn a_root_is_layers_of_which_the_last_is_on_top() {
    let disks = || {
        let lower = layer(&[("opt/one", "lower"), ("opt/both", "lower")]);
        let upper = layer(&[("opt/both", "upper"), ("opt/two", "upper")]);
        Disks::new(vec![base(), lower, upper]).unwrap()
    };
    for printed in printed(disks, "cat /opt/one /opt/both /opt/two; test -x /usr/bin/env") {
        assert_eq!(printed, "lowerupperupper");
    }
}

#[test]
fn a_hundred_layers_are_a_root() {
    let disks = || {
        let mut layers = vec![base()];
        layers.extend((1..100).map(|at| layer(&[(&format!("opt/{at}"), "x")])));
        Disks::new(layers).unwrap()
    };
    for printed in printed(disks, "ls /opt | wc -l") {
        assert_eq!(printed.trim(), "99");
    }
}

/// A root with a disk for what is changed.
fn with_scratch() -> Disks {
    let file = tempfile::tempfile().unwrap();
    let (uuid, owner) = ([1; 16], (0, 0));
    let options = ext4::Options { bytes: 1 << 30, journal: false, owner, uuid, time: 0 };
    ext4::format(&file, &options).unwrap();
    Disks::new(vec![base()]).unwrap().with_scratch(file)
}

#[test]
fn what_is_written_to_a_scratch_disk_is_read_from_it() {
    let line = "head -c 30000000 /dev/urandom > /workspace/a; cp /workspace/a /workspace/b; \
                sync; cmp /workspace/a /workspace/b && stat -f -c %T /workspace/a && rm /workspace/a";
    for printed in printed(with_scratch, line) {
        assert_eq!(printed.trim(), "overlayfs");
    }
}

#[test]
fn what_is_changed_goes_to_the_scratch_disk_where_there_is_one() {
    // More than the machine has memory.
    let line = "head -c 600000000 /dev/zero > /workspace/big && stat -c %s /workspace/big";
    for printed in printed(with_scratch, line) {
        assert_eq!(printed.trim(), "600000000");
    }
}

#[test]
fn a_sandbox_has_the_disk_that_it_asked_for_and_no_more() {
    let spec =
        SandboxSpec { cpus: Some(1), memory_mb: 256, disk_gb: Some(1), ..SandboxSpec::default() };
    with_spec(&spec, async |guest| {
        let room = sh(guest, "df --output=size,fstype -B1M / | tail -1").await.ok();
        let megabytes: u64 = room.split_whitespace().next().unwrap().parse().unwrap();
        assert!((900..=1024).contains(&megabytes), "{room}");
        let full =
            sh(guest, "head -c 1200000000 /dev/zero > /workspace/big; echo still here").await;
        assert!(full.stderr.contains("No space left on device"), "{full:?}");
        assert_eq!(full.stdout, "still here\n");
        assert_eq!(
            sh(guest, "rm /workspace/big && echo x > /workspace/small").await.code(),
            Some(0)
        );
    });
}

/// A new volume.
fn volume() -> File {
    let file = tempfile::tempfile().unwrap();
    let (uuid, owner) = ([2; 16], (1000, 1000));
    let options = ext4::Options { bytes: 1 << 30, journal: true, owner, uuid, time: 0 };
    ext4::format(&file, &options).unwrap();
    file
}

/// A small guest of this engine with this volume.
fn spec_with(engine: &str, file: &File, access: VolumeAccess) -> SandboxSpec {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let file = match access {
        VolumeAccess::Write => file.try_clone().unwrap(),
        VolumeAccess::Read | VolumeAccess::Overlay => File::open(path).unwrap(),
    };
    let volume = Volume { file: Arc::new(file), guest_path: "/data".into(), access };
    SandboxSpec { memory_mb: 256, volumes: vec![volume], ..spec_of(engine) }
}

#[test]
fn a_volume_is_found_by_the_next_machine_however_the_last_one_ended() {
    for engine in engines() {
        let file = volume();
        let run = async |access, line: &str| {
            let spec = spec_with(engine, &file, access);
            let sandbox = supervisor().create(spec, &mut ()).await.unwrap();
            (sh(&sandbox, line).await.ok(), sandbox)
        };
        block_on(async {
            let line = "echo first > /data/a; sync; echo lost? > /data/b";
            let (_, killed) = run(VolumeAccess::Write, line).await;
            // Without a word to its guest.
            let monitor = killed.monitor_pid().unwrap();
            drop(killed);
            let begun = Instant::now();
            while Path::new(&format!("/proc/{monitor}")).exists() {
                assert!(begun.elapsed() < Duration::from_secs(60), "its machine goes on");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let line = "cat /data/a; echo second > /data/a; mkdir /data/c";
            let (said, sandbox) = run(VolumeAccess::Write, line).await;
            assert_eq!(said, "first\n");
            sandbox.destroy().await.unwrap();
            // Whoever reads need not go through a journal now.
            let line = "cat /data/a; touch /data/a 2>&1; test -d /data/c";
            let (said, sandbox) = run(VolumeAccess::Read, line).await;
            assert_eq!(said, "second\ntouch: cannot touch '/data/a': Read-only file system\n");
            sandbox.destroy().await.unwrap();
        });
    }
}

#[test]
fn what_is_changed_above_a_volume_is_the_sandbox_s_own() {
    for engine in engines() {
        let file = volume();
        let run = async |access, line: &str| {
            let spec = spec_with(engine, &file, access);
            let sandbox = supervisor().create(spec, &mut ()).await.unwrap();
            let said = sh(&sandbox, line).await.ok();
            sandbox.destroy().await.unwrap();
            said
        };
        block_on(async {
            run(VolumeAccess::Write, "echo good > /data/a; mkdir -m 555 /data/d").await;
            let line = "echo bad > /data/a; rm -r /data/d; echo x > /data/x; cat /data/a";
            assert_eq!(run(VolumeAccess::Overlay, line).await, "bad\n");
            let line = "cat /data/a; cd /data; ls -d a d x 2>/dev/null || true";
            assert_eq!(run(VolumeAccess::Overlay, line).await, "good\na\nd\n");
        });
    }
}

#[test]
fn a_volume_follows_no_link_of_an_image() {
    // /bin is one, to /usr/bin.
    for engine in engines() {
        block_on(async {
            let mut spec = spec_with(engine, &volume(), VolumeAccess::Write);
            spec.volumes[0].guest_path = "/bin/x".into();
            let refused = supervisor().create(spec, &mut ()).await.unwrap_err();
            let Error::Guest(LinkError::Operation(error)) = refused else { panic!("{refused:?}") };
            assert!(error.message.contains("no link may be"), "{error}");
        });
    }
}
