//! An operand stack that moves.
//!
//! Interpreters keep their operands on a stack of their own and let it move when it grows. Whatever held an address into
//! it (a saved stack pointer, the address of a root slot) is then wrong. This stack makes the mistake visible: it moves
//! to fresh memory at every [`OperandStack::relocate`], the same size or not, and what it leaves behind stays readable
//! and holds nothing but [`POISON`].
//!
//! ```text
//!   range().start                        slot_address(top)            range().end
//!   |                                    |                            |
//!   v                                    v                            v
//!   +--------+--------+--------+--------+--------+--------+--------+
//!   | slot 0 | slot 1 |  ...   | top-1  | POISON | POISON | POISON |      addresses grow to the right
//!   +--------+--------+--------+--------+--------+--------+--------+
//! ```

use core::fmt;
use core::ops::Range;
use core::ptr::{self, NonNull};
use std::collections::VecDeque;

/// The word that fills memory the stack does not use: words never written, words popped, and words left behind by a move.
pub const POISON: u64 = 0xDBDB_DBDB_DBDB_DBDB;

/// The number of earlier places of the stack that stay mapped and poisoned. Older ones are given back to the system.
pub const QUARANTINED_MOVES: usize = 16;

const WORD: usize = size_of::<u64>();

/// A movable stack of words that grows upward.
///
/// The words are reached by raw pointers only: no reference to them ever lives, so a collector may write slots through
/// [`slot_address`](Self::slot_address) while the interpreter holds the stack. Such a write is the caller's `unsafe` code
/// and must not race with a method of the stack.
pub struct OperandStack {
    words: Words,
    top: usize,
    quarantine: VecDeque<Words>,
}

/// The two address ranges of one move of the stack: everything that pointed into `old` is to be rebased to `new`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relocated {
    /// The addresses the stack had, now poison.
    pub old: Range<usize>,
    /// The addresses the stack has.
    pub new: Range<usize>,
}

impl Relocated {
    /// Returns the new address of what was at `address`, or `None` if that was not in the old range.
    ///
    /// The end of the old range counts as inside, for it is the stack pointer of a full stack. A stack pointer is always
    /// inside the new range too, since a stack never shrinks below its top.
    #[must_use]
    pub fn rebase(&self, address: usize) -> Option<usize> {
        (self.old.start <= address && address <= self.old.end)
            .then(|| self.new.start + (address - self.old.start))
    }
}

impl OperandStack {
    /// Makes an empty stack with room for `words` words.
    ///
    /// # Panics
    ///
    /// If `words` is more than the address space holds.
    #[must_use]
    pub fn new(words: usize) -> Self {
        Self { words: Words::poisoned(words), top: 0, quarantine: VecDeque::new() }
    }

    /// Returns the address of slot 0, good until the next [`relocate`](Self::relocate).
    #[must_use]
    pub fn base(&self) -> *mut u64 {
        self.words.base.as_ptr()
    }

    /// Returns the addresses the whole stack occupies, in bytes, used or not.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.words.range()
    }

    /// Returns the number of words there is room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.words.capacity
    }

    /// Returns the number of words in use.
    #[must_use]
    pub fn top(&self) -> usize {
        self.top
    }

    /// Sets the number of words in use.
    ///
    /// Words given up by lowering the top become [`POISON`]. Raising it changes no word, so a word that nobody wrote
    /// since it was last above the top reads as poison.
    ///
    /// # Panics
    ///
    /// If `words` is more than the capacity.
    pub fn set_top(&mut self, words: usize) {
        assert!(
            words <= self.capacity(),
            "the top of a stack of {} words cannot be {words}",
            self.capacity()
        );
        for index in words..self.top {
            // SAFETY: `index` is below the old top, which W2 puts within the capacity.
            unsafe { self.words.write(index, POISON) };
        }
        self.top = words;
    }

    /// Returns the word in slot `index`.
    ///
    /// # Panics
    ///
    /// If `index` is not below the top.
    #[must_use]
    pub fn get(&self, index: usize) -> u64 {
        self.assert_in_use(index);
        // SAFETY: `index` is below the top, which W2 puts within the capacity.
        unsafe { self.words.read(index) }
    }

    /// Writes `value` to slot `index`.
    ///
    /// # Panics
    ///
    /// If `index` is not below the top.
    pub fn set(&mut self, index: usize, value: u64) {
        self.assert_in_use(index);
        // SAFETY: `index` is below the top, which W2 puts within the capacity.
        unsafe { self.words.write(index, value) };
    }

    /// Returns the address of slot `index`, good until the next [`relocate`](Self::relocate).
    ///
    /// `index` may equal the capacity: that is the stack pointer of a full stack, not a slot to read.
    ///
    /// # Panics
    ///
    /// If `index` is more than the capacity.
    #[must_use]
    pub fn slot_address(&self, index: usize) -> *mut u64 {
        assert!(index <= self.capacity(), "slot {index} is outside a stack of {} words", self.capacity());
        // SAFETY: W1: the allocation holds `capacity` words, and `index` is at most that.
        unsafe { self.words.base.add(index) }.as_ptr()
    }

    /// Returns the index of the slot that contains `address`, or `None` if the stack is not there (any more).
    ///
    /// The end of the range gives the capacity, the index of the stack pointer of a full stack.
    #[must_use]
    pub fn index_of(&self, address: usize) -> Option<usize> {
        let range = self.range();
        (range.start <= address && address <= range.end).then(|| (address - range.start) / WORD)
    }

    /// Moves the stack to fresh memory with room for `new_capacity` words, and poisons the memory it leaves.
    ///
    /// It moves even when the capacity stays the same. The new place overlaps none of the last
    /// [`QUARANTINED_MOVES`] places. Words below the top are copied; the others are [`POISON`].
    ///
    /// # Panics
    ///
    /// If `new_capacity` is less than [`top`](Self::top), or more than the address space holds.
    pub fn relocate(&mut self, new_capacity: usize) -> Relocated {
        assert!(
            self.top <= new_capacity,
            "a stack with {} words in use does not fit {new_capacity} words",
            self.top
        );
        // The old memory is still allocated here, and so is the quarantine: the new address differs from them all.
        let fresh = Words::poisoned(new_capacity);
        // SAFETY: both allocations hold at least `top` words: the old one by W2, the new one by the assertion above.
        // They are distinct by W1.
        unsafe { ptr::copy_nonoverlapping(self.words.base.as_ptr(), fresh.base.as_ptr(), self.top) };
        let old = core::mem::replace(&mut self.words, fresh);
        for index in 0..old.capacity {
            // SAFETY: `index` is below the capacity.
            unsafe { old.write(index, POISON) };
        }
        let relocated = Relocated { old: old.range(), new: self.range() };
        self.quarantine.push_back(old);
        if self.quarantine.len() > QUARANTINED_MOVES {
            self.quarantine.pop_front();
        }
        relocated
    }

    /// Says whether `address` lies in a place the stack has left and that still reads as poison.
    #[must_use]
    pub fn is_quarantined(&self, address: usize) -> bool {
        self.quarantine.iter().any(|old| old.range().contains(&address))
    }

    /// Checks that slot `index` is in use.
    ///
    /// # Panics
    ///
    /// If it is not.
    fn assert_in_use(&self, index: usize) {
        assert!(index < self.top, "slot {index} is not in use: the top of the stack is {}", self.top);
    }
}

impl fmt::Debug for OperandStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OperandStack")
            .field("range", &format_args!("{:#x}..{:#x}", self.range().start, self.range().end))
            .field("top", &self.top)
            .field("quarantined", &self.quarantine.len())
            .finish_non_exhaustive()
    }
}

/// One allocation of words, owned and reached by raw pointer.
///
/// - W1: `base` is an allocation of `max(capacity, 1)` initialised words made by `Box`, owned by this value alone.
/// - W2 (kept by [`OperandStack`]): the top of the stack is at most the capacity of its words.
struct Words {
    base: NonNull<u64>,
    capacity: usize,
}

// SAFETY: W1: the allocation belongs to this value, and plain words may be used from any thread.
unsafe impl Send for Words {}

impl Words {
    /// Allocates words of poison.
    ///
    /// # Panics
    ///
    /// If `capacity` is more than the address space holds.
    fn poisoned(capacity: usize) -> Self {
        // One word at least, so that an empty stack has an address of its own too.
        let words = vec![POISON; capacity.max(1)].into_boxed_slice();
        let base = NonNull::new(Box::into_raw(words).cast::<u64>()).expect("a box is never null");
        Self { base, capacity }
    }

    fn range(&self) -> Range<usize> {
        let start = self.base.addr().get();
        start..start + self.capacity * WORD
    }

    /// Reads the word at `index`.
    ///
    /// # Safety
    ///
    /// `index` is below the capacity.
    unsafe fn read(&self, index: usize) -> u64 {
        // SAFETY: W1, and the caller keeps `index` inside the allocation.
        unsafe { self.base.add(index).read() }
    }

    /// Writes the word at `index`.
    ///
    /// # Safety
    ///
    /// `index` is below the capacity.
    unsafe fn write(&self, index: usize, value: u64) {
        // SAFETY: W1, and the caller keeps `index` inside the allocation. No reference to the words exists.
        unsafe { self.base.add(index).write(value) };
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        let words = ptr::slice_from_raw_parts_mut(self.base.as_ptr(), self.capacity.max(1));
        // SAFETY: W1: this is the box that `poisoned` took apart, with its length.
        drop(unsafe { Box::from_raw(words) });
    }
}

#[cfg(test)]
#[allow(clippy::missing_panics_doc, reason = "a test panics to fail")]
mod tests {
    use super::*;

    fn counting(words: u64) -> OperandStack {
        let mut stack = OperandStack::new(words as usize);
        stack.set_top(words as usize);
        for index in 0..words {
            stack.set(index as usize, index);
        }
        stack
    }

    #[test]
    fn moved_slots_are_readable_at_the_new_place_and_the_old_place_is_poison() {
        for new_capacity in [8, 5, 64] {
            let mut stack = counting(5);
            let stale = stack.slot_address(2);
            let moved = stack.relocate(new_capacity);
            assert_eq!(moved.new, stack.range());
            assert_ne!(moved.old.start, moved.new.start, "the same size moves too");
            assert_eq!((0..5).map(|index| stack.get(index)).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
            assert_eq!(moved.rebase(stale.addr()), Some(stack.slot_address(2).addr()));
            assert!(stack.is_quarantined(stale.addr()));
            // SAFETY: the old place stays allocated for 16 moves, and this was the first.
            assert_eq!(unsafe { stale.read() }, POISON);
        }
    }

    #[test]
    fn a_place_leaves_the_quarantine_after_sixteen_more_moves_and_is_never_reused_before() {
        let mut stack = counting(3);
        let mut places = vec![stack.range()];
        for _ in 0..QUARANTINED_MOVES {
            let moved = stack.relocate(3);
            assert!(!places.contains(&moved.new));
            places.push(moved.new);
        }
        assert!(stack.is_quarantined(places[0].start));
        stack.relocate(3);
        assert_eq!(stack.quarantine.len(), QUARANTINED_MOVES);
        assert!(stack.is_quarantined(places[1].start));
    }

    #[test]
    fn popped_words_become_poison_and_come_back_as_poison() {
        let mut stack = counting(4);
        stack.set_top(1);
        stack.set_top(4);
        assert_eq!((stack.get(0), stack.get(1), stack.get(3)), (0, POISON, POISON));
    }

    #[test]
    fn an_address_maps_to_its_slot_and_the_end_is_inclusive() {
        let stack = counting(4);
        let range = stack.range();
        assert_eq!(stack.index_of(range.start), Some(0));
        assert_eq!(stack.index_of(stack.slot_address(3).addr() + 7), Some(3));
        assert_eq!(stack.index_of(range.end), Some(4));
        assert_eq!(stack.index_of(range.end + 1), None);
        assert_eq!(stack.index_of(range.start - 1), None);
    }

    #[test]
    fn a_slot_is_writable_through_its_address_while_the_stack_is_held() {
        let mut stack = counting(2);
        let slot = stack.slot_address(1);
        stack.set(0, 7);
        // SAFETY: the slot is in use and the stack has not moved.
        unsafe { slot.write(9) };
        assert_eq!((stack.get(0), stack.get(1)), (7, 9));
    }

    #[test]
    fn an_empty_stack_moves_too() {
        let mut stack = OperandStack::new(0);
        let moved = stack.relocate(0);
        assert_ne!(moved.old, moved.new);
        assert_eq!((stack.capacity(), stack.index_of(stack.base().addr())), (0, Some(0)));
    }

    #[test]
    #[should_panic(expected = "5 words in use does not fit 4 words")]
    fn a_stack_does_not_shrink_below_its_top() {
        counting(5).relocate(4);
    }

    #[test]
    #[should_panic(expected = "slot 2 is not in use")]
    fn a_slot_above_the_top_is_not_readable() {
        let mut stack = counting(4);
        stack.set_top(2);
        let _word = stack.get(2);
    }

    #[test]
    fn a_stack_goes_to_another_thread() {
        let stack = counting(3);
        assert_eq!(std::thread::spawn(move || stack.get(2)).join().unwrap(), 2);
    }
}
