//! The protocol between hull and the guest's init, shared by both.
#![no_std]
#![forbid(unsafe_code)]
