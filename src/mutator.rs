//! [`Mutator`]: the handle whose `&mut` is the proof of being managed.

use crate::activation::{ForeignFrame, Relocation, RelocationError, StackEnd};
use crate::anchor::Anchor;
use crate::chain::{self, ChainError};
use crate::checked::{CHECKED, Region};
use crate::faults::Faults;
use crate::pause::{Shared, StoppedWorld};
use crate::pin::{PinId, Pinner};
use crate::process;
use crate::record::{Header, NotedLocks};
use crate::state::Event;
use crate::steps::{Step, reached};
use crate::thread::Record;
use crate::transition::{at_safepoint, check_event, refuse, refuse_wait_in_own_pause};
use crate::vm::{ArgumentError, ArgumentPlan, StackScanner};
use core::fmt;
use core::marker::PhantomData;
use core::ops::Range;
use core::panic::Location;
use core::ptr::{self, NonNull};
use std::sync::Arc;

/// An attached thread, managed: it may touch the heap, and must poll.
///
/// Having `&mut Mutator` proves that the thread is managed now, so functions of a VM that touch the heap take one. An
/// [`Attachment`](crate::Attachment) lends one; every upcall gets one of its own. While a foreign call runs, the mutator it was made from is borrowed, so nothing managed can
/// be done through it.
///
/// A proof is only ever borrowed: the type has no size known to the compiler, so that a `Mutator` can be neither moved nor exchanged for
/// another (`mem::swap` of two activations' handles would let one outlive its attachment). It is `!Send` and `!Sync`.
#[repr(C)]
pub struct Mutator<V: StackScanner> {
    record: NonNull<Record<V>>,
    /// The record of this activation, for its next crossing. Kept here and not read from the mutator: what an upcall has just stored there
    /// would have to travel through memory before the next call could begin.
    frame: NonNull<ForeignFrame>,
    _thread: PhantomData<*mut ()>,
    _unsized: [u8],
}

/// What a [`Mutator`] is made of, with a size: for those who lend it.
#[repr(C)]
pub(crate) struct MutatorParts<V: StackScanner> {
    record: NonNull<Record<V>>,
    frame: NonNull<ForeignFrame>,
    _thread: PhantomData<*mut ()>,
}

impl<V: StackScanner> MutatorParts<V> {
    /// # Safety
    ///
    /// `record` is attached to the calling thread and stays so as long as the handle is lent, and is managed whenever it can be used; then its running
    /// activation is the one whose record is `frame`.
    #[inline(always)]
    pub(crate) unsafe fn new(record: &Record<V>, frame: &ForeignFrame) -> Self {
        Self { record: NonNull::from(record), frame: NonNull::from(frame), _thread: PhantomData }
    }

    #[inline(always)]
    pub(crate) fn lend(&self) -> &Mutator<V> {
        let parts = ptr::slice_from_raw_parts(ptr::from_ref(self).cast::<u8>(), 0);
        #[expect(clippy::cast_ptr_alignment, reason = "it points to parts of the same alignment")]
        // SAFETY: `Mutator` is `repr(C)` with the same fields, and a tail of no bytes; it is borrowed as `self` is.
        unsafe {
            &*(parts as *const Mutator<V>)
        }
    }

    #[inline(always)]
    pub(crate) fn lend_mut(&mut self) -> &mut Mutator<V> {
        let parts = ptr::slice_from_raw_parts_mut(ptr::from_mut(self).cast::<u8>(), 0);
        #[expect(clippy::cast_ptr_alignment, reason = "it points to parts of the same alignment")]
        // SAFETY: as for `lend`.
        unsafe {
            &mut *(parts as *mut Mutator<V>)
        }
    }
}

impl<V: StackScanner> Mutator<V> {
    /// The record of this activation.
    #[inline(always)]
    pub(crate) fn frame(&self) -> &ForeignFrame {
        // SAFETY: records live as long as their mutator's.
        unsafe { self.frame.as_ref() }
    }

    /// The same, for whoever lends the mutator on meanwhile.
    #[inline(always)]
    pub(crate) fn running(&self) -> NonNull<ForeignFrame> {
        self.frame
    }

    #[inline(always)]
    pub(crate) fn record(&self) -> &Record<V> {
        // SAFETY: the record outlives the handle (promised to `new`), and nobody forms `&mut` to it.
        unsafe { self.record.as_ref() }
    }

    #[inline(always)]
    pub(crate) fn header(&self) -> &Header {
        &self.record().header
    }

    #[inline(always)]
    pub(crate) fn shared(&self) -> &Shared<V> {
        // SAFETY: `world` points to the `Shared<V>` whose record this is, which outlives it.
        unsafe { &*self.header().world.cast::<Shared<V>>() }
    }

    /// The VM.
    #[must_use]
    pub fn vm(&self) -> &V {
        &self.shared().vm
    }

    /// A number no other mutator of this world has or had.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.header().id.get()
    }

    /// How many activations of this mutator are older than the running one: 0 outside upcalls.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.frame().depth as usize
    }

    /// The VM's own data of this mutator.
    ///
    /// # Panics
    ///
    /// Never: an attached mutator has its data.
    #[must_use]
    pub fn local(&self) -> &V::Local {
        // SAFETY: this thread, managed, so no stopper has it (I4); `&mut Local` is lent from `&mut self` only, and an outer handle's is over, since that
        // handle is borrowed by the foreign call this activation runs in. It is `Some` while attached.
        unsafe { (*self.record().local.get()).as_ref() }.expect("attached")
    }

    /// The VM's own data of this mutator, for writing.
    ///
    /// # Panics
    ///
    /// Never: an attached mutator has its data.
    #[must_use]
    pub fn local_mut(&mut self) -> &mut V::Local {
        // SAFETY: as for `local`, and `&mut self` excludes other borrows through this handle.
        unsafe { (*self.record().local.get()).as_mut() }.expect("attached")
    }

    /// Stops here if a pause wants it: the safepoint. One load and one branch otherwise.
    ///
    /// While stopped, the collector walks the frame that called this, and what was not rooted may have moved when it returns.
    ///
    /// # Panics
    ///
    /// If this thread itself holds the pause. In checked mode also inside a leaf call or a [no-collection region](Self::without_collection), pause or not.
    #[inline(always)]
    #[track_caller]
    pub fn poll(&mut self) {
        if CHECKED {
            check_event(self.header(), self.frame(), Event::Poll, Location::caller());
            self.stress_poll(None, Location::caller());
        }
        reached(self.header().world, Step::Polling);
        if !self.header().word.is_clear() {
            self.poll_slow(None, Location::caller());
        }
    }

    /// [`poll`](Self::poll) for a VM with frames of its own: `anchor` is where the walk of the running activation starts.
    ///
    /// # Panics
    ///
    /// As [`poll`](Self::poll).
    #[inline(always)]
    #[track_caller]
    pub fn poll_at(&mut self, anchor: Anchor) {
        if CHECKED {
            check_event(self.header(), self.frame(), Event::Poll, Location::caller());
            self.stress_poll(Some(anchor), Location::caller());
        }
        reached(self.header().world, Step::Polling);
        if !self.header().word.is_clear() {
            self.poll_slow(Some(anchor), Location::caller());
        }
    }

    /// Stress mode, at a poll.
    #[cold]
    #[inline(never)]
    fn stress_poll(&mut self, anchor: Option<Anchor>, site: &'static Location<'static>) {
        if self.shared().is_stressed_here(self.header()) {
            at_safepoint::<V, ()>(self.header(), self.frame(), Event::Poll, anchor, site, || {
                self.shared().do_stress(self.header(), site);
            });
        }
    }

    #[cold]
    #[inline(never)]
    fn poll_slow(&mut self, anchor: Option<Anchor>, site: &'static Location<'static>) {
        if !self.header().coordinator().is_of_this_process() {
            process::abort_copy(format_args!("managed code polled at {site}"));
        }
        if self.header().word.is_stopping() {
            at_safepoint::<V, ()>(self.header(), self.frame(), Event::Poll, anchor, site, || ());
        }
        if self.header().posted_at.get() != 0 {
            // Work in work would nest without limit. The bit stays, so the poll after it does this work.
            return;
        }
        if V::FAULTS.has(Faults::WOKEN_TOO_LATE) {
            self.do_posted();
            self.header().word.take_wake();
        } else if self.header().word.take_wake() {
            self.do_posted();
        }
    }

    /// Does what other threads have posted.
    fn do_posted(&mut self) {
        let Some(mailbox) = self.header().mailbox.borrow().clone() else { return };
        self.header().posted_at.set(self.frame().depth + 1);
        let over = scopeguard::guard(NonNull::from(self.header()), |header| {
            // SAFETY: this mutator's own header.
            unsafe { header.as_ref() }.posted_at.set(0);
        });
        // What is left if one panics is done at the next poll.
        let again = scopeguard::guard(NonNull::from(self.header()), |header| {
            // SAFETY: this mutator's own header.
            unsafe { header.as_ref() }.word.wake();
        });
        mailbox.take(|(work, data)| {
            // SAFETY: `Poster::<V>::post` made it of such a function, and this mailbox is of a mutator of `V`.
            let work = unsafe { core::mem::transmute::<*const (), fn(&mut Self, usize)>(work) };
            work(self, data);
        });
        scopeguard::ScopeGuard::into_inner(again);
        drop(over);
    }

    /// The world, kept alive.
    ///
    /// # Panics
    ///
    /// Never: a thread that is attached keeps its world.
    pub(crate) fn kept_world(&self) -> Arc<Shared<V>> {
        self.shared().own.upgrade().expect("an attached thread keeps its world")
    }

    /// Stops the world, runs `f` with the proof, and resumes the world. The usual way to collect from an allocation that finds the heap
    /// full.
    ///
    /// Other threads may be stopping the world too: then this one counts as stopped, waits its turn, and `f` runs after; look again at whether
    /// a collection is needed still. What this activation did not root may have moved when it returns.
    ///
    /// # Panics
    ///
    /// If this thread holds a pause of this world already, and with whatever `f` panics with; the world resumes first. In checked mode also inside a leaf call or a
    /// [no-collection region](Self::without_collection).
    ///
    /// # Examples
    ///
    /// ```
    /// # use reentry::testkit::TestVm;
    /// # use reentry::World;
    /// let world = World::new(TestVm::new());
    /// let mut mutator = world.attach()?;
    /// let stopped = mutator.pause(|stopped| stopped.mutators().count());
    /// assert_eq!(stopped, 1);
    /// # Ok::<(), reentry::AttachError>(())
    /// ```
    #[track_caller]
    pub fn pause<R>(&mut self, f: impl FnOnce(&StoppedWorld<'_, V>) -> R) -> R {
        self.pause_slow(None, Location::caller(), f)
    }

    /// [`pause`](Self::pause) for a VM with frames of its own: `anchor` is where the walk of the running activation starts.
    ///
    /// # Panics
    ///
    /// As [`pause`](Self::pause).
    #[track_caller]
    pub fn pause_at<R>(&mut self, anchor: Anchor, f: impl FnOnce(&StoppedWorld<'_, V>) -> R) -> R {
        self.pause_slow(Some(anchor), Location::caller(), f)
    }

    fn pause_slow<R>(
        &self,
        anchor: Option<Anchor>,
        site: &'static Location<'static>,
        f: impl FnOnce(&StoppedWorld<'_, V>) -> R,
    ) -> R {
        if CHECKED {
            check_event(self.header(), self.frame(), Event::Pause, site);
        }
        at_safepoint::<V, R>(self.header(), self.frame(), Event::Pause, anchor, site, || {
            match self.shared().stop(site) {
                Ok(stopped) => f(&stopped),
                Err(_) => refuse_wait_in_own_pause("a pause", site),
            }
        })
    }

    /// Runs `f`, in which nothing may be collected: a stretch of managed code that holds raw references, rooted nowhere.
    ///
    /// In checked mode (debug builds, and the feature `checked`) a poll, a pause, a foreign call or an [allocation](Self::may_allocate) inside panics and names both places, also
    /// when no pause is wanted and nothing would have happened this time. Otherwise it calls `f` and does nothing else. Regions nest.
    ///
    /// # Panics
    ///
    /// With what `f` panics with.
    ///
    /// # Examples
    ///
    /// ```
    /// # use reentry::{testkit::TestVm, World};
    /// let world = World::new(TestVm::new());
    /// let mut mutator = world.attach()?;
    /// let pair = world.vm().heap().alloc(&[world.vm().heap().alloc(&[], b"first")], &[]);
    /// let length = mutator.without_collection(|mutator| {
    ///     let heap = mutator.vm().heap();
    ///     let first = heap.field(pair, 0).unwrap(); // rooted nowhere, and needs not be
    ///     heap.byte_count(first).unwrap()
    /// });
    /// assert_eq!(length, 5);
    /// # Ok::<(), reentry::AttachError>(())
    /// ```
    #[inline(always)]
    #[track_caller]
    pub fn without_collection<R>(&mut self, f: impl FnOnce(&mut Self) -> R) -> R {
        let region = Region::NoCollection(Location::caller());
        // SAFETY: as for `record`; the record outlives the handle, which is borrowed meanwhile.
        let checked = unsafe { &(*self.record.as_ptr()).header.checked };
        checked.within(region, || f(self))
    }

    /// Says that the VM is about to allocate on the heap, which may collect. Call it first thing in the allocator.
    ///
    /// Nothing but a check: it costs nothing in a build that does not check.
    ///
    /// # Panics
    ///
    /// In checked mode (debug builds, and the feature `checked`), inside a leaf call or a [no-collection region](Self::without_collection), naming both places; and through a
    /// handle that is not managed.
    #[inline(always)]
    #[track_caller]
    pub fn may_allocate(&self) {
        if CHECKED {
            check_event(self.header(), self.frame(), Event::Allocate, Location::caller());
        }
    }

    /// Looks at the crate's records of this mutator's activations, which foreign code may have written over: canaries, links, depths, kinds, root marks and saved stack pointers.
    ///
    /// In checked mode (debug builds, and the feature `checked`) every crossing does this by itself and aborts the process on damage.
    ///
    /// # Errors
    ///
    /// What is damaged, with a drawing of the chain.
    ///
    /// # Examples
    ///
    /// ```
    /// # use reentry::{testkit::TestVm, World};
    /// let world = World::new(TestVm::new());
    /// let mutator = world.attach()?;
    /// assert_eq!(mutator.validate(), Ok(()));
    /// # Ok::<(), reentry::AttachError>(())
    /// ```
    pub fn validate(&self) -> Result<(), ChainError> {
        chain::validate_own::<V>(self.header())
    }

    /// Notes that this thread holds the VM's lock `name`, until the returned value is dropped: for the reports of who waits for whom
    /// ([`WorldBuilder::report_after`](crate::WorldBuilder::report_after)). It locks nothing.
    #[track_caller]
    pub fn note_lock(&mut self, name: &'static str) -> NotedLock {
        let (locks, site) = (Arc::clone(&self.header().locks), Location::caller());
        locks.add(self.id(), name, site);
        NotedLock { locks, mutator: self.id(), name, site }
    }

    /// Tells the crate that `range` (addresses) is a managed stack of this mutator, which may move later, until
    /// [`withdraw_stack`](Self::withdraw_stack).
    ///
    /// # Errors
    ///
    /// If the range is empty or overlaps one declared before.
    pub fn declare_stack(&mut self, range: Range<usize>) -> Result<(), RelocationError> {
        if range.is_empty() {
            return Err(RelocationError::Empty(range));
        }
        let mut stacks = self.header().stacks.borrow_mut();
        if let Some(known) = stacks.iter().find(|known| known.start < range.end && range.start < known.end) {
            return Err(RelocationError::Overlaps { declared: range, known: known.clone() });
        }
        stacks.push(range);
        Ok(())
    }

    /// Takes back what [`declare_stack`](Self::declare_stack) said: `range`, as it is now, is no stack of this
    /// mutator any more, and its memory may serve for another.
    ///
    /// # Errors
    ///
    /// If the mutator has no such stack, or an older activation has saved an address in it. Nothing has been
    /// changed then.
    ///
    /// # Examples
    ///
    /// ```
    /// # use reentry::{testkit::TestVm, World};
    /// let world = World::new(TestVm::new());
    /// let mut mutator = world.attach()?;
    /// mutator.declare_stack(0x1000..0x2000)?;
    /// mutator.withdraw_stack(0x1000..0x2000)?;
    /// // The memory has been given out again, for a larger stack.
    /// mutator.declare_stack(0x1000..0x3000)?;
    /// assert!(mutator.withdraw_stack(0x1000..0x2000).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn withdraw_stack(&mut self, range: Range<usize>) -> Result<(), RelocationError> {
        let header = self.header();
        let mut stacks = header.stacks.borrow_mut();
        let Some(index) = stacks.iter().position(|stack| *stack == range) else {
            return Err(RelocationError::UnknownStack { old: range, known: stacks.clone() });
        };
        let words = Relocation::words_in(&range, self.frame().older, &header.roots);
        if words > 0 {
            return Err(RelocationError::InUse { stack: range, words });
        }
        stacks.remove(index);
        Ok(())
    }

    /// Tells the crate that a managed stack has moved from `old` to `new`, grown, shrunk or of the same size (I6).
    ///
    /// Every saved `sp` and `fp` that points into `old` or to its end, and every in-place root slot in `old`, in every older activation, is rebased; `end`
    /// says which end keeps its offsets. Nothing else changes: `pc` is never touched. Returns how many words were. Call it after copying and
    /// before the next poll, foreign call or return.
    ///
    /// # Safety
    ///
    /// The words of the old stack that are in use stand at the corresponding addresses of the new one, which is valid for reads and writes until it is relocated in
    /// turn or the mutator detaches. Its provenance must have been exposed.
    ///
    /// # Errors
    ///
    /// If `old` is not a stack this mutator declared, `new` overlaps another, or a saved address would fall outside `new`. Nothing has been changed then.
    /// Between two stacks that touch, an sp at the end of one cannot be told from the start of the other; leave a word between them.
    ///
    /// # Panics
    ///
    /// If the mutator is foreign.
    #[track_caller]
    pub unsafe fn relocate_stack(
        &mut self,
        old: Range<usize>,
        new: Range<usize>,
        end: StackEnd,
    ) -> Result<usize, RelocationError> {
        let header = self.header();
        if header.state().after(Event::Relocate).is_err() {
            refuse(header, Event::Relocate, Location::caller());
        }
        header.relocate(self.frame().older, old, new, end, V::FAULTS)
    }

    /// Pins `reference` for as long as `pinner` holds it, or until [`Pinner::unpin`] ends this pin. See [`Pinner`].
    ///
    /// # Errors
    ///
    /// If the VM cannot pin the object.
    ///
    /// # Panics
    ///
    /// If `pinner` is another world's.
    #[track_caller]
    pub fn pin_with(
        &mut self,
        pinner: &mut Pinner<V::Ref>,
        reference: V::Ref,
    ) -> Result<PinId, ArgumentError> {
        self.pin_with_plan(pinner, ArgumentPlan::Pin, reference)
    }

    /// Pins `reference` and everything reachable from it, at each collection, for as long as `pinner` holds it: for a structure that C keeps and walks.
    ///
    /// # Errors
    ///
    /// If the VM cannot pin the object so.
    ///
    /// # Panics
    ///
    /// If `pinner` is another world's.
    #[track_caller]
    pub fn pin_transitively_with(
        &mut self,
        pinner: &mut Pinner<V::Ref>,
        reference: V::Ref,
    ) -> Result<PinId, ArgumentError> {
        self.pin_with_plan(pinner, ArgumentPlan::TransitivePin, reference)
    }

    /// Either pin.
    ///
    /// # Errors
    ///
    /// If the VM cannot pin the object.
    ///
    /// # Panics
    ///
    /// If `pinner` is another world's.
    #[track_caller]
    fn pin_with_plan(
        &mut self,
        pinner: &mut Pinner<V::Ref>,
        plan: ArgumentPlan,
        reference: V::Ref,
    ) -> Result<PinId, ArgumentError> {
        assert!(
            pinner.is_of(&self.shared().pins),
            "reentry: the pinner used at {} is of another world; make one with this world's `World::pinner`",
            Location::caller()
        );
        self.vm().admit(reference, plan)?;
        Ok(pinner.add(plan, reference))
    }
}

impl<V: StackScanner> fmt::Debug for Mutator<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutator")
            .field("id", &self.id())
            .field("state", &self.header().state())
            .field("depth", &self.depth())
            .finish()
    }
}

/// The note that a thread holds one of the VM's locks. Made by [`Mutator::note_lock`].
#[must_use = "dropping it says that the lock has been released"]
pub struct NotedLock {
    locks: Arc<NotedLocks>,
    mutator: u64,
    name: &'static str,
    site: &'static Location<'static>,
}

impl Drop for NotedLock {
    fn drop(&mut self) {
        self.locks.remove(self.mutator, self.name, self.site);
    }
}

impl fmt::Debug for NotedLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NotedLock({:?} at {})", self.name, self.site)
    }
}
