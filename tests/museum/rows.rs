//! A test for each exhibit.

use crate::frames::{Wrong, run};
use core::cell::Cell;
use core::ffi::{c_int, c_void};
use core::panic::AssertUnwindSafe;
use reentry::explore::{Explorer, ScheduleFailed, Step};
use reentry::faults::Faults;
use reentry::testkit::bytecode::{Function, Program};
use reentry::testkit::heap::Fate;
use reentry::testkit::{Correct, FaultSet, Guard, NativeResult, Ref, TestVm, Walk};
use reentry::{Audit, AuditLog, Fault, Mutator, UpcallClosure, World, upcall_fn};
use reentry_foreign::{foreign_call_back, foreign_call_back_last_and_go_on, foreign_jump, foreign_land};
use std::panic::catch_unwind;

fn world<F: FaultSet>() -> World<TestVm<F>> {
    TestVm::<F>::builder_without(Program::new(Vec::new()).unwrap()).on_report(|_| ()).build_world()
}

/// Allocates and polls: whatever stop has arrived takes place here.
fn callback<F: FaultSet>(mutator: &mut Mutator<TestVm<F>>, x: c_int) -> c_int {
    mutator.vm().heap().alloc(&[], b"garbage");
    mutator.poll();
    x
}

/// The explorer's verdict on `scenario`, with collections at every step and pair of steps.
///
/// # Errors
///
/// The schedule that failed.
fn explore<F: FaultSet>(
    world: fn() -> World<TestVm<F>>,
    scenario: fn(&World<TestVm<F>>),
) -> Result<(), ScheduleFailed> {
    let explorer =
        Explorer::new("an exhibit", world).pausing("collect", |stopped| stopped.vm().collect(stopped));
    explorer.explore(scenario).map(drop)
}

#[track_caller]
fn found(verdict: Result<(), ScheduleFailed>, what: &str) -> ScheduleFailed {
    let failed = verdict.expect_err("the explorer finds a schedule");
    assert!(failed.what.contains(what), "{failed}");
    failed
}

#[track_caller]
fn passes(verdict: Result<(), ScheduleFailed>) {
    verdict.unwrap_or_else(|failed| panic!("{failed}"));
}

#[track_caller]
fn silent(log: &AuditLog) {
    assert!(log.findings.is_empty() && log.collections > 2, "{}", log.findings[0]);
}

/// Go #17785: the arguments are live at X, where the record says the caller is, and dead at Y, where it is walked while a callback runs; nothing declares them.
#[test]
fn go_17785_is_found_by_the_audit_and_by_exploration() {
    fn vm(guard: Guard) -> World<TestVm> {
        let mut callback = Function::builder("callback");
        callback.poll();
        callback.leave();
        let mut main = Function::builder("main");
        let text = main.reference_slot();
        main.bytes(text, b"an argument");
        main.foreign(None, 0, &[text]);
        main.leave();
        let program = Program::new(vec![callback.finish(), main.finish()]).unwrap();
        let native = |vm: &TestVm, _: &reentry::testkit::NativeArguments<'_>| {
            let world = vm.world().unwrap();
            let callback = UpcallClosure::new(&world, |mutator: &mut Mutator<TestVm>, x: c_int| {
                TestVm::call(mutator, "callback", &[]).unwrap();
                x
            });
            // SAFETY: the closure outlives the call, and the data is its own.
            unsafe { foreign_call_back_last_and_go_on(callback.data_last(), 1, callback.data()) };
            NativeResult::Nothing
        };
        let choices = World::builder().audit(Audit::new(Ref::address));
        TestVm::builder(program)
            .guard(guard)
            .walk(Walk::Legacy)
            .on_report(|_| ())
            .native(native)
            .build_world_with(choices)
    }
    fn main(world: &World<TestVm>) {
        drop(TestVm::call(&mut world.attach().unwrap(), "main", &[]));
    }
    /// Fails with what the audit says.
    fn audited(world: &World<TestVm>) {
        main(world);
        let log = world.audit().unwrap();
        assert!(log.findings.is_empty(), "{}", log.findings[0]);
    }
    let faulty = || vm(Guard::Nothing);
    let pair = found(explore(faulty, main), "undead root");
    assert_eq!(pair.schedule.arrivals.len(), 2, "one collection sees it dead, the next live again");
    found(explore(faulty, audited), "audit: slot");
    passes(explore(|| vm(Guard::RootsInPlace), audited));
    passes(explore(|| vm(Guard::Pins), audited));
}

/// Go #7978: one saved pc and sp for each thread; a callback that calls C itself writes over it, and nobody puts it back.
#[test]
fn go_7978_is_found_by_the_audit() {
    let log = run(Wrong::OneSavedAnchor);
    assert!(log.findings.iter().any(|finding| matches!(finding.fault, Fault::Lost { .. })), "{log:?}");
    silent(&run(Wrong::Nothing));
}

/// Go #49731 and #63739: a generated wrapper keeps the first argument alive, and not the others.
#[test]
fn go_49731_is_found_by_exploration() {
    fn wrapper<const DECLARED: usize>(world: &World<TestVm>) {
        let mut mutator = world.attach().unwrap();
        let arguments = [&b"first"[..], b"second"].map(|bytes| world.vm().heap().alloc(&[], bytes));
        let mut call = mutator.foreign_call();
        for &argument in &arguments[..DECLARED] {
            call.pin(argument).unwrap();
        }
        // SAFETY: the callback takes an `int` and gives one.
        call.run(|| unsafe { foreign_call_back(upcall_fn(callback::<Correct>), 1) });
        for argument in arguments {
            world.vm().heap().bytes(argument).expect("C reads it after the callback");
        }
    }
    found(explore(world, wrapper::<1>), "C reads it after the callback");
    passes(explore(world, wrapper::<2>));
}

/// Go #69085: the saved frame pointer, an integer, does not follow a stack that shrinks in a callback.
#[test]
fn go_69085_is_found_by_the_audit() {
    let log = run(Wrong::FramePointerSaved);
    assert!(log.findings.iter().any(|finding| matches!(finding.fault, Fault::Lost { .. })), "{log:?}");
    silent(&run(Wrong::Nothing));
}

/// Go #72870: a flag of the VM's own says whether a thread is in C, and a nested callback's return leaves it wrong. (The crate has no such flag: the state is the word that names the record.)
#[test]
fn go_72870_is_found_by_the_audit() {
    let log = run(Wrong::FlagOfItsOwn);
    assert!(log.findings.iter().any(|finding| matches!(finding.fault, Fault::Lost { .. })), "{log:?}");
    silent(&run(Wrong::Nothing));
}

/// Go #22458 and #30476: a keep-alive that the compiler may drop, or that never was more than a use of the value. It keeps the Rust value, and roots nothing.
#[test]
fn go_22458_is_found_by_exploration() {
    fn kept_alive(world: &World<TestVm>) {
        let mut mutator = world.attach().unwrap();
        let text = world.vm().heap().alloc(&[], b"kept alive");
        let mut call = mutator.foreign_call();
        call.keep_alive(&text);
        // SAFETY: the callback takes an `int` and gives one.
        call.run(|| unsafe { foreign_call_back(upcall_fn(callback::<Correct>), 1) });
        world.vm().heap().bytes(text).expect("C reads it after the callback");
    }
    fn rooted(world: &World<TestVm>) {
        let mut mutator = world.attach().unwrap();
        let text = world.vm().heap().alloc(&[], b"rooted");
        let mut call = mutator.foreign_call();
        let root = call.root(text);
        // SAFETY: the callback takes an `int` and gives one.
        call.run(|| unsafe { foreign_call_back(upcall_fn(callback::<Correct>), 1) });
        world.vm().heap().bytes(call.get(root)).expect("C reads it after the callback");
    }
    let failed = found(explore(world, kept_alive), "Freed");
    assert_eq!(failed.schedule.arrivals.len(), 1);
    passes(explore(world, rooted));
}

/// Go #16035 and #20281: alive is not immovable. C has the address of an object that is rooted, and moves.
#[test]
fn go_16035_is_found_by_exploration_and_reported_where_pointers_are_checked() {
    fn address_of_a_root(world: &World<TestVm>) {
        let mut mutator = world.attach().unwrap();
        let text = world.vm().heap().alloc(&[], b"alive");
        let mut call = mutator.foreign_call();
        call.root(text);
        call.check(&world.vm().heap().payload(text).unwrap().cast_const());
        // SAFETY: the callback takes an `int` and gives one.
        call.run(|| unsafe { foreign_call_back(upcall_fn(callback::<Correct>), 1) });
        let reports = world.vm().take_reports();
        let said = reports.iter().any(|report| report.contains("and nothing protects it"));
        assert_eq!(said, cfg!(any(debug_assertions, feature = "checked")), "{reports:?}");
        world.vm().heap().bytes(text).expect("C reads where it was");
    }
    fn address_of_a_pin(world: &World<TestVm>) {
        let mut mutator = world.attach().unwrap();
        let text = world.vm().heap().alloc(&[], b"immovable");
        let mut call = mutator.foreign_call();
        call.pin(text).unwrap();
        call.check(&world.vm().heap().payload(text).unwrap().cast_const());
        // SAFETY: the callback takes an `int` and gives one.
        call.run(|| unsafe { foreign_call_back(upcall_fn(callback::<Correct>), 1) });
        assert_eq!(world.vm().take_reports(), [""; 0]);
        world.vm().heap().bytes(text).expect("C reads where it is");
    }
    found(explore(world, address_of_a_root), "Moved");
    passes(explore(world, address_of_a_pin));
}

enum FramesAfterState {}

// SAFETY: for a test that expects the failure; the heap checks every reference before it is used.
unsafe impl FaultSet for FramesAfterState {
    const FAULTS: Faults = Faults::FOREIGN_BEFORE_REINSTATE;
}

/// JDK-8331735: at the end of an upcall the thread says "in native" first, and puts its frame anchor back after.
#[test]
fn jdk_8331735_is_found_by_exploration_at_that_very_step() {
    fn rooted<F: FaultSet>(world: &World<TestVm<F>>) {
        let mut mutator = world.attach().unwrap();
        let text = world.vm().heap().alloc(&[], b"rooted");
        let mut call = mutator.foreign_call();
        let root = call.root(text);
        // SAFETY: the callback takes an `int` and gives one.
        call.run(|| unsafe { foreign_call_back(upcall_fn(callback::<F>), 1) });
        world.vm().heap().bytes(call.get(root)).expect("rooted");
    }
    let failed = found(explore(world::<FramesAfterState>, rooted::<FramesAfterState>), "rooted");
    // Either it arrives there, or it was asked for while the thread was managed, and finds it published there.
    let at = failed.schedule.arrivals.last().unwrap().at.unwrap_or(1);
    let next = failed.steps[at - 1..].iter().find(|step| matches!(step, Step::UpcallHalfPublished));
    assert!(next.is_some(), "{failed}");
    passes(explore(world::<Correct>, rooted::<Correct>));
}

/// OCaml #9233: the interpreter goes on with the stack pointer it had when a callback has moved its stack.
#[test]
fn ocaml_9233_is_found_by_the_audit() {
    let log = run(Wrong::StackPointerKept);
    let moved = |finding: &reentry::Finding| {
        matches!(finding.fault, Fault::MovedUntold { .. } | Fault::StaleAnchor { .. })
    };
    assert!(log.findings.iter().any(moved), "{log:?}");
    silent(&run(Wrong::Nothing));
}

enum SkippedAndKept {}

// SAFETY: for a test that expects roots to be there that should be gone, and uses none.
unsafe impl FaultSet for SkippedAndKept {
    const FAULTS: Faults = Faults::NO_REPAIR;
}

/// dotnet/runtime #113980: foreign code unwinds past an upcall, and its frames stay on the chain.
#[test]
fn dotnet_113980_leaves_what_was_skipped_rooted_and_the_repair_reports_it() {
    thread_local! { static SKIPPED: Cell<Ref> = const { Cell::new(Ref::NULL) }; }
    fn skipped<F: FaultSet>(mutator: &mut Mutator<TestVm<F>>, _: c_int, _: *mut c_void) -> c_int {
        let text = mutator.vm().heap().alloc(&[], b"of the skipped call");
        SKIPPED.set(text);
        let mut call = mutator.foreign_call();
        call.pin(text).unwrap();
        // SAFETY: the landing place is in the C of the outermost call, and no frame in between has a destructor that matters.
        call.run(|| unsafe { foreign_jump(2) })
    }
    fn jump<F: FaultSet>(world: &World<TestVm<F>>) {
        let mut mutator = world.attach().unwrap();
        let mut call = mutator.foreign_call();
        // SAFETY: the callback takes what C gives it; the jump lands in `foreign_land`.
        call.run(|| unsafe { foreign_land(2, upcall_fn(skipped::<F>), 3, core::ptr::null_mut()) });
        drop(call);
        TestVm::collect_in(&mut mutator).unwrap();
        let skipped = world.vm().heap().check(SKIPPED.get());
        assert!(
            matches!(skipped, Err(stale) if matches!(stale.fate, Fate::Freed { .. })),
            "rooted still: {skipped:?}"
        );
        assert!(world.vm().take_reports().iter().any(|report| report.contains("skipped")));
    }
    found(explore(world::<SkippedAndKept>, jump::<SkippedAndKept>), "rooted still");
    passes(explore(world::<Correct>, jump::<Correct>));
}

/// CVE-2021-39216: argument 1 is a plain reference while argument 2 is made, which collects. Between two declarations of one call the compiler lets nothing collect; before the call the VM's own check
/// refuses what has gone stale.
#[test]
fn cve_2021_39216_is_refused_at_the_declaration() {
    fn convert(mutator: &mut Mutator<TestVm>) -> Ref {
        let made = mutator.vm().heap().alloc(&[], b"argument 2");
        let kept = mutator.handle(made);
        TestVm::collect_in(mutator).unwrap();
        mutator.load(&kept)
    }
    fn plain(world: &World<TestVm>) {
        let mut mutator = world.attach().unwrap();
        let first = world.vm().heap().alloc(&[], b"argument 1");
        let second = convert(&mut mutator);
        let mut call = mutator.foreign_call();
        call.root(first);
        call.root(second);
    }
    fn handled(world: &World<TestVm>) {
        let mut mutator = world.attach().unwrap();
        let first = world.vm().heap().alloc(&[], b"argument 1");
        let first = mutator.handle(first);
        let second = convert(&mut mutator);
        let first = mutator.load(&first);
        let mut call = mutator.foreign_call();
        let (first, second) = (call.root(first), call.root(second));
        call.run(std::thread::yield_now);
        assert_eq!(world.vm().heap().bytes(call.get(first)).unwrap(), b"argument 1");
        assert_eq!(world.vm().heap().bytes(call.get(second)).unwrap(), b"argument 2");
    }
    let refused = catch_unwind(AssertUnwindSafe(|| plain(&world::<Correct>()))).unwrap_err();
    let refused = refused.downcast_ref::<String>().unwrap();
    assert!(refused.contains("is refused") && refused.contains("not of this world's heap"), "{refused}");
    passes(explore(world, handled));
}
