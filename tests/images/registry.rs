//! A registry on loopback that gives one image, and fails as it is told to.
#![allow(dead_code)] // each test program uses some of it

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;

use super::layout::Layout;

/// What it answers in place of what was asked for.
#[derive(Clone)]
pub enum Answer {
    /// 401 until the request has the token, which it gives to anybody.
    Token,
    /// This status.
    Status(u16),
    /// This status, and when to come again in seconds.
    Busy(u16, Option<u32>),
    /// These bytes.
    Body(Vec<u8>),
    /// So many bytes, as many as are taken.
    Long(usize),
    /// The right length, and after so many bytes the end of the connection.
    Break(usize),
    /// A byte is another.
    Changed,
    /// The way to itself.
    Redirect,
}

#[derive(Default)]
struct State {
    /// Kind of request and answer, the first of a kind is used up.
    once: Vec<(String, Answer)>,
    always: Vec<(String, Answer)>,
    token: bool,
    /// Requests with their headers, a line each.
    seen: Vec<String>,
}

pub struct Registry {
    port: u16,
    state: Arc<Mutex<State>>,
}

struct Content {
    manifest: Vec<u8>,
    /// By digest: `config` or `layer`, and the bytes.
    blobs: HashMap<String, (&'static str, Vec<u8>)>,
}

impl Registry {
    pub fn start(layout: &Layout) -> Self {
        let manifest = layout.manifest();
        let parsed: Value = serde_json::from_slice(&manifest).expect("JSON");
        let mut blobs = HashMap::new();
        let mut add = |kind, descriptor: &Value| {
            let digest = descriptor["digest"].as_str().expect("a digest");
            blobs.insert(digest.to_string(), (kind, layout.read(digest)));
        };
        add("config", &parsed["config"]);
        for layer in parsed["layers"].as_array().expect("layers") {
            add("layer", layer);
        }
        let content = Content { manifest, blobs };
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = serve(&stream, port, &content, &shared);
            }
        });
        Self { port, state }
    }

    pub fn name(&self, repository: &str) -> String {
        format!("localhost:{}/{repository}", self.port)
    }

    /// Give this answer once to a request for `what`: /v2/ (the token), manifests, config or layer.
    pub fn answer(&self, what: &str, answer: Answer) {
        let mut state = self.state.lock().expect("no panic");
        match answer {
            Answer::Token => state.token = true,
            answer => state.once.push((what.into(), answer)),
        }
    }

    pub fn always(&self, what: &str, answer: Answer) {
        self.state
            .lock()
            .expect("no panic")
            .always
            .push((what.into(), answer));
    }

    pub fn seen(&self) -> Vec<String> {
        self.state.lock().expect("no panic").seen.clone()
    }
}

/// Serve one request; every connection has one.
fn serve(
    stream: &TcpStream,
    port: u16,
    content: &Content,
    state: &Mutex<State>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().unwrap_or(Ok(String::new()))?;
    let mut headers = String::new();
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        headers += &format!("{};", line.to_ascii_lowercase());
    }
    let path = request.split(' ').nth(1).unwrap_or_default();
    let digest = path.rsplit('/').next().unwrap_or_default();
    let (what, bytes) = match content.blobs.get(digest) {
        Some((kind, bytes)) => (*kind, bytes.clone()),
        None if path.contains("/manifests/") => ("manifests", content.manifest.clone()),
        None => ("token", br#"{"token":"secret"}"#.to_vec()),
    };
    let answer = {
        let mut state = state.lock().expect("no panic");
        state.seen.push(format!("{what} {path} {headers}"));
        let wants_token = state.token && what != "token";
        let once = state.once.iter().position(|it| it.0 == what);
        let always = state
            .always
            .iter()
            .find(|it| it.0 == what)
            .map(|it| it.1.clone());
        match once {
            _ if wants_token && !headers.contains("authorization: bearer secret") => {
                Some(Answer::Token)
            }
            Some(once) => Some(state.once.remove(once).1),
            None => always,
        }
    };
    respond(stream, port, &headers, bytes, answer)
}

fn respond(
    mut stream: &TcpStream,
    port: u16,
    headers: &str,
    mut bytes: Vec<u8>,
    answer: Option<Answer>,
) -> std::io::Result<()> {
    let (mut status, mut more, mut sent) = (200, String::new(), usize::MAX);
    match answer {
        None => {}
        Some(Answer::Token) => {
            status = 401;
            more = format!(
                "www-authenticate: Bearer realm=\"http://localhost:{port}/token\",service=\"s\"\r\n"
            );
            bytes.clear();
        }
        Some(Answer::Status(code)) => (status, bytes) = (code, b"{}".to_vec()),
        Some(Answer::Busy(code, seconds)) => {
            (status, bytes) = (code, Vec::new());
            more = seconds.map_or(String::new(), |seconds| {
                format!("retry-after: {seconds}\r\n")
            });
        }
        Some(Answer::Body(body)) => bytes = body,
        Some(Answer::Long(len)) => bytes = vec![b' '; len],
        Some(Answer::Break(len)) => sent = len,
        Some(Answer::Changed) => {
            if let Some(byte) = bytes.get_mut(5) {
                *byte ^= 1;
            }
        }
        Some(Answer::Redirect) => {
            (status, bytes) = (302, Vec::new());
            more = format!("location: http://localhost:{port}/v2/app/manifests/latest\r\n");
        }
    }
    let range = headers
        .split(';')
        .find_map(|it| it.strip_prefix("range: bytes="));
    if let Some(start) = range.and_then(|it| it.trim_end_matches('-').parse::<usize>().ok())
        && status == 200
        && start < bytes.len()
    {
        status = 206;
        bytes.drain(..start);
    }
    let len = bytes.len();
    let head =
        format!("HTTP/1.1 {status} X\r\ncontent-length: {len}\r\nconnection: close\r\n{more}\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(&bytes[..sent.min(len)])
}
