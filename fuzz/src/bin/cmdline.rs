//! Kernel command lines.
#![no_main]

use hull_fuzz::cmdline::{Input, check};

libfuzzer_sys::fuzz_target!(|input: Input| check(&input));
