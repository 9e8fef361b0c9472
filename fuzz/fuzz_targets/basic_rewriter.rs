//! `Basic`: what is read is what every other reader reads, and is written as it was.
#![no_main]

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use libfuzzer_sys::fuzz_target;

#[path = "../../crates/egress/src/basic.rs"]
mod basic;

fuzz_target!(|input: &str| {
    let Some((user, password)) = basic::read(input) else { return };
    assert!(!user.contains(':'));
    let text = format!("{user}:{password}");
    let written = basic::write(&text);
    let (scheme, token) = input.split_once(' ').unwrap();
    assert!(scheme.eq_ignore_ascii_case("basic"));
    assert_eq!(written.as_str(), format!("Basic {token}"));
    assert_eq!(basic::read(&written), Some((user, password)));
    // A server that is less strict reads the same.
    let lenient = GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let lenient = GeneralPurpose::new(&STANDARD, lenient);
    assert_eq!(lenient.decode(token).unwrap(), text.as_bytes());
});
