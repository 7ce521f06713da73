//! hull, a micro virtual machine monitor for Linux/KVM.
//!
//! The path of a boot: [`cli`] turns flags into a [`vmm::Config`]; [`vmm::run`] maps guest memory
//! ([`memory`]), has [`boot`] load the kernel into it, creates the machine ([`kvm`]), puts
//! [`devices`] on its buses and enters the vCPU. The path of an exit: [`kvm::vcpu`] matches the
//! reason and hands address and data to the bus, which finds the device.

pub mod agent;
pub mod boot;
pub mod cli;
pub mod devices;
pub mod guest;
pub mod kvm;
pub mod memory;
pub mod vmm;
