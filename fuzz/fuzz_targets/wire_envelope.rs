//! Envelopes: nothing opens but what was sealed, however it was changed on its way. And the
//! operations in them: what is read from JSON is written and read again as the same.
#![no_main]

use std::fmt::Debug;

use fuzz::choices::Choices;
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{from_slice, to_vec};
use wire::envelope::{Opener, SALT, Sealer, SigningKey};
use wire::op::{self, Operation};

const NOW: u64 = 1_000;
const LATER: u64 = 2_000;

fuzz_target!(|data: &[u8]| {
    let mut choices = Choices::new(data);
    match choices.of(4) {
        0 => open(choices.rest()),
        1 => open(&changed(&mut choices)),
        _ => read_all(choices.rest()),
    }
});

fn sealed() -> [(&'static str, Vec<u8>, Vec<u8>); 2] {
    let mut sealer = Sealer::new(SigningKey::from_bytes(&[42; 32]), "sb-1", 0);
    let signal = op::Signal { process: "p1".into(), signal: 15 };
    let read = op::Read { path: "/a \"b\" \u{7f}é".into(), offset: 7, length: None, user: None };
    [seal(&mut sealer, &signal), seal(&mut sealer, &read)]
}

fn seal<O: Operation>(sealer: &mut Sealer, operation: &O) -> (&'static str, Vec<u8>, Vec<u8>) {
    let (envelope, _) = sealer.seal(operation, LATER, &[7; SALT]).expect("it is short");
    (O::NAME, to_vec(operation).expect("it is JSON"), envelope.to_vec())
}

/// One of the sealed envelopes after some edits.
fn changed(choices: &mut Choices<'_>) -> Vec<u8> {
    let sealed = sealed();
    let (_, _, other) = &sealed[1];
    let mut envelope = sealed[0].2.clone();
    for _ in 0..choices.of(8) {
        let at = choices.word() % (envelope.len() + 1);
        let length = choices.of(32);
        let end = (at + length).min(envelope.len());
        let (end, part) = match choices.of(4) {
            0 => (end, choices.take(length)),
            1 => (at, choices.take(length)),
            2 => (end, &[][..]),
            _ => {
                let from = choices.word() % other.len();
                (end, &other[from..(from + length).min(other.len())])
            }
        };
        envelope.splice(at..end, part.iter().copied());
    }
    envelope
}

fn open(envelope: &[u8]) {
    let key = SigningKey::from_bytes(&[42; 32]).verifying_key();
    // None of what is sealed here is what a template's machine takes.
    assert!(Opener::of_template().open(envelope, NOW).is_err());
    let mut opener = Opener::new(key, "sb-1");
    match opener.open(envelope, NOW) {
        Ok(opened) => {
            let (op, payload) = (opened.op, opened.payload);
            let genuine = sealed().iter().any(|(name, bytes, _)| *name == op && bytes == payload);
            assert!(genuine, "{op} was never sealed like this");
            assert!(opener.open(envelope, NOW).is_err(), "it opens twice");
            assert!(Opener::new(key, "sb-2").open(envelope, NOW).is_err());
            assert!(Opener::new(key, "sb-1").open(envelope, LATER).is_err());
        }
        Err(_) => assert_eq!(opener.sequence(), 0, "a refused envelope used its number"),
    }
}

macro_rules! read_as {
    ($json:expr, $($type:ty,)*) => {$( stable::<$type>($json); )*};
}

fn read_all(json: &[u8]) {
    read_as!(
        json,
        op::Exec,
        op::Stdin,
        op::Signal,
        op::Resize,
        op::Attach,
        op::Processes,
        op::Read,
        op::Write,
        op::Stat,
        op::List,
        op::Mkdir,
        op::Rename,
        op::Remove,
        op::Watch,
        op::TarIn,
        op::TarOut,
        op::Clock,
        op::Reseed,
        op::Become,
        op::Network,
        op::NetworkReply,
        op::Info,
        op::Shutdown,
        op::AgentOpen,
        op::ExecReply,
        op::ProcessList,
        op::Transferred,
        op::FileInfo,
        op::Done,
        op::GuestInfo,
        op::WatchEvent,
        op::OpError,
        wire::text::Text,
        wire::text::Secret,
    );
}

fn stable<T: Serialize + DeserializeOwned + PartialEq + Debug>(json: &[u8]) {
    let Ok(value) = from_slice::<T>(json) else { return };
    let written = to_vec(&value).expect("what was read can be written");
    let again: T = from_slice(&written).expect("what was written can be read");
    assert_eq!(again, value);
    assert_eq!(to_vec(&again).expect("it was possible once"), written);
}
