//! From certificate files to TLS connections: rustls with ring, the system's authorities and the registry's own.
//!
//! The connector is not ureq's, since the configuration differs by registry, and its verifier is our own ([`verify`]).

mod ecdsa;
pub mod verify;
pub mod x509;

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, ClientConnection};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use ureq::http::Uri;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport, TransportAdapter,
};

use crate::config::certs::{Certificates, Error, PemFile};

/// Returns the TLS configuration for a registry at `host` (a name or an address, without port), with the `certificates` of its
/// certs.d directory or of `--cert-dir`. Without `verify`, any server certificate is taken.
///
/// The configuration is used for every server that the registry leads to: itself, its token server, and redirects. All of them
/// are verified with the authorities (`*.crt`) and may ask for the client certificate, as in containers/image, where
/// `newDockerClient` makes one TLS configuration and `detectPropertiesHelper` one HTTP client for all requests. A certificate in
/// `*.crt` that is not an authority is only taken from `host` itself.
pub(crate) fn config(certificates: &Certificates, host: &str, verify: bool) -> Result<Arc<ClientConfig>, Error> {
    let algorithms = ecdsa::algorithms();
    let provider = rustls::crypto::ring::default_provider();
    let provider = Arc::new(CryptoProvider { signature_verification_algorithms: algorithms, ..provider });
    let mut given = Vec::new();
    for file in &certificates.authorities {
        given.extend(chain(file)?);
    }
    let verifier = if verify { verify::Verifier::new(given, host, &provider) } else { verify::Verifier::none() };
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
            builder.with_client_auth_cert(chain(certificate)?, der).map_err(|_| {
                reject("not a usable private key for its certificate (usable: RSA, ECDSA P-256 or P-384, Ed25519)")
            })?
        }
    }))
}

fn invalid(certificates: &Certificates, reason: &str) -> Error {
    let path = certificates.authorities.first().map(|file| file.path.clone()).unwrap_or_default();
    Error::Invalid { path, reason: reason.to_owned() }
}

fn chain(file: &PemFile) -> Result<Vec<CertificateDer<'static>>, Error> {
    let invalid = |reason: &str| Error::Invalid { path: file.path.clone(), reason: reason.to_owned() };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&file.text).collect();
    let chain = chain.map_err(|_| invalid("not valid PEM"))?;
    if chain.is_empty() { Err(invalid("no PEM certificate in it")) } else { Ok(chain) }
}

/// Puts TLS on the connections that need it. ureq's own connector in all but where its configuration comes from.
pub(crate) struct TlsConnector {
    pub(crate) config: Arc<ClientConfig>,
    /// The server that is connected to, if it is not the one of the request: a proxy for plain HTTP.
    pub(crate) server: Option<Uri>,
}

impl std::fmt::Debug for TlsConnector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsConnector")
    }
}

impl<In: Transport> Connector<In> for TlsConnector {
    type Out = Either<In, TlsTransport>;

    fn connect(&self, details: &ConnectionDetails, chained: Option<In>) -> Result<Option<Self::Out>, ureq::Error> {
        let Some(transport) = chained else { return Ok(None) };
        let server = self.server.as_ref().unwrap_or(details.uri);
        if server.scheme_str() != Some("https") {
            return Ok(Some(Either::A(transport)));
        }
        let host = server.host().unwrap_or("").trim_matches(['[', ']']).to_owned();
        let name =
            ServerName::try_from(host).map_err(|_| ureq::Error::Tls("the host's name cannot be in a certificate"))?;
        let mut connection = ClientConnection::new(Arc::clone(&self.config), name).map_err(ureq::Error::Rustls)?;
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
