//! The origin of a request: the peer's address or, behind trusted proxies, the client's, and the host that the client named.
//!
//! Guarantees: pure; `X-Forwarded-*` headers of a peer that is no trusted proxy have no effect.
//!
//! Must not import: any other module of this crate.

use std::{net::IpAddr, str::FromStr};

use http::{HeaderMap, HeaderValue};

/// Bits of the prefix of IPv4 addresses that are mapped to IPv6, `::ffff:0:0/96` (RFC 4291, section 2.5.5.2).
const MAPPED_BITS: u32 = 96;

/// Networks of proxies whose `X-Forwarded-*` headers count (`--trusted-proxies`).
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies(Vec<IpNetwork>);

/// A network in CIDR notation, or a single address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpNetwork {
    address: IpAddr,
    bits: u32,
}

/// The origin of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientInfo {
    /// The address of the client: the peer's, or the one that trusted proxies report.
    pub address: IpAddr,
    /// Whether the request was encrypted, up to the bridge or up to a trusted proxy.
    pub secure: bool,
    /// Whether the peer of the connection has a loopback address.
    pub loopback: bool,
}

impl FromStr for IpNetwork {
    type Err = String;

    /// Parses a network such as `10.0.0.0/8` or `fd00::/8`, or an address such as `192.0.2.7`.
    fn from_str(text: &str) -> Result<IpNetwork, String> {
        let invalid =
            || format!("'{text}' is not a network: expected an address like 10.0.0.7, or with a prefix, 10.0.0.0/8");
        let (address, bits) = match text.split_once('/') {
            None => (text, None),
            Some((address, bits)) => (address, Some(bits.parse().map_err(|_| invalid())?)),
        };
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        let bits = bits.unwrap_or(width(address));
        if bits > width(address) {
            return Err(invalid());
        }
        // A network of IPv4 addresses that are mapped to IPv6, such as `::ffff:10.0.0.0/104`, is the IPv4 network.
        match address.to_canonical() {
            mapped @ IpAddr::V4(_) if address.is_ipv6() && bits >= MAPPED_BITS => {
                Ok(IpNetwork { address: mapped, bits: bits - MAPPED_BITS })
            }
            _ => Ok(IpNetwork { address, bits }),
        }
    }
}

impl IpNetwork {
    fn contains(self, address: IpAddr) -> bool {
        let differ = match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => u128::from(a.to_bits() ^ b.to_bits()),
            (IpAddr::V6(a), IpAddr::V6(b)) => a.to_bits() ^ b.to_bits(),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
        };
        differ.checked_shr(width(address) - self.bits).unwrap_or(0) == 0
    }
}

fn width(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl TrustedProxies {
    /// Trusts the proxies in these networks.
    #[must_use]
    pub fn new(networks: Vec<IpNetwork>) -> TrustedProxies {
        TrustedProxies(networks)
    }

    /// Returns the origin of a request from `peer`. `tls` is whether the connection to the bridge uses TLS.
    #[must_use]
    pub fn client_info(&self, peer: IpAddr, tls: bool, headers: &HeaderMap) -> ClientInfo {
        let peer = peer.to_canonical();
        let is_trusted = self.trusts(peer);
        let address = if is_trusted { self.client(peer, headers) } else { peer };
        let forwarded_https =
            || last_value(headers, "x-forwarded-proto").is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
        ClientInfo { address, secure: tls || (is_trusted && forwarded_https()), loopback: peer.is_loopback() }
    }

    /// Returns the host that the client named, in a request from `peer`: the last value of `X-Forwarded-Host`, which the
    /// nearest proxy added. Values before it may be the client's own. The result can be malformed.
    ///
    /// `None` if the peer is no trusted proxy or sends no such header: then `Host` counts.
    pub(super) fn forwarded_host(&self, peer: IpAddr, headers: &HeaderMap) -> Option<HeaderValue> {
        let last = headers.get_all("x-forwarded-host").into_iter().next_back()?;
        let value = last.as_bytes().rsplit(|byte| *byte == b',').next()?;
        // Every part of a header value is a header value.
        self.trusts(peer.to_canonical()).then(|| HeaderValue::from_bytes(value.trim_ascii()).ok())?
    }

    /// Returns whether this address is one of a trusted proxy.
    #[must_use]
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }

    /// Returns the client's address in `X-Forwarded-For`. Each proxy appends the address of its peer, so the client is the
    /// last entry that is no trusted proxy.
    fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let values: Vec<&str> =
            headers.get_all("x-forwarded-for").into_iter().map(|value| value.to_str().unwrap_or_default()).collect();
        let mut client = peer;
        for entry in values.iter().flat_map(|list| list.split(',')).rev() {
            // An entry that is no address ends the search: the last trusted proxy then counts as the client.
            let Some(address) = address(entry.trim()) else { break };
            client = address;
            if !self.trusts(client) {
                break;
            }
        }
        client
    }
}

/// Parses an address with or without a port.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let with_port = || text.parse::<std::net::SocketAddr>().ok().map(|address| address.ip());
    bare.parse().ok().or_else(with_port).map(|address: IpAddr| address.to_canonical())
}

/// Returns the value that the nearest proxy added.
fn last_value<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let last = headers.get_all(name).into_iter().next_back()?.to_str().ok()?;
    last.rsplit(',').next().map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client_info(peer: &str, headers: &[(&'static str, &str)]) -> (String, bool) {
        let networks = ["10.0.0.0/8", "fd00::/8", "127.0.0.1"].map(|text| text.parse().unwrap());
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let info = TrustedProxies::new(networks.to_vec()).client_info(peer.parse().unwrap(), false, &map);
        (info.address.to_string(), info.secure)
    }

    #[test]
    fn only_trusted_proxies_set_client_address_and_scheme() {
        const FOR: &str = "x-forwarded-for";
        const PROTO: &str = "x-forwarded-proto";
        type Row<'a> = (&'a str, &'a [(&'static str, &'a str)], &'a str, bool);
        let table: &[Row<'_>] = &[
            ("192.0.2.1", &[], "192.0.2.1", false),
            ("192.0.2.1", &[(FOR, "1.2.3.4"), (PROTO, "https")], "192.0.2.1", false),
            ("10.0.0.1", &[(FOR, "1.2.3.4"), (PROTO, "https")], "1.2.3.4", true),
            ("10.0.0.1", &[(FOR, "1.2.3.4"), (PROTO, "http")], "1.2.3.4", false),
            ("10.0.0.1", &[(PROTO, "https, http")], "10.0.0.1", false),
            ("10.0.0.1", &[(PROTO, "http"), (PROTO, "HTTPS")], "10.0.0.1", true),
            ("10.0.0.1", &[(FOR, "6.6.6.6, 1.2.3.4")], "1.2.3.4", false),
            ("10.0.0.1", &[(FOR, "6.6.6.6"), (FOR, "1.2.3.4")], "1.2.3.4", false),
            ("10.0.0.1", &[(FOR, "6.6.6.6, 1.2.3.4, 10.9.9.9")], "1.2.3.4", false),
            ("10.0.0.1", &[(FOR, "10.1.1.1, 10.9.9.9")], "10.1.1.1", false),
            ("10.0.0.1", &[(FOR, "1.2.3.4, unknown")], "10.0.0.1", false),
            ("10.0.0.1", &[(FOR, "unknown, 10.2.2.2")], "10.2.2.2", false),
            ("10.0.0.1", &[(FOR, "")], "10.0.0.1", false),
            ("10.0.0.1", &[(FOR, "1.2.3.4:5678")], "1.2.3.4", false),
            ("10.0.0.1", &[(FOR, "[2001:db8::1]:80")], "2001:db8::1", false),
            ("10.0.0.1", &[(FOR, "2001:db8::1")], "2001:db8::1", false),
            ("fd00::1", &[(FOR, "::ffff:1.2.3.4")], "1.2.3.4", false),
            ("::ffff:10.0.0.1", &[(FOR, "1.2.3.4")], "1.2.3.4", false),
            ("127.0.0.1", &[(FOR, "1.2.3.4")], "1.2.3.4", false),
            ("127.0.0.2", &[(FOR, "1.2.3.4")], "127.0.0.2", false),
            ("::ffff:127.0.0.1", &[(FOR, "::ffff:1.2.3.4"), (PROTO, "https")], "1.2.3.4", true),
            ("11.0.0.1", &[(FOR, "1.2.3.4")], "11.0.0.1", false),
            // Other headers that proxies send have no effect.
            ("10.0.0.1", &[("forwarded", "for=6.6.6.6;proto=https"), ("x-real-ip", "6.6.6.6")], "10.0.0.1", false),
            // The client is in a trusted network itself, so it counts as a proxy and can forge an address.
            ("10.0.0.1", &[(FOR, "6.6.6.6, 10.5.5.5")], "6.6.6.6", false),
        ];
        for (peer, headers, address, secure) in table {
            assert_eq!(
                client_info(peer, headers),
                ((*address).to_owned(), *secure),
                "client address and scheme of a request from {peer} with {headers:?}"
            );
        }
    }

    #[test]
    fn last_forwarded_host_of_a_trusted_proxy_counts() {
        type Row<'a> = (&'a str, &'a [&'a [u8]], Option<&'a [u8]>);
        let table: &[Row<'_>] = &[
            ("10.0.0.1", &[], None),
            ("192.0.2.1", &[b"bridge.example"], None),
            ("10.0.0.1", &[b"bridge.example"], Some(b"bridge.example")),
            ("::ffff:10.0.0.1", &[b" Bridge.Example:8443 "], Some(b"Bridge.Example:8443")),
            ("10.0.0.1", &[b"localhost, bridge.example"], Some(b"bridge.example")),
            ("10.0.0.1", &[b"localhost,a", b"b , bridge.example"], Some(b"bridge.example")),
            // The guard rejects what is no host.
            ("10.0.0.1", &[b""], Some(b"")),
            ("10.0.0.1", &[b"localhost,"], Some(b"")),
            ("10.0.0.1", &[b"localhost", b""], Some(b"")),
            ("10.0.0.1", &[b"localhost, a b"], Some(b"a b")),
            ("10.0.0.1", &[b"localhost, b\xfccher.example"], Some(b"b\xfccher.example")),
        ];
        let proxies = TrustedProxies::new(vec!["10.0.0.0/8".parse().unwrap()]);
        for (peer, values, expected) in table {
            let mut headers = HeaderMap::new();
            for value in *values {
                headers.append("x-forwarded-host", HeaderValue::from_bytes(value).unwrap());
            }
            let host = proxies.forwarded_host(peer.parse().unwrap(), &headers);
            assert_eq!(host.as_ref().map(HeaderValue::as_bytes), *expected, "host from {peer} with {values:?}");
        }
    }

    #[test]
    fn network_parses_cidr_notation() {
        let contains =
            |network: &str, address: &str| network.parse::<IpNetwork>().unwrap().contains(address.parse().unwrap());
        assert!(contains("0.0.0.0/0", "1.2.3.4") && contains("::/0", "::1") && !contains("0.0.0.0/0", "::1"));
        assert!(contains("192.0.2.128/25", "192.0.2.200") && !contains("192.0.2.128/25", "192.0.2.1"));
        assert!(contains("2001:db8::/33", "2001:db8:7fff::") && !contains("2001:db8::/33", "2001:db8:8000::"));
        // Addresses of requests are IPv4 where they are mapped.
        assert!(contains("::ffff:10.0.0.0/104", "10.1.2.3") && !contains("::ffff:10.0.0.0/104", "11.0.0.0"));
        assert!(contains("::ffff:192.0.2.7", "192.0.2.7") && !contains("::ffff:192.0.2.7", "192.0.2.8"));
        assert!(contains("::ffff:0:0/96", "192.0.2.7") && contains("::ffff:0:0/95", "::ffff:0:0"));
        for invalid in ["", "10.0.0.0/33", "10.0.0/8", "::/129", "host", "10.0.0.0/x", "10.0.0.0/-1"] {
            assert!(invalid.parse::<IpNetwork>().is_err(), "expected an error for '{invalid}'");
        }
    }
}
