//! Guests under QEMU's software emulation, for machines without usable virtualization.
#![forbid(unsafe_code)]
