//! What runs guests: the SandboxBackend trait, isolation tiers, probes, and the mock engine.
#![forbid(unsafe_code)]
