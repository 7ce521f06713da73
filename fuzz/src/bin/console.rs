//! The console with ports.
#![no_main]

use hull_fuzz::console::Console;
use hull_fuzz::{Input, play};

libfuzzer_sys::fuzz_target!(|input: Input<Console>| play::<Console>(input));
