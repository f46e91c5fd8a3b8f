//! One slot: what a handle owns.

use super::shard::Table;
use super::state::{Kind, State, compose};
use crate::root_stack::word_of;
use crate::sync::{AtomicPtr, AtomicUsize, Cell, UnsafeCell, relax};
use crate::vm::Slot;
use core::mem::MaybeUninit;
use core::panic::Location;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering;

/// What a slot was when the pause in force first looked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Seen {
    Nothing,
    Strong,
    Weak,
}

/// The place of one handle.
#[repr(C)]
pub(crate) struct HandleSlot {
    pub(super) value: UnsafeCell<MaybeUninit<usize>>,
    pub(super) state: AtomicUsize,
    pub(super) table: *const Table,
    /// The next free slot, while on a list. Whoever has the list has the link.
    pub(super) link: Cell<*const HandleSlot>,
    /// Where the handle was made. Read by leak reports at any time, hence atomic; it always is a site.
    pub(super) site: AtomicPtr<Location<'static>>,
    /// Position in the shard, and shard.
    pub(super) index: u32,
    /// The shard it is released to: that of the mutator that last took it. Whoever has the list it is on, or the handle, has this.
    pub(super) home: Cell<u8>,
    /// The stopper's, during its pause.
    pub(super) seen: Cell<Seen>,
}

impl HandleSlot {
    #[inline(always)]
    pub(super) fn state(&self, order: Ordering) -> State {
        State(self.state.load(order))
    }

    /// Reads the value.
    ///
    /// # Safety
    ///
    /// The thread is managed, the slot is in use and holds an `R`, and it stays in use meanwhile (H2).
    #[inline(always)]
    pub(crate) unsafe fn read<R: Copy>(&self) -> R {
        // SAFETY: promised by the caller; `own` has asserted that an `R` fits.
        self.value.with(|value| unsafe { word_of::<R>(value.cast_mut().cast()).read() })
    }

    /// Writes the value.
    ///
    /// # Safety
    ///
    /// The thread is managed and nobody else reads or writes the value meanwhile (H2).
    #[inline(always)]
    pub(super) unsafe fn write<R: Copy>(&self, value: R) {
        // SAFETY: promised by the caller; `word_of` asserts that an `R` fits.
        self.value.with_mut(|word| unsafe { word_of::<R>(word.cast()).write(value) });
    }

    /// Makes a slot that [`HandleTable::take`] has just given a handle's.
    ///
    /// # Safety
    ///
    /// It comes from `take`, on this managed thread.
    #[inline(always)]
    pub(crate) unsafe fn own<R: Copy>(&self, value: R, weak: bool, site: &'static Location<'static>) {
        // SAFETY: H2: taken and not in use yet, and `take` has seen that nobody reads.
        unsafe { self.write(value) };
        // Read by `leaks`, which has seen the state.
        self.site.store(ptr::from_ref(site).cast_mut(), Ordering::Relaxed);
        let kind = if weak { Kind::Weak } else { Kind::Owned };
        // A free slot's state is changed by whoever has it on a list only. Pairs with the loads of `freeze` and `leaks`.
        self.state.store(self.state(Ordering::Relaxed).with_kind(kind).0, Ordering::Release);
    }

    /// Changes the value, for the managed thread that has the one handle of it to itself.
    ///
    /// # Safety
    ///
    /// The slot is owned, by a handle that nobody else uses meanwhile; the thread is managed.
    pub(crate) unsafe fn replace<R: Copy>(&self, value: R) {
        // Someone may be reading still, through the word the handle was given out as before it was taken back: for a few instructions, in which a
        // reader waits for nobody. Pairs with the end of a read in `lookup`.
        let mut round = 0;
        while self.state(Ordering::Acquire).readers() != 0 {
            relax(round);
            round = round.saturating_add(1);
        }
        // SAFETY: H2: the handle is the caller's alone, nobody reads, and no new reader comes while the slot is not raw.
        unsafe { self.write(value) };
    }

    /// Says whether a weak handle's object has died. For a managed thread: only a stopper clears a weak handle, and what it did is seen since.
    #[inline(always)]
    pub(crate) fn is_cleared(&self) -> bool {
        self.state(Ordering::Relaxed).kind() == Kind::Cleared
    }

    /// Where the handle was made.
    pub(crate) fn site(&self) -> &'static Location<'static> {
        // SAFETY: the address of a site since the slot was made.
        unsafe { &*self.site.load(Ordering::Relaxed) }
    }

    /// Gives a handle out as a word, in place of its owner.
    ///
    /// # Safety
    ///
    /// `slot` is that of a [`Handle`](crate::Handle), which is not used any more.
    pub(crate) unsafe fn expose(slot: NonNull<Self>) -> usize {
        // SAFETY: H4: the handle keeps the table, until the state changes.
        let this = unsafe { slot.as_ref() };
        // SAFETY: as above.
        let tag = unsafe { (*this.table).tag };
        let mut state = this.state(Ordering::Relaxed);
        // H1: the generation stands still.
        let word = compose(state.generation(), tag, this.index);
        // Readers of an earlier exposure may be ending, so this is no plain store. Pairs with the first load of `lookup` and `change_raw`, on whatever thread
        // the word gets to: what was done with the handle before is seen there. Afterwards the slot is used no more: the world may end.
        while let Err(now) =
            this.state.compare_exchange_weak(state.0, state.exposed().0, Ordering::Release, Ordering::Relaxed)
        {
            state = State(now);
        }
        word
    }

    /// Releases the slot of a handle, from any thread in any state. Never waits.
    ///
    /// # Safety
    ///
    /// `slot` is that of a [`Handle`](crate::Handle) or [`WeakHandle`](crate::WeakHandle), which is not used any more.
    pub(crate) unsafe fn release(slot: NonNull<Self>) {
        // SAFETY: H4: the handle keeps the table.
        let this = unsafe { slot.as_ref() };
        let mut state = this.state(Ordering::Relaxed);
        if state.is_exposed() {
            // Readers may be ending. Orders what the owner did before what `take` finds; see there.
            while let Err(now) = this.state.compare_exchange_weak(
                state.0,
                state.released().0,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                state = State(now);
            }
        } else {
            // H1: nobody else changes it, but for a stopper that clears a weak handle; its compare-exchange fails after this, or is overwritten, and
            // either will do. Pairs with the loads of `freeze` and `leaks`.
            this.state.store(state.released().0, Ordering::Release);
        }
        // SAFETY: released just now, by this thread.
        unsafe { Table::push(slot.as_ptr()) };
    }
}

impl HandleSlot {
    /// Gives `f` the slot as a collector sees it. For the stopper.
    pub(super) fn with_slot<R: Copy, T>(&self, f: impl FnOnce(Slot<'_, R>) -> T) -> T {
        self.value.with_mut(|value| {
            // SAFETY: the address of a value.
            let address = unsafe { NonNull::new_unchecked(word_of::<R>(value.cast())) };
            // SAFETY: H2: nobody is managed, and the slot was in use when the pause began, so it holds an `R` still.
            f(unsafe { Slot::new(address) })
        })
    }

    /// Notes that a weak handle's object has died, unless the handle has been released meanwhile.
    pub(super) fn clear(&self) {
        let state = self.state(Ordering::Relaxed);
        if state.kind() == Kind::Weak {
            // A managed thread that looks later is told by the pause's end; if this fails the handle is gone.
            let _ = self.state.compare_exchange(
                state.0,
                state.with_kind(Kind::Cleared).0,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
        }
    }
}
