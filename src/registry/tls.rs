//! From certificate files to TLS connections: rustls with ring, the system's authorities and the registry's own.
//!
//! The system's authorities are those of `rustls-native-certs`: `$SSL_CERT_FILE` and `$SSL_CERT_DIR`, else where the
//! distribution keeps them.
//!
//! The connector is our own and not ureq's, for the sake of one habit of this field: a registry with a self-signed certificate,
//! which is handed to its clients as `ca.crt` (Docker's documentation tells people to do so, and Go accepts it). A certificate
//! authority may not serve itself by the rules that webpki enforces; [`Verifier`] knows the exception.

use std::io::{Read as _, Write as _};
use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport, TransportAdapter,
};

use super::validity;
use crate::config::certs::{Certificates, Error, PemFile};

/// The TLS configuration for `certificates`. Without `verify`, any certificate is taken.
pub(crate) fn config(certificates: &Certificates, verify: bool) -> Result<Arc<ClientConfig>, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Verifier { provider: Arc::clone(&provider), trust: trust(certificates, verify, &provider)? };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| invalid(certificates, "no usable TLS version"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    Ok(Arc::new(match &certificates.client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let reject = |reason: &str| Error::Invalid { path: key.path.clone(), reason: reason.to_owned() };
            let der = PrivateKeyDer::from_pem_slice(&key.text).map_err(|_| reject("no PEM private key in it"))?;
            builder
                .with_client_auth_cert(chain(certificate)?, der)
                .map_err(|_| reject("not a usable private key for its certificate"))?
        }
    }))
}

/// Whom to believe; `None` for everybody.
fn trust(certificates: &Certificates, verify: bool, provider: &Arc<CryptoProvider>) -> Result<Option<Trust>, Error> {
    let mut given = Vec::new();
    for file in &certificates.authorities {
        given.extend(chain(file)?);
    }
    if !verify {
        return Ok(None);
    }
    let mut roots = system().clone();
    roots.add_parsable_certificates(given.iter().cloned());
    // Without any authority there is nothing to build; then nobody is believed.
    let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build().ok();
    Ok(Some(Trust { webpki, given }))
}

fn invalid(certificates: &Certificates, reason: &str) -> Error {
    let path = certificates.authorities.first().map(|file| file.path.clone()).unwrap_or_default();
    Error::Invalid { path, reason: reason.to_owned() }
}

/// Read once a process: parsing some 150 certificates takes milliseconds that several registries need not spend again.
fn system() -> &'static RootCertStore {
    static SYSTEM: OnceLock<RootCertStore> = OnceLock::new();
    SYSTEM.get_or_init(|| {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!("system certificates: {error}");
        }
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(found.certs);
        store
    })
}

fn chain(file: &PemFile) -> Result<Vec<CertificateDer<'static>>, Error> {
    let invalid = |reason: &str| Error::Invalid { path: file.path.clone(), reason: reason.to_owned() };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&file.text).collect();
    let chain = chain.map_err(|_| invalid("not valid PEM"))?;
    if chain.is_empty() { Err(invalid("no PEM certificate in it")) } else { Ok(chain) }
}

/// Verifies a server's certificate.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    trust: Option<Trust>,
}

#[derive(Debug)]
struct Trust {
    webpki: Option<Arc<WebPkiServerVerifier>>,
    /// The certificates in `*.crt`: a server may also present one of these itself.
    given: Vec<CertificateDer<'static>>,
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
        if trust.given.iter().any(|given| given == end_entity) {
            // Byte for byte what the user said to trust. That leaves the name and the time.
            rustls::client::verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            let (from, to) = validity::of(end_entity).ok_or(CertificateError::BadEncoding)?;
            return match now.as_secs() {
                now if now < from => Err(CertificateError::NotValidYet.into()),
                now if now > to => Err(CertificateError::Expired.into()),
                _ => Ok(ServerCertVerified::assertion()),
            };
        }
        let Some(webpki) = &trust.webpki else { return Err(CertificateError::UnknownIssuer.into()) };
        webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Puts TLS on the connections that need it. ureq's own connector in all but where its configuration comes from.
pub(crate) struct TlsConnector(pub(crate) Arc<ClientConfig>);

impl std::fmt::Debug for TlsConnector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsConnector")
    }
}

impl<In: Transport> Connector<In> for TlsConnector {
    type Out = Either<In, TlsTransport>;

    fn connect(&self, details: &ConnectionDetails, chained: Option<In>) -> Result<Option<Self::Out>, ureq::Error> {
        let Some(transport) = chained else { return Ok(None) };
        if !details.needs_tls() {
            return Ok(Some(Either::A(transport)));
        }
        let host = details.uri.host().unwrap_or("").trim_matches(['[', ']']).to_owned();
        let name =
            ServerName::try_from(host).map_err(|_| ureq::Error::Tls("the host's name cannot be in a certificate"))?;
        let mut connection = ClientConnection::new(Arc::clone(&self.0), name).map_err(ureq::Error::Rustls)?;
        let mut socket = TransportAdapter::new(transport.boxed(), Arc::clone(&details.current_time));
        socket.set_timeout(details.timeout);
        connection.complete_io(&mut socket)?;
        let stream = rustls::StreamOwned { conn: connection, sock: socket };
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(Either::B(TlsTransport { buffers, stream })))
    }
}

/// A connection with TLS.
pub(crate) struct TlsTransport {
    buffers: LazyBuffers,
    stream: rustls::StreamOwned<ClientConnection, TransportAdapter>,
}

impl std::fmt::Debug for TlsTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsTransport")
    }
}

impl Transport for TlsTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.stream.get_mut().set_timeout(timeout);
        let output = &self.buffers.output()[..amount];
        self.stream.write_all(output)?;
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.stream.get_mut().set_timeout(timeout);
        let input = self.buffers.input_append_buf();
        let amount = self.stream.read(input)?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.get_mut().get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}
