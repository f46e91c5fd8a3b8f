//! Pins that outlive a call: a table of owners, and the owner.
//!
//! A pin declared on a [`ForeignCall`](crate::ForeignCall) ends with the call. A [`Pinner`] is for an object whose address C keeps for longer. The
//! form is that of Go's `runtime.Pinner`.

use core::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// What the pinners of one world hold: one list for each owner.
pub(crate) struct PinTable<R> {
    pins: Mutex<Pins<R>>,
}

struct Pins<R> {
    owners: Vec<Option<Vec<R>>>,
    /// A pause is in force: the roots of the world must stay what they are.
    frozen: bool,
    /// Pins that were ended during the pause: they end with it.
    ended: Vec<R>,
}

impl<R: Copy> Pins<R> {
    /// Empties an owner's list, now or at the end of the pause.
    fn end(&mut self, owner: usize) {
        let Some(held) = &mut self.owners[owner] else { return };
        if self.frozen {
            self.ended.append(held);
        } else {
            held.clear();
        }
    }
}

impl<R: Copy> PinTable<R> {
    pub(crate) fn new() -> Self {
        Self { pins: Mutex::new(Pins { owners: Vec::new(), frozen: false, ended: Vec::new() }) }
    }

    fn with<T>(&self, f: impl FnOnce(&mut Pins<R>) -> T) -> T {
        // Every critical section leaves the table whole at each point where it can unwind (only `Vec` growth can).
        f(&mut self.pins.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs `f` while no other thread changes the table.
    pub(crate) fn held<T>(&self, f: impl FnOnce() -> T) -> T {
        self.with(|_| f())
    }

    /// A pause begins: until [`thaw`](Self::thaw), ending a pin takes no effect, so that the roots can be asked for twice.
    pub(crate) fn freeze(&self) {
        self.with(|pins| pins.frozen = true);
    }

    /// The pause ends.
    pub(crate) fn thaw(&self) {
        self.with(|pins| {
            pins.frozen = false;
            pins.ended.clear();
        });
    }

    /// Calls `visit` for each pinned reference, on a copy: the visitor may drop a pinner of its own.
    pub(crate) fn for_each(&self, visit: impl FnMut(R)) {
        let held: Vec<R> =
            self.with(|pins| pins.owners.iter().flatten().flatten().chain(&pins.ended).copied().collect());
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
        let owner = table.with(|pins| match pins.owners.iter().position(Option::is_none) {
            Some(free) => {
                pins.owners[free] = Some(Vec::new());
                free
            }
            None => {
                pins.owners.push(Some(Vec::new()));
                pins.owners.len() - 1
            }
        });
        Self { table, owner }
    }

    fn with<T>(&self, f: impl FnOnce(&mut Vec<R>) -> T) -> T {
        self.table.with(|pins| f(pins.owners[self.owner].get_or_insert_default()))
    }

    pub(crate) fn add(&mut self, reference: R) {
        self.with(|held| held.push(reference));
    }

    /// Says whether this is an owner in `table`.
    pub(crate) fn is_of(&self, table: &Arc<PinTable<R>>) -> bool {
        Arc::ptr_eq(&self.table, table)
    }

    /// Ends every pin of this owner (during a pause: when the pause ends). The owner can pin again.
    pub fn unpin_all(&mut self) {
        self.table.with(|pins| pins.end(self.owner));
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
        self.table.with(|pins| {
            pins.end(self.owner);
            pins.owners[self.owner] = None;
        });
    }
}

impl<R: Copy> fmt::Debug for Pinner<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinner").field("len", &self.len()).finish_non_exhaustive()
    }
}
