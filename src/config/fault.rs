//! Parts of a machine that are wrong on purpose, to show what each part is for (guest/lessons).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One part that is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The virtual machine has no interrupt controllers, no local APICs and no PIT.
    NoIrqchip,
    /// The guest gets neither an MP table nor an ACPI MADT.
    NoMptable,
    /// The memory map names 64 MiB of RAM that are not there.
    BadE820,
    /// The interrupt line of COM1 is not connected.
    NoSerialIrq,
    /// CPUID does not show long mode.
    WrongCpuid,
}

impl Fault {
    /// All faults, in the order of the help.
    pub const ALL: [Self; 5] = [
        Self::NoIrqchip,
        Self::NoMptable,
        Self::BadE820,
        Self::NoSerialIrq,
        Self::WrongCpuid,
    ];

    /// The word for it in flags and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoIrqchip => "no-irqchip",
            Self::NoMptable => "no-mptable",
            Self::BadE820 => "bad-e820",
            Self::NoSerialIrq => "no-serial-irq",
            Self::WrongCpuid => "wrong-cpuid",
        }
    }

    /// What is wrong then, as a sentence.
    pub fn what(self) -> &'static str {
        match self {
            Self::NoIrqchip => "there are no interrupt controllers and no timer",
            Self::NoMptable => "no table describes processors and interrupt controllers",
            Self::BadE820 => "the memory map names 64 MiB that are not there",
            Self::NoSerialIrq => "the interrupt line of COM1 is not connected",
            Self::WrongCpuid => "CPUID does not show long mode",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|fault| fault.name() == text);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("'{text}' is no part that can be wrong; there are {names}")
        })
    }
}
