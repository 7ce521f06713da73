//! A memory balloon in its slot.

use super::slots::{AttachContext, Slots};
use crate::config::Balloon;
use crate::devices::virtio::balloon;
use crate::devices::virtio::transport::SharedCore;
use crate::memory::backing;
use crate::vmm::error::VmmError;

/// The word on a Linux command line for [`reporting_order`].
pub const REPORTING_ORDER: &str = "page_reporting.page_reporting_order";
/// 2 MiB: smaller blocks break the host's huge pages.
const HUGE_PAGE_ORDER: u32 = 9;

/// A balloon whose pages go back to the host.
pub fn attach(
    slots: &mut Slots,
    context: &mut AttachContext,
    config: &Balloon,
) -> Result<SharedCore, VmmError> {
    let memory = context.vm.memory().clone();
    // A guest may name what is no memory; nobody but itself is worse off.
    let release = move |start, bytes| drop(backing::release(&memory, start, bytes as usize));
    let device = balloon::Balloon::new(config.target_bytes, config.period, Box::new(release));
    slots.attach(context, "balloon", Box::new(device))
}

/// The least block of free pages, as a power of two, that Linux is to report. While less is free
/// than 32 of them it reports none (mm/page_reporting.c, page_reporting_process_zone), and without
/// a word from us they are of 4 MiB, which is more than a small guest ever has free.
pub fn reporting_order(memory_bytes: u64) -> u32 {
    let pages = memory_bytes / 4096 / 16 / 32;
    pages.checked_ilog2().unwrap_or(0).min(HUGE_PAGE_ORDER)
}
