//! Page tables of a guest.
#![no_main]

use hull_fuzz::walk::{Input, check};

libfuzzer_sys::fuzz_target!(|input: Input| check(&input));
