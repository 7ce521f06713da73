//! The steps by which the machines of an application come to be as its file says.

use std::collections::BTreeMap;

use anyhow::{Context, bail};

use super::application::hull;
use super::awaited::wait_for;
use super::from_image::fetch;
use super::health::is_checked;
use super::output::say;
use crate::compose::Opened;
use crate::compose::plan::{Fetched, Planned, Step, step, there};
use crate::fleet::kept::Kept;
use crate::image::{How, Pull, Store};
use crate::net::networks::{NetworkError, Networks};
use crate::volume;

/// Stop a machine, if it runs.
pub fn stop(opened: &Opened, machine: &str) -> anyhow::Result<()> {
    if Kept::open(machine).is_ok_and(|kept| kept.runs()) {
        hull(&opened.folder, &["stop", machine])?;
        say(&format!("machine {machine} stopped"));
    }
    Ok(())
}

/// What was made so far.
#[derive(Default)]
pub struct Made {
    networks: Vec<String>,
    machines: Vec<String>,
}

impl Made {
    /// Remove it again. What fails is told by the next command for it.
    pub fn undo(&self, opened: &Opened) {
        for machine in self.machines.iter().rev() {
            let _ = hull(&opened.folder, &["rm", "-f", machine]);
        }
        for network in &self.networks {
            let _ = hull(&opened.folder, &["network", "rm", "-f", network]);
        }
    }
}

/// Fetch all images before anything is started; what their names stand for.
pub fn fetch_images(opened: &Opened) -> anyhow::Result<BTreeMap<String, Fetched>> {
    let store = Store::open()?;
    let mut images = BTreeMap::new();
    for service in &opened.project.services {
        let Some(image) = &service.image else {
            continue;
        };
        let policy = service.flags.iter().skip_while(|it| *it != "--pull").nth(1);
        let how = How {
            pull: match policy.map(String::as_str) {
                Some("always") => Pull::Always,
                Some("never") => Pull::Never,
                _ => Pull::default(),
            },
            insecure: false,
        };
        let found = fetch(&store, &image.text, how);
        let found = found.with_context(|| {
            format!(
                "{}: line {}: service {}",
                opened.path.display(),
                image.line,
                service.name
            )
        })?;
        let fetched = Fetched {
            id: found.id.hex().to_string(),
            checks: is_checked(found.execution.healthcheck.as_ref()),
        };
        images.insert(image.text.clone(), fetched);
    }
    Ok(images)
}

/// External volumes are there.
pub fn check_volumes(opened: &Opened) -> anyhow::Result<()> {
    let store = volume::Store::open()?;
    for (name, volume) in &opened.project.volumes {
        let full = opened.volume(name);
        let at = || {
            format!(
                "{}: line {}: volume {name}",
                opened.path.display(),
                volume.line
            )
        };
        match volume.external {
            true => drop(store.find(&full).with_context(at)?),
            false => volume::check_name(&full).with_context(at)?,
        }
    }
    Ok(())
}

/// Start, replace or leave alone each machine, in order.
pub fn start(opened: &Opened, planned: &[Planned], made: &mut Made) -> anyhow::Result<()> {
    make_networks(opened, made)?;
    let there = there(&opened.name);
    for it in &there {
        if !opened.project.known.contains(&it.service) {
            say(&format!(
                "machine {} is of service {}, which the file does not have; hull rm -f removes it",
                it.machine, it.service
            ));
        }
    }
    for (planned, service) in planned.iter().zip(&opened.project.services) {
        for need in &service.needs {
            wait_for(opened, need)?;
        }
        let machine = &planned.machine;
        match step(planned, &there) {
            Step::Keep => {
                say(&format!("machine {machine} is as it should be"));
                continue;
            }
            Step::StartAgain => hull(&opened.folder, &["start", machine])?,
            Step::Replace(old) => {
                stop(opened, &old)?;
                hull(&opened.folder, &["rm", &old])?;
                hull(&opened.folder, &planned.arguments)?;
                made.machines.push(machine.clone());
            }
            Step::Start => {
                hull(&opened.folder, &planned.arguments)
                    .with_context(|| format!("service {}", planned.service))?;
                made.machines.push(machine.clone());
            }
        }
        say(&format!("machine {machine} started"));
    }
    Ok(())
}

/// Make the networks of the file that are missing.
fn make_networks(opened: &Opened, made: &mut Made) -> anyhow::Result<()> {
    let networks = Networks::open()?;
    for (key, wanted) in &opened.project.networks {
        let name = opened.network(key);
        let at = || {
            format!(
                "{}: line {}: network {key}",
                opened.path.display(),
                wanted.line.max(1)
            )
        };
        let found = match networks.find(&name) {
            Err(NetworkError::Unknown { .. }) if !wanted.external => None,
            found => Some(found.with_context(at)?),
        };
        let Some(found) = found.map(|it| it.record) else {
            let project = Some(opened.name.clone());
            networks
                .create(&name, wanted.subnet, wanted.ways.clone(), project)
                .with_context(at)?;
            say(&format!("network {name} created"));
            made.networks.push(name);
            continue;
        };
        let same = found.internal == wanted.ways.internal
            && found.policy == wanted.ways.policy
            && wanted.subnet.is_none_or(|subnet| subnet == found.subnet);
        if !wanted.external && found.project.as_ref() != Some(&opened.name) {
            bail!(
                "{}: network {name} is there and of none or another project; choose another name",
                at()
            );
        }
        if !wanted.external && !same {
            bail!(
                "{}: network {name} is there with other settings; hull down removes it",
                at()
            );
        }
    }
    Ok(())
}
