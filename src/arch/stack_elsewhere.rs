//! The bounds of the calling thread's stack, on systems other than Linux. None of these has been run:
//! each is compiled by `.ci/targets`, and stands by what the system's manual says.
//!
//! | system | what is asked | what it says of a main thread |
//! |---|---|---|
//! | macOS and its like | `pthread_get_stackaddr_np`, `pthread_get_stacksize_np` | the limit that was in force when the program began |
//! | FreeBSD | `pthread_attr_get_np` | the same |
//! | Windows | `GetCurrentThreadStackLimits` | what the program's header reserves, guard pages included |
//! | others | nothing | |

use core::ops::Range;

/// Returns the calling thread's stack, from the lowest address to the base; `None` where the system
/// does not tell.
#[cfg(target_vendor = "apple")]
pub(super) fn stack_bounds() -> Option<Range<usize>> {
    // SAFETY: both read what the C library has noted of the calling thread.
    let (base, size) = unsafe {
        let this = libc::pthread_self();
        (libc::pthread_get_stackaddr_np(this).addr(), libc::pthread_get_stacksize_np(this))
    };
    bounds(base.checked_sub(size)?, base)
}

/// Returns the calling thread's stack, from the lowest address to the base; `None` where the system
/// does not tell.
#[cfg(target_os = "freebsd")]
pub(super) fn stack_bounds() -> Option<Range<usize>> {
    let mut attributes = core::mem::MaybeUninit::<libc::pthread_attr_t>::uninit();
    let (mut lowest, mut size) = (core::ptr::null_mut(), 0);
    // SAFETY: `attributes` is valid for writes, and initialised by the first call if that succeeds.
    if unsafe { libc::pthread_attr_init(attributes.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: initialised by the call above; `lowest` and `size` are valid for writes.
    let found = unsafe {
        libc::pthread_attr_get_np(libc::pthread_self(), attributes.as_mut_ptr()) == 0
            && libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut lowest, &raw mut size) == 0
    };
    // SAFETY: initialised above, and not used afterwards.
    unsafe { libc::pthread_attr_destroy(attributes.as_mut_ptr()) };
    if !found {
        return None;
    }
    bounds(lowest.addr(), lowest.addr().checked_add(size)?)
}

/// Returns the calling thread's stack, from the lowest address to the base; `None` where the system
/// does not tell.
#[cfg(windows)]
pub(super) fn stack_bounds() -> Option<Range<usize>> {
    #[link(name = "kernel32")]
    unsafe extern "system" {
        fn GetCurrentThreadStackLimits(low: *mut usize, high: *mut usize);
    }
    let (mut low, mut high) = (0, 0);
    // SAFETY: both are valid for writes.
    unsafe { GetCurrentThreadStackLimits(&raw mut low, &raw mut high) };
    bounds(low, high)
}

/// Nothing is told here.
#[cfg(not(any(target_vendor = "apple", target_os = "freebsd", windows)))]
pub(super) fn stack_bounds() -> Option<Range<usize>> {
    None
}

/// A range, if it can be a stack's.
#[cfg(any(target_vendor = "apple", target_os = "freebsd", windows))]
fn bounds(lowest: usize, base: usize) -> Option<Range<usize>> {
    (lowest != 0 && lowest < base).then_some(lowest..base)
}
