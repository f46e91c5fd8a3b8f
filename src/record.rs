//! The mutator's record: all the crate keeps for one attached thread, at one address for as long as its world lives.
//!
//! A [`Mutator`](crate::Mutator) is a thin pointer to this. While a foreign call runs, the outer handle is borrowed and an upcall makes another handle for
//! the same record, so everything mutable here is a cell and nobody ever forms `&mut` to it.
//!
//! # Who touches what
//!
//! - `word`: see [`CrossingWord`](crate::state::CrossingWord).
//! - `roots`, the records, `stacks`, `local`: its own thread while managed; the stopper while the mutator is published in a pause (I4).
//! - A record's link `newer`: its own thread, also while foreign, on the way into an upcall; stoppers follow `older` only.
//! - `interrupts`: its lock. `mailbox`, `holds`, `posted_at`: its own thread.
//! - `stopped`: the stopper, during its pause.
//! - `checked`: its own thread; its canary also a stopper, during its pause.
//! - `thread`: written by its own thread before the mutator is admitted (and in a forked process, where there
//!   is no other); read by any while it is attached.
//! - `index`: whoever holds the registry's lock. `next_on_thread`, `keep`, `free_handles`, `releases`: its own thread.
//! - `ownership`: its own thread; others read it under the registry's lock while it is attached, when it changes under that lock only.
//!
//! # While code of the user's runs
//!
//! - **R2** Where the crate goes on with a record after code of the user's (a visitor, a report, a hook), it
//!   runs that code inside [`Header::held`]; where it goes on with an interrupt, inside
//!   [`Interrupts::call_newest`]'s value. No lock is held over either.
//!
//! # One pointer for the whole record
//!
//! - **R4** `whole` is the pointer that `Box::into_raw` gave for the record, and the lists of records (a
//!   thread's, the registry's, the idle ones) hold that pointer. Reaching the VM's data and freeing the
//!   record need it: Rust lets a pointer reach what the reference it was made of covers, and `&Header`
//!   covers the header.

use crate::activation::{ForeignFrame, canary_of};
use crate::checked::Checked;
use crate::handle_table::HandleSlot;
use crate::mailbox::Mailbox;
use crate::os_thread::ThreadTag;
use crate::root_stack::RootStack;
use crate::state::{CrossingWord, State};
use crate::sync::{Cell, Changes, FenceStrategy, release_fence, thread_token};
use crate::vm::{FrameKind, Vm};
use core::any::TypeId;
use core::cell::{RefCell, UnsafeCell};
use core::ops::Range;
use core::panic::Location;
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

/// Who ends an attachment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ownership {
    /// Not attached.
    Nobody,
    /// An [`Attachment`](crate::Attachment).
    Attachment,
    /// The thread itself, at its exit: it attached itself on its first upcall.
    Thread,
    /// An attachment that has outlived its thread: it was leaked.
    Orphan,
    /// A [`Fiber`](crate::Fiber).
    Fiber,
}

/// A world, as far as a thread that leaves it must know.
pub(crate) trait Leave: Send + Sync {
    /// Detaches a record that the calling thread itself owns, at the thread's exit.
    ///
    /// # Errors
    ///
    /// The thread holds a pause of the world.
    fn leave(&self, header: &Header) -> Result<(), &'static str>;

    /// Tells the hooks that a mutator, which is managed, will run no more.
    fn tell_leaving(&self, header: &Header);
}

/// Which thread runs a fiber, and whether it is bound to that thread.
///
/// Apart from the mutator's record: the fiber's stack looks at it when it is switched to, perhaps after the [`Fiber`](crate::Fiber) has been dropped and the record serves another thread.
pub(crate) struct FiberState {
    /// The token of the thread that runs it; 0 if none does.
    running_on: AtomicUsize,
    /// The token of the thread whose foreign frames are on its stack; 0 if there are none. Written and read by whoever runs it.
    pinned_to: core::cell::Cell<usize>,
    /// Its first activation was entered by [`Fiber::run`](crate::Fiber::run), not by an upcall. Written and read by whoever runs it.
    in_run: core::cell::Cell<bool>,
}

// SAFETY: the cells are touched by the thread alone that has made `running_on` its own, by an acquiring exchange.
unsafe impl Send for FiberState {}
// SAFETY: as above.
unsafe impl Sync for FiberState {}

/// Its [`Fiber`](crate::Fiber) has been dropped.
const DROPPED: usize = usize::MAX;
/// The thread that ran it is not in this process: it stayed behind in the parent.
#[cfg(all(unix, not(loom)))]
const LOST: usize = usize::MAX - 1;

impl FiberState {
    pub(crate) fn new() -> Self {
        Self {
            running_on: AtomicUsize::new(0),
            pinned_to: core::cell::Cell::new(0),
            in_run: core::cell::Cell::new(false),
        }
    }

    /// Begins to run it on the thread named by `token`.
    ///
    /// # Errors
    ///
    /// It runs already, or is bound to another thread.
    pub(crate) fn resume(&self, token: usize) -> Result<(), FiberError> {
        // Acquire pairs with the release in `suspend`: what the thread before did to the mutator's own data is seen.
        let taken = self.running_on.compare_exchange(0, token, Ordering::Acquire, Ordering::Relaxed);
        taken.map_err(|_| FiberError::Running)?;
        if ![0, token].contains(&self.pinned_to.get()) {
            self.running_on.store(0, Ordering::Release);
            return Err(FiberError::Pinned);
        }
        // Records that another thread has made are named by this one's stores now.
        release_fence();
        Ok(())
    }

    /// Ends to run it. `depth`: how many activations its newest record has below it.
    pub(crate) fn suspend(&self, token: usize, depth: u32) {
        // Each activation but one that `Fiber::run` entered was called by foreign code, whose frames are on the stack.
        let pinned = depth > u32::from(self.in_run.get());
        self.pinned_to.set(if pinned { token } else { 0 });
        // Pairs with the exchanges in `resume` and `end`.
        self.running_on.store(0, Ordering::Release);
    }

    /// Notes whether [`Fiber::run`](crate::Fiber::run) is in progress.
    pub(crate) fn set_in_run(&self, in_run: bool) {
        self.in_run.set(in_run);
    }

    /// Says whether no thread runs it.
    pub(crate) fn is_put_down(&self) -> bool {
        self.running_on.load(Ordering::Relaxed) == 0
    }

    /// Says whether it runs on the thread named by `token`.
    pub(crate) fn is_running_on(&self, token: usize) -> bool {
        self.running_on.load(Ordering::Relaxed) == token
    }

    /// Takes it for good, unless it runs.
    pub(crate) fn end(&self) -> bool {
        self.running_on.compare_exchange(0, DROPPED, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Gives it up in a forked process, where the thread that ran it is not.
    #[cfg(all(unix, not(loom)))]
    pub(crate) fn lose(&self) {
        self.running_on.store(LOST, Ordering::Relaxed);
    }

    /// Says whether it was given up.
    #[cfg(all(unix, not(loom)))]
    pub(crate) fn is_lost(&self) -> bool {
        self.running_on.load(Ordering::Relaxed) == LOST
    }
}

/// Why a fiber was not resumed, or not entered. Nothing has been changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FiberError {
    /// It is running: on this thread, below, or on another.
    #[error(
        "the fiber is running already, on this thread or another; it can be resumed when it has suspended"
    )]
    Running,
    /// Foreign frames of another thread lie between its activations.
    #[error(
        "the fiber has foreign frames of another thread on its stack; resume it on the thread where it suspended"
    )]
    Pinned,
    /// It is another world's.
    #[error("the fiber belongs to another world")]
    OtherWorld,
    /// It has not been resumed on this thread.
    #[error("the fiber has not been resumed on this thread; run it inside `Mutator::resume`")]
    NotResumed,
    /// It has been entered already.
    #[error("the fiber has been entered already; `Fiber::run` is for its first frame")]
    Entered,
    /// The world has been shut down, and did not wait for the fiber.
    #[error("the world was shut down, and did not wait for the fiber")]
    WorldEnded,
    /// The mutator is no fiber's.
    #[error("this mutator belongs to a thread; only a fiber's can be suspended")]
    NotAFiber,
    /// This thread holds a pause of the world.
    #[error("this thread holds a pause of the world; end the pause before the fiber is entered")]
    PauseHeldHere,
}

/// The part of a record that does not depend on the VM's types. Its opening words are documented layout.
#[repr(C, align(128))]
pub(crate) struct Header {
    pub(crate) word: CrossingWord<ForeignFrame>,
    pub(crate) vm_type: TypeId,
    pub(crate) next_on_thread: Cell<*const Header>,
    pub(crate) ownership: Cell<Ownership>,
    pub(crate) roots: RootStack,
    /// The world, type-erased.
    pub(crate) world: *const (),
    /// The pointer this record was made with; see [`Header::whole`].
    whole: Cell<*const Header>,
    /// How much of the user's code runs now from which the crate goes on with this record; see
    /// [`Header::held`].
    holds: core::cell::Cell<u32>,
    /// The depth of the activation that does posted work, plus 1; 0 while none does.
    pub(crate) posted_at: core::cell::Cell<u32>,
    /// What an upcall's stack pointer is compared with on the common way in: `own_limit`, or more while an upcall of a signal handler runs.
    pub(crate) stack_limit: Cell<usize>,
    /// The record of the oldest activation, in the mutator itself: the common case touches no other memory.
    pub(crate) base: ForeignFrame,
    /// What the stopper saw published.
    pub(crate) stopped: Cell<*const ForeignFrame>,
    pub(crate) id: Cell<u64>,
    pub(crate) index: Cell<usize>,
    pub(crate) stacks: RefCell<Vec<Range<usize>>>,
    /// Who runs it, if it is a fiber's; else null. The record holds one count of it, since a `Fiber`
    /// that is dropped in a pause is gone before its mutator is. Written before the mutator is
    /// admitted and after it is dismissed, so that any thread can read it while it is attached.
    pub(crate) fiber: Cell<*const FiberState>,
    /// Counts changes of older records in place.
    pub(crate) changes: Changes,
    /// How to make foreign calls in progress return.
    pub(crate) interrupts: Interrupts,
    /// The locks the VM has noted.
    pub(crate) locks: Arc<NotedLocks>,
    /// What other threads have posted; made when it is asked for.
    pub(crate) mailbox: RefCell<Option<Arc<Mailbox>>>,
    /// The thread's own stack: lowest address and base, both 0 where it is not known.
    native_stack: Cell<(usize, usize)>,
    /// The lowest stack pointer that an upcall on the thread's own stack may come in with; 0 where that is not known.
    pub(crate) own_limit: Cell<usize>,
    /// Records that foreign code has left on another stack, where their calls may come back: they are used for no other call, and freed with this.
    astray: RefCell<Vec<*const ForeignFrame>>,
    /// Slots of the world's handle table that this mutator has taken to use next. Its own thread's, while attached.
    pub(crate) free_handles: Cell<*const HandleSlot>,
    /// How many arguments that can be released early this mutator has ever declared: each has a number of its own.
    pub(crate) releases: Cell<u64>,
    /// Keeps the world alive while a thread is attached: its attachment may be leaked, and a foreign
    /// thread's has no owner.
    pub(crate) keep: RefCell<Option<Arc<dyn Leave>>>,
    /// The thread that attached it; nothing for a fiber. Written before it is admitted, so that any thread can read it while it is attached.
    pub(crate) thread: Cell<ThreadTag>,
    /// What checked mode keeps. Last, for its canary.
    pub(crate) checked: Checked,
}

impl Header {
    pub(crate) fn new(fence: FenceStrategy, vm_type: TypeId, world: *const ()) -> Self {
        Self {
            word: CrossingWord::new(fence),
            roots: RootStack::new(),
            vm_type,
            next_on_thread: Cell::new(ptr::null()),
            world,
            whole: Cell::new(ptr::null()),
            holds: core::cell::Cell::new(0),
            posted_at: core::cell::Cell::new(0),
            base: ForeignFrame::new(ptr::null(), 0),
            stopped: Cell::new(ptr::null()),
            ownership: Cell::new(Ownership::Nobody),
            keep: RefCell::new(None),
            id: Cell::new(0),
            index: Cell::new(usize::MAX),
            stacks: RefCell::new(Vec::new()),
            interrupts: Interrupts::default(),
            fiber: Cell::new(ptr::null()),
            changes: Changes::default(),
            locks: Arc::default(),
            mailbox: RefCell::new(None),
            stack_limit: Cell::new(0),
            native_stack: Cell::new((0, 0)),
            own_limit: Cell::new(0),
            astray: RefCell::new(Vec::new()),
            free_handles: Cell::new(ptr::null()),
            releases: Cell::new(0),
            thread: Cell::new(ThreadTag::default()),
            checked: Checked::new(),
        }
    }

    /// Says whether this is a foreign thread's own mutator, and no upcall of it is in progress. For its own thread.
    pub(crate) fn is_own_and_idle(&self) -> bool {
        self.ownership.get() == Ownership::Thread && self.word.is_published(&raw const self.base)
    }

    /// The thread's own stack; empty where it is not known.
    pub(crate) fn native_stack(&self) -> Range<usize> {
        let (lowest, base) = self.native_stack.get();
        lowest..base
    }

    /// Runs code of the user's (a visitor, a report, a hook) from which the crate goes on with this
    /// record. Until it is over, detaching the mutator is refused (R2), so the record, the VM and the
    /// world are there. For its own thread.
    ///
    /// Not round the body of an upcall: foreign code may jump over that, and nothing would end the hold.
    ///
    /// # Panics
    ///
    /// With what `code` panics with.
    #[inline(always)]
    pub(crate) fn held<R>(&self, code: impl FnOnce() -> R) -> R {
        self.holds.set(self.holds.get() + 1);
        let _end = scopeguard::guard((), |()| self.holds.set(self.holds.get() - 1));
        code()
    }

    /// Says whether code runs from which the crate goes on with this record. For its own thread.
    pub(crate) fn is_held(&self) -> bool {
        self.holds.get() != 0
    }

    /// Writes the canaries, now that the record is where it stays, and keeps the pointer it was made
    /// with.
    ///
    /// # Safety
    ///
    /// `record` is the pointer that `Box::into_raw` gave for the whole record, and no other thread has
    /// it yet.
    pub(crate) unsafe fn settle<L>(record: *const MutatorRecord<L>) {
        let whole = record.cast::<Self>();
        // SAFETY: just made, by contract; a record begins with its header (`repr(C)`).
        let header = unsafe { &*whole };
        header.whole.set(whole);
        header.checked.canary.set(header.expected_canary());
        header.base.settle();
    }

    /// The pointer this record was made with: good for all of it, the VM's own data included.
    ///
    /// A pointer made of `&Header` is good for the header alone, though it has the same address.
    /// So each list of records, and each step from a header to the rest, uses this one (R4).
    #[inline(always)]
    pub(crate) fn whole(&self) -> *const Self {
        self.whole.get()
    }

    /// The whole record.
    ///
    /// # Safety
    ///
    /// The record is one of a world whose `Vm::Local` is `L`, and lives as long as the result.
    #[inline(always)]
    pub(crate) unsafe fn record<'r, L>(&self) -> &'r MutatorRecord<L> {
        // SAFETY: `whole` is the pointer that `Box::into_raw` gave for a `MutatorRecord<L>` (R4); it
        // lives, by contract, and nobody forms `&mut` to it.
        unsafe { &*self.whole().cast::<MutatorRecord<L>>() }
    }

    /// The canary that belongs here.
    pub(crate) fn expected_canary(&self) -> usize {
        canary_of(core::ptr::from_ref(self))
    }

    /// The canary that is here.
    pub(crate) fn canary(&self) -> usize {
        self.checked.canary.get()
    }

    /// Takes the records that are newer than `frame` out of use: foreign code has left them, and their calls may come back all the same. For its own thread, while it is in none of
    /// them.
    pub(crate) fn set_astray(&self, frame: &ForeignFrame) {
        let newer = frame.cut_newer();
        if !newer.is_null() {
            self.astray.borrow_mut().push(newer);
        }
    }

    /// Says whether a call may come back that foreign code has left: the record must then be there as long as the process, and serve no other thread.
    pub(crate) fn has_astray(&self) -> bool {
        !self.astray.borrow().is_empty()
    }

    /// The newest foreign call, from `frame` on, whose crossing lies above `edge`: the one that foreign code at `edge` belongs to.
    pub(crate) fn call_above<V: Vm>(
        &self,
        mut frame: *const ForeignFrame,
        edge: usize,
    ) -> Option<&ForeignFrame> {
        let stack = self.native_stack();
        // SAFETY: null, or a live record of this mutator.
        while let Some(call) = unsafe { frame.as_ref() } {
            let crossing = call.native_sp::<V>();
            // A crossing on another stack, or none at all (a foreign thread's base), bounds what can have been skipped.
            if crossing >= edge || !stack.contains(&crossing) {
                return Some(call);
            }
            frame = call.older;
        }
        None
    }

    /// The state, seen from its own thread.
    pub(crate) fn state(&self) -> State {
        let Some(frame) = self.word.published() else { return State::Managed };
        // SAFETY: the word of an attached mutator holds a live record.
        match unsafe { frame.as_ref() }.kind.get() {
            FrameKind::Safepoint | FrameKind::Leaving => State::AtSafepoint,
            FrameKind::ForeignCall
            | FrameKind::ForeignThread
            | FrameKind::Resuming
            | FrameKind::Suspended => State::Foreign,
        }
    }

    /// Says whether nothing runs that would ever detach it: a foreign thread between two upcalls, a fiber that is put down. For any thread, while the registry's lock is held and
    /// it is attached.
    pub(crate) fn is_idle(&self) -> bool {
        match self.fiber() {
            Some(fiber) => fiber.is_put_down(),
            None => {
                self.ownership.get() == Ownership::Thread
                    && ptr::eq(self.word.observe(), &raw const self.base)
            }
        }
    }

    /// Who runs it, if it is a fiber's. For its own thread, or any while the registry's lock is held; while it is attached.
    pub(crate) fn fiber(&self) -> Option<&FiberState> {
        // SAFETY: null, or what this record holds one count of, from `begin_fiber` to `end`.
        unsafe { self.fiber.get().as_ref() }
    }

    /// Keeps the state of a fiber for ever if activations of it are suspended, since their frames look at it when they are switched to. For whoever ends the fiber.
    pub(crate) fn keep_fiber_state(&self) {
        let fiber = self.fiber.get();
        if !fiber.is_null() && !self.word.is_published(&raw const self.base) {
            // SAFETY: made by `Arc::into_raw` in `begin_fiber`, and this record's count of it is there.
            unsafe { Arc::increment_strong_count(fiber) };
        }
    }

    /// Says whether the fiber whose mutator this is can be left where it is: it has suspended itself, or runs nothing. For its own thread.
    ///
    /// # Errors
    ///
    /// What it is doing.
    pub(crate) fn is_at_rest(&self) -> Result<(), &'static str> {
        let Some(newest) = self.word.published() else { return Err("managed") };
        // SAFETY: the word of an attached mutator holds a live record.
        match unsafe { newest.as_ref() }.kind.get() {
            FrameKind::Suspended | FrameKind::ForeignThread => Ok(()),
            FrameKind::ForeignCall | FrameKind::Leaving => Err("in a foreign call"),
            FrameKind::Safepoint => Err("stopped at a safepoint"),
            FrameKind::Resuming => Err("waiting for a fiber that it had resumed"),
        }
    }

    /// Puts the record in the state of a thread that has just attached. `reserve`: the bytes of stack an upcall must find.
    pub(crate) fn begin(&self, entry_sp: usize, reserve: usize) {
        let stack = crate::arch::stack_bounds().unwrap_or(0..0);
        // A reserve that a small stack cannot spare would refuse every upcall.
        let reserve = reserve.min(stack.len() / 2);
        self.own_limit.set(if stack.is_empty() { 0 } else { stack.start + reserve });
        self.stack_limit.set(self.own_limit.get());
        self.native_stack.set((stack.start, stack.end));
        self.base.kind.set(FrameKind::ForeignCall);
        self.base.site.set(None);
        self.base.anchor.set(crate::anchor::Anchor::default());
        self.base.machine_sp.set(0);
        self.base.entry_sp.set(entry_sp);
        self.base.roots_base.set(self.roots.mark());
        self.checked.leave_region();
        self.thread.set(ThreadTag::here());
        self.checked.begin_points();
        self.holds.set(0);
        self.posted_at.set(0);
    }

    /// Puts the record in the state of a fiber's mutator, which no thread runs: below its first activation there is nothing managed. Its stack may be any.
    pub(crate) fn begin_fiber(&self, fiber: &Arc<FiberState>) {
        self.begin(0, 0);
        self.fiber.set(Arc::into_raw(Arc::clone(fiber)));
        self.thread.set(ThreadTag::default());
        self.base.kind.set(FrameKind::ForeignThread);
        // It made no call: every upcall lies below.
        self.base.machine_sp.set(usize::MAX);
        self.stack_limit.set(0);
        self.own_limit.set(0);
        self.native_stack.set((0, 0));
    }

    /// Gives back what a mutator held, so that the record can serve another thread.
    pub(crate) fn end(&self) {
        self.roots.reset();
        let mut frame = &raw const self.base;
        while !frame.is_null() {
            // SAFETY: a live record of this mutator, whose thread is detaching: nothing of it is in use.
            let record = unsafe { &*frame };
            if record.after.get() != 0 {
                record.finish_slow();
            }
            record.forget_terms();
            frame = record.newer();
        }
        // SAFETY: the mutator is detached: no record of it is published or used.
        unsafe { self.base.free_newer() };
        self.stacks.borrow_mut().clear();
        self.interrupts.end(0);
        // A note can outlive its mutator; the next one on this record has nothing to do with it.
        self.locks.noted().clear();
        if let Some(mailbox) = self.mailbox.take() {
            mailbox.close();
        }
        self.ownership.set(Ownership::Nobody);
        let fiber = self.fiber.replace(ptr::null());
        if !fiber.is_null() {
            // SAFETY: made by `Arc::into_raw` in `begin_fiber`, and taken out just now.
            drop(unsafe { Arc::from_raw(fiber) });
        }
        self.next_on_thread.set(ptr::null());
    }
}

/// The locks a VM says its mutator's thread holds, with the places where it said so.
#[derive(Default)]
pub(crate) struct NotedLocks(std::sync::Mutex<Vec<(u64, NamedLock)>>);

/// A lock's name, and where it was noted.
type NamedLock = (&'static str, &'static Location<'static>);

impl NotedLocks {
    /// Notes a lock of the mutator numbered `mutator`.
    pub(crate) fn add(&self, mutator: u64, name: &'static str, site: &'static Location<'static>) {
        self.noted().push((mutator, (name, site)));
    }

    /// Takes the newest such note back.
    pub(crate) fn remove(&self, mutator: u64, name: &'static str, site: &'static Location<'static>) {
        let mut noted = self.noted();
        let is_it =
            |(of, lock): &(u64, NamedLock)| *of == mutator && lock.0 == name && core::ptr::eq(lock.1, site);
        if let Some(index) = noted.iter().rposition(is_it) {
            noted.remove(index);
        }
    }

    /// The notes, locked.
    pub(crate) fn noted(&self) -> std::sync::MutexGuard<'_, Vec<(u64, NamedLock)>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// What makes a foreign call return early: borrowed by the call, and taken out of the list before the borrow ends.
#[derive(Clone, Copy)]
pub(crate) struct Interrupt(*const (dyn Fn() + Sync));

impl Interrupt {
    /// Forgets how long it is borrowed: the call it is for takes it out of the list in time.
    pub(crate) fn new<'i>(interrupt: &'i (dyn Fn() + Sync)) -> Self {
        let interrupt: *const (dyn Fn() + Sync + 'i) = interrupt;
        // SAFETY: only the bound on the lifetime changes.
        Self(unsafe {
            core::mem::transmute::<*const (dyn Fn() + Sync + 'i), *const (dyn Fn() + Sync)>(interrupt)
        })
    }
}

// SAFETY: it points to something `Sync`, which lives while the list has it.
unsafe impl Send for Interrupt {}

impl Header {
    /// The locks the VM has noted.
    pub(crate) fn noted_locks(&self) -> Vec<NamedLock> {
        self.locks.noted().iter().map(|&(_, lock)| lock).collect()
    }
}

/// The interrupts of one mutator's calls in progress, oldest first.
///
/// A call that has one ends only when no other thread is calling it, so what it borrows is there; the lock
/// is held for a few steps, and never while an interrupt runs (R2).
#[derive(Default)]
pub(crate) struct Interrupts {
    offered: std::sync::Mutex<Vec<Offered>>,
    /// Signalled when a thread has called an interrupt.
    done: std::sync::Condvar,
}

/// The interrupt of one call.
struct Offered {
    /// The depth of the call's activation.
    depth: u32,
    interrupt: Interrupt,
    /// The threads that are calling it.
    callers: Vec<usize>,
    /// The call is over, but for those.
    ending: bool,
}

impl Interrupts {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Offered>> {
        self.offered.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Keeps the list as it is until the result is gone: for a fork, whose child has only what is whole.
    #[cfg(all(unix, not(loom)))]
    pub(crate) fn stand_still(&self) -> impl Sized {
        self.lock()
    }

    /// Forgets the callers that are other threads, in a forked process, where those are not.
    #[cfg(all(unix, not(loom)))]
    pub(crate) fn forget_other_threads(&self) {
        let this = thread_token();
        self.lock().iter_mut().for_each(|offer| offer.callers.retain(|&caller| caller == this));
    }

    /// Adds the interrupt of a call at `depth`.
    pub(crate) fn begin(&self, depth: u32, interrupt: Interrupt) {
        self.lock().push(Offered { depth, interrupt, callers: Vec::new(), ending: false });
    }

    /// Takes out the interrupts of calls at `depth` and newer. When this returns, no other thread is
    /// calling one. (This thread can be: it has jumped out of its interrupt.)
    pub(crate) fn end(&self, depth: u32) {
        let mut offered = self.lock();
        if offered.is_empty() {
            return;
        }
        let this = thread_token();
        loop {
            let mut busy = false;
            for offer in offered.iter_mut().filter(|offer| offer.depth >= depth) {
                offer.ending = true;
                busy |= offer.callers.iter().any(|&caller| caller != this);
            }
            if !busy {
                break;
            }
            offered = self.done.wait(offered).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        offered.retain(|offer| offer.depth < depth);
    }

    /// Begins to call the newest interrupt, if there is one: its call does not end before the result is
    /// gone.
    pub(crate) fn call_newest(&self) -> Option<InterruptCall<'_>> {
        let mut offered = self.lock();
        let offer = offered.iter_mut().rfind(|offer| !offer.ending)?;
        let this = thread_token();
        offer.callers.push(this);
        Some(InterruptCall { of: self, depth: offer.depth, interrupt: offer.interrupt })
    }
}

/// An interrupt that this thread is about to call, or is calling. No lock is held.
pub(crate) struct InterruptCall<'h> {
    of: &'h Interrupts,
    depth: u32,
    interrupt: Interrupt,
}

impl InterruptCall<'_> {
    /// Calls it.
    ///
    /// # Panics
    ///
    /// With what it panics with.
    pub(crate) fn make(self) {
        // SAFETY: the call it was borrowed for is in progress: that ends when this value is gone, which
        // names this thread among the callers.
        unsafe { (*self.interrupt.0)() };
    }
}

impl Drop for InterruptCall<'_> {
    fn drop(&mut self) {
        let this = thread_token();
        let mut offered = self.of.lock();
        // Not there only if this thread has jumped out of the call.
        for offer in offered.iter_mut().filter(|offer| offer.depth == self.depth) {
            if let Some(index) = offer.callers.iter().position(|&caller| caller == this) {
                offer.callers.swap_remove(index);
                break;
            }
        }
        self.of.done.notify_all();
    }
}

impl Drop for Header {
    fn drop(&mut self) {
        // SAFETY: unique access: no record is published or used.
        unsafe { self.base.free_newer() };
        for first in self.astray.take() {
            // SAFETY: as above; the link to it was cut when it was put here.
            unsafe { ForeignFrame::free_chain(first) };
        }
    }
}

/// A header with the VM's own data behind it; a pointer to one is a pointer to its header.
#[repr(C)]
pub(crate) struct MutatorRecord<L> {
    pub(crate) header: Header,
    /// `None` while not attached.
    pub(crate) local: UnsafeCell<Option<L>>,
}
