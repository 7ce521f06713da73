//! Frames of a guest that is held to rules on what leaves.
#![no_main]

use hull_fuzz::egress::{Input, check};

libfuzzer_sys::fuzz_target!(|input: Input| check(&input));
