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

use crate::faults::Faults;
use crate::leaks::Leaks;
use crate::root_stack::word_of;
use crate::sync::{AtomicPtr, AtomicUsize, Cell, Mutex, UnsafeCell, lock, relax};
use crate::vm::Slot;
use core::alloc::Layout;
use core::mem::MaybeUninit;
use core::panic::Location;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering;
use std::alloc;

/// Why a raw handle was refused. Nothing has been changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandleError {
    /// Zero, or a null pointer: never a handle.
    #[error("zero is no handle; check whether foreign code was given one, and whether it lost it")]
    Zero,
    /// The word was never given out as a handle of this world.
    #[error(
        "the word {word:#x} was never given out as a handle of this world; pass on what `Handle::into_raw` gave, to the world it is of"
    )]
    Unknown {
        /// The word.
        word: usize,
    },
    /// The handle has been released.
    #[error(
        "the handle {word:#x} has been released already; release it once, after foreign code has used it for the last time"
    )]
    Stale {
        /// The word.
        word: usize,
    },
    /// The handle was taken back, and not given out again.
    #[error(
        "the handle {word:#x} has been taken back by `World::handle_from_raw`; its owner must give it out again with `Handle::into_raw` first"
    )]
    TakenBack {
        /// The word.
        word: usize,
    },
}

// A raw word, from the highest bit: generation, tag of the world, position in the shard, shard. Under loom a table is tiny: a model looks at every slot.
const WORD_BITS: u32 = usize::BITS;
const SHARD_BITS: u32 = if cfg!(loom) {
    0
} else if WORD_BITS == 64 {
    4
} else {
    2
};
const POSITION_BITS: u32 = if cfg!(loom) {
    4
} else if WORD_BITS == 64 {
    28
} else {
    18
};
const INDEX_BITS: u32 = SHARD_BITS + POSITION_BITS;
const TAG_BITS: u32 = if WORD_BITS == 64 { 8 } else { 4 };
const GENERATION_BITS: u32 = if WORD_BITS == 64 { 24 } else { 8 };
const _: () = assert!(INDEX_BITS + TAG_BITS + GENERATION_BITS <= WORD_BITS);

const SHARDS: usize = 1 << SHARD_BITS;
/// The slots of a shard's first chunk, and how many are made at a time; each chunk is twice as large as the one before.
const FIRST_CHUNK: usize = if cfg!(loom) { 2 } else { 64 };
/// As many chunks as there are positions for.
const CHUNKS: usize = ((1 << POSITION_BITS) / FIRST_CHUNK).ilog2() as usize;

/// What a slot is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
enum Kind {
    /// Released, or never used. On a stack of released slots, on a mutator's list, or between.
    Free = 0,
    /// A `Handle`'s.
    Owned = 1,
    /// Given out as a word.
    Raw = 2,
    /// A `WeakHandle`'s.
    Weak = 3,
    /// A `WeakHandle`'s whose object has died.
    Cleared = 4,
    /// Out of generations: never used again.
    Retired = 5,
}

/// The state word of a slot: its kind, whether its generation was given out as a word, the generation, and how many threads are reading its value
/// through such a word.
#[derive(Clone, Copy, PartialEq, Eq)]
struct State(usize);

impl State {
    const KIND: usize = 0b111;
    const EXPOSED: usize = 1 << 3;
    const GENERATION_SHIFT: u32 = 4;
    const LAST_GENERATION: usize = (1 << GENERATION_BITS) - 1;
    const READER_SHIFT: u32 = Self::GENERATION_SHIFT + GENERATION_BITS;
    const ONE_READER: usize = 1 << Self::READER_SHIFT;

    const fn kind(self) -> Kind {
        match self.0 & Self::KIND {
            0 => Kind::Free,
            1 => Kind::Owned,
            2 => Kind::Raw,
            3 => Kind::Weak,
            4 => Kind::Cleared,
            _ => Kind::Retired,
        }
    }

    const fn with_kind(self, kind: Kind) -> Self {
        Self(self.0 & !Self::KIND | kind as usize)
    }

    const fn generation(self) -> usize {
        self.0 >> Self::GENERATION_SHIFT & Self::LAST_GENERATION
    }

    const fn readers(self) -> usize {
        self.0 >> Self::READER_SHIFT
    }

    const fn is_exposed(self) -> bool {
        self.0 & Self::EXPOSED != 0
    }

    /// Given out as a word.
    const fn exposed(self) -> Self {
        Self(self.with_kind(Kind::Raw).0 | Self::EXPOSED)
    }

    /// Released. A generation that was given out ends here (H3); it cannot overflow, since none of the last one is given out.
    const fn released(self) -> Self {
        let free = self.with_kind(Kind::Free).0;
        if self.is_exposed() {
            Self((free & !Self::EXPOSED) + (1 << Self::GENERATION_SHIFT))
        } else {
            Self(free)
        }
    }

    /// Whether the slot can be used by who takes it from a free list.
    const fn is_usable(self) -> bool {
        self.readers() == 0 && self.generation() < Self::LAST_GENERATION
    }

    /// Checks that `generation` is given out as a raw word now.
    ///
    /// # Errors
    ///
    /// What it is instead.
    const fn check(self, generation: usize, word: usize) -> Result<(), HandleError> {
        if generation < self.generation() {
            return Err(HandleError::Stale { word });
        }
        if generation > self.generation() || !self.is_exposed() {
            return Err(HandleError::Unknown { word });
        }
        match self.kind() {
            Kind::Raw => Ok(()),
            _ => Err(HandleError::TakenBack { word }),
        }
    }
}

/// What a slot was when the pause in force first looked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seen {
    Nothing,
    Strong,
    Weak,
}

/// The place of one handle.
#[repr(C)]
pub(crate) struct HandleSlot {
    value: UnsafeCell<MaybeUninit<usize>>,
    state: AtomicUsize,
    table: *const Table,
    /// The next free slot, while on a list. Whoever has the list has the link.
    link: Cell<*const HandleSlot>,
    /// Where the handle was made. Read by leak reports at any time, hence atomic; it always is a site.
    site: AtomicPtr<Location<'static>>,
    /// Position in the shard, and shard.
    index: u32,
    /// The stopper's, during its pause.
    seen: Cell<Seen>,
}

impl HandleSlot {
    #[inline(always)]
    fn state(&self, order: Ordering) -> State {
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
    unsafe fn write<R: Copy>(&self, value: R) {
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

    /// Says whether this is a slot of `table`.
    #[inline(always)]
    pub(crate) fn is_of(&self, table: &HandleTable) -> bool {
        ptr::eq(self.table, table.table.as_ptr())
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
        let word = state.generation() << (TAG_BITS + INDEX_BITS) | tag << INDEX_BITS | this.index as usize;
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

/// One line of the cache, or two where the machine fetches them in pairs.
#[repr(align(128))]
struct Line<T>(T);

/// The slots of one shard. A mutator makes its handles in one shard, so that two threads that make and release handles rarely meet on a word.
struct Shard {
    /// The newest released slot; [`CLOSED`] when the world is gone.
    released: Line<AtomicPtr<HandleSlot>>,
    /// How many slots have been made: the positions below are initialised. Grows only.
    len: AtomicUsize,
    /// Where each chunk is; null until a position of it is below `len`. Never freed before the table.
    chunks: [AtomicPtr<HandleSlot>; CHUNKS],
    /// Held by the managed thread that makes slots. It passes no safepoint with it, and no stopper takes it.
    growing: Mutex<()>,
}

/// The head of a stack of released slots that takes no more.
const CLOSED: *mut HandleSlot = ptr::without_provenance_mut(1);

impl Shard {
    fn new() -> Self {
        Self {
            released: Line(AtomicPtr::new(ptr::null_mut())),
            len: AtomicUsize::new(0),
            chunks: core::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
            growing: Mutex::new(()),
        }
    }

    /// The slot at a position below `len`, which the caller has loaded with `Acquire`.
    fn slot(&self, position: usize) -> *const HandleSlot {
        let (chunk, offset) = place(position);
        // Ordered by the load of `len`: the chunk was stored before.
        let base = self.chunks[chunk].load(Ordering::Relaxed).cast_const();
        // SAFETY: the chunk has room for every position that `place` puts there.
        unsafe { base.add(offset) }
    }

    /// Every slot made so far.
    fn slots(&self) -> impl Iterator<Item = &HandleSlot> {
        // Pairs with the store of `grow`.
        let len = self.len.load(Ordering::Acquire);
        // SAFETY: initialised, since its position is below `len`, and there as long as the table.
        (0..len).map(|position| unsafe { &*self.slot(position) })
    }
}

/// The chunk a position is in, and where in the chunk.
fn place(position: usize) -> (usize, usize) {
    let chunk = (position / FIRST_CHUNK + 1).ilog2();
    (chunk as usize, position - FIRST_CHUNK * ((1 << chunk) - 1))
}

fn chunk_layout(chunk: usize) -> Layout {
    match Layout::array::<HandleSlot>(FIRST_CHUNK << chunk) {
        Ok(layout) => layout,
        // Reached by no world: the addresses of a smaller chunk would have run out.
        Err(_) => alloc::handle_alloc_error(Layout::new::<HandleSlot>()),
    }
}

struct Table {
    shards: [Shard; SHARDS],
    /// What the words of this world say. Never zero, so that no word is.
    tag: usize,
    /// Once the world is gone: how many slots are still to be released. (Before: minus those released since the stacks were closed.)
    outstanding: AtomicUsize,
}

impl Table {
    /// Puts a released slot where `take` finds it; after the world's end, counts it.
    ///
    /// # Safety
    ///
    /// The caller has released the slot, and does not use it or the table after this: it may be freed.
    unsafe fn push(slot: *mut HandleSlot) {
        // SAFETY: H4: the table is there until this slot has been counted or is on its stack, and both happen below.
        let table = unsafe { (*slot).table };
        // SAFETY: as above.
        let stack = unsafe { &raw const (*table).shards[(*slot).index as usize & (SHARDS - 1)].released.0 };
        // SAFETY: as above.
        let mut head = unsafe { (*stack).load(Ordering::Relaxed) };
        while head != CLOSED {
            // SAFETY: the slot is this thread's until it is on the stack.
            unsafe { (*slot).link.set(head) };
            // Pairs with the swap of `take_slow`: whoever takes the slot sees all that was done with it before.
            // SAFETY: as above; nothing is used once the slot is on the stack.
            match unsafe { (*stack).compare_exchange_weak(head, slot, Ordering::Release, Ordering::Relaxed) }
            {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
        // The world is gone. Pairs with its like on other threads and with `HandleTable::drop`: the last one sees all that was done to the table.
        // SAFETY: this slot has not been counted yet, so the table is there.
        if unsafe { (*table).outstanding.fetch_sub(1, Ordering::AcqRel) } == 1 {
            // SAFETY: every slot has been counted: nobody else has one.
            unsafe { Self::free(table) };
        }
    }

    /// Frees the table.
    ///
    /// # Safety
    ///
    /// The world is gone, and so is every handle.
    unsafe fn free(table: *const Self) {
        // SAFETY: made by `Box::into_raw` in `HandleTable::new`; unique by contract.
        let table = unsafe { Box::from_raw(table.cast_mut()) };
        for shard in &table.shards {
            if core::mem::needs_drop::<HandleSlot>() {
                for position in 0..shard.len.load(Ordering::Relaxed) {
                    // SAFETY: initialised, and dropped once.
                    unsafe { shard.slot(position).cast_mut().drop_in_place() };
                }
            }
            for (chunk, base) in shard.chunks.iter().enumerate() {
                let base = base.load(Ordering::Relaxed);
                if !base.is_null() {
                    // SAFETY: allocated in `grow` with this layout; nobody has a slot of it any more.
                    unsafe { alloc::dealloc(base.cast(), chunk_layout(chunk)) };
                }
            }
        }
    }
}

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
        let tag = 1 + TAGS.fetch_add(1, Ordering::Relaxed) % ((1 << TAG_BITS) - 1);
        let shards = core::array::from_fn(|_| Shard::new());
        let table = Box::new(Table { shards, tag, outstanding: AtomicUsize::new(0) });
        Self { table: NonNull::from(Box::leak(table)) }
    }

    fn table(&self) -> &Table {
        // SAFETY: H4: the world is not gone.
        unsafe { self.table.as_ref() }
    }

    /// Takes a slot that is not in use, for [`HandleSlot::own`]; `free` is the mutator's list and `home` a number that chooses its shard. `None` if there
    /// are as many handles as words can name.
    ///
    /// For managed threads only: no slot comes into use in a pause.
    #[inline(always)]
    pub(crate) fn take(&self, free: &Cell<*const HandleSlot>, home: u64) -> Option<NonNull<HandleSlot>> {
        // SAFETY: null, or a slot on this mutator's list, which lives as long as the world.
        if let Some(slot) = unsafe { free.get().as_ref() } {
            // Pairs with the end of a read in `lookup`: with no reader left, the reads are over.
            if slot.state(Ordering::Acquire).is_usable() {
                free.set(slot.link.get());
                return Some(NonNull::from(slot));
            }
        }
        self.take_slow(free, home)
    }

    /// Takes a slot from what has been released, or makes new ones.
    #[cold]
    #[inline(never)]
    fn take_slow(&self, free: &Cell<*const HandleSlot>, home: u64) -> Option<NonNull<HandleSlot>> {
        let table = self.table();
        let home = home as usize & (SHARDS - 1);
        let mut list = free.replace(ptr::null());
        for shard in 0..=SHARDS {
            // SAFETY: null, or a slot on a list that is this mutator's alone.
            while let Some(slot) = unsafe { list.as_ref() } {
                list = slot.link.get();
                let state = slot.state(Ordering::Acquire); // as in `take`
                if state.is_usable() {
                    free.set(list);
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
                list = stack.swap(ptr::null_mut(), Ordering::Acquire);
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
        let unknown = Err(HandleError::Unknown { word });
        let mask = |bits: u32| (1_usize << bits) - 1;
        let generation = word >> (TAG_BITS + INDEX_BITS);
        if word >> INDEX_BITS & mask(TAG_BITS) != table.tag || generation > mask(GENERATION_BITS) {
            return unknown;
        }
        let shard = &table.shards[word & mask(SHARD_BITS)];
        let position = word >> SHARD_BITS & mask(POSITION_BITS);
        // Pairs with the store of `grow`.
        if position >= shard.len.load(Ordering::Acquire) {
            return unknown;
        }
        // SAFETY: initialised, since its position is below `len`.
        Ok((unsafe { &*shard.slot(position) }, generation))
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

impl HandleSlot {
    /// Gives `f` the slot as a collector sees it. For the stopper.
    fn with_slot<R: Copy, T>(&self, f: impl FnOnce(Slot<'_, R>) -> T) -> T {
        self.value.with_mut(|value| {
            // SAFETY: the address of a value.
            let address = unsafe { NonNull::new_unchecked(word_of::<R>(value.cast())) };
            // SAFETY: H2: nobody is managed, and the slot was in use when the pause began, so it holds an `R` still.
            f(unsafe { Slot::new(address) })
        })
    }

    /// Notes that a weak handle's object has died, unless the handle has been released meanwhile.
    fn clear(&self) {
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
