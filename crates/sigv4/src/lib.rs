//! AWS Signature Version 4, for a proxy that signs again.
//!
//! A guest signs with placeholder keys. [`Inbound`] reads such a signature and proves, with the
//! placeholder, that the client meant exactly this request; [`Scope`] says for what it was signed, which
//! has to fit the host; [`Signer`] signs what is sent on with the real keys. A body that comes as
//! `aws-chunked` is decoded and verified by [`Chunked`], and can be framed again by [`Framer`].
//!
//! No I/O and no clock: the time is an argument.
#![forbid(unsafe_code)]

mod chunked;
mod clock;
mod credentials;
mod endpoint;
mod framer;
mod hex;
mod inbound;
mod key;
mod percent;
mod request;
mod scope;
mod signer;

pub use chunked::{Chunked, ChunkedError, Trailers};
pub use credentials::{Credentials, CredentialsError};
pub use framer::Framer;
pub use inbound::{Body, Error, Inbound, strip};
pub use request::{FormError, Request};
pub use scope::{Scope, ScopeError};
pub use signer::{Payload, SignError, Signer};

/// The hash of a body that is empty.
pub const EMPTY: [u8; 32] = [
    0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24,
    0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
];

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const X_AMZ_CONTENT_SHA256: http::HeaderName =
    http::HeaderName::from_static("x-amz-content-sha256");
const X_AMZ_DATE: http::HeaderName = http::HeaderName::from_static("x-amz-date");
const X_AMZ_DECODED_CONTENT_LENGTH: http::HeaderName =
    http::HeaderName::from_static("x-amz-decoded-content-length");
const X_AMZ_SECURITY_TOKEN: http::HeaderName =
    http::HeaderName::from_static("x-amz-security-token");
const X_AMZ_TRAILER: http::HeaderName = http::HeaderName::from_static("x-amz-trailer");

/// What `x-amz-content-sha256` says of a body whose bytes are not signed.
const UNSIGNED: &str = "UNSIGNED-PAYLOAD";
const STREAMING_UNSIGNED_TRAILER: &str = "STREAMING-UNSIGNED-PAYLOAD-TRAILER";
const STREAMING: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD";
const STREAMING_TRAILER: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER";
