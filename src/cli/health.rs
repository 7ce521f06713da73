//! The flags of `hull run` for the checks of a machine's health, with the meaning that docker gives them.

use std::time::Duration;

use super::headings::BACKGROUND;
use crate::config::duration::parse;
use crate::fleet::health::{Check, INTERVAL, RETRIES, TIMEOUT, Test};
use crate::fleet::kept::{Kept, KeptError};
use crate::image::Healthcheck;

/// The shortest span of time but 0, which is that of the image or the default.
const SHORTEST: Duration = Duration::from_millis(1);

#[derive(clap::Args)]
#[command(next_help_heading = BACKGROUND)]
pub struct Health {
    /// A line for the guest's shell that checks its health, in place of the image's check: status 0 is healthy.
    #[arg(long, value_name = "CMD", requires = "detach")]
    health_cmd: Option<String>,
    /// Time from one check to the next [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = time, requires = "detach")]
    health_interval: Option<Duration>,
    /// Time after which a check is killed, and has failed [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = time, requires = "detach")]
    health_timeout: Option<Duration>,
    /// Failures one after another that make it unhealthy [default: 3]
    #[arg(long, value_name = "N", value_parser = retries, requires = "detach")]
    health_retries: Option<u32>,
    /// Time from its start in which failures do not count [default: 0s]
    #[arg(long, value_name = "TIME", value_parser = time, requires = "detach")]
    health_start_period: Option<Duration>,
    /// No checks, whatever the image has.
    #[arg(
        long,
        requires = "detach",
        conflicts_with_all = [
            "health_cmd",
            "health_interval",
            "health_timeout",
            "health_retries",
            "health_start_period"
        ]
    )]
    no_healthcheck: bool,
}

fn time(text: &str) -> Result<Duration, String> {
    let time = parse(text)?;
    match time.is_zero() || time >= SHORTEST {
        true => Ok(time),
        false => Err("it cannot be less than 1ms; 0 stands for the default".into()),
    }
}

fn retries(text: &str) -> Result<u32, String> {
    let wrong = || "write a number from 0 to 4294967295; 0 stands for the default".into();
    text.parse().map_err(|_| wrong())
}

impl Health {
    /// Record for the keeper of machine `name` how its health is checked: as the flags say, and what they leave
    /// open as its image says.
    ///
    /// # Errors
    /// It cannot be recorded.
    pub fn keep(&self, name: &str, image: Option<&Healthcheck>) -> Result<(), KeptError> {
        Kept::open(name)?.write_check(self.check(image).as_ref())
    }

    fn check(&self, image: Option<&Healthcheck>) -> Option<Check> {
        if self.no_healthcheck {
            return None;
        }
        let own = self.health_cmd.clone().filter(|line| !line.is_empty());
        let test = match own {
            Some(line) => Test::Shell(line),
            None => test_of(image?)?,
        };
        let of_image = |nanoseconds: fn(&Healthcheck) -> i64| {
            let nanoseconds = u64::try_from(nanoseconds(image?)).ok()?;
            Some(Duration::from_nanos(nanoseconds).max(SHORTEST)).filter(|_| nanoseconds > 0)
        };
        let time = |own: Option<Duration>, of_image: Option<Duration>, default| {
            let own = own.filter(|time| !time.is_zero());
            own.or(of_image).unwrap_or(default)
        };
        let retries = image.and_then(|image| u32::try_from(image.retries).ok());
        let retries = self.health_retries.filter(|n| *n > 0).or(retries);
        Some(Check {
            test,
            interval: time(self.health_interval, of_image(|it| it.interval), INTERVAL),
            timeout: time(self.health_timeout, of_image(|it| it.timeout), TIMEOUT),
            start_period: time(
                self.health_start_period,
                of_image(|it| it.start_period),
                Duration::ZERO,
            ),
            retries: retries.filter(|n| *n > 0).unwrap_or(RETRIES),
        })
    }
}

/// Whether an image has the health of its machines checked.
pub fn is_checked(image: Option<&Healthcheck>) -> bool {
    image.is_some_and(|image| test_of(image).is_some())
}

/// What an image's check runs; `None` for none, and, as in engines, for what is neither.
fn test_of(image: &Healthcheck) -> Option<Test> {
    let test = image.test.as_deref().unwrap_or_default();
    match test.split_first()? {
        (kind, argv @ [_, ..]) if kind == "CMD" => Some(Test::Program(argv.to_vec())),
        (kind, [line, ..]) if kind == "CMD-SHELL" => Some(Test::Shell(line.clone())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[arg(long)]
        detach: bool,
        #[command(flatten)]
        health: Health,
    }

    fn check(flags: &[&str], image: Option<&Healthcheck>) -> Option<Check> {
        let line = [&["hull", "--detach"][..], flags].concat();
        let line = Line::try_parse_from(line).expect("flags");
        assert!(line.detach);
        line.health.check(image)
    }

    fn image(words: &[&str]) -> Healthcheck {
        Healthcheck {
            test: Some(words.iter().map(|word| (*word).into()).collect()),
            interval: 5_000_000_000,
            retries: 7,
            timeout: -1,
            start_period: 10,
        }
    }

    #[test]
    fn flags_win_over_the_image() {
        let of_image = image(&["CMD", "/probe", "-q"]);
        let plain = check(&[], Some(&of_image)).expect("a check");
        let expected = Check {
            test: Test::Program(vec!["/probe".into(), "-q".into()]),
            interval: Duration::from_secs(5),
            timeout: TIMEOUT,
            start_period: SHORTEST,
            retries: 7,
        };
        assert_eq!(plain, expected);
        let flags = ["--health-cmd", "true", "--health-interval", "1m30s"];
        let more = ["--health-retries", "2", "--health-timeout", "0"];
        let changed = check(&[flags, more].concat(), Some(&of_image));
        let expected = Check {
            test: Test::Shell("true".into()),
            interval: Duration::from_secs(90),
            retries: 2,
            ..expected
        };
        assert_eq!(changed, Some(expected));
        assert_eq!(check(&["--no-healthcheck"], Some(&of_image)), None);
    }

    #[test]
    fn without_a_command_there_is_no_check() {
        assert_eq!(check(&["--health-interval", "1s"], None), None);
        for words in [&["NONE"][..], &[], &["CMD"], &["SHELL", "true"]] {
            assert_eq!(check(&[], Some(&image(words))), None, "{words:?}");
        }
        let shell = check(&[], Some(&image(&["CMD-SHELL", "true"])));
        assert_eq!(shell.map(|it| it.test), Some(Test::Shell("true".into())));
    }
}
