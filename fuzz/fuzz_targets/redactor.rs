//! Credentials that are taken out of a text on its way: the same as out of the whole, whatever the
//! pieces, and the same as replacing by hand.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use redact::{Covered, Redactor};
use wire::text::Secret;

const SETS: [&[&str]; 3] =
    [&["0123456789abcdef"], &["abcabcabd", "bcabdabcabx"], &["sk-live/9f+\"\\Zq", "aaaaaaaab"]];

static REDACTORS: LazyLock<Vec<Arc<Redactor>>> = LazyLock::new(|| {
    let redactor = |texts: &[&str]| {
        let secrets: Vec<Secret> =
            texts.iter().map(|text| Secret::new(text.as_bytes().to_vec()).unwrap()).collect();
        let covered = secrets.iter().map(|secret| Covered { secret, placeholder: b"#########" });
        Arc::new(Redactor::new(covered).unwrap())
    };
    SETS.iter().map(|texts| redactor(texts)).collect()
});

fuzz_target!(|input: &[u8]| {
    let Some((choices, text)) = input.split_at_checked(4) else { return };
    let set = usize::from(choices[0]) % SETS.len();
    let redactor = &REDACTORS[set];
    let mut whole = text.to_vec();
    let count = redactor.replace(&mut whole);
    assert_eq!(whole.len(), text.len());

    let (mut stream, mut out) = (redactor.clone().stream(), Vec::new());
    let (mut rest, mut sizes) = (text, choices[1..].iter().cycle());
    while !rest.is_empty() {
        let size = usize::from(*sizes.next().unwrap()).clamp(1, rest.len());
        let (piece, after) = rest.split_at(size);
        stream.push(piece, &mut out);
        // No more is held back than may become a secret.
        assert!(stream.held() < 128);
        rest = after;
    }
    assert_eq!(stream.finish(&mut out), count);
    assert!(out == whole);

    // By hand: none is left, and where there was none nothing changed.
    let has =
        |text: &[u8], part: &str| text.windows(part.len()).any(|window| window == part.as_bytes());
    for secret in SETS[set] {
        assert!(!has(&whole, secret));
        let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
        assert!(!has(&whole, &hex) && !has(&whole, &hex.to_uppercase()));
    }
    if count == 0 {
        assert!(whole == text);
    }
    let mut again = whole.clone();
    assert_eq!(redactor.replace(&mut again), 0, "nothing of what was put in is a secret");
});
