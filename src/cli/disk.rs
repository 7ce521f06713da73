//! What follows `--disk`: a path and its options.

use std::path::PathBuf;

use super::rate;
use super::run::size;

pub use crate::disk::Config;
use crate::disk::{Cache, Format, Limits, NAME_MOST, Source};

/// What follows the path of a disk, for messages.
const OPTIONS: &str = "ro, overlay, id=NAME, cache=writeback|unsafe, format=raw|qcow2, \
                       backing=FILE and rate=RATE";

/// Parse `PATH[,OPTION]...`; `,,` is a comma in the path, as QEMU has it.
pub fn parse(text: &str) -> Result<Config, String> {
    let (path, options) = split_path(text);
    if path.is_empty() {
        return Err(format!(
            "a disk needs a path; behind it may stand {OPTIONS}"
        ));
    }
    let path = PathBuf::from(path);
    let mut config = Config {
        flag: "--disk".into(),
        name: None,
        source: Source::Image(path),
        read_only: false,
        cache: Cache::default(),
        format: None,
        backing: Vec::new(),
        overlay: false,
        limits: Limits::default(),
    };
    let mut rest = options;
    while !rest.is_empty() {
        let (option, behind) = split_path(rest);
        rest = behind;
        match option.split_once('=').unwrap_or((&option, "")) {
            ("", "") => {}
            ("ro", "") => config.read_only = true,
            ("overlay", "") => config.overlay = true,
            ("id", name) => config.name = Some(serial(name)?),
            ("cache", "writeback") => config.cache = Cache::Writeback,
            ("cache", "unsafe") => config.cache = Cache::Unsafe,
            ("cache", other) => {
                return Err(format!("cache={other}: it is writeback or unsafe"));
            }
            ("format", "raw") => config.format = Some(Format::Raw),
            ("format", "qcow2") => config.format = Some(Format::Qcow2),
            ("format", other) => return Err(format!("format={other}: it is raw or qcow2")),
            ("backing", path) if !path.is_empty() => config.backing.push(path.into()),
            ("rate", limits) => config.limits = rate::parse(limits)?,
            _ => {
                return Err(format!(
                    "'{option}' is no option of a disk; there are {OPTIONS}, and a comma in a \
                     path is written twice"
                ));
            }
        }
    }
    if config.overlay {
        if config.read_only {
            return Err("ro and overlay: a disk is one or the other".into());
        }
        // Nobody needs the overlay afterwards.
        config.cache = Cache::Unsafe;
    }
    Ok(config)
}

/// Parse what follows `--overlay`, which is a disk with `overlay`.
pub fn parse_overlay(text: &str) -> Result<Config, String> {
    let (path, options) = split_path(text);
    let config = parse(&format!("{},overlay,{options}", path.replace(',', ",,")))?;
    Ok(Config {
        flag: "--overlay".into(),
        ..config
    })
}

/// Parse what follows `--root-disk`, which is a disk.
pub fn parse_root(text: &str) -> Result<Config, String> {
    let config = parse(text)?;
    Ok(Config {
        flag: "--root-disk".into(),
        ..config
    })
}

/// Parse the size of `--scratch`: 1M to 16T, whole pages.
pub fn parse_scratch(text: &str) -> Result<Config, String> {
    let bytes = size(text).filter(|bytes| (1 << 20..=1 << 44).contains(bytes));
    let bytes =
        bytes.ok_or("a scratch disk has 1M to 16T; bytes, or a number with K, M, G or T")?;
    Ok(Config {
        flag: "--scratch".into(),
        source: Source::Scratch(bytes & !0xfff),
        read_only: false,
        name: None,
        cache: Cache::Unsafe,
        format: None,
        backing: Vec::new(),
        overlay: false,
        limits: Limits::default(),
    })
}

/// What stands before the first single comma, and what behind it.
fn split_path(text: &str) -> (String, &str) {
    let mut path = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(',') {
        path += before;
        match after.strip_prefix(',') {
            None => return (path, after),
            Some(more) => {
                path.push(',');
                rest = more;
            }
        }
    }
    (path + rest, "")
}

fn serial(name: &str) -> Result<String, String> {
    let fits = (1..=NAME_MOST).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic());
    match fits {
        true => Ok(name.into()),
        false => Err(format!(
            "id={name}: a disk's name is 1 to {NAME_MOST} letters, digits or signs of ASCII"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_ends_the_path_unless_it_is_doubled() {
        assert_eq!(split_path("a"), ("a".into(), ""));
        assert_eq!(split_path("a,ro,id=x"), ("a".into(), "ro,id=x"));
        assert_eq!(split_path("a,,b,ro"), ("a,b".into(), "ro"));
        assert_eq!(split_path("a,,,ro"), ("a,".into(), "ro"));
        assert_eq!(split_path("a,,"), ("a,".into(), ""));
    }

    #[test]
    fn options_are_what_they_say() {
        let config = parse("/x/data.img,ro,id=d1,cache=unsafe").expect("parsed");
        assert_eq!(config.source, Source::Image("/x/data.img".into()));
        assert!(config.read_only);
        assert_eq!(config.name.as_deref(), Some("d1"));
        assert_eq!(config.cache, Cache::Unsafe);
        assert_eq!(parse("/x/data.img").expect("parsed").name, None);
        for wrong in [
            "",
            ",ro",
            "a,rw",
            "a,cache=none",
            "a,id=",
            "a,id=é",
            "a,ro=1",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert!(parse(&format!("a,id={}", "n".repeat(21))).is_err());
    }
}
