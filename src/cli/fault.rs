//! `--break`: a machine with one part wrong, for those who learn what the part is for.

use anyhow::bail;
use clap::ValueEnum;
use clap::builder::PossibleValue;

use super::say;
use crate::vmm::fault::Fault;

impl ValueEnum for Fault {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self::NoIrqchip,
            Self::NoMptable,
            Self::BadE820,
            Self::NoSerialIrq,
            Self::WrongCpuid,
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(name(*self)))
    }
}

fn name(fault: Fault) -> &'static str {
    match fault {
        Fault::NoIrqchip => "no-irqchip",
        Fault::NoMptable => "no-mptable",
        Fault::BadE820 => "bad-e820",
        Fault::NoSerialIrq => "no-serial-irq",
        Fault::WrongCpuid => "wrong-cpuid",
    }
}

fn what(fault: Fault) -> &'static str {
    match fault {
        Fault::NoIrqchip => "there are no interrupt controllers and no timer",
        Fault::NoMptable => "no table tells of processors and interrupt controllers",
        Fault::BadE820 => "the memory map names 64 MiB that are not there",
        Fault::NoSerialIrq => "the interrupt line of COM1 leads nowhere",
        Fault::WrongCpuid => "CPUID does not show long mode",
    }
}

/// Refuse what no guest could begin with.
///
/// # Errors
/// More than one CPU in a machine without local APICs.
pub fn check(faults: &[Fault], cpus: u8) -> anyhow::Result<()> {
    // Without an irqchip KVM has every vCPU run at once, the others from their reset vector.
    if faults.contains(&Fault::NoIrqchip) && cpus > 1 {
        bail!(
            "--break no-irqchip: one CPU is started by the other's local APIC, and there is none; \
             leave out --cpus {cpus}"
        );
    }
    Ok(())
}

/// Say on standard error what is wrong with the machine, a line each.
pub fn tell(faults: &[Fault]) {
    for fault in faults {
        say(&format!(
            "broken on purpose ({}): {}",
            name(*fault),
            what(*fault)
        ));
    }
}
