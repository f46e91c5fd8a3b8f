//! The crossing of an upcall, in and out.
//!
//! # Foreign code that jumps
//!
//! `longjmp`, or an exception between foreign frames, can leave an upcall without returning from it. The next crossing finds out by the stack pointer: native stacks grow downwards, so an upcall
//! comes in below the crossing of the foreign call it belongs to. One that does not shows that the newer crossings are gone: they are released in order (I5), and the
//! upcall belongs to the call above.
//!
//! ```text
//!   foreign call 0   sp 0x9000  <-- the upcall belongs to this call: it is the newest that lies above
//!     C, setjmp
//!                       ...     <-- an upcall comes in here, from the C function that called setjmp
//!     upcall         sp 0x8e00      skipped
//!       foreign call 1  0x8c00      skipped
//!         C, longjmp
//! ```
//!
//! An upcall that comes in below the skipped crossing, since C has gone deeper meanwhile or its own frame and stack arguments are larger than the skipped frames, shows
//! nothing. It counts as one of the skipped call until C comes back (`guide::jumps`). The other error, to release a call that is not over, cannot happen: C that was called
//! from below a crossing has its stack pointer below.

use super::{run, run_outlined};
use crate::activation::{ForeignFrame, Upcalls};
use crate::arch;
use crate::chain;
use crate::checked::CHECKED;
use crate::control::{MachineState, Saved};
use crate::faults::Faults;
use crate::home::home;
use crate::mutator::{Mutator, MutatorParts};
use crate::pause::Shared;
use crate::record::{Header, Ownership};
use crate::registry::{AttachError, Unreleased};
use crate::state::{Event, State};
use crate::steps::{Step, reached};
use crate::thread::{Innermost, Record, innermost, is_mine, keep_world};
use crate::transition::{come_in, describe, go_back_out, hook, overtaken, repair_slow, wait_to_come_in};
use crate::unwind::{self, Payload, Thrown};
use crate::vm::{Capture, Crossing, ErrorPolicy, FrameKind, Report, Site, StackScanner, UpcallRefused};
use core::any::type_name;
use core::mem::{ManuallyDrop, MaybeUninit, needs_drop};
use core::panic::Location;
use std::sync::Arc;

/// What an upcall does about errors: a type without a value, so that nothing of it is carried through the crossing.
pub(super) trait Conduct: Copy {
    /// The function's own policy, which wins over the foreign call's.
    const POLICY: Option<ErrorPolicy>;
    /// What an exception of foreign code does that reaches the upcall from below.
    const EXCEPTIONS: Exceptions;
}

/// What an exception of foreign code does that reaches an upcall from below.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Exceptions {
    /// It ends the process: Rust cannot catch it.
    Stop,
    /// It passes on to the foreign caller.
    Pass,
}

#[inline(always)]
fn policy_of<C: Conduct>(_: C) -> Option<ErrorPolicy> {
    C::POLICY
}

#[inline(always)]
fn exceptions_of<C: Conduct>(_: C) -> Exceptions {
    C::EXCEPTIONS
}

/// Runs `body` as an upcall on `record`'s mutator, and returns its result, or `fallback()` if it failed.
///
/// The body is handed on by its address. Handed on by value it would be copied to where panics are stopped, in wider pieces than its parts had just been written in, and a
/// reading that spans several writes waits for all of them to reach the cache: 8 ns of 12, measured.
///
/// The common way through makes one call, the body, and keeps two values across it; everything else leaves by a tail call, so that the common way
/// saves few registers.
#[inline(always)]
pub(super) fn cross_in<V: StackScanner, R>(
    record: &Record<V>,
    conduct: impl Conduct,
    body: &mut Once<impl FnOnce(&mut Mutator<V>) -> R>,
    fallback: impl FnOnce() -> R,
) -> R {
    let header = &record.header;
    let sp = arch::stack_pointer();
    let Some(saved) = header.word.published() else {
        return cross_in_managed(record, sp, conduct, body, fallback);
    };
    // SAFETY: the word of an attached mutator holds a live record.
    let saved = unsafe { saved.as_ref() };
    if sp < header.stack_limit.get() || sp >= saved.native_sp::<V>() {
        return cross_in_out_of_order(record, saved, sp, conduct, body, fallback);
    }
    cross_in_from(record, saved, sp, conduct, body, fallback)
}

/// The conduct of a fiber's first activation.
#[derive(Clone, Copy)]
struct OnFiber;

impl Conduct for OnFiber {
    const POLICY: Option<ErrorPolicy> = None;
    const EXCEPTIONS: Exceptions = Exceptions::Stop;
}

/// Runs `body` as an upcall on a fiber's mutator, on a stack of its own; not at all if the world has ended. Not inlined, as it reads thread-locals: see
/// [`thread_token`](crate::sync::thread_token).
#[inline(never)]
pub(crate) fn run_on<V: StackScanner>(record: &Record<V>, body: impl FnOnce(&mut Mutator<V>)) {
    cross_in(record, OnFiber, &mut Once::new(body), || ());
}

/// [`cross_in`] from the foreign call whose record is `saved`.
#[inline(always)]
fn cross_in_from<V: StackScanner, R>(
    record: &Record<V>,
    saved: &ForeignFrame,
    sp: usize,
    conduct: impl Conduct,
    body: &mut Once<impl FnOnce(&mut Mutator<V>) -> R>,
    fallback: impl FnOnce() -> R,
) -> R {
    // SAFETY: null, or a live record of this mutator.
    let Some(frame) = (unsafe { saved.newer().as_ref() }) else {
        return cross_in_on_terms(record, saved, sp, conduct, body, fallback);
    };
    cross_in_at(record, saved, frame, sp, conduct, body, fallback)
}

/// [`cross_in_from`], to the activation whose record is `frame`.
#[inline(always)]
fn cross_in_at<V: StackScanner, R>(
    record: &Record<V>,
    saved: &ForeignFrame,
    frame: &ForeignFrame,
    sp: usize,
    conduct: impl Conduct,
    body: &mut Once<impl FnOnce(&mut Mutator<V>) -> R>,
    fallback: impl FnOnce() -> R,
) -> R {
    reached(record.header.world, Step::UpcallArrived);
    entering::<V>(record);
    if !come_in::<V>(&record.header, frame) {
        return cross_in_waiting(record, saved, frame, sp, conduct, body, fallback);
    }
    managed_part(record, frame, sp, conduct, body, fallback)
}

/// [`cross_in`] where there is no link to the next record: this depth has not been reached before, or the foreign call has terms of its own.
#[cold]
#[inline(never)]
fn cross_in_on_terms<V: StackScanner, R>(
    record: &Record<V>,
    saved: &ForeignFrame,
    sp: usize,
    conduct: impl Conduct,
    body: &mut Once<impl FnOnce(&mut Mutator<V>) -> R>,
    fallback: impl FnOnce() -> R,
) -> R {
    let terms = saved.terms();
    if matches!(saved.kind.get(), FrameKind::Suspended | FrameKind::Resuming) {
        abort_switched::<V>(record, saved);
    }
    if terms.upcalls == Upcalls::Forbidden {
        let refused = UpcallRefused::Forbidden { call_site: saved.site.get() };
        refuse::<V>(record, saved, policy_of(conduct), refused);
        return fallback();
    }
    if terms.ends_with_upcall {
        let mut body = Once::new(|mutator: &mut Mutator<V>| {
            // Managed at last: until here a stopper may have been reading what ends now.
            saved.end_until_first_upcall();
            // SAFETY: of the ways through an upcall this is the one that is taken, and it leads here once.
            unsafe { run(body, mutator) }
        });
        return cross_in_preserving(record, saved, terms.preserve, sp, conduct, &mut body, fallback);
    }
    cross_in_preserving(record, saved, terms.preserve, sp, conduct, body, fallback)
}

/// [`cross_in_from`], with the managed side's machine state in the upcall and C's own after it.
fn cross_in_preserving<V: StackScanner, R>(
    record: &Record<V>,
    saved: &ForeignFrame,
    preserve: MachineState,
    sp: usize,
    conduct: impl Conduct,
    body: &mut Once<impl FnOnce(&mut Mutator<V>) -> R>,
    fallback: impl FnOnce() -> R,
) -> R {
    // SAFETY: a live record of this mutator.
    let frame = unsafe { &*saved.newer_slow() };
    if preserve == MachineState::NOTHING {
        return cross_in_at(record, saved, frame, sp, conduct, body, fallback);
    }
    // C gets its own state back, also when an exception of its own passes through the upcall.
    let _foreign = scopeguard::guard(Saved::read(preserve), |foreign| foreign.restore());
    saved.machine().restore();
    cross_in_at(record, saved, frame, sp, conduct, body, fallback)
}

/// [`cross_in`] while a pause is wanted: waits before the body runs.
#[cold]
#[inline(never)]
fn cross_in_waiting<V: StackScanner, R>(
    record: &Record<V>,
    saved: &ForeignFrame,
    frame: &ForeignFrame,
    sp: usize,
    conduct: impl Conduct,
    body: &mut Once<impl FnOnce(&mut Mutator<V>) -> R>,
    fallback: impl FnOnce() -> R,
) -> R {
    match wait_to_come_in::<V>(&record.header, saved, frame) {
        Ok(()) => {}
        Err(Unreleased::PauseHeldHere) => {
            let refused = UpcallRefused::PauseHeldHere { call_site: saved.site.get() };
            // What the way in took, a global lock, is given back: the way back of the foreign call takes it again.
            hook(|| vm_of::<V>(record).leaving_managed(Crossing::Upcall));
            refuse::<V>(record, saved, policy_of(conduct), refused);
            return fallback();
        }
        Err(Unreleased::Ended) => {
            let vm = vm_of::<V>(record);
            hook(|| {
                vm.leaving_managed(Crossing::Upcall);
                vm.report(&Report::UpcallAfterShutdown);
            });
            return fallback();
        }
    }
    managed_part(record, frame, sp, conduct, body, fallback)
}

/// [`cross_in`] with a stack pointer that is not where it should be: below the limit, above the crossing, or on another stack.
#[cold]
#[inline(never)]
fn cross_in_out_of_order<V: StackScanner, R>(
    record: &Record<V>,
    saved: &ForeignFrame,
    sp: usize,
    conduct: impl Conduct,
    body: &mut Once<impl FnOnce(&mut Mutator<V>) -> R>,
    fallback: impl FnOnce() -> R,
) -> R {
    let header = &record.header;
    let stack = header.native_stack();
    let limit = header.stack_limit.get();
    let crossing = saved.native_sp::<V>();
    // On a stack that is not the thread's own there is nothing to compare with.
    if stack.contains(&sp) {
        if sp < limit && !V::FAULTS.has(Faults::NO_STACK_CHECK) {
            let (left, reserve) = (sp - stack.start, limit - stack.start);
            let refused = UpcallRefused::StackExhausted { left, reserve, call_site: saved.site.get() };
            refuse::<V>(record, saved, policy_of(conduct), refused);
            return fallback();
        }
        if sp >= crossing && stack.contains(&crossing) && !V::FAULTS.has(Faults::NO_SKIP_CHECK) {
            let edge = arch::caller_sp(sp).unwrap_or(sp);
            let Some(call) = header.call_above::<V>(saved.older, edge) else { abort_managed::<V>(record) };
            repair_slow(vm_of::<V>(record), header, call);
            return cross_in_from(record, call, sp, conduct, body, fallback);
        }
    }
    cross_in_from(record, saved, sp, conduct, body, fallback)
}

/// [`cross_in`] while the mutator is managed: foreign code has skipped the running activation, or an upcall function was called where it must not be.
#[cold]
#[inline(never)]
fn cross_in_managed<V: StackScanner, R>(
    record: &Record<V>,
    sp: usize,
    conduct: impl Conduct,
    body: &mut Once<impl FnOnce(&mut Mutator<V>) -> R>,
    fallback: impl FnOnce() -> R,
) -> R {
    let header = &record.header;
    // SAFETY: the word of an attached mutator holds a live record.
    let running = unsafe { &*header.word.record() };
    let (stack, entry) = (header.native_stack(), running.entry_sp.get());
    if running.depth > 0
        && stack.contains(&sp)
        && stack.contains(&entry)
        && !V::FAULTS.has(Faults::NO_SKIP_CHECK)
    {
        // What the running activation calls lies below where it was entered; what called it lies above.
        let edge = arch::caller_sp(sp).unwrap_or(sp);
        if edge > entry
            && let Some(call) = header.call_above::<V>(running.older, edge)
        {
            repair_slow(vm_of::<V>(record), header, call);
            return cross_in_from(record, call, sp, conduct, body, fallback);
        }
    }
    abort_managed::<V>(record)
}

/// Runs the hook, which must not detach the thread it runs for. (With no hook the compiler sees that nothing has changed.)
#[inline(always)]
fn entering<V: StackScanner>(record: &Record<V>) {
    let vm = vm_of::<V>(record);
    hook(|| vm.entering_managed(Crossing::Upcall));
    if !is_mine(&record.header) {
        unwind::abort(format_args!(
            "a transition hook detached the thread it runs for; the hooks of `Vm` must not"
        ));
    }
}

#[inline(always)]
fn vm_of<V: StackScanner>(record: &Record<V>) -> &V {
    // SAFETY: `world` points to the `Shared<V>` whose record this is, which outlives it.
    unsafe { &(*record.header.world.cast::<Shared<V>>()).vm }
}

/// The upcall from the moment it is managed to the moment it is foreign again.
#[inline(always)]
fn managed_part<V: StackScanner, R>(
    record: &Record<V>,
    frame: &ForeignFrame,
    sp: usize,
    conduct: impl Conduct,
    body: &mut Once<impl FnOnce(&mut Mutator<V>) -> R>,
    fallback: impl FnOnce() -> R,
) -> R {
    // No panic unwinds from here on: the body is stopped, and a fallback that panics aborts (`extern "C"`).
    let header = &record.header;
    frame.entry_sp.set(sp);
    frame.roots_base.set(header.roots.mark());
    reached(header.world, Step::UpcallRunning);
    if CHECKED {
        chain::check::<V>(header);
    }
    let body = || {
        // SAFETY: attached and managed until `go_back_out`, and the handle ends with the body.
        let mut parts = unsafe { MutatorParts::new(record, frame) };
        let mutator = parts.lend_mut();
        match V::CAPTURE {
            // Native frames of the body must lie below `entry_sp`, so it must not be inlined into this frame.
            // SAFETY: of the ways through an upcall only this one runs the body, here or in the arm below, and none leads here twice.
            Capture::Anchor | Capture::Registers => unsafe { run_outlined(body, mutator) },
            // SAFETY: as above.
            Capture::Nothing => unsafe { run(body, mutator) },
        }
    };
    let outcome = match exceptions_of(conduct) {
        Exceptions::Stop => unwind::stop(body),
        Exceptions::Pass => Ok(letting_exceptions_pass::<V, R>(record, frame, body)),
    };
    // SAFETY: the record of an upcall always has an older one, which lives as long.
    let saved = unsafe { &*frame.older };
    release(header, frame);
    if V::FAULTS.has(Faults::ROOTS_DROPPED_BY_UPCALL) {
        header.roots.release_to(saved.roots_base.get());
    }
    let result = match outcome {
        Ok(result) => result,
        Err(payload) => {
            carry(vm_of::<V>(record), saved, policy_of(conduct), payload);
            fallback()
        }
    };
    if frame.after.get() != 0 {
        // A tail call, so that the common way keeps no more registers for it.
        return go_back_out_of_leaked::<V, R>(record, frame, result);
    }
    go_back_out(vm_of::<V>(record), header, saved);
    result
}

/// Ends what an upcall has rooted.
#[inline(always)]
fn release(header: &Header, frame: &ForeignFrame) {
    let base = frame.roots_base.get();
    // Something is above only if a call was leaked. Comparing keeps the next call from waiting for this store.
    if header.roots.mark() != base {
        header.roots.release_to(base);
    }
}

/// The end of an upcall in which a call was leaked that has call memory.
#[cold]
#[inline(never)]
fn go_back_out_of_leaked<V: StackScanner, R>(record: &Record<V>, frame: &ForeignFrame, result: R) -> R {
    let vm = vm_of::<V>(record);
    release_memory(vm, frame);
    // SAFETY: the record of an upcall always has an older one, which lives as long.
    go_back_out(vm, &record.header, unsafe { &*frame.older });
    result
}

/// Ends what a leaked call of an upcall has in call memory: the record serves the next upcall of this depth, which must not find it again (I3).
fn release_memory<V: StackScanner>(vm: &V, frame: &ForeignFrame) {
    hook(|| {
        overtaken(vm, frame);
        frame.finish_slow();
    });
}

/// Runs the body of an upcall through which exceptions of foreign code pass: one that does leaves the upcall as its return would.
///
/// # Panics
///
/// With no panic: one ends the process, since foreign frames are next.
fn letting_exceptions_pass<V: StackScanner, R>(
    record: &Record<V>,
    frame: &ForeignFrame,
    body: impl FnOnce() -> R,
) -> R {
    let unwinding = std::thread::panicking();
    let passing = scopeguard::guard((), |()| {
        // SAFETY: the record of an upcall always has an older one, which lives as long.
        let saved = unsafe { &*frame.older };
        if unwinding {
            unwind::abort(format_args!(
                "a panic or an exception left an unwinding upcall of the foreign call at {} on a thread that was unwinding already, where the two cannot be told apart; \
                 let destructors call foreign code that does not throw",
                Site(saved.site.get())
            ));
        }
        if std::thread::panicking() {
            unwind::abort(format_args!(
                "a panic reached foreign code through an unwinding upcall of the foreign call at {}; return an error (`Throwing`), or catch the panic",
                Site(saved.site.get())
            ));
        }
        release(&record.header, frame);
        if frame.after.get() != 0 {
            release_memory(vm_of::<V>(record), frame);
        }
        go_back_out(vm_of::<V>(record), &record.header, saved);
        let report = Report::ActivationsSkipped { skipped: 1, call_site: saved.site.get() };
        hook(|| vm_of::<V>(record).report(&report));
    });
    let result = body();
    scopeguard::ScopeGuard::into_inner(passing);
    result
}

/// The body of an upcall, at one place until it is run, or dropped if it is not.
///
/// Aligned so that it is never the lowest word of a frame by itself: such a frame is given up by popping that word, and a body of a few bytes, just written, would be read as eight (3 ns).
#[repr(align(16))]
pub(super) struct Once<F> {
    body: ManuallyDrop<F>,
    /// Written only where it makes a difference.
    taken: MaybeUninit<bool>,
}

impl<F> Once<F> {
    #[inline(always)]
    pub(super) fn new(body: F) -> Self {
        let taken = if needs_drop::<F>() { MaybeUninit::new(false) } else { MaybeUninit::uninit() };
        Self { body: ManuallyDrop::new(body), taken }
    }

    /// # Safety
    ///
    /// It is taken once.
    #[inline(always)]
    pub(super) unsafe fn take(&mut self) -> F {
        if needs_drop::<F>() {
            self.taken.write(true);
        }
        // SAFETY: promised by the caller; `drop` sees that it is gone.
        unsafe { ManuallyDrop::take(&mut self.body) }
    }
}

impl<F> Drop for Once<F> {
    #[inline(always)]
    fn drop(&mut self) {
        if needs_drop::<F>() {
            // SAFETY: written by `new`.
            let taken = unsafe { self.taken.assume_init() };
            if !taken {
                // SAFETY: not taken.
                unsafe { ManuallyDrop::drop(&mut self.body) };
            }
        }
    }
}

/// Does with the error of an upcall what the policy says: the upcall function's own, else that of the foreign call it ran in.
#[cold]
#[inline(never)]
fn carry<V: StackScanner>(vm: &V, saved: &ForeignFrame, policy: Option<ErrorPolicy>, payload: Payload) {
    // Foreign frames may be next: neither a report nor the drop of an error may unwind (I7).
    hook(|| carry_on(vm, saved, policy, payload));
}

/// [`carry`].
///
/// # Panics
///
/// With what the VM's report panics with, or the drop of an error that ends here.
fn carry_on<V: StackScanner>(vm: &V, saved: &ForeignFrame, policy: Option<ErrorPolicy>, payload: Payload) {
    let error = describe::<V>(&payload);
    match policy.unwrap_or(saved.terms().on_error) {
        ErrorPolicy::Abort => unwind::abort(format_args!(
            "an upcall of the foreign call at {} {error}; its error policy is to abort",
            Site(saved.site.get())
        )),
        ErrorPolicy::Fallback => {
            vm.report(&Report::UpcallErrorIgnored { error, call_site: saved.site.get() });
        }
        ErrorPolicy::Carry if saved.kind.get() == FrameKind::ForeignThread => {
            vm.report(&Report::UpcallErrorUnclaimed { error });
        }
        ErrorPolicy::Carry => {
            if let Some(second) = saved.set_pending(payload) {
                vm.report(&Report::UpcallErrorSuperseded { error: describe::<V>(&second) });
            }
        }
    }
}

/// Refuses an upcall: the error goes to whoever runs the foreign call, or the pause.
#[cold]
#[inline(never)]
fn refuse<V: StackScanner>(
    record: &Record<V>,
    saved: &ForeignFrame,
    policy: Option<ErrorPolicy>,
    refused: UpcallRefused,
) {
    // A foreign thread between upcalls may detach, also in a report: its world would go, with the VM that is reporting.
    let _world = keep_world(&record.header);
    carry(vm_of::<V>(record), saved, policy, Box::new(refused));
}

impl<V: StackScanner> Mutator<V> {
    /// Makes `exception` the outcome of the foreign call this upcall runs in; the upcall goes on, and returns to C what C is to see.
    ///
    /// For bodies that work as C does (an exception is pending, the result says so); a [`Throwing`](crate::Throwing) body returns its exception instead. The [policy](ErrorPolicy), the upcall function's or the call's, decides what
    /// becomes of it, as for any error of an upcall; if the call carries one already, this one is reported and ends.
    ///
    /// # Panics
    ///
    /// If the mutator is in no upcall.
    #[track_caller]
    pub fn throw(&mut self, exception: V::Exception) {
        // SAFETY: null, or a live record of this mutator.
        let Some(call) = (unsafe { self.frame().older.as_ref() }) else {
            panic!(
                "reentry: mutator {} cannot throw at {}: it is in no upcall, and there is no foreign call to carry the exception",
                self.id(),
                Location::caller()
            );
        };
        carry(self.vm(), call, self.frame().own_policy(), Box::new(Thrown(exception)));
    }
}

/// Nothing runs on a stack that was switched away from: were an upcall let in, its activation would lie above frames that go on before it ends.
#[cold]
#[inline(never)]
fn abort_switched<V: StackScanner>(record: &Record<V>, saved: &ForeignFrame) -> ! {
    unwind::abort(format_args!(
        "mutator {} cannot receive an upcall: it is {} at {}; call upcall functions on the stack of the fiber that runs",
        record.header.id.get(),
        if saved.kind.get() == FrameKind::Suspended {
            "a suspended fiber"
        } else {
            "waiting for the fiber it resumed"
        },
        Site(saved.site.get())
    ))
}

#[cold]
#[inline(never)]
fn abort_managed<V: StackScanner>(record: &Record<V>) -> ! {
    let header = &record.header;
    let reason = State::Managed.after(Event::Upcall).err().unwrap_or_default();
    // SAFETY: the word of an attached mutator holds a live record; `older` is null or one: the foreign call the running activation was called from.
    let caller = unsafe { (*header.word.record()).older.as_ref() };
    if let Some(region) = header.checked.region() {
        unwind::abort(format_args!(
            "mutator {} cannot receive an upcall: it is managed, {region}; {reason}; {}",
            header.id.get(),
            region.advice()
        ));
    }
    match caller {
        Some(caller) => unwind::abort(format_args!(
            "mutator {} cannot receive an upcall: it is managed, in an upcall of the foreign call at {}; {reason}",
            header.id.get(),
            Site(caller.site.get())
        )),
        None => unwind::abort(format_args!(
            "mutator {} cannot receive an upcall: it is managed; {reason}",
            header.id.get()
        )),
    }
}

/// An upcall without data on a thread with no mutator, with several, or with one of another type of VM.
#[cold]
#[inline(never)]
pub(super) fn cross_in_somewhere<V: StackScanner, R>(
    conduct: impl Conduct,
    body: &mut Once<impl FnOnce(&mut Mutator<V>) -> R>,
    fallback: impl FnOnce() -> R,
) -> R {
    match innermost::<V>(arch::stack_pointer()) {
        // SAFETY: this thread's attached record of a world of `V`.
        Innermost::Of(record) => cross_in(unsafe { &*record }, conduct, body, fallback),
        Innermost::Ambiguous => unwind::abort(format_args!(
            "an upcall function of `{}` cannot tell which of two worlds it is for: both foreign calls were made in one stack frame; \
             use an `UpcallClosure`, which knows its world",
            type_name::<V>()
        )),
        Innermost::None => match home::<V>() {
            Some(shared) => cross_in_attaching(&shared, conduct, body, fallback),
            None => abort_homeless::<V>(),
        },
    }
}

/// An upcall into a world that is not the thread's only one, or not yet one of its worlds.
#[cold]
#[inline(never)]
pub(super) fn cross_in_world<V: StackScanner, R>(
    shared: &Arc<Shared<V>>,
    conduct: impl Conduct,
    body: &mut Once<impl FnOnce(&mut Mutator<V>) -> R>,
    fallback: impl FnOnce() -> R,
) -> R {
    // SAFETY: null, or this thread's attached record of this world.
    match unsafe { shared.current().as_ref() } {
        Some(record) => cross_in(record, conduct, body, fallback),
        None => cross_in_attaching(shared, conduct, body, fallback),
    }
}

/// Attaches a thread that calls in for the first time, and goes on.
#[cold]
#[inline(never)]
fn cross_in_attaching<V: StackScanner, R>(
    shared: &Arc<Shared<V>>,
    conduct: impl Conduct,
    body: &mut Once<impl FnOnce(&mut Mutator<V>) -> R>,
    fallback: impl FnOnce() -> R,
) -> R {
    let attached = match unwind::stop(|| shared.attach(Ownership::Thread, 0)) {
        Ok(attached) => attached,
        Err(payload) => {
            if policy_of(conduct) == Some(ErrorPolicy::Abort) {
                unwind::abort(format_args!(
                    "a foreign thread that called in could not be attached: `Vm::attach` {}",
                    describe::<V>(&payload)
                ));
            }
            shared.vm.report(&Report::UpcallErrorUnclaimed { error: describe::<V>(&payload) });
            return fallback();
        }
    };
    let report = match attached {
        Ok(record) => return cross_in(record, conduct, body, fallback),
        Err(AttachError::Shutdown) => Report::UpcallAfterShutdown,
        Err(AttachError::ThreadExiting) => Report::UpcallAtThreadExit,
        Err(AttachError::NotOpen) => Report::UpcallBeforeOpen,
        // By the handler of a signal, while this upcall was on its way to attach.
        Err(AttachError::AlreadyAttached) => return cross_in_world(shared, conduct, body, fallback),
        Err(error @ AttachError::PauseHeldHere) => {
            unwind::abort(format_args!("a foreign thread calls in: {error}"))
        }
    };
    shared.vm.report(&report);
    fallback()
}

/// The exception of a [`Throwing`] body.
#[cold]
#[inline(never)]
pub(super) fn throw<V: StackScanner>(
    mutator: &Mutator<V>,
    policy: Option<ErrorPolicy>,
    exception: V::Exception,
) {
    // SAFETY: the record of an upcall always has an older one, which lives as long.
    let call = unsafe { &*mutator.frame().older };
    carry(mutator.vm(), call, policy, Box::new(Thrown(exception)));
}

#[cold]
#[inline(never)]
fn abort_homeless<V>() -> ! {
    unwind::abort(format_args!(
        "a thread that no world knows called an upcall function of `{}`; call `World::adopt_foreign_threads` first, \
         or use an `UpcallClosure`, which knows its world",
        type_name::<V>()
    ))
}
