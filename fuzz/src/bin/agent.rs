//! The host's session with a guest's init.
#![no_main]

use hull_fuzz::agent::{Input, check};

libfuzzer_sys::fuzz_target!(|input: Input| check(&input));
