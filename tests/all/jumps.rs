//! I5: foreign code that jumps over upcalls with `longjmp`. What it skipped is found at the next crossing, released and reported; the calls it did not skip keep what they declared.
//!
//! By the letter, a `longjmp` over Rust frames with destructors is undefined. These tests hold what the crate and the compiler do on Linux, with real C.
//!
//! # When a jump is found
//!
//! When the foreign call returns that it landed in: always. When C calls back before that: if the stack pointer of the new upcall shows it, which it does unless C
//! has gone deeper in the meantime than the skipped foreign call was ([`a_jump_that_c_calls_back_from_below_is_found_when_the_call_returns`]).

use crate::witness::View;
use core::ffi::{c_int, c_void};
use core::hint::black_box;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use core::time::Duration;
use reentry::faults::Faults;
use reentry::testkit::bytecode::{Function, Program};
use reentry::testkit::heap::Fate;
use reentry::testkit::{Correct, FaultSet, NativeResult, Ref, TestVm, Trap, Value};
use reentry::{
    Crossing, ErrorPolicy, FenceStrategy, ForeignCall, FrameKind, MachineState, Mutator, Report, RootVisitor,
    Segment, StackScanner, Throwing, UpcallClosure, Vm, World, upcall_fn, upcall_fn_or,
};
use reentry_foreign::{
    Large, foreign_call_back_last, foreign_jump, foreign_land, foreign_land_and_call,
    foreign_land_and_call_below, foreign_land_and_call_large, foreign_land_and_call_wide,
    foreign_land_elsewhere, foreign_land_large_and_call, foreign_land_many, foreign_land_wide_and_call,
};
use std::sync::Mutex;
use std::time::Instant;

/// What was skipped is not released.
enum NoRepair {}
// SAFETY: for the test of the protection, which expects to find roots that should be gone and uses none of them.
unsafe impl FaultSet for NoRepair {
    const FAULTS: Faults = Faults::NO_REPAIR;
}

/// An upcall does not look whether the one before was skipped.
enum NoSkipCheck {}
// SAFETY: for the test of the protection, whose scanner reads the operand stack alone.
unsafe impl FaultSet for NoSkipCheck {
    const FAULTS: Faults = Faults::NO_SKIP_CHECK;
}

fn world<F: FaultSet>() -> World<TestVm<F>> {
    TestVm::<F>::builder(Program::new(Vec::new()).unwrap()).build_world()
}

fn text<F: FaultSet>(world: &World<TestVm<F>>, text: &str) -> Ref {
    world.vm().heap().alloc(&[], text.as_bytes())
}

#[track_caller]
fn assert_text<F: FaultSet>(world: &World<TestVm<F>>, reference: Ref, text: &str) {
    assert_eq!(world.vm().heap().bytes(reference).as_deref(), Ok(text.as_bytes()));
}

fn is_freed<F: FaultSet>(world: &World<TestVm<F>>, reference: Ref) -> bool {
    matches!(world.vm().heap().check(reference), Err(stale) if matches!(stale.fate, Fate::Freed { .. }))
}

/// The bodies of a test's upcalls, which C gets as functions of a number and a data pointer.
type Body<'s, F> = Box<dyn Fn(&mut Mutator<TestVm<F>>, c_int, *mut c_void) -> c_int + 's>;

struct Script<'s, F: FaultSet>(Vec<Body<'s, F>>);

impl<'s, F: FaultSet> Script<'s, F> {
    fn new<const N: usize>(bodies: [Body<'s, F>; N]) -> Self {
        Self(bodies.into())
    }

    fn data(&self) -> *mut c_void {
        ptr::from_ref(self).cast_mut().cast()
    }
}

/// The upcall that runs body `N` of the script its data pointer names.
fn step<F: FaultSet, const N: usize>(mutator: &mut Mutator<TestVm<F>>, x: c_int, data: *mut c_void) -> c_int {
    // SAFETY: C passes on the data pointer of a script, which outlives the call.
    let script = unsafe { &*data.cast::<Script<'_, F>>() };
    (script.0[N])(mutator, x, data)
}

type Step = extern "C" fn(c_int, *mut c_void) -> c_int;

fn first<F: FaultSet>() -> Step {
    upcall_fn(step::<F, 0>)
}

fn next<F: FaultSet>() -> Step {
    upcall_fn(step::<F, 1>)
}

/// How an upcall is left by a jump.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum From {
    /// From a foreign call: its record is published.
    Foreign,
    /// From a leaf call: the upcall is managed.
    Managed,
}

/// Leaves the upcall by a jump, from below `call`, which may have declared something.
fn jump<F: FaultSet>(mutator: &mut Mutator<TestVm<F>>, from: From, point: c_int) -> ! {
    match from {
        // SAFETY: a function of this thread that has not returned has set the point.
        From::Foreign => mutator.foreign_call().run(|| -> () { unsafe { foreign_jump(point) } }),
        // SAFETY: as above; it is short, and does nothing else.
        From::Managed => unsafe { mutator.leaf_call(|| -> () { foreign_jump(point) }) },
    }
    unreachable!("it has jumped")
}

/// Collects twice and returns the depth.
fn collect_twice<F: FaultSet>(mutator: &mut Mutator<TestVm<F>>) -> c_int {
    for _ in 0..2 {
        TestVm::collect_in(mutator).unwrap();
    }
    mutator.depth() as c_int
}

/// The activations a collector sees, newest first.
fn chain<F: FaultSet>(mutator: &mut Mutator<TestVm<F>>) -> Vec<(usize, FrameKind)> {
    let (anchor, id) = (TestVm::idle_anchor(mutator), mutator.id());
    mutator.pause_at(anchor, |stopped| {
        let this = stopped.mutators().find(|mutator| mutator.id() == id).unwrap();
        View::of(stopped.vm(), &this).chain.iter().map(|seen| (seen.depth, seen.kind)).collect()
    })
}

/// The chain of a pause in an upcall of the first foreign call.
const ONE_UPCALL: [(usize, FrameKind); 2] = [(1, FrameKind::Safepoint), (0, FrameKind::ForeignCall)];

/// How many upcalls the reports say were skipped, one number for each report; every report must be of that kind.
#[track_caller]
fn skipped<F: FaultSet>(world: &World<TestVm<F>>) -> Vec<usize> {
    let reports = world.vm().take_reports();
    reports.iter().map(|report| skipped_in(report)).collect()
}

#[track_caller]
fn skipped_in(report: &str) -> usize {
    let number =
        report.strip_prefix("foreign code skipped the frames of ").unwrap_or_else(|| panic!("{report}"));
    number.split(' ').next().unwrap().parse().unwrap()
}

/// What a jump that lands in C that returns leaves behind.
struct Returned {
    reports: Vec<String>,
    /// The line of the outer call.
    line: u32,
    /// Whether what the skipped calls declared is free to die.
    freed: Vec<bool>,
    /// Whether an object they pinned is free to move.
    moved: bool,
}

fn jump_and_return(from: From) -> Returned {
    let world = world::<Correct>();
    let mut mutator = world.attach().unwrap();
    let (pinned, rooted) =
        (text(&world, "pinned by the outer call"), text(&world, "rooted by the outer call"));
    let inner = [text(&world, "pinned by a skipped call"), text(&world, "rooted by a skipped call")];
    let handed_over = text(&world, "handed over by the skipped upcall");
    let movable = text(&world, "pinned by a skipped call, and global");
    let global = world.vm().add_global(movable);
    let script = Script::<Correct>::new([
        Box::new(|mutator, _, _| {
            mutator.hand_over(handed_over).unwrap();
            let mut call = mutator.foreign_call();
            call.pin(inner[0]).unwrap();
            call.root(inner[1]);
            call.pin_transitively(movable).unwrap();
            call.copy([7_u8; 100]);
            match from {
                // SAFETY: `foreign_land` below has set the point, and has not returned.
                From::Foreign => call.run(|| -> () { unsafe { foreign_jump(0) } }),
                From::Managed => {
                    // What it declared is in force until it is dropped, which it never is.
                    call.run(|| ());
                    // SAFETY: as above.
                    unsafe { foreign_jump(0) }
                }
            }
            unreachable!("it has jumped")
        }),
        Box::new(|mutator, _, _| collect_twice(mutator)),
    ]);
    let mut call = mutator.foreign_call();
    call.pin(pinned).unwrap();
    let root = call.root(rooted);
    let number = call.copy(42);
    let line = line!() + 2;
    // SAFETY: the callbacks are those of the script, which lives.
    let landed = call.run(|| unsafe { foreign_land(0, first::<Correct>(), 0, script.data()) });
    assert_eq!(landed, -1, "the jump has landed");
    let reports = world.vm().take_reports();
    // The outer call goes on, and runs again: what it declared is C's all the time (I2).
    // SAFETY: as above.
    let depth = call.run(|| unsafe { foreign_call_back_last(next::<Correct>(), 0, script.data()) });
    assert_eq!(depth, 1);
    assert_text(&world, pinned, "pinned by the outer call");
    assert_ne!(call.get(root), rooted, "the heap moves what is not pinned");
    assert_text(&world, call.get(root), "rooted by the outer call");
    assert_eq!(call.read(number), 42);
    let freed = inner.iter().map(|&object| is_freed(&world, object)).collect();
    assert!(!is_freed(&world, handed_over), "it was handed to the outer call, which is not over");
    let moved = world.vm().global(global) != movable;
    drop(call);
    assert_eq!(mutator.depth(), 0);
    let last = TestVm::collect_in(&mut mutator).unwrap();
    assert_eq!((last.live, last.pinned), (1, 0), "the global alone is left");
    assert_eq!(world.vm().take_reports(), [String::new(); 0]);
    Returned { reports, line, freed, moved }
}

/// Go #63829. The skipped call's pins and roots end, the outer call's stay, and it is said which call it was.
#[test]
fn a_jump_into_c_that_returns_is_repaired_and_reported_on_the_way_back() {
    for from in [From::Foreign, From::Managed] {
        let outcome = jump_and_return(from);
        assert_eq!(outcome.freed, [true, true], "{from:?}");
        assert!(outcome.moved, "{from:?}");
        let [report] = &outcome.reports[..] else { panic!("{from:?}: {:?}", outcome.reports) };
        assert_eq!(skipped_in(report), 1);
        assert!(report.contains(&format!("{}:{}:", file!(), outcome.line)), "it names the call: {report}");
    }
}

/// How many objects live after a jump into C that returned, with the call over, and what was reported.
fn jump_and_collect<F: FaultSet>(from: From) -> (usize, usize) {
    let world = world::<F>();
    let mut mutator = world.attach().unwrap();
    let script = Script::<F>::new([Box::new(|mutator, _, _| {
        let mut call = mutator.foreign_call();
        call.pin(text(&world, "a skipped call's")).unwrap();
        call.run(|| ());
        // SAFETY: `foreign_land` below has set the point, and has not returned.
        call.run(|| unsafe {
            if from == From::Foreign {
                foreign_jump(0)
            }
        });
        // SAFETY: as above.
        unsafe { foreign_jump(0) }
    })]);
    // SAFETY: the callback is that of the script, which lives.
    mutator.foreign_call().run(|| unsafe { foreign_land(0, first::<F>(), 0, script.data()) });
    (TestVm::collect_in(&mut mutator).unwrap().live, world.vm().take_reports().len())
}

/// The twin with the protection off: what C skipped stays rooted when the call is over, and nobody is told.
#[test]
fn without_the_repair_what_was_skipped_stays_rooted_and_unreported() {
    for from in [From::Foreign, From::Managed] {
        assert_eq!(jump_and_collect::<Correct>(from), (0, 1), "{from:?}");
        assert_eq!(jump_and_collect::<NoRepair>(from), (1, 0), "{from:?}");
        // The same seen by an upcall that comes after the jump.
        let expected = CalledAgain { depth: 1, chain: ONE_UPCALL.into(), freed: false, skipped: vec![] };
        assert_eq!(jump_and_call_again::<NoRepair>(from), expected, "{from:?}");
    }
}

/// What an upcall sees that C makes after a jump, in the same foreign call.
#[derive(PartialEq, Eq, Debug)]
struct CalledAgain {
    depth: c_int,
    chain: Vec<(usize, FrameKind)>,
    freed: bool,
    skipped: Vec<usize>,
}

fn jump_and_call_again<F: FaultSet>(from: From) -> CalledAgain {
    let world = world::<F>();
    let mut mutator = world.attach().unwrap();
    let (outer, inner) = (text(&world, "the outer call's"), text(&world, "a skipped call's"));
    let seen = Mutex::new(None);
    let script = Script::<F>::new([
        Box::new(|mutator, _, _| {
            let mut call = mutator.foreign_call();
            call.pin(inner).unwrap();
            // SAFETY: the point is set by C that waits for this upcall.
            call.run(|| unsafe {
                if from == From::Foreign {
                    foreign_jump(0)
                }
            });
            // SAFETY: as above.
            unsafe { foreign_jump(0) }
        }),
        Box::new(|mutator, _, _| {
            let depth = collect_twice(mutator);
            assert_text(&world, outer, "the outer call's");
            *seen.lock().unwrap() = Some(CalledAgain {
                depth,
                chain: chain(mutator),
                freed: is_freed(&world, inner),
                skipped: skipped(&world),
            });
            17
        }),
    ]);
    let mut call = mutator.foreign_call();
    call.pin(outer).unwrap();
    // SAFETY: the callbacks are those of the script, which lives.
    let result =
        call.run(|| unsafe { foreign_land_and_call(0, first::<F>(), next::<F>(), 0, script.data()) });
    assert_eq!(result, 17, "the result is that of the upcall after the jump");
    drop(call);
    assert_eq!(mutator.depth(), 0);
    assert_eq!(TestVm::collect_in(&mut mutator).unwrap().live, 0);
    let seen = seen.lock().unwrap().take();
    seen.expect("C has called again")
}

/// The upcall after the jump belongs to the call that C is in, whether the skipped upcall was in a foreign call of its own or not.
#[test]
fn an_upcall_after_a_jump_comes_in_at_the_depth_of_the_call_c_is_in() {
    for from in [From::Foreign, From::Managed] {
        let expected = CalledAgain { depth: 1, chain: ONE_UPCALL.into(), freed: true, skipped: vec![1] };
        assert_eq!(jump_and_call_again::<Correct>(from), expected, "{from:?}");
    }
}

/// The twin with the protection off: the upcall counts as one of the skipped call, whose frames are gone and are walked all the same, and whose pins stay.
#[test]
fn without_the_look_for_skipped_upcalls_the_skipped_segment_is_still_walked() {
    let seen = jump_and_call_again::<NoSkipCheck>(From::Foreign);
    assert_eq!((seen.depth, seen.freed, &seen.skipped[..]), (2, false, &[][..]));
    let walked = [(2, FrameKind::Safepoint), (1, FrameKind::ForeignCall), (0, FrameKind::ForeignCall)];
    assert_eq!(seen.chain, walked);
}

/// Levels of foreign calls and upcalls: the upcall of level `n` pins an object and calls C, whose jump point is `n`. The innermost jumps to `target`.
fn jump_over_levels(levels: c_int, target: c_int, from: From) {
    let world = world::<Correct>();
    let mut mutator = world.attach().unwrap();
    let objects: Vec<_> = (0..levels).map(|level| text(&world, &format!("level {level}"))).collect();
    let again = Mutex::new(Vec::new());
    let script = Script::<Correct>::new([
        Box::new(|mutator, level, data| {
            if level == levels {
                jump(mutator, from, target);
            }
            let mut call = mutator.foreign_call();
            call.pin(objects[level as usize]).unwrap();
            let (first, next) = (first::<Correct>(), next::<Correct>());
            // SAFETY: the script lives, and its data pointer is the one this upcall was given.
            let result = call.run(|| unsafe { foreign_land_and_call(level, first, next, level + 1, data) });
            assert_text(&world, objects[level as usize], &format!("level {level}"));
            result
        }),
        Box::new(|mutator, level, _| {
            again.lock().unwrap().push((level, collect_twice(mutator), skipped(&world)));
            for (n, &object) in objects.iter().enumerate() {
                let kept = n as c_int <= target;
                assert_eq!(is_freed(&world, object), !kept, "object {n}, jump from {levels} to {target}");
            }
            100 + level
        }),
    ]);
    // SAFETY: the script lives.
    let result = mutator
        .foreign_call()
        .run(|| unsafe { foreign_call_back_last(first::<Correct>(), 0, script.data()) });
    // C at level 0 has a result of its own only if the jump has landed there.
    assert_eq!(result, if target == 0 { 101 } else { -2 });
    // Level `n` is called from depth `n + 1`; so is the upcall after the jump from C at level `target`, one deeper.
    let expected = (target + 1, target + 2, vec![(levels - target) as usize]);
    assert_eq!(*again.lock().unwrap(), [expected], "from {levels} to {target}, {from:?}");
    assert_eq!(mutator.depth(), 0);
    assert_eq!(TestVm::collect_in(&mut mutator).unwrap().live, 0);
}

/// One, two, three levels at once, to the outermost call and to those in between.
#[test]
fn a_jump_over_several_levels_releases_exactly_those() {
    for levels in 1..=4 {
        for target in 0..levels {
            for from in [From::Foreign, From::Managed] {
                jump_over_levels(levels, target, from);
            }
        }
    }
}

/// One call, a hundred jumps: each is repaired when the next callback comes, the last when the call returns. (`tests/allocations.rs` holds that nothing grows.)
#[test]
fn a_hundred_jumps_in_one_call_are_repaired_one_by_one() {
    for from in [From::Foreign, From::Managed] {
        let world = world::<Correct>();
        let mut mutator = world.attach().unwrap();
        let outer = text(&world, "outer");
        let last = Mutex::new(None);
        let script = Script::<Correct>::new([Box::new(|mutator, n, _| {
            TestVm::collect_in(mutator).unwrap();
            let before = last.lock().unwrap().replace(text(&world, &format!("object {n}")));
            if let Some(before) = before {
                assert!(is_freed(&world, before), "the last one's pin has ended");
            }
            assert_eq!((mutator.depth(), world.vm().heap().live_objects()), (1, 2));
            let object = last.lock().unwrap().unwrap();
            let mut call = mutator.foreign_call();
            call.pin(object).unwrap();
            call.run(|| ());
            // SAFETY: the point is set by C that waits for this upcall.
            call.run(|| unsafe {
                if from == From::Foreign {
                    foreign_jump(3)
                }
            });
            // SAFETY: as above.
            unsafe { foreign_jump(3) }
        })]);
        let mut call = mutator.foreign_call();
        call.pin(outer).unwrap();
        // SAFETY: the script lives.
        let landed = call.run(|| unsafe { foreign_land_many(3, first::<Correct>(), 100, script.data()) });
        assert_eq!(landed, 100);
        drop(call);
        let reports = skipped(&world);
        assert!(reports.iter().all(|&n| n == 1) && reports.len() == 64, "the last 64 are kept: {reports:?}");
        assert_eq!(TestVm::collect_in(&mut mutator).unwrap().live, 0);
    }
}

/// The upcall of twelve arguments, and that of a large struct: frames much larger than those of [`step`], and stack arguments in C's frame.
fn wide_step<const N: usize>(
    mutator: &mut Mutator<TestVm>,
    (a, b, c, d, e, f): (i64, i64, i64, i64, i64, i64),
    (g, h, i, j, k): (i64, i64, i64, i64, i64),
    data: *mut c_void,
) -> i64 {
    let sum = a + b + c + d + e + f + g + h + i + j + k;
    assert_eq!(black_box(sum), 2047, "the arguments are C's");
    i64::from(step::<Correct, N>(mutator, 0, data))
}

type WideStep = extern "C" fn(i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, *mut c_void) -> i64;

fn wide<const N: usize>() -> WideStep {
    upcall_fn(|mutator: &mut Mutator<TestVm>, a, b, c, d, e, f, g, h, i, j, k, data| {
        wide_step::<N>(mutator, (a, b, c, d, e, f), (g, h, i, j, k), data)
    })
}

fn large_step<const N: usize>(mutator: &mut Mutator<TestVm>, large: Large, data: *mut c_void) -> i64 {
    for (n, word) in black_box(large).words.into_iter().enumerate() {
        assert_eq!(word, n as i64, "the struct is C's");
    }
    i64::from(step::<Correct, N>(mutator, 0, data))
}

fn large<const N: usize>() -> extern "C" fn(Large, *mut c_void) -> i64 {
    upcall_fn(large_step::<N>)
}

/// Two upcalls of one foreign call, of different functions; the first, and `under` upcalls under it, are skipped.
fn jump_between_shapes(name: &str, exact: bool, c: impl Fn(*mut c_void) -> i64, under: c_int, from: From) {
    let world = world::<Correct>();
    let mut mutator = world.attach().unwrap();
    let (outer, inner) = (text(&world, "outer"), text(&world, "inner"));
    let depth = AtomicU32::new(0);
    let script = Script::<Correct>::new([
        Box::new(|mutator, x, data| {
            let mut call = mutator.foreign_call();
            call.pin(inner).unwrap();
            call.run(|| ());
            if x == under {
                drop(call);
                jump(mutator, from, 0);
            }
            // SAFETY: the script lives.
            call.run(|| unsafe { foreign_call_back_last(first::<Correct>(), x + 1, data) })
        }),
        Box::new(|mutator, _, _| {
            depth.store(collect_twice(mutator) as u32, Ordering::Relaxed);
            assert_text(&world, outer, "outer");
            17
        }),
    ]);
    let mut call = mutator.foreign_call();
    call.pin(outer).unwrap();
    let result = call.run(|| c(script.data()));
    assert_eq!(result, 17, "{name}, {under} below, {from:?}");
    drop(call);
    let (depth, skipped) = (depth.load(Ordering::Relaxed), skipped(&world));
    let what = format!("{name}, {under} below, {from:?}: depth {depth}, {skipped:?}");
    let all = under as usize + 1;
    if exact {
        assert_eq!((depth, &skipped[..]), (1, &[all][..]), "{what}");
    } else {
        // The last of them found at the upcall, or when the call returned.
        assert_eq!(skipped.iter().sum::<usize>(), all, "{what}");
        assert!(depth == 1 && skipped == [all] || depth == 2, "{what}");
    }
    let last = TestVm::collect_in(&mut mutator).unwrap();
    assert_eq!((last.live, mutator.depth()), (0, 0), "{what}");
}

/// The stack pointer of an upcall function depends on its own frame and its stack arguments, so that of the upcall after the jump may lie below that of the one that was
/// skipped. What is compared is the stack pointer of the C function that calls, which the two share but for stack arguments.
#[test]
fn the_upcall_after_a_jump_may_be_another_function_with_another_frame() {
    // SAFETY (all four): the callbacks are those of a script that lives.
    let small_wide = |data| unsafe { foreign_land_and_call_wide(0, first::<Correct>(), wide::<1>(), data) };
    // SAFETY: as above.
    let wide_small = |data| unsafe { foreign_land_wide_and_call(0, wide::<0>(), next::<Correct>(), data) };
    // SAFETY: as above.
    let small_large =
        |data| unsafe { foreign_land_and_call_large(0, first::<Correct>(), large::<1>(), data) };
    // SAFETY: as above.
    let large_small = |data| unsafe { foreign_land_large_and_call(0, large::<0>(), next::<Correct>(), data) };
    for from in [From::Foreign, From::Managed] {
        for under in 0..3 {
            jump_between_shapes("then twelve arguments", true, small_wide, under, from);
            jump_between_shapes("after twelve arguments", true, wide_small, under, from);
            jump_between_shapes("then 256 bytes", false, small_large, under, from);
            jump_between_shapes("after 256 bytes", true, large_small, under, from);
        }
    }
}
