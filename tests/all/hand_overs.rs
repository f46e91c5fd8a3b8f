//! References that upcalls hand over to C, and that C gives up before its foreign call returns: one by one, and by frames.

use crate::emulator::EMULATED;
use core::ffi::c_int;
use reentry::testkit::{Ref, TestVm};
use reentry::{HandOverError, Mutator, UpcallClosure, World};
use reentry_foreign::{foreign_call_back_last, foreign_word};
use std::sync::Mutex;

fn world() -> World<TestVm> {
    World::new(TestVm::new())
}

fn text(mutator: &Mutator<TestVm>, text: &str) -> Ref {
    mutator.vm().heap().alloc(&[], text.as_bytes())
}

/// What an upcall does.
type Step<'a> = dyn FnMut(&mut Mutator<TestVm>) + Send + 'a;

/// Runs `steps` as upcalls of one foreign call, one after the other, and collects between them, in C.
fn in_one_call(world: &World<TestVm>, steps: &mut [&mut Step<'_>]) {
    let steps = Mutex::new(steps);
    let upcall = UpcallClosure::new(world, |mutator: &mut Mutator<TestVm>, step: c_int| {
        steps.lock().unwrap()[step as usize](mutator);
        step
    });
    let count = steps.lock().unwrap().len();
    let mut mutator = world.attach().unwrap();
    mutator.foreign_call().run(|| {
        for step in 0..count as c_int {
            // SAFETY: the data is the closure's, which lives.
            assert_eq!(unsafe { foreign_call_back_last(upcall.data_last(), step, upcall.data()) }, step);
            world.pause(|stopped| stopped.vm().collect(stopped)).unwrap();
        }
    });
}

#[test]
fn what_is_handed_back_is_held_no_more_and_its_slot_is_used_again() {
    let world = world();
    let (first, second) = (Mutex::new(0_usize), Mutex::new(0_usize));
    let live = |mutator: &Mutator<TestVm>| mutator.vm().heap().live_objects();
    in_one_call(
        &world,
        &mut [
            &mut |mutator| {
                let (a, b) = (text(mutator, "a"), text(mutator, "b"));
                *first.lock().unwrap() = mutator.hand_over(a).unwrap().expose_provenance();
                *second.lock().unwrap() = mutator.hand_over(b).unwrap().expose_provenance();
            },
            &mut |mutator| {
                assert_eq!(live(mutator), 2, "C has both");
                // The older one, from the middle of the list.
                let slot = core::ptr::with_exposed_provenance(*first.lock().unwrap());
                mutator.hand_back(slot).unwrap();
                assert_eq!(mutator.hand_back(slot), Err(HandOverError::NotHandedOver), "once");
            },
            &mut |mutator| {
                assert_eq!(live(mutator), 1);
                let slot = core::ptr::with_exposed_provenance::<Ref>(*second.lock().unwrap());
                // SAFETY: handed over, and not back. C reads it so.
                let (read, word) = unsafe { (slot.read(), foreign_word(slot.cast())) };
                assert_eq!((mutator.vm().heap().bytes(read).unwrap(), word), (b"b".to_vec(), read.address()));
                let c = text(mutator, "c");
                let again = mutator.hand_over(c).unwrap();
                assert_eq!(again.addr(), *first.lock().unwrap(), "no word more");
                mutator.hand_back(slot).unwrap();
                let pinned = text(mutator, "pinned");
                assert_eq!(mutator.hand_over_pinned(pinned).unwrap(), pinned);
                assert_eq!(mutator.hand_over_pinned(pinned).unwrap(), pinned);
                mutator.hand_back_pinned(pinned).unwrap();
                TestVm::collect_in(mutator).unwrap();
                assert_eq!(mutator.vm().heap().bytes(pinned).unwrap(), b"pinned", "by the other one");
                mutator.hand_back_pinned(pinned).unwrap();
                assert_eq!(mutator.hand_back_pinned(pinned), Err(HandOverError::NotHandedOver));
            },
            &mut |mutator| assert_eq!(live(mutator), 1, "the one in the slot that was used again"),
        ],
    );
    let mut mutator = world.attach().unwrap();
    TestVm::collect_in(&mut mutator).unwrap();
    assert_eq!(world.vm().heap().live_objects(), 0, "the call is over");
}

#[test]
fn a_frame_ends_what_was_handed_over_in_it_and_nothing_else() {
    let world = world();
    let live = |mutator: &Mutator<TestVm>| mutator.vm().heap().live_objects();
    let hand_over = |mutator: &mut Mutator<TestVm>, count: usize| {
        for number in 0..count {
            let object = text(mutator, &number.to_string());
            mutator.hand_over(object).unwrap();
        }
    };
    let kept = Mutex::new(0_usize);
    in_one_call(
        &world,
        &mut [
            &mut |mutator| {
                hand_over(mutator, 2);
                mutator.begin_hand_overs().unwrap();
                hand_over(mutator, 3);
            },
            // In another upcall of the call: the frame is the call's.
            &mut |mutator| {
                assert_eq!(live(mutator), 5);
                mutator.begin_hand_overs().unwrap();
                hand_over(mutator, 4);
                let object = text(mutator, "kept");
                *kept.lock().unwrap() = mutator.hand_over(object).unwrap().expose_provenance();
            },
            &mut |mutator| {
                assert_eq!(live(mutator), 10);
                let slot = core::ptr::with_exposed_provenance::<Ref>(*kept.lock().unwrap());
                // SAFETY: handed over, and not back.
                let object = unsafe { slot.read() };
                assert_eq!(mutator.end_hand_overs(), Ok(5));
                // It outlives its frame; no safepoint is in between.
                mutator.hand_over(object).unwrap();
            },
            &mut |mutator| {
                assert_eq!(live(mutator), 6);
                assert_eq!(mutator.end_hand_overs(), Ok(4));
                assert_eq!(mutator.end_hand_overs(), Err(HandOverError::NoFrame));
            },
            &mut |mutator| {
                assert_eq!(live(mutator), 2, "from before the first frame");
                mutator.begin_hand_overs().unwrap();
                hand_over(mutator, 1);
                // Never ended: the call's end does it.
            },
        ],
    );
    let mut mutator = world.attach().unwrap();
    TestVm::collect_in(&mut mutator).unwrap();
    assert_eq!(world.vm().heap().live_objects(), 0);
}

/// An argument that can be released is the call's own, also if it is declared while a frame is open, between two runs.
#[test]
fn a_frame_does_not_end_the_calls_own_arguments() {
    let world = world();
    let step = UpcallClosure::new(&world, |mutator: &mut Mutator<TestVm>, step: c_int| {
        if step == 0 {
            let object = text(mutator, "of the frame");
            mutator.begin_hand_overs().unwrap();
            mutator.hand_over(object).unwrap();
            1
        } else {
            mutator.end_hand_overs().unwrap() as c_int
        }
    });
    // SAFETY: the data is the closure's, which lives.
    let step = |number| unsafe { foreign_call_back_last(step.data_last(), number, step.data()) };
    let mut mutator = world.attach().unwrap();
    let [before, after] = [text(&mutator, "before"), text(&mutator, "after")];
    let mut call = mutator.foreign_call();
    let before = call.root_until_released(before).unwrap();
    let collect = || world.pause(|stopped| stopped.vm().collect(stopped)).unwrap().live;
    let root = call.root(after);
    assert_eq!(call.run(|| (step(0), collect())), (1, 3));
    let now = call.get(root);
    let after = call.root_until_released(now).unwrap();
    assert_eq!(call.run(|| (step(1), collect())), (1, 2));
    for (argument, bytes) in [(before, &b"before"[..]), (after, b"after")] {
        let object = call.get_unless_released(argument).expect("held still");
        assert_eq!(world.vm().heap().bytes(object).unwrap(), bytes);
    }
}

#[test]
fn what_was_not_handed_over_is_not_handed_back() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let object = text(&mutator, "nobody's");
    assert_eq!(mutator.hand_back(core::ptr::null()), Err(HandOverError::NoCaller));
    assert_eq!(mutator.hand_back_pinned(object), Err(HandOverError::NoCaller));
    assert_eq!(mutator.begin_hand_overs(), Err(HandOverError::NoCaller));
    assert_eq!(mutator.end_hand_overs(), Err(HandOverError::NoCaller));
    drop(mutator);
    in_one_call(
        &world,
        &mut [&mut |mutator| {
            let object = text(mutator, "handed over");
            let slot = mutator.hand_over(object).unwrap();
            let word = slot.expose_provenance();
            // In an upcall of a call further in: it is not that call's.
            let inner = UpcallClosure::new(&world, |mutator: &mut Mutator<TestVm>, _: c_int| {
                let slot = core::ptr::with_exposed_provenance(word);
                assert_eq!(mutator.hand_back(slot), Err(HandOverError::NotHandedOver));
                assert_eq!(mutator.end_hand_overs(), Err(HandOverError::NoFrame));
                1
            });
            // SAFETY: the data is the closure's, which lives.
            let call = || unsafe { foreign_call_back_last(inner.data_last(), 0, inner.data()) };
            assert_eq!(mutator.foreign_call().run(call), 1);
            assert_eq!(mutator.hand_back(core::ptr::null()), Err(HandOverError::NotHandedOver));
            assert_eq!(mutator.hand_back_pinned(object), Err(HandOverError::NotHandedOver), "not pinned");
            mutator.hand_back(slot).unwrap();
        }],
    );
}

/// A call that lasts as long as the program: what it holds is what C has not given back, whatever the order.
#[test]
fn a_main_loop_holds_what_c_has_not_given_back() {
    const ROUNDS: usize = if EMULATED { 300 } else { 3000 };
    let world = world();
    let held = Mutex::new(std::collections::VecDeque::<usize>::new());
    let mut round = 0;
    let mut step = |mutator: &mut Mutator<TestVm>| {
        round += 1;
        let object = text(mutator, "one");
        let mut held = held.lock().unwrap();
        held.push_back(mutator.hand_over(object).unwrap().expose_provenance());
        // The oldest, the newest, or one from the middle.
        if held.len() > 7 {
            let at = [0, held.len() - 1, held.len() / 2][round % 3];
            let slot = held.remove(at).unwrap();
            mutator.hand_back(core::ptr::with_exposed_provenance(slot)).unwrap();
        }
        if round % 50 == 0 {
            assert_eq!(TestVm::collect_in(mutator).unwrap().live, held.len());
        }
        let places: std::collections::BTreeSet<_> = held.iter().collect();
        assert_eq!(places.len(), held.len(), "no slot is given out twice");
    };
    let step = Mutex::new(&mut step as &mut Step<'_>);
    let upcall = UpcallClosure::new(&world, |mutator: &mut Mutator<TestVm>, x: c_int| {
        step.lock().unwrap()(mutator);
        x
    });
    let mut mutator = world.attach().unwrap();
    mutator.foreign_call().run(|| {
        for _ in 0..ROUNDS {
            // SAFETY: the data is the closure's, which lives.
            unsafe { foreign_call_back_last(upcall.data_last(), 0, upcall.data()) };
        }
    });
}
