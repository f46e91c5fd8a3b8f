//! S1.9: fibers on real stacks, suspended in foreign calls and upcalls, with a stop at every micro-step.

use crate::scenarios::Scenario;
use crate::strand::{Strand, suspend};
use core::ffi::c_int;
use reentry::testkit::{Correct, TestVm};
use reentry::{Mutator, World, upcall_fn};
use reentry_foreign::foreign_call_back;

/// A fiber that suspends itself with a root in its frame, resumed once from the base activation and once in an upcall.
fn fibers(world: &World<TestVm>) {
    fn resume_in_upcall(mutator: &mut Mutator<TestVm>, x: c_int) -> c_int {
        RUNNING.with(|strand| {
            let mut strand = strand.borrow_mut();
            assert_eq!(strand.as_mut().unwrap().resume(mutator), Ok(true));
        });
        x
    }
    thread_local! { static RUNNING: core::cell::RefCell<Option<Strand<TestVm>>> = const { core::cell::RefCell::new(None) }; }
    let mut mutator = world.attach().unwrap();
    let own = mutator.vm().heap().alloc(&[], b"the thread's");
    let mut strand = Strand::new(world, |mutator: &mut Mutator<TestVm>| {
        let text = mutator.vm().heap().alloc(&[], b"the fiber's");
        let held = mutator.handle(text);
        suspend(mutator);
        let now = mutator.load(&held);
        assert_eq!(mutator.vm().heap().bytes(now).unwrap(), b"the fiber's");
    });
    let mut call = mutator.foreign_call();
    let root = call.root(own);
    call.run(|| ());
    let own = call.get(root);
    drop(call);
    let kept = mutator.handle(own);
    assert_eq!(strand.resume(&mut mutator), Ok(false));
    RUNNING.set(Some(strand));
    // SAFETY: the callback takes an `int` and gives one.
    let result = mutator.foreign_call().run(|| unsafe { foreign_call_back(upcall_fn(resume_in_upcall), 3) });
    assert_eq!(result, 3);
    drop(RUNNING.take());
    let own = mutator.load(&kept);
    assert_eq!(mutator.vm().heap().bytes(own).unwrap(), b"the thread's");
}

#[test]
fn a_fiber_that_is_suspended_and_resumed_passes_at_every_step_and_pair() {
    let scenario =
        Scenario::<Correct> { name: "fibers", world: Box::new(|| World::new(TestVm::new())), run: fibers };
    let explored = scenario.explorer().explore(scenario.run).unwrap_or_else(|failed| panic!("{failed}"));
    eprintln!("{explored}");
    assert!(explored.pairs() > explored.singles());
    assert_eq!(explored.strayed(), 0);
}
