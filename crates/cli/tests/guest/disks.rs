//! What a machine's root is made of, below the tasks.

use std::fs::File;

use engine::{Attachment, BootSpec, Disks, Guest, Layer, System};
use image::erofs::{Limits, from_tar};
use supervisor::SandboxSpec;
use supervisor::wire::envelope::key_to_hex;

use crate::support::{block_on, engines, run_in, sh, shell, supervisor, with_spec};

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
        let patience = std::time::Duration::from_secs(120);
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
