//! Initial RAM disks.
#![no_main]

use hull_fuzz::initrd::{Input, check};

libfuzzer_sys::fuzz_target!(|input: Input| check(&input));
