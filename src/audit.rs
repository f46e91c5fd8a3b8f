//! The undead-root audit (feature `audit`): watches I3 for every slot of every suspended activation, in any VM, with no change to its collector.
//!
//! # The idea
//!
//! The frames of an activation are frozen while it is suspended: from the crossing that published its record (a foreign call, a stop at a safepoint, the switch of a fiber) until that returns,
//! upcalls on top of it included. Within one crossing, then, a slot of it is live in every collection or in none. Between crossings its managed code runs, and slots live and die as they
//! like; so each crossing has a number, the window in which collections are compared.
//!
//! ```text
//!   crossing 7 of activation #0     c1      c2      c3      c4
//!   slot A                          live    live    live    live      one interval
//!   slot B                          live    dead    live    live      undead in c3 (lost in c2)
//!   slot C                          dead    live    live    live      late in c2
//! ```
//!
//! # What is kept
//!
//! For each mutator, for each activation of it that the last collection found: the slots that its crossing has shown, and what pins it had. A mutator that is gone takes its notes
//! along; of an activation that is gone, four words stay until its depth is reached again. Of the findings the first [`Audit::keeping`] are kept, and reported; the others are counted.
//!
//! Pins excuse: a slot whose object is pinned in each collection that misses the slot cannot be stale. They are those that the pointer check of checked mode accepts: of this mutator's calls, and those
//! that outlive calls.

mod judge;

use crate::activation::Relocation;
use crate::anchor::Anchor;
use crate::vm::{ArgumentPlan, Fault, Finding, FoundIn, FoundSlot, FrameKind};
use core::any::{TypeId, type_name};
use core::fmt;
use core::mem::size_of;
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The choices of an audit, for [`WorldBuilder::audit`](crate::WorldBuilder::audit).
#[derive(Clone, Copy)]
pub struct Audit {
    /// A `fn(R) -> usize`, for the `R` of that type.
    address: fn(),
    of: TypeId,
    name: &'static str,
    kept: usize,
    values: bool,
}

/// How many findings are kept, unless another number is chosen.
const KEPT: usize = 64;

impl Audit {
    /// Makes an audit of a VM whose references are of type `R`. `address` says which object a reference is of: its address, without tags or colours; 0 for null.
    ///
    /// It is called in pauses, for each slot. It must not panic: at the end of a pause that ends the process.
    #[must_use]
    pub fn new<R: Copy + 'static>(address: fn(R) -> usize) -> Self {
        // SAFETY: a function pointer is kept as another, and called as what it is only: see `address`.
        let address = unsafe { core::mem::transmute::<fn(R) -> usize, fn()>(address) };
        Self { address, of: TypeId::of::<R>(), name: type_name::<R>(), kept: KEPT, values: true }
    }

    /// Chooses how many findings are kept and reported, 64 otherwise; what comes after is counted.
    #[must_use]
    pub fn keeping(mut self, findings: usize) -> Self {
        self.kept = findings;
        self
    }

    /// Looks at which slots are reported and not at what they hold when the pause is over: for a collector that leaves old addresses in slots on purpose, behind load barriers. It also spares the
    /// second walk of the frames at the end of a pause.
    #[must_use]
    pub fn slots_only(mut self) -> Self {
        self.values = false;
        self
    }

    /// The function given to [`new`](Self::new).
    ///
    /// # Panics
    ///
    /// If it was one for another type.
    pub(crate) fn address<R: 'static>(&self) -> fn(R) -> usize {
        assert!(
            self.of == TypeId::of::<R>(),
            "reentry: the audit is for references of type `{}`; this VM has `{}`",
            self.name,
            type_name::<R>()
        );
        // SAFETY: made of such a function in `new`, as the type says.
        unsafe { core::mem::transmute::<fn(), fn(R) -> usize>(self.address) }
    }
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Audit")
            .field("of", &self.name)
            .field("kept", &self.kept)
            .field("values", &self.values)
            .finish()
    }
}

/// What an audit has found so far, and what it holds. See [`World::audit`](crate::World::audit).
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct AuditLog {
    /// The findings that are kept, oldest first.
    pub findings: Vec<Finding>,
    /// How many there were besides.
    pub further: u64,
    /// How many collections there were: pauses and handshakes in which roots were enumerated.
    pub collections: u64,
    /// How many slots and pins are watched now.
    pub slots: usize,
    /// The bytes that the audit holds now, findings excluded.
    pub bytes: usize,
}

/// The audit of one world.
pub(crate) struct Auditor {
    kept: usize,
    /// Whether values are looked at.
    pub(crate) values: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    collections: u64,
    /// The collection in progress.
    current: Option<Pause>,
    watched: HashMap<u64, Watched>,
    /// Pins that outlive calls: since which collection.
    pinned: HashMap<usize, u64>,
    findings: Vec<Finding>,
    /// Findings of this pause that have not been told.
    fresh: Vec<Finding>,
    further: u64,
}

/// What one collection has shown so far.
#[derive(Default)]
pub(crate) struct Pause {
    mutators: HashMap<u64, Vec<Noted>>,
    /// The slots of handles, and what they held.
    pub(crate) handles: Vec<(usize, usize)>,
    /// What the collector says it moved.
    moves: HashMap<usize, usize>,
}

/// One activation, as one collection found it.
pub(crate) struct Noted {
    pub(crate) at: FoundIn,
    pub(crate) crossing: u64,
    /// Whether the saved sp and fp lie in managed stacks.
    pub(crate) anchored: (bool, bool),
    /// The frames that the scanner told.
    pub(crate) frames: Vec<Anchor>,
    pub(crate) slots: Vec<Seen>,
    /// Objects that the scanner pins.
    pub(crate) pinned: Vec<usize>,
    /// Words of arguments that ended in a declared way.
    pub(crate) released: Vec<usize>,
}

/// One slot, or one pin that a guard declared, as one collection found it.
#[derive(Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) address: usize,
    pub(crate) value: usize,
    /// What it holds when the pause is over, if that has been read.
    after: Option<usize>,
    pub(crate) frame: Option<Anchor>,
    pub(crate) declared: Option<ArgumentPlan>,
}

impl Seen {
    pub(crate) fn new(
        address: usize,
        value: usize,
        frame: Option<Anchor>,
        declared: Option<ArgumentPlan>,
    ) -> Self {
        Self { address, value, after: None, frame, declared }
    }

    /// Says whether it holds a reference for the collector to update.
    fn is_slot(&self) -> bool {
        !matches!(self.declared, Some(ArgumentPlan::Pin | ArgumentPlan::TransitivePin))
    }

    fn found(&self) -> FoundSlot {
        FoundSlot { address: self.address, frame: self.frame, declared: self.declared }
    }
}

/// What is known of one mutator.
#[derive(Default)]
struct Watched {
    /// By depth.
    crossings: Vec<Option<Crossing>>,
    /// The objects pinned in it: since which collection.
    pinned: HashMap<usize, u64>,
}

/// What is known of one crossing.
struct Crossing {
    number: u64,
    kind: FrameKind,
    pc: usize,
    /// The first collection in it.
    first: u64,
    /// The last one.
    last: u64,
    /// Its frames, as that one walked them.
    frames: Vec<Anchor>,
    /// The collection in which it was missing.
    missing: Option<u64>,
    slots: Vec<History>,
    /// Whether the saved sp and fp lay in managed stacks when it was first seen.
    anchored: (bool, bool),
}

/// One slot, in one crossing.
struct History {
    seen: Seen,
    last: u64,
    missed: Option<crate::vm::Sighting>,
}

impl Auditor {
    pub(crate) fn new(audit: Audit) -> Self {
        Self { kept: audit.kept, values: audit.values, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody else uses the audit until the result is dropped: for a fork.
    #[cfg(all(unix, not(loom), not(miri)))]
    pub(crate) fn held(&self) -> impl Sized + '_ {
        self.state()
    }

    /// Begins a collection, unless one has begun in this pause.
    pub(crate) fn begin_collection(&self) {
        self.state().begin_collection();
    }

    /// Begins the enumeration of a mutator's roots. Says whether it is the first of this pause, to be noted. `anchors`: each activation, and whether its sp and fp lie in managed stacks.
    pub(crate) fn begin(&self, mutator: u64, anchors: &[(FoundIn, u64, (bool, bool))]) -> bool {
        let mut state = self.state();
        let state = &mut *state;
        if state.begin_collection().mutators.contains_key(&mutator) {
            return false;
        }
        let collection = state.collections;
        let watched = state.watched.entry(mutator).or_default();
        for (at, number, now) in anchors {
            let Some(crossing) = watched.at(at, *number) else { continue };
            let stale = [
                (crossing.anchored.0 && !now.0, at.anchor.sp),
                (crossing.anchored.1 && !now.1, at.anchor.fp),
            ];
            // Once for each crossing.
            crossing.anchored = (crossing.anchored.0 && now.0, crossing.anchored.1 && now.1);
            for (_, address) in stale.into_iter().filter(|(stale, _)| *stale) {
                let fault = Fault::StaleAnchor { seen: crossing.last, collection, address };
                state.fresh.push(finding(fault, Some(*at), None));
            }
        }
        true
    }

    /// Ends it: nothing has unwound.
    pub(crate) fn noted(&self, mutator: u64, activations: Vec<Noted>) {
        if let Some(pause) = &mut self.state().current {
            pause.mutators.insert(mutator, activations);
        }
    }

    /// Notes what the handles hold, if this is the first time in this pause.
    pub(crate) fn noted_handles(&self, handles: Vec<(usize, usize)>) {
        let mut state = self.state();
        if let Some(pause) = state.current.as_mut().filter(|pause| pause.handles.is_empty()) {
            pause.handles = handles;
        }
    }

    /// Notes what the collector says it has moved.
    pub(crate) fn noted_move(&self, from: usize, to: usize) {
        if let Some(pause) = &mut self.state().current {
            pause.moves.insert(from, to);
        }
    }

    /// The mutators whose roots this pause has enumerated; `None` if it has enumerated nothing.
    pub(crate) fn enumerated(&self) -> Option<Vec<u64>> {
        self.state().current.as_ref().map(|pause| pause.mutators.keys().copied().collect())
    }

    /// Tells what a mutator's slots hold now.
    pub(crate) fn read_again(&self, mutator: u64, values: &HashMap<usize, usize>) {
        let mut state = self.state();
        let activations = state.current.as_mut().and_then(|pause| pause.mutators.get_mut(&mutator));
        for seen in activations.into_iter().flatten().flat_map(|noted| &mut noted.slots) {
            seen.after = values.get(&seen.address).copied();
        }
    }

    /// Ends the collection in progress without a judgement: the pause has unwound.
    pub(crate) fn give_up(&self) {
        self.state().current = None;
    }

    /// Takes what was found since the last time, at most as many as are to be kept; the others are counted.
    pub(crate) fn take_fresh(&self) -> Vec<Finding> {
        let mut state = self.state();
        let mut fresh = core::mem::take(&mut state.fresh);
        let room = self.kept.saturating_sub(state.findings.len());
        state.further += fresh.len().saturating_sub(room) as u64;
        fresh.truncate(room);
        fresh
    }

    /// Keeps what [`take_fresh`](Self::take_fresh) gave.
    pub(crate) fn keep(&self, findings: &[Finding]) {
        self.state().findings.extend_from_slice(findings);
    }

    /// A mutator's stack has moved: what is remembered of it follows (I6).
    pub(crate) fn relocated(&self, mutator: u64, relocation: &Relocation) {
        let mut state = self.state();
        let state = &mut *state;
        if let Some(watched) = state.watched.get_mut(&mutator) {
            for crossing in watched.crossings.iter_mut().flatten() {
                crossing.frames.iter_mut().for_each(|frame| rebase(frame, relocation));
                crossing.slots.iter_mut().for_each(|history| history.seen.rebase(relocation));
            }
        }
        let noted = state.current.as_mut().and_then(|pause| pause.mutators.get_mut(&mutator));
        for noted in noted.into_iter().flatten() {
            noted.frames.iter_mut().for_each(|frame| rebase(frame, relocation));
            noted.slots.iter_mut().for_each(|seen| seen.rebase(relocation));
        }
    }

    /// What there is to tell.
    pub(crate) fn log(&self) -> AuditLog {
        let state = self.state();
        let crossings = || state.watched.values().flat_map(|watched| watched.crossings.iter().flatten());
        let per_pin = size_of::<(usize, u64)>() + 1; // a map keeps a byte with each place
        let bytes = crossings()
            .map(|crossing| {
                crossing.slots.capacity() * size_of::<History>()
                    + crossing.frames.capacity() * size_of::<Anchor>()
            })
            .sum::<usize>()
            + state
                .watched
                .values()
                .map(|watched| {
                    size_of::<(u64, Watched)>()
                        + watched.crossings.capacity() * size_of::<Option<Crossing>>()
                        + watched.pinned.capacity() * per_pin
                })
                .sum::<usize>()
            + state.pinned.capacity() * per_pin;
        AuditLog {
            findings: state.findings.clone(),
            further: state.further,
            collections: state.collections,
            slots: crossings().map(|crossing| crossing.slots.len()).sum(),
            bytes,
        }
    }

    /// Compares this collection with those before, and ends it. `attached`: the mutators there are, if all were stopped. `pinned`: what is pinned beyond calls. `handles`: what they hold now.
    pub(crate) fn judge(
        &self,
        attached: Option<&HashSet<u64>>,
        pinned: &HashSet<usize>,
        handles: &HashMap<usize, usize>,
    ) {
        let mut state = self.state();
        let state = &mut *state;
        let Some(mut pause) = state.current.take() else { return };
        let collection = state.collections;
        if self.values {
            judge::values(collection, &mut pause, pinned, handles, &mut state.fresh);
        }
        for (mutator, activations) in pause.mutators {
            let watched = state.watched.entry(mutator).or_default();
            watched.judge(collection, activations, (&state.pinned, pinned), &mut state.fresh);
        }
        state.pinned = judge::since(&state.pinned, pinned.iter().copied(), collection);
        if let Some(attached) = attached {
            state.watched.retain(|mutator, _| attached.contains(mutator));
        }
    }
}

impl State {
    fn begin_collection(&mut self) -> &mut Pause {
        if self.current.is_none() {
            self.collections += 1;
        }
        self.current.get_or_insert_default()
    }
}

fn finding(fault: Fault, activation: Option<FoundIn>, slot: Option<FoundSlot>) -> Finding {
    Finding { fault, activation, slot, chain: String::new() }
}

fn rebase(frame: &mut Anchor, relocation: &Relocation) {
    for word in [&mut frame.sp, &mut frame.fp] {
        if (relocation.old.start..=relocation.old.end).contains(word) {
            *word = relocation.map(*word);
        }
    }
}

impl Seen {
    fn rebase(&mut self, relocation: &Relocation) {
        if relocation.old.contains(&self.address) {
            self.address = relocation.map(self.address);
        }
        if let Some(frame) = &mut self.frame {
            rebase(frame, relocation);
        }
    }
}

impl Watched {
    /// The crossing that the activation at `at` is still in, if it is known.
    fn at(&mut self, at: &FoundIn, number: u64) -> Option<&mut Crossing> {
        let crossing = self.crossings.get_mut(at.depth)?.as_mut()?;
        // Transitions that a JIT inlines may not count; they have a pc of their own, mostly.
        let same = (crossing.number, crossing.kind, crossing.pc) == (number, at.kind, at.anchor.pc);
        same.then_some(crossing)
    }
}
