//! Much output, slow readers, many streams.

use std::time::{Duration, Instant};

use supervisor::wire::op::Outcome;

use crate::support::{argv, sh, shell, with_sandbox};

#[test]
fn a_lot_of_output_arrives_whole_in_constant_memory() {
    with_sandbox(async |guest| {
        const BYTES: u64 = 64 << 20;
        let before = resident();
        let process = guest.guest().exec(&shell(&format!("head -c {BYTES} /dev/zero"))).unwrap();
        let out = process.stdout();
        let mut total = 0;
        while let Some(chunk) = out.read().await.unwrap() {
            assert!(chunk.iter().all(|byte| *byte == 0));
            total += chunk.len() as u64;
        }
        assert_eq!(total, BYTES);
        assert_eq!(process.wait().await.unwrap().outcome, Outcome::Exited { code: 0 });
        let grown = resident().saturating_sub(before);
        assert!(grown < 16 << 20, "{grown} bytes more are resident");
    });
}

#[test]
fn a_hundred_megabytes_go_each_way() {
    const BYTES: usize = 100 << 20;
    with_sandbox(async |guest| {
        let mut count = shell(&format!("head -c {BYTES} /dev/zero & wc -c >&2; wait"));
        count.stdin = true;
        let process = guest.guest().exec(&count).unwrap();
        let (input, out, err) = (process.stdin(), process.stdout(), process.stderr());
        let writing = async {
            let chunk = vec![7; 1 << 20];
            for _ in 0..BYTES / chunk.len() {
                input.write(&chunk).await.unwrap();
            }
            input.finish();
        };
        let reading = async {
            let mut total = 0;
            while let Some(chunk) = out.read().await.unwrap() {
                total += chunk.len();
            }
            total
        };
        let ((), received, err) = tokio::join!(writing, reading, err);
        let counted = err.unwrap().unwrap().read_to_end().await.unwrap();
        assert_eq!(received, BYTES);
        assert_eq!(String::from_utf8(counted).unwrap(), format!("{BYTES}\n"));
    });
}

/// Resident memory of this process in bytes.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn a_slow_reader_holds_nobody_up_and_loses_nothing() {
    with_sandbox(async |guest| {
        let slow = guest.guest().exec(&shell("head -c 3000000 /dev/zero; echo; echo END")).unwrap();
        let out = slow.stdout();
        let first = out.read().await.unwrap().unwrap();
        // Unread, it fills its window; others go on meanwhile.
        let begun = Instant::now();
        for _ in 0..3 {
            assert_eq!(sh(guest, "echo through").await.ok(), "through\n");
        }
        assert!(begun.elapsed() < Duration::from_secs(60));
        let rest = out.read_to_end().await.unwrap();
        assert_eq!(first.len() + rest.len(), 3_000_000 + 5);
        assert!(rest.ends_with(b"END\n"));
    });
}

#[test]
fn a_reader_that_gives_up_breaks_the_pipe() {
    with_sandbox(async |guest| {
        let process = guest.guest().exec(&argv(&["yes"])).unwrap();
        process.stdout().read().await.unwrap();
        drop(process);
        assert_eq!(sh(guest, "echo still here").await.ok(), "still here\n");
    });
}

#[test]
fn twenty_commands_at_once_do_not_mix() {
    with_sandbox(async |guest| {
        let commands: Vec<_> =
            (0..20).map(|n| format!("for i in 1 2 3; do echo {n}; done")).collect();
        let mut running = Vec::new();
        for line in &commands {
            running.push(guest.guest().exec(&shell(line)).unwrap());
        }
        for (n, process) in running.into_iter().enumerate() {
            let out = process.stdout().read_to_end().await.unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), format!("{n}\n{n}\n{n}\n"));
            assert_eq!(process.wait().await.unwrap().outcome, Outcome::Exited { code: 0 });
        }
    });
}

#[test]
fn an_echo_through_the_guest_is_faithful() {
    with_sandbox(async |guest| {
        let mut cat = argv(&["cat"]);
        cat.stdin = true;
        let process = guest.guest().exec(&cat).unwrap();
        let (input, out) = (process.stdin(), process.stdout());
        let sent: Vec<u8> =
            (0..4_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let writing = async {
            for chunk in sent.chunks(77_777) {
                input.write(chunk).await.unwrap();
            }
            input.finish();
        };
        let ((), got) = tokio::join!(writing, out.read_to_end());
        assert!(got.unwrap() == sent, "the echo differs");
    });
}
