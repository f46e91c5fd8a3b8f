//! [`World`]: one VM instance with its mutators; [`Attachment`]: a thread's part in it.

use crate::anchor::Anchor;
use crate::arch;
use crate::attach::DetachError;
use crate::checked::CHECKED;
use crate::handle_table::HandleTable;
use crate::home::set_home;
use crate::leaks::Leaks;
use crate::mutator::{Mutator, MutatorParts};
use crate::nesting::stack_base;
use crate::pause::{Shared, StoppedMutator, StoppedWorld, Stressing, Work};
use crate::pin::{PinTable, Pinner};
use crate::record::{Header, Ownership};
use crate::registry::{Ask, AttachError, Coordinator, Early, Stragglers, Watch};
use crate::state::{ENDED, Event, State};
use crate::stress::{Stress, StressWork};
use crate::sync::FenceStrategy;
use crate::thread::{each_on_thread, is_mine};
use crate::timing::{Sites, Timings};
use crate::transition::{at_safepoint, refuse_wait_in_own_pause};
use crate::vm::{Capture, Report, StackScanner, Straggler, Wanted, tell};
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::panic::Location;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use core::time::Duration;
use std::sync::Arc;

/// One VM instance: its heap, its mutators, its pauses. Cloning it makes another handle to the same world.
///
/// Several worlds can live in one process, also on one thread, nested either way; a pause of one does not touch the others.
pub struct World<V: StackScanner> {
    shared: Arc<Shared<V>>,
}

impl<V: StackScanner> World<V> {
    /// Makes a world with the best fence strategy this process can use.
    #[must_use]
    pub fn new(vm: V) -> Self {
        Self::builder().build(vm)
    }

    /// Starts building a world with choices of its own.
    ///
    /// # Examples
    ///
    /// ```
    /// # use reentry::{World, testkit::TestVm};
    /// // The type of the VM is that of what `build` gets.
    /// let world = World::builder().stack_reserve(128 * 1024).build(TestVm::new());
    /// assert_eq!(world.attached(), 0);
    /// ```
    #[must_use]
    pub fn builder() -> WorldBuilder<V> {
        WorldBuilder {
            fence: FenceStrategy::probe(),
            stack_reserve: STACK_RESERVE,
            report_after: Some(REPORT_AFTER),
            stress: None,
            stress_work: None,
            early: None,
            #[cfg(feature = "audit")]
            audit: None,
            _vm: PhantomData,
        }
    }

    /// A handle that does not keep the world alive.
    #[cfg(feature = "testkit")]
    pub(crate) fn downgrade(&self) -> std::sync::Weak<Shared<V>> {
        Arc::downgrade(&self.shared)
    }

    #[cfg(feature = "testkit")]
    pub(crate) fn from_weak(weak: &std::sync::Weak<Shared<V>>) -> Option<Self> {
        weak.upgrade().map(Self::of)
    }

    /// One more `World` of the same.
    fn of(shared: Arc<Shared<V>>) -> Self {
        // A count, with nothing published by it.
        shared.worlds.fetch_add(1, Ordering::Relaxed);
        Self { shared }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared<V>> {
        &self.shared
    }

    /// The VM.
    #[must_use]
    pub fn vm(&self) -> &V {
        &self.shared.vm
    }

    /// How this world orders crossings against pauses.
    #[must_use]
    pub fn fence(&self) -> FenceStrategy {
        self.shared.coordinator.fence()
    }

    /// Attaches this thread: registers it and makes it managed, nothing else. Waits while a pause is in force.
    ///
    /// For a conservative collector, the segment of the base activation ends at the thread's stack base where the system tells it; see
    /// [`attach_at`](Self::attach_at) to give it. On a coroutine's stack the unwind tables tell it, where all functions on that stack have some.
    ///
    /// # Errors
    ///
    /// If the thread is attached already, holds a pause of this world, or is exiting; if the world has been shut down; or if the VM captures
    /// [registers](crate::Capture::Registers) for a conservative collector and the thread runs on a stack that is not its own, a coroutine's for example, and whose base nothing tells.
    #[track_caller]
    pub fn attach(&self) -> Result<Attachment<V>, AttachError> {
        let stack_base = stack_base();
        if stack_base.is_none() && V::CAPTURE == Capture::Registers && arch::TOLD {
            return Err(AttachError::UnknownStack);
        }
        // SAFETY: the word of the system, or of the unwinder, for the stack that this frame is on; or 0: an empty stack.
        unsafe { self.attach_at(stack_base.unwrap_or(0)) }
    }

    /// [`attach`](Self::attach), with the machine address below which this thread's managed frames will lie.
    ///
    /// # Safety
    ///
    /// `stack_base` is 0, or an address in this thread's stack, above every managed frame of it: a conservative scan reads up to there.
    ///
    /// # Errors
    ///
    /// As [`attach`](Self::attach).
    #[track_caller]
    pub unsafe fn attach_at(&self, stack_base: usize) -> Result<Attachment<V>, AttachError> {
        let ask = Ask::at(Wanted::Attach, Location::caller());
        let record = self.shared.attach(Ownership::Attachment, stack_base, ask)?;
        // SAFETY: attached to this thread until the attachment is dropped, which the handle does not outlive; `deref_mut` refuses it once
        // the thread's exit hook has run.
        let parts = unsafe { MutatorParts::new(record, &record.header.base) };
        Ok(Attachment { parts, shared: Arc::clone(&self.shared) })
    }

    /// Stops the world, runs `f` with the proof, and resumes the world: for a thread that is no mutator of it, or is in a foreign call.
    ///
    /// Mutators in foreign code do not delay it. If another pause is in force it waits for that one first.
    ///
    /// # Panics
    ///
    /// If this thread is managed in this world (use [`Mutator::pause`], which publishes its frames) or holds a pause of it already; and with what `f` panics
    /// with, after resuming the world.
    ///
    /// # Examples
    ///
    /// ```
    /// # use reentry::{testkit::TestVm, World};
    /// let world = World::new(TestVm::new());
    /// let mut mutator = world.attach()?;
    /// let stopped = mutator.foreign_call().run(|| {
    ///     // Another thread may collect while this one is in C; so may this one.
    ///     std::thread::scope(|scope| {
    ///         scope.spawn(|| world.pause(|stopped| stopped.mutators().count())).join().unwrap()
    ///     })
    /// });
    /// assert_eq!(stopped, 1);
    /// # Ok::<(), reentry::AttachError>(())
    /// ```
    #[track_caller]
    pub fn pause<R>(&self, f: impl FnOnce(&StoppedWorld<'_, V>) -> R) -> R {
        let site = Location::caller();
        self.refuse_if_managed("Mutator::pause", site);
        match self.shared.stop(site) {
            Ok(stopped) => f(&stopped),
            Err(_) => refuse_wait_in_own_pause("a pause", site),
        }
    }

    /// Runs `f` for the mutator numbered `id` while that one is stopped at a safepoint or foreign, and no other. Returns `None` if there is no such mutator. See
    /// [`Mutator::handshake`], which is for a thread that is managed.
    ///
    /// # Panics
    ///
    /// If this thread is managed in this world, or holds a pause or a handshake of it already; and with whatever `f` panics with.
    #[track_caller]
    pub fn handshake<R>(&self, id: u64, f: impl FnOnce(&StoppedMutator<'_, V>) -> R) -> Option<R> {
        let site = Location::caller();
        self.refuse_if_managed("Mutator::handshake", site);
        let shaken = self.shared.handshake(id, site, f);
        shaken.unwrap_or_else(|_| refuse_wait_in_own_pause("a handshake", site))
    }

    /// [`handshake`](Self::handshake) with every mutator that is attached now, one after the other: none waits for another. Returns the results; a mutator that
    /// detaches meanwhile has none.
    ///
    /// # Panics
    ///
    /// As [`handshake`](Self::handshake).
    #[track_caller]
    pub fn handshake_each<R>(&self, f: impl FnMut(&StoppedMutator<'_, V>) -> R) -> Vec<R> {
        let site = Location::caller();
        self.refuse_if_managed("Mutator::handshake_each", site);
        let shaken = self.shared.handshake_each(site, f);
        shaken.unwrap_or_else(|_| refuse_wait_in_own_pause("a handshake", site))
    }

    /// Refuses to stop a mutator from a thread that is managed: it would wait for itself.
    ///
    /// # Panics
    ///
    /// If this thread is managed in this world.
    pub(crate) fn refuse_if_managed(&self, instead: &str, site: &'static Location<'static>) {
        // SAFETY: null, or this thread's attached record.
        if let Some(record) = unsafe { self.shared.current().as_ref() } {
            if let Some(region) = record.header.checked.region() {
                panic!(
                    "reentry: mutator {} cannot start a pause at {site}: it is {region}; {}",
                    record.header.id.get(),
                    region.advice()
                );
            }
            assert!(
                record.header.state() != State::Managed,
                "reentry: mutator {} cannot be paused at {site} through the world: this thread is managed and would wait for itself; \
                 use `{instead}`",
                record.header.id.get()
            );
        }
    }

    /// How long foreign calls took and mutators took to stop, by call site, since the world was made. Empty unless [`Vm::TIMED`](crate::Vm::TIMED).
    #[must_use]
    pub fn timings(&self) -> Timings {
        Timings { in_foreign: self.shared.in_foreign.read(), to_stop: self.shared.to_stop.read() }
    }

    /// Makes the foreign call that the mutator numbered `id` is in return early, if it is [interruptible](crate::ForeignCall::interruptible): calls its interrupt, on this thread.
    /// Says whether there was one. Of nested calls it is the newest that has one.
    ///
    /// Waits while a pause is in force.
    ///
    /// # Errors
    ///
    /// If this thread holds the pause.
    ///
    /// # Panics
    ///
    /// If this thread is managed in this world: the pause would wait for it. [`Mutator::interrupt`] is for such a thread.
    #[track_caller]
    pub fn interrupt(&self, id: u64) -> Result<bool, InterruptError> {
        let site = Location::caller();
        self.refuse_if_managed("Mutator::interrupt", site);
        let ask = Ask::at(Wanted::Interrupt, site);
        self.shared.coordinator.interrupt(id, ask).map_err(|_| InterruptError)
    }

    /// Makes this the world of foreign threads that call an [`upcall_fn`](crate::upcall_fn) of this VM type, in place of
    /// any other.
    pub fn adopt_foreign_threads(&self) {
        set_home(&self.shared);
    }

    /// Lets foreign threads in, if the world was made [closed](WorldBuilder::closed_to_foreign_threads) to them.
    pub fn open(&self) {
        self.shared.coordinator.open();
    }

    /// Makes an owner of pins that outlive a call. See [`Pinner`]. Where this was called is what [`leaks`](Self::leaks) names it by.
    #[track_caller]
    pub fn pinner(&self) -> Pinner<V::Ref> {
        Pinner::new(Arc::clone(&self.shared.pins), Location::caller())
    }

    /// Lists the handles, weak handles and pins that outlive calls and have not been given back, by where they were made.
    ///
    /// From any thread in any state; handles made or released meanwhile may be in it or not. When the world ends, or is [shut down](Self::shutdown) with no
    /// mutator attached, what keeps objects alive then is reported to the VM once, as [`Report::Leaked`](crate::Report::Leaked).
    ///
    /// # Examples
    ///
    /// ```
    /// # use reentry::{testkit::TestVm, World};
    /// let world = World::new(TestVm::new());
    /// let mut mutator = world.attach()?;
    /// let object = world.vm().heap().alloc(&[], b"kept");
    /// let handle = mutator.handle(object);
    /// let leaks = world.leaks();
    /// assert_eq!(leaks.handles()[0].count, 1);
    /// assert_eq!(leaks.handles()[0].site.line(), handle.site().line());
    /// drop(handle);
    /// assert!(world.leaks().is_empty());
    /// # Ok::<(), reentry::AttachError>(())
    /// ```
    #[must_use]
    pub fn leaks(&self) -> Leaks {
        self.shared.leaks()
    }

    /// What the audit has found, and what it holds; `None` if the world was made without one. See [`WorldBuilder::audit`].
    #[cfg(feature = "audit")]
    #[must_use]
    pub fn audit(&self) -> Option<crate::audit::AuditLog> {
        self.shared.coordinator.audit.as_ref().map(crate::audit::Auditor::log)
    }

    /// Returns how many mutators are attached, foreign threads included.
    #[must_use]
    pub fn attached(&self) -> usize {
        self.shared.coordinator.attached()
    }

    /// Detaches this thread if it attached itself on an upcall, rather than at its exit. Does nothing if it is not attached.
    ///
    /// # Errors
    ///
    /// If the thread's attachment belongs to an [`Attachment`], if it is inside an upcall or a foreign call, if it holds a pause, or if this is a hook, a
    /// report or a visitor that the crate runs for it.
    #[track_caller]
    pub fn detach_foreign_thread(&self) -> Result<(), DetachError> {
        // SAFETY: null, or this thread's attached record.
        let Some(record) = (unsafe { self.shared.current().as_ref() }) else { return Ok(()) };
        if record.header.ownership.get() != Ownership::Thread {
            return Err(DetachError::Owned);
        }
        self.shared
            .detach(&record.header, Some(Location::caller()))
            .map_err(|reason| DetachError::Busy { reason })
    }

    /// Shuts the world to new threads: attaching is an error, and a foreign thread's first upcall gets the fallback value. Attached threads go on.
    ///
    /// If no thread is attached, nothing can use handles and pins any more: those that are left are [reported](crate::Report::Leaked) now, otherwise
    /// when the world ends.
    pub fn shutdown(&self) {
        self.shared.coordinator.close();
        if self.attached() == 0 {
            self.shared.report_leaks();
        }
    }

    /// Shuts the world down: lets nobody in any more, asks [interruptible](crate::ForeignCall::interruptible) foreign calls to return, waits at most `timeout` for the mutators of other threads to
    /// detach, and ends the world for those that have not. Returns who these are; if there are none, nobody but this thread is attached.
    ///
    /// After that, an upcall of any of them gets its fallback value and is reported ([`Report::UpcallAfterShutdown`]), for ever; and one that comes back from its foreign call, or
    /// polls, parks or is told so, as `stragglers` says. Foreign threads between two upcalls, and suspended fibers, are not waited for. The heap stays what it is: nothing of the VM is dropped
    /// before the last attachment and the last `World` are.
    ///
    /// # Panics
    ///
    /// If this thread is managed in this world while others are attached (call it through [`ForeignCall::run`](crate::ForeignCall::run), or detach first: they may wait for it), or holds a pause
    /// of it.
    #[cfg(not(loom))]
    #[track_caller]
    pub fn shutdown_within(&self, timeout: Duration, stragglers: Stragglers) -> Vec<Straggler> {
        let site = Location::caller();
        let coordinator = &self.shared.coordinator;
        coordinator.close();
        let own = self.shared.current().cast::<Header>();
        if coordinator.attached() == usize::from(!own.is_null()) {
            // Nobody else comes any more. Nothing to wait for, above all not a pause: it would wait for this thread, if that is managed.
            let Ok(()) = coordinator.end_alone(stragglers) else {
                refuse_wait_in_own_pause("a shutdown", site)
            };
            return Vec::new();
        }
        self.refuse_if_managed("ForeignCall::run", site);
        let ask = Ask::at(Wanted::Shutdown, site);
        let Ok(ids) = coordinator.ids(ask) else { refuse_wait_in_own_pause("a shutdown", site) };
        for id in ids {
            // Whether there was something to interrupt makes no difference; that no pause is held here has just been seen.
            let _ = coordinator.interrupt(id, ask);
        }
        let began = std::time::Instant::now();
        let idle = |header: &Header| is_mine(header) || header.is_idle();
        let Ok(late) = coordinator.end(timeout, stragglers, ask, idle) else {
            refuse_wait_in_own_pause("a shutdown", site)
        };
        // This thread knows: a fiber of its own, and who resumed that.
        let told = each_on_thread(|header| {
            if core::ptr::eq(header.coordinator(), coordinator) {
                header.word.clear(ENDED, V::FAULTS);
            }
            Ok::<(), core::convert::Infallible>(())
        });
        let Ok(()) = told;
        late.into_iter().map(|header| coordinator.straggler(header, began.elapsed())).collect()
    }

    /// Says whether the world has been shut down.
    #[must_use]
    pub fn is_shut_down(&self) -> bool {
        self.shared.coordinator.is_closed()
    }
}

impl<V: StackScanner> Mutator<V> {
    /// The world: one more handle to it, which keeps it. For what asks for a world where there is a mutator only, in an upcall above all.
    ///
    /// # Examples
    ///
    /// ```
    /// # use reentry::{testkit::TestVm, World};
    /// let world = World::new(TestVm::new());
    /// let mutator = world.attach()?;
    /// assert_eq!(mutator.world().attached(), 1);
    /// # Ok::<(), reentry::AttachError>(())
    /// ```
    #[must_use]
    pub fn world(&self) -> World<V> {
        World::of(self.kept_world())
    }

    /// [`World::interrupt`], for a thread that is managed: it counts as stopped meanwhile, so what this activation did not root may have moved when it returns.
    ///
    /// # Errors
    ///
    /// If this thread holds a pause of this world.
    ///
    /// # Examples
    ///
    /// ```
    /// # use reentry::{World, testkit::TestVm};
    /// let world = World::new(TestVm::new());
    /// let mut mutator = world.attach()?;
    /// let me = mutator.id();
    /// // It is in no call that could be interrupted.
    /// assert_eq!(mutator.interrupt(me), Ok(false));
    /// # Ok::<(), reentry::AttachError>(())
    /// ```
    #[track_caller]
    pub fn interrupt(&mut self, id: u64) -> Result<bool, InterruptError> {
        let site = Location::caller();
        at_safepoint::<V, _>(self.header(), self.frame(), Event::Pause, None, site, || {
            let ask = Ask::at(Wanted::Interrupt, site).by(self.id());
            self.shared().coordinator.interrupt(id, ask).map_err(|_| InterruptError)
        })
    }
}

impl<V: StackScanner> Clone for World<V> {
    fn clone(&self) -> Self {
        Self::of(Arc::clone(&self.shared))
    }
}

impl<V: StackScanner> Drop for World<V> {
    fn drop(&mut self) {
        let last = self.shared.worlds.fetch_sub(1, Ordering::Relaxed) == 1;
        if last && self.shared.coordinator.is_of_this_process() {
            self.shared.coordinator.desert();
        }
    }
}

impl<V: StackScanner> fmt::Debug for World<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World")
            .field("fence", &self.fence())
            .field("attached", &self.attached())
            .field("shut_down", &self.is_shut_down())
            .finish_non_exhaustive()
    }
}

/// The choices of a world that is being made.
pub struct WorldBuilder<V: StackScanner> {
    fence: FenceStrategy,
    stack_reserve: usize,
    report_after: Option<Duration>,
    stress: Option<Stress>,
    stress_work: Option<Work<V>>,
    early: Option<Early>,
    #[cfg(feature = "audit")]
    audit: Option<crate::audit::Audit>,
    /// Which VM it is for: known from [`build`](Self::build), so that nobody has to write it down.
    _vm: PhantomData<fn(V)>,
}

impl<V: StackScanner> Clone for WorldBuilder<V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<V: StackScanner> Copy for WorldBuilder<V> {}

impl<V: StackScanner> fmt::Debug for WorldBuilder<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut choices = f.debug_struct("WorldBuilder");
        choices
            .field("fence", &self.fence)
            .field("stack_reserve", &self.stack_reserve)
            .field("report_after", &self.report_after)
            .field("stress", &self.stress)
            .field("early", &self.early);
        #[cfg(feature = "audit")]
        choices.field("audit", &self.audit);
        choices.finish()
    }
}

/// How long a wait lasts before it is reported, unless the world says otherwise.
const REPORT_AFTER: Duration = Duration::from_secs(if cfg!(debug_assertions) { 5 } else { 10 });

/// Enough for an upcall that panics. The first message with a backtrace takes 22 KiB (a panic without one 5 KiB; Rust 1.95, x86_64 Linux, the stack painted and looked at
/// afterwards), so half of a stack of 64 KiB is enough as well.
const STACK_RESERVE: usize = 64 * 1024;

impl<V: StackScanner> WorldBuilder<V> {
    /// Chooses the fence strategy; [`FenceStrategy::probe`] otherwise.
    ///
    /// # Panics
    ///
    /// If this process cannot use it: see [`FenceStrategy::is_supported`].
    #[must_use]
    #[track_caller]
    pub fn fence(mut self, fence: FenceStrategy) -> Self {
        assert!(
            fence.is_supported(),
            "reentry: {fence:?} is not supported here; use `FenceStrategy::probe()`"
        );
        self.fence = fence;
        self
    }

    /// Chooses how many bytes of its thread's stack an upcall must find, 64 KiB otherwise: with fewer it is refused, as
    /// [`UpcallRefused::StackExhausted`](crate::UpcallRefused::StackExhausted) says, instead of running into the guard page.
    ///
    /// The reserve is what is left for managed code that then runs, and for the C functions it calls. At most half of a stack is reserved: on one
    /// of 64 KiB that is what a panic's message with a backtrace needs; on smaller ones it is not. It takes effect for threads that
    /// attach to the world, where the system tells the bounds of their stack (Linux); an upcall on another stack, a fiber's, is not checked.
    #[must_use]
    pub fn stack_reserve(mut self, bytes: usize) -> Self {
        self.stack_reserve = bytes;
        self
    }

    /// Keeps foreign threads out until [`World::open`], for a VM whose C libraries may call in while it is being set up. Threads that
    /// [attach](World::attach) themselves are let in.
    #[must_use]
    pub fn closed_to_foreign_threads(mut self, early: Early) -> Self {
        self.early = Some(early);
        self
    }

    /// Chooses how long a wait may last before it is reported: 5 seconds otherwise, 10 in a release build. `None` has no wait reported.
    ///
    /// It is about every wait of one thread for another that the crate knows of:
    ///
    /// | report | who waits | for |
    /// |---|---|---|
    /// | [`Report::StopWait`](crate::Report::StopWait) | who pauses, shakes hands, forks | a mutator that does not stop |
    /// | [`Report::PauseWait`](crate::Report::PauseWait) | who returns from foreign code, polls, calls in, attaches, detaches, pauses, shakes hands, samples, interrupts, shuts down | a pause that is in force |
    /// | [`Report::OtherWait`](crate::Report::OtherWait) | a foreign thread that calls in early | [`World::open`] |
    ///
    /// A wait that goes on is reported again each time it has lasted twice as long. [`Vm::report`](crate::Vm::report) is called on the thread that waits, with no lock of the
    /// crate held. The clock runs in that thread and in no other: crossings, polls and mutators that nobody waits for pay nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// use core::time::Duration;
    /// use reentry::World;
    /// use reentry::testkit::TestVm;
    ///
    /// // A test suite that wants to know early, and a debugger's session that does not.
    /// let eager = World::<TestVm>::builder().report_after(Duration::from_millis(500)).build(TestVm::new());
    /// let silent = World::<TestVm>::builder().report_after(None).build(TestVm::new());
    /// # drop((eager, silent));
    /// ```
    #[must_use]
    pub fn report_after(mut self, after: impl Into<Option<Duration>>) -> Self {
        self.report_after = after.into();
        self
    }

    /// Gives the function that stress mode calls in a pause: it collects, or moves the managed stacks, as it is asked.
    ///
    /// The world is stressed if [`stress`](Self::stress) says so, or the environment: `REENTRY_STRESS=collect`, `collect:7` for one in seven crossings and
    /// polls, `collect:7:12` to choose the seed; the same with `pause` and `relocate`. Without a function, and in a world that is given none, only `pause` has an effect.
    ///
    /// `work` is called on the thread that makes the crossing, in any state, in a pause. It must not call back into the crate but through the pause. It may panic: the panic goes
    /// on where the crossing was made.
    #[must_use]
    pub fn stressed_by(mut self, work: fn(&StoppedWorld<'_, V>, StressWork)) -> Self {
        self.stress_work = Some(work);
        self
    }

    /// Stresses the world: at crossings and polls, the thread that makes one stops the world and does the work that `stress` names, by the function given to
    /// [`stressed_by`](Self::stressed_by). In checked mode (debug builds, and the feature `checked`); other builds ignore it. It wins over the environment. See
    /// [`guide::checked`](crate::guide::checked#stress).
    ///
    /// # Examples
    ///
    /// ```
    /// use reentry::testkit::TestVm;
    /// use reentry::{Stress, StressWork, World};
    ///
    /// let stress = Stress::new(StressWork::Collect);
    /// let world = World::builder().stressed_by(TestVm::stress).stress(stress).build(TestVm::new());
    /// let mut mutator = world.attach()?;
    /// mutator.foreign_call().run(|| ());
    /// // Once before C begins, once when it has returned.
    /// let checked = cfg!(any(debug_assertions, feature = "checked"));
    /// assert_eq!(world.vm().totals().0, if checked { 2 } else { 0 });
    /// # Ok::<(), reentry::AttachError>(())
    /// ```
    #[must_use]
    pub fn stress(mut self, stress: Stress) -> Self {
        self.stress = Some(stress);
        self
    }

    /// Has each collection compared with those before, slot by slot: see [`guide::audit`](crate::guide::audit). What is found goes to [`Vm::report`](crate::Vm::report), as
    /// [`Report::Audit`](crate::Report::Audit), when the pause is over, and to [`World::audit`].
    #[cfg(feature = "audit")]
    #[must_use]
    pub fn audit(mut self, audit: crate::audit::Audit) -> Self {
        self.audit = Some(audit);
        self
    }

    /// Makes the world.
    ///
    /// # Panics
    ///
    /// With the feature `audit`, if the audit that was asked for is one for another type of reference. In checked mode, if `REENTRY_STRESS` holds what is no [`Stress`]; or if
    /// [`stress`](Self::stress) asks for what only a function of the VM can do, and there is none.
    #[must_use]
    #[track_caller]
    pub fn build(self, vm: V) -> World<V> {
        let stress = self.chosen_stress();
        #[cfg(feature = "audit")]
        let audit = self.audit.or_else(|| vm.audited().map(crate::audit::Audit::new));
        crate::exit::prepare();
        let shared = Arc::new_cyclic(|own| Shared {
            coordinator: {
                let coordinator = Coordinator::new(
                    self.fence,
                    self.report_after.map(|after| Watch { after, report: report::<V> }),
                    self.early,
                );
                #[cfg(feature = "audit")]
                let coordinator = coordinator.with_audit(audit.map(crate::audit::Auditor::new));
                coordinator
            },
            vm,
            worlds: AtomicUsize::new(0),
            own: std::sync::Weak::clone(own),
            pins: Arc::new(PinTable::new()),
            stack_reserve: self.stack_reserve,
            handles: HandleTable::new(),
            leaks_reported: AtomicBool::new(false),
            in_foreign: Sites::default(),
            to_stop: Sites::default(),
            stress,
            #[cfg(feature = "audit")]
            address: audit.map(|audit| audit.address()),
        });
        World::of(shared)
    }
}

impl<V: StackScanner> WorldBuilder<V> {
    /// How the world is to be stressed: as was chosen, or as the environment says.
    ///
    /// # Panics
    ///
    /// See [`build`](Self::build).
    #[track_caller]
    fn chosen_stress(&self) -> Option<Stressing<V>> {
        let work = self.stress_work;
        let said = std::env::var("REENTRY_STRESS").ok().filter(|said| !said.is_empty());
        if !CHECKED {
            static TOLD: std::sync::Once = std::sync::Once::new();
            if said.is_some() {
                TOLD.call_once(|| {
                    use std::io::Write as _;
                    let text = "reentry: REENTRY_STRESS has no effect in this build; use a debug build, or the feature `checked`";
                    // Lost if it cannot be written: it is advice.
                    drop(writeln!(std::io::stderr(), "{text}"));
                });
            }
            return None;
        }
        if let Some(stress) = self.stress {
            assert!(
                work.is_some() || stress.work() == StressWork::Pause,
                "reentry: the world is to be stressed with `{}`, and only the VM can do that; give its function to `WorldBuilder::stressed_by`",
                stress.work()
            );
            return Some(Stressing { stress, work });
        }
        let stress = Stress::parse(&said?).unwrap_or_else(|error| panic!("reentry: REENTRY_STRESS: {error}"));
        Some(Stressing { stress, work }).filter(|_| work.is_some() || stress.work() == StressWork::Pause)
    }
}

/// Gives a report to the VM of a coordinator's world.
///
/// # Safety
///
/// The coordinator is that of a world of `V`.
unsafe fn report<V: StackScanner>(coordinator: &Coordinator, report: &Report<'_>) {
    // SAFETY: a `Shared<V>` begins with its coordinator, and a coordinator is never anywhere else.
    tell(unsafe { &(*core::ptr::from_ref(coordinator).cast::<Shared<V>>()).vm }, report);
}

/// A thread's part in a world: dropping it detaches the thread. It lends the thread's [`Mutator`].
///
/// Leaking it leaves the thread attached until it exits, and its roots for ever (I9).
#[must_use = "dropping an `Attachment` detaches the thread at once"]
pub struct Attachment<V: StackScanner> {
    parts: MutatorParts<V>,
    shared: Arc<Shared<V>>,
}

/// What takes an anchor, once more: `attachment.poll_at(f(&attachment))` borrows well here. Through
/// [`DerefMut`] the attachment would be borrowed mutably before the anchor is computed.
impl<V: StackScanner> Attachment<V> {
    /// [`Mutator::poll_at`].
    ///
    /// # Panics
    ///
    /// As [`Mutator::poll_at`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use reentry::{Anchor, Mutator, World, testkit::TestVm};
    /// fn top(mutator: &Mutator<TestVm>) -> Anchor {
    ///     let stack = mutator.local().stack_range();
    ///     Anchor::new(0, stack.start, stack.start)
    /// }
    /// let world = World::new(TestVm::new());
    /// let mut mutator = world.attach()?;
    /// mutator.poll_at(top(&mutator));
    /// let stopped = mutator.pause_at(top(&mutator), |stopped| stopped.mutators().count());
    /// assert_eq!(stopped, 1);
    /// # Ok::<(), reentry::AttachError>(())
    /// ```
    #[inline(always)]
    #[track_caller]
    pub fn poll_at(&mut self, anchor: Anchor) {
        self.parts.lend_mut().poll_at(anchor);
    }

    /// [`Mutator::pause_at`].
    ///
    /// # Panics
    ///
    /// As [`Mutator::pause_at`].
    #[track_caller]
    pub fn pause_at<R>(&mut self, anchor: Anchor, f: impl FnOnce(&StoppedWorld<'_, V>) -> R) -> R {
        self.parts.lend_mut().pause_at(anchor, f)
    }
}

impl<V: StackScanner> Deref for Attachment<V> {
    type Target = Mutator<V>;

    #[inline(always)]
    fn deref(&self) -> &Self::Target {
        self.parts.lend()
    }
}

impl<V: StackScanner> DerefMut for Attachment<V> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.parts.lend_mut()
    }
}

impl<V: StackScanner> Drop for Attachment<V> {
    #[track_caller]
    fn drop(&mut self) {
        if let Err(reason) = self.shared.detach(self.parts.lend().header(), Some(Location::caller()))
            && !std::thread::panicking()
            // `exit` was called inside a call of this mutator, and destroys the thread-local that this
            // attachment is in. What the frames below use stays as it is until the process is gone.
            && !arch::is_below_exit()
            // A copy of the process that nobody prepared: nothing of it is ended.
            && self.shared.coordinator.is_of_this_process()
        {
            panic!("reentry: mutator {} cannot detach: {reason}", self.parts.lend().id());
        }
    }
}

impl<V: StackScanner> fmt::Debug for Attachment<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Attachment").field(&self.parts.lend()).finish()
    }
}

/// An interrupt was asked for by the thread that holds a pause.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("this thread holds a pause of the world; end the pause before interrupting a call")]
pub struct InterruptError;
