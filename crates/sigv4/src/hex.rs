//! Lower-case hexadecimal, the only form that signatures and hashes have.

/// The text of 32 bytes.
pub(crate) fn encode(bytes: &[u8; 32]) -> [u8; 64] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 64];
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    text
}

/// As [`encode`], as text.
pub(crate) fn text(bytes: &[u8; 32]) -> String {
    encode(bytes).map(char::from).iter().collect()
}

/// The text of a signature or hash, if that is what it is.
pub(crate) fn checked(text: &[u8]) -> Option<[u8; 64]> {
    let text: [u8; 64] = text.try_into().ok()?;
    text.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')).then_some(text)
}

/// The 32 bytes of a text.
pub(crate) fn decode(text: &[u8]) -> Option<[u8; 32]> {
    let digits = checked(text)?.map(|digit| match digit {
        b'0'..=b'9' => digit - b'0',
        _ => digit - b'a' + 10,
    });
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_again() {
        assert_eq!(decode(&encode(&crate::EMPTY)), Some(crate::EMPTY));
        assert!(text(&crate::EMPTY).starts_with("e3b0c442"));
    }

    #[test]
    fn other_text_is_no_hash() {
        for text in ["", "e3", &"A".repeat(64), &"g".repeat(64), &"a".repeat(63), &"a".repeat(65)] {
            assert_eq!(decode(text.as_bytes()), None, "{text}");
        }
    }
}
