//! The forms in which a server may give a secret back.

use std::fmt::Write as _;

use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

/// One form.
pub(crate) struct Form {
    pub(crate) text: Zeroizing<Vec<u8>>,
    /// The secret as it is.
    pub(crate) is_plain: bool,
}

/// All forms of a secret, some of them equal.
pub(crate) fn of(secret: &[u8]) -> Vec<Form> {
    let mut forms = vec![Form { text: Zeroizing::new(secret.to_vec()), is_plain: true }];
    let mut add = |text: Zeroizing<String>| {
        forms.push(Form { text: Zeroizing::new(text.as_bytes().to_vec()), is_plain: false });
    };
    add(written(secret, |text, byte| write!(text, "{byte:02x}")));
    add(written(secret, |text, byte| write!(text, "{byte:02X}")));
    for keep in [&b"-._~"[..], b"-_.!~*'()"] {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || keep.contains(&byte);
        add(written(secret, |text, byte| match plain(byte) {
            true => write!(text, "{}", char::from(byte)),
            false => write!(text, "%{byte:02X}"),
        }));
        add(written(secret, |text, byte| match plain(byte) {
            true => write!(text, "{}", char::from(byte)),
            false => write!(text, "%{byte:02x}"),
        }));
    }
    for escape_slash in [false, true] {
        if let Some(text) = json(secret, escape_slash) {
            add(text);
        }
    }
    for position in 0..3 {
        add(base64_at(secret, position, &STANDARD_NO_PAD));
        add(base64_at(secret, position, &URL_SAFE_NO_PAD));
    }
    forms
}

fn written(
    secret: &[u8],
    mut write: impl FnMut(&mut String, u8) -> std::fmt::Result,
) -> Zeroizing<String> {
    // Room for all of it at once: a buffer that grows leaves copies behind.
    let mut text = Zeroizing::new(String::with_capacity(6 * secret.len()));
    for &byte in secret {
        let _ = write(&mut text, byte);
    }
    text
}

/// RFC 8259, section 7. Only of text.
fn json(secret: &[u8], escape_slash: bool) -> Option<Zeroizing<String>> {
    let secret = std::str::from_utf8(secret).ok()?;
    let mut text = Zeroizing::new(String::with_capacity(6 * secret.len()));
    for character in secret.chars() {
        let _ = match character {
            '"' | '\\' => write!(text, "\\{character}"),
            '/' if escape_slash => write!(text, "\\/"),
            '\n' => write!(text, "\\n"),
            '\r' => write!(text, "\\r"),
            '\t' => write!(text, "\\t"),
            '\0'..='\x1f' => write!(text, "\\u{:04x}", u32::from(character)),
            _ => write!(text, "{character}"),
        };
    }
    Some(text)
}

/// What base64 makes of a secret that stands at a byte whose number modulo 3 is `position`, without
/// the characters that depend on its neighbours too.
fn base64_at(secret: &[u8], position: usize, engine: &impl base64::Engine) -> Zeroizing<String> {
    let mut padded = Zeroizing::new(vec![0; position]);
    padded.reserve_exact(secret.len());
    padded.extend_from_slice(secret);
    let encoded = Zeroizing::new(engine.encode(&*padded));
    // A character is six bits: the first whole one after `8 * position` bits, the last whole one
    // before the end.
    let first = (8 * position).div_ceil(6);
    let end = 8 * padded.len() / 6;
    Zeroizing::new(encoded[first..end].to_owned())
}
