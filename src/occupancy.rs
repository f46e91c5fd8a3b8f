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
//! Ending the thing and giving back its memory are two matters. Who leaves looks at the state after it has counted itself out, and may have to end the thing then; so there is a second count, of those
//! for whom the memory must be there, and giving that one back is the last thing a visitor does.
//!
//! - **C1** Whoever was told that it is open is counted until it leaves.
//! - **C2** `close` and `leave` tell one caller to end the thing, when it is closed and nobody was told "open" who has not left.
//! - **C3** Nobody who came in before it was closed touches it once it [is deserted](Occupancy::is_deserted), nor does who ends it.

use crate::faults::Faults;
use crate::sync::{AtomicU32, AtomicUsize, FenceStrategy, light_compiler_fence, light_fence};
use core::sync::atomic::Ordering;

const OPEN: u32 = 0;
const CLOSED: u32 = 1;
const ENDED: u32 = 2;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Occupancy {
    state: AtomicU32,
    /// The owner's. It alone writes.
    owner: AtomicUsize,
    /// Those of all others.
    others: AtomicUsize,
    fence: FenceStrategy,
    /// Stands for the memory (C3): the last look of whoever was told "open", and what is done once it is deserted.
    #[cfg(loom)]
    memory: crate::sync::UnsafeCell<()>,
}

/// A visitor inside: the low half of a word counts them.
const INSIDE: usize = 1;

/// A visitor inside or on the way out, who needs the memory: the high half counts them.
const PRESENT: usize = 1 << (usize::BITS / 2);

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
        Self {
            state: AtomicU32::new(OPEN),
            owner: AtomicUsize::new(0),
            others: AtomicUsize::new(0),
            fence,
            #[cfg(loom)]
            memory: crate::sync::UnsafeCell::new(()),
        }
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
            // Only this thread writes; pairs with the loads in `empty` and `is_deserted`, by the fences.
            Visitor::Owner => {
                self.owner.store(self.owner.load(Ordering::Relaxed) + PRESENT + INSIDE, Ordering::Relaxed);
            }
            Visitor::Other => {
                self.others.fetch_add(PRESENT + INSIDE, Ordering::Relaxed);
            }
        }
        self.light(faults);
        // Pairs with the store in `close`.
        self.state.load(Ordering::Acquire) == OPEN
    }

    /// Goes out, and runs `end` if the caller is the one that must end the thing. When this returns its memory may be gone.
    #[inline(always)]
    pub(crate) fn leave(&self, visitor: Visitor, faults: Faults, end: impl FnOnce()) {
        // Released for whoever ends it: what was done inside is done.
        match visitor {
            Visitor::Owner => {
                self.owner.store(self.owner.load(Ordering::Relaxed) - INSIDE, Ordering::Release)
            }
            Visitor::Other => {
                self.others.fetch_sub(INSIDE, Ordering::Release);
            }
        }
        self.light(faults);
        // Pairs with the store in `close`.
        if self.state.load(Ordering::Acquire) != OPEN && self.end() {
            end();
        }
        #[cfg(loom)]
        self.memory.with(|_| ());
        // Released for whoever gives the memory back (C3). Nothing of `self` is touched after this.
        match visitor {
            Visitor::Owner => {
                self.owner.store(self.owner.load(Ordering::Relaxed) - PRESENT, Ordering::Release)
            }
            Visitor::Other => {
                self.others.fetch_sub(PRESENT, Ordering::Release);
            }
        }
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

    /// Whether it has been ended, and who was there has gone (C3). A thread that comes in later finds it closed, and may be there until it has left all the same.
    pub(crate) fn is_deserted(&self, faults: Faults) -> bool {
        if self.state.load(Ordering::Acquire) != ENDED {
            return false;
        }
        self.fence.heavy();
        // Pair with the last stores in `leave`.
        let deserted = faults.has(Faults::DESERTED_WHEN_ENDED)
            || self.owner.load(Ordering::Acquire) < PRESENT && self.others.load(Ordering::Acquire) < PRESENT;
        #[cfg(loom)]
        if deserted {
            self.memory.with_mut(|_| ());
        }
        deserted
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
        // Pair with the first stores in `leave`.
        [&self.owner, &self.others].iter().all(|count| count.load(Ordering::Acquire) % PRESENT == 0)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![expect(clippy::missing_panics_doc, reason = "a test panics to fail")]

    use super::{Faults, FenceStrategy, Occupancy, Visitor};

    fn enter(occupancy: &Occupancy, visitor: Visitor) -> bool {
        occupancy.enter(visitor, Faults::NONE)
    }

    /// Leaves, and says whether it had to end the thing.
    fn leave(occupancy: &Occupancy, visitor: Visitor) -> bool {
        let mut ended = false;
        occupancy.leave(visitor, Faults::NONE, || ended = true);
        ended
    }

    #[test]
    fn the_last_one_out_ends_it_and_nobody_else() {
        for fence in [FenceStrategy::Symmetric, FenceStrategy::probe()] {
            let occupancy = Occupancy::new(fence);
            assert!(enter(&occupancy, Visitor::Owner) && enter(&occupancy, Visitor::Owner));
            assert!(enter(&occupancy, Visitor::Other));
            assert!(!occupancy.close(Faults::NONE), "three are inside");
            assert!(!enter(&occupancy, Visitor::Other) && !leave(&occupancy, Visitor::Other));
            assert!(!leave(&occupancy, Visitor::Owner) && !leave(&occupancy, Visitor::Other));
            assert!(!occupancy.is_deserted(Faults::NONE));
            assert!(leave(&occupancy, Visitor::Owner), "the last");
            assert!(occupancy.is_deserted(Faults::NONE));
            assert!(!enter(&occupancy, Visitor::Owner) && !occupancy.is_deserted(Faults::NONE));
            assert!(!leave(&occupancy, Visitor::Owner) && occupancy.is_deserted(Faults::NONE));
        }
    }

    #[test]
    fn who_ends_it_is_there_until_that_is_done() {
        for visitor in [Visitor::Owner, Visitor::Other] {
            let occupancy = Occupancy::new(FenceStrategy::probe());
            assert!(enter(&occupancy, visitor) && !occupancy.close(Faults::NONE));
            let mut ended = false;
            occupancy.leave(visitor, Faults::NONE, || {
                ended = true;
                assert!(!occupancy.is_deserted(Faults::NONE));
            });
            assert!(ended && occupancy.is_deserted(Faults::NONE));
        }
    }

    #[test]
    fn what_is_empty_is_ended_by_who_closes_it() {
        let occupancy = Occupancy::new(FenceStrategy::probe());
        assert!(enter(&occupancy, Visitor::Owner) && !leave(&occupancy, Visitor::Owner));
        assert!(occupancy.close(Faults::NONE) && occupancy.is_deserted(Faults::NONE));
    }
}
