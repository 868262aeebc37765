//! Fields of an X.509 certificate (RFC 5280 section 4.1), read from its DER form.
//!
//! Guarantees: it accepts certificates of versions 1 to 3. It verifies nothing: no signature, no name and no chain.
//!
//! Must not import: other modules of this crate.

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

const TAG_VERSION: u8 = 0xa0;
const TAG_EXTENSIONS: u8 = 0xa3;
const TAG_BOOLEAN: u8 = 0x01;
const TAG_UTC_TIME: u8 = 0x17;
const TAG_GENERALIZED_TIME: u8 = 0x18;

/// `id-ce-extKeyUsage`, 2.5.29.37.
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
/// `anyExtendedKeyUsage` and `id-kp-serverAuth` (RFC 5280 section 4.2.1.12).
const SERVER_USAGES: [&[u8]; 2] = [&[0x55, 0x1d, 0x25, 0x00], &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01]];

/// What the bridge reads of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Certificate<'a> {
    /// Start of the validity, in seconds since 1970.
    pub(crate) not_before: i64,
    /// End of the validity, in seconds since 1970.
    pub(crate) not_after: i64,
    /// The SubjectPublicKeyInfo in DER.
    pub(crate) public_key: &'a [u8],
    /// Whether a TLS server may use it: it has no extended key usage, or one of `serverAuth` and `any`.
    pub(crate) is_for_servers: bool,
}

impl<'a> Certificate<'a> {
    /// Reads a certificate in DER. Returns `None` for bytes that are not a certificate.
    pub(crate) fn parse(der: &'a [u8]) -> Option<Certificate<'a>> {
        let certificate = element(der)?.content;
        let mut fields = element(certificate)?.content;
        // The version is optional. Serial number, signature algorithm and issuer precede the validity.
        if element(fields)?.tag == TAG_VERSION {
            fields = element(fields)?.rest;
        }
        for _ in 0..3 {
            fields = element(fields)?.rest;
        }
        let validity = element(fields)?;
        let not_before = element(validity.content)?;
        let not_after = element(not_before.rest)?;
        let subject = element(validity.rest)?;
        let after_key = element(subject.rest)?.rest;
        let public_key = &subject.rest[..subject.rest.len() - after_key.len()];
        Some(Certificate {
            not_before: seconds(not_before.tag, not_before.content)?,
            not_after: seconds(not_after.tag, not_after.content)?,
            public_key,
            is_for_servers: is_for_servers(after_key)?,
        })
    }
}

/// Evaluates the extended key usage. `fields` are the fields after the public key: two unique identifiers and the
/// extensions, all optional.
fn is_for_servers(mut fields: &[u8]) -> Option<bool> {
    while !fields.is_empty() {
        let field = element(fields)?;
        fields = field.rest;
        if field.tag != TAG_EXTENSIONS {
            continue;
        }
        let mut extensions = element(field.content)?.content;
        while !extensions.is_empty() {
            let extension = element(extensions)?;
            extensions = extension.rest;
            let id = element(extension.content)?;
            if id.content == EXTENDED_KEY_USAGE {
                let mut value = element(id.rest)?;
                // The flag "critical" is optional.
                if value.tag == TAG_BOOLEAN {
                    value = element(value.rest)?;
                }
                return has_server_usage(element(value.content)?.content);
            }
        }
    }
    Some(true)
}

fn has_server_usage(mut usages: &[u8]) -> Option<bool> {
    while !usages.is_empty() {
        let usage = element(usages)?;
        if SERVER_USAGES.contains(&usage.content) {
            return Some(true);
        }
        usages = usage.rest;
    }
    Some(false)
}

struct Element<'a> {
    tag: u8,
    content: &'a [u8],
    rest: &'a [u8],
}

/// Splits the first DER element off.
fn element(der: &[u8]) -> Option<Element<'_>> {
    let (&tag, rest) = der.split_first()?;
    let (&length, rest) = rest.split_first()?;
    let (length, rest) = if length < 0x80 {
        (usize::from(length), rest)
    } else {
        // The low bits are the number of bytes of the length.
        let (bytes, rest) = rest.split_at_checked(usize::from(length & 0x7f)).filter(|(bytes, _)| bytes.len() <= 4)?;
        (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some(Element { tag, content, rest })
}

/// Parses a `UTCTime` (`YYMMDDHHMMSSZ`) or a `GeneralizedTime` (`YYYYMMDDHHMMSSZ`).
fn seconds(tag: u8, text: &[u8]) -> Option<i64> {
    let digits = text.strip_suffix(b"Z").filter(|digits| digits.iter().all(u8::is_ascii_digit))?;
    let number = |digits: &[u8]| digits.iter().fold(0_i16, |number, digit| number * 10 + i16::from(digit - b'0'));
    let (year, rest) = match (tag, digits.len()) {
        // RFC 5280 section 4.1.2.5.1: 50 to 99 are 1950 to 1999.
        (TAG_UTC_TIME, 12) => (number(&digits[..2]) + if digits[0] < b'5' { 2000 } else { 1900 }, &digits[2..]),
        (TAG_GENERALIZED_TIME, 14) => (number(&digits[..4]), &digits[4..]),
        _ => return None,
    };
    let part = |index: usize| number(&rest[2 * index..][..2]) as i8;
    let time = DateTime::new(year, part(0), part(1), part(2), part(3), part(4), 0).ok()?;
    // The last days of the year 9999 are beyond the range of `Timestamp`.
    Some(TimeZone::UTC.to_timestamp(time).unwrap_or(Timestamp::MAX).as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_after_of_a_generated_certificate_is_read() {
        // rcgen writes years from 2050 on as GeneralizedTime.
        for (year, expected) in [(2031, 1_924_992_000), (2061, 2_871_763_200)] {
            let mut params = rcgen::CertificateParams::new(["bridge.test".to_owned()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            let made = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
            let parsed = Certificate::parse(made.der()).unwrap();
            assert_eq!(parsed.not_after, expected, "year {year}");
            for length in 0..made.der().len() {
                let cut = Certificate::parse(&made.der()[..length]);
                assert_eq!(cut, None, "the certificate is cut after {length} bytes");
            }
        }
    }

    #[test]
    fn both_time_formats_are_parsed_and_invalid_times_are_rejected() {
        let table: [(u8, &[u8], Option<i64>); 7] = [
            (TAG_UTC_TIME, b"700101000001Z", Some(1)),
            (TAG_UTC_TIME, b"491231235959Z", Some(2_524_607_999)),
            (TAG_GENERALIZED_TIME, b"20500101000000Z", Some(2_524_608_000)),
            // "No expiration" (RFC 5280 section 4.1.2.5).
            (TAG_GENERALIZED_TIME, b"99991231235959Z", Some(Timestamp::MAX.as_second())),
            (TAG_UTC_TIME, b"20500101000000Z", None),
            (TAG_UTC_TIME, b"701301000001Z", None),
            (TAG_GENERALIZED_TIME, b"2050010100000xZ", None),
        ];
        for (tag, text, expected) in table {
            assert_eq!(seconds(tag, text), expected, "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn public_key_and_server_usage_are_read() {
        use rcgen::{ExtendedKeyUsagePurpose as Usage, PublicKeyData};
        let key = rcgen::KeyPair::generate().unwrap();
        for (usages, expected) in [
            (vec![], true),
            (vec![Usage::ServerAuth], true),
            (vec![Usage::ClientAuth], false),
            (vec![Usage::ClientAuth, Usage::Any], true),
        ] {
            let mut params = rcgen::CertificateParams::new(["bridge.test".to_owned()]).unwrap();
            params.extended_key_usages = usages.clone();
            let made = params.self_signed(&key).unwrap();
            let parsed = Certificate::parse(made.der()).unwrap();
            assert_eq!(parsed.is_for_servers, expected, "usages {usages:?}");
            assert_eq!(parsed.public_key, key.subject_public_key_info());
        }
    }
}
