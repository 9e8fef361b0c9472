//! What the guest is told of the host's changes, and of its own is not.

mod guest;

use std::fs;
use std::sync::mpsc;
use std::time::Duration;

use guest::{Guest, ROOT, u32_at, u64_at};
use share::{Options, Stop, TOUCH};

/// Longer than a notice takes on a machine with other things to do.
const PATIENCE: Duration = Duration::from_secs(60);
/// `FUSE_NOTIFY_INVAL_INODE` and `FUSE_NOTIFY_INVAL_ENTRY`.
const NODE: u32 = 2;
const ENTRY: u32 = 3;

#[test]
fn a_change_of_the_host_s_is_told_and_one_of_the_guest_s_is_not() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("file"), "before").unwrap();
    let guest = Guest::new(directory.path(), Options::default());
    let node = guest.look(ROOT, "file").unwrap();
    let stop = Stop::new().unwrap();
    let (send, notices) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| guest.share.watch(&stop, |notice| send.send(notice).unwrap()).unwrap());
        let (own, handle) = guest.create(ROOT, "own").unwrap();
        guest.write(own, handle, 0, b"own").unwrap();
        guest.release(own, handle);
        guest.rename(ROOT, "own", ROOT, "moved", 0).unwrap();
        guest.unlink(ROOT, "moved").unwrap();
        let next = || {
            let notice = notices.recv_timeout(PATIENCE).unwrap();
            assert_eq!(u64_at(&notice, 8), 0, "a notice answers nothing");
            (u32_at(&notice, 4), notice[16..].to_vec())
        };
        fs::write(directory.path().join("file"), "after, and longer").unwrap();
        // Nothing of what the guest did comes before it.
        let (code, body) = next();
        assert_eq!((code, u64_at(&body, 0)), (NODE, node));
        while next() != (TOUCH.cast_unsigned(), b"file".to_vec()) {}
        fs::write(directory.path().join("new"), "").unwrap();
        loop {
            let (code, body) = next();
            if code == ENTRY {
                assert_eq!((u64_at(&body, 0), &body[16..]), (ROOT, &b"new\0"[..]));
                break;
            }
        }
        stop.stop();
    });
}
