//! When a certificate ends.
//!
//! In: DER, or a PEM file. Out: its `notAfter` (RFC 5280, section 4.1.2.5), and nothing else of it: whether it can
//! be used is rustls' to say. What is no certificate has no end.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use rustls_pki_types::{CertificateDer, pem::PemObject};

const INTEGER: u8 = 0x02;
const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// The version, which certificates of version 1 have not.
const VERSION: u8 = 0xa0;

/// When the first certificate of a PEM file ends, since 1970.
pub(crate) fn end_of(file: &Path) -> Option<Duration> {
    let certificate = CertificateDer::from_pem_file(file).ok()?;
    not_after(&certificate)?.duration_since(SystemTime::UNIX_EPOCH).ok()
}

/// When a certificate ends to be valid.
fn not_after(der: &[u8]) -> Option<SystemTime> {
    let (certificate, _) = value(der, SEQUENCE)?;
    let (mut fields, _) = value(certificate, SEQUENCE)?;
    if let Some((_, rest)) = value(fields, VERSION) {
        fields = rest;
    }
    let (_serial, fields) = value(fields, INTEGER)?;
    let (_algorithm, fields) = value(fields, SEQUENCE)?;
    let (_issuer, fields) = value(fields, SEQUENCE)?;
    let (validity, _) = value(fields, SEQUENCE)?;
    let begin = |tag| value(validity, tag).map(|(_, rest)| rest);
    let end = begin(UTC_TIME).or_else(|| begin(GENERALIZED_TIME))?;
    match (value(end, UTC_TIME), value(end, GENERALIZED_TIME)) {
        (Some((text, _)), _) => {
            let text = std::str::from_utf8(text).ok()?;
            // Two digits of a year stand for 1950 to 2049.
            let century = if text.get(..2)? < "50" { "20" } else { "19" };
            time(&format!("{century}{text}"))
        }
        (None, Some((text, _))) => time(std::str::from_utf8(text).ok()?),
        (None, None) => None,
    }
}

/// Reads `YYYYMMDDHHMMSSZ`.
fn time(text: &str) -> Option<SystemTime> {
    let digits = text.strip_suffix('Z').filter(|digits| digits.len() == 14 && digits.is_ascii())?;
    let part = |at: usize, length: usize| digits.get(at..at + length);
    let (year, month, day) = (part(0, 4)?, part(4, 2)?, part(6, 2)?);
    let (hour, minute, second) = (part(8, 2)?, part(10, 2)?, part(12, 2)?);
    humantime::parse_rfc3339(&format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z")).ok()
}

/// The value of the element that `bytes` begin with, if it has this tag, and what is behind it.
fn value(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, rest) = bytes.split_first()?;
    let (first, mut rest) = rest.split_first().filter(|_| *found == tag)?;
    let mut length = usize::from(*first);
    if *first > 0x80 {
        let (more, behind) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if more.len() > 3 {
            return None;
        }
        length = more.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        rest = behind;
    }
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate_until(year: i32) -> Vec<u8> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(vec!["host".into()]).unwrap();
        parameters.not_after = rcgen::date_time_ymd(year, 3, 4);
        parameters.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn a_certificate_ends_when_it_says_in_both_forms_of_a_date() {
        for year in [2031, 2049, 2050, 2100] {
            let end = humantime::parse_rfc3339(&format!("{year}-03-04T00:00:00Z")).unwrap();
            assert_eq!(not_after(&certificate_until(year)), Some(end), "{year}");
        }
        assert!(not_after(&certificate_until(2031)).unwrap() > SystemTime::UNIX_EPOCH);
    }

    #[test]
    fn what_is_cut_or_no_certificate_has_no_end() {
        let whole = certificate_until(2031);
        let end = (0..whole.len()).filter_map(|length| not_after(&whole[..length])).max();
        assert_eq!(end, None, "its outer length is longer than what is there");
        assert_eq!(not_after(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
        assert_eq!(time("20310304000000"), None);
        assert_eq!(
            time("20310304000001Z"),
            time("20310304000000Z").map(|t| t + Duration::from_secs(1))
        );
    }
}
