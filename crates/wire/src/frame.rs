//! Frames: a big-endian u32 length, one type byte, the payload. The length counts type and
//! payload, so that no frame is empty.

use zeroize::Zeroizing;

/// A stream's number: odd where the host opened it, even where the agent did; never reused.
pub type StreamId = u32;

/// Longest `Data` content. 64 KiB is a pipe's capacity: one read, one frame; longer frames
/// would let one stream hold the carrier for longer than another can wait.
pub const MAX_DATA: usize = 64 << 10;
/// Longest `Open` payload. Linux takes 2 MiB of arguments and environment in one exec
/// (a quarter of an 8 MiB stack); JSON escapes may double that.
pub const MAX_OPEN: usize = 4 << 20;
/// Longest `Close` payload: the reply of one operation. Anything unbounded is output instead.
pub const MAX_CLOSE: usize = 1 << 20;
/// Longest `Reset` payload: an error code and a message for a person.
pub const MAX_RESET: usize = 16 << 10;
/// Longest `Hello` payload.
pub const MAX_HELLO: usize = 4 << 10;

const HEADER: usize = 5;
const STREAM: usize = 4;

/// One frame as received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// First frame of either side: JSON of [`crate::handshake::Hello`].
    Hello(Vec<u8>),
    /// Opens a stream; JSON that says what it is for. It may hold secrets, hence the wiping.
    Open(StreamId, Zeroizing<Vec<u8>>),
    /// Bytes of a stream; takes that many from the sender's credit.
    Data(StreamId, Vec<u8>),
    /// The receiver has consumed this many bytes: the sender may send as many more.
    Credit(StreamId, u32),
    /// The sender will send no more; from the agent, the operation's reply as JSON.
    Close(StreamId, Vec<u8>),
    /// The stream is over in both directions; JSON of [`crate::op::OpError`].
    Reset(StreamId, Vec<u8>),
    /// Asks for a `Pong` of the same number.
    Ping(u64),
    /// Answers a `Ping`.
    Pong(u64),
    /// A nonce behind a magic: how [`crate::handshake`] finds the other side. It is a frame so
    /// that one which comes late, or twice, is recognised.
    Knock([u8; NONCE]),
}

/// The bytes are not frames of this protocol; the connection cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A length of nought, or beyond the kind's limit.
    #[error("frame of type {kind} announces {length} bytes, which is out of bounds")]
    Length {
        /// The type byte, 0 where it was not read yet.
        kind: u8,
        /// The announced length.
        length: usize,
    },
    /// No frame has this type byte.
    #[error("frame of unknown type {0}")]
    UnknownKind(u8),
    /// The payload does not have its kind's shape.
    #[error("frame of type {0} with a malformed payload")]
    Malformed(u8),
}

const HELLO: u8 = 1;
const OPEN: u8 = 2;
const DATA: u8 = 3;
const CREDIT: u8 = 4;
const CLOSE: u8 = 5;
const RESET: u8 = 6;
const PING: u8 = 7;
const PONG: u8 = 8;
const KNOCK: u8 = 9;

/// Length of a knock's nonce in bytes.
pub const NONCE: usize = 16;
/// What no stream of other frames holds by chance.
const MAGIC: [u8; 8] = *b"SNDFORGE";
/// The bytes of every knock before its nonce.
pub(crate) const KNOCK_PREFIX: [u8; HEADER + MAGIC.len()] = {
    let [s, n, d, f, o, r, g, e] = MAGIC;
    [0, 0, 0, 1 + 8 + 16, KNOCK, s, n, d, f, o, r, g, e]
};

/// Bounds of the length field for a kind: type byte, fixed part, variable part.
fn bounds(kind: u8) -> Result<(usize, usize), FrameError> {
    Ok(match kind {
        HELLO => (1, 1 + MAX_HELLO),
        OPEN => (1 + STREAM, 1 + STREAM + MAX_OPEN),
        DATA => (1 + STREAM + 1, 1 + STREAM + MAX_DATA),
        CREDIT => (1 + STREAM + 4, 1 + STREAM + 4),
        CLOSE => (1 + STREAM, 1 + STREAM + MAX_CLOSE),
        RESET => (1 + STREAM, 1 + STREAM + MAX_RESET),
        PING | PONG => (1 + 8, 1 + 8),
        KNOCK => (1 + MAGIC.len() + NONCE, 1 + MAGIC.len() + NONCE),
        other => return Err(FrameError::UnknownKind(other)),
    })
}

/// Appends a `Data` frame.
///
/// # Panics
/// Where `bytes` is empty or longer than [`MAX_DATA`]: the caller cuts.
pub fn encode_data(out: &mut Vec<u8>, stream: StreamId, bytes: &[u8]) {
    assert!(!bytes.is_empty() && bytes.len() <= MAX_DATA, "data frame of {} bytes", bytes.len());
    header(out, DATA, STREAM + bytes.len());
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(bytes);
}

impl Frame {
    /// The frame's bytes, in a buffer that was never reallocated (so that nothing secret is
    /// left behind) and is wiped on drop.
    ///
    /// # Panics
    /// Where a payload exceeds its kind's limit: the caller checks before it makes the frame.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let (kind, stream, body): (u8, Option<StreamId>, &[u8]) = match self {
            Self::Knock(nonce) => return Zeroizing::new([&KNOCK_PREFIX[..], nonce].concat()),
            Self::Hello(body) => (HELLO, None, body),
            Self::Open(stream, body) => (OPEN, Some(*stream), body),
            Self::Data(stream, body) => (DATA, Some(*stream), body),
            Self::Credit(stream, amount) => (CREDIT, Some(*stream), &amount.to_be_bytes()),
            Self::Close(stream, body) => (CLOSE, Some(*stream), body),
            Self::Reset(stream, body) => (RESET, Some(*stream), body),
            Self::Ping(token) => (PING, None, &token.to_be_bytes()),
            Self::Pong(token) => (PONG, None, &token.to_be_bytes()),
        };
        let length = stream.map_or(0, |_| STREAM) + body.len();
        let (least, most) = bounds(kind).expect("a known kind");
        assert!((least..=most).contains(&(1 + length)), "frame of type {kind}: {length} bytes");
        let mut out = Zeroizing::new(Vec::with_capacity(HEADER + length));
        header(&mut out, kind, length);
        if let Some(stream) = stream {
            out.extend_from_slice(&stream.to_be_bytes());
        }
        out.extend_from_slice(body);
        out
    }

    fn decode(kind: u8, payload: &[u8]) -> Result<Self, FrameError> {
        let malformed = FrameError::Malformed(kind);
        let number = |bytes: &[u8]| bytes.try_into().map(u64::from_be_bytes);
        let split = || {
            let (stream, rest) = payload.split_first_chunk::<STREAM>()?;
            match u32::from_be_bytes(*stream) {
                0 => None,
                stream => Some((stream, rest)),
            }
        };
        Ok(match kind {
            HELLO => Self::Hello(payload.to_vec()),
            PING => Self::Ping(number(payload).map_err(|_| malformed)?),
            PONG => Self::Pong(number(payload).map_err(|_| malformed)?),
            KNOCK => {
                let nonce = payload.strip_prefix(&MAGIC).and_then(|nonce| nonce.try_into().ok());
                Self::Knock(nonce.ok_or(malformed)?)
            }
            _ => {
                let (stream, rest) = split().ok_or_else(|| malformed.clone())?;
                match kind {
                    OPEN => Self::Open(stream, Zeroizing::new(rest.to_vec())),
                    DATA => Self::Data(stream, rest.to_vec()),
                    CREDIT => {
                        let amount = rest.try_into().map_err(|_| malformed.clone())?;
                        match u32::from_be_bytes(amount) {
                            0 => return Err(malformed),
                            amount => Self::Credit(stream, amount),
                        }
                    }
                    CLOSE => Self::Close(stream, rest.to_vec()),
                    RESET => Self::Reset(stream, rest.to_vec()),
                    other => return Err(FrameError::UnknownKind(other)),
                }
            }
        })
    }
}

fn header(out: &mut Vec<u8>, kind: u8, payload: usize) {
    let length = u32::try_from(1 + payload).expect("limits are far below 4 GiB");
    out.extend_from_slice(&length.to_be_bytes());
    out.push(kind);
}

/// Cuts a byte stream into frames. It keeps at most one frame, and allocates for a frame only
/// once its length was held against its kind's limit.
#[derive(Debug, Default)]
pub struct Decoder {
    partial: Zeroizing<Vec<u8>>,
}

impl Decoder {
    /// Hands every frame that `bytes` completes to `sink`.
    ///
    /// # Errors
    /// The first malformed frame, or what `sink` returned; the decoder is of no use after.
    pub fn feed<E: From<FrameError>>(
        &mut self,
        mut bytes: &[u8],
        mut sink: impl FnMut(Frame) -> Result<(), E>,
    ) -> Result<(), E> {
        while !bytes.is_empty() || self.partial.len() >= HEADER {
            if self.partial.is_empty() {
                // Whole frames are decoded where they lie.
                if let Some(length) = announced(bytes)? {
                    if bytes.len() >= 4 + length {
                        sink(Frame::decode(bytes[4], &bytes[HEADER..4 + length])?)?;
                        bytes = &bytes[4 + length..];
                        continue;
                    }
                    self.partial = Zeroizing::new(Vec::with_capacity(4 + length));
                }
                self.partial.extend_from_slice(bytes);
                return Ok(());
            }
            let wanted = match announced(&self.partial)? {
                Some(length) => 4 + length,
                None => HEADER,
            };
            if self.partial.capacity() < wanted {
                let mut grown = Zeroizing::new(Vec::with_capacity(wanted));
                grown.extend_from_slice(&self.partial);
                self.partial = grown;
            }
            let missing = wanted.saturating_sub(self.partial.len()).min(bytes.len());
            self.partial.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            if self.partial.len() < wanted {
                return Ok(());
            }
            if wanted > HEADER || announced(&self.partial)? == Some(1) {
                sink(Frame::decode(self.partial[4], &self.partial[HEADER..])?)?;
                self.partial = Zeroizing::default();
            }
        }
        Ok(())
    }
}

/// The length field, once type and length are there, held against the kind's limit.
fn announced(bytes: &[u8]) -> Result<Option<usize>, FrameError> {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    let Some(&kind) = rest.first() else {
        return if length == 0 { Err(FrameError::Length { kind: 0, length }) } else { Ok(None) };
    };
    let (least, most) = bounds(kind)?;
    if (least..=most).contains(&length) {
        Ok(Some(length))
    } else {
        Err(FrameError::Length { kind, length })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_frame() -> impl Strategy<Value = Frame> {
        let id = 1..=u32::MAX;
        let body = |most: usize| prop::collection::vec(any::<u8>(), 0..=most);
        prop_oneof![
            body(64).prop_map(Frame::Hello),
            (id.clone(), body(300)).prop_map(|(id, b)| Frame::Open(id, Zeroizing::new(b))),
            (id.clone(), prop::collection::vec(any::<u8>(), 1..300))
                .prop_map(|(id, b)| Frame::Data(id, b)),
            (id.clone(), 1..=u32::MAX).prop_map(|(id, n)| Frame::Credit(id, n)),
            (id.clone(), body(300)).prop_map(|(id, b)| Frame::Close(id, b)),
            (id, body(300)).prop_map(|(id, b)| Frame::Reset(id, b)),
            any::<u64>().prop_map(Frame::Ping),
            any::<u64>().prop_map(Frame::Pong),
            any::<[u8; NONCE]>().prop_map(Frame::Knock),
        ]
    }

    fn decode_in_pieces(bytes: &[u8], piece: usize) -> Result<Vec<Frame>, FrameError> {
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        for chunk in bytes.chunks(piece) {
            decoder.feed::<FrameError>(chunk, |frame| {
                frames.push(frame);
                Ok(())
            })?;
        }
        Ok(frames)
    }

    proptest! {
        #[test]
        fn every_kind_survives_any_cut(
            frames in prop::collection::vec(any_frame(), 1..12),
            piece in 1usize..700,
        ) {
            let bytes: Vec<u8> = frames.iter().flat_map(|f| f.encode().to_vec()).collect();
            prop_assert_eq!(decode_in_pieces(&bytes, piece).unwrap(), frames);
        }

        #[test]
        fn cutting_never_changes_the_verdict(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            piece in 1usize..20,
        ) {
            let whole = decode_in_pieces(&bytes, 200);
            let cut = decode_in_pieces(&bytes, piece);
            prop_assert_eq!(whole.is_ok(), cut.is_ok());
            if let (Ok(whole), Ok(cut)) = (whole, cut) {
                prop_assert_eq!(whole, cut);
            }
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_its_bytes_arrive() {
        let header = [0xff, 0xff, 0xff, 0xff, DATA];
        assert_eq!(
            decode_in_pieces(&header, 5),
            Err(FrameError::Length { kind: DATA, length: 0xffff_ffff })
        );
    }

    #[test]
    fn a_length_of_nought_is_refused() {
        assert!(decode_in_pieces(&[0, 0, 0, 0], 4).is_err());
    }

    #[test]
    fn stream_nought_and_empty_grants_are_refused() {
        assert!(decode_in_pieces(&[0, 0, 0, 6, DATA, 0, 0, 0, 0, 1], 10).is_err());
        assert!(decode_in_pieces(&[0, 0, 0, 9, CREDIT, 0, 0, 0, 1, 0, 0, 0, 0], 13).is_err());
    }

    #[test]
    fn empty_data_is_refused() {
        assert!(decode_in_pieces(&[0, 0, 0, 5, DATA, 0, 0, 0, 1], 9).is_err());
    }
}
