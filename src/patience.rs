//! The clock of a wait. It runs in the thread that waits, so that a crossing pays nothing for it.
//!
//! A wait that is over soon looks at no clock: the first reading is made when the thread is about to sleep.
//! Under loom, which has no clock, nothing is ever due.

use crate::sync::{Condvar, MutexGuard, wait};
use core::time::Duration;

/// How long a wait has lasted, and when it is reported next: when it has lasted as long as the world was
/// told to bear, and then each time that it has lasted twice as long.
pub(crate) struct Patience {
    #[cfg(not(loom))]
    began: Option<std::time::Instant>,
    /// How long the wait must have lasted; `None` if it is never reported.
    #[cfg(not(loom))]
    limit: Option<Duration>,
}

impl Patience {
    /// A wait that begins now, and is reported when it has lasted for `limit`.
    pub(crate) fn new(limit: Option<Duration>) -> Self {
        #[cfg(loom)]
        let _ = limit;
        Self {
            #[cfg(not(loom))]
            began: None,
            #[cfg(not(loom))]
            limit,
        }
    }

    /// How long the wait has lasted since this was first asked; `None` if nothing is reported.
    #[cfg(not(loom))]
    fn lasted(&mut self) -> Option<Duration> {
        self.limit?;
        Some(self.began.get_or_insert_with(std::time::Instant::now).elapsed())
    }

    /// Sleeps until `condvar` is signalled, or a report is due.
    pub(crate) fn sleep<'g, T>(&mut self, condvar: &Condvar, guard: MutexGuard<'g, T>) -> MutexGuard<'g, T> {
        #[cfg(not(loom))]
        if let (Some(lasted), Some(limit)) = (self.lasted(), self.limit) {
            return crate::sync::wait_for(condvar, guard, limit.saturating_sub(lasted));
        }
        wait(condvar, guard)
    }

    /// Says how long the wait has lasted if it is to be reported now.
    #[must_use]
    pub(crate) fn due(&mut self) -> Option<Duration> {
        #[cfg(not(loom))]
        {
            let lasted = self.lasted().filter(|&lasted| self.limit.is_some_and(|limit| lasted >= limit))?;
            self.limit = Some(lasted.saturating_mul(2).max(Duration::from_millis(1)));
            Some(lasted)
        }
        #[cfg(loom)]
        None
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![expect(clippy::missing_panics_doc, reason = "a test panics to fail")]

    use super::Patience;
    use core::time::Duration;

    #[test]
    fn a_wait_is_due_at_its_limit_and_then_each_time_it_has_lasted_twice_as_long() {
        let mut patience = Patience::new(Some(Duration::from_millis(20)));
        assert_eq!(patience.due(), None);
        std::thread::sleep(Duration::from_millis(21));
        let first = patience.due().expect("the limit has passed");
        assert!(first >= Duration::from_millis(20), "{first:?}");
        assert_eq!(patience.due(), None, "told just now");
        std::thread::sleep(first);
        let second = patience.due().expect("twice as long");
        assert!(second >= 2 * first, "{second:?} after {first:?}");
    }

    #[test]
    fn a_wait_without_a_limit_is_never_due() {
        let mut patience = Patience::new(None);
        assert_eq!(patience.due(), None);
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(patience.due(), None);
    }
}
