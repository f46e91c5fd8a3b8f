//! Compares what a collector finds in a stopped world with the model.

use super::machine::State;
use super::model::{Agent, Declared, Doing, Frame, Name, Said};
use super::program::Plan;
use core::fmt::Debug;
use core::ops::Range;
use reentry::testkit::{FaultSet, Heap, Ref, TestVm};
use reentry::{
    Activation, Anchor, ArgumentPlan, FrameKind, Report, RootVisitor, Slot, StoppedMutator, StoppedWorld,
};

/// The addresses of words of an agent's arena.
pub(super) fn address<F: FaultSet>(state: &State<F>, agent: usize, words: &Range<usize>) -> Range<usize> {
    state.word(agent, words.start)..state.word(agent, words.end)
}

/// What stands in an object.
///
/// # Errors
///
/// It is none.
pub(super) fn name(heap: &Heap, object: Ref) -> Result<Name, String> {
    let bytes = heap.bytes(object).map_err(|stale| stale.to_string())?;
    Ok(Name::from_le_bytes(bytes.try_into().map_err(|bytes| format!("an object with {bytes:?}"))?))
}

/// What the model would say of a report.
pub(super) fn said(report: &Report<'_>) -> Said {
    match report {
        Report::ActivationsSkipped { skipped, call_site } => {
            Said::Skipped { activations: *skipped, line: call_site.map(core::panic::Location::line) }
        }
        Report::UpcallErrorSuperseded { .. } => Said::Superseded,
        Report::ArgumentsLeaked { mutator, count } => {
            Said::ArgumentsLeaked { mutator: *mutator, count: *count }
        }
        other => Said::Other(other.to_string()),
    }
}

/// # Errors
///
/// They differ.
fn same<T: PartialEq + Debug>(what: impl FnOnce() -> String, found: T, expected: T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{}: {found:?}, not {expected:?}", what())) }
}

/// How a collector is told of an argument; not at all of a value that is kept.
fn plan(plan: Plan) -> Option<ArgumentPlan> {
    match plan {
        Plan::Root | Plan::UntilReleased | Plan::UntilFirstUpcall => Some(ArgumentPlan::Root),
        Plan::InPlace => Some(ArgumentPlan::RootInPlace),
        Plan::Pin => Some(ArgumentPlan::Pin),
        Plan::TransitivePin => Some(ArgumentPlan::TransitivePin),
        Plan::KeepAlive => None,
    }
}

/// Everything the world reports, by the way it is, in no order.
#[derive(Default, PartialEq, Eq, Debug)]
struct Reported {
    slots: Vec<Ref>,
    pinned: Vec<Ref>,
    transitively: Vec<Ref>,
    weak: Vec<Ref>,
}

impl RootVisitor<Ref> for Reported {
    fn slot(&mut self, slot: Slot<'_, Ref>) {
        self.slots.push(slot.load());
    }

    fn pinned(&mut self, reference: Ref) {
        self.pinned.push(reference);
    }

    fn transitively_pinned(&mut self, reference: Ref) {
        self.transitively.push(reference);
    }

    fn weak(&mut self, slot: Slot<'_, Ref>) {
        self.weak.push(slot.load());
    }
}

/// Compares everything.
///
/// # Errors
///
/// The first difference.
pub(super) fn compare<F: FaultSet>(
    state: &State<F>,
    stopped: &StoppedWorld<'_, TestVm<F>>,
    reports: &[Said],
) -> Result<(), String> {
    let mut found: Vec<_> = stopped.mutators().map(|mutator| mutator.id()).collect();
    let mut expected: Vec<_> = state.model.present().map(|(_, agent)| agent.id).collect();
    found.sort_unstable();
    expected.sort_unstable();
    same(|| "the mutators".to_owned(), found, expected)?;
    same(|| "the reports".to_owned(), reports, &state.model.reports)?;
    for mutator in stopped.mutators() {
        let mut agents = state.model.present();
        let (number, agent) = agents.find(|(_, agent)| agent.id == mutator.id()).expect("compared above");
        compare_mutator(state, stopped, &mutator, number, agent)
            .map_err(|why| format!("mutator {}: {why}", agent.id))?;
    }
    let mut reported = Reported::default();
    stopped.enumerate(&mut reported);
    let heap = stopped.vm().heap();
    let names = |references: &[Ref]| -> Result<Vec<Name>, String> {
        let mut names = references.iter().map(|r| name(heap, *r)).collect::<Result<Vec<_>, _>>()?;
        names.sort_unstable();
        Ok(names)
    };
    let roots = state.model.roots();
    let expected = |wanted: &[Option<ArgumentPlan>]| {
        let mut names: Vec<_> =
            roots.iter().filter(|(is, _)| wanted.contains(&plan(*is))).map(|(_, name)| *name).collect();
        names.sort_unstable();
        names
    };
    let slots = [Some(ArgumentPlan::Root), Some(ArgumentPlan::RootInPlace)];
    same(|| "all slots".to_owned(), names(&reported.slots)?, expected(&slots))?;
    same(|| "all pins".to_owned(), names(&reported.pinned)?, expected(&[Some(ArgumentPlan::Pin)]))?;
    let transitive = [Some(ArgumentPlan::TransitivePin)];
    same(|| "all transitive pins".to_owned(), names(&reported.transitively)?, expected(&transitive))?;
    let mut weak: Vec<_> = state.model.weak.iter().copied().flatten().collect();
    weak.sort_unstable();
    same(|| "all weak handles".to_owned(), names(&reported.weak)?, weak)
}

/// # Errors
///
/// The first difference.
fn compare_mutator<F: FaultSet>(
    state: &State<F>,
    stopped: &StoppedWorld<'_, TestVm<F>>,
    mutator: &StoppedMutator<'_, TestVm<F>>,
    number: usize,
    agent: &Agent,
) -> Result<(), String> {
    mutator.validate().map_err(|damage| damage.to_string())?;
    same(|| "activations".to_owned(), mutator.activations().count(), agent.frames.len())?;
    for ((depth, frame), activation) in agent.frames.iter().enumerate().rev().zip(mutator.activations()) {
        compare_activation(state, stopped, number, frame, &activation)
            .and_then(|()| same(|| "depth".to_owned(), activation.depth(), depth))
            .map_err(|why| format!("activation {depth}: {why}"))?;
    }
    Ok(())
}

/// # Errors
///
/// The first difference.
fn compare_activation<F: FaultSet>(
    state: &State<F>,
    stopped: &StoppedWorld<'_, TestVm<F>>,
    number: usize,
    frame: &Frame,
    activation: &Activation<'_, TestVm<F>>,
) -> Result<(), String> {
    let kind = match frame.doing {
        Doing::Running => FrameKind::Safepoint,
        Doing::InCall => FrameKind::ForeignCall,
        Doing::Resuming => FrameKind::Resuming,
        Doing::Suspended => FrameKind::Suspended,
        Doing::Nothing => FrameKind::ForeignThread,
    };
    same(|| "kind".to_owned(), activation.kind(), kind)?;
    same(|| "segment".to_owned(), activation.segment().is_some(), frame.doing != Doing::Nothing)?;
    if frame.doing != Doing::Nothing {
        same(|| "line".to_owned(), activation.call_site().map(|site| site.line()), Some(frame.line))?;
        let found = activation.anchor();
        match frame.saved.map(|saved| saved.map(|word| state.word(number, word))) {
            Some([sp, fp]) => same(|| "anchor".to_owned(), found, Anchor::new(0, sp, fp))?,
            // The machine's stack pointer, which no arena contains.
            None => same(|| "anchor".to_owned(), (found.pc, found.fp), (0, 0))?,
        }
    }
    let newest_first = frame.memory.iter().rev().chain(frame.declared.iter().rev());
    let expected: Vec<_> = newest_first
        .filter_map(|declared: &Declared| {
            let place = (declared.plan == Plan::InPlace).then(|| state.word(number, declared.word));
            Some((plan(declared.plan)?, Ok(declared.object), place))
        })
        .collect();
    let mut found = Vec::new();
    activation.for_each_declared(|declared| {
        let place = (declared.plan == ArgumentPlan::RootInPlace).then(|| declared.slot.address());
        found.push((declared.plan, name(stopped.vm().heap(), declared.slot.load()), place));
    });
    same(|| "declared".to_owned(), found, expected)
}

/// Collects, compares what became of the objects, and notes where they are.
///
/// # Errors
///
/// The first difference, or an undead root.
pub(super) fn collect<F: FaultSet>(
    state: &mut State<F>,
    stopped: &StoppedWorld<'_, TestVm<F>>,
) -> Result<(), String> {
    let (vm, heap) = (stopped.vm(), stopped.vm().heap());
    let pinned = state.model.pinned();
    let before = state.model.objects.len();
    let done = vm.collect(stopped).map_err(|undead| undead.to_string())?;
    state.model.collect();
    let live = state.model.objects.len();
    let expected = (live, before - live, pinned.len(), live - pinned.len());
    let found = (done.live, done.freed, done.pinned, done.moved);
    same(|| "objects alive, freed, pinned and moved".to_owned(), found, expected)?;
    let mut reported = Reported::default();
    stopped.enumerate(&mut reported);
    let mut next: Vec<_> = reported.slots;
    next.extend(reported.pinned);
    next.extend(reported.transitively);
    let old = core::mem::take(&mut state.refs);
    while let Some(object) = next.pop() {
        state.refs.insert(name(heap, object)?, object);
        let fields = heap.field_count(object).map_err(|stale| stale.to_string())?;
        next.extend((0..fields).filter_map(|field| heap.field(object, field).ok()));
    }
    same(|| "objects found".to_owned(), state.refs.keys().copied().collect(), state.model.objects.clone())?;
    for (object, reference) in &state.refs {
        same(
            || format!("object {object} stayed"),
            old.get(object) == Some(reference),
            pinned.contains(object),
        )?;
    }
    Ok(())
}
