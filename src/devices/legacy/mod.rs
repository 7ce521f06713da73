//! Devices of a PC at fixed addresses, as far as Linux and the payloads use them.

pub mod boot_timer;
pub mod debug_port;
pub mod i8042;
pub mod power;
pub mod rtc;
pub mod serial;
