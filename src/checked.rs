//! Checked mode: what debug builds (and the feature `checked`) look at, and other builds take on trust.
//!
//! [`CHECKED`] is a constant, so a build without it has no trace of a check: each use stands behind `if CHECKED`. The loom models run the protocol as a build
//! without it does.
//!
//! A *region* is a stretch of managed code that has promised to pass no safepoint: a leaf call, or the closure of
//! [`Mutator::without_collection`](crate::Mutator::without_collection). Regions of one mutator nest, and the innermost is kept. None has a foreign call inside, so
//! whichever activation is running, the region is its own.

use crate::sync::Cell;
use core::fmt::{self, Display};
use core::panic::Location;

/// Whether this build checks.
pub(crate) const CHECKED: bool = cfg!(all(any(debug_assertions, feature = "checked"), not(loom)));

/// What a stretch of managed code has promised, and where it began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Region {
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

/// What checked mode keeps for each mutator. Its own thread's, but for the canary, which is written before the mutator is shared.
pub(crate) struct Checked {
    region: Cell<Option<Region>>,
    /// The last word of the mutator's record: see `chain.rs`.
    pub(crate) canary: Cell<usize>,
}

impl Checked {
    pub(crate) fn new() -> Self {
        Self { region: Cell::new(None), canary: Cell::new(0) }
    }

    /// The innermost region that is running. Always `None` in a build that does not check.
    #[inline(always)]
    pub(crate) fn region(&self) -> Option<Region> {
        if CHECKED { self.region.get() } else { None }
    }

    /// Forgets the region: foreign code has skipped its frames, or the thread is another.
    pub(crate) fn leave_region(&self) {
        self.region.set(None);
    }

    /// Runs `f` inside `region`; the outer region is back afterwards, whether or not `f` unwinds.
    #[inline(always)]
    pub(crate) fn within<R>(&self, region: Region, f: impl FnOnce() -> R) -> R {
        if !CHECKED {
            return f();
        }
        let outer = self.region.replace(Some(region));
        let _restore = scopeguard::guard((), |()| self.region.set(outer));
        f()
    }
}
