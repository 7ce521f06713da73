//! How vCPUs are arranged in sockets, cores and threads, which is how their APIC ids are numbered.
//!
//! An APIC id is the number of the socket, of the core in it and of the thread in that, each in the
//! fewest bits that hold it (Intel SDM 3A 10.9.1). hull's APIC ids are 0, 1, 2 and so on without
//! gaps, so what is below another level has a power of two of members.

use serde::{Deserialize, Serialize};

/// An arrangement of vCPUs; the cores of a socket are what is left of their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// Sockets, 1 or more.
    pub sockets: u8,
    /// Threads of a core, 1 or 2.
    pub threads: u8,
}

/// One socket with a core for each vCPU.
impl Default for Topology {
    fn default() -> Self {
        Self {
            sockets: 1,
            threads: 1,
        }
    }
}

impl Topology {
    /// Refuse an arrangement that `cpus` vCPUs do not have.
    ///
    /// # Errors
    /// Which arrangements `cpus` vCPUs can have.
    pub fn check(self, cpus: u8) -> Result<(), String> {
        let Self { sockets, threads } = self;
        if !(1..=2).contains(&threads) {
            return Err("a core has 1 or 2 threads".into());
        }
        let socket = u16::from(sockets) * u16::from(threads);
        if socket == 0 || !u16::from(cpus).is_multiple_of(socket) {
            return Err(format!(
                "{cpus} vCPUs are not sockets times cores times threads, with whole cores"
            ));
        }
        if sockets > 1 && !(cpus / sockets).is_power_of_two() {
            return Err(format!(
                "each of several sockets has 1, 2, 4, 8 or 16 vCPUs, not {}",
                cpus / sockets
            ));
        }
        Ok(())
    }

    /// Cores of a socket of a machine with `cpus` vCPUs.
    pub fn cores(self, cpus: u8) -> u8 {
        cpus / self.sockets.max(1) / self.threads.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arrangement_has_as_many_vcpus_as_the_machine() {
        let fits = |cpus, sockets, threads| Topology { sockets, threads }.check(cpus);
        for (cpus, sockets, threads) in [(7, 1, 1), (6, 1, 2), (8, 2, 2), (32, 32, 1), (2, 2, 1)] {
            assert_eq!(
                fits(cpus, sockets, threads),
                Ok(()),
                "{cpus} {sockets} {threads}"
            );
        }
        for (cpus, sockets, threads, reason) in [
            (7, 1, 2, "whole cores"),
            (8, 3, 1, "whole cores"),
            (8, 0, 1, "whole cores"),
            (8, 255, 2, "whole cores"),
            (8, 1, 4, "1 or 2 threads"),
            (6, 2, 1, "has 1, 2, 4, 8 or 16 vCPUs, not 3"),
        ] {
            let error = fits(cpus, sockets, threads).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
