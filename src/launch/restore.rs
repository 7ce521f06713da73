//! Restores a machine from a snapshot, with changes.

use std::path::Path;
use std::sync::Arc;

use super::error::LaunchError;
use crate::config::{Device, Vsock};
use crate::net::{self, Mac};
use crate::vmm::Config;
use crate::vmm::snapshot::Saved;

/// What is not as it was in the snapshot.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// The machine's name; its process id if `None`.
    pub name: Option<String>,
    /// Addresses of networks, the first one's first; the rest keep theirs.
    pub macs: Vec<Mac>,
    /// The socket device's CID and socket.
    pub vsock: Option<Vsock>,
    /// The vCPUs do not run before a resume.
    pub paused: bool,
    /// Which of several copies it is, from 1.
    pub copy: Option<u16>,
}

/// The machine `saved`, which was read from `dir`, with `changes`.
///
/// # Errors
/// It is a template, or lacks the devices that are to change.
pub fn restore(saved: Saved, dir: &Path, changes: &Changes) -> Result<Config, LaunchError> {
    if saved.is_template() {
        return Err(LaunchError::Template { dir: dir.into() });
    }
    let mut config = Config::of_saved(Arc::new(saved));
    config.machine.name.clone_from(&changes.name);
    // The kernel's messages belong to the run that was saved.
    config.machine.kernel_log = false;
    config.paused = changes.paused;
    let networks = config.machine.all::<net::Config>().count();
    if changes.macs.len() > networks {
        return Err(LaunchError::Macs {
            given: changes.macs.len(),
            networks,
        });
    }
    let mut macs = changes.macs.iter();
    let mut wanted_vsock = changes.vsock.clone();
    for device in &mut config.machine.devices {
        match device {
            Device::Net(net) => {
                net.mac = macs.next().copied().or(net.mac);
                if changes.copy.is_some() {
                    net.mac = None; // a random one: no two copies may have the same
                }
            }
            Device::Vsock(vsock) => {
                if let Some(wanted) = wanted_vsock.take() {
                    *vsock = wanted;
                }
                if let Some(copy) = changes.copy {
                    vsock.cid = vsock.cid.saturating_add(u32::from(copy));
                    vsock.socket.as_mut_os_string().push(format!("-{copy}"));
                }
            }
            _ => {}
        }
    }
    if wanted_vsock.is_some() {
        return Err(LaunchError::NoVsock);
    }
    Ok(config)
}
