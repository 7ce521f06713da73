//! Images of disks in the qcow2 format.
#![no_main]

use hull_fuzz::qcow2::{Input, check};

libfuzzer_sys::fuzz_target!(|input: Input| check(&input));
