//! The control socket of a machine.
#![no_main]

use hull_fuzz::control::{Input, check};

libfuzzer_sys::fuzz_target!(|input: Input| check(&input));
