//! The tables that describe a machine.
#![no_main]

use hull_fuzz::tables::{Input, check};

libfuzzer_sys::fuzz_target!(|input: Input| check(&input));
