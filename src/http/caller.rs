//! The caller: the identity that budgets and stream slots are counted for.
//!
//! Must not import: any other module of this crate. Authentication and rate limits both need this type.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

/// Whose budget it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Caller {
    /// Nobody in particular, from this address. Of IPv6 the first 64 bits, which is what one subscriber has.
    Address(IpAddr),
    /// An API key, by its name.
    Key(Arc<str>),
    /// A Kubernetes user, by its name.
    User(Arc<str>),
}

impl Caller {
    /// Whoever asks from there.
    #[must_use]
    pub fn address(address: IpAddr) -> Caller {
        Caller::Address(match address {
            IpAddr::V4(_) => address,
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_addresses_of_one_64_prefix_are_one_caller() {
        let one = |text: &str| Caller::address(text.parse().unwrap());
        assert_eq!(one("2001:db8:0:1::1"), one("2001:db8:0:1:ffff::2"));
        assert_ne!(one("2001:db8:0:1::1"), one("2001:db8:0:2::1"));
    }
}
