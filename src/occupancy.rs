//! Whether anybody is inside something that can end at any time: a count that costs its usual thread no locked instruction.
//!
//! # The protocol
//!
//! Whoever goes in counts itself and then looks whether the thing is open; whoever closes it stores "closed" and then looks at the counts. That is Dekker's handshake, with
//! the two fences of `sync.rs`. One thread, the *owner*, counts with plain loads and stores; all others share a second counter. Whoever finds the thing closed and both counters at
//! zero ends it, and a compare-exchange sees that one does.
//!
//! A thread that leaves and finds it closed uses the heavy fence before it looks at the other counter: who is counted there looked before the thing was closed, and its light
//! fence alone orders nothing for this thread.
//!
//! - **C1** Whoever was told that it is open is counted until it leaves.
//! - **C2** `close` and `leave` tell one caller to end the thing, when it is closed and nobody was told "open" who has not left.

use crate::faults::Faults;
use crate::sync::{AtomicU32, FenceStrategy, light_compiler_fence, light_fence};
use core::sync::atomic::Ordering;

const OPEN: u32 = 0;
const CLOSED: u32 = 1;
const ENDED: u32 = 2;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Occupancy {
    state: AtomicU32,
    /// How often the owner is inside. It alone writes.
    owner: AtomicU32,
    /// How often all others are.
    others: AtomicU32,
    fence: FenceStrategy,
}

/// As whom a thread goes in, and later out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Visitor {
    /// The one thread that never is the owner twice at the same time.
    Owner,
    /// Any.
    Other,
}

impl Occupancy {
    pub(crate) fn new(fence: FenceStrategy) -> Self {
        Self { state: AtomicU32::new(OPEN), owner: AtomicU32::new(0), others: AtomicU32::new(0), fence }
    }

    #[inline(always)]
    fn light(&self, faults: Faults) {
        if faults.has(Faults::NO_LIGHT_FENCE) {
            return;
        }
        if self.fence.light_is_a_fence() {
            light_fence();
        } else {
            light_compiler_fence();
        }
    }

    /// Goes in, and says whether it is open. Either way the caller [leaves](Self::leave).
    #[inline(always)]
    pub(crate) fn enter(&self, visitor: Visitor, faults: Faults) -> bool {
        match visitor {
            // Only this thread writes; pairs with the loads in `empty`, by the fences.
            Visitor::Owner => self.owner.store(self.owner.load(Ordering::Relaxed) + 1, Ordering::Relaxed),
            Visitor::Other => {
                self.others.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.light(faults);
        // Pairs with the store in `close`.
        self.state.load(Ordering::Acquire) == OPEN
    }

    /// Goes out. Says whether the caller must end the thing.
    #[inline(always)]
    #[must_use]
    pub(crate) fn leave(&self, visitor: Visitor, faults: Faults) -> bool {
        // Released for whoever ends it: what was done inside is done.
        match visitor {
            Visitor::Owner => self.owner.store(self.owner.load(Ordering::Relaxed) - 1, Ordering::Release),
            Visitor::Other => {
                self.others.fetch_sub(1, Ordering::Release);
            }
        }
        self.light(faults);
        // Pairs with the store in `close`.
        self.state.load(Ordering::Acquire) != OPEN && self.end()
    }

    /// Closes it: who goes in from now on is told so. Called once. Says whether the caller must end the thing.
    #[must_use]
    pub(crate) fn close(&self, faults: Faults) -> bool {
        if faults.has(Faults::CLOSURE_ENDED_AT_ONCE) {
            self.state.store(ENDED, Ordering::Release);
            return true;
        }
        self.state.store(CLOSED, Ordering::Release);
        self.end()
    }

    /// Whether it is closed and nobody is inside. A thread that comes in later finds it closed, and may be inside until it has left all the same.
    pub(crate) fn is_deserted(&self) -> bool {
        self.state.load(Ordering::Acquire) == ENDED && self.empty()
    }

    #[cold]
    #[inline(never)]
    fn end(&self) -> bool {
        // Pairs with itself: of several that find it empty one wins.
        self.empty()
            && self.state.compare_exchange(CLOSED, ENDED, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    fn empty(&self) -> bool {
        self.fence.heavy();
        // Pair with the stores in `leave`.
        self.owner.load(Ordering::Acquire) == 0 && self.others.load(Ordering::Acquire) == 0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![expect(clippy::missing_panics_doc, reason = "a test panics to fail")]

    use super::{Faults, FenceStrategy, Occupancy, Visitor};

    #[test]
    fn the_last_one_out_ends_it_and_nobody_else() {
        for fence in [FenceStrategy::Symmetric, FenceStrategy::probe()] {
            let occupancy = Occupancy::new(fence);
            assert!(
                occupancy.enter(Visitor::Owner, Faults::NONE)
                    && occupancy.enter(Visitor::Owner, Faults::NONE)
            );
            assert!(occupancy.enter(Visitor::Other, Faults::NONE));
            assert!(!occupancy.close(Faults::NONE), "three are inside");
            assert!(
                !occupancy.enter(Visitor::Other, Faults::NONE)
                    && !occupancy.leave(Visitor::Other, Faults::NONE)
            );
            assert!(
                !occupancy.leave(Visitor::Owner, Faults::NONE)
                    && !occupancy.leave(Visitor::Other, Faults::NONE)
            );
            assert!(!occupancy.is_deserted());
            assert!(occupancy.leave(Visitor::Owner, Faults::NONE), "the last");
            assert!(occupancy.is_deserted());
            assert!(!occupancy.enter(Visitor::Owner, Faults::NONE) && !occupancy.is_deserted());
            assert!(!occupancy.leave(Visitor::Owner, Faults::NONE) && occupancy.is_deserted());
        }
    }

    #[test]
    fn what_is_empty_is_ended_by_who_closes_it() {
        let occupancy = Occupancy::new(FenceStrategy::probe());
        assert!(
            occupancy.enter(Visitor::Owner, Faults::NONE) && !occupancy.leave(Visitor::Owner, Faults::NONE)
        );
        assert!(occupancy.close(Faults::NONE) && occupancy.is_deserted());
    }
}
