//! Work for a mutator from threads that must not wait: audio callbacks, signal handlers.
//!
//! A post fills one of a fixed number of places and sets a bit of the mutator's poll word. It takes no lock, allocates nothing, makes no system call, and ends after a
//! bounded number of steps whatever other threads do, so it is safe in a signal handler. The mutator does what was posted at its next
//! [poll](crate::Mutator::poll).
//!
//! A place is free, being filled, or full. A thread that is stopped for good while it fills one loses that place and nothing else.

use crate::faults::Faults;
use crate::sync::{AtomicU32, Cell};
use core::sync::atomic::Ordering;

/// How many places a mailbox has.
pub(crate) const CAPACITY: usize = if cfg!(loom) { 2 } else { 64 };

const FREE: u32 = 0;
const FILLING: u32 = 1;
const FULL: u32 = 2;

/// A piece of work: a function of the mutator and a word, type-erased, and the word.
pub(crate) type Work = (*const (), usize);

struct Place {
    state: AtomicU32,
    /// Written by whoever made the state `FILLING`, read by the mutator's thread while it is `FULL`.
    work: Cell<Work>,
}

/// The places of one mutator.
pub(crate) struct Mailbox {
    places: [Place; CAPACITY],
    closed: AtomicU32,
}

// SAFETY: each place is handed from one thread to another by its state (see `Place`); a function pointer and a word can be used anywhere.
unsafe impl Send for Mailbox {}
// SAFETY: as above.
unsafe impl Sync for Mailbox {}

/// Why work was not posted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PostError {
    /// No place is left: the mutator has not polled for long.
    #[error("no place is left: {CAPACITY} posts wait for the mutator's next poll")]
    Full,
    /// The mutator has detached.
    #[error("the mutator has detached; nothing is posted")]
    Detached,
}

impl Mailbox {
    pub(crate) fn new() -> Self {
        let place = || Place { state: AtomicU32::new(FREE), work: Cell::new((core::ptr::null(), 0)) };
        Self { places: core::array::from_fn(|_| place()), closed: AtomicU32::new(0) }
    }

    /// Fills a place. At most [`CAPACITY`] steps.
    ///
    /// # Errors
    ///
    /// There is no place, or the mailbox is closed.
    pub(crate) fn put(&self, work: Work, faults: Faults) -> Result<(), PostError> {
        // What is put while the mailbox closes is lost, as what was put just before.
        if self.closed.load(Ordering::Relaxed) != 0 {
            return Err(PostError::Detached);
        }
        for place in &self.places {
            // Acquire pairs with the release in `take`: the work read there is not written here before that.
            let free = place.state.compare_exchange(FREE, FILLING, Ordering::Acquire, Ordering::Relaxed);
            if free.is_ok() {
                place.work.set(work);
                // Pairs with the load in `take`.
                let order =
                    if faults.has(Faults::RELAXED_POST) { Ordering::Relaxed } else { Ordering::Release };
                place.state.store(FULL, order);
                return Ok(());
            }
        }
        Err(PostError::Full)
    }

    /// Takes the work of each full place, in the order of the places. For the mutator's thread.
    pub(crate) fn take(&self, mut each: impl FnMut(Work)) {
        for place in &self.places {
            // Pairs with `put`: this thread sees the work, and what its sender did before.
            if place.state.load(Ordering::Acquire) == FULL {
                let work = place.work.get();
                place.state.store(FREE, Ordering::Release);
                each(work);
            }
        }
    }

    /// Refuses work from now on.
    pub(crate) fn close(&self) {
        self.closed.store(1, Ordering::Relaxed);
    }
}
