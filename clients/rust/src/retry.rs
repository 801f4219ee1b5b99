//! When to try again, and how long to wait before. No I/O.

use std::time::Duration;

use tokio::time::Instant;
use tonic::Code;

use crate::errors::Error;

/// How a client bears outages.
///
/// The wait before attempt n is `initial_delay * multiplier ^ (n - 1)`, at most `max_delay`, made shorter or longer by
/// up to `jitter`, a fraction. Where the service says when to come back, the wait is at least that long. After
/// `give_up_after` without progress the last error is given to the caller.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// The first wait. 0.1 s by default.
    pub initial_delay: Duration,
    /// How much longer each wait is than the one before; at least 1. 2 by default.
    pub multiplier: f64,
    /// The longest wait. 5 s by default.
    pub max_delay: Duration,
    /// By which fraction a wait is made shorter or longer at random, from 0 to 1. 0.5 by default.
    pub jitter: f64,
    /// How long an outage may take. 60 s by default.
    pub give_up_after: Duration,
    /// A stream on which nothing came for so long, not even a heartbeat (the service sends one after 15 s), counts as
    /// broken. Also the deadline of each `WaitRun`. 45 s by default.
    pub silence: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            initial_delay: Duration::from_millis(100),
            multiplier: 2.0,
            max_delay: Duration::from_secs(5),
            jitter: 0.5,
            give_up_after: Duration::from_secs(60),
            silence: Duration::from_secs(45),
        }
    }
}

impl RetryPolicy {
    /// Says what is wrong with the policy.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        if !(self.multiplier >= 1.0 && self.multiplier.is_finite()) {
            return Err("the multiplier of the retry policy must be at least 1");
        }
        if !(0.0..=1.0).contains(&self.jitter) {
            return Err("the jitter of the retry policy must be from 0 to 1");
        }
        Ok(())
    }
}

/// Counts failures in a row, for one call or stream.
#[derive(Debug)]
pub(crate) struct Outage {
    policy: RetryPolicy,
    since: Option<Instant>,
    backoff: Duration,
}

impl Outage {
    pub(crate) fn new(policy: RetryPolicy) -> Self {
        Self { backoff: policy.initial_delay, since: None, policy }
    }

    /// There was progress: the next failure is a first one.
    pub(crate) fn over(&mut self) {
        self.since = None;
        self.backoff = self.policy.initial_delay;
    }

    /// How long to wait before the next attempt. Gives the error back where there must be none.
    pub(crate) fn delay(&mut self, error: Error) -> Result<Duration, Error> {
        self.delay_at(error, Instant::now(), fastrand::f64())
    }

    /// The same for a call that waits for something, where to run into the deadline of the call is no failure.
    pub(crate) fn delay_of_wait(&mut self, error: Error) -> Result<Duration, Error> {
        if error.code() != Code::DeadlineExceeded {
            return self.delay(error);
        }
        self.over();
        Ok(self.backoff)
    }

    /// `random` is from 0 to 1.
    fn delay_at(&mut self, error: Error, now: Instant, random: f64) -> Result<Duration, Error> {
        if !error.is_transient() {
            return Err(error);
        }
        let since = *self.since.get_or_insert(now);
        let spread = self.policy.jitter * (2.0 * random - 1.0);
        let delay = match error.retry_after() {
            // Never earlier than told; a little later, or all clients of a stopped replica would come at once.
            Some(told) if !told.is_zero() => stretched(told.max(self.backoff), 1.0 + spread.abs()),
            _ => stretched(self.backoff, 1.0 + spread),
        };
        if (now - since).saturating_add(delay) > self.policy.give_up_after {
            return Err(error);
        }
        self.backoff = stretched(self.backoff, self.policy.multiplier).min(self.policy.max_delay);
        Ok(delay)
    }
}

/// A span of time, times a factor; the longest there is where that is too much.
fn stretched(span: Duration, factor: f64) -> Duration {
    Duration::try_from_secs_f64(span.as_secs_f64() * factor).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> RetryPolicy {
        RetryPolicy { jitter: 0.5, ..RetryPolicy::default() }
    }

    #[test]
    fn waits_double_up_to_the_longest_and_end_with_progress() {
        let mut outage = Outage::new(policy());
        let now = Instant::now();
        let mut wait = || outage.delay_at(Error::unavailable("gone"), now, 0.5).unwrap().as_millis();
        let waits: Vec<_> = (0..8).map(|_| wait()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        outage.over();
        assert_eq!(outage.delay_at(Error::unavailable("gone"), now, 0.5).unwrap().as_millis(), 100);
    }

    #[test]
    fn waits_are_spread_by_half() {
        let spread = |random| {
            Outage::new(policy()).delay_at(Error::unavailable("gone"), Instant::now(), random).unwrap().as_millis()
        };
        assert_eq!((spread(0.0), spread(1.0)), (50, 150));
    }

    #[test]
    fn an_outage_of_a_minute_ends_with_the_last_error() {
        let mut outage = Outage::new(policy());
        let start = Instant::now();
        outage.delay_at(Error::unavailable("first"), start, 0.5).unwrap();
        let late = start + Duration::from_secs(60);
        let error = outage.delay_at(Error::unavailable("last"), late, 0.5).unwrap_err();
        assert_eq!(error.message(), "last");
    }

    #[test]
    fn a_deadline_is_no_failure_of_a_wait() {
        let mut outage = Outage::new(policy());
        for _ in 0..1000 {
            let passed = Error::new(Code::DeadlineExceeded, "passed");
            assert_eq!(outage.delay_of_wait(passed).unwrap().as_millis(), 100);
        }
        assert!(outage.delay(Error::new(Code::DeadlineExceeded, "passed")).is_err());
    }

    #[test]
    fn a_policy_that_makes_no_sense_is_refused() {
        assert!(policy().check().is_ok());
        assert!(RetryPolicy { multiplier: 0.5, ..policy() }.check().is_err());
        assert!(RetryPolicy { jitter: f64::NAN, ..policy() }.check().is_err());
    }
}
