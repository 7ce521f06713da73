//! Writes a recording as a file for Perfetto (ui.perfetto.dev) and Chrome (chrome://tracing): JSON in
//! the "Trace Event Format", one event on each line.
//!
//! Three processes group the tracks: hull (phases, interrupts), the guest (a track for each vCPU, its
//! console, its marks) and the virtio queues. Slices are complete events (`X`), points in time are
//! instants (`i`), names are metadata (`M`); `ts` and `dur` are microseconds with a fraction.

use std::collections::BTreeSet;
use std::fmt::{Display, Formatter};
use std::io::{self, Write};

use super::{Event, Exit, Nanoseconds, Place, Reason, Recording, Space};

/// The process numbers that group the tracks.
const HULL: u32 = 1;
const GUEST: u32 = 2;
const QUEUES: u32 = 3;
/// The track numbers, which are unique over all processes: Perfetto identifies a thread by its number.
const PHASES: u32 = 10;
const ASIDE: u32 = 11;
const INTERRUPTS: u32 = 12;
const MARKS: u32 = 20;
const CONSOLE: u32 = 21;
const FIRST_VCPU: u32 = 100;
const FIRST_QUEUE: u32 = 1000;
/// Most queues of one device that have separate tracks.
const MAX_QUEUES: u32 = 64;

/// Write all of `recording`.
///
/// # Errors
/// Writing to `out` fails.
pub fn write(recording: &Recording, out: &mut impl Write) -> io::Result<()> {
    let mut file = File { out, first: true };
    file.begin(recording)?;
    file.names(recording)?;
    for (at, event) in recording.events.iter() {
        file.event(recording, *at, event)?;
    }
    for (track, vcpu) in (FIRST_VCPU..).zip(&recording.vcpus) {
        for exit in vcpu.exits.iter() {
            file.exit(recording, track, exit)?;
        }
        if let Some(entered) = vcpu.entered {
            // The vCPU is still in the guest.
            let so_far = (entered, recording.at.max(entered));
            file.slice((GUEST, track), so_far, "guest", "guest", "")?;
        }
    }
    file.end()
}

struct File<'a, W> {
    out: &'a mut W,
    first: bool,
}

impl<W: Write> File<'_, W> {
    fn begin(&mut self, recording: &Recording) -> io::Result<()> {
        write!(
            self.out,
            r#"{{"displayTimeUnit":"ns","otherData":{{"hull":"{}","dropped":{}}},"traceEvents":["#,
            env!("CARGO_PKG_VERSION"),
            recording.dropped(),
        )
    }

    fn end(&mut self) -> io::Result<()> {
        self.out.write_all(b"\n]}\n")?;
        self.out.flush()
    }

    /// Begin an event with the members that all events have.
    fn line(&mut self, phase: char, (process, track): (u32, u32), name: &str) -> io::Result<()> {
        let comma = if self.first { "" } else { "," };
        self.first = false;
        let name = Text(name);
        write!(
            self.out,
            "{comma}\n{{\"ph\":\"{phase}\",\"pid\":{process},\"tid\":{track},\"name\":{name}"
        )
    }

    fn name(&mut self, what: &str, of: (u32, u32), name: &str, order: u32) -> io::Result<()> {
        self.line('M', of, &format!("{what}_name"))?;
        write!(self.out, ",\"args\":{{\"name\":{}}}}}", Text(name))?;
        self.line('M', of, &format!("{what}_sort_index"))?;
        write!(self.out, ",\"args\":{{\"sort_index\":{order}}}}}")
    }

    fn names(&mut self, recording: &Recording) -> io::Result<()> {
        for (process, name) in [(HULL, "hull"), (GUEST, "guest"), (QUEUES, "virtio queues")] {
            self.name("process", (process, 0), name, process)?;
        }
        for (process, track, name) in [
            (HULL, PHASES, "phases"),
            (HULL, ASIDE, "phases aside"),
            (HULL, INTERRUPTS, "interrupts"),
            (GUEST, MARKS, "stages"),
            (GUEST, CONSOLE, "console"),
        ] {
            self.name("thread", (process, track), name, track)?;
        }
        for (number, _) in (0..).zip(&recording.vcpus) {
            let track = FIRST_VCPU + number;
            self.name("thread", (GUEST, track), &format!("vCPU {number}"), track)?;
        }
        let queues = recording
            .events
            .iter()
            .filter_map(|(_, event)| match event {
                Event::Notified { device, queue } | Event::Completed { device, queue, .. } => {
                    Some((device.0, *queue))
                }
                _ => None,
            });
        for (device, queue) in BTreeSet::from_iter(queues) {
            let track = queue_track(device, queue);
            let name = format!("{} queue {queue}", recording.device(super::Device(device)));
            self.name("thread", (QUEUES, track), &name, track)?;
        }
        Ok(())
    }

    /// A slice of a track, from `start` to `end`.
    fn slice(
        &mut self,
        of: (u32, u32),
        (start, end): (Nanoseconds, Nanoseconds),
        category: &str,
        name: &str,
        arguments: impl Display,
    ) -> io::Result<()> {
        self.line('X', of, name)?;
        let (at, long) = (Micros(start), Micros(end.saturating_sub(start)));
        write!(
            self.out,
            ",\"cat\":\"{category}\",\"ts\":{at},\"dur\":{long},\"args\":{{{arguments}}}}}"
        )
    }

    /// A point in time on a track (`s`: scope of the track).
    fn instant(
        &mut self,
        of: (u32, u32),
        at: Nanoseconds,
        category: &str,
        name: &str,
        arguments: impl Display,
    ) -> io::Result<()> {
        self.line('i', of, name)?;
        let at = Micros(at);
        write!(
            self.out,
            ",\"cat\":\"{category}\",\"ts\":{at},\"s\":\"t\",\"args\":{{{arguments}}}}}"
        )
    }

    fn event(&mut self, recording: &Recording, at: Nanoseconds, event: &Event) -> io::Result<()> {
        match event {
            Event::Notified { device, queue } => {
                let of = (QUEUES, queue_track(device.0, *queue));
                self.instant(of, at, "notification", "notified", "")
            }
            Event::Completed {
                device,
                queue,
                since,
                chains,
                interrupt,
            } => self.slice(
                (QUEUES, queue_track(device.0, *queue)),
                (*since, at),
                "completion",
                recording.device(*device),
                format_args!("\"chains\":{chains},\"interrupt\":{interrupt}"),
            ),
            Event::Interrupt { device, gsi } => self.instant(
                (HULL, INTERRUPTS),
                at,
                "interrupt",
                recording.device(*device),
                format_args!("\"gsi\":{gsi}"),
            ),
            Event::Line(text) => self.instant((GUEST, CONSOLE), at, "console", text, ""),
            Event::Mark(name) => self.instant((GUEST, MARKS), at, "stage", name, ""),
            Event::Phase { name, since, aside } => {
                let track = if *aside { ASIDE } else { PHASES };
                self.slice((HULL, track), (*since, at), "phase", name, "")
            }
        }
    }

    /// Two slices: the guest until its exit, and hull until the exit was handled.
    fn exit(&mut self, recording: &Recording, track: u32, exit: &Exit) -> io::Result<()> {
        let of = (GUEST, track);
        self.slice(of, (exit.entered, exit.left), "guest", "guest", "")?;
        let space = exit.reason.space();
        let place = space.and_then(|space| recording.place(space, exit.addr));
        let name = match (place, exit.reason) {
            (Some(place), _) => &place.name,
            (None, Reason::Instruction(name)) => name,
            (None, _) if space.is_some() => "no device",
            (None, reason) => reason.name(),
        };
        let arguments = Arguments { exit, place };
        self.slice(of, (exit.left, exit.handled), "exit", name, arguments)
    }
}

fn queue_track(device: u16, queue: u16) -> u32 {
    FIRST_QUEUE + u32::from(device) * MAX_QUEUES + u32::from(queue).min(MAX_QUEUES - 1)
}

/// Nanoseconds, printed as microseconds without rounding.
struct Micros(Nanoseconds);

impl Display for Micros {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

/// The arguments of an exit's slice.
struct Arguments<'a> {
    exit: &'a Exit,
    place: Option<&'a Place>,
}

impl Display for Arguments<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let Exit {
            reason,
            addr,
            size,
            value,
            register,
            ..
        } = self.exit;
        write!(f, "\"reason\":\"{}\"", reason.name())?;
        match reason.space() {
            Some(Space::Port) => write!(f, ",\"port\":\"{addr:#x}\"")?,
            Some(Space::Memory) => write!(f, ",\"address\":\"{addr:#x}\"")?,
            None => return Ok(()),
        }
        write!(f, ",\"size\":{size},\"value\":\"{value:#x}\"")?;
        if let Some(place) = self.place {
            write!(f, ",\"offset\":\"{:#x}\"", addr - place.base)?;
        }
        if let Some(register) = register {
            write!(f, ",\"register\":{}", Text(register))?;
        }
        Ok(())
    }
}

/// A string as a JSON literal (RFC 8259, 7).
struct Text<'a>(&'a str);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str("\"")?;
        let special = |c: char| c == '"' || c == '\\' || c.is_control();
        if !self.0.contains(special) {
            f.write_str(self.0)?;
            return f.write_str("\"");
        }
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                // The guest's text must not contain control codes for a terminal either.
                c if c.is_control() => write!(f, "\\u{:04x}", u32::from(c))?,
                c => write!(f, "{c}")?,
            }
        }
        f.write_str("\"")
    }
}
