//! Handshakes: a closure run for one mutator while that one is stopped, and no other.
//!
//! A mutator that polls stops for it; one that is foreign is not waited for: the closure runs on its behalf, and it waits on its way back if it comes back meanwhile. The
//! protocol is that of a pause with one mutator, so the thread that asks runs the closure in either case. JDK JEP 312 is the model.

use crate::mutator::Mutator;
use crate::pause::{Shared, StoppedMutator, Those};
use crate::registry::{Ask, PauseHeldHere};
use crate::state::Event;
use crate::transition::{at_safepoint, refuse_wait_in_own_pause};
use crate::vm::{StackScanner, Wanted};
use core::panic::Location;

impl<V: StackScanner> Shared<V> {
    /// Runs `f` for the mutator numbered `id` while it is stopped. Returns `None` if there is no such mutator.
    ///
    /// # Errors
    ///
    /// The calling thread holds a pause or a handshake already.
    pub(crate) fn handshake<R>(
        &self,
        id: u64,
        site: &'static Location<'static>,
        f: impl FnOnce(&StoppedMutator<'_, V>) -> R,
    ) -> Result<Option<R>, PauseHeldHere> {
        let stopped = self.stop_those(Those::One(id), site)?;
        let mutator = stopped.mutators().next();
        Ok(mutator.map(|mutator| f(&mutator)))
    }

    /// Runs `f` for each mutator that is attached now and stays so, one after the other.
    ///
    /// # Errors
    ///
    /// The calling thread holds a pause or a handshake already.
    pub(crate) fn handshake_each<R>(
        &self,
        site: &'static Location<'static>,
        mut f: impl FnMut(&StoppedMutator<'_, V>) -> R,
    ) -> Result<Vec<R>, PauseHeldHere> {
        let mut results = Vec::new();
        // SAFETY: null, or this thread's attached record.
        let own = unsafe { self.current().as_ref() };
        let ask = Ask::at(Wanted::Mutators, site);
        for id in self.coordinator.ids(own.map_or(ask, |own| ask.by(own.header.id.get())))? {
            results.extend(self.handshake(id, site, &mut f)?);
        }
        Ok(results)
    }
}

impl<V: StackScanner> Mutator<V> {
    /// Runs `f` for the mutator numbered `id` while that one is stopped at a safepoint or foreign, and no other: a handshake. Returns `None` if there is no such
    /// mutator.
    ///
    /// This mutator counts as stopped while it waits, so two that shake hands with each other do not wait for ever. With its own number `f` runs at once. What this
    /// activation did not root may have moved when it returns. Pauses, attaches and detaches wait until the handshake is over.
    ///
    /// # Panics
    ///
    /// If this thread holds a pause or a handshake of this world already, and with whatever `f` panics with.
    ///
    /// # Examples
    ///
    /// ```
    /// # use reentry::testkit::TestVm;
    /// # use reentry::World;
    /// let world = World::new(TestVm::new());
    /// let mut mutator = world.attach()?;
    /// let me = mutator.id();
    /// let depth = mutator.handshake(me, |stopped| stopped.activations().count());
    /// assert_eq!(depth, Some(1));
    /// assert_eq!(mutator.handshake(u64::MAX, |_| ()), None);
    /// # Ok::<(), reentry::AttachError>(())
    /// ```
    #[track_caller]
    pub fn handshake<R>(&mut self, id: u64, f: impl FnOnce(&StoppedMutator<'_, V>) -> R) -> Option<R> {
        let site = Location::caller();
        at_safepoint::<V, _>(self.header(), self.frame(), Event::Pause, None, site, || {
            let shaken = self.shared().handshake(id, site, f);
            shaken.unwrap_or_else(|PauseHeldHere| refuse_wait_in_own_pause("a handshake", site))
        })
    }

    /// [`handshake`](Self::handshake) with every mutator that is attached now, this one included, one after the other: none waits for another. Returns the results; a
    /// mutator that detaches meanwhile has none.
    ///
    /// # Panics
    ///
    /// As [`handshake`](Self::handshake).
    #[track_caller]
    pub fn handshake_each<R>(&mut self, f: impl FnMut(&StoppedMutator<'_, V>) -> R) -> Vec<R> {
        let site = Location::caller();
        at_safepoint::<V, _>(self.header(), self.frame(), Event::Pause, None, site, || {
            let shaken = self.shared().handshake_each(site, f);
            shaken.unwrap_or_else(|PauseHeldHere| refuse_wait_in_own_pause("a handshake", site))
        })
    }
}
