//! Small records in JSON.
#![no_main]

use hull_fuzz::records::{Input, check};

libfuzzer_sys::fuzz_target!(|input: Input| check(&input));
