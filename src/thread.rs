//! What a thread knows of its own mutators: the list an upcall looks in.
//!
//! `ONLY` and `NEWEST` are constant-initialised and have no destructor, so an upcall reads one with
//! one load, and touching them for the first time takes no lock.

use crate::pause::Shared;
use crate::record::{Header, MutatorRecord};
use crate::sync::{Cell, light_compiler_fence, thread_local_const};
use crate::vm::{FrameKind, StackScanner};
use core::any::TypeId;
use core::ptr;

thread_local_const! {
    /// The newest mutator of this thread; older ones hang off `next_on_thread`.
    static NEWEST: Cell<*const Header> = Cell::new(ptr::null());
}

thread_local_const! {
    /// The only mutator of this thread; null if it has none or several.
    static ONLY: Cell<*const Header> = Cell::new(ptr::null());
}

/// The typed record behind a header of `V`'s world.
pub(crate) type Record<V> = MutatorRecord<<V as crate::Vm>::Local>;

/// The newest mutator of this thread. Not inlined, as everything that a fiber's own frames may call: see [`thread_token`](crate::sync::thread_token).
#[inline(never)]
fn newest() -> *const Header {
    NEWEST.with(Cell::get)
}

/// Calls `f` with the first mutator of this thread, newest first, for which it returns something.
pub(crate) fn first_on_thread<T>(mut f: impl FnMut(&Header) -> Option<T>) -> Option<T> {
    let mut header = newest();
    while !header.is_null() {
        // SAFETY: records on the list are attached to this thread, and unlinked before they are given back.
        let record = unsafe { &*header };
        if let Some(found) = f(record) {
            return Some(found);
        }
        header = record.next_on_thread.get();
    }
    None
}

/// Calls `f` for each mutator of this thread, newest first. Async-signal-safe if `f` is.
///
/// # Errors
///
/// What `f` returns.
pub(crate) fn each_on_thread<E>(mut f: impl FnMut(&Header) -> Result<(), E>) -> Result<(), E> {
    first_on_thread(|header| f(header).err()).map_or(Ok(()), Err)
}

/// Puts a record on this thread's list.
#[inline(never)]
pub(crate) fn link(header: &Header) {
    header.next_on_thread.set(NEWEST.with(Cell::get));
    // A signal handler that reads the list finds it without the record or whole.
    light_compiler_fence();
    NEWEST.with(|newest| newest.set(header.whole()));
    find_only();
}

/// Takes a record off this thread's list.
#[inline(never)]
pub(crate) fn unlink(header: &Header) {
    let next = header.next_on_thread.get();
    let newer =
        first_on_thread(|newer| ptr::eq(newer.next_on_thread.get(), header).then_some(ptr::from_ref(newer)));
    match newer {
        // SAFETY: as in `first_on_thread`.
        Some(newer) => unsafe { (*newer).next_on_thread.set(next) },
        None => NEWEST.with(|newest| newest.set(next)),
    }
    light_compiler_fence();
    header.next_on_thread.set(ptr::null());
    find_only();
}

/// Recomputes `ONLY` after a change of the list.
fn find_only() {
    let newest = NEWEST.with(Cell::get);
    // SAFETY: as in `first_on_thread`.
    let alone = unsafe { newest.as_ref() }.is_some_and(|header| header.next_on_thread.get().is_null());
    ONLY.with(|only| only.set(if alone { newest } else { ptr::null() }));
}

/// Returns this thread's mutator if it has one only and that is of a world of type `V`; else null.
#[inline(always)]
pub(crate) fn only<V: StackScanner>() -> *const Record<V> {
    let header = ONLY.with(Cell::get);
    // SAFETY: as in `first_on_thread`.
    match unsafe { header.as_ref() } {
        Some(record) if record.vm_type == TypeId::of::<V>() => header.cast(),
        _ => ptr::null(),
    }
}

/// Returns this thread's mutator, of whatever world, if it has one only; else null.
#[cfg(feature = "libffi")]
#[inline(always)]
pub(crate) fn only_of_any_type() -> *const Header {
    ONLY.with(Cell::get)
}

/// Says whether a record is attached to this thread.
#[inline(always)]
pub(crate) fn is_mine(header: &Header) -> bool {
    ptr::eq(ONLY.with(Cell::get), header) || is_listed_slow(header)
}

#[cold]
#[inline(never)]
fn is_listed_slow(header: &Header) -> bool {
    first_on_thread(|listed| ptr::eq(listed, header).then_some(())).is_some()
}

/// Which mutator of this thread an upcall without data is for.
pub(crate) enum Innermost<V: StackScanner> {
    /// The thread has none of that type.
    None,
    /// The one whose foreign call is the innermost, or the only one.
    Of(*const Record<V>),
    /// Two calls were made in one stack frame: nothing tells which is inside the other.
    Ambiguous,
}

/// Finds this thread's mutator of a world of type `V` whose foreign call is the innermost of those that lie above `sp`, where an upcall comes in: foreign code has skipped
/// the others (I5), and they are found to be skipped when their mutator's next crossing comes.
pub(crate) fn innermost<V: StackScanner>(sp: usize) -> Innermost<V> {
    let mut best = (usize::MAX, Innermost::None);
    first_on_thread(|header| {
        if header.vm_type == TypeId::of::<V>() {
            let (call, managed) = match header.word.published() {
                Some(call) => (call.as_ptr().cast_const(), false),
                None => (header.word.record(), true),
            };
            // SAFETY: the word of an attached mutator holds a live record.
            let record = unsafe { &*call };
            // A managed activation is over if the upcall comes in above its entry.
            let skipped = managed
                && record.depth > 0
                && header.native_stack().contains(&sp)
                && sp >= record.entry_sp.get();
            let call = match (managed, skipped) {
                (true, false) => None,
                (true, true) => header.call_above::<V>(record.older, sp),
                (false, _) if header.native_stack().contains(&sp) => header.call_above::<V>(call, sp),
                (false, _) => Some(record),
            };
            let distance = match call {
                // A managed one is taken only if there is no other: it is an error to call in on it, and the caller says so.
                None => usize::MAX,
                Some(frame) => match frame.kind.get() {
                    // It waits for a fiber: what runs is the fiber's.
                    FrameKind::Resuming => return None,
                    // A foreign thread's mutator between upcalls, or a fiber's that has not been entered: it made no call.
                    FrameKind::ForeignThread => usize::MAX - 1,
                    // Native stacks grow downwards on every machine here, so the innermost crossing is the next above; one on another stack is far away.
                    _ => frame.native_sp::<V>().wrapping_sub(sp).min(usize::MAX - 2),
                },
            };
            let this = Innermost::Of(header.whole().cast());
            if distance < best.0 || matches!(best.1, Innermost::None) {
                best = (distance, this);
            } else if distance == best.0 && distance < usize::MAX - 1 {
                best.1 = Innermost::Ambiguous;
            }
        }
        None::<()>
    });
    best.1
}

/// Returns this thread's mutator if it has one only and that is of `world`, which may have ended; else null.
#[inline(always)]
pub(crate) fn only_in<V: StackScanner>(world: *const Shared<V>) -> *const Record<V> {
    let header = ONLY.with(Cell::get);
    // SAFETY: as in `first_on_thread`.
    match unsafe { header.as_ref() } {
        Some(record) if record.world == world.cast() => header.cast(),
        _ => ptr::null(),
    }
}

impl<V: StackScanner> Shared<V> {
    /// Returns this thread's mutator of this world; null if it has none.
    pub(crate) fn current(&self) -> *const Record<V> {
        let world = ptr::from_ref(self).cast();
        first_on_thread(|header| (header.world == world).then(|| header.whole()))
            .unwrap_or(ptr::null())
            .cast()
    }
}
