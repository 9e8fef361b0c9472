//! File operations, which run confined like any task.

use supervisor::Sandbox;
use supervisor::wire::op::{
    ErrorCode, FileInfo, FileKind, List, Mkdir, Read, Remove, Rename, Stat, TarIn, TarOut, Watch,
    WatchEvent, Write, WriteAt,
};
use supervisor::wire::text::Text;

use crate::support::{get, put, refusal, sh, with_sandbox};

fn write(path: &str) -> Write {
    Write { path: Text::from(path), at: WriteAt::Replace, mode: 0o644, parents: false, user: None }
}

fn read(path: &str) -> Read {
    Read { path: Text::from(path), offset: 0, length: None, user: None }
}

fn stat(path: &str) -> Stat {
    Stat { path: Text::from(path), follow: false, user: None }
}

#[test]
fn what_is_written_is_read_in_whole_and_in_part() {
    with_sandbox(async |guest| {
        let content: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
        let done = put(guest, &write("/workspace/data"), &content).await.unwrap();
        assert_eq!(done.bytes, 300_000);
        assert!(get(guest, &read("/workspace/data")).await.unwrap() == content);
        let part = Read { offset: 1000, length: Some(10), ..read("/workspace/data") };
        assert_eq!(get(guest, &part).await.unwrap(), &content[1000..1010]);
        let info: FileInfo = guest.guest().ask(&stat("/workspace/data")).await.unwrap();
        assert_eq!((info.kind, info.size, info.uid), (FileKind::File, 300_000, 1000));
    });
}

#[test]
fn writes_append_and_patch() {
    with_sandbox(async |guest| {
        put(guest, &write("/workspace/f"), b"hello").await.unwrap();
        let append = Write { at: WriteAt::Append, ..write("/workspace/f") };
        put(guest, &append, b" world").await.unwrap();
        let patch = Write { at: WriteAt::Offset(1), ..write("/workspace/f") };
        put(guest, &patch, b"EL").await.unwrap();
        assert_eq!(get(guest, &read("/workspace/f")).await.unwrap(), b"hELlo world");
    });
}

#[test]
fn trees_are_made_listed_moved_and_removed() {
    with_sandbox(async |guest| {
        let ask = guest.guest();
        let path = |path: &str| Text::from(path);
        ask.ask(&Mkdir {
            path: path("/workspace/a/b"),
            parents: true,
            mode: 0o755,
            owner: None,
            group: None,
            user: None,
        })
        .await
        .unwrap();
        put(guest, &write("/workspace/a/b/file"), b"x").await.unwrap();
        let list = List { path: path("/workspace"), depth: 3, user: None };
        let lines = String::from_utf8(get(guest, &list).await.unwrap()).unwrap();
        let mut names: Vec<_> = lines
            .lines()
            .map(|line| serde_json::from_str::<FileInfo>(line).unwrap().path.to_string_lossy())
            .collect();
        names.sort();
        assert_eq!(names, ["a", "a/b", "a/b/file"]);
        let rename = Rename {
            from: path("/workspace/a/b/file"),
            to: path("/workspace/moved"),
            replace: false,
            user: None,
        };
        ask.ask(&rename).await.unwrap();
        assert_eq!(refusal(ask.ask(&rename).await).code, ErrorCode::NotFound);
        let remove = |recursive| Remove { path: path("/workspace/a"), recursive, user: None };
        assert!(ask.ask(&remove(false)).await.is_err());
        ask.ask(&remove(true)).await.unwrap();
        assert_eq!(refusal(ask.ask(&stat("/workspace/a")).await).code, ErrorCode::NotFound);
    });
}

#[test]
fn file_operations_have_the_task_s_rights_and_no_more() {
    with_sandbox(async |guest| {
        let error = refusal(put(guest, &write("/root/note"), b"x").await);
        assert_eq!(error.code, ErrorCode::PermissionDenied);
        let error = refusal(get(guest, &read("/etc/shadow")).await);
        assert_eq!(error.code, ErrorCode::PermissionDenied);
        // A link that a task left does not lend the agent's rights.
        sh(guest, "ln -s /etc/shadow trap").await.ok();
        assert!(get(guest, &read("/workspace/trap")).await.is_err());
        let as_root = Write { user: Some(Text::from("root")), ..write("/root/note") };
        put(guest, &as_root, b"hi").await.unwrap();
    });
}

#[test]
fn relative_and_missing_paths_are_refused() {
    with_sandbox(async |guest| {
        assert_eq!(refusal(get(guest, &read("etc/passwd")).await).code, ErrorCode::Invalid);
        let error = refusal(get(guest, &read("/no/such")).await);
        assert_eq!(error.code, ErrorCode::NotFound);
        assert!(error.message.contains("/no/such"), "{error}");
        assert!(get(guest, &read("/workspace")).await.is_err());
    });
}

#[test]
fn a_tar_goes_in_and_comes_out_the_same() {
    with_sandbox(async |guest| {
        let make = "mkdir -p t/dir && echo hi > t/dir/file && chmod 750 t/dir/file && \
                    ln -s dir/file t/link && tar -C t -cf in.tar . && sha256sum t/dir/file";
        sh(guest, make).await.ok();
        let archive = get(guest, &read("/workspace/in.tar")).await.unwrap();
        let tar_in = TarIn {
            path: Text::from("/workspace/copy"),
            read_only: false,
            user: None,
            remember: false,
        };
        put(guest, &tar_in, &archive).await.unwrap();
        let out = sh(guest, "cat copy/link; stat -c %a copy/dir/file; readlink copy/link").await;
        assert_eq!(out.ok(), "hi\n750\ndir/file\n");
        let tar_out =
            TarOut { path: Text::from("/workspace/copy"), user: None, changed: false, asks: false };
        let out = get(guest, &tar_out).await.unwrap();
        put(guest, &write("/workspace/out.tar"), &out).await.unwrap();
        let listed = sh(guest, "tar -tf out.tar | sed 's,/$,,' | sort | tr '\\n' ' '").await.ok();
        assert!(listed.contains("dir dir/file link"), "{listed}");
    });
}

#[test]
fn a_tar_that_would_leave_its_directory_is_refused() {
    with_sandbox(async |guest| {
        let make = "mkdir e && cd e && echo evil > x && tar --transform 's,^,../../../tmp/,' -P \
                    -cf ../evil.tar x";
        sh(guest, make).await.ok();
        let archive = get(guest, &read("/workspace/evil.tar")).await.unwrap();
        let tar_in = TarIn {
            path: Text::from("/workspace/into"),
            read_only: false,
            user: None,
            remember: false,
        };
        assert_eq!(refusal(put(guest, &tar_in, &archive).await).code, ErrorCode::Invalid);
    });
}

#[test]
fn a_read_only_copy_is_not_the_task_s_to_change() {
    with_sandbox(async |guest| {
        sh(guest, "mkdir t && echo hi > t/f && chmod 666 t/f && tar -C t -cf in.tar .").await.ok();
        let archive = get(guest, &read("/workspace/in.tar")).await.unwrap();
        let tar_in = TarIn {
            path: Text::from("/data"),
            read_only: true,
            user: Some("root".into()),
            remember: false,
        };
        put(guest, &tar_in, &archive).await.unwrap();
        let out =
            sh(guest, "cat /data/f; echo no > /data/f; rm -f /data/f; touch /data/g; ls /data")
                .await;
        assert_eq!(out.stdout, "hi\nf\n", "{out:?}");
    });
}

#[test]
fn changes_are_watched() {
    with_sandbox(async |guest| {
        let watch = Watch { path: Text::from("/workspace"), recursive: true, user: None };
        let call = guest.guest().call(&watch).unwrap();
        let (input, output) = (call.input(), call.output());
        let mut seen = Events::default();
        assert_eq!(seen.next(&output).await, WatchEvent::Ready);
        sh(guest, "mkdir deep && sleep 0.5 && echo x > deep/file && rm deep/file").await.ok();
        seen.until(
            &output,
            |e| matches!(e, WatchEvent::Created { path } if path == &Text::from("deep")),
        )
        .await;
        seen.until(
            &output,
            |e| matches!(e, WatchEvent::Removed { path } if path == &Text::from("deep/file")),
        )
        .await;
        input.finish();
        call.reply().await.unwrap();
    });
}

#[derive(Default)]
struct Events {
    text: Vec<u8>,
}

impl Events {
    async fn next(&mut self, output: &supervisor::Output) -> WatchEvent {
        loop {
            if let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.text.drain(..=end).collect();
                return serde_json::from_slice(&line).unwrap();
            }
            self.text.extend(output.read().await.unwrap().expect("more events"));
        }
    }

    async fn until(&mut self, output: &supervisor::Output, wanted: impl Fn(&WatchEvent) -> bool) {
        while !wanted(&self.next(output).await) {}
    }
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    with_sandbox(async |guest: &Sandbox| {
        // The root's changes live in memory: more than there is cannot be written.
        let big = vec![0_u8; 1 << 20];
        let call = guest.guest().call(&write("/dev/shm/big")).unwrap();
        let input = call.input();
        for _ in 0..600 {
            input.write(&big).await.unwrap();
        }
        input.finish();
        let error = refusal(call.reply().await);
        assert!(matches!(error.code, ErrorCode::Exhausted | ErrorCode::Failed), "{error:?}");
        assert_eq!(sh(guest, "ls -A /dev/shm").await.ok(), "");
    });
}
