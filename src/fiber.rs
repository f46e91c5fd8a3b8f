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

use crate::activation::ForeignFrame;
use crate::anchor::Anchor;
use crate::mutator::Mutator;
use crate::pause::Shared;
use crate::record::{FiberError, Ownership};
use crate::registry::AttachError;
use crate::state::{Event, State};
use crate::sync::thread_token;
use crate::thread::{Record, link, unlink};
use crate::transition::{Manner, cross_out, refuse, resume_pending, with_capture};
use crate::unwind;
use crate::upcall::run_on;
use crate::vm::{Crossing, FrameKind, Report, StackScanner};
use crate::world::World;
use core::fmt;
use core::panic::Location;
use core::ptr::NonNull;
use std::sync::Arc;

/// A chain of activations that threads take up and put down: the managed side of a fiber. Made by [`World::fiber`].
///
/// Dropping it while its activations are suspended gives up what they hold, and is reported ([`Report::ActivationsSkipped`]): drop the stack first, inside [`Mutator::resume`],
/// so that its destructors run.
pub struct Fiber<V: StackScanner> {
    record: NonNull<Record<V>>,
    shared: Arc<Shared<V>>,
}

// SAFETY: the record is used by the thread that has made its state `Running`, by a stopper in a pause, or under the registry's lock; `V::Local` is `Send`.
unsafe impl<V: StackScanner> Send for Fiber<V> {}
// SAFETY: as above.
unsafe impl<V: StackScanner> Sync for Fiber<V> {}

impl<V: StackScanner> World<V> {
    /// Makes a fiber: a mutator that is no thread's. It counts as attached, and foreign, until it is resumed. Waits while a pause is in force.
    ///
    /// # Errors
    ///
    /// If this thread holds a pause of this world, or the world has been shut down.
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
        let record = NonNull::from(self.shared().attach_fiber()?);
        Ok(Fiber { record, shared: Arc::clone(self.shared()) })
    }
}

impl<V: StackScanner> Fiber<V> {
    fn record(&self) -> &Record<V> {
        // SAFETY: records live as long as their world, which `shared` keeps.
        unsafe { self.record.as_ref() }
    }

    /// The number of its mutator.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.record().header.id.get()
    }

    /// Enters the fiber: runs `body` managed, with the fiber's own mutator. Called on the fiber's stack, while the fiber is [resumed](Mutator::resume) on this thread.
    ///
    /// # Errors
    ///
    /// If the fiber has not been resumed here, or has been entered already.
    ///
    /// # Panics
    ///
    /// With what `body` panics with; the fiber can be entered again then.
    pub fn run<R>(&self, body: impl FnOnce(&mut Mutator<V>) -> R) -> Result<R, FiberError> {
        let header = &self.record().header;
        if !header.fiber.is_running_on(thread_token()) {
            return Err(FiberError::NotResumed);
        }
        if !header.word.is_published(&raw const header.base) {
            return Err(FiberError::Entered);
        }
        let mut outcome = None;
        run_on(self.record(), |mutator| outcome = Some(unwind::stop(|| body(mutator))));
        match outcome {
            Some(Ok(result)) => Ok(result),
            Some(Err(payload)) => unwind::resume(payload),
            None => Err(FiberError::WorldEnded),
        }
    }
}

impl<V: StackScanner> Drop for Fiber<V> {
    fn drop(&mut self) {
        let header = &self.record().header;
        if !header.fiber.end() {
            unwind::abort(format_args!("fiber {} was dropped while it runs", self.id()));
        }
        // SAFETY: the word of an attached mutator holds a live record.
        let suspended = unsafe { &*header.word.record() };
        let skipped = suspended.depth as usize;
        let call_site = suspended.site.get();
        if self.shared.detach_fiber(self.record()).is_err() {
            unwind::abort(format_args!(
                "fiber {} was dropped inside a pause that its own thread holds",
                self.id()
            ));
        }
        if skipped > 0 {
            self.shared.vm.report(&Report::ActivationsSkipped { skipped, call_site });
        }
    }
}

impl<V: StackScanner> fmt::Debug for Fiber<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fiber").field("id", &self.id()).finish_non_exhaustive()
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
    /// If `switch` comes back with the fiber managed: it was switched away from without [`Mutator::suspend`].
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
        if !core::ptr::eq(self.shared(), Arc::as_ptr(&fiber.shared)) {
            return Err(FiberError::OtherWorld);
        }
        let taken = &fiber.record().header;
        taken.fiber.resume(thread_token())?;
        let _put_down = scopeguard::guard(taken, |taken| {
            // SAFETY: the word of an attached mutator holds a live record.
            let newest = unsafe { &*taken.word.record() };
            // Activations above the first are upcalls, called from foreign frames on the fiber's stack.
            taken.fiber.suspend(thread_token(), newest.depth > 1);
        });
        Ok(self.cross_switching(anchor, site, FrameKind::Resuming, || {
            link(taken);
            let _unlinked = scopeguard::guard(taken, |taken| {
                unlink(taken);
                if taken.state() == State::Managed {
                    unwind::abort(format_args!(
                        "the fiber resumed at {site} was switched away from while it was managed; switch inside `Mutator::suspend`"
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
        let header = self.header();
        if header.ownership.get() != Ownership::Fiber {
            return Err(FiberError::NotAFiber);
        }
        Ok(self.cross_switching(anchor, site, FrameKind::Suspended, || {
            // Looked at on the way back, also when the stack is being unwound.
            let _resumed = scopeguard::guard((), |()| {
                if !header.fiber.is_running_on(thread_token()) {
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
        let manner = Manner {
            given: anchor.is_some(),
            terms: false,
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
