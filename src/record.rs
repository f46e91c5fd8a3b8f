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
//! - `stopped`: the stopper, during its pause.
//! - `checked`: its own thread; its canary also a stopper, during its pause.
//! - `index`: whoever holds the registry's lock. `next_on_thread`, `ownership`, `free_handles`, `releases`: its own thread.

use crate::activation::{ForeignFrame, canary_of};
use crate::checked::Checked;
use crate::handle_table::HandleSlot;
use crate::root_stack::RootStack;
use crate::state::{CrossingWord, State};
use crate::sync::{Cell, FenceStrategy};
use crate::vm::{FrameKind, Vm};
use core::any::TypeId;
use core::cell::{RefCell, UnsafeCell};
use core::ops::Range;
use core::ptr;

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
    /// The lowest stack pointer an upcall may come in with; 0 where the thread's stack is not known.
    pub(crate) stack_limit: Cell<usize>,
    /// The record of the oldest activation, in the mutator itself: the common case touches no other memory.
    pub(crate) base: ForeignFrame,
    /// What the stopper saw published.
    pub(crate) stopped: Cell<*const ForeignFrame>,
    pub(crate) id: Cell<u64>,
    pub(crate) index: Cell<usize>,
    pub(crate) stacks: RefCell<Vec<Range<usize>>>,
    /// The thread's own stack: lowest address and base, both 0 where it is not known.
    native_stack: Cell<(usize, usize)>,
    /// Slots of the world's handle table that this mutator has taken to use next. Its own thread's, while attached.
    pub(crate) free_handles: Cell<*const HandleSlot>,
    /// How many arguments that can be released early this mutator has ever declared: each has a number of its own.
    pub(crate) releases: Cell<u64>,
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
            base: ForeignFrame::new(ptr::null(), 0),
            stopped: Cell::new(ptr::null()),
            ownership: Cell::new(Ownership::Nobody),
            id: Cell::new(0),
            index: Cell::new(usize::MAX),
            stacks: RefCell::new(Vec::new()),
            stack_limit: Cell::new(0),
            native_stack: Cell::new((0, 0)),
            free_handles: Cell::new(ptr::null()),
            releases: Cell::new(0),
            checked: Checked::new(),
        }
    }

    /// The thread's own stack; empty where it is not known.
    pub(crate) fn native_stack(&self) -> Range<usize> {
        let (lowest, base) = self.native_stack.get();
        lowest..base
    }

    /// Writes the canaries, now that the record is where it stays.
    pub(crate) fn settle(&self) {
        self.checked.canary.set(self.expected_canary());
        self.base.settle();
    }

    /// The canary that belongs here.
    pub(crate) fn expected_canary(&self) -> usize {
        canary_of(core::ptr::from_ref(self))
    }

    /// The canary that is here.
    pub(crate) fn canary(&self) -> usize {
        self.checked.canary.get()
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
            FrameKind::ForeignCall | FrameKind::ForeignThread => State::Foreign,
        }
    }

    /// Puts the record in the state of a thread that has just attached. `reserve`: the bytes of stack an upcall must find.
    pub(crate) fn begin(&self, entry_sp: usize, reserve: usize) {
        let stack = crate::arch::stack_bounds().unwrap_or(0..0);
        // A reserve that a small stack cannot spare would refuse every upcall.
        let reserve = reserve.min(stack.len() / 2);
        self.stack_limit.set(if stack.is_empty() { 0 } else { stack.start + reserve });
        self.native_stack.set((stack.start, stack.end));
        self.base.kind.set(FrameKind::ForeignCall);
        self.base.site.set(None);
        self.base.anchor.set(crate::anchor::Anchor::default());
        self.base.machine_sp.set(0);
        self.base.entry_sp.set(entry_sp);
        self.base.roots_base.set(self.roots.mark());
        self.checked.leave_region();
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
        self.ownership.set(Ownership::Nobody);
        self.next_on_thread.set(ptr::null());
    }
}

impl Drop for Header {
    fn drop(&mut self) {
        // SAFETY: unique access: no record is published or used.
        unsafe { self.base.free_newer() };
    }
}

/// A header with the VM's own data behind it; a pointer to one is a pointer to its header.
#[repr(C)]
pub(crate) struct MutatorRecord<L> {
    pub(crate) header: Header,
    /// `None` while not attached.
    pub(crate) local: UnsafeCell<Option<L>>,
}
