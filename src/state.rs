//! The state of a mutator: the pure transition table, and the one word it is published in.
//!
//! The frame word always holds the address of a record. With its lowest bit set, the mutator is *managed*, and the record is the one the running
//! activation will use for its next crossing. With the bit clear, the mutator is foreign or stopped, and the record is its newest, complete: so the state
//! and the frames a collector may walk are one atomic value (invariant I1), and nobody can observe "foreign" without a record.

use crate::faults::Faults;
use crate::sync::{AtomicPtr, AtomicU32, FenceStrategy, RETRACTION, light_compiler_fence, light_fence};
use core::fmt;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering;

/// What a mutator may do at this moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum State {
    /// May touch the heap, must poll.
    Managed,
    /// In a foreign call: must not touch the heap; a pause does not wait for it.
    Foreign,
    /// Waiting at a safepoint, or itself holding a pause.
    AtSafepoint,
}

/// What can happen to a mutator.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) enum Event {
    Poll,
    ForeignCall,
    Upcall,
    Pause,
    Detach,
    Relocate,
    Allocate,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Managed => "managed",
            Self::Foreign => "foreign",
            Self::AtSafepoint => "stopped at a safepoint",
        })
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Poll => "poll",
            Self::ForeignCall => "begin a foreign call",
            Self::Upcall => "receive an upcall",
            Self::Pause => "start a pause",
            Self::Detach => "detach",
            Self::Relocate => "relocate a stack",
            Self::Allocate => "allocate on the heap",
        })
    }
}

impl State {
    /// Returns the state `event` leads to, or what to tell whoever caused it.
    ///
    /// # Errors
    ///
    /// What to tell.
    pub(crate) const fn after(self, event: Event) -> Result<Self, &'static str> {
        match (self, event) {
            (Self::Managed, Event::Poll | Event::Relocate | Event::Allocate) => Ok(Self::Managed),
            (Self::Managed, Event::ForeignCall) => Ok(Self::Foreign),
            (Self::Managed, Event::Pause) => Ok(Self::AtSafepoint),
            (Self::Managed, Event::Detach) => Ok(Self::Managed),
            (Self::Managed, Event::Upcall) => Err(
                "an upcall function was called from managed code, or in a leaf call; call it from foreign code, inside `ForeignCall::run`",
            ),
            (Self::Foreign, Event::Upcall) => Ok(Self::Managed),
            (Self::Foreign, _) => {
                Err("it is inside a foreign call; only an upcall's own mutator is managed there")
            }
            (Self::AtSafepoint, Event::Upcall) => Err("the thread holds a pause; end the pause first"),
            (Self::AtSafepoint, _) => Err("it is stopped at a safepoint; let the pause end first"),
        }
    }
}

/// The words of a mutator that other threads look at.
///
/// `frame` is written by its own thread only, `poll` by whoever holds the coordinator's lock.
#[repr(C)]
pub(crate) struct CrossingWord<F> {
    frame: AtomicPtr<F>,
    poll: AtomicU32,
}

/// A pause or a handshake wants the mutator to stop.
pub(crate) const STOP: u32 = 1;

/// The world has been shut down, and has not waited for this mutator.
pub(crate) const ENDED: u32 = 4;

/// Something waits for the mutator's next poll; a transition need not stop for it.
pub(crate) const WAKE: u32 = 2;

/// Set for ever in a world with symmetric fences: "the word was read without a fence; fence and read again". One test of the word so serves
/// both strategies, and the asymmetric one pays for no other.
pub(crate) const FENCE_FIRST: u32 = 1 << 31;

/// The bit of the frame word that says "managed".
pub(crate) const MANAGED: usize = 1;

impl<F> CrossingWord<F> {
    /// Where the frame word is.
    pub(crate) const FRAME: usize = memoffset::offset_of!(Self, frame);
    /// Where the poll word is.
    pub(crate) const POLL: usize = memoffset::offset_of!(Self, poll);

    /// Makes the word of a mutator that is not attached.
    pub(crate) fn new(fence: FenceStrategy) -> Self {
        let poll = if fence.light_is_a_fence() { FENCE_FIRST } else { 0 };
        Self { frame: AtomicPtr::new(ptr::null_mut()), poll: AtomicU32::new(poll) }
    }

    #[inline(always)]
    fn managed(running: *const F) -> *mut F {
        const { assert!(align_of::<F>() > MANAGED) };
        // A record's address is even, and adding folds into the addressing of what follows.
        running.cast_mut().wrapping_byte_add(MANAGED)
    }

    /// Becomes foreign (or stopped): publishes `frame` and everything written before. Pairs with [`observe`](Self::observe).
    #[inline(always)]
    pub(crate) fn publish(&self, frame: *const F, faults: Faults) {
        let order = if faults.has(Faults::RELAXED_PUBLISH) { Ordering::Relaxed } else { Ordering::Release };
        self.frame.store(frame.cast_mut(), order);
    }

    /// Becomes managed, in the activation whose record is `running`, fences, and says whether the poll word is clear; unless it is,
    /// the caller must publish again and wait before it touches anything managed (I4).
    ///
    /// The load pairs with [`clear`](Self::clear): having seen the word cleared, this thread sees what the collector did. `between` says that this place has been reached.
    #[inline(always)]
    pub(crate) fn retract(&self, running: *const F, faults: Faults, between: impl FnOnce()) -> bool {
        self.frame.store(Self::managed(running), RETRACTION);
        between();
        // The processor may still read the poll word first; where no fence follows, the stopper's heavy fence takes care of that.
        light_compiler_fence();
        if self.poll.load(Ordering::Acquire) == 0 {
            return true;
        }
        self.look_again(faults)
    }

    #[inline(always)]
    fn look_again(&self, faults: Faults) -> bool {
        if self.poll.load(Ordering::Relaxed) & FENCE_FIRST != 0 && !faults.has(Faults::NO_LIGHT_FENCE) {
            light_fence();
        }
        !self.is_stopping()
    }

    /// Says whether the mutator must stop. Pairs with [`clear`](Self::clear).
    #[inline(always)]
    pub(crate) fn is_stopping(&self) -> bool {
        self.poll.load(Ordering::Acquire) & (STOP | ENDED) != 0
    }

    /// Says whether the world has ended without this mutator. Pairs with [`ask`](Self::ask); the coordinator's lock orders the rest.
    pub(crate) fn is_ended(&self) -> bool {
        self.poll.load(Ordering::Acquire) & ENDED != 0
    }

    /// Takes the bits that ask for something at the next poll. For its own thread. Pairs with [`ask`](Self::ask).
    pub(crate) fn take_wake(&self) -> bool {
        self.poll.load(Ordering::Relaxed) & WAKE != 0
            && self.poll.fetch_and(!WAKE, Ordering::Acquire) & WAKE != 0
    }

    /// The word as its own thread last wrote it; no other writes it.
    #[inline(always)]
    fn own(&self) -> *mut F {
        // SAFETY: a plain read can only race with a write, and every write of the word is this thread's.
        unsafe { crate::sync::load_unshared(&self.frame) }
    }

    /// Makes managed a mutator that no stopper can see, or whose own thread holds the pause.
    pub(crate) fn reset(&self, running: *const F) {
        self.frame.store(Self::managed(running), RETRACTION);
    }

    /// Says whether nobody wants anything of this mutator: the poll, one load and one branch. Pairs with [`clear`](Self::clear).
    #[inline(always)]
    pub(crate) fn is_clear(&self) -> bool {
        self.poll.load(Ordering::Acquire) & !FENCE_FIRST == 0
    }

    /// The record in the word, managed or not. For its own thread.
    #[inline(always)]
    pub(crate) fn record(&self) -> *const F {
        self.own().map_addr(|address| address & !MANAGED)
    }

    /// The record in the word, and whether the mutator is managed. For its own thread.
    pub(crate) fn newest(&self) -> (*const F, bool) {
        let word = self.own();
        (word.map_addr(|address| address & !MANAGED), word.addr() & MANAGED != 0)
    }

    /// Says whether the mutator is managed, in the activation whose record is `running`. For its own thread.
    #[inline(always)]
    pub(crate) fn is_managed_in(&self, running: *const F) -> bool {
        self.own() == Self::managed(running)
    }

    /// Says whether `frame` is published. For its own thread.
    #[inline(always)]
    pub(crate) fn is_published(&self, frame: *const F) -> bool {
        self.own().cast_const() == frame
    }

    /// The published record; `None` while managed. For its own thread, while attached.
    #[inline(always)]
    pub(crate) fn published(&self) -> Option<NonNull<F>> {
        let word = self.own();
        if word.addr() & MANAGED != 0 {
            return None;
        }
        // SAFETY: the word of an attached mutator is the address of a record, plus MANAGED or not.
        Some(unsafe { NonNull::new_unchecked(word) })
    }

    /// The published record as another thread sees it, complete; null while managed. Pairs with [`publish`](Self::publish).
    #[inline(always)]
    pub(crate) fn observe(&self) -> *const F {
        let word = self.frame.load(Ordering::Acquire);
        if word.addr() & MANAGED == 0 { word } else { ptr::null() }
    }

    /// The record in the word as another thread sees it, managed or not. Pairs with [`release_fence`](crate::sync::release_fence): the record is whole, and of it only what any thread may read is read.
    pub(crate) fn latest(&self) -> *const F {
        self.frame.load(Ordering::Acquire).map_addr(|address| address & !MANAGED)
    }

    /// Asks the mutator to do what `bits` say. Ordered against the mutator's state by the stopper's heavy fence, which follows.
    pub(crate) fn ask(&self, bits: u32) {
        self.poll.fetch_or(bits, Ordering::Relaxed);
    }

    /// Asks its thread to look at its mailbox at the next poll. Publishes what was posted; pairs with [`take_wake`](Self::take_wake).
    pub(crate) fn wake(&self) {
        self.poll.fetch_or(WAKE, Ordering::Release);
    }

    /// Takes `bits` back, publishing what the collector did. Pairs with [`is_clear`](Self::is_clear).
    pub(crate) fn clear(&self, bits: u32, faults: Faults) {
        let order = if faults.has(Faults::RELAXED_RESUME) { Ordering::Relaxed } else { Ordering::Release };
        self.poll.fetch_and(!bits, order);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::missing_panics_doc, reason = "a test panics to fail")]

    use super::{Event, State};

    #[test]
    fn only_a_managed_mutator_may_begin_anything() {
        for event in
            [Event::Poll, Event::ForeignCall, Event::Pause, Event::Detach, Event::Relocate, Event::Allocate]
        {
            assert!(State::Managed.after(event).is_ok(), "{event}");
            assert!(State::Foreign.after(event).is_err(), "{event}");
            assert!(State::AtSafepoint.after(event).is_err(), "{event}");
        }
    }

    #[test]
    fn only_a_foreign_mutator_receives_an_upcall_and_it_is_managed_then() {
        assert_eq!(State::Foreign.after(Event::Upcall), Ok(State::Managed));
        assert!(State::Managed.after(Event::Upcall).is_err());
        assert!(State::AtSafepoint.after(Event::Upcall).is_err());
    }
}
