//! The machine: reading the registers that make an anchor, and spilling those a foreign callee could hide.
//!
//! Every backend exports the same four items, and this file is the one place that chooses among them:
//!
//! | item | contract |
//! |---|---|
//! | `SAVED_REGISTERS` | how many words `call_with_registers` writes |
//! | `stack_pointer()` | an address in, or below, the calling frame |
//! | `store_anchor(to, site)` | writes pc, sp and fp of the calling frame |
//! | `call_with_registers(registers, anchor, f, data)` | writes the callee-saved registers and the caller's anchor, then calls `f(data)` |
//!
//! `stack_bounds()`, which asks the system and not the machine, is here.
//!
//! Assembly stands in this directory only.

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

/// Returns the highest address of the calling thread's stack, where the system tells it.
pub(crate) fn stack_base() -> Option<usize> {
    stack_bounds().map(|(_, base)| base)
}

/// Returns the lowest and the highest address of the calling thread's stack, where the system tells them.
pub(crate) fn stack_bounds() -> Option<(usize, usize)> {
    #[cfg(all(target_os = "linux", not(loom), not(miri)))]
    {
        use crate::sync::{Cell, thread_local_const};
        thread_local_const! { static BOUNDS: Cell<Option<(usize, usize)>> = Cell::new(None); }
        // Reading it parses /proc/self/maps on a main thread, so once for each thread.
        let bounds = BOUNDS.get().or_else(linux_stack_bounds);
        BOUNDS.set(bounds);
        bounds
    }
    #[cfg(not(all(target_os = "linux", not(loom), not(miri))))]
    None
}

#[cfg(all(target_os = "linux", not(loom), not(miri)))]
fn linux_stack_bounds() -> Option<(usize, usize)> {
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
    found.then(|| (lowest.addr(), lowest.addr() + size))
}
