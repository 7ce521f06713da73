//! hull, a micro virtual machine monitor for Linux/KVM.
//!
//! The path of a boot: [`cli`] turns flags into a [`vmm::Config`]; [`vmm::run`] maps guest memory
//! ([`memory`]), creates the machine ([`kvm`]), puts [`devices`] on its buses, has [`boot`] load the
//! kernel (its own is in [`guest`]) and enters the vCPU. The guest's init then asks for its command
//! over a port of the virtio console ([`agent`]).
//!
//! The path of a start without a boot: [`cli`] finds in [`templates`] a machine that was saved when it
//! had booted and knew of no command; [`snapshot`] reads it, [`vmm::saved`] has a new machine go on from
//! it, and [`agent`] tells the guest what is not as it was, and the command.
//!
//! The path of an exit: [`kvm::vcpu`] matches the reason and hands address and data to the bus,
//! which finds the device; a notification of a virtqueue goes by eventfd to the event loop instead.
//!
//! | module | what | may use |
//! |---|---|---|
//! | [`cli`] | one file a verb; the only place that prints | all below |
//! | [`gdb`] | gdb's remote protocol over a machine | boot's tables, kvm, memory, sandbox, sync, vmm |
//! | [`vmm`] | one machine from its configuration to its end | agent, boot, control, devices, disk, fleet, inspect, kvm, memory, net, profile, sandbox, share, snapshot, symbols, sync, trace |
//! | [`compare`] | one harness for measuring: process, container, virtual machine, and hull's own figures | guest, kvm's probe, sandbox |
//! | [`config`] | the description of a machine as plain values | |
//! | [`control`] | orders to a running machine | fleet, inspect, sync |
//! | [`pool`] | machines that wait for a command | agent, control, fleet, sandbox |
//! | [`inspect`] | what a machine holds at one moment | devices, kvm, memory, symbols |
//! | [`agent`] | the protocol by which a command runs in the guest | |
//! | [`fleet`] | records of the machines that run | |
//! | [`templates`] | snapshots of booted machines, kept for later runs | |
//! | [`profile`] | samples of what vCPUs do, as call stacks | kvm's page walk, memory, symbols, sync |
//! | [`kvm`] | virtual machine, vCPUs, exits; what a software KVM cannot do | boot's tables, memory, sandbox, sync |
//! | [`disk`] | images of the host behind virtio block devices | devices, memory, sandbox, sync |
//! | [`net`] | networks of the host behind virtio network devices | devices, memory |
//! | [`share`] | folders of the host behind virtio file systems | devices, memory, sandbox |
//! | [`sandbox`] | where threads begin, and what they give up before they work for a guest | |
//! | [`snapshot`] | a machine on disk: the format and its files | memory |
//! | [`devices`] | buses and emulated devices, none of which knows KVM | memory, sandbox, sync, trace |
//! | [`boot`] | from a kernel's bytes to an entry | memory |
//! | [`guest`] | the kernel and initramfs inside the program | memory |
//! | [`trace`] | what happened in a machine and when, as plain data and as files | sync |
//! | [`symbols`] | names of addresses in a guest's kernel | memory |
//! | [`memory`] | where everything lies in guest memory, and what backs it | sandbox |
//! | [`sync`] | locks and eventfds | |
//!
//! `tests/architecture.rs` holds the code to this table.

pub mod agent;
pub mod boot;
pub mod cli;
pub mod compare;
pub mod config;
pub mod control;
pub mod devices;
pub mod disk;
pub mod fleet;
pub mod gdb;
pub mod guest;
pub mod inspect;
pub mod kvm;
pub mod launch;
pub mod memory;
pub mod net;
pub mod pool;
pub mod profile;
pub mod sandbox;
pub mod share;
pub mod snapshot;
pub mod symbols;
pub mod sync;
pub mod templates;
pub mod trace;
pub mod vmm;
