//! A unit of systemd that brings a machine in the background back after a reboot (systemd.service(5)).

use std::ffi::OsStr;
use std::fmt::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::kept::KeptRecord;
use super::restart::RestartPolicy;

/// Seconds that a start may take: an image may have to be fetched.
const START_SECONDS: u32 = 900;

/// Why there is no unit.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum UnitError {
    /// A folder that WorkingDirectory= cannot name: that has no quotes.
    #[error(
        "the folder {0:?} of the machine cannot be written in a unit; leave --new out, or start it in another folder"
    )]
    Folder(PathBuf),
}

/// What a unit needs to know beside the machine's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The path of hull.
    pub hull: PathBuf,
    /// Variables that hull reads.
    pub variables: Vec<(String, std::ffi::OsString)>,
    /// Whether it is a unit of the system, and not of a user's manager.
    pub system: bool,
    /// The user's runtime folder, if a unit of the system has to have it made.
    pub runtime_of: Option<u32>,
}

/// The unit for the machine of `record`: it starts what is there, or, if `new`, makes the machine anew from its
/// command line.
///
/// # Errors
/// [`UnitError`].
pub fn unit(record: &KeptRecord, host: &Host, new: bool) -> Result<String, UnitError> {
    let mut text = format!("[Unit]\nDescription=hull machine {}\n", record.name);
    if host.system {
        text += "Wants=network-online.target\nAfter=network-online.target\n";
        if let Some(user) = host.runtime_of {
            let folder = format!("user-runtime-dir@{user}.service");
            let _ = writeln!(text, "Requires={folder}\nAfter={folder}");
        }
    }
    // The first process that stays is the machine's keeper, whose end is the machine's.
    text += "\n[Service]\nType=forking\n";
    for (variable, value) in &host.variables {
        let assignment = [variable.as_bytes(), b"=", value.as_bytes()].concat();
        let assignment = quote(OsStr::from_bytes(&assignment), false);
        let _ = writeln!(text, "Environment={assignment}");
    }
    text += &commands(record, host, new)?;
    // The keeper itself starts the machine again: systemd has to if that was killed.
    let restart = match record.restart {
        RestartPolicy::No => "no",
        _ => "on-failure",
    };
    let _ = writeln!(text, "Restart={restart}\nTimeoutStartSec={START_SECONDS}");
    // hull stop ends it in any case.
    text += "TimeoutStopSec=infinity\n\n[Install]\nWantedBy=";
    text += match host.system {
        true => "multi-user.target\n",
        false => "default.target\n",
    };
    Ok(text)
}

/// The lines that start and stop the machine.
fn commands(record: &KeptRecord, host: &Host, new: bool) -> Result<String, UnitError> {
    let name = &record.name;
    let hull = quote(host.hull.as_os_str(), true);
    let mut text = String::new();
    let mut line = |key: &str, words: &[&[u8]]| {
        let words = words
            .iter()
            .map(|word| quote(OsStr::from_bytes(word), true));
        let words: Vec<_> = words.collect();
        let _ = writeln!(text, "{key}{hull} {}", words.join(" "));
    };
    let remove: [&[u8]; 3] = [b"rm", b"-f", name.as_bytes()];
    if new {
        line("ExecStartPre=-", &remove);
        let arguments = named(record);
        let words: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();
        line("ExecStart=", &words);
    } else if record.restart == RestartPolicy::UnlessStopped {
        line("ExecStart=", &[b"start", b"--after-boot", name.as_bytes()]);
    } else {
        line("ExecStart=", &[b"start", name.as_bytes()]);
    }
    line("ExecStop=", &[b"stop", b"--shutdown", name.as_bytes()]);
    if new {
        line("ExecStopPost=-", &remove);
        let _ = writeln!(text, "WorkingDirectory={}", plain(&record.folder)?);
    }
    Ok(text)
}

/// The machine's command line without the program, with its name.
fn named(record: &KeptRecord) -> Vec<Vec<u8>> {
    let mut rest = record.arguments.iter().skip(1).cloned();
    let mut words: Vec<Vec<u8>> = rest.next().into_iter().collect();
    words.extend([b"--name".to_vec(), record.name.clone().into_bytes()]);
    let mut flags = true;
    while let Some(word) = rest.next() {
        flags &= word != b"--";
        match flags && (word == b"--name" || word.starts_with(b"--name=")) {
            // It may have been renamed.
            true => drop(if word == b"--name" { rest.next() } else { None }),
            false => words.push(word),
        }
    }
    words
}

/// A path as it stands in a unit without quotes.
fn plain(path: &Path) -> Result<String, UnitError> {
    let text = path.to_str().filter(|text| {
        let ends = text.ends_with(['\\', ' ']);
        !ends && !text.contains(char::is_control)
    });
    let text = text.ok_or_else(|| UnitError::Folder(path.into()))?;
    Ok(text.replace('%', "%%"))
}

/// A word as systemd reads it (systemd.syntax(7), "Quoting"): percent signs begin specifiers, and in a command
/// dollar signs variables.
fn quote(word: &OsStr, command: bool) -> String {
    let is_plain = |it: u8| it.is_ascii_alphanumeric() || b"_-./:=,@+".contains(&it);
    let bytes = word.as_bytes();
    if !bytes.is_empty() && bytes.iter().copied().all(is_plain) {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    let mut text = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        for it in chunk.valid().chars() {
            match it {
                '"' | '\\' => text.extend(['\\', it]),
                '%' => text += "%%",
                '$' if command => text += "$$",
                '\n' => text += "\\n",
                '\t' => text += "\\t",
                it if it.is_ascii_control() => {
                    let _ = write!(text, "\\x{:02x}", u32::from(it));
                }
                it => text.push(it),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text + "\""
}

/// The variables of this process that hull reads, with their values.
pub fn variables() -> Vec<(String, std::ffi::OsString)> {
    const NAMES: [&str; 10] = [
        "HOME",
        "PATH",
        "TMPDIR",
        "SSL_CERT_FILE",
        "XDG_CACHE_HOME",
        "XDG_CONFIG_HOME",
        "XDG_DATA_HOME",
        "XDG_RUNTIME_DIR",
        "XDG_STATE_HOME",
        "DOCKER_CONFIG",
    ];
    let mut found: Vec<_> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, _)| NAMES.contains(&name.as_str()) || name.starts_with("HULL_"))
        .map(|(name, value)| (name, OsStr::from_bytes(&value.into_vec()).to_owned()))
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fleet::log::{Driver, Rotation};

    /// A word as systemd reads it: quotes, escapes, and doubled signs.
    fn read(text: &str) -> Vec<u8> {
        let Some(text) = text.strip_prefix('"').and_then(|it| it.strip_suffix('"')) else {
            return text.as_bytes().to_vec();
        };
        let mut bytes = text.bytes();
        let mut word = Vec::new();
        while let Some(byte) = bytes.next() {
            match byte {
                b'"' => panic!("a quote that is not escaped"),
                b'%' | b'$' => {
                    assert_eq!(bytes.next(), Some(byte), "doubled");
                    word.push(byte);
                }
                b'\\' => match bytes.next() {
                    Some(b'n') => word.push(b'\n'),
                    Some(b't') => word.push(b'\t'),
                    Some(b'x') => {
                        let digits = [
                            bytes.next().expect("a digit"),
                            bytes.next().expect("a digit"),
                        ];
                        let digits = std::str::from_utf8(&digits).expect("text");
                        word.push(u8::from_str_radix(digits, 16).expect("digits"));
                    }
                    Some(it) => word.push(it),
                    None => panic!("nothing is escaped"),
                },
                byte => word.push(byte),
            }
        }
        word
    }

    proptest! {
        #[test]
        fn words_are_read_as_they_were(word in prop::collection::vec(1u8.., 0..40)) {
            let quoted = quote(OsStr::from_bytes(&word), true);
            prop_assert!(!quoted.contains(char::is_control) || !quoted.is_ascii());
            prop_assert!(!quoted.contains('\n'));
            prop_assert_eq!(read(&quoted), word);
        }

        #[test]
        fn texts_are_read_as_they_were(word in r#"[-a z"\\%$;'é\n\t]{0,20}"#) {
            let quoted = quote(OsStr::new(&word), true);
            prop_assert_eq!(read(&quoted), word.into_bytes());
        }
    }

    fn record(arguments: &[&str], restart: RestartPolicy) -> KeptRecord {
        KeptRecord {
            name: "web".into(),
            created: 0,
            arguments: arguments.iter().map(|it| it.as_bytes().to_vec()).collect(),
            folder: "/srv/a b%".into(),
            driver: Driver::None,
            rotation: Rotation::default(),
            remove: false,
            volumes: Vec::new(),
            labels: std::collections::BTreeMap::new(),
            input: false,
            terminal: false,
            restart,
        }
    }

    fn host(system: bool) -> Host {
        Host {
            hull: "/opt/my hull/hull".into(),
            variables: vec![("HOME".into(), "/home/$x %".into())],
            system,
            runtime_of: system.then_some(0),
        }
    }

    #[test]
    fn a_unit_starts_what_is_there() {
        let record = record(&["hull", "run"], RestartPolicy::UnlessStopped);
        let text = unit(&record, &host(false), false).expect("a unit");
        for line in [
            "Environment=\"HOME=/home/$x %%\"",
            "ExecStart=\"/opt/my hull/hull\" start --after-boot web",
            "ExecStop=\"/opt/my hull/hull\" stop --shutdown web",
            "Restart=on-failure",
            "WantedBy=default.target",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}: {text}");
        }
        assert!(!text.contains("network-online"));
    }

    #[test]
    fn a_unit_makes_it_anew() {
        let line = [
            "/bin/hull",
            "run",
            "--name",
            "old",
            "-d",
            "--",
            "echo",
            "--name",
            "$A",
        ];
        let record = record(&line, RestartPolicy::No);
        let text = unit(&record, &host(true), true).expect("a unit");
        for line in [
            "WorkingDirectory=/srv/a b%%",
            "ExecStartPre=-\"/opt/my hull/hull\" rm -f web",
            "ExecStart=\"/opt/my hull/hull\" run --name web -d -- echo --name \"$$A\"",
            "ExecStopPost=-\"/opt/my hull/hull\" rm -f web",
            "Requires=user-runtime-dir@0.service",
            "Restart=no",
            "WantedBy=multi-user.target",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}: {text}");
        }
        let bad = KeptRecord {
            folder: "/srv/line\nfeed".into(),
            ..record
        };
        let error = unit(&bad, &host(true), true);
        assert_eq!(error, Err(UnitError::Folder("/srv/line\nfeed".into())));
    }
}
