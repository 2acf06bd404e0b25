//! How often a guest may cause work.
//!
//! In: the time, from whoever has a clock. Out: whether something may happen now, or when.

use std::time::{Duration, Instant};

/// What one guest may cost. Everything that it can make happen is bounded by one of these.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// The longest line taken, in bytes.
    pub(crate) line: usize,
    /// The most functions a guest may have.
    pub(crate) functions: usize,
    /// Requests that may wait for their replies at a time.
    pub(crate) window: usize,
    /// Looks at one function's filter: at once, and a second. A burst is looked at event by event,
    /// a flood is not.
    pub(crate) filter_looks: (f64, f64),
    /// Between two looks of another kind.
    pub(crate) look_interval: Duration,
    /// After an event, query-pci is asked once more after this time: VFs are enabled and disabled
    /// without an event, usually just before or after one.
    pub(crate) settle: Duration,
    /// Between looks that nothing has caused: query-pci and the filters of enabled functions. With
    /// the beat behind it, it is the longest that a change without an event goes unseen: 1.5 s is
    /// the goal.
    pub(crate) poll: Duration,
    /// Polls of all guests fall together at multiples of this: the processor is woken once for many.
    pub(crate) beat: Duration,
    /// What those multiples are counted from.
    pub(crate) epoch: Instant,
    /// A guest that sent no event and enabled or disabled nothing for so long is quiet.
    pub(crate) quiet: Duration,
    /// Between looks at everything that nothing has caused.
    pub(crate) audit: Duration,
    /// Requests: at once, and a second.
    pub(crate) requests: (f64, f64),
    /// Messages taken: at once, and a second.
    pub(crate) messages: (f64, f64),
    /// Bytes taken: at once, and a second.
    pub(crate) bytes: (f64, f64),
    /// How long a reply may take before the guest counts as interrupted.
    pub(crate) patience: Duration,
    /// How long a reply may take before the connection is given up.
    pub(crate) silence: Duration,
    /// Updates that carry nothing but counts go at most this often.
    pub(crate) counts_interval: Duration,
    /// Between attempts to connect: the first, and the longest.
    pub(crate) reconnect: (Duration, Duration),
    /// Between attempts after misbehaviour: the first, and the longest.
    pub(crate) punish: (Duration, Duration),
    /// A connection that lasted this long clears what was held against the peer.
    pub(crate) forgive: Duration,
    /// How long a QEMU that closed its socket may take to end before it counts as still there.
    pub(crate) farewell: Duration,
    /// How often a QEMU without a connection is checked for being there, where the kernel does not
    /// tell.
    pub(crate) vigil: Duration,
    /// Between two looks at what vDPA devices were given whose control queues are not seen.
    pub(crate) vdpa_config: Duration,
    /// Between two looks at backings that other processes hold as well.
    pub(crate) contested: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            line: 1 << 20,
            functions: 1024,
            window: 8,
            filter_looks: (64.0, 200.0),
            look_interval: Duration::from_millis(50),
            settle: Duration::from_millis(100),
            poll: Duration::from_millis(1200),
            beat: Duration::from_millis(100),
            epoch: Instant::now(),
            quiet: Duration::from_secs(10),
            audit: Duration::from_secs(60),
            requests: (256.0, 400.0),
            messages: (4000.0, 2000.0),
            bytes: (32e6, 8e6),
            patience: Duration::from_secs(3),
            silence: Duration::from_secs(60),
            counts_interval: Duration::from_secs(1),
            reconnect: (Duration::from_millis(20), Duration::from_secs(5)),
            punish: (Duration::from_secs(1), Duration::from_secs(60)),
            forgive: Duration::from_secs(60),
            farewell: Duration::from_millis(500),
            vigil: Duration::from_millis(500),
            contested: Duration::from_secs(2),
            vdpa_config: Duration::from_secs(5),
        }
    }
}

impl Limits {
    /// The first beat at `time` or after it.
    pub(crate) fn on_the_beat(&self, time: Instant) -> Instant {
        let since = time.saturating_duration_since(self.epoch).as_micros();
        let beat = self.beat.as_micros().max(1);
        let beats = u64::try_from(since.next_multiple_of(beat)).unwrap_or(u64::MAX);
        self.epoch.checked_add(Duration::from_micros(beats)).unwrap_or(time)
    }
}

/// A token bucket.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    tokens: f64,
    burst: f64,
    per_second: f64,
    filled: Instant,
}

impl Bucket {
    /// A full bucket of `burst` tokens that regains `per_second`.
    pub(crate) fn new((burst, per_second): (f64, f64), now: Instant) -> Self {
        Bucket { tokens: burst, burst, per_second, filled: now }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * self.per_second).min(self.burst);
        self.filled = self.filled.max(now);
    }

    /// Whether there is `amount`.
    pub(crate) fn has(&mut self, amount: f64, now: Instant) -> bool {
        self.fill(now);
        self.tokens >= amount
    }

    /// Takes `amount`, or nothing where there is not so much.
    pub(crate) fn take(&mut self, amount: f64, now: Instant) -> bool {
        let enough = self.has(amount, now);
        if enough {
            self.tokens -= amount;
        }
        enough
    }

    /// When one token will be there.
    pub(crate) fn next(&self) -> Instant {
        let missing = (1.0 - self.tokens).max(0.0);
        self.filled + Duration::from_secs_f64(missing / self.per_second)
    }
}

/// Waiting times that double from the first to the longest, each moved by up to a quarter so that
/// peers which failed together do not return together.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    attempts: u32,
}

impl Backoff {
    /// Starts at `first`.
    pub(crate) fn new((first, longest): (Duration, Duration)) -> Self {
        Backoff { first, longest, attempts: 0 }
    }

    /// The next waiting time. `chance` is any number; its low bits move the time.
    pub(crate) fn next(&mut self, chance: u64) -> Duration {
        let doubled = self.first.saturating_mul(1 << self.attempts.min(20));
        self.attempts = self.attempts.saturating_add(1);
        let parts = u32::try_from(chance % 513).unwrap_or(0);
        doubled.min(self.longest) * (768 + parts) / 1024
    }

    /// Starts again at the first.
    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new((10.0, 100.0), start);
        assert_eq!((0..50).filter(|_| bucket.take(1.0, start)).count(), 10);
        assert_eq!(bucket.next(), start + Duration::from_millis(10));
        let later = start + Duration::from_millis(55);
        assert_eq!((0..50).filter(|_| bucket.take(1.0, later)).count(), 5);
    }

    #[test]
    fn a_beat_is_at_or_after_its_time_and_the_same_for_all_in_between() {
        let limits = Limits::default();
        let at = |ms| limits.epoch + Duration::from_millis(ms);
        assert_eq!(limits.on_the_beat(at(0)), at(0));
        assert_eq!(limits.on_the_beat(at(1)), at(100));
        assert_eq!(limits.on_the_beat(at(100)), at(100));
        assert_eq!(limits.on_the_beat(at(1234)), at(1300));
    }

    proptest! {
        #[test]
        fn a_bucket_never_gives_more_than_its_burst_and_rate_allow(
            steps in proptest::collection::vec(0u64..50, 1..300),
        ) {
            let start = Instant::now();
            let mut bucket = Bucket::new((5.0, 200.0), start);
            let (mut now, mut taken) = (start, 0.0);
            for step in steps {
                now += Duration::from_millis(step);
                if bucket.take(1.0, now) { taken += 1.0; }
                let allowed = 5.0 + 200.0 * (now - start).as_secs_f64();
                prop_assert!(taken <= allowed + 1e-6);
            }
        }

        #[test]
        fn waiting_times_double_up_to_the_longest_and_move_by_a_quarter(chance in any::<u64>()) {
            let (first, longest) = (Duration::from_millis(20), Duration::from_secs(5));
            let mut backoff = Backoff::new((first, longest));
            for attempt in 0..40u32 {
                let even = (first * (1 << attempt.min(10))).min(longest);
                let wait = backoff.next(chance);
                prop_assert!(wait >= even * 3 / 4 && wait <= even * 5 / 4 + Duration::from_millis(1));
            }
        }
    }
}
