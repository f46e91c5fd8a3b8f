//! Test-only switches that take one protection away.
//!
//! Every guarantee of this crate has a test that fails when its protection is removed. The switch is an associated constant of the
//! `unsafe trait` [`StackScanner`](crate::StackScanner), so that a correct host pays nothing for it (the branch is decided at compile
//! time), and so that nobody turns one on without writing `unsafe impl`.

/// A set of protections taken away; [`Faults::NONE`] in every host that is meant to work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Faults(u32);

impl Faults {
    /// All protections in place.
    pub const NONE: Self = Self(0);
    /// A crossing has no fence between its state store and its poll load.
    pub const NO_LIGHT_FENCE: Self = Self(1);
    /// A thread coming back from foreign code does not look at its poll word.
    pub const NO_WAIT_ON_RETURN: Self = Self(1 << 1);
    /// An upcall does not look at its poll word on the way in.
    pub const NO_WAIT_ON_UPCALL: Self = Self(1 << 2);
    /// An upcall's return becomes foreign first and re-instates the saved record after.
    pub const FOREIGN_BEFORE_REINSTATE: Self = Self(1 << 3);
    /// The record is published with a relaxed store.
    pub const RELAXED_PUBLISH: Self = Self(1 << 4);
    /// Attaching does not wait for a pause to end.
    pub const UNGATED_ATTACH: Self = Self(1 << 5);
    /// Detaching does not wait for a pause to end.
    pub const UNGATED_DETACH: Self = Self(1 << 6);
    /// Resuming clears the poll words with relaxed stores.
    pub const RELAXED_RESUME: Self = Self(1 << 7);
    /// Saved anchors and root slots do not follow a stack that moves.
    pub const NO_RELOCATION: Self = Self(1 << 8);
    /// A pause does not wait for running mutators.
    pub const NO_WAIT_FOR_MUTATORS: Self = Self(1 << 9);
    /// What a foreign call declares is forgotten when an upcall of it returns.
    pub const ROOTS_DROPPED_BY_UPCALL: Self = Self(1 << 10);
    /// What foreign code skipped is not released.
    pub const NO_REPAIR: Self = Self(1 << 11);
    /// An upcall does not look whether foreign code has skipped the one before.
    pub const NO_SKIP_CHECK: Self = Self(1 << 12);
    /// An upcall does not look at how much stack is left.
    pub const NO_STACK_CHECK: Self = Self(1 << 13);
    /// A handle released during a pause is gone from the roots at once.
    pub const HANDLE_RELEASED_AT_ONCE: Self = Self(1 << 16);
    /// Looking a raw handle up does not count its reader.
    pub const LOOKUP_UNCOUNTED: Self = Self(1 << 17);
    /// A closure that is dropped ends at once, whoever is in it.
    pub const CLOSURE_ENDED_AT_ONCE: Self = Self(1 << 18);
    /// The memory of a closure goes when its body has been dropped, whoever is still on the way out.
    pub const DESERTED_WHEN_ENDED: Self = Self(1 << 19);
    /// A pause or handshake does not wait for the one in force.
    pub const UNGATED_STOP: Self = Self(1 << 24);
    /// Attaching looks whether the world is closed, and lets the lock go before it enters the mutator.
    pub const CLOSED_TOO_EARLY: Self = Self(1 << 25);
    /// Posted work is published with a relaxed store.
    pub const RELAXED_POST: Self = Self(1 << 26);
    /// A poll does what was posted, and then takes back the wish that it be done.
    pub const WOKEN_TOO_LATE: Self = Self(1 << 27);

    /// Says whether `self` takes away all that `fault` does.
    #[inline(always)]
    #[must_use]
    pub const fn has(self, fault: Self) -> bool {
        self.0 & fault.0 != 0
    }

    /// Takes away what either does.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}
