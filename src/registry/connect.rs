//! What stands between a request and the socket, from the socket upwards.
//!
//! ```text
//!  [`Socket`] ─▶ [`super::tls::TlsConnector`] ─▶ [`AbsoluteForm`] ─▶ ureq
//!  TCP, rate     of the server, or of the        only to a proxy
//!                proxy                           for plain HTTP
//! ```

use std::fmt;
use std::io;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, NextTimeout, TcpConnector, Transport, time,
};

use super::CONNECT_TIMEOUT;
use crate::threads;

/// The slowest that a server may send, measured over a window of time in which prepull waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MinRate {
    /// Bytes a second; 0 for any.
    pub bytes: u64,
    /// The window.
    pub window: Duration,
}

impl MinRate {
    /// Bytes that must come in a window.
    #[must_use]
    pub fn per_window(&self) -> u64 {
        let bytes = u128::from(self.bytes) * self.window.as_millis() / 1000;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

/// A server sends less than [`MinRate`].
#[derive(Debug)]
pub(crate) struct TooSlow(MinRate);

impl fmt::Display for TooSlow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MinRate { bytes, window } = self.0;
        write!(f, "fewer than {bytes} bytes a second came for {} s (--min-rate)", window.as_secs_f32())
    }
}

impl std::error::Error for TooSlow {}

/// Opens TCP connections whose rate is measured.
#[derive(Debug)]
pub(crate) struct Socket(pub(crate) MinRate);

impl<In: Transport> Connector<In> for Socket {
    type Out = Either<In, Metered<<TcpConnector as Connector<()>>::Out>>;

    fn connect(&self, details: &ConnectionDetails, chained: Option<In>) -> Result<Option<Self::Out>, ureq::Error> {
        if let Some(transport) = chained {
            return Ok(Some(Either::A(transport)));
        }
        let transport = Connector::<()>::connect(&TcpConnector::default(), details, None)?;
        Ok(transport.map(|transport| Either::B(Metered::new(transport, self.0))))
    }
}

/// A connection that ends with [`TooSlow`] when its peer sends less than [`MinRate`].
///
/// Only the time in which prepull waits for bytes counts, so that a slow disk does not look like a slow server; and not the
/// wait for the first bytes after a request, which has a limit of its own.
#[derive(Debug)]
pub(crate) struct Metered<T> {
    inner: T,
    rate: MinRate,
    /// True from a request until the first bytes of its answer.
    is_asking: bool,
    waited: Duration,
    received: u64,
}

impl<T: Transport> Metered<T> {
    fn new(inner: T, rate: MinRate) -> Self {
        Self { inner, rate, is_asking: true, waited: Duration::ZERO, received: 0 }
    }
}

impl<T: Transport> Transport for Metered<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        (self.is_asking, self.waited, self.received) = (true, Duration::ZERO, 0);
        self.inner.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        if self.is_asking || self.rate.bytes == 0 {
            self.is_asking = false;
            return self.inner.await_input(timeout);
        }
        let silence_max = timeout.per_read.map_or(Duration::MAX, |limit| *limit);
        let mut silence = Duration::ZERO;
        loop {
            // Until the window ends, the peer has been silent for too long, or the caller's time is up.
            let left = self.rate.window.saturating_sub(self.waited).min(silence_max.saturating_sub(silence));
            let after = match timeout.after {
                time::Duration::Exact(after) => time::Duration::Exact(after.saturating_sub(silence)),
                never @ time::Duration::NotHappening => never,
            };
            let per_read = Some(time::Duration::Exact(left.max(Duration::from_millis(1))));
            let (start, before) = (Instant::now(), self.inner.buffers().input().len());
            let result = self.inner.await_input(NextTimeout { after, per_read, ..timeout });
            let elapsed = start.elapsed();
            silence += elapsed;
            self.waited += elapsed;
            self.received += self.inner.buffers().input().len().saturating_sub(before) as u64;
            if self.waited >= self.rate.window {
                if self.received < self.rate.per_window() {
                    return Err(ureq::Error::Io(io::Error::new(io::ErrorKind::TimedOut, TooSlow(self.rate))));
                }
                (self.waited, self.received) = (Duration::ZERO, 0);
            }
            match result {
                Err(ureq::Error::Timeout(ureq::Timeout::PerRead)) if silence < silence_max => {}
                result => return result,
            }
        }
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}

/// Makes requests name their whole URL, as a proxy for plain HTTP wants it (RFC 9112, section 3.2.2). ureq only writes the path
/// and query, and speaks to proxies with CONNECT alone, which most of them allow for port 443 only.
#[derive(Debug)]
pub(crate) struct AbsoluteForm;

impl<In: Transport> Connector<In> for AbsoluteForm {
    type Out = AbsoluteTransport<In>;

    fn connect(&self, details: &ConnectionDetails, chained: Option<In>) -> Result<Option<Self::Out>, ureq::Error> {
        let authority = details.uri.authority().map_or("", |authority| authority.as_str());
        let origin = format!("http://{authority}");
        Ok(chained.map(|inner| AbsoluteTransport { inner, origin, is_start: true }))
    }
}

/// A connection to a proxy for plain HTTP, for the requests to one origin.
#[derive(Debug)]
pub(crate) struct AbsoluteTransport<T> {
    inner: T,
    /// `http://HOST[:PORT]`.
    origin: String,
    /// True when the next bytes to be sent begin a request: nothing was sent since the last answer.
    is_start: bool,
}

impl<T: Transport> Transport for AbsoluteTransport<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, mut amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        if std::mem::take(&mut self.is_start) {
            let output = self.inner.buffers().output();
            let longer = amount + self.origin.len();
            // `GET /v2/ HTTP/1.1`: behind the method.
            match output[..amount].iter().position(|byte| *byte == b' ') {
                Some(space) if longer <= output.len() => {
                    let at = space + 1;
                    output.copy_within(at..amount, at + self.origin.len());
                    output[at..at + self.origin.len()].copy_from_slice(self.origin.as_bytes());
                    amount = longer;
                }
                _ => return Err(ureq::Error::Io(io::Error::other("the request is too long for a proxy"))),
            }
        }
        self.inner.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.is_start = true;
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}

/// The system's resolver, on a thread of our own: ureq panics when no thread can be started.
#[derive(Debug)]
pub(crate) struct Names {
    /// The proxy to which all connections go, in place of the request's server.
    pub(crate) proxy: Option<Uri>,
}

/// A name without an address. The system's error has no kind of its own.
#[derive(Debug)]
pub(crate) struct Unresolved(pub(crate) String);

impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unresolved {}

impl Resolver for Names {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let (sender, receiver) = channel();
        let (uri, config) = (self.proxy.as_ref().unwrap_or(uri).clone(), config.clone());
        let patient = NextTimeout { after: time::Duration::NotHappening, ..timeout };
        let resolve = move || {
            // The receiver is gone when it took too long.
            let _ = sender.send(DefaultResolver::default().resolve(&uri, &config, patient));
        };
        threads::spawn(resolve).map_err(ureq::Error::Io)?;
        match receiver.recv_timeout(CONNECT_TIMEOUT.min(*timeout.after)) {
            Ok(Err(ureq::Error::Io(error))) => {
                Err(ureq::Error::Io(io::Error::new(io::ErrorKind::HostUnreachable, Unresolved(error.to_string()))))
            }
            Ok(done) => done,
            Err(_) => Err(ureq::Error::Timeout(ureq::Timeout::Resolve)),
        }
    }
}
