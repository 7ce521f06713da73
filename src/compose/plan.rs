//! What is to be done so that the machines of a project are as its file says.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::error::ComposeError;
use super::file::Opened;
use super::project::DEFAULT;
use super::service::{Condition, Service};
use crate::fleet::kept::Kept;

/// The labels of a project's machines: its name, the service's, and what the machine was started with.
pub const PROJECT: &str = "hull.project";
/// See [`PROJECT`].
pub const SERVICE: &str = "hull.service";
/// See [`PROJECT`].
pub const STARTED_WITH: &str = "hull.started-with";

/// What the name of an image stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    /// Its ID.
    pub id: String,
    /// Whether it has the health of its machines checked.
    pub checks: bool,
}

/// A machine of a project as its file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The service's name.
    pub service: String,
    /// The machine's name.
    pub machine: String,
    /// The arguments of `hull` that start it.
    pub arguments: Vec<String>,
    /// A digest of all that it is started with.
    pub started_with: String,
    /// Whether it has done its part once it has ended with status 0: another service waits for that.
    pub once: bool,
}

/// What is to be done for a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: it runs, or has done its part.
    Keep,
    /// It has ended and is to be started again as it was.
    StartAgain,
    /// The machine of this name is to be removed before the new one is started.
    Replace(String),
    /// It is to be started.
    Start,
}

/// A machine that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct There {
    /// Its name.
    pub machine: String,
    /// Its service.
    pub service: String,
    /// As [`Planned::started_with`].
    pub started_with: String,
    /// Whether it runs.
    pub runs: bool,
    /// Whether it has ended with status 0.
    pub successful: bool,
}

/// The machines of the project `name`.
pub fn there(name: &str) -> Vec<There> {
    let label = |kept: &Kept, key: &str| kept.record.labels.get(key).cloned().unwrap_or_default();
    let all = Kept::list().into_iter();
    let own = all.filter(|kept| label(kept, PROJECT) == name);
    let there = own.map(|kept| There {
        service: label(&kept, SERVICE),
        started_with: label(&kept, STARTED_WITH),
        runs: kept.runs(),
        successful: kept.end().is_some_and(|end| end.status == 0),
        machine: kept.record.name,
    });
    there.collect()
}

/// Whether a machine is of the project `name`.
pub fn belongs(machine: &str, name: &str) -> bool {
    let kept = Kept::open(machine);
    kept.is_ok_and(|kept| kept.record.labels.get(PROJECT).is_some_and(|it| it == name))
}

/// What is to be done for a machine, where those of `there` are.
pub fn step(planned: &Planned, there: &[There]) -> Step {
    let of_service = there.iter().find(|it| it.service == planned.service);
    match of_service {
        None => Step::Start,
        Some(it) if it.started_with != planned.started_with || it.machine != planned.machine => {
            Step::Replace(it.machine.clone())
        }
        Some(it) if it.runs || planned.once && it.successful => Step::Keep,
        Some(_) => Step::StartAgain,
    }
}

impl Opened {
    /// Each machine that another one waits for to be healthy has its health checked. `images` has what the names of
    /// images stand for.
    ///
    /// # Errors
    /// [`ComposeError::File`].
    pub fn check_health(&self, images: &BTreeMap<String, Fetched>) -> Result<(), ComposeError> {
        let of_image = |image: &str| images.get(image).is_some_and(|it| it.checks);
        let checked = self.project.check_health(of_image);
        checked.map_err(|error| ComposeError::File {
            path: self.path.clone(),
            error,
        })
    }

    /// The name of a network of the file.
    pub fn network(&self, name: &str) -> String {
        let network = self.project.networks.get(name);
        let given = network.and_then(|network| match (&network.name, network.external) {
            (Some(name), _) => Some(name.clone()),
            (None, true) => Some(name.to_string()),
            (None, false) => None,
        });
        given.unwrap_or_else(|| format!("{}_{name}", self.name))
    }

    /// The name of a volume of the file.
    pub fn volume(&self, name: &str) -> String {
        let volume = self.project.volumes.get(name);
        let given = volume.and_then(|volume| match (&volume.name, volume.external) {
            (Some(name), _) => Some(name.clone()),
            (None, true) => Some(name.to_string()),
            (None, false) => None,
        });
        given.unwrap_or_else(|| format!("{}_{name}", self.name))
    }

    /// The machines, in the order in which they are started. `images` has what the names of images stand for now.
    pub fn planned(&self, images: &BTreeMap<String, Fetched>) -> Vec<Planned> {
        let services = self.project.services.iter();
        services
            .map(|service| self.planned_one(service, images))
            .collect()
    }

    fn planned_one(&self, service: &Service, images: &BTreeMap<String, Fetched>) -> Planned {
        let machine = service.machine.as_ref().map(|it| it.text.clone());
        let machine = machine.unwrap_or_else(|| format!("{}-{}-1", self.name, service.name));
        let image = service
            .image
            .as_ref()
            .map(|it| it.text.clone())
            .unwrap_or_default();
        let mut flags = service.flags.clone();
        let default = [(DEFAULT.to_string(), Vec::new())];
        let named: Vec<(String, Vec<String>)> = match &service.networks {
            None => default.into(),
            Some(named) => named
                .iter()
                .map(|(name, aliases)| (name.text.clone(), aliases.clone()))
                .collect(),
        };
        for (name, aliases) in &named {
            let mut text = format!("name={},alias={}", self.network(name), service.name);
            aliases
                .iter()
                .for_each(|it| text += &format!(",alias={it}"));
            flags.extend(["--network".into(), text]);
        }
        if named.is_empty() {
            flags.extend(["--network".into(), "none".into()]);
        }
        for (name, behind) in &service.volumes {
            flags.extend([
                "--volume".into(),
                format!("{}:{behind}", self.volume(&name.text)),
            ]);
        }
        flags.extend(["--image".into(), image.clone()]);
        if !service.command.is_empty() {
            flags.push("--".into());
            flags.extend(service.command.iter().cloned());
        }
        let started_with = digest(&flags, images.get(&image).map_or("", |it| &it.id));
        let mut arguments: Vec<String> = ["run", "-d", "--name", &machine].map(String::from).into();
        for (key, value) in [
            (PROJECT, self.name.as_str()),
            (SERVICE, &service.name),
            (STARTED_WITH, &started_with),
        ] {
            arguments.extend(["--label".into(), format!("{key}={value}")]);
        }
        arguments.extend(flags);
        let mut needs = self.project.services.iter().flat_map(|it| &it.needs);
        let once = needs.any(|need| {
            need.service.text == service.name && need.condition == Condition::Completed
        });
        Planned {
            service: service.name.clone(),
            machine,
            arguments,
            started_with,
            once,
        }
    }
}

/// A digest of flags, what their files of variables hold, and the image.
fn digest(flags: &[String], image: &str) -> String {
    let mut hash = Sha256::new();
    for (index, flag) in flags.iter().enumerate() {
        hash.update((flag.len() as u64).to_be_bytes());
        hash.update(flag);
        let before = index.checked_sub(1).and_then(|before| flags.get(before));
        if before.is_some_and(|before| before == "--env-file") {
            // One that cannot be read is told when the machine is started.
            hash.update(std::fs::read(flag).unwrap_or_default());
        }
    }
    hash.update(image);
    let digits = hash.finalize();
    digits
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_changed_or_ended_is_touched() {
        let planned = |once| Planned {
            service: "a".into(),
            machine: "p-a-1".into(),
            arguments: Vec::new(),
            started_with: "x".into(),
            once,
        };
        let there = |started_with: &str, runs, successful| {
            vec![There {
                machine: "p-a-1".into(),
                service: "a".into(),
                started_with: started_with.into(),
                runs,
                successful,
            }]
        };
        let replace = Step::Replace("p-a-1".into());
        for (there, once, wanted) in [
            (Vec::new(), false, Step::Start),
            (there("x", true, false), false, Step::Keep),
            (there("x", false, true), false, Step::StartAgain),
            (there("x", false, true), true, Step::Keep),
            (there("x", false, false), true, Step::StartAgain),
            (there("y", true, false), false, replace.clone()),
            (there("y", false, true), true, replace),
        ] {
            assert_eq!(step(&planned(once), &there), wanted, "{there:?} {once}");
        }
    }
}
