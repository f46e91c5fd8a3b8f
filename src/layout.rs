//! The documented layout of a mutator's record, for a JIT that inlines the poll or the whole transition.
//!
//! Offsets are bytes from the address a [`Mutator`] points to. They are taken from the real types with `memoffset`, so they cannot drift; the
//! tests read a live record through them.
//!
//! The inlined poll is `test dword [record + POLL], POLL_MASK` and a branch to a call of [`Mutator::poll_at`].

use crate::activation::ForeignFrame;
use crate::anchor::Anchor;
use crate::checked::Checked;
use crate::mutator::Mutator;
use crate::record::Header;
use crate::state::CrossingWord;
use crate::vm::StackScanner;
use core::ops::Range;
use memoffset::{offset_of, span_of};

/// Where the frame word is: the address of a record. While managed it is that of the next crossing, with [`MANAGED`] set; else that of
/// the published one.
pub const FRAME: usize = offset_of!(Header, word) + FRAME_IN_WORD;
/// The bit of the frame word that says "managed".
pub const MANAGED: usize = crate::state::MANAGED;
/// Where the poll word is, a `u32`: clear under [`POLL_MASK`] while nobody wants anything of the mutator.
pub const POLL: usize = offset_of!(Header, word) + POLL_IN_WORD;
/// The bits of the poll word to test.
pub const POLL_MASK: u32 = !crate::state::FENCE_FIRST;
/// The bit of the poll word that a transition back to managed must heed before it tests the others: if it is set, issue a full fence and load the
/// word again.
pub const FENCE_FIRST: u32 = crate::state::FENCE_FIRST;

const FRAME_IN_WORD: usize = CrossingWord::<ForeignFrame>::FRAME;
const POLL_IN_WORD: usize = CrossingWord::<ForeignFrame>::POLL;

/// Where the anchor is in a record: pc, sp, fp, one word each.
pub const ANCHOR_IN_RECORD: usize = offset_of!(ForeignFrame, anchor);
/// Where the machine stack pointer is in a record.
pub const MACHINE_SP_IN_RECORD: usize = offset_of!(ForeignFrame, machine_sp);
/// Where the pc is in an anchor.
pub const PC_IN_ANCHOR: usize = offset_of!(Anchor, pc);
/// Where the sp is in an anchor.
pub const SP_IN_ANCHOR: usize = offset_of!(Anchor, sp);
/// Where the fp is in an anchor.
pub const FP_IN_ANCHOR: usize = offset_of!(Anchor, fp);

/// Where the address of the next older record is in a record; 0 in the oldest. For a debugger or a profiler that reads the chain; never to be written, like what follows.
pub const OLDER_IN_RECORD: usize = offset_of!(ForeignFrame, older);
/// Where the number of older records is in a record, a `u32`.
pub const DEPTH_IN_RECORD: usize = offset_of!(ForeignFrame, depth);
/// Where the kind is in a record, one byte: a [`FrameKind`](crate::FrameKind) as a `u8`.
pub const KIND_IN_RECORD: usize = offset_of!(ForeignFrame, kind);
/// Where the machine stack pointer at the entry of the activation is in a record.
pub const ENTRY_SP_IN_RECORD: usize = offset_of!(ForeignFrame, entry_sp);
/// Where the root mark is in a record.
pub const ROOT_MARK_IN_RECORD: usize = offset_of!(ForeignFrame, roots_base);
/// Where the canary is in a record: see [`Mutator::validate`].
pub const CANARY_IN_RECORD: usize = offset_of!(ForeignFrame, canary);
/// Where the canary of the mutator's own record is.
pub const CANARY: usize = offset_of!(Header, checked) + offset_of!(Checked, canary);

/// Where the count of crossings is in a record, a `u64` (feature `audit`): code that inlines a transition adds one to it before it publishes the record.
#[cfg(feature = "audit")]
pub const CROSSINGS_IN_RECORD: usize = offset_of!(ForeignFrame, crossings);

/// A cache line, in bytes, on the machines here.
pub const CACHE_LINE: usize = 64;

/// The bytes of a mutator that every poll and crossing touches: the words of its state, its next record, its root stack's top. They lie on one cache line.
#[must_use]
pub fn hot_span() -> Range<usize> {
    offset_of!(Header, word)..offset_of!(Header, roots) + ROOT_TOP.end
}

/// The root stack's top, in the root stack.
const ROOT_TOP: Range<usize> = 0..size_of::<usize>();

/// The bytes of a record that a crossing writes. They lie on one cache line.
#[must_use]
pub fn record_span() -> Range<usize> {
    span_of!(ForeignFrame, anchor..=after)
}

impl<V: StackScanner> Mutator<V> {
    /// The address the offsets of [`layout`](self) count from. It does not change while the thread is attached.
    #[must_use]
    pub fn record_address(&self) -> usize {
        core::ptr::from_ref(self.header()).expose_provenance()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![expect(clippy::missing_panics_doc, reason = "a test panics to fail")]

    use super::{CACHE_LINE, hot_span, record_span};

    #[test]
    fn what_a_crossing_touches_lies_on_one_cache_line_of_each_structure() {
        assert!(hot_span().end <= CACHE_LINE, "{:?}", hot_span());
        assert!(record_span().end <= CACHE_LINE, "{:?}", record_span());
    }
}
