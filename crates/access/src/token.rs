//! Tokens of our own: `sf_live_` and 256 random bits. Only their SHA-256 is ever kept.

use std::collections::BTreeSet;
use std::fmt;

use api::{CallerKind, Code, Operation, Problem, Role, Secret, Timestamp};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::Caller;

/// What every token begins with: scanners for leaked secrets know tokens by it.
pub const PREFIX: &str = "sf_live_";
/// Longest token that is looked at, in bytes.
pub const MAX_LENGTH: usize = 136;
/// Fewest characters after the prefix.
const LEAST_RANDOM: usize = 32;

/// SHA-256 of a token. The token has 256 random bits: no salt and no slow hash are needed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash([u8; 32]);

/// Why a token is not taken. A caller is told no more than that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not have the form of a token.
    #[error("a token is `{PREFIX}` and {LEAST_RANDOM} to 128 of letters, digits, `_` and `-`")]
    Form,
    /// No token has this hash.
    #[error("there is no such token")]
    Unknown,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// It was revoked.
    #[error("the token was revoked")]
    Revoked,
}

impl From<TokenError> for Problem {
    fn from(_: TokenError) -> Self {
        Self::new(Code::Unauthenticated, "the token is unknown, expired or revoked")
            .with_remedy("make a token with `sandforge token create`")
    }
}

/// The system has no random numbers.
#[derive(Debug, thiserror::Error)]
#[error("cannot get random numbers from the system: {0}")]
pub struct NoRandomness(getrandom::Error);

/// A new token and its hash.
///
/// # Errors
/// `NoRandomness`.
pub fn generate() -> Result<(Secret, TokenHash), NoRandomness> {
    let mut random = Zeroizing::new([0_u8; 32]);
    getrandom::fill(random.as_mut()).map_err(NoRandomness)?;
    let mut text = Zeroizing::new([0_u8; PREFIX.len() + 43]);
    text[..PREFIX.len()].copy_from_slice(PREFIX.as_bytes());
    URL_SAFE_NO_PAD
        .encode_slice(random.as_ref(), &mut text[PREFIX.len()..])
        .expect("32 bytes are 43 characters");
    let hash = TokenHash(Sha256::digest(text.as_ref()).into());
    let secret = Secret::new(text.to_vec()).expect("base64 has no NUL");
    Ok((secret, hash))
}

impl TokenHash {
    /// The hash of a token that was presented, or that seeds the administrator's.
    ///
    /// # Errors
    /// `Form` where it cannot be one; it is not looked up then.
    pub fn of(token: &str) -> Result<Self, TokenError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
        let random = token.strip_prefix(PREFIX).ok_or(TokenError::Form)?;
        let fits = random.len() >= LEAST_RANDOM && token.len() <= MAX_LENGTH;
        match fits && random.bytes().all(plain) {
            true => Ok(Self(Sha256::digest(token).into())),
            false => Err(TokenError::Form),
        }
    }

    /// As it was stored.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// To be stored.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hash]")
    }
}

/// A token as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// Its id.
    pub id: String,
    /// Its hash.
    pub hash: TokenHash,
    /// Who it stands for.
    pub subject: String,
    /// `Administrator` for the seeded one, else `Token`.
    pub kind: CallerKind,
    /// What it may do.
    pub role: Role,
    /// Where; everywhere when absent.
    pub workspace: Option<String>,
    /// Only these operations.
    pub operations: Option<BTreeSet<Operation>>,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// Who presents the token of this hash, given what the store `found` under it.
///
/// # Errors
/// `Unknown`, `Expired` or `Revoked`.
pub fn admit(
    found: Option<&TokenRecord>,
    presented: &TokenHash,
    now: Timestamp,
) -> Result<Caller, TokenError> {
    let record = found.ok_or(TokenError::Unknown)?;
    // The store's comparison is not in constant time, and need not be: hashes are no secrets to
    // be guessed byte by byte. This one makes its answer not trusted.
    if !bool::from(record.hash.0.ct_eq(&presented.0)) {
        return Err(TokenError::Unknown);
    }
    if record.revoked_at.is_some() {
        return Err(TokenError::Revoked);
    }
    if record.expires_at.is_some_and(|end| end <= now) {
        return Err(TokenError::Expired);
    }
    Ok(Caller {
        subject: record.subject.clone(),
        kind: record.kind,
        role: record.role,
        workspace: record.workspace.clone(),
        operations: record.operations.clone(),
        token_id: Some(record.id.clone()),
        key_id: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(secret: &Secret) -> String {
        String::from_utf8(secret.expose().to_vec()).unwrap()
    }

    fn record(hash: TokenHash) -> TokenRecord {
        TokenRecord {
            id: "tok-1".into(),
            hash,
            subject: "ci".into(),
            kind: CallerKind::Token,
            role: Role::Member,
            workspace: Some("red".into()),
            operations: None,
            expires_at: None,
            revoked_at: None,
        }
    }

    const NOW: i64 = 1_000_000;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_unix_ms(ms)
    }

    #[test]
    fn a_new_token_is_known_by_its_hash() {
        let (secret, hash) = generate().unwrap();
        let text = text(&secret);
        assert!(text.starts_with("sf_live_") && text.len() == 51, "{text}");
        assert_eq!(TokenHash::of(&text), Ok(hash));
        let caller = admit(Some(&record(hash)), &hash, at(NOW)).unwrap();
        assert_eq!((caller.role, caller.workspace.as_deref()), (Role::Member, Some("red")));
        assert_eq!(caller.token_id.as_deref(), Some("tok-1"));
    }

    #[test]
    fn no_two_tokens_are_alike() {
        assert_ne!(generate().unwrap().1, generate().unwrap().1);
    }

    #[test]
    fn neither_token_nor_hash_prints() {
        let (secret, hash) = generate().unwrap();
        assert_eq!(format!("{secret:?} {hash:?}"), "[secret] [hash]");
    }

    #[test]
    fn what_is_no_token_is_not_looked_up() {
        let good = format!("sf_live_{}", "a".repeat(43));
        assert!(TokenHash::of(&good).is_ok());
        for bad in [
            "",
            "sf_live_",
            "sf_live_short",
            &good.to_uppercase(),
            &format!("{good}="),
            &format!("{good} "),
            &format!("{good}\0"),
            &format!("sf_live_{}", "a".repeat(129)),
        ] {
            assert_eq!(TokenHash::of(bad), Err(TokenError::Form), "{bad:?}");
        }
    }

    #[test]
    fn an_unknown_token_is_refused() {
        let (_, hash) = generate().unwrap();
        assert_eq!(admit(None, &hash, at(NOW)), Err(TokenError::Unknown));
    }

    #[test]
    fn a_store_that_finds_another_token_is_not_believed() {
        let (_, hash) = generate().unwrap();
        let (_, other) = generate().unwrap();
        assert_eq!(admit(Some(&record(other)), &hash, at(NOW)), Err(TokenError::Unknown));
    }

    #[test]
    fn an_expired_token_is_refused_from_its_last_moment_on() {
        let (_, hash) = generate().unwrap();
        let record = TokenRecord { expires_at: Some(at(NOW)), ..record(hash) };
        assert!(admit(Some(&record), &hash, at(NOW - 1)).is_ok());
        assert_eq!(admit(Some(&record), &hash, at(NOW)), Err(TokenError::Expired));
    }

    #[test]
    fn a_revoked_token_is_refused() {
        let (_, hash) = generate().unwrap();
        let record = TokenRecord { revoked_at: Some(at(NOW)), ..record(hash) };
        assert_eq!(admit(Some(&record), &hash, at(NOW - 1)), Err(TokenError::Revoked));
    }

    #[test]
    fn a_caller_is_not_told_why_its_token_was_refused() {
        let told =
            [TokenError::Unknown, TokenError::Expired, TokenError::Revoked, TokenError::Form]
                .map(Problem::from);
        assert!(told.iter().all(|problem| problem == &told[0]));
    }
}
