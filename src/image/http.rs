//! HTTP as registries need it: bounded, with time limits, and tried again where that is worth it.

use std::io::{self, ErrorKind, Read};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ureq::config::{Config, RedirectAuthHeaders};
use ureq::http::{Response, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Body, Error};

use super::dns;

/// Time to connect, and without a byte.
const CONNECT: Duration = Duration::from_secs(15);
const SILENCE: Duration = Duration::from_secs(30);
/// Redirections that are followed.
const MAX_REDIRECTS: u32 = 5;
/// Tries of a request that fails for now, and the longest wait between two.
const TRIES: u32 = 4;
const MAX_WAIT: u64 = 60;

/// Makes requests.
pub struct Client(Agent);

/// An answer whose status may be that of an error.
pub type Answer = Response<Body>;

impl Client {
    /// A client that knows the authorities of this system; `insecure` ones may speak without TLS.
    pub fn new(insecure: bool) -> Self {
        let config = Agent::config_builder()
            .https_only(!insecure)
            .http_status_as_error(false)
            .max_redirects(MAX_REDIRECTS)
            .max_redirects_will_error(true)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_connect(Some(CONNECT))
            .timeout_per_read(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .user_agent(concat!("hull/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity");
        let config = match insecure {
            true => config,
            false => config.tls_config(tls()),
        };
        let config = config.build();
        Self(Agent::with_parts(config, DefaultConnector::new(), Names))
    }

    /// GET `url`; a server that is busy or fails for now is asked again.
    ///
    /// # Errors
    /// There is no answer, in words for the user.
    pub fn get(&self, url: &str, headers: &[(&str, &str)]) -> Result<Answer, String> {
        for attempt in 1.. {
            let mut request = self.0.get(url);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let wait = match request.call() {
                Ok(answer) => match answer.status().as_u16() {
                    429 | 500..=599 if attempt < TRIES => retry_after(&answer, attempt)?,
                    _ => return Ok(answer),
                },
                Err(error) if attempt < TRIES && is_passing(&error) => 1 << (attempt - 1),
                Err(error) => return Err(words(&error)),
            };
            log::info!("{url}: asked again in {wait} s");
            thread::sleep(Duration::from_secs(wait));
        }
        Err("no answer".into())
    }
}

/// Seconds until the next try: what the server says, or twice as long each time.
fn retry_after(answer: &Answer, attempt: u32) -> Result<u64, String> {
    let told = answer.headers().get("retry-after");
    let told = told.and_then(|it| it.to_str().ok()?.trim().parse::<u64>().ok());
    match told {
        Some(seconds) if seconds > MAX_WAIT => Err(format!(
            "the registry wants no requests for {seconds} seconds ({}); try again then",
            answer.status()
        )),
        told => Ok(told.unwrap_or(1 << (attempt - 1))),
    }
}

fn is_passing(error: &Error) -> bool {
    match error {
        Error::Timeout(_) => true,
        Error::Io(io) => io.kind() != ErrorKind::ConnectionRefused && tls_error(io).is_none(),
        _ => false,
    }
}

/// What TLS finds wrong with the server, which is no better the next time.
fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// An error in words for the user.
fn words(error: &Error) -> String {
    match error {
        Error::HostNotFound => "there is no host of this name".into(),
        Error::Timeout(_) => "it is silent; is it up, and is the network?".into(),
        Error::TooManyRedirects => format!("it redirects more than {MAX_REDIRECTS} times"),
        Error::RequireHttpsOnly(_) => {
            "it wants a connection without TLS, which hull only makes to this host, with --insecure"
                .into()
        }
        Error::Io(io) => match tls_error(io) {
            Some(wrong) => format!(
                "{wrong}; if it is to be trusted, add the certificate of its authority to those of this system, or \
                 name a file that has it in SSL_CERT_FILE"
            ),
            None => error.to_string(),
        },
        error => error.to_string(),
    }
}

/// All of an answer's body, of at most `most` bytes.
///
/// # Errors
/// It is longer, or ends early.
pub fn body(mut answer: Answer, most: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = answer
        .body_mut()
        .as_reader()
        .take(most + 1)
        .read_to_end(&mut bytes);
    read.map_err(|error| error.to_string())?;
    match bytes.len() as u64 > most {
        true => Err(format!("it sends more than {} MiB", most >> 20)),
        false => Ok(bytes),
    }
}

fn tls() -> TlsConfig {
    let found = rustls_native_certs::load_native_certs().certs;
    let certificates = found
        .iter()
        .map(|it| Certificate::from_der(it.as_ref()).to_owned());
    let certificates: Vec<_> = certificates.collect();
    TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(RootCerts::Specific(Arc::new(certificates)))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build()
}

/// Finds addresses without the C library.
#[derive(Debug)]
struct Names;

impl Resolver for Names {
    fn resolve(&self, uri: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let host = uri.host().ok_or(Error::HostNotFound)?;
        let default = if uri.scheme_str() == Some("http") {
            80
        } else {
            443
        };
        let port = uri.port_u16().unwrap_or(default);
        let found = dns::lookup(host).map_err(|_| Error::HostNotFound)?;
        let mut addresses = self.empty();
        for address in found.into_iter().take(16) {
            addresses.push(SocketAddr::new(address, port));
        }
        match addresses.is_empty() {
            true => Err(Error::HostNotFound),
            false => Ok(addresses),
        }
    }
}
