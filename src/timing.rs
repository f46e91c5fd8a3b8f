//! Where the time goes: how long foreign calls take, and how long mutators take to stop, for each call site.
//!
//! Off unless [`Vm::TIMED`](crate::Vm::TIMED) says so; then no crossing looks at a clock, and nothing of this is in the code. On, a foreign call reads the clock twice and takes an
//! uncontended lock.

use core::fmt;
use core::panic::Location;
use core::time::Duration;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Durations, counted by powers of two of nanoseconds.
///
/// # Examples
///
/// ```
/// use core::time::Duration;
/// use reentry::Histogram;
///
/// let mut histogram = Histogram::default();
/// for ns in [900, 1_000, 1_100, 50_000] {
///     histogram.record(Duration::from_nanos(ns));
/// }
/// assert_eq!(histogram.count(), 4);
/// assert_eq!(histogram.longest(), Duration::from_micros(50));
/// // Three of four took less than 2,048 ns.
/// assert_eq!(histogram.quantile(0.75), Duration::from_nanos(2047));
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram {
    /// Place n counts durations of n bits.
    counts: [u64; BITS],
    total: Duration,
    longest: Duration,
}

const BITS: usize = u64::BITS as usize + 1;

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; BITS], total: Duration::ZERO, longest: Duration::ZERO }
    }
}

impl Histogram {
    /// Counts a duration.
    pub fn record(&mut self, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.counts[(u64::BITS - nanoseconds.leading_zeros()) as usize] += 1;
        self.total = self.total.saturating_add(duration);
        self.longest = self.longest.max(duration);
    }

    /// How many durations were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Their sum.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.total
    }

    /// The longest.
    #[must_use]
    pub fn longest(&self) -> Duration {
        self.longest
    }

    /// A bound that the share `quantile` (0 to 1) of them did not exceed, good to a factor of two, and never above the longest.
    #[must_use]
    pub fn quantile(&self, quantile: f64) -> Duration {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a count"
        )]
        let wanted = (self.count() as f64 * quantile.clamp(0.0, 1.0)).ceil() as u64;
        let mut seen = 0;
        for (bits, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted && seen > 0 {
                let bound = 1_u64.checked_shl(bits as u32).map_or(u64::MAX, |bound| bound - 1);
                return Duration::from_nanos(bound).min(self.longest);
            }
        }
        self.longest
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} times, {:?} in all, half of them at most {:?}, 99 of 100 at most {:?}, longest {:?}",
            self.count(),
            self.total,
            self.quantile(0.5),
            self.quantile(0.99),
            self.longest
        )
    }
}

/// What was measured, by call site. Given by [`World::timings`](crate::World::timings).
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Timings {
    /// From leaving managed code to being managed again, waits for pauses included, by the site of the foreign call. Longest total first.
    pub in_foreign: Vec<(&'static Location<'static>, Histogram)>,
    /// From a pause's wish to the mutator's stop, by the site where it stopped. Longest total first.
    pub to_stop: Vec<(&'static Location<'static>, Histogram)>,
}

/// One histogram for each site.
#[derive(Default)]
pub(crate) struct Sites(Mutex<HashMap<&'static Location<'static>, Histogram>>);

impl Sites {
    /// Counts a duration.
    pub(crate) fn record(&self, site: &'static Location<'static>, duration: Duration) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(site).or_default().record(duration);
    }

    /// No other thread counts until the result is dropped.
    #[cfg(all(unix, not(loom), not(miri)))]
    pub(crate) fn held(&self) -> impl Sized + '_ {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was counted, longest total first.
    pub(crate) fn read(&self) -> Vec<(&'static Location<'static>, Histogram)> {
        let sites = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sites: Vec<_> = sites.iter().map(|(site, histogram)| (*site, histogram.clone())).collect();
        sites.sort_by_key(|(_, histogram)| core::cmp::Reverse(histogram.total()));
        sites
    }
}
