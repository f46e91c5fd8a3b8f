//! The one panic policy: what happens to a panic that reaches foreign code, and how misuse ends.
//!
//! Invariant I7: a panic in an upcall stops at the boundary, C gets a fallback value, and the panic resumes on the managed side when
//! the foreign call returns. Misuse that has no managed side to resume on aborts the process with a message naming the call site.

use core::any::Any;
use core::fmt;
use core::panic::AssertUnwindSafe;
use std::panic;

/// What a panic carries.
pub(crate) type Payload = Box<dyn Any + Send + 'static>;

/// Runs `body`, stopping a panic at this frame.
///
/// # Errors
///
/// What `body` panicked with.
#[inline(always)]
pub(crate) fn stop<R>(body: impl FnOnce() -> R) -> Result<R, Payload> {
    // The values `body` saw when it panicked are seen again only by whoever catches the resumed panic, as with any unwinding.
    panic::catch_unwind(AssertUnwindSafe(body))
}

/// Goes on with a panic that [`stop`] caught.
pub(crate) fn resume(payload: Payload) -> ! {
    panic::resume_unwind(payload)
}

/// Ends the process with a message: for misuse met in a frame that cannot unwind and has no managed side to carry an error to.
#[cold]
#[inline(never)]
pub(crate) fn abort(message: fmt::Arguments<'_>) -> ! {
    use std::io::Write as _;
    // A failed write to standard error changes nothing about what happens next.
    drop(writeln!(std::io::stderr(), "reentry: fatal: {message}"));
    std::process::abort()
}
