//! Checked mode: what debug builds (and the feature `checked`) look at, and other builds take on trust.
//!
//! [`CHECKED`] is a constant, so a build without it has no trace of a check: each use stands behind `if CHECKED`. The loom models run the protocol as a build
//! without it does.
//!
//! One thing is noted in every build: where the last leaf call began, so that the report of a pause that waits
//! for it can name it.
//!
//! A *region* is a stretch of managed code that has promised to pass no safepoint: a leaf call, or the closure of
//! [`Mutator::without_collection`](crate::Mutator::without_collection). Regions of one mutator nest, and the innermost is kept. None has a foreign call inside, so
//! whichever activation is running, the region is its own.

use crate::sync::Cell;
use core::fmt::{self, Display};
use core::panic::Location;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

/// Whether this build checks.
pub(crate) const CHECKED: bool = cfg!(all(any(debug_assertions, feature = "checked"), not(loom)));

/// A stretch of managed code that has promised to pass no safepoint, and where it began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Region {
    /// A leaf call: no safepoint, no allocation, no upcall.
    Leaf(&'static Location<'static>),
    /// No safepoint and no allocation.
    NoCollection(&'static Location<'static>),
}

impl Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leaf(site) => write!(f, "in the leaf call at {site}"),
            Self::NoCollection(site) => write!(f, "in the no-collection region at {site}"),
        }
    }
}

impl Region {
    /// What to do about it.
    pub(crate) fn advice(self) -> &'static str {
        match self {
            Self::Leaf(_) => {
                "a leaf call neither polls, pauses, allocates nor calls back; make the call with `ForeignCall::run`"
            }
            Self::NoCollection(_) => {
                "raw references are held there; end the region first, or root what it holds and do without it"
            }
        }
    }
}

/// A region that its own thread writes and any thread may read: the address of the place where it began, with
/// the lowest bit set for [`Region::NoCollection`]. No protocol hangs on it, so loom does not see it.
struct RegionCell(AtomicPtr<Location<'static>>);

impl RegionCell {
    /// The bit that tells the two kinds of region apart: an address of a `Location` has it clear.
    const NO_COLLECTION: usize = 1;

    #[inline(always)]
    fn set(&self, region: Option<Region>) {
        const { assert!(align_of::<Location<'static>>() > Self::NO_COLLECTION) };
        let word = match region {
            None => ptr::null_mut(),
            Some(Region::Leaf(site)) => ptr::from_ref(site).cast_mut(),
            Some(Region::NoCollection(site)) => {
                ptr::from_ref(site).cast_mut().wrapping_byte_add(Self::NO_COLLECTION)
            }
        };
        // A plain store on every machine here. Pairs with `get`, which may see an older region.
        self.0.store(word, Ordering::Relaxed);
    }

    #[inline(always)]
    fn get(&self) -> Option<Region> {
        let word = self.0.load(Ordering::Relaxed);
        // SAFETY: null, or made of a `&'static` by `set`, with the bit or without; what it points to never changes.
        let site = unsafe { word.map_addr(|address| address & !Self::NO_COLLECTION).as_ref() }?;
        Some(if word.addr() & Self::NO_COLLECTION == 0 {
            Region::Leaf(site)
        } else {
            Region::NoCollection(site)
        })
    }
}

/// What checked mode keeps for each mutator. Its own thread's, but for the canary, which is written before the mutator is shared, and for the region, which any thread may read.
pub(crate) struct Checked {
    region: RegionCell,
    /// How many crossings and polls stress mode has looked at.
    points: Cell<u64>,
    /// Stress mode is doing its work on this thread.
    stressed: Cell<bool>,
    /// The last word of the mutator's record: see `chain.rs`.
    pub(crate) canary: Cell<usize>,
}

impl Checked {
    pub(crate) fn new() -> Self {
        Self {
            region: RegionCell(AtomicPtr::new(ptr::null_mut())),
            points: Cell::new(0),
            stressed: Cell::new(false),
            canary: Cell::new(0),
        }
    }

    /// The innermost region that is running. Always `None` in a build that does not check. For any thread.
    #[inline(always)]
    pub(crate) fn region(&self) -> Option<Region> {
        if CHECKED { self.region.get() } else { None }
    }

    /// In a build that does not check: where the last leaf call began, which may be over. For any thread.
    pub(crate) fn last_leaf(&self) -> Option<&'static Location<'static>> {
        match self.region.get() {
            Some(Region::Leaf(site)) if !CHECKED => Some(site),
            _ => None,
        }
    }

    /// Begins to count the points of a mutator.
    pub(crate) fn begin_points(&self) {
        self.points.set(0);
    }

    /// Numbers a crossing or a poll.
    pub(crate) fn next_point(&self) -> u64 {
        self.points.replace(self.points.get() + 1)
    }

    /// Says whether stress mode is doing its work on this thread.
    pub(crate) fn is_stressed(&self) -> bool {
        self.stressed.get()
    }

    /// Does stress mode's work.
    pub(crate) fn stressed(&self, work: impl FnOnce()) {
        self.stressed.set(true);
        let _over = scopeguard::guard((), |()| self.stressed.set(false));
        work();
    }

    /// Forgets the region: foreign code has skipped its frames, or the thread is another.
    pub(crate) fn leave_region(&self) {
        self.region.set(None);
    }

    /// Runs `f` inside `region`; the outer region is back afterwards, whether or not `f` unwinds.
    #[inline(always)]
    pub(crate) fn within<R>(&self, region: Region, f: impl FnOnce() -> R) -> R {
        if !CHECKED {
            if matches!(region, Region::Leaf(_)) {
                // One store. Taking it back would be another, with the record's address kept through the call.
                self.region.set(Some(region));
            }
            return f();
        }
        let outer = self.region.get();
        self.region.set(Some(region));
        let _restore = scopeguard::guard((), |()| self.region.set(outer));
        f()
    }
}
