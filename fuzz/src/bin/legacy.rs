//! The devices of a PC at its ports.
#![no_main]

use hull_fuzz::legacy::{Input, check};

libfuzzer_sys::fuzz_target!(|input: Input| check(&input));
