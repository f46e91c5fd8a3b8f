//! Every fence and poll of the boundary: leaving managed code, and coming back to it.

use crate::activation::{ForeignFrame, after};
use crate::anchor::Anchor;
use crate::arch;
use crate::chain;
use crate::checked::CHECKED;
use crate::faults::Faults;
use crate::pause::Shared;
use crate::record::Header;
use crate::registry::PauseHeldHere;
use crate::state::Event;
use crate::unwind;
use crate::vm::{Capture, Crossing, FrameKind, Report, StackScanner, Vm};
use core::panic::Location;
use core::ptr;

/// Runs a hook that must not unwind: it stands between two states, and there is no caller to tell.
#[inline(always)]
pub(crate) fn hook(call: impl FnOnce()) {
    // Caught, not cleaned up after: with no handler above, a panic would end the process before any clean-up could say why.
    if unwind::stop(call).is_err() {
        unwind::abort(format_args!(
            "a transition hook panicked; the hooks of `Vm` must not, nor a report in a transition"
        ));
    }
}

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

/// Becomes foreign, runs `f`, and comes back whether or not it panics. `given`: the anchor is not a captured one.
#[inline(always)]
pub(crate) fn cross_out<V: StackScanner, R>(
    vm: &V,
    header: &Header,
    frame: &ForeignFrame,
    given: bool,
    f: impl FnOnce() -> R,
) -> R {
    leave_managed(vm, header, frame);
    let mut back = scopeguard::guard(true, |unwinding| {
        come_back(vm, header, frame);
        frame.forget_given::<V>(given);
        if unwinding && frame.after.get() & after::PENDING != 0 {
            overtaken(vm, frame);
        }
    });
    let result = f();
    *back = false;
    drop(back);
    result
}

/// The foreign call unwinds with a panic of its own: an upcall's panic that it carried ends here.
#[cold]
#[inline(never)]
pub(crate) fn overtaken<V: Vm>(vm: &V, frame: &ForeignFrame) {
    if let Some(payload) = frame.take_pending() {
        vm.report(&Report::UpcallPanicSuperseded { payload: &*payload });
    }
}

/// Becomes foreign for a call: the record is complete, and publishing it is the last store.
#[inline(always)]
pub(crate) fn leave_managed<V: StackScanner>(vm: &V, header: &Header, frame: &ForeignFrame) {
    if CHECKED {
        chain::check::<V>(header);
    }
    hook(|| vm.leaving_managed(Crossing::ForeignCall));
    header.word.publish(frame, V::FAULTS);
}

/// Becomes managed again after a foreign call whose record is `frame`.
#[inline(always)]
pub(crate) fn come_back<V: StackScanner>(vm: &V, header: &Header, frame: &ForeignFrame) {
    if CHECKED {
        chain::check::<V>(header);
    }
    if !header.word.is_published(frame) {
        repair_slow(vm, header, frame);
    }
    hook(|| vm.entering_managed(Crossing::ForeignCall));
    if !header.word.retract(frame, V::FAULTS) && !V::FAULTS.has(Faults::NO_WAIT_ON_RETURN) {
        wait_slow::<V>(header, frame);
    }
}

#[cold]
#[inline(never)]
fn wait_slow<V: StackScanner>(header: &Header, frame: &ForeignFrame) {
    if header.coordinator().wait_published(header, frame, frame, V::FAULTS).is_err() {
        // Inside `run`, safe code stopped the world, kept the pause, and returned: the pause's closure form makes that impossible.
        unwind::abort(format_args!(
            "the foreign call at {} returned inside a pause that its own thread holds",
            site_of(frame)
        ));
    }
}

/// The call site of a record, to print.
pub(crate) fn site_of(frame: &ForeignFrame) -> &'static dyn core::fmt::Display {
    match frame.site.get() {
        Some(site) => site,
        None => &"an unknown call site",
    }
}

/// Foreign code went past upcalls without returning from them (I5): puts back what they held, and reports. Leaves `frame` published, as if they had
/// returned.
#[cold]
#[inline(never)]
fn repair_slow<V: StackScanner>(vm: &V, header: &Header, frame: &ForeignFrame) {
    if let Some(skipped) = header.word.published() {
        // A call in a skipped upcall was skipped too, and is published still: a stopper may be reading what is released below.
        let skipped = skipped.as_ptr();
        if !header.word.retract(skipped, V::FAULTS)
            && header.coordinator().wait_published(header, skipped, skipped, V::FAULTS).is_err()
        {
            unwind::abort(format_args!(
                "the foreign call at {} returned inside a pause that its own thread holds",
                site_of(frame)
            ));
        }
    }
    let mut skipped = 0;
    // SAFETY: the word of an attached mutator holds a live record of it, and `older` names one.
    let mut record = unsafe { &*header.word.record() };
    while !ptr::eq(record, frame) {
        skipped += 1;
        if record.after.get() != 0 {
            record.finish_slow();
        }
        header.roots.release_to(record.roots_base.get());
        // SAFETY: as above; `frame` is older, so the chain does not end before it.
        record = unsafe { &*record.older };
    }
    // A leaf call in a skipped upcall was skipped with it; the call that comes back was made in no region.
    header.checked.leave_region();
    header.word.publish(frame, V::FAULTS);
    hook(|| vm.report(&Report::ActivationsSkipped { skipped, call_site: frame.site.get() }));
}

/// Becomes managed for an upcall, in the activation whose record is `frame`. Says whether it may go on; if not, [`wait_to_come_in`] is next.
#[inline(always)]
pub(crate) fn come_in<V: StackScanner>(header: &Header, frame: &ForeignFrame) -> bool {
    header.word.retract(frame, V::FAULTS) || V::FAULTS.has(Faults::NO_WAIT_ON_UPCALL)
}

/// Waits, with the record set aside published again, until an upcall may go on.
///
/// # Errors
///
/// The thread holds the pause itself; it is foreign still.
pub(crate) fn wait_to_come_in<V: StackScanner>(
    header: &Header,
    saved: &ForeignFrame,
    frame: &ForeignFrame,
) -> Result<(), PauseHeldHere> {
    header.coordinator().wait_published(header, saved, frame, V::FAULTS)
}

/// Becomes foreign again at the end of an upcall, re-instating the very record that was set aside: the last store (I2).
#[inline(always)]
pub(crate) fn go_back_out<V: StackScanner>(vm: &V, header: &Header, saved: &ForeignFrame) {
    if CHECKED {
        chain::check::<V>(header);
    }
    hook(|| vm.leaving_managed(Crossing::Upcall));
    if V::FAULTS.has(Faults::FOREIGN_BEFORE_REINSTATE) {
        // What HotSpot's JDK-8331735 did: "foreign" is visible, the frames are not.
        header.word.publish(ForeignFrame::bare(header.roots.mark()), V::FAULTS);
    }
    header.word.publish(saved, V::FAULTS);
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
    let result = with_capture::<V, R>(frame, anchor, site, || {
        header.word.publish(frame, V::FAULTS);
        let _back = scopeguard::guard((), |()| {
            let waited = header.word.retract(frame, V::FAULTS)
                || header.coordinator().wait_published(header, frame, frame, V::FAULTS).is_ok();
            if !waited {
                header.word.reset(frame);
            }
            frame.kind.set(FrameKind::ForeignCall);
            frame.forget_given::<V>(anchor.is_some());
            if std::thread::panicking() {
                // The panic under way is the one to tell of; an upcall's would resume at the next foreign call instead.
                // SAFETY: `world` points to the `Shared<V>` whose mutator this is, which outlives it.
                overtaken(unsafe { &(*header.world.cast::<Shared<V>>()).vm }, frame);
            } else if !waited {
                refuse_wait_in_own_pause("a poll", site);
            }
        });
        f()
    });
    if frame.after.get() & after::PENDING != 0 {
        resume_pending(frame);
    }
    result
}

/// Goes on with the panic of an upcall, on the managed side (I7).
#[cold]
#[inline(never)]
pub(crate) fn resume_pending(frame: &ForeignFrame) {
    if let Some(payload) = frame.take_pending() {
        unwind::resume(payload);
    }
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
/// # Panics
///
/// With what `f` panics with.
#[inline(never)]
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
