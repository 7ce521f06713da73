//! A machine without KVM, as hull's gdb server sees one: vCPUs that stop as the input says.

pub mod kvm {
    pub use hull::kvm::{KvmError, debug, probe, vm, walk};

    pub mod vcpu {
        use hull::kvm::KvmError;
        use hull::kvm::debug::{Control, Registers, Stop};
        use kvm_bindings::kvm_sregs;

        /// Bits of CR4 that the processor reserves.
        const CR4_RESERVED: u64 = !0xff_ffff;

        /// A vCPU that runs nothing.
        #[derive(Default)]
        pub struct Vcpu {
            pub registers: Registers,
            pub control: Control,
        }

        impl Vcpu {
            pub fn control(&mut self, control: Control) -> Result<(), KvmError> {
                self.control = control;
                Ok(())
            }

            pub fn complete(&mut self) {}

            pub fn reinject(&mut self, _stop: &Stop) -> Result<(), KvmError> {
                Ok(())
            }

            pub fn special(&mut self) -> Result<kvm_sregs, KvmError> {
                Ok(self.registers.special)
            }

            pub fn all_registers(&mut self) -> Result<Registers, KvmError> {
                Ok(self.registers.clone())
            }

            pub fn set_registers(
                &mut self,
                _before: &Registers,
                now: &Registers,
            ) -> Result<(), KvmError> {
                if now.special.cr4 & CR4_RESERVED != 0 {
                    return Err(KvmError::Version { version: 0 });
                }
                self.registers = now.clone();
                Ok(())
            }
        }
    }
}

pub mod vmm {
    pub mod debugger {
        use std::sync::Arc;

        use hull::memory::GuestMemory;
        use hull::vmm::debugger::Linked;

        use super::vcpus::Vcpus;

        #[derive(Clone)]
        pub struct Debugged {
            pub vcpus: Arc<Vcpus>,
            pub memory: GuestMemory,
            pub kernel: Option<Linked>,
        }

        impl Debugged {
            pub fn kill(&self) {
                self.vcpus.kill();
            }

            pub fn warn(&self, _what: &str) {}
        }
    }

    pub mod vcpus {
        use std::collections::VecDeque;
        use std::ops::Range;
        use std::sync::mpsc::Sender;
        use std::sync::{Arc, Mutex, MutexGuard};

        use arbitrary::Arbitrary;
        use hull::kvm::debug::{Cause, Stop};
        use hull::sync::EventFd;

        use crate::gdb::over::Over;
        use crate::kvm::vcpu::Vcpu;

        /// Why a vCPU stops, or the machine ends.
        #[derive(Arbitrary, Clone, Debug)]
        pub enum Event {
            /// At an instruction of a breakpoint, gdb's or the guest's own.
            Trap(u8, u16),
            Step(u8),
            Point(u8, u8),
            Debug(u8, u64),
            End(Option<u8>),
        }

        pub struct Vcpus {
            pub cells: Vec<Mutex<Vcpu>>,
            /// How often each is held.
            pub held: Mutex<Vec<usize>>,
            /// What happens as soon as vCPUs run.
            pub events: Mutex<VecDeque<Event>>,
            pub stops: Sender<Stopped>,
            pub woken: Arc<EventFd>,
            pub over: Arc<Over>,
        }

        pub struct Pause {
            vcpus: Arc<Vcpus>,
            held: Range<usize>,
        }

        pub struct Stopped {
            pub index: usize,
            pub stop: Stop,
            pub pause: Pause,
        }

        impl Vcpus {
            pub fn count(&self) -> usize {
                self.cells.len()
            }

            pub fn pause(self: &Arc<Self>) -> Pause {
                self.hold(0..self.count())
            }

            pub fn hold(self: &Arc<Self>, held: Range<usize>) -> Pause {
                self.held.lock().unwrap()[held.clone()]
                    .iter_mut()
                    .for_each(|held| *held += 1);
                Pause {
                    vcpus: self.clone(),
                    held,
                }
            }

            pub fn vcpu(&self, index: usize) -> Option<MutexGuard<'_, Vcpu>> {
                // A lock that is taken twice would never be free.
                self.cells
                    .get(index)
                    .map(|cell| cell.try_lock().expect("a deadlock"))
            }

            pub fn kill(&self) {
                self.events.lock().unwrap().clear();
            }

            /// The vCPUs that are not held run up to the next event.
            fn run(self: &Arc<Self>) {
                let runs = |index: usize| self.held.lock().unwrap()[index] == 0;
                if !(0..self.count()).any(runs) {
                    return;
                }
                let event = self.events.lock().unwrap().pop_front();
                let (index, cause, pc) = match event {
                    Some(Event::Trap(index, pc)) => (index, Cause::Trap, pc.into()),
                    Some(Event::Step(index)) => (index, Cause::Step, 0),
                    Some(Event::Point(index, n)) => (index, Cause::Point((n % 5).into()), 0),
                    Some(Event::Debug(index, dr6)) => (index, Cause::Debug { dr6 }, 0),
                    Some(Event::End(status)) => {
                        let _ = self.over.status.set(status);
                        self.over.signal.raise();
                        return;
                    }
                    None => return,
                };
                let index = usize::from(index) % self.count();
                if runs(index) {
                    let stop = Stop { cause, pc };
                    let pause = self.pause();
                    let _ = self.stops.send(Stopped { index, stop, pause });
                    self.woken.raise();
                }
            }
        }

        impl Pause {
            pub fn vcpu(&self, index: usize) -> Option<MutexGuard<'_, Vcpu>> {
                self.vcpus.vcpu(index)
            }
        }

        impl Drop for Pause {
            fn drop(&mut self) {
                let held = self.held.clone();
                self.vcpus.held.lock().unwrap()[held]
                    .iter_mut()
                    .for_each(|held| *held -= 1);
                self.vcpus.run();
            }
        }
    }
}
