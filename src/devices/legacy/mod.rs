//! What a PC has at fixed addresses, as far as Linux and our payloads look for it.

pub mod boot_timer;
pub mod debug_port;
pub mod i8042;
pub mod power;
pub mod rtc;
pub mod serial;
