//! The buses of a machine, on which a vCPU's accesses find their device.

use crate::devices::bus::Bus;
use crate::kvm::vcpu::Accesses;
use crate::trace::{Place, Space};

/// The two buses of a machine.
pub struct Buses {
    /// Devices at I/O ports.
    pub ports: Bus,
    /// Devices at guest-physical addresses without RAM.
    pub mmio: Bus,
}

impl Buses {
    /// The bus of an address space.
    pub fn of(&self, space: Space) -> &Bus {
        match space {
            Space::Port => &self.ports,
            Space::Memory => &self.mmio,
        }
    }

    /// Where each device is, as a trace records it.
    pub fn places(&self) -> Vec<Place> {
        let of = |space| {
            let place = move |(base, len, name, _): (u64, u64, &str, _)| Place {
                space,
                base,
                last: base + (len - 1),
                name: name.into(),
            };
            self.of(space).devices().map(place)
        };
        of(Space::Port).chain(of(Space::Memory)).collect()
    }
}

impl Accesses for Buses {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        self.ports.read(port.into(), data);
    }
    fn port_write(&self, port: u16, data: &[u8]) {
        self.ports.write(port.into(), data);
    }
    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        self.mmio.read(gpa, data);
    }
    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        self.mmio.write(gpa, data);
    }
}
