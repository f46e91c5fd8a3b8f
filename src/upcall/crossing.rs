//! The crossing of an upcall, in and out.
//!
//! Here is what every upcall function is compiled with: the common way in, the managed part and the way out. The other ways in are in `arrival.rs`.

use super::arrival::{Aim, Arrival, ManagedPart, arrive};
use super::{run, run_outlined};
use crate::activation::{AfterError, ForeignFrame};
use crate::arch;
use crate::chain;
use crate::checked::CHECKED;
use crate::faults::Faults;
use crate::mutator::{Mutator, MutatorParts};
use crate::os_thread::ThreadLabel;
use crate::pause::Shared;
use crate::record::Header;
use crate::steps::{Step, reached};
use crate::thread::Record;
use crate::transition::{come_in, describe, end_error, go_back_out, hook, overtaken, stress_call};
use crate::unwind::{self, Payload, Thrown};
use crate::vm::{Capture, Crossing, ErrorPolicy, FrameKind, Report, Site, StackScanner, UpcallOrigin, tell};
use core::mem::{ManuallyDrop, MaybeUninit, needs_drop};
use core::panic::Location;

/// What an upcall does about errors: a type without a value, so that nothing of it is carried through the crossing.
pub(super) trait Conduct: Copy {
    /// The function's own policy, which wins over the foreign call's.
    const POLICY: Option<ErrorPolicy>;
    /// What an exception of foreign code does that reaches the upcall from below.
    const EXCEPTIONS: Exceptions;

    /// What a report calls the upcall. Asked for when there is something to report.
    fn name(&self) -> UpcallName<'_>;

    /// Whether it runs when its foreign call carries an error already.
    fn after_error(self) -> AfterError;
}

/// What a report calls an upcall.
#[derive(Clone, Copy)]
pub(crate) struct UpcallName<'a> {
    /// The name of its function or closure.
    pub(crate) function: &'a str,
    /// Where its closure was made.
    pub(crate) made_at: Option<&'static Location<'static>>,
}

/// The upcall that is to be reported, on a thread that has `record`'s mutator or none; `saved` is the record that was published when it came in.
pub(super) fn origin<'a>(
    name: Option<UpcallName<'a>>,
    header: Option<&Header>,
    saved: Option<&ForeignFrame>,
) -> UpcallOrigin<'a> {
    UpcallOrigin {
        function: name.map(|name| name.function),
        made_at: name.and_then(|name| name.made_at),
        thread: ThreadLabel::here(),
        mutator: header.map(|header| header.id.get()),
        call_site: saved.and_then(|saved| saved.site.get()),
    }
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
pub(super) fn policy_of<C: Conduct>(_: C) -> Option<ErrorPolicy> {
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
    aim: Aim,
    conduct: impl Conduct,
    body: &mut Once<impl FnOnce(&mut Mutator<V>) -> R>,
    fallback: impl Fn() -> R,
) -> R {
    let header = &record.header;
    let sp = arch::entry_stack_pointer();
    let Some(saved) = header.word.published() else {
        return cross_in_by(Arrival::On(record, aim), sp, conduct, body, fallback);
    };
    // SAFETY: the word of an attached mutator holds a live record.
    let saved = unsafe { saved.as_ref() };
    if sp < header.stack_limit.get() || sp >= saved.native_sp::<V>() {
        return cross_in_by(Arrival::On(record, aim), sp, conduct, body, fallback);
    }
    // No link: this depth has not been reached before, or the foreign call has terms of its own.
    // SAFETY: null, or a live record of this mutator.
    let Some(frame) = (unsafe { saved.newer().as_ref() }) else {
        return cross_in_by(Arrival::On(record, aim), sp, conduct, body, fallback);
    };
    if !go_in::<V>(record, frame) {
        return cross_in_by(Arrival::Waiting(record, aim), sp, conduct, body, fallback);
    }
    managed_part(record, frame, sp, conduct, body, fallback)
}

/// [`cross_in`] by any but the common way. What lies between here and the managed part knows nothing of the body, and is compiled once for each VM, not for each upcall function.
#[cold]
#[inline(never)]
pub(super) fn cross_in_by<V: StackScanner, R>(
    arrival: Arrival<'_, V>,
    sp: usize,
    conduct: impl Conduct,
    body: &mut Once<impl FnOnce(&mut Mutator<V>) -> R>,
    fallback: impl Fn() -> R,
) -> R {
    let mut result = None;
    let mut managed = |record: &Record<V>, frame: &ForeignFrame| {
        result = Some(managed_part(record, frame, sp, conduct, body, &fallback));
    };
    arrive(
        arrival,
        sp,
        policy_of(conduct),
        conduct.name(),
        conduct.after_error(),
        ManagedPart::new(&mut managed),
    );
    // Without a result the upcall was refused.
    result.unwrap_or_else(fallback)
}

/// The conduct of a fiber's first activation.
#[derive(Clone, Copy)]
struct OnFiber;

impl Conduct for OnFiber {
    const POLICY: Option<ErrorPolicy> = None;
    const EXCEPTIONS: Exceptions = Exceptions::Stop;

    fn name(&self) -> UpcallName<'_> {
        UpcallName { function: "the first activation of a fiber", made_at: None }
    }

    fn after_error(self) -> AfterError {
        AfterError::Skip
    }
}

/// Runs `body` as an upcall on a fiber's mutator, on a stack of its own; not at all if the world has ended. Not inlined, as it reads thread-locals: see
/// [`thread_token`](crate::sync::thread_token).
#[inline(never)]
pub(crate) fn run_on<V: StackScanner>(record: &Record<V>, body: impl FnOnce(&mut Mutator<V>)) {
    cross_in(record, Aim::World, OnFiber, &mut Once::new(body), || ());
}

/// Becomes managed in the activation whose record is `frame`. `false` if a pause is wanted, and the upcall must wait.
#[inline(always)]
pub(super) fn go_in<V: StackScanner>(record: &Record<V>, frame: &ForeignFrame) -> bool {
    reached(record.header.world, Step::UpcallArrived);
    if CHECKED {
        stress_arrival::<V>(record, frame);
    }
    entering::<V>(record);
    come_in::<V>(&record.header, frame)
}

/// Stress mode, as an upcall comes in: C is running still. A panic of it waits for the managed caller, as an upcall's own does.
#[cold]
#[inline(never)]
fn stress_arrival<V: StackScanner>(record: &Record<V>, frame: &ForeignFrame) {
    // SAFETY: the record of an upcall always has an older one, which lives as long.
    let saved = unsafe { &*frame.older };
    if let Err(payload) = unwind::stop(|| stress_call::<V>(&record.header, saved)) {
        carry::<V>(record, saved, None, None, payload);
    }
}

/// Runs the hook, which cannot detach the thread it runs for. (With no hook the compiler sees that nothing has changed, and the hold costs nothing.)
#[inline(always)]
fn entering<V: StackScanner>(record: &Record<V>) {
    let vm = vm_of::<V>(record);
    record.header.held(|| hook(|| vm.entering_managed(Crossing::Upcall)));
}

#[inline(always)]
pub(super) fn vm_of<V: StackScanner>(record: &Record<V>) -> &V {
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
    fallback: impl Fn() -> R,
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
            // SAFETY: of the ways through an upcall only this one runs the body, here or in the arm below, and none leads here twice: `cross_in_by` by a `ManagedPart`, which runs once.
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
            carry::<V>(record, saved, policy_of(conduct), Some(conduct.name()), payload);
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
    overtaken(vm, frame);
    frame.finish_slow();
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
        record.header.held(|| tell(vm_of::<V>(record), &report));
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
pub(super) fn carry<V: StackScanner>(
    record: &Record<V>,
    saved: &ForeignFrame,
    policy: Option<ErrorPolicy>,
    name: Option<UpcallName<'_>>,
    payload: Payload,
) {
    let vm = vm_of::<V>(record);
    let upcall = || origin(name, Some(&record.header), Some(saved));
    // Foreign frames may be next: neither a report nor the drop of an error may unwind (I7, R3).
    let error = describe::<V>(&payload);
    match policy.unwrap_or(saved.terms().on_error) {
        ErrorPolicy::Abort => unwind::abort(format_args!(
            "an upcall of the foreign call at {} {error}; its error policy is to abort",
            Site(saved.site.get())
        )),
        ErrorPolicy::Fallback => {
            let call_site = saved.site.get();
            tell(vm, &Report::UpcallErrorIgnored { error, call_site, upcall: &upcall() });
            unwind::discard(payload);
        }
        ErrorPolicy::Carry if saved.kind.get() == FrameKind::ForeignThread => {
            tell(vm, &Report::UpcallErrorUnclaimed { error, upcall: &upcall() });
            unwind::discard(payload);
        }
        ErrorPolicy::Carry => {
            if let Some(second) = saved.set_pending(payload) {
                end_error(vm, second);
            }
        }
    }
}

impl<V: StackScanner> Mutator<V> {
    /// Says whether the foreign call that this upcall runs in carries an error already: the call will go on
    /// with that one, whatever this upcall does. False outside upcalls.
    ///
    /// Only an upcall that runs in spite of an error can see one: [`Always`](crate::Always), an upcall of a call with
    /// [`upcalls_after_error`](crate::ForeignCall::upcalls_after_error), and one that has called [`throw`](Self::throw) itself.
    #[must_use]
    pub fn error_pending(&self) -> bool {
        // SAFETY: null, or a live record of this mutator.
        unsafe { self.frame().older.as_ref() }.is_some_and(ForeignFrame::carries_error)
    }

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
        carry::<V>(self.record(), call, self.frame().own_policy(), None, Box::new(Thrown(exception)));
    }
}

/// The exception of a [`Throwing`] body.
#[cold]
#[inline(never)]
pub(super) fn throw<V: StackScanner>(
    mutator: &Mutator<V>,
    policy: Option<ErrorPolicy>,
    name: UpcallName<'_>,
    exception: V::Exception,
) {
    // SAFETY: the record of an upcall always has an older one, which lives as long.
    let call = unsafe { &*mutator.frame().older };
    carry::<V>(mutator.record(), call, policy, Some(name), Box::new(Thrown(exception)));
}
