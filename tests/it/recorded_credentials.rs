//! Cursors, session cookies and stream tickets of an earlier build stay valid in every later build
//! (docs/protocol.md#versions). The texts below were recorded from the release binary before its modules were renamed.
//! It had a cluster with one Namespace, a keys file with two keys, and a session key.

use std::sync::Arc;

use boilerhouse_bridge::{
    event::{
        Cursor, NamespaceId,
        projection::{EventFormat, EventTypes, Filter, Projection, Scope},
    },
    http::auth::{
        secret::Secret,
        signed_token::{CredentialSubject, SignedToken, TokenPurpose, TokenSigner},
        user::KubernetesUser,
    },
};

const NAMESPACE_UID: &str = "fcefd65f-18e3-5b0c-a92c-c36f49cf6448";
/// The content of the session key file, with its line feed.
const SESSION_KEY: &[u8] = b"a session key that is recorded here!\n";
const ALL_TENANTS_KEY: &str = "recorded-key-of-everybody-0001";
const ALICE_KEY: &str = "recorded-key-of-alice-0000002";

fn projection(tenant: Option<&str>, params: Option<&str>, types: Option<&str>) -> Projection {
    let scope = tenant.map_or(Scope::All, |tenant| Scope::Tenant(tenant.to_owned()));
    let filter = params.map_or_else(Filter::default, |params| Filter::parse(params).unwrap());
    let types = types.map_or_else(
        || EventTypes::all(EventFormat::Full),
        |types| EventTypes::parse(types, EventFormat::Full).unwrap(),
    );
    Projection { scope, filter, types, format: EventFormat::Full }
}

#[test]
fn recorded_cursors_encode_and_decode_unchanged() {
    let filter_all = r#"{"instances":{"phase":"Running","labels":{"team":"x","tier":null}},"claims":{"tenantId":"alice","source":"pool"}}"#;
    let filter_alice = r#"{"instances":{"name":"a","workloadRef":"web","poolStatus":"ready"}}"#;
    let recorded = [
        ("B5KsrDhWr1rFv8IwUAd3sRHtB-0H", projection(None, None, None)),
        ("B5KsrDhWr1rFycfFupFV5VjtB-0H", projection(Some("alice"), None, None)),
        ("B5KsrDhWr1rFbGbxpeQm7T_tB-0H", projection(None, Some(filter_all), None)),
        ("B5KsrDhWr1rFr-zKr6uz2LrtB-0H", projection(Some("alice"), Some(filter_alice), None)),
        ("BZKsrDhWr1rFv8IwUAd3sRHtBwA", projection(None, None, Some("instance"))),
        ("BpKsrDhWr1rFv8IwUAd3sREA7Qc", projection(None, None, Some("claim,tenant"))),
    ];
    for (text, projection) in recorded {
        let decoded = Cursor::decode(text).unwrap_or_else(|| panic!("{text} cannot be decoded"));
        let expected = projection.cursor_at(NamespaceId::from_uid(NAMESPACE_UID), decoded.versions);
        // A resource without a change in this test has the version of its own last change.
        assert_eq!(decoded, expected, "{text}");
        assert_eq!(expected.encode(), text);
    }
}

#[test]
fn recorded_cookies_and_tickets_verify_unchanged() {
    let signer = TokenSigner::from_key(SESSION_KEY).unwrap();
    let key =
        |name: &str, key: &str| CredentialSubject::Key(name.into(), signer.key_id(&Secret::new(key).fingerprint()));
    let user = CredentialSubject::User(Arc::new(KubernetesUser {
        name: "system:serviceaccount:boilerhouse:dash".into(),
        uid: "6f0c".into(),
        groups: vec!["system:authenticated".into()],
        extra: [("authentication.kubernetes.io/pod-name".to_owned(), vec!["dash-0".to_owned()])].into(),
    }));
    let recorded = [
        (
            "bbp1.eyJmb3IiOiJzZXNzaW9uIiwid2hvIjp7ImtleSI6WyJhbGwiLCJSd2ItaWM2bEc3VEwwOFVIQXFiTDcyaWZjY0trcE5Ka2EwTWRNOHdxYmlNIl19LCJob3N0IjoiMTI3LjAuMC4xOjE4MTEyIiwiZXhwIjoxNzk1OTc3OTc2fQ.p1mFgP8LF8CUR_n-LkqJqXEWbpa7qwJD3pDBZ8R40r0",
            TokenPurpose::Session,
            key("all", ALL_TENANTS_KEY),
            "127.0.0.1:18112",
            1795977976,
        ),
        (
            "bbp1.eyJmb3IiOiJ0aWNrZXQiLCJ3aG8iOnsia2V5IjpbImFsaWNlIiwid1VjSkhJaTFVODVuSEtWcWM3RFJraDFiYVFwc2dYeU56RDVQUGlLX0tIUSJdfSwiaG9zdCI6IiIsImV4cCI6MTc5NTkzODM3Nn0.bMmm3hWyKuVhzrFMSlUWfDoPi_ZC9iUT1rNfxCw3JpQ",
            TokenPurpose::Ticket,
            key("alice", ALICE_KEY),
            "",
            1795938376,
        ),
        (
            "bbp1.eyJmb3IiOiJzZXNzaW9uIiwid2hvIjp7InVzZXIiOnsibmFtZSI6InN5c3RlbTpzZXJ2aWNlYWNjb3VudDpib2lsZXJob3VzZTpkYXNoIiwidWlkIjoiNmYwYyIsImdyb3VwcyI6WyJzeXN0ZW06YXV0aGVudGljYXRlZCJdLCJleHRyYSI6eyJhdXRoZW50aWNhdGlvbi5rdWJlcm5ldGVzLmlvL3BvZC1uYW1lIjpbImRhc2gtMCJdfX19LCJob3N0IjoiMTI3LjAuMC4xOjMwMDAiLCJleHAiOjE3OTAwMDAwMDB9.b4tYhra-0q99yNlYfsU-RpD8mCIIu9MwGcMH6xwi7Ic",
            TokenPurpose::Session,
            user.clone(),
            "127.0.0.1:3000",
            1_790_000_000,
        ),
        (
            "bbp1.eyJmb3IiOiJ0aWNrZXQiLCJ3aG8iOnsidXNlciI6eyJuYW1lIjoic3lzdGVtOnNlcnZpY2VhY2NvdW50OmJvaWxlcmhvdXNlOmRhc2giLCJ1aWQiOiI2ZjBjIiwiZ3JvdXBzIjpbInN5c3RlbTphdXRoZW50aWNhdGVkIl0sImV4dHJhIjp7ImF1dGhlbnRpY2F0aW9uLmt1YmVybmV0ZXMuaW8vcG9kLW5hbWUiOlsiZGFzaC0wIl19fX0sImhvc3QiOiIiLCJleHAiOjE3OTAwMDAwMDB9.P0r1DAT5HxXOExQTcF9TPia98beRhc9X9SWqEzKuDSM",
            TokenPurpose::Ticket,
            user,
            "",
            1_790_000_000,
        ),
    ];
    for (text, purpose, holder, host, expires_s) in recorded {
        let expected = SignedToken { purpose, holder, host: host.into(), expires_s };
        assert_eq!(signer.verify(text, purpose), Some(expected.clone()), "{text}");
        assert_eq!(signer.sign(&expected).expose(), text, "expected the same bytes again");
    }
}
