//! Emulated devices and the bus they sit on. No KVM type appears here.

pub mod bus;
