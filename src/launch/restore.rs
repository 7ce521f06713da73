//! Restores a machine from a snapshot, with changes.

use std::path::Path;
use std::sync::Arc;

use super::error::LaunchError;
use crate::config::{Device, Machine, Vsock};
use crate::disk::{self, Moved};
use crate::net::{self, Mac, Publish};
use crate::vmm::snapshot::Saved;
use crate::vmm::{self, Config, VmmError};

/// What is not as it was in the snapshot.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// The machine's name; its process id if `None`.
    pub name: Option<String>,
    /// Addresses of networks, the first one's first; the rest keep theirs.
    pub macs: Vec<Mac>,
    /// The socket device's CID and socket.
    pub vsock: Option<Vsock>,
    /// Images that lie elsewhere than when the machine was saved.
    pub disks: Vec<Moved>,
    /// Ports to publish in place of those of the machine's networks; copy N publishes its own, N - 1
    /// above these.
    pub publish: Option<Vec<Publish>>,
    /// The vCPUs do not run before a resume.
    pub paused: bool,
    /// Which of several copies it is, from 1.
    pub copy: Option<u16>,
    /// How many copies there are to be, 1 if it is the only one.
    pub copies: u16,
    /// The snapshot may be another user's.
    pub trust: bool,
}

/// The machine `saved`, which was read from `dir`, with `changes`.
///
/// # Errors
/// It is a template, another user's and not trusted, lacks the devices that are to change, or its copies
/// would publish the same port.
pub fn restore(saved: Saved, dir: &Path, changes: &Changes) -> Result<Config, LaunchError> {
    if saved.is_template() {
        return Err(LaunchError::Template { dir: dir.into() });
    }
    let stranger = saved.stranger();
    vmm::allow_many();
    let mut config = Config::of_saved(Arc::new(saved));
    config.machine.name.clone_from(&changes.name);
    // The kernel's messages belong to the run that was saved.
    config.machine.kernel_log = false;
    config.paused = changes.paused;
    set_networks(&mut config.machine, changes)?;
    set_disks(&mut config.machine, changes)?;
    set_vsock(&mut config.machine, changes)?;
    if let Some(owner) = stranger.filter(|_| !changes.trust) {
        let used = used_of_host(&config.machine);
        if !used.is_empty() {
            let dir = dir.into();
            return Err(LaunchError::Stranger { dir, owner, used });
        }
    }
    net::start_switches(config.machine.all()).map_err(VmmError::Net)?;
    Ok(config)
}

/// What `machine` uses of the host, as the flags that say so.
fn used_of_host(machine: &Machine) -> Vec<String> {
    let devices = machine.devices.iter();
    let used = devices.filter(|device| !matches!(device, Device::Rng | Device::Balloon(_)));
    used.map(|device| format!("--{} {device}", device.key()))
        .collect()
}

fn set_networks(machine: &mut Machine, changes: &Changes) -> Result<(), LaunchError> {
    let networks = machine.all::<net::Config>().count();
    if changes.macs.len() > networks {
        return Err(LaunchError::Macs {
            given: changes.macs.len(),
            networks,
        });
    }
    let mut macs = changes.macs.iter();
    let mut wanted = changes.publish.clone();
    for device in &mut machine.devices {
        let Device::Net(net) = device else {
            continue;
        };
        net.mac = macs.next().copied().or(net.mac);
        if changes.copy.is_some() {
            net.mac = None; // a random one: no two copies may have the same
        }
        if let Some(publish) = net.kind.publish_mut() {
            if changes.publish.is_some() {
                *publish = wanted.take().unwrap_or_default();
            }
            check_ports(publish, changes)?;
            let above = changes.copy.unwrap_or(1).saturating_sub(1);
            for port in publish {
                port.host = port.host.saturating_add(above);
            }
        }
    }
    match wanted {
        Some(ports) if !ports.is_empty() => Err(LaunchError::NoUserNetwork),
        _ => Ok(()),
    }
}

/// Refuse ports that two copies would publish, or that are above the highest one.
fn check_ports(ports: &[Publish], changes: &Changes) -> Result<(), LaunchError> {
    let copies = changes.copies;
    let Some(first) = ports.first().filter(|_| copies > 1) else {
        return Ok(());
    };
    if changes.publish.is_none() {
        return Err(LaunchError::PublishedBySaved { port: *first });
    }
    for (index, port) in ports.iter().enumerate() {
        let same = |other: &&Publish| {
            (other.address, other.protocol) == (port.address, port.protocol)
                && other.host.abs_diff(port.host) < copies
        };
        if port.host.checked_add(copies - 1).is_none()
            || ports.iter().take(index).any(|it| same(&it))
        {
            return Err(LaunchError::PortsOfCopies {
                port: *port,
                copies,
            });
        }
    }
    Ok(())
}

fn set_disks(machine: &mut Machine, changes: &Changes) -> Result<(), LaunchError> {
    for moved in &changes.disks {
        let mut disks = machine
            .devices
            .iter_mut()
            .filter_map(|device| match device {
                Device::Disk(disk) => Some(disk),
                _ => None,
            });
        let found = disks
            .find(|disk| matches!(disk.source, disk::Source::Image(_)) && disk.id() == moved.id);
        let Some(found) = found else {
            let ids = machine.all().map(disk::Config::id).collect();
            let id = moved.id.clone();
            return Err(LaunchError::NoDisk { id, ids });
        };
        // The guest knows it by this, whatever the file is called now.
        found.name = Some(moved.id.clone());
        found.source = disk::Source::Image(moved.image.clone());
        if !moved.backing.is_empty() {
            found.backing.clone_from(&moved.backing);
        }
    }
    Ok(())
}

fn set_vsock(machine: &mut Machine, changes: &Changes) -> Result<(), LaunchError> {
    let mut wanted = changes.vsock.clone();
    for device in &mut machine.devices {
        let Device::Vsock(vsock) = device else {
            continue;
        };
        if let Some(wanted) = wanted.take() {
            *vsock = wanted;
        }
        if let Some(copy) = changes.copy {
            vsock.cid = vsock.cid.saturating_add(u32::from(copy));
            vsock.socket.as_mut_os_string().push(format!("-{copy}"));
        }
    }
    match wanted {
        Some(_) => Err(LaunchError::NoVsock),
        None => Ok(()),
    }
}
