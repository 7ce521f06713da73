//! A guest that continues with another device, as after a restore.

use super::{Guest, shortcuts};
use crate::devices::Reporter;
use crate::devices::bus::BusDevice;
use crate::devices::state::StateError;
use crate::devices::virtio::Device;
use crate::devices::virtio::mmio::MmioTransport;

impl Guest {
    /// A window with `device` in it, over this guest's memory.
    pub fn window(&self, device: impl Device) -> MmioTransport {
        MmioTransport::new(
            self.memory.clone(),
            Box::new(device),
            self.interrupt.clone(),
            Reporter::new(self.events.clone(), "device"),
            shortcuts(),
        )
        .unwrap()
    }

    /// Save the device and continue with `device`; returns the state.
    ///
    /// # Errors
    /// The one cannot be saved, or the other not continue from its state; nothing has changed then.
    pub fn move_to(&mut self, device: impl Device) -> Result<Vec<u8>, StateError> {
        let state = self.transport.save()?;
        let mut window = self.window(device);
        window.load(&state)?;
        self.transport = window;
        self.run();
        Ok(state)
    }
}
