//! Liveness: which reference slots a collector has to visit at each pc.

use super::{Function, Slot, SlotKind};

/// The reference slots that are live at each pc of a function.
///
/// A slot is live at a point if some path from there reads it before it writes it. This is the usual backward analysis,
/// carried on until nothing changes, so it is exact for the control flow graph: it takes both ways of every
/// `JumpIfZero`, and it knows code that is never reached too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveMaps {
    /// For each pc, the slots live on entry, one bit each.
    on_entry: Vec<Box<[u64]>>,
    /// For each pc, the slots live afterwards, without the one the instruction writes.
    across: Vec<Box<[u64]>>,
}

impl LiveMaps {
    /// Analyses a function.
    ///
    /// A function that was not verified is analysed too: a jump out of it is taken for its end, and a slot that does not
    /// exist for no reference.
    #[must_use]
    pub fn analyse(function: &Function) -> Self {
        let nothing = vec![0; function.slots.len().div_ceil(64)].into_boxed_slice();
        let mut on_entry = vec![nothing.clone(); function.code.len()];
        let mut across = on_entry.clone();
        let is_reference = |slot: &Slot| function.kind(*slot) == Some(SlotKind::Reference);
        let mut changed = true;
        while changed {
            changed = false;
            for (pc, instruction) in function.code.iter().enumerate().rev() {
                let mut live = nothing.clone();
                for next in instruction.successors(pc).filter_map(|next| on_entry.get(next)) {
                    live.iter_mut().zip(next).for_each(|(word, next)| *word |= next);
                }
                if let Some(Slot(dst)) = instruction.definition().filter(is_reference) {
                    live[usize::from(dst / 64)] &= !(1 << (dst % 64));
                }
                across[pc].clone_from(&live);
                for Slot(used) in instruction.uses().filter(is_reference) {
                    live[usize::from(used / 64)] |= 1 << (used % 64);
                }
                changed |= on_entry[pc] != live;
                on_entry[pc] = live;
            }
        }
        Self { on_entry, across }
    }

    /// Returns the reference slots live on entry to the instruction at `pc`, in order.
    ///
    /// Before `EnterForeign` (X) these include its arguments; before `InForeign` (Y) only those of them used later.
    ///
    /// # Panics
    ///
    /// If the function has no such pc.
    pub fn live_references(&self, pc: usize) -> impl Iterator<Item = Slot> {
        members(&self.on_entry[pc])
    }

    /// Returns the reference slots live after the instruction at `pc`, without the one it writes, in order.
    ///
    /// This is what a frame keeps while it is suspended in a managed `Call` at `pc`: the arguments are in the frame of
    /// the callee, and `dst` is about to be overwritten.
    ///
    /// # Panics
    ///
    /// If the function has no such pc.
    pub fn live_across(&self, pc: usize) -> impl Iterator<Item = Slot> {
        members(&self.across[pc])
    }

    /// Returns the reference slots live at the call site `pc`, its arguments among them: what a frame keeps while it is
    /// in a foreign call and is scanned at X. The same as [`live_references`](Self::live_references), by the name of the
    /// place.
    ///
    /// # Panics
    ///
    /// If the function has no such pc.
    pub fn live_at_call_site(&self, pc: usize) -> impl Iterator<Item = Slot> {
        self.live_references(pc)
    }
}

/// Returns the members of a set of slots.
fn members(set: &[u64]) -> impl Iterator<Item = Slot> {
    (0..=u16::MAX)
        .take(set.len() * 64)
        .filter(|slot| set[usize::from(slot / 64)] >> (slot % 64) & 1 != 0)
        .map(Slot)
}
