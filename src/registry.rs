//! Who is attached, and the gate that keeps that set still during a pause.
//!
//! One lock orders attaching, detaching, stopping and resuming. It is held for a few instructions each time, never while waiting for a mutator and never on a
//! crossing. While a pause is in force the gate is shut: attach and detach wait, so the set of mutators does not change within a pause.

use crate::control::SignalsBlocked;
use crate::faults::Faults;
use crate::os_thread::ThreadTag;
use crate::patience::Patience;
use crate::process;
use crate::record::{Header, InterruptCall};
use crate::state::{ENDED, STOP};
#[cfg(loom)]
use crate::sync::wait;
use crate::sync::{Condvar, FenceStrategy, Mutex, MutexGuard, lock, thread_token};
use crate::vm::{FrameKind, Report, Wanted};
use core::panic::Location;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

/// Why a thread could not be attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// This thread is attached to this world already.
    #[error("this thread is attached to this world already; use the mutator it has")]
    AlreadyAttached,
    /// The world has been shut down.
    #[error("the world has been shut down; make a new one")]
    Shutdown,
    /// This thread holds a pause of this world: waiting for it to end would wait for ever.
    #[error("this thread holds a pause of this world; end the pause before attaching")]
    PauseHeldHere,
    /// The world is not open to foreign threads yet.
    #[error("the world is not open to foreign threads yet; call `World::open` when the VM is ready")]
    NotOpen,
    /// Too little of this thread's stack is left to attach it.
    #[error(
        "{left} bytes are left of this thread's stack, and attaching needs {needed}; give the thread a larger stack, or attach nearer to its start"
    )]
    StackTooSmall {
        /// The bytes that are left.
        left: usize,
        /// The bytes that there must be.
        needed: usize,
    },
    /// This thread's attachments have been ended by its exit: nothing could detach it any more.
    #[error("this thread is exiting; attach before its thread-specific data is destroyed")]
    ThreadExiting,
    /// The thread runs on a stack that is not its own, and a conservative collector must know where that ends.
    #[error(
        "this thread runs on a stack that is not its own, a coroutine's or a signal's, and a conservative scan cannot tell where that ends; \
         attach before the stack is switched, or give its base to `World::attach_at`"
    )]
    UnknownStack,
    /// Foreign code has forked the process the world was made in, by itself.
    #[error("{}", process::FORKED)]
    Forked,
}

/// The thread asks for something that waits for a pause it holds itself.
#[derive(Debug)]
pub(crate) struct PauseHeldHere;

/// Why a mutator that came back may not go on.
#[derive(Debug)]
pub(crate) enum Unreleased {
    /// Its own thread holds the pause.
    PauseHeldHere,
    /// The world has ended, and it is to be told so.
    Ended,
    /// The world has ended, and its thread is to wait for ever.
    Parked,
}

/// Who waits to go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Waiter {
    /// A mutator back from foreign code, or at a poll.
    Return,
    /// An upcall on its way in: it can be refused.
    Upcall,
}

impl Waiter {
    /// What the mutator of `header` wants, which has published a record. For its own thread.
    fn ask(self, header: &Header) -> Ask<'static> {
        // SAFETY: the word of an attached mutator holds a live record.
        let frame = unsafe { &*header.word.record() };
        let wants = match (self, frame.kind.get()) {
            (Self::Upcall, _) => Wanted::Upcall,
            (Self::Return, FrameKind::Safepoint) => Wanted::Safepoint,
            (Self::Return, _) => Wanted::Return,
        };
        Ask { wants, site: frame.site.get(), mutator: Some(header.id.get()), upcall: None }
    }
}

/// What a thread asks for that may have to wait, for the report of a wait that lasts long.
#[derive(Clone, Copy)]
pub(crate) struct Ask<'a> {
    pub(crate) wants: Wanted,
    /// Where.
    pub(crate) site: Option<&'static Location<'static>>,
    /// The number of its mutator, if it has one.
    pub(crate) mutator: Option<u64>,
    /// The upcall it wants to make.
    pub(crate) upcall: Option<&'a str>,
}

impl Ask<'_> {
    /// Something that is asked for at `site`.
    pub(crate) fn at(wants: Wanted, site: &'static Location<'static>) -> Self {
        Self { wants, site: Some(site), mutator: None, upcall: None }
    }

    /// The same, for the mutator numbered `id`.
    pub(crate) fn by(self, id: u64) -> Self {
        Self { mutator: Some(id), ..self }
    }
}

/// Who has asked for the pause or handshake in force.
#[derive(Clone, Copy)]
pub(crate) struct Asker {
    pub(crate) wants: Wanted,
    pub(crate) site: Option<&'static Location<'static>>,
    pub(crate) thread: ThreadTag,
}

/// What becomes of the first upcall of a foreign thread that comes before [`World::open`](crate::World::open).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Early {
    /// It waits.
    Wait,
    /// C gets the fallback value, and it is [reported](crate::Report::UpcallBeforeOpen).
    Refuse,
}

/// What becomes of a mutator that a shutdown did not wait for, when it comes back from foreign code or polls.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Stragglers {
    /// Its thread waits for ever: for a process that is about to end.
    Park,
    /// It is told once: the foreign call, or the poll, ends with [`UpcallRefused::WorldEnded`](crate::UpcallRefused::WorldEnded). Then it may go on, to clean up and detach.
    Fail,
}

/// Ends nothing, and never returns: the thread's record is published, so nobody waits for it.
pub(crate) fn park_for_ever() -> ! {
    loop {
        std::thread::park();
    }
}

/// What the lock protects.
pub(crate) struct Registry {
    /// The thread that holds the pause in force.
    pub(crate) holder: Option<usize>,
    /// When the pause in force was asked for. loom has no clock.
    #[cfg(not(loom))]
    pub(crate) asked: Option<std::time::Instant>,
    closed: bool,
    /// The world is not open to foreign threads yet: what becomes of their upcalls.
    early: Option<Early>,
    /// The world has been shut down: what becomes of those that were left.
    ended: Option<Stragglers>,
    /// The attached mutators; with the stopper while a pause is in force.
    pub(crate) attached: Vec<*const Header>,
    /// How many mutators are attached, wherever the list is.
    count: usize,
    /// Records to use again.
    idle: Vec<*const Header>,
    next_id: u64,
    /// There was a time without a `World`: see [`Coordinator::desert`].
    pub(crate) deserted: bool,
    /// Fibers that have been dropped during the pause in force: they end when it does.
    pub(crate) ending: Vec<*const Header>,
    /// Stoppers waiting for a mutator to settle.
    pub(crate) unsettled: u32,
    /// Who asked for the pause or handshake in force.
    pub(crate) asker: Option<Asker>,
    /// The mutator that the pause in force has been waiting for, if it had to wait; it may have stopped by now. Null while no pause is in force.
    pub(crate) awaited: *const Header,
}

impl Registry {
    /// Adds a record to those attached.
    fn add(&mut self, header: &Header) {
        header.id.set(self.next_id);
        self.next_id += 1;
        self.count += 1;
        self.put(header);
    }

    /// Puts a record on the list, at its end.
    pub(crate) fn put(&mut self, header: &Header) {
        header.index.set(self.attached.len());
        self.attached.push(header.whole());
    }

    /// Takes a record out of those attached; no pause is in force.
    pub(crate) fn remove(&mut self, header: &Header) {
        let index = header.index.replace(usize::MAX);
        self.count -= 1;
        self.attached.swap_remove(index);
        if let Some(&moved) = self.attached.get(index) {
            // SAFETY: attached records are live; the lock is held.
            unsafe { (*moved).index.set(index) };
        }
    }

    /// How long ago the pause in force was asked for.
    pub(crate) fn pause_lasts(&self) -> Duration {
        #[cfg(not(loom))]
        {
            self.asked.map(|asked| asked.elapsed()).unwrap_or_default()
        }
        #[cfg(loom)]
        Duration::ZERO
    }

    /// Says whether the world has been shut down.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }
}

// SAFETY: the headers are shared between threads by design (record.rs says who touches what) and live as long as the registry.
unsafe impl Send for Registry {}

/// When to report, and to whom.
#[derive(Clone, Copy)]
pub(crate) struct Watch {
    /// How long a wait must last.
    pub(crate) after: Duration,
    /// Gives a report to the VM.
    ///
    /// # Safety
    ///
    /// The coordinator is that of the world the watch was made for.
    pub(crate) report: unsafe fn(&Coordinator, &Report<'_>),
}

/// The meeting point of one world's mutators and stoppers.
pub(crate) struct Coordinator {
    registry: Mutex<Registry>,
    /// The process it works in: see `process.rs`. Written where that has one thread.
    process: AtomicU32,
    /// Signalled when a pause ends.
    pub(crate) resumed: Condvar,
    /// Signalled when a mutator has published a record on a slow path.
    pub(crate) settled: Condvar,
    /// Signalled when a mutator has left a world that is being shut down.
    left: Condvar,
    fence: FenceStrategy,
    pub(crate) watch: Option<Watch>,
    /// The audit, if there is one. Set before the world is shared.
    #[cfg(feature = "audit")]
    pub(crate) audit: Option<crate::audit::Auditor>,
}

impl Coordinator {
    pub(crate) fn new(fence: FenceStrategy, watch: Option<Watch>, early: Option<Early>) -> Self {
        Self {
            registry: Mutex::new(Registry {
                holder: None,
                #[cfg(not(loom))]
                asked: None,
                closed: false,
                ended: None,
                early,
                attached: Vec::new(),
                count: 0,
                idle: Vec::new(),
                next_id: 1,
                deserted: false,
                ending: Vec::new(),
                unsettled: 0,
                asker: None,
                awaited: core::ptr::null(),
            }),
            process: AtomicU32::new(process::number()),
            resumed: Condvar::new(),
            settled: Condvar::new(),
            left: Condvar::new(),
            fence,
            watch,
            #[cfg(feature = "audit")]
            audit: None,
        }
    }

    /// Chooses the audit, before the world is shared.
    #[cfg(feature = "audit")]
    pub(crate) fn with_audit(mut self, audit: Option<crate::audit::Auditor>) -> Self {
        self.audit = audit;
        self
    }

    pub(crate) fn fence(&self) -> FenceStrategy {
        self.fence
    }

    /// Locks. In a copy of the process that nobody prepared nobody may give the lock back: ends that.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Registry> {
        if !self.is_of_this_process() {
            process::abort_copy(format_args!("a world was asked to stop, or about its mutators"));
        }
        lock(&self.registry)
    }

    /// Says whether the world was made in this process, or brought into it by a prepared fork.
    pub(crate) fn is_of_this_process(&self) -> bool {
        self.process.load(Ordering::Relaxed) == process::number()
    }

    /// Brings the world into this process.
    #[cfg(all(unix, not(loom), not(miri)))]
    pub(crate) fn is_of_this_process_now(&self) {
        self.process.store(process::number(), Ordering::Relaxed);
    }

    /// The patience of a wait that begins now.
    pub(crate) fn patience(&self) -> Patience {
        Patience::new(self.watch.map(|watch| watch.after))
    }

    /// Waits until no pause is in force, with the lock held again.
    ///
    /// `ask` says what the calling thread wants: it is called when the wait is reported.
    ///
    /// # Errors
    ///
    /// The calling thread holds the pause.
    pub(crate) fn wait_for_resume<'g>(
        &'g self,
        mut registry: MutexGuard<'g, Registry>,
        ask: &dyn Fn() -> Ask<'g>,
    ) -> Result<MutexGuard<'g, Registry>, PauseHeldHere> {
        let mut patience = self.patience();
        while let Some(holder) = registry.holder {
            if holder == thread_token() {
                return Err(PauseHeldHere);
            }
            if registry.unsettled > 0 {
                self.settled.notify_all();
            }
            registry = self.standing_by(registry);
            if registry.holder.is_some() {
                registry = patience.sleep(&self.resumed, registry);
            }
            if registry.holder.is_some()
                && let (Some(watch), Some(waited)) = (self.watch, patience.due())
            {
                let wait = Self::take_down_pause_wait(&registry, ask(), None, waited);
                drop(registry);
                self.report_pause_wait(watch, &wait);
                registry = self.lock();
            }
        }
        Ok(registry)
    }

    /// Says that this thread is about to wait, with the lock let go: what it waits for has to be looked at again.
    #[cfg(all(feature = "explore", not(loom)))]
    fn standing_by<'g>(&'g self, registry: MutexGuard<'g, Registry>) -> MutexGuard<'g, Registry> {
        drop(registry);
        crate::steps::stands_by(core::ptr::from_ref(self).cast());
        self.lock()
    }

    #[cfg(not(all(feature = "explore", not(loom))))]
    fn standing_by<'g>(&'g self, registry: MutexGuard<'g, Registry>) -> MutexGuard<'g, Registry> {
        registry
    }

    /// How long the pause that is wanted has been waiting; `None` if none is.
    pub(crate) fn pause_delay(&self) -> Option<core::time::Duration> {
        #[cfg(not(loom))]
        {
            self.lock().asked.map(|asked| asked.elapsed())
        }
        #[cfg(loom)]
        None
    }

    /// Waits until nobody wants `header`'s mutator to stop.
    ///
    /// # Errors
    ///
    /// The calling thread holds the pause, or the world has ended.
    pub(crate) fn wait_until_released(&self, header: &Header, waiter: Waiter) -> Result<(), Unreleased> {
        // The record is published, so a handler's upcall could come in: it must not find the lock held by the thread it interrupts.
        let mut blocked = SignalsBlocked::new();
        let mut registry = self.lock();
        let mut patience = self.patience();
        while header.word.is_stopping() {
            if registry.holder == Some(thread_token()) {
                return Err(Unreleased::PauseHeldHere);
            }
            if registry.unsettled > 0 {
                self.settled.notify_all();
            }
            registry = self.standing_by(registry);
            if !header.word.is_stopping() {
                break;
            }
            if header.word.is_ended() {
                match registry.ended {
                    Some(Stragglers::Park) if waiter == Waiter::Return => return Err(Unreleased::Parked),
                    Some(_) => return Err(Unreleased::Ended),
                    // The last `World` has been dropped, and this foreign thread was in no upcall then.
                    None if registry.deserted && header.is_own_and_idle() => return Err(Unreleased::Ended),
                    // It has begun one at that moment, which goes on.
                    None if registry.deserted => {
                        header.word.clear(ENDED, Faults::NONE);
                        continue;
                    }
                    None => {}
                }
            }
            registry = patience.sleep(&self.resumed, registry);
            if header.word.is_stopping()
                && let (Some(watch), Some(waited)) = (self.watch, patience.due())
            {
                let ask = waiter.ask(header);
                let wait = Self::take_down_pause_wait(&registry, ask, Some(header), waited);
                drop(registry);
                // A handler's upcall can come in meanwhile: no lock is held.
                drop(blocked);
                header.held(|| self.report_pause_wait(watch, &wait));
                blocked = SignalsBlocked::new();
                registry = self.lock();
            }
        }
        Ok(())
    }

    /// Takes a record to use again, if there is one.
    pub(crate) fn take_idle(&self) -> Option<*const Header> {
        self.lock().idle.pop()
    }

    /// Gives a record back for reuse.
    pub(crate) fn give_idle(&self, header: &Header) {
        if header.has_astray() {
            return; // leaked: frames on another stack may come back to it
        }
        self.lock().idle.push(header.whole());
    }

    /// Waits until the world is open to foreign threads, or says that it is not.
    ///
    /// # Errors
    ///
    /// It is not open, and does not let them wait; or it has been shut down meanwhile.
    pub(crate) fn admit_foreign_thread(&self, ask: Ask<'_>) -> Result<(), AttachError> {
        let mut patience = self.patience();
        loop {
            // A handler that makes an upcall must not find the lock held by the thread it interrupts. Signals get through between two rounds.
            let blocked = SignalsBlocked::new();
            let registry = self.lock();
            match registry.early {
                None => return Ok(()),
                _ if registry.closed => return Err(AttachError::Shutdown),
                Some(Early::Refuse) => return Err(AttachError::NotOpen),
                #[cfg(not(loom))]
                Some(Early::Wait) => {
                    drop(crate::sync::wait_for(&self.resumed, registry, Duration::from_millis(20)));
                }
                #[cfg(loom)]
                Some(Early::Wait) => drop(wait(&self.resumed, registry)),
            }
            drop(blocked);
            if let (Some(watch), Some(waited)) = (self.watch, patience.due()) {
                self.report_other_wait(watch, Ask { wants: Wanted::Open, ..ask }, waited);
            }
        }
    }

    /// Opens the world to foreign threads.
    pub(crate) fn open(&self) {
        self.lock().early = None;
        self.resumed.notify_all();
    }

    /// Lets a prepared record in, once no pause is in force.
    ///
    /// # Errors
    ///
    /// The world is shut down, or the calling thread holds the pause; or it is attached by now, as
    /// `attached_meanwhile` says: a report of the wait runs code of the VM.
    pub(crate) fn admit(
        &self,
        header: &Header,
        ask: Ask<'_>,
        attached_meanwhile: impl Fn() -> bool,
        faults: Faults,
    ) -> Result<(), AttachError> {
        let mut registry = self.lock();
        if !faults.has(Faults::UNGATED_ATTACH) {
            let resumed = self.wait_for_resume(registry, &|| ask);
            registry = resumed.map_err(|PauseHeldHere| AttachError::PauseHeldHere)?;
        }
        if attached_meanwhile() {
            return Err(AttachError::AlreadyAttached);
        }
        if registry.closed {
            return Err(AttachError::Shutdown);
        }
        if faults.has(Faults::CLOSED_TOO_EARLY) {
            drop(registry);
            registry = self.lock();
        }
        registry.add(header);
        Ok(())
    }

    /// Lets a prepared record of a fiber in, without waiting: it has no frames and no roots to look at, and if a pause is in force it is told to stop before anybody can run it. So a managed
    /// thread can make one: it must not wait for the pause that waits for it.
    ///
    /// # Errors
    ///
    /// The world is shut down.
    pub(crate) fn admit_fiber(&self, header: &Header) -> Result<(), AttachError> {
        let mut registry = self.lock();
        if registry.closed {
            return Err(AttachError::Shutdown);
        }
        if registry.holder.is_some() {
            header.word.ask(STOP);
        }
        registry.add(header);
        Ok(())
    }

    /// Lets a fiber's record out, without waiting. Says whether it is out: if a pause is in force, it will be when that ends, and who holds the pause ends the fiber.
    pub(crate) fn dismiss_fiber(&self, header: &Header) -> bool {
        let mut registry = self.lock();
        if registry.holder.is_some() {
            registry.ending.push(header.whole());
            return false;
        }
        registry.remove(header);
        if registry.closed {
            self.left.notify_all();
        }
        true
    }

    /// Wakes a shutdown that waits for mutators to leave.
    pub(crate) fn somebody_left(&self) {
        self.left.notify_all();
    }

    /// Says whether a thread may wait to be let in, before it is.
    ///
    /// # Errors
    ///
    /// The world is shut down, or the calling thread holds the pause.
    pub(crate) fn may_enter(&self) -> Result<(), AttachError> {
        let registry = self.lock();
        if registry.closed {
            Err(AttachError::Shutdown)
        } else if registry.holder == Some(thread_token()) {
            Err(AttachError::PauseHeldHere)
        } else {
            Ok(())
        }
    }

    /// Says whether the calling thread holds a pause or a handshake.
    pub(crate) fn is_held_here(&self) -> bool {
        self.lock().holder == Some(thread_token())
    }

    /// Lets a record out, once no pause is in force. The record is published: a stopper does not wait for it meanwhile.
    ///
    /// # Errors
    ///
    /// The calling thread holds the pause.
    pub(crate) fn dismiss(&self, header: &Header, ask: Ask<'_>, faults: Faults) -> Result<(), PauseHeldHere> {
        let mut registry = self.lock();
        if !faults.has(Faults::UNGATED_DETACH) {
            registry = header.held(|| self.wait_for_resume(registry, &|| ask))?;
        }
        if faults.has(Faults::UNGATED_DETACH) && registry.holder.is_some() {
            header.index.set(usize::MAX);
            registry.count -= 1;
            return Ok(()); // the list is with the stopper, who will find the record gone
        }
        if registry.closed {
            self.left.notify_all();
        }
        if faults.has(Faults::UNGATED_STOP)
            && registry.attached.get(header.index.get()) != Some(&core::ptr::from_ref(header))
        {
            return Ok(()); // another stopper has the list
        }
        registry.remove(header);
        Ok(())
    }

    /// The last `World` has been dropped: has each foreign thread that is in no upcall let go of the world with
    /// its next one. Waits for nothing: while a pause is in force its holder does this at its end.
    pub(crate) fn desert(&self) {
        // The thread may be foreign: a handler's upcall must not find the lock held by it.
        let _blocked = SignalsBlocked::new();
        let mut registry = self.lock();
        registry.deserted = true;
        for &header in &registry.attached {
            // SAFETY: attached records are live while the lock is held.
            let header = unsafe { &*header };
            if header.fiber().is_none() && header.is_idle() {
                header.word.ask(ENDED);
            }
        }
    }

    /// Lets nobody in any more.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
    }

    /// Waits until each attached mutator is one that `idle` accepts, at most for `timeout`; then ends the world for all that are left. Returns those
    /// that `idle` does not accept.
    ///
    /// # Errors
    ///
    /// The calling thread holds a pause.
    #[cfg(not(loom))]
    pub(crate) fn end(
        &self,
        timeout: Duration,
        stragglers: Stragglers,
        ask: Ask<'_>,
        idle: impl Fn(&Header) -> bool,
    ) -> Result<Vec<&Header>, PauseHeldHere> {
        let began = std::time::Instant::now();
        let mut registry = self.lock();
        loop {
            registry = self.wait_for_resume(registry, &|| ask)?;
            // SAFETY: attached records are live.
            let late =
                registry.attached.iter().map(|&header| unsafe { &*header }).filter(|header| !idle(header));
            let late: Vec<_> = late.collect();
            let Some(remaining) = timeout.checked_sub(began.elapsed()).filter(|_| !late.is_empty()) else {
                registry.ended = Some(stragglers);
                for &header in &registry.attached {
                    // SAFETY: as above.
                    unsafe { &*header }.word.ask(ENDED);
                }
                drop(registry);
                // From here on, who is foreign sees the bit when it comes back.
                self.fence.heavy();
                return Ok(late);
            };
            // A foreign thread's last upcall ends without a signal, hence the short waits.
            registry = crate::sync::wait_for(&self.left, registry, remaining.min(Duration::from_millis(5)));
        }
    }

    /// Ends a closed world in which nobody but the calling thread is attached.
    ///
    /// # Errors
    ///
    /// The calling thread holds a pause.
    #[cfg(not(loom))]
    pub(crate) fn end_alone(&self, stragglers: Stragglers) -> Result<(), PauseHeldHere> {
        let mut registry = self.lock();
        if registry.holder == Some(thread_token()) {
            return Err(PauseHeldHere);
        }
        registry.ended = Some(stragglers);
        Ok(())
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// The numbers of the attached mutators.
    ///
    /// # Errors
    ///
    /// The calling thread holds a pause.
    pub(crate) fn ids(&self, ask: Ask<'_>) -> Result<Vec<u64>, PauseHeldHere> {
        let registry = self.wait_for_resume(self.lock(), &|| ask)?;
        // SAFETY: attached records are live; the lock is held, under which `id` is written.
        Ok(registry.attached.iter().map(|&header| unsafe { (*header).id.get() }).collect())
    }

    /// Calls the interrupt of the newest call that has one, of the mutator numbered `id`. Says whether there was one.
    ///
    /// # Errors
    ///
    /// The calling thread holds a pause.
    pub(crate) fn interrupt(&self, id: u64, ask: Ask<'_>) -> Result<bool, PauseHeldHere> {
        let registry = self.wait_for_resume(self.lock(), &|| ask)?;
        // SAFETY: attached records are live; the lock is held, under which `id` is written.
        let header =
            registry.attached.iter().map(|&header| unsafe { &*header }).find(|header| header.id.get() == id);
        let Some(header) = header else { return Ok(false) };
        // Begun before the registry is let go: until then the mutator cannot detach, and after that its call cannot end.
        let call = header.interrupts.call_newest();
        drop(registry);
        Ok(call.map(InterruptCall::make).is_some())
    }

    /// Returns how many mutators are attached.
    pub(crate) fn attached(&self) -> usize {
        self.lock().count
    }

    /// Counts `left` mutators, the others having gone with their threads.
    #[cfg(all(unix, not(loom)))]
    pub(crate) fn only_these_left(&self, left: usize) {
        self.lock().count = left;
    }

    /// Takes every attached record, to end it with its world.
    pub(crate) fn drain_attached(&mut self) -> Vec<*const Header> {
        let mut registry = self.lock();
        registry.count = 0;
        core::mem::take(&mut registry.attached)
    }

    /// Takes every idle record, to free it.
    pub(crate) fn drain_idle(&mut self) -> Vec<*const Header> {
        core::mem::take(&mut self.lock().idle)
    }
}
