//! The machine: reading the registers that make an anchor, and spilling those a foreign callee could hide.
//!
//! Every backend exports the same ten items, and this file is the one place that chooses among them:
//!
//! | item | contract |
//! |---|---|
//! | `SAVED_REGISTERS` | how many words `call_with_registers` writes |
//! | `stack_pointer()` | an address in, or below, the calling frame |
//! | `store_anchor(to, site)` | writes pc, sp and fp of the calling frame |
//! | `call_with_registers(registers, anchor, f, data)` | writes the callee-saved registers and the caller's anchor, then calls `f(data)` |
//! | `INTEGER_REGISTERS`, `FLOAT_REGISTERS` | how many arguments of either sort travel in registers; 0: this backend cannot load them |
//! | `call_loading_integers(registers, function)` | loads the argument registers for integers and jumps to `function` |
//! | `call_loading_registers(registers, function)` | the same, and those for floating-point numbers |
//! | `FloatControl::read()` | the control registers of floating-point arithmetic: rounding, exceptions that trap, denormals |
//! | `FloatControl::restore(self)` | puts them back; what was computed meanwhile keeps its status flags |
//!
//! `stack_bounds()`, which asks the system and not the machine, and `caller_sp()` and
//! `is_below_exit()`, which ask the unwinder, are here.
//!
//! Assembly stands in this directory only.

use core::ops::Range;

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

/// Returns the calling thread's stack, where the system tells it: from the lowest address that can be used to the base.
pub(crate) fn stack_bounds() -> Option<Range<usize>> {
    #[cfg(all(target_os = "linux", not(loom), not(miri)))]
    {
        use crate::sync::{Cell, thread_local_const};
        thread_local_const! { static BOUNDS: Cell<(usize, usize)> = Cell::new((0, 0)); }
        // Reading it parses /proc/self/maps on a main thread, so once for each thread.
        let (lowest, base) = BOUNDS.get();
        if base != 0 {
            return Some(lowest..base);
        }
        let bounds = linux_stack_bounds()?;
        BOUNDS.set((bounds.start, bounds.end));
        Some(bounds)
    }
    #[cfg(not(all(target_os = "linux", not(loom), not(miri))))]
    None
}

#[cfg(all(target_os = "linux", not(loom), not(miri)))]
fn linux_stack_bounds() -> Option<Range<usize>> {
    let mut attributes = core::mem::MaybeUninit::<libc::pthread_attr_t>::uninit();
    // SAFETY: `attributes` is valid for writes; the thread is the calling one.
    if unsafe { libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) } != 0 {
        return None;
    }
    let (mut lowest, mut size) = (core::ptr::null_mut(), 0);
    // SAFETY: initialised by the call above.
    let found =
        unsafe { libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut lowest, &raw mut size) } == 0;
    // SAFETY: as above, and not used afterwards.
    unsafe { libc::pthread_attr_destroy(attributes.as_mut_ptr()) };
    found.then(|| lowest.addr()..lowest.addr() + size)
}

/// Returns the stack pointer that the caller of the function whose own is `sp` had at the call, as the unwind tables tell it. Slow.
///
/// Two functions that were called from one frame have different stack pointers, since their frames differ in size; this one they share but for the arguments they take on
/// the stack.
pub(crate) fn caller_sp(sp: usize) -> Option<usize> {
    #[cfg(all(target_os = "linux", not(loom), not(miri)))]
    {
        use core::ffi::{c_int, c_void};
        struct Search {
            above: usize,
            found: Option<usize>,
        }
        // The language-independent half of the Itanium C++ ABI, which the standard library links for its own panics.
        unsafe extern "C" {
            fn _Unwind_Backtrace(
                step: extern "C" fn(*mut c_void, *mut c_void) -> c_int,
                data: *mut c_void,
            ) -> c_int;
            fn _Unwind_GetCFA(frame: *mut c_void) -> usize;
        }
        const GO_ON: c_int = 0;
        const STOP: c_int = 4;
        extern "C" fn step(frame: *mut c_void, data: *mut c_void) -> c_int {
            // SAFETY: `data` is the search below, and `frame` what the unwinder has just given.
            let (search, sp) = unsafe { (&mut *data.cast::<Search>(), _Unwind_GetCFA(frame)) };
            if sp <= search.above {
                return GO_ON;
            }
            search.found = Some(sp);
            STOP
        }
        let mut search = Search { above: sp, found: None };
        // SAFETY: `step` keeps the unwinder's contract, and `search` outlives the walk.
        unsafe { _Unwind_Backtrace(step, (&raw mut search).cast()) };
        search.found
    }
    #[cfg(not(all(target_os = "linux", not(loom), not(miri))))]
    {
        let _ = sp;
        None
    }
}

/// Says whether the calling thread is inside `exit` (or `quick_exit`): the process is ending, and
/// handlers and destructors run on top of whatever called it. Slow.
///
/// The evidence is the stack, so `false` says only that nothing was found: foreign code in between
/// may have no unwind tables.
pub(crate) fn is_below_exit() -> bool {
    #[cfg(all(target_os = "linux", not(loom), not(miri)))]
    {
        use core::ffi::{c_int, c_void};
        // As in `caller_sp`.
        unsafe extern "C" {
            fn _Unwind_Backtrace(
                step: extern "C" fn(*mut c_void, *mut c_void) -> c_int,
                data: *mut c_void,
            ) -> c_int;
            fn _Unwind_GetIP(frame: *mut c_void) -> usize;
            fn _Unwind_FindEnclosingFunction(pc: *mut c_void) -> *mut c_void;
            fn quick_exit(status: c_int) -> !;
        }
        const GO_ON: c_int = 0;
        const STOP: c_int = 4;
        extern "C" fn step(frame: *mut c_void, data: *mut c_void) -> c_int {
            let ends = [libc::exit as *const () as usize, quick_exit as *const () as usize];
            // SAFETY: `data` is the flag below, and `frame` what the unwinder has just given. The
            // return address is looked up and not followed.
            unsafe {
                let pc = core::ptr::without_provenance_mut(_Unwind_GetIP(frame));
                if !ends.contains(&_Unwind_FindEnclosingFunction(pc).addr()) {
                    return GO_ON;
                }
                data.cast::<bool>().write(true);
            }
            STOP
        }
        let mut found = false;
        // SAFETY: `step` keeps the unwinder's contract, and `found` outlives the walk.
        unsafe { _Unwind_Backtrace(step, (&raw mut found).cast()) };
        found
    }
    #[cfg(not(all(target_os = "linux", not(loom), not(miri))))]
    false
}
