//! When to try again, and after how long. No jitter: a run is the same each time, and a test can count the seconds.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use ureq::http::StatusCode;

/// How many times a failed request is repeated unless `--retry-times` says otherwise.
pub const RETRY_TIMES: u32 = 3;

/// The first wait; each further one is twice as long.
pub const DELAY_FIRST: Duration = Duration::from_secs(1);

/// The longest wait, also when `Retry-After` asks for more (containers/image `backoffMaxDelay`).
pub const DELAY_MAX: Duration = Duration::from_secs(60);

/// A request that failed and will be repeated.
#[derive(Debug)]
pub struct Retry<'a> {
    /// What was being done, and why it failed.
    pub why: &'a str,
    /// Time until the next attempt.
    pub wait: Duration,
    /// Number of this repetition, from 1.
    pub number: u32,
    /// Maximum number of repetitions.
    pub times: u32,
}

impl fmt::Display for Retry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.wait.as_secs_f32();
        write!(f, "{}; retrying in {seconds:.1} s ({} of {})", self.why, self.number, self.times)
    }
}

/// Receives every [`Retry`] before its wait begins, from the thread that waits.
#[derive(Clone, Default)]
pub struct Observer(Option<Arc<Observe>>);

type Observe = dyn Fn(&Retry<'_>) + Send + Sync;

impl Observer {
    /// Calls `observe` for every retry.
    pub fn new(observe: impl Fn(&Retry<'_>) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(observe)))
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Observer(..)" } else { "Observer(none)" })
    }
}

/// Number and speed of repetitions: `--retry-times` and `--retry-delay`.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Repetitions after the first failure without progress.
    pub times: u32,
    /// A constant wait in place of the growing one.
    pub delay: Option<Duration>,
    /// Receives the retries.
    pub observer: Observer,
}

impl Default for Policy {
    fn default() -> Self {
        Self { times: RETRY_TIMES, delay: None, observer: Observer::default() }
    }
}

impl Policy {
    /// The wait after failure number `failures` (from 1). A server's `Retry-After` wins; nothing exceeds [`DELAY_MAX`].
    #[must_use]
    pub fn wait(&self, failures: u32, retry_after: Option<Duration>) -> Duration {
        let growing = || DELAY_FIRST.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
        retry_after.or(self.delay).unwrap_or_else(growing).min(DELAY_MAX)
    }
}

/// Failures in a row of one piece of work.
#[derive(Debug)]
pub(crate) struct Attempts {
    policy: Policy,
    failures: u32,
}

impl Attempts {
    pub(crate) fn new(policy: Policy) -> Self {
        Self { policy, failures: 0 }
    }

    /// Notes a failure. When there may be another attempt, waits for its time and returns true.
    pub(crate) fn again(&mut self, retry_after: Option<Duration>, why: &dyn fmt::Display) -> bool {
        self.failures += 1;
        if self.failures > self.policy.times {
            return false;
        }
        let wait = self.policy.wait(self.failures, retry_after);
        let retry = Retry { why: &why.to_string(), wait, number: self.failures, times: self.policy.times };
        match &self.policy.observer.0 {
            Some(observe) => observe(&retry),
            None => tracing::info!("{retry}"),
        }
        std::thread::sleep(wait);
        true
    }

    /// Something came: the failures before it are forgiven.
    pub(crate) fn progress(&mut self) {
        self.failures = 0;
    }

    /// How many attempts failed in a row.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }
}

/// Whether the same request may succeed a moment later: 408, 429 and all of 5xx but those that say "never".
pub(crate) fn is_transient_status(status: StatusCode) -> bool {
    const NEVER: [StatusCode; 2] = [StatusCode::NOT_IMPLEMENTED, StatusCode::HTTP_VERSION_NOT_SUPPORTED];
    matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
        || (status.is_server_error() && !NEVER.contains(&status))
}

/// Whether the failure is the network's, not the message's.
pub(crate) fn is_transient_io(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>()) {
        return is_transient(error);
    }
    matches!(
        error.kind(),
        Kind::ConnectionReset
            | Kind::ConnectionAborted
            | Kind::ConnectionRefused
            | Kind::BrokenPipe
            | Kind::UnexpectedEof
            | Kind::TimedOut
            | Kind::WouldBlock
            | Kind::Interrupted
            | Kind::NotConnected
            | Kind::HostUnreachable
            | Kind::NetworkUnreachable
            | Kind::NetworkDown
    )
}

/// [`is_transient_io`] for a request.
pub(crate) fn is_transient(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Io(error) => is_transient_io(error),
        ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit_and_the_server_wins() {
        let seconds = |policy: &Policy, failures, after: Option<u64>| {
            policy.wait(failures, after.map(Duration::from_secs)).as_secs_f32()
        };
        let growing = Policy::default();
        let waits: Vec<_> = (1..=8).map(|failure| seconds(&growing, failure, None)).collect();
        assert_eq!(waits, [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]);
        assert_eq!(seconds(&growing, 400, None), 60.0);
        assert_eq!(seconds(&growing, 1, Some(7)), 7.0);
        assert_eq!(seconds(&growing, 1, Some(u64::MAX)), 60.0);
        let constant = Policy { times: 3, delay: Some(Duration::from_millis(500)), ..Policy::default() };
        assert_eq!(seconds(&constant, 3, None), 0.5);
        assert_eq!(seconds(&constant, 3, Some(0)), 0.0);
    }

    #[test]
    fn what_is_worth_another_attempt() {
        let transient: Vec<u16> = (200..600)
            .filter(|code| StatusCode::from_u16(*code).is_ok_and(is_transient_status))
            .filter(|code| *code < 512)
            .collect();
        assert_eq!(transient, [408, 429, 500, 502, 503, 504, 506, 507, 508, 509, 510, 511]);
        assert!(is_transient_io(&io::ErrorKind::ConnectionReset.into()));
        assert!(!is_transient_io(&io::ErrorKind::InvalidData.into()));
        let nested = io::Error::other(ureq::Error::Io(io::ErrorKind::UnexpectedEof.into()));
        assert!(is_transient_io(&nested));
    }
}
