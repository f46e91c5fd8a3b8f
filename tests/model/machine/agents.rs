//! Threads and fibers: who runs, who waits, and who leaves.

use super::super::model::{Agent, Doing, Said};
use super::super::program::{Foreign, Places};
use super::state::Body;
use super::{DEPTH, FIBER_DEPTH, FIBERS, Machine, Shared, THREADS, lock};
use crate::strand::{Strand, switch_back};
use core::panic::AssertUnwindSafe;
use core::ptr;
use reentry::testkit::{FaultSet, TestVm};
use reentry::{FiberError, Mutator};
use std::panic::catch_unwind;
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};

impl<F: FaultSet> Machine<F> {
    /// The agent is attached, and runs: declares its stack.
    fn begin(&self, mutator: &mut Mutator<TestVm<F>>, agent: usize) {
        let declared = {
            let state = &mut *self.state();
            state.running = agent;
            let stack = 4..36;
            state.agent().stack = Some(stack.clone());
            state.word(agent, stack.start)..state.word(agent, stack.end)
        };
        mutator.declare_stack(declared).expect("it is the only one");
        self.compare(mutator, None, false);
    }

    pub(super) fn make_fiber(&self) {
        let (agent, id);
        {
            let state = &mut *self.state();
            let mut free = (0..FIBERS).map(|slot| DEPTH + slot * (FIBER_DEPTH - 1)).filter(|point| {
                // Its oldest activation calls nobody, so its points begin one lower.
                !state.bodies.iter().flatten().any(|body| body.point + 1 == *point)
            });
            let Some(point) = free.next() else { return };
            agent = state.add(Agent::new(0, None), Body::new(point - 1, FIBER_DEPTH));
        }
        let shared = Shared(ptr::from_ref(self));
        let strand = Strand::new(&self.world, move |mutator: &mut Mutator<TestVm<F>>| {
            let machine = shared.get();
            machine.state().model.agent(agent).first_activation();
            machine.begin(mutator, agent);
            machine.run(mutator, true);
            machine.state().agent().upcall_over();
        });
        id = strand.fiber.id();
        let state = &mut *self.state();
        state.model.agent(agent).id = id;
        state.fibers[agent] = Some(Arc::clone(&strand.fiber));
        state.strands[agent] = Some(strand);
    }

    /// Resumes the fiber that is `which` of all, or sees that it is refused.
    pub(super) fn resume(&self, mutator: &mut Mutator<TestVm<F>>, which: u8, at: Places) {
        let fiber = {
            let state = self.state();
            let fibers: Vec<_> =
                state.model.present().filter(|(_, agent)| agent.fiber).map(|(number, _)| number).collect();
            if fibers.is_empty() {
                return;
            }
            fibers[usize::from(which) % fibers.len()]
        };
        let (agent, thread, handle, expected) = {
            let state = &mut *self.state();
            let thread = state.thread();
            let expected = match state.model.agent(fiber) {
                Agent { thread: Some(_), .. } => Err(FiberError::Running),
                Agent { bound: Some(bound), .. } if *bound != thread => Err(FiberError::Pinned),
                _ => Ok(()),
            };
            (state.running, thread, state.fibers[fiber].clone().expect("it is there"), expected)
        };
        self.state().count(if expected.is_ok() { "fiber resumed" } else { "fiber refused" });
        if let Err(expected) = expected {
            let found = mutator.resume(&handle, || ());
            if found != Err(expected) {
                self.fail(format!("a fiber was resumed: {found:?}, not {expected:?}"));
            }
            return;
        }
        let (anchor, mut strand) = {
            let state = &mut *self.state();
            let saved = state.saved(at);
            let anchor = state.anchor(saved);
            let top = state.agent().top();
            (top.doing, top.saved) = (Doing::Resuming, saved);
            let resumed = state.model.agent(fiber);
            (resumed.thread, resumed.bound) = (Some(thread), None);
            (anchor, state.strands[fiber].take().expect("it does not run"))
        };
        let switch = || {
            self.state().running = fiber;
            strand.switch()
        };
        let ended = cross_at!(self, anchor, mutator.resume_at or resume(&handle, switch));
        drop(handle);
        let ended = ended.expect("it was suspended");
        let gone = {
            let state = &mut *self.state();
            state.running = agent;
            let top = state.agent().top();
            (top.doing, top.saved) = (Doing::Running, None);
            let resumed = state.model.agent(fiber);
            resumed.thread = None;
            resumed.bound = (resumed.frames.len() > 2).then_some(thread);
            if ended {
                state.remove(fiber);
                Some(strand)
            } else {
                state.strands[fiber] = Some(strand);
                None
            }
        };
        drop(gone);
    }

    /// Puts the fiber that runs down.
    pub(super) fn suspend(&self, mutator: &mut Mutator<TestVm<F>>, at: Places) {
        let anchor = {
            let state = &mut *self.state();
            if !state.agent().fiber {
                return;
            }
            let saved = state.saved(at);
            let top = state.agent().top();
            (top.doing, top.saved) = (Doing::Suspended, saved);
            state.anchor(saved)
        };
        let back = cross_at!(self, anchor, mutator.suspend_at or suspend(switch_back));
        back.expect("it is a fiber");
        let state = &mut *self.state();
        let top = state.agent().top();
        (top.doing, top.saved) = (Doing::Running, None);
    }

    pub(super) fn give_turn(&self, to: usize) {
        // Told under the lock: whoever has the turn may end the machine.
        let mut turn = lock(&self.turn);
        *turn = to;
        self.turned.notify_all();
    }

    pub(super) fn wait_for_turn(&self, thread: usize) {
        let mut turn = lock(&self.turn);
        while *turn != thread {
            turn = self.turned.wait(turn).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Makes the thread if it is not there.
    pub(super) fn see_to_thread(&self, thread: usize) {
        let shared = Shared(ptr::from_ref(self));
        let mut state = self.state();
        state.count("switch of threads");
        if thread > 0 && state.threads[thread].as_ref().is_none_or(JoinHandle::is_finished) {
            state.threads[thread] = Some(thread::spawn(move || shared.get().other(thread)));
        }
    }

    /// What another thread does from beginning to end.
    fn other(&self, thread: usize) {
        self.wait_for_turn(thread);
        let outcome = catch_unwind(AssertUnwindSafe(|| self.attached(thread)));
        if outcome.is_err() {
            self.fail("another thread panicked");
        }
        let gone = self.state().threads[thread].take();
        self.give_turn(0);
        drop(gone);
    }

    /// Attaches the thread, and detaches it when it has run.
    pub(super) fn attached(&self, thread: usize) {
        let mut mutator = self.world.attach().expect("the world is open");
        let agent = self.state().add(Agent::new(mutator.id(), Some(thread)), Body::new(0, DEPTH));
        self.begin(&mut mutator, agent);
        self.run(&mut mutator, thread > 0);
        if thread == 0 {
            self.see_others_off(&mut mutator);
        }
        self.see_fibers_off(&mut mutator, thread);
        if thread == 0 {
            self.let_go(&mut mutator);
        }
        {
            let state = &mut *self.state();
            let (count, mutator) = (state.agent().top().declared.len(), state.agent().id);
            if count > 0 {
                state.model.reports.push(Said::ArgumentsLeaked { mutator, count });
            }
        }
        drop(mutator);
        self.state().remove(agent);
    }

    /// Lets the other threads run until they have ended.
    fn see_others_off(&self, mutator: &mut Mutator<TestVm<F>>) {
        for thread in 1..THREADS {
            while self.state().threads[thread].is_some() {
                self.call(mutator, Foreign::Switch(thread as u8), None, true, false);
            }
        }
    }

    /// Resumes fibers until they have ended: those bound to the thread, and at the end of all the others too.
    fn see_fibers_off(&self, mutator: &mut Mutator<TestVm<F>>, thread: usize) {
        loop {
            let which = {
                let state = self.state();
                let fibers = state.model.present().filter(|(_, agent)| agent.fiber);
                let which =
                    fibers.enumerate().find(|(_, (_, fiber))| thread == 0 || fiber.bound == Some(thread));
                which.map(|(which, _)| which)
            };
            let Some(which) = which else { return };
            self.resume(mutator, which as u8, None);
        }
    }
}
