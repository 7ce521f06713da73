//! The CMOS clock: an MC146818 with the host's time, and its bytes of NVRAM.
//!
//! The time of day is computed at each read from the clock that the device was given, so it
//! cannot be set. Alarm, periodic and update interrupts are not modelled: their enable bits stay
//! clear, which drivers check. Motorola MC146818A data sheet; the century byte is where the
//! FADT's CENTURY field points (ACPI 6.5, table 5.9).

use crate::devices::bus::BusDevice;
use crate::devices::register::Register;
use crate::devices::state::{StateError, decode, encode};

/// I/O port of the index register; data is the next one.
pub const PORT: u16 = 0x70;
/// I/O ports from [`PORT`] on.
pub const PORTS: u64 = 2;
/// Index of the century byte.
pub const CENTURY: u8 = 0x32;

const INDEX: u64 = 0;
const DATA: u64 = 1;
/// Bit 7 of the index port masks NMIs and is no part of the index.
const INDEX_MASK: u8 = 0x7f;
const BYTES: usize = 128;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;

/// Register A: 32.768 kHz time base, 1024 Hz rate, and never an update in progress.
const A_VALUE: u8 = 0x26;
/// Register B: 24 hours, always.
const B_24_HOURS: u8 = 0x02;
/// Register B: binary instead of BCD.
const B_BINARY: u8 = 0x04;
/// Register D: the battery is good.
const D_VALID: u8 = 0x80;

/// The last second of the year 9999, the last that four BCD digits can tell.
const LAST_SECOND: u64 = 253_402_300_799;

/// A moment as the clock's registers show it, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Moment {
    second: u8,
    minute: u8,
    hour: u8,
    /// 1 to 7, of which 1 is Sunday.
    weekday: u8,
    day: u8,
    month: u8,
    /// Within 1970 to 9999.
    year: u16,
}

impl Moment {
    /// The moment `seconds` after 1970-01-01 00:00 UTC, at most in the year 9999.
    fn from_unix(seconds: u64) -> Self {
        let seconds = seconds.min(LAST_SECOND);
        let days = seconds / 86_400;
        let (year, month, day) = date(days);
        Self {
            second: (seconds % 60) as u8,
            minute: (seconds / 60 % 60) as u8,
            hour: (seconds / 3600 % 24) as u8,
            weekday: ((days + 4) % 7 + 1) as u8, // 1970 began on a Thursday
            day,
            month,
            year,
        }
    }
}

/// The proleptic Gregorian date of the day `days` after 1970-01-01.
///
/// Counted in years that begin in March, so that the leap day comes last: then the day of the
/// year gives the month by a straight line of slope 153 days in 5 months.
fn date(days: u64) -> (u16, u8, u8) {
    let days = days + 719_468; // since 0000-03-01
    let era = days / 146_097; // 400 years
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year as u16, month as u8, day as u8)
}

/// The clock and its NVRAM.
pub struct Rtc {
    index: u8,
    nvram: [u8; BYTES],
    unix_time: Box<dyn Fn() -> u64 + Send>,
}

impl Rtc {
    /// A clock that shows `unix_time`, in seconds since 1970-01-01 00:00 UTC.
    pub fn new(unix_time: impl Fn() -> u64 + Send + 'static) -> Self {
        Self {
            index: 0,
            nvram: [0; BYTES],
            unix_time: Box::new(unix_time),
        }
    }

    fn byte(&self, index: u8) -> u8 {
        let now = Moment::from_unix((self.unix_time)());
        match index {
            SECONDS => self.number(now.second),
            MINUTES => self.number(now.minute),
            HOURS => self.number(now.hour),
            WEEKDAY => self.number(now.weekday),
            DAY => self.number(now.day),
            MONTH => self.number(now.month),
            YEAR => self.number((now.year % 100) as u8),
            CENTURY => self.number((now.year / 100) as u8),
            REGISTER_A => A_VALUE,
            REGISTER_B => self.nvram(REGISTER_B) & B_BINARY | B_24_HOURS,
            REGISTER_C => 0,
            REGISTER_D => D_VALID,
            _ => self.nvram(index),
        }
    }

    fn nvram(&self, index: u8) -> u8 {
        self.nvram.get(usize::from(index)).copied().unwrap_or(0)
    }

    /// `value` below 100 in the format that register B selects.
    fn number(&self, value: u8) -> u8 {
        if self.nvram(REGISTER_B) & B_BINARY != 0 {
            value
        } else {
            value / 10 * 16 + value % 10
        }
    }
}

/// Accesses of more than a byte are ignored.
impl BusDevice for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (DATA, [byte]) = (offset, data) {
            *byte = self.byte(self.index);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (INDEX, &[index]) => self.index = index & INDEX_MASK,
            (DATA, &[value]) => {
                if let Some(byte) = self.nvram.get_mut(usize::from(self.index)) {
                    *byte = value;
                }
            }
            _ => {}
        }
    }

    fn state(&self) -> Vec<Register> {
        let names = [
            (SECONDS, "seconds"),
            (MINUTES, "minutes"),
            (HOURS, "hours"),
            (WEEKDAY, "day of week"),
            (DAY, "day of month"),
            (MONTH, "month"),
            (YEAR, "year"),
            (CENTURY, "century"),
            (REGISTER_A, "register A"),
            (REGISTER_B, "register B"),
            (REGISTER_C, "register C"),
            (REGISTER_D, "register D"),
        ];
        let selected = names.iter().find(|(index, _)| *index == self.index);
        let index = Register::at(INDEX, "index", 8, self.index.into())
            .meaning(selected.map_or("NVRAM", |(_, name)| *name));
        let form = match self.nvram(REGISTER_B) & B_BINARY {
            0 => "24 hours, BCD",
            _ => "24 hours, binary",
        };
        let register = |&(index, name): &(u8, &'static str)| {
            let register = Register::new(name, 8, self.byte(index).into());
            match index {
                REGISTER_B => register.meaning(form),
                REGISTER_D => register.meaning("battery good"),
                _ => register,
            }
        };
        std::iter::once(index)
            .chain(names.iter().map(register))
            .collect()
    }

    fn register(&self, offset: u64, _write: bool) -> Option<&'static str> {
        match offset {
            INDEX => Some("index"),
            DATA => Some("data"),
            _ => None,
        }
    }

    /// The time is the host's.
    fn save(&self) -> Result<Vec<u8>, StateError> {
        encode(&(self.index, self.nvram.as_slice()))
    }

    fn load(&mut self, state: &[u8]) -> Result<(), StateError> {
        let (index, nvram): (u8, Vec<u8>) = decode(state)?;
        let bytes = nvram.len();
        self.nvram = nvram
            .try_into()
            .map_err(|_| StateError(format!("has {BYTES} bytes of NVRAM, and is given {bytes}")))?;
        self.index = index & INDEX_MASK;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use proptest::prelude::*;

    use super::*;
    use crate::devices::testing::{accesses, flips, goes_on};

    fn cmos(rtc: &mut Rtc, index: u8) -> u8 {
        let mut data = [0xff];
        rtc.write(0, &[index]);
        rtc.read(1, &mut data);
        data[0]
    }

    fn clock(rtc: &mut Rtc) -> [u8; 8] {
        [CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS, WEEKDAY].map(|index| cmos(rtc, index))
    }

    #[test]
    fn known_moments_read_in_bcd() {
        for (unix, registers) in [
            (0, [0x19, 0x70, 0x01, 0x01, 0x00, 0x00, 0x00, 5]),
            (951_782_400, [0x20, 0x00, 0x02, 0x29, 0x00, 0x00, 0x00, 3]),
            (1_700_000_000, [0x20, 0x23, 0x11, 0x14, 0x22, 0x13, 0x20, 3]),
            (4_107_542_400, [0x21, 0x00, 0x03, 0x01, 0x00, 0x00, 0x00, 2]),
            (LAST_SECOND, [0x99, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59, 6]),
            (u64::MAX, [0x99, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59, 6]),
        ] {
            assert_eq!(clock(&mut Rtc::new(move || unix)), registers, "{unix}");
        }
    }

    #[test]
    fn it_reads_in_binary_when_asked() {
        let mut rtc = Rtc::new(|| 1_700_000_000);
        rtc.write(0, &[REGISTER_B]);
        rtc.write(1, &[0xff]);
        assert_eq!(
            cmos(&mut rtc, REGISTER_B),
            0x06,
            "no interrupt can be enabled"
        );
        assert_eq!(clock(&mut rtc), [20, 23, 11, 14, 22, 13, 20, 3]);
    }

    #[test]
    fn it_is_valid_and_never_updating() {
        let mut rtc = Rtc::new(|| 0);
        assert_eq!(cmos(&mut rtc, REGISTER_A) & 0x80, 0);
        assert_eq!(cmos(&mut rtc, REGISTER_B), 0x02);
        assert_eq!(cmos(&mut rtc, REGISTER_D), 0x80);
        assert_eq!(cmos(&mut rtc, 0x80 | REGISTER_D), 0x80, "with NMIs masked");
    }

    #[test]
    fn nvram_keeps_its_bytes_and_the_time_advances() {
        let now = Arc::new(AtomicU64::new(59));
        let clock = now.clone();
        let mut rtc = Rtc::new(move || clock.load(Ordering::SeqCst));
        rtc.write(0, &[0x40]);
        rtc.write(1, &[0xa5]);
        rtc.write(0, &[SECONDS]);
        rtc.write(1, &[0x11]);
        assert_eq!(
            (cmos(&mut rtc, 0x40), cmos(&mut rtc, SECONDS)),
            (0xa5, 0x59)
        );
        now.store(60, Ordering::SeqCst);
        assert_eq!(
            (cmos(&mut rtc, MINUTES), cmos(&mut rtc, SECONDS)),
            (0x01, 0x00)
        );
    }

    proptest! {
        #[test]
        fn a_restored_device_answers_as_the_first(
            now: u64, before in accesses(4), after in accesses(4), flips in flips(),
        ) {
            goes_on(Rtc::new(move || now), || Rtc::new(move || now), &before, &after, &flips);
        }

        #[test]
        fn each_day_follows_the_day_before(days in 0u64..2_932_895) {
            let (year, month, day) = date(days);
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
            let next = match (day == length[usize::from(month) - 1], month) {
                (false, _) => (year, month, day + 1),
                (true, 12) => (year + 1, 1, 1),
                (true, _) => (year, month + 1, 1),
            };
            prop_assert_eq!(date(days + 1), next);
        }

        #[test]
        fn any_accesses_are_harmless(
            now: u64,
            accesses in prop::collection::vec(
                (0u64..4, prop::collection::vec(any::<u8>(), 0..9), any::<bool>()), 0..200)
        ) {
            let mut rtc = Rtc::new(move || now);
            for (offset, mut data, write) in accesses {
                if write {
                    rtc.write(offset, &data);
                } else {
                    rtc.read(offset, &mut data);
                }
            }
        }
    }
}
