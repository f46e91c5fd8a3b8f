//! Fibers: chains of activations that a thread takes up and puts down, and that another may take up.
//!
//! A fiber library switches native stacks; this file keeps the collector's view right across the switch. A fiber has a mutator of its own, with its own records and roots. It is always
//! attached: suspended, its chain is published and scanned as that of any foreign mutator; resumed, it is the mutator of the thread that resumed it, which is foreign meanwhile.
//!
//! | who | calls | what happens |
//! |---|---|---|
//! | the resumer, managed | [`Mutator::resume`] | its record is published; the fiber becomes a mutator of this thread; `switch` runs |
//! | the fiber's stack, first time | [`Fiber::run`] | as an upcall: managed, with a [`Mutator`] of the fiber |
//! | the fiber, managed | [`Mutator::suspend`] | its record is published; `switch` leads back to the resumer |
//! | the resumer | `switch` returns | the fiber is no thread's; the resumer is managed again |
//! | the resumer, later, on any thread | [`Mutator::resume`] | `switch` of `suspend` returns on the fiber's stack: managed again |

use crate::activation::{ForeignFrame, Terms, Upcalls};
use crate::anchor::Anchor;
use crate::mutator::Mutator;
use crate::pause::Shared;
use crate::record::{FiberError, FiberState};
use crate::registry::AttachError;
use crate::state::Event;
use crate::sync::thread_token;
use crate::thread::{Record, link, unlink};
use crate::transition::{Manner, cross_out, refuse, resume_pending, with_capture};
use crate::unwind;
use crate::upcall::run_on;
use crate::vm::{Crossing, FrameKind, StackScanner};
use crate::world::{Attachment, World};
use core::fmt;
use core::panic::Location;
use core::ptr::NonNull;
use std::sync::{Arc, Weak};

/// A chain of activations that threads take up and put down: the managed side of a fiber. Made by [`World::fiber`].
///
/// Dropping it while its activations are suspended gives up what they hold, and is reported ([`Report::FiberDropped`](crate::Report::FiberDropped)): drop the stack first, inside
/// [`Mutator::resume`], so that its destructors run. A collector may drop fibers in a pause: they end when the pause does.
///
/// It does not keep its world: a scheduler's VM can keep its own fibers. Nothing is lost by that, since only a
/// thread that is attached can resume a fiber, and that thread keeps the world. When the world ends,
/// its fibers end with it, and those that are suspended are reported.
pub struct Fiber<V: StackScanner> {
    /// Used only while the world lives.
    record: NonNull<Record<V>>,
    /// The number of its mutator.
    id: u64,
    state: Arc<FiberState>,
    shared: Weak<Shared<V>>,
}

// SAFETY: the record is used by the thread that has made its state `Running`, by a stopper in a pause, or under the registry's lock; `V::Local` is `Send`.
unsafe impl<V: StackScanner> Send for Fiber<V> {}
// SAFETY: as above.
unsafe impl<V: StackScanner> Sync for Fiber<V> {}

impl<V: StackScanner> World<V> {
    /// Makes a fiber: a mutator that is no thread's. It counts as attached, and foreign, until it is resumed. Waits for nothing, and is no safepoint.
    ///
    /// # Errors
    ///
    /// If the world has been shut down.
    ///
    /// # Examples
    ///
    /// With a fiber that is run to its end at once, so that an ordinary call stands for the switch of stacks:
    ///
    /// ```
    /// use reentry::World;
    /// use reentry::testkit::TestVm;
    ///
    /// let world = World::new(TestVm::new());
    /// let mut mutator = world.attach()?;
    /// let fiber = world.fiber()?;
    /// let depth = mutator.resume(&fiber, || fiber.run(|mutator| mutator.depth()))??;
    /// assert_eq!((depth, world.attached()), (1, 2));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn fiber(&self) -> Result<Fiber<V>, AttachError> {
        let state = Arc::new(FiberState::new());
        let record = self.shared().attach_fiber(&state)?;
        let id = record.header.id.get();
        Ok(Fiber { record: NonNull::from(record), id, state, shared: Arc::downgrade(self.shared()) })
    }
}

impl<V: StackScanner> Fiber<V> {
    /// # Safety
    ///
    /// The world lives, as long as the result is used.
    unsafe fn record(&self) -> &Record<V> {
        // SAFETY: records live as long as their world.
        unsafe { self.record.as_ref() }
    }

    /// The number of its mutator.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Enters the fiber: runs `body` managed, with the fiber's own mutator. Called on the fiber's stack, while the fiber is [resumed](Mutator::resume) on this thread.
    ///
    /// # Errors
    ///
    /// If the fiber has not been resumed here, or has been entered already; if this thread holds a pause, or the world was shut down without waiting for the fiber.
    ///
    /// # Panics
    ///
    /// With what `body` panics with; the fiber can be entered again then.
    pub fn run<R>(&self, body: impl FnOnce(&mut Mutator<V>) -> R) -> Result<R, FiberError> {
        if !self.state.is_running_on(thread_token()) {
            return Err(FiberError::NotResumed);
        }
        // SAFETY: resumed on this thread, by a mutator of its world, which is attached and in that call still.
        let record = unsafe { self.record() };
        let header = &record.header;
        if !header.word.is_published(&raw const header.base) {
            return Err(FiberError::Entered);
        }
        if header.coordinator().is_held_here() {
            return Err(FiberError::PauseHeldHere);
        }
        let mut outcome = None;
        self.state.set_in_run(true);
        run_on(record, |mutator| outcome = Some(unwind::stop(|| body(mutator))));
        self.state.set_in_run(false);
        match outcome {
            Some(Ok(result)) => Ok(result),
            Some(Err(payload)) => unwind::resume(payload),
            None => Err(FiberError::WorldEnded),
        }
    }
}

impl<V: StackScanner> Drop for Fiber<V> {
    fn drop(&mut self) {
        #[cfg(all(unix, not(loom)))]
        if self.state.is_lost() {
            return; // its record is leaked: the thread that ran it may have left it torn
        }
        // Without its world the mutator has ended: see `Shared::end_fibers`.
        let Some(shared) = self.shared.upgrade() else { return };
        if !self.state.end() {
            unwind::abort(format_args!("fiber {} was dropped while it runs", self.id()));
        }
        // SAFETY: the world lives.
        let header = unsafe { &self.record().header };
        header.keep_fiber_state();
        if shared.coordinator.dismiss_fiber(header) {
            // SAFETY: this is its `Fiber`, and it has just been dismissed.
            unsafe { shared.end_fiber(header) };
        }
    }
}

impl<V: StackScanner> fmt::Debug for Fiber<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fiber").field("id", &self.id()).finish_non_exhaustive()
    }
}

impl<V: StackScanner> Attachment<V> {
    /// [`Mutator::resume_at`], where the anchor may be computed from the attachment itself.
    ///
    /// # Errors
    ///
    /// As [`Mutator::resume_at`].
    ///
    /// # Panics
    ///
    /// As [`Mutator::resume_at`].
    #[track_caller]
    pub fn resume_at<R>(
        &mut self,
        anchor: Anchor,
        fiber: &Fiber<V>,
        switch: impl FnOnce() -> R,
    ) -> Result<R, FiberError> {
        (**self).resume_at(anchor, fiber, switch)
    }
}

impl<V: StackScanner> Mutator<V> {
    /// Takes `fiber` up on this thread, and runs `switch`, which changes to its stack; returns when the fiber has suspended or ended, and `switch` has come back.
    ///
    /// This mutator is foreign meanwhile, and its frames are scanned as those of a foreign call.
    ///
    /// # Errors
    ///
    /// If the fiber is running already, belongs to another world, or has foreign frames of another thread on its stack.
    ///
    /// # Panics
    ///
    /// With what `switch` panics with: a fiber library hands on the panic of a fiber that ends with one.
    ///
    /// # Aborts
    ///
    /// If `switch` comes back and the fiber has neither suspended nor ended: it was switched away from outside [`Mutator::suspend`], managed or in a foreign call of its own. If `switch`
    /// comes back on another thread.
    #[track_caller]
    pub fn resume<R>(&mut self, fiber: &Fiber<V>, switch: impl FnOnce() -> R) -> Result<R, FiberError> {
        self.resume_from(None, Location::caller(), fiber, switch)
    }

    /// [`resume`](Self::resume) for a VM with frames of its own: `anchor` is where the walk of the running activation starts.
    ///
    /// # Errors
    ///
    /// As [`resume`](Self::resume).
    ///
    /// # Panics
    ///
    /// As [`resume`](Self::resume).
    #[track_caller]
    pub fn resume_at<R>(
        &mut self,
        anchor: Anchor,
        fiber: &Fiber<V>,
        switch: impl FnOnce() -> R,
    ) -> Result<R, FiberError> {
        self.resume_from(Some(anchor), Location::caller(), fiber, switch)
    }

    /// Either resumption.
    ///
    /// # Errors
    ///
    /// As [`resume`](Self::resume).
    fn resume_from<R>(
        &mut self,
        anchor: Option<Anchor>,
        site: &'static Location<'static>,
        fiber: &Fiber<V>,
        switch: impl FnOnce() -> R,
    ) -> Result<R, FiberError> {
        if !core::ptr::eq(self.shared(), fiber.shared.as_ptr()) {
            return Err(FiberError::OtherWorld);
        }
        let token = thread_token();
        fiber.state.resume(token)?;
        // SAFETY: it is of this mutator's world, which lives.
        let taken = unsafe { &fiber.record().header };
        let _put_down = scopeguard::guard(&fiber.state, |state| {
            // SAFETY: the word of an attached mutator holds a live record.
            state.suspend(token, unsafe { &*taken.word.record() }.depth);
        });
        Ok(self.cross_switching(anchor, site, FrameKind::Resuming, || {
            link(taken);
            let _unlinked = scopeguard::guard(taken, |taken| {
                if thread_token() != token {
                    unwind::abort(format_args!(
                        "the stack that resumed a fiber at {site} was moved to another thread meanwhile; suspend the fiber first"
                    ));
                }
                unlink(taken);
                if let Err(doing) = taken.is_at_rest() {
                    unwind::abort(format_args!(
                        "the fiber resumed at {site} was switched away from while it was {doing}; switch inside `Mutator::suspend`"
                    ));
                }
            });
            switch()
        }))
    }

    /// Puts this fiber down: its record is published, and `switch` leads back to whoever resumed it. Returns when it is resumed, perhaps on another thread.
    ///
    /// What this activation did not root may have moved when it returns.
    ///
    /// # Errors
    ///
    /// If this mutator is no fiber's. `switch` has not been run then.
    ///
    /// # Panics
    ///
    /// With what `switch` panics with: a fiber library unwinds the stack of a fiber that is dropped.
    ///
    /// # Aborts
    ///
    /// If the stack is switched to without [`Mutator::resume`].
    #[track_caller]
    pub fn suspend<R>(&mut self, switch: impl FnOnce() -> R) -> Result<R, FiberError> {
        self.suspend_from(None, Location::caller(), switch)
    }

    /// [`suspend`](Self::suspend) for a VM with frames of its own: `anchor` is where the walk of the running activation starts.
    ///
    /// # Errors
    ///
    /// As [`suspend`](Self::suspend).
    ///
    /// # Panics
    ///
    /// As [`suspend`](Self::suspend).
    #[track_caller]
    pub fn suspend_at<R>(&mut self, anchor: Anchor, switch: impl FnOnce() -> R) -> Result<R, FiberError> {
        self.suspend_from(Some(anchor), Location::caller(), switch)
    }

    /// Either suspension.
    ///
    /// # Errors
    ///
    /// As [`suspend`](Self::suspend).
    fn suspend_from<R>(
        &mut self,
        anchor: Option<Anchor>,
        site: &'static Location<'static>,
        switch: impl FnOnce() -> R,
    ) -> Result<R, FiberError> {
        let Some(state) = self.header().fiber() else { return Err(FiberError::NotAFiber) };
        Ok(self.cross_switching(anchor, site, FrameKind::Suspended, || {
            // Looked at on the way back, also when the stack is being unwound.
            let _resumed = scopeguard::guard((), |()| {
                // SAFETY of what comes next: no frame of this stack goes on with a mutator that is not this thread's.
                if !state.is_running_on(thread_token()) {
                    unwind::abort(format_args!(
                        "the fiber suspended at {site} was switched to without `Mutator::resume`, or after its `Fiber` was dropped"
                    ));
                }
            });
            switch()
        }))
    }

    /// A crossing that is no foreign call.
    fn cross_switching<R>(
        &self,
        anchor: Option<Anchor>,
        site: &'static Location<'static>,
        kind: FrameKind,
        switch: impl FnOnce() -> R,
    ) -> R {
        let (header, frame) = (self.header(), self.frame());
        if !header.word.is_managed_in(frame) {
            refuse(header, Event::ForeignCall, site);
        }
        frame.site.set(Some(site));
        frame.kind.set(kind);
        // Nothing calls in on a stack that is switched away from.
        frame.begin_terms(Terms { upcalls: Upcalls::Forbidden, ..Terms::default() });
        let manner = Manner {
            given: anchor.is_some(),
            terms: true,
            interruptible: false,
            crossing: Crossing::ForeignCall,
        };
        let back = scopeguard::guard(frame, |frame: &ForeignFrame| frame.kind.set(FrameKind::ForeignCall));
        let result =
            with_capture::<V, R>(frame, anchor, site, || cross_out(self.vm(), header, frame, manner, switch));
        drop(back);
        if frame.after.get() != 0 {
            resume_pending(self.vm(), frame);
        }
        result
    }
}
