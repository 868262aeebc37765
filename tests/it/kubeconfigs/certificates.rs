//! Certificates and keys for kubeconfigs, in PEM.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    PKCS_ECDSA_P256_SHA256, SigningKey,
};

/// The user name of all client certificates.
pub(crate) const CLIENT_USER: &str = "certificate-user";

/// A certificate and its key.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// A certificate authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) certificate: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), certificate }
    }

    /// Issues a server certificate for these names.
    pub(crate) fn server(&self, names: &[&str], is_expired: bool) -> Identity {
        let mut params = server_params(names);
        if is_expired {
            params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        }
        self.issue(&params)
    }

    /// Issues a client certificate of an administrator.
    pub(crate) fn client(&self, is_expired: bool) -> Identity {
        let mut params = client_params();
        if is_expired {
            params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        }
        self.issue(&params)
    }

    /// Issues a client certificate of X.509 version 1, such as those of MicroK8s: a certificate without its version and
    /// extensions.
    pub(crate) fn client_of_version_1(&self) -> Identity {
        let key = KeyPair::generate().unwrap();
        let issued = client_params().signed_by(&key, &self.issuer).unwrap();
        let (to_be_signed, _) = split(split(issued.der()).0);
        let (_version, fields) = split(to_be_signed);
        // Serial number, algorithm, issuer, validity, subject, public key.
        let length: usize = (0..6)
            .scan(fields, |rest, _| {
                let before = rest.len();
                *rest = split(rest).1;
                Some(before - rest.len())
            })
            .sum();
        let to_be_signed = element(0x30, &fields[..length]);
        let (_serial, after_serial) = split(fields);
        let algorithm = &after_serial[..after_serial.len() - split(after_serial).1.len()];
        let signature = self.issuer.key().sign(&to_be_signed).unwrap();
        let signature = element(0x03, &[&[0], signature.as_slice()].concat());
        let certificate = element(0x30, &[&to_be_signed, algorithm, &signature].concat());
        Identity { certificate: pem("CERTIFICATE", &certificate), key: key.serialize_pem() }
    }

    /// Issues a client certificate by an intermediate authority. The text contains both certificates.
    pub(crate) fn client_with_chain(&self) -> Identity {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "intermediate");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let intermediate = params.signed_by(&key, &self.issuer).unwrap().pem();
        let intermediate = Authority { issuer: Issuer::new(params, key), certificate: intermediate };
        let Identity { certificate, key } = intermediate.client(false);
        Identity { certificate: certificate + &intermediate.certificate, key }
    }

    fn issue(&self, params: &CertificateParams) -> Identity {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Identity { certificate, key: key.serialize_pem() }
    }
}

/// Creates a self-signed certificate of an authority that also serves these names.
pub(crate) fn self_signed(names: &[&str]) -> Identity {
    let mut params = server_params(names);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    Identity { certificate: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
}

fn server_params(names: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
    params.distinguished_name.push(DnType::CommonName, names[0]);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
}

fn client_params() -> CertificateParams {
    let mut params = CertificateParams::new([]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:masters");
    params.distinguished_name.push(DnType::CommonName, CLIENT_USER);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// Writes DER as PEM.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let base64 = STANDARD.encode(der);
    let lines: Vec<_> = base64.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// Returns the content of the first DER element, and the bytes after it.
fn split(der: &[u8]) -> (&[u8], &[u8]) {
    let (start, length) = match der[1] {
        short @ 0..0x80 => (2, usize::from(short)),
        long => {
            let count = usize::from(long & 0x7f);
            (2 + count, der[2..2 + count].iter().fold(0, |length, byte| length << 8 | usize::from(*byte)))
        }
    };
    (&der[start..start + length], &der[start + length..])
}

/// Writes a DER element of at most 65,535 bytes.
fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    let head = match content.len() {
        0..0x80 => vec![tag, length[1]],
        0x80..0x100 => vec![tag, 0x81, length[1]],
        _ => vec![tag, 0x82, length[0], length[1]],
    };
    [&head, content].concat()
}
