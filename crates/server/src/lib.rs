//! The REST API over TLS and a unix socket.
#![forbid(unsafe_code)]
