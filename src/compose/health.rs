//! How a file says that a machine's health is checked, as the flags of `hull run -d` (Compose Specification, services,
//! healthcheck).

use std::time::Duration;

use super::error::FileError;
use super::reader::{Reader, Text, unsupported};
use super::yaml::{Kind, Value};
use crate::config::duration::parse;

/// The shortest span of time but 0, which stands for that of the image or the default.
const SHORTEST: Duration = Duration::from_millis(1);

/// What a file says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// The flags of `hull run -d`.
    pub flags: Vec<String>,
    /// Whether there is a check; the image says it if `None`.
    pub checks: Option<bool>,
}

/// What runs.
enum Test {
    Image,
    None,
    Line(String),
}

/// Read the value of `healthcheck`.
///
/// # Errors
/// A key is not supported, or its value is wrong.
pub fn read(reader: &Reader<'_>, value: &Value) -> Result<Checked, FileError> {
    let (mut test, mut off, mut flags) = (Test::Image, false, Vec::new());
    for entry in reader.map(value, "healthcheck")? {
        let (key, value) = (entry.key.as_str(), &entry.value);
        match key {
            "disable" => off = reader.flag(value, key)?,
            "test" => test = read_test(reader, value)?,
            "interval" | "timeout" | "start_period" => {
                let text = reader.text(value, key)?;
                check_time(&text)?;
                let flag = format!("--health-{}", key.replace('_', "-"));
                flags.extend([flag, text.text]);
            }
            "retries" => {
                let text = reader.text(value, key)?;
                let wrong = |_| text.wrong("retries is a number from 0 to 4294967295");
                let retries: u32 = text.text.parse().map_err(wrong)?;
                flags.extend(["--health-retries".into(), retries.to_string()]);
            }
            _ => return Err(unsupported(entry, "healthcheck:")),
        }
    }
    Ok(match test {
        _ if off => none(),
        Test::None => none(),
        Test::Image => Checked {
            flags,
            checks: None,
        },
        Test::Line(line) => {
            // In one word: a line may begin with a hyphen.
            flags.insert(0, format!("--health-cmd={line}"));
            Checked {
                flags,
                checks: Some(true),
            }
        }
    })
}

fn none() -> Checked {
    Checked {
        flags: vec!["--no-healthcheck".into()],
        checks: Some(false),
    }
}

fn read_test(reader: &Reader<'_>, value: &Value) -> Result<Test, FileError> {
    let wrong = |reason: &str| FileError::at(value.line, format!("test: {reason}"));
    let line = match &value.kind {
        Kind::Scalar { .. } => reader.text(value, "test")?.text,
        _ => {
            let words = reader.words(value, "test")?;
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            match words.as_slice() {
                [] => return Ok(Test::Image),
                ["NONE"] => return Ok(Test::None),
                ["CMD-SHELL", line] => (*line).to_string(),
                // The flag is for a shell, which becomes the program.
                ["CMD", program, ..] if !program.is_empty() => {
                    let line = shlex::try_join(words.iter().skip(1).copied());
                    let line = line.map_err(|_| wrong("a word has a byte 0"))?;
                    format!("exec {line}")
                }
                _ => {
                    return Err(wrong(
                        "write [NONE], [CMD, PROGRAM, ARGUMENT, ...] or [CMD-SHELL, LINE]",
                    ));
                }
            }
        }
    };
    match line.trim().is_empty() {
        true => Err(wrong("it is empty; write what checks the health")),
        false => Ok(Test::Line(line)),
    }
}

fn check_time(text: &Text) -> Result<(), FileError> {
    let time = parse(&text.text).map_err(|reason| text.wrong(reason))?;
    match time.is_zero() || time >= SHORTEST {
        true => Ok(()),
        false => Err(text.wrong("it cannot be less than 1ms; 0 stands for the default")),
    }
}
