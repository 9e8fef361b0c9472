//! Images in layers, booted.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use supervisor::image::{ImageRef, Store};
use supervisor::{Error, SandboxSpec, Supervisor};

use crate::layout::{busybox, layout};
use crate::support::{block_on, engines, launcher, sh, shell, try_run};

fn spec(layout: &Path) -> SandboxSpec {
    SandboxSpec {
        image: Some(ImageRef::Path(layout.to_owned())),
        cpus: Some(1),
        memory_mb: 256,
        ..SandboxSpec::default()
    }
}

#[test]
fn an_image_in_layers_runs_as_it_says() {
    let Some(layout) = layout() else { return };
    for engine in engines() {
        let cache = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::with_store(launcher(), Store::open(cache.path()).unwrap());
        let spec = SandboxSpec { engine: Some(engine.clone()), ..spec(layout.path()) };
        block_on(async {
            let guest = &supervisor.create(spec, &mut ()).await.unwrap();
            assert_eq!(sh(guest, "cat /opt/*; ls /opt").await.ok(), "upper\nlower\ncomes\nstays\n");
            assert_eq!(sh(guest, "echo $GREETING; pwd").await.ok(), "hello\n/srv/app\n");
            assert_eq!(sh(guest, "echo x > here && id -u").await.ok(), "1000\n");
            let mut own = shell("echo $GREETING; pwd");
            own.env = crate::support::env(&[("GREETING", "own")]);
            own.cwd = Some(supervisor::wire::text::Text::from("/opt"));
            assert_eq!(try_run(guest, own).await.unwrap().ok(), "own\n/opt\n");
        });
    }
}

/// Where the content of `part` begins in a file of the store.
fn find(store: &Path, part: &[u8]) -> (std::path::PathBuf, u64) {
    let mut directories = vec![store.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "erofs") {
                let content = fs::read(&path).unwrap();
                let mut blocks = content.chunks(4096);
                if let Some(block) = blocks.position(|block| block == &part[..4096]) {
                    return (path, 4096 * block as u64);
                }
            }
        }
    }
    panic!("no file of the store has it")
}

#[test]
fn a_changed_byte_of_a_layer_ends_the_machine_that_reads_it() {
    let Some(layout) = layout() else { return };
    let busybox = busybox().unwrap();
    for engine in engines() {
        let cache = tempfile::tempdir().unwrap();
        let supervisor = || Supervisor::with_store(launcher(), Store::open(cache.path()).unwrap());
        let spec = || SandboxSpec { engine: Some(engine.clone()), ..spec(layout.path()) };
        block_on(async {
            let sandbox = supervisor().create(spec(), &mut ()).await.unwrap();
            assert_eq!(sh(&sandbox, "echo fine").await.ok(), "fine\n");
            sandbox.destroy().await.unwrap();
            let (path, at) = find(cache.path(), &busybox);
            let mut permissions = fs::metadata(&path).unwrap().permissions();
            std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
            fs::set_permissions(&path, permissions).unwrap();
            let layer = File::options().write(true).open(&path).unwrap();
            layer.write_all_at(b"?", at + 100).unwrap();
            let ended = match supervisor().create(spec(), &mut ()).await {
                Err(error) => error,
                Ok(sandbox) => match try_run(&sandbox, shell("echo fine")).await {
                    Ok(ran) => panic!("it ran: {ran:?}"),
                    Err(error) => Error::Guest(error),
                },
            };
            eprintln!("{ended}");
        });
    }
}
