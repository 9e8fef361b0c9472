//! `Basic`, the user and the password of a request (RFC 7617), in one reading.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// Longest token, in bytes.
const MAX_TOKEN: usize = 8192;

/// The user and the password, where the value is in the one form that every server reads alike.
pub(crate) fn read(value: &str) -> Option<(String, String)> {
    let (scheme, token) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") || token.len() > MAX_TOKEN {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(token).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

/// The value for `USER:PASSWORD`.
pub(crate) fn write(text: &str) -> Zeroizing<String> {
    let mut value = Zeroizing::new(String::with_capacity(6 + text.len().div_ceil(3) * 4));
    value.push_str("Basic ");
    STANDARD.encode_string(text, &mut value);
    value
}
