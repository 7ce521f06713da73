//! Where the faults of a machine ([`Fault`]) are built in: KVM's part and the boot tables' part here,
//! that of COM1's interrupt line in `machine`.

use crate::boot::TableFaults;
use crate::config::{Fault, Machine};
use crate::kvm::vm::MissingFeatures;

/// What KVM is not asked for.
pub fn kvm(machine: &Machine) -> MissingFeatures {
    MissingFeatures {
        irqchip: machine.has_fault(Fault::NoIrqchip),
        long_mode: machine.has_fault(Fault::WrongCpuid),
    }
}

/// What is wrong in boot tables.
pub fn boot(machine: &Machine) -> TableFaults {
    TableFaults {
        no_processors: machine.has_fault(Fault::NoMptable),
        phantom_ram: machine.has_fault(Fault::BadE820),
    }
}
