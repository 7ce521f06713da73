//! Gathers what `hull inspect` shows. The vCPUs are paused only while their state is read.

use std::ops::{Add, Range};
use std::sync::Arc;

use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::config::Config;
use super::machine::{KEYBOARD_GSI, Machine};
use super::shared::Shared;
use super::vcpus::{Pause, Vcpus};
use crate::boot::{Loaded, Mode};
use crate::config::file;
use crate::devices::bus::Bus;
use crate::devices::virtio::QueueCounters;
use crate::devices::virtio::transport::SharedCore;
use crate::inspect::chips::Interrupts;
use crate::inspect::cpu::{self, Cpu};
use crate::inspect::lockdown::{Lockdown, Thread};
use crate::inspect::map::{Kind, Memory};
use crate::inspect::{Device, Hex, Inspection, Queues, Topic, pages};
use crate::kvm::state::{Chips, CpuState};
use crate::kvm::walk::Paging;
use crate::memory::layout::{self, MmioSlot};
use crate::memory::{GuestMemory, backing};
use crate::sandbox::statuses_beside;
use crate::symbols::{self, Symbols};
use crate::sync::lock;

/// Line of the 8254 timer.
const TIMER_GSI: u32 = 0;

/// What is known to be in a range of guest-physical addresses.
type Known = (Range<u64>, Kind, String);

/// Reads the state of one machine.
pub struct Inspector {
    vcpus: Arc<Vcpus>,
    chips: Chips,
    memory: GuestMemory,
    shared: Arc<Shared>,
    slots: Vec<(String, MmioSlot, SharedCore)>,
    lines: Vec<(u32, String)>,
    known: Vec<Known>,
    symbols: Option<symbols::Source>,
    wanted: crate::config::Machine,
}

impl Inspector {
    /// An inspector of `machine`, whose vCPUs are in `vcpus`.
    pub fn new(machine: &Machine, vcpus: Arc<Vcpus>, config: &Config) -> Self {
        let slots = machine.devices.slots.list();
        let shared = machine.shared.clone();
        let mut lines = vec![
            (TIMER_GSI, "8254 timer".to_string()),
            (KEYBOARD_GSI, "i8042".into()),
            (layout::COM1_GSI, "COM1".into()),
            (layout::SCI_GSI, "ACPI power".into()),
        ];
        if shared.buses.ports.name(layout::COM2_PORT.into()).is_some() {
            lines.push((layout::COM2_GSI, "COM2".into()));
        }
        let of_slots = slots.iter();
        lines.extend(of_slots.map(|(name, place, _)| (place.gsi, name.clone())));
        let mut known = machine.loaded.as_ref().map_or_else(Vec::new, loaded);
        known.extend(devices(&shared.buses.mmio));
        Self {
            vcpus,
            chips: Chips::of(&machine.vm),
            memory: machine.vm.memory().clone(),
            shared,
            slots,
            lines,
            known,
            symbols: config.images.symbols.clone(),
            wanted: config.machine.clone(),
        }
    }

    /// The state that `topic` asks for; of vCPU `only` if given.
    ///
    /// # Errors
    /// There is no such vCPU or address, or KVM does not return the state.
    pub fn inspect(&self, topic: &Topic, only: Option<usize>) -> Result<Inspection, String> {
        if let Some(seen) = self.beside_guest(topic) {
            return seen;
        }
        let is = |one: Topic| *topic == Topic::All || *topic == one;
        let address = match topic {
            Topic::PageTables { address } => Some(address),
            _ => None,
        };
        let named = is(Topic::Registers) || address.is_some();
        let source = self.symbols.as_ref().filter(|_| named);
        let symbols = source.map(symbols::Source::load).unwrap_or_default();
        let address = address.map(|text| parse(text, &symbols)).transpose()?;

        let mut seen = Inspection::default();
        let map = self.map(is(Topic::Memory));
        let pause = self.vcpus.pause();
        let count = pause.count();
        if only.is_some_and(|index| index >= count) {
            return Err(no_such_vcpu(only.unwrap_or_default(), count));
        }
        let states = states(&pause)?;
        if is(Topic::Registers) {
            let all = states.iter().enumerate();
            let wanted = all.filter(|(index, _)| only.is_none_or(|only| only == *index));
            seen.vcpus = wanted
                .map(|(index, state)| Cpu::new(index, state, &self.memory, &symbols))
                .collect();
        }
        if let Some(address) = address {
            let index = only.unwrap_or(0);
            let paging = states.get(index).map(|state| Paging::new(&state.sregs));
            seen.walk = paging
                .map(|paging| pages::walk(index, &paging, &self.memory, address, &symbols, &map));
        }
        if is(Topic::Devices) {
            seen.devices = self.devices();
        }
        if is(Topic::Queues) {
            let slots = self.slots.iter();
            seen.queues = slots
                .map(|(name, _, slot)| Queues {
                    device: name.clone(),
                    queues: lock(slot).queues(),
                })
                .collect();
        }
        let chips = is(Topic::Interrupts).then(|| self.chips.state());
        drop(pause);

        if let Some(chips) = chips.transpose().map_err(|error| error.to_string())? {
            seen.interrupts = Some(Interrupts::new(&chips, &states, &self.lines));
        }
        seen.memory = is(Topic::Memory).then_some(map);
        Ok(seen)
    }

    /// What needs no look at the guest; `None` if `topic` does.
    fn beside_guest(&self, topic: &Topic) -> Option<Result<Inspection, String>> {
        let mut seen = Inspection::default();
        let found = match topic {
            Topic::Config => file::write(&self.wanted)
                .map(|written| seen.config = Some(written))
                .map_err(|error| error.to_string()),
            Topic::Lockdown => Lockdown::of_process()
                .map(|mut lockdown| {
                    let beside = statuses_beside();
                    lockdown.processes = beside.iter().flat_map(|it| Thread::of(it)).collect();
                    seen.lockdown = Some(lockdown);
                })
                .map_err(|error| error.to_string()),
            _ => return None,
        };
        Some(found.map(|()| seen))
    }

    fn map(&self, with_resident: bool) -> Memory {
        let regions = self.memory.iter();
        let ram: Vec<_> = regions
            .map(|region| {
                let start = region.start_addr().raw_value();
                start..start + region.len()
            })
            .collect();
        let resident = |range: &Range<u64>| {
            if with_resident {
                backing::resident(&self.memory, range)
            } else {
                0
            }
        };
        Memory::new(&ram, &self.known, resident, layout::MMIO_HOLE_END)
    }

    fn devices(&self) -> Vec<Device> {
        let mut all = Vec::new();
        for (bus, name) in [
            (&self.shared.buses.ports, "ports"),
            (&self.shared.buses.mmio, "memory"),
        ] {
            for (base, len, device, registers) in bus.devices() {
                let line = self.lines.iter().find(|(_, of)| of == device);
                let mut slots = self.slots.iter();
                let slot = slots.find(|(_, place, _)| name == "memory" && place.base == base);
                all.push(Device {
                    name: device.into(),
                    bus: name.into(),
                    base: Hex(base),
                    len,
                    gsi: line.map(|(gsi, _)| *gsi),
                    registers: lock(registers).state(),
                    traffic: slot.map(|(_, _, slot)| {
                        let slot = lock(slot);
                        slot.counters().fold(QueueCounters::default(), Add::add)
                    }),
                });
            }
        }
        all
    }
}

fn no_such_vcpu(wanted: usize, count: usize) -> String {
    let there = match count {
        1 => "vCPU 0 alone".into(),
        _ => format!("vCPUs 0 to {}", count - 1),
    };
    format!("there is no vCPU {wanted}: this machine has {there}")
}

/// The states of all vCPUs, after completing their instructions.
fn states(pause: &Pause) -> Result<Vec<CpuState>, String> {
    let msrs: Vec<u32> = cpu::MSRS.iter().map(|(index, _)| *index).collect();
    let vcpus = (0..pause.count()).filter_map(|index| pause.vcpu(index));
    vcpus
        .map(|mut vcpu| {
            vcpu.complete();
            vcpu.whole_state(&msrs).map_err(|error| error.to_string())
        })
        .collect()
}

/// What hull wrote to guest memory before the first instruction.
fn loaded(loaded: &Loaded) -> Vec<Known> {
    let put =
        |start: u64, bytes: u64, what: &str| (start..start + bytes, Kind::Loaded, what.to_string());
    let mode = loaded.entry.mode;
    let flat = matches!(mode, Mode::Flat16 | Mode::Flat32 | Mode::Flat64);
    let kernel = if flat { "flat payload" } else { "kernel" };
    let range = &loaded.kernel;
    let mut known = vec![put(range.start, range.end - range.start, kernel)];
    if mode != Mode::Flat16 {
        known.push(put(layout::GDT, layout::IDT - layout::GDT, "GDT"));
    }
    if crate::boot::tables::is_long(mode) {
        let bytes = layout::PAGE_TABLES_SIZE;
        known.push(put(layout::PAGE_TABLES, bytes, "page tables"));
    }
    if let Some(initrd) = &loaded.initrd {
        known.push(put(initrd.start, initrd.end - initrd.start, "initrd"));
    }
    if !flat {
        let line = loaded.cmdline.len() as u64 + 1;
        let page = layout::PAGE_SIZE;
        known.push(match mode {
            Mode::Pvh => put(layout::PVH_START_INFO, page, "hvm_start_info"),
            _ => put(layout::BOOT_PARAMS, page, "boot_params"),
        });
        known.push(put(layout::CMDLINE, line, "command line"));
        let ebda = layout::CONVENTIONAL_END - layout::EBDA;
        known.push(put(layout::EBDA, ebda, "EBDA: MP table"));
        let acpi = layout::ACPI_END - layout::ACPI;
        known.push(put(layout::ACPI, acpi, "ACPI tables"));
        let vga = layout::CONVENTIONAL_END..layout::ACPI;
        known.push((vga, Kind::Ram, "RAM, reserved for VGA".into()));
    }
    known
}

/// The registers of hull's and KVM's devices in memory, and KVM's own pages.
fn devices(mmio: &Bus) -> Vec<Known> {
    let mut known: Vec<Known> = mmio
        .devices()
        .map(|(base, len, name, _)| (base..base + len, Kind::Device, name.to_string()))
        .collect();
    for (base, pages, what) in [
        (layout::IOAPIC, 1, "IOAPIC"),
        (layout::LOCAL_APIC, 1, "local APIC"),
        (layout::KVM_IDENTITY_MAP, 4, "KVM's pages for real mode"),
    ] {
        let end = base + pages * layout::PAGE_SIZE;
        known.push((base..end, Kind::Device, what.into()));
    }
    known
}

/// An address in hexadecimal, or a symbol with or without an offset.
fn parse(text: &str, symbols: &Symbols) -> Result<u64, String> {
    let hex = |digits: &str| u64::from_str_radix(digits, 16).ok();
    let number = |text: &str| text.strip_prefix("0x").and_then(hex);
    if let Some(address) = number(text) {
        return Ok(address);
    }
    let (name, offset) = text.split_once('+').unwrap_or((text, "0x0"));
    let offset = number(offset).or_else(|| offset.parse().ok());
    match (symbols.address(name), offset) {
        (Some(address), Some(offset)) => Ok(address.wrapping_add(offset)),
        _ => hex(text).ok_or_else(|| {
            format!(
                "{text}: neither an address in hexadecimal nor a function of this machine's \
                 kernel; write 0xffffffff81000000, or start_kernel+0x10"
            )
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_number_or_a_symbol() {
        let map = b"ffffffff81000000 T start\nffffffff81000100 T add\n";
        let symbols = Symbols::from_system_map(map);
        for (text, address) in [
            ("0x1000", Some(0x1000)),
            ("1000", Some(0x1000)),
            ("ffffffff81000000", Some(0xffff_ffff_8100_0000)),
            ("start", Some(0xffff_ffff_8100_0000)),
            ("start+0x10", Some(0xffff_ffff_8100_0010)),
            ("start+16", Some(0xffff_ffff_8100_0010)),
            ("add", Some(0xffff_ffff_8100_0100)),
            ("0xadd", Some(0xadd)),
            ("ad", Some(0xad)),
            ("stop", None),
            ("start+x", None),
            ("0x", None),
            ("", None),
            ("10000000000000000", None),
        ] {
            assert_eq!(parse(text, &symbols).ok(), address, "{text}");
        }
    }
}
