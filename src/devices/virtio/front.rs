//! A virtio-mmio window as the bus has it: [`Transport`] behind two registers without a lock.
//!
//! A driver that handles an interrupt reads InterruptStatus and writes InterruptACK (virtio 1.2,
//! 4.2.2). So it does not wait for a device that works on a queue meanwhile, and on a host with
//! one CPU this device does not lose it to whom it has just interrupted.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::mmio::{Transport, register};
use crate::devices::bus::BusDevice;
use crate::devices::register::Register;
use crate::devices::state::StateError;

/// A window on the bus.
pub struct Front {
    interrupt_status: Arc<AtomicU32>,
    transport: Arc<Mutex<Transport>>,
}

impl Front {
    /// The front of `transport`.
    pub fn new(transport: Arc<Mutex<Transport>>) -> Self {
        let interrupt_status = locked(&transport).interrupt_status.clone();
        Self {
            interrupt_status,
            transport,
        }
    }
}

fn locked(transport: &Mutex<Transport>) -> impl std::ops::DerefMut<Target = Transport> {
    transport.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BusDevice for Front {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(data) if offset == register::INTERRUPT_STATUS => {
                *data = self.interrupt_status.load(Ordering::Acquire).to_le_bytes();
            }
            _ => locked(&self.transport).read(offset, data),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match <&[u8; 4]>::try_from(data) {
            Ok(&data) if offset == register::INTERRUPT_ACK => {
                let acknowledged = u32::from_le_bytes(data);
                self.interrupt_status
                    .fetch_and(!acknowledged, Ordering::AcqRel);
            }
            _ => locked(&self.transport).write(offset, data),
        }
    }

    fn state(&self) -> Vec<Register> {
        locked(&self.transport).state()
    }

    fn register(&self, offset: u64, _write: bool) -> Option<&'static str> {
        // Without the lock: what is recorded must not wait for the device.
        register::name(offset)
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        locked(&self.transport).save()
    }

    fn load(&mut self, state: &[u8]) -> Result<(), StateError> {
        locked(&self.transport).load(state)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::devices::virtio::rng::Rng;
    use crate::devices::virtio::testing::{Guest, LIVE, reg};

    #[test]
    fn an_interrupt_is_handled_while_the_device_works() {
        let mut guest = Guest::new(Rng::new(Box::new(|_| true), Box::new(|| Duration::ZERO)));
        guest.start(0, 8);
        guest.lend(0, 4);
        guest.notify(0);
        let transport = Arc::new(Mutex::new(guest.transport));
        let mut front = Front::new(transport.clone());
        let read = |front: &mut Front, offset| {
            let mut data = [0; 4];
            front.read(offset, &mut data);
            u32::from_le_bytes(data)
        };
        let working = transport.lock().unwrap();
        let (done, is_done) = mpsc::channel();
        let driver = thread::spawn(move || {
            let status = read(&mut front, reg::INTERRUPT_STATUS);
            front.write(reg::INTERRUPT_ACK, &status.to_le_bytes());
            let after = read(&mut front, reg::INTERRUPT_STATUS);
            done.send((status, after)).unwrap();
            front
        });
        assert_eq!(is_done.recv().unwrap(), (1, 0));
        drop(working);
        let mut front = driver.join().unwrap();
        assert_eq!(read(&mut front, reg::STATUS), LIVE);
    }
}
