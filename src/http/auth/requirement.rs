//! What an endpoint requires of the caller.

/// What an endpoint asks of whoever comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AccessRequirement {
    /// Nothing, and as often as they like: probes.
    Probe,
    /// Nothing.
    Public,
    /// Nothing, until keys of tenants exist; then a credential that sees everything: stats and metrics.
    Aggregates,
    /// Nothing, until keys of tenants exist or `--ws-auth` asks for it; then a credential.
    BoilerhouseWs,
    /// A credential that may read.
    Read,
    /// One that sees everything, as pools are counted over all tenants.
    ReadAllTenants,
    /// One that may read; a ticket will do.
    Stream,
    /// An API key or a token itself: sessions and tickets are made of those.
    RawCredential,
}
