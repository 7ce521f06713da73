//! A window as an inspection shows it, read without effects.

use super::register;
use crate::devices::register::{Register, flags};
use crate::devices::virtio::core::Core;
use crate::devices::virtio::names;

/// Registers by the names of virtio 1.2, table 4.1, without those that only select others and those
/// of the selected queue (see [`Core::queues`]).
pub fn registers(core: &Core, queue_sel: u32, interrupt: u32) -> Vec<Register> {
    let kind = core.kind();
    let features = |bits: u64| {
        [flags(bits, kind.features), flags(bits, names::COMMON)]
            .join(" ")
            .trim()
            .to_string()
    };
    let register = |offset, bits, value| {
        let name = register::name(offset).unwrap_or_default();
        Register::at(offset, name, bits, value)
    };
    let word = |offset, value: u32| register(offset, 32, value.into());
    let wide = |offset, value| register(offset, 64, value).meaning(features(value));
    let status = core.status();
    let mut all = vec![
        word(register::MAGIC_VALUE, register::MAGIC).meaning("\"virt\""),
        word(register::VERSION, register::VERSION_2),
        word(register::DEVICE_ID, kind.id).meaning(kind.name),
        word(register::VENDOR_ID, register::VENDOR).meaning("\"hull\""),
        wide(register::DEVICE_FEATURES, core.offered()),
        wide(register::DRIVER_FEATURES, core.driver_features()),
        word(register::QUEUE_SEL, queue_sel).meaning(format!("of {}", core.queue_count())),
        word(register::INTERRUPT_STATUS, interrupt)
            .meaning(flags(interrupt.into(), names::INTERRUPT)),
        word(register::STATUS, status).meaning(flags(status.into(), names::STATUS)),
        word(register::CONFIG_GENERATION, core.config_generation()),
    ];
    for &(name, offset, bytes) in kind.fields {
        all.push(field(core, name, offset, bytes));
    }
    all
}

/// A field of the configuration space; its meaning is the value in words.
fn field(core: &Core, name: &'static str, offset: u64, bytes: usize) -> Register {
    let mut space = [0; 64];
    let space = space.get_mut(..bytes).unwrap_or_default();
    core.config(offset, space);
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
