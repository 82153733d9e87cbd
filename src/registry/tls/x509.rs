//! The fields of an X.509 certificate (RFC 5280) that webpki keeps to itself: what a certificate may be used for, and when.
//!
//! ```text
//! Certificate ::= SEQUENCE { TBSCertificate, signatureAlgorithm, signatureValue }
//! TBSCertificate ::= SEQUENCE {
//!     [0] version?, serialNumber, signature, issuer, validity ::= SEQUENCE { Time, Time }, subject, subjectPublicKeyInfo,
//!     [1] issuerUniqueID?, [2] subjectUniqueID?, [3] extensions? ::= SEQUENCE OF { extnID, critical?, extnValue } }
//! ```
//!
//! Names are left to webpki, which also checks the form of every certificate that is used here.

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;

/// Most extensions of a certificate that are read. Certificates of public authorities have about ten.
const EXTENSIONS_MAX: usize = 64;

/// id-ce-keyUsage, 2.5.29.15.
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 15];
/// id-ce-basicConstraints, 2.5.29.19.
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 19];
/// id-ce-nameConstraints, 2.5.29.30.
const NAME_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 30];
/// id-ce-extKeyUsage, 2.5.29.37.
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 37];
/// anyExtendedKeyUsage, 2.5.29.37.0.
const ANY_USAGE: &[u8] = &[0x55, 0x1d, 37, 0];
/// id-kp-serverAuth, 1.3.6.1.5.5.7.3.1.
const SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
/// rsaEncryption, 1.2.840.113549.1.1.1.
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];

/// Bits of keyUsage, the first bit of the first byte highest: digitalSignature, keyEncipherment and keyAgreement, one of which
/// a TLS server's key needs (OpenSSL `check_purpose_ssl_server`).
const TLS_SERVER_BITS: u8 = 0x80 | 0x20 | 0x08;
/// keyCertSign.
const SIGN_BIT: u8 = 0x04;

/// A certificate's fields.
#[derive(Debug, Clone)]
pub struct Certificate<'a> {
    /// What is signed: the whole TBSCertificate.
    pub(super) signed: &'a [u8],
    /// Contents of the AlgorithmIdentifier of the signature.
    pub(super) signature_algorithm: &'a [u8],
    pub(super) signature: &'a [u8],
    /// Contents of the issuer's name.
    pub(super) issuer: &'a [u8],
    /// Contents of the subject's name.
    pub(super) subject: &'a [u8],
    /// First second of validity, since 1970; 0 for earlier times.
    pub not_before: u64,
    /// Last second of validity, since 1970; 0 for earlier times.
    pub not_after: u64,
    /// Contents of the AlgorithmIdentifier of the public key.
    pub(super) key_algorithm: &'a [u8],
    pub(super) key: &'a [u8],
    /// 1 to 3.
    version: u8,
    /// `cA` and `pathLenConstraint` of basicConstraints.
    basic_constraints: Option<(bool, Option<u64>)>,
    key_usage: Option<u8>,
    /// True if extKeyUsage is missing, or has serverAuth or any.
    serves: bool,
    pub(super) has_name_constraints: bool,
}

impl<'a> Certificate<'a> {
    /// Parses the fields; `None` when `der` is not a certificate.
    #[must_use]
    pub fn parse(der: &'a [u8]) -> Option<Self> {
        let (certificate, _) = take(der, SEQUENCE)?;
        let (fields, after) = take(certificate, SEQUENCE)?;
        let signed = &certificate[..certificate.len() - after.len()];
        let (signature_algorithm, after) = take(after, SEQUENCE)?;
        let (signature, _) = take(after, BIT_STRING)?;
        let (version, rest) = match fields.first()? {
            &VERSION => {
                let (version, rest) = take(fields, VERSION)?;
                (take(version, INTEGER)?.0.first()?.checked_add(1)?, rest)
            }
            _ => (1, fields),
        };
        let (_, rest) = take(rest, INTEGER)?;
        let (_, rest) = take(rest, SEQUENCE)?;
        let (issuer, rest) = take(rest, SEQUENCE)?;
        let (validity, rest) = take(rest, SEQUENCE)?;
        let (not_before, last) = time(validity)?;
        let (not_after, _) = time(last)?;
        let (subject, rest) = take(rest, SEQUENCE)?;
        let (key, rest) = take(rest, SEQUENCE)?;
        let (key_algorithm, key) = take(key, SEQUENCE)?;
        let (key, _) = take(key, BIT_STRING)?;
        let mut certificate = Self {
            signed,
            signature_algorithm,
            signature: signature.strip_prefix(&[0])?,
            issuer,
            subject,
            not_before,
            not_after,
            key_algorithm,
            key: key.strip_prefix(&[0])?,
            version,
            basic_constraints: None,
            key_usage: None,
            serves: true,
            has_name_constraints: false,
        };
        let mut rest = rest;
        while let Some(tag) = rest.first() {
            let (value, after) = take(rest, *tag)?;
            if *tag == EXTENSIONS {
                certificate.read_extensions(take(value, SEQUENCE)?.0)?;
            }
            rest = after;
        }
        Some(certificate)
    }

    fn read_extensions(&mut self, mut list: &[u8]) -> Option<()> {
        let mut count = 0;
        while !list.is_empty() {
            count += 1;
            if count > EXTENSIONS_MAX {
                return None;
            }
            let (extension, rest) = take(list, SEQUENCE)?;
            list = rest;
            let (id, mut value) = take(extension, OID)?;
            if value.first() == Some(&BOOLEAN) {
                value = take(value, BOOLEAN)?.1;
            }
            let (value, _) = take(value, OCTET_STRING)?;
            match id {
                BASIC_CONSTRAINTS => self.basic_constraints = Some(basic_constraints(value)?),
                KEY_USAGE => self.key_usage = Some(*take(value, BIT_STRING)?.0.get(1).unwrap_or(&0)),
                EXTENDED_KEY_USAGE => self.serves = has_server_usage(take(value, SEQUENCE)?.0)?,
                NAME_CONSTRAINTS => self.has_name_constraints = true,
                _ => {}
            }
        }
        Some(())
    }

    /// Returns whether `cA` is true.
    pub(super) fn is_authority(&self) -> bool {
        self.basic_constraints.is_some_and(|(authority, _)| authority)
    }

    /// Returns whether the key may sign other certificates: `cA` is true, or the certificate is older than version 3 and has
    /// no such field; and keyUsage, if any, has keyCertSign (Go `x509.Certificate.CheckSignatureFrom`).
    pub(super) fn may_sign(&self) -> bool {
        let is_old = self.version < 3 && self.basic_constraints.is_none();
        (is_old || self.is_authority()) && self.key_usage.is_none_or(|bits| bits & SIGN_BIT != 0)
    }

    /// Returns whether at most `authorities` further ones may stand between this authority and a server's certificate.
    pub(super) fn allows_path(&self, authorities: u64) -> bool {
        self.basic_constraints.and_then(|(_, most)| most).is_none_or(|most| authorities <= most)
    }

    /// Returns whether the key may be a TLS server's, by keyUsage and extKeyUsage.
    pub(super) fn may_serve(&self) -> bool {
        self.serves && self.key_usage.is_none_or(|bits| bits & TLS_SERVER_BITS != 0)
    }

    /// Returns whether the certificate names itself as its issuer.
    pub(super) fn is_self_issued(&self) -> bool {
        self.issuer == self.subject
    }

    /// Returns whether this is a version that has no extensions, hence no names.
    pub(super) fn has_no_extensions(&self) -> bool {
        self.version < 3
    }

    /// Returns the size of an RSA key in bits.
    pub(super) fn rsa_bits(&self) -> Option<u64> {
        if take(self.key_algorithm, OID)?.0 != RSA {
            return None;
        }
        let (modulus, _) = take(take(self.key, SEQUENCE)?.0, INTEGER)?;
        let modulus = modulus.strip_prefix(&[0]).unwrap_or(modulus);
        Some(modulus.len() as u64 * 8 - u64::from(modulus.first()?.leading_zeros()))
    }
}

/// Returns `cA`, and the path length if there is one.
fn basic_constraints(value: &[u8]) -> Option<(bool, Option<u64>)> {
    let (mut fields, _) = take(value, SEQUENCE)?;
    let mut is_authority = false;
    if fields.first() == Some(&BOOLEAN) {
        let (value, rest) = take(fields, BOOLEAN)?;
        (is_authority, fields) = (value != [0], rest);
    }
    let length = match fields {
        [] => None,
        fields => {
            let (digits, _) = take(fields, INTEGER)?;
            let is_small = digits.len() <= 4 && digits.first().is_some_and(|first| *first < 0x80);
            Some(is_small.then(|| digits.iter().fold(0, |length, digit| length << 8 | u64::from(*digit)))?)
        }
    };
    Some((is_authority, length))
}

fn has_server_usage(mut usages: &[u8]) -> Option<bool> {
    let mut has = false;
    while !usages.is_empty() {
        let (usage, rest) = take(usages, OID)?;
        has |= usage == SERVER_AUTH || usage == ANY_USAGE;
        usages = rest;
    }
    Some(has)
}

/// Returns the contents of the first element in `der`, which must have the tag, and what comes after it.
fn take(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, rest) = der.split_first()?;
    if tag != *found {
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

/// Parses `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`; two digits mean 1950 to 2049.
fn time(der: &[u8]) -> Option<(u64, &[u8])> {
    let tag = *der.first()?;
    let (text, rest) = take(der, tag)?;
    let text = std::str::from_utf8(text).ok()?;
    let full = match tag {
        UTC_TIME => format!("{}{text}", if *text.as_bytes().first()? < b'5' { "20" } else { "19" }),
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    let time = jiff::civil::DateTime::strptime("%Y%m%d%H%M%SZ", full).ok()?;
    let seconds = time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second();
    Some((u64::try_from(seconds).unwrap_or(0), rest))
}

/// Returns the name of a signature algorithm from the contents of its AlgorithmIdentifier: a word that a user knows, or the
/// object identifier in digits.
pub(in super::super) fn algorithm_name(identifier: &[u8]) -> String {
    const NAMES: [(&[u8], &str); 11] = [
        (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 4], "RSA with MD5"),
        (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 5], "RSA with SHA-1"),
        (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 14], "RSA with SHA-224"),
        (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 10], "RSA-PSS with unusual parameters"),
        (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1], "ECDSA with SHA-1"),
        (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 1], "ECDSA with SHA-224"),
        (&[0x2a, 0x86, 0x48, 0xce, 0x38, 4, 3], "DSA with SHA-1"),
        (&[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 3, 2], "DSA with SHA-256"),
        (&[0x2b, 0x65, 0x71], "Ed448"),
        (&[0x2a, 0x81, 0x1c, 0xcf, 0x55, 1, 0x83, 0x75], "SM2 with SM3"),
        (&[0x2b, 0x0e, 3, 2, 29], "RSA with SHA-1"),
    ];
    let Some((oid, _)) = take(identifier, OID) else { return "an unknown algorithm".to_owned() };
    if let Some((_, name)) = NAMES.iter().find(|(known, _)| *known == oid) {
        return (*name).to_owned();
    }
    let mut arcs: Vec<u64> = vec![0];
    for byte in oid.iter().take(32) {
        if let Some(last) = arcs.last_mut() {
            *last = last.wrapping_shl(7) | u64::from(byte & 0x7f);
        }
        if byte & 0x80 == 0 {
            arcs.push(0);
        }
    }
    arcs.pop();
    let first = arcs.first().copied().unwrap_or(0);
    let head = [first.min(80) / 40, first - first.min(80) / 40 * 40];
    let arcs: Vec<String> = head.iter().chain(arcs.iter().skip(1)).map(u64::to_string).collect();
    format!("algorithm {}", arcs.join("."))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn element(tag: u8, content: &[u8]) -> Vec<u8> {
        [&[tag, u8::try_from(content.len()).unwrap()], content].concat()
    }

    /// A version 3 certificate with these times and extensions.
    fn certificate(times: &[u8], extensions: &[u8]) -> Vec<u8> {
        let key = element(SEQUENCE, &[element(SEQUENCE, &element(OID, RSA)), element(BIT_STRING, &[0, 1])].concat());
        let mut fields = vec![
            element(VERSION, &[2, 1, 2]),
            element(INTEGER, &[1]),
            element(SEQUENCE, &[]),
            element(SEQUENCE, &[1]),
            element(SEQUENCE, times),
            element(SEQUENCE, &[2]),
            key,
        ];
        fields.push(element(EXTENSIONS, &element(SEQUENCE, extensions)));
        let whole = [element(SEQUENCE, &fields.concat()), element(SEQUENCE, &[]), element(BIT_STRING, &[0, 7])];
        let whole = whole.concat();
        [&[SEQUENCE, 0x81, u8::try_from(whole.len()).unwrap()], &whole[..]].concat()
    }

    const TIMES: &[u8] = b"\x17\x0d260101000000Z\x18\x0f20500101000000Z";

    #[test]
    fn both_forms_of_time_are_read() {
        let validity = |times: &[u8]| {
            Certificate::parse(&certificate(times, &[])).map(|parsed| (parsed.not_before, parsed.not_after))
        };
        assert_eq!(validity(TIMES), Some((1_767_225_600, 2_524_608_000)));
        let times = b"\x17\x0d991231235959Z\x17\x0d490101000000Z";
        assert_eq!(validity(times), Some((946_684_799, 2_493_072_000)));
        assert_eq!(validity(b"\x17\x0d500101000000Z\x17\x0d490101000000Z").unwrap().0, 0);
        for bad in [&b"\x17\x0d261301000000Z\x17\x0d490101000000Z"[..], b"\x16\x0d260101000000Z", b"", b"\x17\x05260"] {
            assert_eq!(validity(bad), None);
        }
    }

    #[test]
    fn extensions_decide_what_a_key_may_do() {
        let extension = |id: &[u8], value: &[u8]| {
            element(SEQUENCE, &[element(OID, id), element(BOOLEAN, &[0xff]), element(OCTET_STRING, value)].concat())
        };
        let constraints = |content: &[u8]| extension(BASIC_CONSTRAINTS, &element(SEQUENCE, content));
        let usage = |bits: u8| extension(KEY_USAGE, &element(BIT_STRING, &[1, bits]));
        let extended = |id: &[u8]| extension(EXTENDED_KEY_USAGE, &element(SEQUENCE, &element(OID, id)));
        let authority = constraints(&[BOOLEAN, 1, 0xff]);
        for (extensions, may_sign, may_serve) in [
            (vec![], false, true),
            (vec![constraints(&[])], false, true),
            (vec![constraints(&[BOOLEAN, 1, 0])], false, true),
            (vec![authority.clone()], true, true),
            (vec![constraints(&[BOOLEAN, 1, 0xff, INTEGER, 1, 0])], true, true),
            (vec![authority.clone(), usage(0x06)], true, false),
            (vec![authority.clone(), usage(0x80)], false, true),
            (vec![authority.clone(), usage(0xa4)], true, true),
            (vec![authority.clone(), extended(SERVER_AUTH)], true, true),
            (vec![authority.clone(), extended(ANY_USAGE)], true, true),
            (vec![authority, extended(&[0x2b, 6, 1, 5, 5, 7, 3, 2])], true, false),
        ] {
            let der = certificate(TIMES, &extensions.concat());
            let parsed = Certificate::parse(&der).unwrap();
            assert_eq!((parsed.may_sign(), parsed.may_serve()), (may_sign, may_serve), "{extensions:02x?}");
        }
        let der = certificate(TIMES, &constraints(&[BOOLEAN, 1, 0xff, INTEGER, 1, 1]));
        let parsed = Certificate::parse(&der).unwrap();
        assert!(parsed.allows_path(1) && !parsed.allows_path(2));
        let der = certificate(TIMES, &constraints(&[BOOLEAN, 1, 0xff, INTEGER, 1, 0x81]));
        assert!(Certificate::parse(&der).is_none(), "a negative length");
    }

    #[test]
    fn algorithms_have_names() {
        for (oid, name) in [
            (&[0x2b, 0x65, 0x71][..], "Ed448"),
            (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 5], "RSA with SHA-1"),
            (&[0x2a, 0x86, 0x48, 1], "algorithm 1.2.840.1"),
            (&[0x88, 0x37], "algorithm 2.999"),
        ] {
            assert_eq!(algorithm_name(&element(OID, oid)), name);
        }
        assert_eq!(algorithm_name(&[]), "an unknown algorithm");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = (Certificate::parse(&bytes), algorithm_name(&bytes));
        }

        #[test]
        fn any_damage_is_survived(at in 0_usize..110, byte: u8) {
            let mut bytes = certificate(TIMES, &[]);
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = Certificate::parse(&bytes);
        }
    }
}
