//! What a thread knows of its own mutators: the list an upcall looks in, attaching, and what happens at thread exit.
//!
//! Thread-locals of two kinds, since they have opposite needs. `ONLY` and `NEWEST` are read by upcalls: constant-initialised and without a destructor, so reading one
//! is one load. `EXIT` has a destructor and is touched on attach and detach only. A thread's destructors run in any order, after which `EXIT` is gone:
//! then nothing attaches any more.

use crate::control::SignalsBlocked;
use crate::faults::Faults;
use crate::pause::Shared;
use crate::record::{FiberState, Header, MutatorRecord, Ownership};
use crate::registry::AttachError;
use crate::state::{Event, State};
use crate::steps::{Step, reached};
use crate::sync::{Cell, light_compiler_fence, thread_local_const, thread_local_lazy};
use crate::unwind;
use crate::vm::{FrameKind, Report, StackScanner};
use core::any::TypeId;
use core::cell::{RefCell, UnsafeCell};
use core::ptr;
use std::sync::Arc;

thread_local_const! {
    /// The newest mutator of this thread; older ones hang off `next_on_thread`.
    static NEWEST: Cell<*const Header> = Cell::new(ptr::null());
}

thread_local_const! {
    /// The only mutator of this thread; null if it has none or several.
    static ONLY: Cell<*const Header> = Cell::new(ptr::null());
}

thread_local_lazy! {
    static EXIT: ExitHook = ExitHook { attached: RefCell::new(Vec::new()) };
}

/// The typed record behind a header of `V`'s world.
pub(crate) type Record<V> = MutatorRecord<<V as crate::Vm>::Local>;

/// The attachments of one thread, ended by its exit.
struct ExitHook {
    attached: RefCell<Attached>,
}

type Attached = Vec<Entry>;

type Entry = (*const Header, Arc<dyn Leave>);

/// A world, as far as a thread that leaves it must know.
trait Leave: Send + Sync {
    /// Detaches a record that the thread itself owns.
    fn leave(&self, header: &Header);
}

impl<V: StackScanner> Leave for Shared<V> {
    fn leave(&self, header: &Header) {
        let base = &raw const header.base;
        let jumped = !header.word.is_published(base);
        if jumped {
            // Foreign code has skipped upcalls and made no crossing since (I5): nothing managed can run on this thread any more. Until the gate lets it out,
            // a stopper finds every root at the base; what they held ends with the mutator.
            // SAFETY: the word of an attached mutator holds a live record.
            let skipped = unsafe { (*header.word.record()).depth } as usize;
            header.word.publish(base, V::FAULTS);
            // Caught: a panic in a thread's destructors ends the process, and the mutator must be let go first.
            let report = Report::ActivationsSkipped { skipped, call_site: None };
            drop(unwind::stop(|| self.vm.report(&report)));
        }
        // A thread that exits inside a pause it holds cannot be helped: the world is lost, and leaking the record is the safe way out.
        let _ = self.detach_after(header, jumped);
    }
}

impl Drop for ExitHook {
    fn drop(&mut self) {
        #[cfg(loom)]
        if std::thread::panicking() {
            // A model has failed: loom drops its threads' locals outside of the execution, where nothing of it can be used.
            let _leaked = core::mem::ManuallyDrop::new(self.attached.take());
            return;
        }
        let attached = self.attached.take();
        if attached.is_empty() {
            return;
        }
        // Leaving runs code of the VM, which may drop attachments of this thread: they must be found, and taken off the list.
        late::arm(attached);
        leave_owned(late::take_owned);
        late::disarm_if_empty();
        // What is left has been leaked, or lives in thread-locals that are destroyed later, where it can still be used.
    }
}

/// Takes the next attachment off a list that the thread itself owns.
fn take_owned(attached: &mut Attached) -> Option<Entry> {
    // SAFETY: the entry's world keeps the record alive; the record is this thread's as long as the list has it.
    let index =
        attached.iter().position(|(header, _)| unsafe { (**header).ownership.get() } == Ownership::Thread)?;
    Some(attached.swap_remove(index))
}

/// Ends the attachments that the thread itself owns, one after the other.
fn leave_owned(mut next: impl FnMut() -> Option<Entry>) {
    while let Some((header, world)) = next() {
        // SAFETY: `world` keeps the record alive; it is this thread's.
        world.leave(unsafe { &*header });
    }
}

/// Attachments that have outlived the thread's own exit hook.
///
/// Until the last thread-local is gone, safe code may still use them, so they stay managed. The destructors of POSIX thread-specific data run after those of
/// thread-locals; then nothing managed can run on the thread any more, and what was leaked can count as stopped. Its roots stay (I9).
mod late {
    use super::{
        Attached, Cell, Entry, Faults, FrameKind, Header, Ownership, State, ptr, thread_local_const, unlink,
    };

    thread_local_const! {
        static LATE: Cell<*mut Attached> = Cell::new(ptr::null_mut());
    }

    /// Sees to it that the attachments still there when the thread-locals are gone stop counting. Where the system has no such moment they stay
    /// managed, and a pause waits for them.
    pub(super) fn arm(attached: Attached) {
        let attached = Box::into_raw(Box::new(attached));
        LATE.with(|late| late.set(attached));
        call_at_exit();
    }

    /// Has [`run`] called when the thread-locals are gone. A thread can attach itself as late as that, in a destructor of thread-specific data of its own; no
    /// thread-local's destructor would detach it then.
    pub(super) fn call_at_exit() {
        #[cfg(all(unix, not(loom), not(miri)))]
        if let Some(key) = key() {
            // SAFETY: a key of this process; any value that is not null has its destructor called.
            unsafe { libc::pthread_setspecific(key, ptr::without_provenance(1)) };
        }
    }

    /// Gives back the list if nothing is on it.
    pub(super) fn disarm_if_empty() {
        let attached = LATE.with(Cell::get);
        // SAFETY: null, or the list `arm` stored, which only this thread reaches.
        if unsafe { attached.as_ref() }.is_some_and(Vec::is_empty) {
            LATE.with(|late| late.set(ptr::null_mut()));
            // SAFETY: made by `Box::into_raw` in `arm`, and taken out just now.
            drop(unsafe { Box::from_raw(attached) });
        }
    }

    /// Takes the next attachment off the list that the thread itself owns.
    pub(super) fn take_owned() -> Option<Entry> {
        // SAFETY: null, or the list `arm` stored, which only this thread reaches.
        super::take_owned(unsafe { LATE.with(Cell::get).as_mut() }?)
    }

    /// Takes an attachment off the list: it has been dropped after all.
    pub(super) fn remove(header: &Header) -> Option<Entry> {
        // SAFETY: null, or the list `arm` stored, which only this thread reaches.
        let attached = unsafe { LATE.with(Cell::get).as_mut() }?;
        let index = attached.iter().position(|(entry, _)| ptr::eq(*entry, header))?;
        Some(attached.swap_remove(index))
    }

    #[cfg(all(unix, not(loom), not(miri)))]
    fn key() -> Option<libc::pthread_key_t> {
        static KEY: std::sync::OnceLock<Option<libc::pthread_key_t>> = std::sync::OnceLock::new();
        *KEY.get_or_init(|| {
            let mut key = 0;
            // SAFETY: `key` is valid for writes, and `run` may be called at any thread's exit.
            (unsafe { libc::pthread_key_create(&raw mut key, Some(run)) } == 0).then_some(key)
        })
    }

    #[cfg_attr(not(all(unix, not(loom), not(miri))), expect(dead_code, reason = "there is no such moment"))]
    extern "C" fn run(_: *mut core::ffi::c_void) {
        let attached = LATE.with(|late| late.replace(ptr::null_mut()));
        if attached.is_null() {
            // The exit hook has not run, and on most systems will not: the thread attached itself when it was too late for that.
            let next = || super::EXIT.try_with(|exit| super::take_owned(&mut exit.attached.borrow_mut()));
            return super::leave_owned(|| next().ok().flatten());
        }
        // SAFETY: made by `Box::into_raw` in `arm`, and taken out just now.
        let attached = unsafe { Box::from_raw(attached) };
        for (header, _world) in *attached {
            // SAFETY: `_world` keeps the record alive; it is this thread's.
            let header = unsafe { &*header };
            {
                let _registry = header.coordinator().lock();
                header.ownership.set(Ownership::Orphan);
            }
            if header.state() == State::Managed {
                header.base.kind.set(FrameKind::Leaving);
                header.word.publish(&raw const header.base, Faults::NONE);
            }
            unlink(header);
        }
    }
}

/// The newest mutator of this thread. Not inlined, as everything that a fiber's own frames may call: see [`thread_token`](crate::sync::thread_token).
#[inline(never)]
fn newest() -> *const Header {
    NEWEST.with(Cell::get)
}

/// Calls `f` with the first mutator of this thread, newest first, for which it returns something.
fn find<T>(mut f: impl FnMut(&Header) -> Option<T>) -> Option<T> {
    let mut header = newest();
    while !header.is_null() {
        // SAFETY: records on the list are attached to this thread, and unlinked before they are given back.
        let record = unsafe { &*header };
        if let Some(found) = f(record) {
            return Some(found);
        }
        header = record.next_on_thread.get();
    }
    None
}

/// Calls `f` for each mutator of this thread, newest first. Async-signal-safe if `f` is.
///
/// # Errors
///
/// What `f` returns.
pub(crate) fn each_on_thread<E>(mut f: impl FnMut(&Header) -> Result<(), E>) -> Result<(), E> {
    find(|header| f(header).err()).map_or(Ok(()), Err)
}

/// Puts a record on this thread's list.
#[inline(never)]
pub(crate) fn link(header: &Header) {
    header.next_on_thread.set(NEWEST.with(Cell::get));
    // A signal handler that reads the list finds it without the record or whole.
    light_compiler_fence();
    NEWEST.with(|newest| newest.set(header));
    find_only();
}

/// Takes a record off this thread's list.
#[inline(never)]
pub(crate) fn unlink(header: &Header) {
    let next = header.next_on_thread.get();
    let newer = find(|newer| ptr::eq(newer.next_on_thread.get(), header).then_some(ptr::from_ref(newer)));
    match newer {
        // SAFETY: as in `find`.
        Some(newer) => unsafe { (*newer).next_on_thread.set(next) },
        None => NEWEST.with(|newest| newest.set(next)),
    }
    light_compiler_fence();
    header.next_on_thread.set(ptr::null());
    find_only();
}

/// Recomputes `ONLY` after a change of the list.
fn find_only() {
    let newest = NEWEST.with(Cell::get);
    // SAFETY: as in `find`.
    let alone = unsafe { newest.as_ref() }.is_some_and(|header| header.next_on_thread.get().is_null());
    ONLY.with(|only| only.set(if alone { newest } else { ptr::null() }));
}

/// Returns this thread's mutator if it has one only and that is of a world of type `V`; else null.
#[inline(always)]
pub(crate) fn only<V: StackScanner>() -> *const Record<V> {
    let header = ONLY.with(Cell::get);
    // SAFETY: as in `find`.
    match unsafe { header.as_ref() } {
        Some(record) if record.vm_type == TypeId::of::<V>() => header.cast(),
        _ => ptr::null(),
    }
}

/// Returns this thread's mutator, of whatever world, if it has one only; else null.
#[cfg(feature = "libffi")]
#[inline(always)]
pub(crate) fn only_of_any_type() -> *const Header {
    ONLY.with(Cell::get)
}

/// Says whether a record is attached to this thread.
#[inline(always)]
pub(crate) fn is_mine(header: &Header) -> bool {
    ptr::eq(ONLY.with(Cell::get), header) || is_listed_slow(header)
}

#[cold]
#[inline(never)]
fn is_listed_slow(header: &Header) -> bool {
    find(|listed| ptr::eq(listed, header).then_some(())).is_some()
}

/// Which mutator of this thread an upcall without data is for.
pub(crate) enum Innermost<V: StackScanner> {
    /// The thread has none of that type.
    None,
    /// The one whose foreign call is the innermost, or the only one.
    Of(*const Record<V>),
    /// Two calls were made in one stack frame: nothing tells which is inside the other.
    Ambiguous,
}

/// The world of one of this thread's attachments, kept alive.
pub(crate) struct Kept(#[expect(dead_code, reason = "held for its drop")] Option<Arc<dyn Leave>>);

/// Keeps the world of one of this thread's attachments alive as long as the result: a foreign thread between upcalls may be all that does, and code of the VM that
/// runs then may detach it.
pub(crate) fn keep_world(header: &Header) -> Kept {
    let world = EXIT.try_with(|exit| {
        let attached = exit.attached.borrow();
        attached.iter().find(|(entry, _)| ptr::eq(*entry, header)).map(|(_, world)| Arc::clone(world))
    });
    // Where the exit hook has run, what it left attached has an owner elsewhere.
    Kept(world.ok().flatten())
}

/// Finds this thread's mutator of a world of type `V` whose foreign call is the innermost of those that lie above `sp`, where an upcall comes in: foreign code has skipped
/// the others (I5), and they are found to be skipped when their mutator's next crossing comes.
pub(crate) fn innermost<V: StackScanner>(sp: usize) -> Innermost<V> {
    let mut best = (usize::MAX, Innermost::None);
    find(|header| {
        if header.vm_type == TypeId::of::<V>() {
            let (call, managed) = match header.word.published() {
                Some(call) => (call.as_ptr().cast_const(), false),
                None => (header.word.record(), true),
            };
            // SAFETY: the word of an attached mutator holds a live record.
            let record = unsafe { &*call };
            // A managed activation is over if the upcall comes in above its entry.
            let skipped = managed
                && record.depth > 0
                && header.native_stack().contains(&sp)
                && sp >= record.entry_sp.get();
            let call = match (managed, skipped) {
                (true, false) => None,
                (true, true) => header.call_above::<V>(record.older, sp),
                (false, _) if header.native_stack().contains(&sp) => header.call_above::<V>(call, sp),
                (false, _) => Some(record),
            };
            let distance = match call {
                // A managed one is taken only if there is no other: it is an error to call in on it, and the caller says so.
                None => usize::MAX,
                Some(frame) => match frame.kind.get() {
                    // It waits for a fiber: what runs is the fiber's.
                    FrameKind::Resuming => return None,
                    // A foreign thread's mutator between upcalls, or a fiber's that has not been entered: it made no call.
                    FrameKind::ForeignThread => usize::MAX - 1,
                    // Native stacks grow downwards on every machine here, so the innermost crossing is the next above; one on another stack is far away.
                    _ => frame.native_sp::<V>().wrapping_sub(sp).min(usize::MAX - 2),
                },
            };
            let this = Innermost::Of(ptr::from_ref(header).cast());
            if distance < best.0 || matches!(best.1, Innermost::None) {
                best = (distance, this);
            } else if distance == best.0 && distance < usize::MAX - 1 {
                best.1 = Innermost::Ambiguous;
            }
        }
        None::<()>
    });
    best.1
}

impl<V: StackScanner> Shared<V> {
    /// Returns this thread's mutator if it has one only and that is of this world; else null.
    #[inline(always)]
    pub(crate) fn only(&self) -> *const Record<V> {
        let header = ONLY.with(Cell::get);
        // SAFETY: as in `find`.
        match unsafe { header.as_ref() } {
            Some(record) if record.world == ptr::from_ref(self).cast() => header.cast(),
            _ => ptr::null(),
        }
    }

    /// Returns this thread's mutator of this world; null if it has none.
    pub(crate) fn current(&self) -> *const Record<V> {
        let world = ptr::from_ref(self).cast();
        find(|header| (header.world == world).then_some(ptr::from_ref(header))).unwrap_or(ptr::null()).cast()
    }

    /// Attaches the calling thread. On return it is managed if `ownership` is an attachment's, foreign if it is the thread's own.
    ///
    /// # Errors
    ///
    /// See [`AttachError`].
    pub(crate) fn attach(
        self: &Arc<Self>,
        ownership: Ownership,
        entry_sp: usize,
    ) -> Result<&Record<V>, AttachError> {
        if !self.current().is_null() {
            return Err(AttachError::AlreadyAttached);
        }
        if ownership == Ownership::Thread {
            self.coordinator.admit_foreign_thread()?;
        }
        // A handler that makes an upcall finds this thread attached or not, and no lock held by it.
        let _blocked = SignalsBlocked::new();
        // Room for the exit hook's entry first: whatever fails after this leaves nothing attached.
        EXIT.try_with(|exit| exit.attached.borrow_mut().reserve(1))
            .map_err(|_| AttachError::ThreadExiting)?;
        let local = self.vm.attach();
        if !self.current().is_null() {
            return Err(AttachError::AlreadyAttached); // by the VM itself, just now
        }
        let header = self.coordinator.take_idle().unwrap_or_else(|| self.new_record());
        // SAFETY: an idle or new record of this world; nobody else has it.
        let record = unsafe { &*header.cast::<Record<V>>() };
        // SAFETY: as above.
        unsafe { *record.local.get() = Some(local) };
        let header = &record.header;
        header.begin(entry_sp, self.stack_reserve);
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
        self.coordinator.admit(header, V::FAULTS)?;
        let attached = match ownership {
            Ownership::Thread => Step::AttachedForeign,
            _ => Step::Attached,
        };
        reached(header.world, attached);
        scopeguard::ScopeGuard::into_inner(undo);
        let world: Arc<dyn Leave> = Arc::<Self>::clone(self);
        // It was there just now, and its destructor runs after this function has returned.
        let _ = EXIT.try_with(|exit| exit.attached.borrow_mut().push((ptr::from_ref(header), world)));
        if ownership == Ownership::Thread {
            late::call_at_exit();
        }
        link(header);
        Ok(record)
    }

    /// Attaches a mutator that is no thread's. Waits for nothing.
    ///
    /// # Errors
    ///
    /// The world is shut down.
    pub(crate) fn attach_fiber(&self, fiber: &FiberState) -> Result<&Record<V>, AttachError> {
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
        scopeguard::ScopeGuard::into_inner(undo);
        Ok(record)
    }

    #[cold]
    fn new_record(&self) -> *const Header {
        let record = Box::new(MutatorRecord::<V::Local> {
            header: Header::new(self.coordinator.fence(), TypeId::of::<V>(), ptr::from_ref(self).cast()),
            local: UnsafeCell::new(None),
        });
        let record = Box::into_raw(record).cast_const().cast::<Header>();
        // SAFETY: just made, and nobody else's.
        unsafe { (*record).settle() };
        record
    }

    /// Detaches `header`, a mutator of the calling thread: managed in its base activation, or a foreign thread's own between upcalls.
    ///
    /// # Errors
    ///
    /// What the mutator is doing that forbids it. Nothing has been changed.
    pub(crate) fn detach(&self, header: &Header) -> Result<(), &'static str> {
        self.detach_after(header, false)
    }

    /// [`detach`](Self::detach), where foreign code has `jumped` over calls whose arguments end here: they have been reported.
    ///
    /// # Errors
    ///
    /// As [`detach`](Self::detach).
    fn detach_after(&self, header: &Header, jumped: bool) -> Result<(), &'static str> {
        let _blocked = SignalsBlocked::new();
        let orphan = header.ownership.get() == Ownership::Orphan;
        let base = &raw const header.base;
        match header.ownership.get() {
            Ownership::Attachment => {
                header.state().after(Event::Detach)?;
                if !header.word.is_managed_in(base) {
                    return Err("an upcall of it is in progress; detach when the foreign call has returned");
                }
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
        if self.coordinator.dismiss(header, V::FAULTS).is_err() {
            if header.ownership.get() == Ownership::Attachment {
                header.base.kind.set(FrameKind::ForeignCall);
                header.word.reset(base);
            }
            return Err("this thread holds a pause of the world; end the pause first");
        }
        reached(header.world, Step::Detached);
        if !orphan {
            unlink(header);
        }
        // SAFETY: a record of this world, dismissed: nobody else has it.
        let record = unsafe { &*ptr::from_ref(header).cast::<Record<V>>() };
        // A mutator that detaches is in no call, so what it still declares was leaked.
        let (mutator, mut leaked) = (header.id.get(), 0);
        if !jumped {
            header.roots.all(|_| leaked += 1);
        }
        header.end();
        self.handles.give_back(&header.free_handles);
        // SAFETY: as above.
        let local = unsafe { (*record.local.get()).take() };
        self.coordinator.give_idle(header);
        // Last: it may be what keeps the world alive, and the caller holds another for as long as `self` is borrowed.
        let entry = EXIT.try_with(|exit| {
            let mut attached = exit.attached.borrow_mut();
            let index = attached.iter().position(|(entry, _)| ptr::eq(*entry, header))?;
            Some(attached.swap_remove(index))
        });
        let entry = entry.unwrap_or_else(|_| late::remove(header));
        drop(local);
        if leaked > 0 {
            self.vm.report(&Report::ArgumentsLeaked { mutator, count: leaked });
        }
        drop(entry);
        Ok(())
    }
}
