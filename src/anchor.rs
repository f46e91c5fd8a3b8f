//! Frame anchors: the saved program counter, stack pointer and frame pointer of an activation's newest frame.

use core::fmt;

/// The saved `pc`, `sp` and `fp` of an activation's newest managed frame, where a stack walk of that activation starts.
///
/// The three words mean what the VM's [`StackScanner`](crate::StackScanner) takes them to mean. A VM that runs on the native stack uses
/// machine registers, captured by the crossing itself. An interpreter gives its own: a bytecode index, the top of its operand stack, the base of its
/// newest frame. `sp` and `fp` that point into a stack declared with
/// [`Mutator::declare_stack`](crate::Mutator::declare_stack) follow it when it moves; `pc` is never changed.
///
/// # Examples
///
/// ```
/// use reentry::Anchor;
///
/// let anchor = Anchor::new(7, 0x1000, 0x0ff0);
/// assert_eq!((anchor.pc, anchor.sp, anchor.fp), (7, 0x1000, 0x0ff0));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
#[repr(C)]
pub struct Anchor {
    /// The program counter: a return address, or an interpreter's instruction index.
    pub pc: usize,
    /// The stack pointer: an address in the managed stack.
    pub sp: usize,
    /// The frame pointer: an address in the managed stack, or 0 where the VM keeps none.
    pub fp: usize,
}

impl Anchor {
    /// Makes an anchor of its three words.
    #[inline(always)]
    #[must_use]
    pub const fn new(pc: usize, sp: usize, fp: usize) -> Self {
        Self { pc, sp, fp }
    }
}

impl fmt::Debug for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Anchor {{ pc: {:#x}, sp: {:#x}, fp: {:#x} }}", self.pc, self.sp, self.fp)
    }
}
