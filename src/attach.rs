//! Attaching and detaching: a thread of the VM's own, a foreign one, a fiber.

use crate::arch;
use crate::control::SignalsBlocked;
use crate::exit::{ThreadExiting, arm};
use crate::pause::Shared;
use crate::process;
use crate::record::{FiberState, Header, Leave, MutatorRecord, Ownership};
use crate::registry::{Ask, AttachError};
use crate::state::{Event, State};
use crate::steps::{Step, reached};
use crate::thread::{Record, link, unlink};
use crate::unwind::hook;
use crate::vm::{Crossing, FrameKind, Report, StackScanner, Wanted, tell};
use core::any::TypeId;
use core::cell::UnsafeCell;
use core::panic::Location;
use core::ptr;
use scopeguard::ScopeGuard;
use std::sync::Arc;

/// Why a thread could not be detached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DetachError {
    /// The attachment has an owner.
    #[error("this thread is attached through an `Attachment`; drop that instead")]
    Owned,
    /// The mutator is in use.
    #[error("this thread cannot detach: {reason}")]
    Busy {
        /// What it is doing.
        reason: &'static str,
    },
}

impl<V: StackScanner> Leave for Shared<V> {
    fn leave(&self, header: &Header) -> Result<(), &'static str> {
        let base = &raw const header.base;
        let jumped = !header.word.is_published(base);
        if jumped {
            // Foreign code has skipped upcalls and made no crossing since (I5): nothing managed can run on this thread any more. Until the gate lets it out,
            // a stopper finds every root at the base; what they held ends with the mutator.
            // SAFETY: the word of an attached mutator holds a live record.
            let skipped = unsafe { (*header.word.record()).depth } as usize;
            if header.state() == State::Managed {
                // What the way in of the newest upcall took, a global lock, nobody else gives up.
                self.tell_leaving(header);
            }
            header.word.publish(base, V::FAULTS);
            header.held(|| tell(&self.vm, &Report::ActivationsSkipped { skipped, call_site: None }));
        }
        self.detach_after(header, None, jumped)
    }

    fn tell_leaving(&self, header: &Header) {
        // SAFETY: the word of an attached mutator holds a live record.
        let crossing = match unsafe { (*header.word.record()).depth } {
            0 => Crossing::Attachment,
            _ => Crossing::Upcall,
        };
        hook(|| self.vm.leaving_managed(crossing));
    }
}

/// An attachment that the hooks have been told of, and will be told of again unless it comes to be.
type Entered<'a, V> = ScopeGuard<&'a V, fn(&'a V)>;

/// Why a thread cannot be detached that is to wait for itself.
const PAUSE_HELD_HERE: &str = "this thread holds a pause of the world; end the pause first";

/// The bytes of stack that attaching needs: its own frames and the system's, in a debug build, with room for a `Vm::attach` of the usual kind.
const NEEDED: usize = 16 * 1024;

/// Refuses a thread that would overflow its stack while it is attached.
///
/// With signals blocked: the system takes a lock of its own to tell the bounds of the stack, and a handler of this thread may ask for them too.
///
/// # Errors
///
/// [`AttachError::StackTooSmall`].
fn look_at_stack() -> Result<(), AttachError> {
    let (stack, sp) = (arch::stack_bounds().unwrap_or(0..0), arch::stack_pointer());
    // On a stack that is not the thread's own nothing is known.
    if stack.contains(&sp) && sp - stack.start < NEEDED {
        return Err(AttachError::StackTooSmall { left: sp - stack.start, needed: NEEDED });
    }
    Ok(())
}

impl<V: StackScanner> Shared<V> {
    /// Attaches the calling thread. On return it is managed if `ownership` is an attachment's, foreign if it is the thread's own.
    ///
    /// # Errors
    ///
    /// See [`AttachError`].
    pub(crate) fn attach(
        self: &Arc<Self>,
        ownership: Ownership,
        entry_sp: usize,
        ask: Ask<'_>,
    ) -> Result<&Record<V>, AttachError> {
        if !self.current().is_null() {
            return Err(AttachError::AlreadyAttached);
        }
        if !self.coordinator.is_of_this_process() {
            return Err(AttachError::Forked);
        }
        if ownership == Ownership::Thread {
            self.coordinator.admit_foreign_thread(ask)?;
        }
        // A handler that makes an upcall finds this thread attached or not, and no lock held by it.
        let blocked = SignalsBlocked::new();
        look_at_stack()?;
        // First: whatever fails after this leaves nothing attached.
        arm().map_err(|ThreadExiting| AttachError::ThreadExiting)?;
        let local = self.vm.attach();
        if !self.current().is_null() {
            return Err(AttachError::AlreadyAttached); // by the VM itself, just now
        }
        let (blocked, entered) = match ownership {
            Ownership::Attachment => (None, Some(self.enter_first(blocked)?)),
            _ => (Some(blocked), None),
        };
        let _blocked = blocked.unwrap_or_else(SignalsBlocked::new);
        if entered.is_some() && !self.current().is_null() {
            return Err(AttachError::AlreadyAttached); // by an upcall of a signal's handler, meanwhile
        }
        let header = self.coordinator.take_idle().unwrap_or_else(|| self.new_record());
        // SAFETY: an idle or new record of this world; nobody else has it.
        let record = unsafe { &*header.cast::<Record<V>>() };
        // SAFETY: as above.
        unsafe { *record.local.get() = Some(local) };
        let header = &record.header;
        header.begin(entry_sp, self.stack_reserve);
        // The first depth: an upcall in the handler of a signal then allocates nothing.
        header.base.newer_slow();
        let undo = scopeguard::guard((), |()| {
            // SAFETY: not admitted: nobody else has the record.
            drop(unsafe { (*record.local.get()).take() });
            header.ownership.set(Ownership::Nobody);
            self.coordinator.give_idle(header);
        });
        match ownership {
            Ownership::Thread => {
                header.base.kind.set(FrameKind::ForeignThread);
                // It made no call: every upcall lies below.
                header.base.machine_sp.set(usize::MAX);
                header.word.publish(&raw const header.base, V::FAULTS);
            }
            // Managed from the start: no stopper can look until the gate lets it in, and then none is stopping.
            _ => header.word.reset(&raw const header.base),
        }
        // Before the gate lets it in: from then on other threads may read it, under the registry's lock.
        header.ownership.set(ownership);
        reached(header.world, Step::Attaching);
        self.coordinator.admit(header, ask, || !self.current().is_null(), V::FAULTS)?;
        let attached = match ownership {
            Ownership::Thread => Step::AttachedForeign,
            _ => Step::Attached,
        };
        reached(header.world, attached);
        ScopeGuard::into_inner(undo);
        if let Some(entered) = entered {
            ScopeGuard::into_inner(entered);
        }
        let world: Arc<dyn Leave> = Arc::<Self>::clone(self);
        header.keep.replace(Some(world));
        link(header);
        Ok(record)
    }

    /// Tells the hooks that a thread which attaches itself is about to be managed, and again if nothing
    /// comes of it. They may block, so signals are let through meanwhile: the thread is no mutator yet,
    /// and no pause waits for it.
    ///
    /// # Errors
    ///
    /// The thread holds the pause, or the world is shut down. It would wait in vain for what a stopped
    /// thread holds, or a parked one.
    fn enter_first(&self, blocked: SignalsBlocked) -> Result<Entered<'_, V>, AttachError> {
        self.coordinator.may_enter()?;
        drop(blocked);
        hook(|| self.vm.entering_managed(Crossing::Attachment));
        let leaving: fn(_) = |vm: &V| hook(|| vm.leaving_managed(Crossing::Attachment));
        Ok(scopeguard::guard(&self.vm, leaving))
    }

    /// Tells the hooks that an attachment ends, if it can.
    ///
    /// # Errors
    ///
    /// What the mutator is doing that forbids it.
    fn leave_last(&self, header: &Header) -> Result<(), &'static str> {
        header.state().after(Event::Detach)?;
        if !header.word.is_managed_in(&raw const header.base) {
            return Err("an upcall of it is in progress; detach when the foreign call has returned");
        }
        if self.coordinator.is_held_here() {
            return Err(PAUSE_HELD_HERE);
        }
        hook(|| self.vm.leaving_managed(Crossing::Attachment));
        Ok(())
    }

    /// Attaches a mutator that is no thread's. Waits for nothing.
    ///
    /// # Errors
    ///
    /// The world is shut down.
    pub(crate) fn attach_fiber(&self, fiber: &Arc<FiberState>) -> Result<&Record<V>, AttachError> {
        if !self.coordinator.is_of_this_process() {
            return Err(AttachError::Forked);
        }
        let local = self.vm.attach();
        let header = self.coordinator.take_idle().unwrap_or_else(|| self.new_record());
        // SAFETY: an idle or new record of this world; nobody else has it.
        let record = unsafe { &*header.cast::<Record<V>>() };
        // SAFETY: as above.
        unsafe { *record.local.get() = Some(local) };
        let header = &record.header;
        header.begin_fiber(fiber);
        header.word.publish(&raw const header.base, V::FAULTS);
        let undo = scopeguard::guard((), |()| {
            header.end();
            // SAFETY: not admitted: nobody else has the record.
            drop(unsafe { (*record.local.get()).take() });
            header.ownership.set(Ownership::Nobody);
            self.coordinator.give_idle(header);
        });
        header.ownership.set(Ownership::Fiber);
        self.coordinator.admit_fiber(header)?;
        ScopeGuard::into_inner(undo);
        Ok(record)
    }

    #[cold]
    fn new_record(&self) -> *const Header {
        let record = Box::new(MutatorRecord::<V::Local> {
            header: Header::new(self.coordinator.fence(), TypeId::of::<V>(), ptr::from_ref(self).cast()),
            local: UnsafeCell::new(None),
        });
        let record = Box::into_raw(record).cast_const();
        // SAFETY: just made, and nobody else's.
        unsafe { Header::settle(record) };
        record.cast()
    }

    /// Detaches `header`, a mutator of the calling thread: managed in its base activation, or a foreign thread's own between upcalls.
    ///
    /// # Errors
    ///
    /// What the mutator is doing that forbids it. Nothing has been changed.
    pub(crate) fn detach(
        &self,
        header: &Header,
        site: Option<&'static Location<'static>>,
    ) -> Result<(), &'static str> {
        self.detach_after(header, site, false)
    }

    /// [`detach`](Self::detach), where foreign code has `jumped` over calls whose arguments end here: they have been reported.
    ///
    /// # Errors
    ///
    /// As [`detach`](Self::detach).
    fn detach_after(
        &self,
        header: &Header,
        site: Option<&'static Location<'static>>,
        jumped: bool,
    ) -> Result<(), &'static str> {
        if header.is_held() {
            return Err(
                "the crate is calling code of the VM for it (a visitor, a report or a hook), and goes on with it then; detach when that has returned",
            );
        }
        if !self.coordinator.is_of_this_process() {
            return Err(process::FORKED);
        }
        if header.ownership.get() == Ownership::Attachment {
            self.leave_last(header)?;
        }
        let blocked = SignalsBlocked::new();
        let orphan = header.ownership.get() == Ownership::Orphan;
        let base = &raw const header.base;
        match header.ownership.get() {
            Ownership::Attachment => {
                reached(header.world, Step::Detaching);
                header.base.kind.set(FrameKind::Leaving);
                header.word.publish(base, V::FAULTS);
            }
            Ownership::Thread if !header.word.is_published(base) => {
                return Err("an upcall of it is in progress; detach when the upcall has returned");
            }
            Ownership::Thread | Ownership::Orphan => {}
            Ownership::Fiber => return Err("it is a fiber's; drop the `Fiber` instead"),
            Ownership::Nobody => return Err("it is not attached"),
        }
        reached(header.world, Step::DetachPublished);
        let ask = Ask { wants: Wanted::Detach, site, mutator: Some(header.id.get()), upcall: None };
        if self.coordinator.dismiss(header, ask, V::FAULTS).is_err() {
            // A foreign thread's own: an attachment's has been asked before.
            return Err(PAUSE_HELD_HERE);
        }
        reached(header.world, Step::Detached);
        if !orphan {
            unlink(header);
        }
        // SAFETY: a record of this world, dismissed: nobody else has it.
        let record = unsafe { header.record::<V::Local>() };
        // A mutator that detaches is in no call, so what it still declares was leaked.
        let (mutator, mut leaked) = (header.id.get(), 0);
        if !jumped {
            header.roots.all(|_| leaked += 1);
        }
        header.end();
        self.handles.give_back(&header.free_handles);
        // SAFETY: as above.
        let local = unsafe { (*record.local.get()).take() };
        // Dropped last: it may be what keeps the world alive, and the caller holds another for as long as `self` is borrowed.
        let world = header.keep.take();
        self.coordinator.give_idle(header);
        // Code of the VM runs from here on, and may start threads, which inherit the mask.
        drop(blocked);
        drop(local);
        if leaked > 0 {
            tell(&self.vm, &Report::ArgumentsLeaked { mutator, count: leaked });
        }
        drop(world);
        Ok(())
    }
}

impl<V: StackScanner> Shared<V> {
    /// Ends the fibers there are still: their `Fiber`s do not keep the world. Nobody else has the world.
    pub(crate) fn end_fibers(&mut self) {
        for header in self.coordinator.drain_attached() {
            // SAFETY: attached records are live; what is attached now is a fiber's, since a thread that is attached keeps its world.
            let header = unsafe { &*header };
            // Taken for good: frames of it that are switched to find it so. (A fiber of a thread that stayed behind in the parent of a forked process is lost already.)
            let ended = header.fiber().is_some_and(FiberState::end);
            header.keep_fiber_state();
            if ended {
                // SAFETY: nobody runs it, and nobody can any more.
                unsafe { self.end_fiber(header) };
            }
        }
    }
}
