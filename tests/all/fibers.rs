//! Fibers on real stacks (`corosensei`): what is suspended is scanned, moved and updated like anything else, and what must not be done is refused.

use crate::plain::{Steps, for_each_strategy, number, panic_quietly};
use crate::shadow::Shadow;
use crate::strand::{Strand, suspend, switch_back};
use crate::witness::View;
use core::cell::{Cell, RefCell};
use core::ffi::c_int;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;
use corosensei::Coroutine;
use reentry::testkit::bytecode::{Function, Program};
use reentry::testkit::{Guard, NativeResult, TestVm, Value};
use reentry::{
    AttachError, Errno, FiberError, FrameKind, Mutator, Sample, StackScanner, Stragglers, Throwing,
    UpcallClosure, World, sample_thread, upcall_fn, upcall_fn_or,
};
use reentry_foreign::{foreign_call_back, foreign_call_back_last, foreign_fail};
use std::rc::Rc;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Instant;

type Vm = Shadow<0>;

/// Collects on a thread of its own, while this one is in foreign code or has no mutator.
fn collect_elsewhere<const TAG: u32>(world: &World<Shadow<TAG>>) {
    thread::scope(|scope| {
        scope.spawn(|| world.pause(|stopped| stopped.vm().collect(stopped))).join().unwrap();
    });
}

/// The kinds of the activations of each stopped mutator, newest first, by the mutator's number.
fn chains<V: StackScanner>(world: &World<V>) -> Vec<(u64, Vec<FrameKind>)> {
    let mut chains: Vec<_> = world.pause(|stopped| {
        let kinds = |mutator: &reentry::StoppedMutator<'_, V>| {
            mutator.activations().map(|activation| activation.kind()).collect()
        };
        stopped.mutators().map(|mutator| (mutator.id(), kinds(&mutator))).collect()
    });
    chains.sort_unstable_by_key(|(id, _)| *id);
    chains
}

#[test]
fn a_fiber_is_created_advanced_and_finished() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let mut mutator = world.attach().unwrap();
        let log = Rc::new(RefCell::new(Vec::new()));
        let inner = Rc::clone(&log);
        let mut strand = Strand::new(&world, move |mutator: &mut Mutator<Vm>| {
            inner.borrow_mut().push("begun");
            assert_eq!(mutator.depth(), 1);
            suspend(mutator);
            inner.borrow_mut().push("advanced");
            suspend(mutator);
            inner.borrow_mut().push("finished");
        });
        assert_ne!(strand.fiber.id(), mutator.id());
        assert_eq!(world.attached(), 2);
        for (ended, entry) in [(false, "begun"), (false, "advanced"), (true, "finished")] {
            assert_eq!(strand.resume(&mut mutator), Ok(ended));
            assert_eq!(log.borrow().last(), Some(&entry));
            assert_eq!(mutator.depth(), 0);
        }
        drop(strand);
        assert_eq!(world.attached(), 1);
        assert_eq!(world.vm().take_reports(), [""; 0], "it had ended");
    });
}

/// A fiber's number serves as well as a thread's: each of its upcalls sees one mutator, which is not the thread's.
#[test]
fn an_upcall_on_a_fiber_runs_on_the_fibers_mutator() {
    for_each_strategy(|fence| {
        thread_local! { static SEEN: Cell<u64> = const { Cell::new(0) }; }
        fn look(mutator: &mut Mutator<Vm>, x: c_int) -> c_int {
            SEEN.set(mutator.id());
            x
        }
        let world = Vm::world(fence);
        let mut mutator = world.attach().unwrap();
        let closed = world.clone();
        let mut strand = Strand::new(&world, move |mutator: &mut Mutator<Vm>| {
            for _ in 0..3 {
                let own = mutator.id();
                // SAFETY: the callback takes what C gives it.
                mutator.foreign_call().run(|| unsafe { foreign_call_back(upcall_fn(look), 1) });
                assert_eq!(SEEN.replace(0), own, "a function item");
                let closure = UpcallClosure::new(&closed, look);
                let (function, data) = (closure.data_last(), closure.data());
                // SAFETY: the data pointer is the closure's own, and the closure lives.
                mutator.foreign_call().run(|| unsafe { foreign_call_back_last(function, 1, data) });
                assert_eq!(SEEN.replace(0), own, "a closure");
                suspend(mutator);
            }
        });
        while !strand.resume(&mut mutator).unwrap() {
            let own = mutator.id();
            // SAFETY: the callback takes what C gives it.
            mutator.foreign_call().run(|| unsafe { foreign_call_back(upcall_fn(look), 1) });
            assert_eq!(SEEN.replace(0), own, "the thread's own, while the fiber is suspended");
        }
    });
}

/// What a body, suspended ten times, holds: slots of its frame, and in an upcall everything a foreign call in progress can declare.
fn hold_everything(mutator: &mut Mutator<Vm>) {
    for round in 0..10 {
        let plain = Vm::hold(mutator, &format!("plain {round}"));
        let in_place = Vm::hold(mutator, &format!("in place {round}"));
        let pinned = Vm::hold(mutator, &format!("pinned {round}"));
        let place = Vm::place(mutator, in_place);
        let (id, pinned_at) = (mutator.id(), Vm::held(mutator, pinned));
        suspend(mutator);
        assert_eq!(Vm::text(mutator, plain), format!("plain {round}"));
        let rooted = mutator.vm().heap().alloc(&[], b"rooted by the call");
        let mut call = mutator.foreign_call();
        let root = call.root(rooted);
        // SAFETY: a slot of this mutator's frames, which holds the reference until after the call.
        let follows = unsafe { call.root_in_place(place) }.unwrap();
        let pin = call.pin(pinned_at);
        let callback: extern "C" fn(c_int) -> c_int = upcall_fn(|mutator: &mut Mutator<Vm>, x: c_int| {
            let nested = Vm::hold(mutator, "nested");
            suspend(mutator);
            assert_eq!(Vm::text(mutator, nested), "nested");
            Vm::forget(mutator, nested);
            x
        });
        // The object moved while the fiber was suspended: the reference from before is stale, and pinning it is an error.
        assert!(pin.is_err(), "round {round}");
        // SAFETY: the callback takes what C gives it.
        assert_eq!(call.run(|| unsafe { foreign_call_back(callback, 7) }), 7);
        let (root, follows) = (call.get(root), call.get(follows));
        drop(call);
        assert_ne!(root, rooted, "it moved, and the guard's slot was updated");
        let heap = mutator.vm().heap();
        assert_eq!(heap.bytes(root).unwrap(), b"rooted by the call");
        assert_eq!(heap.bytes(follows).unwrap(), format!("in place {round}").as_bytes());
        let now = Vm::held(mutator, pinned);
        let mut call = mutator.foreign_call();
        call.pin(now).unwrap();
        let callback: extern "C" fn(c_int) -> c_int = upcall_fn(|mutator: &mut Mutator<Vm>, x: c_int| {
            suspend(mutator);
            x
        });
        // SAFETY: the callback takes what C gives it.
        call.run(|| unsafe { foreign_call_back(callback, 7) });
        drop(call);
        assert_eq!(Vm::held(mutator, pinned), now, "a pinned object does not move");
        assert_eq!(mutator.id(), id);
        Vm::forget(mutator, plain);
    }
}

#[test]
fn what_a_suspended_fiber_holds_is_scanned_and_updated_by_any_collector() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let mut mutator = world.attach().unwrap();
        let mut strand = Strand::new(&world, hold_everything);
        let mut suspended = 0;
        while !strand.resume(&mut mutator).unwrap() {
            suspended += 1;
            if suspended % 2 == 0 {
                Vm::collect_in(&mut mutator);
            } else {
                mutator.foreign_call().run(|| collect_elsewhere(&world));
            }
        }
        assert_eq!(suspended, 30);
        Vm::collect_in(&mut mutator);
        assert_eq!(world.vm().heap().live_objects(), 0);
    });
}

/// The interpreter's frames stand on the fiber's own operand stack, which moves at every collection, and its foreign call is in progress.
#[test]
fn interpreter_frames_of_a_suspended_fiber_are_walked_at_their_call_and_follow_their_stack() {
    fn pausing(mutator: &mut Mutator<TestVm>, _: c_int) -> c_int {
        for _ in 0..10 {
            let anchor = TestVm::idle_anchor(mutator);
            mutator.suspend_at(anchor, switch_back).unwrap();
        }
        1
    }
    for guard in [Guard::Pins, Guard::RootsInPlace, Guard::TransitivePins] {
        let mut main = Function::builder("main");
        let (kept, given) = (main.reference_slot(), main.reference_slot());
        main.bytes(kept, b"live across the call");
        main.bytes(given, b"an argument");
        main.foreign(None, 0, &[given]);
        main.check(kept);
        main.check(given);
        main.give_back(kept);
        let program = Program::new(vec![main.finish()]).unwrap();
        let world = TestVm::builder(program)
            .guard(guard)
            .stack_words(16)
            .native(|_: &TestVm, _| {
                let callback: extern "C" fn(c_int) -> c_int = upcall_fn(pausing);
                // SAFETY: the callback takes what C gives it.
                NativeResult::Integer(unsafe { foreign_call_back(callback, 1) }.into())
            })
            .build_world();
        let mut mutator = world.attach().unwrap();
        let mut strand = Strand::new(&world, |mutator: &mut Mutator<TestVm>| {
            let Ok(Some(Value::Reference(kept))) = TestVm::call(mutator, "main", &[]) else {
                panic!("the program ended early")
            };
            assert_eq!(mutator.vm().heap().bytes(kept).unwrap(), b"live across the call");
        });
        let (id, mut suspended, mut stacks) = (strand.fiber.id(), 0, Vec::new());
        while !strand.resume(&mut mutator).unwrap() {
            suspended += 1;
            TestVm::collect_in(&mut mutator).unwrap();
            let view = mutator.pause(|stopped| {
                let fiber = stopped.mutators().find(|mutator| mutator.id() == id).unwrap();
                View::of(stopped.vm(), &fiber)
            });
            let chain: Vec<_> = view.chain.iter().map(crate::witness::Seen::summary).collect();
            let call = (1, FrameKind::ForeignCall, "main", 2);
            let expected =
                [(2, FrameKind::Suspended, "idle", 0), call, (0, FrameKind::ForeignThread, "idle", 0)];
            assert_eq!(chain, expected, "{guard:?}");
            assert!(view.find(b"live across the call").is_some() && view.find(b"an argument").is_some());
            stacks.push(view.stack);
        }
        assert_eq!(suspended, 10);
        stacks.dedup();
        assert_eq!(stacks.len(), 10, "the stack moved each time");
    }
}

#[test]
fn a_hundred_fibers_switch_a_hundred_times_each_and_keep_their_own() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let mut mutator = world.attach().unwrap();
        let mut strands: Vec<_> = (0..100)
            .map(|number| {
                Strand::new(&world, move |mutator: &mut Mutator<Vm>| {
                    let own = Vm::hold(mutator, &format!("fiber {number}"));
                    for round in 0..99 {
                        let text = format!("fiber {number}, round {round}");
                        let slot = Vm::hold(mutator, &text);
                        suspend(mutator);
                        assert_eq!(Vm::text(mutator, slot), text);
                        Vm::forget(mutator, slot);
                    }
                    assert_eq!(Vm::text(mutator, own), format!("fiber {number}"));
                    Vm::forget(mutator, own);
                })
            })
            .collect();
        assert_eq!(world.attached(), 101);
        for round in 0..100 {
            for (number, strand) in strands.iter_mut().enumerate() {
                assert_eq!(strand.resume(&mut mutator), Ok(round == 99));
                if (number + round) % 25 == 0 {
                    Vm::collect_in(&mut mutator);
                }
            }
        }
        drop(strands);
        Vm::collect_in(&mut mutator);
        assert_eq!((world.attached(), world.vm().heap().live_objects()), (1, 0));
    });
}

/// A fiber resumed in an upcall; C on that fiber's stack calls back; that upcall suspends: the fiber is bound to its thread until the upcall has returned.
#[test]
fn a_fiber_with_foreign_frames_on_its_stack_is_bound_to_its_thread() {
    for_each_strategy(|fence| {
        thread_local! { static STRAND: RefCell<Option<Strand<Vm>>> = const { RefCell::new(None) }; }
        fn in_upcall(mutator: &mut Mutator<Vm>, _: c_int) -> c_int {
            let own = Vm::hold(mutator, "the resumer's upcall");
            let ended = STRAND.with_borrow_mut(|strand| strand.as_mut().unwrap().resume(mutator)).unwrap();
            Vm::collect_in(mutator);
            assert_eq!(Vm::text(mutator, own), "the resumer's upcall");
            Vm::forget(mutator, own);
            c_int::from(ended)
        }
        fn on_fiber(mutator: &mut Mutator<Vm>, x: c_int) -> c_int {
            assert_eq!(mutator.depth(), 2);
            let slot = Vm::hold(mutator, "the fiber's upcall");
            suspend(mutator);
            assert_eq!(Vm::text(mutator, slot), "the fiber's upcall");
            Vm::forget(mutator, slot);
            x
        }
        let world = Vm::world(fence);
        let mut mutator = world.attach().unwrap();
        let strand = Strand::new(&world, |mutator: &mut Mutator<Vm>| {
            // SAFETY: the callback takes what C gives it.
            let result = mutator.foreign_call().run(|| unsafe { foreign_call_back(upcall_fn(on_fiber), 3) });
            assert_eq!(result, 3);
            suspend(mutator);
        });
        let fiber = Arc::clone(&strand.fiber);
        STRAND.set(Some(strand));
        // SAFETY: the callback takes what C gives it.
        let mut call =
            || mutator.foreign_call().run(|| unsafe { foreign_call_back(upcall_fn(in_upcall), 0) });
        let elsewhere = || {
            thread::scope(|scope| {
                let resume = || world.attach().unwrap().resume(&fiber, || panic!("it was switched to"));
                scope.spawn(resume).join().unwrap()
            })
        };
        assert_eq!(call(), 0, "suspended inside the fiber's upcall");
        let kinds = [FrameKind::Suspended, FrameKind::ForeignCall, FrameKind::ForeignThread];
        let fiber_is = |kinds: &[FrameKind]| {
            world.handshake(fiber.id(), |fiber| {
                let found: Vec<_> = fiber.activations().map(|activation| activation.kind()).collect();
                assert_eq!(found, kinds);
            })
        };
        assert_eq!(thread::scope(|scope| scope.spawn(|| fiber_is(&kinds)).join().unwrap()), Some(()));
        assert_eq!(elsewhere(), Err(FiberError::Pinned));
        assert_eq!(thread::scope(|scope| scope.spawn(|| fiber_is(&kinds)).join().unwrap()), Some(()));
        assert_eq!(call(), 0, "suspended in its first activation: no foreign frames");
        let strand = STRAND.take().unwrap();
        thread::scope(|scope| {
            let mut strand = strand;
            let world = &world;
            scope.spawn(move || assert_eq!(strand.resume(&mut world.attach().unwrap()), Ok(true)));
        });
    });
}

/// The number of a thread is not used again, its memory is: a fiber bound to a thread that is gone is bound for ever.
#[test]
fn a_fiber_bound_to_a_thread_that_is_gone_is_resumed_by_no_other() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let strand = thread::scope(|scope| {
            let resume = || {
                let mut strand = Strand::new(&world, |mutator: &mut Mutator<Vm>| {
                    let callback: extern "C" fn(c_int) -> c_int =
                        upcall_fn(|mutator: &mut Mutator<Vm>, x: c_int| {
                            suspend(mutator);
                            x
                        });
                    // SAFETY: the callback takes what C gives it.
                    mutator.foreign_call().run(|| unsafe { foreign_call_back(callback, 1) });
                });
                assert_eq!(strand.resume(&mut world.attach().unwrap()), Ok(false));
                strand
            };
            scope.spawn(resume).join().unwrap()
        });
        for _ in 0..20 {
            thread::scope(|scope| {
                // Its thread-locals stand where the last thread's stood.
                let resume =
                    || world.attach().unwrap().resume(&strand.fiber, || panic!("it was switched to"));
                assert_eq!(scope.spawn(resume).join().unwrap(), Err(FiberError::Pinned));
            });
        }
        // Nobody can unwind its stack: it is abandoned, and the fiber with it.
        abandon(strand, &world);
    });
}

/// Drops the fiber of a suspended strand and leaks its stack.
fn abandon<const TAG: u32>(strand: Strand<Shadow<TAG>>, world: &World<Shadow<TAG>>) {
    let (id, before) = (strand.fiber.id(), world.attached());
    let Strand { stack, fiber, .. } = strand;
    // The stack holds a share of the fiber, as its first frame needs it.
    leak(stack);
    // SAFETY: the share that the stack holds is never used or dropped.
    unsafe { Arc::decrement_strong_count(Arc::as_ptr(&fiber)) };
    drop(fiber);
    assert_eq!(world.attached(), before - 1);
    let reports = world.vm().take_reports();
    let [report] = &*reports else { panic!("{reports:?}") };
    assert!(report.starts_with(&format!("fiber {id} was dropped with")), "{report}");
    assert!(report.contains(file!()), "{report}");
}

#[expect(clippy::mem_forget, reason = "what is leaked is the subject")]
fn leak<T>(value: T) {
    core::mem::forget(value);
}

/// A resumes B, B resumes C, C resumes D; D suspends, and so does each in turn: three chains of suspended fibers at once.
#[test]
fn fibers_that_resume_fibers_three_deep_are_all_scanned() {
    fn level(world: World<Vm>, depth: u32) -> Strand<Vm> {
        Strand::new(&world.clone(), move |mutator: &mut Mutator<Vm>| {
            let own = Vm::hold(mutator, &format!("level {depth}"));
            let mut below = (depth > 0).then(|| level(world.clone(), depth - 1));
            loop {
                let mut ended = true;
                if let Some(below) = &mut below {
                    ended = below.resume(mutator).unwrap();
                    assert_eq!(Vm::text(mutator, own), format!("level {depth}"));
                } else {
                    // The whole tower is in use: every resumer waits, in its own chain.
                    let waiting = mutator.foreign_call().run(|| chains(&world));
                    let resuming =
                        waiting.iter().filter(|(_, kinds)| kinds[0] == FrameKind::Resuming).count();
                    assert_eq!((waiting.len(), resuming), (5, 4));
                    Vm::collect_in(mutator);
                    if !TURN.get() {
                        TURN.set(true);
                        ended = false;
                    }
                }
                if ended {
                    break;
                }
                suspend(mutator);
                assert_eq!(Vm::text(mutator, own), format!("level {depth}"));
            }
            Vm::forget(mutator, own);
        })
    }
    thread_local! { static TURN: Cell<bool> = const { Cell::new(false) }; }
    for_each_strategy(|fence| {
        TURN.set(false);
        let world = Vm::world(fence);
        let mut mutator = world.attach().unwrap();
        let mut strand = level(world.clone(), 3);
        assert_eq!(strand.resume(&mut mutator), Ok(false));
        let chains = mutator.foreign_call().run(|| chains(&world));
        assert_eq!(chains.len(), 5);
        assert!(
            chains[1..].iter().all(|(_, kinds)| *kinds == [FrameKind::Suspended, FrameKind::ForeignThread])
        );
        Vm::collect_in(&mut mutator);
        assert_eq!(world.vm().heap().live_objects(), 4);
        assert_eq!(strand.resume(&mut mutator), Ok(true));
        drop(strand);
        Vm::collect_in(&mut mutator);
        assert_eq!((world.attached(), world.vm().heap().live_objects()), (1, 0));
    });
}

/// The body is one loop in one function: a thread-local's address, or the thread's number, kept in a register across the switch would be the other thread's.
#[test]
fn a_fiber_goes_on_on_another_thread_with_what_it_holds() {
    const MOVES: usize = 1000;
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let of = world.clone();
        let strand = Strand::new(&world, move |mutator: &mut Mutator<Vm>| {
            let own = Vm::hold(mutator, "mine");
            for _ in 0..MOVES / 2 {
                suspend(mutator);
                Vm::collect_in(mutator);
                let inner = of.fiber().unwrap();
                // Not switched: the inner fiber runs on this stack, linked to the thread of this round.
                let depth = mutator.resume(&inner, || inner.run(|inner| inner.depth())).unwrap();
                assert_eq!(depth, Ok(1));
                suspend(mutator);
                let result = mutator.foreign_call().run(|| {
                    // SAFETY: the callback takes what C gives it.
                    unsafe { foreign_call_back(upcall_fn(|_: &mut Mutator<Vm>, x: c_int| x + 1), 1) }
                });
                assert_eq!(result, 2);
                assert_eq!(Vm::text(mutator, own), "mine");
            }
            Vm::forget(mutator, own);
        });
        let (to_b, at_b) = mpsc::channel::<Strand<Vm>>();
        let (to_a, at_a) = mpsc::channel::<Strand<Vm>>();
        let ended = AtomicUsize::new(0);
        thread::scope(|scope| {
            let run = |at: mpsc::Receiver<Strand<Vm>>, to: mpsc::Sender<Strand<Vm>>| {
                let mut mutator = world.attach().unwrap();
                loop {
                    // Waits in foreign code, so that the other can collect.
                    let Ok(mut strand) = mutator.foreign_call().run(|| at.recv()) else { break };
                    if strand.resume(&mut mutator).unwrap() {
                        ended.fetch_add(1, Ordering::Relaxed);
                        break;
                    }
                    Vm::collect_in(&mut mutator);
                    to.send(strand).unwrap();
                }
            };
            to_a.send(strand).unwrap();
            scope.spawn(move || run(at_a, to_b));
            scope.spawn(move || run(at_b, to_a));
        });
        assert_eq!(ended.load(Ordering::Relaxed), 1);
        assert_eq!(world.attached(), 0);
        assert!(world.vm().heap().collections() >= MOVES as u64);
    });
}

/// Each refusal, and that it changed nothing: the fiber goes on afterwards.
#[test]
fn what_cannot_be_done_with_a_fiber_is_refused_and_changes_nothing() {
    for_each_strategy(|fence| {
        let (world, other) = (Vm::world(fence), Vm::world(fence));
        let mut mutator = world.attach().unwrap();
        let never = || -> () { panic!("it was switched to") };
        let slot = Arc::new(Mutex::new(None::<Arc<reentry::Fiber<Vm>>>));
        let (steps, inner) = (Arc::new(Steps::new()), Arc::clone(&slot));
        let inside = Arc::clone(&steps);
        let mut strand = Strand::new(&world, move |mutator: &mut Mutator<Vm>| {
            let own = Vm::hold(mutator, "kept");
            let fiber = inner.lock().unwrap().take().unwrap();
            assert_eq!(mutator.resume(&fiber, || ()), Err(FiberError::Running), "itself");
            assert_eq!(fiber.run(|_| ()), Err(FiberError::Entered), "twice");
            mutator.foreign_call().run(|| {
                inside.reach(1);
                inside.wait(2);
            });
            suspend(mutator);
            assert_eq!(Vm::text(mutator, own), "kept");
            Vm::forget(mutator, own);
        });
        let fiber = Arc::clone(&strand.fiber);
        *slot.lock().unwrap() = Some(Arc::clone(&fiber));
        assert_eq!(fiber.run(|_| ()), Err(FiberError::NotResumed));
        assert_eq!(mutator.suspend(never), Err(FiberError::NotAFiber));
        assert_eq!(other.attach().unwrap().resume(&fiber, never), Err(FiberError::OtherWorld));
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut mutator = world.attach().unwrap();
                mutator.foreign_call().run(|| steps.wait(1));
                assert_eq!(mutator.resume(&fiber, never), Err(FiberError::Running), "on another thread");
                assert_eq!(fiber.run(|_| ()), Err(FiberError::NotResumed), "on another thread");
                assert_eq!(mutator.depth(), 0);
                steps.reach(2);
            });
            assert_eq!(strand.resume(&mut mutator), Ok(false));
        });
        Vm::collect_in(&mut mutator);
        assert_eq!(fiber.run(|_| ()), Err(FiberError::NotResumed));
        let fresh = world.fiber().unwrap();
        let in_pause = mutator.resume(&fresh, || world.pause(|_| fresh.run(|_| ())));
        assert_eq!(in_pause, Ok(Err(FiberError::PauseHeldHere)));
        assert_eq!(mutator.resume(&fresh, || fresh.run(|mutator| mutator.depth())), Ok(Ok(1)));
        assert_eq!(strand.resume(&mut mutator), Ok(true));
        assert_eq!(
            strand.resume_ended(&mut mutator),
            Ok(()),
            "an ended fiber can be resumed and entered anew"
        );
        assert_eq!(world.vm().take_reports(), [""; 0]);
    });
}

impl Strand<Vm> {
    /// Unwinds the stack, as its destructor would, with the fiber resumed.
    fn unwind(mut self, mutator: &mut Mutator<Vm>) {
        let fiber = Arc::clone(&self.fiber);
        mutator.resume(&fiber, || self.stack.unwind()).unwrap();
    }

    /// Resumes a fiber that has ended, and enters it on this stack.
    ///
    /// # Errors
    ///
    /// It was refused.
    fn resume_ended(&mut self, mutator: &mut Mutator<Vm>) -> Result<(), FiberError> {
        mutator.resume(&self.fiber, || self.fiber.run(|mutator| assert_eq!(mutator.depth(), 1)))?
    }
}

/// A collector that sweeps a suspended coroutine object drops its fiber inside the pause: it counts until the pause ends, and is then gone.
#[test]
fn a_suspended_fiber_that_is_dropped_releases_what_it_held_and_is_reported() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let mut mutator = world.attach().unwrap();
        let suspended = |mutator: &mut Mutator<Vm>| {
            let mut strand = Strand::new(&world, |mutator: &mut Mutator<Vm>| {
                Vm::hold(mutator, "held by the abandoned");
                let rooted = mutator.vm().heap().alloc(&[], b"declared by the abandoned");
                let mut call = mutator.foreign_call();
                call.root(rooted);
                let callback: extern "C" fn(c_int) -> c_int =
                    upcall_fn(|mutator: &mut Mutator<Vm>, x: c_int| {
                        suspend(mutator);
                        x
                    });
                // SAFETY: the callback takes what C gives it.
                call.run(|| unsafe { foreign_call_back(callback, 1) });
            });
            assert_eq!(strand.resume(mutator), Ok(false));
            strand
        };
        let strand = suspended(&mut mutator);
        Vm::collect_in(&mut mutator);
        assert_eq!(world.vm().heap().live_objects(), 2);
        abandon(strand, &world);
        Vm::collect_in(&mut mutator);
        assert_eq!(world.vm().heap().live_objects(), 0);

        let Strand { stack, fiber, .. } = suspended(&mut mutator);
        leak(stack);
        // SAFETY: the share that the stack holds is never used or dropped.
        unsafe { Arc::decrement_strong_count(Arc::as_ptr(&fiber)) };
        let id = fiber.id();
        mutator.pause(|stopped| {
            drop(fiber);
            assert!(stopped.mutators().any(|mutator| mutator.id() == id), "the set stands still");
            stopped.vm().collect(stopped);
            assert_eq!(stopped.vm().heap().live_objects(), 2);
            assert_eq!(stopped.vm().take_reports(), [""; 0]);
        });
        assert_eq!((world.attached(), world.vm().take_reports().len()), (1, 1));
        Vm::collect_in(&mut mutator);
        assert_eq!(world.vm().heap().live_objects(), 0);
        // The records serve again.
        let mut strand = suspended(&mut mutator);
        assert_eq!(strand.resume(&mut mutator), Ok(true));
    });
}

/// A thread that is managed must not wait for a pause that waits for it.
#[test]
fn a_managed_thread_makes_and_drops_fibers_while_a_pause_waits_for_it() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let (done, finished) = mpsc::channel();
        let over = Arc::new(Steps::new());
        let (until, of) = (Arc::clone(&over), world.clone());
        // Threads of their own, not scoped: should the two wait for each other, the test ends and says so.
        let pausing = thread::spawn(move || {
            while until.now() == 0 {
                of.pause(|stopped| stopped.mutators().count());
            }
        });
        let of = world.clone();
        thread::spawn(move || {
            let mut mutator = of.attach().unwrap();
            for round in 0..50 {
                // Long enough for the other's pause to be in force and to wait for this thread.
                if round % 10 == 0 {
                    thread::sleep(Duration::from_millis(3));
                }
                let fiber = of.fiber().unwrap();
                let own = mutator.resume(&fiber, || fiber.run(|mutator| mutator.id())).unwrap();
                assert_eq!(own, Ok(fiber.id()));
                thread::sleep(Duration::from_micros(300));
                drop(fiber);
                drop(of.fiber().unwrap());
            }
            drop(mutator);
            done.send(()).unwrap();
        });
        let finished = finished.recv_timeout(Duration::from_secs(20));
        assert_eq!(finished, Ok(()), "{fence:?}: each waits for the other");
        over.reach(1);
        pausing.join().unwrap();
        assert_eq!(world.attached(), 0);
    });
}

/// A fiber that is made during a pause does not run in it: who enters it waits.
#[test]
fn a_fiber_made_during_a_pause_runs_when_that_is_over() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let (steps, over) = (Steps::new(), AtomicUsize::new(0));
        let fiber = Mutex::new(None);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut mutator = world.attach().unwrap();
                let old = world.fiber().unwrap();
                mutator
                    .resume(&old, || {
                        steps.reach(1);
                        steps.wait(2);
                    })
                    .unwrap();
                let fiber = fiber.lock().unwrap().take().unwrap();
                mutator
                    .resume(&fiber, || fiber.run(|_| assert_eq!(over.load(Ordering::Relaxed), 1)))
                    .unwrap()
                    .unwrap();
            });
            steps.wait(1);
            world.pause(|stopped| {
                *fiber.lock().unwrap() = Some(world.fiber().unwrap());
                assert_eq!((stopped.mutators().count(), world.attached()), (2, 3));
                steps.reach(2);
                thread::sleep(Duration::from_millis(5));
                over.store(1, Ordering::Relaxed);
            });
        });
        // And with a handshake in force: the fiber is resumed and entered while it lasts.
        let mut mutator = world.attach().unwrap();
        let id = mutator.id();
        let (steps, over, ran) = (Steps::new(), AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut mutator = world.attach().unwrap();
                steps.reach(1);
                mutator.foreign_call().run(|| steps.wait(2));
                let fiber = world.fiber().unwrap();
                steps.reach(3);
                let entered = mutator.resume(&fiber, || {
                    fiber.run(|_| ran.store(over.load(Ordering::Relaxed), Ordering::Relaxed))
                });
                assert_eq!(entered, Ok(Ok(())));
            });
            mutator.foreign_call().run(|| steps.wait(1));
            mutator.handshake(id, |_| {
                steps.reach(2);
                steps.wait(3);
                thread::sleep(Duration::from_millis(5));
                over.store(1, Ordering::Relaxed);
            });
            mutator.foreign_call().run(|| ());
        });
        assert_eq!(ran.load(Ordering::Relaxed), 1);
        drop(mutator);
        assert_eq!(world.attached(), 0);
    });
}

#[test]
fn a_panic_in_a_fiber_goes_through_its_stack_to_whoever_resumed_it() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let mut mutator = world.attach().unwrap();
        let own = Vm::hold(&mutator, "the resumer's");
        let mut strand = Strand::new(&world, |mutator: &mut Mutator<Vm>| {
            let first = Vm::hold(mutator, "the fiber's");
            suspend(mutator);
            let callback: extern "C" fn(c_int) -> c_int =
                upcall_fn(|mutator: &mut Mutator<Vm>, _: c_int| -> c_int {
                    suspend(mutator);
                    panic_quietly(77)
                });
            let caught = number(|| {
                // SAFETY: the callback takes what C gives it.
                mutator.foreign_call().run(|| unsafe { foreign_call_back(callback, 1) })
            });
            assert_eq!(caught, 77, "the panic of the upcall, carried across a suspension");
            Vm::forget(mutator, first);
            panic_quietly(78)
        });
        assert_eq!(strand.resume(&mut mutator), Ok(false));
        assert_eq!(strand.resume(&mut mutator), Ok(false));
        Vm::collect_in(&mut mutator);
        assert_eq!(number(|| strand.resume(&mut mutator)), 78);
        assert_eq!(mutator.depth(), 0);
        Vm::collect_in(&mut mutator);
        assert_eq!(Vm::text(&mutator, own), "the resumer's");
        assert_eq!(strand.resume_ended(&mut mutator), Ok(()), "it can be entered again");
        assert_eq!(number(|| mutator.resume(&strand.fiber, || -> () { panic_quietly(79) })), 79);
        assert_eq!(strand.resume_ended(&mut mutator), Ok(()), "a switch that panics puts it down");
    });
}

#[test]
fn an_exception_on_a_fiber_goes_to_its_own_foreign_call_or_is_reported() {
    for_each_strategy(|fence| {
        /// # Errors
        ///
        /// Always.
        fn fail(mutator: &mut Mutator<Vm>, x: c_int) -> Result<c_int, String> {
            suspend(mutator);
            Err(format!("exception {x}"))
        }
        let callback: extern "C" fn(c_int) -> c_int = upcall_fn_or(Throwing(fail), || -1);
        let world = Vm::world(fence);
        let mut mutator = world.attach().unwrap();
        let mut strand = Strand::unmanaged(&world, move |fiber| {
            fiber
                .run(|mutator| {
                    // SAFETY: the callback takes what C gives it.
                    let outcome =
                        mutator.foreign_call().try_run(|| unsafe { foreign_call_back(callback, 1) });
                    assert_eq!(outcome, Err("exception 1".to_owned()));
                })
                .unwrap();
            // The stack's own foreign code calls in, with no managed frame below: as on a foreign thread.
            // SAFETY: the callback takes what C gives it.
            assert_eq!(unsafe { foreign_call_back(callback, 2) }, -1);
        });
        let fiber = Arc::clone(&strand.fiber);
        assert_eq!(strand.resume(&mut mutator), Ok(false));
        assert_eq!(strand.resume(&mut mutator), Ok(false));
        let elsewhere = thread::scope(|scope| {
            let resume = || world.attach().unwrap().resume(&fiber, || panic!("it was switched to"));
            scope.spawn(resume).join().unwrap()
        });
        assert_eq!(
            elsewhere,
            Err(FiberError::Pinned),
            "C's frame is on its stack, though no foreign call is"
        );
        assert_eq!(world.vm().take_reports(), [""; 0]);
        assert_eq!(strand.resume(&mut mutator), Ok(true));
        let reports = world.vm().take_reports();
        let [report] = &*reports else { panic!("{reports:?}") };
        assert!(report.contains("exception 2") && report.contains("no managed caller"), "{report}");
    });
}

/// A stack that is dropped is unwound: its destructors are managed code, so it is done inside `resume`.
#[test]
fn a_suspended_stack_that_is_unwound_while_resumed_runs_its_destructors_managed() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let mut mutator = world.attach().unwrap();
        let unwound = Rc::new(Cell::new(0));
        for in_upcall in [false, true] {
            let count = Rc::clone(&unwound);
            let mut strand = Strand::new(&world, move |mutator: &mut Mutator<Vm>| {
                let own = Vm::hold(mutator, "dropped by a destructor");
                let mut frame = scopeguard::guard(mutator, |mutator| {
                    Vm::collect_in(mutator);
                    assert_eq!(Vm::text(mutator, own), "dropped by a destructor");
                    Vm::forget(mutator, own);
                    count.set(count.get() + 1);
                });
                if in_upcall {
                    let callback: extern "C" fn(c_int) -> c_int =
                        upcall_fn(|mutator: &mut Mutator<Vm>, x: c_int| {
                            suspend(mutator);
                            x
                        });
                    // SAFETY: the callback takes what C gives it.
                    frame.foreign_call().run(|| unsafe { foreign_call_back(callback, 1) });
                } else {
                    suspend(&mut frame);
                }
                unreachable!("it is not resumed");
            });
            assert_eq!(strand.resume(&mut mutator), Ok(false));
            Vm::collect_in(&mut mutator);
            strand.unwind(&mut mutator);
        }
        assert_eq!(unwound.get(), 2);
        Vm::collect_in(&mut mutator);
        assert_eq!((world.attached(), world.vm().heap().live_objects()), (1, 0));
        assert_eq!(world.vm().take_reports(), [""; 0]);
    });
}

/// I9: what is leaked stays attached, keeps its objects, and delays nobody.
#[test]
fn a_leaked_fiber_keeps_its_objects_and_delays_no_pause() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut mutator = world.attach().unwrap();
                let mut strand = Strand::new(&world, |mutator: &mut Mutator<Vm>| {
                    Vm::hold(mutator, "held for ever");
                    suspend(mutator);
                });
                assert_eq!(strand.resume(&mut mutator), Ok(false));
                leak(strand);
            });
        });
        collect_elsewhere(&world);
        collect_elsewhere(&world);
        assert_eq!((world.attached(), world.vm().heap().live_objects()), (1, 1));
        // One that is leaked while a thread runs it is that thread's for ever.
        thread::spawn({
            let world = world.clone();
            move || {
                let fiber = Box::leak(Box::new(world.fiber().unwrap()));
                let mut stack = Coroutine::<(), (), ()>::new(move |yielder, ()| {
                    let mut mutator = world.attach().unwrap();
                    mutator.resume(fiber, || yielder.suspend(())).unwrap();
                });
                stack.resume(());
                leak(stack);
            }
        })
        .join()
        .unwrap();
        collect_elsewhere(&world);
        assert_eq!(world.attached(), 3);
    });
}

#[test]
fn errno_is_the_new_threads_own_right_after_a_move() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let mut strand = Strand::new(&world, |mutator: &mut Mutator<Vm>| {
            for error in [11, 22] {
                // SAFETY: C sets errno, no more.
                let (result, errno) =
                    mutator.foreign_call().run_with_errno(|| unsafe { foreign_fail(error) });
                assert_eq!((result, errno), (-1, Errno::from_raw(error)));
                suspend(mutator);
            }
        });
        for error in [11, 22] {
            let strand = &mut strand;
            let world = &world;
            thread::scope(|scope| {
                scope.spawn(move || {
                    // SAFETY: as above.
                    unsafe { foreign_fail(3) };
                    assert_eq!(strand.resume(&mut world.attach().unwrap()), Ok(false), "{error}");
                    assert_eq!(
                        std::io::Error::last_os_error().raw_os_error(),
                        Some(error),
                        "set on this thread"
                    );
                });
            });
        }
        assert_eq!(strand.resume(&mut world.attach().unwrap()), Ok(true));
    });
}

#[test]
fn a_fiber_is_sampled_and_shaken_hands_with_suspended_and_running() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let mut mutator = world.attach().unwrap();
        let of = world.clone();
        let mut strand = Strand::new(&world, move |mutator: &mut Mutator<Vm>| {
            let (id, mut seen) = (mutator.id(), Vec::new());
            sample_thread(|activation| {
                seen.push((activation.mutator == id, activation.depth, activation.kind))
            })
            .unwrap();
            assert_eq!(
                seen,
                [
                    (true, 1, None),
                    (true, 0, Some(FrameKind::ForeignThread)),
                    (false, 0, Some(FrameKind::Resuming))
                ],
                "the fiber, then the thread that waits for it"
            );
            let sample = mutator.foreign_call().run(|| of.sample(id)).unwrap();
            let Sample::Still(chain) = sample else { panic!("{sample:?}") };
            assert_eq!((chain.len(), chain[0].kind), (2, Some(FrameKind::ForeignCall)));
            assert_eq!(mutator.handshake(id, |own| own.activations().count()), Some(2));
            suspend(mutator);
        });
        let id = strand.fiber.id();
        let count = |mutator: &mut Mutator<Vm>| mutator.handshake(id, |fiber| fiber.activations().count());
        assert_eq!(count(&mut mutator), Some(1));
        assert_eq!(strand.resume(&mut mutator), Ok(false));
        let Some(Sample::Still(chain)) = mutator.sample(id) else { panic!("it is suspended") };
        assert_eq!(chain[0].kind, Some(FrameKind::Suspended));
        assert!(chain[0].call_site.unwrap().file().ends_with("fibers.rs"));
        assert_eq!(count(&mut mutator), Some(2));
        assert_eq!(strand.resume(&mut mutator), Ok(true));
        drop(strand);
        assert_eq!(count(&mut mutator), None);
    });
}

#[test]
fn a_shutdown_does_not_wait_for_suspended_fibers_and_they_are_told_when_they_go_on() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let mut mutator = world.attach().unwrap();
        let of = world.clone();
        let mut strand = Strand::new(&world, move |mutator: &mut Mutator<Vm>| {
            let own = Vm::hold(mutator, "still here");
            suspend(mutator);
            assert_eq!(Vm::text(mutator, own), "still here");
            assert!(of.is_shut_down());
        });
        assert_eq!(strand.resume(&mut mutator), Ok(false));
        let fresh = world.fiber().unwrap();
        let began = Instant::now();
        let late =
            mutator.foreign_call().run(|| world.shutdown_within(Duration::from_secs(30), Stragglers::Fail));
        assert!(late.is_empty() && began.elapsed() < Duration::from_secs(10), "{late:?}");
        assert_eq!(world.fiber().map(drop), Err(AttachError::Shutdown));
        let told = crate::plain::message(|| strand.resume(&mut mutator));
        assert!(told.contains("the world was shut down"), "{told}");
        assert_eq!(mutator.resume(&fresh, || fresh.run(|_| ())), Ok(Err(FiberError::WorldEnded)));
        Vm::collect_in(&mut mutator);
        drop((strand, fresh));
        assert_eq!(world.attached(), 1);
    });
}

/// A fiber shuts the world down: neither it nor the thread that waits for it is one of the others.
#[test]
fn a_shutdown_from_a_fiber_does_not_wait_for_who_resumed_it() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let mut mutator = world.attach().unwrap();
        let of = world.clone();
        let mut strand = Strand::new(&world, move |mutator: &mut Mutator<Vm>| {
            let shutdown = || of.shutdown_within(Duration::from_secs(30), Stragglers::Fail);
            assert!(mutator.foreign_call().run(shutdown).is_empty());
        });
        let began = Instant::now();
        assert_eq!(strand.resume(&mut mutator), Ok(true));
        assert!(began.elapsed() < Duration::from_secs(10));
        mutator.poll();
    });
}

/// In the child there are the fibers that nobody was running, with what they hold, and the thread that waits for the fiber that forked; one that another thread was running is lost.
#[test]
#[cfg(unix)]
fn a_fiber_that_forks_finds_the_suspended_ones_in_the_child() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let steps = Steps::new();
        let running = Arc::new(world.fiber().unwrap());
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut mutator = world.attach().unwrap();
                let foreign = |mutator: &mut Mutator<Vm>| {
                    mutator.foreign_call().run(|| {
                        steps.reach(1);
                        steps.wait(2);
                    });
                };
                mutator.resume(&running, || running.run(foreign)).unwrap().unwrap();
            });
            let mut mutator = world.attach().unwrap();
            let mut strand = Strand::new(&world, |mutator: &mut Mutator<Vm>| {
                let own = Vm::hold(mutator, "suspended across the fork");
                suspend(mutator);
                assert_eq!(Vm::text(mutator, own), "suspended across the fork");
            });
            assert_eq!(strand.resume(&mut mutator), Ok(false));
            mutator.foreign_call().run(|| steps.wait(1));
            let (of, lost) = (world.clone(), Arc::clone(&running));
            let mut forking = Strand::new(&world, move |mutator: &mut Mutator<Vm>| {
                let own = Vm::hold(mutator, "held by who forks");
                // SAFETY: the child uses this world alone, and ends at once.
                match unsafe { mutator.fork() }.unwrap() {
                    reentry::Forked::Child => {
                        let works = std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| {
                            assert_eq!(of.attached(), 3);
                            Vm::collect_in(mutator);
                            assert_eq!(Vm::text(mutator, own), "held by who forks");
                            assert_eq!(strand.resume(mutator), Ok(true));
                            assert_eq!(mutator.resume(&lost, || ()), Err(FiberError::Running));
                            drop(strand);
                            assert_eq!(of.attached(), 2);
                            let fresh = of.fiber().unwrap();
                            assert_eq!(
                                mutator.resume(&fresh, || fresh.run(|mutator| mutator.depth())),
                                Ok(Ok(1))
                            );
                            while Arc::strong_count(&lost) > 1 {
                                // SAFETY: the other shares are of frames that do not go on in this process.
                                unsafe { Arc::decrement_strong_count(Arc::as_ptr(&lost)) };
                            }
                            drop(lost);
                            drop(fresh);
                            Vm::collect_in(mutator);
                            assert_eq!(of.attached(), 2);
                        }));
                        // SAFETY: it does not return, and runs nothing of the parent's.
                        unsafe { libc::_exit(if works.is_ok() { 42 } else { 1 }) }
                    }
                    reentry::Forked::Parent(child) => {
                        let mut status = 0;
                        // SAFETY: `status` is valid for writes.
                        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
                        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 42, "{status:#x}");
                        assert_eq!(strand.resume(mutator), Ok(true), "and in the parent it goes on");
                    }
                }
            });
            assert_eq!(forking.resume(&mut mutator), Ok(true));
            steps.reach(2);
        });
        drop(running);
        assert_eq!(world.attached(), 0);
    });
}
