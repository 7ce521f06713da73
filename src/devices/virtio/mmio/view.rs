//! A window as whoever inspects the machine is shown it: nothing here has an effect.

use std::sync::atomic::Ordering;

use super::{MAGIC, Transport, VENDOR, VERSION, register};
use crate::devices::register::{Register, flags};
use crate::devices::virtio::names;
use crate::devices::virtio::queue::view::QueueView;

impl Transport {
    /// The queues as they lie in memory.
    pub fn queues(&self) -> Vec<QueueView> {
        self.queues.iter().map(|queue| queue.view()).collect()
    }

    /// Registers by the names of virtio 1.2, table 4.1. Those that only select others, and those
    /// of the selected queue, are left to [`Transport::queues`].
    pub(super) fn registers(&self) -> Vec<Register> {
        let registers = &self.registers;
        let kind = names::kind(self.device.id());
        let known = kind.map_or(&[][..], |kind| kind.features);
        let features = |bits: u64| {
            [flags(bits, known), flags(bits, names::COMMON)]
                .join(" ")
                .trim()
                .to_string()
        };
        let word = |offset, name, value: u32| Register::at(offset, name, 32, value.into());
        let interrupt = self.interrupt_status.load(Ordering::Acquire);
        let (offered, accepted) = (self.offered(), registers.driver_features);
        let queues = self.queues.len();
        let mut all = vec![
            word(register::MAGIC_VALUE, "MagicValue", MAGIC).meaning("\"virt\""),
            word(register::VERSION, "Version", VERSION),
            word(register::DEVICE_ID, "DeviceID", self.device.id())
                .meaning(kind.map_or("", |kind| kind.name)),
            word(register::VENDOR_ID, "VendorID", VENDOR).meaning("\"hull\""),
            Register::at(register::DEVICE_FEATURES, "DeviceFeatures", 64, offered)
                .meaning(features(offered)),
            Register::at(register::DRIVER_FEATURES, "DriverFeatures", 64, accepted)
                .meaning(features(accepted)),
            word(register::QUEUE_SEL, "QueueSel", registers.queue_sel)
                .meaning(format!("of {queues}")),
            word(register::INTERRUPT_STATUS, "InterruptStatus", interrupt)
                .meaning(flags(interrupt.into(), names::INTERRUPT)),
            word(register::STATUS, "Status", registers.status)
                .meaning(flags(registers.status.into(), names::STATUS)),
            word(
                register::CONFIG_GENERATION,
                "ConfigGeneration",
                registers.config_generation,
            ),
        ];
        for &(name, offset, bytes) in kind.map_or(&[][..], |kind| kind.fields) {
            all.push(self.field(name, offset, bytes));
        }
        all
    }

    /// A field of the configuration space; of a long one, the bytes are told in words.
    fn field(&self, name: &'static str, offset: u64, bytes: usize) -> Register {
        let mut space = [0; 64];
        let space = space.get_mut(..bytes).unwrap_or_default();
        self.device.config(offset, space);
        let mut value = [0; 8];
        for (to, from) in value.iter_mut().zip(&*space) {
            *to = *from;
        }
        let value = u64::from_le_bytes(value);
        let at = register::CONFIG + offset;
        let words = match (name, bytes) {
            ("mac", _) => {
                let octets = space.iter().map(|octet| format!("{octet:02x}"));
                octets.collect::<Vec<_>>().join(":")
            }
            ("tag", _) => {
                let text = space.split(|byte| *byte == 0).next().unwrap_or_default();
                format!("\"{}\"", text.escape_ascii())
            }
            ("capacity", _) => format!("{value} sectors"),
            _ => format!("{value}"),
        };
        Register::at(at, name, 8 * bytes.min(8) as u8, value).meaning(words)
    }
}
