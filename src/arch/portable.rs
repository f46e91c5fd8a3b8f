//! Every other machine, loom and Miri: no assembly.
//!
//! The stack pointer is the address of a local. The program counter is the address of the call site's [`Location`], which tells call
//! sites apart as well as a return address does. The control registers of floating-point arithmetic are out of reach, and stay as foreign code leaves them. There is no frame pointer, and callee-saved registers cannot be read: a *conservative* collector
//! that relies on them is not served by this backend; precise and virtual anchors are.

#[cfg(feature = "libffi")]
use super::ArgumentRegisters;
use crate::anchor::Anchor;
#[cfg(feature = "libffi")]
use core::ffi::c_void;
use core::panic::Location;

/// None.
pub(crate) const SAVED_REGISTERS: usize = 0;

/// Returns an address in the calling frame, or just below it.
#[inline(always)]
pub(crate) fn stack_pointer() -> usize {
    let here = 0_u8;
    core::ptr::from_ref(core::hint::black_box(&here)).addr()
}

/// Returns an address in the calling frame, or just below it.
#[inline(always)]
pub(crate) fn entry_stack_pointer() -> usize {
    stack_pointer()
}

/// Writes the call site as pc and an address in the calling frame as sp; fp is 0.
///
/// # Safety
///
/// `to` is valid for a write of an [`Anchor`].
#[inline(always)]
pub(crate) unsafe fn store_anchor(to: *mut Anchor, site: &'static Location<'static>) {
    let anchor = Anchor { pc: core::ptr::from_ref(site).addr(), sp: stack_pointer(), fp: 0 };
    // SAFETY: valid for writes by contract.
    unsafe { to.write(anchor) };
}

/// Writes an anchor, then calls `f(data)`; writes no registers.
///
/// # Safety
///
/// `anchor` is valid for a write of an [`Anchor`]; `f` may be called with `data` here.
#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn call_with_registers(
    _registers: *mut usize,
    anchor: *mut Anchor,
    f: unsafe extern "C-unwind" fn(*mut ()),
    data: *mut (),
) {
    // SAFETY: `anchor` is valid for writes by contract.
    unsafe { store_anchor(anchor, Location::caller()) };
    #[expect(ffi_unwind_calls, reason = "the closure may panic, through this Rust frame")]
    // SAFETY: `f` may be called with `data` by contract.
    unsafe {
        f(data)
    }
}

/// None: every call with a run-time signature goes through libffi.
#[cfg(feature = "libffi")]
pub(crate) const INTEGER_REGISTERS: usize = 0;

/// None.
#[cfg(feature = "libffi")]
pub(crate) const FLOAT_REGISTERS: usize = 0;

/// Not called: no signature is classified as one for this machine's registers.
///
/// # Safety
///
/// None is needed.
///
/// # Panics
///
/// Always.
#[cfg(feature = "libffi")]
pub(crate) unsafe extern "C-unwind" fn call_loading_integers(
    _: *const ArgumentRegisters,
    _: *const c_void,
) -> u64 {
    unreachable!("the portable backend loads no registers")
}

#[cfg(feature = "libffi")]
pub(crate) use call_loading_integers as call_loading_registers;

/// Nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FloatControl;

impl FloatControl {
    /// Reads nothing.
    pub(crate) fn read() -> Self {
        Self
    }

    /// Does nothing.
    pub(crate) fn restore(self) {}
}
