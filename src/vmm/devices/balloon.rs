//! A virtio memory balloon in a slot.

use super::slots::{AttachContext, Slots};
use crate::config::Balloon;
use crate::devices::virtio::balloon;
use crate::devices::virtio::transport::SharedCore;
use crate::memory::backing;
use crate::vmm::error::VmmError;

/// The parameter on the Linux command line for [`reporting_order`].
pub const REPORTING_ORDER: &str = "page_reporting.page_reporting_order";
/// 2 MiB: smaller blocks break the host's huge pages.
const HUGE_PAGE_ORDER: u32 = 9;

/// Attach a balloon whose pages are returned to the host.
///
/// # Errors
/// No slot or file descriptor is left.
pub fn attach(
    slots: &mut Slots,
    context: &mut AttachContext,
    config: &Balloon,
) -> Result<SharedCore, VmmError> {
    let memory = context.vm.memory().clone();
    // A guest that names pages outside of its memory harms only itself.
    let release = move |start, bytes| drop(backing::release(&memory, start, bytes as usize));
    let device = balloon::Balloon::new(config.target_bytes, config.period, Box::new(release));
    slots.attach(context, "balloon", Box::new(device))
}

/// The order of the smallest free blocks that Linux is to report. It reports none while fewer than 32
/// such blocks are free (mm/page_reporting.c, page_reporting_process_zone); the default block of
/// 4 MiB is so large that a small guest never has 32 of them.
pub fn reporting_order(memory_bytes: u64) -> u32 {
    let pages = memory_bytes / 4096 / 16 / 32;
    pages.checked_ilog2().unwrap_or(0).min(HUGE_PAGE_ORDER)
}
