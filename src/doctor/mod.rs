//! What prevents or slows down guests on this host: [`examine`] makes a [`Check`] of each part, one
//! function a check.

#![forbid(unsafe_code)]

mod check;
mod hardening;
mod host;
mod kvm;

use serde::Serialize;

pub use check::{Check, Status};
pub use kvm::Kvm;

/// All that was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// In the order in which they are printed.
    pub checks: Vec<Check>,
    /// KVM's figures; `None` if /dev/kvm cannot be opened.
    pub kvm: Option<Kvm>,
}

impl Report {
    /// Whether no guest runs here.
    pub fn failed(&self) -> bool {
        let failed = |check: &Check| check.status == Status::Fail;
        self.checks.iter().any(failed)
    }
}

/// Examine this host, which takes a moment for KVM's speed.
pub fn examine() -> Report {
    let mut checks = vec![host::processor(), host::linux()];
    let kvm = kvm::check(&mut checks);
    checks.extend([
        host::memory(),
        host::huge_pages(),
        host::tun(),
        host::embedded_guest(),
    ]);
    checks.extend(hardening::checks());
    Report { checks, kvm }
}
