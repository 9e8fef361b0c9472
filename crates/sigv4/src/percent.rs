//! Percent-encoding as signatures have it: everything but unreserved characters, in capitals.

/// Adds one byte.
pub(crate) fn push(text: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
        text.push(char::from(byte));
        return;
    }
    text.push('%');
    text.push(char::from(DIGITS[usize::from(byte >> 4)]));
    text.push(char::from(DIGITS[usize::from(byte & 15)]));
}

/// The bytes of `text`, decoded once, each with whether it was encoded; `None` at a `%` that has no two
/// hexadecimal digits.
pub(crate) fn decoded(text: &str) -> impl Iterator<Item = Option<(u8, bool)>> {
    let mut bytes = text.bytes();
    std::iter::from_fn(move || {
        let byte = bytes.next()?;
        if byte != b'%' {
            return Some(Some((byte, false)));
        }
        let mut digit =
            || char::from(bytes.next()?).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let (high, low) = (digit(), digit());
        Some(high.zip(low).map(|(high, low)| (high << 4 | low, true)))
    })
}

/// A key or a value of a query, decoded. `+` is a space, as forms have it.
pub(crate) fn query_word(text: &str) -> Option<Vec<u8>> {
    let plus =
        |(byte, was_encoded): (u8, bool)| if byte == b'+' && !was_encoded { b' ' } else { byte };
    decoded(text).map(|step| step.map(plus)).collect()
}
