//! From certificate files to a TLS configuration: rustls with ring, the system's authorities and the registry's own.
//!
//! The system's authorities are those of `rustls-native-certs`: `$SSL_CERT_FILE` and `$SSL_CERT_DIR`, else where the
//! distribution keeps them.

use std::sync::{Arc, OnceLock};

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

use crate::config::certs::{Certificates, Error, PemFile};

pub(crate) fn config(certificates: &Certificates, verify: bool) -> Result<TlsConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut builder = TlsConfig::builder().unversioned_rustls_crypto_provider(provider);
    if verify {
        let mut roots = system().to_vec();
        for file in &certificates.authorities {
            let parsed = chain(file)?;
            roots.extend(parsed.iter().map(|certificate| Certificate::from_der(certificate).to_owned()));
        }
        builder = builder.root_certs(RootCerts::new_with_certs(&roots));
    } else {
        builder = builder.disable_verification(true).root_certs(RootCerts::new_with_certs(&[]));
    }
    if let Some((certificate, key)) = &certificates.client {
        builder = builder.client_cert(Some(client(certificate, key)?));
    }
    Ok(builder.build())
}

/// Read once a process: parsing some 150 certificates takes milliseconds that several registries need not spend again.
fn system() -> &'static [Certificate<'static>] {
    static SYSTEM: OnceLock<Vec<Certificate<'static>>> = OnceLock::new();
    SYSTEM.get_or_init(|| {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!("system certificates: {error}");
        }
        found.certs.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect()
    })
}

fn chain(file: &PemFile) -> Result<Vec<CertificateDer<'static>>, Error> {
    let invalid = |reason: &str| Error::Invalid { path: file.path.clone(), reason: reason.to_owned() };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&file.text).collect();
    let chain = chain.map_err(|_| invalid("not valid PEM"))?;
    if chain.is_empty() { Err(invalid("no PEM certificate in it")) } else { Ok(chain) }
}

/// ureq panics on a key that does not fit its certificate, so they are tried on rustls first.
fn client(certificate: &PemFile, key: &PemFile) -> Result<ClientCert, Error> {
    let invalid = |file: &PemFile, reason: &str| Error::Invalid { path: file.path.clone(), reason: reason.to_owned() };
    let chain = chain(certificate)?;
    let der = PrivateKeyDer::from_pem_slice(&key.text).map_err(|_| invalid(key, "no PEM private key in it"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| invalid(key, "no usable TLS version"))?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_client_auth_cert(chain.clone(), der)
        .map_err(|_| invalid(key, "not a usable private key for its certificate"))?;
    let key = PrivateKey::from_pem(&key.text).map_err(|_| invalid(key, "not a usable private key"))?;
    let chain: Vec<_> = chain.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect();
    Ok(ClientCert::new_with_certs(&chain, key))
}
