//! A service of a file, as the flags of `hull run` that start its machine.

use std::path::Path;

use super::egress::{ALLOW, DENY_PRIVATE, allowed};
use super::error::FileError;
use super::health;
use super::mounts::{self, Mounted};
use super::ports::{self, Published};
use super::reader::{Reader, Text, is_harmless, line_of, unsupported};
use super::yaml::{Entry, Kind, Value};
use crate::config::Kernel;
use crate::fleet::restart::RestartPolicy;

/// Keys that say nothing about what runs, or ask for what is so anyway.
const HARMLESS: &[&str] = &[
    "annotations",
    "attach",
    "expose",
    "init",
    "labels",
    "logging",
    "stdin_open",
];

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// The line on which it begins.
    pub line: usize,
    /// The image.
    pub image: Option<Text>,
    /// The flags of `hull run` but for name, image, networks and volumes with names.
    pub flags: Vec<String>,
    /// What follows `--`: in place of the image's arguments.
    pub command: Vec<String>,
    /// The name of its machine, if the file gives one.
    pub machine: Option<Text>,
    /// When its machine is started again.
    pub restart: RestartPolicy,
    /// Whether the file has its health checked; the image says it if `None`.
    pub checks: Option<bool>,
    /// What it needs, and in which state.
    pub needs: Vec<Need>,
    /// The ports of the host that it has.
    pub ports: Vec<Published>,
    /// Its networks with further names in them: the project's default one if `None`.
    pub networks: Option<Vec<(Text, Vec<String>)>>,
    /// The names of its volumes, each with the path in the machine and the mode.
    pub volumes: Vec<(Text, String)>,
    /// It is started only if one of these is asked for; always if there are none.
    pub profiles: Vec<String>,
}

/// What a service waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// The other service.
    pub service: Text,
    /// When it is as it should be.
    pub condition: Condition,
    /// Whether it may be missing.
    pub optional: bool,
}

/// When another service is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Its command runs.
    Started,
    /// Its command has ended with status 0.
    Completed,
    /// A check of its health was successful.
    Healthy,
}

impl Service {
    /// Read the service that `entry` describes.
    ///
    /// # Errors
    /// A key is not supported, or its value is wrong.
    pub fn read(reader: &Reader<'_>, entry: &Entry) -> Result<Self, FileError> {
        let mut service = Self {
            name: entry.key.clone(),
            line: line_of(entry),
            ..Self::default()
        };
        let mut entrypoint = None;
        for entry in reader.map(&entry.value, &entry.key)? {
            if entry.key == "entrypoint" {
                entrypoint = Some(reader.words(&entry.value, &entry.key)?);
            } else if !service.read_key(reader, entry)? {
                return Err(unsupported(entry, &format!("service {}:", service.name)));
            }
        }
        if let Some(words) = entrypoint {
            // Its arguments stand before the command's.
            let mut words = words.into_iter();
            let program = words.next().unwrap_or_default();
            service.flag("--entrypoint", program);
            service.command = words.chain(service.command).collect();
        }
        if service.image.is_none() {
            let reason = format!("service {} has no image", service.name);
            return Err(FileError::at(service.line, reason));
        }
        Ok(service)
    }

    fn flag(&mut self, flag: &str, value: impl Into<String>) {
        self.flags.extend([flag.to_string(), value.into()]);
    }

    fn texts(&mut self, flag: &str, reader: &Reader<'_>, entry: &Entry) -> Result<(), FileError> {
        for text in reader.texts(&entry.value, &entry.key)? {
            self.flag(flag, text.text);
        }
        Ok(())
    }

    /// A kernel of hull's own.
    fn kernel(&mut self, name: Text) -> Result<(), FileError> {
        if Kernel::own(&name.text).is_none() {
            let reason = format!("x-hull-kernel: {} is none of tiny and full", name.text);
            return Err(FileError::at(name.line, reason));
        }
        self.flag("--kernel", name.text);
        Ok(())
    }

    /// Read a key; false if hull does not know it.
    fn read_key(&mut self, reader: &Reader<'_>, entry: &Entry) -> Result<bool, FileError> {
        let (key, value) = (entry.key.as_str(), &entry.value);
        if let Some(flag) = same_flag(key) {
            return self.texts(flag, reader, entry).map(|()| true);
        }
        match key {
            "image" => self.image = Some(reader.text(value, key)?),
            "command" => self.command = reader.words(value, key)?,
            "container_name" => self.machine = Some(reader.text(value, key)?),
            "environment" => self.environment(reader, value)?,
            "env_file" => self.env_files(reader, value)?,
            "ports" => self.ports(reader, value)?,
            "volumes" => self.mounts(reader, value)?,
            "networks" => self.networks = Some(networks(reader, value)?),
            "depends_on" => self.needs = needs(reader, value)?,
            "deploy" => self.deploy(reader, value)?,
            "healthcheck" => {
                let checked = health::read(reader, value)?;
                self.checks = checked.checks;
                self.flags.extend(checked.flags);
            }
            "profiles" => {
                let profiles = reader.texts(value, key)?.into_iter();
                self.profiles = profiles.map(|it| it.text).collect();
            }
            "x-hull-kernel" => self.kernel(reader.text(value, key)?)?,
            "privileged" | "read_only" | "tty" => {
                if reader.flag(value, key)? {
                    self.flags.push(format!("--{}", key.replace('_', "-")));
                }
            }
            ALLOW => {
                for allow in allowed(reader, value)? {
                    self.flag("--allow", allow.to_string());
                }
            }
            DENY_PRIVATE if reader.flag(value, key)? => self.flags.push("--deny-private".into()),
            DENY_PRIVATE => {}
            "cpus" => self.cpus(&reader.text(value, key)?)?,
            "mem_limit" => self.memory(&reader.text(value, key)?)?,
            _ => return self.read_choice(reader, entry),
        }
        Ok(true)
    }

    /// Read a key of which hull knows some values; false if it does not know the key.
    fn read_choice(&mut self, reader: &Reader<'_>, entry: &Entry) -> Result<bool, FileError> {
        let (key, value) = (entry.key.as_str(), &entry.value);
        if is_harmless(key, HARMLESS) {
            return Ok(true);
        }
        if key == "build" {
            let reason = "hull builds no images: docker build makes one, and image: docker-daemon:NAME names it";
            return Err(FileError::at(line_of(entry), reason));
        }
        if key == "extra_hosts" {
            for (name, address) in reader.pairs(value, key)? {
                let host = address.map_or(name.text.clone(), |it| format!("{}:{it}", name.text));
                self.flag("--add-host", host);
            }
            return Ok(true);
        }
        if ![
            "stop_grace_period",
            "network_mode",
            "platform",
            "pull_policy",
            "restart",
            "scale",
        ]
        .contains(&key)
        {
            return Ok(false);
        }
        let text = reader.text(value, key)?;
        match (key, text.text.as_str()) {
            ("stop_grace_period", time) => {
                let seconds = seconds(time).ok_or_else(|| text.wrong("write 30s, for example"))?;
                self.flag("--stop-timeout", seconds.to_string());
            }
            ("network_mode", "none") => self.networks = Some(Vec::new()),
            ("network_mode", "bridge") => self.networks = None,
            ("network_mode", _) => return Err(text.wrong("network_mode is none or bridge")),
            ("platform", "linux/amd64" | "linux/x86_64" | "linux") => {}
            ("platform", _) => return Err(text.wrong("hull runs linux/amd64")),
            ("pull_policy", "if_not_present") => self.flag("--pull", "missing"),
            ("pull_policy", when @ ("always" | "missing" | "never")) => self.flag("--pull", when),
            ("pull_policy", _) => return Err(text.wrong("pull_policy is always, missing or never")),
            ("restart", policy) => {
                self.restart = policy.parse().map_err(|error| text.wrong(error))?;
                if self.restart != RestartPolicy::No {
                    self.flag("--restart", self.restart.to_string());
                }
            }
            _ => check_one(&text)?,
        }
        Ok(true)
    }

    fn mounts(&mut self, reader: &Reader<'_>, value: &Value) -> Result<(), FileError> {
        for mount in mounts::read(reader, value)? {
            match mount {
                Mounted::Flag(flag, value) => self.flag(flag, value),
                Mounted::Volume(name, behind) => self.volumes.push((name, behind)),
            }
        }
        Ok(())
    }

    fn environment(&mut self, reader: &Reader<'_>, value: &Value) -> Result<(), FileError> {
        for (name, value) in reader.pairs(value, "environment")? {
            if name.text.is_empty() {
                return Err(FileError::at(
                    name.line,
                    "a variable of environment has no name",
                ));
            }
            // Without a value it is this process's, if it has one.
            self.flag(
                "--env",
                value.map_or(name.text.clone(), |it| format!("{}={it}", name.text)),
            );
        }
        Ok(())
    }

    fn env_files(&mut self, reader: &Reader<'_>, value: &Value) -> Result<(), FileError> {
        let list = match &value.kind {
            Kind::List(list) => list.as_slice(),
            _ => std::slice::from_ref(value),
        };
        for value in list {
            let (mut file, mut needed) = (None, true);
            match &value.kind {
                Kind::Map(map) => {
                    for entry in map {
                        match entry.key.as_str() {
                            "path" => file = Some(reader.text(&entry.value, "path")?),
                            "required" => needed = reader.flag(&entry.value, "required")?,
                            _ => return Err(unsupported(entry, "env_file:")),
                        }
                    }
                }
                _ => file = Some(reader.text(value, "env_file")?),
            }
            let file = file.ok_or_else(|| FileError::at(value.line, "env_file has no path"))?;
            let path = reader.path(&file.text);
            match (Path::new(&path).is_file(), needed) {
                (true, _) => self.flag("--env-file", path),
                (false, false) => {}
                (false, true) => return Err(file.wrong("there is no such file")),
            }
        }
        Ok(())
    }

    fn ports(&mut self, reader: &Reader<'_>, value: &Value) -> Result<(), FileError> {
        for (flag, published) in ports::read(reader, value)? {
            self.flag("--publish", flag);
            self.ports.extend(published);
        }
        Ok(())
    }

    fn deploy(&mut self, reader: &Reader<'_>, value: &Value) -> Result<(), FileError> {
        for entry in reader.map(value, "deploy")? {
            match entry.key.as_str() {
                "replicas" => check_one(&reader.text(&entry.value, "replicas")?)?,
                "resources" => {
                    for entry in reader.map(&entry.value, "resources")? {
                        match entry.key.as_str() {
                            "limits" => self.limits(reader, &entry.value)?,
                            // What is promised to others is none's here.
                            "reservations" => {}
                            _ => return Err(unsupported(entry, "deploy.resources:")),
                        }
                    }
                }
                // Of a swarm.
                "labels" | "placement" | "update_config" | "rollback_config" | "endpoint_mode" => {}
                _ => return Err(unsupported(entry, "deploy:")),
            }
        }
        Ok(())
    }

    fn limits(&mut self, reader: &Reader<'_>, value: &Value) -> Result<(), FileError> {
        for entry in reader.map(value, "limits")? {
            match entry.key.as_str() {
                "cpus" => self.cpus(&reader.text(&entry.value, "cpus")?)?,
                "memory" => self.memory(&reader.text(&entry.value, "memory")?)?,
                _ => return Err(unsupported(entry, "deploy.resources.limits:")),
            }
        }
        Ok(())
    }

    /// A machine has whole CPUs.
    fn cpus(&mut self, text: &Text) -> Result<(), FileError> {
        let cpus = text
            .text
            .parse::<f64>()
            .ok()
            .filter(|it| *it > 0.0 && *it <= 255.0);
        let cpus = cpus.ok_or_else(|| text.wrong("write a number of CPUs"))?;
        self.flag("--cpus", (cpus.ceil() as u8).to_string());
        Ok(())
    }

    fn memory(&mut self, text: &Text) -> Result<(), FileError> {
        // Bytes in docker's units, `512m`, `1gb`, which are hull's without the b.
        let upper = text.text.to_uppercase();
        let size = upper.strip_suffix('B').unwrap_or(&upper);
        let parsed = crate::config::size::parse(size);
        parsed.ok_or_else(|| text.wrong("write a size such as 512M"))?;
        self.flag("--memory", size);
        Ok(())
    }
}

/// The flag whose values a key has as they are.
fn same_flag(key: &str) -> Option<&'static str> {
    Some(match key {
        "user" => "--user",
        "working_dir" => "--workdir",
        "hostname" => "--hostname",
        "stop_signal" => "--stop-signal",
        "cap_add" => "--cap-add",
        "cap_drop" => "--cap-drop",
        "group_add" => "--group-add",
        "dns" => "--dns",
        "dns_search" => "--dns-search",
        "dns_opt" => "--dns-option",
        "tmpfs" => "--tmpfs",
        _ => return None,
    })
}

/// Each service has one machine.
fn check_one(text: &Text) -> Result<(), FileError> {
    match text.text.as_str() {
        "1" => Ok(()),
        _ => Err(text.wrong("a service has one machine")),
    }
}

/// Seconds of a duration: `90`, `1m30s`, `500ms`.
fn seconds(text: &str) -> Option<u64> {
    if let Ok(seconds) = text.parse() {
        return Some(seconds);
    }
    humantime::parse_duration(text).ok().map(|it| it.as_secs())
}

fn networks(reader: &Reader<'_>, value: &Value) -> Result<Vec<(Text, Vec<String>)>, FileError> {
    let Kind::Map(map) = &value.kind else {
        let names = reader.texts(value, "networks")?.into_iter();
        return Ok(names.map(|name| (name, Vec::new())).collect());
    };
    let mut networks = Vec::new();
    for entry in map {
        let mut aliases = Vec::new();
        for entry in reader.map(&entry.value, &entry.key)? {
            match entry.key.as_str() {
                "aliases" => aliases = reader.texts(&entry.value, "aliases")?,
                "priority" | "gw_priority" => {}
                _ => return Err(unsupported(entry, "networks:")),
            }
        }
        for alias in &aliases {
            crate::net::config::alias(&alias.text)
                .map_err(|reason| FileError::at(alias.line, reason))?;
        }
        let name = Text {
            line: line_of(entry),
            text: entry.key.clone(),
        };
        networks.push((name, aliases.into_iter().map(|it| it.text).collect()));
    }
    Ok(networks)
}

fn needs(reader: &Reader<'_>, value: &Value) -> Result<Vec<Need>, FileError> {
    let need = |service| Need {
        service,
        condition: Condition::Started,
        optional: false,
    };
    let Kind::Map(map) = &value.kind else {
        let names = reader.texts(value, "depends_on")?.into_iter();
        return Ok(names.map(need).collect());
    };
    let mut needs = Vec::new();
    for entry in map {
        let mut need = need(Text {
            line: line_of(entry),
            text: entry.key.clone(),
        });
        for entry in reader.map(&entry.value, &entry.key)? {
            match entry.key.as_str() {
                "condition" => {
                    need.condition = condition(&reader.text(&entry.value, "condition")?)?
                }
                "required" => need.optional = !reader.flag(&entry.value, "required")?,
                "restart" if !reader.flag(&entry.value, "restart")? => {}
                _ => return Err(unsupported(entry, "depends_on:")),
            }
        }
        needs.push(need);
    }
    Ok(needs)
}

fn condition(text: &Text) -> Result<Condition, FileError> {
    match text.text.as_str() {
        "service_started" => Ok(Condition::Started),
        "service_completed_successfully" => Ok(Condition::Completed),
        "service_healthy" => Ok(Condition::Healthy),
        _ => Err(text.wrong(
            "a condition is service_started, service_healthy or service_completed_successfully",
        )),
    }
}
