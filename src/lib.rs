//! hull, a micro virtual machine monitor for Linux/KVM.
//!
//! # A start
//! A front end, of which [`cli`] is the only one, turns what the user wrote into a [`config::Machine`].
//! [`launch`] opens the kernel (hull's own is in [`guest`]) and decides how the machine starts:
//! - by a boot: [`vmm::build`] maps guest memory ([`memory`]), creates the virtual machine ([`kvm`]), puts
//!   [`devices`] on its buses with their backends ([`disk`], [`net`], [`share`]), and has [`boot`] load the
//!   kernel; [`vmm::ReadyMachine::run`] runs the vCPUs;
//! - from a template: [`templates`] has a machine that was saved after its boot, before it had a command;
//!   [`snapshot`] reads it and `vmm::snapshot` loads it into a new machine;
//! - in a pool: another process has such a machine ready, and [`pool`] hands it the command.
//!
//! In all three the guest's init gets the command over a port of the virtio console ([`agent`]).
//!
//! # An exit
//! [`kvm::vcpu`] matches the reason and hands address and data to the bus, which finds the device. A
//! notification of a virtqueue goes by eventfd to the event loop or to the thread of its device instead.
//!
//! # An action
//! `hull stop`, `pause`, `inspect` and so on find the machine in [`fleet`] and send a [`control::Action`]
//! to its socket; [`vmm::life`] says which of them its state allows.
//!
//! # Modules
//! Who may use whom, from the top down.
//!
//! | module | what | may use |
//! |---|---|---|
//! | [`cli`] | one file a verb; the only place that prints | all below |
//! | [`launch`] | from a machine's description to a running one: kernel, template, pool, copies | agent, boot, config, control, disk's and net's configurations, fleet, guest, image, kvm's features, memory, pool, symbols, templates, vmm |
//! | [`gdb`] | gdb's remote protocol over a machine | boot's tables, kvm, memory, sandbox, sync, vmm |
//! | [`vmm`] | one machine from its configuration to its end | agent, boot, config, control, devices, disk, fleet, inspect, kvm, memory, net, profile, sandbox, share, snapshot, symbols, sync, trace |
//! | [`supervisor`] | the process outside of a machine's jail and control group | agent, config, disk's and share's configurations, fleet, sandbox, vmm |
//! | [`compare`] | one harness for measuring: process, container, virtual machine, and hull's own figures | config's sizes, guest, kvm's probe, leftover, sandbox |
//! | [`compose`] | applications of several machines, from a file to what is to be done | config's files and sizes, fleet's records, net's configuration |
//! | [`doctor`] | checks whether this host can run guests | config, guest, kvm, memory, sandbox |
//! | [`control`] | actions on a running machine, over its socket | fleet, inspect, sandbox, sync |
//! | [`pool`] | machines that wait for a command | agent, control, fleet, sandbox |
//! | [`inspect`] | the state of a machine at one moment, decoded | config, devices, kvm, memory, sandbox, symbols |
//! | [`agent`] | the protocol by which a command runs in the guest | |
//! | [`fleet`] | records of running machines | |
//! | [`templates`] | snapshots of booted machines, and the guest unpacked, kept for later runs | config's sizes, memory |
//! | [`profile`] | samples of what vCPUs do, as call stacks | kvm's page walk, memory, symbols, sync |
//! | [`kvm`] | virtual machine, vCPUs, exits; what a software KVM cannot do | boot's tables, memory, sandbox, sync |
//! | [`disk`] | backends of virtio block devices: images | config, devices, memory, sandbox, sync |
//! | [`net`] | backends of virtio network devices: tap, passt, and networks of machines with their switches | config, devices, memory, sandbox |
//! | [`share`] | backends of virtio file systems: folders | config, devices, memory, sandbox |
//! | [`image`] | images of containers: from a name to the files of a disk | config's files and sizes, leftover, templates' place |
//! | [`volume`] | file systems that outlive machines, and disks that are kept with one | config's sizes, disk, fleet, leftover |
//! | [`config`] | the description of a machine, its flags' values and its file | boot's entries, the configurations of disk, net, share and devices, fleet's names, memory's limits |
//! | [`snapshot`] | a machine on disk: the format and its files | memory |
//! | [`devices`] | buses and emulated devices, none of which knows KVM | config's sizes, memory, sandbox, sync, trace |
//! | [`boot`] | from a kernel's bytes to an entry | memory |
//! | [`guest`] | the kernel and initramfs inside the program | memory |
//! | [`trace`] | events of a machine with their times, as plain data and as files | sync |
//! | [`symbols`] | names of addresses in a guest's kernel | memory |
//! | [`memory`] | where everything lies in guest memory, and what backs it | sandbox |
//! | [`sandbox`] | where threads begin, and what they give up before they work for a guest | |
//! | [`leftover`] | files that a killed hull has left | |
//! | [`sync`] | locks and eventfds | |
//!
//! `tests/architecture.rs` holds the code to this table.
//!
//! # Glossary
//! | word | meaning |
//! |---|---|
//! | machine | a virtual machine, one process of hull |
//! | guest | the software that runs in a machine |
//! | host | the computer, and the operating system, on which hull runs |
//! | init | hull's own first process in a guest; it runs the command |
//! | pause, resume | stop the vCPUs of a running machine; let them run again |
//! | save, snapshot | write a machine's memory and state to a folder; that folder |
//! | restore | make a new machine from a snapshot |
//! | template | a snapshot of a booted machine that waits for its first command |
//! | pool | restored machines that wait for commands, each a process |
//! | cold, warm | a start by a boot; a start from a template |
//! | slot | a virtio-mmio window with its interrupt line, for one device |
//! | backend | what serves a device on the host: an image, a tap device, a folder |
//! | transport | how a guest reaches a virtio device: virtio-mmio |
//! | action, answer | what a running machine is asked to do over its socket, and what it replies |
//! | timeout | the longest that hull waits for something |
//! | participant | a program that a comparison measures |
//! | `MAX_*`, `MIN_*` | limits, in the unit of their name or documentation |

pub mod agent;
pub mod boot;
pub mod cli;
pub mod compare;
pub mod compose;
pub mod config;
pub mod control;
pub mod devices;
pub mod disk;
pub mod doctor;
pub mod fleet;
pub mod gdb;
pub mod guest;
pub mod image;
pub mod inspect;
pub mod kvm;
pub mod launch;
pub mod leftover;
pub mod memory;
pub mod net;
pub mod pool;
pub mod profile;
pub mod sandbox;
pub mod share;
pub mod snapshot;
pub mod supervisor;
pub mod symbols;
pub mod sync;
pub mod templates;
pub mod trace;
pub mod vmm;
pub mod volume;
