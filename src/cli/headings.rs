//! Headings of the flags in the help of a verb.

/// Size, name and start of the machine.
pub const MACHINE: &str = "Machine";
/// What it boots.
pub const KERNEL: &str = "Kernel";
/// What it has.
pub const DEVICES: &str = "Devices";
/// What is printed and written about it.
pub const OUTPUT: &str = "Output";
