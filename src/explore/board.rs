//! Who is where in one run: the explored thread, and the two that bring what arrives.
//!
//! One thread goes on at a time, so that a run is the same each time. The explored thread stands at each step until what has arrived has taken place, if it is published there; if it is
//! managed, until the other thread has found that it must wait. A stop that is to take place when the explored thread waits for it is held, in force, until that thread says that it waits.

use super::schedule::{Arrival, When};
use super::{AT_MOST, Action, Kind, Step};
use crate::StackScanner;
use crate::steps::{Probe, Stance, with_probe};
use crate::unwind::text;
use crate::world::World;
use core::cell::{Cell, RefCell};
use core::panic::AssertUnwindSafe;
use core::time::Duration;
use std::panic::{catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// How far what has arrived is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seat {
    /// Nothing has arrived.
    Free,
    /// It has, and its thread has not taken it up.
    Ordered { action: usize, when: When },
    /// It is under way.
    Started { when: When },
    /// It waits for another thread.
    Waits { when: When },
    /// The world is stopped, and held so.
    Held,
    /// It takes place.
    Goes,
    /// It is over.
    Done,
}

/// What the gate forbids.
const CHANGED: &str = "the set of mutators changed while a pause was in force";

struct Seats<V: StackScanner> {
    seats: [Seat; AT_MOST],
    world: Option<World<V>>,
    /// What the explored thread is.
    stance: Stance,
    /// It waits, until its next step: nothing is held.
    waits: bool,
    /// The stops in force, and how many of them are pauses.
    stops: usize,
    pauses: usize,
    failure: Option<String>,
    /// The run, and when it began.
    run: Option<(Instant, String)>,
    over: bool,
}

/// Where the threads of an exploration meet.
pub(super) struct Board<V: StackScanner> {
    seats: Mutex<Seats<V>>,
    changed: Condvar,
}

impl<V: StackScanner> Board<V> {
    pub(super) fn new() -> Self {
        Self {
            seats: Mutex::new(Seats {
                seats: [Seat::Free; AT_MOST],
                world: None,
                stance: Stance::Published,
                waits: false,
                stops: 0,
                pauses: 0,
                failure: None,
                run: None,
                over: false,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seats<V>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while<'b>(
        &'b self,
        seats: MutexGuard<'b, Seats<V>>,
        mut condition: impl FnMut(&Seats<V>) -> bool,
    ) -> MutexGuard<'b, Seats<V>> {
        self.changed.wait_while(seats, |seats| condition(seats)).unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a run.
    pub(super) fn begin(&self, world: &World<V>, schedule: String) {
        let mut seats = self.lock();
        seats.seats = [Seat::Free; AT_MOST];
        seats.world = Some(world.clone());
        (seats.stance, seats.waits) = (Stance::Published, false);
        (seats.stops, seats.pauses) = (0, 0);
        seats.failure = None;
        seats.run = Some((Instant::now(), schedule));
    }

    /// Ends a run: waits until all that has arrived is over. Returns the first failure.
    pub(super) fn end(&self) -> Option<String> {
        let mut seats = self.lock();
        seats.stance = Stance::Published;
        self.let_go(&mut seats);
        seats = self.wait_while(seats, Seats::is_busy);
        seats.run = None;
        seats.world = None;
        seats.failure.take()
    }

    /// No run begins any more.
    pub(super) fn close(&self) {
        self.lock().over = true;
        self.changed.notify_all();
    }

    /// Ends the process if a run does not end.
    pub(super) fn watch(&self, limit: Duration) {
        let mut seats = self.lock();
        while !seats.over {
            if let Some((began, schedule)) = &seats.run
                && began.elapsed() > limit
            {
                let states = seats.seats;
                crate::unwind::abort(format_args!(
                    "a run has not ended after {limit:?}; what has arrived is {states:?}; run it again with REENTRY_SCHEDULE=\"{schedule}\""
                ));
            }
            seats = self
                .changed
                .wait_timeout(seats, Duration::from_millis(500))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Lets what is held take place, and what would be held until the explored thread's next step.
    fn let_go(&self, seats: &mut Seats<V>) {
        seats.waits = true;
        for seat in &mut seats.seats {
            if *seat == Seat::Held {
                *seat = Seat::Goes;
            }
        }
        self.changed.notify_all();
    }

    /// Brings what arrives at one seat, until no run begins any more.
    pub(super) fn serve(&self, index: usize, actions: &[Action<'_, V>]) {
        loop {
            let mut seats = self.lock();
            seats = self.wait_while(seats, |seats| {
                !seats.over && !matches!(seats.seats[index], Seat::Ordered { .. })
            });
            let Seat::Ordered { action, when } = seats.seats[index] else { return };
            seats.seats[index] = Seat::Started { when };
            let world = seats.world.clone();
            drop(seats);
            let Some(world) = world else { return };
            let failure = self.bring(index, &actions[action], &world);
            drop(world);
            let mut seats = self.lock();
            if let Some(failure) = failure {
                seats.failure.get_or_insert(failure);
            }
            seats.seats[index] = Seat::Done;
            self.changed.notify_all();
        }
    }

    /// Does it. Returns why it failed.
    fn bring(&self, index: usize, action: &Action<'_, V>, world: &World<V>) -> Option<String> {
        let probe = Bringer { board: self, index };
        let outcome = catch_unwind(AssertUnwindSafe(|| match &action.kind {
            Kind::Pause(f) => with_probe(&probe, || {
                world.pause(|stopped| {
                    let before = world.attached();
                    let _in_force = self.enter(index, true);
                    let outcome = f(stopped);
                    if world.attached() == before { outcome } else { Err(CHANGED.to_owned()) }
                })
            }),
            Kind::Handshake(f) => with_probe(&probe, || {
                let shaken = world.handshake_each(|mutator| {
                    let _in_force = self.enter(index, false);
                    f(mutator)
                });
                shaken.into_iter().collect()
            }),
            Kind::Thread(f) => std::thread::scope(|scope| {
                let inner = || {
                    let probe = Bringer { board: self, index };
                    with_probe(&probe, || f(world));
                };
                scope.spawn(inner).join().map_or_else(|payload| resume_unwind(payload), Ok)
            }),
        }));
        let failure = outcome.map_err(|payload| text(&*payload).to_owned()).and_then(|found| found).err()?;
        Some(format!("`{}`: {failure}", action.name))
    }

    /// A stop is in force, until the guard that is returned is dropped; it is held if it is to be.
    fn enter(&self, index: usize, is_pause: bool) -> impl Drop + '_ {
        let mut seats = self.lock();
        if is_pause && seats.stance == Stance::Managed {
            seats
                .failure
                .get_or_insert("I4: the world counts as stopped while the explored thread is managed".into());
        }
        seats.stops += 1;
        seats.pauses += usize::from(is_pause);
        if seats.stops > 1 {
            seats.failure.get_or_insert("two stops of the world are in force at the same time".into());
        }
        let when = match seats.seats[index] {
            Seat::Started { when } | Seat::Waits { when } => when,
            _ => When::AtOnce,
        };
        if when == When::WhenItWaits && !seats.waits {
            seats.seats[index] = Seat::Held;
            self.changed.notify_all();
            seats = self.wait_while(seats, |seats| seats.seats[index] == Seat::Held);
        }
        seats.seats[index] = Seat::Goes;
        scopeguard::guard((), move |()| {
            let mut seats = self.lock();
            seats.stops -= 1;
            seats.pauses -= usize::from(is_pause);
            // A handshake goes on with the next mutator.
            seats.seats[index] = Seat::Started { when };
        })
    }
}

impl<V: StackScanner> Seats<V> {
    fn is_busy(&self) -> bool {
        self.seats.iter().any(|seat| !matches!(seat, Seat::Free | Seat::Done))
    }

    fn is_held(&self) -> bool {
        self.seats.contains(&Seat::Held)
    }
}

/// Watches a thread that brings what arrives.
struct Bringer<'b, V: StackScanner> {
    board: &'b Board<V>,
    index: usize,
}

impl<V: StackScanner> Probe for Bringer<'_, V> {
    fn reached(&self, _world: *const (), _step: Step) {}

    fn stands_by(&self, world: *const ()) {
        self.waits(world);
    }

    fn waits(&self, _world: *const ()) {
        let mut seats = self.board.lock();
        if let Seat::Started { when } = seats.seats[self.index] {
            seats.seats[self.index] = Seat::Waits { when };
            self.board.changed.notify_all();
        }
    }
}

/// Told of the threads that a scenario starts: one that waits for a stop that is held may be what the explored thread waits for.
impl<V: StackScanner> Probe for Board<V> {
    fn reached(&self, _world: *const (), _step: Step) {}

    fn waits(&self, _world: *const ()) {}

    fn stands_by(&self, world: *const ()) {
        let mut seats = self.lock();
        if seats.world.as_ref().is_some_and(|own| world == Arc::as_ptr(own.shared()).cast()) {
            self.let_go(&mut seats);
        }
    }
}

/// Watches the explored thread.
pub(super) struct Explored<'b, V: StackScanner> {
    board: &'b Board<V>,
    actions: &'b [Action<'b, V>],
    arrivals: &'b [Arrival],
    world: *const (),
    trace: RefCell<Vec<Step>>,
    /// It has stopped the world itself.
    stopping: Cell<bool>,
    /// How it has left the schedule.
    strayed: Cell<Option<String>>,
}

impl<'b, V: StackScanner> Explored<'b, V> {
    pub(super) fn new(
        board: &'b Board<V>,
        actions: &'b [Action<'b, V>],
        arrivals: &'b [Arrival],
        world: &World<V>,
    ) -> Self {
        Self {
            board,
            actions,
            arrivals,
            world: Arc::as_ptr(world.shared()).cast(),
            trace: RefCell::new(Vec::new()),
            stopping: Cell::new(false),
            strayed: Cell::new(None),
        }
    }

    /// The steps that were taken, and how they were not those of the schedule.
    pub(super) fn into_trace(self) -> (Vec<Step>, Option<String>) {
        (self.trace.into_inner(), self.strayed.into_inner())
    }

    /// Sees to it that `arrival` arrives, at the step where the thread stands.
    fn arrives<'s>(
        &self,
        mut seats: MutexGuard<'s, Seats<V>>,
        arrival: &Arrival,
        number: usize,
        step: Step,
    ) -> MutexGuard<'s, Seats<V>>
    where
        'b: 's,
    {
        if let Some(expected) = arrival.step.filter(|&expected| expected != step) {
            self.strayed.set(Some(format!(
                "step {number} is {step}, and the schedule says {expected}: the scenario has changed, or is not the same each time"
            )));
            return seats;
        }
        let Some(action) = self.actions.iter().position(|action| action.name == arrival.action) else {
            seats.failure.get_or_insert_with(|| format!("there is no action `{}`", arrival.action));
            return seats;
        };
        let free = |&seat: &Seat| seat == Seat::Free || (arrival.at.is_none() && seat == Seat::Done);
        // A stop at each of those would have the thread wait for ever.
        if arrival.at.is_none() && (seats.is_busy() || step == Step::WaitRetracted) {
            return seats;
        }
        let Some(index) = seats.seats.iter().position(free) else { return seats };
        let published = step.stance() == Stance::Published && !self.stopping.get() && !seats.is_held();
        seats.seats[index] = Seat::Ordered { action, when: arrival.when };
        self.board.changed.notify_all();
        self.board.wait_while(seats, |seats| match seats.seats[index] {
            Seat::Ordered { .. } | Seat::Started { .. } | Seat::Goes => true,
            // If it does not wait for this thread, what it waits for comes by itself.
            Seat::Waits { .. } => published,
            Seat::Free | Seat::Held | Seat::Done => false,
        })
    }
}

impl<V: StackScanner> Probe for Explored<'_, V> {
    fn reached(&self, world: *const (), step: Step) {
        if world != self.world {
            return;
        }
        match step {
            Step::StopAsked => self.stopping.set(true),
            Step::StopEnded => self.stopping.set(false),
            _ => {}
        }
        let number = {
            let mut trace = self.trace.borrow_mut();
            trace.push(step);
            trace.len()
        };
        let mut seats = self.board.lock();
        seats.waits = false;
        let stance = if self.stopping.get() { Stance::Published } else { step.stance() };
        seats.stance = stance;
        if stance == Stance::Published && !self.stopping.get() {
            seats = self.board.wait_while(seats, |seats| seats.is_busy() && !seats.is_held());
        }
        if seats.pauses > 0 && stance == Stance::Managed {
            seats.failure.get_or_insert_with(|| {
                format!("I4: the explored thread goes on at step {number}, {step}, while a pause is in force")
            });
            self.board.let_go(&mut seats);
        }
        for arrival in self.arrivals.iter().filter(|arrival| arrival.at.is_none_or(|at| at == number)) {
            seats = self.arrives(seats, arrival, number, step);
        }
    }

    fn waits(&self, world: *const ()) {
        if world == self.world {
            let mut seats = self.board.lock();
            self.board.let_go(&mut seats);
        }
    }

    /// Keeps it until all that has arrived is over: who of those that wait for one stop to end is next would be chance.
    fn stands_by(&self, world: *const ()) {
        if world == self.world {
            let mut seats = self.board.lock();
            self.board.let_go(&mut seats);
            drop(self.board.wait_while(seats, |seats| seats.is_busy()));
        }
    }
}
