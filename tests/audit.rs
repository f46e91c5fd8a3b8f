//! The undead-root audit: it finds the founding bug and its siblings, each in a VM that has it, and is silent on the same VM put right.
#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

use core::cell::{Cell, RefCell};
use core::ffi::c_int;
use core::panic::AssertUnwindSafe;
use core::ptr::NonNull;
use reentry::faults::Faults;
use reentry::testkit::bytecode::{Function, Program, StackMove};
use reentry::testkit::stack::OperandStack;
use reentry::testkit::{Correct, FaultSet, Guard, Heap, NativeResult, Ref, StackMoves, TestVm, Value, Walk};
use reentry::{
    Anchor, ArgumentPlan, Audit, AuditLog, Capture, Fault, Finding, Mutator, Report, RootVisitor, Segment,
    Slot, StackEnd, StackScanner, StoppedWorld, UpcallClosure, Vm, World, layout,
};
use reentry_foreign::foreign_call_back_last_and_go_on;
use std::panic::catch_unwind;
use std::sync::Mutex;
use std::time::Instant;

#[path = "all/emulator.rs"]
mod emulator;

fn audit() -> Audit {
    Audit::new(Ref::address)
}

// The founding case, in the reference VM.

#[derive(Clone, Copy, Debug)]
struct Case {
    guard: Guard,
    walk: Walk,
    /// What the callback does to the operand stack.
    stack: Option<StackMove>,
    moves: StackMoves,
    /// Whether there is a collection in C before the first callback.
    before: bool,
    callbacks: usize,
    /// Whether a pin that outlives calls holds the arguments too.
    pinned_elsewhere: bool,
}

impl Case {
    fn new(guard: Guard, walk: Walk) -> Self {
        Self {
            guard,
            walk,
            stack: None,
            moves: StackMoves::EveryCollection,
            before: true,
            callbacks: 1,
            pinned_elsewhere: false,
        }
    }
}

/// What the audit has found, the pc of the founding call in the anchor's form, and how many reports the VM was given.
struct Run {
    log: AuditLog,
    x: usize,
    reported: usize,
}

/// `main(text, pair)`: C is called with both, which nothing uses afterwards. It calls back; the callback may move the stack, and collects.
fn run<F: FaultSet>(case: Case) -> Run {
    let mut callback = Function::builder("callback");
    for _ in 0..3 {
        if let Some(how) = case.stack {
            callback.move_stack(how);
        }
    }
    callback.collect();
    callback.leave();
    let mut main = Function::builder("main");
    let text = main.reference_parameter();
    let pair = main.reference_parameter();
    if case.stack == Some(StackMove::Shrink) {
        for _ in 0..4 {
            main.move_stack(StackMove::Grow);
        }
    }
    let x = main.foreign(None, 0, &[text, pair]);
    main.leave();
    let program = Program::new(vec![callback.finish(), main.finish()]).unwrap();
    // A collection that fails has panicked, or gives the undead root it found: both are what the audit is asked about.
    let collect = |vm: &TestVm<F>| {
        let world = vm.world().unwrap();
        drop(catch_unwind(AssertUnwindSafe(|| world.pause(|stopped| vm.collect(stopped)))));
    };
    let founding = move |vm: &TestVm<F>, _: &reentry::testkit::NativeArguments<'_>| {
        if case.before {
            collect(vm);
        }
        let world = vm.world().unwrap();
        let callback = UpcallClosure::new(&world, |mutator: &mut Mutator<TestVm<F>>, x: c_int| {
            drop(catch_unwind(AssertUnwindSafe(|| TestVm::call(mutator, "callback", &[]))));
            x
        });
        for _ in 0..case.callbacks {
            // SAFETY: the closure outlives the call, and the data is its own.
            unsafe { foreign_call_back_last_and_go_on(callback.data_last(), 1, callback.data()) };
        }
        collect(vm);
        NativeResult::Nothing
    };
    let world = TestVm::builder_without(program)
        .guard(case.guard)
        .walk(case.walk)
        .stack_moves(case.moves)
        .on_report(|_| ())
        .native(founding)
        .build_world_with(World::builder().audit(audit()));
    let heap = world.vm().heap();
    let [text, pair] = [heap.alloc(&[], b"text"), heap.alloc(&[Ref::NULL], b"pair")];
    world.vm().add_global(text);
    world.vm().add_global(pair);
    let mut mutator = world.attach().unwrap();
    let arguments = [Value::Reference(text), Value::Reference(pair)];
    let mut pinner = world.pinner();
    if case.pinned_elsewhere {
        mutator.pin_with(&mut pinner, text).unwrap();
        mutator.pin_with(&mut pinner, pair).unwrap();
    }
    // The arguments may be stale by now, which the VM says too.
    drop(TestVm::call(&mut mutator, "main", &arguments));
    drop(mutator);
    let x = (2 << 20) | x;
    assert_eq!(world.vm().location(Anchor::new(x, 0, 0)).unwrap().0, "main");
    let reports = world.vm().take_reports();
    let reported = reports.iter().filter(|report| report.starts_with("audit: ")).count();
    Run { log: world.audit().unwrap(), x, reported }
}

/// What was found, by kind.
fn kinds(log: &AuditLog) -> Vec<&'static str> {
    log.findings.iter().map(kind).collect()
}

fn kind(finding: &Finding) -> &'static str {
    match finding.fault {
        Fault::Undead { .. } => "undead",
        Fault::Lost { .. } => "lost",
        Fault::Late { .. } => "late",
        Fault::Stale { .. } => "stale",
        Fault::PinMoved { .. } => "pin moved",
        Fault::MovedUntold { .. } => "moved untold",
        Fault::StaleAnchor { .. } => "stale anchor",
        Fault::UndeadActivation { .. } => "undead activation",
        _ => "unknown",
    }
}

#[track_caller]
fn assert_silent(log: &AuditLog) {
    assert!(log.findings.is_empty(), "{}", log.findings[0]);
    assert_eq!(log.further, 0);
    assert!(log.collections >= 2, "{log:?}");
}

/// Go #17785: live at X, dead at Y while the callback runs, live again at X.
#[test]
fn the_founding_bug_is_named_with_its_slot_three_collections_both_pcs_and_the_call() {
    let Run { log, x, reported } = run::<Correct>(Case::new(Guard::Nothing, Walk::Legacy));
    assert_eq!(kinds(&log), ["lost", "lost", "undead", "undead"]);
    assert_eq!((log.further, log.collections, reported), (0, 3, 4));
    for undead in &log.findings[2..] {
        let Fault::Undead { seen, missed, again } = undead.fault else { panic!("{undead}") };
        assert_eq!((seen.collection, seen.pc), (1, Some(x)), "X");
        assert_eq!((missed.collection, missed.pc), (2, Some(x + 1)), "Y");
        assert_eq!((again.collection, again.pc), (3, Some(x)), "X");
        let (at, slot) = (undead.activation.unwrap(), undead.slot.unwrap());
        assert_eq!((at.mutator, at.depth, at.anchor.pc), (1, 0, x));
        assert!(at.call_site.unwrap().file().ends_with("interpreter.rs"));
        assert_eq!((slot.declared, slot.frame.unwrap().fp), (None, at.anchor.fp));
        assert!(undead.chain.contains("  #0 foreign call") && undead.chain.ends_with("<-- here"), "{undead}");
    }
    let places: Vec<_> = log.findings[2..]
        .iter()
        .map(|undead| undead.slot.unwrap().address - undead.activation.unwrap().anchor.fp)
        .collect();
    assert_eq!(places, [24, 32], "behind the three words of the frame's header");
    let said = log.findings[2].to_string();
    for part in [
        &*format!("fp+24 of the frame walked at pc {x:#x}"),
        &format!("live in collection 1 at pc {x:#x}, dead in collection 2 at pc {:#x}", x + 1),
        &format!("live again in collection 3 at pc {x:#x}: an undead root"),
        "activation #0 of mutator 1 (foreign call at ",
    ] {
        assert!(said.contains(part), "`{part}` is not in: {said}");
    }
    // While the callback runs, the drawing has two activations.
    assert!(log.findings[0].chain.contains("<-- here\n  #1 safepoint"), "{}", log.findings[0]);
}

/// As in Go, where nothing had collected in C before: the first walk of the crossing is the one at Y.
#[test]
fn the_founding_bug_is_found_without_a_collection_before_the_callback() {
    let case = Case { before: false, ..Case::new(Guard::Nothing, Walk::Legacy) };
    let Run { log, x, .. } = run::<Correct>(case);
    assert_eq!(kinds(&log), ["late", "late"]);
    for late in &log.findings {
        let Fault::Late { missed, seen } = late.fault else { panic!("{late}") };
        assert_eq!((missed.collection, missed.pc), (1, Some(x + 1)));
        assert_eq!((seen.collection, seen.pc), (2, Some(x)));
    }
}

/// A root by value keeps the object, and not the VM's own copy of the reference.
#[test]
fn a_root_by_value_does_not_make_up_for_a_map_that_changes_across_the_call() {
    let log = run::<Correct>(Case::new(Guard::RootsByValue, Walk::Legacy)).log;
    assert_eq!(kinds(&log), ["lost", "lost", "undead", "undead"]);
}

#[test]
fn every_right_combination_of_guard_and_walk_is_silent() {
    let right = [
        (Guard::Pins, Walk::Record),
        (Guard::Pins, Walk::Legacy),
        (Guard::TransitivePins, Walk::Record),
        (Guard::TransitivePins, Walk::Legacy),
        (Guard::RootsInPlace, Walk::Record),
        (Guard::RootsInPlace, Walk::Legacy),
        (Guard::RootsByValue, Walk::Record),
        (Guard::Nothing, Walk::Record),
    ];
    for (guard, walk) in right {
        for stack in [None, Some(StackMove::Grow), Some(StackMove::Shrink), Some(StackMove::Same)] {
            for moves in [StackMoves::EveryCollection, StackMoves::OnRequest] {
                for (before, callbacks) in [(true, 1), (false, 1), (true, 3)] {
                    let case = Case { stack, moves, before, callbacks, ..Case::new(guard, walk) };
                    let run = run::<Correct>(case);
                    assert_silent(&run.log);
                    assert_eq!(run.reported, 0, "{case:?}");
                }
            }
        }
    }
}

enum DroppedByUpcall {}

// SAFETY: for tests that expect the failure: every reference is checked before it is used, and C is given nothing to read.
unsafe impl FaultSet for DroppedByUpcall {
    const FAULTS: Faults = Faults::ROOTS_DROPPED_BY_UPCALL;
}

/// Go #7978.
#[test]
fn what_a_call_declared_and_an_upcall_dropped_is_found() {
    for (guard, plan) in [
        (Guard::Pins, ArgumentPlan::Pin),
        (Guard::TransitivePins, ArgumentPlan::TransitivePin),
        (Guard::RootsInPlace, ArgumentPlan::RootInPlace),
        (Guard::RootsByValue, ArgumentPlan::Root),
    ] {
        let case = Case { callbacks: 2, ..Case::new(guard, Walk::Record) };
        let log = run::<DroppedByUpcall>(case).log;
        let lost: Vec<_> = log.findings.iter().filter(|finding| kind(finding) == "lost").collect();
        let elsewhere = run::<DroppedByUpcall>(Case { pinned_elsewhere: true, ..case }).log;
        if guard == Guard::RootsInPlace {
            assert_silent(&log); // the walk at X reports the very slots still
            let log = run::<DroppedByUpcall>(Case { walk: Walk::Legacy, ..case }).log;
            assert_eq!(kinds(&log), ["lost", "lost", "undead", "undead"]);
            continue;
        }
        assert_eq!(lost.len(), 2, "{:?}", kinds(&log));
        assert_eq!(kinds(&elsewhere), ["lost", "lost"], "another's pin is no reason to drop the call's");
        assert!(lost.iter().all(|finding| finding.slot.unwrap().declared == Some(plan)));
        assert!(lost[0].to_string().contains(&format!("declared by the call ({plan:?})")), "{}", lost[0]);
    }
}

enum NotRelocated {}

// SAFETY: for tests that expect the failure, which is a panic of the scanner: it checks each anchor before it is used.
unsafe impl FaultSet for NotRelocated {
    const FAULTS: Faults = Faults::NO_RELOCATION;
}

/// Go #69085, and its like for growth.
#[test]
fn an_anchor_that_did_not_follow_a_stack_grown_or_shrunk_in_a_callback_is_found() {
    for stack in [StackMove::Grow, StackMove::Shrink] {
        let moves = StackMoves::OnRequest;
        let case = Case { stack: Some(stack), moves, ..Case::new(Guard::Pins, Walk::Record) };
        let log = run::<NotRelocated>(case).log;
        let stale: Vec<_> = log.findings.iter().filter(|found| kind(found) == "stale anchor").collect();
        assert_eq!(stale.len(), 2, "its sp and its fp: {:?}", log.findings);
        for found in stale {
            let Fault::StaleAnchor { seen, collection, address } = found.fault else { unreachable!() };
            let at = found.activation.unwrap();
            assert_eq!((seen, collection, at.depth), (1, 2, 0));
            assert!([at.anchor.sp, at.anchor.fp].contains(&address));
        }
        assert_silent(&run::<Correct>(case).log);
    }
}

// The siblings, in a small VM: one frame for each activation, whose slots are the words from fp to sp.

/// What is wrong with the small VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wrong {
    Nothing,
    /// Its generated wrapper declares the first argument only (Go #49731).
    OneArgumentDeclared,
    /// Its scanner walks no frame that has a callback on top.
    FrameLost,
    /// Its collector does not update the second slot that it is shown.
    SlotForgotten,
    /// Its collector moves what is pinned.
    PinsMoved,
    /// It moves its operand stack in a callback, and does not tell the crate (OCaml #9233).
    StackMovedUntold,
}

struct Small {
    heap: Heap,
    wrong: Wrong,
    /// Whether a frame with a callback on top is walked at Y, where the arguments are dead.
    legacy: bool,
    reports: Mutex<Vec<String>>,
}

struct SmallLocal {
    stack: RefCell<OperandStack>,
    /// Where the stack was when anchors were made.
    told: Cell<usize>,
}

thread_local! {
    /// How often this thread has scanned a segment of the small VM.
    static SCANS: Cell<usize> = const { Cell::new(0) };
    /// Which scan panics.
    static PANICS_AT: Cell<usize> = const { Cell::new(usize::MAX) };
}

const X: usize = 0x10;
const Y: usize = 0x11;
/// The arguments are the first two slots of a frame.
const ARGUMENTS: usize = 2;

impl Vm for Small {
    type Ref = Ref;
    type Local = SmallLocal;
    type Exception = core::convert::Infallible;
    const CAPTURE: Capture = Capture::Nothing;

    fn attach(&self) -> SmallLocal {
        let stack = OperandStack::new(2048);
        stack.base().expose_provenance();
        SmallLocal { told: Cell::new(stack.range().start), stack: RefCell::new(stack) }
    }

    fn report(&self, report: &Report<'_>) {
        self.reports.lock().unwrap().push(report.to_string());
    }
}

// SAFETY: S1 is what `wrong` breaks, in a VM that checks each reference against the heap before it uses it. S2: the slots are words of the operand stack, which
// hold references. S3, S4: it reads the stack only. S5: a segment is one frame. S7: indexes are checked by the stack.
unsafe impl StackScanner for Small {
    fn scan_segment(&self, local: &SmallLocal, segment: &Segment<'_>, visitor: &mut dyn RootVisitor<Ref>) {
        SCANS.set(SCANS.get() + 1);
        assert_ne!(SCANS.get(), PANICS_AT.get(), "asked for");
        let anchor = segment.anchor();
        let on_top = segment.is_newest();
        if anchor.fp == 0 || (self.wrong == Wrong::FrameLost && !on_top) {
            return;
        }
        let stack = local.stack.borrow();
        let first = (anchor.fp - local.told.get()) / 8;
        let slots = (anchor.sp - anchor.fp) / 8;
        let (pc, live) = if self.legacy && !on_top { (Y, ARGUMENTS..slots) } else { (X, 0..slots) };
        visitor.frame(Anchor::new(pc, 0, stack.slot_address(first).addr()));
        for slot in live {
            let address = NonNull::new(stack.slot_address(first + slot).cast::<Ref>()).unwrap();
            // SAFETY: a word of the operand stack, which stands still during the pause.
            visitor.slot(unsafe { Slot::new(address) });
        }
    }
}

/// Its collector: pins, then moves and updates.
struct Pinning<'c, 'h>(&'c mut reentry::testkit::heap::Collection<'h>);

impl RootVisitor<Ref> for Pinning<'_, '_> {
    fn slot(&mut self, _: Slot<'_, Ref>) {}

    fn pinned(&mut self, reference: Ref) {
        let _stale = self.0.pin(reference);
    }

    fn transitively_pinned(&mut self, reference: Ref) {
        let _stale = self.0.pin_transitively(reference);
    }
}

struct Moving<'c, 'h> {
    collection: &'c mut reentry::testkit::heap::Collection<'h>,
    /// Which slot is not updated.
    forgotten: Option<usize>,
    shown: usize,
}

impl RootVisitor<Ref> for Moving<'_, '_> {
    fn slot(&mut self, mut slot: Slot<'_, Ref>) {
        let moved = self.collection.forward(slot.load());
        if self.forgotten != Some(self.shown)
            && let Ok(moved) = moved
        {
            slot.store(moved);
        }
        self.shown += 1;
    }

    fn pinned(&mut self, _: Ref) {}

    fn transitively_pinned(&mut self, _: Ref) {}
}

impl Small {
    fn collect(&self, stopped: &StoppedWorld<'_, Self>) {
        let mut collection = self.heap.begin_collection();
        if self.wrong != Wrong::PinsMoved {
            stopped.enumerate(&mut Pinning(&mut collection));
        }
        let forgotten = (self.wrong == Wrong::SlotForgotten).then_some(1);
        stopped.enumerate(&mut Moving { collection: &mut collection, forgotten, shown: 0 });
        collection.finish();
    }

    /// Pushes a frame. Returns where a walk begins.
    fn push(mutator: &Mutator<Self>, slots: &[Ref]) -> Anchor {
        let mut stack = mutator.local().stack.borrow_mut();
        let first = stack.top();
        stack.set_top(first + slots.len());
        for (index, slot) in slots.iter().enumerate() {
            stack.set(first + index, slot.address() as u64);
        }
        Anchor::new(X, stack.slot_address(stack.top()).addr(), stack.slot_address(first).addr())
    }

    fn move_stack(&self, mutator: &mut Mutator<Self>) {
        let moved = {
            let mut stack = mutator.local().stack.borrow_mut();
            let capacity = stack.capacity();
            let moved = stack.relocate(capacity);
            stack.base().expose_provenance();
            moved
        };
        if self.wrong != Wrong::StackMovedUntold {
            mutator.local().told.set(moved.new.start);
            // SAFETY: the stack has been copied, and stays there until it moves again.
            unsafe { mutator.relocate_stack(moved.old, moved.new, StackEnd::Low) }.unwrap();
        }
    }
}

fn small_world(wrong: Wrong, choices: Audit) -> World<Small> {
    let vm = Small { heap: Heap::new(), wrong, legacy: false, reports: Mutex::default() };
    World::<Small>::builder().audit(choices).build(vm)
}

/// A frame of two arguments, a local, and the first argument once more; C is called, calls back, and there is a collection before, in and after the callback.
fn small(wrong: Wrong, legacy: bool, choices: Audit) -> (AuditLog, Vec<String>) {
    let vm = Small { heap: Heap::new(), wrong, legacy, reports: Mutex::default() };
    let world = World::<Small>::builder().audit(choices).build(vm);
    let mut mutator = world.attach().unwrap();
    let heap = &world.vm().heap;
    let [a, b, local] = [&b"a"[..], b"b", b"local"].map(|bytes| heap.alloc(&[], bytes));
    let range = mutator.local().stack.borrow().range();
    mutator.declare_stack(range).unwrap();
    let anchor = Small::push(&mutator, &[a, b, local, local]);
    let callback = UpcallClosure::new(&world, |mutator: &mut Mutator<Small>, x: c_int| {
        // SAFETY: the world outlives its mutators.
        let vm = unsafe { &*core::ptr::from_ref(mutator.vm()) };
        vm.move_stack(mutator);
        mutator.pause_at(Anchor::new(0, 0, 0), |stopped| vm.collect(stopped));
        x
    });
    let mut call = mutator.foreign_call().at(anchor);
    call.pin(a).unwrap();
    if wrong != Wrong::OneArgumentDeclared {
        call.pin(b).unwrap();
    }
    call.run(|| {
        world.pause(|stopped| world.vm().collect(stopped));
        // SAFETY: the closure outlives the call, and the data is its own.
        unsafe { foreign_call_back_last_and_go_on(callback.data_last(), 1, callback.data()) };
        world.pause(|stopped| world.vm().collect(stopped));
    });
    drop(call);
    drop(mutator);
    let reports = core::mem::take(&mut *world.vm().reports.lock().unwrap());
    (world.audit().unwrap(), reports)
}

#[test]
fn the_small_vm_is_silent_when_nothing_is_wrong_with_it() {
    for legacy in [false, true] {
        let (log, reports) = small(Wrong::Nothing, legacy, audit());
        assert_silent(&log);
        assert_eq!((log.collections, reports), (3, Vec::new()));
    }
}

/// The first is pinned, so that its stale copy does no harm; the second is undead.
#[test]
fn arguments_beyond_the_first_that_are_not_declared_are_found() {
    let (log, reports) = small(Wrong::OneArgumentDeclared, true, audit());
    assert_eq!(kinds(&log), ["lost", "undead"]);
    for finding in &log.findings {
        let (slot, at) = (finding.slot.unwrap(), finding.activation.unwrap());
        assert_eq!(slot.address - at.anchor.fp, 8, "the second slot");
    }
    let Fault::Undead { seen, missed, again } = log.findings[1].fault else { panic!("{:?}", log.findings) };
    assert_eq!((seen.pc, missed.pc, again.pc), (Some(X), Some(Y), Some(X)));
    assert_eq!((seen.collection, missed.collection, again.collection), (1, 2, 3));
    assert_eq!(reports.len(), 2);
}

/// The pins of the call hold its arguments; the frame's other slots are lost, and come back.
#[test]
fn a_scanner_that_loses_a_frame_when_a_callback_is_on_top_is_found() {
    let (log, _) = small(Wrong::FrameLost, false, audit());
    assert_eq!(kinds(&log), ["lost", "lost", "undead", "undead"]);
    let Fault::Lost { missed, .. } = log.findings[0].fault else { panic!("{:?}", log.findings) };
    assert_eq!((missed.collection, missed.pc), (2, None), "the frame was not walked at all");
}

#[test]
fn a_slot_that_the_collector_forgot_to_update_is_found() {
    let (log, _) = small(Wrong::SlotForgotten, true, audit());
    // While the callback runs the scanner shows the two slots of the local alone: the second keeps the old address.
    let stale: Vec<_> = log.findings.iter().filter(|finding| kind(finding) == "stale").collect();
    assert!(!stale.is_empty(), "{:?}", log.findings);
    let Fault::Stale { collection, value, moved_to } = stale[0].fault else { unreachable!() };
    assert_eq!(collection, 2);
    assert_ne!(value, moved_to);
    assert!(stale[0].to_string().contains("after collection 2, which moved that object to"), "{}", stale[0]);
}

/// Go #16035: alive is not immovable.
#[test]
fn a_pinned_object_that_the_collector_moved_is_found() {
    let (log, _) = small(Wrong::PinsMoved, false, audit());
    let moved: Vec<_> = log.findings.iter().filter(|finding| kind(finding) == "pin moved").collect();
    assert_eq!(moved.len(), 2, "{:?}", log.findings);
    assert!(moved.iter().all(|finding| finding.slot.unwrap().declared == Some(ArgumentPlan::Pin)));
    assert!(moved[0].to_string().contains(" pins 0x"), "{}", moved[0]);
}

#[test]
fn a_stack_that_moves_without_the_crate_being_told_is_found() {
    let (log, _) = small(Wrong::StackMovedUntold, false, audit());
    assert_eq!(kinds(&log), ["moved untold"]);
    let Fault::MovedUntold { seen, collection, by, slots } = log.findings[0].fault else { unreachable!() };
    assert_eq!((seen, collection, slots), (1, 2, 4));
    assert_ne!(by, 0);
}

/// What the collector says of moves counts where no other slot shows them.
#[test]
fn a_move_that_one_slot_alone_could_show_is_found_if_the_collector_tells_it() {
    for told in [false, true] {
        let world = small_world(Wrong::Nothing, audit());
        let mut mutator = world.attach().unwrap();
        let anchor = Small::push(&mutator, &[world.vm().heap.alloc(&[], b"alone")]);
        mutator.pause_at(anchor, |stopped| {
            let mut collection = stopped.vm().heap.begin_collection();
            stopped.enumerate(&mut Moving { collection: &mut collection, forgotten: Some(0), shown: 0 });
            collection.finish();
            if told {
                let slot = stopped.mutators().next().unwrap().activations().next().unwrap().anchor().fp;
                // SAFETY: the only slot of the frame.
                let from = unsafe { core::ptr::with_exposed_provenance::<Ref>(slot).read() };
                stopped.note_move(from, Ref::from_address(from.address() + 64));
            }
        });
        let log = world.audit().unwrap();
        assert_eq!(kinds(&log), if told { vec!["stale"] } else { vec![] });
    }
}

/// A collection by hand, in a world with a handle and a pin beyond calls, that moves everything. What the handle holds is not updated.
#[test]
fn a_handle_that_was_forgotten_and_a_pin_beyond_calls_that_was_ignored_are_found() {
    let world = small_world(Wrong::PinsMoved, audit());
    let mut mutator = world.attach().unwrap();
    let [kept, pinned] = [&b"kept"[..], b"pinned"].map(|bytes| world.vm().heap.alloc(&[], bytes));
    let anchor = Small::push(&mutator, &[kept, pinned]);
    let handle = mutator.handle(kept);
    let mut pinner = world.pinner();
    mutator.pin_with(&mut pinner, pinned).unwrap();
    mutator.pause_at(anchor, |stopped| {
        let mut collection = stopped.vm().heap.begin_collection();
        // The two slots of the frame come first, then the handle's.
        stopped.enumerate(&mut Moving { collection: &mut collection, forgotten: Some(2), shown: 0 });
        collection.finish();
        // Of a pause the first enumeration counts: it saw what the slots held before.
        stopped.enumerate(&mut Listing::default());
    });
    let log = world.audit().unwrap();
    assert_eq!(kinds(&log), ["stale", "pin moved"]);
    let Fault::Stale { value, .. } = log.findings[0].fault else { unreachable!() };
    assert_eq!((value, log.findings[0].activation), (kept.address(), None));
    let Fault::PinMoved { value, .. } = log.findings[1].fault else { unreachable!() };
    assert_eq!((value, log.findings[1].activation), (pinned.address(), None));
    drop(handle);
}

/// Behind load barriers, old addresses are no fault; and the frames are walked once.
#[test]
fn an_audit_of_slots_only_looks_at_no_values_and_walks_no_frame_twice() {
    for (choices, found, scans) in [(audit(), 1, 2), (audit().slots_only(), 0, 1)] {
        let world = small_world(Wrong::Nothing, choices);
        let mut mutator = world.attach().unwrap();
        let object = world.vm().heap.alloc(&[], b"object");
        let anchor = Small::push(&mutator, &[object, object]);
        let before = SCANS.get();
        mutator.pause_at(anchor, |stopped| {
            let mut collection = stopped.vm().heap.begin_collection();
            stopped.enumerate(&mut Moving { collection: &mut collection, forgotten: Some(1), shown: 0 });
            collection.finish();
        });
        assert_eq!(world.audit().unwrap().findings.len(), found);
        assert_eq!(SCANS.get() - before, scans);
    }
}

// What legitimately comes and goes.

/// The frames are walked half way, or the pause ends before its time: nothing can be said of it, and the next one is compared with the one before.
#[test]
fn a_pause_that_unwinds_is_not_compared_with_anything() {
    let world = small_world(Wrong::Nothing, audit());
    let mut mutator = world.attach().unwrap();
    let object = world.vm().heap.alloc(&[], b"object");
    let anchor = Small::push(&mutator, &[object, object]);
    let enumerate = || world.pause(|stopped| stopped.enumerate(&mut Listing::default()));
    mutator.foreign_call().at(anchor).run(|| {
        enumerate();
        PANICS_AT.set(SCANS.get() + 1);
        catch_unwind(AssertUnwindSafe(enumerate)).unwrap_err();
        let ends_early = || {
            world.pause(|stopped| {
                let mut collection = stopped.vm().heap.begin_collection();
                stopped.enumerate(&mut Moving { collection: &mut collection, forgotten: Some(1), shown: 0 });
                panic!("asked for");
            });
        };
        catch_unwind(AssertUnwindSafe(ends_early)).unwrap_err();
        enumerate();
    });
    let log = world.audit().unwrap();
    assert_silent(&log);
    assert_eq!((log.collections, log.slots), (4, 2));
}

/// The audit's own walk, at the end of a pause, is the first that panics: the world goes on as without the audit.
#[test]
fn a_scanner_that_panics_for_the_audit_alone_is_nobodys_panic() {
    let world = small_world(Wrong::Nothing, audit());
    let mut mutator = world.attach().unwrap();
    let anchor = Small::push(&mutator, &[world.vm().heap.alloc(&[], b"object")]);
    for _ in 0..2 {
        PANICS_AT.set(SCANS.get() + 2);
        mutator.pause_at(anchor, |stopped| stopped.enumerate(&mut Listing::default()));
        assert_eq!(SCANS.get(), PANICS_AT.get(), "it has panicked");
    }
    let log = world.audit().unwrap();
    assert_silent(&log);
    assert_eq!((log.collections, world.attached()), (2, 1));
}

/// A handshake shows one mutator; of the others it says nothing.
#[test]
fn a_handshake_is_a_collection_of_one_mutator() {
    let world = small_world(Wrong::FrameLost, audit());
    let mut mutator = world.attach().unwrap();
    let object = world.vm().heap.alloc(&[], b"object");
    let anchor = Small::push(&mutator, &[object, object]);
    let id = mutator.id();
    let shake = |id| world.handshake(id, |stopped| stopped.enumerate(&mut Listing::default())).unwrap();
    let callback = UpcallClosure::new(&world, |mutator: &mut Mutator<Small>, x: c_int| {
        let id = mutator.id();
        mutator.handshake(id, |stopped| stopped.enumerate(&mut Listing::default())).unwrap();
        x
    });
    mutator.foreign_call().at(anchor).run(|| {
        shake(id);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut other = world.attach().unwrap();
                let id = other.id();
                other.foreign_call().run(|| shake(id));
            });
        });
        let log = world.audit().unwrap();
        assert_eq!((log.collections, log.slots), (2, 2), "the other's handshake took nothing away");
        shake(id);
        assert_silent(&world.audit().unwrap());
        // SAFETY: the closure outlives the call, and the data is its own.
        unsafe { foreign_call_back_last_and_go_on(callback.data_last(), 1, callback.data()) };
        shake(id);
    });
    assert_eq!(kinds(&world.audit().unwrap()), ["lost", "lost", "undead", "undead"]);
}

/// What ends in a declared way, and what upcalls hand to C, is no fault.
#[test]
fn arguments_that_end_early_and_references_handed_over_are_no_findings() {
    let world =
        TestVm::builder(Program::new(Vec::new()).unwrap()).build_world_with(World::builder().audit(audit()));
    let mut mutator = world.attach().unwrap();
    let [first, second, third] = [&b"1"[..], b"2", b"3"].map(|bytes| world.vm().heap().alloc(&[], bytes));
    let mut call = mutator.foreign_call();
    let token = call.root_until_released(first).unwrap().token();
    call.root_until_first_upcall(second).unwrap();
    call.pin_until_first_upcall(third).unwrap();
    let callback = UpcallClosure::new(&world, |mutator: &mut Mutator<TestVm>, x: c_int| {
        let handed = mutator.vm().heap().alloc(&[], b"handed");
        mutator.hand_over(handed).unwrap();
        TestVm::collect_in(mutator).unwrap();
        if x == 1 {
            mutator.release_argument(token).unwrap();
        }
        TestVm::collect_in(mutator).unwrap();
        x
    });
    let collect = || world.pause(|stopped| world.vm().collect(stopped)).unwrap();
    call.run(|| {
        collect();
        for x in 0..3 {
            // SAFETY: the closure outlives the call, and the data is its own.
            unsafe { foreign_call_back_last_and_go_on(callback.data_last(), x, callback.data()) };
            collect();
        }
    });
    drop(call);
    let log = world.audit().unwrap();
    assert_silent(&log);
    assert_eq!(log.collections, 10);
}

/// A slot that was handed back is another reference's later, in the same crossing.
#[test]
fn slots_that_are_handed_back_and_used_again_are_no_findings() {
    let world =
        TestVm::builder(Program::new(Vec::new()).unwrap()).build_world_with(World::builder().audit(audit()));
    let mut mutator = world.attach().unwrap();
    let slots = std::sync::Mutex::new(Vec::<usize>::new());
    let callback = UpcallClosure::new(&world, |mutator: &mut Mutator<TestVm>, _: c_int| {
        let handed = mutator.vm().heap().alloc(&[], b"handed");
        let slot = mutator.hand_over(handed).unwrap();
        TestVm::collect_in(mutator).unwrap();
        mutator.hand_back(slot).unwrap();
        TestVm::collect_in(mutator).unwrap();
        slots.lock().unwrap().push(slot.addr());
        0
    });
    let collect = || world.pause(|stopped| world.vm().collect(stopped)).unwrap();
    mutator.foreign_call().run(|| {
        for _ in 0..4 {
            // SAFETY: the closure outlives the call, and the data is its own.
            unsafe { foreign_call_back_last_and_go_on(callback.data_last(), 0, callback.data()) };
            collect();
        }
    });
    let slots = slots.lock().unwrap();
    assert!(slots.iter().all(|slot| *slot == slots[0]), "one slot, again and again: {slots:x?}");
    assert_silent(&world.audit().unwrap());
}

/// One call site, one frame: slots live in one turn of the loop and dead in the next.
#[test]
fn slots_of_different_crossings_at_one_call_site_are_not_compared() {
    let world = small_world(Wrong::Nothing, audit());
    let mut mutator = world.attach().unwrap();
    let slots = [&b"a"[..], b"b", b"c"].map(|bytes| world.vm().heap.alloc(&[], bytes));
    let whole = Small::push(&mutator, &slots);
    for turn in 0..30 {
        let sp = whole.fp + 8 * (1 + turn % 3);
        let mut call = mutator.foreign_call().at(Anchor::new(X, sp, whole.fp));
        for _ in 0..2 {
            call.run(|| {
                for _ in 0..2 {
                    world.pause(|stopped| {
                        struct Nobody;
                        impl RootVisitor<Ref> for Nobody {
                            fn slot(&mut self, _: Slot<'_, Ref>) {}
                            fn pinned(&mut self, _: Ref) {}
                            fn transitively_pinned(&mut self, _: Ref) {}
                        }
                        stopped.enumerate(&mut Nobody);
                    });
                }
            });
        }
    }
    let log = world.audit().unwrap();
    assert_silent(&log);
    assert_eq!(log.collections, 120);
}

// What the audit costs and changes.

/// A JIT that inlines a transition counts it at the documented place.
#[test]
fn each_crossing_is_counted_where_the_layout_says() {
    let world = World::new(TestVm::new());
    let mut mutator = world.attach().unwrap();
    let word = |address: usize| {
        // SAFETY: addresses inside a live record of this thread's own mutator.
        unsafe { core::ptr::with_exposed_provenance::<usize>(address).read_volatile() }
    };
    let record = word(mutator.record_address() + layout::FRAME) & !layout::MANAGED;
    let crossings = || word(record + layout::CROSSINGS_IN_RECORD);
    let before = crossings();
    mutator.foreign_call().run(|| assert_eq!(crossings(), before + 1));
    mutator.pause(|_| assert_eq!(crossings(), before + 2));
    mutator.poll();
    assert_eq!(crossings(), before + 2, "nobody has stopped it");
    // SAFETY: dropped before the mutator is used again.
    let entered = unsafe { mutator.foreign_call().enter().leave() };
    assert_eq!((entered, crossings()), (Ok(()), before + 3));
}

/// Writes down what a visitor is shown.
#[derive(Default)]
struct Listing(Vec<(&'static str, usize)>);

impl RootVisitor<Ref> for Listing {
    fn slot(&mut self, slot: Slot<'_, Ref>) {
        self.0.push(("slot", slot.address()));
    }

    fn pinned(&mut self, reference: Ref) {
        self.0.push(("pinned", reference.address()));
    }

    fn transitively_pinned(&mut self, reference: Ref) {
        self.0.push(("transitively pinned", reference.address()));
    }

    fn weak(&mut self, slot: Slot<'_, Ref>) {
        self.0.push(("weak", slot.address()));
    }

    fn frame(&mut self, frame: Anchor) {
        self.0.push(("frame", frame.fp));
    }
}

/// Of a pause, the first enumeration is noted, and the second is not: so the two compare a visitor with the audit and one without.
#[test]
fn a_visitor_is_shown_the_same_with_the_audit_and_without() {
    let world = small_world(Wrong::Nothing, audit());
    let mut mutator = world.attach().unwrap();
    let object = world.vm().heap.alloc(&[], b"object");
    let anchor = Small::push(&mutator, &[object; 5]);
    let _handle = mutator.handle(object);
    let _weak = mutator.weak_handle(object);
    let mut pinner = world.pinner();
    mutator.pin_with(&mut pinner, object).unwrap();
    let mut call = mutator.foreign_call().at(anchor);
    call.pin(object).unwrap();
    call.pin_transitively(object).unwrap();
    call.root(object);
    call.run(|| {
        world.pause(|stopped| {
            let (mut first, mut second) = (Listing::default(), Listing::default());
            stopped.enumerate(&mut first);
            stopped.enumerate(&mut second);
            assert_eq!(first.0, second.0);
            let count = |kind| first.0.iter().filter(|(is, _)| *is == kind).count();
            assert_eq!([count("slot"), count("pinned"), count("weak"), count("frame")], [7, 2, 1, 1]);
        });
    });
    drop(call);
    let log = world.audit().unwrap();
    assert_eq!((log.collections, log.slots), (1, 8), "five slots of the frame, three of the call");
}

/// What is held follows what the chains hold: neither collections nor crossings nor findings make it grow.
#[test]
fn the_audit_holds_no_more_after_ten_thousand_crossings_and_a_hundred_thousand_findings() {
    let world = small_world(Wrong::FrameLost, audit().keeping(3));
    let mut mutator = world.attach().unwrap();
    let object = world.vm().heap.alloc(&[], b"object");
    let anchor = Small::push(&mutator, &[object; 10]);
    let callback = UpcallClosure::new(&world, |mutator: &mut Mutator<Small>, x: c_int| {
        mutator.pause_at(Anchor::new(0, 0, 0), |stopped| stopped.enumerate(&mut Listing::default()));
        x
    });
    let mut held = Vec::new();
    for _ in 0..10_000 {
        mutator.foreign_call().at(anchor).run(|| {
            world.pause(|stopped| stopped.enumerate(&mut Listing::default()));
            // SAFETY: the closure outlives the call, and the data is its own.
            unsafe { foreign_call_back_last_and_go_on(callback.data_last(), 1, callback.data()) };
        });
        let log = world.audit().unwrap();
        assert!(log.slots <= 10, "{log:?}");
        held.push(log.bytes);
    }
    let log = world.audit().unwrap();
    assert_eq!((log.findings.len(), log.further), (3, 10 * 10_000 - 3));
    assert_eq!(world.vm().reports.lock().unwrap().len(), 3, "what is not kept is not reported");
    assert!(held[100..].iter().all(|bytes| *bytes <= held[100]), "{:?}", held.iter().max());
    assert!(held[100] <= 10 * 1024, "{}", held[100]);
    drop(mutator);
    world.pause(|stopped| stopped.enumerate(&mut Listing::default()));
    assert_eq!(world.audit().unwrap().slots, 0, "a mutator that is gone is forgotten");
}

/// Printed, not judged: how long a pause takes that enumerates a thousand roots of a call.
#[test]
fn a_pause_with_a_thousand_slots_is_timed_with_the_audit_and_without() {
    let pause = |builder: reentry::WorldBuilder<TestVm>| {
        let world = builder.build(TestVm::new());
        let mut mutator = world.attach().unwrap();
        let object = world.vm().heap().alloc(&[], b"object");
        let mut call = mutator.foreign_call();
        for _ in 0..1000 {
            call.root(object);
        }
        let mut fastest = core::time::Duration::MAX;
        call.run(|| {
            for _ in 0..500 {
                let began = Instant::now();
                world.pause(|stopped| stopped.enumerate(&mut Sum(0)));
                fastest = fastest.min(began.elapsed());
            }
        });
        fastest
    };
    struct Sum(usize);
    impl RootVisitor<Ref> for Sum {
        fn slot(&mut self, slot: Slot<'_, Ref>) {
            self.0 += slot.load().address();
        }
        fn pinned(&mut self, _: Ref) {}
        fn transitively_pinned(&mut self, _: Ref) {}
    }
    let without = pause(World::builder());
    let slots_only = pause(World::builder().audit(audit().slots_only()));
    let with = pause(World::builder().audit(audit()));
    eprintln!(
        "a pause with 1,000 slots: {without:?} without, {slots_only:?} slots only, {with:?} with the audit"
    );
    assert!(without < with);
}

#[test]
#[should_panic(expected = "for references of type `u32`; this VM has `reentry::testkit::heap::Ref`")]
fn an_audit_for_another_type_of_reference_is_refused() {
    drop(small_world(Wrong::Nothing, Audit::new(|reference: u32| reference as usize)));
}

/// Were the panic let through, the world would stay stopped.
#[test]
fn an_address_function_that_panics_at_the_end_of_a_pause_ends_the_process() {
    thread_local! { static PANICS: Cell<bool> = const { Cell::new(false) }; }
    let name = "an_address_function_that_panics_at_the_end_of_a_pause_ends_the_process";
    if std::env::var_os(CHILD).is_some() {
        let choices = Audit::new(|reference: Ref| {
            assert!(!PANICS.get(), "asked for");
            reference.address()
        });
        let world = World::builder().audit(choices).build(TestVm::new());
        let mut mutator = world.attach().unwrap();
        let object = world.vm().heap().alloc(&[], b"held");
        let _held = mutator.handle(object);
        mutator.pause(|stopped| {
            stopped.vm().collect(stopped).unwrap();
            PANICS.set(true);
        });
        unreachable!("the process has ended");
    }
    let (success, said) = under_the_net(name, "panics");
    assert!(!success);
    let message = "reentry: fatal: the function given to `Audit::new` panicked at the end of a pause, and must not: asked for";
    assert!(said.contains(message), "{said}");
}

// The net under the suite: `REENTRY_AUDIT=1`.

const CHILD: &str = "REENTRY_AUDIT_CHILD";

/// Runs a test of this binary in a process of its own, under the net.
fn under_the_net(name: &str, part: &str) -> (bool, String) {
    let mut child = emulator::this_binary();
    child.args([name, "--exact", "--nocapture"]).env(CHILD, part).env("REENTRY_AUDIT", "1");
    let output = child.output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A collection of the reference VM's heap that forgets one slot, or none, with nobody's word about an audit.
fn collect_by_hand(forgotten: Option<usize>) {
    let mut main = Function::builder("main");
    let text = main.reference_parameter();
    let again = main.reference_slot();
    main.copy(again, text);
    main.foreign(None, 0, &[]);
    main.check(text);
    main.check(again);
    main.leave();
    let program = Program::new(vec![main.finish()]).unwrap();
    let world = TestVm::builder(program)
        .native(move |vm: &TestVm, _| {
            vm.world().unwrap().pause(|stopped| {
                let mut collection = vm.heap().begin_collection();
                stopped.enumerate(&mut Moving { collection: &mut collection, forgotten, shown: 0 });
                collection.finish();
            });
            NativeResult::Nothing
        })
        .build_world();
    let mut mutator = world.attach().unwrap();
    let text = world.vm().heap().alloc(&[], b"text");
    let outcome = TestVm::call(&mut mutator, "main", &[Value::Reference(text)]);
    assert_eq!(outcome.is_err(), forgotten.is_some());
    assert_eq!(world.audit().is_some(), std::env::var_os("REENTRY_AUDIT").is_some());
}

#[test]
fn the_net_under_the_suite_ends_the_process_at_a_finding_and_only_then() {
    match std::env::var(CHILD).as_deref() {
        Ok("wrong") => collect_by_hand(Some(1)),
        Ok("right") => collect_by_hand(None),
        _ => {
            let name = "the_net_under_the_suite_ends_the_process_at_a_finding_and_only_then";
            let (success, said) = under_the_net(name, "wrong");
            assert!(!success && said.contains("reentry: fatal: audit: slot 0x"), "{said}");
            let (success, said) = under_the_net(name, "right");
            assert!(success, "{said}");
            collect_by_hand(Some(1)); // without the net nobody looks
        }
    }
}
