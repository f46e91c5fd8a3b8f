//! `fork` in the midst of everything: other mutators in C, managed, holding pins; threads that come and go, interrupt and post. In the child there is one mutator, and a world that works.
//!
//! A binary of its own: each child is a copy of the whole process.
#![cfg(unix)]
#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

use core::ffi::c_int;
use core::panic::AssertUnwindSafe;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use core::time::Duration;
use reentry::testkit::{Ref, TestVm};
use reentry::{
    Capture, Crossing, Forked, GlobalLock, Mutator, Pinner, RootVisitor, Segment, StackScanner, Stragglers,
    UpcallClosure, Vm, World, upcall_fn,
};
use reentry_foreign::{foreign_call_back, foreign_call_back_last, foreign_threads};
use std::panic::catch_unwind;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

/// Allocates, roots, lets a collector have its way, and looks again.
fn work(mutator: &mut Mutator<TestVm>, x: c_int) -> c_int {
    let text = format!("of mutator {}, {x}", mutator.id());
    let object = mutator.vm().heap().alloc(&[], text.as_bytes());
    let mut call = mutator.foreign_call();
    let root = call.root(object);
    call.run(thread::yield_now);
    let object = call.get(root);
    drop(call);
    assert_eq!(mutator.vm().heap().bytes(object).unwrap(), text.as_bytes());
    mutator.poll();
    x
}

/// What the child does with its world. The heap is checked by every collection.
fn live_on(world: &World<TestVm>, mutator: &mut Mutator<TestVm>, mine: Ref, pinned: Ref) {
    assert_eq!(world.attached(), 1, "the others are not there");
    use_closures(world, 0);
    let me = mutator.id();
    let mut call = mutator.foreign_call();
    let root = call.root(mine);
    for round in 0..3 {
        let collected = call.run(|| world.pause(|stopped| stopped.vm().collect(stopped)));
        let summary = collected.unwrap();
        assert_eq!(
            (summary.live, summary.pinned),
            (2, 1),
            "round {round}: what this mutator rooted, and what a pinner holds"
        );
    }
    assert_eq!(world.vm().heap().bytes(call.get(root)).unwrap(), b"the one that forks");
    assert_eq!(world.vm().heap().bytes(pinned).unwrap(), b"pinned for long");
    // An upcall, on this thread and on one that the world has never seen.
    // SAFETY: the callback takes an `int` and gives one.
    assert_eq!(call.run(|| unsafe { foreign_call_back(upcall_fn(work), 5) }), 5);
    // SAFETY: the world adopts foreign threads.
    assert_eq!(call.run(|| unsafe { foreign_threads(2, 10, upcall_fn(work)) }), 90);
    // A thread that attaches, waits for a pause, and leaves.
    let others = call.run(|| {
        let attaching = || {
            let mut other = world.attach().unwrap();
            work(&mut other, 1);
            other.pause(|stopped| stopped.mutators().map(|mutator| mutator.id()).collect::<Vec<_>>())
        };
        thread::scope(|scope| scope.spawn(attaching).join().unwrap())
    });
    assert!(others.len() == 2 && others.contains(&me), "{others:?}");
    drop(call);
    let poster = mutator.poster();
    let posted = |mutator: &mut Mutator<TestVm>, _: usize| {
        assert_eq!(mutator.pause(|stopped| stopped.mutators().count()), 1)
    };
    poster.post(posted, 0).unwrap();
    mutator.poll();
    assert_eq!(mutator.handshake_each(|stopped| stopped.id()), [me]);
    assert_eq!(world.shutdown_within(Duration::from_secs(5), Stragglers::Fail).len(), 0);
}

/// Uses what all closures and signatures of the process share.
#[cfg(feature = "libffi")]
fn use_closures(world: &World<TestVm>, number: usize) {
    use reentry::dynamic::{Closure, Signature};
    let signature = Signature::parse(&format!("int (int, struct s{} {{ int i; }})", number % 100)).unwrap();
    let closure = Closure::new(world, &signature, |_, _| Ok(())).unwrap();
    world.release_closure(closure.into_raw()).unwrap();
}

#[cfg(not(feature = "libffi"))]
fn use_closures(_: &World<TestVm>, _: usize) {
    thread::yield_now();
}

/// Waits for a child, and says how it ended.
fn status_of(child: i32) -> c_int {
    let mut status = 0;
    // SAFETY: a child of this process; `status` is valid for writes.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    status
}

/// Forks where `mutator` is, and lets the child live on and exit: 0 if all went well, killed if it hangs.
fn fork_and_check(world: &World<TestVm>, mutator: &mut Mutator<TestVm>, round: usize, pinned: Ref) -> i32 {
    let mine = world.vm().heap().alloc(&[], b"the one that forks");
    let forked = Mutex::new(None);
    let mut pinner = world.pinner();
    mutator.pin_with(&mut pinner, mine).unwrap();
    if round.is_multiple_of(2) {
        // SAFETY: no mutator of this test holds a lock of the VM's while it is stopped or foreign; the child calls nothing else.
        *forked.lock().unwrap() = Some(unsafe { mutator.fork() }.unwrap());
        drop(pinner);
        return finish(world, mutator, forked.into_inner().unwrap(), mine, pinned);
    }
    // In an upcall of a call that others keep interrupting.
    let upcall = UpcallClosure::new(world, |mutator: &mut Mutator<TestVm>, x: c_int| {
        // SAFETY: as above.
        *forked.lock().unwrap() = Some(unsafe { mutator.fork() }.unwrap());
        x
    });
    let ask = || thread::sleep(Duration::from_micros(50));
    let (function, data) = (upcall.data_last(), upcall.data());
    let mut call = mutator.foreign_call().interruptible(&ask);
    // SAFETY: the data pointer is the closure's own, and the closure lives.
    call.run(|| unsafe { foreign_call_back_last(function, 0, data) });
    drop(call);
    drop((upcall, pinner));
    finish(world, mutator, forked.into_inner().unwrap(), mine, pinned)
}

/// In the child does not return.
fn finish(
    world: &World<TestVm>,
    mutator: &mut Mutator<TestVm>,
    forked: Option<Forked>,
    mine: Ref,
    pinned: Ref,
) -> i32 {
    match forked.expect("it has forked") {
        Forked::Parent(child) => child,
        Forked::Child => {
            // SAFETY: a child that hangs is killed by this, and fails the test.
            unsafe { libc::alarm(60) };
            let lived = catch_unwind(AssertUnwindSafe(|| live_on(world, mutator, mine, pinned)));
            // SAFETY: nothing of the parent's is to be cleaned up here.
            unsafe { libc::_exit(c_int::from(lived.is_err())) }
        }
    }
}

#[test]
fn a_child_forked_in_the_midst_of_everything_has_a_world_that_works_and_so_has_the_parent() {
    // ThreadSanitizer (`.ci/tsan`) looks at the parent alone, whose threads run all the time.
    const FORKS: usize = if cfg!(tsan) { 40 } else { 200 };
    let world = World::new(TestVm::new());
    world.adopt_foreign_threads();
    let (stop, id, rounds) = (AtomicBool::new(false), AtomicU64::new(0), AtomicUsize::new(0));
    let stopped = || stop.load(Ordering::Relaxed);
    thread::scope(|scope| {
        let _stop = scopeguard::guard((), |()| stop.store(true, Ordering::Relaxed));
        // Managed, and allocating.
        scope.spawn(|| {
            let mut mutator = world.attach().unwrap();
            while !stopped() {
                work(&mut mutator, 1);
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        // In C, with a pin and a root.
        scope.spawn(|| {
            let mut mutator = world.attach().unwrap();
            let object = mutator.vm().heap().alloc(&[], b"pinned in the parent");
            let mut call = mutator.foreign_call();
            call.pin(object).unwrap();
            call.root(object);
            call.run(|| {
                while !stopped() {
                    thread::sleep(Duration::from_millis(1));
                }
            });
        });
        // Coming and going.
        scope.spawn(|| {
            while !stopped() {
                // SAFETY: the world adopts foreign threads.
                assert_eq!(unsafe { foreign_threads(1, 20, upcall_fn(work)) }, 190);
            }
        });
        // Making closures of new signatures, attached to nothing.
        scope.spawn(|| (0..).take_while(|_| !stopped()).for_each(|number| use_closures(&world, number)));
        // Interrupting, and looking.
        scope.spawn(|| {
            while !stopped() {
                let id = id.load(Ordering::Relaxed);
                let _there_was_one = world.interrupt(id).unwrap();
                let _sampled = world.sample(id);
            }
        });
        // Collecting.
        scope.spawn(|| {
            while !stopped() {
                world.pause(|stopped| stopped.vm().collect(stopped)).unwrap();
                thread::sleep(Duration::from_micros(200));
            }
        });
        let mut mutator = world.attach().unwrap();
        id.store(mutator.id(), Ordering::Relaxed);
        let pinned = world.vm().heap().alloc(&[], b"pinned for long");
        let mut pinner: Pinner<Ref> = world.pinner();
        mutator.pin_with(&mut pinner, pinned).unwrap();
        let began = Instant::now();
        for round in 0..FORKS {
            let child = fork_and_check(&world, &mut mutator, round, pinned);
            let status = mutator.foreign_call().run(|| status_of(child));
            assert_eq!(status, 0, "fork {round}: the child's status (a signal, or its exit code times 256)");
        }
        eprintln!("{FORKS} forks in {:?}", began.elapsed());
        drop(mutator);
    });
    assert!(rounds.load(Ordering::Relaxed) > 0);
    assert_eq!(world.attached(), 0);
    assert_eq!(world.pause(|stopped| stopped.vm().collect(stopped)).unwrap().live, 0, "the pinner is gone");
}

/// A VM with a global lock, and nothing else.
#[derive(Default)]
struct Locked {
    lock: GlobalLock,
}

impl Vm for Locked {
    type Ref = usize;
    type Local = ();
    type Exception = core::convert::Infallible;
    const CAPTURE: Capture = Capture::Nothing;

    fn attach(&self) {}

    fn entering_managed(&self, _: Crossing) {
        self.lock.enter();
    }

    fn leaving_managed(&self, _: Crossing) {
        self.lock.leave();
    }
}

// SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
unsafe impl StackScanner for Locked {
    fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
}

/// In the child, the threads that were waiting for the lock are not there, whatever they were doing to it.
#[test]
fn the_child_of_a_vm_with_a_global_lock_holds_the_lock_and_others_get_it() {
    const FORKS: usize = if cfg!(tsan) { 20 } else { 100 };
    let world = World::new(Locked::default());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = scopeguard::guard((), |()| stop.store(true, Ordering::Relaxed));
        for _ in 0..3 {
            scope.spawn(|| {
                let mut mutator = world.attach().unwrap();
                while !stop.load(Ordering::Relaxed) {
                    assert!(mutator.vm().lock.is_held_here());
                    mutator.foreign_call().run(|| ());
                }
            });
        }
        let mut mutator = world.attach().unwrap();
        for round in 0..FORKS {
            // SAFETY: the lock is the only one of the VM, and knows of forks; the child calls nothing else.
            let child = match unsafe { mutator.fork() }.unwrap() {
                Forked::Parent(child) => child,
                Forked::Child => {
                    // SAFETY: a child that hangs is killed by this, and fails the test.
                    unsafe { libc::alarm(60) };
                    let lived = catch_unwind(AssertUnwindSafe(|| {
                        assert!(mutator.vm().lock.is_held_here(), "managed, as before");
                        let attaching = || {
                            let mut other = world.attach().unwrap();
                            assert!(other.vm().lock.is_held_here());
                            other.foreign_call().run(|| ());
                        };
                        mutator.foreign_call().run(|| {
                            assert!(!world.vm().lock.is_held_here());
                            thread::scope(|scope| {
                                let others = [0, 1].map(|_| scope.spawn(attaching));
                                for other in others {
                                    other.join().unwrap();
                                }
                            });
                        });
                        assert!(mutator.vm().lock.is_held_here());
                    }));
                    // SAFETY: nothing of the parent's is to be cleaned up here.
                    unsafe { libc::_exit(c_int::from(lived.is_err())) }
                }
            };
            let status = mutator.foreign_call().run(|| status_of(child));
            assert_eq!(status, 0, "fork {round}: the child's status (a signal, or its exit code times 256)");
        }
        drop(mutator);
    });
    assert!(!world.vm().lock.is_held_here());
}
