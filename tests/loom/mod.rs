//! What the models share: a VM whose heap is one object for each mutator, a collector that moves them all, and loom's bounds.
//!
//! The models drive the crate through its public API, so what loom explores is the protocol itself. The heap is what makes
//! a broken protocol show: every object stands in a loom cell, which a mutator touches while it is managed and the collector while the world
//! is stopped. loom refuses two touches that no synchronisation orders, on whichever schedule and with whichever stale value it finds them.
//!
//! # What a failing model says
//!
//! | message begins | what was seen |
//! |---|---|
//! | [`EXCLUSION`] | a touch of the heap that nothing orders against the collector's (I4) |
//! | [`PUBLICATION`] | a stopped mutator without the activation that made its foreign call, or with half a record (I1) |
//! | [`WARP`] | a root that a foreign call had declared was not reported, or not updated (I2) |
//! | [`MEMBERSHIP`] | the set of mutators changed while a pause was in force |
//!
//! # Broken twins
//!
//! Each model has twins: the same model over a [`Protection`] that takes one protection away. A twin must fail, and with the message that its comment explains.
//! loom ends a failing model by unwinding through one of its threads while the others stand still, so no guard may run the protocol on the way: see
//! [`UnlessPanicking`], and [`collect`], which lets the pause end first.
//!
//! # How far it goes
//!
//! Each model says its bound on preemptions, and how many executions that makes. Two threads are explored to four preemptions, three threads to three; all models and twins together take
//! about a minute (x86_64, two cores shared with other work, `--release`). A twin fails within 0.1 s. `must_have` fails a model whose bound leaves out the
//! places it is about.
//!
//! What loom does not see: the asymmetric strategy, since loom has no `membarrier` (there every crossing fences); load buffering; the nap of a stopper that has waited long; thread-local
//! destructors, which loom runs when the other locals of the thread are gone.

#![allow(dead_code, reason = "each model uses a part of this")]

use core::any::Any;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::panic::AssertUnwindSafe;
use loom::cell::UnsafeCell;
use reentry::faults::Faults;
use reentry::{
    FrameKind, Mutator, Report, RootVisitor, Segment, Slot, StackScanner, StoppedWorld, UpcallError, Vm,
    World,
};
use std::collections::BTreeSet;
use std::panic::{catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, PoisonError};

/// I4 does not hold.
pub(crate) const EXCLUSION: &str = "I4: the heap was touched in a pause";
/// I1 does not hold.
pub(crate) const PUBLICATION: &str = "I1: a record is not complete";
/// I2 does not hold.
pub(crate) const WARP: &str = "I2: a declared root was lost";
/// The gate does not hold.
pub(crate) const MEMBERSHIP: &str = "the set of mutators changed within a pause";

/// Which protections a model runs with.
pub(crate) trait Protection: Send + Sync + 'static {
    const FAULTS: Faults;
}

macro_rules! protections {
    ($($name:ident = $fault:ident;)*) => {
        $(
            pub(crate) struct $name;
            impl Protection for $name {
                const FAULTS: Faults = Faults::$fault;
            }
        )*
    };
}

protections! {
    Intact = NONE;
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

/// Addresses of one object lie this close together, so that a stale one still tells whose it is.
const STRIDE: usize = 1000;

/// One object, with what the model knows of it.
#[derive(Clone, Copy)]
struct Object {
    /// Where it is. Every collection moves it.
    address: usize,
    /// The foreign call that has declared it: its mutator, and the depth of its activation.
    call: Option<(u64, usize)>,
}

/// What the pauses of a model found published: the depth and kind of each newest activation, over all executions.
#[derive(Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<BTreeSet<(usize, &'static str)>>>);

impl Seen {
    fn add(&self, depth: usize, kind: FrameKind) {
        let kind = match kind {
            FrameKind::ForeignCall => "foreign call",
            FrameKind::Safepoint => "safepoint",
            FrameKind::Leaving => "leaving",
            _ => "foreign thread",
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert((depth, kind));
    }

    /// Fails unless some pause of some execution stopped a mutator whose newest activation was each of these: a model that never
    /// gets there proves nothing.
    #[track_caller]
    pub(crate) fn must_have(&self, expected: &[(usize, &'static str)]) {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for place in expected {
            assert!(seen.contains(place), "no pause found a mutator at {place:?}, only at {seen:?}");
        }
    }
}

/// The VM of the models. It keeps no frames of its own: what there is to report, foreign calls declare.
pub(crate) struct ModelVm<P> {
    objects: [UnsafeCell<Object>; OBJECTS],
    seen: Seen,
    /// What an upcall of a foreign thread panicked with, which has no caller to go on to.
    unclaimed: Mutex<Option<String>>,
    _protection: PhantomData<fn() -> P>,
}

// SAFETY: the objects are reached through `touch` only, and loom fails the model when two touches race.
unsafe impl<P> Sync for ModelVm<P> {}

impl<P: Protection> Vm for ModelVm<P> {
    type Ref = usize;
    type Local = ();
    type Exception = core::convert::Infallible;

    fn attach(&self) {}

    fn report(&self, report: &Report<'_>) {
        let unclaimed = match report {
            Report::UpcallErrorUnclaimed { error: UpcallError::Panic { payload } } => {
                text(*payload).to_owned()
            }
            other => other.to_string(),
        };
        self.unclaimed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(unclaimed);
    }
}

// SAFETY: there are no references in segments, so S1 to S5 hold of nothing; S6 is what the broken twins break.
unsafe impl<P: Protection> StackScanner for ModelVm<P> {
    const FAULTS: Faults = P::FAULTS;

    fn scan_segment(&self, (): &(), _segment: &Segment<'_>, _visitor: &mut dyn RootVisitor<usize>) {}
}

impl<P: Protection> ModelVm<P> {
    pub(crate) fn world(seen: &Seen) -> World<Self> {
        let object = |index| UnsafeCell::new(Object { address: index * STRIDE, call: None });
        World::new(Self {
            objects: core::array::from_fn(object),
            seen: seen.clone(),
            unclaimed: Mutex::new(None),
            _protection: PhantomData,
        })
    }

    /// Fails if an upcall of a foreign thread has.
    pub(crate) fn claim(&self) {
        let unclaimed = self.unclaimed.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(unclaimed) = unclaimed {
            panic!("{unclaimed}");
        }
    }

    fn access<R>(&self, index: usize, f: impl FnOnce(&mut Object) -> R) -> R {
        let cell = &self.objects[index];
        // SAFETY: loom has checked that no other touch is concurrent before it calls the closure, which does not touch the cell again.
        match catch_unwind(AssertUnwindSafe(|| cell.with_mut(|object| f(unsafe { &mut *object })))) {
            Ok(result) => result,
            Err(violation) => panic!("{EXCLUSION}: object {index}: {}", text(&*violation)),
        }
    }

    /// Touches an object, as managed code may.
    pub(crate) fn touch(&self, index: usize) {
        self.access(index, |_| ());
    }

    /// Where an object is now, as managed code may ask.
    pub(crate) fn address(&self, index: usize) -> usize {
        self.access(index, |object| object.address)
    }

    /// Collects: moves every object, updates every root that is reported, and checks that every declared one is.
    fn collect(&self, stopped: &StoppedWorld<'_, Self>) {
        // The heap first: if the pause does not exclude a mutator, this is what tells, before anything else looks odd.
        let objects: [Object; OBJECTS] = core::array::from_fn(|index| {
            self.access(index, |object| {
                let before = *object;
                object.address += 1;
                before
            })
        });
        for mutator in stopped.mutators() {
            let chain: Vec<_> = mutator.activations().collect();
            for (older, activation) in chain.iter().rev().enumerate() {
                assert_eq!(activation.depth(), older, "{PUBLICATION}: the chain is {chain:?}");
                if activation.segment().is_none() {
                    continue; // a foreign thread's base, or a mutator that is leaving: there is no frame to name
                }
                // The portable backend, which loom runs on, makes the call site's address the pc.
                let site = activation.call_site().map_or(0, |site| core::ptr::from_ref(site).addr());
                assert_ne!(site, 0, "{PUBLICATION}: no call site in {chain:?}");
                assert_eq!(activation.anchor().pc, site, "{PUBLICATION}: the anchor is another crossing's");
            }
            if let Some(newest) = chain.first() {
                self.seen.add(newest.depth(), newest.kind());
            }
        }
        let mut roots = Roots { objects: &objects, reported: [0; OBJECTS] };
        for (index, object) in objects.iter().enumerate() {
            let Some((id, depth)) = object.call else { continue };
            let activation = stopped
                .mutators()
                .filter(|mutator| mutator.id() == id)
                .flat_map(|mutator| mutator.activations())
                .find(|activation| {
                    activation.depth() == depth && activation.kind() == FrameKind::ForeignCall
                });
            let Some(activation) = activation else {
                panic!(
                    "{PUBLICATION}: the foreign call of mutator {id} at depth {depth} is not in its chain"
                );
            };
            let mut declared = 0;
            activation.for_each_declared(|root| declared += usize::from(root.slot.load() == object.address));
            assert_eq!(
                declared, 1,
                "{WARP}: object {index} of the foreign call at depth {depth} is not declared"
            );
        }
        stopped.enumerate(&mut roots);
        for (index, object) in objects.iter().enumerate() {
            let expected = usize::from(object.call.is_some());
            assert_eq!(roots.reported[index], expected, "{WARP}: object {index}, as `enumerate` reports it");
        }
    }
}

/// Updates every slot it is given.
struct Roots<'o> {
    objects: &'o [Object; OBJECTS],
    reported: [usize; OBJECTS],
}

impl RootVisitor<usize> for Roots<'_> {
    fn slot(&mut self, mut slot: Slot<'_, usize>) {
        let address = slot.load();
        let index = address / STRIDE;
        assert_eq!(
            address, self.objects[index].address,
            "{WARP}: the slot of object {index} missed a collection"
        );
        slot.store(address + 1);
        self.reported[index] += 1;
    }

    fn pinned(&mut self, _reference: usize) {
        unreachable!("the models pin nothing")
    }

    fn transitively_pinned(&mut self, _reference: usize) {
        unreachable!("the models pin nothing")
    }
}

/// Runs `f` in a pause, so that what it panics with goes on when the world has resumed: ending the pause takes a lock, and a
/// thread that unwinds must not wait for others.
///
/// # Errors
///
/// What `f` panicked with.
fn held<R>(f: impl FnOnce() -> R) -> Result<R, Box<dyn Any + Send>> {
    catch_unwind(AssertUnwindSafe(f))
}

/// Stops the world from a thread that is no mutator, or is foreign, runs `f`, and resumes the world.
pub(crate) fn pause<P: Protection, R>(
    world: &World<ModelVm<P>>,
    f: impl FnOnce(&StoppedWorld<'_, ModelVm<P>>) -> R,
) -> R {
    world.pause(|stopped| held(|| f(stopped))).unwrap_or_else(|panic| resume_unwind(panic))
}

/// Stops the world from a thread that is no mutator, or is foreign, and collects.
pub(crate) fn collect<P: Protection>(world: &World<ModelVm<P>>) {
    pause(world, |stopped| stopped.vm().collect(stopped));
}

/// Stops the world from a managed mutator, and collects.
pub(crate) fn collect_in<P: Protection>(mutator: &mut Mutator<ModelVm<P>>) {
    mutator
        .pause(|stopped| held(|| stopped.vm().collect(stopped)))
        .unwrap_or_else(|panic| resume_unwind(panic));
}

/// Makes a foreign call that declares an object as a root, and checks that the root followed the object through every
/// collection. `foreign` is given the root's slot.
pub(crate) fn call_with_root<P: Protection>(
    world: &World<ModelVm<P>>,
    mutator: &mut Mutator<ModelVm<P>>,
    index: usize,
    foreign: impl FnOnce(usize),
) {
    let vm = world.vm();
    let place = (mutator.id(), mutator.depth());
    let mut call = UnlessPanicking::new(mutator.foreign_call());
    let root = call.root(vm.access(index, |object| {
        object.call = Some(place);
        object.address
    }));
    let slot = root.slot().addr();
    call.run(|| foreign(slot));
    let address = vm.access(index, |object| {
        object.call = None;
        object.address
    });
    assert_eq!(call.get(root), address, "{WARP}: the root of object {index} is stale after the call");
}

/// Attaches this thread, for a model.
pub(crate) fn attach<P: Protection>(
    world: &World<ModelVm<P>>,
) -> UnlessPanicking<reentry::Attachment<ModelVm<P>>> {
    UnlessPanicking::new(world.attach().expect("the world takes in every thread of a model"))
}

/// Drops its value, except on a thread that unwinds: then the model has failed and the other threads stand still for ever.
pub(crate) struct UnlessPanicking<T>(core::mem::ManuallyDrop<T>);

impl<T> UnlessPanicking<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(core::mem::ManuallyDrop::new(value))
    }
}

impl<T> Deref for UnlessPanicking<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for UnlessPanicking<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T> Drop for UnlessPanicking<T> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: the value is not used after its owner's drop.
            unsafe { core::mem::ManuallyDrop::drop(&mut self.0) };
        }
    }
}

fn text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&'static str>().copied())
        .unwrap_or("a panic without text")
}

/// Explores a model: every schedule with at most `preemptions` involuntary switches, and every value that each load may see.
///
/// `LOOM_MAX_PREEMPTIONS` overrides the bound. The number of executions goes to standard error, where `--nocapture` shows it.
pub(crate) fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let executions = Arc::new(core::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&executions);
    let started = std::time::Instant::now();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.check(move || {
        counted.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
        model();
    });
    eprintln!("{executions:?} executions in {:.1?}", started.elapsed());
}
