//! The storage of global handles: a sharded table of slots at stable addresses, one table for each world.
//!
//! # A slot's life
//!
//! ```text
//!            managed thread            owner                     any thread
//!   free ──── `take`, `own` ──> owned <── `expose` / `take_back` ──> raw
//!    ^                            │ drop, any thread                  │ `release_raw`
//!    └── `take` ─── released <────┴───────────────────────────────────┘
//! ```
//!
//! A slot is made in use by managed threads only, so none is while the world is stopped. It is released by any thread in any state, with one store or
//! compare-exchange of its state word and one push on its shard's stack of released slots: no lock, and no waiting for a pause. Whoever
//! takes released slots takes the whole stack with one swap, so the stack has no ABA problem; what was taken stands on a list that is the mutator's own.
//!
//! # Invariants of a slot
//!
//! - **H1 Owners.** A slot that is owned or weak belongs to one [`Handle`](crate::Handle) or [`WeakHandle`](crate::WeakHandle): nobody else releases it, and its generation stands
//!   still. A raw one is released, or taken back, by whoever changes its state first.
//! - **H2 Values.** The value of a slot is written by the managed thread that has just taken it from a free list, with nobody reading it; by a managed
//!   thread with the one handle of it, when nobody reads it; or by the stopper, when nobody is managed. It is read by managed threads, which hold
//!   either the handle or a count of the state's readers. A slot with readers is not taken.
//! - **H3 Words.** A generation that was given out as a raw word ends with the slot's release and never comes back; a slot that has none left is retired. So a word
//!   names one handle for ever.
//! - **H4 Life.** The table's memory outlives its world for as long as there is a handle of it.

mod shard;
mod slot;
mod state;

use crate::faults::Faults;
use crate::leaks::Leaks;
use crate::sync::{AtomicPtr, AtomicUsize, Cell, UnsafeCell, lock};
use crate::vm::Slot;
use core::mem::MaybeUninit;
use core::panic::Location;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering;
use std::alloc;

use shard::{CLOSED, Shard, Table, chunk_layout, place};
pub(crate) use slot::HandleSlot;
use slot::Seen;
pub use state::HandleError;
use state::{CHUNKS, FIRST_CHUNK, Kind, SHARD_BITS, SHARDS, State, decompose, tag};

/// A world's part in its table: dropping it gives the table to the handles that are left.
pub(crate) struct HandleTable {
    table: NonNull<Table>,
}

// SAFETY: everything in a table is atomic, or has one owner at a time that the invariants name (H1, H2, and the stopper for `seen`). The values are copied to
// other threads by handles only, which are `Send` where their references are, as `Vm::Ref` is.
unsafe impl Send for HandleTable {}
// SAFETY: as above.
unsafe impl Sync for HandleTable {}

impl HandleTable {
    pub(crate) fn new() -> Self {
        // A number, nothing else hangs on it; process-wide, hence not the facade's.
        static TAGS: core::sync::atomic::AtomicUsize = core::sync::atomic::AtomicUsize::new(0);
        let tag = tag(TAGS.fetch_add(1, Ordering::Relaxed));
        let shards = core::array::from_fn(|_| Shard::new());
        let table = Box::new(Table { shards, tag, outstanding: AtomicUsize::new(0) });
        Self { table: NonNull::from(Box::leak(table)) }
    }

    /// Says whether a slot is of this table.
    #[inline(always)]
    pub(crate) fn owns(&self, slot: &HandleSlot) -> bool {
        ptr::eq(slot.table, self.table.as_ptr())
    }

    fn table(&self) -> &Table {
        // SAFETY: H4: the world is not gone.
        unsafe { self.table.as_ref() }
    }

    /// Takes a slot that is not in use, for [`HandleSlot::own`]; `free` is the mutator's list and `number` its own, which chooses its shard. `None` if there
    /// are as many handles as words can name.
    ///
    /// For managed threads only: no slot comes into use in a pause.
    #[inline(always)]
    pub(crate) fn take(&self, free: &Cell<*const HandleSlot>, number: u64) -> Option<NonNull<HandleSlot>> {
        let home = number as usize & (SHARDS - 1);
        // SAFETY: null, or a slot on this mutator's list, which lives as long as the world.
        if let Some(slot) = unsafe { free.get().as_ref() } {
            // Pairs with the end of a read in `lookup`: with no reader left, the reads are over.
            if slot.state(Ordering::Acquire).is_usable() {
                free.set(slot.link.get());
                // It may have been another mutator's before: from now on it comes back to this one's shard.
                slot.home.set(home as u8);
                return Some(NonNull::from(slot));
            }
        }
        self.take_slow(free, home)
    }

    /// Takes a slot from what has been released, or makes new ones.
    #[cold]
    #[inline(never)]
    fn take_slow(&self, free: &Cell<*const HandleSlot>, home: usize) -> Option<NonNull<HandleSlot>> {
        let table = self.table();
        let mut list = free.replace(ptr::null());
        for shard in 0..=SHARDS {
            // SAFETY: null, or a slot on a list that is this mutator's alone.
            while let Some(slot) = unsafe { list.as_ref() } {
                list = slot.link.get();
                let state = slot.state(Ordering::Acquire); // as in `take`
                if state.is_usable() {
                    free.set(list);
                    slot.home.set(home as u8);
                    return Some(NonNull::from(slot));
                }
                if state.readers() == 0 {
                    // H3: its words are used up. Nobody else has the slot; pairs with the loads of `freeze` and `leaks`.
                    slot.state.store(state.with_kind(Kind::Retired).0, Ordering::Release);
                } else {
                    // Another thread is reading the value still (H2).
                    // SAFETY: released, and on no list now. The world is not gone, so the table stays.
                    unsafe { Table::push(ptr::from_ref(slot).cast_mut()) };
                }
            }
            if shard < SHARDS {
                // Its own shard's first. Pairs with the store of `push`: all that was done with these slots is seen.
                let stack = &table.shards[(home + shard) & (SHARDS - 1)].released.0;
                // Looked at first: an empty one is left to the threads that use it.
                if !stack.load(Ordering::Relaxed).is_null() {
                    list = stack.swap(ptr::null_mut(), Ordering::Acquire);
                }
            }
        }
        (0..SHARDS).find_map(|shard| self.grow(free, (home + shard) & (SHARDS - 1)))
    }

    /// Makes new slots in a shard, and takes one. `None` if the shard is full.
    fn grow(&self, free: &Cell<*const HandleSlot>, number: usize) -> Option<NonNull<HandleSlot>> {
        let shard = &self.table().shards[number];
        let _growing = lock(&shard.growing);
        // Written under the lock only.
        let len = shard.len.load(Ordering::Relaxed);
        let (chunk, offset) = place(len);
        if chunk >= CHUNKS {
            return None;
        }
        if offset == 0 {
            let layout = chunk_layout(chunk);
            // SAFETY: the layout has a size.
            let memory = unsafe { alloc::alloc(layout) };
            if memory.is_null() {
                alloc::handle_alloc_error(layout);
            }
            #[expect(clippy::cast_ptr_alignment, reason = "allocated with a slot's alignment")]
            let memory = memory.cast::<HandleSlot>();
            // Readers load it after `len`, which is stored below.
            shard.chunks[chunk].store(memory, Ordering::Relaxed);
        }
        for position in (len..len + FIRST_CHUNK).rev() {
            let slot = shard.slot(position).cast_mut();
            let fresh = HandleSlot {
                value: UnsafeCell::new(MaybeUninit::uninit()),
                state: AtomicUsize::new(0),
                table: self.table.as_ptr(),
                link: Cell::new(free.get()),
                site: AtomicPtr::new(ptr::from_ref(Location::caller()).cast_mut()),
                index: (position << SHARD_BITS | number) as u32,
                home: Cell::new(number as u8),
                seen: Cell::new(Seen::Nothing),
            };
            // SAFETY: within the chunk, whose size is a multiple of FIRST_CHUNK, and nobody looks at or beyond `len`.
            unsafe { slot.write(fresh) };
            free.set(slot);
        }
        // Publishes the slots and the chunk. Pairs with the loads of `slots` and `find`.
        shard.len.store(len + FIRST_CHUNK, Ordering::Release);
        let slot = NonNull::new(free.get().cast_mut())?;
        // SAFETY: made above.
        free.set(unsafe { slot.as_ref() }.link.get());
        Some(slot)
    }

    /// Gives back what a mutator had taken and not used.
    pub(crate) fn give_back(&self, free: &Cell<*const HandleSlot>) {
        let mut slot = free.replace(ptr::null()).cast_mut();
        while !slot.is_null() {
            // SAFETY: a slot on a list that is this thread's alone.
            let next = unsafe { (*slot).link.get() };
            // SAFETY: not in use, and on no list now. The world is not gone, so the table stays.
            unsafe { Table::push(slot) };
            slot = next.cast_mut();
        }
    }

    /// The slot a word names, and which generation of it. Any word can be given.
    ///
    /// # Errors
    ///
    /// The word names no slot of this world.
    fn find(&self, word: usize) -> Result<(&HandleSlot, usize), HandleError> {
        if word == 0 {
            return Err(HandleError::Zero);
        }
        let table = self.table();
        let parts = decompose(word, table.tag).ok_or(HandleError::Unknown { word })?;
        let shard = &table.shards[parts.shard];
        // Pairs with the store of `grow`.
        if parts.position >= shard.len.load(Ordering::Acquire) {
            return Err(HandleError::Unknown { word });
        }
        // SAFETY: initialised, since its position is below `len`.
        Ok((unsafe { &*shard.slot(parts.position) }, parts.generation))
    }

    /// Reads the value a word names. For managed threads.
    ///
    /// # Errors
    ///
    /// The word is no raw handle of this world now.
    pub(crate) fn lookup<R: Copy>(&self, word: usize, faults: Faults) -> Result<R, HandleError> {
        let (slot, generation) = self.find(word)?;
        let counted = !faults.has(Faults::LOOKUP_UNCOUNTED);
        let one = if counted { State::ONE_READER } else { 0 };
        // Pairs with the store of `expose`: the value that was written before is seen.
        let mut state = slot.state(Ordering::Acquire);
        loop {
            state.check(generation, word)?;
            if !counted {
                break;
            }
            // Acquire as above. Once this is done the slot is not taken by anyone (H2).
            match slot.state.compare_exchange_weak(
                state.0,
                state.0 + one,
                Ordering::Acquire,
                Ordering::Acquire,
            ) {
                Ok(_) => break,
                Err(now) => state = State(now),
            }
        }
        // SAFETY: H2: managed, and counted as a reader since it was raw; only a world of `R` has words of this table.
        let value = unsafe { slot.read() };
        // Pairs with the loads of `take` and `replace`: the read is over before the value is written again.
        slot.state.fetch_sub(one, Ordering::Release);
        Ok(value)
    }

    /// Makes a raw slot a handle's again. From any thread in any state.
    ///
    /// # Errors
    ///
    /// The word is no raw handle of this world now.
    pub(crate) fn take_back(&self, word: usize) -> Result<NonNull<HandleSlot>, HandleError> {
        self.change_raw(word, |state| state.with_kind(Kind::Owned))
    }

    /// Releases a raw slot. From any thread in any state; never waits.
    ///
    /// # Errors
    ///
    /// The word is no raw handle of this world now.
    pub(crate) fn release_raw(&self, word: usize) -> Result<(), HandleError> {
        let slot = self.change_raw(word, State::released)?;
        // SAFETY: released just now, by this thread.
        unsafe { Table::push(slot.as_ptr()) };
        Ok(())
    }

    /// Changes the state of a raw slot, once (H1).
    ///
    /// # Errors
    ///
    /// The word is no raw handle of this world now.
    fn change_raw(
        &self,
        word: usize,
        to: impl Fn(State) -> State,
    ) -> Result<NonNull<HandleSlot>, HandleError> {
        let (slot, generation) = self.find(word)?;
        // Acquire pairs with the store of `expose`, release with the loads of `freeze`, `leaks` and `take`.
        let mut state = slot.state(Ordering::Acquire);
        loop {
            state.check(generation, word)?;
            match slot.state.compare_exchange_weak(state.0, to(state).0, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return Ok(NonNull::from(slot)),
                Err(now) => state = State(now),
            }
        }
    }

    fn slots(&self) -> impl Iterator<Item = &HandleSlot> {
        self.table().shards.iter().flat_map(Shard::slots)
    }

    /// Notes which handles there are, for the rest of the pause: one that is released meanwhile counts until the pause ends, since the collector may
    /// have seen it. For the stopper.
    pub(crate) fn freeze(&self) {
        for slot in self.slots() {
            // Pairs with the stores of `own`, `release` and `change_raw`.
            let seen = match slot.state(Ordering::Acquire).kind() {
                Kind::Owned | Kind::Raw => Seen::Strong,
                Kind::Weak => Seen::Weak,
                Kind::Free | Kind::Cleared | Kind::Retired => Seen::Nothing,
            };
            if slot.seen.get() != seen {
                slot.seen.set(seen);
            }
        }
    }

    /// Calls `visit` for each handle that [`freeze`](Self::freeze) noted, with its slot and whether it is weak. For the stopper.
    pub(crate) fn for_each<R: Copy>(&self, faults: Faults, mut visit: impl FnMut(Slot<'_, R>, bool)) {
        for slot in self.slots() {
            let gone = faults.has(Faults::HANDLE_RELEASED_AT_ONCE)
                && matches!(slot.state(Ordering::Acquire).kind(), Kind::Free);
            if slot.seen.get() == Seen::Nothing || gone {
                continue;
            }
            slot.with_slot(|word| visit(word, slot.seen.get() == Seen::Weak));
        }
    }

    /// Asks `now` of each weak handle noted where its object is, and clears those whose object is nowhere. For the stopper.
    pub(crate) fn update_weak<R: Copy>(&self, mut now: impl FnMut(R) -> Option<R>) {
        for slot in self.slots().filter(|slot| slot.seen.get() == Seen::Weak) {
            slot.with_slot(|mut word: Slot<'_, R>| match now(word.load()) {
                Some(reference) => word.store(reference),
                None => {
                    slot.seen.set(Seen::Nothing);
                    slot.clear();
                }
            });
        }
    }

    /// Adds what is in use.
    pub(crate) fn leaks(&self, leaks: &mut Leaks) {
        for slot in self.slots() {
            // Pairs with the store of `own`: the site is that of this use, or of a later one.
            match slot.state(Ordering::Acquire).kind() {
                Kind::Owned | Kind::Raw => leaks.add_handle(slot.site()),
                Kind::Weak | Kind::Cleared => leaks.add_weak_handle(slot.site()),
                Kind::Free | Kind::Retired => {}
            }
        }
    }
}

impl Drop for HandleTable {
    fn drop(&mut self) {
        let table = self.table();
        let mut at_rest = 0_usize;
        for shard in &table.shards {
            // Pairs with the stores of `push`: the links are seen. From here on released slots are counted.
            let mut slot = shard.released.0.swap(CLOSED, Ordering::AcqRel).cast_const();
            // SAFETY: null, or a slot on the list that was the stack.
            while let Some(released) = unsafe { slot.as_ref() } {
                at_rest += 1;
                slot = released.link.get();
            }
        }
        // The mutators have given back what they had. What is retired or raw is released by nobody: that takes a world.
        let made: usize = table.shards.iter().map(|shard| shard.len.load(Ordering::Relaxed)).sum();
        at_rest += self
            .slots()
            .filter(|slot| matches!(slot.state(Ordering::Relaxed).kind(), Kind::Retired | Kind::Raw))
            .count();
        // What is left has an owner, or is on its way to the stack: each comes to `push` once.
        let outstanding = made - at_rest;
        if table.outstanding.fetch_add(outstanding, Ordering::AcqRel).wrapping_add(outstanding) == 0 {
            // SAFETY: all have been counted: nobody has a slot.
            unsafe { Table::free(self.table.as_ptr()) };
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![expect(clippy::missing_panics_doc, reason = "a test panics to fail")]

    use super::{Cell, HandleError, HandleSlot, HandleTable, Location, NonNull, Ordering, State, ptr};
    use crate::faults::Faults;

    /// A mutator, as far as the table knows of it.
    struct Maker<'t> {
        table: &'t HandleTable,
        free: Cell<*const HandleSlot>,
        number: u64,
    }

    impl<'t> Maker<'t> {
        fn new(table: &'t HandleTable, number: u64) -> Self {
            Self { table, free: Cell::new(ptr::null()), number }
        }

        fn make(&self, value: usize) -> NonNull<HandleSlot> {
            let slot = self.table.take(&self.free, self.number).unwrap();
            // SAFETY: taken just now; this thread counts as managed.
            unsafe { slot.as_ref().own(value, false, Location::caller()) };
            slot
        }

        fn expose(&self, value: usize) -> usize {
            // SAFETY: made just now, and used no more.
            unsafe { HandleSlot::expose(self.make(value)) }
        }
    }

    fn release(slot: NonNull<HandleSlot>) {
        // SAFETY: made by a test, and released once.
        unsafe { HandleSlot::release(slot) };
    }

    /// What a word names.
    ///
    /// # Errors
    ///
    /// As [`HandleTable::lookup`].
    fn lookup(table: &HandleTable, word: usize) -> Result<usize, HandleError> {
        table.lookup(word, Faults::NONE)
    }

    #[test]
    fn slots_keep_their_addresses_and_values_through_every_growth() {
        let table = HandleTable::new();
        let maker = Maker::new(&table, 3);
        let slots: Vec<_> = (0..5000).map(|value| maker.make(value)).collect();
        for (value, slot) in slots.iter().enumerate() {
            // SAFETY: in use, with a `usize`.
            assert_eq!(unsafe { slot.as_ref().read::<usize>() }, value);
        }
        let mut distinct = slots.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), slots.len());
        slots.into_iter().for_each(release);
    }

    #[test]
    fn what_a_mutator_leaves_unused_is_used_by_the_next_whatever_its_shard() {
        let table = HandleTable::new();
        let first = Maker::new(&table, 1);
        let slot = first.make(1);
        table.give_back(&first.free);
        assert!(first.free.get().is_null());
        release(slot);
        let made: usize = table.slots().count();
        for number in 2..40 {
            let next = Maker::new(&table, number);
            let slot = next.make(2);
            assert_eq!(usize::from(home(slot)), number as usize & (super::SHARDS - 1));
            release(slot);
            table.give_back(&next.free);
        }
        assert_eq!(table.slots().count(), made, "the table has not grown");
    }

    /// The shard a slot is released to.
    fn home(slot: NonNull<HandleSlot>) -> u8 {
        // SAFETY: a slot of a live table.
        unsafe { slot.as_ref() }.home.get()
    }

    /// H3, at the end: the last generation is not given out, so its slot is never used again, and its last word is stale for ever.
    #[test]
    #[cfg_attr(miri, ignore = "a million steps of arithmetic before it begins")]
    fn a_slot_whose_words_are_used_up_is_retired() {
        let table = HandleTable::new();
        let maker = Maker::new(&table, 1);
        let slot = maker.make(1);
        // SAFETY: in use, by this test alone.
        let state = unsafe { &slot.as_ref().state };
        let mut last = State(state.load(Ordering::Relaxed));
        while last.released().is_usable() {
            last = last.exposed().released().with_kind(super::Kind::Owned);
            if last.generation() + 1 == State::LAST_GENERATION {
                break;
            }
        }
        state.store(last.0, Ordering::Relaxed);
        // SAFETY: in use, and used as a word from here on.
        let word = unsafe { HandleSlot::expose(slot) };
        assert_eq!(lookup(&table, word), Ok(1));
        table.release_raw(word).unwrap();
        assert_eq!(lookup(&table, word), Err(HandleError::Stale { word }));
        let others: Vec<_> = (0..200).map(|value| maker.make(value)).collect();
        assert!(others.iter().all(|other| *other != slot));
        assert_eq!(State(state.load(Ordering::Relaxed)).kind(), super::Kind::Retired);
        assert_eq!(lookup(&table, word), Err(HandleError::Stale { word }));
        others.into_iter().for_each(release);
    }

    /// H2: a slot that is being read is passed over, and used when the reader is done.
    #[test]
    fn a_slot_with_a_reader_is_not_taken() {
        let table = HandleTable::new();
        let maker = Maker::new(&table, 1);
        let word = maker.expose(1);
        let (slot, _) = table.find(word).unwrap();
        slot.state.fetch_add(State::ONE_READER, Ordering::Relaxed);
        table.release_raw(word).unwrap();
        let during: Vec<_> = (0..200).map(|value| maker.make(value)).collect();
        assert!(during.iter().all(|other| !ptr::eq(other.as_ptr(), slot)));
        slot.state.fetch_sub(State::ONE_READER, Ordering::Release);
        let after: Vec<_> = (0..200).map(|value| maker.make(value)).collect();
        assert!(after.iter().any(|other| ptr::eq(other.as_ptr(), slot)));
        during.into_iter().chain(after).for_each(release);
    }

    /// H4: the table lives as long as its last handle, and is freed by it (a memory checker sees that it is, once).
    #[test]
    fn handles_that_outlive_their_world_are_released_into_it() {
        let table = HandleTable::new();
        let maker = Maker::new(&table, 1);
        let slots: Vec<_> = (0..100).map(|value| maker.make(value)).collect();
        let raw = maker.expose(7);
        assert_eq!(lookup(&table, raw), Ok(7));
        table.give_back(&maker.free);
        drop(table);
        std::thread::scope(|scope| {
            for part in slots.chunks(30) {
                let part: Vec<usize> = part.iter().map(|slot| slot.as_ptr().expose_provenance()).collect();
                scope.spawn(move || {
                    for address in part {
                        release(NonNull::new(ptr::with_exposed_provenance_mut(address)).unwrap());
                    }
                });
            }
        });
    }

    #[test]
    fn no_word_but_one_given_out_is_good() {
        let table = HandleTable::new();
        let maker = Maker::new(&table, 1);
        let words: Vec<_> = (0..300).map(|value| maker.expose(value)).collect();
        let mut word = 0x9E37_79B9_usize;
        for round in 0..200_000_usize {
            word = word.wrapping_mul(0x5851_F42D_4C95_7F2D_u64 as usize).wrapping_add(round);
            // Half of them near a real word, where a slip would show.
            let word =
                if round % 2 == 0 { word } else { words[round % 300] ^ (1 << (word % usize::BITS as usize)) };
            match words.iter().position(|real| *real == word) {
                Some(value) => assert_eq!(lookup(&table, word), Ok(value)),
                None => assert!(lookup(&table, word).is_err(), "{word:#x}"),
            }
        }
        assert_eq!(lookup(&table, 0), Err(HandleError::Zero));
        words.into_iter().for_each(|word| table.release_raw(word).unwrap());
    }
}
