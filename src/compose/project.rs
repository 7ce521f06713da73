//! The application that a file describes: services, networks and volumes, checked as a whole.

use std::collections::BTreeMap;

use super::egress::{ALLOW, DENY_PRIVATE, allowed};
use super::error::FileError;
use super::reader::{Reader, Text, is_harmless, line_of, unsupported};
use super::service::{Condition, Service};
use super::yaml::{Entry, Value};
use crate::fleet::restart::RestartPolicy;
use crate::net::Subnet;
use crate::net::networks::{Ways, parse_subnet};

/// The network of services that name none.
pub const DEFAULT: &str = "default";
/// Keys at the top that hull may pass over.
const HARMLESS: &[&str] = &["version"];

/// What a file describes.
#[derive(Debug, Default)]
pub struct Project {
    /// Its name, if the file has one.
    pub name: Option<Text>,
    /// Its services, each after those that it needs.
    pub services: Vec<Service>,
    /// The names of all its services, with those of other profiles.
    pub known: Vec<String>,
    /// Its networks by their names in the file.
    pub networks: BTreeMap<String, Network>,
    /// Its volumes by their names in the file.
    pub volumes: BTreeMap<String, Volume>,
}

/// A network of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Its name, if it is not made up of the project's and its own.
    pub name: Option<String>,
    /// It is there already, and stays.
    pub external: bool,
    /// What leads out of it.
    pub ways: Ways,
    /// Its addresses, if the file has some.
    pub subnet: Option<Subnet>,
    /// Line of the compose file, from 1.
    pub line: usize,
}

/// A volume of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// Its name, if it is not made up of the project's and its own.
    pub name: Option<String>,
    /// It is there already, and stays.
    pub external: bool,
    /// Line of the compose file, from 1.
    pub line: usize,
}

impl Project {
    /// Read a file. Services of other profiles than `profiles` are left out.
    ///
    /// # Errors
    /// A key is not supported, or its value is wrong; services need each other in a circle, or want the same port.
    pub fn read(reader: &Reader<'_>, file: &Value, profiles: &[String]) -> Result<Self, FileError> {
        let mut project = Self::default();
        let mut services = Vec::new();
        for entry in reader.map(file, "the file")? {
            match entry.key.as_str() {
                "name" => project.name = Some(reader.text(&entry.value, "name")?),
                "services" => services = project_services(reader, &entry.value)?,
                "networks" => {
                    for entry in reader.map(&entry.value, "networks")? {
                        let network = network(reader, entry)?;
                        project.networks.insert(entry.key.clone(), network);
                    }
                }
                "volumes" => {
                    for entry in reader.map(&entry.value, "volumes")? {
                        let volume = volume(reader, entry)?;
                        project.volumes.insert(entry.key.clone(), volume);
                    }
                }
                key if is_harmless(key, HARMLESS) => {}
                _ => return Err(unsupported(entry, "the key")),
            }
        }
        if services.is_empty() {
            return Err(FileError::at(file.line, "the file has no services"));
        }
        project.known = services.iter().map(|it| it.name.clone()).collect();
        let asked =
            |it: &String| it == "*" || profiles.contains(it) || profiles.iter().any(|it| it == "*");
        services.retain(|it| it.profiles.is_empty() || it.profiles.iter().any(asked));
        check_needs(&mut services, &project.known)?;
        project.services = ordered(services)?;
        project.check_names()?;
        check_ports(&project.services)?;
        Ok(project)
    }

    /// Each service that another one waits for to be healthy has its health checked: by the file, or by its image if
    /// `of_image` says so of it.
    ///
    /// # Errors
    /// One has no check, with the line of what waits for it.
    pub fn check_health(&self, of_image: impl Fn(&str) -> bool) -> Result<(), FileError> {
        let needs = self.services.iter().flat_map(|it| &it.needs);
        for need in needs.filter(|it| it.condition == Condition::Healthy) {
            let name = &need.service;
            let service = self.services.iter().find(|it| it.name == name.text);
            let is_checked = service.is_none_or(|service| {
                let image = service.image.as_ref();
                let of_image = || image.is_some_and(|image| of_image(&image.text));
                service.checks.unwrap_or_else(of_image)
            });
            if !is_checked {
                return Err(name.wrong(
                    "the service has no health check in the file or its image, and can never be healthy; give it \
                     healthcheck:, or write service_started",
                ));
            }
        }
        Ok(())
    }

    /// Every network and volume of a service is one of the file's.
    fn check_names(&mut self) -> Result<(), FileError> {
        self.networks.entry(DEFAULT.into()).or_default();
        for service in &self.services {
            for (network, _) in service.networks.iter().flatten() {
                if !self.networks.contains_key(&network.text) {
                    return Err(
                        network.wrong("undefined network; name it under networks: at the top")
                    );
                }
            }
            for (volume, _) in &service.volumes {
                if !self.volumes.contains_key(&volume.text) {
                    return Err(volume.wrong("undefined volume; name it under volumes: at the top"));
                }
            }
        }
        // Without a service in it, the default network is none.
        if self.services.iter().all(|it| it.networks.is_some()) {
            self.networks.remove(DEFAULT);
        }
        Ok(())
    }
}

fn project_services(reader: &Reader<'_>, value: &Value) -> Result<Vec<Service>, FileError> {
    let mut services = Vec::new();
    for entry in reader.map(value, "services")? {
        crate::net::config::alias(&entry.key)
            .map_err(|reason| FileError::at(line_of(entry), reason))?;
        services.push(Service::read(reader, entry)?);
    }
    Ok(services)
}

fn network(reader: &Reader<'_>, entry: &Entry) -> Result<Network, FileError> {
    let mut network = Network {
        line: line_of(entry),
        ..Network::default()
    };
    for entry in reader.map(&entry.value, &entry.key)? {
        let (key, value) = (entry.key.as_str(), &entry.value);
        match key {
            "name" => network.name = Some(reader.text(value, key)?.text),
            "external" => network.external = reader.flag(value, key)?,
            "internal" => network.ways.internal = reader.flag(value, key)?,
            ALLOW => network.ways.policy.allow = allowed(reader, value)?,
            DENY_PRIVATE => network.ways.policy.deny_private = reader.flag(value, key)?,
            "driver" => {
                let driver = reader.text(value, key)?;
                if driver.text != "bridge" {
                    return Err(driver.wrong("a network's driver is bridge; leave it out"));
                }
            }
            "ipam" => network.subnet = subnet(reader, value)?,
            "attachable" | "labels" => {}
            "enable_ipv6" if !reader.flag(value, key)? => {}
            _ if is_harmless(key, &[]) => {}
            _ => return Err(unsupported(entry, "networks:")),
        }
    }
    let held = !network.ways.policy.is_open();
    let reason = match () {
        () if held && network.ways.internal => "nothing leaves an internal network",
        () if held && network.external => "hull network create gives an external network its rules",
        () => return Ok(network),
    };
    let reason = format!("{reason}; leave out {ALLOW} and {DENY_PRIVATE}");
    Err(FileError::at(network.line, reason))
}

fn subnet(reader: &Reader<'_>, value: &Value) -> Result<Option<Subnet>, FileError> {
    let mut found = None;
    for entry in reader.map(value, "ipam")? {
        let super::yaml::Kind::List(list) = &entry.value.kind else {
            match entry.key.as_str() {
                "driver" => continue,
                _ => return Err(unsupported(entry, "networks: ipam:")),
            }
        };
        for entry in list.iter().map(|it| reader.map(it, "config")) {
            for entry in entry? {
                match entry.key.as_str() {
                    "subnet" => {
                        let text = reader.text(&entry.value, "subnet")?;
                        found = Some(parse_subnet(&text.text).map_err(|it| text.wrong(it))?);
                    }
                    _ => return Err(unsupported(entry, "networks: ipam: config:")),
                }
            }
        }
    }
    Ok(found)
}

fn volume(reader: &Reader<'_>, entry: &Entry) -> Result<Volume, FileError> {
    let mut volume = Volume {
        line: line_of(entry),
        ..Volume::default()
    };
    for entry in reader.map(&entry.value, &entry.key)? {
        let (key, value) = (entry.key.as_str(), &entry.value);
        match key {
            "name" => volume.name = Some(reader.text(value, key)?.text),
            "external" => volume.external = reader.flag(value, key)?,
            "driver" => {
                let driver = reader.text(value, key)?;
                if driver.text != "local" {
                    return Err(driver.wrong("a volume's driver is local; leave it out"));
                }
            }
            "labels" => {}
            _ if is_harmless(key, &[]) => {}
            _ => return Err(unsupported(entry, "volumes:")),
        }
    }
    Ok(volume)
}

/// What a service needs is among the `services`, and ends if it is to; of another profile it may be missing if it is
/// optional.
fn check_needs(services: &mut [Service], known: &[String]) -> Result<(), FileError> {
    let there: Vec<String> = services.iter().map(|it| it.name.clone()).collect();
    let endless = |it: &&Service| {
        matches!(
            it.restart,
            RestartPolicy::Always | RestartPolicy::UnlessStopped
        )
    };
    let endless: Vec<String> = services
        .iter()
        .filter(endless)
        .map(|it| it.name.clone())
        .collect();
    for service in services {
        for need in &service.needs {
            let name = &need.service;
            if !known.contains(&name.text) {
                return Err(name.wrong("depends_on names no service of the file"));
            }
            if !there.contains(&name.text) && !need.optional {
                return Err(name.wrong(
                    "depends_on names a service of a profile that is not started; add --profile",
                ));
            }
            if need.condition == Condition::Completed && endless.contains(&name.text) {
                return Err(name.wrong(
                    "the service is always started again, and is never completed; write restart: on-failure",
                ));
            }
        }
        service.needs.retain(|it| there.contains(&it.service.text));
    }
    Ok(())
}

/// The services, each after those that it needs, otherwise in the order of the file.
fn ordered(mut left: Vec<Service>) -> Result<Vec<Service>, FileError> {
    let mut done: Vec<Service> = Vec::new();
    while !left.is_empty() {
        let is_done = |name: &str| done.iter().any(|it| it.name == name);
        let ready = left
            .iter()
            .position(|it| it.needs.iter().all(|need| is_done(&need.service.text)));
        match ready {
            Some(ready) => done.push(left.remove(ready)),
            None => return Err(circle(&left)),
        }
    }
    Ok(done)
}

/// The circle among services that all need another one of them.
fn circle(left: &[Service]) -> FileError {
    let mut path: Vec<&Service> = Vec::new();
    let mut next = left.first();
    while let Some(service) = next {
        if let Some(begin) = path.iter().position(|it| it.name == service.name) {
            path.drain(..begin);
            break;
        }
        path.push(service);
        let needs = &service.needs;
        next = left
            .iter()
            .find(|it| needs.iter().any(|need| need.service.text == it.name));
    }
    let names: Vec<&str> = path
        .iter()
        .chain(path.first())
        .map(|it| it.name.as_str())
        .collect();
    let line = path.first().map_or(1, |it| it.line);
    FileError::at(
        line,
        format!(
            "services need each other in a circle: {}",
            names.join(" -> ")
        ),
    )
}

/// No two services have a port of the host.
fn check_ports(services: &[Service]) -> Result<(), FileError> {
    let all: Vec<_> = services
        .iter()
        .flat_map(|it| it.ports.iter().map(move |port| (it, port)))
        .collect();
    for (index, (service, published)) in all.iter().enumerate() {
        let port = published.port;
        let same = |other: crate::net::Publish| {
            let everywhere = port.address.is_unspecified() || other.address.is_unspecified();
            (other.host, other.protocol) == (port.host, port.protocol)
                && (everywhere || other.address == port.address)
        };
        let before = all.iter().take(index).find(|(_, it)| same(it.port));
        if let Some((other, before)) = before {
            return Err(FileError::at(
                published.line,
                format!(
                    "port {} of the host is that of service {} in line {}, too; give {} another",
                    port.host, other.name, before.line, service.name
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
