//! The Authorization header.

use api::{Code, Problem};

use crate::{jwt, token};

/// What a caller presented. It is not in `Debug`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Bearer<'a> {
    /// One of our tokens.
    Token(&'a str),
    /// One of an identity provider's.
    Jwt(&'a str),
}

impl std::fmt::Debug for Bearer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Token(_) => "Token([secret])",
            Self::Jwt(_) => "Jwt([secret])",
        })
    }
}

/// The Authorization header has no token that could be valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BearerError {
    /// It is of another scheme, or not ASCII.
    #[error("the Authorization header is not `Bearer` and a token")]
    Scheme,
    /// No token is that long.
    #[error("the token is too long")]
    TooLong,
    /// It is neither ours nor a JWT.
    #[error("the token has no form that is known here")]
    Form,
}

impl From<BearerError> for Problem {
    fn from(error: BearerError) -> Self {
        Self::new(Code::Unauthenticated, error.to_string())
    }
}

impl<'a> Bearer<'a> {
    /// Reads the value of an Authorization header.
    ///
    /// # Errors
    /// `BearerError`; no part of the value is in it.
    pub fn parse(header: &'a [u8]) -> Result<Self, BearerError> {
        let (scheme, rest) = header.split_at_checked(7).ok_or(BearerError::Scheme)?;
        if !scheme.eq_ignore_ascii_case(b"bearer ") {
            return Err(BearerError::Scheme);
        }
        let text = std::str::from_utf8(rest).map_err(|_| BearerError::Scheme)?;
        if text.starts_with(token::PREFIX) {
            return match text.len() <= token::MAX_LENGTH {
                true => Ok(Self::Token(text)),
                false => Err(BearerError::TooLong),
            };
        }
        if text.len() > jwt::MAX_LENGTH {
            return Err(BearerError::TooLong);
        }
        let parts = text.split('.');
        let base64 = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
        };
        // A JWT that is not signed has an empty third part.
        match parts.clone().count() == 3 && parts.clone().all(base64) {
            true => Ok(Self::Jwt(text)),
            false => Err(BearerError::Form),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn our_tokens_and_those_of_others_are_told_apart() {
        assert_eq!(Bearer::parse(b"Bearer sf_live_abc"), Ok(Bearer::Token("sf_live_abc")));
        assert_eq!(Bearer::parse(b"bearer a.b.c"), Ok(Bearer::Jwt("a.b.c")));
    }

    #[test]
    fn what_is_neither_is_refused() {
        for (header, error) in [
            (b"".as_slice(), BearerError::Scheme),
            (b"Bearer", BearerError::Scheme),
            (b"Basic YTpi", BearerError::Scheme),
            (b"Bearer \xff.a.b", BearerError::Scheme),
            (b"Bearer ", BearerError::Form),
            (b"Bearer a.b", BearerError::Form),
            (b"Bearer a.b.", BearerError::Form),
            (b"Bearer a.b.c.d", BearerError::Form),
            (b"Bearer a.b.c d", BearerError::Form),
            (b"Bearer  sf_live_abc", BearerError::Form),
        ] {
            assert_eq!(Bearer::parse(header), Err(error), "{:?}", String::from_utf8_lossy(header));
        }
    }

    #[test]
    fn what_is_too_long_is_refused_unread() {
        let long = format!("Bearer sf_live_{}", "a".repeat(token::MAX_LENGTH));
        assert_eq!(Bearer::parse(long.as_bytes()), Err(BearerError::TooLong));
        let long = format!("Bearer a.{}.c", "b".repeat(jwt::MAX_LENGTH));
        assert_eq!(Bearer::parse(long.as_bytes()), Err(BearerError::TooLong));
    }

    #[test]
    fn a_token_does_not_print() {
        let bearer = Bearer::parse(b"Bearer sf_live_abc").unwrap();
        assert_eq!(format!("{bearer:?}"), "Token([secret])");
    }

    proptest! {
        #[test]
        fn no_header_makes_it_fail_otherwise(header: Vec<u8>) {
            let _ = Bearer::parse(&header);
        }
    }
}
