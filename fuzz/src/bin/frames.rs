//! Frames between a guest and passt.
#![no_main]

use hull_fuzz::frames::{Input, check};

libfuzzer_sys::fuzz_target!(|input: Input| check(&input));
