//! A virtio-mmio window with no device in it: a driver that probes it reads DeviceID 0 and ignores
//! it without a message (virtio 1.2, 4.2.3.1.1; Linux drivers/virtio/virtio_mmio.c,
//! virtio_mmio_probe).

use super::register;
use crate::devices::bus::BusDevice;
use crate::devices::register::Register;

/// A window that stays empty.
pub struct Absent;

/// What is read from such a window.
pub(super) fn read(offset: u64, data: &mut [u8]) {
    let value = match offset {
        register::MAGIC_VALUE => register::MAGIC,
        register::VERSION => register::VERSION_2,
        register::VENDOR_ID => register::VENDOR,
        _ => 0,
    };
    match <&mut [u8; 4]>::try_from(&mut *data) {
        Ok(data) => *data = value.to_le_bytes(),
        Err(_) => data.fill(0),
    }
}

impl BusDevice for Absent {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        read(offset, data);
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) {}

    fn state(&self) -> Vec<Register> {
        vec![
            Register::at(
                register::MAGIC_VALUE,
                "MagicValue",
                32,
                register::MAGIC.into(),
            )
            .meaning("\"virt\""),
            Register::at(register::VERSION, "Version", 32, register::VERSION_2.into()),
            Register::at(register::DEVICE_ID, "DeviceID", 32, 0).meaning("none"),
        ]
    }

    fn register(&self, offset: u64, _write: bool) -> Option<&'static str> {
        register::name(offset)
    }
}
