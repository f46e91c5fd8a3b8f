//! What one collection shows beside those before.

use super::{Crossing, History, Noted, Pause, Seen, Watched, finding};
use crate::vm::{ArgumentPlan, Fault, Finding, FoundIn, FoundSlot, Sighting};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Since which collection each of `now` has been pinned without a gap.
pub(super) fn since(
    before: &HashMap<usize, u64>,
    now: impl Iterator<Item = usize>,
    collection: u64,
) -> HashMap<usize, u64> {
    now.map(|object| (object, before.get(&object).copied().unwrap_or(collection))).collect()
}

/// What the slots hold when the pause is over: each follows its object, and what is pinned has not moved.
pub(super) fn values(
    collection: u64,
    pause: &mut Pause,
    pinned: &HashSet<usize>,
    handles: &HashMap<usize, usize>,
    found: &mut Vec<Finding>,
) {
    let slots = || pause.mutators.values().flatten().flat_map(|noted| noted.slots.iter());
    let handle = |&(address, value): &(usize, usize)| (address, value, handles.get(&address).copied());
    let read = slots()
        .filter(|seen| seen.is_slot())
        .map(|seen| (seen.value, seen.after))
        .chain(pause.handles.iter().map(handle).map(|(_, value, after)| (value, after)));
    // Null moves nowhere, and nothing moves to null: such a slot was cleared.
    let mut moves: HashMap<usize, usize> = read
        .filter_map(|(value, after)| Some((value, after?)))
        .filter(|&(value, after)| value != 0 && after != 0 && value != after)
        .collect();
    moves.extend(&pause.moves);
    if moves.is_empty() {
        return;
    }
    let moved_to = |value: usize| moves.get(&value).copied();
    for noted in pause.mutators.values().flatten() {
        for seen in &noted.slots {
            let Some(moved_to) = moved_to(seen.value) else { continue };
            let fault = if !seen.is_slot() {
                Fault::PinMoved { collection, value: seen.value, moved_to }
            } else if seen.after == Some(seen.value) {
                Fault::Stale { collection, value: seen.value, moved_to }
            } else {
                continue;
            };
            found.push(finding(fault, Some(noted.at), Some(seen.found())));
        }
        for &value in &noted.pinned {
            if let Some(moved_to) = moved_to(value) {
                let fault = Fault::PinMoved { collection, value, moved_to };
                found.push(finding(fault, Some(noted.at), None));
            }
        }
    }
    for (address, value, after) in pause.handles.iter().map(handle) {
        if let Some(moved_to) = moved_to(value).filter(|_| after == Some(value)) {
            let slot = FoundSlot { address, frame: None, declared: None };
            found.push(finding(Fault::Stale { collection, value, moved_to }, None, Some(slot)));
        }
    }
    for &value in pinned {
        if let Some(moved_to) = moved_to(value) {
            found.push(finding(Fault::PinMoved { collection, value, moved_to }, None, None));
        }
    }
}

/// What one collection knows of the pins: those of the calls of one mutator, and those beyond calls, before it and in it.
struct Pins<'p> {
    before: [&'p HashMap<usize, u64>; 2],
    now: [&'p HashSet<usize>; 2],
}

impl Pins<'_> {
    /// The object is pinned in this collection.
    fn hold(&self, object: usize) -> bool {
        self.now.iter().any(|pins| pins.contains(&object))
    }

    /// The object was pinned in each collection from `first` to the one before this.
    fn held_since(&self, object: usize, first: u64) -> bool {
        self.before.iter().any(|pins| pins.get(&object).is_some_and(|&since| since <= first))
    }
}

impl Watched {
    /// Compares what a collection found of a mutator with what the ones before did.
    pub(super) fn judge(
        &mut self,
        collection: u64,
        activations: Vec<Noted>,
        (pinned_before, pinned): (&HashMap<usize, u64>, &HashSet<usize>),
        found: &mut Vec<Finding>,
    ) {
        let own: HashSet<usize> = activations.iter().flat_map(Noted::pins).collect();
        let pins = Pins { before: [&self.pinned, pinned_before], now: [&own, pinned] };
        let mut crossings = core::mem::take(&mut self.crossings);
        let depths = activations.iter().map(|noted| noted.at.depth + 1).max().unwrap_or(0);
        crossings.resize_with(crossings.len().max(depths), || None);
        let mut there = HashSet::new();
        for noted in activations {
            there.insert(noted.at.depth);
            let depth = noted.at.depth;
            crossings[depth] = Some(match crossings[depth].take() {
                Some(known) if known.is(&noted) => known.judge(collection, noted, &pins, found),
                // Not the record that was here, whose count does not go back: that one is hidden.
                Some(known) if noted.crossing < known.number => known.hidden(collection),
                _ => Crossing::new(collection, noted),
            });
        }
        for (depth, crossing) in crossings.iter_mut().enumerate() {
            if !there.contains(&depth) {
                // Mostly it is over for good.
                *crossing = crossing.take().map(|crossing| crossing.hidden(collection));
            }
        }
        self.crossings = crossings;
        self.pinned = since(&self.pinned, own.into_iter(), collection);
    }
}

impl Noted {
    /// The objects that the activation pins.
    fn pins(&self) -> impl Iterator<Item = usize> {
        let declared = self.slots.iter().filter(|seen| !seen.is_slot()).map(|seen| seen.value);
        declared.chain(self.pinned.iter().copied())
    }

    /// The slots in order of their addresses, each once: as a guard declared it, if one did.
    fn slots_in_order(&self) -> BTreeMap<usize, Seen> {
        let mut slots = BTreeMap::<usize, Seen>::new();
        for seen in &self.slots {
            slots
                .entry(seen.address)
                .and_modify(|known| {
                    known.frame = known.frame.or(seen.frame);
                    known.declared = known.declared.or(seen.declared);
                })
                .or_insert(*seen);
        }
        slots
    }
}

/// The pc at which the frame of a slot was walked: that of the frame among `frames`, or the call's own for what a guard declared.
fn pc_of(seen: &Seen, at: &FoundIn, frames: &[crate::anchor::Anchor]) -> Option<usize> {
    match seen.frame {
        Some(own) => frames.iter().find(|frame| (frame.fp, frame.sp) == (own.fp, own.sp)).map(|f| f.pc),
        None => seen.declared.map(|_| at.anchor.pc),
    }
}

impl Crossing {
    fn is(&self, noted: &Noted) -> bool {
        (self.number, self.kind, self.pc) == (noted.crossing, noted.at.kind, noted.at.anchor.pc)
    }

    /// The same, missing in this collection. If it comes back, its slots are not what is wrong.
    fn hidden(mut self, collection: u64) -> Self {
        self.missing.get_or_insert(collection);
        Self { slots: Vec::new(), frames: Vec::new(), ..self }
    }

    /// One that has not been seen before.
    fn new(collection: u64, noted: Noted) -> Self {
        let slots = noted.slots_in_order().into_values();
        Self {
            number: noted.crossing,
            kind: noted.at.kind,
            pc: noted.at.anchor.pc,
            first: collection,
            last: collection,
            missing: None,
            slots: slots.map(|seen| History::new(seen, collection)).collect(),
            frames: noted.frames,
            anchored: noted.anchored,
        }
    }

    /// Compares what a collection found of it with what the ones before did.
    fn judge(mut self, collection: u64, noted: Noted, pins: &Pins<'_>, found: &mut Vec<Finding>) -> Self {
        let at = noted.at;
        if let Some(missed) = self.missing {
            let fault = Fault::UndeadActivation { seen: self.last, missed, again: collection };
            found.push(finding(fault, Some(at), None));
            return Self::new(collection, noted);
        }
        let mut now = noted.slots_in_order();
        self.slots.retain(|history| !noted.released.contains(&history.seen.address));
        if let Some((by, slots)) = self.moved(&noted, &now) {
            let fault = Fault::MovedUntold { seen: self.last, collection, by, slots };
            found.push(finding(fault, Some(at), None));
            return Self::new(collection, noted);
        }
        for history in &mut self.slots {
            let Some(seen) = now.remove(&history.seen.address) else {
                if history.missed.is_none() {
                    let missed = Sighting { collection, pc: pc_of(&history.seen, &at, &noted.frames) };
                    history.missed = Some(missed);
                    // What a call declares does not end in it, pinned or not.
                    if history.seen.declared.is_some() || !pins.hold(history.seen.held()) {
                        let seen = history.sighting(&at);
                        let fault = Fault::Lost { seen, missed };
                        found.push(finding(fault, Some(at), Some(history.seen.found())));
                    }
                }
                continue;
            };
            let before = history.sighting(&at);
            let missed = history.missed.take();
            (history.seen, history.last) = (seen, collection);
            if let Some(missed) = missed.filter(|missed| !pins.held_since(seen.value, missed.collection)) {
                let fault = Fault::Undead { seen: before, missed, again: history.sighting(&at) };
                found.push(finding(fault, Some(at), Some(seen.found())));
            }
        }
        for seen in now.into_values() {
            let history = History::new(seen, collection);
            // What upcalls hand to C is declared on the way.
            if seen.declared.is_none() && !pins.held_since(seen.value, self.first) {
                let missed = Sighting { collection: self.last, pc: pc_of(&seen, &at, &self.frames) };
                let fault = Fault::Late { missed, seen: history.sighting(&at) };
                found.push(finding(fault, Some(at), Some(seen.found())));
            }
            self.slots.push(history);
        }
        (self.last, self.frames) = (collection, noted.frames);
        self
    }

    /// How far all slots that the scanner found are from where they were, if they have moved together, and how many they are.
    fn moved(&self, noted: &Noted, now: &BTreeMap<usize, Seen>) -> Option<(isize, usize)> {
        let scanned = |seen: &Seen| seen.declared.is_none();
        let mut before: Vec<_> =
            self.slots.iter().map(|history| &history.seen).filter(|s| scanned(s)).collect();
        before.sort_by_key(|seen| seen.address);
        let after: Vec<_> = now.values().filter(|seen| scanned(seen)).collect();
        let (first, to) = (before.first()?, after.first()?);
        let by = to.address.wrapping_sub(first.address);
        let together = before.len() == after.len()
            && before.iter().zip(&after).all(|(old, new)| new.address.wrapping_sub(old.address) == by);
        // One slot says little: another of the same frame may have come alive. So the frame must be gone, or there must be more.
        let gone =
            first.frame.map_or(before.len() > 1, |frame| noted.frames.iter().all(|f| f.fp != frame.fp));
        (by != 0 && together && gone).then_some((by.cast_signed(), before.len()))
    }
}

impl Seen {
    /// What it holds as far as is known.
    fn held(&self) -> usize {
        self.after.unwrap_or(self.value)
    }
}

impl History {
    fn new(seen: Seen, collection: u64) -> Self {
        Self { seen, last: collection, missed: None }
    }

    /// The last time it was live.
    fn sighting(&self, at: &FoundIn) -> Sighting {
        let pc = self.seen.frame.map(|frame| frame.pc);
        let declared = |_: ArgumentPlan| at.anchor.pc;
        Sighting { collection: self.last, pc: pc.or(self.seen.declared.map(declared)) }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![expect(clippy::missing_panics_doc, reason = "a test panics to fail")]

    use crate::anchor::Anchor;
    use crate::audit::{Audit, Auditor, Noted};
    use crate::vm::{Fault, FoundIn, FrameKind};
    use std::collections::{HashMap, HashSet};

    const MUTATOR: u64 = 1;

    /// A collection that finds these activations: depth, crossing, kind.
    fn collection(auditor: &Auditor, chain: &[(usize, u64, FrameKind)]) -> Vec<(usize, Fault)> {
        let at = |&(depth, crossing, kind): &(usize, u64, FrameKind)| {
            let at = FoundIn { mutator: MUTATOR, depth, kind, anchor: Anchor::default(), call_site: None };
            (at, crossing, (false, false))
        };
        assert!(auditor.begin(MUTATOR, &chain.iter().map(at).collect::<Vec<_>>()));
        let noted = |(at, crossing, anchored)| Noted {
            at,
            crossing,
            anchored,
            frames: Vec::new(),
            slots: Vec::new(),
            pinned: Vec::new(),
            released: Vec::new(),
        };
        auditor.noted(MUTATOR, chain.iter().map(at).map(noted).collect());
        auditor.judge(Some(&HashSet::from([MUTATOR])), &HashSet::new(), &HashMap::new());
        let found = auditor.take_fresh();
        found.into_iter().map(|found| (found.activation.unwrap().depth, found.fault)).collect()
    }

    /// JDK-8331735, as the chain looks: a record without frames in place of all of them, and then they are back.
    #[test]
    fn an_activation_that_is_hidden_and_comes_back_in_its_crossing_is_found() {
        use FrameKind::{ForeignCall, ForeignThread};
        let auditor = Auditor::new(Audit::new(|reference: usize| reference));
        let call = [(1, 7, ForeignCall), (0, 5, ForeignCall)];
        assert_eq!(collection(&auditor, &call), []);
        assert_eq!(collection(&auditor, &[(0, 0, ForeignThread)]), []);
        assert_eq!(collection(&auditor, &[(0, 0, ForeignThread)]), []);
        let back = Fault::UndeadActivation { seen: 1, missed: 2, again: 4 };
        assert_eq!(collection(&auditor, &call), [(1, back), (0, back)]);
        assert_eq!(collection(&auditor, &call), [], "once");
    }

    /// Upcalls come and go: their activations are over, and the next at that depth is another.
    #[test]
    fn an_activation_that_has_ended_and_the_next_at_its_depth_are_not_taken_for_one() {
        use FrameKind::{ForeignCall, Safepoint};
        let auditor = Auditor::new(Audit::new(|reference: usize| reference));
        for crossing in 7..10 {
            assert_eq!(collection(&auditor, &[(1, crossing, ForeignCall), (0, 5, ForeignCall)]), []);
            assert_eq!(collection(&auditor, &[(0, 5, ForeignCall)]), []);
        }
        assert_eq!(collection(&auditor, &[(0, 6, Safepoint)]), []);
        assert_eq!(collection(&auditor, &[(0, 7, ForeignCall)]), []);
    }
}
