//! Upcalls on stacks that C has made, in a frame of its own or elsewhere, for coroutines and for signal handlers; nested as they should be, and jumped out of.
//!
//! No call that is not over loses what it declared, wherever the stacks lie. What was jumped over is released, at the next upcall where something tells, and else when the call returns.

use core::cell::RefCell;
use core::ffi::{c_int, c_void};
use core::ptr;
use reentry::testkit::heap::Fate;
use reentry::testkit::{Ref, TestVm};
use reentry::{Mutator, World, upcall_fn};
use reentry_foreign::{NESTS, Nest};

/// A stack that C makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stack {
    in_frame: bool,
    for_signals: bool,
}

const STACKS: [Stack; 4] = [
    Stack { in_frame: true, for_signals: false },
    Stack { in_frame: false, for_signals: false },
    Stack { in_frame: true, for_signals: true },
    Stack { in_frame: false, for_signals: true },
];

type Body<'s> = Box<dyn Fn(&mut Mutator<TestVm>, *mut c_void) -> c_int + 's>;
type Step = extern "C" fn(c_int, *mut c_void) -> c_int;

/// The bodies of a scenario's upcalls.
struct Script<'s>(Vec<Body<'s>>);

impl Script<'_> {
    fn data(&self) -> *mut c_void {
        ptr::from_ref(self).cast_mut().cast()
    }
}

fn body<const N: usize>(mutator: &mut Mutator<TestVm>, _: c_int, data: *mut c_void) -> c_int {
    // SAFETY: C passes on the data pointer of a script, which outlives the call.
    let script = unsafe { &*data.cast::<Script<'_>>() };
    (script.0[N])(mutator, data)
}

/// The upcall that runs body `N`.
fn step<const N: usize>() -> Step {
    upcall_fn(body::<N>)
}

fn text(mutator: &Mutator<TestVm>, text: &str) -> Ref {
    mutator.vm().heap().alloc(&[], text.as_bytes())
}

/// Whether the object is as it was, after two collections.
fn lives(mutator: &mut Mutator<TestVm>, object: Ref) -> bool {
    for _ in 0..2 {
        TestVm::collect_in(mutator).unwrap();
    }
    match mutator.vm().heap().check(object) {
        Ok(_) => true,
        Err(stale) => {
            assert!(matches!(stale.fate, Fate::Freed { .. }), "{stale:?}");
            false
        }
    }
}

/// How many upcalls each report says were skipped.
fn skipped(world: &World<TestVm>) -> Vec<usize> {
    let number = |report: &String| {
        let rest = report.strip_prefix("foreign code skipped the frames of ").expect("no other report");
        rest.split(' ').next().unwrap().parse().unwrap()
    };
    world.vm().take_reports().iter().map(number).collect()
}

/// Runs body 0 in an upcall that C makes with a stack at hand, in a foreign call that has an object pinned; and checks what is left.
fn in_c_with_a_stack(world: &World<TestVm>, nest: Nest, stack: Stack, script: &Script<'_>) {
    let mut mutator = world.attach().unwrap();
    let pinned = text(&mutator, "the outermost call's");
    let mut call = mutator.foreign_call();
    call.pin(pinned).unwrap();
    let with = if stack.in_frame { nest.with_stack_in_frame } else { nest.with_stack_on_heap };
    // SAFETY: the script lives.
    let result = call.run(|| unsafe { with(c_int::from(stack.for_signals), step::<0>(), 0, script.data()) });
    assert_eq!(result, 0, "{nest:?} {stack:?}");
    drop(call);
    assert!(mutator_is_clean(world, &mut mutator, pinned));
}

/// Says whether nothing is held any more.
fn mutator_is_clean(world: &World<TestVm>, mutator: &mut Mutator<TestVm>, pinned: Ref) -> bool {
    assert_eq!(mutator.depth(), 0);
    assert!(!lives(mutator, pinned));
    world.vm().heap().live_objects() == 0
}

/// Everything nests: nothing is released, nothing is reported.
fn nested(nest: Nest, stack: Stack) {
    let world = World::new(TestVm::new());
    let objects = RefCell::new(Vec::new());
    let all_live =
        |mutator: &mut Mutator<TestVm>| objects.borrow().iter().all(|&object| lives(mutator, object));
    let script = Script(vec![
        Box::new(|mutator, data| {
            objects.borrow_mut().push(text(mutator, "a call's below the stack"));
            let mut call = mutator.foreign_call();
            call.pin(objects.borrow()[0]).unwrap();
            // SAFETY: the script lives.
            assert_eq!(call.run(|| unsafe { (nest.on_stack)(step::<1>(), 0, data) }), 7);
            drop(call);
            assert_eq!(mutator.depth(), 1);
            0
        }),
        Box::new(|mutator, data| {
            assert_eq!(mutator.depth(), 2, "{nest:?} {stack:?}");
            assert!(all_live(mutator), "{nest:?} {stack:?}");
            objects.borrow_mut().push(text(mutator, "a call's on the stack"));
            let mut call = mutator.foreign_call();
            call.pin(objects.borrow()[1]).unwrap();
            let (first, none) = (step::<2>(), None);
            // SAFETY: the script lives.
            assert_eq!(call.run(|| unsafe { (nest.land_twice)(0, first, none, 0, data) }), -2);
            drop(call);
            assert_eq!(mutator.depth(), 2);
            7
        }),
        Box::new(|mutator, _| {
            assert_eq!(mutator.depth(), 3, "{nest:?} {stack:?}");
            assert!(all_live(mutator), "{nest:?} {stack:?}");
            0
        }),
    ]);
    in_c_with_a_stack(&world, nest, stack, &script);
    assert_eq!(skipped(&world), [0; 0], "{nest:?} {stack:?}");
}

/// C jumps on the stack itself, and calls back from the function that it has landed in.
fn jumped_on_the_stack(nest: Nest, stack: Stack) {
    let world = World::new(TestVm::new());
    let objects = RefCell::new(Vec::new());
    let script = Script(vec![
        Box::new(|mutator, data| {
            objects.borrow_mut().push(text(mutator, "a call's below the stack"));
            let mut call = mutator.foreign_call();
            call.pin(objects.borrow()[0]).unwrap();
            // SAFETY: the script lives.
            assert_eq!(call.run(|| unsafe { (nest.on_stack)(step::<1>(), 0, data) }), 7);
            drop(call);
            assert_eq!(mutator.depth(), 1);
            0
        }),
        Box::new(|mutator, data| {
            objects.borrow_mut().push(text(mutator, "the call's that is landed in"));
            let mut call = mutator.foreign_call();
            call.pin(objects.borrow()[1]).unwrap();
            let (first, next) = (step::<2>(), step::<3>());
            // SAFETY: the script lives.
            assert_eq!(call.run(|| unsafe { (nest.land_twice)(0, first, Some(next), 0, data) }), 9);
            drop(call);
            assert_eq!(mutator.depth(), 2);
            7
        }),
        Box::new(|mutator, _| {
            assert_eq!(mutator.depth(), 3);
            objects.borrow_mut().push(text(mutator, "a call's that is jumped over"));
            let mut call = mutator.foreign_call();
            call.pin(objects.borrow()[2]).unwrap();
            // SAFETY: the point is set by C that waits for this upcall.
            call.run(|| -> () { unsafe { (nest.jump_to)(0) } });
            unreachable!("it has jumped")
        }),
        // The frame of the skipped upcall is this one's now: that tells, whether there are tables or not.
        Box::new(|mutator, _| {
            assert_eq!((mutator.depth(), skipped(&world)), (3, vec![1]), "{nest:?} {stack:?}");
            let lives: Vec<_> = objects.borrow().iter().map(|&object| lives(mutator, object)).collect();
            assert_eq!(lives, [true, true, false], "{nest:?} {stack:?}");
            9
        }),
    ]);
    in_c_with_a_stack(&world, nest, stack, &script);
    assert_eq!(skipped(&world), [0; 0], "{nest:?} {stack:?}");
}

/// C jumps from the stack to a function on the thread's own, and calls back from there.
fn jumped_off_the_stack(nest: Nest, stack: Stack) {
    let world = World::new(TestVm::new());
    let objects = RefCell::new(Vec::new());
    let depth = RefCell::new(0);
    let script = Script(vec![
        Box::new(|mutator, data| {
            objects.borrow_mut().push(text(mutator, "the call's that is landed in"));
            let mut call = mutator.foreign_call();
            call.pin(objects.borrow()[0]).unwrap();
            let (first, next) = (step::<1>(), step::<3>());
            // SAFETY: the script lives.
            assert_eq!(call.run(|| unsafe { (nest.land_twice)(0, first, Some(next), 0, data) }), 9);
            drop(call);
            assert_eq!(mutator.depth(), 1);
            let found_late = *depth.borrow() != 2;
            assert_eq!(skipped(&world), if found_late { vec![2] } else { vec![] }, "{nest:?} {stack:?}");
            assert!(!objects.borrow().iter().any(|&object| lives(mutator, object)));
            0
        }),
        Box::new(|mutator, data| {
            objects.borrow_mut().push(text(mutator, "a skipped call's on the thread's stack"));
            let mut call = mutator.foreign_call();
            call.pin(objects.borrow()[1]).unwrap();
            // SAFETY: the script lives.
            call.run(|| unsafe { (nest.on_stack)(step::<2>(), 0, data) });
            unreachable!("it has jumped")
        }),
        Box::new(|mutator, _| {
            assert_eq!(mutator.depth(), 3);
            objects.borrow_mut().push(text(mutator, "a skipped call's on the stack"));
            let mut call = mutator.foreign_call();
            call.pin(objects.borrow()[2]).unwrap();
            // SAFETY: the point is set by C that waits for this upcall.
            call.run(|| -> () { unsafe { (nest.jump_to)(0) } });
            unreachable!("it has jumped")
        }),
        Box::new(|mutator, _| {
            *depth.borrow_mut() = mutator.depth();
            let found = mutator.depth() == 2;
            assert!(found || mutator.depth() == 4, "{nest:?} {stack:?}");
            let lives: Vec<_> = objects.borrow().iter().map(|&object| lives(mutator, object)).collect();
            assert_eq!(lives, [true, !found, !found], "{nest:?} {stack:?}");
            assert_eq!(skipped(&world), if found { vec![2] } else { vec![] }, "{nest:?} {stack:?}");
            9
        }),
    ]);
    in_c_with_a_stack(&world, nest, stack, &script);
    assert_eq!(skipped(&world), [0; 0], "{nest:?} {stack:?}");
}

/// Each of them with each stack and each C.
pub(crate) fn run_all() -> usize {
    let scenarios: [fn(Nest, Stack); 3] = [nested, jumped_on_the_stack, jumped_off_the_stack];
    let mut count = 0;
    for nest in NESTS {
        for stack in STACKS {
            for scenario in scenarios {
                // Twice: what the first has left behind must not matter.
                scenario(nest, stack);
                scenario(nest, stack);
                count += 1;
            }
        }
    }
    count
}
