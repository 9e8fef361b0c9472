//! The API as its clients see it: a server on real sockets, over the mock engine.

mod access;
mod attacks;
mod audit;
mod connections;
mod files;
mod provider;
mod sandboxes;
mod secrets;
mod server;
mod signatures;
mod streams;
mod volumes;
mod webhooks;
