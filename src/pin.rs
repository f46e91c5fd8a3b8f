//! Pins that outlive a call: a table of owners, and the owner.
//!
//! A pin declared on a [`ForeignCall`](crate::ForeignCall) ends with the call. A [`Pinner`] is for an object whose address C keeps for longer. The
//! form is that of Go's `runtime.Pinner`.

use core::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// What the pinners of one world hold: one list for each owner.
pub(crate) struct PinTable<R> {
    owners: Mutex<Vec<Option<Vec<R>>>>,
}

impl<R: Copy> PinTable<R> {
    pub(crate) fn new() -> Self {
        Self { owners: Mutex::new(Vec::new()) }
    }

    fn with<T>(&self, f: impl FnOnce(&mut Vec<Option<Vec<R>>>) -> T) -> T {
        // Every critical section leaves the table whole at each point where it can unwind (only `Vec` growth can).
        f(&mut self.owners.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Calls `visit` for each pinned reference, on a copy: the visitor may drop a pinner of its own.
    pub(crate) fn for_each(&self, visit: impl FnMut(R)) {
        let held: Vec<R> = self.with(|owners| owners.iter().flatten().flatten().copied().collect());
        held.into_iter().for_each(visit);
    }
}

/// An owner of pins that are not tied to one call. Dropping it ends them.
///
/// An object is pinned as long as any owner, or any foreign call, holds a pin on it; owners count for themselves. Leaking a `Pinner` keeps its
/// objects alive and in place (invariant I9). Made by [`World::pinner`](crate::World::pinner).
#[must_use = "dropping a `Pinner` ends its pins at once"]
pub struct Pinner<R: Copy> {
    table: Arc<PinTable<R>>,
    owner: usize,
}

impl<R: Copy> Pinner<R> {
    pub(crate) fn new(table: Arc<PinTable<R>>) -> Self {
        let owner = table.with(|owners| match owners.iter().position(Option::is_none) {
            Some(free) => {
                owners[free] = Some(Vec::new());
                free
            }
            None => {
                owners.push(Some(Vec::new()));
                owners.len() - 1
            }
        });
        Self { table, owner }
    }

    fn with<T>(&self, f: impl FnOnce(&mut Vec<R>) -> T) -> T {
        self.table.with(|owners| f(owners[self.owner].get_or_insert_default()))
    }

    pub(crate) fn add(&mut self, reference: R) {
        self.with(|held| held.push(reference));
    }

    /// Says whether this is an owner in `table`.
    pub(crate) fn is_of(&self, table: &Arc<PinTable<R>>) -> bool {
        Arc::ptr_eq(&self.table, table)
    }

    /// Ends every pin of this owner. The owner can pin again.
    pub fn unpin_all(&mut self) {
        self.with(Vec::clear);
    }

    /// Returns how many pins this owner holds, counting an object as often as it was pinned.
    #[must_use]
    pub fn len(&self) -> usize {
        self.with(|held| held.len())
    }

    /// Says whether this owner holds no pin.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<R: Copy> Drop for Pinner<R> {
    fn drop(&mut self) {
        self.table.with(|owners| owners[self.owner] = None);
    }
}

impl<R: Copy> fmt::Debug for Pinner<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinner").field("len", &self.len()).finish_non_exhaustive()
    }
}
