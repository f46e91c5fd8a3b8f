//! aarch64, AAPCS64 calling convention.
//!
//! ```text
//!   callee-saved: x19 .. x28, x29 (frame pointer); d8 .. d15 hold no references
//!   x30 at the entry of call_with_registers = pc of the anchor; sp there = sp of the anchor
//! ```

#[cfg(feature = "libffi")]
use super::ArgumentRegisters;
use crate::anchor::Anchor;
use core::arch::{asm, naked_asm};
#[cfg(feature = "libffi")]
use core::ffi::c_void;
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

/// Returns sp, for a function that C calls and that is not inlined.
///
/// A call writes nothing to the stack here, so a function without a frame would have its caller's sp. This says that x30 is overwritten: the function then has a frame that keeps it.
#[inline(always)]
pub(crate) fn entry_stack_pointer() -> usize {
    let sp: usize;
    // SAFETY: reads a register into another; touches neither memory nor flags; what it says to overwrite it leaves as it is.
    unsafe { asm!("mov {}, sp", out(reg) sp, out("x30") _, options(nomem, nostack, preserves_flags)) };
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

/// x0 to x7.
#[cfg(feature = "libffi")]
pub(crate) const INTEGER_REGISTERS: usize = 8;

/// v0 to v7.
#[cfg(feature = "libffi")]
pub(crate) const FLOAT_REGISTERS: usize = 8;

/// Loads the argument registers for integers and pointers, and branches to `function`, which returns to the caller of this. For a callee that takes no floating-point argument.
///
/// It has no frame and changes no callee-saved register; see the x86_64 backend.
///
/// # Safety
///
/// As for the x86_64 backend's.
#[cfg(feature = "libffi")]
#[unsafe(naked)]
pub(crate) unsafe extern "C-unwind" fn call_loading_integers(
    registers: *const ArgumentRegisters,
    function: *const c_void,
) -> u64 {
    // At entry: x0 = registers, x1 = function, x30 = return address.
    naked_asm!(
        "mov x9, x0",  // x9 and x16 carry no argument
        "mov x16, x1", // x16: the branch target register a guarded page accepts
        "ldp x0, x1, [x9]",
        "ldp x2, x3, [x9, #16]",
        "ldp x4, x5, [x9, #32]",
        "ldp x6, x7, [x9, #48]",
        "br x16", // sp and x30 are as they were at entry
    )
}

/// [`call_loading_integers`], and the floating-point registers with them.
///
/// # Safety
///
/// As for [`call_loading_integers`].
#[cfg(feature = "libffi")]
#[unsafe(naked)]
pub(crate) unsafe extern "C-unwind" fn call_loading_registers(
    registers: *const ArgumentRegisters,
    function: *const c_void,
) -> u64 {
    // At entry: x0 = registers, x1 = function, x30 = return address.
    naked_asm!(
        "mov x9, x0",
        "mov x16, x1",
        "ldp d0, d1, [x9, #64]",
        "ldp d2, d3, [x9, #80]",
        "ldp d4, d5, [x9, #96]",
        "ldp d6, d7, [x9, #112]",
        "ldp x0, x1, [x9]",
        "ldp x2, x3, [x9, #16]",
        "ldp x4, x5, [x9, #32]",
        "ldp x6, x7, [x9, #48]",
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
