//! A [`Fiber`] with a real stack: `corosensei`'s coroutine.

use core::cell::Cell;
use core::sync::atomic::{AtomicPtr, Ordering};
use corosensei::{Coroutine, CoroutineResult, Yielder};
use reentry::{Fiber, FiberError, Mutator, StackScanner, World};
use std::sync::Arc;

type Leader = AtomicPtr<Yielder<(), ()>>;

std::thread_local! {
    /// Leads back from the stack that runs on this thread. Null where no strand runs.
    static LEADER: Cell<*const Leader> = const { Cell::new(core::ptr::null()) };
}

/// Not inlined: what was read of a thread-local before a switch is another thread's after it.
#[inline(never)]
fn leader() -> *const Leader {
    LEADER.get()
}

#[inline(never)]
fn set_leader(leader: *const Leader) -> *const Leader {
    LEADER.replace(leader)
}

/// A stack to switch to. ThreadSanitizer, where it is built in (`.ci/tsan`), is told of each switch, by whoever switches there and has come back: so each frame ends on the stack it began on.
pub(crate) struct Stack {
    coroutine: Coroutine<(), (), ()>,
    #[cfg(tsan)]
    known_as: *mut core::ffi::c_void,
}

#[cfg(tsan)]
unsafe extern "C" {
    fn __tsan_create_fiber(flags: core::ffi::c_uint) -> *mut core::ffi::c_void;
    fn __tsan_destroy_fiber(fiber: *mut core::ffi::c_void);
    fn __tsan_get_current_fiber() -> *mut core::ffi::c_void;
    fn __tsan_switch_to_fiber(fiber: *mut core::ffi::c_void, flags: core::ffi::c_uint);
}

impl Stack {
    fn new(body: impl FnOnce(&Yielder<(), ()>) + 'static) -> Self {
        Self {
            coroutine: Coroutine::new(move |yielder, ()| body(yielder)),
            #[cfg(tsan)]
            // SAFETY: no flag is set.
            known_as: unsafe { __tsan_create_fiber(0) },
        }
    }

    #[cfg(not(tsan))]
    fn switch<R>(&mut self, there: impl FnOnce(&mut Coroutine<(), (), ()>) -> R) -> R {
        there(&mut self.coroutine)
    }

    #[cfg(tsan)]
    fn switch<R>(&mut self, there: impl FnOnce(&mut Coroutine<(), (), ()>) -> R) -> R {
        // SAFETY: the one runs here, and the other is this stack's until that is dropped.
        let before = unsafe {
            let before = __tsan_get_current_fiber();
            __tsan_switch_to_fiber(self.known_as, 0);
            before
        };
        let result = std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| there(&mut self.coroutine)));
        // SAFETY: what ran here before.
        unsafe { __tsan_switch_to_fiber(before, 0) };
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Unwinds what is on it, as its drop does.
    pub(crate) fn unwind(&mut self) {
        self.switch(Coroutine::force_unwind);
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.unwind();
        #[cfg(tsan)]
        // SAFETY: made by `new`; nothing runs on this stack.
        unsafe {
            __tsan_destroy_fiber(self.known_as);
        }
    }
}

/// A fiber on a stack of its own.
pub(crate) struct Strand<V: StackScanner> {
    pub(crate) stack: Stack,
    pub(crate) fiber: Arc<Fiber<V>>,
    leader: Arc<Leader>,
}

// SAFETY: the bodies that tests move between threads keep nothing on their stacks that is bound to one, but the `Mutator` that the crate moves with them.
unsafe impl<V: StackScanner> Send for Strand<V> {}

impl<V: StackScanner> Strand<V> {
    /// A strand that runs `body` when it is resumed for the first time.
    pub(crate) fn new(world: &World<V>, body: impl FnOnce(&mut Mutator<V>) + 'static) -> Self {
        Self::unmanaged(world, |fiber| fiber.run(body).unwrap())
    }

    /// A strand whose stack enters its fiber itself.
    pub(crate) fn unmanaged(world: &World<V>, body: impl FnOnce(&Fiber<V>) + 'static) -> Self {
        let fiber = Arc::new(world.fiber().unwrap());
        let leader = Arc::new(Leader::default());
        let (inner, leads) = (Arc::clone(&fiber), Arc::clone(&leader));
        let stack = Stack::new(move |yielder| {
            leads.store(core::ptr::from_ref(yielder).cast_mut(), Ordering::Relaxed);
            body(&inner);
        });
        Self { stack, fiber, leader }
    }

    /// Switches to the stack. Says whether it has ended.
    pub(crate) fn switch(&mut self) -> bool {
        let before = set_leader(Arc::as_ptr(&self.leader));
        let back = scopeguard::guard((), |()| {
            set_leader(before);
        });
        let result = self.stack.switch(|stack| stack.resume(()));
        drop(back);
        matches!(result, CoroutineResult::Return(()))
    }

    /// Resumes the fiber. Says whether it has ended.
    ///
    /// # Errors
    ///
    /// As `Mutator::resume`; the stack has not been switched to.
    pub(crate) fn resume(&mut self, mutator: &mut Mutator<V>) -> Result<bool, FiberError> {
        let fiber = Arc::clone(&self.fiber);
        mutator.resume(&fiber, || self.switch())
    }
}

/// Leads back to whoever resumed the strand that runs on this thread, without a word to the crate.
pub(crate) fn switch_back() {
    // SAFETY: set for as long as a strand runs here, which keeps its yielder in place.
    unsafe { (*(*leader()).load(Ordering::Relaxed)).suspend(()) }
}

/// Suspends the strand that runs on this thread.
#[track_caller]
pub(crate) fn suspend<V: StackScanner>(mutator: &mut Mutator<V>) {
    mutator.suspend(switch_back).unwrap();
}
