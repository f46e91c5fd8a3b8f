//! I9: leaking any value of the safe API may leak memory or keep objects alive. It never makes collectable what C can reach, and never
//! lets managed code run in the foreign state.

use crate::references::{assert_text, collect, collect_twice, fate, known_world, text, world};
use core::ffi::c_int;
use reentry::testkit::bytecode::{Function, Program};
use reentry::testkit::heap::Fate;
use reentry::testkit::{NativeResult, Ref, TestVm};
use reentry::{Mutator, UpcallClosure, World, upcall_fn};
use reentry_foreign::{foreign_call_back, foreign_call_back_last};

/// I9 for a foreign call: what it declared is held for ever, and later calls are none the worse.
#[test]
fn a_leaked_foreign_call_keeps_its_objects_and_later_calls_work() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let (pinned, rooted) = (text(&world, "pinned by a leaked call"), text(&world, "rooted by a leaked call"));
    let mut call = mutator.foreign_call();
    call.pin(pinned).unwrap();
    let root = call.root(rooted);
    let memory = call.copy(*b"in the memory of a leaked call");
    // SAFETY: the callback takes an `int` and gives one.
    call.run(|| unsafe { foreign_call_back(upcall_fn(collect_twice), 0) });
    let (slot, memory) = (root.slot(), memory.as_ptr());
    leak(call);
    for _ in 0..2 {
        let other = text(&world, "another call's");
        let mut call = mutator.foreign_call();
        let another = call.root(other);
        // SAFETY: the callback takes an `int` and gives one.
        call.run(|| unsafe { foreign_call_back(upcall_fn(collect_twice), 0) });
        assert_text(&world, call.get(another), "another call's");
        drop(call);
        collect(&mut mutator);
        assert!(!world.vm().heap().owns(other), "a later call's root ends with it");
    }
    assert_text(&world, pinned, "pinned by a leaked call");
    // SAFETY: the leaked call's slot: it is not over, and this thread is managed.
    assert_text(&world, unsafe { slot.read() }, "rooted by a leaked call");
    assert!(!memory.is_null());
    let summary = TestVm::collect_in(&mut mutator).unwrap();
    assert_eq!((summary.pinned, summary.moved, summary.live), (1, 1, 2));
    // Detaching ends what even a leak cannot keep: the mutator itself.
    drop(mutator);
    let mut mutator = world.attach().unwrap();
    let summary = TestVm::collect_in(&mut mutator).unwrap();
    assert_eq!((summary.freed, summary.live), (2, 0));
}

/// I9 in an upcall: a leaked call there ends with the upcall, and takes nothing of the outer call's with it.
#[test]
fn a_foreign_call_leaked_in_an_upcall_does_not_disturb_the_outer_call() {
    fn leaking(mutator: &mut Mutator<TestVm>, _: c_int) -> c_int {
        let world = mutator.vm().world().unwrap();
        for n in 0..100 {
            let object = text(&world, "leaked");
            let mut call = mutator.foreign_call();
            call.pin(object).unwrap();
            let number = call.copy(n);
            // What a call declares takes effect when it runs.
            call.run(|| ());
            assert_eq!(call.read(number), n);
            leak(call);
        }
        let summary = TestVm::collect_in(mutator).unwrap();
        assert_eq!((summary.pinned, summary.moved), (101, 1), "the outer call's two, and a hundred");
        0
    }
    let world = known_world();
    let mut mutator = world.attach().unwrap();
    let (pinned, rooted) = (text(&world, "pinned"), text(&world, "rooted"));
    let mut call = mutator.foreign_call();
    call.pin(pinned).unwrap();
    let root = call.root(rooted);
    let memory = call.copy(*b"the outer call's memory");
    for _ in 0..3 {
        // SAFETY: the callback takes an `int` and gives one.
        call.run(|| unsafe {
            foreign_call_back(upcall_fn(leaking), 0);
            foreign_call_back(upcall_fn(collect_twice), 0)
        });
        assert_text(&world, pinned, "pinned");
        assert_text(&world, call.get(root), "rooted");
        assert_eq!(world.vm().heap().live_objects(), 2, "the leaked calls ended with their upcall");
        assert_eq!(&call.read(memory), b"the outer call's memory");
    }
}

/// I9 for tokens: they are plain values, and C's view lasts as long as the call whatever becomes of them.
#[test]
fn leaked_tokens_change_nothing() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let (pinned, rooted) = (text(&world, "pinned"), text(&world, "rooted"));
    let mut call = mutator.foreign_call();
    let root = call.root(rooted);
    // They have no destructor; to forget one is to drop it.
    assert!(!core::mem::needs_drop::<reentry::Root<'_, Ref>>());
    assert!(!core::mem::needs_drop::<reentry::Pinned<'_, Ref>>());
    assert!(!core::mem::needs_drop::<reentry::Argument<'_, u64>>());
    leak(call.pin(pinned));
    leak(call.copy(1_u64));
    leak(root);
    // SAFETY: the callback takes an `int` and gives one.
    call.run(|| unsafe { foreign_call_back(upcall_fn(collect_twice), 0) });
    assert_text(&world, pinned, "pinned");
    assert_text(&world, call.get(root), "rooted");
    drop(call);
    let summary = TestVm::collect_in(&mut mutator).unwrap();
    assert_eq!((summary.freed, summary.live), (2, 0));
}

/// I9 for an owner of pins: its objects stay.
#[test]
fn a_leaked_owner_of_pins_holds_them_for_ever() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let mut pinner = world.pinner();
    let object = text(&world, "held for ever");
    mutator.pin_with(&mut pinner, object).unwrap();
    leak(pinner);
    let mut next = world.pinner();
    mutator.pin_with(&mut next, object).unwrap();
    drop(next);
    for _ in 0..3 {
        collect(&mut mutator);
        assert_text(&world, object, "held for ever");
    }
}

/// I9 for a closure: C can go on calling it.
#[test]
fn a_leaked_upcall_closure_can_still_be_called() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let base = 40;
    let closure = UpcallClosure::new(&world, move |mutator: &mut Mutator<TestVm>, x: c_int| {
        collect(mutator);
        base + x
    });
    let (function, data) = (closure.data_last(), closure.data());
    leak(closure);
    // SAFETY: the data is the closure's, which was not dropped.
    let sum = mutator.foreign_call().run(|| unsafe { foreign_call_back_last(function, 2, data) });
    assert_eq!(sum, 42);
}

/// I9 for a world: it lives on, and so does its heap.
#[test]
fn a_leaked_world_handle_keeps_the_world() {
    let world = world();
    leak(world.clone());
    let mut mutator = world.attach().unwrap();
    let object = text(&world, "there");
    let mut pinner = world.pinner();
    mutator.pin_with(&mut pinner, object).unwrap();
    collect(&mut mutator);
    assert_text(&world, object, "there");
}

/// I9 for an attachment: its thread stays a mutator until it exits and is never managed again after that; what it declared stays.
#[test]
fn a_leaked_attachment_delays_no_pause_after_its_thread_is_gone() {
    let world = world();
    let (pinned, plain) = std::thread::scope(|scope| {
        let leaking = || {
            let mut attachment = world.attach().unwrap();
            let (pinned, plain) = (text(&world, "pinned by a thread that is gone"), text(&world, "nobody's"));
            let mut call = attachment.foreign_call();
            call.pin(pinned).unwrap();
            call.run(|| ());
            leak(call);
            leak(attachment);
            (pinned, plain)
        };
        scope.spawn(leaking).join().unwrap()
    });
    assert_eq!(world.attached(), 1, "it was not detached");
    world.pause(|stopped| stopped.vm().collect(stopped)).unwrap();
    assert_text(&world, pinned, "pinned by a thread that is gone");
    assert_eq!(fate(&world, plain), Some(Fate::Freed { collection: 1 }));
    // The world goes on: others attach, cross and collect.
    let mut mutator = world.attach().unwrap();
    // SAFETY: the callback takes an `int` and gives one.
    mutator.foreign_call().run(|| unsafe { foreign_call_back(upcall_fn(collect_twice), 0) });
    assert_text(&world, pinned, "pinned by a thread that is gone");
}

/// The same for a thread that has made foreign calls from bytecode: of the frames it once named, nothing is left to walk.
#[test]
fn the_frames_of_a_leaked_attachments_thread_are_not_walked_after_it_is_gone() {
    let mut main = Function::builder("main");
    let argument = main.reference_slot();
    main.bytes(argument, b"an argument");
    main.foreign(None, 0, &[argument]);
    main.leave();
    let world: World<TestVm> = TestVm::builder(Program::new(vec![main.finish()]).unwrap())
        .native(|_: &TestVm, _| NativeResult::Nothing)
        .build_world();
    std::thread::scope(|scope| {
        let leaking = || {
            let mut attachment = world.attach().unwrap();
            assert_eq!(TestVm::call(&mut attachment, "main", &[]), Ok(None));
            leak(attachment);
        };
        scope.spawn(leaking).join().unwrap();
    });
    assert_eq!(world.attached(), 1);
    let collected = world.pause(|stopped| stopped.vm().collect(stopped));
    assert_eq!(collected.map(|summary| summary.live), Ok(0));
}

#[expect(clippy::mem_forget, reason = "these tests are about leaks")]
fn leak<T>(value: T) {
    core::mem::forget(value);
}
