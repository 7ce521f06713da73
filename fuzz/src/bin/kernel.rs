//! Kernels of every format, and the tables for them.
#![no_main]

use hull_fuzz::kernel::{Input, check};

libfuzzer_sys::fuzz_target!(|input: Input| check(&input));
