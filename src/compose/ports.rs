//! Published ports of a service.

use super::error::FileError;
use super::reader::{Reader, Text, unsupported};
use super::yaml::{Kind, Value};
use crate::net::Publish;
use crate::net::config::port;

/// Most ports of a range.
const MAX_RANGE: u16 = 128;

/// A port of the host, and where the file asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The port.
    pub port: Publish,
    /// Line of the compose file, from 1.
    pub line: usize,
}

/// The ports of a service: each as the value of `--publish`, with the port of the host unless that is chosen.
///
/// # Errors
/// One is none.
pub fn read(
    reader: &Reader<'_>,
    value: &Value,
) -> Result<Vec<(String, Option<Published>)>, FileError> {
    let list = match &value.kind {
        Kind::Null => &[],
        Kind::List(list) => list.as_slice(),
        _ => return Err(FileError::at(value.line, "ports is a list")),
    };
    let mut all = Vec::new();
    for value in list {
        let text = match &value.kind {
            Kind::Map(_) => long(reader, value)?,
            _ => reader.text(value, "ports")?,
        };
        for flag in expanded(&text)? {
            let published = published(&flag, &text)?;
            all.push((flag, published));
        }
    }
    Ok(all)
}

/// The short form of a port with keys.
fn long(reader: &Reader<'_>, value: &Value) -> Result<Text, FileError> {
    let (mut target, mut published, mut address, mut protocol) = (None, None, None, None);
    for entry in reader.map(value, "a port")? {
        let part = match entry.key.as_str() {
            "target" => &mut target,
            "published" => &mut published,
            "host_ip" => &mut address,
            "protocol" => &mut protocol,
            "mode" | "name" | "app_protocol" => continue,
            _ => return Err(unsupported(entry, "ports:")),
        };
        *part = Some(reader.text(&entry.value, &entry.key)?.text);
    }
    let target = target.ok_or_else(|| FileError::at(value.line, "the port has no target"))?;
    let mut text = match (address, published) {
        (Some(address), published) => {
            format!("{address}:{}:{target}", published.unwrap_or_default())
        }
        (None, Some(published)) => format!("{published}:{target}"),
        (None, None) => target,
    };
    if let Some(protocol) = protocol {
        text += &format!("/{protocol}");
    }
    let line = value.line;
    Ok(Text { line, text })
}

/// Each port of `8000-8002:80-82`.
fn expanded(text: &Text) -> Result<Vec<String>, FileError> {
    if !text.text.contains('-') {
        return Ok(vec![text.text.clone()]);
    }
    let wrong = || {
        text.wrong(format!(
            "write HOST:GUEST or two ranges of the same length, of at most {MAX_RANGE} ports"
        ))
    };
    let (ports, protocol) = text.text.split_once('/').unwrap_or((&text.text, "tcp"));
    let parts: Vec<&str> = ports.split(':').collect();
    let range = |text: &str| -> Option<(u16, u16)> {
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        let (from, to) = (from.parse().ok()?, to.parse().ok()?);
        (from <= to && to - from < MAX_RANGE).then_some((from, to))
    };
    let (address, host, guest) = match parts.as_slice() {
        [guest] => (None, None, guest),
        [host, guest] => (None, Some(host), guest),
        [address, host, guest] => (Some(address), Some(host), guest),
        _ => return Err(wrong()),
    };
    let (first, last) = range(guest).ok_or_else(wrong)?;
    let host = host
        .filter(|it| !it.is_empty())
        .map(|host| range(host).ok_or_else(wrong))
        .transpose()?;
    if host.is_some_and(|(from, to)| to - from != last - first) {
        return Err(wrong());
    }
    let each = (first..=last).map(|guest| {
        let host = host.map(|(from, _)| (from + (guest - first)).to_string());
        let parts = [
            address.map(ToString::to_string),
            host,
            Some(guest.to_string()),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        format!("{}/{protocol}", parts.join(":"))
    });
    Ok(each.collect())
}

/// The port of the host, unless it is chosen.
fn published(flag: &str, text: &Text) -> Result<Option<Published>, FileError> {
    let parts: Vec<&str> = flag.split(':').collect();
    let whole = match parts.as_slice() {
        [_, guest] => (!parts.first().is_some_and(|it| it.is_empty()))
            .then(|| format!("0.0.0.0:{flag}"))
            .ok_or(guest),
        [_, "", guest] => Err(guest),
        [guest] => Err(guest),
        _ => Ok(flag.to_string()),
    };
    // A port that is chosen is checked with any number in its place.
    let checked = match &whole {
        Ok(whole) => port(whole),
        Err(guest) => port(&format!("1:{guest}")),
    };
    let reason = |reason: String| {
        FileError::at(text.line, reason.trim_start_matches("publish=").to_string())
    };
    let port = checked.map_err(reason)?;
    Ok(whole.is_ok().then_some(Published {
        port,
        line: text.line,
    }))
}
