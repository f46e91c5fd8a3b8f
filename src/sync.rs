//! The concurrency facade: the only file that names loom, and the home of both fences.
//!
//! Everything above this floor takes its atomics, locks, cells and thread-locals from here, so that the loom models in
//! `tests/loom_*.rs` run the protocol itself and not a copy of it. Under `cfg(loom)` each primitive is loom's.
//!
//! # The two fences
//!
//! The crossing is a store-then-load handshake (Dekker): a mutator stores "managed" and then loads its poll word; the stopper stores
//! the poll word and then loads the mutator's state. Each side needs a full fence between its store and its load. Crossings
//! outnumber pauses by many orders of magnitude, so the *asymmetric* strategy gives the mutator a compiler fence and lets the stopper
//! pay for both with `membarrier(PRIVATE_EXPEDITED)`, which runs a full barrier on every thread of the process that is on a processor.
//! The technique is that of liburcu and of HotSpot's `-XX:+UseSystemMemoryBarrier`.

#[cfg(not(loom))]
mod primitive {
    pub(crate) use core::cell::Cell;
    pub(crate) use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize};
    pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};

    /// A cell that is reached by pointer, in a form that loom can watch: a pointer is used within the closure only.
    #[repr(transparent)]
    pub(crate) struct UnsafeCell<T>(core::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(core::cell::UnsafeCell::new(value))
        }

        /// Gives `f` the contents to read.
        #[inline(always)]
        pub(crate) fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            f(self.0.get())
        }

        /// Gives `f` the contents to read and write.
        #[inline(always)]
        pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            f(self.0.get())
        }
    }

    /// Reads an atomic that no other thread writes, as plain memory.
    ///
    /// # Safety
    ///
    /// No other thread writes it.
    #[inline(always)]
    pub(crate) unsafe fn load_unshared<T>(atomic: &AtomicPtr<T>) -> *mut T {
        // SAFETY: valid for reads, and no write races with this one by contract.
        unsafe { *atomic.as_ptr() }
    }

    /// Lets another thread run while a stopper waits; `round` counts the calls of one wait.
    pub(crate) fn relax(round: u32) {
        if round < 64 {
            core::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
}

#[cfg(loom)]
mod primitive {
    pub(crate) use loom::cell::{Cell, UnsafeCell};
    pub(crate) use loom::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize};
    pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};

    /// Reads an atomic that no other thread writes; loom checks that none does.
    ///
    /// # Safety
    ///
    /// No other thread writes it.
    pub(crate) unsafe fn load_unshared<T>(atomic: &AtomicPtr<T>) -> *mut T {
        // SAFETY: no write races with this read by contract.
        unsafe { atomic.unsync_load() }
    }

    pub(crate) fn relax(_round: u32) {
        loom::thread::yield_now();
    }
}

pub(crate) use primitive::*;

/// What models of hosts are made of: loom itself, the one whose primitives this crate runs on, and the runner. See `testkit::model`.
#[cfg(all(loom, feature = "testkit"))]
pub mod exploration {
    pub use ::loom;

    /// Explores `model`: see `testkit::model::check`.
    pub(crate) fn explore(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
        builder.check(model);
    }
}

/// Declares a thread-local with constant initialiser: no lazy initialisation and no destructor, so an access is one load
/// (loom has no such form; there it is an ordinary thread-local).
macro_rules! thread_local_const {
    ($(#[$meta:meta])* static $name:ident: $ty:ty = $init:expr;) => {
        #[cfg(not(loom))]
        std::thread_local! { $(#[$meta])* static $name: $ty = const { $init }; }
        #[cfg(loom)]
        loom::thread_local! { $(#[$meta])* static $name: $ty = $init; }
    };
}
pub(crate) use thread_local_const;

/// Declares a thread-local with a destructor.
#[cfg(any(not(unix), loom, miri))]
macro_rules! thread_local_lazy {
    ($(#[$meta:meta])* static $name:ident: $ty:ty = $init:expr;) => {
        #[cfg(not(loom))]
        std::thread_local! { $(#[$meta])* static $name: $ty = $init; }
        #[cfg(loom)]
        loom::thread_local! { $(#[$meta])* static $name: $ty = $init; }
    };
}
#[cfg(any(not(unix), loom, miri))]
pub(crate) use thread_local_lazy;

use core::panic::Location;
use core::sync::atomic::Ordering;

/// A source line that its own thread writes and any thread may read. No protocol hangs on it, so loom does not see it.
#[derive(Debug, Default)]
pub(crate) struct SiteCell(core::sync::atomic::AtomicPtr<Location<'static>>);

impl SiteCell {
    /// Writes it: a plain store on every machine here.
    #[inline(always)]
    pub(crate) fn set(&self, site: Option<&'static Location<'static>>) {
        let site = site.map_or(core::ptr::null_mut(), |site| core::ptr::from_ref(site).cast_mut());
        // Pairs with `get`, which may see the line of an older crossing.
        self.0.store(site, Ordering::Relaxed);
    }

    /// Reads it.
    pub(crate) fn get(&self) -> Option<&'static Location<'static>> {
        // SAFETY: null, or made of a `&'static` by `set`; what it points to never changes.
        unsafe { self.0.load(Ordering::Relaxed).as_ref() }
    }
}

/// Counts changes of something that is read without stopping its writer: odd while one is under way. No protocol hangs on it, so loom does not see it.
#[derive(Debug, Default)]
pub(crate) struct Changes(core::sync::atomic::AtomicU32);

impl Changes {
    /// Runs `change`, with readers told to come again. One change at a time.
    pub(crate) fn during<R>(&self, change: impl FnOnce() -> R) -> R {
        // Relaxed, and then a fence: the odd number is visible before anything that `change` writes. Pairs with the fence in `unchanged_since`.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        core::sync::atomic::fence(Ordering::Release);
        let _even = scopeguard::guard((), |()| {
            // Pairs with the load in `begin`: who sees the even number sees the change.
            self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
        });
        change()
    }

    /// Begins to read; `None` while a change is under way.
    pub(crate) fn begin(&self) -> Option<u32> {
        Some(self.0.load(Ordering::Acquire)).filter(|changes| changes % 2 == 0)
    }

    /// Says whether what was read since `begin` is of one piece.
    pub(crate) fn unchanged_since(&self, before: u32) -> bool {
        core::sync::atomic::fence(Ordering::Acquire);
        self.0.load(Ordering::Relaxed) == before
    }
}

/// Locks, whether or not an earlier holder panicked: every critical section of this crate leaves its data whole at each point where
/// it can unwind, so poisoning carries no news.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Waits on a condition variable, with [`lock`]'s view of poisoning.
pub(crate) fn wait<'g, T>(condvar: &Condvar, guard: MutexGuard<'g, T>) -> MutexGuard<'g, T> {
    condvar.wait(guard).unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Waits on a condition variable for at most `timeout` (under loom, which has no clock: yields once with the lock released).
#[cfg(not(loom))]
pub(crate) fn wait_for<'g, T>(
    condvar: &Condvar,
    guard: MutexGuard<'g, T>,
    timeout: core::time::Duration,
) -> MutexGuard<'g, T> {
    condvar.wait_timeout(guard, timeout).unwrap_or_else(|poisoned| poisoned.into_inner()).0
}

/// A number, not 0, that names the calling thread and never another: a fiber can be bound to a thread that is gone.
///
/// Cheaper than [`std::thread::current`], and usable while thread-local destructors run.
///
/// Not inlined, and no address: a fiber may go on on another thread, where neither the address of a thread-local nor what was computed of it before is right any more; the compiler takes
/// such an address for the same throughout a function.
#[inline(never)]
pub(crate) fn thread_token() -> usize {
    static NEXT: core::sync::atomic::AtomicUsize = core::sync::atomic::AtomicUsize::new(1);
    thread_local_const! { static TOKEN: Cell<usize> = Cell::new(0); }
    TOKEN.with(|token| {
        if token.get() == 0 {
            // Unique by the atomicity of the addition; nothing is published with it.
            token.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        token.get()
    })
}

/// How a world orders its mutators' crossings against a stopper.
///
/// Both strategies run the same protocol and pass the same tests; they differ in who pays for the fence. Probed once per process by
/// [`FenceStrategy::probe`]; chosen per world with [`WorldBuilder::fence`](crate::WorldBuilder::fence).
///
/// # Examples
///
/// ```
/// use reentry::FenceStrategy;
///
/// // The symmetric strategy works everywhere; the asymmetric one where the kernel has `membarrier`.
/// assert!(FenceStrategy::Symmetric.is_supported());
/// assert!(FenceStrategy::probe().is_supported());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum FenceStrategy {
    /// A crossing costs a compiler fence; a pause costs one `membarrier(PRIVATE_EXPEDITED)`. Linux 4.14 and later, where the system
    /// call is not refused by a filter.
    Asymmetric = 0,
    /// A crossing costs `fence(SeqCst)`, and so does a pause. Everywhere.
    Symmetric = 1,
}

impl FenceStrategy {
    /// Returns the best strategy this process can use: [`Asymmetric`](Self::Asymmetric) if the kernel lets the process register for
    /// `membarrier`, else [`Symmetric`](Self::Symmetric).
    ///
    /// The first call registers the process; registration is cheaper before a second thread exists, so call it (or make the first
    /// world) early.
    #[must_use]
    pub fn probe() -> Self {
        if membarrier::registered() { Self::Asymmetric } else { Self::Symmetric }
    }

    /// Says whether a world can use this strategy in this process.
    #[must_use]
    pub fn is_supported(self) -> bool {
        match self {
            Self::Symmetric => true,
            Self::Asymmetric => membarrier::registered(),
        }
    }

    /// Makes a process that has just been forked able to use what its parent could.
    #[cfg(unix)]
    pub(crate) fn after_fork() {
        #[cfg(not(loom))]
        membarrier::register_again();
    }

    /// Says whether the mutator's half is a fence of the processor. Under loom it always is: loom has no `membarrier`.
    pub(crate) fn light_is_a_fence(self) -> bool {
        self == Self::Symmetric || cfg!(loom)
    }

    /// The stopper's half: orders its poll stores before its state loads, for every mutator at once.
    pub(crate) fn heavy(self) {
        #[cfg(loom)]
        loom::sync::atomic::fence(Ordering::SeqCst);
        #[cfg(not(loom))]
        match self {
            Self::Asymmetric => membarrier::heavy(),
            Self::Symmetric => core::sync::atomic::fence(Ordering::SeqCst),
        }
    }
}

/// The mutator's half of the asymmetric strategy: orders its state store before its poll load in the program; [`FenceStrategy::heavy`] does it
/// in the processor.
#[inline(always)]
pub(crate) fn light_compiler_fence() {
    #[cfg(not(loom))]
    core::sync::atomic::compiler_fence(Ordering::SeqCst);
}

/// Makes what this thread has made, or taken over from another, whole for every thread that finds it through a later store of this one, relaxed ones included. Pairs with the acquire load of
/// whoever looks. No protocol that loom checks hangs on it.
pub(crate) fn release_fence() {
    core::sync::atomic::fence(Ordering::Release);
}

/// The order in which a mutator's word becomes "managed". A release here would be a barrier in each crossing on aarch64, where an acquiring load follows; [`release_fence`], once for each new record, does
/// for those who look at a running mutator. ThreadSanitizer knows no fences, and gets the release.
pub(crate) const RETRACTION: Ordering = if cfg!(tsan) { Ordering::Release } else { Ordering::Relaxed };

/// The mutator's half of the symmetric strategy: orders its state store before its next poll load.
#[inline(always)]
pub(crate) fn light_fence() {
    #[cfg(loom)]
    loom::sync::atomic::fence(Ordering::SeqCst);
    #[cfg(not(loom))]
    core::sync::atomic::fence(Ordering::SeqCst);
}

#[cfg(all(target_os = "linux", not(loom), not(miri)))]
mod membarrier {
    use rustix::thread::{MembarrierCommand, membarrier};
    use std::sync::OnceLock;

    pub(super) fn registered() -> bool {
        static REGISTERED: OnceLock<bool> = OnceLock::new();
        *REGISTERED.get_or_init(|| {
            // Registering is the probe: it fails on a kernel without the command and under a filter that refuses it. The first
            // barrier is tried too, since a filter can let one command through and not the other, and qemu-user knows neither.
            membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok()
                && membarrier(MembarrierCommand::PrivateExpedited).is_ok()
        })
    }

    pub(super) fn register_again() {
        if registered() {
            // Linux hands the registration on to a forked process, and registering twice does no harm. If it fails, the next barrier says so.
            let _ = membarrier(MembarrierCommand::RegisterPrivateExpedited);
        }
    }

    pub(super) fn heavy() {
        if membarrier(MembarrierCommand::PrivateExpedited).is_err() {
            // A filter installed after the probe. Going on would let a mutator run through a pause.
            crate::unwind::abort(format_args!(
                "membarrier(PRIVATE_EXPEDITED) was refused after it had been registered; \
                 choose FenceStrategy::Symmetric for a process that installs a seccomp filter later"
            ));
        }
    }
}

#[cfg(not(all(target_os = "linux", not(loom), not(miri))))]
mod membarrier {
    pub(super) fn registered() -> bool {
        // Under loom both fences are the same; claiming support lets the models run over either value.
        cfg!(loom)
    }

    #[cfg(all(unix, not(loom)))]
    pub(super) fn register_again() {}

    #[cfg(not(loom))]
    pub(super) fn heavy() {
        unreachable!("the asymmetric strategy is refused where membarrier is not supported")
    }
}
