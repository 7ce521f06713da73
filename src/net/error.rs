//! Why a network cannot be used.

use std::io;

use thiserror::Error;

use super::networks::NetworkError;

/// A network cannot be used.
#[derive(Debug, Error)]
pub enum NetError {
    /// There is no such interface.
    #[error(
        "tap={name}: there is no {name}; `ip tuntap add {name} mode tap user $USER` and `ip link set {name} up` (as root) make one"
    )]
    TapMissing {
        /// Name of the tap device.
        name: String,
    },
    /// Another program has attached to it.
    #[error(
        "tap={name}: another program uses it; end that program, or make a tap device for each machine"
    )]
    TapInUse {
        /// Name of the tap device.
        name: String,
    },
    /// It belongs to another user.
    #[error(
        "tap={name}: it is not yours; `ip tuntap del {name} mode tap` and `ip tuntap add {name} mode tap user $USER` (as root) give you one"
    )]
    TapNotOurs {
        /// Name of the tap device.
        name: String,
    },
    /// It is a bridge or an Ethernet card, for example.
    #[error(
        "tap={name}: {name} is not a tap device with one queue; `ip tuntap` lists tap devices, `ip tuntap add NAME mode tap user $USER` makes one"
    )]
    NotATap {
        /// Name of the interface.
        name: String,
    },
    /// /dev/net/tun cannot be opened.
    #[error("tap={name}: /dev/net/tun: {error}; {hint}")]
    Tun {
        /// Name of the tap device.
        name: String,
        /// The error of the host.
        error: io::Error,
        /// A remedy.
        hint: &'static str,
    },
    /// Any other error of a tap device.
    #[error("tap={name}: {error}")]
    Tap {
        /// Name of the tap device.
        name: String,
        /// The error of the host.
        error: io::Error,
    },
    /// The network has no address for the guest.
    #[error(
        "tap={name}: the network of the host's address {host} has no other; write ip=ADDRESS/PREFIX"
    )]
    NoAddress {
        /// Name of the tap device.
        name: String,
        /// The host's address and prefix.
        host: String,
    },
    /// A network that machines share cannot be joined.
    #[error("{error}")]
    Shared {
        /// Why not.
        #[from]
        error: NetworkError,
    },
    /// passt is not installed.
    #[error("user: passt is needed and not installed; `apt install passt` (as root) installs it")]
    PasstMissing,
    /// passt cannot be started.
    #[error("user: passt cannot be started ({error})")]
    Passt {
        /// The error of the host.
        error: io::Error,
    },
    /// passt ended or does not answer.
    #[error("user{publish}: passt gave up: {reason}")]
    PasstFailed {
        /// The ports it was to publish, as options.
        publish: String,
        /// Its messages.
        reason: String,
    },
}
