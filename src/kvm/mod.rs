//! KVM: the virtual machine ([`vm`]), its vCPUs and their exits ([`vcpu`]), their registers
//! ([`regs`], [`cpuid`], [`msrs`], [`lapic`]), what they hold ([`state`]) and how another machine goes
//! on from it ([`save`], [`features`]), what finishes the instructions that a software KVM cannot
//! ([`assist`]), and what finds out which kind of KVM this is ([`probe`], [`processor`]).
//! Devices are reached through a [`vcpu::Accesses`] that `vmm` gives; none is known here.

pub mod assist;
pub mod code;
pub mod cpuid;
pub mod debug;
pub mod features;
pub mod lapic;
pub mod msrs;
pub mod probe;
pub mod processor;
pub mod regs;
pub mod save;
pub mod state;
pub mod traced;
pub mod vcpu;
pub mod vm;
pub mod walk;

use std::os::fd::{AsRawFd, BorrowedFd};

use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

/// What /dev/kvm refused.
#[derive(Debug, Error)]
pub enum KvmError {
    /// The device could not be opened.
    #[error("/dev/kvm: {source_text}; {remedy}")]
    Open {
        /// What the kernel said.
        source_text: std::io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// Not KVM, or one from before 2007.
    #[error(
        "/dev/kvm speaks API version {version}, not 12: it is not Linux's KVM, which is the \
         character device 10, 232 (`ls -l /dev/kvm`)"
    )]
    Version {
        /// What KVM_GET_API_VERSION returned.
        version: i32,
    },
    /// The signal that interrupts a vCPU has no handler.
    #[error("cannot set the handler of the signal that stops vCPUs: {0}")]
    Signal(std::io::Error),
    /// An ioctl failed.
    #[error("KVM refused {ioctl}: {error}")]
    Ioctl {
        /// Its name.
        ioctl: &'static str,
        /// Its error.
        error: kvm_ioctls::Error,
    },
}

/// Name the ioctl that an error is of.
pub(crate) fn refused(ioctl: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |error| KvmError::Ioctl { ioctl, error }
}

/// The descriptor of an eventfd, to poll.
pub fn descriptor(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: `event` owns the descriptor and outlives the borrow.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
