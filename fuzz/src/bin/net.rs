//! The network device.
#![no_main]

use hull_fuzz::net::Net;
use hull_fuzz::{Input, play};

libfuzzer_sys::fuzz_target!(|input: Input<Net>| play::<Net>(input));
