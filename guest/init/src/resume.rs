//! What a machine that goes on from a snapshot is told: the time, randomness of its own, and the
//! devices that have come into view.

use hull_agent::Resumed;

use crate::sys::{self, Errno, Fd, Timespec};
use crate::text::decimal;

/// Add bytes and say that they are random: uapi/linux/random.h.
const RNDADDENTROPY: u32 = 0x4008_5203;
const RNDRESEEDCRNG: u32 = 0x5207;

/// struct rand_pool_info.
#[repr(C)]
struct Pool {
    entropy_bits: i32,
    bytes: i32,
    buffer: [u8; 32],
}

/// The files that it takes, opened while there is time for that.
pub struct Files {
    /// The clock is the machine's.
    own: bool,
    random: sys::Result<Fd>,
    bind: sys::Result<Fd>,
}

impl Files {
    /// None: init is tried out on a machine whose clock and devices are not its own.
    pub const NONE: Self = Self {
        own: false,
        random: Err(sys::EBADF),
        bind: Err(sys::EBADF),
    };

    /// Those of this machine.
    pub fn open() -> Self {
        Self {
            own: true,
            random: sys::open(c"/dev/urandom", sys::O_RDWR),
            bind: sys::open(c"/sys/bus/platform/drivers/virtio-mmio/bind", sys::O_WRONLY),
        }
    }

    /// Go on as `resumed`: the number of the first window whose device has no driver, and why.
    pub fn resume(&self, resumed: &Resumed) -> Result<(), (u8, Errno)> {
        // First of all, so that drivers draw no number that other machines draw.
        if let Ok(random) = self.random {
            reseed(random, resumed.entropy);
        }
        if self.own {
            let _ = sys::set_clock(&Timespec::from_ns(resumed.unix_ns));
        }
        (resumed.first_window..)
            .take(resumed.windows.into())
            .try_for_each(|window| match self.bind(window) {
                // The driver has it.
                Ok(()) | Err(sys::EBUSY) => Ok(()),
                Err(errno) => Err((window, errno)),
            })
    }

    /// Have the driver look at a window again. The kernel returns when it and the driver of the
    /// device behind have (drivers/base/bus.c, `bind_store`); at an empty one it fails.
    ///
    /// A kernel that was told of its windows by the command line numbers them in decimal
    /// (drivers/virtio/virtio_mmio.c, `vm_cmdline_set`), one that found them in the DSDT by its
    /// own rule (drivers/acpi/scan.c, `acpi_device_set_name`).
    fn bind(&self, window: u8) -> sys::Result<()> {
        const HEX: [u8; 16] = *b"0123456789abcdef";
        let bind = self.bind?;
        let (digits, zeros) = decimal(window);
        let mut name = *b"virtio-mmio.\0\0\0";
        let len = 15 - zeros;
        name[12..len].copy_from_slice(&digits[zeros..]);
        match sys::write(bind, &name[..len]) {
            Err(sys::ENODEV) => {}
            written => return written.map(drop),
        }
        let mut name = *b"LNRO0005:\0\0";
        name[9] = HEX[usize::from(window >> 4)];
        name[10] = HEX[usize::from(window & 15)];
        sys::write(bind, &name).map(drop)
    }
}

/// Make the kernel forget what it would have drawn next, as every other machine of the snapshot
/// would. The first call adds the bytes, and is all that a generator without a first seed needs; the
/// second makes a new key of them, whose number shows every CPU, and every vDSO, that its own is
/// stale (drivers/char/random.c, `crng_reseed`).
fn reseed(random: Fd, entropy: [u8; 32]) {
    let pool = Pool {
        entropy_bits: 8 * entropy.len() as i32,
        bytes: entropy.len() as i32,
        buffer: entropy,
    };
    let _ = sys::ioctl_with(random, RNDADDENTROPY, &pool);
    let _ = sys::ioctl(random, RNDRESEEDCRNG, 0);
}
