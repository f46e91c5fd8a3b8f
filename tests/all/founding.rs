//! The founding case in its four phases: Go's Test7978 as the fix of Go #17785 left it, and its variations.
//!
//! One atomic word drives two threads; nothing else synchronises them. Odd values are set by the mutator's thread, in C, which
//! then spins; even ones by the collector's, after a check.
//!
//! | word | mutator's thread | check |
//! |---|---|---|
//! | 1 | in C, before any callback | 1: the call's frame is the newest |
//! | 3 | in C, called by a callback that has moved the operand stack and allocated | 2: the callback's frames above the caller's |
//! | 5 | in C, after the last callback: the caller's record is re-instated | 3: **where the founding bug crashed** |
//! | 7 | in another foreign call, after the first | 4: nothing of the first is left |
//!
//! Each check collects, which moves every object that is not pinned, and looks at the stopped mutator.

use crate::programs::{RECURSION_64, recursion};
use crate::witness::View;
use core::ops::Range;
use core::panic::AssertUnwindSafe;
use core::sync::atomic::{AtomicU32, Ordering};
use reentry::faults::Faults;
use reentry::testkit::bytecode::{Function, Program, StackMove};
use reentry::testkit::heap::Fate;
use reentry::testkit::{
    Correct, FaultSet, Guard, NativeArgument, NativeResult, Ref, StackMoves, TestVm, UndeadRoot, Value, Walk,
};
use reentry::{ArgumentPlan, FenceStrategy, FrameKind, Mutator, UpcallClosure, World};
use reentry_foreign::{foreign_advance, foreign_founding, foreign_sum_through_slot, foreign_sum_twice};
use std::panic::catch_unwind;
use std::sync::{Arc, Mutex, PoisonError};

pub(crate) const TEXT: &[u8] = b"the founding argument";
const PAIR: &[u8] = b"an argument with a field";
const CHILD: &[u8] = b"reachable through the second argument";
const CALLBACKS_OWN: &[u8] = b"allocated in the callback";

/// Whether anything but the foreign call refers to its arguments: if so, a collection that misses them moves them, else it frees them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Elsewhere {
    Global,
    Nowhere,
}

/// What a callback does to the operand stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum CallbackStack {
    /// Recurses through 64 frames of 1 KiB, and shrinks the stack again before it returns.
    Grows,
    /// Shrinks it, again and again: the caller had grown it.
    Shrinks,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    guard: Guard,
    walk: Walk,
    moves: StackMoves,
    stack: CallbackStack,
    elsewhere: Elsewhere,
    callbacks: u32,
    fence: FenceStrategy,
}

impl Case {
    fn new(guard: Guard, walk: Walk) -> Self {
        Self {
            guard,
            walk,
            moves: StackMoves::EveryCollection,
            stack: CallbackStack::Grows,
            elsewhere: Elsewhere::Global,
            callbacks: 1,
            fence: FenceStrategy::probe(),
        }
    }
}

/// What one check found.
#[derive(Debug)]
enum Finding {
    Clean(View),
    Undead(UndeadRoot),
    Panicked(String),
}

impl Finding {
    #[track_caller]
    fn view(&self) -> &View {
        match self {
            Self::Clean(view) => view,
            other => panic!("the check failed: {other:?}"),
        }
    }
}

/// What one run of the case showed.
struct Run {
    /// The word at each check, and what it found.
    checks: Vec<(u32, Finding)>,
    /// Where the operand stack was at the beginning and at the end of each callback.
    stacks: Vec<(Range<usize>, Range<usize>)>,
    /// The arguments before the call: text, pair, and the pair's field.
    before: [Ref; 3],
    /// The pc of the founding call, X.
    call_site: usize,
    /// What the program gave back: what C read through its arguments after the last callback.
    result: Option<Value>,
    /// What the arguments are when all is over.
    afterwards: [Result<(), Fate>; 2],
}

/// One spinning pair of threads at a time: the machine may have no more than two processors.
pub(crate) static TURN: Mutex<()> = Mutex::new(());

const FOUNDING: u16 = 0;
const ADVANCE: u16 = 1;

/// The program, and the pc of the founding call in its `main`.
fn program(case: Case) -> (Program, usize) {
    let mut callback = Function::builder("callback");
    let levels = callback.integer_slot();
    let store = callback.integer_slot();
    let wait = callback.integer_slot();
    let own = callback.reference_slot();
    match case.stack {
        CallbackStack::Grows => {
            callback.integer(levels, 64);
            callback.call(None, 0, &[levels]);
        }
        CallbackStack::Shrinks => {
            for _ in 0..5 {
                callback.move_stack(StackMove::Shrink);
            }
        }
    }
    callback.bytes(own, CALLBACKS_OWN);
    callback.integer(store, 3);
    callback.integer(wait, 4);
    callback.foreign(None, ADVANCE, &[store, wait]);
    callback.check(own);
    for _ in 0..8 {
        callback.move_stack(StackMove::Shrink);
    }
    callback.leave();

    let mut main = Function::builder("main");
    let text = main.reference_parameter();
    let pair = main.reference_parameter();
    let levels = main.integer_slot();
    let read = main.integer_slot();
    let store = main.integer_slot();
    let wait = main.integer_slot();
    if case.stack == CallbackStack::Shrinks {
        main.integer(levels, 64);
        main.call(None, 0, &[levels]);
    }
    // Neither argument is used after the call: both are live at X and dead at Y.
    let call_site = main.foreign(Some(read), FOUNDING, &[text, pair]);
    main.integer(store, 7);
    main.integer(wait, 8);
    main.foreign(None, ADVANCE, &[store, wait]);
    main.give_back(read);
    let program = Program::new(vec![recursion(0), callback.finish(), main.finish()]).unwrap();
    (program, call_site)
}

/// Runs the case and reports what the checks found. Judges nothing.
fn run<F: FaultSet>(case: Case) -> Run {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let word = Arc::new(AtomicU32::new(0));
    let stacks = Arc::new(Mutex::new(Vec::new()));
    let (program, call_site) = program(case);
    let founding = {
        let (word, stacks) = (Arc::clone(&word), Arc::clone(&stacks));
        move |vm: &TestVm<F>, arguments: &reentry::testkit::NativeArguments<'_>| {
            let world = vm.world().unwrap();
            let callback = UpcallClosure::new(&world, |mutator: &mut Mutator<TestVm<F>>| {
                let before = mutator.local().stack_range();
                TestVm::call(mutator, "callback", &[]).unwrap();
                stacks.lock().unwrap().push((before, mutator.local().stack_range()));
            });
            // SAFETY: the word and the closure outlive the call, and the data is the closure's.
            unsafe {
                foreign_founding(&raw const *word, callback.data_first(), callback.data(), case.callbacks)
            };
            if F::FAULTS != Faults::NONE {
                return NativeResult::Nothing; // what C was given may be gone
            }
            foreign_reads(vm, case.guard, arguments.get(0))
        }
    };
    let advance = {
        let word = Arc::clone(&word);
        move |_: &TestVm<F>, arguments: &reentry::testkit::NativeArguments<'_>| {
            let value = |index| u32::try_from(arguments.integer(index)).unwrap();
            // SAFETY: the word outlives the call.
            unsafe { foreign_advance(&raw const *word, value(0), value(1)) };
            NativeResult::Nothing
        }
    };
    let world = TestVm::builder_without(program)
        .guard(case.guard)
        .walk(case.walk)
        .stack_moves(case.moves)
        .native(founding)
        .native(advance)
        .build_world_with(World::builder().fence(case.fence));
    let vm = world.vm();
    let child = vm.heap().alloc(&[], CHILD);
    let before = [vm.heap().alloc(&[], TEXT), vm.heap().alloc(&[child], PAIR), child];
    if case.elsewhere == Elsewhere::Global {
        vm.add_global(before[0]);
        vm.add_global(before[1]);
    }

    let mut checks = Vec::new();
    let result = std::thread::scope(|scope| {
        let mutator = scope.spawn(|| {
            let mut mutator = world.attach().unwrap();
            let arguments = [Value::Reference(before[0]), Value::Reference(before[1])];
            TestVm::call(&mut mutator, "main", &arguments).unwrap()
        });
        loop {
            let phase = word.load(Ordering::Acquire);
            if phase % 2 == 1 {
                checks.push((phase, check(&world)));
                word.store(phase + 1, Ordering::Release);
            } else if mutator.is_finished() {
                break mutator.join();
            } else {
                std::thread::yield_now();
            }
        }
    });
    let result = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    // Nobody is attached: what lives now lives through the globals alone.
    let last = world.pause(|stopped| vm.collect(stopped));
    let afterwards = [TEXT, PAIR].map(|bytes| {
        let number = usize::from(bytes == PAIR);
        match case.elsewhere {
            Elsewhere::Global if last.is_ok() => {
                assert_eq!(vm.heap().bytes(vm.global(number)).as_deref(), Ok(bytes));
                Ok(())
            }
            _ => vm.heap().check(before[number]).map_err(|stale| stale.fate),
        }
    });
    let stacks = core::mem::take(&mut *stacks.lock().unwrap());
    Run { checks, stacks, before, call_site, result, afterwards }
}

/// The sum of an argument's bytes, read twice by C through what it was given; 0 where it was given nothing that follows the object.
fn foreign_reads<F: FaultSet>(vm: &TestVm<F>, guard: Guard, argument: NativeArgument) -> NativeResult {
    let NativeArgument::Object { reference, bytes, slot } = argument else { panic!("an object was passed") };
    let sum = match (guard, slot) {
        // SAFETY: pinned: the bytes are where they were.
        (Guard::Pins | Guard::TransitivePins, _) => unsafe { foreign_sum_twice(bytes, TEXT.len(), None) },
        (Guard::RootsByValue, Some(slot)) => {
            let (slot, offset) = (slot.as_ptr().cast_const().cast(), payload_offset(vm));
            // SAFETY: the slot is current, no collection comes in between, and the payload stands `offset` bytes behind the header.
            unsafe { foreign_sum_through_slot(slot, offset, TEXT.len(), None) }
        }
        _ => return NativeResult::Nothing,
    };
    assert!(!reference.is_null());
    NativeResult::Integer(i64::try_from(sum).unwrap())
}

/// How far an object's bytes are behind its reference, for an object without fields.
fn payload_offset<F: FaultSet>(vm: &TestVm<F>) -> usize {
    let object = vm.heap().alloc(&[], b"any");
    vm.heap().payload(object).unwrap().addr() - object.address()
}

/// What C finds when it sums the text twice.
fn sum_of_text() -> i64 {
    2 * TEXT.iter().map(|byte| i64::from(*byte)).sum::<i64>()
}

/// Collects, and looks at the only mutator.
fn check<F: FaultSet>(world: &World<TestVm<F>>) -> Finding {
    let vm = world.vm();
    let found = catch_unwind(AssertUnwindSafe(|| {
        world.pause(|stopped| {
            vm.collect(stopped)?;
            let mut mutators = stopped.mutators();
            let view = View::of(vm, &mutators.next().unwrap());
            assert!(mutators.next().is_none());
            Ok(view)
        })
    }));
    match found {
        Ok(Ok(view)) => Finding::Clean(view),
        Ok(Err(undead)) => Finding::Undead(undead),
        Err(panic) => {
            Finding::Panicked(panic.downcast_ref::<String>().map_or_else(String::new, String::clone))
        }
    }
}

/// Judges a run in which everything must be right.
#[track_caller]
fn assert_sound(case: Case, run: &Run) {
    let callbacks = case.callbacks as usize;
    let mut words = vec![1];
    words.resize(1 + callbacks, 3);
    words.extend([5, 7]);
    assert_eq!(run.checks.iter().map(|(word, _)| *word).collect::<Vec<_>>(), words, "{case:?}");
    let views: Vec<&View> = run.checks.iter().map(|(_, finding)| finding.view()).collect();
    let caller = (0, FrameKind::ForeignCall, "main", run.call_site);

    // The chain at each check.
    assert_eq!(views[0].summary(), [caller], "{case:?}");
    for view in &views[1..=callbacks] {
        assert_eq!(view.chain.len(), 2, "{case:?}");
        let (depth, kind, function, _) = view.chain[0].summary();
        assert_eq!((depth, kind, function), (1, FrameKind::ForeignCall, "callback"), "{case:?}");
        assert_eq!(view.chain[1].summary(), caller, "{case:?}");
        assert!(view.find(CALLBACKS_OWN).is_some(), "{case:?}");
    }
    assert_eq!(views[callbacks + 1].summary(), [caller], "the very record that was set aside: {case:?}");
    let last = views[callbacks + 2];
    assert_eq!((last.chain.len(), &*last.chain[0].place.0), (1, "main"), "{case:?}");
    assert_ne!(last.chain[0].place.1, run.call_site, "{case:?}");

    // The caller's anchor is in the stack as it is now, at the same place in it (I6).
    let offsets = |view: &View| {
        let anchor = view.chain.last().unwrap().anchor;
        assert!(view.stack.contains(&anchor.fp) && view.stack.contains(&anchor.sp), "{case:?}");
        (anchor.fp - view.stack.start, anchor.sp - view.stack.start)
    };
    for view in &views[1..callbacks + 2] {
        assert_eq!(offsets(view), offsets(views[0]), "{case:?}");
    }

    // The operand stack really moved.
    assert_eq!(run.stacks.len(), callbacks);
    for (before, after) in &run.stacks {
        assert!(before.end <= after.start || after.end <= before.start, "{case:?}");
    }
    match case.stack {
        CallbackStack::Grows => {
            assert!(run.stacks[0].0.len() < RECURSION_64 && RECURSION_64 < views[1].stack.len(), "{case:?}");
        }
        CallbackStack::Shrinks => {
            let (before, after) = &run.stacks[0];
            assert!(RECURSION_64 < before.len() && after.len() < RECURSION_64 / 32, "{case:?}");
        }
    }

    assert_arguments(case, run, &views);
}

/// The arguments hold the right values at their new addresses, or at the same ones if they are pinned (I2).
#[track_caller]
fn assert_arguments(case: Case, run: &Run, views: &[&View]) {
    let callbacks = case.callbacks as usize;
    let [mut text, mut pair, _] = run.before;
    for (number, view) in views[..callbacks + 2].iter().enumerate() {
        let (new_text, new_pair) = (view.find(TEXT).unwrap(), view.find(PAIR).unwrap());
        match case.guard {
            Guard::Pins | Guard::TransitivePins => assert_eq!((new_text, new_pair), (text, pair), "{case:?}"),
            _ => assert!(new_text != text && new_pair != pair, "check {number} of {case:?} moved nothing"),
        }
        let plan = match case.guard {
            Guard::Pins => Some(ArgumentPlan::Pin),
            Guard::TransitivePins => Some(ArgumentPlan::TransitivePin),
            Guard::RootsInPlace => Some(ArgumentPlan::RootInPlace),
            Guard::RootsByValue => Some(ArgumentPlan::Root),
            Guard::Nothing => None,
        };
        let expected: Vec<_> =
            plan.into_iter().flat_map(|plan| [(plan, new_pair), (plan, new_text)]).collect();
        assert_eq!(view.chain.last().unwrap().declared, expected, "check {number} of {case:?}");
        (text, pair) = (new_text, new_pair);
    }
    let last = views[callbacks + 2];
    assert_eq!(last.chain[0].declared, [], "the first call is over: {case:?}");
    assert_eq!(last.find(TEXT), None, "{case:?}");
    let read = match case.guard {
        Guard::Pins | Guard::TransitivePins | Guard::RootsByValue => sum_of_text(),
        _ => 0,
    };
    assert_eq!(run.result, Some(Value::Integer(read)), "{case:?}");
    match case.elsewhere {
        Elsewhere::Global => assert_eq!(run.afterwards, [Ok(()), Ok(())], "{case:?}"),
        // Free to die at once: check 4 found nothing that held them.
        Elsewhere::Nowhere => {
            assert!(run.afterwards.iter().all(|fate| fate.is_err()), "{case:?}: {:?}", run.afterwards);
        }
    }
}

/// Every guard with every walk it is right for.
pub(crate) const SOUND: [(Guard, Walk); 8] = [
    (Guard::Pins, Walk::Record),
    (Guard::Pins, Walk::Legacy),
    (Guard::TransitivePins, Walk::Record),
    (Guard::TransitivePins, Walk::Legacy),
    (Guard::RootsInPlace, Walk::Record),
    (Guard::RootsInPlace, Walk::Legacy),
    (Guard::RootsByValue, Walk::Record),
    (Guard::Nothing, Walk::Record),
];

/// Go's Test7978, with the stack growth that the fix of Go #17785 added to it: every guard, both walks, arguments that the missed
/// collection would have moved and ones it would have freed.
#[test]
fn arguments_are_right_at_every_check_of_the_founding_case() {
    for (guard, walk) in SOUND {
        for elsewhere in [Elsewhere::Global, Elsewhere::Nowhere] {
            for moves in [StackMoves::EveryCollection, StackMoves::OnRequest] {
                let case = Case { elsewhere, moves, ..Case::new(guard, walk) };
                assert_sound(case, &run::<Correct>(case));
            }
        }
    }
}

/// Go #69085: a frame pointer kept as a number went stale when a callback shrank the stack.
#[test]
fn a_stack_shrunk_in_the_callback_takes_the_callers_record_with_it() {
    for (guard, walk) in SOUND {
        for moves in [StackMoves::EveryCollection, StackMoves::OnRequest] {
            let case = Case { stack: CallbackStack::Shrinks, moves, ..Case::new(guard, walk) };
            assert_sound(case, &run::<Correct>(case));
        }
    }
}

/// Go's Test7978 again: the record is set aside and re-instated as often as C calls back.
#[test]
fn arguments_are_right_after_two_callbacks_and_after_a_hundred() {
    for (guard, walk) in [(Guard::Pins, Walk::Legacy), (Guard::RootsInPlace, Walk::Legacy)] {
        for callbacks in [2, 100] {
            let case = Case { callbacks, ..Case::new(guard, walk) };
            assert_sound(case, &run::<Correct>(case));
        }
    }
}

/// The founding case does not hang on how crossings are ordered against pauses.
#[test]
fn the_founding_case_holds_with_every_fence_strategy() {
    let strategies = [FenceStrategy::Asymmetric, FenceStrategy::Symmetric];
    let supported: Vec<_> = strategies.into_iter().filter(|fence| fence.is_supported()).collect();
    assert!(supported.contains(&FenceStrategy::Symmetric));
    for fence in supported {
        let case =
            Case { fence, elsewhere: Elsewhere::Nowhere, ..Case::new(Guard::RootsInPlace, Walk::Legacy) };
        assert_sound(case, &run::<Correct>(case));
    }
}

/// Go #17785 itself: with neither half of the fix, check 3 finds the arguments live again, and names the slot, both pcs and what
/// became of the object. Every time, not by chance.
#[test]
fn with_neither_guard_nor_record_walk_check_3_finds_an_undead_root_every_time() {
    for repetition in 0..50 {
        for elsewhere in [Elsewhere::Global, Elsewhere::Nowhere] {
            let case = Case { elsewhere, ..Case::new(Guard::Nothing, Walk::Legacy) };
            let run = run::<Correct>(case);
            let [(1, first), (3, second), (5, third), (7, _)] = &run.checks[..] else {
                panic!("{:?}", run.checks)
            };
            assert_eq!((first.view().chain.len(), second.view().chain.len()), (1, 2));
            let Finding::Undead(undead) = third else {
                panic!("repetition {repetition} found nothing: {third:?}")
            };
            assert_eq!(undead.slot, "slot 0 of frame `main`, mutator 1");
            assert_eq!((undead.collection, undead.pc), (3, Some(run.call_site)));
            assert_eq!(undead.before, Some((2, run.call_site + 1)));
            match (elsewhere, undead.stale.fate) {
                (Elsewhere::Global, Fate::Moved { collection: 2, .. })
                | (Elsewhere::Nowhere, Fate::Freed { collection: 2 }) => {}
                (_, fate) => panic!("{fate}"),
            }
        }
    }
}

/// Saved anchors that do not follow the operand stack.
enum NotRelocated {}

// SAFETY: for tests that expect the failure, which is a panic of the scanner: it checks each anchor before it is used.
unsafe impl FaultSet for NotRelocated {
    const FAULTS: Faults = Faults::NO_RELOCATION;
}

/// The teeth of I6 (Go #69085): without relocation the caller's frames cannot be found once the callback has moved the stack.
#[test]
fn without_relocation_the_callers_anchor_is_undead_from_check_2_on() {
    for stack in [CallbackStack::Grows, CallbackStack::Shrinks] {
        let case = Case { stack, moves: StackMoves::OnRequest, ..Case::new(Guard::Pins, Walk::Record) };
        let run = run::<NotRelocated>(case);
        let [(1, Finding::Clean(_)), (3, second), (5, third), _] = &run.checks[..] else {
            panic!("{:?}", run.checks)
        };
        for finding in [second, third] {
            let Finding::Panicked(message) = finding else { panic!("{finding:?}") };
            assert!(
                message.starts_with("undead anchor: ") && message.contains("of activation #0"),
                "{message}"
            );
            assert!(message.ends_with("but in one it has left: it was not relocated"), "{message}");
        }
    }
}

/// Declared arguments forgotten when an upcall returns.
enum DroppedByUpcall {}

// SAFETY: for tests that expect the failure: every reference is checked before it is used, and C is given nothing to read.
unsafe impl FaultSet for DroppedByUpcall {
    const FAULTS: Faults = Faults::ROOTS_DROPPED_BY_UPCALL;
}

/// The teeth of I2 (Go 2014: nothing was saved round a callback): a guard that an upcall's return empties protects nothing from a
/// second upcall. Check 3 fails by name, as with no guard at all.
#[test]
fn without_its_declared_arguments_a_call_is_undead_after_its_second_upcall() {
    for guard in [Guard::Pins, Guard::TransitivePins, Guard::RootsInPlace] {
        let case = Case { callbacks: 2, ..Case::new(guard, Walk::Legacy) };
        let run = run::<DroppedByUpcall>(case);
        let [(1, first), (3, second), (3, third), (5, fourth), _] = &run.checks[..] else {
            panic!("{:?}", run.checks)
        };
        assert_eq!(first.view().chain.last().unwrap().declared.len(), 2);
        assert_eq!(second.view().chain.last().unwrap().declared.len(), 2);
        assert_eq!(third.view().chain.last().unwrap().declared, [], "forgotten");
        let Finding::Undead(undead) = fourth else { panic!("{fourth:?}") };
        assert_eq!(undead.slot, "slot 0 of frame `main`, mutator 1");
        assert_eq!((undead.pc, undead.before), (Some(run.call_site), Some((3, run.call_site + 1))));
    }
}

/// The same fault with a walk that keeps the arguments alive: a pinned object moves under C's hands at check 3. (Go #16035: alive
/// is not immovable.)
#[test]
fn without_its_declared_arguments_a_call_does_not_hold_its_pins_after_an_upcall() {
    let run = run::<DroppedByUpcall>(Case::new(Guard::Pins, Walk::Record));
    let found = |check: usize| run.checks[check].1.view().find(TEXT).unwrap();
    assert_eq!((found(0), found(1)), (run.before[0], run.before[0]));
    assert_ne!(found(2), run.before[0], "check 3 moved what C has the address of");
}
