//! The memory balloon.
#![no_main]

use hull_fuzz::balloon::Balloon;
use hull_fuzz::{Input, play};

libfuzzer_sys::fuzz_target!(|input: Input<Balloon>| play::<Balloon>(input));
