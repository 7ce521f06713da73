//! Archives of images.
#![no_main]

use hull_fuzz::images::{Input, check};

libfuzzer_sys::fuzz_target!(|input: Input| check(&input));
