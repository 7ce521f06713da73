//! The socket device.
#![no_main]

use hull_fuzz::vsock::Vsock;
use hull_fuzz::{Input, play};

libfuzzer_sys::fuzz_target!(|input: Input<Vsock>| play::<Vsock>(input));
