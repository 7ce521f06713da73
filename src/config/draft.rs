//! [`Draft`]: a machine while sources, the file and then the flags, describe it.

use std::collections::BTreeMap;

use super::device::{self, Device, Form, KINDS};
use super::error::ConfigError;
use super::machine::Machine;

/// What all sources so far say. A setting replaces that of an earlier source, and so does a list.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// The settings; its devices are not yet there.
    pub machine: Machine,
    /// The devices that were given by each key of [`KINDS`]; an empty list says that there is none.
    pub devices: BTreeMap<&'static str, Vec<Device>>,
}

impl Draft {
    /// The machine, all else as it is unless a source says otherwise.
    ///
    /// # Errors
    /// Settings that exclude each other.
    pub fn machine(self) -> Result<Machine, ConfigError> {
        let (mut machine, mut given) = (self.machine, self.devices);
        for kind in &KINDS {
            match given.remove(kind.key) {
                Some(list) => machine.devices.extend(list),
                None if matches!(kind.form, Form::Switch) => machine.devices.extend(kind.plain()),
                None => {}
            }
        }
        device::complete(&mut machine.devices)?;
        machine.check()?;
        Ok(machine)
    }
}
