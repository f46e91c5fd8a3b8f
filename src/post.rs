//! [`Poster`]: posting work to a mutator, and doing it at a poll.

use crate::mailbox::{Mailbox, PostError};
use crate::mutator::Mutator;
use crate::pause::Shared;
use crate::record::Header;
use crate::vm::StackScanner;
use core::fmt;
use core::ptr::NonNull;
use std::sync::Arc;

/// Posts work to one mutator, from any thread in any state, signal handlers included. Made by [`Mutator::poster`].
///
/// [`post`](Self::post) never blocks: no lock, no allocation, no system call, a bounded number of steps. Cloning and dropping a poster are ordinary operations
/// that are not for signal handlers.
pub struct Poster<V: StackScanner> {
    mailbox: Arc<Mailbox>,
    header: NonNull<Header>,
    /// Keeps the header in memory.
    world: Arc<Shared<V>>,
}

// SAFETY: of the header it uses the poll word, which is for every thread.
unsafe impl<V: StackScanner> Send for Poster<V> {}
// SAFETY: as above.
unsafe impl<V: StackScanner> Sync for Poster<V> {}

impl<V: StackScanner> Clone for Poster<V> {
    fn clone(&self) -> Self {
        Self { mailbox: Arc::clone(&self.mailbox), header: self.header, world: Arc::clone(&self.world) }
    }
}

impl<V: StackScanner> Poster<V> {
    /// Posts `work`, which the mutator's thread runs with `data` at its next [poll](Mutator::poll), managed: it may do what managed code may do.
    ///
    /// Work that polls does no other posted work: what has been posted meanwhile is done at the next poll after it, so work does not nest.
    /// A mutator that is foreign does it at its first poll after it came back. Posts may be done in another order than they were made. What a mutator has not done when it
    /// detaches is dropped.
    ///
    /// # Errors
    ///
    /// If no place is left, or the mutator has detached. Nothing has been posted then.
    pub fn post(&self, work: fn(&mut Mutator<V>, usize), data: usize) -> Result<(), PostError> {
        self.mailbox.put((work as *const (), data), V::FAULTS)?;
        // SAFETY: the world keeps the header in memory. If another mutator uses it by now, that one looks into a mailbox of its own.
        unsafe { self.header.as_ref() }.word.wake();
        Ok(())
    }
}

impl<V: StackScanner> fmt::Debug for Poster<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poster").field("attached", &self.world.coordinator.attached()).finish_non_exhaustive()
    }
}

impl<V: StackScanner> Mutator<V> {
    /// Makes something that posts work to this mutator from threads that must not wait. See [`Poster`].
    ///
    /// # Examples
    ///
    /// ```
    /// use core::sync::atomic::{AtomicUsize, Ordering};
    /// use reentry::World;
    /// use reentry::testkit::TestVm;
    ///
    /// static SUM: AtomicUsize = AtomicUsize::new(0);
    /// let world = World::new(TestVm::new());
    /// let mut mutator = world.attach()?;
    /// let poster = mutator.poster();
    /// std::thread::spawn(move || poster.post(|_, data| SUM.store(data, Ordering::Relaxed), 7)).join().unwrap()?;
    /// assert_eq!(SUM.load(Ordering::Relaxed), 0);
    /// mutator.poll();
    /// assert_eq!(SUM.load(Ordering::Relaxed), 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn poster(&mut self) -> Poster<V> {
        let header = self.header();
        let mut mailbox = header.mailbox.borrow_mut();
        let mailbox = Arc::clone(mailbox.get_or_insert_with(|| Arc::new(Mailbox::new())));
        Poster { mailbox, header: NonNull::from(header), world: self.kept_world() }
    }
}
