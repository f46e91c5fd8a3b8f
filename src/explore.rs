//! Exploration (feature `explore`): a scenario, run again and again with a stop arriving at every micro-step of its crossings.
//!
//! Chance finds a stop that arrives between two given instructions once in a million runs. Here the places between which the order matters have names ([`Step`]), the crate says when a thread
//! passes one, and an [`Explorer`] brings a pause, a handshake or another thread's attachment exactly there: at each step, and at each pair of steps. What it does is the same each
//! time, so a failure is a [`Schedule`] that can be run again.
//!
//! What a scenario of yours needs is a world made anew for each run, an action that does its worst in a pause (collect, move every object, move the stacks, poison what was left), and the
//! thread's own work with assertions:
//!
//! ```
//! use core::ffi::c_int;
//! use reentry::explore::Explorer;
//! use reentry::testkit::TestVm;
//! use reentry::{Mutator, World, upcall_fn};
//!
//! fn twice(mutator: &mut Mutator<TestVm>, x: c_int) -> c_int {
//!     mutator.poll();
//!     2 * x
//! }
//!
//! let explored = Explorer::new("twice", || World::new(TestVm::new()))
//!     .pausing("collect", |stopped| stopped.vm().collect(stopped))
//!     .on_a_thread("attach", |world| drop(world.attach()))
//!     .explore(|world| {
//!         let mut mutator = world.attach().unwrap();
//!         let text = world.vm().heap().alloc(&[], b"an argument");
//!         let mut call = mutator.foreign_call();
//!         let root = call.root(text);
//!         // A Rust closure stands for the C code here.
//!         let callback: extern "C" fn(c_int) -> c_int = upcall_fn(twice);
//!         assert_eq!(call.run(|| callback(21)), 42);
//!         assert_eq!(world.vm().heap().bytes(call.get(root)).unwrap(), b"an argument");
//!     })?;
//! assert!(explored.pairs() > 100);
//! # Ok::<(), reentry::explore::ScheduleFailed>(())
//! ```
//!
//! What it cannot find: a fence or an order that is missing (every step here orders everything; the loom models look for those), and what depends on two explored threads at once.

mod board;
mod schedule;

pub use crate::steps::Step;
pub use schedule::{Arrival, Schedule, ScheduleError, When};

use crate::pause::{StoppedMutator, StoppedWorld};
use crate::steps::{Stance, with_others, with_probe};
use crate::unwind::text;
use crate::vm::StackScanner;
use crate::world::World;
use board::{Board, Explored as Probe};
use core::fmt;
use core::panic::AssertUnwindSafe;
use core::time::Duration;
use std::collections::BTreeMap;
use std::panic::catch_unwind;

/// How many actions arrive in one run at most.
const AT_MOST: usize = 2;

type Brought = Result<(), String>;

type InPause<'e, V> = dyn Fn(&StoppedWorld<'_, V>) -> Brought + Sync + 'e;
type InHandshake<'e, V> = dyn Fn(&StoppedMutator<'_, V>) -> Brought + Sync + 'e;
type OnThread<'e, V> = dyn Fn(&World<V>) + Sync + 'e;

enum Kind<'e, V: StackScanner> {
    Pause(Box<InPause<'e, V>>),
    Handshake(Box<InHandshake<'e, V>>),
    Thread(Box<OnThread<'e, V>>),
}

struct Action<'e, V: StackScanner> {
    name: String,
    kind: Kind<'e, V>,
}

impl<V: StackScanner> Action<'_, V> {
    /// When it can take place if it arrives at `step`.
    fn whens(&self, step: Step) -> &'static [When] {
        match (&self.kind, step.stance()) {
            (Kind::Pause(_) | Kind::Handshake(_), Stance::Published) => &[When::AtOnce, When::WhenItWaits],
            _ => &[When::AtOnce],
        }
    }
}

/// Runs a scenario with an action arriving at every micro-step, and at every pair of them.
///
/// The scenario's thread is the one that is explored: what it does in the world it is given. It may start others, which run as they like. Two runs in which nothing arrives must
/// take the same steps, or the exploration says so and ends.
pub struct Explorer<'e, V: StackScanner> {
    name: String,
    world: Box<dyn Fn() -> World<V> + 'e>,
    actions: Vec<Action<'e, V>>,
    all_pairs_up_to: usize,
    sampled_pairs: usize,
    seed: u64,
    limit: Duration,
}

impl<'e, V: StackScanner> Explorer<'e, V> {
    /// Begins the exploration of a scenario in worlds that `world` makes, one for each run.
    ///
    /// The name stands in schedules. All pairs of steps are run where the scenario passes at most 200, and 10,000 seeded ones otherwise.
    ///
    /// # Panics
    ///
    /// If there is a colon in the name.
    #[must_use]
    #[track_caller]
    pub fn new(name: &str, world: impl Fn() -> World<V> + 'e) -> Self {
        assert!(
            !name.contains(':'),
            "reentry: the name of a scenario stands before a colon in its schedules"
        );
        Self {
            name: name.to_owned(),
            world: Box::new(world),
            actions: Vec::new(),
            all_pairs_up_to: 200,
            sampled_pairs: 10_000,
            seed: 1,
            limit: Duration::from_secs(60),
        }
    }

    /// Adds an action.
    ///
    /// # Panics
    ///
    /// If its name cannot stand in a schedule.
    #[track_caller]
    fn action(mut self, name: &str, kind: Kind<'e, V>) -> Self {
        assert!(
            !name.contains(['@', ',', ':']),
            "reentry: the name of an action stands before an @ in schedules, and between commas"
        );
        self.actions.push(Action { name: name.to_owned(), kind });
        self
    }

    /// Adds an action: a pause, in which `f` runs. An error of it is a failure of the schedule.
    ///
    /// # Panics
    ///
    /// If the name has an `@`, a comma or a colon.
    #[must_use]
    #[track_caller]
    pub fn pausing<T, E: fmt::Display>(
        self,
        name: &str,
        f: impl Fn(&StoppedWorld<'_, V>) -> Result<T, E> + Sync + 'e,
    ) -> Self {
        let f = move |stopped: &StoppedWorld<'_, V>| f(stopped).map(drop).map_err(|error| error.to_string());
        self.action(name, Kind::Pause(Box::new(f)))
    }

    /// Adds an action: a handshake with each mutator of the world. An error of `f` is a failure of the schedule.
    ///
    /// # Panics
    ///
    /// As [`pausing`](Self::pausing).
    #[must_use]
    #[track_caller]
    pub fn shaking_hands<T, E: fmt::Display>(
        self,
        name: &str,
        f: impl Fn(&StoppedMutator<'_, V>) -> Result<T, E> + Sync + 'e,
    ) -> Self {
        let f =
            move |mutator: &StoppedMutator<'_, V>| f(mutator).map(drop).map_err(|error| error.to_string());
        self.action(name, Kind::Handshake(Box::new(f)))
    }

    /// Adds an action: `f` runs on a new thread, which attaches, calls in, or what you like. A panic is a failure of the schedule.
    ///
    /// # Panics
    ///
    /// As [`pausing`](Self::pausing).
    #[must_use]
    #[track_caller]
    pub fn on_a_thread(self, name: &str, f: impl Fn(&World<V>) + Sync + 'e) -> Self {
        self.action(name, Kind::Thread(Box::new(f)))
    }

    /// Chooses up to how many steps of a scenario all pairs are run, and how many otherwise, chosen with `seed`.
    #[must_use]
    pub fn pairs(mut self, all_up_to: usize, otherwise: usize, seed: u64) -> Self {
        (self.all_pairs_up_to, self.sampled_pairs, self.seed) = (all_up_to, otherwise, seed);
        self
    }

    /// Chooses how long a run may take, 60 seconds otherwise. One that takes longer hangs: the process ends, with the schedule.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Explores: the scenario alone, then with each action at each step, then with each two at each pair of steps, then with each action at every step of one run. Stops at the first failure.
    ///
    /// With `REENTRY_SCHEDULE` set to a schedule of this scenario, it runs that one alone.
    ///
    /// # Errors
    ///
    /// The first schedule that failed, and what went wrong: the scenario panicked, an action failed, managed code ran in a pause, or the scenario does not take the same steps each time.
    ///
    /// # Panics
    ///
    /// If `REENTRY_SCHEDULE` holds what is no schedule.
    pub fn explore(&self, scenario: impl Fn(&World<V>)) -> Result<Explored, ScheduleFailed> {
        if let Ok(text) = std::env::var("REENTRY_SCHEDULE") {
            let schedule: Schedule =
                text.parse().unwrap_or_else(|error| panic!("reentry: REENTRY_SCHEDULE: {error}"));
            if schedule.scenario == self.name {
                let steps = self.replay(&schedule, scenario)?;
                let mut explored = Explored::new(self, steps.clone());
                explored.count(&Run { steps, strayed: None });
                return Ok(explored);
            }
        }
        self.with_board(|board| self.explore_all(board, &scenario))
    }

    /// Runs one schedule, and returns the steps that were taken.
    ///
    /// # Errors
    ///
    /// As [`explore`](Self::explore).
    pub fn replay(
        &self,
        schedule: &Schedule,
        scenario: impl Fn(&World<V>),
    ) -> Result<Vec<Step>, ScheduleFailed> {
        self.with_board(|board| {
            let run = self.run(board, &schedule.arrivals, &scenario)?;
            match run.strayed {
                None => Ok(run.steps),
                Some(what) => Err(ScheduleFailed { schedule: schedule.clone(), what, steps: run.steps }),
            }
        })
    }

    /// Runs `f` with the threads that bring what arrives.
    fn with_board<R>(&self, f: impl FnOnce(&Board<V>) -> R) -> R {
        let board = Board::new();
        std::thread::scope(|scope| {
            // Also if `f` panics: the scope waits for the threads.
            let _closed = scopeguard::guard(&board, Board::close);
            for index in 0..AT_MOST {
                let board = &board;
                // A `Sync` part of this: the world's maker need not be.
                let actions = &self.actions;
                scope.spawn(move || board.serve(index, actions));
            }
            let limit = self.limit;
            let watched = &board;
            scope.spawn(move || watched.watch(limit));
            with_others(&board, || f(&board))
        })
    }

    /// One run.
    ///
    /// # Errors
    ///
    /// What went wrong.
    fn run(
        &self,
        board: &Board<V>,
        arrivals: &[Arrival],
        scenario: &impl Fn(&World<V>),
    ) -> Result<Run, ScheduleFailed> {
        let schedule = || Schedule { scenario: self.name.clone(), arrivals: arrivals.to_vec() };
        let world = (self.world)();
        board.begin(&world, schedule().to_string());
        let probe = Probe::new(board, &self.actions, arrivals, &world);
        let outcome = catch_unwind(AssertUnwindSafe(|| with_probe(&probe, || scenario(&world))));
        let failure = board.end();
        let (steps, strayed) = probe.into_trace();
        // What the other threads have seen comes first: the scenario may have failed for it.
        match failure.or_else(|| outcome.err().map(|payload| text(&*payload).to_owned())) {
            None => Ok(Run { steps, strayed }),
            Some(what) => Err(ScheduleFailed { schedule: schedule(), what, steps }),
        }
    }

    /// Every run.
    ///
    /// # Errors
    ///
    /// As [`explore`](Self::explore).
    fn explore_all(
        &self,
        board: &Board<V>,
        scenario: &impl Fn(&World<V>),
    ) -> Result<Explored, ScheduleFailed> {
        let run = self.run(board, &[], scenario)?;
        let steps = run.steps.clone();
        let again = self.run(board, &[], scenario)?.steps;
        if steps != again {
            let differs = steps.iter().zip(&again).position(|(one, other)| one != other);
            let at = differs.unwrap_or(steps.len().min(again.len())) + 1;
            return Err(ScheduleFailed {
                schedule: Schedule { scenario: self.name.clone(), arrivals: Vec::new() },
                what: format!(
                    "the scenario does not take the same steps each time: two runs differ at step {at}"
                ),
                steps,
            });
        }
        let mut explored = Explored::new(self, steps.clone());
        explored.count(&run);
        let mut singles = Vec::new();
        for arrival in self.arrivals_from(1, &steps) {
            let run = self.run(board, core::slice::from_ref(&arrival), scenario)?;
            explored.count(&run);
            explored.singles += 1;
            singles.push((arrival, run.steps));
        }
        if steps.len() <= self.all_pairs_up_to {
            for (first, steps) in &singles {
                for second in self.arrivals_from(first.at.unwrap_or(1), steps) {
                    let run = self.run(board, &[first.clone(), second], scenario)?;
                    explored.count(&run);
                    explored.pairs += 1;
                }
            }
        } else if !singles.is_empty() {
            explored.seed = Some(self.seed);
            let mut random = Random(self.seed);
            for _ in 0..self.sampled_pairs {
                let (first, steps) = &singles[random.below(singles.len())];
                let from = first.at.unwrap_or(1);
                let at = from + random.below(steps.len() + 1 - from);
                let seconds: Vec<_> = self.arrivals_at(at, steps[at - 1]).collect();
                let second = seconds[random.below(seconds.len())].clone();
                let run = self.run(board, &[first.clone(), second], scenario)?;
                explored.count(&run);
                explored.pairs += 1;
            }
        }
        // Last: a schedule with fewer stops tells more.
        for action in &self.actions {
            let everywhere =
                Arrival { action: action.name.clone(), at: None, when: When::AtOnce, step: None };
            explored.count(&self.run(board, &[everywhere], scenario)?);
        }
        Ok(explored)
    }

    /// What can arrive from step `from` on, if these are the steps.
    fn arrivals_from(&self, from: usize, steps: &[Step]) -> impl Iterator<Item = Arrival> {
        (from..=steps.len()).flat_map(move |at| self.arrivals_at(at, steps[at - 1]))
    }

    /// What can arrive at one step.
    fn arrivals_at(&self, at: usize, step: Step) -> impl Iterator<Item = Arrival> {
        self.actions.iter().flat_map(move |action| {
            action.whens(step).iter().map(move |&when| Arrival {
                action: action.name.clone(),
                at: Some(at),
                when,
                step: Some(step),
            })
        })
    }
}

impl<V: StackScanner> fmt::Debug for Explorer<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Explorer").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What one run was.
struct Run {
    steps: Vec<Step>,
    strayed: Option<String>,
}

/// Which pairs are run of a scenario with many: splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

/// What an exploration has covered.
///
/// Its text names every step the scenario has reached, how often, and how many schedules were run.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "an exploration that reached nothing proves nothing; print it, or look at it"]
pub struct Explored {
    scenario: String,
    actions: Vec<String>,
    steps: Vec<Step>,
    reached: BTreeMap<Step, usize>,
    singles: usize,
    pairs: usize,
    strayed: usize,
    seed: Option<u64>,
}

impl Explored {
    fn new<V: StackScanner>(explorer: &Explorer<'_, V>, steps: Vec<Step>) -> Self {
        Self {
            scenario: explorer.name.clone(),
            actions: explorer.actions.iter().map(|action| action.name.clone()).collect(),
            steps,
            reached: BTreeMap::new(),
            singles: 0,
            pairs: 0,
            strayed: 0,
            seed: None,
        }
    }

    fn count(&mut self, run: &Run) {
        for &step in &run.steps {
            *self.reached.entry(step).or_default() += 1;
        }
        self.strayed += usize::from(run.strayed.is_some());
    }

    /// The steps of the scenario when nothing arrives.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// How often each step was reached, in all runs.
    #[must_use]
    pub fn reached(&self) -> &BTreeMap<Step, usize> {
        &self.reached
    }

    /// How many schedules with one action were run.
    #[must_use]
    pub fn singles(&self) -> usize {
        self.singles
    }

    /// How many schedules with two actions were run.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.pairs
    }

    /// How many of them took other steps than the run with the first action alone had, so that the second did not arrive. It happens where other threads of the scenario stop the world or are
    /// waited for; a scenario of one thread has none.
    #[must_use]
    pub fn strayed(&self) -> usize {
        self.strayed
    }
}

impl fmt::Display for Explored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} steps; {} schedules with one of {}, {} with two{}",
            self.scenario,
            self.steps.len(),
            self.singles,
            self.actions.join(", "),
            self.pairs,
            self.seed.map_or_else(|| " (all)".to_owned(), |seed| format!(" (seed {seed})"))
        )?;
        if self.strayed > 0 {
            writeln!(f, "  {} of them took other steps, and the second action did not arrive", self.strayed)?;
        }
        for step in Step::ALL {
            match self.reached.get(step) {
                Some(times) => writeln!(f, "  {step:<22} {times}")?,
                None => writeln!(f, "  {step:<22} not reached")?,
            }
        }
        Ok(())
    }
}

/// A schedule that failed.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct ScheduleFailed {
    /// The schedule.
    pub schedule: Schedule,
    /// What went wrong.
    pub what: String,
    /// The steps that were taken.
    pub steps: Vec<Step>,
}

impl fmt::Display for ScheduleFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.what)?;
        writeln!(f, "  run it again with REENTRY_SCHEDULE=\"{}\"", self.schedule)?;
        write!(f, "  the steps it took:")?;
        for (index, step) in self.steps.iter().enumerate() {
            let arrivals = self.schedule.arrivals.iter().filter(|arrival| arrival.at == Some(index + 1));
            write!(f, "\n  {:>4} {step}", index + 1)?;
            for arrival in arrivals {
                let when = match arrival.when {
                    When::AtOnce => "",
                    When::WhenItWaits => ", which takes place when this thread waits for it",
                };
                write!(f, "  <-- {}{when}", arrival.action)?;
            }
        }
        Ok(())
    }
}

impl core::error::Error for ScheduleFailed {}
