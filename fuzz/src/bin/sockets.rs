//! The socket device with Unix sockets of the host.
#![no_main]

use hull_fuzz::sockets::Sockets;
use hull_fuzz::{Input, play};

libfuzzer_sys::fuzz_target!(|input: Input<Sockets>| play::<Sockets>(input));
