//! KVM: the virtual machine ([`vm`]), its vCPUs and their exits ([`vcpu`]), their registers
//! ([`regs`], [`cpuid`], [`msrs`], [`lapic`]), reading the state of all of it ([`state`]), saving and
//! restoring it ([`save`], [`features`]), finishing the instructions that a software KVM cannot
//! emulate ([`assist`]), and measuring which kind of KVM this is ([`probe`], [`processor`]).
//! This module knows no device: `vmm` hands in a [`vcpu::Accesses`] that reaches them.

mod access;
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
pub mod steady;
pub mod traced;
pub mod vcpu;
pub mod vm;
pub mod walk;

use thiserror::Error;

/// A request that KVM refused.
#[derive(Debug, Error)]
pub enum KvmError {
    /// The device could not be opened.
    #[error("/dev/kvm: {source_text}; {remedy}")]
    Open {
        /// The error of open(2).
        source_text: std::io::Error,
        /// What the user can do about it.
        remedy: String,
    },
    /// The device is not KVM, or KVM is older than 2007.
    #[error(
        "/dev/kvm has API version {version}, not 12: it is not Linux's KVM, which is the \
         character device 10, 232 (`ls -l /dev/kvm`)"
    )]
    Version {
        /// The version that KVM_GET_API_VERSION returned.
        version: i32,
    },
    /// The handler of the signal that interrupts vCPUs cannot be set.
    #[error("cannot set the handler of the signal that stops vCPUs: {0}")]
    Signal(std::io::Error),
    /// An ioctl failed with an error.
    #[error("KVM refused {ioctl}: {error}")]
    Ioctl {
        /// Name of the ioctl.
        ioctl: &'static str,
        /// Error number that the ioctl returned.
        error: kvm_ioctls::Error,
    },
}

impl KvmError {
    /// Whether the host lacks KVM or memory, or this process rights or descriptors: what was asked of
    /// KVM is not at fault.
    pub fn is_of_host(&self) -> bool {
        match self {
            Self::Ioctl { error, .. } => is_of_host(error.errno()),
            _ => true,
        }
    }
}

/// Whether a system call fails with `errno` whatever it is asked to do: the host or this process lacks
/// memory, descriptors, rights or the device.
pub fn is_of_host(errno: i32) -> bool {
    use libc::{EACCES, EAGAIN, EINTR, EMFILE, ENFILE, ENODEV, ENOMEM, ENXIO, EPERM};
    [
        ENOMEM, EMFILE, ENFILE, EAGAIN, EACCES, EPERM, ENODEV, ENXIO, EINTR,
    ]
    .contains(&errno)
}

/// Make a [`KvmError`] from the error of an ioctl.
pub(crate) fn refused(ioctl: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |error| KvmError::Ioctl { ioctl, error }
}
