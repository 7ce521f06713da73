//! Registers and rings, with a device that does all that a device may.
#![no_main]

use hull_fuzz::transport::Transport;
use hull_fuzz::{Input, play};

libfuzzer_sys::fuzz_target!(|input: Input<Transport>| play::<Transport>(input));
