//! The state file of a snapshot.
#![no_main]

use hull_fuzz::snapshot::{Input, check};

libfuzzer_sys::fuzz_target!(|input: Input| check(&input));
