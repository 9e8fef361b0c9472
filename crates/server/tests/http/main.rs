//! The API as its clients see it: a server on real sockets, over the mock engine.

mod access;
mod attacks;
mod connections;
mod sandboxes;
mod server;
mod signatures;
mod streams;
mod webhooks;
