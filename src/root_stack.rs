//! The storage of what foreign calls declare: a chunked stack of words at stable addresses.
//!
//! A guard's slots must not move (C may hold their addresses) and must not be lost (invariant I2), so they live here, in memory the mutator owns, and
//! not in the guard. A call's words stand together in *groups*; behind each group stands a trailer that says how many words it has and what each is for.
//! While a call is being prepared its last group has no trailer yet: nobody can look before the call is published, and the guard keeps kinds and count in
//! registers. Declaring a root is then one store.
//!
//! ```text
//!   chunk (1 KiB, aligned to 1 KiB)
//!   | newer | left_at | word word word trailer | word trailer |  ...  |
//!                      <------ a group ------>                ^ top
//! ```

use crate::sync::Cell;
use core::alloc::Layout;
use core::mem::{align_of, size_of};
use core::ptr;
use std::alloc;

/// What a word is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
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

impl EntryKind {
    const fn of(bits: u64) -> Self {
        match bits & KIND_MASK {
            0 => Self::Root,
            1 => Self::InPlace,
            2 => Self::Pin,
            3 => Self::TransitivePin,
            _ => Self::KeepAlive,
        }
    }
}

/// One declared argument, for whoever walks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) kind: EntryKind,
    word: *mut usize,
}

impl Entry {
    /// An entry whose word stands outside a stack.
    pub(crate) fn new(kind: EntryKind, word: *mut usize) -> Self {
        Self { kind, word }
    }

    /// The address of the entry's word.
    pub(crate) fn word<T>(self) -> *mut T {
        word_of(self.word)
    }
}

/// The address of a word that holds a `T`.
#[inline(always)]
pub(crate) fn word_of<T>(word: *mut usize) -> *mut T {
    const { assert!(size_of::<T>() <= size_of::<usize>(), "a reference must be one word at most") };
    const { assert!(align_of::<T>() <= align_of::<usize>(), "a reference must not be over-aligned") };
    word.cast()
}

const CHUNK_BYTES: usize = 1024;
const KIND_BITS: u32 = 4;
const KIND_MASK: u64 = (1 << KIND_BITS) - 1;
/// The most words of a group: kinds and count fit the trailer.
const GROUP: u32 = if size_of::<usize>() == 8 { 15 } else { 7 };
/// A group begins only where it has room, with its trailer, and leaves the chunk's last word free: so a mark is never a chunk's end, and masking
/// it finds its chunk.
const ROOM: usize = (GROUP as usize + 2) * size_of::<usize>();

/// A chunk's header; words follow it to the end of the chunk.
#[repr(C)]
struct RootChunk {
    newer: *mut RootChunk,
    /// The top when the stack went on from the older chunk to this one.
    left_at: RootMark,
}

const CHUNK: Layout = match Layout::from_size_align(CHUNK_BYTES, CHUNK_BYTES) {
    Ok(layout) => layout,
    Err(_) => panic!("the chunk layout is a constant"),
};

/// A place in a [`RootStack`]: what is declared after it was taken is released by going back to it.
pub(crate) type RootMark = *mut usize;

/// The stack. Written by its mutator's thread while managed; read by a stopper while the mutator is not (I1, I4).
#[repr(C)]
pub(crate) struct RootStack {
    top: Cell<RootMark>,
    first: *mut RootChunk,
}

/// The words one call is declaring: the part of the stack above its top.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenGroup {
    top: RootMark,
    kinds: u64,
    count: u32,
}

impl OpenGroup {
    /// Begins at the stack's top.
    #[inline(always)]
    pub(crate) fn at(mark: RootMark) -> Self {
        Self { top: mark, kinds: 0, count: 0 }
    }
}

impl RootStack {
    pub(crate) fn new() -> Self {
        let first = new_chunk();
        Self { top: Cell::new(first_word(first)), first }
    }

    /// The place to go back to.
    #[inline(always)]
    pub(crate) fn mark(&self) -> RootMark {
        self.top.get()
    }

    /// Releases everything declared since `mark` was taken.
    #[inline(always)]
    pub(crate) fn release_to(&self, mark: RootMark) {
        self.top.set(mark);
    }

    /// Adds a word to a group that only the caller sees yet. Returns its address.
    #[inline(always)]
    pub(crate) fn push<T>(&self, group: &mut OpenGroup, kind: EntryKind, value: T) -> RootMark {
        if group.count == 0 || group.count == GROUP {
            *group = self.make_room(*group);
        }
        let word = group.top;
        // SAFETY: `make_room` has seen to room for a whole group in a live chunk (chunks are freed on drop and detach only), and nobody looks above the top; the
        // word is large enough and aligned for T (asserted in `word_of`).
        unsafe { word_of::<T>(word).write(value) };
        // SAFETY: still within the room.
        group.top = unsafe { word.add(1) };
        group.kinds |= (kind as u64) << (KIND_BITS * (group.count + 1));
        group.count += 1;
        word
    }

    /// Closes a full group, and sees to room for the next.
    #[inline(always)]
    fn make_room(&self, group: OpenGroup) -> OpenGroup {
        let top = if group.count == 0 { group.top } else { close(group) };
        if top.addr() & (CHUNK_BYTES - 1) > CHUNK_BYTES - ROOM {
            return OpenGroup::at(next_chunk_slow(top));
        }
        OpenGroup::at(top)
    }

    /// Makes the words of `group` part of the stack. It can be done again, with more words, as long as nothing was declared above.
    #[inline(always)]
    pub(crate) fn seal(&self, group: OpenGroup) {
        self.top.set(close(group));
    }

    /// Calls `visit` for each word between two marks, newest group first.
    pub(crate) fn between(&self, older: RootMark, newer: RootMark, mut visit: impl FnMut(Entry)) {
        let mut at = newer;
        while at != older {
            let chunk = chunk_of(at);
            if at == first_word(chunk) {
                // SAFETY: a chunk of this stack; `older` has not been reached, so there is an older one, left at a mark of its own.
                at = unsafe { (*chunk).left_at };
                continue;
            }
            // SAFETY: not the first word of a chunk, and behind each group below the top stands its trailer.
            let trailer = unsafe { at.sub(1).read() } as u64;
            let count = (trailer & KIND_MASK) as u32;
            for index in (0..count).rev() {
                // SAFETY: the group's words stand before its trailer.
                let word = unsafe { at.sub(1 + (count - index) as usize) };
                visit(Entry { kind: EntryKind::of(trailer >> (KIND_BITS * (index + 1))), word });
            }
            // SAFETY: as above.
            at = unsafe { at.sub(1 + count as usize) };
        }
    }

    /// The mark below which there is nothing.
    pub(crate) fn bottom(&self) -> RootMark {
        first_word(self.first)
    }

    /// Where a mark is in the stack, in the stack's order; `None` if it is no place of it. Follows no link but the stack's own.
    pub(crate) fn place_of(&self, mark: RootMark) -> Option<(usize, usize)> {
        let offset = mark.addr() & (CHUNK_BYTES - 1);
        if offset < size_of::<RootChunk>() || !offset.is_multiple_of(size_of::<usize>()) {
            return None;
        }
        let mut chunk = self.first;
        let mut number = 0;
        while !chunk.is_null() {
            if chunk.addr() == mark.addr() - offset {
                return Some((number, offset));
            }
            // SAFETY: a live chunk of this stack.
            chunk = unsafe { (*chunk).newer };
            number += 1;
        }
        None
    }

    /// Calls `visit` for every word.
    pub(crate) fn all(&self, visit: impl FnMut(Entry)) {
        self.between(first_word(self.first), self.top.get(), visit);
    }

    /// Forgets every word and gives back all chunks but the first.
    pub(crate) fn reset(&self) {
        self.top.set(first_word(self.first));
        // SAFETY: the first chunk lives as long as the stack.
        let mut chunk = unsafe { (*self.first).newer };
        // SAFETY: as above; the links cut here lead to chunks freed below.
        unsafe { (*self.first).newer = ptr::null_mut() };
        while !chunk.is_null() {
            // SAFETY: a live chunk of this stack.
            let newer = unsafe { (*chunk).newer };
            // SAFETY: allocated with this layout; no word of it is below the new top.
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

/// Writes a group's trailer. Returns the top behind it.
#[inline(always)]
fn close(group: OpenGroup) -> RootMark {
    let trailer = group.kinds | u64::from(group.count);
    // SAFETY: `make_room` has seen to room for the trailer.
    unsafe { group.top.write(trailer as usize) };
    // SAFETY: as above, and there is a free word behind it.
    unsafe { group.top.add(1) }
}

/// Goes on from a chunk without room to the next, making it if there is none. Returns the new top.
#[cold]
#[inline(never)]
fn next_chunk_slow(top: RootMark) -> RootMark {
    let chunk = chunk_of(top);
    // SAFETY: a live chunk; only its stack's own thread links chunks.
    let mut newer = unsafe { (*chunk).newer };
    if newer.is_null() {
        newer = new_chunk();
        // SAFETY: as above.
        unsafe { (*chunk).newer = newer };
    }
    // SAFETY: as above.
    unsafe { (*newer).left_at = top };
    first_word(newer)
}

fn new_chunk() -> *mut RootChunk {
    // SAFETY: the layout has a size.
    let chunk = unsafe { alloc::alloc_zeroed(CHUNK) };
    if chunk.is_null() {
        alloc::handle_alloc_error(CHUNK);
    }
    #[expect(clippy::cast_ptr_alignment, reason = "allocated with an alignment of CHUNK_BYTES")]
    let chunk = chunk.cast::<RootChunk>();
    // SAFETY: fresh memory, large enough and aligned.
    unsafe { chunk.write(RootChunk { newer: ptr::null_mut(), left_at: ptr::null_mut() }) };
    chunk
}

fn first_word(chunk: *mut RootChunk) -> RootMark {
    chunk.wrapping_add(1).cast()
}

/// The chunk a mark is in.
fn chunk_of(mark: RootMark) -> *mut RootChunk {
    mark.map_addr(|address| address & !(CHUNK_BYTES - 1)).cast()
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![expect(clippy::missing_panics_doc, reason = "a test panics to fail")]

    use super::{EntryKind, OpenGroup, RootMark, RootStack};

    fn words(stack: &RootStack, from: RootMark, to: RootMark) -> Vec<usize> {
        let mut words = Vec::new();
        // SAFETY: the tests push words.
        stack.between(from, to, |entry| words.push(unsafe { entry.word::<usize>().read() }));
        words
    }

    /// A call that declares `values` and is published.
    fn call(stack: &RootStack, values: impl IntoIterator<Item = usize>) -> RootMark {
        let mark = stack.mark();
        let mut group = OpenGroup::at(mark);
        for value in values {
            stack.push(&mut group, EntryKind::Root, value);
        }
        stack.seal(group);
        mark
    }

    #[test]
    fn words_come_back_newest_first_across_groups_and_chunks() {
        let stack = RootStack::new();
        let base = call(&stack, 0..1000);
        assert_eq!(words(&stack, base, stack.mark()), (0..1000).rev().collect::<Vec<_>>());
    }

    #[test]
    fn every_mark_splits_the_stack_in_two() {
        let stack = RootStack::new();
        let base = stack.mark();
        let mut marks = vec![(base, 0)];
        let mut total = 0;
        for count in (0..40).chain([1; 200]) {
            call(&stack, total..total + count);
            total += count;
            marks.push((stack.mark(), total));
        }
        for (mark, below) in marks {
            assert_eq!(words(&stack, base, mark), (0..below).rev().collect::<Vec<_>>());
            assert_eq!(words(&stack, mark, stack.mark()), (below..total).rev().collect::<Vec<_>>());
        }
    }

    #[test]
    fn kinds_stand_with_their_words_in_full_groups_too() {
        let kinds = [
            EntryKind::Root,
            EntryKind::InPlace,
            EntryKind::Pin,
            EntryKind::TransitivePin,
            EntryKind::KeepAlive,
        ];
        let stack = RootStack::new();
        let base = stack.mark();
        let mut group = OpenGroup::at(base);
        for word in 0..100_usize {
            stack.push(&mut group, kinds[word % 5], word);
        }
        stack.seal(group);
        let mut expected = 100;
        stack.all(|entry| {
            expected -= 1;
            // SAFETY: the words pushed above.
            assert_eq!(unsafe { entry.word::<usize>().read() }, expected);
            assert_eq!(entry.kind, kinds[expected % 5]);
        });
        assert_eq!(expected, 0);
    }

    #[test]
    fn a_call_that_runs_again_with_more_words_has_them_all() {
        let stack = RootStack::new();
        let base = stack.mark();
        let mut group = OpenGroup::at(base);
        for word in 0..50_usize {
            stack.push(&mut group, EntryKind::Root, word);
            stack.seal(group);
            assert_eq!(words(&stack, base, stack.mark()), (0..=word).rev().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_released_stack_is_used_again_from_the_mark() {
        let stack = RootStack::new();
        let base = stack.mark();
        for round in 0..5 {
            let mark = call(&stack, 0..200 + round);
            let inner = call(&stack, 7..9);
            stack.release_to(inner);
            assert_eq!(words(&stack, mark, stack.mark()).len(), 200 + round);
            stack.release_to(base);
            assert_eq!(words(&stack, base, stack.mark()), [0_usize; 0]);
        }
        stack.reset();
        call(&stack, 1..4);
        assert_eq!(words(&stack, base, stack.mark()), [3, 2, 1]);
    }
}
