//! Where the deliberate faults of a machine ([`Fault`]) are injected: KVM's and the boot tables' here,
//! that of COM1's interrupt line in `builder`.

use crate::boot::TableFaults;
use crate::config::{Fault, Machine};
use crate::kvm::vm::MissingFeatures;

/// The KVM features that are left out.
pub fn kvm(machine: &Machine) -> MissingFeatures {
    MissingFeatures {
        irqchip: machine.has_fault(Fault::NoIrqchip),
        long_mode: machine.has_fault(Fault::WrongCpuid),
    }
}

/// The faults of the boot tables.
pub fn boot(machine: &Machine) -> TableFaults {
    TableFaults {
        no_processors: machine.has_fault(Fault::NoMptable),
        phantom_ram: machine.has_fault(Fault::BadE820),
    }
}
