//! The scenarios, each a function over the faults of its VM, and the tests that they pass without any.

use crate::programs::{RECURSION_64, recursion};
use core::cell::Cell;
use core::ffi::{c_int, c_void};
use core::panic::AssertUnwindSafe;
use reentry::explore::{Explored, Explorer};
use reentry::testkit::bytecode::{Function, Program, StackMove};
use reentry::testkit::heap::Fate;
use reentry::testkit::{
    Correct, FaultSet, Guard, NativeArgument, NativeArguments, NativeResult, Ref, TestVm, TestVmBuilder,
    Value, Walk,
};
use reentry::{Mutator, NoAddresses, UpcallClosure, World, upcall_fn};
use reentry_foreign::{
    Pair, foreign_call_back, foreign_call_back_below_64k, foreign_call_back_last, foreign_call_back_many,
    foreign_fill, foreign_jump, foreign_land, foreign_sum_twice,
};
use std::panic::catch_unwind;

pub(crate) const TEXT: &[u8] = b"the founding argument";

/// A scenario: what is explored, and in which world.
pub(crate) struct Scenario<F: FaultSet> {
    pub(crate) name: &'static str,
    pub(crate) world: Box<dyn Fn() -> World<TestVm<F>>>,
    pub(crate) run: fn(&World<TestVm<F>>),
}

impl<F: FaultSet> Scenario<F> {
    /// Explores it with everything that can arrive.
    pub(crate) fn explorer(&self) -> Explorer<'_, TestVm<F>> {
        self.stopping()
            .shaking_hands("look", |mutator| {
                let depths: Vec<_> = mutator.activations().map(|activation| activation.depth()).collect();
                let expected: Vec<_> = (0..depths.len()).rev().collect();
                if depths == expected { Ok(()) } else { Err(format!("the chain is {depths:?}")) }
            })
            .on_a_thread("attach", |world| {
                let mut mutator = world.attach().unwrap();
                let own = world.vm().heap().alloc(&[], b"another thread's");
                let mut call = mutator.foreign_call();
                let root = call.root(own);
                call.run(std::thread::yield_now);
                assert_eq!(world.vm().heap().bytes(call.get(root)).unwrap(), b"another thread's");
            })
            .on_a_thread("call in", |world| {
                let closure = UpcallClosure::new(world, |mutator: &mut Mutator<TestVm<F>>, x: c_int| {
                    mutator.vm().heap().alloc(&[], b"a foreign thread's");
                    mutator.poll();
                    x
                });
                let (function, data) = (closure.data_last(), closure.data());
                // SAFETY: the data pointer is the closure's own, and the closure lives.
                assert_eq!(unsafe { foreign_call_back_last(function, 5, data) }, 5);
            })
    }

    /// Explores it with pauses alone.
    pub(crate) fn stopping(&self) -> Explorer<'_, TestVm<F>> {
        Explorer::new(self.name, &self.world).pausing("collect", |stopped| stopped.vm().collect(stopped))
    }
}

/// A world whose program can recurse, on a stack that must grow for it.
fn recursive<F: FaultSet>() -> World<TestVm<F>> {
    TestVm::<F>::builder_without(Program::new(vec![recursion(0)]).unwrap())
        .stack_words(64)
        .on_report(|_| ())
        .build_world()
}

/// S1.1 and S1.2: the founding case, with `callbacks` callbacks in one call.
///
/// The argument is live where the caller's frame is when C runs and dead where it is inside the call sequence. Each callback grows the operand stack, so that it moves, allocates, and
/// shrinks it.
pub(crate) fn founding<F: FaultSet>(guard: Guard, walk: Walk, callbacks: usize) -> TestVmBuilder<F> {
    let mut callback = Function::builder("callback");
    let levels = callback.integer_slot();
    let own = callback.reference_slot();
    callback.poll();
    callback.integer(levels, 4);
    callback.call(None, 0, &[levels]);
    callback.bytes(own, b"allocated in the callback");
    callback.move_stack(StackMove::Shrink);
    callback.check(own);
    callback.leave();

    let mut main = Function::builder("main");
    let text = main.reference_parameter();
    let read = main.integer_slot();
    main.foreign(Some(read), 0, &[text]);
    main.give_back(read);
    let program = Program::new(vec![recursion(0), callback.finish(), main.finish()]).unwrap();
    TestVm::builder_without(program).guard(guard).walk(walk).stack_words(64).native(
        move |vm: &TestVm<F>, arguments: &NativeArguments<'_>| {
            let world = vm.world().unwrap();
            let callback = UpcallClosure::new(&world, |mutator: &mut Mutator<TestVm<F>>, x: c_int| {
                TestVm::call(mutator, "callback", &[]).unwrap();
                x
            });
            for _ in 0..callbacks {
                let (function, data) = (callback.data_last(), callback.data());
                // SAFETY: the data pointer is the closure's own, and the closure lives.
                unsafe { foreign_call_back_last(function, 1, data) };
            }
            let NativeArgument::Object { bytes, .. } = arguments.get(0) else {
                panic!("an object was passed")
            };
            match vm.guard() {
                // SAFETY: pinned: the bytes are where they were.
                Guard::Pins => NativeResult::Integer(
                    i64::try_from(unsafe { foreign_sum_twice(bytes, TEXT.len(), None) }).unwrap(),
                ),
                _ => NativeResult::Integer(sum_of_text()),
            }
        },
    )
}

fn sum_of_text() -> i64 {
    2 * TEXT.iter().map(|byte| i64::from(*byte)).sum::<i64>()
}

/// Runs `main` of [`founding`].
pub(crate) fn run_founding<F: FaultSet>(world: &World<TestVm<F>>) {
    let mut mutator = world.attach().unwrap();
    let text = world.vm().heap().alloc(&[], TEXT);
    let result = TestVm::call(&mut mutator, "main", &[Value::Reference(text)]).unwrap();
    assert_eq!(result, Some(Value::Integer(sum_of_text())));
}

/// Roots a text of its own, calls back `x` levels deeper, and looks at it again.
fn deeper<F: FaultSet>(mutator: &mut Mutator<TestVm<F>>, x: c_int) -> c_int {
    mutator.poll();
    let depth = mutator.depth();
    let text = format!("of depth {depth}");
    let object = mutator.vm().heap().alloc(&[], text.as_bytes());
    let mut call = mutator.foreign_call();
    let root = call.root(object);
    let pinned = call.pin(call.get(root)).unwrap();
    let mut result = 1;
    if x > 1 {
        // SAFETY: the callback takes an `int` and gives one.
        result += call.run(|| unsafe { foreign_call_back(upcall_fn(deeper::<F>), x - 1) });
    } else {
        call.run(std::thread::yield_now);
    }
    let (now, pinned) = (call.get(root), pinned.get());
    assert_eq!(now, pinned, "one object");
    drop(call);
    assert_eq!(mutator.vm().heap().bytes(now).unwrap(), text.as_bytes());
    assert_eq!(mutator.depth(), depth, "a nested upcall's end is not this one's");
    result
}

/// S1.2, S1.6, S1.8, S1.11: calls in upcalls, `levels` deep.
fn nested<F: FaultSet>(world: &World<TestVm<F>>, levels: c_int) {
    let mut mutator = world.attach().unwrap();
    assert_eq!(deeper(&mut mutator, levels), levels);
}

pub(crate) fn nested_3<F: FaultSet>(world: &World<TestVm<F>>) {
    nested(world, 3);
}

/// S1.3 and S1.5: an upcall that grows the stack below 64 KiB of C; results that cross it.
fn results<F: FaultSet>(world: &World<TestVm<F>>) {
    fn grow<F: FaultSet>(mutator: &mut Mutator<TestVm<F>>, x: c_int) -> c_int {
        TestVm::call(mutator, "recurse", &[Value::Integer(64)]).unwrap();
        assert!(mutator.local().stack_range().len() > RECURSION_64);
        2 * x
    }
    let mut mutator = world.attach().unwrap();
    let text = world.vm().heap().alloc(&[], TEXT);
    let mut call = mutator.foreign_call();
    let root = call.root(text);
    let out = call.copy(NoAddresses(Pair::default()));
    // SAFETY: the callback takes an `int` and gives one; `out` is the call's own memory.
    let result = call.run(|| unsafe {
        foreign_fill(out.as_ptr().cast(), upcall_fn(grow::<F>));
        foreign_call_back_below_64k(upcall_fn(grow::<F>), 21)
    });
    assert_eq!(result, 42);
    assert_eq!(world.vm().heap().bytes(call.get(root)).unwrap(), TEXT);
}

/// S1.12: C's own sort, with a managed comparison that allocates and polls.
fn qsort_3<F: FaultSet>(world: &World<TestVm<F>>) {
    unsafe extern "C" {
        fn qsort(
            base: *mut c_void,
            count: usize,
            size: usize,
            compare: extern "C" fn(*const c_void, *const c_void) -> c_int,
        );
    }
    fn compare<F: FaultSet>(mutator: &mut Mutator<TestVm<F>>, a: *const c_void, b: *const c_void) -> c_int {
        mutator.vm().heap().alloc(&[], b"garbage of a comparison");
        mutator.poll();
        // SAFETY: `qsort` gives addresses of elements, which are pinned references.
        let [a, b] = [a, b].map(|at| unsafe { at.cast::<Ref>().read() });
        mutator.vm().heap().compare_bytes(a, b).unwrap() as c_int
    }
    let mut mutator = world.attach().unwrap();
    let heap = world.vm().heap();
    let mut call = mutator.foreign_call();
    let mut elements =
        ["pear", "apple", "fig"].map(|text| call.pin(heap.alloc(&[], text.as_bytes())).unwrap().get());
    let base = elements.as_mut_ptr().cast();
    // SAFETY: three elements of the size of a reference, and a comparison of two of them.
    call.run(|| unsafe { qsort(base, 3, size_of::<Ref>(), upcall_fn(compare::<F>)) });
    let sorted = elements.map(|element| heap.bytes(element).unwrap());
    assert_eq!(sorted, [b"apple".to_vec(), b"fig".to_vec(), b"pear".to_vec()]);
}

/// S1.4: threads that the world has never seen call in while the explored one is in C.
fn foreign_threads_2<F: FaultSet>(world: &World<TestVm<F>>) {
    let mut mutator = world.attach().unwrap();
    let text = world.vm().heap().alloc(&[], TEXT);
    let closure = UpcallClosure::new(world, |mutator: &mut Mutator<TestVm<F>>, x: c_int| {
        let own = mutator.vm().heap().alloc(&[], b"a foreign thread's");
        let mut call = mutator.foreign_call();
        let root = call.root(own);
        call.run(std::thread::yield_now);
        assert_eq!(mutator_text(&call, root), b"a foreign thread's");
        x
    });
    let (function, data) = (closure.data_last(), closure.data().addr());
    let mut call = mutator.foreign_call();
    let root = call.root(text);
    call.run(|| {
        std::thread::scope(|scope| {
            for _ in 0..2 {
                // SAFETY: the data pointer is the closure's own, and the closure lives.
                scope.spawn(move || unsafe {
                    foreign_call_back_last(function, 1, core::ptr::with_exposed_provenance_mut(data))
                });
            }
        });
    });
    assert_eq!(world.vm().heap().bytes(call.get(root)).unwrap(), TEXT);
}

fn mutator_text<F: FaultSet>(
    call: &reentry::ForeignCall<'_, TestVm<F>>,
    root: reentry::Root<Ref>,
) -> Vec<u8> {
    call.vm().heap().bytes(call.get(root)).unwrap()
}

/// A panic that is carried past C, and the same twice in one call.
fn errors<F: FaultSet>(world: &World<TestVm<F>>) {
    fn fail<F: FaultSet>(mutator: &mut Mutator<TestVm<F>>, x: c_int) -> c_int {
        mutator.vm().heap().alloc(&[], b"before the panic");
        std::panic::resume_unwind(Box::new(x))
    }
    let mut mutator = world.attach().unwrap();
    let text = world.vm().heap().alloc(&[], TEXT);
    let mut call = mutator.foreign_call();
    let root = call.root(text);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the callback takes an `int` and gives one.
        call.run(|| unsafe { foreign_call_back(upcall_fn(fail::<F>), 7) })
    }));
    assert_eq!(outcome.unwrap_err().downcast_ref::<c_int>(), Some(&7));
    assert_eq!(world.vm().heap().bytes(call.get(root)).unwrap(), TEXT);
}

/// `longjmp` over an upcall, its call and another upcall, back into the C of the outermost call, which then returns.
fn jump<F: FaultSet>(world: &World<TestVm<F>>) {
    thread_local! { static SKIPPED: Cell<Ref> = const { Cell::new(Ref::NULL) }; }
    fn skipped<F: FaultSet>(mutator: &mut Mutator<TestVm<F>>, _: c_int, _: *mut c_void) -> c_int {
        let text = mutator.vm().heap().alloc(&[], b"of what is skipped");
        SKIPPED.set(text);
        let mut call = mutator.foreign_call();
        call.pin(text).unwrap();
        // SAFETY: the landing place is in the C of the outermost call, and no frame in between has a destructor that matters.
        call.run(|| unsafe { foreign_jump(1) })
    }
    let mut mutator = world.attach().unwrap();
    let text = world.vm().heap().alloc(&[], TEXT);
    let mut call = mutator.foreign_call();
    let root = call.root(text);
    // SAFETY: the callback takes what C gives it; the jump lands in `foreign_land`.
    let landed = call.run(|| unsafe { foreign_land(1, upcall_fn(skipped::<F>), 3, core::ptr::null_mut()) });
    assert_eq!(landed, -1);
    assert_eq!(world.vm().heap().bytes(call.get(root)).unwrap(), TEXT);
    drop(call);
    drop(mutator);
    world.pause(|stopped| stopped.vm().collect(stopped)).unwrap();
    let stale = world.vm().heap().check(SKIPPED.get()).unwrap_err();
    assert!(matches!(stale.fate, Fate::Freed { .. }), "nothing of what was skipped is held: {stale}");
    assert!(world.vm().take_reports().iter().any(|report| report.contains("skipped")));
}

/// Attaches and detaches twice, with a safepoint and a pause of its own, and keeps a handle meanwhile.
pub(crate) fn coming_and_going<F: FaultSet>(world: &World<TestVm<F>>) {
    let mut handle = None;
    for round in 0..2 {
        let mut mutator = world.attach().unwrap();
        let object = match handle.take() {
            None => world.vm().heap().alloc(&[], TEXT),
            Some(handle) => mutator.load(&handle),
        };
        assert_eq!(world.vm().heap().bytes(object).unwrap(), TEXT, "round {round}");
        handle = Some(mutator.handle(object));
        mutator.poll();
        TestVm::collect_in(&mut mutator).unwrap();
    }
    drop(handle);
}

/// S1.7: pins, calls, and nothing else.
fn pinned_calls<F: FaultSet>(world: &World<TestVm<F>>) {
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call();
    let pinned = call.pin(world.vm().heap().alloc(&[], TEXT)).unwrap().get();
    let bytes = world.vm().heap().payload(pinned).unwrap();
    for _ in 0..3 {
        // SAFETY: pinned.
        let sum = call.run(|| unsafe { foreign_sum_twice(bytes, TEXT.len(), None) });
        assert_eq!(sum, u64::try_from(sum_of_text()).unwrap());
    }
}

/// A hundred upcalls in one call.
fn a_hundred<F: FaultSet>(world: &World<TestVm<F>>) {
    thread_local! { static COUNT: Cell<c_int> = const { Cell::new(0) }; }
    fn count<F: FaultSet>(mutator: &mut Mutator<TestVm<F>>, x: c_int) -> c_int {
        mutator.vm().heap().alloc(&[], b"garbage");
        COUNT.set(COUNT.get() + 1);
        x
    }
    COUNT.set(0);
    let mut mutator = world.attach().unwrap();
    let text = world.vm().heap().alloc(&[], TEXT);
    let mut call = mutator.foreign_call();
    let root = call.root(text);
    // SAFETY: the callback takes an `int` and gives one.
    call.run(|| unsafe { foreign_call_back_many(upcall_fn(count::<F>), 100) });
    assert_eq!(COUNT.get(), 100);
    assert_eq!(world.vm().heap().bytes(call.get(root)).unwrap(), TEXT);
}

#[track_caller]
fn pass(scenario: &Scenario<Correct>, explorer: &Explorer<'_, TestVm>) -> Explored {
    let explored = explorer.explore(scenario.run).unwrap_or_else(|failed| panic!("{failed}"));
    eprintln!("{explored}");
    if scenario.name == "foreign threads" {
        assert!(
            explored.strayed() * 20 < explored.pairs(),
            "it has other threads, and is not the same each time"
        );
    } else {
        assert_eq!(explored.strayed(), 0);
    }
    explored
}

fn scenario(name: &'static str, world: fn() -> World<TestVm>, run: fn(&World<TestVm>)) -> Scenario<Correct> {
    Scenario { name, world: Box::new(world), run }
}

macro_rules! passes {
    ($($(#[$meta:meta])* $test:ident: $name:literal, $world:expr, $run:expr, $explorer:ident;)*) => {
        $(
            $(#[$meta])*
            #[test]
            fn $test() {
                let scenario = scenario($name, $world, $run);
                let explored = pass(&scenario, &scenario.$explorer());
                assert!(explored.singles() > 0 && explored.pairs() > explored.singles());
            }
        )*
    };
}

passes! {
    the_founding_case_with_pins_passes_at_every_step_and_pair:
        "founding", || founding(Guard::Pins, Walk::Legacy, 1).build_world(), run_founding, explorer;
    the_founding_case_with_roots_in_place_passes_at_every_step_and_pair:
        "founding in place", || founding(Guard::RootsInPlace, Walk::Legacy, 1).build_world(), run_founding, explorer;
    two_callbacks_in_one_call_pass_at_every_step_and_pair:
        "two callbacks", || founding(Guard::RootsInPlace, Walk::Legacy, 2).build_world(), run_founding, stopping;
    calls_in_upcalls_three_deep_pass_at_every_step_and_pair:
        "three deep", recursive, nested_3, stopping;
    calls_in_upcalls_ten_deep_pass_at_every_step_and_pair:
        "ten deep", recursive, |world| nested(world, 10), stopping;
    calls_in_upcalls_a_hundred_deep_pass_at_every_step_and_10_000_pairs:
        "a hundred deep", recursive, |world| nested(world, 100), stopping;
    a_hundred_upcalls_in_one_call_pass_at_every_step_and_10_000_pairs:
        "a hundred upcalls", recursive, a_hundred, stopping;
    results_that_cross_an_upcall_that_moves_the_stack_pass_at_every_step_and_pair:
        "results", recursive, results, explorer;
    sorting_passes_at_every_step_and_pair:
        "qsort", recursive, qsort_3, stopping;
    foreign_threads_that_call_in_meanwhile_pass_at_every_step_and_pair:
        "foreign threads", recursive, foreign_threads_2, explorer;
    an_error_that_is_carried_past_c_passes_at_every_step_and_pair:
        "errors", recursive, errors, explorer;
    a_jump_over_upcalls_passes_at_every_step_and_pair:
        "jump", recursive, jump, explorer;
    coming_and_going_with_a_pause_of_its_own_passes_at_every_step_and_pair:
        "coming and going", recursive, coming_and_going, explorer;
    pinned_calls_pass_at_every_step_and_pair:
        "pinned calls", recursive, pinned_calls, explorer;
}
