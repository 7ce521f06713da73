//! The flags of `hull run` for virtio devices.

use clap::ValueEnum;

use super::egress::Egress;
use super::headings::DEVICES;
use crate::config::{Device, Machine, device};

#[derive(clap::Args)]
#[command(next_help_heading = DEVICES)]
pub struct Devices {
    /// A disk, /dev/vda for the first: a raw or qcow2 image, or a block device. Options: ro, the
    /// guest only reads; overlay, its writes are discarded at the end; id=NAME, its serial number;
    /// cache=unsafe, flushes are not waited for; rate=RATE, at most so many bytes or operations a
    /// second, such as 10M or 500ops or 10M/1M+500ops/50 with a burst each; format=raw|qcow2, not
    /// recognized by the image's first bytes; backing=FILE, the image below a qcow2 image. A comma in PATH
    /// is written twice. A raw image that grows meanwhile grows in the guest. Example: --disk
    /// data.img,id=data,rate=10M
    #[arg(long = "disk", value_name = "PATH[,OPTION]..", value_parser = of("disk"))]
    disks: Vec<Device>,
    /// As --disk PATH,overlay, behind those of --disk. Example: --overlay base.qcow2
    #[arg(long = "overlay", value_name = "PATH[,..]", value_parser = of("overlay"))]
    overlays: Vec<Device>,
    /// An empty disk that is gone afterwards, the last of all. Example: --scratch 1G
    #[arg(
        long = "scratch",
        value_name = "SIZE",
        value_parser = of("scratch"),
        allow_negative_numbers = true
    )]
    scratches: Vec<Device>,
    /// A disk as in --disk that holds the guest's system: the kernel mounts it and runs the init
    /// on it, on the serial console. Example: --root-disk rootfs.ext4
    #[arg(
        long,
        value_name = "PATH[,..]",
        value_parser = of("root-disk"),
        conflicts_with = "initrd"
    )]
    root_disk: Option<Device>,
    /// A network, eth0 for the first. user[,publish=[ADDR:]HOST:GUEST[/tcp|/udp]][,host-loopback]: needs
    /// no rights, but the program passt; the guest is 10.0.2.15, and with host-loopback it reaches the
    /// services on the host's loopback at 10.0.2.2, otherwise not at all; a published port is open on
    /// 127.0.0.1 unless ADDR is given, and may be repeated.
    /// tap=NAME[,ip=ADDR/PREFIX][,gw=ADDR]: an existing tap device; without ip= the guest gets the
    /// address next to the host's. Both: mac=MAC, rate=RATE for each direction as in --disk.
    /// Example: --net user,publish=8080:80
    #[arg(long = "net", value_name = "SPEC", value_parser = of("net"))]
    nets: Vec<Device>,
    #[command(flatten)]
    egress: Egress,
    /// A folder that the guest uses as its own (virtio-fs), mounted at the path before CMD runs.
    /// ro: the guest only reads; lock=host: locks of files apply between guest and host; xattr=on: with
    /// extended attributes (user.*). Without hull's init, mount it by its tag, the path's last part:
    /// `mount -t virtiofs src /src`. Example: --share .:/src:ro
    #[arg(
        long = "share",
        value_name = "HOSTDIR:/guest/path[:ro][:lock=host][:xattr=on]",
        value_parser = of("share")
    )]
    shares: Vec<Device>,
    /// An entropy device, /dev/hwrng in a Linux guest: random bytes of the host's. Example: --rng off
    /// [default: on]
    #[arg(long, value_name = "on|off", value_enum, hide_possible_values = true)]
    rng: Option<Switch>,
    /// A memory balloon: the guest gives up SIZE of its memory if it can, and reports pages that it
    /// does not use, which the host takes back. stats=SECONDS: how often the guest reports its
    /// memory, for --timing and --json. Example: --balloon=64M,stats=5
    #[arg(
        long,
        value_name = "[SIZE][,stats=SECONDS]",
        value_parser = of("balloon"),
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = ""
    )]
    balloon: Option<Device>,
    /// Sockets between guest and host (virtio-vsock), as cid=N,socket=PATH: N, 3 to 4294967294,
    /// is the guest. hull creates PATH; a program that connects to it and writes the line
    /// `CONNECT 52` reaches the guest's port 52. The guest reaches PATH_52 as port 52 of CID 2.
    /// Example: --vsock cid=3,socket=/tmp/v
    #[arg(long, value_name = "SPEC", value_parser = of("vsock"))]
    vsock: Option<Device>,
}

/// Whether a machine has a device.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

impl Devices {
    /// `machine` with its networks held to what the flags say.
    ///
    /// # Errors
    /// It has none, or one that cannot be held to it.
    pub fn hold(&self, machine: Machine) -> anyhow::Result<Machine> {
        self.egress.hold(machine)
    }

    /// The devices that the flags mention, with their keys.
    pub fn given(&self) -> impl Iterator<Item = (&'static str, Vec<Device>)> {
        let rng = self.rng.map(|rng| match rng {
            Switch::On => vec![Device::Rng],
            Switch::Off => Vec::new(),
        });
        let rng = rng.map(|devices| ("rng", devices));
        let given = [
            ("root-disk", self.root_disk.as_slice()),
            ("disk", &self.disks),
            ("overlay", &self.overlays),
            ("scratch", &self.scratches),
            ("net", &self.nets),
            ("share", &self.shares),
            ("balloon", self.balloon.as_slice()),
            ("vsock", self.vsock.as_slice()),
        ];
        let given = given.into_iter().filter(|(_, list)| !list.is_empty());
        let given = given.map(|(key, list)| (key, list.to_vec()));
        given.chain(rng)
    }
}

/// The parser of the flag `key`.
fn of(key: &'static str) -> impl Fn(&str) -> Result<Device, String> + Clone {
    move |text| device::parse(key, text)
}
