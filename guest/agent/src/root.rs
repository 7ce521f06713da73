//! The payload of a `Root`: `flags u8 | disk | upper | hostname | workdir | resolver | hosts`, each string ended by a NUL.

use core::ffi::CStr;

use crate::Error;
use crate::MAX_PATH;
use crate::message::write;

/// Maximum length of a device's name in bytes.
const MAX_DEVICE: usize = 15;

/// Maximum length of a host name in bytes (`__NEW_UTS_LEN`, uapi/linux/utsname.h).
pub const MAX_HOSTNAME: usize = 64;

/// Maximum length of the lines for /etc/resolv.conf in bytes.
pub const MAX_RESOLVER: usize = 4 << 10;

/// Maximum length of the text of /etc/hosts in bytes.
pub const MAX_HOSTS: usize = 32 << 10;

const READ_ONLY: u8 = 1;

/// The root file system of an image: a read-only disk, over which an overlay takes what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root<'a> {
    /// Mount the overlay read-only, after init has written its own files.
    pub read_only: bool,
    /// The name in /dev of the disk, which holds an EROFS.
    pub disk: &'a CStr,
    /// The name in /dev of the disk for what is written, which holds an ext4; empty for memory.
    pub upper: &'a CStr,
    /// The host name, 1 to [`MAX_HOSTNAME`] bytes.
    pub hostname: &'a CStr,
    /// The command's folder, which is made where it is missing: absolute, or empty.
    pub workdir: &'a CStr,
    /// Lines for /etc/resolv.conf, at most [`MAX_RESOLVER`] bytes; without a name server among them, behind
    /// those of the networks.
    pub resolver: &'a CStr,
    /// The content of /etc/hosts, at most [`MAX_HOSTS`] bytes.
    pub hosts: &'a CStr,
}

impl<'a> Root<'a> {
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, Error> {
        let (&flags, mut rest) = bytes.split_first().ok_or(Error::WrongRoot("it is empty"))?;
        if flags > READ_ONLY {
            return Err(Error::WrongRoot("it has flags that do not exist"));
        }
        let mut string = || {
            let cut = Error::WrongRoot("a string has no end");
            let string = CStr::from_bytes_until_nul(rest).map_err(|_| cut)?;
            rest = rest.get(string.count_bytes() + 1..).unwrap_or_default();
            Ok(string)
        };
        let root = Self {
            read_only: flags == READ_ONLY,
            disk: string()?,
            upper: string()?,
            hostname: string()?,
            workdir: string()?,
            resolver: string()?,
            hosts: string()?,
        };
        if !rest.is_empty() {
            return Err(Error::WrongRoot("something follows its strings"));
        }
        root.check()?;
        Ok(root)
    }

    /// Check that it can be sent.
    ///
    /// # Errors
    /// [`Error::WrongRoot`] with the reason.
    pub fn check(&self) -> Result<(), Error> {
        let is_device = |name: &CStr| {
            let name = name.to_bytes();
            name.len() <= MAX_DEVICE && name.iter().all(u8::is_ascii_alphanumeric)
        };
        if self.disk.is_empty() || !is_device(self.disk) || !is_device(self.upper) {
            return Err(Error::WrongRoot("its disks must be names in /dev"));
        }
        if !(1..=MAX_HOSTNAME).contains(&self.hostname.count_bytes()) {
            return Err(Error::WrongRoot("its host name must have 1 to 64 bytes"));
        }
        let workdir = self.workdir.to_bytes();
        if workdir.len() >= MAX_PATH || !(workdir.is_empty() || workdir.starts_with(b"/")) {
            return Err(Error::WrongRoot("its folder must be a path from / on"));
        }
        if self.resolver.count_bytes() > MAX_RESOLVER {
            return Err(Error::WrongRoot("its lines for the resolver are too long"));
        }
        if self.hosts.count_bytes() > MAX_HOSTS {
            return Err(Error::WrongRoot("its hosts are too long"));
        }
        Ok(())
    }

    /// Length of its payload in bytes.
    pub fn wire_len(&self) -> usize {
        let strings = [
            self.disk,
            self.upper,
            self.hostname,
            self.workdir,
            self.resolver,
            self.hosts,
        ];
        1 + strings.map(|it| it.count_bytes() + 1).iter().sum::<usize>()
    }

    pub(crate) fn encode(&self, out: &mut [u8], kind: u8) -> Option<usize> {
        self.check().ok()?;
        let mut fixed =
            [0; 1 + 2 * (MAX_DEVICE + 1) + MAX_HOSTNAME + 1 + MAX_PATH + MAX_RESOLVER + 1];
        fixed[0] = if self.read_only { READ_ONLY } else { 0 };
        let mut len = 1;
        let first = [
            self.disk,
            self.upper,
            self.hostname,
            self.workdir,
            self.resolver,
        ];
        for string in first {
            let bytes = string.to_bytes_with_nul();
            fixed
                .get_mut(len..len + bytes.len())?
                .copy_from_slice(bytes);
            len += bytes.len();
        }
        write(out, kind, fixed.get(..len)?, self.hosts.to_bytes_with_nul())
    }
}
