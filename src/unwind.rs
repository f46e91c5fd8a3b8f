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

/// A VM exception on its way past managed frames that did not ask for it: the payload of the panic that [`ForeignCall::run`](crate::ForeignCall::run) resumes.
///
/// Whoever catches the panic can downcast its payload to `Thrown<V::Exception>`; [`ForeignCall::try_run`](crate::ForeignCall::try_run) does, and gives the exception as an
/// error. No panic message is printed for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Thrown<E>(pub E);

/// Goes on with a panic that [`stop`] caught.
///
/// # Panics
///
/// Always, with `payload`.
pub(crate) fn resume(payload: Payload) -> ! {
    panic::resume_unwind(payload)
}

/// What a panic says.
pub(crate) fn text(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&'static str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a payload that is not text")
}

/// Runs code that must not unwind: it runs where the state is between two, or where foreign frames are
/// next (R3). A panic of it ends the process with a message that names it as `what`.
#[inline(always)]
pub(crate) fn contained<R>(what: &str, code: impl FnOnce() -> R) -> R {
    // Caught, not cleaned up after: with no handler above, a panic would end the process before any clean-up could say why.
    match stop(code) {
        Ok(result) => result,
        Err(payload) => abort_panicked(what, payload),
    }
}

/// Drops the payload of an error that ends here. Its drop is code of whoever panicked.
pub(crate) fn discard(payload: Payload) {
    contained("the drop of an error of an upcall", || drop(payload));
}

#[cold]
#[inline(never)]
fn abort_panicked(what: &str, payload: Payload) -> ! {
    // Never dropped: the drop of a payload may panic in its turn, and get out.
    let payload = core::mem::ManuallyDrop::new(payload);
    abort(format_args!("{what} panicked: {}; it must not, since nothing may unwind there", text(&**payload)))
}

/// Writes a line to standard error, if that can be written to: what nobody reads is no reason to fail.
pub(crate) fn say(line: impl fmt::Display) {
    use std::io::Write as _;
    drop(writeln!(std::io::stderr(), "reentry: {line}"));
}

/// Runs what gives C its fallback value. There is nothing to fall back on behind it: its panic ends the process, with a message.
#[cold]
pub(crate) fn last_resort<R>(fallback: impl FnOnce() -> R) -> R {
    match stop(fallback) {
        Ok(value) => value,
        // Not dropped: the arm does not end.
        Err(_payload) => abort(format_args!(
            "the fallback of an upcall panicked; it must not, since C needs a value in place of the one that failed"
        )),
    }
}

/// Ends the process with a message: for misuse met in a frame that cannot unwind and has no managed side to carry an error to.
#[cold]
#[inline(never)]
pub(crate) fn abort(message: fmt::Arguments<'_>) -> ! {
    // The message may hold an error's own text, and the code that writes that may panic.
    let _end = scopeguard::guard((), |()| std::process::abort());
    say(format_args!("fatal: {message}"));
    std::process::abort()
}

/// Runs a hook that must not unwind: it stands between two states, and there is no caller to tell.
#[inline(always)]
pub(crate) fn hook(call: impl FnOnce()) {
    contained("a transition hook", call);
}
