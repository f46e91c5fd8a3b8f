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
    Always, Capture, Crossing, ErrorPolicy, FenceStrategy, ForeignCall, FrameKind, MachineState, Mutator,
    Report, RootVisitor, Segment, StackScanner, Throwing, UpcallClosure, Vm, World, upcall_fn, upcall_fn_or,
};
use reentry_foreign::{
    Large, foreign_call_back, foreign_call_back_last, foreign_jump, foreign_land, foreign_land_and_call,
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

pub(crate) fn world<F: FaultSet>() -> World<TestVm<F>> {
    TestVm::<F>::builder_without(Program::new(Vec::new()).unwrap()).build_world()
}

pub(crate) fn text<F: FaultSet>(world: &World<TestVm<F>>, text: &str) -> Ref {
    world.vm().heap().alloc(&[], text.as_bytes())
}

#[track_caller]
pub(crate) fn assert_text<F: FaultSet>(world: &World<TestVm<F>>, reference: Ref, text: &str) {
    assert_eq!(world.vm().heap().bytes(reference).as_deref(), Ok(text.as_bytes()));
}

pub(crate) fn is_freed<F: FaultSet>(world: &World<TestVm<F>>, reference: Ref) -> bool {
    matches!(world.vm().heap().check(reference), Err(stale) if matches!(stale.fate, Fate::Freed { .. }))
}

/// The bodies of a test's upcalls, which C gets as functions of a number and a data pointer.
pub(crate) type Body<'s, F> = Box<dyn Fn(&mut Mutator<TestVm<F>>, c_int, *mut c_void) -> c_int + 's>;

pub(crate) struct Script<'s, F: FaultSet>(Vec<Body<'s, F>>);

impl<'s, F: FaultSet> Script<'s, F> {
    pub(crate) fn new<const N: usize>(bodies: [Body<'s, F>; N]) -> Self {
        Self(bodies.into())
    }

    pub(crate) fn data(&self) -> *mut c_void {
        ptr::from_ref(self).cast_mut().cast()
    }
}

/// The upcall that runs body `N` of the script its data pointer names.
pub(crate) fn step<F: FaultSet, const N: usize>(
    mutator: &mut Mutator<TestVm<F>>,
    x: c_int,
    data: *mut c_void,
) -> c_int {
    // SAFETY: C passes on the data pointer of a script, which outlives the call.
    let script = unsafe { &*data.cast::<Script<'_, F>>() };
    (script.0[N])(mutator, x, data)
}

pub(crate) type Step = extern "C" fn(c_int, *mut c_void) -> c_int;

fn first<F: FaultSet>() -> Step {
    upcall_fn(Always(step::<F, 0>))
}

pub(crate) fn next<F: FaultSet>() -> Step {
    upcall_fn(Always(step::<F, 1>))
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
        From::Managed => unsafe { mutator.leaf_call(|_| -> () { foreign_jump(point) }) },
    }
    unreachable!("it has jumped")
}

/// Collects twice and returns the depth.
pub(crate) fn collect_twice<F: FaultSet>(mutator: &mut Mutator<TestVm<F>>) -> c_int {
    for _ in 0..2 {
        TestVm::collect_in(mutator).unwrap();
    }
    mutator.depth() as c_int
}

/// The activations a collector sees, newest first.
pub(crate) fn chain<F: FaultSet>(mutator: &mut Mutator<TestVm<F>>) -> Vec<(usize, FrameKind)> {
    let (anchor, id) = (TestVm::idle_anchor(mutator), mutator.id());
    mutator.pause_at(anchor, |stopped| {
        let this = stopped.mutators().find(|mutator| mutator.id() == id).unwrap();
        View::of(stopped.vm(), &this).chain.iter().map(|seen| (seen.depth, seen.kind)).collect()
    })
}

/// The chain of a pause in an upcall of the first foreign call.
pub(crate) const ONE_UPCALL: [(usize, FrameKind); 2] =
    [(1, FrameKind::Safepoint), (0, FrameKind::ForeignCall)];

/// How many upcalls the reports say were skipped, one number for each report; every report must be of that kind.
#[track_caller]
pub(crate) fn skipped<F: FaultSet>(world: &World<TestVm<F>>) -> Vec<usize> {
    let reports = world.vm().take_reports();
    reports.iter().map(|report| skipped_in(report)).collect()
}

#[track_caller]
pub(crate) fn skipped_in(report: &str) -> usize {
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
    assert_eq!(world.vm().take_reports(), Vec::<String>::new());
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
/// skipped. What is compared is the stack pointer of the C function that calls, which the two share but for their stack arguments.
///
/// What that leaves: an upcall with more bytes of stack arguments than the frames of the skipped upcall take lies below them in every respect. It is taken for an upcall of the skipped foreign
/// call, and the jump is found when the outer call returns ("then 256 bytes" in optimised code). If the skipped upcall was managed there is no call it could belong to, and it is
/// refused as a call from managed code is: the process ends. That is why a jump should leave from a foreign call.
#[test]
fn the_upcall_after_a_jump_may_be_another_function_with_another_frame() {
    // SAFETY: the callbacks are those of a script that lives; here and below.
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
            // Six of the twelve lie on the stack, which is more than the skipped frames take where the optimiser sees a whole crate.
            let exact = cfg!(debug_assertions);
            if exact || (from, under) != (From::Managed, 0) {
                jump_between_shapes("then twelve arguments", exact, small_wide, under, from);
            }
            jump_between_shapes("after twelve arguments", true, wide_small, under, from);
            if (from, under) != (From::Managed, 0) {
                jump_between_shapes("then 256 bytes", false, small_large, under, from);
            }
            jump_between_shapes("after 256 bytes", true, large_small, under, from);
        }
    }
}

/// What is found later only: C has landed, and calls back from further down than the skipped foreign call was. No stack pointer tells. The upcall counts as one of the skipped
/// call; when the outer call returns, or C calls back from further up, the jump is found.
#[test]
fn a_jump_that_c_calls_back_from_below_is_found_when_the_call_returns() {
    let world = world::<Correct>();
    let mut mutator = world.attach().unwrap();
    let (outer, inner) = (text(&world, "outer"), text(&world, "inner"));
    let depth = AtomicU32::new(0);
    let script = Script::<Correct>::new([
        Box::new(|mutator, _, _| {
            let mut call = mutator.foreign_call();
            call.pin(inner).unwrap();
            // SAFETY: the point is set by C that waits for this upcall.
            call.run(|| -> () { unsafe { foreign_jump(0) } });
            unreachable!("it has jumped")
        }),
        Box::new(|mutator, _, _| {
            depth.store(collect_twice(mutator) as u32, Ordering::Relaxed);
            assert_text(&world, outer, "outer");
            assert_text(&world, inner, "inner");
            assert_eq!(skipped(&world), [0_usize; 0], "not yet");
            5
        }),
    ]);
    let (first, next) = (first::<Correct>(), next::<Correct>());
    let mut call = mutator.foreign_call();
    call.pin(outer).unwrap();
    // SAFETY: the script lives.
    let result = call.run(|| unsafe { foreign_land_and_call_below(0, first, next, 0, script.data(), 256) });
    assert_eq!((result, depth.load(Ordering::Relaxed)), (5, 2));
    assert_eq!(skipped(&world), [1], "found on the way back");
    drop(call);
    assert_eq!((mutator.depth(), TestVm::collect_in(&mut mutator).unwrap().live), (0, 0));
}

/// A skipped call with everything a call can have: pins, memory, terms of its own, an error it carries, and the foreign state entered by hand.
fn skip_a_call(how: fn(&mut Mutator<TestVm>, *mut c_void)) -> (Result<c_int, Trap>, Vec<String>) {
    let world = world::<Correct>();
    let mut mutator = world.attach().unwrap();
    let script = Script::<Correct>::new([
        Box::new(move |mutator, _, data| {
            how(mutator, data);
            unreachable!("it has jumped")
        }),
        // The next call at the same depth finds nothing of the skipped call's terms: it may call back, and errors of its upcalls are carried.
        Box::new(|mutator, x, data| {
            if x > 0 {
                return collect_twice(mutator);
            }
            let rounding = rounding();
            let mut call = mutator.foreign_call();
            // SAFETY: the script lives.
            let depth = call.run(|| unsafe { foreign_call_back_last(next::<Correct>(), 1, data) });
            // SAFETY: as above.
            let thrown = call.try_run(|| unsafe { foreign_call_back_last(throwing(), 7, data) });
            assert_eq!((depth, thrown), (2, Err(Trap::NoSuchNative(7))));
            drop(call);
            assert_eq!(rounding, self::rounding(), "nobody has put back what nobody saved");
            depth
        }),
    ]);
    let (first, next) = (first::<Correct>(), next::<Correct>());
    let mut call = mutator.foreign_call();
    // SAFETY: the script lives.
    let outcome = call.try_run(|| unsafe { foreign_land_and_call(0, first, next, 0, script.data()) });
    drop(call);
    assert_eq!((mutator.depth(), TestVm::collect_in(&mut mutator).unwrap().live), (0, 0));
    (outcome, world.vm().take_reports())
}

/// An upcall that throws `NoSuchNative(x)`, after which C sees -9.
pub(crate) fn throwing() -> Step {
    /// # Errors
    ///
    /// Always.
    fn body(_: &mut Mutator<TestVm>, x: c_int, _: *mut c_void) -> Result<c_int, Trap> {
        Err(Trap::NoSuchNative(x as u16))
    }
    upcall_fn_or(Throwing(body), || -9)
}

/// The rounding mode of floating-point arithmetic.
pub(crate) fn rounding() -> c_int {
    // SAFETY: it reads a register.
    unsafe { fegetround() }
}

/// Has C round upwards from now on.
pub(crate) fn round_upward() {
    // SAFETY: it sets a register; the callers put it back.
    assert_eq!(unsafe { fesetround(UPWARD) }, 0);
}

unsafe extern "C" {
    fn fegetround() -> c_int;
    fn fesetround(mode: c_int) -> c_int;
}

/// `FE_UPWARD`.
pub(crate) const UPWARD: c_int = if cfg!(target_arch = "x86_64") { 0x800 } else { 0x40_0000 };

/// Declares in `call` what makes a difference if it is not given back.
fn declare(call: &mut ForeignCall<'_, TestVm>, object: Ref) {
    call.pin(object).unwrap();
    call.root(object);
    call.copy([1_u64; 512]);
    call.copy_c_str("text").unwrap();
}

#[track_caller]
fn assert_skipped_one(reports: &[String]) {
    assert_eq!(reports.iter().map(|report| skipped_in(report)).collect::<Vec<_>>(), [1]);
}

#[test]
fn a_skipped_call_leaves_none_of_its_terms_behind() {
    let ways: [fn(&mut Mutator<TestVm>, *mut c_void); 4] = [
        |mutator, _| {
            let object = text(&mutator.vm().world().unwrap(), "object");
            let mut call = mutator.foreign_call().without_upcalls();
            declare(&mut call, object);
            // SAFETY: the point is set by C that waits for this upcall; here and below.
            call.run(|| -> () { unsafe { foreign_jump(0) } });
        },
        |mutator, _| {
            let mut call = mutator.foreign_call().on_error(ErrorPolicy::Abort);
            // SAFETY: as above.
            call.run(|| -> () { unsafe { foreign_jump(0) } });
        },
        |mutator, _| {
            let mut call = mutator.foreign_call().preserving(MachineState::ALL).blocking();
            // SAFETY: as above.
            call.run(|| -> () { unsafe { foreign_jump(0) } });
        },
        |mutator, _| {
            let object = text(&mutator.vm().world().unwrap(), "object");
            let anchor = TestVm::idle_anchor(mutator);
            let mut call = mutator.foreign_call().at(anchor).without_upcalls();
            declare(&mut call, object);
            // SAFETY: the mutator is not used any more, and what is called is called from here.
            let _foreign = unsafe { call.enter() };
            // SAFETY: as above.
            unsafe { foreign_jump(0) }
        },
    ];
    for way in ways {
        let (outcome, reports) = skip_a_call(way);
        assert_eq!(outcome, Ok(2));
        assert_skipped_one(&reports);
    }
}

/// What C changed in the machine before it jumped out of a call that preserves it stays C's affair, as `longjmp` leaves it; a call above that preserves it puts it back.
#[test]
fn a_jump_out_of_a_call_that_preserves_machine_state_ends_at_the_call_that_does() {
    let world = world::<Correct>();
    let mut mutator = world.attach().unwrap();
    let script = Script::<Correct>::new([
        Box::new(|mutator, _, _| {
            let mut call = mutator.foreign_call().preserving(MachineState::FLOATING_POINT);
            call.run(|| -> () {
                round_upward();
                // SAFETY: the point is set by C that waits for this upcall.
                unsafe { foreign_jump(0) }
            });
            unreachable!("it has jumped")
        }),
        Box::new(|_, _, _| rounding()),
    ]);
    let before = rounding();
    assert_ne!(before, UPWARD);
    let (first, next) = (first::<Correct>(), next::<Correct>());
    let mut call = mutator.foreign_call().preserving(MachineState::FLOATING_POINT);
    let (in_upcall, in_c) = call.run(|| {
        // SAFETY: the script lives.
        let in_upcall = unsafe { foreign_land_and_call(0, first, next, 0, script.data()) };
        (in_upcall, rounding())
    });
    assert_eq!(
        (in_upcall, in_c, rounding()),
        (before, UPWARD, before),
        "managed code has its own, C what it set"
    );
    assert_eq!(skipped(&world), [1]);
}

/// The error of an upcall of the skipped call has nobody left to go to, and is reported; that of an upcall of the outer call is carried.
#[test]
fn an_error_that_a_skipped_call_carried_is_reported_as_superseded() {
    let (outcome, reports) = skip_a_call(|mutator, data| {
        mutator.foreign_call().run(|| {
            // SAFETY: the script lives.
            assert_eq!(unsafe { foreign_call_back_last(throwing(), 3, data) }, -9, "C got the fallback");
            // SAFETY: the point is set by C that waits for this upcall.
            unsafe { foreign_jump(0) }
        })
    });
    assert_eq!(outcome, Ok(2));
    assert_skipped_one(&reports[..1]);
    assert!(reports[1].contains("threw NoSuchNative(3); another error"), "{reports:?}");
    assert_eq!(reports.len(), 2);
}

#[test]
fn an_exception_thrown_before_the_jump_goes_on_in_the_outer_call() {
    for from in [From::Foreign, From::Managed] {
        let (outcome, reports) = if from == From::Foreign {
            skip_a_call(|mutator, _| {
                mutator.throw(Trap::NoSuchNative(4));
                jump(mutator, From::Foreign, 0);
            })
        } else {
            skip_a_call(|mutator, _| {
                mutator.throw(Trap::NoSuchNative(4));
                jump(mutator, From::Managed, 0);
            })
        };
        assert_eq!(outcome, Err(Trap::NoSuchNative(4)), "{from:?}");
        assert_skipped_one(&reports);
    }
}

/// Another thread collects all the time: what is released is never read by it, and each jump is repaired while pauses are wanted.
#[test]
fn jumps_are_repaired_while_another_thread_pauses_the_world() {
    for fence in [FenceStrategy::Symmetric, FenceStrategy::Asymmetric] {
        if !fence.is_supported() {
            continue;
        }
        let world = TestVm::builder(Program::new(Vec::new()).unwrap())
            .build_world_with(World::builder().fence(fence));
        let (stop, pauses, jumps) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let collector = scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    world.pause(|stopped| {
                        // Every root of every activation names an object, or the collection is in error.
                        stopped.vm().collect(stopped).unwrap();
                        for mutator in stopped.mutators() {
                            let chain = View::of(stopped.vm(), &mutator).chain;
                            let depths: Vec<_> = chain.iter().map(|seen| seen.depth).collect();
                            assert_eq!(depths, (0..depths.len()).rev().collect::<Vec<_>>());
                        }
                    });
                    pauses.fetch_add(1, Ordering::Relaxed);
                }
            });
            let jumper = || {
                let mut mutator = world.attach().unwrap();
                let script = Script::<Correct>::new([
                    Box::new(|mutator, x, data| {
                        mutator.poll();
                        let mut call = mutator.foreign_call();
                        // Pinned at once: until it is published, this thread passes no safepoint.
                        call.pin(text(&world, "a skipped call's")).unwrap();
                        call.root(text(&world, "another"));
                        // SAFETY: the script lives; the point is set by C that waits for this upcall.
                        call.run(|| unsafe {
                            match x {
                                0 => foreign_jump(0),
                                1 => {}
                                _ => _ = foreign_call_back_last(first::<Correct>(), x - 2, data),
                            }
                        });
                        // SAFETY: as above.
                        unsafe { foreign_jump(0) }
                    }),
                    Box::new(|mutator, _, _| {
                        mutator.poll();
                        mutator.depth() as c_int
                    }),
                ]);
                let (first, next) = (first::<Correct>(), next::<Correct>());
                let started = Instant::now();
                let mut round = 0;
                // On a slow machine for longer: what is asserted below does not depend on its speed.
                let few = |count: &AtomicU64| count.load(Ordering::Relaxed) <= 100;
                while started.elapsed() < Duration::from_millis(700)
                    || (few(&jumps) || few(&pauses)) && started.elapsed() < Duration::from_secs(60)
                {
                    round += 1;
                    let mut call = mutator.foreign_call();
                    let outer = text(&world, "the outer call's");
                    call.pin(outer).unwrap();
                    let depth = call.run(|| {
                        // SAFETY: the script lives.
                        unsafe { foreign_land_and_call(0, first, next, round % 6, script.data()) }
                    });
                    assert_eq!(depth, 1);
                    assert_text(&world, outer, "the outer call's");
                    // SAFETY: as above. This one is repaired on the way back.
                    call.run(|| unsafe { foreign_land(0, first, round % 6, script.data()) });
                    assert_text(&world, outer, "the outer call's");
                    jumps.fetch_add(2, Ordering::Relaxed);
                }
            };
            let others: Vec<_> = (0..2).map(|_| scope.spawn(jumper)).collect();
            let ended: Vec<_> = others.into_iter().map(|thread| thread.join()).collect();
            stop.store(true, Ordering::Relaxed);
            collector.join().unwrap();
            ended.into_iter().for_each(|end| end.unwrap());
        });
        let (jumps, pauses) = (jumps.into_inner(), pauses.into_inner());
        assert!(jumps > 100 && pauses > 100, "{fence:?}: {jumps} jumps, {pauses} pauses");
        assert_eq!(world.pause(|stopped| stopped.vm().collect(stopped)).unwrap().live, 0);
    }
}

/// A thread that nobody knew: there is no managed caller, and the jump is repaired all the same, when C calls again, or when the thread ends.
#[test]
fn a_foreign_thread_may_jump_over_its_upcalls() {
    for from in [From::Foreign, From::Managed] {
        for calls_again in [true, false] {
            let world = world::<Correct>();
            let mut mutator = world.attach().unwrap();
            let calls = AtomicU32::new(0);
            let body = UpcallClosure::new(&world, |mutator: &mut Mutator<TestVm>, _: c_int| {
                let call = calls.fetch_add(1, Ordering::Relaxed);
                let object = text(&world, "the foreign thread's");
                if call == 1 {
                    assert_eq!(collect_twice(mutator), 1);
                    assert!(is_freed(&world, object));
                    let expected = [(1, FrameKind::Safepoint), (0, FrameKind::ForeignThread)];
                    assert_eq!(chain(mutator), expected);
                    assert_eq!(skipped(&world), [1]);
                    return 23;
                }
                let mut call = mutator.foreign_call();
                call.pin(object).unwrap();
                call.run(|| ());
                // SAFETY: C on this thread has set the point.
                call.run(|| unsafe {
                    if from == From::Foreign {
                        foreign_jump(0)
                    }
                });
                // SAFETY: as above.
                unsafe { foreign_jump(0) }
            });
            let (function, data) = (body.data_last(), body.data());
            let next = calls_again.then_some(function);
            // SAFETY: the data is the closure's, which outlives the thread.
            let result =
                mutator.foreign_call().run(|| unsafe { foreign_land_elsewhere(function, next, 0, data) });
            // Joining it does not wait for its last destructors on every system, so the pause below may have to.
            let last = TestVm::collect_in(&mut mutator).unwrap();
            assert_eq!(last.live, 0, "{from:?}, again: {calls_again}");
            if calls_again {
                assert_eq!(result, 23);
            } else {
                assert_eq!(result, -1);
                assert_eq!(skipped(&world), [1], "found when the thread ended");
            }
            assert_eq!(world.attached(), 1, "{from:?}: it was detached when it ended");
        }
    }
}

/// A VM with a global lock, kept by the hooks.
struct Locked {
    lock: AtomicBool,
    reports: Mutex<Vec<String>>,
}

impl Vm for Locked {
    type Ref = usize;
    type Local = ();
    type Exception = core::convert::Infallible;

    fn attach(&self) {}

    fn leaving_managed(&self, crossing: Crossing) {
        assert!(self.lock.swap(false, Ordering::Relaxed), "{crossing:?}: given up twice");
    }

    fn entering_managed(&self, crossing: Crossing) {
        assert!(!self.lock.swap(true, Ordering::Relaxed), "{crossing:?}: taken twice");
    }

    fn report(&self, report: &Report<'_>) {
        self.reports.lock().unwrap().push(report.to_string());
    }
}

// SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
unsafe impl StackScanner for Locked {
    fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
}

/// What a skipped upcall's way in took, its way back does not give up: the repair does, or the next way in would wait for ever. (A hook that panics ends the process.)
#[test]
fn the_hooks_stay_balanced_over_a_jump() {
    fn jump(mutator: &mut Mutator<Locked>, x: c_int, data: *mut c_void) -> c_int {
        assert!(mutator.vm().lock.load(Ordering::Relaxed));
        match x {
            // SAFETY: the point is set by C that waits for this upcall; here and below.
            0 => unsafe { mutator.leaf_call(|_| -> () { foreign_jump(0) }) },
            // SAFETY: as above.
            1 => mutator.foreign_call().run(|| -> () { unsafe { foreign_jump(0) } }),
            _ => {
                // SAFETY: as above.
                mutator
                    .foreign_call()
                    .run(|| unsafe { foreign_call_back_last(upcall_fn(jump), x - 2, data) });
            }
        }
        unreachable!("it has jumped")
    }
    fn look(mutator: &mut Mutator<Locked>, _: c_int, _: *mut c_void) -> c_int {
        assert!(mutator.vm().lock.load(Ordering::Relaxed));
        mutator.depth() as c_int
    }
    let world = World::new(Locked { lock: AtomicBool::new(false), reports: Mutex::default() });
    let mut mutator = world.attach().unwrap();
    for x in 0..6 {
        let none = ptr::null_mut();
        // SAFETY: the callbacks do not use the data.
        let depth = mutator
            .foreign_call()
            .run(|| unsafe { foreign_land_and_call(0, upcall_fn(jump), upcall_fn(look), x, none) });
        assert_eq!(depth, 1);
        // SAFETY: as above.
        mutator.foreign_call().run(|| unsafe { foreign_land(0, upcall_fn(jump), x, none) });
        assert!(world.vm().lock.load(Ordering::Relaxed), "managed, and so with the lock");
        let skipped: Vec<_> = world.vm().reports.lock().unwrap().drain(..).collect();
        let upcalls = 1 + x as usize / 2;
        assert_eq!(skipped.iter().map(|report| skipped_in(report)).collect::<Vec<_>>(), [upcalls, upcalls]);
    }
}

/// The same in bytecode, whose frames stand on a stack of the VM's own that moves: the outer frame goes on as if the upcall had returned, and its slots are right.
#[test]
fn interpreted_frames_go_on_after_a_jump_over_interpreted_frames() {
    const TEXT: &[u8] = b"an argument of the outer frame";
    const INNER: &[u8] = b"an argument of the skipped frame";
    // main(text, inner): call native 0(text, inner); check text; return native 1(text).
    let mut main = Function::builder("main");
    let outer = main.reference_parameter();
    let inner = main.reference_parameter();
    let result = main.integer_slot();
    main.foreign(None, 0, &[outer, inner]);
    main.check(outer);
    main.foreign(Some(result), 1, &[outer]);
    main.check(outer);
    main.give_back(result);
    // skipped(inner): native 2(inner), which jumps.
    let mut skipped_frame = Function::builder("skipped");
    let argument = skipped_frame.reference_parameter();
    skipped_frame.foreign(None, 2, &[argument]);
    skipped_frame.leave();
    let program = Program::new(vec![main.finish(), skipped_frame.finish()]).unwrap();

    fn call_skipped(mutator: &mut Mutator<TestVm>, _: c_int, _: *mut c_void) -> c_int {
        TestVm::collect_in(mutator).unwrap();
        let inner = mutator.vm().global(0);
        TestVm::call(mutator, "skipped", &[Value::Reference(inner)]).unwrap();
        unreachable!("it has jumped")
    }
    fn collect(mutator: &mut Mutator<TestVm>, _: c_int, _: *mut c_void) -> c_int {
        collect_twice(mutator)
    }
    let world = TestVm::builder(program)
        .native(|_: &TestVm, _| {
            let none = ptr::null_mut();
            // SAFETY: the callbacks do not use the data.
            let depth =
                unsafe { foreign_land_and_call(0, upcall_fn(call_skipped), upcall_fn(collect), 0, none) };
            assert_eq!(depth, 1);
            NativeResult::Nothing
        })
        .native(|_, arguments| {
            // SAFETY: the argument is pinned, and as long as `TEXT`.
            let bytes = unsafe { core::slice::from_raw_parts(arguments.bytes(0), TEXT.len()) };
            NativeResult::Integer(i64::from(bytes == TEXT))
        })
        // SAFETY: native 0 has set the point.
        .native(|_, _| unsafe { foreign_jump(0) })
        .build_world();
    let mut mutator = world.attach().unwrap();
    for _ in 0..50 {
        let (outer, inner) = (world.vm().heap().alloc(&[], TEXT), world.vm().heap().alloc(&[], INNER));
        if world.vm().totals().0 == 0 {
            world.vm().add_global(inner);
        }
        world.vm().set_global(0, inner);
        let before = mutator.local().stack_range().len();
        let result = TestVm::call(&mut mutator, "main", &[Value::Reference(outer), Value::Reference(inner)]);
        assert_eq!(result, Ok(Some(Value::Integer(1))));
        assert_eq!(skipped(&world), [1]);
        assert_eq!(mutator.local().stack_range().len(), before, "the operand stack does not grow");
    }
    assert_eq!(TestVm::collect_in(&mut mutator).unwrap().live, 1);
}

#[inline(never)]
fn in_a_frame_of_its_own<R>(f: impl FnOnce() -> R) -> R {
    black_box(f())
}

/// Two worlds of one type on a thread, calls of both on its stack: an upcall function that carries no world goes to the call that C is in, not to a skipped one that lies lower.
#[test]
fn with_two_worlds_on_a_thread_an_upcall_after_a_jump_comes_in_where_c_is() {
    for from in [From::Foreign, From::Managed] {
        let (a, b) = (world::<Correct>(), world::<Correct>());
        let (mut in_a, mut in_b) = (a.attach().unwrap(), b.attach().unwrap());
        let object = text(&b, "an object of world b");
        // A closure of world a, which the jump skips.
        let skip = UpcallClosure::new(&a, |mutator: &mut Mutator<TestVm>, _: c_int| jump(mutator, from, 0));
        let script = Script::<Correct>::new([Box::new(|mutator, _, _| {
            assert!(mutator.vm().heap().owns(object), "{from:?}: it runs in world b");
            collect_twice(mutator)
        })]);
        extern "C" fn first_of_two(x: c_int, data: *mut c_void) -> c_int {
            // SAFETY: the data of `call` below.
            let (function, data) = unsafe { *data.cast::<(Pass, (*mut c_void, *mut c_void))>() };
            // SAFETY: the closure's data.
            unsafe { function(x, data.0) }
        }
        extern "C" fn next_of_two(x: c_int, data: *mut c_void) -> c_int {
            // SAFETY: as above.
            let (_, data) = unsafe { *data.cast::<(Pass, (*mut c_void, *mut c_void))>() };
            upcall_fn(step::<Correct, 0>)(x, data.1)
        }
        type Pass = unsafe extern "C" fn(c_int, *mut c_void) -> c_int;
        let mut both: (Pass, (*mut c_void, *mut c_void)) = (skip.data_last(), (skip.data(), script.data()));
        let data = ptr::from_mut(&mut both).cast::<c_void>();
        let mut call = in_b.foreign_call();
        call.pin(object).unwrap();
        // Two calls made in one stack frame could not be told apart.
        let depth = in_a.foreign_call().run(|| {
            in_a_frame_of_its_own(|| {
                // SAFETY: the closure and the script live.
                call.run(|| unsafe { foreign_land_and_call(0, first_of_two, next_of_two, 0, data) })
            })
        });
        assert_eq!(depth, 1, "{from:?}");
        assert_eq!(
            (skipped(&a), skipped(&b)),
            (vec![1], vec![]),
            "{from:?}: found when the call of world a returned"
        );
        assert_text(&b, object, "an object of world b");
    }
}

/// A VM whose crossings write the callee-saved registers down, through an assembly routine with a frame of its own around it.
struct Conservative(Mutex<Vec<String>>);

impl Vm for Conservative {
    type Ref = usize;
    type Local = ();
    type Exception = core::convert::Infallible;
    const CAPTURE: Capture = Capture::Registers;

    fn attach(&self) {}

    fn report(&self, report: &Report<'_>) {
        self.0.lock().unwrap().push(report.to_string());
    }
}

// SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
unsafe impl StackScanner for Conservative {
    fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
}

/// The stack pointer of the function this is inlined into.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
fn stack_pointer() -> usize {
    let sp: usize;
    // SAFETY: it copies a register.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        core::arch::asm!("mov {}, rsp", out(reg) sp, options(nomem, nostack, preserves_flags));
        #[cfg(target_arch = "aarch64")]
        core::arch::asm!("mov {}, sp", out(reg) sp, options(nomem, nostack, preserves_flags));
    }
    sp
}

/// The foreign state entered by hand: whatever wrote the registers down has returned before C is called, so it must have had no frame of its own. With one, the crossing would lie below C's
/// frames: an upcall with a small frame would look like one after a jump, and a caller's registers would have been saved where C writes over them.
#[test]
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn foreign_code_entered_by_hand_lies_below_its_crossing() {
    thread_local! { static SP: core::cell::Cell<usize> = const { core::cell::Cell::new(0) }; }
    fn look(mutator: &mut Mutator<Conservative>, x: c_int) -> c_int {
        let crossing = mutator.pause(|stopped| {
            let this = stopped.mutators().next().unwrap();
            this.activations().nth(1).unwrap().segment().unwrap().words().start
        });
        assert_eq!(crossing, SP.get(), "the crossing is the frame's that entered");
        if x == 0 { mutator.depth() as c_int } else { enter_and_call_back(mutator, x - 1) }
    }
    #[inline(never)]
    fn enter_and_call_back(mutator: &mut Mutator<Conservative>, x: c_int) -> c_int {
        let mut call = mutator.foreign_call();
        call.root(17);
        let look = upcall_fn(look);
        SP.set(stack_pointer());
        // SAFETY: the mutator is not used until the guard is dropped, and what is called is called from here.
        let foreign = unsafe { call.enter() };
        // SAFETY: the callback takes an `int` and gives one. C jumps to it, so that it stands directly below this frame.
        let depth = unsafe { foreign_call_back(look, x) };
        drop(foreign);
        depth
    }
    let world = World::new(Conservative(Mutex::default()));
    let mut mutator = world.attach().unwrap();
    for levels in 0..3 {
        assert_eq!(enter_and_call_back(&mut mutator, levels), levels + 1);
    }
    assert_eq!(*world.vm().0.lock().unwrap(), Vec::<String>::new());
}
