//! Machine state that C changes: what a call preserves is as it was after the call and inside its upcalls, and C has its own again after an upcall. What it does not
//! preserve stays as C left it. (`errno`: see the tests of threads.)
//!
//! Origin: Go's TestSigprocmask and its kin; HotSpot's `-XX:+RestoreMXCSROnJNICalls`.

use crate::plain::{number, panic_quietly};
use crate::raising::{Oops, Raising, Told};
use core::ffi::c_int;
use reentry::{
    Crossing, ErrorPolicy, MachineState, Mutator, Throwing, UpcallClosure, World, upcall_fn, upcall_fn_or,
};
use reentry_foreign::{
    Callback, Machine, foreign_block_signal, foreign_call_back, foreign_change_float,
    foreign_change_machine_and_call_back, foreign_halve, foreign_machine,
};

type Vm = Raising<540>;

const FALLBACK: c_int = -7;

/// The state as C reads it, on this thread.
fn machine() -> Machine {
    let mut machine = Machine::default();
    // SAFETY: C writes it.
    unsafe { foreign_machine(&raw mut machine) };
    machine
}

/// The smallest normal number, halved: what flushing to zero makes of it shows.
fn half_of_the_smallest() -> f64 {
    // SAFETY: it divides.
    unsafe { foreign_halve(f64::MIN_POSITIVE) }
}

const FLOATS: bool = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));

/// Runs `test` on a thread of its own, whose state is C's default and goes with it.
fn isolated(test: impl FnOnce(&World<Vm>, &mut Mutator<Vm>, Machine) + Send) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let world = Vm::world();
            let before = machine();
            assert_eq!(before.blocked, 0);
            assert!(half_of_the_smallest() > 0.0);
            test(&world, &mut world.attach().unwrap(), before);
        });
    });
}

/// Changes everything, and says what it is then.
fn change() -> Machine {
    // SAFETY: C changes this thread's state alone.
    unsafe {
        foreign_change_float();
        foreign_block_signal();
    }
    machine()
}

/// Changes everything, calls back, and checks that its state is its own after that.
fn change_and_call_back(callback: Callback) -> c_int {
    // SAFETY: the callback takes an `int` and gives one.
    unsafe { foreign_change_machine_and_call_back(callback, 3) }
}

/// The parts of `changed` that `state` does not name, and those of `before` that it does.
fn preserved(state: MachineState, before: Machine, changed: Machine) -> Machine {
    let float = if state.has(MachineState::FLOATING_POINT) { before } else { changed };
    let mask = if state.has(MachineState::SIGNAL_MASK) { before } else { changed };
    Machine { float_control: float.float_control, x87_control: float.x87_control, blocked: mask.blocked }
}

const EVERY_STATE: [MachineState; 4] =
    [MachineState::NOTHING, MachineState::FLOATING_POINT, MachineState::SIGNAL_MASK, MachineState::ALL];

#[test]
fn the_state_a_call_preserves_is_as_it_was_and_the_rest_as_c_left_it() {
    for state in EVERY_STATE {
        isolated(|_, mutator, before| {
            let changed = mutator.foreign_call().preserving(state).run(|| {
                let changed = change();
                assert_eq!((changed.float_control != before.float_control, changed.blocked), (FLOATS, 1));
                assert_eq!(half_of_the_smallest() > 0.0, !FLOATS);
                changed
            });
            assert_eq!(machine(), preserved(state, before, changed), "{state:?}");
            let flushes = FLOATS && !state.has(MachineState::FLOATING_POINT);
            assert_eq!(half_of_the_smallest() > 0.0, !flushes, "{state:?}");
            // The next call says nothing, so C's change stays as it finds it.
            let now = machine();
            assert_eq!(mutator.foreign_call().run(machine), now);
            assert_eq!(machine(), now);
        });
    }
    // A call that does not mention it preserves nothing.
    isolated(|_, mutator, _| {
        let changed = mutator.foreign_call().run(change);
        assert_eq!(machine(), changed);
    });
}

/// Managed code in an upcall has the managed side's state, and C has its own when the upcall returns, however it ends.
#[test]
fn an_upcall_has_the_managed_sides_state_and_c_its_own_again_afterwards() {
    for state in EVERY_STATE {
        isolated(|world, mutator, before| {
            let mut inside = Vec::new();
            for how in 0..4 {
                let seen = std::sync::Mutex::new(Vec::new());
                let closure = UpcallClosure::with_fallback(
                    world,
                    Throwing(|mutator: &mut Mutator<Vm>, x: c_int| -> Result<c_int, Oops> {
                        seen.lock().unwrap().push(machine());
                        match how {
                            0 => Ok(x),
                            1 => panic_quietly(6),
                            2 => Err(Oops::Number(6)),
                            _ => {
                                // Managed code that changes the state itself: C does not see that.
                                change();
                                mutator.foreign_call().run(|| ());
                                Ok(x)
                            }
                        }
                    }),
                    FALLBACK,
                );
                let changed = std::sync::Mutex::new(Machine::default());
                let in_c = || {
                    let mine = change();
                    *changed.lock().unwrap() = mine;
                    // SAFETY: the data pointer is the closure's own, and the closure lives.
                    let got = unsafe { closure.data_last()(3, closure.data()) };
                    assert_eq!(got, if matches!(how, 1 | 2) { FALLBACK } else { 3 });
                    assert_eq!(machine(), mine, "{state:?} {how}");
                    // Once more: the state of the managed side is not used up.
                    // SAFETY: as above.
                    unsafe { closure.data_last()(3, closure.data()) };
                    assert_eq!(machine(), mine, "{state:?} {how}");
                };
                let mut call = mutator.foreign_call().preserving(state);
                match how {
                    1 => assert_eq!(number(|| call.run(in_c)), 6),
                    2 => assert_eq!(call.try_run(in_c).expect_err("thrown").number(), 6),
                    _ => call.run(in_c),
                }
                drop(call);
                let changed = *changed.lock().unwrap();
                let expected = preserved(state, before, changed);
                assert_eq!(machine(), expected, "{state:?} {how}");
                inside.append(&mut seen.lock().unwrap());
                assert!(inside.iter().all(|seen| *seen == expected), "{state:?} {how}: {inside:?}");
                inside.clear();
                world.vm().take_reports();
            }
        });
    }
}

/// The closure panics, and the guard form is dropped by a panic: the state comes back all the same.
#[test]
fn a_panic_on_the_foreign_side_leaves_with_the_state_put_back() {
    isolated(|world, mutator, before| {
        let mut call = mutator.foreign_call().preserving(MachineState::ALL);
        let fails: Callback = upcall_fn_or(|_: &mut Mutator<Vm>, _: c_int| panic_quietly(6), || FALLBACK);
        let panicked = number(|| {
            call.run(|| {
                change();
                // SAFETY: the callback takes an `int` and gives one.
                assert_eq!(unsafe { foreign_call_back(fails, 3) }, FALLBACK);
                panic_quietly(2)
            })
        });
        assert_eq!((panicked, machine()), (2, before));
        assert_eq!(world.vm().take_reports(), [Told::Superseded("panic 6".to_owned())]);
        let panicked = number(|| {
            // SAFETY: dropped while unwinding, before the mutator is used again.
            let _foreign = unsafe { call.enter() };
            change();
            panic_quietly(2)
        });
        assert_eq!((panicked, machine()), (2, before));
        // SAFETY: left before the mutator is used again.
        let foreign = unsafe { call.enter() };
        change();
        assert!(foreign.leave().is_ok());
        assert_eq!(machine(), before);
    });
}

/// Each call speaks for itself: an upcall's own call preserves what it says, and gives its C what its managed side had.
#[test]
fn nested_calls_preserve_each_what_it_says() {
    fn inner(mutator: &mut Mutator<Vm>, x: c_int) -> c_int {
        let before = machine();
        // Preserves the mask alone: the change of floating point stays with this upcall's managed code.
        let changed = mutator.foreign_call().preserving(MachineState::SIGNAL_MASK).run(change);
        assert_eq!(machine(), preserved(MachineState::SIGNAL_MASK, before, changed));
        let now = machine();
        // Preserves nothing, with an upcall: what it sees is what C has.
        let same: Callback = upcall_fn(|_: &mut Mutator<Vm>, _: c_int| c_int::from(machine().blocked));
        // SAFETY: the callback takes an `int` and gives one.
        assert_eq!(mutator.foreign_call().run(|| unsafe { foreign_call_back(same, 0) }), before.blocked);
        assert_eq!(machine(), now);
        x
    }
    isolated(|_, mutator, before| {
        let callback: Callback = upcall_fn(inner);
        // C finds its own state after an upcall that changed the managed side's.
        let got = mutator.foreign_call().preserving(MachineState::ALL).run(|| change_and_call_back(callback));
        assert_eq!((got, machine()), (3, before));
        // Two deep: each C changes everything, and each managed side has its own.
        let outer: Callback = upcall_fn(|mutator: &mut Mutator<Vm>, _: c_int| {
            let before = machine();
            assert_eq!(before.blocked, 0);
            let callback: Callback = upcall_fn(inner);
            let mut call =
                mutator.foreign_call().preserving(MachineState::ALL).on_error(ErrorPolicy::Fallback);
            let got = call.run(|| change_and_call_back(callback));
            assert_eq!(machine(), before);
            got
        });
        let got = mutator.foreign_call().preserving(MachineState::ALL).run(|| change_and_call_back(outer));
        assert_eq!((got, machine()), (3, before));
    });
}

/// A call that is run again preserves the state of its latest run.
#[test]
fn a_call_that_runs_again_preserves_the_state_it_is_run_in() {
    isolated(|_, mutator, before| {
        let mut call = mutator.foreign_call().preserving(MachineState::ALL);
        call.run(change);
        assert_eq!(machine(), before);
        let changed = change();
        call.run(|| ());
        assert_eq!(machine(), changed);
    });
}

/// What the hooks are told of a call that may block, whichever way it is run, and with other terms.
#[test]
fn a_blocking_call_reaches_both_hooks_as_one() {
    use Crossing::{BlockingCall, ForeignCall, Upcall};
    let blocking = [("leaving", BlockingCall), ("entering", BlockingCall)];
    let world = Vm::world();
    let mut mutator = world.attach().unwrap();
    world.vm().take_crossings();
    mutator.foreign_call().blocking().run(|| ());
    assert_eq!(world.vm().take_crossings(), blocking);
    mutator.foreign_call().run(|| ());
    assert_eq!(world.vm().take_crossings(), [("leaving", ForeignCall), ("entering", ForeignCall)]);
    assert_eq!(number(|| mutator.foreign_call().without_upcalls().blocking().run(|| panic_quietly(1))), 1);
    assert_eq!(world.vm().take_crossings(), blocking);
    let mut call = mutator.foreign_call().blocking();
    // SAFETY: dropped before the mutator is used again.
    drop(unsafe { call.enter() });
    assert_eq!(world.vm().take_crossings(), blocking);
    // SAFETY: left before the mutator is used again.
    assert!(unsafe { call.enter() }.leave().is_ok());
    assert_eq!(world.vm().take_crossings(), blocking);
    // An upcall is an upcall, and its own calls say for themselves what they are.
    let inner: Callback = upcall_fn(|mutator: &mut Mutator<Vm>, x: c_int| {
        mutator.foreign_call().run(|| ());
        x
    });
    // SAFETY: the callback takes an `int` and gives one.
    call.run(|| unsafe { foreign_call_back(inner, 0) });
    let expected = [
        ("leaving", BlockingCall),
        ("entering", Upcall),
        ("leaving", ForeignCall),
        ("entering", ForeignCall),
        ("leaving", Upcall),
        ("entering", BlockingCall),
    ];
    assert_eq!(world.vm().take_crossings(), expected);
}
