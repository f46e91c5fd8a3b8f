//! The machine: reading the registers that make an anchor, and spilling those a foreign callee could hide.
//!
//! Every backend exports the same eleven items, and this file is the one place that chooses among them:
//!
//! | item | contract |
//! |---|---|
//! | `SAVED_REGISTERS` | how many words `call_with_registers` writes |
//! | `stack_pointer()` | an address in, or below, the calling frame |
//! | `entry_stack_pointer()` | the same, for a function that C calls: below the stack pointer that its caller has |
//! | `store_anchor(to, site)` | writes pc, sp and fp of the calling frame |
//! | `call_with_registers(registers, anchor, f, data)` | writes the callee-saved registers and the caller's anchor, then calls `f(data)` |
//! | `INTEGER_REGISTERS`, `FLOAT_REGISTERS` | how many arguments of either sort travel in registers; 0: this backend cannot load them |
//! | `call_loading_integers(registers, function)` | loads the argument registers for integers and jumps to `function` |
//! | `call_loading_registers(registers, function)` | the same, and those for floating-point numbers |
//! | `FloatControl::read()` | the control registers of floating-point arithmetic: rounding, exceptions that trap, denormals |
//! | `FloatControl::restore(self)` | puts them back; what was computed meanwhile keeps its status flags |
//!
//! What asks the system or the unwinder, and not the machine, is in `stack.rs`.
//!
//! Both backends with assembly serve every Unix. macOS and FreeBSD have the same calling conventions;
//! the routines name no symbol, use no memory below the stack pointer, and leave x18 alone. (On Apple's
//! aarch64 what stands for `...` travels on the stack: `dynamic/signature.rs` knows.) On Windows the
//! convention is another one, so that the portable backend serves there.
//!
//! Assembly stands in this directory only.

/// The words that [`call_loading_registers`] loads: integers and pointers, extended to 64 bits, and floating-point numbers, single ones in the low half. Those that a backend has no
/// register for are not read.
#[cfg(feature = "libffi")]
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct ArgumentRegisters(pub(crate) core::mem::MaybeUninit<[u64; ARGUMENT_REGISTERS]>);

/// The words of [`ArgumentRegisters`].
#[cfg(feature = "libffi")]
pub(crate) const ARGUMENT_REGISTERS: usize = 16;

/// Where the floating-point numbers begin.
#[cfg(feature = "libffi")]
pub(crate) const FIRST_FLOAT: usize = 8;

#[cfg(all(target_arch = "x86_64", unix, not(loom), not(miri)))]
mod x86_64_sysv;
#[cfg(all(target_arch = "x86_64", unix, not(loom), not(miri)))]
pub(crate) use x86_64_sysv::*;

#[cfg(all(target_arch = "aarch64", unix, not(loom), not(miri)))]
mod aarch64_aapcs64;
#[cfg(all(target_arch = "aarch64", unix, not(loom), not(miri)))]
pub(crate) use aarch64_aapcs64::*;

#[cfg(not(all(any(target_arch = "x86_64", target_arch = "aarch64"), unix, not(loom), not(miri))))]
mod portable;
#[cfg(not(all(any(target_arch = "x86_64", target_arch = "aarch64"), unix, not(loom), not(miri))))]
pub(crate) use portable::*;

mod stack;
#[cfg(all(not(target_os = "linux"), not(loom), not(miri)))]
mod stack_elsewhere;
pub(crate) use stack::{
    SignalStack, TOLD, Walked, is_below_exit, is_readable, signal_stack, stack_bounds, walk_frames,
};
