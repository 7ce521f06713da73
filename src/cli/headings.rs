//! Headings of the flags in the help of a verb.

/// Size, name and start of the machine.
pub const MACHINE: &str = "Machine";
/// Kernel, initial RAM disk and command line.
pub const KERNEL: &str = "Kernel";
/// Virtio devices and the console.
pub const DEVICES: &str = "Devices";
/// Reports, traces, debugger and messages.
pub const OUTPUT: &str = "Output";
/// An image of a container.
pub const IMAGE: &str = "Image";
/// The process in the guest.
pub const COMMAND: &str = "Command";
/// A machine in the background.
pub const BACKGROUND: &str = "Background";
