//! The credential that an endpoint requires (docs/protocol.md#access, "Endpoints without a credential").
//!
//! Must not import: any other module of this crate.

/// The credential that an endpoint requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AccessRequirement {
    /// None, and no rate limit applies: probes.
    Probe,
    /// None.
    Public,
    /// For stats and metrics: none, until a tenant key exists or `CORS_ORIGIN` is `*`. Then a credential for all
    /// tenants.
    Aggregates,
    /// For `/ws`: none, until a tenant key exists, `CORS_ORIGIN` is `*` or `--ws-auth required` is set. Then a
    /// credential.
    BoilerhouseWs,
    /// A credential with the right to read.
    Read,
    /// A credential with the right to read all tenants, because pools count the instances of all tenants.
    ReadAllTenants,
    /// A credential with the right to read, or a stream ticket.
    Stream,
    /// As `Stream`, for all tenants: a relay cannot separate the events of tenants.
    StreamAllTenants,
    /// As `Read`, with the budget of telemetry reads instead of that of requests.
    ReadTelemetry,
    /// An API key with the permission to ingest. The endpoint counts the request.
    Ingest,
    /// An API key or a Kubernetes token, from which session cookies and stream tickets are created.
    RawCredential,
}
