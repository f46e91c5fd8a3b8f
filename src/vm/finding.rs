//! What the undead-root audit finds (feature `audit`): one break of I2, I3 or I6 that a collection met.

use super::{ArgumentPlan, FrameKind, Site};
use crate::anchor::Anchor;
use core::fmt;
use core::panic::Location;

/// Something that the audit of a world found: see [`guide::audit`](crate::guide::audit).
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Finding {
    /// What is wrong.
    pub fault: Fault,
    /// The activation it is in; `None` for a handle, or a pin that outlives calls.
    pub activation: Option<FoundIn>,
    /// The slot; `None` where the fault is the activation's.
    pub slot: Option<FoundSlot>,
    /// The activations of the mutator in that pause, one line for each, oldest first.
    pub chain: String,
}

/// The activation a [`Finding`] is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct FoundIn {
    /// The number of the mutator.
    pub mutator: u64,
    /// How many of its activations are older.
    pub depth: usize,
    /// What the mutator was doing there.
    pub kind: FrameKind,
    /// The saved pc, sp and fp.
    pub anchor: Anchor,
    /// Where the crossing stands in the VM's source.
    pub call_site: Option<&'static Location<'static>>,
}

/// The slot a [`Finding`] is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct FoundSlot {
    /// Its address when it was found.
    pub address: usize,
    /// The frame it is in, as the scanner [told](crate::RootVisitor::frame) it.
    pub frame: Option<Anchor>,
    /// How a guard declared it; `None` if the scanner alone found it.
    pub declared: Option<ArgumentPlan>,
}

/// One collection, and the pc at which it walked the frame in question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sighting {
    /// The number of the collection: how many pauses of the world that enumerated roots there had been, this one included.
    pub collection: u64,
    /// The pc; `None` if the scanner did not [tell](crate::RootVisitor::frame) it.
    pub pc: Option<usize>,
}

/// What is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// A slot was live, dead, and live again within one crossing: an undead root (I3). The collection that missed it moved or freed its object, or could have.
    Undead {
        /// Live.
        seen: Sighting,
        /// Dead.
        missed: Sighting,
        /// Live again.
        again: Sighting,
    },
    /// A slot was live, and is dead in a later collection of the same crossing, in which nobody can have ended it (I2).
    Lost {
        /// Live.
        seen: Sighting,
        /// Dead.
        missed: Sighting,
    },
    /// A slot is live that was not when the crossing's frames were first walked, though they have not run since (I3).
    Late {
        /// Dead.
        missed: Sighting,
        /// Live.
        seen: Sighting,
    },
    /// A slot still has the old address of an object that has moved.
    Stale {
        /// The collection that moved the object.
        collection: u64,
        /// What the slot holds.
        value: usize,
        /// Where the object is.
        moved_to: usize,
    },
    /// An object has moved though it was pinned.
    PinMoved {
        /// The collection that moved it.
        collection: u64,
        /// Where foreign code takes it to be.
        value: usize,
        /// Where it is.
        moved_to: usize,
    },
    /// The frames of a suspended activation have moved, and the crate was not told (I6).
    MovedUntold {
        /// The collection before.
        seen: u64,
        /// The collection that found them elsewhere.
        collection: u64,
        /// How many bytes up.
        by: isize,
        /// How many slots were found at that distance: all of them.
        slots: usize,
    },
    /// A saved stack or frame pointer lay in a managed stack of the mutator, and does not any more (I6).
    StaleAnchor {
        /// The collection before.
        seen: u64,
        /// The collection that found it.
        collection: u64,
        /// Its value.
        address: usize,
    },
    /// A whole activation was missing from the chain in one collection, and is back in the same crossing (I1).
    UndeadActivation {
        /// There.
        seen: u64,
        /// Missing.
        missed: u64,
        /// Back.
        again: u64,
    },
}

impl fmt::Display for Sighting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pc {
            Some(pc) => write!(f, "in collection {} at pc {pc:#x}", self.collection),
            None => write!(f, "in collection {} at a pc the scanner did not tell", self.collection),
        }
    }
}

impl fmt::Display for FoundSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {:#x}", self.address)?;
        let from = |place: usize| self.address.wrapping_sub(place).cast_signed();
        match (self.declared, self.frame) {
            (Some(plan), _) => write!(f, ", declared by the call ({plan:?}),"),
            (None, Some(frame)) if frame.fp != 0 => {
                write!(f, ", fp{:+} of the frame walked at pc {:#x},", from(frame.fp), frame.pc)
            }
            (None, Some(frame)) => {
                write!(f, ", sp{:+} of the frame walked at pc {:#x},", from(frame.sp), frame.pc)
            }
            (None, None) => f.write_str(", found by the scanner,"),
        }
    }
}

impl fmt::Display for FoundIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "activation #{} of mutator {} ({} at {}, saved pc {:#x})",
            self.depth,
            self.mutator,
            self.kind,
            Site(self.call_site),
            self.anchor.pc
        )
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Undead { seen, missed, again } => {
                write!(f, "was live {seen}, dead {missed}, and is live again {again}: an undead root")
            }
            Self::Lost { seen, missed } => {
                write!(f, "was live {seen} and is lost {missed}, in the same crossing")
            }
            Self::Late { missed, seen } => {
                write!(f, "was dead {missed} and has come alive {seen}, though its frame has not run since")
            }
            Self::Stale { collection, value, moved_to } => write!(
                f,
                "still holds {value:#x} after collection {collection}, which moved that object to {moved_to:#x}"
            ),
            Self::PinMoved { collection, value, moved_to } => {
                write!(f, "pins {value:#x}, which collection {collection} moved to {moved_to:#x}")
            }
            Self::MovedUntold { seen, collection, by, slots } => write!(
                f,
                "has all its {slots} slot(s) {by:+} bytes from where collection {seen} found them, in collection {collection}; \
                 a managed stack that moves is declared, and `relocate_stack` told"
            ),
            Self::StaleAnchor { seen, collection, address } => write!(
                f,
                "has a saved stack address {address:#x} that lay in a managed stack in collection {seen} and does not in collection {collection}"
            ),
            Self::UndeadActivation { seen, missed, again } => write!(
                f,
                "was in the chain in collection {seen}, missing in collection {missed}, and is back in collection {again}, in the same crossing"
            ),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("audit: ")?;
        match (&self.slot, &self.activation) {
            (Some(slot), Some(activation)) => write!(f, "{slot} of {activation} ")?,
            (Some(slot), None) => write!(f, "{slot} of no activation ")?,
            (None, Some(activation)) => write!(f, "{activation} ")?,
            (None, None) => f.write_str("a pin that outlives calls ")?,
        }
        self.fault.fmt(f)?;
        if !self.chain.is_empty() {
            write!(f, "\n{}", self.chain)?;
        }
        Ok(())
    }
}
