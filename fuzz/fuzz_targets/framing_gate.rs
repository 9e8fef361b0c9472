//! The gate before the HTTP parser: what it lets through is messages of one length and one end, to a
//! reader of its own, and the same however the bytes were cut.
#![no_main]

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncRead, ReadBuf};

#[allow(dead_code, reason = "nobody answers here")]
#[path = "../../crates/egress/src/gate.rs"]
mod gate;

/// Gives bytes in pieces, and then its end.
struct Pieces<'a> {
    bytes: &'a [u8],
    sizes: &'a [u8],
    at: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let size = match self.sizes.is_empty() {
            true => usize::MAX,
            false => usize::from(self.sizes[self.at % self.sizes.len()]).max(1),
        };
        self.at += 1;
        let (piece, rest) = self.bytes.split_at(size.min(self.bytes.len()).min(out.remaining()));
        out.put_slice(piece);
        self.bytes = rest;
        Poll::Ready(Ok(()))
    }
}

/// All that comes out before the end, or before somebody would have to answer.
fn through(bytes: &[u8], sizes: &[u8]) -> Vec<u8> {
    let (mut gated, _answer) = gate::Gated::new(Pieces { bytes, sizes, at: 0 });
    let mut context = Context::from_waker(Waker::noop());
    let mut all = Vec::new();
    loop {
        let mut space = [0; 999];
        let mut out = ReadBuf::new(&mut space);
        match Pin::new(&mut gated).poll_read(&mut context, &mut out) {
            Poll::Ready(Ok(())) if !out.filled().is_empty() => all.extend_from_slice(out.filled()),
            _ => return all,
        }
    }
}

/// Reads messages as RFC 9112 has them, and nothing besides.
fn read(mut rest: &[u8]) {
    loop {
        while let Some(after) = rest.strip_prefix(b"\r\n") {
            rest = after;
        }
        if rest.is_empty() {
            return;
        }
        let end =
            rest.windows(4).position(|part| part == b"\r\n\r\n").expect("heads pass whole") + 4;
        let head = std::str::from_utf8(&rest[..end]).map(str::to_owned);
        let head =
            head.unwrap_or_else(|_| rest[..end].iter().map(|&byte| char::from(byte)).collect());
        rest = &rest[end..];
        assert!(!head.contains('\0') && !head.replace("\r\n", "").contains(['\r', '\n']));
        let mut lines = head.trim_end_matches("\r\n").split("\r\n");
        let line: Vec<&str> = lines.next().unwrap().split(' ').collect();
        assert!(line.len() == 3 && ["HTTP/1.0", "HTTP/1.1"].contains(&line[2]), "{line:?}");
        let fields: Vec<(String, &str)> = lines
            .map(|line| line.split_once(':').expect("a field"))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim_matches([' ', '\t'])))
            .collect();
        assert!(fields.iter().all(|(name, _)| !name.is_empty() && !name.contains([' ', '\t'])));
        let values = |wanted: &str| -> Vec<&str> {
            fields.iter().filter(|(name, _)| name == wanted).map(|(_, value)| *value).collect()
        };
        let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
        assert_eq!(values("host").len(), 1);
        assert!(lengths.len() + codings.len() <= 1);
        let switches = !values("upgrade").is_empty() || line[0] == "CONNECT";
        if let Some(length) = lengths.first() {
            assert!(length.bytes().all(|byte| byte.is_ascii_digit()));
            let length: usize = length.parse().unwrap();
            assert!(length == 0 || values("upgrade").is_empty());
            rest = &rest[length.min(rest.len())..];
            if length > 0 {
                continue;
            }
        } else if let Some(coding) = codings.first() {
            assert!(*coding == "chunked" && line[2] == "HTTP/1.1" && values("upgrade").is_empty());
            match chunks(rest) {
                Some(after) => rest = after,
                None => return,
            }
            continue;
        }
        if switches {
            assert!(rest.is_empty(), "nothing passes before the answer");
            return;
        }
    }
}

/// What follows the last chunk and the trailers, if they are complete.
fn chunks(mut rest: &[u8]) -> Option<&[u8]> {
    loop {
        let end = rest.windows(2).position(|part| part == b"\r\n")?;
        let (size, after) = (&rest[..end], &rest[end + 2..]);
        assert!((1..=17).contains(&size.len()) && size.iter().all(u8::is_ascii_hexdigit));
        let size = u64::from_str_radix(std::str::from_utf8(size).unwrap(), 16).unwrap();
        rest = after;
        if size == 0 {
            loop {
                let end = rest.windows(2).position(|part| part == b"\r\n")?;
                let line = &rest[..end];
                rest = &rest[end + 2..];
                if line.is_empty() {
                    return Some(rest);
                }
                assert!(!line.contains(&b'\n') && !line.contains(&b'\r') && !line.contains(&0));
            }
        }
        let size = usize::try_from(size).ok().filter(|size| rest.len() >= *size)?;
        rest = &rest[size..];
        let end = rest.split_at_checked(2)?;
        assert_eq!(end.0, b"\r\n");
        rest = end.1;
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((sizes, bytes)) = input.split_at_checked(3) else { return };
    let whole = through(bytes, &[]);
    assert!(whole == through(bytes, sizes), "it depends on where it is cut");
    match whole.strip_suffix(b"\0\r\n\r\n") {
        // What it refused may have begun: the chunks of a body pass as they come.
        Some(before) if bytes.starts_with(before) => {
            if let Err(error) = std::panic::catch_unwind(|| read(before)) {
                std::panic::resume_unwind(error);
            }
        }
        _ => {
            assert!(bytes.starts_with(&whole), "it changes nothing");
            read(&whole);
        }
    }
});
