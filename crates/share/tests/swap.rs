//! Components that are swapped while the host walks: by the guest itself, and by somebody on the host
//! who has been made to.

mod guest;

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use guest::{Guest, O_RDWR, ROOT, body, op};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use share::Options;

/// Requests that are made while components are swapped.
const TRIES: u64 = 1_000_000;
const WALKERS: u64 = 3;

#[test]
fn a_million_requests_among_swapped_components_stay_inside() {
    let outer = tempfile::tempdir().unwrap();
    let (shared, outside) = (outer.path().join("shared"), outer.path().join("outside"));
    fs::create_dir_all(shared.join("a/dir")).unwrap();
    fs::create_dir_all(shared.join("b")).unwrap();
    fs::create_dir_all(outside.join("dir")).unwrap();
    for place in [&outside, &outside.join("dir")] {
        fs::write(place.join("name"), "outside").unwrap();
    }
    fs::write(shared.join("a/dir/name"), "inside").unwrap();
    fs::write(shared.join("a/name"), "inside").unwrap();
    // Both lead out: as the whole, and as a step up from wherever they are.
    symlink(&outside, shared.join("link")).unwrap();
    symlink("../outside", shared.join("up")).unwrap();
    let options = Options { outside_links: true, ..Options::default() };
    let guest = Guest::new(&shared, options);
    let (stop, tries, found) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));

    let walk = |walker: u64| {
        let step = |node: u64, name: &str| {
            tries.fetch_add(1, Ordering::Relaxed);
            guest.look(node, name)
        };
        let paths: [&[&str]; 4] =
            [&["a", "name"], &["a", "dir", "name"], &["b", "dir", "name"], &["up", "name"]];
        for path in paths.iter().cycle().skip(usize::try_from(walker).unwrap()) {
            if tries.load(Ordering::Relaxed) >= TRIES {
                return;
            }
            let Ok(parent) =
                path[..path.len() - 1].iter().try_fold(ROOT, |at, name| step(at, name))
            else {
                continue;
            };
            let Ok(node) = step(parent, "name") else { continue };
            tries.fetch_add(3, Ordering::Relaxed);
            if let Ok(handle) = guest.open(node, O_RDWR) {
                if let Ok(content) = guest.read(node, handle) {
                    assert_ne!(content, b"outside");
                    found.fetch_add(1, Ordering::Relaxed);
                }
                let _ = guest.write(node, handle, 0, b"inside");
                guest.release(node, handle);
            }
            tries.fetch_add(3, Ordering::Relaxed);
            let _ = guest.create(parent, &format!("made-{walker}")).map(|(node, handle)| {
                guest.release(node, handle);
            });
            let _ = guest.unlink(parent, &format!("made-{walker}"));
            let _ = guest.ask(op::MKDIR, parent, body().u32(0o755).u32(0).name("sub"));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = guest.rename(ROOT, "a", ROOT, "up", 2);
                let _ = guest.look(ROOT, "a").and_then(|a| {
                    let b = guest.look(ROOT, "b")?;
                    guest.rename(a, "dir", b, "dir", 0)?;
                    guest.rename(b, "dir", a, "dir", 0)
                });
            }
        });
        scope.spawn(|| {
            let (one, other) = (shared.join("a"), shared.join("link"));
            while !stop.load(Ordering::Relaxed) {
                renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).unwrap();
                std::thread::yield_now();
            }
        });
        let walk = &walk;
        let walkers: Vec<_> =
            (0..WALKERS).map(|walker| scope.spawn(move || walk(walker))).collect();
        let ended: Vec<_> = walkers.into_iter().map(|walker| walker.join()).collect();
        stop.store(true, Ordering::Relaxed);
        for walker in ended {
            walker.unwrap();
        }
    });
    assert!(found.load(Ordering::Relaxed) > 0, "nothing was ever found: the test tests nothing");
    for place in [&outside, &outside.join("dir")] {
        assert_eq!(fs::read(place.join("name")).unwrap(), b"outside");
    }
    let names = |place: &std::path::Path| fs::read_dir(place).unwrap().count();
    assert_eq!((names(&outside), names(&outside.join("dir")), names(outer.path())), (2, 1, 2));
}
