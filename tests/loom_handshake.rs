//! I4 for one mutator alone: while a handshake's closure runs, that mutator does not touch the heap, and no pause is in force; and what else one thread does to another's mutator without stopping
//! the world: posting work, looking at it, closing the world to it.
//!
//! A handshake takes the way of a pause, with one mutator asked to stop; so the twins are those of the pause, and one that lets both be in force.
#![cfg(loom)]
#![expect(clippy::missing_panics_doc, reason = "a model fails by panicking")]

#[path = "loom/mod.rs"]
mod model;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicUsize, Ordering};
use model::{Intact, ModelVm, PUBLICATION, Protection, Seen, attach, call_with_root, check, collect};
use reentry::{AttachError, FrameKind, Mutator, Sample, StoppedMutator, World};
use std::sync::Arc;

/// Shakes hands with a mutator: touches the heap as that one may, and looks at its newest activation. Says whether it was there.
fn shake<P: Protection>(world: &World<ModelVm<P>>, id: u64) -> bool {
    let look = |stopped: &StoppedMutator<'_, ModelVm<P>>| {
        world.vm().touch(0);
        for activation in stopped.activations() {
            if activation.kind() == FrameKind::ForeignCall {
                let site = activation.call_site().map_or(0, |site| core::ptr::from_ref(site).addr());
                assert_eq!(activation.anchor().pc, site, "{PUBLICATION}: the anchor is another crossing's");
            }
        }
    };
    model::handshake(world, id, look).is_some()
}

/// A mutator goes out to foreign code and comes back, beside a handshake with it.
fn a_return<P: Protection>() {
    // 5 885 executions, 0.5 s.
    check(4, || {
        let world = ModelVm::<P>::world(&Seen::default());
        let mut mutator = attach(&world);
        let other = loom::thread::spawn({
            let (world, id) = (world.clone(), mutator.id());
            move || shake(&world, id)
        });
        mutator.vm().touch(0);
        call_with_root(&world, &mut mutator, 1, |_| ());
        mutator.vm().touch(0);
        drop(mutator);
        other.join().unwrap();
    });
}

/// A mutator polls beside a handshake with it.
fn a_poll<P: Protection>() {
    // 770 executions, 0.1 s.
    check(4, || {
        let world = ModelVm::<P>::world(&Seen::default());
        let mut mutator = attach(&world);
        let other = loom::thread::spawn({
            let (world, id) = (world.clone(), mutator.id());
            move || shake(&world, id)
        });
        mutator.vm().touch(0);
        mutator.poll();
        mutator.vm().touch(0);
        drop(mutator);
        other.join().unwrap();
    });
}

/// A handshake and a pause at once, of one mutator in foreign code.
fn a_handshake_and_a_pause<P: Protection>() {
    // 25 s with one preemption more.
    check(2, || {
        let world = ModelVm::<P>::world(&Seen::default());
        let mut mutator = attach(&world);
        let threads = [
            loom::thread::spawn({
                let (world, id) = (world.clone(), mutator.id());
                move || drop(shake(&world, id))
            }),
            loom::thread::spawn({
                let world = world.clone();
                move || collect(&world)
            }),
        ];
        call_with_root(&world, &mut mutator, 1, |_| ());
        mutator.vm().touch(0);
        drop(mutator);
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

/// Two mutators shake hands with each other.
fn each_other<P: Protection>() {
    // 2 425 executions, 0.2 s.
    check(3, || {
        let world = ModelVm::<P>::world(&Seen::default());
        let mut mutator = attach(&world);
        let me = mutator.id();
        let ids = Arc::new(AtomicUsize::new(0));
        let other = loom::thread::spawn({
            let (world, ids) = (world.clone(), Arc::clone(&ids));
            move || {
                let mut mutator = attach(&world);
                ids.store(usize::try_from(mutator.id()).unwrap(), Ordering::Release);
                mutator.handshake(me, |_| ());
            }
        });
        let id = ids.load(Ordering::Acquire) as u64;
        mutator.handshake(id, |_| ());
        drop(mutator);
        other.join().unwrap();
    });
}

/// Two threads post to one mutator, each something it has just written.
fn two_posters<P: Protection>() {
    struct Letter {
        text: UnsafeCell<usize>,
        read: AtomicUsize,
    }
    // SAFETY: loom fails the model when two touches of `text` race.
    unsafe impl Sync for Letter {}
    fn open<P: Protection>(_: &mut Mutator<ModelVm<P>>, letter: usize) {
        let letter = core::ptr::with_exposed_provenance::<Letter>(letter);
        // SAFETY: the model keeps each letter until its mutator has done what was posted.
        let letter = unsafe { &*letter };
        // SAFETY: loom has checked that no write is concurrent.
        assert_eq!(letter.text.with(|text| unsafe { *text }), 7);
        letter.read.fetch_add(1, Ordering::Relaxed);
    }
    // 666 executions, 0.1 s.
    check(3, || {
        let world = ModelVm::<P>::world(&Seen::default());
        let mut mutator = attach(&world);
        let letters: Arc<[Letter; 2]> = Arc::new(core::array::from_fn(|_| Letter {
            text: UnsafeCell::new(0),
            read: AtomicUsize::new(0),
        }));
        let threads: Vec<_> = (0..2)
            .map(|which| {
                let (poster, letters) = (mutator.poster(), Arc::clone(&letters));
                loom::thread::spawn(move || {
                    let letter = &letters[which];
                    // SAFETY: loom has checked that no other touch is concurrent.
                    letter.text.with_mut(|text| unsafe { *text = 7 });
                    poster.post(open::<P>, (&raw const *letter).expose_provenance()).unwrap();
                })
            })
            .collect();
        mutator.poll();
        for thread in threads {
            thread.join().unwrap();
        }
        mutator.poll();
        for letter in &letters[..] {
            assert_eq!(letter.read.load(Ordering::Relaxed), 1, "posted work was lost, or done twice");
        }
        drop(mutator);
    });
}

/// A thread attaches while another shuts the world.
fn a_close<P: Protection>() {
    // 50 executions, under 0.1 s.
    check(4, || {
        let world = ModelVm::<P>::world(&Seen::default());
        let other = loom::thread::spawn({
            let world = world.clone();
            move || match world.attach() {
                Ok(mutator) => drop(mutator),
                Err(error) => assert_eq!(error, AttachError::Shutdown),
            }
        });
        world.shutdown();
        let then = world.attached();
        let later = world.attached();
        assert!(later <= then, "a thread was let in after the shutdown");
        other.join().unwrap();
        assert_eq!(world.attached(), 0);
    });
}

/// A thread looks at another's mutator, without stopping it, while that one goes out to foreign code and comes back. What it finds still is of one crossing; loom refuses a look at a record that is being written.
fn a_sample<P: Protection>() {
    // 19 714 executions, 1.4 s.
    check(4, || {
        let world = ModelVm::<P>::world(&Seen::default());
        let mut mutator = attach(&world);
        let other = loom::thread::spawn({
            let (world, id) = (world.clone(), mutator.id());
            move || {
                let Some(Sample::Still(activations)) = world.sample(id) else { return };
                for activation in activations {
                    let site = activation.call_site.map_or(0, |site| core::ptr::from_ref(site).addr());
                    let pc = activation.anchor.map_or(0, |anchor| anchor.pc);
                    let called = activation.kind == Some(FrameKind::ForeignCall);
                    assert!(!called || pc == site, "{PUBLICATION}: the anchor is another crossing's");
                }
            }
        });
        for _ in 0..2 {
            mutator.foreign_call().run(|| ());
        }
        drop(mutator);
        other.join().unwrap();
    });
}

#[test]
fn a_mutator_back_from_foreign_code_waits_for_its_handshake_to_end() {
    a_return::<Intact>();
}

#[test]
fn a_mutator_that_polls_waits_for_its_handshake_to_end() {
    a_poll::<Intact>();
}

#[test]
fn a_handshake_and_a_pause_are_never_in_force_at_once() {
    a_handshake_and_a_pause::<Intact>();
}

#[test]
fn two_mutators_that_shake_hands_do_not_wait_for_each_other() {
    each_other::<Intact>();
}

#[test]
fn what_two_threads_post_is_done_once_and_seen_whole() {
    two_posters::<Intact>();
}

#[test]
fn nobody_is_let_in_after_a_shutdown() {
    a_close::<Intact>();
}

#[test]
fn a_mutator_that_is_looked_at_is_seen_whole() {
    a_sample::<Intact>();
}

#[test]
#[should_panic(expected = "I4: nothing orders two touches of the heap")]
fn without_the_light_fence_a_return_passes_a_handshake() {
    a_return::<model::NoLightFence>();
}

#[test]
#[should_panic(expected = "I4: nothing orders two touches of the heap")]
fn without_the_wait_on_return_a_mutator_runs_through_its_handshake() {
    a_return::<model::NoWaitOnReturn>();
}

#[test]
#[should_panic(expected = "I4: nothing orders two touches of the heap")]
fn a_handshake_that_does_not_wait_runs_beside_its_mutator() {
    a_poll::<model::NoWaitForMutators>();
}

/// The pause has an empty list then: the handshake has taken it.
#[test]
#[should_panic(expected = "I4: nothing orders two touches of the heap")]
fn without_the_gate_a_pause_runs_beside_a_handshake() {
    a_handshake_and_a_pause::<model::UngatedStop>();
}

/// One poster's wish makes the poll look, and the poll finds the other's work too, whose own wish it has not seen: only the place itself publishes that.
#[test]
#[should_panic]
fn with_a_relaxed_post_work_is_read_while_it_is_written() {
    two_posters::<model::RelaxedPost>();
}

#[test]
#[should_panic(expected = "posted work was lost, or done twice")]
fn with_the_wish_taken_back_after_the_work_a_post_is_lost() {
    two_posters::<model::WokenTooLate>();
}

#[test]
#[should_panic(expected = "a thread was let in after the shutdown")]
fn with_the_look_at_the_door_before_the_lock_a_thread_is_let_in_after_a_shutdown() {
    a_close::<model::ClosedTooEarly>();
}

#[test]
#[should_panic]
fn without_the_wait_on_return_a_record_is_looked_at_while_it_is_written() {
    a_sample::<model::NoWaitOnReturn>();
}
