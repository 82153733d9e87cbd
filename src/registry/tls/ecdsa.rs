//! ECDSA signatures that ring does not verify, by RustCrypto: curve P-521, and SHA-512 with the smaller curves.
//!
//! Only verification is used, which has no secret that a side channel could leak. Decision: docs/decisions.

use std::sync::OnceLock;

use p256::ecdsa::signature::hazmat::PrehashVerifier as _;
use rustls::SignatureScheme;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls_pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id};
use sha2::{Digest as _, Sha256, Sha384, Sha512};

/// Verifies the signature of a message by a key; `None` when it is wrong.
type Verify = fn(key: &[u8], message: &[u8], signature: &[u8]) -> Option<()>;

/// One curve with one hash.
#[derive(Debug)]
struct Ecdsa {
    curve: AlgorithmIdentifier,
    algorithm: AlgorithmIdentifier,
    verify: Verify,
}

impl SignatureVerificationAlgorithm for Ecdsa {
    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.curve
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm
    }

    fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        (self.verify)(key, message, signature).ok_or(InvalidSignature)
    }
}

/// Bytes of a P-521 field element.
const P521_BYTES: usize = 66;

/// Verifies with P-521. The number that is signed is the hash itself, as P-521 is longer than any hash; the crate takes no hash
/// that is shorter than half of a field element, so zeros come before it.
fn p521(key: &[u8], hash: &[u8], signature: &[u8]) -> Option<()> {
    let key = p521::ecdsa::VerifyingKey::from_sec1_bytes(key).ok()?;
    let signature = p521::ecdsa::Signature::from_der(signature).ok()?;
    let mut number = [0; P521_BYTES];
    number[P521_BYTES - hash.len()..].copy_from_slice(hash);
    key.verify_prehash(&number, &signature).ok()
}

fn p384_sha512(key: &[u8], message: &[u8], signature: &[u8]) -> Option<()> {
    let key = p384::ecdsa::VerifyingKey::from_sec1_bytes(key).ok()?;
    let signature = p384::ecdsa::Signature::from_der(signature).ok()?;
    key.verify_prehash(&Sha512::digest(message), &signature).ok()
}

fn p256_sha512(key: &[u8], message: &[u8], signature: &[u8]) -> Option<()> {
    let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(key).ok()?;
    let signature = p256::ecdsa::Signature::from_der(signature).ok()?;
    key.verify_prehash(&Sha512::digest(message), &signature).ok()
}

static P521_SHA512: Ecdsa = Ecdsa {
    curve: alg_id::ECDSA_P521,
    algorithm: alg_id::ECDSA_SHA512,
    verify: |key, message, signature| p521(key, &Sha512::digest(message), signature),
};
static P521_SHA384: Ecdsa = Ecdsa {
    curve: alg_id::ECDSA_P521,
    algorithm: alg_id::ECDSA_SHA384,
    verify: |key, message, signature| p521(key, &Sha384::digest(message), signature),
};
static P521_SHA256: Ecdsa = Ecdsa {
    curve: alg_id::ECDSA_P521,
    algorithm: alg_id::ECDSA_SHA256,
    verify: |key, message, signature| p521(key, &Sha256::digest(message), signature),
};
static P384_SHA512: Ecdsa = Ecdsa { curve: alg_id::ECDSA_P384, algorithm: alg_id::ECDSA_SHA512, verify: p384_sha512 };
static P256_SHA512: Ecdsa = Ecdsa { curve: alg_id::ECDSA_P256, algorithm: alg_id::ECDSA_SHA512, verify: p256_sha512 };

static SHA512: &[&dyn SignatureVerificationAlgorithm] = &[&P521_SHA512, &P384_SHA512, &P256_SHA512];

/// Returns ring's algorithms and those of this module. Of several for one scheme, TLS 1.3 uses the first, TLS 1.2 any.
pub(super) fn algorithms() -> WebPkiSupportedAlgorithms {
    static ALGORITHMS: OnceLock<WebPkiSupportedAlgorithms> = OnceLock::new();
    *ALGORITHMS.get_or_init(|| {
        let ring = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        let own: [&'static dyn SignatureVerificationAlgorithm; 5] =
            [&P521_SHA512, &P521_SHA384, &P521_SHA256, &P384_SHA512, &P256_SHA512];
        let mut mapping = ring.mapping.to_vec();
        // Behind the other elliptic curves, which are faster.
        let at = mapping.iter().position(|(scheme, _)| *scheme == SignatureScheme::ED25519).unwrap_or(0);
        mapping.insert(at, (SignatureScheme::ECDSA_NISTP521_SHA512, SHA512));
        WebPkiSupportedAlgorithms { all: [ring.all, &own].concat().leak(), mapping: mapping.leak() }
    })
}
