//! Stress mode: what it finds in a VM that roots too little, and that it is silent on one that roots enough.

use crate::plain::{Steps, checked, message};
use core::ffi::c_int;
use reentry::testkit::{Ref, StaleReference, TestVm};
use reentry::{Mutator, Stress, StressWork, UpcallClosure, World, upcall_fn};
use reentry_foreign::{foreign_add, foreign_call_back_last};
use std::thread;

fn stressed(stress: Stress) -> World<TestVm> {
    World::builder().stressed_by(TestVm::stress).stress(stress).build(TestVm::new())
}

/// A native function of a VM: it calls C, and reads the object afterwards. `rooted` says whether its author has thought of the collector.
///
/// # Errors
///
/// The reference is stale.
fn sum(mutator: &mut Mutator<TestVm>, object: Ref, rooted: Rooted) -> Result<usize, StaleReference> {
    let mut call = mutator.foreign_call();
    let root = (rooted == Rooted::Yes).then(|| call.root(object));
    // SAFETY: a plain addition.
    let sum = call.run(|| unsafe { foreign_add(1, 2) });
    let object = root.map_or(object, |root| call.get(root));
    drop(call);
    Ok(mutator.vm().heap().byte_count(object)? + sum as usize)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rooted {
    Yes,
    No,
}

#[test]
fn an_argument_that_nothing_roots_is_found_under_stress_and_not_without() {
    let run = |world: &World<TestVm>, rooted| {
        let mut mutator = world.attach().unwrap();
        let object = world.vm().heap().alloc(&[], b"four");
        sum(&mut mutator, object, rooted)
    };
    let (calm, under_stress) = (World::new(TestVm::new()), stressed(Stress::new(StressWork::Collect)));
    // The mistake is there, and nobody sees it: no collection happens to come at that moment.
    assert_eq!(run(&calm, Rooted::No), Ok(7));
    assert_eq!(run(&calm, Rooted::Yes), Ok(7));
    assert_eq!(run(&under_stress, Rooted::Yes), Ok(7), "a right VM sees nothing of it");
    assert_eq!(run(&under_stress, Rooted::No).is_err(), checked(), "the reference is stale after the call");
}

/// A result that an upcall leaves with C, rooted by nobody while C goes on to call back again.
#[test]
fn a_reference_that_c_holds_between_two_upcalls_is_found_under_stress() {
    let find = |stress: Option<Stress>, keep: Rooted| {
        let builder = World::builder().stressed_by(TestVm::stress);
        let world = stress.map_or(builder, |stress| builder.stress(stress)).build(TestVm::new());
        let held = std::sync::Mutex::new(None);
        let upcall = UpcallClosure::new(&world, |mutator: &mut Mutator<TestVm>, x: c_int| {
            let mut held = held.lock().unwrap();
            match *held {
                None => {
                    let object = mutator.vm().heap().alloc(&[], b"kept by C");
                    if keep == Rooted::Yes {
                        mutator.vm().add_global(object);
                    }
                    *held = Some(object);
                    x
                }
                Some(object) if keep == Rooted::Yes => {
                    let now = mutator.vm().global(0);
                    let _ = object;
                    mutator.vm().heap().byte_count(now).map_or(-1, |count| count as c_int)
                }
                Some(object) => mutator.vm().heap().byte_count(object).map_or(-1, |count| count as c_int),
            }
        });
        let (function, data) = (upcall.data_last(), upcall.data());
        let mut mutator = world.attach().unwrap();
        mutator.foreign_call().run(|| {
            // SAFETY: the data pointer is the closure's own, and the closure lives.
            let call = |x| unsafe { foreign_call_back_last(function, x, data) };
            assert_eq!(call(3), 3);
            call(0)
        })
    };
    let collect = Some(Stress::new(StressWork::Collect));
    assert_eq!(find(None, Rooted::No), 9);
    assert_eq!(find(collect, Rooted::Yes), 9);
    assert_eq!(find(collect, Rooted::No), if checked() { -1 } else { 9 });
}

#[test]
fn polls_are_stressed_too_and_one_in_so_many_by_a_seed_that_repeats() {
    let collections = |stress: Stress| {
        let world = stressed(stress);
        let mut mutator = world.attach().unwrap();
        let mut when = Vec::new();
        for _ in 0..200 {
            mutator.poll();
            when.push(world.vm().totals().0);
        }
        when
    };
    let collect = Stress::new(StressWork::Collect);
    let expect = |count| if checked() { count } else { 0 };
    assert_eq!(collections(collect).last(), Some(&expect(200)));
    let seventh = collections(collect.one_in(7).seed(5));
    let count = *seventh.last().unwrap();
    assert!(!checked() || (10..60).contains(&count), "{count} of 200");
    assert_eq!(seventh, collections(collect.one_in(7).seed(5)), "the same seed, the same polls");
    assert_eq!(seventh == collections(collect.one_in(7).seed(6)), !checked());
    assert_eq!(collections(Stress::new(StressWork::Relocate)).last(), Some(&0));
}

/// A collection that panics does so where the crossing was made: in the call, also if the upcall's arrival was the point.
#[test]
fn what_the_work_finds_goes_on_as_a_panic_of_the_call_and_the_world_goes_on() {
    fn work(stopped: &reentry::StoppedWorld<'_, TestVm>, _: StressWork) {
        // At an upcall's arrival, and at no other point of this test, is somebody in an upcall's call.
        if stopped.vm().totals().0 == 0 && stopped.mutators().count() == 1 {
            panic!("found it");
        }
    }
    let stress = Stress::new(StressWork::Collect);
    let world = World::builder().stressed_by(work).stress(stress).build(TestVm::new());
    let mut mutator = world.attach().unwrap();
    if !checked() {
        return mutator.foreign_call().run(|| ());
    }
    assert_eq!(message(|| mutator.foreign_call().run(|| ())), "found it");
    assert_eq!(message(|| mutator.poll()), "found it");
    // It is managed again, and its next collection finds nothing.
    TestVm::collect_in(&mut mutator).unwrap();
    mutator.foreign_call().run(|| ());
    mutator.poll();
}

#[test]
fn what_is_found_at_an_upcalls_arrival_waits_for_the_managed_caller() {
    static ARRIVED: Steps = Steps::new();
    fn work(_: &reentry::StoppedWorld<'_, TestVm>, _: StressWork) {
        if ARRIVED.now() == 1 {
            ARRIVED.reach(2);
            panic!("found on the way in");
        }
    }
    fn upcall(_: &mut Mutator<TestVm>) -> c_int {
        5
    }
    let function: extern "C" fn() -> c_int = upcall_fn(upcall);
    let world =
        World::builder().stressed_by(work).stress(Stress::new(StressWork::Collect)).build(TestVm::new());
    let mut mutator = world.attach().unwrap();
    let call = || {
        ARRIVED.reach(1);
        assert_eq!(function(), 5, "C is served");
    };
    if checked() {
        assert_eq!(message(|| mutator.foreign_call().run(call)), "found on the way in");
    } else {
        mutator.foreign_call().run(call);
    }
}

#[test]
fn a_right_vm_with_many_threads_is_silent_under_stress() {
    for work in [StressWork::Pause, StressWork::Collect, StressWork::Relocate] {
        let world = stressed(Stress::new(work).one_in(3).seed(9));
        let upcall = UpcallClosure::new(&world, |mutator: &mut Mutator<TestVm>, x: c_int| {
            let object = mutator.vm().heap().alloc(&[], b"in an upcall");
            let mut call = mutator.foreign_call();
            let root = call.root(object);
            // SAFETY: a plain addition.
            let sum = call.run(|| unsafe { foreign_add(x, 1) });
            assert_eq!(call.vm().heap().byte_count(call.get(root)), Ok(12));
            sum
        });
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let (function, data) = (upcall.data_last(), upcall.data());
                    let mut mutator = world.attach().unwrap();
                    for x in 0..100 {
                        // SAFETY: the data pointer is the closure's own, and the closure lives.
                        let call = || unsafe { foreign_call_back_last(function, x, data) };
                        assert_eq!(mutator.foreign_call().run(call), x + 1);
                        mutator.poll();
                    }
                });
            }
        });
        assert_eq!(world.vm().take_reports(), [""; 0]);
        assert_eq!(world.vm().totals().0 > 0, checked() && work == StressWork::Collect);
    }
}

#[test]
fn a_stress_that_only_the_vm_can_do_needs_its_function() {
    let build = || World::builder().stress(Stress::new(StressWork::Collect)).build(TestVm::new());
    if checked() {
        let text = message(build);
        assert!(text.contains("stressed with `collect`, and only the VM can do that"), "{text}");
    } else {
        drop(build());
    }
}

const CHILD: &str = "REENTRY_STRESSED_CHILD";

/// The environment is the process's, so these run in processes of their own.
fn child(test: &str, stress: &str) -> std::process::Output {
    let mut child = crate::emulator::this_binary();
    child.args([test, "--exact", "--nocapture"]).env(CHILD, "1").env("REENTRY_STRESS", stress);
    child.output().unwrap()
}

#[test]
fn the_environment_stresses_a_world_that_has_a_function_and_no_choice_of_its_own() {
    let name = "stress::the_environment_stresses_a_world_that_has_a_function_and_no_choice_of_its_own";
    if std::env::var_os(CHILD).is_none() {
        let output = child(name, "collect");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said.contains("REENTRY_STRESS has no effect in this build"), !checked(), "{said}");
        return;
    }
    let with = World::builder().stressed_by(TestVm::stress).build(TestVm::new());
    let without = World::new(TestVm::new());
    for (world, collections) in [(&with, if checked() { 3 } else { 0 }), (&without, 0)] {
        let mut mutator = world.attach().unwrap();
        mutator.poll();
        mutator.foreign_call().run(|| ());
        assert_eq!(world.vm().totals().0, collections);
    }
}

#[test]
fn an_environment_that_says_nothing_sensible_is_refused_when_a_world_is_made() {
    let name = "stress::an_environment_that_says_nothing_sensible_is_refused_when_a_world_is_made";
    if std::env::var_os(CHILD).is_none() {
        let output = child(name, "collect:often");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    if checked() {
        let text = message(|| World::new(TestVm::new()));
        assert!(text.contains("reentry: REENTRY_STRESS: `often` in `collect:often` is no number"), "{text}");
    }
}
