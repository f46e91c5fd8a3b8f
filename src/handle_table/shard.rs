//! Where the slots are: shards of chunks, and the stacks of released slots.

use super::slot::HandleSlot;
use super::state::{CHUNKS, FIRST_CHUNK, SHARDS};
use crate::sync::{AtomicPtr, AtomicUsize, Mutex};
use core::alloc::Layout;
use core::ptr;
use core::sync::atomic::Ordering;
use std::alloc;

/// One line of the cache, or two where the machine fetches them in pairs.
#[repr(align(128))]
pub(super) struct Line<T>(pub(super) T);

/// The slots of one shard. A mutator makes its handles in one shard, so that two threads that make and release handles rarely meet on a word.
pub(super) struct Shard {
    /// The newest released slot; [`CLOSED`] when the world is gone.
    pub(super) released: Line<AtomicPtr<HandleSlot>>,
    /// How many slots have been made: the positions below are initialised. Grows only.
    pub(super) len: AtomicUsize,
    /// Where each chunk is; null until a position of it is below `len`. Never freed before the table.
    pub(super) chunks: [AtomicPtr<HandleSlot>; CHUNKS],
    /// Held by the managed thread that makes slots. It passes no safepoint with it, and no stopper takes it.
    pub(super) growing: Mutex<()>,
}

/// The head of a stack of released slots that takes no more.
pub(super) const CLOSED: *mut HandleSlot = ptr::without_provenance_mut(1);

impl Shard {
    pub(super) fn new() -> Self {
        Self {
            released: Line(AtomicPtr::new(ptr::null_mut())),
            len: AtomicUsize::new(0),
            chunks: core::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
            growing: Mutex::new(()),
        }
    }

    /// The slot at a position below `len`, which the caller has loaded with `Acquire`.
    pub(super) fn slot(&self, position: usize) -> *const HandleSlot {
        let (chunk, offset) = place(position);
        // Ordered by the load of `len`: the chunk was stored before.
        let base = self.chunks[chunk].load(Ordering::Relaxed).cast_const();
        // SAFETY: the chunk has room for every position that `place` puts there.
        unsafe { base.add(offset) }
    }

    /// Every slot made so far.
    pub(super) fn slots(&self) -> impl Iterator<Item = &HandleSlot> {
        // Pairs with the store of `grow`.
        let len = self.len.load(Ordering::Acquire);
        // SAFETY: initialised, since its position is below `len`, and there as long as the table.
        (0..len).map(|position| unsafe { &*self.slot(position) })
    }
}

/// The chunk a position is in, and where in the chunk.
pub(super) fn place(position: usize) -> (usize, usize) {
    let chunk = (position / FIRST_CHUNK + 1).ilog2();
    (chunk as usize, position - FIRST_CHUNK * ((1 << chunk) - 1))
}

pub(super) fn chunk_layout(chunk: usize) -> Layout {
    match Layout::array::<HandleSlot>(FIRST_CHUNK << chunk) {
        Ok(layout) => layout,
        // Reached by no world: the addresses of a smaller chunk would have run out.
        Err(_) => alloc::handle_alloc_error(Layout::new::<HandleSlot>()),
    }
}

pub(super) struct Table {
    pub(super) shards: [Shard; SHARDS],
    /// What the words of this world say. Never zero, so that no word is.
    pub(super) tag: usize,
    /// Once the world is gone: how many slots are still to be released. (Before: minus those released since the stacks were closed.)
    pub(super) outstanding: AtomicUsize,
}

impl Table {
    /// Puts a released slot where `take` finds it; after the world's end, counts it.
    ///
    /// # Safety
    ///
    /// The caller has released the slot, and does not use it or the table after this: it may be freed.
    pub(super) unsafe fn push(slot: *mut HandleSlot) {
        // SAFETY: H4: the table is there until this slot has been counted or is on its stack, and both happen below.
        let table = unsafe { (*slot).table };
        // SAFETY: as above.
        let stack = unsafe { &raw const (*table).shards[usize::from((*slot).home.get())].released.0 };
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
    pub(super) unsafe fn free(table: *const Self) {
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
