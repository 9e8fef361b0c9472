//! Bodies in JSON.

use serde::de::DeserializeOwned;

use crate::{Problem, Validate};

/// Reads a body. To JSON Schema `60.0` is an integer, and so it is here.
///
/// # Errors
/// `invalid_request`.
pub fn parse_json<T: DeserializeOwned + Validate>(body: &[u8]) -> Result<T, Problem> {
    let parsed = serde_json::from_slice(body).or_else(|error| match whole(body) {
        Some(body) => serde_json::from_slice(&body),
        None => Err(error),
    });
    let value: T = parsed.map_err(|error| Problem::invalid("body", error.to_string()))?;
    value.validate()?;
    Ok(value)
}

/// The same JSON without fractions that are nothing; none where there is no such.
fn whole(body: &[u8]) -> Option<zeroize::Zeroizing<Vec<u8>>> {
    let mut out = zeroize::Zeroizing::new(Vec::with_capacity(body.len()));
    let (mut rest, mut in_text) = (body, false);
    while let [byte, after @ ..] = rest {
        rest = after;
        match byte {
            b'\\' if in_text => {
                out.push(*byte);
                let [escaped, after @ ..] = rest else { break };
                out.push(*escaped);
                rest = after;
                continue;
            }
            b'"' => in_text = !in_text,
            b'.' if !in_text => {
                let zeros = rest.iter().take_while(|byte| **byte == b'0').count();
                let goes_on = rest.get(zeros).is_some_and(|byte| b"0123456789eE".contains(byte));
                if zeros > 0 && !goes_on {
                    rest = &rest[zeros..];
                    continue;
                }
            }
            _ => {}
        }
        out.push(*byte);
    }
    (out.len() < body.len()).then_some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::{Exec, WindowSize};

    #[test]
    fn a_fraction_that_is_nothing_makes_no_other_number() {
        let size: WindowSize = parse_json(br#"{"rows": 24.0, "cols": 80.00}"#).unwrap();
        assert_eq!((size.rows, size.cols), (24, 80));
        for wrong in [r#"{"rows": 24.5, "cols": 80}"#, r#"{"rows": 24., "cols": 80}"#, "{"] {
            assert!(parse_json::<WindowSize>(wrong.as_bytes()).is_err(), "{wrong}");
        }
        let exec: Exec =
            parse_json(br#"{"command": ["1.0", "\"2.0"], "timeout_sec": 3.0}"#).unwrap();
        let words = json!(["1.0", "\"2.0"]);
        assert_eq!(serde_json::to_value(&exec).unwrap()["command"], words);
        assert_eq!(exec.timeout_sec, Some(3));
    }

    proptest! {
        #[test]
        fn texts_are_left_alone(text in ".*", number in any::<u32>()) {
            let body = format!(r#"[{}, {number}.0]"#, json!(text));
            let read: Value = serde_json::from_slice(&whole(body.as_bytes()).unwrap()).unwrap();
            prop_assert_eq!(read, json!([text, number]));
        }

        #[test]
        fn no_bytes_are_too_odd(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            whole(&bytes);
        }
    }
}
