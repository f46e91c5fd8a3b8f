//! For the crate's own models: whether anybody is inside what may end, which a closure's code cannot be asked for (it is foreign code that leads there, and a failure must not unwind through that).

use super::Faults;
use crate::occupancy::{Occupancy, Visitor};
use crate::sync::FenceStrategy;

/// What can be visited until it is closed: `src/occupancy.rs` by itself.
#[derive(Debug)]
pub struct Visited {
    occupancy: Occupancy,
    faults: Faults,
}

impl Visited {
    /// Makes one that is open.
    #[must_use]
    pub fn new(faults: Faults) -> Self {
        Self { occupancy: Occupancy::new(FenceStrategy::Symmetric), faults }
    }

    /// Goes in as the owner, and says whether it is open.
    #[must_use]
    pub fn enter_as_owner(&self) -> bool {
        self.occupancy.enter(Visitor::Owner, self.faults)
    }

    /// Goes in as anybody else, and says whether it is open. Another thread may go out for this one.
    #[must_use]
    pub fn enter_as_other(&self) -> bool {
        self.occupancy.enter(Visitor::Other, self.faults)
    }

    /// Goes out as the owner, and runs `end` if it must be ended now.
    pub fn leave_as_owner(&self, end: impl FnOnce()) {
        self.occupancy.leave(Visitor::Owner, self.faults, end);
    }

    /// Goes out as anybody else, and runs `end` if it must be ended now.
    pub fn leave_as_other(&self, end: impl FnOnce()) {
        self.occupancy.leave(Visitor::Other, self.faults, end);
    }

    /// Closes it, and says whether the caller must end it.
    #[must_use]
    pub fn close(&self) -> bool {
        self.occupancy.close(self.faults)
    }

    /// Says whether it has been ended and nobody is on the way out; then its memory counts as written.
    #[must_use]
    pub fn is_deserted(&self) -> bool {
        self.occupancy.is_deserted(self.faults)
    }
}
