//! Warm start: a machine that has booted once is a template, from which later ones are restored.
//!
//! Whatever goes wrong with a template, the user has a machine: one that boots. What this process or the
//! host lacks is no fault of the template, which stays then.

use std::fs::File;
use std::sync::Arc;
use std::time::SystemTime;

use crate::agent;
use crate::config::{Device, Kernel};
use crate::kvm::features::Features;
use crate::memory::image::Image;
use crate::memory::program;
use crate::templates::{About, Building, Cache, CacheError, Key};
use crate::vmm::snapshot::{Saved, SavedError};
use crate::vmm::{Config, LATE_SLOTS, Start, VmmError, may_build};

/// The beginning of a message about a start that leaves no template.
const BOOTS: &str = "the guest boots, and the next one will: ";

/// The template of one kind of machine.
pub struct Warm<'a> {
    cache: Cache,
    key: Key,
    about: About,
    /// The template that this run makes.
    building: Option<Building>,
    /// Called with each line that the user should read.
    tell: &'a dyn Fn(&str),
}

impl<'a> Warm<'a> {
    /// The template for `config`, if there is a cache and what the machine is made of fits one.
    pub fn of(config: &Config, tell: &'a dyn Fn(&str)) -> Option<Self> {
        let machine = &config.machine;
        let late = machine.devices.iter();
        let late = late.filter(|device| **device != Device::Rng).count();
        if late > LATE_SLOTS || !machine.faults.is_empty() {
            return None;
        }
        let cache = match Cache::made() {
            Ok(cache) => cache,
            Err(error) => {
                if !matches!(error, CacheError::Off { .. }) {
                    tell(&format!("{BOOTS}{error}"));
                }
                return None;
            }
        };
        let created = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Some(Self {
            cache,
            key: key(config)?,
            about: About {
                kernel: match &machine.kernel {
                    Kernel::Tiny => "inside hull".into(),
                    Kernel::Full => "full".into(),
                    Kernel::File(path) => path.to_string_lossy().into(),
                },
                cpus: machine.cpus,
                memory_bytes: machine.memory_bytes,
                version: env!("CARGO_PKG_VERSION").into(),
                created: created.map_or(0, |time| time.as_secs()),
            },
            building: None,
            tell,
        })
    }

    /// The name of the template, by which a pool knows it too.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Have `config` begin with the template, or make it.
    ///
    /// # Errors
    /// This process or the host lacks what any start needs.
    pub fn prepare(&mut self, config: &mut Config) -> Result<(), SavedError> {
        if let Some(dir) = self.cache.find(&self.key) {
            match Saved::open(&dir) {
                Ok(saved) => {
                    config.late_devices = true;
                    config.start = Start::Saved(Arc::new(saved));
                    return Ok(());
                }
                Err(error) if error.is_of_snapshot() => self.drop_template(&error.to_string()),
                Err(error) => return Err(error),
            }
        }
        self.boot(config);
        Ok(())
    }

    /// Have `config` boot, and make the template unless another process does.
    fn boot(&mut self, config: &mut Config) {
        self.building = match config.machine.jail {
            // The cache is out of its reach, and what it may have made of a template is not for others.
            Some(_) => None,
            None => self
                .cache
                .build(&self.key, &self.about)
                .unwrap_or_else(|error| {
                    (self.tell)(&format!("{BOOTS}{error}"));
                    None
                }),
        };
        config.start = match &self.building {
            Some(building) => Start::Template(building.dir().into()),
            None => Start::Boot,
        };
        config.late_devices = self.building.is_some();
    }

    /// Whether `error`, by which the machine of `config` ended, is the template's; then `config` boots.
    pub fn failed(&mut self, error: &VmmError, config: &mut Config) -> bool {
        let of_template = matches!(config.start, Start::Saved(_)) && error.is_of_snapshot();
        if of_template {
            self.drop_template(&error.to_string());
            self.boot(config);
        }
        of_template
    }

    /// The machine has ended.
    pub fn finish(self) {
        if let Some(building) = self.building {
            building.finish();
        }
    }

    fn drop_template(&self, reason: &str) {
        let boots = if may_build() {
            "the guest"
        } else {
            "the next run"
        };
        (self.tell)(&format!(
            "the template is dropped, and {boots} boots: {reason}"
        ));
        let _ = self.cache.remove(&self.key); // another process may have removed it
    }
}

/// Everything that a machine in front of its first command depends on.
fn key(config: &Config) -> Option<Key> {
    let mut key = Key::new();
    key.add("hull", env!("CARGO_PKG_VERSION").as_bytes());
    // Another build of the same version may carry another guest.
    match program::build_id() {
        id if id.is_empty() => key.add_file("program", &File::open("/proc/self/exe").ok()?),
        id => key.add("program", &id),
    };
    key.add("protocol", &agent::VERSION.to_le_bytes());
    key.add("host kernel", rustix::system::uname().release().to_bytes());
    key.add(
        "host processor",
        format!("{:?}", Features::of_host()).as_bytes(),
    );
    let images = &config.images;
    for image in std::iter::once(&images.kernel).chain(&images.initrd) {
        match image {
            Image::Bytes(bytes) => key.add("bytes", bytes),
            Image::File(file, _) | Image::Kept { file, .. } => key.add_file("file", file),
            Image::Packed(packed) => key.add("inside", &packed.len().to_le_bytes()),
        };
    }
    let machine = postcard::to_allocvec(&config.machine.before_command()).ok()?;
    key.add("machine", &machine);
    key.add("command line", images.cmdline.as_bytes());
    key.finish()
}
