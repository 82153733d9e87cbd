//! Which certificate a server may present: the rules of Go's `crypto/x509`, by which skopeo and podman decide.
//!
//! ```text
//!  presented certificate ─┬─ is itself trusted, byte for byte ──▶ name, time, usage
//!                         ├─ cA: issued by a trusted authority ─▶ name, time, usage, path   (here)
//!                         └─ any other ─────────────────────────▶ name, time, usage, path   (webpki)
//! ```
//!
//! webpki refuses a server certificate with `cA`, and has no certificates that are trusted as they are. Both are usual for
//! registries in a company: `openssl req -x509` makes a self-signed certificate with `cA`, which is then put among the system's
//! authorities or into certs.d as `ca.crt`, as Docker's documentation advises.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::x509::Certificate;

/// Most authorities between a server's certificate and a trusted one (webpki `MAX_SUB_CA_COUNT`).
const PATH_MAX: u64 = 6;

/// Most signatures that are verified for one certificate with `cA` (webpki and Go have the same limit for a path).
const SIGNATURES_MAX: u32 = 100;

/// Smallest RSA key that ring verifies with, in bits.
const RSA_BITS_MIN: u64 = 2048;

/// Certificates that are trusted.
#[derive(Debug, Clone)]
pub(super) struct Store {
    roots: RootCertStore,
    /// Certificates that may sign others.
    authorities: Vec<CertificateDer<'static>>,
    /// Other certificates: a server may present one of them itself.
    leaves: Vec<CertificateDer<'static>>,
    /// Certificates that would be authorities at another time.
    out_of_time: Vec<CertificateDer<'static>>,
}

impl Store {
    fn new() -> Self {
        Self { roots: RootCertStore::empty(), authorities: Vec::new(), leaves: Vec::new(), out_of_time: Vec::new() }
    }

    /// Adds certificates, each as what it may be at `now`. Those that cannot be parsed are left out, as Go leaves them out.
    pub(super) fn add(&mut self, certificates: impl IntoIterator<Item = CertificateDer<'static>>, now: UnixTime) {
        for der in certificates {
            let Some(certificate) = Certificate::parse(&der) else { continue };
            let is_valid = (certificate.not_before..=certificate.not_after).contains(&now.as_secs());
            match (certificate.may_sign(), is_valid) {
                (false, _) => self.leaves.push(der),
                (true, false) => self.out_of_time.push(der),
                (true, true) => {
                    if self.roots.add(der.clone()).is_ok() {
                        self.authorities.push(der);
                    }
                }
            }
        }
    }

    fn holds(&self, der: &CertificateDer<'_>) -> bool {
        [&self.authorities, &self.leaves, &self.out_of_time].into_iter().flatten().any(|known| known == der)
    }
}

/// Returns the system's certificates: `$SSL_CERT_FILE` and `$SSL_CERT_DIR`, else where the distribution keeps them.
///
/// They are read once a process: parsing some 150 certificates takes milliseconds.
pub(super) fn system() -> &'static Store {
    static SYSTEM: OnceLock<Store> = OnceLock::new();
    SYSTEM.get_or_init(|| {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!("system certificates: {error}");
        }
        let mut store = Store::new();
        store.add(found.certs, UnixTime::now());
        store
    })
}

/// Verifies servers' certificates.
#[derive(Debug)]
pub(super) struct Verifier {
    algorithms: WebPkiSupportedAlgorithms,
    /// `None` takes any certificate.
    trust: Option<Trust>,
}

/// Certificates that are trusted for the servers that one registry leads to.
#[derive(Debug)]
struct Trust {
    /// The system's authorities and those of certs.d or `--cert-dir`; `None` when there are none.
    webpki: Option<Arc<WebPkiServerVerifier>>,
    /// All certificates of certs.d or `--cert-dir`.
    given: Store,
    /// Host name of the registry: the only one that may present a certificate of `given` without `cA`.
    own_host: String,
}

/// Why a certificate is refused, in words that [`super::super::error`] shows as they are. `HOST` stands for the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// Issued by itself, and not trusted.
    SelfSigned,
    /// Without extensions, hence without names.
    NoNames,
    /// An RSA key of so many bits.
    WeakKey(u64),
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SelfSigned => f.write_str("is self-signed, and not trusted here"),
            Self::NoNames => f.write_str("has no subject alternative names, so it is valid for no host"),
            Self::WeakKey(bits) => write!(f, "has an RSA key of {bits} bits; at least {RSA_BITS_MIN} are needed"),
        }
    }
}

impl std::error::Error for Unfit {}

impl From<Unfit> for rustls::Error {
    fn from(unfit: Unfit) -> Self {
        CertificateError::Other(OtherError(Arc::new(unfit))).into()
    }
}

impl Verifier {
    /// Returns a verifier that takes any certificate, and any handshake signature: one that cannot be verified tells no more
    /// of an unknown server than one that can.
    pub(super) fn none() -> Self {
        Self { algorithms: super::ecdsa::algorithms(), trust: None }
    }

    /// Returns a verifier that trusts the system's certificates, and `given` ones.
    ///
    /// `given` authorities hold for every server that the registry leads to, token servers and redirects included, as
    /// containers/image `newDockerClient` has one TLS configuration for all of them. Certificates without `cA` are only taken
    /// from `own_host`, the registry itself, when it presents that very certificate.
    pub(super) fn new(given: Vec<CertificateDer<'static>>, own_host: &str, provider: &Arc<CryptoProvider>) -> Self {
        let mut store = Store::new();
        store.add(given, UnixTime::now());
        let mut roots = system().roots.clone();
        roots.extend(store.roots.roots.iter().cloned());
        let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build().ok();
        let trust = Trust { webpki, given: store, own_host: own_host.to_ascii_lowercase() };
        Self { algorithms: super::ecdsa::algorithms(), trust: Some(trust) }
    }
}

impl Trust {
    /// Returns whether `der` is trusted as it is, when the server `name` presents it.
    fn is_trusted(&self, der: &CertificateDer<'_>, name: &ServerName<'_>) -> bool {
        let is_own = name.to_str().eq_ignore_ascii_case(&self.own_host);
        system().holds(der) || self.given.authorities.contains(der) || (is_own && self.given.holds(der))
    }

    fn authorities(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        system().authorities.iter().chain(&self.given.authorities)
    }

    /// Returns why no authority is known for `certificate`.
    fn unknown(&self, certificate: &Certificate<'_>, intermediates: &[CertificateDer<'_>]) -> rustls::Error {
        let mut issuers = vec![certificate.issuer];
        issuers.extend(intermediates.iter().filter_map(|der| Some(Certificate::parse(der)?.issuer)));
        let out_of_time = system().out_of_time.iter().chain(&self.given.out_of_time);
        let expired = out_of_time.filter_map(|der| Certificate::parse(der)).find(|it| issuers.contains(&it.subject));
        match expired {
            Some(authority) => in_time(&authority, UnixTime::now()).err().unwrap_or(UNKNOWN),
            None if certificate.is_self_issued() => Unfit::SelfSigned.into(),
            None => UNKNOWN,
        }
    }
}

const UNKNOWN: rustls::Error = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);

/// Checks `now` against the validity of `certificate`.
fn in_time(certificate: &Certificate<'_>, now: UnixTime) -> Result<(), rustls::Error> {
    let at = |seconds| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    let (not_before, not_after) = (at(certificate.not_before), at(certificate.not_after));
    if now < not_before {
        return Err(CertificateError::NotValidYetContext { time: now, not_before }.into());
    }
    if now > not_after {
        return Err(CertificateError::ExpiredContext { time: now, not_after }.into());
    }
    Ok(())
}

/// Searches a path from a certificate with `cA` to a trusted authority.
struct Path<'a> {
    algorithms: WebPkiSupportedAlgorithms,
    trust: &'a Trust,
    intermediates: Vec<Certificate<'a>>,
    now: UnixTime,
    /// Signatures that may still be verified.
    left: u32,
}

impl Path<'_> {
    /// Returns whether `certificate` leads to a trusted authority. `above` counts the authorities that are on the path already,
    /// without the server's certificate.
    ///
    /// Authorities with name constraints do not count: their check is webpki's, which does not take such servers.
    fn is_trusted(&mut self, certificate: &Certificate<'_>, above: u64) -> bool {
        for der in self.trust.authorities() {
            let Some(authority) = Certificate::parse(der) else { continue };
            if !authority.has_name_constraints
                && authority.allows_path(above)
                && is_signed(self.algorithms, &mut self.left, certificate, &authority)
            {
                return true;
            }
        }
        if above >= PATH_MAX {
            return false;
        }
        for at in 0..self.intermediates.len() {
            let authority = self.intermediates[at].clone();
            if authority.is_authority()
                && authority.may_sign()
                && !authority.has_name_constraints
                && authority.allows_path(above)
                && in_time(&authority, self.now).is_ok()
                && is_signed(self.algorithms, &mut self.left, certificate, &authority)
                && self.is_trusted(&authority, above + 1)
            {
                return true;
            }
        }
        false
    }
}

/// Returns whether `authority` has signed `certificate`. `left` counts down the signatures that may be verified.
fn is_signed(
    algorithms: WebPkiSupportedAlgorithms,
    left: &mut u32,
    certificate: &Certificate<'_>,
    authority: &Certificate<'_>,
) -> bool {
    if certificate.issuer != authority.subject {
        return false;
    }
    let fits = algorithms.all.iter().filter(|algorithm| {
        algorithm.signature_alg_id().as_ref() == certificate.signature_algorithm
            && algorithm.public_key_alg_id().as_ref() == authority.key_algorithm
    });
    for algorithm in fits {
        let Some(rest) = left.checked_sub(1) else { return false };
        *left = rest;
        if algorithm.verify_signature(authority.key, certificate.signed, certificate.signature).is_ok() {
            return true;
        }
    }
    false
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(trust) = &self.trust else { return Ok(ServerCertVerified::assertion()) };
        let certificate = Certificate::parse(end_entity).ok_or(CertificateError::BadEncoding)?;
        if let Some(bits) = certificate.rsa_bits().filter(|bits| *bits < RSA_BITS_MIN) {
            return Err(Unfit::WeakKey(bits).into());
        }
        if certificate.has_no_extensions() {
            return Err(Unfit::NoNames.into());
        }
        let is_trusted = trust.is_trusted(end_entity, server_name);
        if is_trusted || certificate.is_authority() {
            // The form and every critical extension, then what the path does not tell.
            let parsed = ParsedCertificate::try_from(end_entity)?;
            in_time(&certificate, now)?;
            if !certificate.may_serve() {
                return Err(CertificateError::InvalidPurpose.into());
            }
            if !is_trusted {
                let intermediates = intermediates.iter().filter_map(|der| Certificate::parse(der));
                let intermediates = intermediates.take(PATH_MAX as usize).collect();
                let mut path = Path { algorithms: self.algorithms, trust, intermediates, now, left: SIGNATURES_MAX };
                if !path.is_trusted(&certificate, 0) {
                    return Err(trust.unknown(&certificate, &[]));
                }
            }
            rustls::client::verify_server_name(&parsed, server_name)?;
            return Ok(ServerCertVerified::assertion());
        }
        let unknown = || trust.unknown(&certificate, intermediates);
        let Some(webpki) = &trust.webpki else { return Err(unknown()) };
        match webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => Err(unknown()),
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if self.trust.is_none() {
            return Ok(HandshakeSignatureValid::assertion());
        }
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if self.trust.is_none() {
            return Ok(HandshakeSignatureValid::assertion());
        }
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let mut schemes = self.algorithms.supported_schemes();
        if self.trust.is_none() {
            schemes.extend([
                SignatureScheme::ED448,
                SignatureScheme::RSA_PKCS1_SHA1,
                SignatureScheme::ECDSA_SHA1_Legacy,
            ]);
        }
        schemes
    }
}
