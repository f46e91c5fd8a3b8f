//! What stress mode does with a [`TestVm`]: a collection, or a move of every operand stack.

use crate::testkit::vm::{FaultSet, TestVm};
use crate::{StackEnd, StoppedWorld, StressWork};

impl<F: FaultSet> TestVm<F> {
    /// Moves every operand stack.
    ///
    /// # Panics
    ///
    /// Never: a declared stack holds every address that was saved in it.
    pub(super) fn move_stacks(stopped: &StoppedWorld<'_, Self>) {
        for mutator in stopped.mutators() {
            let Some(local) = mutator.try_local() else { continue };
            let mut stack = local.stack.borrow_mut();
            let capacity = stack.capacity();
            let moved = stack.relocate(capacity);
            stack.base().expose_provenance();
            drop(stack);
            if local.declared.get() {
                // SAFETY: `relocate` copied the stack to `moved.new`, exposed above, and keeps it until it moves again.
                unsafe { mutator.relocate_stack(moved.old, moved.new, StackEnd::Low) }
                    .expect("a declared stack of the same size holds every saved address");
            }
        }
    }

    /// What stress mode does, for [`WorldBuilder::stressed_by`](crate::WorldBuilder::stressed_by).
    ///
    /// # Panics
    ///
    /// With an undead root.
    pub fn stress(stopped: &StoppedWorld<'_, Self>, work: StressWork) {
        match work {
            StressWork::Pause => {}
            StressWork::Collect => match stopped.vm().collect(stopped) {
                Ok(_) => {}
                Err(undead) => panic!("under stress: {undead}"),
            },
            StressWork::Relocate => Self::move_stacks(stopped),
        }
    }
}
