//! hull, a micro virtual machine monitor for Linux/KVM.

pub mod agent;
pub mod boot;
pub mod devices;
pub mod memory;
