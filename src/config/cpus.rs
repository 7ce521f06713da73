//! The text of `--cpus`: a number of vCPUs, and how they are arranged.

use std::fmt;
use std::str::FromStr;

use crate::boot::Topology;
use crate::memory::layout::MAX_CPUS;

/// vCPUs and their arrangement, as `8` or `8,cores=4,threads=2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpus {
    /// Their number, 1 to [`MAX_CPUS`].
    pub count: u8,
    /// Sockets, and threads of a core.
    pub topology: Topology,
}

impl Cpus {
    /// Refuse what no machine has.
    ///
    /// # Errors
    /// What the text must be instead, for the message behind its flag.
    pub fn check(self) -> Result<Self, String> {
        if !(1..=MAX_CPUS).contains(&self.count) {
            return Err(format!("a guest has 1 to {MAX_CPUS} vCPUs"));
        }
        self.topology.check(self.count)?;
        Ok(self)
    }
}

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split(',');
        let count = words.next().and_then(|count| count.parse().ok());
        let topology = Topology::default();
        let count = Self {
            count: count.unwrap_or(0),
            topology,
        };
        let count = count.check()?.count;
        let [mut sockets, mut cores, mut threads] = [None; 3];
        for word in words {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            let option = match name {
                "sockets" => &mut sockets,
                "cores" => &mut cores,
                "threads" => &mut threads,
                _ => return Err(format!("{name}: there are sockets, cores and threads")),
            };
            let value = value
                .parse()
                .ok()
                .filter(|value| (1..=MAX_CPUS).contains(value));
            let value = value.ok_or_else(|| format!("{name} is a number, 1 to {MAX_CPUS}"))?;
            if option.replace(value).is_some() {
                return Err(format!("{name} is given twice"));
            }
        }
        let threads = threads.unwrap_or(1);
        // What is not given follows from the rest.
        let sockets = match (sockets, cores) {
            (Some(sockets), _) => sockets,
            (None, Some(cores)) => {
                let socket = u16::from(cores) * u16::from(threads);
                u8::try_from((u16::from(count) / socket).max(1)).unwrap_or(1)
            }
            (None, None) => 1,
        };
        let topology = Topology { sockets, threads };
        let cpus = Self { count, topology }.check()?;
        if let Some(cores) = cores.filter(|cores| *cores != topology.cores(count)) {
            return Err(format!(
                "cores={cores} does not fit: sockets, cores and threads multiplied must be {count}, the \
                 number of vCPUs; leave cores out and it follows from the others"
            ));
        }
        Ok(cpus)
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, topology } = self;
        write!(to, "{count}")?;
        if topology.sockets != 1 {
            write!(to, ",sockets={}", topology.sockets)?;
        }
        if topology.threads != 1 {
            write!(to, ",threads={}", topology.threads)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_follows_from_the_rest() {
        for (text, sockets, cores, threads) in [
            ("7", 1, 7, 1),
            ("8,cores=4,threads=2", 1, 4, 2),
            ("8,threads=2", 1, 4, 2),
            ("8,cores=2,threads=2", 2, 2, 2),
            ("8,sockets=2", 2, 4, 1),
            ("32,sockets=2,cores=8,threads=2", 2, 8, 2),
        ] {
            let cpus: Cpus = text.parse().unwrap();
            let topology = Topology { sockets, threads };
            assert_eq!(cpus.topology, topology, "{text}");
            assert_eq!(cpus.topology.cores(cpus.count), cores, "{text}");
            assert_eq!(cpus.to_string().parse(), Ok(cpus), "{text}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        for (text, reason) in [
            ("0", "1 to 32 vCPUs"),
            ("33,cores=33", "1 to 32 vCPUs"),
            ("8,cores=3", "cores=3 does not fit"),
            ("8,cores=16", "cores=16 does not fit"),
            ("7,threads=2", "whole cores"),
            ("8,threads=4", "1 or 2 threads"),
            ("8,dies=2", "there are sockets, cores and threads"),
            ("8,cores", "cores is a number"),
            ("8,cores=0", "cores is a number"),
            ("8,cores=4,cores=4", "given twice"),
            ("12,sockets=2", "not 6"),
        ] {
            let error = text.parse::<Cpus>().unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
