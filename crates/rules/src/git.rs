//! Git's pushes, and batches of LFS.

use crate::body::{Ask, Unread};
use crate::json::Json;

/// Longest pkt-line, with its length.
const MAX_LINE: usize = 65520;

/// Capabilities of a push that change nothing about which refs it is for. Not among them are
/// `push-options`, which ask servers for more than a push, and `push-cert`, whose commands are
/// written elsewhere.
const CAPABILITIES: [&str; 11] = [
    "report-status",
    "report-status-v2",
    "delete-refs",
    "side-band",
    "side-band-64k",
    "quiet",
    "atomic",
    "ofs-delta",
    "object-format",
    "agent",
    "session-id",
];

fn wrong(text: impl Into<String>) -> Unread {
    Unread::Wrong(text.into())
}

/// The refs that a push changes: the commands before the first flush packet, all of them.
pub(crate) fn push(body: &[u8], is_whole: bool) -> Result<Vec<Ask>, Unread> {
    let short = || match is_whole {
        true => wrong("its commands end too early"),
        false => Unread::More,
    };
    let mut asks = Vec::new();
    let mut rest = body;
    loop {
        let (length, after) = rest.split_at_checked(4).ok_or_else(short)?;
        let length = std::str::from_utf8(length)
            .ok()
            .filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|text| usize::from_str_radix(text, 16).ok())
            .ok_or_else(|| wrong("it does not begin with commands"))?;
        if length == 0 {
            return Ok(asks);
        }
        let length = length.checked_sub(4).filter(|length| (1..=MAX_LINE - 4).contains(length));
        let length = length.ok_or_else(|| wrong("a command has a length that none has"))?;
        let (line, after) = after.split_at_checked(length).ok_or_else(short)?;
        if let Some(ask) = command(line, asks.is_empty())? {
            asks.push(ask);
        }
        rest = after;
    }
}

/// One command: the old value, the new one and the ref, and with the first what the client can.
fn command(line: &[u8], is_first: bool) -> Result<Option<Ask>, Unread> {
    let line = std::str::from_utf8(line).map_err(|_| wrong("a command is not text"))?;
    let line = line.strip_suffix('\n').unwrap_or(line);
    if let Some(id) = line.strip_prefix("shallow ") {
        return match is_first && is_id(id) {
            true => Ok(None),
            false => Err(wrong("a command is not one that rules know")),
        };
    }
    let (command, capabilities) = match line.split_once('\0') {
        Some((command, capabilities)) if is_first => (command, capabilities),
        Some(_) => return Err(wrong("a command has a NUL")),
        None => (line, ""),
    };
    for capability in capabilities.split(' ').filter(|text| !text.is_empty()) {
        let name = capability.split('=').next().unwrap_or_default();
        if !CAPABILITIES.contains(&name) {
            return Err(wrong(format!("it asks for {name:?}, which no rule about refs can judge")));
        }
    }
    let mut words = command.splitn(3, ' ');
    let (old, new, name) = (words.next(), words.next(), words.next());
    match (old, new, name) {
        (Some(old), Some(new), Some(name)) if is_id(old) && is_id(new) && is_ref(name) => {
            Ok(Some(Ask::Ref(name.to_owned())))
        }
        _ => Err(wrong("a command is not one that rules know")),
    }
}

fn is_id(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// As git itself checks the name of a ref (git-check-ref-format).
fn is_ref(name: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && !part.ends_with('.')
            && !part.ends_with(".lock")
    };
    let has = |bad: char| bad.is_control() || " ~^:?*[\\".contains(bad);
    !name.contains(has)
        && !name.contains("..")
        && !name.contains("@{")
        && name.split('/').all(is_part)
}

/// What a batch of LFS is for.
pub(crate) fn lfs(body: &[u8]) -> Result<Vec<Ask>, String> {
    let json = Json::parse(body)?;
    let object = json.object().ok_or("it is not a JSON object")?;
    object.check(&["operation", "objects", "transfers", "ref", "hash_algo"])?;
    let upload = match object.get("operation").and_then(Json::text) {
        Some("upload") => true,
        Some("download") => false,
        _ => return Err("it does not say whether it is an upload or a download".to_owned()),
    };
    Ok(vec![Ask::Objects { upload }])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ZERO: &str = "0000000000000000000000000000000000000000";
    const ID: &str = "1111111111111111111111111111111111111111";

    fn line(text: &str) -> String {
        format!("{:04x}{text}", text.len() + 4)
    }

    fn update(name: &str) -> String {
        line(&format!("{ZERO} {ID} {name}\n"))
    }

    fn first(name: &str, capabilities: &str) -> String {
        line(&format!("{ZERO} {ID} {name}\0 {capabilities}"))
    }

    fn refs(body: &str) -> Result<Vec<String>, Unread> {
        let name = |ask: Ask| match ask {
            Ask::Ref(name) => name,
            other => other.to_string(),
        };
        push(body.as_bytes(), true).map(|asks| asks.into_iter().map(name).collect())
    }

    #[test]
    fn every_ref_before_the_flush_counts() {
        let body =
            first("refs/heads/a", "report-status-v2 side-band-64k object-format=sha1 agent=git/2")
                + &update("refs/heads/b")
                + "0000PACK\0\0refs/heads/c";
        assert_eq!(refs(&body), Ok(vec!["refs/heads/a".into(), "refs/heads/b".into()]));
        assert_eq!(refs(&(line(&format!("shallow {ID}\n")) + &body)).unwrap().len(), 2);
        // What git sends to find out whether it may.
        assert_eq!(refs("0000"), Ok(vec![]));
    }

    #[test]
    fn nothing_is_said_before_the_flush() {
        let body = update("refs/heads/a") + &update("refs/heads/b") + "0000PACK";
        let end = body.len() - 4;
        for length in 0..end {
            assert_eq!(push(&body.as_bytes()[..length], false), Err(Unread::More), "{length}");
            assert!(push(&body.as_bytes()[..length], true).is_err());
        }
        assert_eq!(push(&body.as_bytes()[..end], false).unwrap().len(), 2);
    }

    #[test]
    fn what_changes_more_than_refs_is_refused() {
        for body in [
            first("refs/heads/a", "report-status push-options") + "0000",
            first("refs/heads/a", "unheard-of") + "0000",
            line("push-cert\0 report-status") + "0000",
            update("refs/heads/a") + &first("refs/heads/b", "atomic") + "0000",
            update("refs/heads/a") + &line(&format!("shallow {ID}")) + "0000",
            line("0000 1111 refs/heads/a") + "0000",
            line(&format!("{ZERO} {ID} refs/heads/a b")) + "0000",
            line(&format!("{ZERO} {ID} refs/heads/../main")) + "0000",
            line(&format!("{ZERO} {ID} refs//heads/main")) + "0000",
            line(&format!("{ZERO} {ID} refs/heads/main.lock")) + "0000",
            line(&format!("{ZERO} {ID}")) + "0000",
            "0001".to_owned(),
            "0004".to_owned(),
            "+00a".to_owned(),
            "fff9".to_owned() + &"a".repeat(70000),
            "{\"a\":1}".to_owned(),
        ] {
            assert!(matches!(refs(&body), Err(Unread::Wrong(_))), "{body:?}");
        }
    }

    #[test]
    fn a_batch_says_which_way_objects_go() {
        let of = |text: &str| lfs(text.as_bytes());
        assert_eq!(
            of(r#"{"operation":"download","objects":[{"oid":"a","size":1}]}"#),
            Ok(vec![Ask::Objects { upload: false }])
        );
        assert_eq!(of(r#"{"operation":"upload"}"#), Ok(vec![Ask::Objects { upload: true }]));
        for text in [
            r#"{"operation":"download","operation":"upload"}"#,
            r#"{"operation":"download","Operation":"upload"}"#,
            r#"{"operation":"Upload"}"#,
            r#"{"objects":[]}"#,
            r#"[{"operation":"download"}]"#,
        ] {
            assert!(of(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_much(body: Vec<u8>, is_whole: bool) {
            let _ = push(&body, is_whole);
            let _ = lfs(&body);
        }
    }
}
