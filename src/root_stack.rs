//! The storage of what foreign calls declare: a chunked stack of entries at stable addresses.
//!
//! A guard's slots must not move (C may hold their addresses) and must not be lost (invariant I2), so entries live here, in memory the mutator owns, and
//! not in the guard. Pushing is two stores and a bump; popping is putting the old top back.
//!
//! ```text
//!   chunk (1 KiB, aligned to 1 KiB)                       next chunk
//!   | older | newer | entry | entry | ... | entry |  ->   | older | newer | entry | ...
//!                                   ^ top: the next entry; a chunk is full when top is 1 KiB-aligned
//! ```

use crate::sync::Cell;
use core::cell::UnsafeCell;
use core::mem::{MaybeUninit, align_of, size_of};
use core::ptr;
use std::alloc::{self, Layout};

/// What an entry is for. `repr(usize)`: part of the documented layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub(crate) enum EntryKind {
    /// The word is the reference; its address is the slot C may read through.
    Root = 0,
    /// The word is the address of the VM's own slot.
    InPlace = 1,
    /// The word is a reference whose object must not move.
    Pin = 2,
    /// The word is a reference; nothing reachable from it may move.
    TransitivePin = 3,
    /// The word is the address of a Rust value that C borrows: nothing for a collector.
    KeepAlive = 4,
}

/// One declared argument.
#[repr(C)]
pub(crate) struct RootEntry {
    // Not the facade's cell: entries live in raw memory, which loom's cells cannot.
    kind: core::cell::Cell<EntryKind>,
    word: UnsafeCell<MaybeUninit<usize>>,
}

impl RootEntry {
    /// Makes an entry outside a stack, its word not yet written.
    pub(crate) fn new(kind: EntryKind) -> Self {
        Self { kind: core::cell::Cell::new(kind), word: UnsafeCell::new(MaybeUninit::uninit()) }
    }

    pub(crate) fn kind(&self) -> EntryKind {
        self.kind.get()
    }

    /// The address of the entry's word.
    #[inline(always)]
    pub(crate) fn word<T>(&self) -> *mut T {
        const { assert!(size_of::<T>() <= size_of::<usize>(), "a reference must be one word at most") };
        const { assert!(align_of::<T>() <= align_of::<usize>(), "a reference must not be over-aligned") };
        self.word.get().cast()
    }
}

const CHUNK_BYTES: usize = 1024;

/// A chunk's header; entries follow it to the end of the chunk.
#[repr(C)]
struct RootChunk {
    older: *mut RootChunk,
    newer: *mut RootChunk,
}

const CHUNK: Layout = match Layout::from_size_align(CHUNK_BYTES, CHUNK_BYTES) {
    Ok(layout) => layout,
    Err(_) => panic!("the chunk layout is a constant"),
};
const _: () = assert!((CHUNK_BYTES - size_of::<RootChunk>()).is_multiple_of(size_of::<RootEntry>()));

/// A place in a [`RootStack`]: entries pushed after it was taken are released by going back to it.
pub(crate) type RootMark = *mut RootEntry;

/// The stack. Written by its mutator's thread while managed; read by a stopper while the mutator is not (I1, I4).
#[repr(C)]
pub(crate) struct RootStack {
    top: Cell<RootMark>,
    first: *mut RootChunk,
}

impl RootStack {
    pub(crate) fn new() -> Self {
        let first = new_chunk(ptr::null_mut());
        Self { top: Cell::new(first_entry(first)), first }
    }

    /// The place to go back to.
    #[inline(always)]
    pub(crate) fn mark(&self) -> RootMark {
        self.top.get()
    }

    /// Releases everything pushed since `mark` was taken.
    #[inline(always)]
    pub(crate) fn release_to(&self, mark: RootMark) {
        self.top.set(mark);
    }

    /// Pushes an entry whose word is `value` onto `top`, which is the stack's top. Returns the entry and the new top.
    ///
    /// Whoever pushes several keeps the top in a register: read back from memory, each push would wait for the one before.
    #[inline(always)]
    pub(crate) fn push<T>(&self, mut top: RootMark, kind: EntryKind, value: T) -> (*const RootEntry, RootMark) {
        debug_assert_eq!(top, self.top.get(), "only the newest call of a mutator declares arguments");
        if top.addr().is_multiple_of(CHUNK_BYTES) {
            top = self.next_chunk_slow(top);
        }
        // SAFETY: `top` is inside a live chunk: chunks are freed on drop only, and a full one was left behind just now.
        let entry = unsafe { &*top };
        entry.kind.set(kind);
        // SAFETY: the word is large enough and aligned for T (asserted in `word`), and nobody else looks above `top`.
        unsafe { entry.word::<T>().write(value) };
        // SAFETY: one past the last entry is still one past the end of the chunk at most.
        let new = unsafe { top.add(1) };
        self.top.set(new);
        (top, new)
    }

    #[cold]
    #[inline(never)]
    fn next_chunk_slow(&self, full: RootMark) -> RootMark {
        let chunk = chunk_ending_at(full);
        // SAFETY: `full` is the end of a live chunk of this stack; only its own thread links chunks.
        let newer = unsafe { (*chunk).newer };
        let newer = if newer.is_null() {
            let fresh = new_chunk(chunk);
            // SAFETY: as above.
            unsafe { (*chunk).newer = fresh };
            fresh
        } else {
            newer
        };
        first_entry(newer)
    }

    /// Calls `visit` for each entry between two marks, newest first.
    pub(crate) fn between(&self, older: RootMark, newer: RootMark, mut visit: impl FnMut(&RootEntry)) {
        let mut at = newer;
        while at != older {
            // A mark is one past an entry, so it is either aligned (the end of a chunk) or inside one.
            let chunk = if at.addr().is_multiple_of(CHUNK_BYTES) {
                chunk_ending_at(at)
            } else {
                at.map_addr(|address| address & !(CHUNK_BYTES - 1)).cast::<RootChunk>()
            };
            if at == first_entry(chunk) {
                // SAFETY: `older` has not been reached, so this is not the first chunk and an older one is live.
                at = unsafe { (*chunk).older }.map_addr(|address| address + CHUNK_BYTES).cast();
                continue;
            }
            // SAFETY: not the first entry of the chunk, so the one before is in it.
            at = unsafe { at.sub(1) };
            // SAFETY: entries below a mark are initialised and live.
            visit(unsafe { &*at });
        }
    }

    /// Calls `visit` for every entry.
    pub(crate) fn all(&self, visit: impl FnMut(&RootEntry)) {
        self.between(first_entry(self.first), self.top.get(), visit);
    }

    /// Forgets every entry and gives back all chunks but the first.
    pub(crate) fn reset(&self) {
        self.top.set(first_entry(self.first));
        // SAFETY: the first chunk lives as long as the stack.
        let mut chunk = unsafe { (*self.first).newer };
        // SAFETY: as above; the links cut here lead to chunks freed below.
        unsafe { (*self.first).newer = ptr::null_mut() };
        while !chunk.is_null() {
            // SAFETY: a live chunk of this stack.
            let newer = unsafe { (*chunk).newer };
            // SAFETY: allocated with this layout; no entry of it is below the new top.
            unsafe { alloc::dealloc(chunk.cast(), CHUNK) };
            chunk = newer;
        }
    }
}

impl Drop for RootStack {
    fn drop(&mut self) {
        self.reset();
        // SAFETY: allocated with this layout and not used after this.
        unsafe { alloc::dealloc(self.first.cast(), CHUNK) };
    }
}

fn new_chunk(older: *mut RootChunk) -> *mut RootChunk {
    // SAFETY: the layout has a size.
    let chunk = unsafe { alloc::alloc_zeroed(CHUNK) };
    if chunk.is_null() {
        alloc::handle_alloc_error(CHUNK);
    }
    #[expect(clippy::cast_ptr_alignment, reason = "allocated with an alignment of CHUNK_BYTES")]
    let chunk = chunk.cast::<RootChunk>();
    // SAFETY: fresh memory, large enough and aligned.
    unsafe { chunk.write(RootChunk { older, newer: ptr::null_mut() }) };
    chunk
}

fn first_entry(chunk: *mut RootChunk) -> RootMark {
    chunk.wrapping_add(1).cast()
}

/// The chunk whose end `mark` is.
fn chunk_ending_at(mark: RootMark) -> *mut RootChunk {
    mark.map_addr(|address| address - CHUNK_BYTES).cast()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{EntryKind, RootMark, RootStack};

    fn words(stack: &RootStack, from: RootMark, to: RootMark) -> Vec<usize> {
        let mut words = Vec::new();
        // SAFETY: the tests push words.
        stack.between(from, to, |entry| words.push(unsafe { entry.word::<usize>().read() }));
        words
    }

    #[test]
    fn entries_come_back_newest_first_across_chunks() {
        let stack = RootStack::new();
        let base = stack.mark();
        for word in 0..1000_usize {
            stack.push(stack.mark(), EntryKind::Root, word);
        }
        assert_eq!(words(&stack, base, stack.mark()), (0..1000).rev().collect::<Vec<_>>());
    }

    #[test]
    fn every_mark_splits_the_stack_in_two() {
        let stack = RootStack::new();
        let base = stack.mark();
        let mut marks = vec![base];
        for word in 0..300_usize {
            stack.push(stack.mark(), EntryKind::Pin, word);
            marks.push(stack.mark());
        }
        for (count, &mark) in marks.iter().enumerate() {
            assert_eq!(words(&stack, base, mark).len(), count);
            assert_eq!(words(&stack, mark, stack.mark()).len(), 300 - count);
        }
    }

    #[test]
    fn releasing_to_a_mark_at_a_chunk_end_and_pushing_again_reuses_the_chunks() {
        let stack = RootStack::new();
        let base = stack.mark();
        for _ in 0..3 {
            for word in 0..63_usize {
                stack.push(stack.mark(), EntryKind::Root, word);
            }
            let full = stack.mark();
            stack.push(stack.mark(), EntryKind::Root, 63_usize);
            assert_eq!(words(&stack, full, stack.mark()), [63]);
            stack.release_to(full);
            assert_eq!(words(&stack, full, stack.mark()), [0_usize; 0]);
            assert_eq!(words(&stack, base, stack.mark()).len(), 63);
            stack.release_to(base);
        }
        stack.reset();
        assert_eq!(words(&stack, stack.mark(), stack.mark()), [0_usize; 0]);
    }
}
