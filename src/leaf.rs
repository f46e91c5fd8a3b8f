//! Leaf calls: foreign calls with no transition, and what keeps them honest.
//!
//! A leaf call costs what the bare call costs: the mutator stays managed, so a pause waits for it, and nothing inside may need a safepoint. Who promises that is the `unsafe` caller; what
//! is seen of a broken promise:
//!
//! | promise | without checks | checked mode |
//! |---|---|---|
//! | it does not call back | the upcall aborts the process | and the message names the leaf call |
//! | no safepoint, no allocation | a safepoint is taken, unnoticed | panic, naming both places |
//! | it is short | a pause that waits for it for seconds is reported, and names it; with [`ForeignCall::run_leaf`]: reported when a pause had to wait, and promoted to a full call if its site says so | the same |
//!
//! So that the report can name it, a leaf call writes its place down when it begins: one plain store.

use crate::checked::Region;
use crate::errno::Errno;
use crate::foreign_call::ForeignCall;
use crate::mutator::Mutator;
use crate::record::Header;
use crate::vm::{ArgumentError, ArgumentPlan, Report, StackScanner, Vm, tell};
use core::fmt;
use core::marker::PhantomData;
use core::panic::Location;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;
use core::time::Duration;

impl<V: StackScanner> Mutator<V> {
    /// Calls short foreign code without a transition: the mutator stays managed, and a pause waits for it.
    ///
    /// In checked mode (debug builds, and the feature `checked`) an upcall inside aborts with a message that names this call, and a poll, a pause, a foreign call or an
    /// [allocation](Self::may_allocate) inside panics, naming both places. Otherwise it is the bare call, with its place written down for the [report](crate::Report::StopWait) of
    /// a pause that waits for it.
    ///
    /// # Safety
    ///
    /// `f` is short, never blocks, and neither polls, allocates on the heap nor calls back: an upcall inside aborts the process.
    ///
    /// # Panics
    ///
    /// With what `f` panics with.
    ///
    /// # Examples
    ///
    /// ```
    /// # use reentry::{testkit::TestVm, World};
    /// unsafe extern "C" {
    ///     fn abs(value: i32) -> i32;
    /// }
    /// let world = World::new(TestVm::new());
    /// let mut mutator = world.attach()?;
    /// // SAFETY: `abs` is short, and does nothing else.
    /// assert_eq!(unsafe { mutator.leaf_call(|_| abs(-3)) }, 3);
    /// # Ok::<(), reentry::AttachError>(())
    /// ```
    #[inline(always)]
    #[track_caller]
    pub unsafe fn leaf_call<R>(&mut self, f: impl FnOnce(&Leaf<'_, V>) -> R) -> R {
        let region = Region::Leaf(Location::caller());
        self.header().checked.within(region, || f(&Leaf { mutator: self }))
    }
}

/// A leaf call that is running: what may be done with the heap meanwhile.
pub struct Leaf<'l, V: StackScanner> {
    mutator: &'l Mutator<V>,
}

impl<'l, V: StackScanner> Leaf<'l, V> {
    /// Lends foreign code the bytes of an object where they are, with no copy and no pin: nothing is collected until the leaf call is over.
    ///
    /// The VM is asked whether it admits the reference as a [root](ArgumentPlan::Root) would be, and then for the bytes ([`Vm::bytes`](crate::Vm::bytes)).
    ///
    /// # Errors
    ///
    /// Why the VM refuses the reference, or [`ArgumentError::NoBytes`] if it lends none of it.
    ///
    /// # Examples
    ///
    /// ```
    /// use core::ffi::c_char;
    /// # use reentry::{testkit::TestVm, World};
    /// unsafe extern "C" {
    ///     fn strnlen(text: *const c_char, most: usize) -> usize;
    /// }
    /// let world = World::new(TestVm::new());
    /// let mut mutator = world.attach()?;
    /// let text = world.vm().heap().alloc(&[], b"in the heap");
    /// // SAFETY: `strnlen` is short, does nothing else, and reads no further than it is told.
    /// let length = unsafe {
    ///     mutator.leaf_call(|leaf| {
    ///         let bytes = leaf.lend(text).expect("the test VM lends its bytes");
    ///         strnlen(bytes.as_ptr().cast(), bytes.len())
    ///     })
    /// };
    /// assert_eq!(length, 11);
    /// # Ok::<(), reentry::AttachError>(())
    /// ```
    pub fn lend(&self, reference: V::Ref) -> Result<LentBytes<'l>, ArgumentError> {
        let vm = self.mutator.vm();
        vm.admit(reference, ArgumentPlan::Root)?;
        let bytes = vm.bytes(reference).ok_or(ArgumentError::NoBytes)?;
        Ok(LentBytes { bytes, _leaf: PhantomData })
    }
}

impl<V: StackScanner> fmt::Debug for Leaf<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf").field("mutator", &self.mutator.id()).finish()
    }
}

/// Bytes of a heap object, lent to foreign code for a leaf call. Made by [`Leaf::lend`]; it cannot leave the call.
#[derive(Clone, Copy, Debug)]
pub struct LentBytes<'l> {
    bytes: NonNull<[u8]>,
    _leaf: PhantomData<&'l [u8]>,
}

impl LentBytes<'_> {
    /// The address of the first byte. Whether C may write there is the VM's affair.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.bytes.as_ptr().cast()
    }

    /// How many bytes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Says whether there are none. The address is one all the same.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// The place of a timed leaf call: how long it may keep a pause waiting, and what becomes of it if it does. A `static`, one for each call of
/// [`ForeignCall::run_leaf`] in the source.
///
/// # Examples
///
/// ```
/// use core::time::Duration;
/// use reentry::LeafSite;
///
/// static CHECKSUM: LeafSite = LeafSite::new(Duration::from_micros(50)).promote_after(3);
///
/// assert_eq!((CHECKSUM.over_budget(), CHECKSUM.is_promoted()), (0, false));
/// ```
#[derive(Debug)]
pub struct LeafSite {
    budget: Duration,
    /// How often over budget makes it a full call; [`NEVER`] if nothing does.
    promote_after: u32,
    /// How often it was over budget, less than [`NEVER`]. Not the facade's: no other memory depends on it, and a `static` needs a constant constructor.
    over: core::sync::atomic::AtomicU32,
}

const NEVER: u32 = u32::MAX;

impl LeafSite {
    /// A leaf call that may keep a pause waiting for `budget`. Longer is reported, each time.
    #[must_use]
    pub const fn new(budget: Duration) -> Self {
        Self { budget, promote_after: NEVER, over: core::sync::atomic::AtomicU32::new(0) }
    }

    /// Makes it a full foreign call once it has been over budget.
    #[must_use]
    pub const fn promoting(self) -> Self {
        self.promote_after(1)
    }

    /// Makes it a full foreign call once it has been over budget `times` times; 0: from the start.
    #[must_use]
    pub const fn promote_after(mut self, times: u32) -> Self {
        self.promote_after = times;
        self
    }

    /// How long it may keep a pause waiting.
    #[must_use]
    pub const fn budget(&self) -> Duration {
        self.budget
    }

    /// How often it has kept a pause waiting for longer.
    #[inline(always)]
    #[must_use]
    pub fn over_budget(&self) -> u32 {
        self.over.load(Ordering::Relaxed)
    }

    /// Says whether calls with this site are full foreign calls by now.
    #[inline(always)]
    #[must_use]
    pub fn is_promoted(&self) -> bool {
        // Relaxed: a call that still sees the old count is one leaf call more.
        self.over_budget() >= self.promote_after
    }

    /// Counts one more.
    fn count(&self) {
        let more = |over: u32| Some(over + 1).filter(|&over| over < NEVER);
        // At the limit it stays there.
        let _ = self.over.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }
}

impl<V: StackScanner> ForeignCall<'_, V> {
    /// Runs short foreign code as a leaf call, with a net: a pause that had to wait for it too long is reported with this line, and the site can say that the call is a full
    /// foreign call from then on.
    ///
    /// Arguments and anchor are declared as for [`run`](Self::run), and whichever way it goes, they are good for it. If the site has been promoted, or if a pause is wanted already when
    /// the call begins, it *is* `run`. Otherwise it makes no transition and looks at no clock: it looks at the poll word before and after. If a pause has been asked for in between,
    /// the time since then is the delay this call has caused; over the site's budget it is counted and reported ([`Report::LeafOverBudget`]). It does not poll: the pause goes on
    /// waiting for the next safepoint, so that what the caller holds in its hands is as good as it was. (When the call was made as `run`, it is not: root what you need.)
    ///
    /// # Safety
    ///
    /// As for [`Mutator::leaf_call`]: `f` neither polls, allocates on the heap nor calls back. It should be short, and not block.
    ///
    /// # Panics
    ///
    /// With what `f` panicked with; then nothing is reported.
    ///
    /// # Examples
    ///
    /// ```
    /// use core::time::Duration;
    /// use reentry::{LeafSite, World, testkit::TestVm};
    ///
    /// unsafe extern "C" {
    ///     fn abs(value: i32) -> i32;
    /// }
    /// static ABS: LeafSite = LeafSite::new(Duration::from_micros(100)).promoting();
    ///
    /// let world = World::new(TestVm::new());
    /// let mut mutator = world.attach()?;
    /// // SAFETY: `abs` does nothing else.
    /// assert_eq!(unsafe { mutator.foreign_call().run_leaf(&ABS, || abs(-3)) }, 3);
    /// # Ok::<(), reentry::AttachError>(())
    /// ```
    #[inline(always)]
    #[track_caller]
    pub unsafe fn run_leaf<R>(&mut self, site: &LeafSite, f: impl FnOnce() -> R) -> R {
        let call_site = Location::caller();
        let header = self.header();
        // A pause that is wanted already would wait for this call, and the delay would not be all its own.
        if site.is_promoted() || !header.word.is_clear() {
            return self.run(f);
        }
        self.check_leaf(call_site);
        let result = header.checked.within(Region::Leaf(call_site), f);
        if !header.word.is_clear() {
            look_at_clock(self.vm(), header, site, call_site);
        }
        result
    }
}

/// A pause is wanted: is it this leaf call that keeps it waiting, and for how long? (Not a method: a guard whose address is taken would have to be in memory.)
#[cold]
#[inline(never)]
fn look_at_clock<V: Vm>(vm: &V, header: &Header, site: &LeafSite, call_site: &'static Location<'static>) {
    // `errno` is the foreign code's, for the caller to read.
    Errno::keep(|| {
        let delay = header.coordinator().pause_delay();
        let Some(delay) = delay.filter(|&delay| delay > site.budget) else { return };
        site.count();
        let promoted = site.is_promoted();
        tell(vm, &Report::LeafOverBudget { call_site, delay, budget: site.budget, promoted });
    });
}
