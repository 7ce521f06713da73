//! Images of registries (OCI distribution specification; Docker's token authentication).

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::thread;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use docker_credential::DockerCredential;
use rustix::fs::{FlockOperation, flock};
use serde::Deserialize;

use super::add::{Contents, Progress, Wanted, add};
use super::digest::Digest;
use super::document::{Descriptor, MAX_DOCUMENT, document};
use super::error::ImageError;
use super::http::{Answer, Client, body};
use super::reference::Reference;
use super::store::{Image, Store};

/// The host of the registry that is called docker.io, and its name for credentials.
const DOCKER_HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");
const DOCKER_HUB_ACCOUNT: &str = "https://index.docker.io/v1/";
/// Mirrors of docker.io, as URLs with spaces between them, which are asked first.
const MIRRORS: &str = "HULL_MIRRORS";
/// What is accepted in place of a name.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";
/// Most bytes of a token's answer, and of a message.
const MAX_TOKEN: u64 = 1 << 20;
const MAX_MESSAGE: u64 = 64 << 10;
/// Bytes read at once.
const CHUNK: usize = 256 << 10;
/// How often a download that breaks off goes on without a byte more.
const MAX_BREAKS: u32 = 3;
/// Between two looks whether another hull is done with the same layer.
const PAUSE: Duration = Duration::from_millis(100);

/// Add the image `reference` from its registry, or from a mirror of it.
///
/// # Errors
/// There is none, or it cannot be had.
pub fn pull(
    store: &Store,
    reference: &Reference,
    insecure: bool,
    progress: &mut Progress,
) -> Result<Image, ImageError> {
    if insecure && !reference.is_loopback() {
        return Err(refused(
            reference,
            "--insecure is for registries on this host, as localhost:5000/NAME",
        ));
    }
    let mut last = None;
    for base in bases(reference, insecure) {
        let mut registry = Registry {
            store,
            reference,
            client: Client::new(insecure || base.starts_with("http://")),
            account: account(&base, reference),
            base,
            authorization: None,
        };
        match registry.pull(progress) {
            Err(error @ ImageError::Registry { .. }) => last = Some(error),
            done => return done,
        }
    }
    Err(last.unwrap_or_else(|| refused(reference, "there is no registry to ask")))
}

/// The URLs that may have it, in order.
fn bases(reference: &Reference, insecure: bool) -> Vec<String> {
    let scheme = if insecure { "http" } else { "https" };
    if reference.registry != DOCKER_HUB.0 {
        return vec![format!("{scheme}://{}", reference.registry)];
    }
    let mirrors = std::env::var(MIRRORS).unwrap_or_default();
    let mirrors = mirrors
        .split_whitespace()
        .map(|url| url.trim_end_matches('/').to_string());
    mirrors
        .chain([format!("https://{}", DOCKER_HUB.1)])
        .collect()
}

/// The name of the registry at `base` for credentials. Those for docker.io are not a mirror's.
fn account(base: &str, reference: &Reference) -> String {
    let host = base.split_once("://").map_or(base, |(_, rest)| rest);
    match host.split('/').next().unwrap_or(host) {
        host if host == DOCKER_HUB.1 => reference.registry.clone(),
        host => host.into(),
    }
}

fn refused(reference: &Reference, reason: impl ToString) -> ImageError {
    ImageError::Registry {
        registry: reference.registry.clone(),
        reason: reason.to_string(),
    }
}

/// One registry, asked for one repository.
struct Registry<'a> {
    store: &'a Store,
    reference: &'a Reference,
    client: Client,
    base: String,
    /// The name under which the user's credentials for it are stored.
    account: String,
    /// The header by which it knows the user, once it has asked.
    authorization: Option<String>,
}

/// The answer of a token server.
#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Registry<'_> {
    fn pull(&mut self, progress: &mut Progress) -> Result<Image, ImageError> {
        let version = self.reference.version();
        let top = self.manifest(&version)?;
        if let Some(digest) = &self.reference.digest {
            ImageError::unless_same("the image's manifest", digest, &Digest::of(&top))?;
        }
        let wanted = Wanted {
            name: self.reference.to_string(),
            origin: None,
        };
        let store = self.store;
        add(store, wanted, top, self, progress)
    }

    fn fault(&self, reason: impl ToString) -> ImageError {
        refused(self.reference, reason)
    }

    fn manifest(&mut self, version: &str) -> Result<Vec<u8>, ImageError> {
        let answer = self.get(&format!("manifests/{version}"), &[("accept", MANIFESTS)])?;
        let answer = self.expect(answer, &[200], "the manifest")?;
        body(answer, MAX_DOCUMENT).map_err(|reason| self.fault(format!("the manifest: {reason}")))
    }

    /// GET what belongs to the repository; on 401 with the credentials that the answer asks for.
    fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> Result<Answer, ImageError> {
        let url = format!("{}/v2/{}/{path}", self.base, self.reference.repository);
        let ask = |registry: &Self| {
            let mut all = headers.to_vec();
            if let Some(authorization) = &registry.authorization {
                all.push(("authorization", authorization));
            }
            registry
                .client
                .get(&url, &all)
                .map_err(|reason| registry.fault(reason))
        };
        let answer = ask(self)?;
        if answer.status() != 401 {
            return Ok(answer);
        }
        let challenge = answer.headers().get("www-authenticate");
        let challenge = challenge
            .and_then(|it| it.to_str().ok())
            .unwrap_or_default();
        self.authorization = Some(self.authorize(challenge)?);
        ask(self)
    }

    /// The header that answers a challenge.
    fn authorize(&self, challenge: &str) -> Result<String, ImageError> {
        let (basic, identity) = credentials(&self.account);
        let (scheme, rest) = challenge.split_once(' ').unwrap_or((challenge, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return basic.ok_or_else(|| self.fault(self.no_account()));
        }
        let parameters = parameters(rest);
        let of = |name: &str| {
            let found = parameters.iter().find(|(key, _)| key == name);
            found.map(|(_, value)| value.as_str())
        };
        let realm = of("realm").filter(|_| scheme.eq_ignore_ascii_case("bearer"));
        let realm = realm.ok_or_else(|| self.fault("it wants a log-in that hull does not know"))?;
        // Credentials go to no server without TLS but one on this host, as the client sees to.
        let scope = format!("repository:{}:pull", self.reference.repository);
        let query = [
            ("service", of("service")),
            ("scope", Some(of("scope").unwrap_or(&scope))),
        ];
        let query: Vec<String> = query
            .into_iter()
            .filter_map(|(key, value)| Some(format!("{key}={}", escape(value?))))
            .collect();
        let sign = if realm.contains('?') { '&' } else { '?' };
        let url = format!("{realm}{sign}{}", query.join("&"));
        let header = basic.as_deref().map(|basic| ("authorization", basic));
        let answer = self.client.get(&url, header.as_slice());
        let answer = answer.map_err(|reason| self.fault(format!("its token server: {reason}")))?;
        if matches!(answer.status().as_u16(), 401 | 403) {
            return Err(self.fault(self.no_account()));
        }
        let answer = self.expect(answer, &[200], "a token")?;
        let bytes = body(answer, MAX_TOKEN).map_err(|reason| self.fault(reason))?;
        let token: Token = serde_json::from_slice(&bytes).map_err(|error| self.fault(error))?;
        let token = token.token.or(token.access_token).or(identity);
        let token = token.filter(|it| it.bytes().all(|byte| byte.is_ascii_graphic()));
        let token = token.ok_or_else(|| self.fault("its token server gives no token"))?;
        Ok(format!("Bearer {token}"))
    }

    fn no_account(&self) -> String {
        let registry = &self.account;
        format!(
            "it does not know you, or has no {}; docker login {registry} or podman login {registry} \
             stores an account that hull uses",
            self.reference.repository
        )
    }

    /// The answer, if its status is one of `right`.
    fn expect(&self, answer: Answer, right: &[u16], what: &str) -> Result<Answer, ImageError> {
        let status = answer.status();
        let name = &self.reference;
        Err(self.fault(match status.as_u16() {
            code if right.contains(&code) => return Ok(answer),
            401 | 403 => self.no_account(),
            404 => format!("it has no {name} ({what}); see the name and the tag"),
            429 => "it wants fewer requests (429); try again later, or log in".into(),
            _ => {
                let message = body(answer, MAX_MESSAGE).unwrap_or_default();
                let message = String::from_utf8_lossy(&message);
                let shown = |c: &char| !c.is_control();
                let message: String = message.chars().filter(shown).take(200).collect();
                format!("it answers {status} for {what} {message}")
                    .trim_end()
                    .into()
            }
        }))
    }

    /// Fetch a blob into the store's file for it, from where an earlier download has stopped.
    fn download(
        &mut self,
        wanted: &Descriptor,
        told: &mut dyn FnMut(u64),
    ) -> Result<File, ImageError> {
        let path = self.store.partial(&wanted.digest);
        let mut options = File::options();
        options
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600);
        let mut file = options.open(&path).map_err(ImageError::file(&path))?;
        // Another hull that fetches the same has it; when it is done, all of it is there.
        while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            thread::sleep(PAUSE);
        }
        let mut breaks = 0;
        loop {
            let have = file
                .seek(SeekFrom::End(0))
                .map_err(ImageError::file(&path))?;
            if have > wanted.size {
                file.set_len(0).map_err(ImageError::file(&path))?;
                continue;
            }
            if have == wanted.size {
                file.rewind().map_err(ImageError::file(&path))?;
                return Ok(file);
            }
            let now = self.part(wanted, have, &mut file, told)?;
            breaks = if now > have { 0 } else { breaks + 1 };
            if breaks >= MAX_BREAKS {
                let reason = format!(
                    "it breaks off {} at byte {now} of {}; hull pull goes on from there",
                    wanted.digest, wanted.size
                );
                return Err(self.fault(reason));
            }
        }
    }

    /// Append what comes to `file`, which has `have` bytes; the bytes that it has then.
    fn part(
        &mut self,
        wanted: &Descriptor,
        have: u64,
        file: &mut File,
        told: &mut dyn FnMut(u64),
    ) -> Result<u64, ImageError> {
        let range = format!("bytes={have}-");
        let headers: &[(&str, &str)] = match have {
            0 => &[],
            _ => &[("range", &range)],
        };
        let answer = self.get(&format!("blobs/{}", wanted.digest), headers)?;
        let mut answer = self.expect(answer, &[200, 206], "a layer")?;
        let mut at = have;
        if answer.status() == 200 && have > 0 {
            file.set_len(0).map_err(|error| self.store.full(error))?;
            file.rewind().map_err(|error| self.store.full(error))?;
            at = 0;
        }
        // One byte more than there should be, to notice.
        let mut from = answer.body_mut().as_reader().take(wanted.size - at + 1);
        let mut buffer = vec![0; CHUNK];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => return Ok(at),
                Ok(len) => {
                    at += len as u64;
                    if at > wanted.size {
                        let _ = file.set_len(0);
                        let reason = format!("it has more than the {} bytes told", wanted.size);
                        return Err(document(&format!("layer {}", wanted.digest), reason));
                    }
                    let written = file.write_all(&buffer[..len]);
                    written.map_err(|error| self.store.full(error))?;
                    told(at);
                }
                // It goes on with the next request.
                Err(error) => {
                    log::info!("{}: {error} at byte {at}", wanted.digest);
                    return Ok(at);
                }
            }
        }
    }
}

impl Contents for Registry<'_> {
    fn document(&mut self, wanted: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let digest = wanted.digest.to_string();
        if wanted.media_type.contains("manifest") || wanted.media_type.contains("index") {
            return self.manifest(&digest);
        }
        let answer = self.get(&format!("blobs/{digest}"), &[])?;
        let answer = self.expect(answer, &[200], "the configuration")?;
        body(answer, wanted.size).map_err(|reason| self.fault(reason))
    }

    fn layer(
        &mut self,
        wanted: &Descriptor,
        told: &mut dyn FnMut(u64),
    ) -> Result<Box<dyn Read + '_>, ImageError> {
        let file = self.download(wanted, told)?;
        // What is wrong is fetched anew next time, and what is right is in the store soon.
        let _ = std::fs::remove_file(self.store.partial(&wanted.digest));
        Ok(Box::new(file))
    }
}

/// The user's credentials for a registry, as a header and as a token.
fn credentials(registry: &str) -> (Option<String>, Option<String>) {
    let server = match registry {
        name if name == DOCKER_HUB.0 => DOCKER_HUB_ACCOUNT,
        name => name,
    };
    let found = docker_credential::get_podman_credential(server)
        .or_else(|_| docker_credential::get_credential(server));
    match found {
        Ok(DockerCredential::UsernamePassword(user, password)) => {
            let encoded = STANDARD.encode(format!("{user}:{password}"));
            (Some(format!("Basic {encoded}")), None)
        }
        Ok(DockerCredential::IdentityToken(token)) => (None, Some(token)),
        Err(reason) => {
            log::debug!("no credentials for {registry}: {reason}");
            (None, None)
        }
    }
}

/// `KEY="VALUE",..` of a challenge (RFC 9110, 11.2).
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((key, behind)) = rest.split_once('=') {
        let (value, after) = match behind.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => behind.split_once(',').unwrap_or((behind, "")),
        };
        let key = key.trim_matches([' ', ',']).to_ascii_lowercase();
        found.push((key, value.into()));
        rest = after;
    }
    found
}

/// `text` as a part of a query (RFC 3986, 2.3).
fn escape(text: &str) -> String {
    let one = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' | b'/' => {
            char::from(byte).to_string()
        }
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_has_parameters() {
        let of = |text: &str| {
            let all = parameters(text).into_iter();
            all.map(|(key, value)| format!("{key}={value}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            of(r#"realm="https://a/token",service="r.io", scope="repository:a/b:pull,push""#),
            [
                "realm=https://a/token",
                "service=r.io",
                "scope=repository:a/b:pull,push"
            ]
        );
        assert_eq!(of(r#"realm="https://a"#), ["realm=https://a"]);
        assert_eq!(of("Realm=a,b=c"), ["realm=a", "b=c"]);
        assert!(of("").is_empty() && of(",,,").is_empty());
        assert_eq!(escape("a b/c:é"), "a%20b/c:%C3%A9");
    }

    #[test]
    fn a_mirror_gets_its_own_credentials() {
        let alpine: Reference = "alpine".parse().expect("a name");
        let of = |base: &str| account(base, &alpine);
        assert_eq!(of("https://registry-1.docker.io"), "docker.io");
        assert_eq!(of("https://mirror.lan:5000/hub"), "mirror.lan:5000");
        let local: Reference = "localhost:5000/app".parse().expect("a name");
        assert_eq!(account("http://localhost:5000", &local), "localhost:5000");
    }
}
