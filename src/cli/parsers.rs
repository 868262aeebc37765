//! Value parsers of flags. An error says what is accepted, in the same words for all flags.

use std::{net::Ipv6Addr, ops::RangeInclusive, str::FromStr, time::Duration};

use tracing::Level;

/// Ports to listen on; 0 takes a free port.
pub(super) const PORTS: RangeInclusive<u64> = 0..=u16::MAX as u64;
/// Rate limits per minute. 0 would reject every request; the upper bound is that of the type.
pub(super) const RATES: RangeInclusive<u64> = 1..=u32::MAX as u64;
/// Values of `--heartbeat` in seconds. Proxies end a connection that is silent for 60 s by default.
pub(super) const HEARTBEATS: RangeInclusive<u64> = 5..=60;
/// Values of `--response-memory` in MiB: up to 64 GiB.
pub(super) const RESPONSE_MEMORY: RangeInclusive<u64> = 1..=65_536;
/// Values of `--history`.
pub(super) const HISTORY_EVENTS: RangeInclusive<u64> = 1..=10_000_000;
/// Values of `--history-memory` in MiB: up to 64 GiB.
pub(super) const HISTORY_MEMORY: RangeInclusive<u64> = 1..=65_536;
/// Maximum of `--max-connections`. Linux lets a process open 1,048,576 files (`fs.nr_open`), and each stream is one file.
pub(super) const MAX_CONNECTIONS: u64 = 1_000_000;
/// Maximum length of a DNS label, in characters (RFC 1123, section 2.1, which refers to RFC 1035).
const MAX_DNS_LABEL: usize = 63;

/// Values separated by commas. Empty elements are skipped, so that a list may be empty.
#[derive(Clone, Debug, Default)]
pub(super) struct List<T>(pub(super) Vec<T>);

impl<T: FromStr> FromStr for List<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<List<T>, T::Err> {
        let elements = text.split(',').map(str::trim).filter(|element| !element.is_empty());
        elements.map(str::parse).collect::<Result<_, _>>().map(List)
    }
}

/// Joins the lists of a flag that was given several times.
pub(super) fn flatten_lists<T>(lists: Vec<List<T>>) -> Vec<T> {
    lists.into_iter().flat_map(|List(elements)| elements).collect()
}

/// Returns a parser of integers in a range.
pub(super) fn integer_in<T: FromStr>(range: RangeInclusive<u64>) -> impl Fn(&str) -> Result<T, String> + Clone {
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        let number = number.and_then(|number: u64| number.to_string().parse().ok());
        number.ok_or_else(|| format!("expected a whole number from {} to {}", range.start(), range.end()))
    }
}

/// Parses an address to listen on: `host:port`, with an IPv6 address in brackets. Port 0 takes a free port.
pub(super) fn host_port(text: &str) -> Result<(String, u16), String> {
    let split = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let (host, port) = split.unwrap_or_default();
    let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let is_host = !host.is_empty() && !host.contains([':', '[', ']', '/']);
    match address {
        Some(address) if address.parse::<Ipv6Addr>().is_ok() => Ok((address.to_owned(), port)),
        None if is_host => Ok((host.to_owned(), port)),
        _ => Err("expected a host and a port, such as 127.0.0.1:9090, 0.0.0.0:9090 or [::]:9090".to_owned()),
    }
}

/// Parses the name of a namespace: a DNS label, as Kubernetes requires it (RFC 1123).
pub(super) fn namespace(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let inside = text.chars().all(|c| plain(c) || c == '-');
    if inside && text.starts_with(plain) && text.ends_with(plain) && text.len() <= MAX_DNS_LABEL {
        return Ok(text.to_owned());
    }
    Err(format!(
        "expected the name of a namespace: at most {MAX_DNS_LABEL} lower case letters, digits and '-'; '-' may not be the first \
         or last character"
    ))
}

/// Parses the address to listen on: an IP address or a name. The brackets that an IPv6 address has in a URL are removed.
pub(super) fn listen_host(text: &str) -> Result<String, String> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if let Some(address) = bare.filter(|bare| bare.contains(':')) {
        return Ok(address.to_owned());
    }
    let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
    let has_port = port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']'));
    if text.contains("://") || has_port {
        return Err("expected an address or a name without scheme and port; set the port with --port".to_owned());
    }
    Ok(text.to_owned())
}

/// Parses a log level.
pub(super) fn log_level(text: &str) -> Result<Level, String> {
    text.parse().map_err(|_| "expected error, warn, info, debug or trace".to_owned())
}

/// Parses a time: seconds, or a number with `s`, `m` or `h`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) => (number, &text[number.len()..]),
        None => (text, "s"),
    };
    let seconds = match unit {
        "m" => 60.0,
        "h" => 3600.0,
        _ => 1.0,
    };
    let number = number.parse().ok().filter(|number: &f64| number.is_finite() && *number > 0.0);
    let duration = number.and_then(|number| Duration::try_from_secs_f64(number * seconds).ok());
    duration
        .filter(|duration| duration.as_secs() < 1 << 32)
        .ok_or_else(|| "accepted: a time such as 3, 3s, 2m or 1h".to_owned())
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn integer_parser_accepts_only_its_range() {
        let port = integer_in::<u16>(0..=65535);
        assert_eq!([port("0"), port("65535")], [Ok(0), Ok(65535)]);
        for bad in ["", "65536", "-1", "1.5", "99999999999999999999999", "x", " 1"] {
            assert_eq!(port(bad), Err("expected a whole number from 0 to 65535".to_owned()), "{bad:?}");
        }
        let rate = integer_in::<NonZeroU32>(1..=9);
        assert_eq!(rate("9"), Ok(NonZeroU32::new(9).unwrap()));
        assert_eq!(rate("0"), Err("expected a whole number from 1 to 9".to_owned()));
    }

    #[test]
    fn namespace_must_be_a_dns_label() {
        for good in ["a", "0", "boilerhouse", "a-b", "a--b", &"x".repeat(63)] {
            assert_eq!(namespace(good).as_deref(), Ok(good));
        }
        for bad in ["", "Bad Name/x", "-a", "a-", "a.b", "A", "a_b", "ä", "a\n", "..", &"x".repeat(64)] {
            assert!(namespace(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn host_port_accepts_names_and_addresses() {
        for (text, host, port) in [
            ("127.0.0.1:9090", "127.0.0.1", 9090),
            ("0.0.0.0:0", "0.0.0.0", 0),
            ("localhost:80", "localhost", 80),
            ("[::]:9090", "::", 9090),
            ("[fe80::1]:1", "fe80::1", 1),
        ] {
            assert_eq!(host_port(text), Ok((host.to_owned(), port)), "{text}");
        }
        for bad in
            ["", "9090", ":9090", "localhost", "localhost:", "localhost:65536", "::1:9090", "[::1]", "[x]:1", "a/b:1"]
        {
            assert!(host_port(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn listen_host_has_no_brackets_and_no_port() {
        for (text, host) in [
            ("[::1]", "::1"),
            ("::1", "::1"),
            ("[::]", "::"),
            ("[fe80::1%eth0]", "fe80::1%eth0"),
            ("::ffff:127.0.0.1", "::ffff:127.0.0.1"),
            ("127.0.0.1", "127.0.0.1"),
            ("localhost", "localhost"),
            ("[localhost]", "[localhost]"),
            ("", ""),
        ] {
            assert_eq!(listen_host(text).as_deref(), Ok(host), "{text}");
        }
        for wrong in
            ["127.0.0.1:3000", "localhost:3000", "[::1]:3000", ":3000", "http://localhost", "http://[::1]:3000"]
        {
            assert!(listen_host(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn list_parser_skips_empty_elements() {
        let list = |text: &str| text.parse::<List<u8>>().map(|List(list)| list).ok();
        assert_eq!(list(""), Some(vec![]));
        assert_eq!(list(" , 1,,2 ,"), Some(vec![1, 2]));
        assert_eq!(list("1,x"), None);
    }

    #[test]
    fn times_have_a_unit_and_are_positive() {
        let seconds = |text: &str| duration(text).map(|duration| duration.as_secs_f64());
        assert_eq!(
            [seconds("3"), seconds("3s"), seconds("2m"), seconds("0.5")],
            [Ok(3.0), Ok(3.0), Ok(120.0), Ok(0.5)]
        );
        for text in ["", "0", "-1", "x", "3d", "inf", "1e300"] {
            duration(text).unwrap_err();
        }
    }
}
