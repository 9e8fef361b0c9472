//! Host directories in and out of a guest as tar streams; what comes out is hostile.
#![forbid(unsafe_code)]
