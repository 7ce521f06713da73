//! Updates a restored machine: the time, new randomness, and the devices that the restore revealed.

use hull_agent::Resumed;

use crate::sys::{self, Errno, Fd, Timespec};
use crate::text::decimal;

/// Add bytes and credit their entropy: uapi/linux/random.h.
const RNDADDENTROPY: u32 = 0x4008_5203;
const RNDRESEEDCRNG: u32 = 0x5207;

/// struct rand_pool_info.
#[repr(C)]
struct Pool {
    entropy_bits: i32,
    bytes: i32,
    buffer: [u8; 32],
}

/// The files it needs, opened before a template is saved, while time does not matter.
pub struct Files {
    /// Whether init may set the clock: it is PID 1 of this machine.
    own: bool,
    random: sys::Result<Fd>,
    bind: sys::Result<Fd>,
}

impl Files {
    /// None: in tests init runs on a host whose clock and devices it must not change.
    pub const NONE: Self = Self {
        own: false,
        random: Err(sys::EBADF),
        bind: Err(sys::EBADF),
    };

    /// Open the files of this machine.
    pub fn open() -> Self {
        Self {
            own: true,
            random: sys::open(c"/dev/urandom", sys::O_RDWR),
            bind: sys::open(c"/sys/bus/platform/drivers/virtio-mmio/bind", sys::O_WRONLY),
        }
    }

    /// Apply `resumed`.
    ///
    /// # Errors
    /// The first slot whose device has no driver, and why.
    pub fn resume(&self, resumed: &Resumed) -> Result<(), (u8, Errno)> {
        // First, so that drivers do not draw the same random numbers as in other machines.
        if let Ok(random) = self.random {
            reseed(random, resumed.entropy);
        }
        if self.own {
            let _ = sys::set_clock(&Timespec::from_ns(resumed.unix_ns));
        }
        (resumed.first_slot..)
            .take(resumed.slots.into())
            .try_for_each(|slot| match self.bind(slot) {
                // The driver has bound it.
                Ok(()) | Err(sys::EBUSY) => Ok(()),
                Err(errno) => Err((slot, errno)),
            })
    }

    /// Make the driver probe a slot again. The write returns after the device's driver has probed it,
    /// too (drivers/base/bus.c, `bind_store`), and fails for an empty slot.
    ///
    /// A kernel that found its slots on the command line numbers them in decimal
    /// (drivers/virtio/virtio_mmio.c, `vm_cmdline_set`). One that found them in the DSDT has names of
    /// its own (drivers/acpi/scan.c, `acpi_device_set_name`).
    fn bind(&self, slot: u8) -> sys::Result<()> {
        const HEX: [u8; 16] = *b"0123456789abcdef";
        let bind = self.bind?;
        let (digits, zeros) = decimal(slot);
        let mut name = *b"virtio-mmio.\0\0\0";
        let len = 15 - zeros;
        name[12..len].copy_from_slice(&digits[zeros..]);
        match sys::write(bind, &name[..len]) {
            Err(sys::ENODEV) => {}
            written => return written.map(drop),
        }
        let mut name = *b"LNRO0005:\0\0";
        name[9] = HEX[usize::from(slot >> 4)];
        name[10] = HEX[usize::from(slot & 15)];
        sys::write(bind, &name).map(drop)
    }
}

/// Reseed the kernel's generator, which otherwise draws the same numbers in every machine restored
/// from the snapshot. The first call adds the bytes; an uninitialized generator needs no more. The
/// second derives a new key from them, whose generation number tells every CPU and vDSO that its own
/// key is stale (drivers/char/random.c, `crng_reseed`).
fn reseed(random: Fd, entropy: [u8; 32]) {
    let pool = Pool {
        entropy_bits: 8 * entropy.len() as i32,
        bytes: entropy.len() as i32,
        buffer: entropy,
    };
    let _ = sys::ioctl_with(random, RNDADDENTROPY, &pool);
    let _ = sys::ioctl(random, RNDRESEEDCRNG, 0);
}
