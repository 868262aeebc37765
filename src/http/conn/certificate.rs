//! The expiry of an X.509 certificate (RFC 5280 section 4.1), for a metric. It checks nothing else of the certificate.

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

const TAG_VERSION: u8 = 0xa0;
const TAG_UTC_TIME: u8 = 0x17;
const TAG_GENERALIZED_TIME: u8 = 0x18;

/// Returns `notAfter` of a certificate in DER, in seconds since 1970. Returns `None` for bytes that are not a
/// certificate.
pub(super) fn not_after(der: &[u8]) -> Option<i64> {
    let certificate = element(der)?.content;
    let mut fields = element(certificate)?.content;
    // The version is optional. Serial number, signature algorithm and issuer precede the validity.
    if element(fields)?.tag == TAG_VERSION {
        fields = element(fields)?.rest;
    }
    for _ in 0..3 {
        fields = element(fields)?.rest;
    }
    let validity = element(fields)?.content;
    let not_after = element(element(validity)?.rest)?;
    seconds(not_after.tag, not_after.content)
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
            assert_eq!(not_after(made.der()), Some(expected), "year {year}");
            for length in 0..made.der().len() {
                assert_eq!(not_after(&made.der()[..length]), None, "the certificate is cut after {length} bytes");
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
}
