//! `hull inspect`: what a running machine holds, drawn.

mod background;
mod devices;
mod interrupts;
mod lockdown;
mod memory;
mod overview;
mod pages;
mod queues;
mod registers;
#[cfg(test)]
mod tests;

use anyhow::bail;
use clap::ValueEnum;
use serde_json::Value;

use crate::config::file::Written;
use crate::control::{self, Action, Answer};
use crate::fleet::{self, Record, kept::Kept};
use crate::inspect::{Inspection, Topic};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull inspect web                           everything, in short
  hull inspect web registers                 vCPUs, GDT, IDT, next instructions
  hull inspect web pagetables start_kernel   the walk to a function's page
  hull inspect 4242 queues --json            virtqueues of process 4242, as JSON

Of a machine in the background it also shows restarts and health, and that alone if it does not run.")]
pub struct Inspect {
    /// The machine: its --name, or the process id of its hull.
    #[arg(value_name = "NAME|PID")]
    machine: String,
    /// What of it to show: registers, memory, pagetables, devices, queues or interrupts, in short all
    /// of them when left out; config, which hull run --config reads; or lockdown, what hull has
    /// given up.
    #[arg(value_name = "TOPIC", value_enum, hide_possible_values = true)]
    topic: Option<Shown>,
    /// For pagetables: an address in hexadecimal or a function (start_kernel+0x10).
    #[arg(value_name = "ADDR")]
    address: Option<String>,
    /// Show one vCPU only; the default for page tables is vCPU 0.
    #[arg(long, value_name = "N")]
    cpu: Option<usize>,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

/// What can be shown.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shown {
    Registers,
    Memory,
    #[value(name = "pagetables")]
    PageTables,
    Devices,
    Queues,
    Interrupts,
    Config,
    Lockdown,
}

impl Inspect {
    pub fn execute(self) -> anyhow::Result<()> {
        let topic = self.topic()?;
        let kept = Kept::open(&self.machine).ok();
        let kept = kept.filter(|_| self.topic.is_none());
        let machine = match (fleet::find(&self.machine), &kept) {
            (Ok(machine), _) => machine,
            // What is known of it without its guest.
            (Err(_), Some(kept)) if self.json => {
                return super::output::print_json(&background::members(kept));
            }
            (Err(_), Some(kept)) => {
                return super::output::print(background::draw(kept).as_bytes());
            }
            (Err(error), None) => return Err(error.into()),
        };
        let request = Action::Inspect {
            topic,
            vcpu: self.cpu,
        };
        if self.json && self.topic != Some(Shown::Config) {
            // Printed as it was received.
            let answer: Value = control::ask(&machine, request)?;
            let mut seen = answer.get("inspection").cloned().unwrap_or_default();
            let members = kept.as_ref().map(background::members);
            if let (Value::Object(seen), Some(Value::Object(members))) = (&mut seen, members) {
                seen.extend(members);
            }
            return super::output::print_json(&seen);
        }
        let Answer::Inspection(seen) = control::ask(&machine, request)? else {
            bail!("unexpected reply from {}", self.machine);
        };
        let mut text = self.draw(&machine.record, &seen);
        if let Some(kept) = &kept {
            text += "\n";
            text += &background::draw(kept);
        }
        super::output::print(text.as_bytes())
    }

    fn topic(&self) -> anyhow::Result<Topic> {
        let topic = match self.topic {
            Some(Shown::PageTables) => match &self.address {
                Some(address) => Topic::PageTables {
                    address: address.clone(),
                },
                None => bail!(
                    "pagetables needs an address: hull inspect {} pagetables 0xffffffff81000000, \
                     or start_kernel",
                    self.machine
                ),
            },
            None => Topic::All,
            Some(Shown::Registers) => Topic::Registers,
            Some(Shown::Memory) => Topic::Memory,
            Some(Shown::Devices) => Topic::Devices,
            Some(Shown::Queues) => Topic::Queues,
            Some(Shown::Interrupts) => Topic::Interrupts,
            Some(Shown::Config) => Topic::Config,
            Some(Shown::Lockdown) => Topic::Lockdown,
        };
        if let (Some(address), Some(shown)) = (&self.address, self.topic)
            && shown != Shown::PageTables
        {
            bail!("{address}: only pagetables takes an address");
        }
        Ok(topic)
    }

    fn draw(&self, record: &Record, seen: &Inspection) -> String {
        match self.topic {
            None => overview::draw(record, seen),
            Some(Shown::Registers) => registers::draw(&seen.vcpus),
            Some(Shown::Memory) => seen.memory.as_ref().map(memory::draw).unwrap_or_default(),
            Some(Shown::PageTables) => seen.walk.as_ref().map(pages::draw).unwrap_or_default(),
            Some(Shown::Devices) => devices::draw(&seen.devices),
            Some(Shown::Queues) => queues::draw(&seen.queues),
            Some(Shown::Interrupts) => {
                let interrupts = seen.interrupts.as_ref();
                interrupts.map(interrupts::draw).unwrap_or_default()
            }
            Some(Shown::Lockdown) => seen
                .lockdown
                .as_ref()
                .map(|seen| lockdown::draw(seen, &lockdown::here()))
                .unwrap_or_default(),
            Some(Shown::Config) => seen.config.as_ref().map(Written::text).unwrap_or_default(),
        }
    }
}
