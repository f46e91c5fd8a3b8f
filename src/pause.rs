//! Stopping the world and resuming it. A pause yields [`StoppedWorld`], the proof that no mutator is managed.
//!
//! # The stop handshake
//!
//! The stopper shuts the gate (so the set of mutators stands still), sets every poll word, issues the heavy fence, and waits until it has seen each mutator's
//! frame word non-null once. A mutator stores "managed", fences lightly, and loads its poll word. With both fences one of the two must see the other's store
//! (I4): a mutator that the stopper saw published finds its poll word set before it touches anything managed.

#[cfg(feature = "audit")]
mod audited;
mod stressed;

pub(crate) use stressed::{Stressing, Work};

use crate::activation::ForeignFrame;
use crate::anchor::Anchor;
use crate::chain::{self, ChainError};
use crate::checked::CHECKED;
use crate::faults::Faults;
use crate::handle_table::HandleTable;
use crate::leaks::Leaks;
use crate::os_thread::ThreadTag;
use crate::pin::PinTable;
#[cfg(all(unix, not(loom)))]
use crate::record::FiberState;
use crate::record::{Header, MutatorRecord, Ownership};
use crate::registry::{Ask, Asker, Coordinator, PauseHeldHere, Watch};
use crate::root_stack::{Entry, EntryKind};
use crate::state::STOP;
use crate::steps::{Step, reached, waits};
use crate::sync::{relax, thread_token};
use crate::timing::Sites;
use crate::vm::{ArgumentPlan, FrameKind, Report, RootVisitor, Segment, Slot, StackScanner, Wanted, tell};
use crate::{RelocationError, StackEnd};
use core::cell::Cell;
use core::fmt;
use core::marker::PhantomData;
use core::ops::Range;
use core::panic::Location;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use core::time::Duration;
use std::sync::{Arc, Weak};
use std::time::Instant;

/// What the mutators, stoppers and handles of one world share.
#[repr(C)]
pub(crate) struct Shared<V: StackScanner> {
    /// First, so that a type-erased pointer to a world is one to its coordinator.
    pub(crate) coordinator: Coordinator,
    pub(crate) vm: V,
    /// What this is the inside of, for whoever has a mutator and no handle.
    pub(crate) own: Weak<Self>,
    /// How many [`World`](crate::World)s there are of it.
    pub(crate) worlds: AtomicUsize,
    pub(crate) pins: Arc<PinTable<V::Ref>>,
    /// The bytes of native stack an upcall must find.
    pub(crate) stack_reserve: usize,
    /// The values in it are of `V::Ref`.
    pub(crate) handles: HandleTable,
    /// The leaks have been reported at shutdown: not again. Written by whoever shuts down; read when nobody else has the world.
    pub(crate) leaks_reported: AtomicBool,
    /// How long foreign calls took, by call site.
    pub(crate) in_foreign: Sites,
    /// How long mutators took to stop, by the site where they did.
    pub(crate) to_stop: Sites,
    /// How the world is stressed, if it is.
    pub(crate) stress: Option<Stressing<V>>,
    /// What the audit calls an object, if there is one.
    #[cfg(feature = "audit")]
    pub(crate) address: Option<fn(V::Ref) -> usize>,
}

impl<V: StackScanner> Shared<V> {
    /// What outlives calls and has not been given back.
    pub(crate) fn leaks(&self) -> Leaks {
        let mut leaks = Leaks::default();
        self.handles.leaks(&mut leaks);
        self.pins.leaks(&mut leaks);
        leaks.sort();
        leaks
    }

    /// Reports what keeps objects alive still, once in the life of the world: at its shutdown or its end.
    pub(crate) fn report_leaks(&self) {
        // Orders nothing: whoever finds it clear reports.
        if self.leaks_reported.load(Ordering::Relaxed) {
            return;
        }
        let leaks = self.leaks();
        if leaks.keeps_objects() && !self.leaks_reported.swap(true, Ordering::Relaxed) {
            tell(&self.vm, &Report::Leaked { leaks: &leaks });
        }
    }
}

/// Which mutators are stopped.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Those {
    /// All: a pause.
    All,
    /// The one with this number, if it is attached: a handshake.
    One(u64),
    /// The same, if it is stopped or foreign at this moment; otherwise it runs on.
    Glance(u64),
}

impl Those {
    /// What whoever stops these wants.
    fn wanted(self) -> Wanted {
        match self {
            Self::All => Wanted::Pause,
            Self::One(_) => Wanted::Handshake,
            Self::Glance(_) => Wanted::Sample,
        }
    }

    fn has(self, header: &Header) -> bool {
        match self {
            Self::All => true,
            Self::One(id) | Self::Glance(id) => header.id.get() == id,
        }
    }
}

impl<V: StackScanner> Drop for Shared<V> {
    fn drop(&mut self) {
        // The VM and the tables are there until this function is over.
        self.end_fibers();
        self.report_leaks();
        for header in self.coordinator.drain_idle() {
            // SAFETY: a record is made by `Box::into_raw` of a `MutatorRecord<V::Local>`; an idle one is nobody else's.
            drop(unsafe { Box::from_raw(header.cast_mut().cast::<MutatorRecord<V::Local>>()) });
        }
    }
}

impl Header {
    /// The coordinator of the world this mutator belongs to.
    #[inline(always)]
    pub(crate) fn coordinator(&self) -> &Coordinator {
        // SAFETY: `world` points to a `Shared<V>`, which begins with its coordinator and outlives its records.
        unsafe { &*self.world.cast::<Coordinator>() }
    }
}

impl<V: StackScanner> Shared<V> {
    /// Stops the world. The calling thread's own mutator, if it has one in this world, is published already.
    ///
    /// # Errors
    ///
    /// The calling thread holds a pause already.
    pub(crate) fn stop(
        &self,
        site: &'static Location<'static>,
    ) -> Result<StoppedWorld<'_, V>, PauseHeldHere> {
        self.stop_those(Those::All, site)
    }

    /// Stops `those`, with the set of mutators standing still. No other pause or handshake is in force meanwhile.
    ///
    /// # Errors
    ///
    /// The calling thread holds a pause already.
    pub(crate) fn stop_those(
        &self,
        those: Those,
        site: &'static Location<'static>,
    ) -> Result<StoppedWorld<'_, V>, PauseHeldHere> {
        let coordinator = &self.coordinator;
        let mut registry = coordinator.lock();
        let ask = || {
            // SAFETY: null, or this thread's attached record.
            let own = unsafe { self.current().as_ref() };
            let ask = Ask::at(those.wanted(), site);
            own.map_or(ask, |own| ask.by(own.header.id.get()))
        };
        if !V::FAULTS.has(Faults::UNGATED_STOP) {
            registry = coordinator.wait_for_resume(registry, &ask)?;
        }
        registry.holder = Some(thread_token());
        #[cfg(not(loom))]
        {
            registry.asked = Some(std::time::Instant::now());
        }
        registry.asker = Some(Asker { wants: those.wanted(), site: Some(site), thread: ThreadTag::here() });
        // The gate is shut: the list is ours until `resume` gives it back.
        let mutators = core::mem::take(&mut registry.attached);
        let handles_frozen = Cell::new(false);
        let stopped = StoppedWorld { shared: self, mutators, handles_frozen, those, _thread: PhantomData };
        self.pins.freeze();
        for header in stopped.headers().filter(|header| those.has(header)) {
            header.word.ask(STOP);
        }
        drop(registry);
        coordinator.fence().heavy();
        reached(ptr::from_ref(self).cast(), Step::StopAsked);
        let asked = V::TIMED.then(Instant::now);
        for header in stopped.headers().filter(|header| those.has(header)) {
            let frame = match those {
                Those::Glance(_) => header.word.observe(),
                _ => coordinator.await_published(header, V::FAULTS, &mut |watch, waited| {
                    let asked = || stopped.headers().filter(|header| those.has(header));
                    let unasked = stopped.mutators.len() - asked().count();
                    coordinator.report_stop_wait(watch, ask(), header, waited, asked(), unasked);
                }),
            };
            header.stopped.set(frame);
            // SAFETY: null only with a fault; else a published record, complete (I1).
            if let (Some(asked), Some(frame)) = (asked, unsafe { frame.as_ref() }) {
                self.to_stop.record(frame.site.get().unwrap_or(site), asked.elapsed());
            }
        }
        reached(ptr::from_ref(self).cast(), Step::StopInForce);
        Ok(stopped)
    }
}

impl<V: StackScanner> Shared<V> {
    /// Gives back what a fiber's mutator held, and reports the activations that are lost with it.
    ///
    /// # Safety
    ///
    /// It is a mutator of this world whose `Fiber` has been dropped, and has been dismissed: nobody else has it.
    pub(crate) unsafe fn end_fiber(&self, header: &Header) {
        // SAFETY: the word of a mutator that was attached holds a live record.
        let newest = unsafe { &*header.word.record() };
        let (fiber, activations, suspended_at) = (header.id.get(), newest.depth as usize, newest.site.get());
        header.end();
        self.handles.give_back(&header.free_handles);
        // SAFETY: a record of this world, and nobody else's.
        let local = unsafe { header.record::<V::Local>() }.local.get();
        // SAFETY: as above.
        let local = unsafe { (*local).take() };
        self.coordinator.give_idle(header);
        drop(local);
        if activations > 0 {
            tell(&self.vm, &Report::FiberDropped { fiber, activations, suspended_at });
        }
    }
}

impl<V: StackScanner> Shared<V> {
    /// Calls `f` with the mutator numbered `id` and what it has published: null if it is running. It stays as it is meanwhile. `None` if there is no such mutator.
    ///
    /// # Errors
    ///
    /// The calling thread holds a pause or a handshake.
    pub(crate) fn glance_at<R>(
        &self,
        id: u64,
        site: &'static Location<'static>,
        f: impl FnOnce(&Header, *const ForeignFrame) -> R,
    ) -> Result<Option<R>, PauseHeldHere> {
        let stopped = self.stop_those(Those::Glance(id), site)?;
        let header = stopped.headers().find(|header| stopped.those.has(header));
        Ok(header.map(|header| f(header, header.stopped.get())))
    }
}

impl Coordinator {
    /// Waits until `header`'s mutator is published, and returns what it published. `report` is called with no lock held when that takes long.
    fn await_published(
        &self,
        header: &Header,
        faults: Faults,
        report: &mut dyn FnMut(Watch, Duration),
    ) -> *const ForeignFrame {
        let mut round = 0;
        let mut patience = self.patience();
        loop {
            let frame = header.word.observe();
            if !frame.is_null() || faults.has(Faults::NO_WAIT_FOR_MUTATORS) {
                return frame;
            }
            waits(header.world);
            #[cfg(not(loom))]
            if round >= 256 {
                // A mutator that stops at a poll signals; one that goes foreign does not, hence the timeout.
                let mut registry = self.lock();
                registry.awaited = ptr::from_ref(header);
                registry.unsettled += 1;
                if header.word.observe().is_null() {
                    let nap = core::time::Duration::from_micros(u64::from((round - 200).min(1000)));
                    registry = crate::sync::wait_for(&self.settled, registry, nap);
                }
                registry.unsettled -= 1;
            }
            if round >= 256
                && let (Some(watch), Some(waited)) = (self.watch, patience.due())
            {
                report(watch, waited);
            }
            relax(round);
            round = round.saturating_add(1);
        }
    }
}

/// The proof that the world is stopped: no mutator is managed until it is gone.
///
/// Given to the closure of [`World::pause`](crate::World::pause) and [`Mutator::pause`](crate::Mutator::pause); the world resumes when the closure returns or panics.
/// Everything that is right only in a pause takes `&StoppedWorld`.
pub struct StoppedWorld<'p, V: StackScanner> {
    shared: &'p Shared<V>,
    mutators: Vec<*const Header>,
    /// Which handles there are has been noted, for the rest of the pause.
    handles_frozen: Cell<bool>,
    those: Those,
    /// The thread that stopped the world resumes it: it is the one a poll in the pause is refused on.
    _thread: PhantomData<*mut ()>,
}

impl<'p, V: StackScanner> StoppedWorld<'p, V> {
    fn headers(&self) -> impl Iterator<Item = &'p Header> + use<'p, '_, V> {
        // SAFETY: records live as long as their world, which `shared` borrows.
        self.mutators.iter().map(|&header| unsafe { &*header })
    }

    /// The VM.
    #[must_use]
    pub fn vm(&self) -> &'p V {
        &self.shared.vm
    }

    /// The stopped mutators.
    pub fn mutators(&self) -> impl Iterator<Item = StoppedMutator<'_, V>> {
        self.headers().filter(|header| self.those.has(header)).map(|header| StoppedMutator {
            // SAFETY: every header of this world heads a `MutatorRecord<V::Local>` that lives as long as the world.
            record: unsafe { header.record::<V::Local>() },
            vm: &self.shared.vm,
        })
    }

    /// Lets go of every mutator that is neither `own` nor a fiber's that is put down, in a forked process: their threads are not there. Their records are leaked, since they
    /// may be torn.
    #[cfg(all(unix, not(loom)))]
    pub(crate) fn forget_others(&mut self, own: impl Fn(&Header) -> bool) {
        let mut left = 0;
        self.mutators.retain(|&header| {
            // SAFETY: as in `headers`.
            let header = unsafe { &*header };
            let stays = own(header) || header.fiber().is_some_and(FiberState::is_put_down);
            if stays {
                header.index.set(left);
                left += 1;
            } else if let Some(fiber) = header.fiber() {
                fiber.lose();
            }
            stays
        });
        self.shared.coordinator.only_these_left(left);
    }

    /// Reports every root of the world: for each mutator, newest activation first, what its guards declared and then what the
    /// VM's scanner finds; last, what [`Handle`](crate::Handle)s, [`WeakHandle`](crate::WeakHandle)s and [`Pinner`](crate::Pinner)s hold.
    ///
    /// It can be repeated within the pause, and gives the same roots: a handle that a foreign thread releases meanwhile is reported until the pause ends.
    pub fn enumerate(&self, visitor: &mut dyn RootVisitor<V::Ref>) {
        #[cfg(feature = "audit")]
        self.note_handles();
        for mutator in self.mutators() {
            mutator.enumerate(visitor);
        }
        let handles = self.frozen_handles();
        handles.for_each(V::FAULTS, |slot, weak| if weak { visitor.weak(slot) } else { visitor.slot(slot) });
        self.shared.pins.for_each(|plan, reference| match plan {
            ArgumentPlan::TransitivePin => visitor.transitively_pinned(reference),
            _ => visitor.pinned(reference),
        });
    }

    /// Asks `now` of each weak handle's reference where the object is now: `Some` is its reference from now on, `None` says that it is dead, and
    /// clears the handle.
    ///
    /// For a collector whose [`RootVisitor::weak`] does not keep the object alive; it must call this before the pause ends, when it knows what lives and where
    /// it is. What was reported by [`enumerate`](Self::enumerate) is asked for, cleared handles not again.
    ///
    /// # Examples
    ///
    /// ```
    /// use reentry::testkit::TestVm;
    /// use reentry::World;
    ///
    /// let world = World::new(TestVm::new());
    /// let mut mutator = world.attach()?;
    /// let object = world.vm().heap().alloc(&[], b"cached");
    /// let cached = mutator.weak_handle(object);
    /// // A collector that finds the object alive where it was, and one that finds it dead.
    /// mutator.pause(|stopped| stopped.update_weak(Some));
    /// assert_eq!(mutator.load_weak(&cached), Some(object));
    /// mutator.pause(|stopped| stopped.update_weak(|_| None));
    /// assert_eq!(mutator.load_weak(&cached), None);
    /// # Ok::<(), reentry::AttachError>(())
    /// ```
    pub fn update_weak(&self, now: impl FnMut(V::Ref) -> Option<V::Ref>) {
        self.frozen_handles().update_weak(now);
    }

    /// The handles, with the set of them noted for the rest of the pause.
    fn frozen_handles(&self) -> &HandleTable {
        if !self.handles_frozen.replace(true) {
            self.shared.handles.freeze();
        }
        &self.shared.handles
    }
}

impl<V: StackScanner> Drop for StoppedWorld<'_, V> {
    fn drop(&mut self) {
        let coordinator = &self.shared.coordinator;
        #[cfg(feature = "audit")]
        let findings = crate::unwind::stop(|| self.audit()).unwrap_or_else(|payload| {
            // The world would stay stopped, and nobody would know why.
            crate::unwind::abort(format_args!(
                "the function given to `Audit::new` panicked at the end of a pause, and must not: {}",
                crate::unwind::text(&*payload)
            ))
        });
        self.shared.pins.thaw();
        let mut registry = coordinator.lock();
        for header in self.headers().filter(|header| self.those.has(header)) {
            header.word.clear(STOP, V::FAULTS);
        }
        let late = core::mem::replace(&mut registry.attached, core::mem::take(&mut self.mutators));
        for header in late {
            // SAFETY: as in `headers`.
            let header = unsafe { &*header };
            debug_assert!(
                header.fiber().is_some() || V::FAULTS.has(Faults::UNGATED_ATTACH.and(Faults::UNGATED_STOP)),
                "the gate is shut during a pause, but for new fibers"
            );
            header.word.clear(STOP, V::FAULTS);
            registry.put(header);
        }
        let ended = core::mem::take(&mut registry.ending);
        for &header in &ended {
            // SAFETY: as in `headers`.
            registry.remove(unsafe { &*header });
        }
        if registry.is_closed() && !ended.is_empty() {
            coordinator.somebody_left();
        }
        registry.holder = None;
        #[cfg(not(loom))]
        {
            registry.asked = None;
        }
        registry.asker = None;
        registry.awaited = ptr::null();
        let deserted = registry.deserted;
        drop(registry);
        coordinator.resumed.notify_all();
        for header in ended {
            // SAFETY: as in `headers`; its `Fiber` has been dropped, and it has just been dismissed.
            unsafe { self.shared.end_fiber(&*header) };
        }
        if deserted && self.shared.worlds.load(Ordering::Relaxed) == 0 {
            coordinator.desert();
        }
        #[cfg(feature = "audit")]
        self.tell(&findings);
        reached(ptr::from_ref(self.shared).cast(), Step::StopEnded);
    }
}

impl<V: StackScanner> fmt::Debug for StoppedWorld<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.mutators()).finish()
    }
}

/// One mutator of a stopped world.
pub struct StoppedMutator<'p, V: StackScanner> {
    record: &'p MutatorRecord<V::Local>,
    vm: &'p V,
}

impl<'p, V: StackScanner> StoppedMutator<'p, V> {
    fn header(&self) -> &'p Header {
        &self.record.header
    }

    /// A number no other mutator of this world has or had.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.header().id.get()
    }

    /// The VM's own data of this mutator.
    ///
    /// # Panics
    ///
    /// If the mutator's attachment was leaked and its thread has exited: see
    /// [`try_local`](Self::try_local).
    #[must_use]
    #[track_caller]
    pub fn local(&self) -> &'p V::Local {
        let site = Location::caller();
        let Some(local) = self.try_local() else {
            panic!(
                "reentry: mutator {} has no data to lend at {site}: its attachment was leaked and its thread has exited; use `try_local`",
                self.id()
            )
        };
        local
    }

    /// The VM's own data of this mutator; `None` if its attachment was leaked and its thread has exited.
    ///
    /// Such a mutator has no frames, so nothing is scanned with its data; what its guards declared is
    /// reported as ever. The data is not lent because whoever has leaked the attachment may have it still,
    /// as a `&'static mut` (I9).
    #[must_use]
    pub fn try_local(&self) -> Option<&'p V::Local> {
        // SAFETY: null, or the record the stopped mutator has published.
        let newest = unsafe { self.header().stopped.get().as_ref() };
        // An attachment that is being dropped publishes the same, but nobody can have its data. Its owner
        // is read only now: a thread that exits writes it before it publishes this record (I1), and one
        // that detaches writes it when the pause is over.
        let leaving = newest.is_some_and(|newest| newest.kind.get() == FrameKind::Leaving);
        if leaving && self.header().ownership.get() == Ownership::Orphan {
            return None;
        }
        // SAFETY: the mutator's thread is stopped or foreign, and has not exited with the data lent. What has
        // lent its local data out there is borrowed, until it lends it again, by a handle that cannot be used
        // for a crossing or dropped meanwhile: while the data is out, the mutator is managed, or an orphan,
        // which was just excluded. The stopper's thread alone uses it, which `V::Local: Send` allows. It is
        // `Some` while attached: a mutator that detaches waits for the pause to end before it takes it out.
        unsafe { (*self.record.local.get()).as_ref() }
    }

    /// The activations, newest first.
    #[must_use]
    pub fn activations(&self) -> Activations<'p, V> {
        Activations {
            header: self.header(),
            next: self.header().stopped.get(),
            newer: None,
            _vm: PhantomData,
        }
    }

    /// Looks at the crate's records of this mutator's activations. See [`Mutator::validate`](crate::Mutator::validate).
    ///
    /// # Errors
    ///
    /// What is damaged, with a drawing of the chain.
    pub fn validate(&self) -> Result<(), ChainError> {
        chain::validate(self.header(), self.header().stopped.get(), true, V::CAPTURE)
    }

    /// Reports every root of this mutator. See [`StoppedWorld::enumerate`].
    pub fn enumerate(&self, visitor: &mut dyn RootVisitor<V::Ref>) {
        if CHECKED {
            chain::abort_if::<V>(self.validate());
        }
        #[cfg(feature = "audit")]
        if self.enumerate_audited(visitor) {
            return;
        }
        self.walk(visitor);
    }

    /// [`enumerate`](Self::enumerate), and nothing else.
    fn walk(&self, visitor: &mut dyn RootVisitor<V::Ref>) {
        for activation in self.activations() {
            activation.enumerate_declared(visitor);
            if let Some(segment) = activation.segment() {
                self.vm.scan_segment(self.local(), &segment, visitor);
            }
        }
    }

    /// Tells the crate that the collector has moved one of this mutator's managed stacks. See
    /// [`Mutator::relocate_stack`](crate::Mutator::relocate_stack).
    ///
    /// # Safety
    ///
    /// As for [`Mutator::relocate_stack`](crate::Mutator::relocate_stack).
    ///
    /// # Errors
    ///
    /// As for [`Mutator::relocate_stack`](crate::Mutator::relocate_stack).
    pub unsafe fn relocate_stack(
        &self,
        old: Range<usize>,
        new: Range<usize>,
        end: StackEnd,
    ) -> Result<usize, RelocationError> {
        self.header().relocate(self.header().stopped.get(), old, new, end, V::FAULTS)
    }
}

impl<V: StackScanner> fmt::Debug for StoppedMutator<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoppedMutator")
            .field("id", &self.id())
            .field("activations", &self.activations().collect::<Vec<_>>())
            .finish()
    }
}

/// The activations of one stopped mutator, newest first.
pub struct Activations<'p, V> {
    header: &'p Header,
    next: *const ForeignFrame,
    newer: Option<&'p ForeignFrame>,
    _vm: PhantomData<fn() -> V>,
}

impl<'p, V: StackScanner> Iterator for Activations<'p, V> {
    type Item = Activation<'p, V>;

    fn next(&mut self) -> Option<Self::Item> {
        // SAFETY: null, or a record published by a stopped mutator (I1), or one it links to.
        let frame = unsafe { self.next.as_ref() }?;
        let activation = Activation { header: self.header, frame, newer: self.newer, _vm: PhantomData };
        self.newer = Some(frame);
        self.next = frame.older;
        Some(activation)
    }
}

impl<V> fmt::Debug for Activations<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Activations").finish_non_exhaustive()
    }
}

/// One activation of a stopped mutator: its record, and what its guards declared.
pub struct Activation<'p, V> {
    header: &'p Header,
    frame: &'p ForeignFrame,
    newer: Option<&'p ForeignFrame>,
    _vm: PhantomData<fn() -> V>,
}

impl<'p, V: StackScanner> Activation<'p, V> {
    /// How many activations of this mutator are older.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.frame.depth as usize
    }

    /// What the mutator was doing.
    #[must_use]
    pub fn kind(&self) -> FrameKind {
        self.frame.kind.get()
    }

    /// The saved pc, sp and fp.
    #[must_use]
    pub fn anchor(&self) -> Anchor {
        self.frame.anchor.get()
    }

    /// Where in the VM's source the crossing stands.
    #[must_use]
    pub fn call_site(&self) -> Option<&'static Location<'static>> {
        self.frame.site.get()
    }

    /// The frames to scan, or `None` where there are none: a foreign thread's base, or a thread that is leaving.
    #[must_use]
    pub fn segment(&self) -> Option<Segment<'p>> {
        if matches!(self.kind(), FrameKind::ForeignThread | FrameKind::Leaving) {
            return None;
        }
        // SAFETY: null or a record older than a published one.
        let older = unsafe { self.frame.older.as_ref() };
        Some(Segment {
            anchor: self.anchor(),
            older: older.filter(|older| older.kind.get() != FrameKind::ForeignThread).map(|o| o.anchor.get()),
            machine_sp: self.frame.native_sp::<V>(),
            entry_sp: self.frame.entry_sp.get(),
            thread_stack: {
                let stack = self.header.native_stack();
                (stack.start, stack.end)
            },
            registers: match V::CAPTURE {
                // SAFETY: the record is published for as long as the pause, which outlives 'p.
                crate::Capture::Registers => unsafe { self.frame.saved_registers() },
                _ => &[],
            },
            depth: self.depth(),
            newest: self.newer.is_none(),
            kind: self.kind(),
            call_site: self.call_site(),
        })
    }

    /// Calls `visit` for each root and pin that guards of this activation declared, newest first.
    pub fn for_each_declared(&self, mut visit: impl FnMut(Declared<'_, V::Ref>)) {
        let mut entry = |entry: Entry| {
            if let Some(declared) = declared(entry) {
                visit(declared);
            }
        };
        let newest_root = self.newer.map_or_else(|| self.header.roots.mark(), |newer| newer.roots_base.get());
        self.frame.results(&mut entry);
        self.header.roots.between(self.frame.roots_base.get(), newest_root, &mut entry);
    }

    fn enumerate_declared(&self, visitor: &mut dyn RootVisitor<V::Ref>) {
        self.for_each_declared(|declared| report(declared, visitor));
    }
}

/// Reports what a guard declared, as its plan says.
fn report<R: Copy>(declared: Declared<'_, R>, visitor: &mut dyn RootVisitor<R>) {
    match declared.plan {
        ArgumentPlan::Root | ArgumentPlan::RootInPlace => visitor.slot(declared.slot),
        ArgumentPlan::Pin => visitor.pinned(declared.slot.load()),
        ArgumentPlan::TransitivePin => visitor.transitively_pinned(declared.slot.load()),
    }
}

impl<V: StackScanner> fmt::Debug for Activation<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{} {} {:?}", self.depth(), self.kind(), self.anchor())?;
        if let Some(site) = self.call_site() {
            write!(f, " at {site}")?;
        }
        Ok(())
    }
}

/// A root or pin that a guard declared.
#[derive(Debug)]
pub struct Declared<'p, R> {
    /// How it was declared.
    pub plan: ArgumentPlan,
    /// The word that holds the reference: the guard's own, or for [`ArgumentPlan::RootInPlace`] the VM's.
    pub slot: Slot<'p, R>,
}

/// What an entry is to a collector.
fn declared<'p, R: Copy>(entry: Entry) -> Option<Declared<'p, R>> {
    let (plan, word) = match entry.kind {
        EntryKind::Root => (ArgumentPlan::Root, entry.word::<R>()),
        EntryKind::Pin => (ArgumentPlan::Pin, entry.word::<R>()),
        EntryKind::TransitivePin => (ArgumentPlan::TransitivePin, entry.word::<R>()),
        EntryKind::InPlace => {
            // SAFETY: an in-place entry holds the address of a slot, and nobody writes it in a pause but `relocate`.
            (ArgumentPlan::RootInPlace, unsafe { entry.word::<*mut R>().read() })
        }
        EntryKind::KeepAlive => return None,
    };
    let word = NonNull::new(word)?;
    // SAFETY: the guard that declared the entry vouches that the word holds a reference until the call ends.
    Some(Declared { plan, slot: unsafe { Slot::new(word) } })
}

impl Header {
    /// Rebases what was saved in this mutator's records and in-place roots. See [`crate::Mutator::relocate_stack`].
    ///
    /// # Errors
    ///
    /// See there.
    pub(crate) fn relocate(
        &self,
        newest: *const ForeignFrame,
        old: Range<usize>,
        new: Range<usize>,
        end: StackEnd,
        faults: Faults,
    ) -> Result<usize, RelocationError> {
        if new.is_empty() {
            return Err(RelocationError::Empty(new));
        }
        let mut stacks = self.stacks.borrow_mut();
        let Some(index) = stacks.iter().position(|stack| *stack == old) else {
            return Err(RelocationError::UnknownStack { old, known: stacks.clone() });
        };
        let overlapped = stacks
            .iter()
            .enumerate()
            .find(|(other, known)| *other != index && known.start < new.end && new.start < known.end);
        if let Some((_, known)) = overlapped {
            return Err(RelocationError::Overlaps { declared: new, known: known.clone() });
        }
        let moved = if faults.has(Faults::NO_RELOCATION) {
            0
        } else {
            let relocation = crate::activation::Relocation { old, new: new.clone(), end };
            reached(self.world, Step::Relocating);
            let moved = self.changes.during(|| relocation.apply(newest, &self.roots))?;
            #[cfg(feature = "audit")]
            if let Some(audit) = &self.coordinator().audit {
                audit.relocated(self.id.get(), &relocation);
            }
            moved
        };
        stacks[index] = new;
        reached(self.world, Step::Relocated);
        Ok(moved)
    }
}
