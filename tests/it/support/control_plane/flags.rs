//! The flags of the servers, and the files of users and keys that the flags name.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::json;

use super::{ADMIN_TOKEN, Options, UNPRIVILEGED_TOKEN};

/// Writes the users, the audit policy, and the key pair that signs tokens of service accounts.
pub(crate) fn write_credentials(dir: &Path) {
    let users = format!("{ADMIN_TOKEN},admin,1,\"system:masters\"\n{UNPRIVILEGED_TOKEN},unprivileged,2\n");
    std::fs::write(dir.join("users.csv"), users).unwrap();
    let policy = json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
        "rules": [{"level": "Metadata"}]});
    std::fs::write(dir.join("audit-policy.yaml"), policy.to_string()).unwrap();
    let random = ring::rand::SystemRandom::new();
    let private = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, private.as_ref(), &random).unwrap();
    // RFC 5480: the DER form of a P-256 SubjectPublicKeyInfo is these bytes and then the uncompressed point.
    let mut public =
        b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00"
            .to_vec();
    public.extend_from_slice(pair.public_key().as_ref());
    std::fs::write(dir.join("service-account.key"), pem("PRIVATE KEY", private.as_ref())).unwrap();
    std::fs::write(dir.join("service-account.pub"), pem("PUBLIC KEY", &public)).unwrap();
}

/// Signs with the private key of that pair, in the form of JWS (RFC 7518, section 3.4).
pub(crate) fn sign(dir: &Path, bytes: &[u8]) -> Vec<u8> {
    let pem = std::fs::read_to_string(dir.join("service-account.key")).unwrap();
    let der: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let random = ring::rand::SystemRandom::new();
    let der = BASE64.decode(der).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der, &random).unwrap();
    pair.sign(&random, bytes).unwrap().as_ref().to_vec()
}

fn pem(label: &str, der: &[u8]) -> String {
    let base64 = BASE64.encode(der);
    let lines: Vec<_> = base64.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

pub(crate) fn etcd_flags(dir: &Path, port: u16, peer_port: u16) -> Vec<String> {
    let peer = format!("http://127.0.0.1:{peer_port}");
    let client = format!("http://127.0.0.1:{port}");
    vec![
        format!("--data-dir={}", dir.join("etcd").display()),
        "--name=test".into(),
        format!("--initial-cluster=test={peer}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        "--unsafe-no-fsync".into(),
    ]
}

pub(crate) fn api_server_flags(dir: &Path, etcd_port: u16, port: u16, options: &Options) -> Vec<String> {
    let file = |name: &str| dir.join(name).display().to_string();
    let mut flags = vec![
        format!("--etcd-servers=http://127.0.0.1:{etcd_port}"),
        "--bind-address=127.0.0.1".into(),
        format!("--secure-port={port}"),
        format!("--cert-dir={}", file("certificates")),
        // Without the flag, the server takes the address from a network interface, which a test machine may not have.
        "--advertise-address=10.0.0.1".into(),
        "--service-cluster-ip-range=10.0.0.0/24".into(),
        format!("--token-auth-file={}", file("users.csv")),
        "--authorization-mode=RBAC".into(),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-signing-key-file={}", file("service-account.key")),
        format!("--service-account-key-file={}", file("service-account.pub")),
        // This plugin rejects Pods whose service account does not exist. No controller creates one here.
        "--disable-admission-plugins=ServiceAccount".into(),
    ];
    if let Some(interval) = options.compaction {
        flags.push(format!("--etcd-compaction-interval={}s", interval.as_secs()));
    }
    if options.audit {
        flags.push(format!("--audit-log-path={}", file("audit.log")));
        flags.push(format!("--audit-policy-file={}", file("audit-policy.yaml")));
    }
    flags.extend(options.api_server_flags.iter().cloned());
    flags
}
