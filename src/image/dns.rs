//! Addresses of names: /etc/hosts, then the name servers of /etc/resolv.conf (RFC 1035).
//!
//! hull is linked statically, and the C library's resolver needs its shared modules.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

/// Time for one answer, and how often a question is asked.
const TIMEOUT: Duration = Duration::from_secs(3);
const ATTEMPTS: usize = 2;
/// Name servers and search domains that are used, as resolv.conf(5) has it.
const MAX_SERVERS: usize = 3;
const MAX_DOMAINS: usize = 6;
/// Most bytes of a file, and of an answer.
const MAX_FILE: u64 = 1 << 20;
const MAX_ANSWER: usize = 64 << 10;
const PORT: u16 = 53;

const A: u16 = 1;
const AAAA: u16 = 28;
const INTERNET: u16 = 1;
/// Bits of a message's flags: an answer, cut short, recursion wanted; and the mask of its result.
const ANSWER: u16 = 0x8000;
const CUT: u16 = 0x0200;
const RECURSION: u16 = 0x0100;
const RESULT: u16 = 0x000f;
/// The result for a name that does not exist.
const NO_SUCH_NAME: u16 = 3;

/// The addresses of `host`: a name or an address.
///
/// # Errors
/// There are none, or no name server answers.
pub fn lookup(host: &str) -> io::Result<Vec<IpAddr>> {
    if let Ok(address) = host.trim_matches(['[', ']']).parse() {
        return Ok(vec![address]);
    }
    let found = in_hosts(&read("/etc/hosts"), host);
    if !found.is_empty() {
        return Ok(found);
    }
    if host == "localhost" || host.ends_with(".localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let (servers, domains) = settings(&read("/etc/resolv.conf"));
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    // A name without a dot is one of a search domain first.
    let mut names: Vec<String> = match host.contains('.') {
        true => Vec::new(),
        false => domains
            .iter()
            .map(|domain| format!("{host}.{domain}"))
            .collect(),
    };
    names.push(host.into());
    for name in names {
        match ask_all(&servers, name.trim_end_matches('.')) {
            Ok(found) if !found.is_empty() => return Ok(found),
            Ok(_) => {}
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn read(path: &str) -> String {
    let mut text = Vec::new();
    let file = fs::File::open(path);
    let _ = file.and_then(|file| file.take(MAX_FILE).read_to_end(&mut text));
    String::from_utf8_lossy(&text).into_owned()
}

fn in_hosts(text: &str, host: &str) -> Vec<IpAddr> {
    let of_line = |line: &str| {
        let mut words = line.split('#').next()?.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words
            .any(|name| name.eq_ignore_ascii_case(host))
            .then_some(address)
    };
    text.lines().filter_map(of_line).collect()
}

/// Name servers and search domains.
fn settings(text: &str) -> (Vec<IpAddr>, Vec<String>) {
    let (mut servers, mut domains) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                servers.extend(words.next().and_then(|it| it.parse::<IpAddr>().ok()));
            }
            Some("search" | "domain") => domains = words.map(String::from).collect(),
            _ => {}
        }
    }
    servers.truncate(MAX_SERVERS);
    domains.truncate(MAX_DOMAINS);
    if servers.is_empty() {
        servers.push(Ipv4Addr::LOCALHOST.into());
    }
    (servers, domains)
}

fn ask_all(servers: &[IpAddr], name: &str) -> io::Result<Vec<IpAddr>> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for server in servers.iter().cycle().take(servers.len() * ATTEMPTS) {
        let server = SocketAddr::new(*server, PORT);
        let both = ask(server, name, A).map(|mut found| {
            // Its addresses of the other kind are as good as none if they are not to be had.
            found.extend(ask(server, name, AAAA).unwrap_or_default());
            found
        });
        match both {
            Ok(found) => return Ok(found),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn ask(server: SocketAddr, name: &str, kind: u16) -> io::Result<Vec<IpAddr>> {
    let mut id = [0; 2];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
    let question = question(id, name, kind)?;
    let any: IpAddr = match server.is_ipv4() {
        true => Ipv4Addr::UNSPECIFIED.into(),
        false => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.send(&question)?;
    let mut bytes = vec![0; MAX_ANSWER];
    let len = socket.recv(&mut bytes)?;
    bytes.truncate(len);
    match answers(&bytes, id, kind) {
        Some(Reply::Cut) => answers_by_tcp(server, &question, id, kind),
        Some(Reply::Addresses(found)) => Ok(found),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn answers_by_tcp(
    server: SocketAddr,
    question: &[u8],
    id: [u8; 2],
    kind: u16,
) -> io::Result<Vec<IpAddr>> {
    let mut stream = TcpStream::connect_timeout(&server, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(&(question.len() as u16).to_be_bytes())?;
    stream.write_all(question)?;
    let mut len = [0; 2];
    stream.read_exact(&mut len)?;
    let mut bytes = vec![0; u16::from_be_bytes(len).into()];
    stream.read_exact(&mut bytes)?;
    match answers(&bytes, id, kind) {
        Some(Reply::Addresses(found)) => Ok(found),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// One question (RFC 1035, 4.1).
fn question(id: [u8; 2], name: &str, kind: u16) -> io::Result<Vec<u8>> {
    let mut bytes = id.to_vec();
    bytes.extend(RECURSION.to_be_bytes());
    bytes.extend([0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        let len = u8::try_from(label.len())
            .ok()
            .filter(|len| (1..64).contains(len));
        bytes.push(len.ok_or(io::ErrorKind::InvalidInput)?);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend(kind.to_be_bytes());
    bytes.extend(INTERNET.to_be_bytes());
    Ok(bytes)
}

#[derive(Debug, PartialEq)]
enum Reply {
    Addresses(Vec<IpAddr>),
    /// It has to be asked for by TCP.
    Cut,
}

/// What an answer says; `None` if it is none, or the server failed.
fn answers(bytes: &[u8], id: [u8; 2], kind: u16) -> Option<Reply> {
    let word = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    let flags = word(2)?;
    if bytes.get(..2)? != id || flags & ANSWER == 0 {
        return None;
    }
    match flags & RESULT {
        0 if flags & CUT != 0 => return Some(Reply::Cut),
        0 => {}
        NO_SUCH_NAME => return Some(Reply::Addresses(Vec::new())),
        _ => return None,
    }
    let mut at = 12;
    for _ in 0..word(4)? {
        at = behind_name(bytes, at)? + 4;
    }
    let mut found = Vec::new();
    // All records of the kind: those behind aliases belong to the name, too.
    for _ in 0..word(6)? {
        at = behind_name(bytes, at)?;
        let len = usize::from(word(at + 8)?);
        let data = bytes.get(at + 10..at + 10 + len)?;
        if word(at)? == kind {
            let four = <[u8; 4]>::try_from(data).map(IpAddr::from).ok();
            let sixteen = || <[u8; 16]>::try_from(data).map(IpAddr::from).ok();
            found.extend(four.or_else(sixteen));
        }
        at += 10 + len;
    }
    Some(Reply::Addresses(found))
}

/// The byte behind a name, which may end in a pointer.
fn behind_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            0xc0.. => return Some(at + 2),
            len => at += 1 + usize::from(len),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn files_say_what_they_say() {
        let hosts = "127.0.0.1 localhost # x\n10.0.0.5\tDb db.lan\n::1 db\nnonsense\n";
        let found = in_hosts(hosts, "db");
        assert_eq!(
            found,
            [
                "10.0.0.5".parse::<IpAddr>().unwrap(),
                "::1".parse().unwrap()
            ]
        );
        assert!(in_hosts(hosts, "x").is_empty());
        let (servers, domains) = settings("search a.b c\nnameserver 9.9.9.9\nnameserver x\n");
        assert_eq!(servers, ["9.9.9.9".parse::<IpAddr>().unwrap()]);
        assert_eq!(domains, ["a.b", "c"]);
        assert_eq!(lookup("[::1]").unwrap(), ["::1".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn an_answer_has_the_addresses_behind_its_aliases() {
        let mut bytes = question([1, 2], "a.example", A).unwrap();
        bytes[2] |= 0x80;
        bytes[7] = 2;
        // An alias, then the address of what it names.
        bytes.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 2, 0xc0, 14]);
        bytes.extend([0xc0, 14, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 7]);
        let right = Reply::Addresses(vec!["192.0.2.7".parse().unwrap()]);
        assert_eq!(answers(&bytes, [1, 2], A), Some(right));
        assert_eq!(answers(&bytes, [1, 3], A), None, "of another question");
        bytes[3] = 3;
        assert_eq!(answers(&bytes, [1, 2], A), Some(Reply::Addresses(vec![])));
        bytes[2] |= 2;
        bytes[3] = 0;
        assert_eq!(answers(&bytes, [1, 2], A), Some(Reply::Cut));
        assert!(question([0; 2], "a..b", A).is_err());
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = answers(&bytes, [bytes.first().copied().unwrap_or(0), bytes.get(1).copied().unwrap_or(0)], A);
        }
    }
}
