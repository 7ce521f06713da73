//! Parts of a machine that are wrong on purpose: what a part is for shows when it is not there
//! (guest/lessons). Each fault is built in at one place, named here.

use crate::boot::TableFaults;
use crate::kvm::vm::MissingFeatures;

/// One part that is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No interrupt controllers, local APICs and PIT: [`MissingFeatures::irqchip`].
    NoIrqchip,
    /// Neither MP table nor MADT: [`TableFaults::no_processors`].
    NoMptable,
    /// The memory map names RAM that is not there: [`TableFaults::phantom_ram`].
    BadE820,
    /// COM1's interrupt line leads nowhere (`machine::assemble`).
    NoSerialIrq,
    /// CPUID does not show long mode: [`MissingFeatures::long_mode`].
    WrongCpuid,
}

/// All that is wrong with a machine; by default nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl Faults {
    /// Whether `fault` is among them.
    pub fn has(&self, fault: Fault) -> bool {
        self.0.contains(&fault)
    }

    /// What KVM is not asked for.
    pub fn kvm(&self) -> MissingFeatures {
        MissingFeatures {
            irqchip: self.has(Fault::NoIrqchip),
            long_mode: self.has(Fault::WrongCpuid),
        }
    }

    /// Where boot tables do not tell the truth.
    pub fn boot(&self) -> TableFaults {
        TableFaults {
            no_processors: self.has(Fault::NoMptable),
            phantom_ram: self.has(Fault::BadE820),
        }
    }
}
