//! A VM's global lock: one thread is managed at a time.

use crate::sync::thread_token;
use crate::thread::each_on_thread;
use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;
use std::sync::{Condvar, Mutex};

/// A lock that a VM's managed threads hold, one at a time: an interpreter lock. A VM has one in itself,
/// and uses it in its hooks and nowhere else.
///
/// - **Pauses.** A thread waits for the lock while it is foreign, so no pause waits for that thread. A
///   thread that waits for a pause to end may hold the lock; nobody else could go on anyway. An upcall
///   made by the very thread that holds a pause does not wait: it is
///   [refused](crate::UpcallRefused::PauseHeldHere), as without a lock.
/// - **Fork.** The thread that [forks](crate::Mutator::fork) is managed and holds the lock, and holds
///   it in the child too. Threads that were waiting do not exist there, and leave nothing behind.
/// - **Signals.** The lock is reentrant for its thread, so a handler that makes an upcall where it
///   interrupts a crossing does not wait for itself.
/// - **Turns.** The lock is not fair. A thread that computes for long without a foreign call lets the
///   others in with one: `mutator.foreign_call().run(std::thread::yield_now)`.
///
/// # Examples
///
/// ```
/// use reentry::{Capture, Crossing, GlobalLock, RootVisitor, Segment, StackScanner, Vm, World};
///
/// struct Interpreter {
///     lock: GlobalLock,
/// }
///
/// impl Vm for Interpreter {
///     type Ref = usize;
///     type Local = ();
///     type Exception = core::convert::Infallible;
///     const CAPTURE: Capture = Capture::Nothing;
///     fn attach(&self) {}
///     fn entering_managed(&self, _: Crossing) {
///         self.lock.enter();
///     }
///     fn leaving_managed(&self, _: Crossing) {
///         self.lock.leave();
///     }
/// }
///
/// // SAFETY: no frame holds a reference (S1, S2); it does nothing (S3 to S5).
/// unsafe impl StackScanner for Interpreter {
///     fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
/// }
///
/// let world = World::new(Interpreter { lock: GlobalLock::new() });
/// let mut mutator = world.attach()?;
/// assert!(mutator.vm().lock.is_held_here());
/// assert!(!mutator.foreign_call().run(|| world.vm().lock.is_held_here()));
/// drop(mutator);
/// assert!(!world.vm().lock.is_held_here());
/// # Ok::<(), reentry::AttachError>(())
/// ```
#[derive(Default)]
pub struct GlobalLock {
    /// The thread that holds it; 0 if none does. It is the lock: taken by a compare-exchange, so that a
    /// signal's handler finds it taken by its own thread or not, and nothing in between.
    owner: AtomicUsize,
    /// How often the owner has entered. The owner's alone.
    entered: AtomicUsize,
    /// How many threads wait, or were waiting in the process that forked this one.
    waiting: AtomicUsize,
    /// Where they wait. Nobody waits *for* this mutex: in the child of a fork, a thread that is not
    /// there may have it. Who cannot have it looks at `owner` again after a while.
    queue: Mutex<()>,
    freed: Condvar,
}

/// How long a waiting thread sleeps at most before it looks again, if nobody could wake it.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

impl GlobalLock {
    /// Makes one that nobody holds.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the lock, and waits for it if another thread has it: for
    /// [`Vm::entering_managed`](crate::Vm::entering_managed).
    #[inline]
    pub fn enter(&self) {
        let me = thread_token();
        if !self.take(me) {
            if self.owner.load(Ordering::Relaxed) == me {
                // Only the owner changes it.
                let entered = self.entered.load(Ordering::Relaxed);
                return self.entered.store(entered + 1, Ordering::Relaxed);
            }
            // Else the holder may be stopped by the pause that this thread holds; the crossing is refused.
            if holds_a_pause() {
                return;
            }
            self.wait(me);
        }
        self.entered.store(1, Ordering::Relaxed);
    }

    /// Gives the lock back: for [`Vm::leaving_managed`](crate::Vm::leaving_managed). Does nothing if this
    /// thread does not hold the lock.
    #[inline]
    pub fn leave(&self) {
        if !self.is_held_here() {
            return;
        }
        let entered = self.entered.load(Ordering::Relaxed) - 1;
        self.entered.store(entered, Ordering::Relaxed);
        if entered == 0 {
            // Pairs with the acquisition in `take`: the next owner sees what this one has written.
            self.owner.store(0, Ordering::Release);
            if self.waiting.load(Ordering::Relaxed) > 0 {
                self.wake();
            }
        }
    }

    /// Says whether this thread holds the lock.
    #[inline]
    #[must_use]
    pub fn is_held_here(&self) -> bool {
        // A thread's own number is written by that thread alone.
        self.owner.load(Ordering::Relaxed) == thread_token()
    }

    #[inline]
    fn take(&self, me: usize) -> bool {
        self.owner.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Waits for the lock, and has it then.
    #[cold]
    #[inline(never)]
    fn wait(&self, me: usize) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        while !self.take(me) {
            match self.queue.try_lock() {
                Ok(queue) => {
                    // Looked at once more: who gives the lock back from here on finds the queue taken, and wakes.
                    if self.take(me) {
                        break;
                    }
                    drop(self.freed.wait_timeout(queue, LOOK_AGAIN));
                }
                Err(_) => std::thread::sleep(LOOK_AGAIN / 10),
            }
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    /// Wakes a thread that waits, unless that cannot be done at once.
    #[cold]
    #[inline(never)]
    fn wake(&self) {
        for _ in 0..100 {
            if let Ok(_queue) = self.queue.try_lock() {
                return self.freed.notify_one();
            }
            core::hint::spin_loop();
        }
    }
}

/// Whether this thread holds a pause of a world that it is attached to.
#[cold]
#[inline(never)]
fn holds_a_pause() -> bool {
    each_on_thread(|header| if header.coordinator().is_held_here() { Err(()) } else { Ok(()) }).is_err()
}

impl fmt::Debug for GlobalLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GlobalLock").field("held_here", &self.is_held_here()).finish_non_exhaustive()
    }
}
