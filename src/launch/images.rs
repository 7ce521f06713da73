//! Kernel, initial RAM disk and init: [`prepare`] opens them, and settles what a machine leaves open.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::Path;

use super::error::LaunchError;
use crate::boot::{self, Format};
use crate::config::{Command, Device, Kernel, Machine, file};
use crate::guest::{self, GuestError};
use crate::memory::image::Image;
use crate::memory::program::build_id;
use crate::net;
use crate::symbols;
use crate::templates::Cache;
use crate::vmm::{self, Attachments, Config, Images, Start, VmmError};

/// Largest kernel or initrd that is read.
const MAX_FILE: u64 = 1 << 30;
/// Where hull's init lies in a foreign initial RAM disk.
const FOREIGN_INIT: &str = "hull-init";

/// The terminal that the guest's streams are connected to.
#[derive(Clone, Debug)]
pub struct Terminal {
    /// The value of TERM, if it is set.
    pub kind: Option<OsString>,
}

/// Open what `machine` boots. An empty command becomes a shell, if hull's init runs, and gets
/// the `terminal` unless the machine says otherwise.
///
/// # Errors
/// A file cannot be had, or the machine contradicts itself.
pub fn prepare(mut machine: Machine, terminal: Option<Terminal>) -> Result<Config, LaunchError> {
    machine.check()?;
    net::start_switches(machine.all()).map_err(VmmError::Net)?;
    vmm::allow_many();
    let images = open(&mut machine)?;
    if let Some(command) = &mut machine.command
        && command.tty.is_none()
    {
        command.tty = Some(terminal.is_some());
        if !command.has_variable("TERM")
            && let Some(kind) = terminal.and_then(|terminal| terminal.kind)
        {
            let mut variable = OsString::from("TERM=");
            variable.push(kind);
            command.env.push(variable);
        }
    }
    Ok(Config {
        machine,
        start: Start::Boot,
        images,
        ready_with: None,
        paused: false,
        late_devices: false,
        attachments: Attachments::default(),
    })
}

fn open(machine: &mut Machine) -> Result<Images, LaunchError> {
    let (kernel, symbols) = kernel(&machine.kernel)?;
    // That the kernel inside is Linux is known without unpacking it; what is no kernel at all is
    // refused when it is loaded.
    let linux = match &machine.kernel {
        Kernel::Tiny | Kernel::Full => true,
        Kernel::File(_) => boot::detect(&kernel).map_or(true, Format::is_linux),
    };
    let with_command = machine.has_command();
    if let Kernel::File(path) = &machine.kernel
        && !linux
        && with_command
    {
        return Err(LaunchError::NotLinux { path: path.clone() });
    }
    let mut cmdline = machine.cmdline.clone();
    let mut initrd = Vec::new();
    // With a command, hull's init mounts it.
    let root = machine.root_disk().filter(|_| !with_command);
    let by_init = match (root, &machine.initrd, guest::embedded()) {
        (Some(root), _, _) => {
            let access = if root.read_only { "ro" } else { "rw" };
            cmdline = format!("root=/dev/vda {access} {cmdline}");
            false
        }
        (None, Some(path), _) => {
            initrd.push(open_file("initrd", path)?);
            if with_command {
                let own = guest::required()?.initramfs.unpack()?;
                let init = foreign_init(&own).map_err(LaunchError::Initramfs)?;
                initrd.push(init.into());
                cmdline = format!("rdinit=/{FOREIGN_INIT} {cmdline}");
            }
            linux && with_command
        }
        (None, None, _) if !linux => false,
        (None, None, Some(inside)) => {
            initrd.push(Image::Packed(inside.initramfs));
            true
        }
        (None, None, None) if with_command => return Err(GuestError::None.into()),
        (None, None, None) => false,
    };
    settle_command(machine, by_init)?;
    if !linux {
        machine.devices.retain(|device| *device != Device::Rng);
    }
    Ok(Images {
        kernel,
        initrd,
        cmdline,
        symbols: Some(symbols),
    })
}

/// Leave the command to hull's init, or to none: an empty one becomes a shell.
fn settle_command(machine: &mut Machine, by_init: bool) -> Result<(), LaunchError> {
    let command = machine.command.take().unwrap_or_default();
    if !by_init && command != Command::default() {
        return Err(LaunchError::NoInit);
    }
    machine.command = by_init.then_some(command);
    if let Some(command) = &mut machine.command
        && command.argv.is_empty()
    {
        command.argv.push("/bin/sh".into());
    }
    Ok(())
}

fn kernel(kernel: &Kernel) -> Result<(Image, symbols::Source), LaunchError> {
    let path = match kernel {
        Kernel::Tiny => {
            let inside = guest::required()?;
            let symbols = symbols::Source::SystemMap(Image::Packed(inside.system_map));
            return Ok((Image::Packed(inside.vmlinux), symbols));
        }
        Kernel::Full => &guest::full()?,
        Kernel::File(path) => path,
    };
    let mut image = open_file("kernel", path)?;
    if let (Kernel::Full, Image::File(file, len)) = (kernel, &image) {
        // It is replaced by another file, not written to.
        image = Image::Kept {
            file: file.clone(),
            start: 0,
            len: *len,
        };
    }
    let beside = open_file("System.map", &path.with_file_name("System.map"));
    let symbols = match beside {
        Ok(map) => symbols::Source::SystemMap(map),
        Err(_) => symbols::Source::Elf(image.clone()),
    };
    Ok((image, symbols))
}

/// Have a machine that boots map what is packed inside the program, where that is kept unpacked.
pub(super) fn use_unpacked(images: &mut Images, tell: &dyn Fn(&str)) {
    let is_packed = |image: &Image| matches!(image, Image::Packed(_));
    let used = is_packed(&images.kernel) || images.initrd.iter().any(is_packed);
    let Some(inside) = guest::embedded().filter(|_| used) else {
        return;
    };
    let id: String = build_id()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let cache = Cache::made().ok().filter(|_| !id.is_empty());
    let parts = [inside.vmlinux, inside.initramfs];
    let Some([kernel, initramfs]) = cache.and_then(|cache| cache.unpacked(&id, parts, tell)) else {
        return;
    };
    if is_packed(&images.kernel) {
        images.kernel = kernel;
    }
    for initrd in images.initrd.iter_mut().filter(|image| is_packed(image)) {
        *initrd = initramfs.clone();
    }
}

/// An archive to append to a foreign one: hull's init, taken from hull's own.
fn foreign_init(initramfs: &[u8]) -> io::Result<Vec<u8>> {
    let mut rest = io::Cursor::new(initramfs);
    loop {
        let mut entry = cpio::newc::Reader::new(rest)?;
        if entry.entry().is_trailer() {
            return Err(io::Error::other("it has no /init"));
        }
        if entry.entry().name().trim_start_matches(['.', '/']) != "init" {
            rest = entry.finish()?;
            continue;
        }
        let mut init = Vec::new();
        entry.read_to_end(&mut init)?;
        let builder = cpio::newc::Builder::new(FOREIGN_INIT).mode(0o100_755);
        let mut writer = builder.write(Vec::new(), init.len() as u32);
        writer.write_all(&init)?;
        return cpio::newc::trailer(writer.finish()?);
    }
}

/// Open a regular file of at most [`MAX_FILE`] bytes.
fn open_file(what: &'static str, path: &Path) -> Result<Image, LaunchError> {
    let refuse = |reason: String| LaunchError::File {
        what,
        path: path.into(),
        reason,
    };
    let file = file::open(path, MAX_FILE).map_err(refuse)?;
    Image::file(file).map_err(|error| refuse(error.to_string()))
}
