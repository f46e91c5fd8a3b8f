//! Leaf calls: foreign calls with no transition.

use crate::mutator::Mutator;
use crate::vm::StackScanner;

impl<V: StackScanner> Mutator<V> {
    /// Calls short foreign code without a transition: the mutator stays managed, and a pause waits for it.
    ///
    /// # Safety
    ///
    /// `f` is short, never blocks, and neither polls, allocates on the heap nor calls back: an upcall inside aborts the process.
    ///
    /// # Examples
    ///
    /// ```
    /// # use reentry::{testkit::TestVm, World};
    /// unsafe extern "C" {
    ///     fn abs(value: i32) -> i32;
    /// }
    /// let world = World::new(TestVm::new());
    /// let mut mutator = world.attach()?;
    /// // SAFETY: `abs` is short, and does nothing else.
    /// assert_eq!(unsafe { mutator.leaf_call(|| abs(-3)) }, 3);
    /// # Ok::<(), reentry::AttachError>(())
    /// ```
    #[inline(always)]
    pub unsafe fn leaf_call<R>(&mut self, f: impl FnOnce() -> R) -> R {
        f()
    }
}
