//! Pins that outlive a call: a table of owners, and the owner.
//!
//! A pin declared on a [`ForeignCall`](crate::ForeignCall) ends with the call. A [`Pinner`] is for an object whose address C keeps for longer. The
//! form is that of Go's `runtime.Pinner`.

use crate::leaks::Leaks;
use crate::vm::ArgumentPlan;
use core::fmt;
use core::panic::Location;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What the pinners of one world hold: one list for each owner.
pub(crate) struct PinTable<R> {
    /// No other table of the process has it.
    number: usize,
    pins: Mutex<Pins<R>>,
}

struct Pins<R> {
    owners: Vec<Option<Owner<R>>>,
    /// The places of `owners` that are free.
    free_owners: Vec<usize>,
    /// The next pin's number.
    next: u64,
    /// A pause is in force: the roots of the world must stay what they are.
    frozen: bool,
    /// Pins that were ended during the pause: they end with it.
    ended: Vec<Pin<R>>,
}

struct Owner<R> {
    site: &'static Location<'static>,
    /// Where a pin has ended there is room for another.
    pins: Vec<Option<Pin<R>>>,
    /// The places of `pins` that are free.
    free: Vec<usize>,
}

/// One pin.
#[derive(Clone, Copy)]
struct Pin<R> {
    /// No other pin of the table has or had it.
    number: u64,
    plan: ArgumentPlan,
    reference: R,
}

impl<R: Copy> Owner<R> {
    fn len(&self) -> usize {
        self.pins.len() - self.free.len()
    }
}

impl<R: Copy> Pins<R> {
    /// Ends every pin of an owner, now or at the end of the pause.
    fn end(&mut self, owner: usize) {
        let Some(owner) = &mut self.owners[owner] else { return };
        if self.frozen {
            self.ended.extend(owner.pins.iter().flatten());
        }
        owner.pins.clear();
        owner.free.clear();
    }

    /// Ends one pin, now or at the end of the pause. Says whether it was there.
    fn end_one(&mut self, owner: usize, id: PinId) -> bool {
        let Some(owner) = &mut self.owners[owner] else { return false };
        let Some(place) = owner.pins.get_mut(id.place) else { return false };
        let Some(pin) = place.take_if(|pin| pin.number == id.number) else { return false };
        owner.free.push(id.place);
        if self.frozen {
            self.ended.push(pin);
        }
        true
    }
}

impl<R: Copy> PinTable<R> {
    pub(crate) fn new() -> Self {
        // A number, nothing else hangs on it.
        static NUMBERS: AtomicUsize = AtomicUsize::new(0);
        let pins =
            Pins { owners: Vec::new(), free_owners: Vec::new(), next: 0, frozen: false, ended: Vec::new() };
        Self { number: NUMBERS.fetch_add(1, Ordering::Relaxed), pins: Mutex::new(pins) }
    }

    /// A number that names this table's world in the process.
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    fn with<T>(&self, f: impl FnOnce(&mut Pins<R>) -> T) -> T {
        // Every critical section leaves the table whole at each point where it can unwind (only `Vec` growth can).
        f(&mut self.pins.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// No other thread changes the table until the result is dropped.
    #[cfg(all(unix, not(loom), not(miri)))]
    pub(crate) fn held(&self) -> impl Sized + '_ {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Calls `visit` for each pinned reference and how it is pinned, on a copy: the visitor may drop a pinner of its own.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(ArgumentPlan, R)) {
        let held: Vec<Pin<R>> = self.with(|pins| {
            let owned = pins.owners.iter().flatten().flat_map(|owner| owner.pins.iter().flatten());
            owned.chain(&pins.ended).copied().collect()
        });
        held.into_iter().for_each(|pin| visit(pin.plan, pin.reference));
    }

    /// Adds the owners that hold pins.
    pub(crate) fn leaks(&self, leaks: &mut Leaks) {
        self.with(|pins| {
            for owner in pins.owners.iter().flatten().filter(|owner| owner.len() > 0) {
                leaks.add_pins(owner.site, owner.len());
            }
        });
    }
}

/// One pin of a [`Pinner`], to end it before the others: a plain value, which can travel through C.
///
/// It names its pin for ever: when the pin has ended, [`Pinner::unpin`] says so, whatever was pinned since.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct PinId {
    table: usize,
    place: usize,
    number: u64,
}

/// A pin that could not be ended, because this owner holds no such pin.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "this pinner holds no such pin: it has ended already, or is another pinner's; end each pin once, through the pinner that made it"
)]
pub struct UnpinError;

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
    pub(crate) fn new(table: Arc<PinTable<R>>, site: &'static Location<'static>) -> Self {
        let new = Owner { site, pins: Vec::new(), free: Vec::new() };
        let owner = table.with(|pins| match pins.free_owners.pop() {
            Some(free) => {
                pins.owners[free] = Some(new);
                free
            }
            None => {
                // Room for its place among the free ones, so that a drop allocates nothing.
                pins.free_owners.reserve(pins.owners.len() + 1);
                pins.owners.push(Some(new));
                pins.owners.len() - 1
            }
        });
        Self { table, owner }
    }

    /// Adds a pin.
    ///
    /// # Panics
    ///
    /// Never: an owner is in its table until it is dropped.
    pub(crate) fn add(&mut self, plan: ArgumentPlan, reference: R) -> PinId {
        self.table.with(|pins| {
            let number = pins.next;
            let owner = pins.owners[self.owner].as_mut();
            let owner = owner.expect("an owner is in the table until it is dropped");
            let pin = Some(Pin { number, plan, reference });
            let place = match owner.free.pop() {
                Some(place) => {
                    owner.pins[place] = pin;
                    place
                }
                None => {
                    owner.pins.push(pin);
                    owner.pins.len() - 1
                }
            };
            pins.next += 1;
            PinId { table: self.table.number, place, number }
        })
    }

    /// Says whether this is an owner in `table`.
    pub(crate) fn is_of(&self, table: &Arc<PinTable<R>>) -> bool {
        Arc::ptr_eq(&self.table, table)
    }

    /// Ends every pin of this owner (during a pause: when the pause ends). The owner can pin again.
    pub fn unpin_all(&mut self) {
        self.table.with(|pins| pins.end(self.owner));
    }

    /// Ends one pin (during a pause: when the pause ends). The object stays where it is if something else pins it.
    ///
    /// # Errors
    ///
    /// If this owner holds no such pin: it has ended, or is another's. Nothing has been changed.
    ///
    /// # Examples
    ///
    /// ```
    /// # use reentry::{testkit::TestVm, World};
    /// let world = World::new(TestVm::new());
    /// let mut mutator = world.attach()?;
    /// let buffer = world.vm().heap().alloc(&[], b"buffer");
    /// let mut pinner = world.pinner();
    /// let once = mutator.pin_with(&mut pinner, buffer)?;
    /// let twice = mutator.pin_with(&mut pinner, buffer)?;
    /// pinner.unpin(once)?;
    /// assert!(pinner.unpin(once).is_err());
    /// assert_eq!(pinner.len(), 1); // pinned still
    /// pinner.unpin(twice)?;
    /// assert!(pinner.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn unpin(&mut self, pin: PinId) -> Result<(), UnpinError> {
        let ended = pin.table == self.table.number && self.table.with(|pins| pins.end_one(self.owner, pin));
        if ended { Ok(()) } else { Err(UnpinError) }
    }

    /// Returns how many pins this owner holds, counting an object as often as it was pinned.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.with(|pins| pins.owners[self.owner].as_ref().map_or(0, Owner::len))
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
            pins.free_owners.push(self.owner);
        });
    }
}

impl<R: Copy> fmt::Debug for Pinner<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinner").field("len", &self.len()).finish_non_exhaustive()
    }
}
