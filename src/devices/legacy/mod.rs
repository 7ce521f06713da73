//! What a PC has at fixed addresses, as far as Linux and our payloads look for it.

pub mod i8042;
pub mod power;
pub mod serial;
