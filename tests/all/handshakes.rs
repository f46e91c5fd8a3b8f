//! Handshakes: a closure run for one stopped mutator, while the others go on.

use crate::plain::{Plain, Steps, Told, for_each_strategy, message, number, panic_quietly, told};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use core::time::Duration;
use reentry::{FenceStrategy, FrameKind, World};
use reentry_foreign::foreign_meet;
use std::collections::BTreeSet;
use std::thread;
use std::time::Instant;

type Vm = Plain<40>;

/// Runs `with` while another thread's mutator, whose number it is given, waits in C with one root.
fn with_one_in_c<R>(world: &World<Vm>, with: impl FnOnce(u64, &Steps) -> R) -> R {
    let (steps, id) = (Steps::new(), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut mutator = world.attach().unwrap();
            id.store(mutator.id(), Ordering::Relaxed);
            let mut call = mutator.foreign_call();
            call.root(17);
            // SAFETY: C touches the word alone, which lives.
            call.run(|| unsafe { foreign_meet(steps.word(), 1, 2) });
        });
        steps.wait(1);
        let result = with(id.load(Ordering::Relaxed), &steps);
        steps.reach(2);
        result
    })
}

#[test]
fn a_handshake_with_a_mutator_in_c_runs_on_its_behalf_and_does_not_wait_for_it() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        with_one_in_c(&world, |id, steps| {
            for _ in 0..100 {
                let seen = world.handshake(id, |stopped| {
                    assert_eq!(stopped.id(), id);
                    assert_eq!(steps.now(), 1, "C is where it was");
                    told(stopped)
                });
                assert_eq!(seen, Some((1, Told { slots: vec![17], ..Told::default() })));
            }
            assert_eq!(world.handshake(id + 1000, |_| ()), None, "there is no such mutator");
        });
    });
}

#[test]
fn a_mutator_that_returns_during_its_handshake_waits_for_its_end() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let (over, steps) = (AtomicBool::new(false), Steps::new());
        thread::scope(|scope| {
            let returning = scope.spawn(|| {
                let mut mutator = world.attach().unwrap();
                // SAFETY: C touches the word alone, which lives.
                mutator.foreign_call().run(|| unsafe { foreign_meet(steps.word(), 1, 2) });
                over.load(Ordering::Relaxed)
            });
            steps.wait(1);
            let id = world.pause(|stopped| stopped.mutators().next().unwrap().id());
            world.handshake(id, |_| {
                steps.reach(2);
                thread::sleep(Duration::from_millis(20));
                over.store(true, Ordering::Relaxed);
            });
            assert!(returning.join().unwrap(), "{fence:?}: it was managed before the handshake was over");
        });
    });
}

/// Counts on several threads, each polling, with a handshake of one: how far each counted meanwhile.
#[test]
fn a_handshake_stops_one_running_mutator_at_its_poll_and_no_other() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let counters: [AtomicU64; 3] = Default::default();
        let ids: [AtomicU64; 3] = Default::default();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for (counter, id) in counters.iter().zip(&ids) {
                scope.spawn(|| {
                    let mut mutator = world.attach().unwrap();
                    id.store(mutator.id(), Ordering::Relaxed);
                    while !stop.load(Ordering::Relaxed) {
                        mutator.poll();
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let count = |index: usize| counters[index].load(Ordering::Relaxed);
            while (0..3).any(|index| count(index) == 0) {
                thread::yield_now();
            }
            for _ in 0..5 {
                for chosen in 0..3 {
                    let id = ids[chosen].load(Ordering::Relaxed);
                    world.handshake(id, |stopped| {
                        let kinds: Vec<_> =
                            stopped.activations().map(|activation| activation.kind()).collect();
                        assert_eq!(kinds, [FrameKind::Safepoint]);
                        let before = [count(0), count(1), count(2)];
                        let began = Instant::now();
                        // The others make progress, however long that takes them on a busy machine; the chosen one does not.
                        for other in (0..3).filter(|other| *other != chosen) {
                            while count(other) < before[other] + 1000 {
                                assert!(
                                    began.elapsed() < Duration::from_secs(60),
                                    "{fence:?}: {other} is stopped"
                                );
                                thread::yield_now();
                            }
                        }
                        assert_eq!(count(chosen), before[chosen], "{fence:?}: it went on");
                    });
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    });
}

#[test]
fn a_handshake_with_each_has_every_mutator_once_and_its_own() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        with_one_in_c(&world, |foreign, _| {
            let mut mutator = world.attach().unwrap();
            let me = mutator.id();
            let each: BTreeSet<u64> = mutator.handshake_each(|stopped| stopped.id()).into_iter().collect();
            assert_eq!(each, [foreign, me].into());
            assert_eq!(mutator.handshake(me, told), Some((1, Told::default())), "with itself, at once");
            drop(mutator);
            assert_eq!(world.handshake_each(|stopped| stopped.id()), [foreign]);
        });
        assert_eq!(world.handshake_each(|stopped| stopped.id()), [0; 0]);
    });
}

#[test]
fn a_handshake_within_a_handshake_or_a_pause_is_refused_with_its_place() {
    let world = Vm::world(FenceStrategy::probe());
    with_one_in_c(&world, |id, _| {
        let within = |text: String| {
            assert!(text.contains("would wait for a pause that this thread holds itself"), "{text}");
            assert!(text.contains(file!()), "{text}");
        };
        within(world.handshake(id, |_| message(|| world.handshake(id, |_| ()))).unwrap());
        within(world.handshake(id, |_| message(|| world.handshake_each(|_| ()))).unwrap());
        within(world.handshake(id, |_| message(|| world.pause(|_| ()))).unwrap());
        within(world.pause(|_| message(|| world.handshake(id, |_| ()))));
        within(world.pause(|_| message(|| world.sample(id))));
        // Nothing is left of the refusals.
        assert_eq!(world.handshake(id, |stopped| stopped.id()), Some(id));
    });
}

/// A managed thread that waited through the world would be waited for itself.
#[test]
fn a_managed_thread_is_told_to_shake_hands_through_its_mutator() {
    let world = Vm::world(FenceStrategy::probe());
    let mutator = world.attach().unwrap();
    let id = mutator.id();
    for (text, instead) in [
        (message(|| world.handshake(id, |_| ())), "Mutator::handshake"),
        (message(|| world.handshake_each(|_| ())), "Mutator::handshake_each"),
        (message(|| world.sample(id)), "Mutator::sample"),
        (message(|| world.interrupt(id)), "Mutator::interrupt"),
    ] {
        assert!(text.contains(&format!("use `{instead}`")) && text.contains(file!()), "{text}");
    }
}

#[test]
fn two_mutators_that_shake_hands_with_each_other_at_once_both_get_theirs() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let ids: [AtomicU64; 2] = Default::default();
        let ready = std::sync::Barrier::new(2);
        thread::scope(|scope| {
            for this in 0..2 {
                let (world, ids, ready) = (&world, &ids, &ready);
                scope.spawn(move || {
                    let mut mutator = world.attach().unwrap();
                    ids[this].store(mutator.id(), Ordering::Relaxed);
                    mutator.foreign_call().run(|| ready.wait());
                    let other = ids[1 - this].load(Ordering::Relaxed);
                    for _ in 0..500 {
                        assert_eq!(mutator.handshake(other, |stopped| stopped.id()), Some(other));
                    }
                    mutator.foreign_call().run(|| ready.wait());
                });
            }
        });
    });
}

/// Everything that stops a mutator, at once, with mutators that come and go: each closure finds what it was promised, and nobody hangs.
#[test]
fn handshakes_pauses_attaches_and_detaches_from_many_threads_go_one_after_the_other() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let (inside, shaken, missed) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        let alone = || {
            assert_eq!(inside.fetch_add(1, Ordering::AcqRel), 0, "two at once");
            thread::yield_now();
            assert_eq!(inside.fetch_sub(1, Ordering::AcqRel), 1, "two at once");
        };
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        let mut mutator = world.attach().unwrap();
                        for _ in 0..20 {
                            mutator.poll();
                            mutator.foreign_call().run(thread::yield_now);
                        }
                    }
                });
            }
            let done = scopeguard::guard(&done, |done| done.store(true, Ordering::Relaxed));
            let workers: Vec<_> = (0..4)
                .map(|which| {
                    let (world, alone, shaken, missed) = (&world, &alone, &shaken, &missed);
                    scope.spawn(move || {
                        let mut mutator = world.attach().unwrap();
                        for round in 0..150_u64 {
                            match which {
                                0 => mutator.pause(|_| alone()),
                                1 => drop(mutator.handshake_each(|_| alone())),
                                _ => {
                                    // Some are gone by now; that is an answer too.
                                    let id = (mutator.id() + round % 7).saturating_sub(3).max(1);
                                    let found = mutator.handshake(id, |stopped| {
                                        assert_eq!(stopped.id(), id);
                                        alone();
                                    });
                                    let counter = if found.is_some() { shaken } else { missed };
                                    counter.fetch_add(1, Ordering::Relaxed);
                                }
                            }
                        }
                    })
                })
                .collect();
            workers.into_iter().for_each(|worker| worker.join().unwrap());
            drop(done);
        });
        assert!(shaken.load(Ordering::Relaxed) > 0);
        assert_eq!(world.attached(), 0);
    });
}

#[test]
fn a_panic_in_a_handshake_lets_both_mutators_go_on() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        with_one_in_c(&world, |id, _| {
            assert_eq!(number(|| world.handshake(id, |_| panic_quietly(3))), 3);
            let mut mutator = world.attach().unwrap();
            assert_eq!(number(|| mutator.handshake(id, |_| panic_quietly(4))), 4);
            assert_eq!(number(|| mutator.handshake_each(|_| panic_quietly(5))), 5);
            mutator.poll();
            assert_eq!(mutator.pause(|stopped| stopped.mutators().count()), 2);
        });
        assert_eq!(world.attached(), 0, "the other one came back, and left");
    });
}
