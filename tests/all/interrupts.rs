//! Interrupts: a call that C blocks in returns when another thread asks.

use crate::plain::{Plain, Steps, for_each_strategy, number, panic_quietly};
use core::ffi::c_int;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use core::time::Duration;
use reentry::{FenceStrategy, Mutator, UpcallClosure};
use reentry_foreign::{foreign_call_back_last, foreign_meet, foreign_poll};
use std::io::{PipeReader, PipeWriter, Write as _, pipe};
use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::Instant;

type Vm = Plain<45>;

/// What wakes C that polls it.
struct Wakeup(PipeReader, PipeWriter);

impl Wakeup {
    fn new() -> Self {
        let (reader, writer) = pipe().unwrap();
        Self(reader, writer)
    }

    fn ask(&self) {
        (&self.1).write_all(&[1]).unwrap();
    }

    /// Blocks in `poll(2)`, a minute at most.
    fn block(&self) -> c_int {
        // SAFETY: an open descriptor.
        unsafe { foreign_poll(self.0.as_raw_fd(), 60_000) }
    }
}

#[test]
fn a_call_blocked_in_poll_returns_when_another_thread_interrupts_it() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let (id, wakeup) = (AtomicU64::new(0), Wakeup::new());
        thread::scope(|scope| {
            let blocked = scope.spawn(|| {
                let mut mutator = world.attach().unwrap();
                id.store(mutator.id(), Ordering::Release);
                let ask = || wakeup.ask();
                mutator.foreign_call().interruptible(&ask).run(|| wakeup.block())
            });
            while id.load(Ordering::Acquire) == 0 {
                thread::yield_now();
            }
            let id = id.load(Ordering::Relaxed);
            // One that is managed asks through its mutator; one that is no mutator asks the world.
            let mut mutator = world.attach().unwrap();
            while !mutator.interrupt(id).unwrap() {
                thread::yield_now();
            }
            assert_eq!(blocked.join().unwrap(), 1, "the pipe can be read");
            drop(mutator);
            assert_eq!(world.interrupt(id), Ok(false), "the mutator is gone");
        });
    });
}

/// The newest call that has an interrupt is the one to return; a call without leaves that to the ones outside.
#[test]
fn of_nested_calls_the_newest_that_is_interruptible_is_interrupted() {
    let world = Vm::world(FenceStrategy::probe());
    let (steps, id) = (Steps::new(), AtomicU64::new(0));
    let (outer, inner) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (ask_outer, ask_inner) = (
        || {
            outer.fetch_add(1, Ordering::Relaxed);
        },
        || {
            inner.fetch_add(1, Ordering::Relaxed);
        },
    );
    let upcall = UpcallClosure::new(&world, |mutator: &mut Mutator<Vm>, x: c_int| {
        // SAFETY: C touches the word alone, which lives.
        mutator.foreign_call().interruptible(&ask_inner).run(|| unsafe { foreign_meet(steps.word(), 1, 2) });
        // SAFETY: as above.
        mutator.foreign_call().run(|| unsafe { foreign_meet(steps.word(), 3, 4) });
        x
    });
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut mutator = world.attach().unwrap();
            id.store(mutator.id(), Ordering::Relaxed);
            let (function, data) = (upcall.data_last(), upcall.data());
            // SAFETY: the data pointer is the closure's own, and the closure lives.
            let call = || unsafe { foreign_call_back_last(function, 1, data) };
            mutator.foreign_call().interruptible(&ask_outer).run(call);
        });
        let asked = || (outer.load(Ordering::Relaxed), inner.load(Ordering::Relaxed));
        steps.wait(1);
        let id = id.load(Ordering::Relaxed);
        assert_eq!(world.interrupt(id), Ok(true));
        assert_eq!(asked(), (0, 1));
        steps.reach(2);
        steps.wait(3);
        assert_eq!(world.interrupt(id), Ok(true));
        assert_eq!(asked(), (1, 1));
        steps.reach(4);
    });
}

/// The interrupt borrows what lives as long as the call: it is never called when the call is over, however close that is.
#[test]
fn an_interrupt_is_not_called_when_its_call_has_ended_however_they_race() {
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let (id, done) = (AtomicU64::new(0), AtomicBool::new(false));
        let asked = AtomicUsize::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut mutator = world.attach().unwrap();
                id.store(mutator.id(), Ordering::Relaxed);
                let began = Instant::now();
                // At least so often; and more if the other thread has not met one yet.
                let met = || asked.load(Ordering::Relaxed) > 0 || began.elapsed() > Duration::from_secs(20);
                for round in (0..).take_while(|round| *round < 20_000 || !met()) {
                    let over = AtomicBool::new(false);
                    let ask = || {
                        assert!(!over.load(Ordering::Relaxed), "called after the call");
                        asked.fetch_add(1, Ordering::Relaxed);
                    };
                    if round % 16 == 0 {
                        // One that ends by a panic.
                        assert_eq!(
                            number(|| mutator
                                .foreign_call()
                                .interruptible(&ask)
                                .run(|| panic_quietly(round))),
                            round
                        );
                    } else {
                        mutator.foreign_call().interruptible(&ask).run(core::hint::spin_loop);
                    }
                    over.store(true, Ordering::Relaxed);
                }
                done.store(true, Ordering::Relaxed);
            });
            let mut calls = 0;
            while !done.load(Ordering::Relaxed) {
                calls += usize::from(world.interrupt(id.load(Ordering::Relaxed)).unwrap());
            }
            assert_eq!(asked.load(Ordering::Relaxed), calls, "each that was told of was called once");
        });
        assert!(asked.load(Ordering::Relaxed) > 0, "{fence:?}: they never met");
    });
}

#[test]
fn who_holds_a_pause_cannot_interrupt_and_is_told_so() {
    let world = Vm::world(FenceStrategy::probe());
    let mut mutator = world.attach().unwrap();
    let id = mutator.id();
    let refused = mutator.pause(|_| world.interrupt(id)).unwrap_err();
    assert!(refused.to_string().contains("end the pause before interrupting a call"), "{refused}");
    assert_eq!(mutator.interrupt(id), Ok(false));
}

/// The panic is the asker's. The call it was for knows nothing of it, and can be asked again.
#[test]
fn an_interrupt_that_panics_tells_the_one_who_asked() {
    let world = Vm::world(FenceStrategy::probe());
    let (id, wakeup, first) = (AtomicU64::new(0), Wakeup::new(), AtomicBool::new(true));
    thread::scope(|scope| {
        let blocked = scope.spawn(|| {
            let mut mutator = world.attach().unwrap();
            id.store(mutator.id(), Ordering::Release);
            let ask = || {
                if first.swap(false, Ordering::Relaxed) {
                    panic_quietly(6);
                }
                wakeup.ask();
            };
            mutator.foreign_call().interruptible(&ask).run(|| wakeup.block())
        });
        while first.load(Ordering::Relaxed) {
            let id = id.load(Ordering::Acquire);
            let outcome = std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| world.interrupt(id)));
            assert!(outcome.is_err() || outcome.is_ok_and(|there_was| there_was == Ok(false)));
        }
        assert!(!blocked.is_finished());
        assert_eq!(world.interrupt(id.load(Ordering::Relaxed)), Ok(true));
        assert_eq!(blocked.join().unwrap(), 1);
    });
}
