//! Addresses of the host.

use std::fs;
use std::net::Ipv4Addr;

/// The host's own addresses of IPv4, those of its interfaces, as its routes have them; without loopback's.
pub(super) fn own_addresses() -> Vec<Ipv4Addr> {
    local(&fs::read_to_string("/proc/net/fib_trie").unwrap_or_default())
}

/// The addresses for the host in the table (net/ipv4/fib_trie.c): a line with the address, and one with its kind
/// below.
fn local(text: &str) -> Vec<Ipv4Addr> {
    let (mut found, mut last) = (Vec::new(), None::<Ipv4Addr>);
    for line in text.lines().map(str::trim_start) {
        match line.strip_prefix("|-- ") {
            Some(address) => last = address.parse().ok(),
            None if line.starts_with("/32 host LOCAL") => found.extend(last),
            None => {}
        }
    }
    found.retain(|address: &Ipv4Addr| !address.is_loopback());
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_interfaces_are_found() {
        let text = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n\
                    Local:\n     |-- 10.1.2.0\n        /24 link UNICAST\n     |-- 10.1.2.3\n        /32 host LOCAL\n\
                    \x20    |-- 10.1.2.255\n        /32 link BROADCAST\n     |-- 127.0.0.1\n        /32 host LOCAL\n\
                    \x20    |-- 10.1.2.3\n        /32 host LOCAL\n";
        assert_eq!(local(text), [Ipv4Addr::new(10, 1, 2, 3)]);
        assert!(local("").is_empty());
    }
}
