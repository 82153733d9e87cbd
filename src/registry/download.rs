//! A blob as one stream, whatever happens to the connections below it.
//!
//! When a connection breaks, stalls or ends early, the reader asks the registry again (not the place it was redirected to,
//! whose signed URL may have expired) for the bytes from where it stands. A server that ignores `Range` gets its first bytes
//! skipped; one that answers with another range than it was asked for is asked without one from then on. A connection that
//! brings more than `--min-rate` asks of a window forgives the failures before it. So a blob of any size gets through a bad line,
//! and a line that is dead or trickles is given up on soon.
//!
//! Bytes are taken as they come, whatever `Content-Encoding` says of them, as long as they can have the right digest: a length
//! other than the blob's with `Content-Encoding: gzip` is that of a blob which a proxy has compressed, and is decompressed.

use std::fmt;
use std::io::{self, BufReader, Read};
use std::sync::Arc;

use ureq::http::{StatusCode, header};

use super::Error;
use super::client::Endpoint;
use super::error::Failed;
use super::header::ContentRange;
use super::retry::Attempts;
use super::session::broken;
use crate::compression::{self, Compression, Decoder};
use crate::digest::Digest;

/// How much is skipped at once.
const SKIP: usize = 64 << 10;

/// Reads one blob. Not verified: wrap it in a [`crate::digest::VerifyReader`].
///
/// An error it gives is final; its inner error is an [`Error`].
pub struct BlobReader {
    endpoint: Arc<Endpoint>,
    what: String,
    path: String,
    size: u64,
    /// Bytes given out so far.
    offset: u64,
    body: Option<Box<dyn Read + Send>>,
    /// Bytes that this connection has given out.
    received: u64,
    attempts: Attempts,
    /// Whether the server is thought to understand `Range`.
    has_ranges: bool,
}

impl fmt::Debug for BlobReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlobReader({}, at {} of {})", self.what, self.offset, self.size)
    }
}

impl BlobReader {
    pub(crate) fn open(endpoint: Arc<Endpoint>, digest: &Digest, size: u64) -> Result<Self, Error> {
        let what = format!("fetching blob {digest} of {}", endpoint.name());
        let attempts = Attempts::new(endpoint.policy.clone());
        let path = format!("blobs/{digest}");
        let mut reader =
            Self { endpoint, what, path, size, offset: 0, body: None, received: 0, attempts, has_ranges: true };
        while reader.body.is_none() {
            if let Err(failed) = reader.connect() {
                reader.failed(failed)?;
            }
        }
        Ok(reader)
    }

    /// Waits for the next attempt after `failed`, or gives up.
    fn failed(&mut self, failed: Failed) -> Result<(), Error> {
        self.body = None;
        match failed {
            Failed::Again { error, retry_after } => {
                if self.attempts.again(retry_after, &error) {
                    return Ok(());
                }
                Err(Failed::Again { error, retry_after }.after(self.attempts.failures()))
            }
            failed @ Failed::Final(_) => Err(failed.after(self.attempts.failures() + 1)),
        }
    }

    /// One attempt to have `body` stand at `offset`.
    fn connect(&mut self) -> Result<(), Failed> {
        let range = format!("bytes={}-", self.offset);
        let wants_range = self.offset > 0 && self.has_ranges;
        let headers: &[_] = if wants_range { &[(header::RANGE, range.as_str())] } else { &[] };
        let good = [StatusCode::OK, StatusCode::PARTIAL_CONTENT, StatusCode::RANGE_NOT_SATISFIABLE];
        let good = if wants_range { &good[..] } else { &good[..1] };
        let answer = self.endpoint.get_once(&self.path, headers, true, good, &self.what)?;
        let starts_at = match answer.status() {
            StatusCode::OK => Some(0),
            StatusCode::PARTIAL_CONTENT => {
                let range = answer.field(&header::CONTENT_RANGE).and_then(ContentRange::parse);
                // A part that ends early is as good as a connection that does.
                range.map(|range| range.first).filter(|first| *first == self.offset)
            }
            _ => None,
        };
        let Some(starts_at) = starts_at else {
            self.has_ranges = false;
            let reason = "the server answered with another range than the one asked for".to_owned();
            let error = Error::Broken { what: self.what.clone(), reason, offset: self.offset, attempts: 1 };
            return Err(Failed::Again { error, retry_after: None });
        };
        let is_encoded = starts_at == 0 && answer.is_gzip() && !answer.has_length(self.size);
        let mut body: Box<dyn Read + Send> = Box::new(answer.response.into_body().into_reader());
        if is_encoded {
            // Offsets are those of the encoded bytes then.
            self.has_ranges = false;
            body = decoded(body).map_err(|error| broken(&error, &self.what, self.offset))?;
        }
        self.skip(&mut body, self.offset - starts_at)?;
        self.body = Some(body);
        self.received = 0;
        Ok(())
    }

    fn skip(&self, body: &mut dyn Read, mut left: u64) -> Result<(), Failed> {
        let mut buffer = if left > 0 { vec![0; SKIP] } else { Vec::new() };
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(SKIP).min(SKIP);
            match body.read(&mut buffer[..most]) {
                Ok(0) => return Err(broken(&io::ErrorKind::UnexpectedEof.into(), &self.what, self.offset)),
                Ok(read) => left -= read as u64,
                Err(error) => return Err(broken(&error, &self.what, self.offset)),
            }
        }
        Ok(())
    }
}

/// Returns the bytes that a server has compressed on the way, although it was asked not to.
pub(crate) fn decoded(body: Box<dyn Read + Send>) -> io::Result<Box<dyn Read + Send>> {
    let (compression, whole) = compression::peek(body)?;
    if compression != Compression::Gzip {
        return Ok(Box::new(whole));
    }
    Ok(Box::new(Decoder::new(compression, BufReader::new(whole))))
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let failed = match &mut self.body {
                None => match self.connect() {
                    Ok(()) => continue,
                    Err(failed) => failed,
                },
                Some(body) => match body.read(buffer) {
                    Ok(0) if self.offset < self.size => {
                        broken(&io::ErrorKind::UnexpectedEof.into(), &self.what, self.offset)
                    }
                    Ok(read) => {
                        self.received += read as u64;
                        if self.received >= self.endpoint.rate.per_window().max(1) {
                            self.attempts.progress();
                        }
                        self.offset += read as u64;
                        return Ok(read);
                    }
                    // All bytes are here; how the connection ended does not matter.
                    Err(_) if self.offset == self.size => return Ok(0),
                    Err(error) => broken(&error, &self.what, self.offset),
                },
            };
            self.failed(failed).map_err(io::Error::other)?;
        }
    }
}
