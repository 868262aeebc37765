//! The caller: the identity that budgets and stream slots are counted for.
//!
//! Must not import: any other module of this crate. Authentication and rate limits both need this type.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

/// The identity that a request is counted for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Caller {
    /// An anonymous caller, by its address. Of an IPv6 address the first 64 bits count, because a subscriber gets a /64
    /// prefix.
    Address(IpAddr),
    /// Pages of other sites that make a browser at this address show the bridge. They must not use the budgets of the
    /// user of the browser.
    Navigation(IpAddr),
    /// An API key, by its name.
    Key(Arc<str>),
    /// A tunnel, by the uid of its instance: all posts of its telemetry count together.
    Tunnel(Arc<str>),
    /// A Kubernetes user, by its name.
    User(Arc<str>),
}

impl Caller {
    /// Returns the anonymous caller at an address.
    #[must_use]
    pub fn address(address: IpAddr) -> Caller {
        Caller::Address(subscriber(address))
    }

    /// Returns the caller for pages of other sites in a browser at an address.
    #[must_use]
    pub fn navigation(address: IpAddr) -> Caller {
        Caller::Navigation(subscriber(address))
    }
}

/// Returns the part of an address that counts. An IPv4 address that is mapped to IPv6 is the IPv4 address.
fn subscriber(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_addresses_of_one_64_prefix_are_one_caller() {
        let caller = |text: &str| Caller::address(text.parse().unwrap());
        assert_eq!(caller("2001:db8:0:1::1"), caller("2001:db8:0:1:ffff::2"));
        assert_ne!(caller("2001:db8:0:1::1"), caller("2001:db8:0:2::1"));
    }

    #[test]
    fn mapped_ipv4_addresses_are_ipv4_addresses() {
        let caller = |text: &str| Caller::address(text.parse().unwrap());
        assert_eq!(caller("::ffff:192.0.2.1"), caller("192.0.2.1"));
        assert_ne!(caller("::ffff:192.0.2.1"), caller("::ffff:192.0.2.2"));
    }
}
