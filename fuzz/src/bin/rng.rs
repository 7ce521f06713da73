//! The entropy device.
#![no_main]

use hull_fuzz::rng::Rng;
use hull_fuzz::{Input, play};

libfuzzer_sys::fuzz_target!(|input: Input<Rng>| play::<Rng>(input));
