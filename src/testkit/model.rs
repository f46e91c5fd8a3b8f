//! The kit for loom models of a host (feature `testkit`, under `--cfg loom`).
//!
//! Under `--cfg loom` this crate runs on loom's primitives, and so can a host: then a *model*, a closure that starts a few threads over a [`World`], is run once for each schedule of them and each value
//! that a load may see. What loom explores is the crate's own protocol and the host's own code. The chapter [`guide::models`](crate::guide::models) tells how to set a crate up for that.
//!
//! | item | for |
//! |---|---|
//! | [`loom`] | the loom that this crate runs on: the host's primitives must be of the same |
//! | [`check`] | running a model |
//! | [`HeapCell`] | what managed code touches while it is managed and a collector in a pause: loom refuses two touches that nothing orders |
//! | [`ModelHeap`] | a heap of such cells, and a collector that moves every object and checks what it is told |
//! | [`attach`], [`pause`], [`pause_in`], [`handshake`], [`UnlessPanicking`] | the crate's own, so that a model that fails says why and does not hang |
//! | [`Seen`] | failing a model that never reaches the places it is about |
//! | [`Unclaimed`] | failing a model whose upcall has failed on a thread without a managed caller |
//!
//! # What a failing model says
//!
//! | message begins | what was seen |
//! |---|---|
//! | [`EXCLUSION`] | a touch of the heap that nothing orders against another, most often the collector's (I4) |
//! | [`PUBLICATION`] | a stopped mutator without the activation that made its foreign call, or with half a record (I1) |
//! | [`WARP`] | a root that a foreign call had declared was not reported, or not updated (I2) |
//! | [`STALE`] | a reference was used whose object has moved: it was kept over a safepoint without a root |
//! | `deadlock` | loom's own: every thread waits. A lock is held over a safepoint or a foreign call and wanted in a pause, for one |
//! | `Model exceeded maximum number of branches` | loom's own: something goes on without end. Most often a pause that looks again and again whether a mutator has stopped which waits for something else while it is managed |
//! | `Causality violation` | loom's own: a race on a bare loom cell |
//!
//! # Broken twins
//!
//! A model that cannot fail proves nothing, so each has a *broken twin*: the same model over a host with one mistake, or over a crate with one protection taken away
//! ([`Faults`], by `StackScanner::FAULTS`), that must fail with the message you expect (`#[should_panic(expected = …)]`).
//!
//! loom ends a failing model by unwinding through one of its threads while the others stand still for ever; so nothing that unwinds may wait for another thread. That is why a model uses [`pause`]
//! of this kit, which lets the pause end before a panic goes on, and keeps its attachments in [`UnlessPanicking`], which does not drop on the way.

mod heap;
#[cfg(feature = "libffi")]
mod occupancy;

pub use crate::faults::Faults;
pub use crate::sync::exploration::*;
pub use heap::{Collected, ModelHeap};
#[cfg(feature = "libffi")]
#[doc(hidden)]
pub use occupancy::Visited;

use crate::mutator::Mutator;
use crate::pause::{StoppedMutator, StoppedWorld};
use crate::sync::{self, UnsafeCell};
use crate::unwind::text;
use crate::vm::{FrameKind, Report, StackScanner, UpcallError};
use crate::world::{Attachment, World};
use core::any::Any;
use core::cell::RefCell;
use core::fmt;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};
use core::panic::AssertUnwindSafe;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::collections::{BTreeSet, HashSet};
use std::panic::{catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Begins the message of two touches that nothing orders: I4, or the host's own exclusion, does not hold.
pub const EXCLUSION: &str = "I4: nothing orders two touches of the heap";
/// Begins the message of a chain that is not complete: I1 does not hold.
pub const PUBLICATION: &str = "I1: a record is not complete";
/// Begins the message of a declared root that is not reported or not updated: I2 does not hold.
pub const WARP: &str = "I2: a declared root was lost";
/// Begins the message of a reference that names no object any more.
pub const STALE: &str = "a stale reference";

/// Explores a model: runs it for every schedule with at most `preemptions` involuntary switches of threads, and every value that each load may see. Returns the number of executions.
///
/// The environment's `LOOM_MAX_PREEMPTIONS` overrides the bound. The number of executions and the time also go to standard error, where `cargo test -- --nocapture` shows them.
///
/// # Bounds
///
/// Begin with 2 preemptions and raise the bound while it is bearable: over this crate's protocol, two threads are explored to 4 preemptions in a second, three threads to 3 in half a minute
/// (x86_64, `--release`). Most mistakes show with 2. [`Seen`] tells when a bound leaves out the places a model is about.
///
/// # Limits
///
/// - A model has five threads at most, the one it begins on included, and all of them end within it.
/// - loom takes a `SeqCst` *access* for an acquiring or releasing one, and so raises false alarms for a protocol that needs more. It takes a `SeqCst` *fence* for what it is.
/// - It does not explore load buffering: a load never sees a store that comes later in program order on a cycle of such loads.
/// - It has no `membarrier`, so both strategies of [`FenceStrategy`](crate::FenceStrategy) fence at every crossing.
/// - It has no clock: what waits for a time yields once.
/// - It destroys a thread's locals before it runs their destructors, so what a thread does at its exit cannot be explored: a foreign thread
///   [detaches itself](World::detach_foreign_thread) at the model's end.
/// - Whatever is to be explored must be loom's. Foreign code, and a `std` lock, run as they are; a `std` lock that is held where loom can switch blocks the process.
///
/// # Panics
///
/// If the model does, in any execution.
///
/// # Examples
///
/// ```
/// use reentry::testkit::model::{check, loom};
/// use loom::sync::atomic::{AtomicUsize, Ordering};
/// use std::sync::Arc;
///
/// let executions = check(2, || {
///     let count = Arc::new(AtomicUsize::new(0));
///     let other = loom::thread::spawn({
///         let count = Arc::clone(&count);
///         move || count.fetch_add(1, Ordering::Relaxed)
///     });
///     count.fetch_add(1, Ordering::Relaxed);
///     other.join().unwrap();
///     assert_eq!(count.load(Ordering::Relaxed), 2);
/// });
/// assert!(executions > 1);
/// ```
pub fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) -> usize {
    let executions = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&executions);
    let started = std::time::Instant::now();
    let explored = catch_unwind(AssertUnwindSafe(|| {
        sync::exploration::explore(preemptions, move || {
            counted.fetch_add(1, Ordering::Relaxed);
            FAILED.take();
            model();
        });
    }));
    if let Err(panic) = explored {
        match FAILED.take() {
            Some(first) => panic!("{first}"),
            None => resume_unwind(panic),
        }
    }
    let executions = executions.load(Ordering::Relaxed);
    eprintln!("{executions} executions in {:.1?}", started.elapsed());
    executions
}

/// Memory that managed code touches while it is managed, or under a lock of the host's, and a collector in a pause.
///
/// It excludes nobody by itself: it is how a model finds out that something else does not. A touch that no synchronisation orders against another fails the model, on
/// whichever schedule, and even if the two do not overlap in time.
///
/// # Examples
///
/// ```
/// use reentry::testkit::model::{HeapCell, check, loom};
/// use std::sync::Arc;
///
/// check(2, || {
///     let cell = Arc::new(HeapCell::new("the free list", vec![1]));
///     let other = loom::thread::spawn({
///         let cell = Arc::clone(&cell);
///         move || cell.write(|list| list.push(2))
///     });
///     other.join().unwrap();
///     // Ordered by the end of the thread.
///     assert_eq!(cell.read(Vec::len), 2);
/// });
/// ```
pub struct HeapCell<T> {
    name: String,
    /// What loom watches: the order of touches.
    order: UnsafeCell<()>,
    /// Never waited for: two touches at once fail on `order` first.
    value: RwLock<T>,
}

// SAFETY: `order` holds nothing; loom keeps what it knows of it where only the threads of one model come. `value` is shared as a lock shares it.
unsafe impl<T: Send + Sync> Sync for HeapCell<T> {}

impl<T: Send + Sync> HeapCell<T> {
    /// Makes a cell; `name` is for the message of a failing model.
    pub fn new(name: impl Into<String>, value: T) -> Self {
        Self { name: name.into(), order: UnsafeCell::new(()), value: RwLock::new(value) }
    }

    /// Gives `f` the contents to look at. Looks do not exclude each other.
    ///
    /// # Panics
    ///
    /// With [`EXCLUSION`] if nothing orders this after each earlier write, or one is under way; and if `f` does.
    pub fn read<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        let look = || f(&self.value.try_read().unwrap_or_else(|_| panic!("it is being written")));
        self.named(|| self.order.with(|_| held(look)))
    }

    /// Gives `f` the contents to change.
    ///
    /// # Panics
    ///
    /// With [`EXCLUSION`] if nothing orders this after each earlier touch, or one is under way; and if `f` does.
    pub fn write<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        let change = || f(&mut self.value.try_write().unwrap_or_else(|_| panic!("it is being touched")));
        self.named(|| self.order.with_mut(|_| held(change)))
    }

    /// Puts the cell's name before what loom says of a touch. What the touch itself panics with goes on as it is.
    fn named<R>(&self, touch: impl FnOnce() -> Result<R, Panic>) -> R {
        match catch_unwind(AssertUnwindSafe(touch)) {
            Ok(done) => done.unwrap_or_else(|panic| resume_unwind(panic)),
            Err(violation) => panic!("{EXCLUSION}: {}: {}", self.name, text(&*violation)),
        }
    }
}

impl<T> fmt::Debug for HeapCell<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The contents are for those who may touch them.
        write!(f, "HeapCell({})", self.name)
    }
}

/// What somebody panicked with.
type Panic = Box<dyn Any + Send>;

/// What the pauses of a model have found, over all its executions: that a model reaches what it is about.
///
/// Made outside the model and cloned into it.
///
/// # Examples
///
/// In `tests/loom_host.rs`.
#[derive(Clone, Default, Debug)]
pub struct Seen(Arc<Mutex<Noted>>);

#[derive(Default, Debug)]
struct Noted {
    newest: HashSet<(usize, FrameKind)>,
    moments: BTreeSet<&'static str>,
}

impl Seen {
    fn noted<R>(&self, f: impl FnOnce(&mut Noted) -> R) -> R {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes where each mutator of a pause was stopped: the depth and the kind of its newest activation. [`ModelHeap::collect`] does.
    pub fn note<V: StackScanner>(&self, stopped: &StoppedWorld<'_, V>) {
        for mutator in stopped.mutators() {
            if let Some(newest) = mutator.activations().next() {
                self.noted(|noted| noted.newest.insert((newest.depth(), newest.kind())));
            }
        }
    }

    /// Notes that a moment of the host's own was reached.
    pub fn note_moment(&self, moment: &'static str) {
        self.noted(|noted| noted.moments.insert(moment));
    }

    /// Fails unless some pause of some execution stopped a mutator whose newest activation was each of these.
    ///
    /// # Panics
    ///
    /// If one is missing.
    #[track_caller]
    pub fn must_have(&self, expected: &[(usize, FrameKind)]) {
        self.noted(|noted| {
            for place in expected {
                let seen = &noted.newest;
                assert!(seen.contains(place), "no pause found a mutator at {place:?}, only at {seen:?}");
            }
        });
    }

    /// Fails unless each of these moments was [noted](Self::note_moment) in some execution.
    ///
    /// # Panics
    ///
    /// If one is missing.
    #[track_caller]
    pub fn must_have_moments(&self, expected: &[&str]) {
        self.noted(|noted| {
            for moment in expected {
                let seen = &noted.moments;
                assert!(seen.contains(moment), "no execution came to {moment:?}, only to {seen:?}");
            }
        });
    }
}

/// Keeps what an upcall has failed with on a thread without a managed caller, for the model to fail with.
///
/// A host gives it what its [`Vm::report`](crate::Vm::report) gets. Without it a panic in such an upcall, a failed assertion too, would go unnoticed.
#[derive(Default, Debug)]
pub struct Unclaimed(Mutex<Option<String>>);

impl Unclaimed {
    /// Keeps the first report.
    pub fn note(&self, report: &Report<'_>) {
        let unclaimed = match report {
            Report::UpcallErrorUnclaimed { error: UpcallError::Panic { payload }, .. } => {
                text(*payload).to_owned()
            }
            other => other.to_string(),
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(unclaimed);
    }

    /// Fails if there is one.
    ///
    /// # Panics
    ///
    /// With the panic's own text, or the report's.
    pub fn claim(&self) {
        let unclaimed = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(unclaimed) = unclaimed {
            panic!("{unclaimed}");
        }
    }
}

/// Drops its value, except on a thread that unwinds: then the model has failed and the other threads stand still for ever.
///
/// For what waits when it is dropped: an [`Attachment`], a global handle, a closure, a lock of the host's that its drop takes.
#[derive(Debug)]
pub struct UnlessPanicking<T>(ManuallyDrop<T>);

impl<T> UnlessPanicking<T> {
    /// Wraps a value.
    pub fn new(value: T) -> Self {
        Self(ManuallyDrop::new(value))
    }

    /// Takes the value out.
    #[must_use]
    pub fn into_inner(self) -> T {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: taken once: `this` is not used again, and its own drop does not run.
        unsafe { ManuallyDrop::take(&mut this.0) }
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
            unsafe { ManuallyDrop::drop(&mut self.0) };
        }
    }
}

/// Attaches this thread, for a model: [`World::attach`], and no detaching while unwinding.
///
/// # Panics
///
/// If the world does not take the thread in.
pub fn attach<V: StackScanner>(world: &World<V>) -> UnlessPanicking<Attachment<V>> {
    UnlessPanicking::new(world.attach().expect("the world takes in every thread of a model"))
}

std::thread_local! {
    /// What the execution under way has failed with first. All threads of a model are of one thread of the system.
    static FAILED: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs `f` where something else must happen before a panic of it goes on: a pause must end, a cell be left. After loom has found a deadlock nothing can happen any more, and loom panics again on the
/// way; so the first failure is noted, for [`check`] to fail with.
///
/// # Errors
///
/// What `f` panicked with.
fn held<R>(f: impl FnOnce() -> R) -> Result<R, Panic> {
    catch_unwind(AssertUnwindSafe(f)).inspect_err(|panic| {
        FAILED.with_borrow_mut(|failed| {
            failed.get_or_insert_with(|| text(&**panic).to_owned());
        });
    })
}

/// Stops the world from a thread that is no mutator, or is foreign, and runs `f`: [`World::pause`], and a panic of `f` goes on when the world has resumed.
///
/// # Panics
///
/// If `f` does, and as [`World::pause`].
pub fn pause<V: StackScanner, R>(world: &World<V>, f: impl FnOnce(&StoppedWorld<'_, V>) -> R) -> R {
    world.pause(|stopped| held(|| f(stopped))).unwrap_or_else(|panic| resume_unwind(panic))
}

/// Stops the world from a managed mutator and runs `f`: [`Mutator::pause`], and a panic of `f` goes on when the world has resumed.
///
/// # Panics
///
/// If `f` does, and as [`Mutator::pause`].
pub fn pause_in<V: StackScanner, R>(
    mutator: &mut Mutator<V>,
    f: impl FnOnce(&StoppedWorld<'_, V>) -> R,
) -> R {
    mutator.pause(|stopped| held(|| f(stopped))).unwrap_or_else(|panic| resume_unwind(panic))
}

/// Stops one mutator and runs `f`: [`World::handshake`], and a panic of `f` goes on when the mutator has resumed. `None` if it is not attached.
///
/// # Panics
///
/// If `f` does, and as [`World::handshake`].
pub fn handshake<V: StackScanner, R>(
    world: &World<V>,
    id: u64,
    f: impl FnOnce(&StoppedMutator<'_, V>) -> R,
) -> Option<R> {
    let outcome = world.handshake(id, |stopped| held(|| f(stopped)))?;
    Some(outcome.unwrap_or_else(|panic| resume_unwind(panic)))
}
