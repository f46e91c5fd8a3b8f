//! What the crate's own models share: the VM they run over the kit of `reentry::testkit::model`, and the switches of their twins.
//!
//! The models drive the crate through its public API, so what loom explores is the protocol itself. The kit says what a failing model says, how twins fail, and what loom does not see.
//!
//! # How far it goes
//!
//! Each model says its bound on preemptions, and how many executions that makes. Two threads are explored to four preemptions, three threads to three; all models and twins together take
//! about a minute (x86_64, two cores shared with other work, `--release`). A twin fails within 0.1 s. `must_have` fails a model whose bound leaves out the
//! places it is about.

#![allow(dead_code, reason = "each model uses a part of this")]
#![allow(unused_imports, reason = "each model uses a part of this")]

pub(crate) use reentry::FrameKind;
pub(crate) use reentry::testkit::model::{
    Faults, HeapCell, PUBLICATION, Seen, UnlessPanicking, WARP, attach, check, handshake, pause,
};
pub(crate) use reentry::testkit::{Correct as Intact, FaultSet as Protection};

use core::marker::PhantomData;
use reentry::testkit::model::{ModelHeap, Unclaimed, pause_in};
use reentry::{Mutator, Report, RootVisitor, Segment, StackScanner, StoppedWorld, Vm, World};

/// The gate does not hold.
pub(crate) const MEMBERSHIP: &str = "the set of mutators changed within a pause";

macro_rules! protections {
    ($($name:ident = $fault:ident;)*) => {
        $(
            pub(crate) struct $name;
            // SAFETY: for a twin, in which loom runs one thread at a time.
            unsafe impl Protection for $name {
                const FAULTS: Faults = Faults::$fault;
            }
        )*
    };
}

protections! {
    NoLightFence = NO_LIGHT_FENCE;
    NoWaitOnReturn = NO_WAIT_ON_RETURN;
    NoWaitOnUpcall = NO_WAIT_ON_UPCALL;
    NoWaitForMutators = NO_WAIT_FOR_MUTATORS;
    ForeignBeforeReinstate = FOREIGN_BEFORE_REINSTATE;
    RootsDroppedByUpcall = ROOTS_DROPPED_BY_UPCALL;
    RelaxedPublish = RELAXED_PUBLISH;
    RelaxedResume = RELAXED_RESUME;
    UngatedAttach = UNGATED_ATTACH;
    UngatedDetach = UNGATED_DETACH;
    HandleReleasedAtOnce = HANDLE_RELEASED_AT_ONCE;
    LookupUncounted = LOOKUP_UNCOUNTED;
    ClosureEndedAtOnce = CLOSURE_ENDED_AT_ONCE;
    UngatedStop = UNGATED_STOP;
    ClosedTooEarly = CLOSED_TOO_EARLY;
    RelaxedPost = RELAXED_POST;
    WokenTooLate = WOKEN_TOO_LATE;
}

/// How many objects the heap has: two of its own for each of two mutators.
pub(crate) const OBJECTS: usize = 4;

/// The VM of the models. It keeps no frames of its own: what there is to report, foreign calls declare.
pub(crate) struct ModelVm<P> {
    heap: ModelHeap,
    seen: Seen,
    /// What an upcall of a foreign thread panicked with, which has no caller to go on to.
    unclaimed: Unclaimed,
    _protection: PhantomData<fn() -> P>,
}

impl<P: Protection> Vm for ModelVm<P> {
    type Ref = usize;
    type Local = ();
    type Exception = core::convert::Infallible;

    fn attach(&self) {}

    fn report(&self, report: &Report<'_>) {
        self.unclaimed.note(report);
    }
}

// SAFETY: there are no references in segments, so S1 to S5 hold of nothing; S6 is what the broken twins break.
unsafe impl<P: Protection> StackScanner for ModelVm<P> {
    const FAULTS: Faults = P::FAULTS;

    fn scan_segment(&self, (): &(), _segment: &Segment<'_>, _visitor: &mut dyn RootVisitor<usize>) {}
}

impl<P: Protection> ModelVm<P> {
    pub(crate) fn world(seen: &Seen) -> World<Self> {
        World::new(Self {
            heap: ModelHeap::new([(); OBJECTS]),
            seen: seen.clone(),
            unclaimed: Unclaimed::default(),
            _protection: PhantomData,
        })
    }

    /// Fails if an upcall of a foreign thread has.
    pub(crate) fn claim(&self) {
        self.unclaimed.claim();
    }

    /// Touches an object, as managed code may.
    pub(crate) fn touch(&self, index: usize) {
        self.heap.touch(index);
    }

    /// Where an object is now, as managed code may ask.
    pub(crate) fn address(&self, index: usize) -> usize {
        self.heap.reference(index)
    }

    /// Collects. Nothing but what foreign calls have declared is a root here, and each anchor is of the crossing it stands at: the portable backend, which loom runs on, makes the call site's address
    /// the pc.
    fn collect(&self, stopped: &StoppedWorld<'_, Self>) {
        let collected = self.heap.collect(stopped, &self.seen);
        for index in 0..OBJECTS {
            let expected = usize::from(collected.in_call(index));
            assert_eq!(
                collected.reported(index),
                expected,
                "{WARP}: object {index}, as `enumerate` reports it"
            );
        }
        for activation in stopped.mutators().flat_map(|mutator| mutator.activations()) {
            if activation.segment().is_some() {
                let site = activation.call_site().map_or(0, |site| core::ptr::from_ref(site).addr());
                assert_eq!(activation.anchor().pc, site, "{PUBLICATION}: the anchor is another crossing's");
            }
        }
    }
}

/// Stops the world from a thread that is no mutator, or is foreign, and collects.
pub(crate) fn collect<P: Protection>(world: &World<ModelVm<P>>) {
    pause(world, |stopped| stopped.vm().collect(stopped));
}

/// Stops the world from a managed mutator, and collects.
pub(crate) fn collect_in<P: Protection>(mutator: &mut Mutator<ModelVm<P>>) {
    pause_in(mutator, |stopped| stopped.vm().collect(stopped));
}

/// Makes a foreign call that declares an object as a root, and checks that the root followed the object through every
/// collection. `foreign` is given the root's slot.
pub(crate) fn call_with_root<P: Protection>(
    world: &World<ModelVm<P>>,
    mutator: &mut Mutator<ModelVm<P>>,
    index: usize,
    foreign: impl FnOnce(usize),
) {
    world.vm().heap.call_with_root(mutator, index, foreign);
}
