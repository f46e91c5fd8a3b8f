//! Whether the handler of a signal may call in.

use crate::activation::Upcalls;
use crate::exit::is_over;
use crate::record::Header;
use crate::thread::each_on_thread;
use crate::vm::FrameKind;

/// Says whether foreign code on this thread can call an upcall function now, and be served at once:
/// for the handler of a signal, which may interrupt anything. Async-signal-safe.
///
/// It is `true` if the thread has a mutator, each mutator of it is in a foreign call or between two
/// upcalls, no pause is wanted, and an upcall would allocate nothing, since its depth has been reached
/// before. A thread reaches the first depth when it attaches.
///
/// It is `false` where an upcall would end the process (managed code was interrupted), would be
/// refused (in a pause of this thread, in a call [without
/// upcalls](crate::ForeignCall::without_upcalls)), would wait, or would allocate, which could hang in
/// the allocator that the handler has interrupted. What the upcall's own body may do in a handler is
/// the VM's affair: see [`guide::threads`](crate::guide::threads).
///
/// # Examples
///
/// ```
/// use core::ffi::c_int;
/// use reentry::testkit::TestVm;
/// use reentry::{Mutator, World, can_call_in, upcall_fn};
///
/// extern "C" fn handler() -> c_int {
///     let count: extern "C" fn() -> c_int = upcall_fn(|_: &mut Mutator<TestVm>| 1);
///     if can_call_in() { count() } else { 0 }
/// }
///
/// let world = World::new(TestVm::new());
/// let mut mutator = world.attach()?;
/// // Managed code is interrupted; then a foreign call is.
/// assert_eq!(handler(), 0);
/// assert_eq!(mutator.foreign_call().run(|| handler()), 1);
/// # Ok::<(), reentry::AttachError>(())
/// ```
#[must_use]
pub fn can_call_in() -> bool {
    let mut attached = false;
    let can = each_on_thread(|header| {
        attached = true;
        if takes_upcall(header) { Ok(()) } else { Err(()) }
    });
    attached && can.is_ok() && !is_over()
}

/// Says whether a mutator of this thread takes an upcall now, with nothing to wait for or to allocate.
fn takes_upcall(header: &Header) -> bool {
    let Some(saved) = header.word.published() else { return false };
    // SAFETY: the word of an attached mutator holds a live record.
    let saved = unsafe { saved.as_ref() };
    matches!(saved.kind.get(), FrameKind::ForeignCall | FrameKind::ForeignThread)
        && !saved.link().is_null()
        && saved.terms().upcalls == Upcalls::Allowed
        && !saved.carries_error()
        && !header.word.is_stopping()
}
