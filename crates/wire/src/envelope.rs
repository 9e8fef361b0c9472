//! Signed operations. The envelope is JSON; what is signed is a binary encoding of its fields,
//! so that no two readings of the JSON can share a signature.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signature, Signer as _};
pub use ed25519_dalek::{SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize, Zeroizing};

use crate::frame::MAX_OPEN;
use crate::op::{Become, Clock, ErrorCode, OpError, Operation};

/// Separates these signatures from any other use of the key.
const CONTEXT: &[u8] = b"sandforge operation v1\0";
/// Length of an envelope's salt in bytes.
pub const SALT: usize = 16;
/// Longest sandbox id.
pub const MAX_SANDBOX_ID: usize = 64;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    op: &'a str,
    sandbox: &'a str,
    sequence: u64,
    /// Milliseconds since 1970 after which the agent refuses.
    expires_ms: u64,
    /// Makes the digest of a payload with a guessable secret unguessable. It travels with the
    /// operation and is not logged.
    salt: &'a str,
    signature: &'a str,
    #[serde(borrow)]
    payload: &'a RawValue,
}

/// SHA-256 over an operation's canonical encoding: what the audit log and the reply name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskDigest(pub [u8; 32]);

impl std::fmt::Display for TaskDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The fields in the order and the shape in which they are signed: every variable part is
/// preceded by its length as a big-endian u32, numbers are big-endian u64.
fn canonical(
    sandbox: &str,
    sequence: u64,
    expires_ms: u64,
    op: &str,
    salt: &[u8; SALT],
    payload: &[u8],
) -> Vec<u8> {
    let payload_hash = Sha256::new().chain_update(salt).chain_update(payload).finalize();
    let mut bytes = CONTEXT.to_vec();
    let mut part = |part: &[u8]| {
        let length = u32::try_from(part.len()).expect("parts are bounded by MAX_OPEN");
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(part);
    };
    part(sandbox.as_bytes());
    part(&sequence.to_be_bytes());
    part(&expires_ms.to_be_bytes());
    part(op.as_bytes());
    part(&payload_hash);
    bytes
}

/// A public key as 64 hexadecimal digits, which is how the guest receives it at boot.
pub fn key_to_hex(key: &VerifyingKey) -> String {
    key.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads what [`key_to_hex`] wrote.
pub fn key_from_hex(text: &str) -> Option<VerifyingKey> {
    let text = text.as_bytes();
    let digit = |at: usize| char::from(text[at]).to_digit(16).and_then(|d| u8::try_from(d).ok());
    if text.len() != 64 {
        return None;
    }
    let mut bytes = [0; 32];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = digit(2 * index)? << 4 | digit(2 * index + 1)?;
    }
    VerifyingKey::from_bytes(&bytes).ok()
}

/// Why an operation could not be put into an envelope.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Arguments, environment and paths together are too long.
    #[error("the request takes {0} bytes; {MAX_OPEN} are the limit for arguments and environment")]
    TooLong(usize),
    /// The payload has no JSON form.
    #[error("cannot encode the request")]
    Encode(#[from] serde_json::Error),
}

/// The host's half: numbers, dates and signs operations for one sandbox.
#[derive(Debug)]
pub struct Sealer {
    key: SigningKey,
    sandbox: String,
    sequence: u64,
}

impl Sealer {
    /// Signs for another sandbox with another key from now on. The numbers go on.
    pub fn sign_for(&mut self, sandbox: impl Into<String>, key: SigningKey) {
        (self.sandbox, self.key) = (sandbox.into(), key);
    }

    /// Signs for this sandbox with this key, from the sequence number above `last` on.
    pub fn new(key: SigningKey, sandbox: impl Into<String>, last: u64) -> Self {
        Self { key, sandbox: sandbox.into(), sequence: last }
    }

    /// The sandbox that it signs for.
    pub fn sandbox(&self) -> &str {
        &self.sandbox
    }

    /// What its signatures verify under.
    pub fn verifying_key(&self) -> VerifyingKey {
        self.key.verifying_key()
    }

    /// The envelope's bytes, wiped on drop, and the operation's digest.
    ///
    /// # Errors
    /// `SealError` where the operation is longer than a frame can be.
    pub fn seal<O: Operation>(
        &mut self,
        operation: &O,
        expires_ms: u64,
        salt: &[u8; SALT],
    ) -> Result<(Zeroizing<Vec<u8>>, TaskDigest), SealError> {
        let mut payload = WipingBuffer::default();
        serde_json::to_writer(&mut payload, operation)?;
        let payload = payload.0;
        self.sequence += 1;
        let canonical =
            canonical(&self.sandbox, self.sequence, expires_ms, O::NAME, salt, &payload);
        let text = std::str::from_utf8(&payload).expect("serde_json writes UTF-8");
        let envelope = Envelope {
            op: O::NAME,
            sandbox: &self.sandbox,
            sequence: self.sequence,
            expires_ms,
            salt: &BASE64.encode(salt),
            signature: &BASE64.encode(self.key.sign(&canonical).to_bytes()),
            payload: serde_json::from_str(text)?,
        };
        let mut bytes = WipingBuffer::default();
        serde_json::to_writer(&mut bytes, &envelope)?;
        if bytes.0.len() > MAX_OPEN {
            return Err(SealError::TooLong(bytes.0.len()));
        }
        Ok((bytes.0, TaskDigest(Sha256::digest(&canonical).into())))
    }
}

/// An operation that may be carried out.
#[derive(Debug)]
pub struct Opened<'a> {
    /// Its name.
    pub op: &'a str,
    /// Its payload, exactly the bytes that were signed.
    pub payload: &'a [u8],
}

/// The agent's half: lets through what was signed for this sandbox, once, in time.
#[derive(Debug)]
pub struct Opener {
    whose: Whose,
    sequence: u64,
}

/// Whose operations are let through.
#[derive(Debug)]
enum Whose {
    /// A template's: there is nobody yet.
    Nobodys,
    /// [`Become`] was let through, and nobody has said that it was done.
    Becoming,
    Sandbox {
        key: Box<VerifyingKey>,
        id: String,
    },
}

impl Opener {
    /// Accepts operations for this sandbox that verify under this key.
    pub fn new(key: VerifyingKey, sandbox: impl Into<String>) -> Self {
        Self { whose: Whose::Sandbox { key: Box::new(key), id: sandbox.into() }, sequence: 0 }
    }

    /// Accepts [`Become`] alone, by whoever has the key that it brings. Once it did, nothing is
    /// accepted until [`Self::take_identity`].
    pub fn of_template() -> Self {
        Self { whose: Whose::Nobodys, sequence: 0 }
    }

    /// Accepts operations for this sandbox that verify under this key from now on.
    pub fn take_identity(&mut self, key: VerifyingKey, sandbox: impl Into<String>) {
        self.whose = Whose::Sandbox { key: Box::new(key), id: sandbox.into() };
    }

    /// The same as [`Self::new`], where operations up to the number `last` were accepted before.
    pub fn resumed(key: VerifyingKey, sandbox: impl Into<String>, last: u64) -> Self {
        Self { sequence: last, ..Self::new(key, sandbox) }
    }

    /// Whose operations are accepted, and for which sandbox, where there is one.
    pub fn identity(&self) -> Option<(&VerifyingKey, &str)> {
        match &self.whose {
            Whose::Sandbox { key, id } => Some((key, id)),
            Whose::Nobodys | Whose::Becoming => None,
        }
    }

    /// The last sequence number that was accepted.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The operation in an envelope, or why it is refused. Nothing but the signature's own
    /// fields is looked at before the signature verifies; of [`Become`], in a template, also what
    /// it verifies under.
    ///
    /// # Errors
    /// `Invalid` for what is not an envelope, `NotReady` where nobody is known whose it could be,
    /// then `BadSignature`, `WrongSandbox`, `Replayed` and `Expired`, in this order.
    pub fn open<'a>(&mut self, envelope: &'a [u8], now_ms: u64) -> Result<Opened<'a>, OpError> {
        let refuse = |code, message: &str| Err(OpError::new(code, message));
        let invalid =
            |error| OpError::new(ErrorCode::Invalid, format!("not an operation: {error}"));
        let parsed: Envelope<'a> = serde_json::from_slice(envelope).map_err(invalid)?;
        let salt = BASE64.decode(parsed.salt).ok().and_then(|salt| salt.try_into().ok());
        let signature = BASE64.decode(parsed.signature).ok();
        let signature = signature.and_then(|bytes| Signature::from_slice(&bytes).ok());
        let (Some(salt), Some(signature)) = (salt, signature) else {
            return refuse(ErrorCode::BadSignature, "salt or signature is malformed");
        };
        let payload = parsed.payload.get().as_bytes();
        let canonical = canonical(
            parsed.sandbox,
            parsed.sequence,
            parsed.expires_ms,
            parsed.op,
            &salt,
            payload,
        );
        let brought;
        let (key, sandbox) = match (&self.whose, parsed.op) {
            (Whose::Sandbox { key, id }, _) => (&**key, id),
            (Whose::Nobodys, Become::NAME) => {
                let request: Become = serde_json::from_slice(payload).map_err(invalid)?;
                let Some(key) = key_from_hex(&request.key) else {
                    return refuse(ErrorCode::Invalid, "the key that it brings is none");
                };
                brought = (key, request.sandbox);
                (&brought.0, &brought.1)
            }
            (Whose::Nobodys, _) => {
                return refuse(
                    ErrorCode::NotReady,
                    "this machine is nobody's yet: send become first",
                );
            }
            (Whose::Becoming, _) => {
                return refuse(
                    ErrorCode::NotReady,
                    "this machine did not become anybody's: end it",
                );
            }
        };
        if key.verify_strict(&canonical, &signature).is_err() {
            return refuse(ErrorCode::BadSignature, "the signature does not verify");
        }
        if parsed.sandbox != sandbox {
            return refuse(ErrorCode::WrongSandbox, "the operation is for another sandbox");
        }
        if parsed.sequence <= self.sequence {
            return refuse(ErrorCode::Replayed, "the sequence number was used already");
        }
        let now_ms = match parsed.op {
            Clock::NAME => {
                let clock: Clock = serde_json::from_slice(payload).map_err(invalid)?;
                clock.unix_ns / 1_000_000
            }
            // A machine that stood still knows no time but the one that comes with this, so an
            // envelope that is held back is not found out by its expiry. Only the monitor could hold
            // it back or show it to a second machine of the template, and the monitor keeps the
            // guest's clock and memory anyway. All that it has then is a machine of the same
            // sandbox, which obeys nobody but the owner of the key.
            Become::NAME => {
                let request: Become = serde_json::from_slice(payload).map_err(invalid)?;
                request.unix_ns / 1_000_000
            }
            _ => now_ms,
        };
        if parsed.expires_ms <= now_ms {
            return refuse(ErrorCode::Expired, "the operation came after its expiry");
        }
        if parsed.op == Become::NAME {
            // Who has the key may make another sandbox of this one, with another key.
            if let Whose::Sandbox { key, .. } = &self.whose {
                let request: Become = serde_json::from_slice(payload).map_err(invalid)?;
                if key_from_hex(&request.key).is_none_or(|brought| brought == **key) {
                    return refuse(ErrorCode::Exists, "this machine is that sandbox's already");
                }
            }
            self.whose = Whose::Becoming;
        }
        self.sequence = parsed.sequence;
        Ok(Opened { op: parsed.op, payload })
    }
}

/// A growing buffer that wipes what it outgrows.
#[derive(Default)]
struct WipingBuffer(Zeroizing<Vec<u8>>);

impl std::io::Write for WipingBuffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let needed = self.0.len() + bytes.len();
        if needed > self.0.capacity() {
            let mut grown = Vec::with_capacity(needed.next_power_of_two().max(1024));
            grown.extend_from_slice(&self.0);
            self.0.zeroize();
            self.0 = Zeroizing::new(grown);
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::op::{Mkdir, Signal};

    const SALT_BYTES: [u8; SALT] = [7; SALT];

    fn pair() -> (Sealer, Opener) {
        let key = SigningKey::from_bytes(&[42; 32]);
        let verifying = key.verifying_key();
        (Sealer::new(key, "sb-1", 0), Opener::new(verifying, "sb-1"))
    }

    fn signal() -> Signal {
        Signal { process: "p1".into(), signal: 15 }
    }

    fn refusal(opener: &mut Opener, bytes: &[u8], now: u64) -> ErrorCode {
        opener.open(bytes, now).unwrap_err().code
    }

    fn becoming(key: &SigningKey) -> Become {
        Become {
            sandbox: "sb-2".into(),
            key: key_to_hex(&key.verifying_key()),
            unix_ns: 0,
            entropy: crate::text::Secret::new(vec![b'a'; 64]).unwrap(),
            hostname: None,
        }
    }

    #[test]
    fn who_has_the_key_makes_another_sandbox_of_one_and_nobody_else_does() {
        let (mut sealer, mut opener) = pair();
        let other = SigningKey::from_bytes(&[43; 32]);
        let mut stranger = Sealer::new(other.clone(), "sb-1", 0);
        let (bytes, _) = stranger.seal(&becoming(&other), 1000, &SALT_BYTES).unwrap();
        assert_eq!(refusal(&mut opener, &bytes, 0), ErrorCode::BadSignature);
        let same = becoming(&SigningKey::from_bytes(&[42; 32]));
        let (bytes, _) = sealer.seal(&same, 1000, &SALT_BYTES).unwrap();
        assert_eq!(refusal(&mut opener, &bytes, 0), ErrorCode::Exists);

        let (bytes, _) = sealer.seal(&becoming(&other), 1000, &SALT_BYTES).unwrap();
        assert_eq!(opener.open(&bytes, 0).unwrap().op, Become::NAME);
        // Until it is done, nothing is taken.
        let (next, _) = sealer.seal(&signal(), 1000, &SALT_BYTES).unwrap();
        assert_eq!(refusal(&mut opener, &next, 0), ErrorCode::NotReady);
        opener.take_identity(other.verifying_key(), "sb-2");
        assert_eq!(refusal(&mut opener, &next, 0), ErrorCode::BadSignature);
        sealer.sign_for("sb-2", other);
        let (bytes, _) = sealer.seal(&signal(), 1000, &SALT_BYTES).unwrap();
        assert!(opener.open(&bytes, 0).is_ok());
    }

    #[test]
    fn what_was_sealed_opens_with_the_same_payload() {
        let (mut sealer, mut opener) = pair();
        let (bytes, _) = sealer.seal(&signal(), 1000, &SALT_BYTES).unwrap();
        let opened = opener.open(&bytes, 999).unwrap();
        assert_eq!(opened.op, "signal");
        assert_eq!(serde_json::from_slice::<Signal>(opened.payload).unwrap(), signal());
    }

    #[test]
    fn a_second_delivery_is_a_replay() {
        let (mut sealer, mut opener) = pair();
        let (bytes, _) = sealer.seal(&signal(), 1000, &SALT_BYTES).unwrap();
        opener.open(&bytes, 0).unwrap();
        assert_eq!(refusal(&mut opener, &bytes, 0), ErrorCode::Replayed);
    }

    #[test]
    fn an_earlier_operation_after_a_later_one_is_a_replay() {
        let (mut sealer, mut opener) = pair();
        let (first, _) = sealer.seal(&signal(), 1000, &SALT_BYTES).unwrap();
        let (second, _) = sealer.seal(&signal(), 1000, &SALT_BYTES).unwrap();
        opener.open(&second, 0).unwrap();
        assert_eq!(refusal(&mut opener, &first, 0), ErrorCode::Replayed);
    }

    #[test]
    fn an_operation_is_refused_from_its_expiry_on() {
        let (mut sealer, mut opener) = pair();
        let (bytes, _) = sealer.seal(&signal(), 1000, &SALT_BYTES).unwrap();
        assert_eq!(refusal(&mut opener, &bytes, 1000), ErrorCode::Expired);
        assert!(opener.open(&bytes, 999).is_ok(), "a refused operation does not use its number");
    }

    #[test]
    fn another_sandbox_s_operation_is_refused() {
        let (_, mut opener) = pair();
        let mut other = Sealer::new(SigningKey::from_bytes(&[42; 32]), "sb-2", 0);
        let (bytes, _) = other.seal(&signal(), 1000, &SALT_BYTES).unwrap();
        assert_eq!(refusal(&mut opener, &bytes, 0), ErrorCode::WrongSandbox);
    }

    #[test]
    fn another_key_s_operation_is_refused() {
        let (_, mut opener) = pair();
        let mut other = Sealer::new(SigningKey::from_bytes(&[43; 32]), "sb-1", 0);
        let (bytes, _) = other.seal(&signal(), 1000, &SALT_BYTES).unwrap();
        assert_eq!(refusal(&mut opener, &bytes, 0), ErrorCode::BadSignature);
    }

    #[test]
    fn the_clock_is_held_against_the_time_that_it_brings() {
        let (mut sealer, mut opener) = pair();
        let clock = Clock { unix_ns: 5_000_000_000 };
        let (bytes, _) = sealer.seal(&clock, 6000, &SALT_BYTES).unwrap();
        assert!(opener.open(&bytes, u64::MAX).is_ok());
        let (late, _) = sealer.seal(&clock, 4000, &SALT_BYTES).unwrap();
        assert_eq!(refusal(&mut opener, &late, 0), ErrorCode::Expired);
    }

    fn become_sandbox(sandbox: &str, key: &SigningKey) -> Become {
        Become {
            sandbox: sandbox.into(),
            key: key_to_hex(&key.verifying_key()),
            unix_ns: 5_000_000_000,
            entropy: crate::text::Secret::new(b"00".to_vec()).unwrap(),
            hostname: None,
        }
    }

    /// Whoever a template's machine becomes.
    fn owner() -> (SigningKey, Sealer) {
        let key = SigningKey::from_bytes(&[42; 32]);
        (key.clone(), Sealer::new(key, "sb-1", 0))
    }

    #[test]
    fn a_template_s_machine_takes_nothing_before_become() {
        let (_, mut sealer) = owner();
        let mut opener = Opener::of_template();
        let (bytes, _) = sealer.seal(&signal(), 6000, &SALT_BYTES).unwrap();
        assert_eq!(refusal(&mut opener, &bytes, 0), ErrorCode::NotReady);
        let (bytes, _) = sealer.seal(&Clock { unix_ns: 1 }, 6000, &SALT_BYTES).unwrap();
        assert_eq!(refusal(&mut opener, &bytes, 0), ErrorCode::NotReady);
    }

    #[test]
    fn who_makes_a_sandbox_of_a_machine_has_its_key() {
        let (key, _) = owner();
        let mut opener = Opener::of_template();
        let mut other = Sealer::new(SigningKey::from_bytes(&[43; 32]), "sb-1", 0);
        let (bytes, _) = other.seal(&become_sandbox("sb-1", &key), 6000, &SALT_BYTES).unwrap();
        assert_eq!(refusal(&mut opener, &bytes, 0), ErrorCode::BadSignature);
        let mut other = Sealer::new(key.clone(), "sb-2", 0);
        let (bytes, _) = other.seal(&become_sandbox("sb-1", &key), 6000, &SALT_BYTES).unwrap();
        assert_eq!(refusal(&mut opener, &bytes, 0), ErrorCode::WrongSandbox);
        let bad = Become { key: "00".into(), ..become_sandbox("sb-1", &key) };
        let (bytes, _) = owner().1.seal(&bad, 6000, &SALT_BYTES).unwrap();
        assert_eq!(refusal(&mut opener, &bytes, 0), ErrorCode::Invalid);
    }

    #[test]
    fn become_is_held_against_the_time_that_it_brings() {
        let (key, mut sealer) = owner();
        let mut opener = Opener::of_template();
        let (late, _) = sealer.seal(&become_sandbox("sb-1", &key), 4000, &SALT_BYTES).unwrap();
        assert_eq!(refusal(&mut opener, &late, 0), ErrorCode::Expired);
        let (bytes, _) = sealer.seal(&become_sandbox("sb-1", &key), 6000, &SALT_BYTES).unwrap();
        assert!(opener.open(&bytes, u64::MAX).is_ok());
    }

    #[test]
    fn nothing_is_taken_until_become_was_done_and_then_no_second_one() {
        let (key, mut sealer) = owner();
        let mut opener = Opener::of_template();
        let request = become_sandbox("sb-1", &key);
        let (first, _) = sealer.seal(&request, 6000, &SALT_BYTES).unwrap();
        assert_eq!(opener.open(&first, 0).unwrap().op, "become");
        let (bytes, _) = sealer.seal(&signal(), 6000, &SALT_BYTES).unwrap();
        assert_eq!(refusal(&mut opener, &bytes, 0), ErrorCode::NotReady);
        assert_eq!(refusal(&mut opener, &first, 0), ErrorCode::NotReady);

        opener.take_identity(key.verifying_key(), request.sandbox.clone());
        assert!(opener.open(&bytes, 0).is_ok());
        assert_eq!(refusal(&mut opener, &first, 0), ErrorCode::Replayed);
        let (again, _) = sealer.seal(&request, 6000, &SALT_BYTES).unwrap();
        assert_eq!(refusal(&mut opener, &again, 0), ErrorCode::Exists);
        let thief = SigningKey::from_bytes(&[43; 32]);
        let mut other = Sealer::new(thief.clone(), "sb-1", 9);
        let (bytes, _) = other.seal(&become_sandbox("sb-1", &thief), 6000, &SALT_BYTES).unwrap();
        assert_eq!(refusal(&mut opener, &bytes, 0), ErrorCode::BadSignature);
        let (bytes, _) = sealer.seal(&signal(), 6000, &SALT_BYTES).unwrap();
        assert!(opener.open(&bytes, 0).is_ok(), "a refused one changes nothing");
    }

    #[test]
    fn a_sandbox_s_machine_becomes_nobody_else() {
        let (mut sealer, mut opener) = pair();
        let (bytes, _) =
            sealer.seal(&become_sandbox("sb-1", &owner().0), 6000, &SALT_BYTES).unwrap();
        assert_eq!(refusal(&mut opener, &bytes, 0), ErrorCode::Exists);
    }

    #[test]
    fn equal_operations_have_different_digests() {
        let (mut sealer, _) = pair();
        let (_, one) = sealer.seal(&signal(), 1000, &SALT_BYTES).unwrap();
        let (_, two) = sealer.seal(&signal(), 1000, &SALT_BYTES).unwrap();
        assert_ne!(one, two);
    }

    #[test]
    fn a_key_survives_its_hexadecimal_form() {
        let key = SigningKey::from_bytes(&[42; 32]).verifying_key();
        assert_eq!(key_from_hex(&key_to_hex(&key)), Some(key));
        assert_eq!(key_from_hex("xyz"), None);
        assert_eq!(key_from_hex(&"é".repeat(32)), None);
    }

    #[test]
    fn an_operation_that_no_frame_can_hold_is_refused_here() {
        let (mut sealer, _) = pair();
        let path = crate::text::Text::new(vec![b'a'; MAX_OPEN]).unwrap();
        let mkdir =
            Mkdir { path, parents: false, mode: 0o755, owner: None, group: None, user: None };
        assert!(matches!(sealer.seal(&mkdir, 1, &SALT_BYTES), Err(SealError::TooLong(_))));
    }

    proptest! {
        #[test]
        fn no_changed_byte_gets_through(position in any::<prop::sample::Index>(), flip in 1u8..) {
            let (mut sealer, mut opener) = pair();
            let (bytes, _) = sealer.seal(&signal(), 1000, &SALT_BYTES).unwrap();
            let mut changed = bytes.to_vec();
            let position = position.index(changed.len());
            changed[position] ^= flip;
            prop_assert!(opener.open(&changed, 0).is_err());
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(pair().1.open(&bytes, 0).is_err());
            prop_assert!(Opener::of_template().open(&bytes, 0).is_err());
        }
    }
}
