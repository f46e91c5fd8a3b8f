//! How an upcall comes in where it does not come in by the common way: onto a mutator that must be found or attached first, at a depth not reached before, into a foreign call with
//! terms, during a pause, on too little stack, or after foreign code has jumped.
//!
//! Nothing here knows the body of the upcall: it is behind one [`ManagedPart`].
//!
//! # Foreign code that jumps
//!
//! `longjmp`, or an exception between foreign frames, can leave an upcall without returning from it. The next crossing finds out. Native stacks grow downwards, so an upcall comes in below
//! the crossing of the foreign call that it belongs to. One that comes in above is off the common way: C has jumped, or it runs on another stack. `nesting.rs` looks for evidence. If the newer
//! crossings are gone they are released in order (I5), and the upcall belongs to the call above. If nothing tells, nothing is released.
//!
//! ```text
//!   foreign call 0   sp 0x9000  <-- the upcall belongs to this call
//!     C, setjmp
//!                       ...     <-- an upcall comes in here, from the C function that called setjmp
//!     upcall         sp 0x8e00      skipped
//!       foreign call 1  0x8c00      skipped
//!         C, longjmp
//! ```
//!
//! An upcall that comes in below the skipped crossing, since C has gone deeper meanwhile or its own frame and stack arguments are larger than the skipped frames, shows
//! nothing. It counts as one of the skipped call until C comes back (`guide::jumps`).

use super::crossing::{UpcallName, carry, go_in, origin, vm_of};
use crate::activation::{AfterError, ForeignFrame, Upcalls};
use crate::arch::{self, SignalStack};
use crate::control::{MachineState, Saved};
use crate::faults::Faults;
use crate::home::{Adopter, home};
use crate::nesting::{self, Arrived};
use crate::pause::Shared;
use crate::process;
use crate::record::Ownership;
use crate::registry::{Ask, AttachError, Unreleased};
use crate::state::{ENDED, Event, State};
use crate::thread::{Innermost, Record, innermost};
use crate::transition::{Skipped, describe, hook, repair_slow, wait_to_come_in};
use crate::unwind;
use crate::vm::{
    Capture, Crossing, ErrorPolicy, FrameKind, Report, Site, StackScanner, UpcallError, UpcallOrigin,
    UpcallRefused, Wanted, tell,
};
use core::any::type_name;
use std::sync::Arc;

/// Where an upcall arrives.
pub(super) enum Arrival<'a, V: StackScanner> {
    /// On this mutator of its thread.
    On(&'a Record<V>, Aim),
    /// The same, and it has become managed at its depth and seen that a pause is wanted.
    Waiting(&'a Record<V>, Aim),
    /// In this world, which is not the thread's only one, or not yet one of its worlds.
    In(&'a Arc<Shared<V>>),
    /// On a thread with no mutator, with several, or with one of another type of VM.
    Somewhere,
}

/// What an upcall is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Aim {
    /// The VM's type: it goes to the world that is found, and to another when that one has ended.
    Type,
    /// One world.
    World,
}

/// An upcall from the moment it is managed to the moment it is foreign again, on the mutator and in the activation that it is given. Runs once, or not at all.
pub(super) struct ManagedPart<'a, V: StackScanner>(&'a mut dyn FnMut(&Record<V>, &ForeignFrame));

impl<'a, V: StackScanner> ManagedPart<'a, V> {
    pub(super) fn new(run: &'a mut dyn FnMut(&Record<V>, &ForeignFrame)) -> Self {
        Self(run)
    }

    fn run(self, record: &Record<V>, frame: &ForeignFrame) {
        (self.0)(record, frame);
    }
}

/// An upcall on its way in.
struct Arriving<'a, 'n, V: StackScanner> {
    /// Its stack pointer, in the function that C called.
    sp: usize,
    /// The upcall function's own policy.
    policy: Option<ErrorPolicy>,
    /// What a report calls it.
    name: UpcallName<'n>,
    /// Whether the upcall function runs when its foreign call carries an error already.
    after_error: AfterError,
    aim: Aim,
    managed: ManagedPart<'a, V>,
}

/// Leads an upcall to its managed part; or refuses it, and tells whoever is to know.
#[inline(never)]
pub(super) fn arrive<V: StackScanner>(
    arrival: Arrival<'_, V>,
    sp: usize,
    policy: Option<ErrorPolicy>,
    name: UpcallName<'_>,
    after_error: AfterError,
    managed: ManagedPart<'_, V>,
) {
    let aim = match arrival {
        Arrival::On(_, aim) | Arrival::Waiting(_, aim) => aim,
        Arrival::In(_) => Aim::World,
        Arrival::Somewhere => Aim::Type,
    };
    let upcall = Arriving { sp, policy, aim, name, after_error, managed };
    match arrival {
        Arrival::On(record, _) => upcall.on(record),
        Arrival::Waiting(record, _) => {
            // SAFETY: the word of a mutator that is managed in an upcall holds the record of that activation, and that has an older one.
            let (frame, saved) = unsafe {
                let frame = &*record.header.word.record();
                (frame, &*frame.older)
            };
            upcall.waiting(record, saved, frame);
        }
        Arrival::In(shared) => upcall.in_world(shared),
        Arrival::Somewhere => upcall.somewhere(),
    }
}

/// How much is left of the stack that an upcall comes in on.
enum Room {
    /// As much as is kept in reserve, as far as it is known.
    Enough,
    /// The same on the thread's signal stack, for stack pointers from this one up.
    OnSignalStack(usize),
    /// Less: so many bytes.
    Exhausted { left: usize, reserve: usize },
}

impl<V: StackScanner> Arriving<'_, '_, V> {
    fn somewhere(self) {
        match innermost::<V>(self.sp) {
            // SAFETY: this thread's attached record of a world of `V`.
            Innermost::Of(record) => self.on(unsafe { &*record }),
            Innermost::Ambiguous => unwind::abort(format_args!(
                "an upcall function of `{}` cannot tell which of two worlds it is for: both foreign calls were made in one stack frame; \
                 use an `UpcallClosure`, which knows its world",
                type_name::<V>()
            )),
            Innermost::None => match home::<V>() {
                Adopter::World(shared) => self.attaching(&shared),
                Adopter::Gone => tell_nobody(&Report::UpcallAfterShutdown { upcall: &self.origin() }),
                Adopter::Nobody if self.policy == Some(ErrorPolicy::Fallback) || arch::is_below_exit() => {
                    tell_nobody(&Report::UpcallWithoutWorld { vm: type_name::<V>() });
                }
                Adopter::Nobody => abort_homeless::<V>(),
            },
        }
    }

    /// The upcall, on a thread that is not attached.
    fn origin(&self) -> UpcallOrigin<'_> {
        origin(Some(self.name), None, None)
    }

    fn in_world(self, shared: &Arc<Shared<V>>) {
        // SAFETY: null, or this thread's attached record of this world.
        match unsafe { shared.current().as_ref() } {
            Some(record) => self.on(record),
            None => self.attaching(shared),
        }
    }

    /// Attaches a thread that calls in for the first time, and goes on.
    fn attaching(self, shared: &Arc<Shared<V>>) {
        let ask = Ask {
            wants: Wanted::AttachForUpcall,
            site: None,
            mutator: None,
            upcall: Some(self.name.function),
        };
        let attached = match unwind::stop(|| shared.attach(Ownership::Thread, 0, ask)) {
            Ok(attached) => attached,
            Err(payload) => {
                if self.policy == Some(ErrorPolicy::Abort) {
                    unwind::abort(format_args!(
                        "a foreign thread that called in could not be attached: `Vm::attach` {}",
                        describe::<V>(&payload)
                    ));
                }
                let error = describe::<V>(&payload);
                tell(&shared.vm, &Report::UpcallErrorUnclaimed { error, upcall: &self.origin() });
                return unwind::discard(payload);
            }
        };
        let upcall = &self.origin();
        let report = match attached {
            Ok(record) => return self.on(record),
            Err(AttachError::Shutdown) => Report::UpcallAfterShutdown { upcall },
            Err(AttachError::ThreadExiting) => Report::UpcallAtThreadExit { upcall },
            Err(AttachError::NotOpen) => Report::UpcallBeforeOpen { upcall },
            Err(AttachError::StackTooSmall { left, needed }) => {
                let refused = UpcallRefused::StackExhausted { left, reserve: needed, call_site: None };
                Report::UpcallErrorUnclaimed { error: UpcallError::Refused(refused), upcall }
            }
            Err(AttachError::Forked) => return refuse_in_copy(),
            // By the handler of a signal, or by `Vm::attach`, while this upcall was on its way to attach.
            Err(AttachError::AlreadyAttached) => {
                // SAFETY: null, or this thread's attached record of this world.
                match unsafe { shared.current().as_ref() } {
                    Some(record) => return self.on(record),
                    // Once more would be for ever: it would do the same again.
                    None => unwind::abort(format_args!(
                        "`Vm::attach` of `{}` attached the foreign thread it was called for, and detached it again; it must only make what a mutator keeps",
                        type_name::<V>()
                    )),
                }
            }
            Err(AttachError::PauseHeldHere) if arch::is_below_exit() => Report::UpcallAtProcessExit,
            // `UnknownStack` is an error of attaching managed: here nothing managed lies on the stack yet.
            Err(error @ (AttachError::PauseHeldHere | AttachError::UnknownStack)) => {
                unwind::abort(format_args!("a foreign thread calls in: {error}"))
            }
        };
        tell(&shared.vm, &report);
    }

    fn on(self, record: &Record<V>) {
        let header = &record.header;
        if !header.coordinator().is_of_this_process() {
            return refuse_in_copy();
        }
        let Some(saved) = header.word.published() else { return self.managed_already(record) };
        // SAFETY: the word of an attached mutator holds a live record.
        let saved = unsafe { saved.as_ref() };
        let room =
            if V::FAULTS.has(Faults::NO_STACK_CHECK) { Room::Enough } else { self.room(record, saved) };
        let limit = match room {
            Room::Enough => None,
            Room::OnSignalStack(limit) => Some(header.stack_limit.replace(header.own_limit.get().max(limit))),
            Room::Exhausted { left, reserve } => {
                let refused = UpcallRefused::StackExhausted { left, reserve, call_site: saved.site.get() };
                return self.refuse(record, saved, refused);
            }
        };
        // If C jumps out of the handler, the next upcall that does not come in by the common way puts it back.
        let _limit = scopeguard::guard(limit, |limit| {
            if let Some(limit) = limit {
                header.stack_limit.set(limit);
            }
        });
        if self.sp < saved.native_sp::<V>() || V::FAULTS.has(Faults::NO_SKIP_CHECK) {
            return self.from(record, saved);
        }
        match nesting::arrived::<V>(header, self.sp) {
            Arrived::InNewest => self.from(record, saved),
            Arrived::In(call) => {
                header.held(|| repair_slow(vm_of::<V>(record), header, call, Skipped::Over));
                self.from(record, call);
            }
            // What was jumped over, if it was, is found when C comes back; a scan of native frames cannot wait for that.
            Arrived::Unknown if V::CAPTURE == Capture::Nothing => self.from(record, saved),
            Arrived::Unknown => abort_unknown::<V>(record, saved),
        }
    }

    /// Looks how much is left of the stack that the upcall comes in on.
    fn room(&self, record: &Record<V>, saved: &ForeignFrame) -> Room {
        let header = &record.header;
        let (sp, stack, limit) = (self.sp, header.native_stack(), header.own_limit.get());
        let on_own = stack.contains(&sp);
        // The common place, or a signal stack in a newer frame: not worth a system call.
        if on_own && (limit..saved.native_sp::<V>()).contains(&sp) && header.stack_limit.get() == limit {
            return Room::Enough;
        }
        if let Some(SignalStack { bounds, .. }) = arch::signal_stack()
            && bounds.contains(&sp)
        {
            // SAFETY: `world` points to the `Shared<V>` whose record this is, which outlives it.
            let reserve = unsafe { &*header.world.cast::<Shared<V>>() }.stack_reserve;
            // A reserve that a small stack cannot spare would refuse every upcall.
            let (left, reserve) = (sp - bounds.start, reserve.min(bounds.len() / 2));
            return if left < reserve {
                Room::Exhausted { left, reserve }
            } else {
                Room::OnSignalStack(bounds.start + reserve)
            };
        }
        header.stack_limit.set(limit);
        if on_own && sp < limit {
            return Room::Exhausted { left: sp - stack.start, reserve: limit - stack.start };
        }
        Room::Enough
    }

    /// The mutator is managed: foreign code has skipped the running activation, or an upcall function was called where it must not be.
    fn managed_already(self, record: &Record<V>) {
        let header = &record.header;
        if !V::FAULTS.has(Faults::NO_SKIP_CHECK)
            && let Arrived::In(call) = nesting::arrived::<V>(header, self.sp)
        {
            header.held(|| repair_slow(vm_of::<V>(record), header, call, Skipped::Over));
            return self.from(record, call);
        }
        refuse_managed::<V>(record);
    }

    /// From the foreign call whose record is `saved`, on that call's terms.
    fn from(self, record: &Record<V>, saved: &ForeignFrame) {
        // SAFETY: null, or a live record of this mutator.
        if let Some(frame) = unsafe { saved.newer().as_ref() } {
            return self.at(record, saved, frame);
        }
        let terms = saved.terms();
        if matches!(saved.kind.get(), FrameKind::Suspended | FrameKind::Resuming) {
            abort_switched::<V>(record, saved);
        }
        if self.is_skipped(saved) {
            return saved.count_skipped_upcall();
        }
        if terms.upcalls == Upcalls::Forbidden {
            let refused = UpcallRefused::Forbidden { call_site: saved.site.get() };
            return self.refuse(record, saved, refused);
        }
        let Self { sp, policy, aim, name, after_error, managed } = self;
        if terms.ends_with_upcall {
            let mut managed = Some(managed);
            let mut run = |record: &Record<V>, frame: &ForeignFrame| {
                // Managed at last: until here a stopper may have been reading what ends now.
                saved.end_until_first_upcall();
                if let Some(managed) = managed.take() {
                    managed.run(record, frame);
                }
            };
            let upcall =
                Arriving::<V> { sp, policy, aim, name, after_error, managed: ManagedPart::new(&mut run) };
            return upcall.preserving(record, saved, terms.preserve);
        }
        Arriving { sp, policy, aim, name, after_error, managed }.preserving(record, saved, terms.preserve);
    }

    /// With the managed side's machine state in the upcall and C's own after it.
    fn preserving(self, record: &Record<V>, saved: &ForeignFrame, preserve: MachineState) {
        // SAFETY: a live record of this mutator.
        let frame = unsafe { &*saved.newer_slow() };
        if preserve == MachineState::NOTHING {
            return self.at(record, saved, frame);
        }
        // C gets its own state back, also when an exception of its own passes through the upcall.
        let _foreign = scopeguard::guard(Saved::read(preserve), |foreign| foreign.restore());
        saved.machine().restore();
        self.at(record, saved, frame);
    }

    /// To the activation whose record is `frame`.
    fn at(self, record: &Record<V>, saved: &ForeignFrame, frame: &ForeignFrame) {
        if !go_in::<V>(record, frame) {
            return self.waiting(record, saved, frame);
        }
        self.managed.run(record, frame);
    }

    /// Waits, since a pause is wanted, before the body runs.
    fn waiting(self, record: &Record<V>, saved: &ForeignFrame, frame: &ForeignFrame) {
        match wait_to_come_in::<V>(&record.header, saved, frame) {
            Ok(()) => self.managed.run(record, frame),
            Err(Unreleased::PauseHeldHere) => {
                // What the way in took, a global lock, is given back: the way back of the foreign call takes it again.
                record.header.held(|| hook(|| vm_of::<V>(record).leaving_managed(Crossing::Upcall)));
                self.refuse(record, saved, UpcallRefused::PauseHeldHere { call_site: saved.site.get() });
            }
            // An upcall is never parked.
            Err(Unreleased::Ended | Unreleased::Parked) => {
                let vm = vm_of::<V>(record);
                record.header.held(|| hook(|| vm.leaving_managed(Crossing::Upcall)));
                if record.header.is_own_and_idle() {
                    return self.leaving_behind(record);
                }
                record.header.held(|| {
                    let upcall = &origin(Some(self.name), Some(&record.header), Some(saved));
                    tell(vm, &Report::UpcallAfterShutdown { upcall });
                });
            }
        }
    }

    /// Says whether an upcall of the call with the record `saved` does not run, since one before it has failed.
    fn is_skipped(&self, saved: &ForeignFrame) -> bool {
        saved.carries_error()
            && self.after_error == AfterError::Skip
            && saved.terms().after_error == AfterError::Skip
    }

    /// Lets go of a world that has ended, on a foreign thread that was in no upcall, and goes on to the world
    /// that adopts such threads now. A closure's upcall stays with its world.
    fn leaving_behind(self, record: &Record<V>) {
        let header = &record.header;
        // SAFETY: `world` points to the `Shared<V>` whose record this is; the thread is attached and keeps it.
        let kept = unsafe { &*header.world.cast::<Shared<V>>() }.own.upgrade();
        let Some(shared) = kept else {
            return tell_nobody(&Report::UpcallAfterShutdown { upcall: &self.origin() });
        };
        // On a signal's stack the limit is put back when this is over: the record must be there then.
        let stays = header.stack_limit.get() != header.own_limit.get();
        if !stays {
            header.word.clear(ENDED, V::FAULTS);
        }
        let mut detached = Ok(());
        hook(|| detached = if stays { Err("") } else { shared.detach(header, None) });
        if !stays && detached.is_err() {
            // The thread is attached as before, and the world has ended for it as before.
            header.word.ask(ENDED);
        }
        match (self.aim, home::<V>()) {
            (Aim::World, _) if detached.is_ok() => self.attaching(&shared),
            (Aim::Type, Adopter::World(next)) if detached.is_ok() => self.attaching(&next),
            _ => tell(&shared.vm, &Report::UpcallAfterShutdown { upcall: &self.origin() }),
        }
    }

    /// Refuses the upcall: the error goes to whoever runs the foreign call, or the pause.
    fn refuse(self, record: &Record<V>, saved: &ForeignFrame, refused: UpcallRefused) {
        if self.is_skipped(saved) {
            return saved.count_skipped_upcall();
        }
        let refused = Box::new(refused);
        record.header.held(|| carry::<V>(record, saved, self.policy, Some(self.name), refused));
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

/// Refuses an upcall in a copy of the process that nobody prepared. The VM is not told: it may be half
/// way through anything.
#[cold]
fn refuse_in_copy() {
    process::say(format_args!("an upcall gave C the fallback value, since {}", process::FORKED));
}

/// Tells of an upcall that found no world whose VM could be told.
pub(super) fn tell_nobody(report: &Report<'_>) {
    use std::io::Write as _;
    // Foreign frames are next, so nothing may unwind; what cannot be written is lost.
    hook(|| drop(writeln!(std::io::stderr(), "reentry: {report}")));
}

/// An upcall came in on a mutator that is managed. Where managed code has called `exit`, a handler or
/// a destructor of foreign code may do that, and gets the fallback value; elsewhere it is misuse.
#[cold]
#[inline(never)]
fn refuse_managed<V: StackScanner>(record: &Record<V>) {
    if !arch::is_below_exit() {
        abort_managed::<V>(record);
    }
    record.header.held(|| tell(vm_of::<V>(record), &Report::UpcallAtProcessExit));
}

/// Nothing tells whether foreign code has jumped, and a scanner would walk the frames that it may have jumped over.
#[cold]
#[inline(never)]
fn abort_unknown<V: StackScanner>(record: &Record<V>, saved: &ForeignFrame) -> ! {
    // SAFETY: null, or a live record of this mutator.
    let older = unsafe { saved.older.as_ref() };
    unwind::abort(format_args!(
        "mutator {} cannot receive an upcall: nothing tells whether it is one of the foreign call at {}, or whether C has jumped past that call to the one at {}; \
         compile the C code with unwind tables (`-fasynchronous-unwind-tables`)",
        record.header.id.get(),
        Site(saved.site.get()),
        Site(older.and_then(|older| older.site.get()))
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

#[cold]
#[inline(never)]
fn abort_homeless<V>() -> ! {
    unwind::abort(format_args!(
        "a thread that no world knows called an upcall function of `{}`; call `World::adopt_foreign_threads` first, \
         or use an `UpcallClosure`, which knows its world",
        type_name::<V>()
    ))
}
