//! `--jail` and `--limit` of the commands that run a machine in their own process.

use anyhow::anyhow;

use super::headings::MACHINE;
use super::output::say;
use crate::config::{Jail, Limits, Machine, size};
use crate::sandbox::{Ended, end_by_signal};
use crate::supervisor::control_group::Usage;
use crate::supervisor::{self, Side};
use crate::vmm;

#[derive(clap::Args)]
pub struct Containment {
    /// Enter a jail before the guest runs: an empty root folder and namespaces of hull's own, as a user
    /// that owns no files; root may choose the user. Without root it takes user namespaces. Example:
    /// --jail=uid=5000,gid=5000
    #[arg(
        long,
        value_name = "[uid=N[,gid=N]]",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "",
        help_heading = MACHINE
    )]
    jail: Option<Jail>,
    /// What the host gives hull and its guest at most, by a control group: memory=SIZE, cpu=N
    /// processors, pids=N processes and threads, io=SIZE bytes a second, read and written each, of the
    /// disks on which images and shares lie. Example: --limit memory=256M,cpu=0.5
    #[arg(long, value_name = "KEY=VALUE,..", help_heading = MACHINE)]
    limit: Option<Limits>,
}

impl Containment {
    /// Set in `machine` what the flags say.
    pub fn set(&self, machine: &mut Machine) {
        machine.jail = self.jail.or(machine.jail);
        machine.limits = self.limit.unwrap_or(machine.limits);
    }

    /// The flags as they were given, for another process.
    pub fn arguments(&self) -> impl Iterator<Item = String> {
        let jail = self.jail.map(|jail| match jail == Jail::default() {
            true => "--jail".into(),
            false => format!("--jail={jail}"),
        });
        let limit = self.limit.map(|limits| format!("--limit={limits}"));
        jail.into_iter().chain(limit)
    }
}

/// If the machine of `config` has a jail or limits, go on in another process; in this one, which supervises
/// it, return at its end with the status to exit with. To be called before there is a second thread.
///
/// # Errors
/// The host or this user has no such thing.
pub fn supervise(config: &mut vmm::Config) -> anyhow::Result<Option<u8>> {
    let machine = &config.machine;
    if machine.jail.is_none() && machine.limits.is_empty() {
        return Ok(None);
    }
    let side = supervisor::supervise(machine).map_err(|error| anyhow!("--{error}"))?;
    match side {
        Side::Machine(supervised) => {
            config.attachments.supervised = Some(supervised);
            Ok(None)
        }
        Side::Supervisor(ended, told) => {
            if let Some(told) = &told {
                say(told);
            }
            match ended {
                Ended::Exited(status) => Ok(Some(status)),
                Ended::Signalled(signal) => end_by_signal(signal),
            }
        }
    }
}

/// What a control group uses, and of how much.
pub fn describe(usage: &Usage) -> String {
    let of = |used: String, limit: Option<String>| match limit {
        Some(limit) => format!("{used} of {limit}"),
        None => used,
    };
    let memory = usage.memory_bytes.map(|bytes| {
        let limit = usage.memory_limit_bytes.map(size::show);
        format!("memory {}", of(size::show(bytes), limit))
    });
    let cpu = usage
        .cpu_us
        .map(|us| format!("{:.1} s of processor time", us as f64 / 1e6));
    let quota = usage
        .cpu_limit
        .map(|cpus| format!("at most {cpus} processors"));
    let pids = usage.pids.map(|pids| {
        let limit = usage.pids_limit.map(|limit| limit.to_string());
        format!("{} threads and processes", of(pids.to_string(), limit))
    });
    let io = usage.io_limit_bytes;
    let io = io.map(|bytes| format!("{} a second of each disk", size::show(bytes)));
    let all = [memory, cpu, quota, pids, io];
    all.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_group_uses_is_one_line() {
        let usage = Usage {
            memory_bytes: Some(40 << 20),
            memory_limit_bytes: Some(256 << 20),
            cpu_us: Some(1_250_000),
            cpu_limit: Some(0.5),
            pids: Some(5),
            ..Usage::default()
        };
        assert_eq!(
            describe(&usage),
            "memory 40 MiB of 256 MiB, 1.2 s of processor time, at most 0.5 processors, 5 threads and \
             processes"
        );
        assert_eq!(describe(&Usage::default()), "");
    }
}
