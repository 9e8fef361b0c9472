//! Who calls, and what they may: tokens, roles, signatures of requests.
#![forbid(unsafe_code)]
