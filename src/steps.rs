//! The micro-steps of the crossing, and who watches them (feature `explore`).
//!
//! Each place where it matters whether a stop arrives before or after it has a name here, and says so when a thread passes it: [`reached`]; and so does a thread that begins to wait for
//! another. Without the feature all this is nothing. With it, a thread that is being explored stops there for as long as its [`Probe`] likes; other threads look at a thread-local.

use core::fmt;

/// A micro-step of a crossing: a place between two instructions that other threads could tell apart.
///
/// The list is fixed: [`Step::ALL`]. What follows a step, up to the next one, is in the state the step's description names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[non_exhaustive]
pub enum Step {
    /// A foreign call's record is complete, and not published: managed.
    CallPrepared,
    /// It is published: foreign, C has not begun.
    CallPublished,
    /// C has returned: foreign.
    CallReturning,
    /// The frame word says "managed", and the poll word has not been read.
    CallRetracted,
    /// The call is over: managed.
    CallBack,
    /// An upcall has found its mutator: foreign.
    UpcallArrived,
    /// The frame word says "managed", and the poll word has not been read.
    UpcallRetracted,
    /// The body of the upcall begins: managed.
    UpcallRunning,
    /// The upcall's own roots are released: managed.
    UpcallEnding,
    /// Between two publications of a crate that makes a mistake (a test-only switch): foreign.
    UpcallHalfPublished,
    /// The record that was set aside is published again: foreign.
    UpcallReturned,
    /// A poll begins, and the poll word has not been read: managed.
    Polling,
    /// A safepoint's record is complete, and not published: managed.
    SafepointPrepared,
    /// It is published.
    SafepointPublished,
    /// The frame word says "managed", and the poll word has not been read.
    SafepointRetracted,
    /// The safepoint is over: managed.
    SafepointLeft,
    /// A pause that was waited for is over: published still.
    WaitOver,
    /// The same; the frame word says "managed", and the poll word has not been read.
    WaitRetracted,
    /// Foreign code has jumped over activations, and they are about to be released: managed, until the call that comes back is published.
    RepairBegun,
    /// They are released, and the call that comes back is published: foreign.
    RepairDone,
    /// This thread's own stop has set the poll words, and has not looked at the mutators.
    StopAsked,
    /// This thread's own pause is in force.
    StopInForce,
    /// This thread's own pause is over.
    StopEnded,
    /// A thread is about to attach: no mutator of its own yet.
    Attaching,
    /// It is attached: managed.
    Attached,
    /// A foreign thread is attached by its first upcall, which has not begun.
    AttachedForeign,
    /// A mutator is about to detach, and not published as leaving: managed.
    Detaching,
    /// It is published, without frames, and waits for nothing yet.
    DetachPublished,
    /// It is detached.
    Detached,
    /// A managed stack has moved, and what pointed into it has not been rebased: managed, or in this thread's own pause.
    Relocating,
    /// It has.
    Relocated,
}

/// What a thread may be seen doing between one step and the next.
///
/// No publication follows a managed step without a step in between.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stance {
    /// A pause would wait for it, and it is none of a pause's business to be in force.
    Managed,
    /// On its way from one to the other.
    Between,
    /// A pause need not wait for it.
    Published,
}

macro_rules! steps {
    ($($step:ident $name:literal $stance:ident,)*) => {
        impl Step {
            /// Every step, in the order of a crossing.
            pub const ALL: &[Self] = &[$(Self::$step),*];

            /// Its name in a schedule: lower case, with hyphens.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$step => $name,)*
                }
            }

            /// What its thread is from here to the next step.
            pub(crate) const fn stance(self) -> Stance {
                match self {
                    $(Self::$step => Stance::$stance,)*
                }
            }
        }
    };
}

steps! {
    CallPrepared "call-prepared" Between,
    CallPublished "call-published" Published,
    CallReturning "call-returning" Published,
    CallRetracted "call-retracted" Between,
    CallBack "call-back" Managed,
    UpcallArrived "upcall-arrived" Published,
    UpcallRetracted "upcall-retracted" Between,
    UpcallRunning "upcall-running" Managed,
    UpcallEnding "upcall-ending" Between,
    UpcallHalfPublished "upcall-half-published" Published,
    UpcallReturned "upcall-returned" Published,
    Polling "polling" Managed,
    SafepointPrepared "safepoint-prepared" Between,
    SafepointPublished "safepoint-published" Published,
    SafepointRetracted "safepoint-retracted" Between,
    SafepointLeft "safepoint-left" Managed,
    WaitOver "wait-over" Published,
    WaitRetracted "wait-retracted" Between,
    RepairBegun "repair-begun" Between,
    RepairDone "repair-done" Published,
    StopAsked "stop-asked" Published,
    StopInForce "stop-in-force" Published,
    StopEnded "stop-ended" Published,
    Attaching "attaching" Published,
    Attached "attached" Managed,
    AttachedForeign "attached-foreign" Published,
    Detaching "detaching" Between,
    DetachPublished "detach-published" Published,
    Detached "detached" Published,
    Relocating "relocating" Managed,
    Relocated "relocated" Managed,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Watches a thread.
///
/// Its methods are called by the crate's own code, on the thread that is watched: they must not unwind, nor cross.
pub(crate) trait Probe {
    /// The thread has reached a step, in the world whose address is `world`. It may be kept here: it holds no lock of the crate.
    fn reached(&self, world: *const (), step: Step);

    /// The thread waits for another to be published. It must not be kept here: it holds the stop that others wait for.
    fn waits(&self, world: *const ());

    /// The thread is about to wait for a stop to end. It may be kept here: it holds no lock of the crate, and looks again afterwards.
    fn stands_by(&self, world: *const ());
}

#[cfg(all(feature = "explore", not(loom)))]
mod watched {
    use super::{Probe, Step};
    use core::cell::Cell;
    use core::ptr::{self, NonNull};
    use std::sync::{Mutex, PoisonError};

    std::thread_local! {
        static PROBE: Cell<Option<NonNull<dyn Probe>>> = const { Cell::new(None) };
    }

    /// Runs `f` with `probe` watching this thread.
    ///
    /// # Panics
    ///
    /// With what `f` panics with.
    pub(crate) fn with_probe<'p, R>(probe: &'p (dyn Probe + 'p), f: impl FnOnce() -> R) -> R {
        // SAFETY: the lifetime alone is changed; the probe is not used after this function, which borrows it.
        let probe =
            unsafe { core::mem::transmute::<&'p (dyn Probe + 'p), &'static (dyn Probe + 'static)>(probe) };
        let before = PROBE.replace(Some(NonNull::from(probe)));
        let _back = scopeguard::guard(before, |before| PROBE.set(before));
        f()
    }

    /// Those who are told that a thread waits that nobody watches.
    static OTHERS: Mutex<Vec<Others>> = Mutex::new(Vec::new());

    struct Others(NonNull<dyn Probe + Sync>);

    // SAFETY: `Sync`, and borrowed by `with_others` for as long as it is here.
    unsafe impl Send for Others {}

    /// Runs `f` with `probe` told of each thread without a probe that begins to wait.
    ///
    /// # Panics
    ///
    /// With what `f` panics with.
    pub(crate) fn with_others<'p, R>(probe: &'p (dyn Probe + Sync + 'p), f: impl FnOnce() -> R) -> R {
        // SAFETY: the lifetime alone is changed; the probe is not used after this function, which borrows it.
        let probe = unsafe {
            core::mem::transmute::<&'p (dyn Probe + Sync + 'p), &'static (dyn Probe + Sync + 'static)>(probe)
        };
        let probe = NonNull::from(probe);
        let lock = || OTHERS.lock().unwrap_or_else(PoisonError::into_inner);
        lock().push(Others(probe));
        let _back = scopeguard::guard((), |()| {
            lock().retain(|others| !ptr::addr_eq(others.0.as_ptr(), probe.as_ptr()))
        });
        f()
    }

    fn probe() -> Option<NonNull<dyn Probe>> {
        // Thread-local destructors make crossings too.
        PROBE.try_with(Cell::get).ok().flatten()
    }

    #[inline(always)]
    pub(crate) fn reached(world: *const (), step: Step) {
        if let Some(probe) = probe() {
            // SAFETY: set by `with_probe`, which borrows it until it has put back what was there before.
            unsafe { probe.as_ref() }.reached(world, step);
        }
    }

    #[inline(always)]
    pub(crate) fn waits(world: *const ()) {
        if let Some(probe) = probe() {
            // SAFETY: as above.
            unsafe { probe.as_ref() }.waits(world);
        }
    }

    /// Says that this thread is about to wait for a stop to end. It holds no lock.
    pub(crate) fn stands_by(world: *const ()) {
        match probe() {
            // SAFETY: as above.
            Some(probe) => unsafe { probe.as_ref() }.stands_by(world),
            None => {
                for others in &*OTHERS.lock().unwrap_or_else(PoisonError::into_inner) {
                    // SAFETY: on the list, so `with_others` borrows it, and it is not taken off the list while that is locked.
                    unsafe { others.0.as_ref() }.stands_by(world);
                }
            }
        }
    }
}

#[cfg(not(all(feature = "explore", not(loom))))]
mod watched {
    use super::Step;

    #[inline(always)]
    pub(crate) fn reached(_world: *const (), _step: Step) {}

    #[inline(always)]
    pub(crate) fn waits(_world: *const ()) {}
}

pub(crate) use watched::*;
