//! Names of images in registries, as docker reads them (distribution/reference).

use std::fmt;
use std::str::FromStr;

use super::digest::Digest;

/// The registry of names without one.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Where the default registry keeps names of one part.
const LIBRARY: &str = "library";
const DEFAULT_TAG: &str = "latest";
/// Longest name of a registry and repository together, and of a tag, in bytes.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A name in full: `REGISTRY/REPOSITORY:TAG` or `REGISTRY/REPOSITORY@DIGEST`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Host and perhaps port.
    pub registry: String,
    /// The path at the registry.
    pub repository: String,
    /// The tag; `None` with a digest alone.
    pub tag: Option<String>,
    /// The digest of the manifest or index, which wins over the tag.
    pub digest: Option<Digest>,
}

impl Reference {
    /// What names the manifest at the registry: the digest or the tag.
    pub fn version(&self) -> String {
        let digest = self.digest.as_ref().map(Digest::to_string);
        let tag = || self.tag.clone().unwrap_or_else(|| DEFAULT_TAG.into());
        digest.unwrap_or_else(tag)
    }

    /// Whether the registry is on this host's loopback.
    pub fn is_loopback(&self) -> bool {
        let (host, _) = split_port(&self.registry);
        let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    }
}

/// Host and port of a registry; the host may be an IPv6 address in brackets.
pub fn split_port(registry: &str) -> (&str, Option<u16>) {
    match registry.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            (host, port.parse().ok())
        }
        _ => (registry, None),
    }
}

impl FromStr for Reference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((name, digest)) => (name, Some(digest.parse()?)),
        };
        // A colon in the last part begins a tag; elsewhere it begins a port.
        let slash = rest.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match rest[slash..].split_once(':') {
            None => (rest, None),
            Some((last, tag)) => (&rest[..slash + last.len()], Some(tag)),
        };
        let is_registry = |part: &str| {
            part.contains(['.', ':', '[']) || part == "localhost" || part != part.to_lowercase()
        };
        let (registry, path) = match name.split_once('/') {
            Some((first, path)) if is_registry(first) => (first, path),
            _ => (DEFAULT_REGISTRY, name),
        };
        let registry = match registry {
            "index.docker.io" => DEFAULT_REGISTRY,
            other => other,
        };
        check_registry(registry)?;
        let repository = match (registry, path.contains('/')) {
            (DEFAULT_REGISTRY, false) => format!("{LIBRARY}/{path}"),
            _ => path.into(),
        };
        check_repository(path, &repository, registry)?;
        if let Some(tag) = tag {
            check_tag(tag)?;
        }
        let tag = tag.map(String::from);
        let default = || digest.is_none().then(|| DEFAULT_TAG.into());
        Ok(Self {
            registry: registry.into(),
            repository,
            tag: tag.or_else(default),
            digest,
        })
    }
}

fn check_registry(registry: &str) -> Result<(), String> {
    let (host, port) = split_port(registry);
    let is_host = match host.strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            !label.is_empty()
                && label.bytes().all(inner)
                && !label.starts_with('-')
                && !label.ends_with('-')
        }),
    };
    if is_host && (port.is_some() || registry == host) {
        return Ok(());
    }
    Err(format!(
        "{registry:?} is no name of a registry; write HOST or HOST:PORT"
    ))
}

fn check_repository(path: &str, repository: &str, registry: &str) -> Result<(), String> {
    if repository.len() + registry.len() >= MAX_NAME {
        return Err(format!("the name is longer than {MAX_NAME} bytes"));
    }
    if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(format!("{path:?}: a repository's name is in lower case"));
    }
    // Separators: one dot, one or two underscores, or any number of dashes, between letters and digits.
    let is_part = |part: &str| {
        let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = part.as_bytes();
        let ends = |byte: Option<&u8>| byte.is_some_and(|byte| alphanumeric(*byte));
        let mut separators = bytes
            .split(|byte| alphanumeric(*byte))
            .filter(|it| !it.is_empty());
        ends(bytes.first())
            && ends(bytes.last())
            && separators
                .all(|it| matches!(it, b"." | b"_" | b"__") || it.iter().all(|b| *b == b'-'))
    };
    if path.split('/').all(is_part) {
        return Ok(());
    }
    Err(format!(
        "{path:?} is no name of an image; its parts have a-z and 0-9, and . _ __ or - between them"
    ))
}

fn check_tag(tag: &str) -> Result<(), String> {
    let first = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let inner = |byte: u8| first(byte) || matches!(byte, b'.' | b'-');
    let right = tag.bytes().next().is_some_and(first) && tag.bytes().all(inner);
    if right && tag.len() <= MAX_TAG {
        return Ok(());
    }
    Err(format!(
        "{tag:?} is no tag; it has 1 to {MAX_TAG} letters, digits and . _ -, and begins with neither . \
         nor -"
    ))
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_docker_does() {
        let digest = Digest::of(b"");
        let of_digest = format!("localhost:5000/app@{digest}");
        let both = format!("docker.io/library/a:1@{digest}");
        for (text, full) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3.20", "docker.io/library/alpine:3.20"),
            ("user/app", "docker.io/user/app:latest"),
            ("index.docker.io/user/app", "docker.io/user/app:latest"),
            ("ghcr.io/x/y:tag", "ghcr.io/x/y:tag"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app", "localhost:5000/app:latest"),
            ("[::1]:5000/a/b", "[::1]:5000/a/b:latest"),
            ("a__b/c-d--e.f:v_1.0-x", "docker.io/a__b/c-d--e.f:v_1.0-x"),
            (&of_digest, &of_digest),
            (&both, &both),
        ] {
            let reference: Reference = text.parse().expect(text);
            assert_eq!(reference.to_string(), full, "{text}");
            let again: Reference = full.parse().expect(full);
            assert_eq!(again, reference);
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "a/".repeat(130) + "b";
        let long_tag = format!("a:{}", "t".repeat(129));
        for (text, why) in [
            ("", "no name of an image"),
            ("Alpine", "lower case"),
            ("a//b", "no name of an image"),
            ("a/", "no name of an image"),
            ("-a", "no name of an image"),
            ("a___b", "no name of an image"),
            ("a..b/c", "no name of a registry"),
            ("../a", "no name of a registry"),
            ("a b", "no name of an image"),
            ("a:", "no tag"),
            ("a:.x", "no tag"),
            ("a:b:c", "no tag"),
            ("é", "no name of an image"),
            ("a@sha256:12", "no digest"),
            ("a@md5:d41d8cd98f00b204e9800998ecf8427e", "no digest"),
            ("host:99999/a", "no name of a registry"),
            ("ho_st.x:1/a", "no name of a registry"),
            (&long, "longer"),
            (&long_tag, "no tag"),
        ] {
            let error = text.parse::<Reference>().expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn loopback_is_this_host() {
        let is = |text: &str| text.parse::<Reference>().expect(text).is_loopback();
        assert!(is("localhost:1/a") && is("127.0.0.5:1/a") && is("[::1]:1/a"));
        assert!(!is("localhost.evil.org/a") && !is("10.0.0.1:1/a") && !is("a"));
    }
}
