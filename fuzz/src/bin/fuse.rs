//! FUSE requests.
#![no_main]

use hull_fuzz::fuse::{Input, check};

libfuzzer_sys::fuzz_target!(|input: Input| check(&input));
