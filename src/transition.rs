//! Every fence and poll of the boundary: leaving managed code, and coming back to it.

use crate::activation::{ForeignFrame, after};
use crate::anchor::Anchor;
use crate::arch;
use crate::chain;
use crate::checked::CHECKED;
use crate::faults::Faults;
use crate::nesting::{self, Returned};
use crate::pause::Shared;
use crate::record::Header;
use crate::registry::{Unreleased, Waiter, park_for_ever};
use crate::state::Event;
use crate::steps::{Step, reached};
pub(crate) use crate::unwind::hook;
use crate::unwind::{self, Payload, Thrown};
use crate::vm::{
    Capture, Crossing, ExceptionText, FrameKind, Report, Site, StackScanner, UpcallError, UpcallRefused, Vm,
    tell,
};
use core::panic::Location;
use core::ptr;

/// Ends a misuse that has a managed caller to tell: panics, naming the mutator's state and the call site.
///
/// # Panics
///
/// Always.
#[cold]
#[inline(never)]
pub(crate) fn refuse(header: &Header, event: Event, site: &'static Location<'static>) -> ! {
    let state = header.state();
    let reason = state.after(event).err().unwrap_or("the mutator is in use elsewhere");
    panic!("reentry: mutator {} cannot {event} at {site}: it is {state}; {reason}", header.id.get())
}

/// Checked mode: refuses `event` inside a region that has promised to do without, and through a handle that is not the running activation's.
///
/// # Panics
///
/// If it is refused.
#[cold]
#[inline(never)]
pub(crate) fn check_event(
    header: &Header,
    frame: &ForeignFrame,
    event: Event,
    site: &'static Location<'static>,
) {
    if let Some(region) = header.checked.region() {
        panic!(
            "reentry: mutator {} cannot {event} at {site}: it is {region}; {}",
            header.id.get(),
            region.advice()
        )
    }
    if !header.word.is_managed_in(frame) {
        refuse(header, event, site);
    }
}

/// The panic of a thread that waits for a pause it holds itself.
///
/// # Panics
///
/// Always.
#[cold]
#[inline(never)]
pub(crate) fn refuse_wait_in_own_pause(what: &str, site: &'static Location<'static>) -> ! {
    panic!(
        "reentry: {what} at {site} would wait for a pause that this thread holds itself; end the pause first"
    )
}

/// How a foreign call crosses. Known to the compiler where the guard is used in one function: what a call did not ask for costs it nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    /// The anchor was given, not captured.
    pub(crate) given: bool,
    /// The call has [`Terms`](crate::activation::Terms) of its own.
    pub(crate) terms: bool,
    /// The call has an interrupt.
    pub(crate) interruptible: bool,
    /// What the hooks are told.
    pub(crate) crossing: Crossing,
}

/// Becomes foreign, runs `f`, and comes back whether or not it panics.
#[inline(always)]
pub(crate) fn cross_out<V: StackScanner, R>(
    vm: &V,
    header: &Header,
    frame: &ForeignFrame,
    manner: Manner,
    f: impl FnOnce() -> R,
) -> R {
    leave_managed(vm, header, frame, manner.crossing);
    // Twice, so that the way back is inlined: one drop for both ways would be a function of its own.
    let unwinding = scopeguard::guard((), |()| cross_back_unwinding(vm, header, frame, manner));
    if CHECKED {
        stress_call::<V>(header, frame);
    }
    let result = f();
    if CHECKED {
        stress_call::<V>(header, frame);
    }
    scopeguard::ScopeGuard::into_inner(unwinding);
    cross_back(vm, header, frame, manner);
    result
}

/// Stress mode, in the foreign call whose record is `frame`. A panic of it is one of the call's own.
///
/// # Panics
///
/// With what the VM's function panics with.
#[cold]
#[inline(never)]
pub(crate) fn stress_call<V: StackScanner>(header: &Header, frame: &ForeignFrame) {
    // SAFETY: `world` points to the `Shared<V>` whose mutator this is, which outlives it.
    let shared = unsafe { &*header.world.cast::<Shared<V>>() };
    // Foreign code may have jumped over an upcall: then another record is published, or none.
    if header.word.is_published(frame) && shared.is_stressed_here(header) {
        shared.do_stress(header, frame.site.get().unwrap_or(Location::caller()));
    }
}

/// Comes back from [`cross_out`]'s closure.
#[inline(always)]
fn cross_back<V: StackScanner>(vm: &V, header: &Header, frame: &ForeignFrame, manner: Manner) {
    if manner.terms {
        frame.end_terms();
    }
    if manner.interruptible {
        header.interrupts.end(frame.depth);
    }
    come_back(vm, header, frame, manner.crossing);
    frame.forget_given::<V>(manner.given);
}

/// [`cross_back`], with a panic under way: it is the one that goes on.
#[cold]
#[inline(never)]
fn cross_back_unwinding<V: StackScanner>(vm: &V, header: &Header, frame: &ForeignFrame, manner: Manner) {
    cross_back(vm, header, frame, manner);
    if frame.after.get() & after::PENDING != 0 {
        overtaken(vm, frame);
    }
}

/// Says what an upcall's error is.
pub(crate) fn describe<V: Vm>(payload: &Payload) -> UpcallError<'_> {
    if let Some(Thrown(exception)) = payload.downcast_ref::<Thrown<V::Exception>>() {
        UpcallError::Exception { exception: ExceptionText::of::<V>(exception) }
    } else if let Some(refused) = payload.downcast_ref::<UpcallRefused>() {
        UpcallError::Refused(*refused)
    } else {
        UpcallError::Panic { payload: &**payload }
    }
}

/// The error of an upcall that `frame`'s call carried ends here: another one goes on.
#[cold]
#[inline(never)]
pub(crate) fn overtaken<V: Vm>(vm: &V, frame: &ForeignFrame) {
    if let Some(payload) = claim(vm, frame) {
        end_error(vm, payload);
    }
}

/// Takes the error that `frame`'s call carries, and reports how many upcalls have not run because of it.
fn claim<V: Vm>(vm: &V, frame: &ForeignFrame) -> Option<Payload> {
    let payload = frame.take_pending()?;
    tell_skipped(vm, frame.take_skipped_upcalls(), frame.site.get());
    Some(payload)
}

/// Reports that `count` upcalls of the foreign call at `call_site` have not run, if there are any.
fn tell_skipped<V: Vm>(vm: &V, count: u32, call_site: Option<&'static Location<'static>>) {
    if count > 0 {
        tell(vm, &Report::UpcallsAfterError { count, call_site });
    }
}

/// Reports an error of an upcall in whose place another one goes on, and drops it.
pub(crate) fn end_error<V: Vm>(vm: &V, payload: Payload) {
    tell(vm, &Report::UpcallErrorSuperseded { error: describe::<V>(&payload) });
    unwind::discard(payload);
}

/// Becomes foreign for a call: the record is complete, and publishing it is the last store.
#[inline(always)]
pub(crate) fn leave_managed<V: StackScanner>(
    vm: &V,
    header: &Header,
    frame: &ForeignFrame,
    crossing: Crossing,
) {
    if CHECKED {
        chain::check::<V>(header);
    }
    hook(|| vm.leaving_managed(crossing));
    #[cfg(feature = "audit")]
    frame.count_crossing();
    reached(header.world, Step::CallPrepared);
    header.word.publish(frame, V::FAULTS);
    reached(header.world, Step::CallPublished);
}

/// Becomes managed again after a foreign call whose record is `frame`.
#[inline(always)]
pub(crate) fn come_back<V: StackScanner>(vm: &V, header: &Header, frame: &ForeignFrame, crossing: Crossing) {
    if CHECKED {
        chain::check::<V>(header);
    }
    reached(header.world, Step::CallReturning);
    if !header.word.is_published(frame) {
        came_back_elsewhere(vm, header, frame);
    }
    hook(|| vm.entering_managed(crossing));
    let between = || reached(header.world, Step::CallRetracted);
    if !header.word.retract(frame, V::FAULTS, between) && !V::FAULTS.has(Faults::NO_WAIT_ON_RETURN) {
        wait_slow::<V>(header, frame);
    }
    reached(header.world, Step::CallBack);
}

#[cold]
#[inline(never)]
fn wait_slow<V: StackScanner>(header: &Header, frame: &ForeignFrame) {
    match wait_managed::<V>(header, frame, Hooks::Entered) {
        Ok(()) => {}
        Err(Unreleased::Ended | Unreleased::Parked) => {
            // Goes on in the managed caller, as an upcall's error does. One that is carried already says more.
            drop(frame.set_pending(Box::new(UpcallRefused::WorldEnded { call_site: frame.site.get() })));
        }
        // Inside `run`, safe code stopped the world, kept the pause, and returned: the pause's closure form makes that impossible.
        Err(Unreleased::PauseHeldHere) => unwind::abort(format_args!(
            "the foreign call at {} returned inside a pause that its own thread holds",
            Site(frame.site.get())
        )),
    }
}

/// Whether a mutator that waits to go on has passed the hook that says so.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hooks {
    /// It has, and holds what it took there.
    Entered,
    /// It waits on behalf of a call that foreign code has skipped.
    Skipped,
}

/// Waits with `frame` published until its activation may run. Where the thread is to be parked, it does not return.
///
/// # Errors
///
/// The thread holds the pause itself, and is not managed; or the world has ended, and it is managed.
fn wait_managed<V: StackScanner>(
    header: &Header,
    frame: &ForeignFrame,
    hooks: Hooks,
) -> Result<(), Unreleased> {
    let coordinator = header.coordinator();
    match coordinator.wait_published(header, frame, frame, Waiter::Return, V::FAULTS) {
        Err(Unreleased::Parked) => {
            if hooks == Hooks::Entered {
                // SAFETY: `world` points to the `Shared<V>` whose mutator this is, which outlives it.
                let vm = unsafe { &(*header.world.cast::<Shared<V>>()).vm };
                // A global lock that it kept would keep everybody from cleaning up.
                hook(|| vm.leaving_managed(Crossing::Attachment));
            }
            park_for_ever()
        }
        Err(Unreleased::Ended) => {
            coordinator.release_ended(header, frame, frame, V::FAULTS)?;
            Err(Unreleased::Ended)
        }
        waited => waited,
    }
}

/// A foreign call has come back, and newer activations than its own are there still: foreign code has gone past them (I5), or stacks were switched out of order.
#[cold]
#[inline(never)]
fn came_back_elsewhere<V: StackScanner>(vm: &V, header: &Header, frame: &ForeignFrame) {
    if V::FAULTS.has(Faults::NO_REPAIR) {
        return header.word.publish(frame, V::FAULTS);
    }
    let call = Site(frame.site.get());
    match nesting::returned::<V>(header, frame) {
        Returned::Over => repair_slow(vm, header, frame, Skipped::Over),
        Returned::Left => repair_slow(vm, header, frame, Skipped::Left),
        Returned::Inside => unwind::abort(format_args!(
            "the foreign call at {call} came back inside an upcall of its own, on a stack that the upcall has resumed; \
             let upcalls return first, or run each coroutine as a `Fiber`"
        )),
        Returned::Unknown => unwind::abort(format_args!(
            "the foreign call at {call} came back, and an upcall of it on another stack has not returned; \
             let upcalls return first, or run each coroutine as a `Fiber`"
        )),
        Returned::Gone => unwind::abort(format_args!(
            "the foreign call at {call} came back after an older call of its thread had come back, which ended it; \
             finish a coroutine before the call returns that it calls in from, or run it as a `Fiber`"
        )),
    }
}

/// What is known of activations that foreign code has skipped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Skipped {
    /// Their frames are gone.
    Over,
    /// Their frames may be there, on another stack, and go on some day: that must be noticed.
    Left,
}

/// Foreign code went past upcalls without returning from them (I5): puts back what they held, and reports. Leaves `frame` published, as if they had
/// returned.
#[cold]
#[inline(never)]
pub(crate) fn repair_slow<V: StackScanner>(vm: &V, header: &Header, frame: &ForeignFrame, frames: Skipped) {
    if V::FAULTS.has(Faults::NO_REPAIR) {
        return header.word.publish(frame, V::FAULTS);
    }
    // First: whoever calls an interrupt of a skipped call may wait for a pause meanwhile.
    header.interrupts.end(frame.depth + 1);
    let running = header.word.published();
    if let Some(skipped) = running {
        // A call in a skipped upcall was skipped too, and is published still: a stopper may be reading what is released below.
        let skipped = skipped.as_ptr();
        // SAFETY: the word of an attached mutator holds a live record.
        let waited =
            |skipped: *mut ForeignFrame| wait_managed::<V>(header, unsafe { &*skipped }, Hooks::Skipped);
        if !header.word.retract(skipped, V::FAULTS, || ())
            && matches!(waited(skipped), Err(Unreleased::PauseHeldHere))
        {
            unwind::abort(format_args!(
                "foreign code jumped out of a pause that its own thread holds, to the foreign call at {}",
                Site(frame.site.get())
            ));
        }
    }
    reached(header.world, Step::RepairBegun);
    let mut skipped = 0;
    let mut errors = Vec::new();
    let mut skipped_upcalls = 0_u32;
    // SAFETY: the word of an attached mutator holds a live record of it, and `older` names one.
    let mut record = unsafe { &*header.word.record() };
    header.changes.during(|| {
        while !ptr::eq(record, frame) {
            skipped += 1;
            if record.after.get() != 0 {
                errors.extend(record.take_pending());
                skipped_upcalls = skipped_upcalls.saturating_add(record.take_skipped_upcalls());
                record.finish_slow();
            }
            record.forget_terms();
            record.forget_policy();
            record.kind.set(FrameKind::ForeignCall);
            record.forget_given::<V>(true);
            header.roots.release_to(record.roots_base.get());
            // SAFETY: as above; or null, behind the oldest.
            record = match unsafe { record.older.as_ref() } {
                Some(older) => older,
                None => unwind::abort(format_args!(
                    "the foreign call at {} is none of its mutator's chain; the chain is damaged",
                    Site(frame.site.get())
                )),
            };
        }
    });
    if frames == Skipped::Left {
        header.set_astray(frame);
    }
    // A leaf call in a skipped upcall was skipped with it; the call that comes back was made in no region.
    header.checked.leave_region();
    if header.posted_at.get() > frame.depth + 1 {
        header.posted_at.set(0);
    }
    // The records are whole again before code of the VM runs.
    if running.is_none() {
        // The newest upcall was skipped while managed: what its way in took, a global lock, its way back would have given up.
        hook(|| vm.leaving_managed(Crossing::Upcall));
    }
    header.word.publish(frame, V::FAULTS);
    reached(header.world, Step::RepairDone);
    tell(vm, &Report::ActivationsSkipped { skipped, call_site: frame.site.get() });
    tell_skipped(vm, skipped_upcalls, frame.site.get());
    for payload in errors {
        end_error(vm, payload);
    }
}

/// Becomes managed for an upcall, in the activation whose record is `frame`. Says whether it may go on; if not, [`wait_to_come_in`] is next.
#[inline(always)]
pub(crate) fn come_in<V: StackScanner>(header: &Header, frame: &ForeignFrame) -> bool {
    let between = || reached(header.world, Step::UpcallRetracted);
    header.word.retract(frame, V::FAULTS, between) || V::FAULTS.has(Faults::NO_WAIT_ON_UPCALL)
}

/// Waits, with the record set aside published again, until an upcall may go on.
///
/// # Errors
///
/// The thread holds the pause itself, or the world has ended; it is foreign still.
pub(crate) fn wait_to_come_in<V: StackScanner>(
    header: &Header,
    saved: &ForeignFrame,
    frame: &ForeignFrame,
) -> Result<(), Unreleased> {
    header.coordinator().wait_published(header, saved, frame, Waiter::Upcall, V::FAULTS)
}

/// Becomes foreign again at the end of an upcall, re-instating the very record that was set aside: the last store (I2).
#[inline(always)]
pub(crate) fn go_back_out<V: StackScanner>(vm: &V, header: &Header, saved: &ForeignFrame) {
    if CHECKED {
        chain::check::<V>(header);
    }
    hook(|| vm.leaving_managed(Crossing::Upcall));
    reached(header.world, Step::UpcallEnding);
    if V::FAULTS.has(Faults::FOREIGN_BEFORE_REINSTATE) {
        // What HotSpot's JDK-8331735 did: "foreign" is visible, the frames are not.
        header.word.publish(ForeignFrame::bare(header.roots.mark()), V::FAULTS);
        reached(header.world, Step::UpcallHalfPublished);
    }
    header.word.publish(saved, V::FAULTS);
    reached(header.world, Step::UpcallReturned);
}

/// Publishes the running activation as stopped at a safepoint, runs `f`, and becomes managed again.
///
/// The slow half of polls and pauses. The record is the activation's own, which no foreign call is using.
#[cold]
#[inline(never)]
pub(crate) fn at_safepoint<V: StackScanner, R>(
    header: &Header,
    frame: &ForeignFrame,
    event: Event,
    anchor: Option<Anchor>,
    site: &'static Location<'static>,
    f: impl FnOnce() -> R,
) -> R {
    if CHECKED {
        chain::check::<V>(header);
    }
    if header.state().after(event).is_err() {
        refuse(header, event, site);
    }
    frame.site.set(Some(site));
    frame.kind.set(FrameKind::Safepoint);
    #[cfg(feature = "audit")]
    frame.count_crossing();
    let result = with_capture::<V, R>(frame, anchor, site, || {
        reached(header.world, Step::SafepointPrepared);
        header.word.publish(frame, V::FAULTS);
        reached(header.world, Step::SafepointPublished);
        let _back = scopeguard::guard((), |()| {
            let between = || reached(header.world, Step::SafepointRetracted);
            let waited = if header.word.retract(frame, V::FAULTS, between) {
                Ok(())
            } else {
                wait_managed::<V>(header, frame, Hooks::Entered)
            };
            if matches!(waited, Err(Unreleased::PauseHeldHere)) {
                header.word.reset(frame);
            }
            frame.kind.set(FrameKind::ForeignCall);
            frame.forget_given::<V>(anchor.is_some());
            reached(header.world, Step::SafepointLeft);
            if std::thread::panicking() {
                // The panic under way is the one to tell of; an upcall's would resume at the next foreign call instead.
                // SAFETY: `world` points to the `Shared<V>` whose mutator this is, which outlives it.
                overtaken(unsafe { &(*header.world.cast::<Shared<V>>()).vm }, frame);
            } else {
                match waited {
                    Ok(()) => {}
                    Err(Unreleased::PauseHeldHere) => refuse_wait_in_own_pause("a poll", site),
                    Err(Unreleased::Ended | Unreleased::Parked) => {
                        drop(
                            frame.set_pending(Box::new(UpcallRefused::WorldEnded { call_site: Some(site) })),
                        );
                    }
                }
            }
        });
        f()
    });
    if frame.after.get() & after::PENDING != 0 {
        // SAFETY: as above.
        resume_pending(unsafe { &(*header.world.cast::<Shared<V>>()).vm }, frame);
    }
    result
}

/// Goes on with the error of an upcall, on the managed side (I7).
///
/// # Panics
///
/// With the error, if there is one: a refused upcall as the exception that the VM makes of it, if it makes one. While the thread is unwinding already it is reported
/// instead, since a panic that leaves a destructor ends the process.
#[cold]
#[inline(never)]
pub(crate) fn resume_pending<V: Vm>(vm: &V, frame: &ForeignFrame) {
    if std::thread::panicking() {
        return overtaken(vm, frame);
    }
    let Some(payload) = claim(vm, frame) else { return };
    match payload.downcast::<UpcallRefused>() {
        Ok(refused) => match vm.exception_for(&refused) {
            Some(exception) => unwind::resume(Box::new(Thrown(exception))),
            None => panic!("reentry: {refused}"),
        },
        Err(payload) => unwind::resume(payload),
    }
}

/// Takes the exception that an upcall ended with.
///
/// # Errors
///
/// The exception.
///
/// # Panics
///
/// With an error that is none of the VM's exceptions.
#[cold]
#[inline(never)]
pub(crate) fn pending_exception<V: Vm>(vm: &V, frame: &ForeignFrame) -> Result<(), V::Exception> {
    let Some(payload) = claim(vm, frame) else { return Ok(()) };
    let payload = match payload.downcast::<Thrown<V::Exception>>() {
        Ok(thrown) => return Err(thrown.0),
        Err(payload) => payload,
    };
    if let Some(exception) = payload.downcast_ref().and_then(|refused| vm.exception_for(refused)) {
        return Err(exception);
    }
    let put_back = frame.set_pending(payload);
    debug_assert!(put_back.is_none(), "taken just now");
    resume_pending(vm, frame);
    Ok(())
}

/// Fills `frame` with the anchor of a crossing, then runs `f` once.
#[inline(always)]
pub(crate) fn with_capture<V: Vm, R>(
    frame: &ForeignFrame,
    anchor: Option<Anchor>,
    site: &'static Location<'static>,
    f: impl FnOnce() -> R,
) -> R {
    match V::CAPTURE {
        Capture::Registers => with_registers(frame, anchor, f),
        Capture::Anchor => {
            match anchor {
                Some(anchor) => {
                    // Whatever `anchor` says, the words of the segment are those of this stack.
                    frame.machine_sp.set(arch::stack_pointer());
                    frame.anchor.set(anchor);
                }
                None => frame.anchor.capture(site),
            }
            f()
        }
        Capture::Nothing => {
            let sp = arch::stack_pointer();
            frame.anchor.set(anchor.unwrap_or(Anchor::new(0, sp, 0)));
            frame.machine_sp.set(sp);
            f()
        }
    }
}

/// [`with_capture`] for a conservative collector: through the assembly routine that writes the registers down.
///
/// Inlined, so that the stack pointer and the registers written down are those of the function that calls C. A frame of its own would be gone before C runs where the foreign state is entered
/// by hand: the crossing would lie below C's frames, and what it had saved of the caller's registers would be overwritten.
///
/// # Panics
///
/// With what `f` panics with.
#[inline(always)]
fn with_registers<R, F: FnOnce() -> R>(frame: &ForeignFrame, anchor: Option<Anchor>, f: F) -> R {
    struct Call<'f, F, R> {
        frame: &'f ForeignFrame,
        given: Option<Anchor>,
        captured: Anchor,
        f: Option<F>,
        result: Option<R>,
    }
    /// # Safety
    ///
    /// `data` is a `Call<F, R>` that nobody else touches meanwhile.
    ///
    /// # Panics
    ///
    /// With what the closure panics with.
    unsafe extern "C-unwind" fn shim<F: FnOnce() -> R, R>(data: *mut ()) {
        // SAFETY: promised by the caller.
        let call = unsafe { &mut *data.cast::<Call<'_, F, R>>() };
        call.frame.anchor.set(call.given.unwrap_or(call.captured));
        call.frame.machine_sp.set(call.captured.sp);
        let f = call.f.take().expect("the routine calls once");
        call.result = Some(f());
    }
    let mut call = Call { frame, given: anchor, captured: Anchor::default(), f: Some(f), result: None };
    let data = &raw mut call;
    // SAFETY: `registers` is the record's own array of SAVED_REGISTERS words, not published yet; `captured` is a field of `call`; `shim` takes
    // a pointer to a `Call<F, R>`, which outlives the call.
    unsafe {
        arch::call_with_registers(frame.registers(), &raw mut (*data).captured, shim::<F, R>, data.cast());
    }
    call.result.expect("the routine returns only after `shim` has")
}
