//! The search for a knock in what lies on a carrier: any cut of the bytes finds what a search in
//! the whole finds. And the hello, which is the first JSON of a stranger.
#![no_main]

use fuzz::choices::Choices;
use libfuzzer_sys::fuzz_target;
use wire::handshake::{Hello, KNOCK, NONCE, Scanner, knock};

const OURS: [u8; NONCE] = *b"nonce of ours...";

fuzz_target!(|data: &[u8]| {
    let mut choices = Choices::new(data);
    let only_ours = choices.of(2) == 1;
    let cut = 1 + choices.of(64);
    let bytes = stream(&mut choices);

    let mut scanner = if only_ours { Scanner::echo_of(OURS) } else { Scanner::any() };
    let mut found = Vec::new();
    let mut offset = 0;
    for mut chunk in bytes.chunks(cut) {
        while let Some((nonce, used)) = scanner.scan(chunk) {
            assert!(used <= chunk.len());
            offset += used;
            found.push((nonce, offset));
            chunk = &chunk[used..];
        }
        offset += chunk.len();
    }
    assert_eq!(found, knocks(&bytes, only_ours));

    if let Ok(hello) = serde_json::from_slice::<Hello>(data) {
        let encoded = serde_json::to_vec(&hello).expect("what was read can be written");
        assert_eq!(serde_json::from_slice::<Hello>(&encoded).expect("and read"), hello);
        match hello.agree() {
            Ok(version) => assert!((hello.oldest_version..=hello.version).contains(&version)),
            Err(error) => assert!(!error.to_string().contains(char::is_control)),
        }
    }
});

/// Knocks, ours and others', with parts of knocks and other bytes around them.
fn stream(choices: &mut Choices<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !choices.is_empty() {
        match choices.of(4) {
            0 => bytes.extend(knock(&OURS)),
            1 => bytes.extend(&knock(&OURS)[..choices.of(KNOCK)]),
            2 => bytes.extend(knock(&[choices.byte(); NONCE])),
            _ => {
                let length = choices.of(64);
                bytes.extend(choices.take(length));
            }
        }
    }
    bytes
}

fn knocks(bytes: &[u8], only_ours: bool) -> Vec<([u8; NONCE], usize)> {
    let prefix = &knock(&OURS)[..KNOCK - NONCE];
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(candidate) = bytes.get(at..at + KNOCK) {
        let nonce = candidate.strip_prefix(prefix).and_then(|nonce| nonce.try_into().ok());
        match nonce.filter(|nonce| !only_ours || *nonce == OURS) {
            Some(nonce) => {
                at += KNOCK;
                found.push((nonce, at));
            }
            None => at += 1,
        }
    }
    found
}
