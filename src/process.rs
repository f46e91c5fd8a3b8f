//! Which process this is: the one a world was made in, or a copy that foreign code has forked.
//!
//! A fork copies one thread. Another may have held a lock of this crate's, of the VM's or of the
//! allocator's, have been half way through a crossing, or hold the pause in force: none of that ends in
//! the copy. [`Mutator::fork`](crate::Mutator::fork) prepares for it. A library that forks by itself
//! does not, and then the copy's worlds are *not of this process*: what asks them for anything but a
//! return from C is refused or ends the process, with a message, and never waits. A process of one
//! thread leaves nothing behind, and its copy goes on as it was.
//!
//! Nothing here is looked at on a crossing. The handlers that notice a fork are in `atfork.rs`.

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

/// How many forks that nobody prepared lie between the first process and this one. Written where the
/// process has one thread.
static UNPREPARED: AtomicU32 = AtomicU32::new(0);

/// What happened, and what to do.
pub(crate) const FORKED: &str = "foreign code forked this process while it had other threads, which are not here; end it with `_exit` or `exec`, or fork through `Mutator::fork`";

/// Names this process among those that unprepared forks have made.
pub(crate) fn number() -> u32 {
    UNPREPARED.load(Ordering::Relaxed)
}

/// Says that this process is a copy that nobody prepared.
#[cfg(all(unix, not(loom), not(miri)))]
pub(crate) fn is_unprepared_copy() {
    UNPREPARED.fetch_add(1, Ordering::Relaxed);
}

/// Writes a message to standard error, with no lock: another thread may have held that of `std` at the
/// fork.
pub(crate) fn say(message: fmt::Arguments<'_>) {
    let text = format!("reentry: {message}\n");
    #[cfg(unix)]
    // SAFETY: the bytes of `text`. What cannot be written is lost.
    unsafe {
        libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
    }
    #[cfg(not(unix))]
    {
        use std::io::Write as _;
        drop(std::io::stderr().write_all(text.as_bytes()));
    }
}

/// Ends a copy in which a world is asked for what it cannot give.
#[cold]
#[inline(never)]
pub(crate) fn abort_copy(what: fmt::Arguments<'_>) -> ! {
    say(format_args!("fatal: {what}: {FORKED}"));
    std::process::abort()
}
