//! aarch64, AAPCS64 calling convention.
//!
//! ```text
//!   callee-saved: x19 .. x28, x29 (frame pointer); d8 .. d15 hold no references
//!   x30 at the entry of call_with_registers = pc of the anchor; sp there = sp of the anchor
//! ```

use crate::anchor::Anchor;
use core::arch::{asm, naked_asm};
use core::panic::Location;

/// x19 to x29, in this order.
pub(crate) const SAVED_REGISTERS: usize = 11;

/// Returns sp.
#[inline(always)]
pub(crate) fn stack_pointer() -> usize {
    let sp: usize;
    // SAFETY: reads a register into another; touches neither memory nor flags.
    unsafe { asm!("mov {}, sp", out(reg) sp, options(nomem, nostack, preserves_flags)) };
    sp
}

/// Writes pc, sp and x29 of the function this is inlined into.
///
/// # Safety
///
/// `to` is valid for a write of an [`Anchor`].
#[inline(always)]
pub(crate) unsafe fn store_anchor(to: *mut Anchor, _site: &'static Location<'static>) {
    // SAFETY: writes the three words of `*to`, valid by contract; reads registers; touches no flags.
    unsafe {
        asm!(
            "adr {pc}, .",
            "mov {sp}, sp",
            "stp {pc}, {sp}, [{to}]",
            "str x29, [{to}, #16]",
            pc = out(reg) _,
            sp = out(reg) _,
            to = in(reg) to,
            options(nostack, preserves_flags)
        );
    }
}

/// Writes the callee-saved registers to `registers` and the caller's pc, sp and fp to `anchor`, then calls `f(data)`.
///
/// It branches without linking, so it leaves no frame of its own; see the x86_64 backend for why that matters.
///
/// # Safety
///
/// `registers` is valid for writes of [`SAVED_REGISTERS`] words and `anchor` for a write of an [`Anchor`]; `f` may be called with
/// `data` here.
#[unsafe(naked)]
pub(crate) unsafe extern "C-unwind" fn call_with_registers(
    registers: *mut usize,
    anchor: *mut Anchor,
    f: unsafe extern "C-unwind" fn(*mut ()),
    data: *mut (),
) {
    // At entry: x0 = registers, x1 = anchor, x2 = f, x3 = data, x30 = return address.
    naked_asm!(
        "stp x19, x20, [x0]",
        "stp x21, x22, [x0, #16]",
        "stp x23, x24, [x0, #32]",
        "stp x25, x26, [x0, #48]",
        "stp x27, x28, [x0, #64]",
        "str x29, [x0, #80]",
        "mov x9, sp",
        "stp x30, x9, [x1]",  // anchor.pc, anchor.sp
        "str x29, [x1, #16]", // anchor.fp
        "mov x16, x2",        // x16: the branch target register a guarded page accepts
        "mov x0, x3",
        "br x16",
    )
}

/// FPCR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FloatControl(u64);

impl FloatControl {
    /// Reads it.
    #[inline]
    pub(crate) fn read() -> Self {
        let fpcr: u64;
        // SAFETY: reads a system register that user code may read; touches neither memory nor flags.
        unsafe { asm!("mrs {}, fpcr", out(reg) fpcr, options(nomem, nostack, preserves_flags)) };
        Self(fpcr)
    }

    /// Puts it back where it differs: writing it waits for the arithmetic under way.
    #[inline]
    pub(crate) fn restore(self) {
        if Self::read() != self {
            // SAFETY: writes a value that was read from the register.
            unsafe { asm!("msr fpcr, {}", in(reg) self.0, options(nomem, nostack, preserves_flags)) };
        }
    }
}
