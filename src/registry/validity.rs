//! From when to when an X.509 certificate is valid (RFC 5280, section 4.1.2.5): the one field that webpki keeps to itself.
//!
//! ```text
//! Certificate ::= SEQUENCE { TBSCertificate ::= SEQUENCE {
//!     [0] version?, serialNumber, signature, issuer, validity ::= SEQUENCE { Time, Time }, ... } ... }
//! ```

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// First and last second of validity, since 1970; a time before that is 0. `None` when `certificate` is not one.
#[must_use]
pub fn of(certificate: &[u8]) -> Option<(u64, u64)> {
    let (certificate, _) = take(certificate, Some(SEQUENCE))?;
    let (mut rest, _) = take(certificate, Some(SEQUENCE))?;
    if rest.first() == Some(&VERSION) {
        rest = take(rest, None)?.1;
    }
    for _ in ["serialNumber", "signature", "issuer"] {
        rest = take(rest, None)?.1;
    }
    let (validity, _) = take(rest, Some(SEQUENCE))?;
    let (first, rest) = time(validity)?;
    let (last, _) = time(rest)?;
    Some((first, last))
}

/// The content of the first element in `der`, which must have the tag, and what comes after it.
fn take(der: &[u8], tag: Option<u8>) -> Option<(&[u8], &[u8])> {
    let (found, rest) = der.split_first()?;
    if tag.is_some_and(|tag| tag != *found) {
        return None;
    }
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`; two digits mean 1950 to 2049.
fn time(der: &[u8]) -> Option<(u64, &[u8])> {
    let (text, rest) = take(der, None)?;
    let text = std::str::from_utf8(text).ok()?;
    let full = match *der.first()? {
        UTC_TIME => format!("{}{text}", if *text.as_bytes().first()? < b'5' { "20" } else { "19" }),
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    let time = jiff::civil::DateTime::strptime("%Y%m%d%H%M%SZ", full).ok()?;
    let seconds = time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second();
    Some((u64::try_from(seconds).unwrap_or(0), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn certificate(times: &[u8]) -> Vec<u8> {
        let element = |tag: u8, content: &[u8]| [&[tag, content.len() as u8], content].concat();
        let validity = element(SEQUENCE, times);
        let head = [element(VERSION, &[2, 1, 2]), element(2, &[1]), element(SEQUENCE, &[]), element(SEQUENCE, &[])];
        element(SEQUENCE, &element(SEQUENCE, &[head.concat(), validity].concat()))
    }

    #[test]
    fn both_forms_of_time_are_read() {
        let times = b"\x17\x0d260101000000Z\x18\x0f20500101000000Z";
        assert_eq!(of(&certificate(times)), Some((1_767_225_600, 2_524_608_000)));
        let times = b"\x17\x0d991231235959Z\x17\x0d490101000000Z";
        assert_eq!(of(&certificate(times)), Some((946_684_799, 2_493_072_000)));
        assert_eq!(of(&certificate(b"\x17\x0d500101000000Z\x17\x0d490101000000Z")).unwrap().0, 0);
        for bad in [&b"\x17\x0d261301000000Z\x17\x0d490101000000Z"[..], b"\x16\x0d260101000000Z", b"", b"\x17\x05260"] {
            assert_eq!(of(&certificate(bad)), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = of(&bytes);
        }

        #[test]
        fn any_damage_is_survived(at in 0_usize..40, byte: u8) {
            let mut bytes = certificate(b"\x17\x0d260101000000Z\x18\x0f20500101000000Z");
            bytes[at] = byte;
            let _ = of(&bytes);
        }
    }
}
