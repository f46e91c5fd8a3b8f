//! Activation records: what a mutator publishes when it leaves managed code, the chain they form, and how they follow a moved stack.
//!
//! An *activation* is one contiguous run of managed frames. Its record, a [`ForeignFrame`], names the newest of them. Each mutator owns one record
//! per nesting depth, made once and linked for ever: `older` never changes, so the chain a walker follows
//! is right whichever record is published, and nothing is linked or unlinked at a crossing.
//!
//! ```text
//!   word ──> record 2 ──older──> record 1 ──older──> record 0 ──older──> null
//!            safepoint in        call made in         call made in
//!            the 2nd upcall      the 1st upcall       the base activation
//! ```
//!
//! # Invariants of a record
//!
//! - Its own thread writes it while managed, and only the running activation's (but for the link to the next, which no stopper follows); a stopper reads it while the mutator is published
//!   (I1) and may rebase it then (I6).
//! - Records live as long as their mutator's record, which lives as long as its world: a frame skipped by `longjmp` leaves no dangling link.

use crate::anchor::Anchor;
use crate::arch;
use crate::control::{MachineState, Saved, SignalsBlocked};
use crate::results::{Results, UNTIL_FIRST_UPCALL};
use crate::root_stack::{Entry, EntryKind, RootMark, RootStack};
use crate::sync::{Cell, SiteCell, release_fence};
use crate::unwind::{self, Payload};
use crate::vm::{Capture, ErrorPolicy, FrameKind, Vm};
use bumpalo::Bump;
use core::cell::UnsafeCell;
use core::ops::Range;
use core::panic::Location;
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};
#[cfg(feature = "libffi")]
use core::{any::Any, mem::MaybeUninit, ptr::NonNull};
#[cfg(feature = "libffi")]
use std::sync::Arc;

/// The record of one activation that is not running.
#[repr(C, align(64))]
pub(crate) struct ForeignFrame {
    /// Where the walk of this activation starts.
    pub(crate) anchor: AnchorCell,
    /// The machine stack pointer at the crossing; with [`Capture::Anchor`] 0 where `anchor.sp` is it. See [`ForeignFrame::native_sp`].
    pub(crate) machine_sp: Cell<usize>,
    /// The source line of the crossing.
    pub(crate) site: SiteCell,
    /// The machine stack pointer at which this activation was entered.
    pub(crate) entry_sp: core::cell::Cell<usize>,
    /// The top of the root stack when this activation was entered: what lies above belongs to it or to a newer one.
    pub(crate) roots_base: Cell<RootMark>,
    /// What must be done when the foreign call ends: bits of [`after`].
    pub(crate) after: Cell<u32>,
    pub(crate) kind: Cell<FrameKind>,
    /// How many records are older.
    pub(crate) depth: u32,
    pub(crate) older: *const ForeignFrame,
    /// The record an upcall uses. Null until that depth has been reached once, and while the call has terms of its own or carries an error.
    newer: Cell<*const ForeignFrame>,
    /// References that upcalls of this call have handed to C: rooted until C's caller has them.
    results: Results,
    /// Callee-saved registers at the crossing, if the VM captures them.
    registers: UnsafeCell<[usize; arch::SAVED_REGISTERS]>,
    /// Argument and result memory of the call, reset when it ends.
    arena: UnsafeCell<Bump>,
    /// The error of an upcall of this call, to go on with when it returns.
    pending: UnsafeCell<Option<Payload>>,
    /// What the call in progress asked for, if it has terms of its own.
    terms: Cell<Option<Terms>>,
    /// `newer`, while the call in progress has terms of its own, or carries an error: its upcalls then find
    /// no link, and take the cold way.
    set_aside: Cell<*const ForeignFrame>,
    /// How many upcalls have not run since the call carries an error.
    skipped_upcalls: core::cell::Cell<u32>,
    /// The machine's state on the managed side of a call that preserves it.
    machine: Cell<Saved>,
    /// The policy of the upcall function that runs in this activation, if it has one of its own.
    own_policy: Cell<Option<ErrorPolicy>>,
    /// Where a call with a run-time signature puts its arguments, and its result.
    #[cfg(feature = "libffi")]
    scratch: UnsafeCell<Scratch>,
    /// How many crossings this record has been published for: the window in which the audit compares collections.
    #[cfg(feature = "audit")]
    pub(crate) crossings: Cell<u64>,
    /// A function of the record's address, written once: the last word, so that what runs into the record from below or fills it is noticed. See `chain.rs`.
    pub(crate) canary: Cell<usize>,
}

/// Words that a call with a run-time signature needs, and no other. In the record and not in the guard: a guard is moved, and what is moved is copied.
#[cfg(feature = "libffi")]
#[repr(C, align(16))]
pub(crate) struct Scratch {
    pub(crate) arguments: arch::ArgumentRegisters,
    pub(crate) result: MaybeUninit<[u64; RESULT_WORDS]>,
    /// What the rare call needs, in its memory; of the last that needed it. What stands for `...`:
    pub(crate) extras: Option<NonNull<()>>,
    /// Arguments for which the words are too few.
    pub(crate) block: Option<NonNull<u64>>,
    /// A result for which the words are too few.
    pub(crate) large_result: Option<NonNull<u64>>,
    /// The signature of the last call that had to name the types of what stands for `...`, and its arguments.
    pub(crate) named: Option<Arc<dyn Any + Send + Sync>>,
    pub(crate) named_block: Option<NonNull<u64>>,
}

/// The words of a result that a record has room for.
#[cfg(feature = "libffi")]
pub(crate) const RESULT_WORDS: usize = 8;

/// What a foreign call asks for that most do not.
///
/// The way in of an upcall must not pay for it. So a call with terms of its own sets its record's link to the next aside, and its upcalls, finding no link, take the
/// cold way, which reads the terms.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Terms {
    pub(crate) on_error: ErrorPolicy,
    pub(crate) upcalls: Upcalls,
    pub(crate) preserve: MachineState,
    /// Whether something was declared that ends with the first upcall.
    pub(crate) ends_with_upcall: bool,
    /// What becomes of upcalls when one has failed.
    pub(crate) after_error: AfterError,
}

/// What becomes of an upcall when the foreign call it comes from carries an error already.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AfterError {
    /// C gets the fallback value at once.
    #[default]
    Skip,
    /// It runs.
    Run,
}

/// Whether a foreign call may call back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Upcalls {
    #[default]
    Allowed,
    Forbidden,
}

/// An anchor the machine can write in place, and any thread may read word by word. Not the facade's atomics: its address must be that of three words, also under loom.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct AnchorCell {
    pc: AtomicUsize,
    sp: AtomicUsize,
    fp: AtomicUsize,
}

impl AnchorCell {
    fn new() -> Self {
        Self { pc: AtomicUsize::new(0), sp: AtomicUsize::new(0), fp: AtomicUsize::new(0) }
    }

    /// Reads it. The word it was published with orders the three (I1), or the mutator's count of changes shows that they do not belong together.
    #[inline(always)]
    pub(crate) fn get(&self) -> Anchor {
        Anchor::new(
            self.pc.load(Ordering::Relaxed),
            self.sp.load(Ordering::Relaxed),
            self.fp.load(Ordering::Relaxed),
        )
    }

    /// Reads its stack pointer alone.
    #[inline(always)]
    pub(crate) fn sp(&self) -> usize {
        self.sp.load(Ordering::Relaxed)
    }

    /// Writes it: three plain stores.
    #[inline(always)]
    pub(crate) fn set(&self, anchor: Anchor) {
        self.pc.store(anchor.pc, Ordering::Relaxed);
        self.sp.store(anchor.sp, Ordering::Relaxed);
        self.fp.store(anchor.fp, Ordering::Relaxed);
    }

    /// Writes the machine's registers, as the function this is inlined into has them.
    #[inline(always)]
    pub(crate) fn capture(&self, site: &'static Location<'static>) {
        let words = core::ptr::from_ref(self).cast_mut().cast::<Anchor>();
        // SAFETY: three atomic words, laid out as an anchor's: valid for writes through a shared reference, on this thread alone.
        unsafe { arch::store_anchor(words, site) };
    }
}

/// The bits of [`ForeignFrame::after`].
pub(crate) mod after {
    /// The arena holds something.
    pub(crate) const ARENA: u32 = 1;
    /// A panic is pending.
    pub(crate) const PENDING: u32 = 2;
}

/// The canary of a record at an address: what nobody writes there by chance.
pub(crate) fn canary_of<T>(record: *const T) -> usize {
    (record.addr() ^ 0x5EED_CA9A_u64 as usize).rotate_left(17) ^ 0x0DD_BA11
}

impl ForeignFrame {
    pub(crate) fn new(older: *const Self, depth: u32) -> Self {
        Self {
            anchor: AnchorCell::new(),
            machine_sp: Cell::new(0),
            site: SiteCell::default(),
            entry_sp: core::cell::Cell::new(0),
            roots_base: Cell::new(ptr::null_mut()),
            after: Cell::new(0),
            kind: Cell::new(FrameKind::ForeignCall),
            depth,
            older,
            newer: Cell::new(ptr::null()),
            results: Results::new(),
            registers: UnsafeCell::new([0; arch::SAVED_REGISTERS]),
            arena: UnsafeCell::new(Bump::new()),
            pending: UnsafeCell::new(None),
            terms: Cell::new(None),
            set_aside: Cell::new(ptr::null()),
            skipped_upcalls: core::cell::Cell::new(0),
            machine: Cell::new(Saved::NOTHING),
            own_policy: Cell::new(None),
            #[cfg(feature = "libffi")]
            scratch: UnsafeCell::new(Scratch {
                arguments: arch::ArgumentRegisters(MaybeUninit::uninit()),
                result: MaybeUninit::uninit(),
                extras: None,
                block: None,
                large_result: None,
                named: None,
                named_block: None,
            }),
            #[cfg(feature = "audit")]
            crossings: Cell::new(0),
            canary: Cell::new(0),
        }
    }

    /// Begins a crossing: managed code of the activation has run since the last one.
    #[cfg(feature = "audit")]
    #[inline(always)]
    pub(crate) fn count_crossing(&self) {
        self.crossings.set(self.crossings.get() + 1);
    }

    /// Writes the canary, now that the record is where it stays.
    pub(crate) fn settle(&self) {
        self.canary.set(self.expected_canary());
    }

    /// The canary that belongs here.
    pub(crate) fn expected_canary(&self) -> usize {
        canary_of(ptr::from_ref(self))
    }

    /// The canary that is here.
    pub(crate) fn canary(&self) -> usize {
        self.canary.get()
    }

    /// The depth as it stands in memory, whoever wrote it.
    pub(crate) fn depth_now(&self) -> u32 {
        // SAFETY: a field of a live record.
        unsafe { (&raw const self.depth).read_volatile() }
    }

    /// The link to the next older record as it stands in memory, whoever wrote it.
    pub(crate) fn older_now(&self) -> *const Self {
        // SAFETY: a field of a live record; it is compared and not followed.
        unsafe { (&raw const self.older).read_volatile() }
    }

    /// The kind as it stands in memory, which need not be one.
    pub(crate) fn kind_byte(&self) -> u8 {
        #[cfg(not(loom))]
        {
            // SAFETY: a field of a live record, of one byte (`FrameKind` is `repr(u8)`), which any byte is a value of as a `u8`.
            unsafe { (&raw const self.kind).cast::<u8>().read_volatile() }
        }
        #[cfg(loom)]
        {
            self.kind.get() as u8
        }
    }

    /// The policy of the upcall function that runs in this activation, if it has one of its own.
    pub(crate) fn own_policy(&self) -> Option<ErrorPolicy> {
        self.own_policy.get()
    }

    /// Runs `body`, in this activation, under a policy of the upcall function's own.
    ///
    /// # Panics
    ///
    /// With what `body` panics with.
    pub(crate) fn under_policy<R>(&self, policy: Option<ErrorPolicy>, body: impl FnOnce() -> R) -> R {
        let before = self.own_policy.replace(policy);
        let _back = scopeguard::guard(before, |before| self.own_policy.set(before));
        body()
    }

    /// What the call in progress asked for.
    pub(crate) fn terms(&self) -> Terms {
        self.terms.get().unwrap_or_default()
    }

    /// Begins a call with terms of its own: its upcalls take the cold way.
    pub(crate) fn begin_terms(&self, terms: Terms) {
        // In force already only if the guard of an `enter` was leaked, against its contract.
        self.set_link_aside();
        self.terms.set(Some(terms));
        self.machine.set(Saved::read(terms.preserve));
    }

    /// Ends it.
    pub(crate) fn end_terms(&self) {
        self.machine.get().restore();
        self.forget_terms();
    }

    /// Ends a call with terms of its own that foreign code has skipped; the machine's state is its affair.
    pub(crate) fn forget_terms(&self) {
        if self.terms.take().is_some() {
            self.machine.set(Saved::NOTHING);
            self.put_link_back();
        }
    }

    /// Says whether the link to the next record is set aside.
    fn is_link_aside(&self) -> bool {
        self.terms.get().is_some() || self.carries_error()
    }

    /// Sets the link aside, if it is not: before what asks for that is noted.
    fn set_link_aside(&self) {
        if !self.is_link_aside() {
            self.set_aside.set(self.newer.replace(ptr::null()));
        }
    }

    /// Puts the link back, if nothing asks for it to be aside any more.
    fn put_link_back(&self) {
        if !self.is_link_aside() {
            self.newer.set(self.set_aside.replace(ptr::null()));
        }
    }

    /// Says whether an upcall of the call in progress has failed, and the call is to go on with its error. For its own thread.
    pub(crate) fn carries_error(&self) -> bool {
        self.after.get() & after::PENDING != 0
    }

    /// Counts an upcall that has not run, since the call carries an error.
    pub(crate) fn count_skipped_upcall(&self) {
        self.skipped_upcalls.set(self.skipped_upcalls.get().saturating_add(1));
    }

    /// Takes the count of upcalls that have not run.
    pub(crate) fn take_skipped_upcalls(&self) -> u32 {
        self.skipped_upcalls.take()
    }

    /// Ends what the upcall of this activation has set, and foreign code has skipped.
    pub(crate) fn forget_policy(&self) {
        self.own_policy.set(None);
    }

    /// The machine's state on the managed side of the call in progress.
    pub(crate) fn machine(&self) -> Saved {
        self.machine.get()
    }

    /// The machine stack pointer at the crossing. A captured anchor has it already, which spares a store.
    pub(crate) fn native_sp<V: Vm>(&self) -> usize {
        match (V::CAPTURE, self.machine_sp.get()) {
            (Capture::Anchor, 0) => self.anchor.sp(),
            (_, sp) => sp,
        }
    }

    /// Ends what an anchor that was given has put into the record: the next one may be captured.
    #[inline(always)]
    pub(crate) fn forget_given<V: Vm>(&self, given: bool) {
        if given && V::CAPTURE == Capture::Anchor {
            self.machine_sp.set(0);
        }
    }

    /// The record of the next newer activation; null until that depth has been reached once.
    #[inline(always)]
    pub(crate) fn newer(&self) -> *const Self {
        self.newer.get()
    }

    /// The link to the next newer record, whatever the terms of the call in progress; null until that depth has been reached once.
    pub(crate) fn link(&self) -> *const Self {
        if self.is_link_aside() { self.set_aside.get() } else { self.newer.get() }
    }

    /// The record of the next newer activation, whatever the terms of the call in progress; made if that depth has not been reached yet.
    pub(crate) fn newer_slow(&self) -> *const Self {
        let link = if self.is_link_aside() { &self.set_aside } else { &self.newer };
        if link.get().is_null() {
            // The mutator is foreign: the handler of a signal that makes an upcall must not find the allocator's lock held by this thread.
            let _blocked = SignalsBlocked::new();
            if !link.get().is_null() {
                return link.get(); // by such an upcall, just now
            }
            let newer = Box::into_raw(Box::new(Self::new(self, self.depth + 1)));
            // SAFETY: just made, and not shared yet.
            unsafe { (*newer).settle() };
            // The word will name it while the mutator runs, and another thread may look: see `latest` in `state.rs`.
            release_fence();
            link.set(newer);
        }
        link.get()
    }

    /// Takes the newer records out of the chain, so that no later activation uses them; null if there is none. For its own thread, while it names none of them.
    pub(crate) fn cut_newer(&self) -> *const Self {
        let link = if self.is_link_aside() { &self.set_aside } else { &self.newer };
        link.replace(ptr::null())
    }

    /// Frees the newer records.
    ///
    /// # Safety
    ///
    /// None of them is published or used any more.
    pub(crate) unsafe fn free_newer(&self) {
        // SAFETY: promised by the caller; the only link to them has just been cut.
        unsafe { Self::free_chain(self.cut_newer()) };
    }

    /// Frees a record and the newer ones; none if it is null.
    ///
    /// # Safety
    ///
    /// None of them is published or used any more, and nothing else links to the first.
    pub(crate) unsafe fn free_chain(mut frame: *const Self) {
        while !frame.is_null() {
            // SAFETY: made by `newer_slow`, and freed once.
            let owned = unsafe { Box::from_raw(frame.cast_mut()) };
            frame = owned.link();
        }
    }

    /// Makes a record with no frames and no roots behind it, for the fault `FOREIGN_BEFORE_REINSTATE`. Leaked: a stopper may hold it.
    #[cold]
    pub(crate) fn bare(roots: RootMark) -> *const Self {
        let bare = Self::new(ptr::null(), 0);
        bare.kind.set(FrameKind::ForeignThread);
        bare.roots_base.set(roots);
        Box::leak(Box::new(bare))
    }

    /// The register words, for `arch::call_with_registers`.
    pub(crate) fn registers(&self) -> *mut usize {
        self.registers.get().cast()
    }

    /// The words of the one call with a run-time signature that the activation can be preparing, or making.
    #[cfg(feature = "libffi")]
    pub(crate) fn scratch(&self) -> *mut Scratch {
        self.scratch.get()
    }

    /// The call's argument memory, from its own thread while managed.
    pub(crate) fn arena(&self) -> &Bump {
        self.after.set(self.after.get() | after::ARENA);
        // SAFETY: only `finish_slow` forms a unique reference, on the same thread, when the call and all borrows of it are over.
        unsafe { &*self.arena.get() }
    }

    /// Keeps `value` as a root or pin of this call until it ends, or it is handed back.
    pub(crate) fn add_result<T: Copy>(&self, kind: EntryKind, value: T) -> *mut T {
        self.results.hand_over(kind, value, || self.arena())
    }

    /// The same until the call ends, or [`release_result`](Self::release_result) of a number that the mutator has not used before.
    pub(crate) fn add_releasable<T: Copy>(&self, kind: EntryKind, value: T, number: u64) -> *mut T {
        self.results.declare(kind, value, number, || self.arena())
    }

    /// [`add_releasable`](Self::add_releasable) for what the first upcall ends.
    pub(crate) fn add_until_first_upcall<T: Copy>(&self, kind: EntryKind, value: T) -> *mut T {
        self.add_releasable(kind, value, UNTIL_FIRST_UPCALL)
    }

    /// Ends what was declared until the first upcall. For its own thread, while managed.
    pub(crate) fn end_until_first_upcall(&self) {
        self.results.end_until_first_upcall();
    }

    /// Ends the newest hand-over of a kind whose word `is_it` knows. Says whether there was one. For its own thread, while managed.
    pub(crate) fn hand_back(&self, kind: EntryKind, is_it: impl FnMut(*const ()) -> bool) -> bool {
        self.results.hand_back(kind, is_it)
    }

    /// Begins a frame of hand-overs. For its own thread, while managed.
    pub(crate) fn begin_hand_overs(&self) {
        self.results.begin_frame(|| self.arena());
    }

    /// Ends the newest one. Says how many hand-overs have ended; `None` if there is no frame. For its own thread, while managed.
    pub(crate) fn end_hand_overs(&self) -> Option<usize> {
        self.results.end_frame()
    }

    /// Stores a panic to resume when the call returns. Gives it back if there is one already.
    pub(crate) fn set_pending(&self, payload: Payload) -> Option<Payload> {
        if self.after.get() & after::PENDING != 0 {
            return Some(payload);
        }
        // SAFETY: only the record's own thread touches `pending`, and no reference to it is kept.
        unsafe { *self.pending.get() = Some(payload) };
        self.set_link_aside();
        self.after.set(self.after.get() | after::PENDING);
        None
    }

    /// Takes the pending panic.
    pub(crate) fn take_pending(&self) -> Option<Payload> {
        if self.carries_error() {
            self.after.set(self.after.get() & !after::PENDING);
            self.put_link_back();
        }
        // SAFETY: as in `set_pending`.
        unsafe { (*self.pending.get()).take() }
    }

    /// Gives back what the call held apart from its roots: results, argument memory, a panic nobody took.
    #[cold]
    #[inline(never)]
    pub(crate) fn finish_slow(&self) {
        self.results.clear();
        // SAFETY: the record's own thread, managed, with the call over: nobody borrows the arena. Entries in it need no drop.
        unsafe { (*self.arena.get()).reset() };
        let unclaimed = self.take_pending();
        self.skipped_upcalls.set(0);
        self.after.set(0);
        if let Some(payload) = unclaimed {
            unwind::discard(payload);
        }
    }

    /// Calls `visit` for each result an upcall has handed to C, and for each argument that can be released and has not been.
    pub(crate) fn results(&self, visit: impl FnMut(Entry)) {
        self.results.each(visit);
    }

    /// The words of arguments that have been released, or ended with the first upcall, and of what was handed back.
    #[cfg(feature = "audit")]
    pub(crate) fn released(&self) -> Vec<usize> {
        self.results.ended()
    }

    /// Whether the argument of this call that has a number is held still; `None` if there is none. For its own thread, while managed.
    pub(crate) fn is_held(&self, number: u64) -> Option<bool> {
        self.results.is_held(number)
    }

    /// Ends the argument of this call that has a number. Says whether it had not ended before; `None` if there is none. For its own thread, while managed.
    pub(crate) fn release_result(&self, number: u64) -> Option<bool> {
        self.results.release(number)
    }

    /// The callee-saved registers, for a scan.
    ///
    /// # Safety
    ///
    /// The record is published, and stays so while the slice is used.
    pub(crate) unsafe fn saved_registers<'p>(&self) -> &'p [usize] {
        // SAFETY: written before the record was published (I1) and not again before it is retracted; records live as long as the world.
        unsafe { &*self.registers.get() }
    }
}

/// Which end of a managed stack keeps its offsets when the stack is resized.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum StackEnd {
    /// Offsets from the lowest address are kept: a stack that grows upwards.
    Low,
    /// Offsets from the highest address are kept: a stack that grows downwards.
    High,
}

/// Why a relocation was refused. Nothing has been changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelocationError {
    /// The old range is not a stack of this mutator.
    #[error(
        "{old:x?} is not a managed stack of this mutator (it has {known:x?}); declare it with `Mutator::declare_stack` first"
    )]
    UnknownStack {
        /// The range given.
        old: Range<usize>,
        /// The stacks the mutator has.
        known: Vec<Range<usize>>,
    },
    /// A saved address would fall outside the new range.
    #[error(
        "the saved {what} {address:#x} would be at {moved:#x}, outside the new stack {new:x?}; shrink the stack less"
    )]
    OutsideNewStack {
        /// Which word: `sp`, `fp` or `root slot`.
        what: &'static str,
        /// Its value now.
        address: usize,
        /// Where it would point.
        moved: usize,
        /// The range given.
        new: Range<usize>,
    },
    /// A range is empty, or ends before it starts.
    #[error("{0:x?} is not a stack: it is empty")]
    Empty(Range<usize>),
    /// The range overlaps a stack the mutator has already.
    #[error(
        "{declared:x?} overlaps the managed stack {known:x?}; each stack is declared once; withdraw one that is gone with `Mutator::withdraw_stack`"
    )]
    Overlaps {
        /// The range given.
        declared: Range<usize>,
        /// The stack it overlaps.
        known: Range<usize>,
    },
    /// Older activations have saved addresses in the stack.
    #[error(
        "{words} saved address(es) of older activations lie in the managed stack {stack:x?}; withdraw it when the foreign calls made from it are over"
    )]
    InUse {
        /// The stack.
        stack: Range<usize>,
        /// How many addresses there are.
        words: usize,
    },
}

/// One move of one managed stack.
#[derive(Clone, Debug)]
pub(crate) struct Relocation {
    pub(crate) old: Range<usize>,
    pub(crate) new: Range<usize>,
    pub(crate) end: StackEnd,
}

impl Relocation {
    pub(crate) fn map(&self, address: usize) -> usize {
        match self.end {
            StackEnd::Low => self.new.start.wrapping_add(address.wrapping_sub(self.old.start)),
            StackEnd::High => self.new.end.wrapping_sub(self.old.end.wrapping_sub(address)),
        }
    }

    /// Where a saved pointer goes, if it points into the old range or to its end.
    ///
    /// # Errors
    ///
    /// The place is outside the new range.
    fn saved(&self, what: &'static str, address: usize) -> Result<Option<usize>, RelocationError> {
        if !(self.old.start..=self.old.end).contains(&address) {
            return Ok(None);
        }
        let moved = self.map(address);
        if (self.new.start..=self.new.end).contains(&moved) {
            Ok(Some(moved))
        } else {
            Err(RelocationError::OutsideNewStack { what, address, moved, new: self.new.clone() })
        }
    }

    /// Where a slot goes, if it lies in the old range.
    ///
    /// # Errors
    ///
    /// The place is outside the new range.
    fn slot(&self, address: usize) -> Result<Option<usize>, RelocationError> {
        if !self.old.contains(&address) {
            return Ok(None);
        }
        // The end of a stack is a place for a stack pointer, not for a word.
        let moved = self.map(address);
        let room = self.new.end.saturating_sub(size_of::<usize>());
        if (self.new.start..=room).contains(&moved) {
            Ok(Some(moved))
        } else {
            Err(RelocationError::OutsideNewStack { what: "root slot", address, moved, new: self.new.clone() })
        }
    }

    /// How many saved addresses of `newest` and the older records, and root slots in `roots`, lie in `stack`.
    pub(crate) fn words_in(stack: &Range<usize>, newest: *const ForeignFrame, roots: &RootStack) -> usize {
        let in_place = Self { old: stack.clone(), new: stack.clone(), end: StackEnd::Low };
        // Nothing leaves a stack that stays where it is.
        in_place.pass(newest, roots, false).unwrap_or(usize::MAX)
    }

    /// Rebases every saved sp and fp of `newest` and the older records, and every root slot in `roots`, that pointed into the old
    /// range (I6). Returns how many words changed. All or nothing.
    ///
    /// # Errors
    ///
    /// A saved address would fall outside the new range; nothing has been changed.
    pub(crate) fn apply(
        &self,
        newest: *const ForeignFrame,
        roots: &RootStack,
    ) -> Result<usize, RelocationError> {
        self.pass(newest, roots, false)?;
        self.pass(newest, roots, true)
    }

    /// One pass over every word, to check or to write.
    ///
    /// # Errors
    ///
    /// A saved address would fall outside the new range.
    fn pass(
        &self,
        newest: *const ForeignFrame,
        roots: &RootStack,
        write: bool,
    ) -> Result<usize, RelocationError> {
        let mut moved = 0;
        let mut frame = newest;
        while !frame.is_null() {
            // SAFETY: records are linked for ever and live as long as their mutator's.
            let record = unsafe { &*frame };
            let mut anchor = record.anchor.get();
            for (what, word) in [("sp", &mut anchor.sp), ("fp", &mut anchor.fp)] {
                if let Some(new) = self.saved(what, *word)? {
                    *word = new;
                    moved += 1;
                }
            }
            let machine_sp = self.saved("sp", record.machine_sp.get())?;
            let entry_sp = self.saved("sp", record.entry_sp.get())?;
            if write {
                record.anchor.set(anchor);
                if let Some(sp) = machine_sp {
                    record.machine_sp.set(sp);
                }
                if let Some(sp) = entry_sp {
                    record.entry_sp.set(sp);
                }
            }
            frame = record.older;
        }
        let mut error = None;
        roots.all(|entry| {
            if entry.kind != EntryKind::InPlace || error.is_some() {
                return;
            }
            let word = entry.word::<*mut ()>();
            // SAFETY: an in-place entry holds the slot's address; the mutator is managed on this thread, or stopped.
            let slot = unsafe { word.read() };
            match self.slot(slot.addr()) {
                Ok(None) => {}
                Ok(Some(new)) => {
                    moved += 1;
                    if write {
                        // The new stack is another allocation; whoever moved it vouches for the address (`relocate_stack`).
                        let slot = ptr::with_exposed_provenance_mut::<()>(new);
                        // SAFETY: as for the read.
                        unsafe { word.write(slot) };
                    }
                }
                Err(refused) => error = Some(refused),
            }
        });
        error.map_or(Ok(moved), Err)
    }
}
