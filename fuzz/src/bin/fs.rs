//! The file system device's front end.
#![no_main]

use hull_fuzz::fs::Fs;
use hull_fuzz::{Input, play};

libfuzzer_sys::fuzz_target!(|input: Input<Fs>| play::<Fs>(input));
