//! `--gdb` and `--gdb-wait`.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use anyhow::Context;

use super::headings::OUTPUT;
use super::output::say;
use crate::config::Kernel;
use crate::gdb::{Address, MAX_PATH, Server};
use crate::guest;

#[derive(clap::Args)]
#[command(next_help_heading = OUTPUT)]
pub struct Gdb {
    /// Let gdb debug the guest: at a Unix socket (a path), which only this user can open, or at a TCP port
    /// of the loopback, which every user of the host can. Then: gdb vmlinux -ex 'target remote
    /// ./gdb.sock'. Example: --gdb ./gdb.sock
    #[arg(long, value_name = "SOCKET|PORT", value_parser = parse)]
    gdb: Option<Address>,
    /// Run nothing before gdb has connected and continued.
    #[arg(long, requires = "gdb")]
    gdb_wait: bool,
}

impl Gdb {
    /// Listen, if asked to, and print the address if the user has to know it. `kernel` is the user's
    /// own.
    pub fn listen(&self, kernel: &Kernel) -> anyhow::Result<Option<Server>> {
        let Some(address) = &self.gdb else {
            return Ok(None);
        };
        let server = Server::listen(address, self.gdb_wait).context("--gdb")?;
        let any_port = matches!(address, Address::Tcp(at) if at.port() == 0);
        if (self.gdb_wait || any_port)
            && let Some(address) = server.address()
        {
            let kernel = match kernel {
                Kernel::Tiny => "vmlinux".into(),
                Kernel::Full => guest::full()?,
                Kernel::File(path) => path.clone(),
            };
            let kernel = kernel.display();
            let verb = if self.gdb_wait {
                "waits for gdb"
            } else {
                "can be debugged"
            };
            say(&format!(
                "the guest {verb}: gdb {kernel} -ex 'target remote {address}'"
            ));
        }
        if matches!(address, Address::Tcp(_)) {
            say(
                "--gdb: every user of this host can read and change the guest through a port; a socket, as \
                 --gdb ./gdb.sock, is this user's alone",
            );
        }
        Ok(Some(server))
    }
}

/// Parse `PORT`, `HOST:PORT` or a path.
fn parse(text: &str) -> Result<Address, String> {
    let form = "write a port (1234), HOST:PORT, or the path of a socket (./gdb.sock)";
    if text.is_empty() {
        return Err(form.into());
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        let port = text.parse().map_err(|_| "a port is 0 to 65535")?;
        return Ok(Address::Tcp(SocketAddr::from(([127, 0, 0, 1], port))));
    }
    if let Some((host, port)) = text.rsplit_once(':')
        && !text.contains('/')
        && port.bytes().all(|byte| byte.is_ascii_digit())
    {
        let port: u16 = port.parse().map_err(|_| "a port is 0 to 65535")?;
        let host = match host {
            "" => "127.0.0.1",
            host => host.trim_start_matches('[').trim_end_matches(']'),
        };
        let unknown = |error| format!("{host}: {error}");
        let mut found = (host, port).to_socket_addrs().map_err(unknown)?;
        let at = found.next().ok_or("this host has no address")?;
        return match at.ip().is_loopback() {
            true => Ok(Address::Tcp(at)),
            false => Err(format!(
                "{host} can be reached by others, who could then read and change the guest; give a port \
                 of the loopback (1234) or a socket (./gdb.sock), and reach that by ssh -L"
            )),
        };
    }
    // More likely a HOST:PORT with a mistake than the name of a socket.
    if text.starts_with('-') || (text.contains(':') && !text.contains('/')) {
        return Err(form.into());
    }
    match text.len() {
        0..=MAX_PATH => Ok(Address::Unix(PathBuf::from(text))),
        len => Err(format!(
            "the path has {len} bytes and a socket's has at most {MAX_PATH}; choose a shorter one"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gdb_is_found_by_port_host_or_path() {
        for (text, address) in [
            ("1234", ":1234"),
            (":1234", ":1234"),
            ("0", ":0"),
            ("localhost:99", ":99"),
            ("[::1]:99", "[::1]:99"),
            ("./gdb.sock", "./gdb.sock"),
            ("gdb.sock", "gdb.sock"),
            ("/tmp/a:1", "/tmp/a:1"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), address);
        }
        for (bad, part) in [
            ("", "write a port"),
            ("-1", "write a port"),
            ("localhost:gdb", "write a port"),
            ("0.0.0.0:99", "ssh -L"),
            ("[::]:99", "ssh -L"),
            ("192.0.2.1:99", "ssh -L"),
            ("65536", "0 to 65535"),
            (":65536", "0 to 65535"),
            (&"x".repeat(MAX_PATH + 1), "has 108 bytes"),
        ] {
            let refusal = parse(bad).unwrap_err();
            assert!(refusal.contains(part), "{bad}: {refusal}");
        }
    }
}
