//! The block device.
#![no_main]

use hull_fuzz::block::Block;
use hull_fuzz::{Input, play};

libfuzzer_sys::fuzz_target!(|input: Input<Block>| play::<Block>(input));
