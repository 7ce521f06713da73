//! Saves the state of a machine's vCPUs and chips, and loads it into another machine.
//!
//! The order in which a vCPU's state is set matters: CPUID first, which limits the rest; the local APIC
//! before the TSC deadline, which a timer in another mode ignores; events last, because setting
//! registers clears pending ones. Source: Documentation/virt/kvm/api.rst and
//! arch/x86/kvm/x86.c.

use kvm_bindings::{
    CpuId, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_UNINITIALIZED, Msrs, kvm_clock_data, kvm_cpuid_entry2, kvm_irqchip,
    kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_pit_state2, kvm_vcpu_events, kvm_xcrs,
    kvm_xsave,
};
use kvm_bindings::{kvm_debugregs, kvm_regs, kvm_sregs};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::features::Features;
use super::msrs::{TSC, TSC_DEADLINE};
use super::vcpu::Vcpu;
use super::vm::Vm;
use super::{KvmError, refused};

/// Most MSRs accepted from a file.
const MAX_MSRS: usize = 1024;
/// Largest difference of TSC rates in ppm that is accepted if KVM cannot scale the TSC: as much as NTP
/// corrects.
const TSC_TOLERANCE: u64 = 250;

/// Why a machine cannot be restored on this host.
#[derive(Debug, Error)]
pub enum LoadError {
    /// KVM refused a request.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// KVM does not know the MSR, or not this value.
    #[error("this KVM does not take MSR {index:#x} with the value {value:#x}")]
    Msr {
        /// Index of the MSR.
        index: u32,
        /// The value to be restored.
        value: u64,
    },
    /// The saved state of a vCPU is invalid.
    #[error("vCPU {vcpu}: {what}")]
    Nonsense {
        /// Number of the vCPU.
        vcpu: usize,
        /// The part that is invalid.
        what: &'static str,
    },
    /// The processor has another vendor.
    #[error("it was saved on a processor of {from}, this host's is of {here}")]
    Vendor {
        /// Vendor of the processor on which it was saved.
        from: String,
        /// Vendor of this host's processor.
        here: String,
    },
    /// The processor or KVM lacks features that the guest may use.
    #[error("the guest may use {}, which this host's processor or KVM lacks", missing.join(", "))]
    Features {
        /// Their names as in /proc/cpuinfo.
        missing: Vec<&'static str>,
    },
    /// The TSC has another rate.
    #[error(
        "the guest's TSC runs at {guest_khz} kHz, and this host's at {host_khz} kHz with no way to \
         scale it"
    )]
    TscRate {
        /// Rate of the guest's TSC in kHz.
        guest_khz: u32,
        /// Rate of the host's TSC in kHz.
        host_khz: u32,
    },
}

/// The complete state of a vCPU.
#[derive(Serialize, Deserialize)]
pub struct SavedVcpu {
    cpuid: Vec<kvm_cpuid_entry2>,
    /// The rate of its TSC in kHz; 0 if KVM does not return it.
    tsc_khz: u32,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xcrs: kvm_xcrs,
    xsave: Box<kvm_xsave>,
    debug: kvm_debugregs,
    lapic: Option<Box<kvm_lapic_state>>,
    msrs: Vec<(u32, u64)>,
    events: kvm_vcpu_events,
    mp_state: kvm_mp_state,
}

/// The state of the chips, which all vCPUs share.
#[derive(Serialize, Deserialize)]
pub struct SavedChips {
    /// The 8259s and the IOAPIC.
    chips: Vec<kvm_irqchip>,
    pit: kvm_pit_state2,
    /// The time of kvm-clock.
    clock: Option<kvm_clock_data>,
}

impl SavedVcpu {
    /// The processor features shown to the guest.
    pub fn features(&self) -> Result<Features, LoadError> {
        Ok(Features::shown(&self.cpuid(0)?))
    }

    fn cpuid(&self, vcpu: usize) -> Result<CpuId, LoadError> {
        let what = "its CPUID has too many leaves";
        let fits = self.cpuid.len() <= KVM_MAX_CPUID_ENTRIES;
        let list = fits.then(|| CpuId::from_entries(&self.cpuid));
        let list = list.and_then(Result::ok);
        list.ok_or(LoadError::Nonsense { vcpu, what })
    }
}

impl Vm {
    /// The MSRs that KVM knows and a snapshot has to contain.
    ///
    /// # Errors
    /// An ioctl that KVM refuses, with its errno.
    pub fn msrs(&self) -> Result<Vec<u32>, KvmError> {
        let list = self.kvm().get_msr_index_list();
        let list = list.map_err(refused("KVM_GET_MSR_INDEX_LIST"))?;
        Ok(list.as_slice().to_vec())
    }

    /// Check, before any vCPU is created, that a guest that was shown `features` finds them here. A
    /// guest whose kernel KVM emulates sees the features of the processor itself, `of_processor`, and
    /// KVM reports the same for its vCPU.
    ///
    /// # Errors
    /// [`LoadError::Vendor`], [`LoadError::Features`].
    pub fn offers(
        &self,
        features: &Features,
        of_processor: Option<&Features>,
    ) -> Result<(), LoadError> {
        if let Some(seen) = of_processor {
            return check(seen, &Features::of_host());
        }
        let mut supported = self.supported_cpuid()?;
        // KVM's local APIC always has this timer, although the list may lack it (see `cpuid`).
        for entry in supported.as_mut_slice() {
            if entry.function == 1 {
                entry.ecx |= super::cpuid::ECX_TSC_DEADLINE;
            }
        }
        check(features, &Features::shown(&supported))
    }

    /// Save the state of the chips and of kvm-clock.
    ///
    /// # Errors
    /// An ioctl that KVM refuses, with its errno.
    pub fn save_chips(&self) -> Result<SavedChips, KvmError> {
        let chip = |chip_id| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            let done = self.fd().get_irqchip(&mut chip);
            done.map_err(refused("KVM_GET_IRQCHIP")).map(|()| chip)
        };
        let ids = [
            KVM_IRQCHIP_PIC_MASTER,
            KVM_IRQCHIP_PIC_SLAVE,
            KVM_IRQCHIP_IOAPIC,
        ];
        Ok(SavedChips {
            chips: ids.map(chip).into_iter().collect::<Result<_, _>>()?,
            pit: self.fd().get_pit2().map_err(refused("KVM_GET_PIT2"))?,
            clock: self.fd().get_clock().ok(),
        })
    }

    /// Load the chips and kvm-clock, after the vCPUs, whose local APICs receive from the IOAPIC.
    ///
    /// # Errors
    /// An ioctl that KVM refuses, with its errno.
    pub fn load_chips(&self, saved: &SavedChips) -> Result<(), LoadError> {
        for chip in &saved.chips {
            let done = self.fd().set_irqchip(chip);
            done.map_err(refused("KVM_SET_IRQCHIP"))?;
        }
        let done = self.fd().set_pit2(&saved.pit);
        done.map_err(refused("KVM_SET_PIT2"))?;
        if let Some(saved) = saved.clock {
            // Without flags the guest's time continues where it was, without the time since the
            // snapshot.
            let clock = kvm_clock_data {
                clock: saved.clock,
                ..Default::default()
            };
            let done = self.fd().set_clock(&clock);
            done.map_err(refused("KVM_SET_CLOCK"))?;
        }
        Ok(())
    }
}

fn check(used: &Features, there: &Features) -> Result<(), LoadError> {
    if used.vendor != there.vendor {
        return Err(LoadError::Vendor {
            from: used.maker(),
            here: there.maker(),
        });
    }
    match used.missing(there) {
        missing if missing.is_empty() => Ok(()),
        missing => Err(LoadError::Features { missing }),
    }
}

impl Vcpu {
    /// RIP, if interrupts are off.
    pub fn uninterruptible_at(&mut self) -> Option<u64> {
        const IF: u64 = 1 << 9; // Intel SDM 1, 3.4.3
        let regs = self.fd().get_regs().ok()?;
        (regs.rflags & IF == 0).then_some(regs.rip)
    }

    /// Whether it is halted and waits for an interrupt.
    pub fn is_halted(&mut self) -> bool {
        let state = self.fd().get_mp_state();
        state.is_ok_and(|state| state.mp_state == KVM_MP_STATE_HALTED)
    }

    /// Whether no interrupt can wake it: it is halted with interrupts off, or waits for another vCPU
    /// to start it (Intel SDM 3A, 10.4.2, 25.2). An NMI could, which nothing in this machine sends.
    pub fn is_halted_for_good(&mut self) -> bool {
        let state = self.fd().get_mp_state().map(|state| state.mp_state);
        match state {
            Ok(KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED) => true,
            Ok(KVM_MP_STATE_HALTED) => self.uninterruptible_at().is_some(),
            _ => false,
        }
    }

    /// Save its state, with the readable ones of these MSRs. It must be paused, and its last access
    /// complete ([`Vcpu::complete`]).
    ///
    /// # Errors
    /// An ioctl that KVM refuses, with its errno.
    pub fn save(&mut self, msrs: &[u32]) -> Result<SavedVcpu, KvmError> {
        let fd = self.fd();
        // First, because it makes KVM turn an event that is nearly delivered into a pending one.
        let mp_state = fd.get_mp_state().map_err(refused("KVM_GET_MP_STATE"))?;
        let cpuid = fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES);
        let cpuid = cpuid.map_err(refused("KVM_GET_CPUID2"))?;
        let mut saved = SavedVcpu {
            cpuid: cpuid.as_slice().to_vec(),
            tsc_khz: fd.get_tsc_khz().unwrap_or(0),
            regs: fd.get_regs().map_err(refused("KVM_GET_REGS"))?,
            sregs: fd.get_sregs().map_err(refused("KVM_GET_SREGS"))?,
            xcrs: fd.get_xcrs().map_err(refused("KVM_GET_XCRS"))?,
            xsave: Box::new(fd.get_xsave().map_err(refused("KVM_GET_XSAVE"))?),
            debug: fd.get_debug_regs().map_err(refused("KVM_GET_DEBUGREGS"))?,
            lapic: fd.get_lapic().ok().map(Box::new),
            msrs: Vec::with_capacity(msrs.len()),
            events: fd
                .get_vcpu_events()
                .map_err(refused("KVM_GET_VCPU_EVENTS"))?,
            mp_state,
        };
        let mut rest = msrs;
        while !rest.is_empty() {
            let entry = |index: &u32| kvm_msr_entry {
                index: *index,
                ..Default::default()
            };
            let entries: Vec<_> = rest.iter().map(entry).collect();
            let Ok(mut list) = Msrs::from_entries(&entries) else {
                break;
            };
            // KVM stops at the first that it cannot read, which is skipped.
            let read = fd.get_msrs(&mut list).unwrap_or(0);
            let values = list.as_slice().iter().take(read);
            saved.msrs.extend(values.map(|msr| (msr.index, msr.data)));
            rest = rest.get(read + 1..).unwrap_or_default();
        }
        Ok(saved)
    }

    /// Load the state into vCPU number `vcpu`, which has not run yet. `tsc` is the same for all vCPUs:
    /// KVM synchronises TSCs that are set to equal values within a second (kvm_synchronize_tsc in
    /// arch/x86/kvm/x86.c).
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load(&mut self, saved: &SavedVcpu, vcpu: usize, tsc: u64) -> Result<(), LoadError> {
        let fd = self.fd();
        let cpuid = saved.cpuid(vcpu)?;
        fd.set_cpuid2(&cpuid).map_err(refused("KVM_SET_CPUID2"))?;
        let host_khz = fd.get_tsc_khz().unwrap_or(0);
        if rates_differ(saved.tsc_khz, host_khz) && fd.set_tsc_khz(saved.tsc_khz).is_err() {
            return Err(LoadError::TscRate {
                guest_khz: saved.tsc_khz,
                host_khz,
            });
        }
        let done = fd.set_mp_state(saved.mp_state);
        done.map_err(refused("KVM_SET_MP_STATE"))?;
        fd.set_regs(&saved.regs).map_err(refused("KVM_SET_REGS"))?;
        fd.set_sregs(&saved.sregs)
            .map_err(refused("KVM_SET_SREGS"))?;
        fd.set_xcrs(&saved.xcrs).map_err(refused("KVM_SET_XCRS"))?;
        // SAFETY: KVM reads more than 4 KiB only if the process has asked for permission to use
        // larger states (arch_prctl(2), ARCH_REQ_XCOMP_GUEST_PERM), which hull does not.
        unsafe { fd.set_xsave(&saved.xsave) }.map_err(refused("KVM_SET_XSAVE"))?;
        let done = fd.set_debug_regs(&saved.debug);
        done.map_err(refused("KVM_SET_DEBUGREGS"))?;
        if let Some(lapic) = &saved.lapic {
            fd.set_lapic(lapic).map_err(refused("KVM_SET_LAPIC"))?;
        }
        self.load_msrs(&saved.msrs, vcpu, tsc)?;
        let done = self.fd().set_vcpu_events(&saved.events);
        done.map_err(refused("KVM_SET_VCPU_EVENTS"))?;
        Ok(())
    }

    fn load_msrs(&mut self, saved: &[(u32, u64)], vcpu: usize, tsc: u64) -> Result<(), LoadError> {
        if saved.len() > MAX_MSRS {
            let what = "it has too many MSRs";
            return Err(LoadError::Nonsense { vcpu, what });
        }
        // The TSC before all that is measured by it, and its deadline last.
        let rank = |index: u32| match index {
            TSC => 0,
            TSC_DEADLINE => 2,
            _ => 1,
        };
        let mut entries: Vec<_> = saved
            .iter()
            .map(|&(index, data)| kvm_msr_entry {
                index,
                data: if index == TSC { tsc } else { data },
                ..Default::default()
            })
            .collect();
        entries.sort_by_key(|entry| rank(entry.index));
        let mut rest = entries.as_slice();
        while !rest.is_empty() {
            let what = "its MSRs do not fit into a list";
            let list = Msrs::from_entries(rest);
            let list = list.map_err(|_| LoadError::Nonsense { vcpu, what })?;
            let set = self.fd().set_msrs(&list);
            let set = set.map_err(refused("KVM_SET_MSRS"))?;
            match rest.get(set..) {
                // An MSR that cannot be set to 0 is read-only.
                Some([first, others @ ..]) if first.data == 0 => rest = others,
                Some([first, ..]) => {
                    return Err(LoadError::Msr {
                        index: first.index,
                        value: first.data,
                    });
                }
                _ => break,
            }
        }
        Ok(())
    }
}

impl SavedVcpu {
    /// The value of its TSC.
    pub fn tsc(&self) -> u64 {
        let of_tsc = |(index, _): &&(u32, u64)| *index == TSC;
        self.msrs.iter().find(of_tsc).map_or(0, |(_, value)| *value)
    }
}

/// Whether the difference is more than a guest tolerates that has measured `guest_khz`.
fn rates_differ(guest_khz: u32, host_khz: u32) -> bool {
    let (guest, host) = (u64::from(guest_khz), u64::from(host_khz));
    guest != 0 && host != 0 && guest.abs_diff(host) * 1_000_000 > guest * TSC_TOLERANCE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_may_differ_as_much_as_ntp_corrects() {
        assert!(!rates_differ(2_000_000, 2_000_400));
        assert!(rates_differ(2_000_000, 2_000_600));
        assert!(!rates_differ(0, 2_000_000), "where KVM does not tell");
    }
}
