//! Configuration files.
#![no_main]

use hull_fuzz::config::{Input, check};

libfuzzer_sys::fuzz_target!(|input: Input| check(&input));
