//! What `hull run --image -v` names: a folder of the host, a volume by its name, or a volume of the machine's own.

use crate::config::{Draft, device};
use crate::launch::image::Mounted;
use crate::volume::{Own, Store, check_name};

/// Options of docker's volumes that say nothing to a virtual machine.
const IGNORED: [&str; 7] = [
    "rw",
    "z",
    "Z",
    "cached",
    "delegated",
    "consistent",
    "private",
];

/// The value of a flag -v.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mount {
    /// A folder of the host, as --share has it.
    Share(String),
    /// A volume of this name.
    Named(String, Place),
    /// A volume that only this machine has.
    Own(Place),
}

/// Where a volume is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    path: String,
    read_only: bool,
}

/// Parse `SRC:/path[:OPTIONS]`, `NAME:/path[:OPTIONS]` or `/path`.
///
/// # Errors
/// What the text must be instead, for the message behind its flag.
pub fn parse(text: &str) -> Result<Mount, String> {
    let Some((source, rest)) = text.split_once(":/") else {
        return match text.starts_with('/') && !text.contains(':') {
            true => Ok(Mount::Own(place(text, "")?)),
            false => Err(
                "write SRC:/path or SRC:/path:ro; SRC is a volume's name or a folder's path".into(),
            ),
        };
    };
    let (path, options) = rest.split_once(':').unwrap_or((rest, ""));
    if source.starts_with(['/', '.', '~']) {
        let options: String = known(options).map(|option| format!(":{option}")).collect();
        return Ok(Mount::Share(format!("{source}:/{path}{options}")));
    }
    check_name(source).map_err(|error| error.to_string())?;
    Ok(Mount::Named(source.into(), place(path, options)?))
}

/// The options that matter.
fn known(options: &str) -> impl Iterator<Item = &str> {
    let options = options.split(',');
    options.filter(|it| !it.is_empty() && !IGNORED.contains(it))
}

fn place(path: &str, options: &str) -> Result<Place, String> {
    let mut read_only = false;
    for option in known(options) {
        match option {
            "ro" => read_only = true,
            _ => return Err(format!("{option:?} is no option of a volume; there is ro")),
        }
    }
    let parts: Vec<&str> = path
        .split('/')
        .filter(|part| !matches!(*part, "" | "."))
        .collect();
    if parts.is_empty() || parts.contains(&"..") {
        return Err("it cannot be mounted at / or at a path with ..".into());
    }
    let path = format!("/{}", parts.join("/"));
    Ok(Place { path, read_only })
}

impl Mount {
    /// The name of its volume.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Named(name, _) => Some(name),
            Self::Share(_) | Self::Own(_) => None,
        }
    }

    /// Add the folder of the host, if it is one.
    ///
    /// # Errors
    /// There is none.
    pub fn add_share(&self, draft: &mut Draft) -> Result<(), String> {
        if let Self::Share(text) = self {
            let share = device::parse("share", text)?;
            draft.devices.entry("share").or_default().push(share);
        }
        Ok(())
    }
}

/// The disks of `mounts`, and of the image's `own` paths unless something else is mounted there, as `is_taken` says.
///
/// # Errors
/// A volume cannot be had, or two things are mounted at one path.
pub fn disks(
    mounts: &[Mount],
    own: &[String],
    is_taken: &dyn Fn(&str) -> bool,
    disks: &Own,
    size: u64,
) -> anyhow::Result<Vec<Mounted>> {
    let mut all: Vec<Mounted> = Vec::new();
    let (mut store, mut names) = (None, Vec::new());
    for mount in mounts {
        let (name, place) = match mount {
            Mount::Share(_) => continue,
            Mount::Named(name, place) => (Some(name), place),
            Mount::Own(place) => (None, place),
        };
        let path = place.path.clone();
        if is_taken(&path) || all.iter().any(|it| it.path == path) {
            anyhow::bail!("--volume {path}: something else is mounted there, too");
        }
        let source = match name {
            Some(name) if names.contains(&name) => {
                anyhow::bail!("--volume {name}: a machine has a volume at one path only");
            }
            Some(name) => {
                names.push(name);
                let store = match &mut store {
                    Some(store) => store,
                    None => store.insert(Store::open()?),
                };
                crate::disk::Source::Image(store.mount(name, place.read_only)?)
            }
            None => disks.disk(&file_of(&path), size, false)?,
        };
        all.push(Mounted {
            source,
            path,
            read_only: place.read_only,
        });
    }
    for path in own {
        let Ok(place) = place(path, "") else { continue };
        if is_taken(&place.path) || all.iter().any(|it| it.path == place.path) {
            continue;
        }
        all.push(Mounted {
            source: disks.disk(&file_of(&place.path), size, false)?,
            path: place.path,
            read_only: false,
        });
    }
    Ok(all)
}

/// The name of the file for the volume at `path`, in the machine's folder.
fn file_of(path: &str) -> String {
    format!("volume{}", path.replace('%', "%25").replace('/', "%2f"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_has_a_name_and_a_folder_a_path() {
        let place = |path: &str, read_only| Place {
            path: path.into(),
            read_only,
        };
        for (text, meant) in [
            ("/srv:/a:ro,z", Mount::Share("/srv:/a:ro".into())),
            ("./x:/a", Mount::Share("./x:/a".into())),
            (
                "data:/a/b/",
                Mount::Named("data".into(), place("/a/b", false)),
            ),
            ("data:/a:ro", Mount::Named("data".into(), place("/a", true))),
            ("/a", Mount::Own(place("/a", false))),
        ] {
            assert_eq!(parse(text), Ok(meant), "{text}");
        }
        for (text, why) in [
            ("data", "write SRC:/path"),
            ("a:/x", "2 to 255"),
            ("da ta:/x", "2 to 255"),
            ("data:/", "cannot be mounted at /"),
            ("data:/a/../b", "cannot be mounted at /"),
            ("data:/a:nocopy", "\"nocopy\" is no option"),
        ] {
            assert!(parse(text).is_err_and(|it| it.contains(why)), "{text}");
        }
    }
}
