//! Runs a program on the crate, and tells the model.

use super::look;
use super::model::{Declared, Doing, Model, Name, Said};
use super::program::{Foreign, Op, Pick, Places, Plan};
use core::ffi::{c_int, c_void};
use core::mem::ManuallyDrop;
use core::panic::AssertUnwindSafe;
use core::ptr::{self, NonNull};
use reentry::testkit::bytecode::Program;
use reentry::testkit::{FaultSet, Ref, TestVm};
use reentry::{Always, Anchor, FenceStrategy, ForeignCall, Mutator, Root, StoppedWorld, World, upcall_fn};
use reentry_foreign::{
    foreign_call_back_last, foreign_jump, foreign_land, foreign_land_and_call, foreign_land_many,
};
pub(super) use state::State;
pub(crate) use state::Tally;
use state::move_stack;
use std::collections::BTreeMap;
use std::panic::{catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// How many threads have mutators, the first included.
const THREADS: usize = 3;
/// How many fibers there are at a time.
const FIBERS: usize = 2;
/// How deep a thread's activations nest, and a fiber's: C has 16 jump points for a thread and for what runs on it.
const DEPTH: usize = 8;
const FIBER_DEPTH: usize = 5;
/// The words a managed stack moves about in; the outermost two belong to no stack.
const ARENA: usize = 160;

/// The payload of the panics that programs ask for.
struct Asked;

/// A program on its way.
pub(crate) struct Machine<F: FaultSet> {
    world: World<TestVm<F>>,
    state: Mutex<State<F>>,
    pub(super) reports: Arc<Mutex<Vec<Said>>>,
    /// Which thread runs. The others are foreign, or not attached.
    turn: Mutex<usize>,
    turned: Condvar,
}

/// A machine's address, for its threads.
struct Shared<F: FaultSet>(*const Machine<F>);
// SAFETY: only the thread whose turn it is uses what the machine holds, and the last to have it before it ends is the thread that made it.
unsafe impl<F: FaultSet> Send for Shared<F> {}

impl<F: FaultSet> Clone for Shared<F> {
    fn clone(&self) -> Self {
        Self(self.0)
    }
}

impl<F: FaultSet> Shared<F> {
    /// The machine.
    fn get(&self) -> &Machine<F> {
        // SAFETY: it outlives its threads and fibers.
        unsafe { &*self.0 }
    }
}

/// Runs a program on a world without the protections that `F` takes away.
///
/// # Errors
///
/// The first disagreement of the crate and the model.
pub(crate) fn run<F: FaultSet>(ops: Vec<Op>, fence: FenceStrategy) -> Result<Tally, String> {
    let reports = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&reports);
    let builder = TestVm::<F>::builder_without(Program::new(Vec::new()).expect("an empty program is valid"));
    let builder = builder.stack_words(1).on_report(move |report| lock(&sink).push(look::said(report)));
    let world = builder.build_world_with(World::builder().fence(fence));
    let state = State {
        ops: ops.into_iter(),
        model: Model::default(),
        refs: BTreeMap::new(),
        bodies: Vec::new(),
        strands: Vec::new(),
        fibers: Vec::new(),
        running: 0,
        prepared: Vec::new(),
        declared: 0,
        tokens: Vec::new(),
        handles: Vec::new(),
        weak: Vec::new(),
        pinner: world.pinner(),
        pins: Vec::new(),
        threads: [const { None }; THREADS],
        steps: 0,
        tally: Tally::new(),
        failed: None,
    };
    let machine =
        Machine { world, state: Mutex::new(state), reports, turn: Mutex::new(0), turned: Condvar::new() };
    machine.main();
    let mut state = machine.state();
    state.failed.take().map_or_else(|| Ok(core::mem::take(&mut state.tally)), Err)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The upcall of every program. `x` counts the callbacks of one foreign call that jumps can land in.
fn step<F: FaultSet>(mutator: &mut Mutator<TestVm<F>>, x: c_int, machine: *mut c_void) -> c_int {
    // SAFETY: C passes on the address of the machine, which outlives the call.
    let machine = unsafe { &*machine.cast::<Machine<F>>() };
    {
        let mut state = machine.state();
        if x > 0 {
            state.agent().last_callback();
        }
        state.agent().upcall();
        state.count("upcall");
        if state.agent().fiber {
            state.count("upcall on a fiber");
        }
    }
    machine.compare(mutator, None, false);
    machine.run(mutator, true);
    machine.state().agent().upcall_over();
    1
}

/// Crosses where this stands, and tells the model so.
macro_rules! cross {
    ($machine:expr, $call:expr, $body:expr) => {{
        $machine.state().agent().top().line = line!();
        $call.run(|| $body)
    }};
}

/// The same for what can be given an anchor.
macro_rules! cross_at {
    ($machine:expr, $anchor:expr, $mutator:ident.$with:ident or $without:ident($($argument:expr),*)) => {{
        $machine.state().agent().top().line = line!();
        match $anchor {
            Some(anchor) => $mutator.$with(anchor, $($argument),*),
            None => $mutator.$without($($argument),*),
        }
    }};
}

mod agents;
mod state;

impl<F: FaultSet> Machine<F> {
    fn state(&self) -> MutexGuard<'_, State<F>> {
        lock(&self.state)
    }

    /// Notes a disagreement.
    fn fail(&self, why: impl Into<String>) {
        self.state().fail(why.into());
    }

    /// The next operation; none after a disagreement.
    fn next(&self) -> Option<Op> {
        let mut state = self.state();
        state.steps += 1;
        if state.failed.is_some() { None } else { state.ops.next() }
    }

    /// Compares what a collector finds with the model, and collects.
    fn look(&self, stopped: &StoppedWorld<'_, TestVm<F>>, collects: bool) {
        let state = &mut *self.state();
        if state.failed.is_some() {
            return;
        }
        let mut outcome = look::compare(state, stopped, &lock(&self.reports));
        if collects {
            outcome = outcome
                .and_then(|()| look::collect(state, stopped))
                .and_then(|()| look::compare(state, stopped, &lock(&self.reports)));
            state.count("collection");
        }
        if let Err(why) = outcome {
            state.fail(why);
        }
    }

    /// [`look`](Self::look) from the running agent, which stops at `at`.
    fn compare(&self, mutator: &mut Mutator<TestVm<F>>, at: Places, collects: bool) {
        self.stop(mutator, at, |stopped| self.look(stopped, collects));
        let state = &mut *self.state();
        let heap = mutator.vm().heap();
        let handles = state.handles.iter().map(|handle| look::name(heap, mutator.load(handle)).ok());
        let weak =
            state.weak.iter().map(|weak| mutator.load_weak(weak).map(|object| look::name(heap, object).ok()));
        let found: (Vec<_>, Vec<_>) = (handles.collect(), weak.collect());
        let expected: (Vec<_>, Vec<_>) = (
            state.model.handles.iter().map(|name| Some(*name)).collect(),
            state.model.weak.iter().map(|name| name.map(Some)).collect(),
        );
        if state.failed.is_none() && found != expected {
            state.fail(format!("the handles hold {found:?}, not {expected:?}"));
        }
    }

    fn stop(
        &self,
        mutator: &mut Mutator<TestVm<F>>,
        at: Places,
        f: impl FnOnce(&StoppedWorld<'_, TestVm<F>>),
    ) {
        let anchor = {
            let state = &mut *self.state();
            let saved = state.saved(at);
            state.agent().top().saved = saved;
            state.anchor(saved)
        };
        cross_at!(self, anchor, mutator.pause_at or pause(f));
        self.state().agent().top().saved = None;
    }

    /// Runs operations until the innermost level ends. `ends`: `Return` ends it.
    fn run(&self, mutator: &mut Mutator<TestVm<F>>, ends: bool) {
        while let Some(op) = self.next() {
            match op {
                Op::Return if ends => return,
                Op::Return => {}
                Op::Declare { plan, object, times } => {
                    self.state().prepared.extend((0..times).map(|_| (plan, object)));
                }
                Op::Call { foreign, at, catches, leaks } => self.call(mutator, foreign, at, catches, leaks),
                Op::Panic => self.panic(),
                Op::Jump { to, in_call } => self.jump(mutator, to, in_call),
                Op::Collect { at } => self.compare(mutator, at, true),
                Op::Scope { object, times } => self.scope(mutator, object, times),
                Op::Move { start, words, high } => self.relocate(mutator, start, words, high),
                Op::MoveStopped { whose, start, words, high } => {
                    self.stop(mutator, Some((whose, start)), |stopped| {
                        self.relocate_stopped(stopped, whose, start, words, high);
                        self.look(stopped, false);
                    });
                }
                Op::MakeFiber => self.make_fiber(),
                Op::Resume { which, at } => self.resume(mutator, which, at),
                Op::Suspend { at } => self.suspend(mutator, at),
                Op::HandOver { .. }
                | Op::Release(_)
                | Op::NewHandle(_)
                | Op::DropHandle(_)
                | Op::NewWeak(_)
                | Op::DropWeak(_)
                | Op::PinFor { .. }
                | Op::Unpin(_) => self.refer(mutator, op),
            }
            self.compare(mutator, None, false);
        }
    }

    /// What is neither a crossing nor a move.
    fn refer(&self, mutator: &mut Mutator<TestVm<F>>, op: Op) {
        let state = &mut *self.state();
        let index = |number: u8, count: usize| (count > 0).then(|| usize::from(number) % count);
        match op {
            Op::HandOver { pinned, object } => {
                let (name, reference) = state.object(mutator.vm(), object);
                let plan = if pinned { Plan::Pin } else { Plan::Root };
                let expected = state.agent().hand_over(Declared { plan, object: name, word: 0, number: 0 });
                state.count("hand-over");
                let found = if pinned {
                    mutator.hand_over_pinned(reference).is_ok()
                } else {
                    mutator.hand_over(reference).is_ok()
                };
                if found != expected {
                    state.fail(format!("a reference was handed over: {found}, not {expected}"));
                }
            }
            Op::Release(number) => {
                let Some(back) = index(number, state.tokens.len().min(8)) else { return };
                let (number, token) = state.tokens[state.tokens.len() - 1 - back];
                let (found, expected) = (mutator.release_argument(token), state.agent().release(number));
                state.count(if expected { "early release" } else { "release refused" });
                if found.is_ok() != expected {
                    state.fail(format!("an argument was released: {found:?}, not {expected}"));
                }
            }
            Op::NewHandle(object) => {
                let (name, reference) = state.object(mutator.vm(), object);
                state.handles.push(mutator.handle(reference));
                state.model.handles.push(name);
            }
            Op::DropHandle(number) => {
                let Some(index) = index(number, state.handles.len()) else { return };
                drop(state.handles.remove(index));
                state.model.handles.remove(index);
            }
            Op::NewWeak(object) => {
                let (name, reference) = state.object(mutator.vm(), object);
                state.weak.push(mutator.weak_handle(reference));
                state.model.weak.push(Some(name));
            }
            Op::DropWeak(number) => {
                let Some(index) = index(number, state.weak.len()) else { return };
                drop(state.weak.remove(index));
                state.model.weak.remove(index);
            }
            Op::PinFor { transitively, object } => {
                let (name, reference) = state.object(mutator.vm(), object);
                let (plan, pin) = if transitively {
                    (Plan::TransitivePin, mutator.pin_transitively_with(&mut state.pinner, reference))
                } else {
                    (Plan::Pin, mutator.pin_with(&mut state.pinner, reference))
                };
                state.pins.push(pin.expect("it is an object"));
                state.model.pins.push((plan, name));
            }
            Op::Unpin(number) => {
                let Some(index) = index(number, state.pins.len()) else { return };
                let pin = state.pins.remove(index);
                state.pinner.unpin(pin).expect("it is a pin of the pinner");
                state.model.pins.remove(index);
            }
            _ => {}
        }
    }

    /// Makes what has been prepared the arguments of a call that begins now.
    fn begin_call(
        &self,
        vm: &TestVm<F>,
        at: Places,
        lands: Option<usize>,
    ) -> (Option<Anchor>, Vec<(Declared, Ref)>) {
        let state = &mut *self.state();
        let mut arguments = Vec::new();
        for (plan, pick) in core::mem::take(&mut state.prepared) {
            let word = if plan == Plan::InPlace { state.free_word(&arguments) } else { Some(0) };
            let Some(word) = word else { continue };
            let (object, reference) = state.object(vm, pick);
            state.declared += 1;
            let number = state.declared;
            arguments.push((Declared { plan, object, word, number }, reference));
        }
        let saved = state.saved(at);
        let anchor = state.anchor(saved);
        state.agent().call(arguments.iter().map(|(declared, _)| *declared).collect(), saved, lands);
        (anchor, arguments)
    }

    /// Declares them. Gives the first that is a root by value.
    fn declare<'m>(
        &'m self,
        call: &mut ForeignCall<'m, TestVm<F>>,
        arguments: Vec<(Declared, Ref)>,
    ) -> Option<(Name, Root<'m, Ref>)> {
        let mut first = None;
        for (Declared { plan, object, word, number }, reference) in arguments {
            match plan {
                Plan::Root => {
                    let root = call.root(reference);
                    first.get_or_insert((object, root));
                }
                Plan::InPlace => {
                    let place = {
                        let state = self.state();
                        state.body(state.running).word(word).cast::<Ref>()
                    };
                    // SAFETY: a word of the arena that is nobody else's; a reference is one word.
                    unsafe { place.write(reference) };
                    let place = NonNull::new(place).expect("an arena has addresses");
                    // SAFETY: it holds the reference, and follows the stack it stands in, until the call is over.
                    unsafe { call.root_in_place(place) }.expect("it is an object");
                }
                Plan::Pin => drop(call.pin(reference).expect("it is an object")),
                Plan::TransitivePin => drop(call.pin_transitively(reference).expect("it is an object")),
                Plan::KeepAlive => call.keep_alive(self),
                Plan::UntilReleased => {
                    let root = call.root_until_released(reference).expect("it is an object");
                    self.state().tokens.push((number, root.token()));
                }
                Plan::UntilFirstUpcall => {
                    call.root_until_first_upcall(reference).expect("it is an object");
                }
            }
        }
        first
    }

    /// A foreign call, and whatever is nested in it.
    ///
    /// # Panics
    ///
    /// If an upcall did, and the program does not catch it.
    fn call(
        &self,
        mutator: &mut Mutator<TestVm<F>>,
        foreign: Foreign,
        at: Places,
        catches: bool,
        leaks: bool,
    ) {
        let lands = match foreign {
            Foreign::CallBack | Foreign::Look | Foreign::Collect | Foreign::CollectElsewhere => None,
            Foreign::Land => Some(0),
            Foreign::LandAndCall | Foreign::LandTwice => Some(1),
            Foreign::Switch(to) => {
                let thread = self.state().thread();
                if usize::from(to) % THREADS == thread {
                    return;
                }
                None
            }
        };
        let (agent, deep) = {
            let state = &mut *self.state();
            (state.running, state.agent().frames.len() >= state.body(state.running).depth)
        };
        if deep
            && matches!(
                foreign,
                Foreign::CallBack | Foreign::Land | Foreign::LandAndCall | Foreign::LandTwice
            )
        {
            return;
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let (anchor, arguments) = self.begin_call(mutator.vm(), at, lands);
            let mut call = mutator.foreign_call();
            if let Some(anchor) = anchor {
                call = call.at(anchor);
            }
            let first = self.declare(&mut call, arguments);
            self.cross(&mut call, foreign);
            let mut state = self.state();
            if state.agent().call_returned() {
                state.fail("the error of an upcall did not go on".to_owned());
            }
            if let Some((expected, root)) = first {
                let found = look::name(call.vm().heap(), call.get(root));
                if found.as_ref() != Ok(&expected) {
                    state.fail(format!("C's caller finds {found:?} in a root, not {expected}"));
                }
            }
            // Whether one that ends with the first upcall of a leaked call ends with that of the next is not said.
            if leaks
                && state.agent().top().memory.iter().all(|declared| declared.plan != Plan::UntilFirstUpcall)
            {
                state.count("leaked call");
                drop(state);
                let _leaked = ManuallyDrop::new(call);
            } else {
                state.agent().call_over();
                drop(state);
                drop(call);
            }
        }));
        let Err(payload) = outcome else { return };
        {
            let state = &mut *self.state();
            if !payload.is::<Asked>() {
                let text = payload.downcast_ref::<String>().cloned();
                state.fail(format!("the crate panicked: {}", text.unwrap_or_default()));
            }
            if state.running != agent || !state.agent().call_returned() {
                return state.fail("an error of an upcall went on that was not there".to_owned());
            }
            state.agent().call_over();
        }
        if !catches {
            self.panic();
        }
    }

    /// The foreign half of a call.
    fn cross(&self, call: &mut ForeignCall<'_, TestVm<F>>, foreign: Foreign) {
        let callback: extern "C" fn(c_int, *mut c_void) -> c_int = upcall_fn(Always(step::<F>));
        let machine = ptr::from_ref(self).cast_mut().cast::<c_void>();
        let (agent, thread, point) = {
            let state = &mut *self.state();
            let depth = state.agent().frames.len() - 1;
            (state.running, state.thread(), (state.body(state.running).point + depth) as c_int)
        };
        match foreign {
            Foreign::CallBack => {
                // SAFETY: the callback expects the machine's address.
                cross!(self, call, unsafe { foreign_call_back_last(callback, 0, machine) });
            }
            Foreign::Land => {
                // SAFETY: as above; the point is this activation's own.
                cross!(self, call, unsafe { foreign_land(point, callback, 0, machine) });
            }
            Foreign::LandAndCall => {
                // SAFETY: as above.
                cross!(self, call, unsafe { foreign_land_and_call(point, callback, callback, 0, machine) });
            }
            Foreign::LandTwice => {
                // SAFETY: as above.
                cross!(self, call, unsafe { foreign_land_many(point, callback, 2, machine) });
            }
            Foreign::Look => cross!(self, call, self.world.pause(|stopped| self.look(stopped, false))),
            Foreign::Collect => cross!(self, call, self.world.pause(|stopped| self.look(stopped, true))),
            Foreign::CollectElsewhere => {
                let shared = Shared(ptr::from_ref(self));
                cross!(self, call, {
                    let elsewhere = thread::spawn(move || {
                        let machine = shared.get();
                        machine.world.pause(|stopped| machine.look(stopped, true));
                    });
                    elsewhere.join().expect("it stops the world, and no more");
                });
            }
            Foreign::Switch(to) => {
                let to = usize::from(to) % THREADS;
                cross!(self, call, {
                    self.see_to_thread(to);
                    self.give_turn(to);
                    self.wait_for_turn(thread);
                    self.state().running = agent;
                });
            }
        }
    }

    /// Ends the upcall that runs with a panic, if one runs that has a managed caller.
    ///
    /// # Panics
    ///
    /// That is what it is for.
    fn panic(&self) {
        {
            let state = &mut *self.state();
            let agent = state.agent();
            let caller = agent.frames.iter().rev().nth(1);
            if caller.is_none_or(|caller| caller.doing != Doing::InCall) {
                return;
            }
            let second = agent.upcall_failed();
            state.count("panic");
            if second {
                state.count("second panic");
                state.model.reports.push(Said::Superseded);
            }
        }
        resume_unwind(Box::new(Asked))
    }

    /// Leaves upcalls by a jump to a call that is in progress, if there is one to land in.
    fn jump(&self, mutator: &mut Mutator<TestVm<F>>, to: u8, in_call: bool) {
        let (depth, point) = {
            let state = &mut *self.state();
            let landings = state.agent().landings();
            if landings.is_empty() {
                return;
            }
            let depth = landings[usize::from(to) % landings.len()];
            (depth, (state.body(state.running).point + depth) as c_int)
        };
        if in_call {
            let (_, arguments) = self.begin_call(mutator.vm(), None, None);
            let mut call = mutator.foreign_call();
            self.declare(&mut call, arguments);
            self.state().report_jump(depth);
            // SAFETY: C that waits for an upcall of this thread has set the point.
            call.run(|| -> () { unsafe { foreign_jump(point) } });
        } else {
            self.state().report_jump(depth);
            // SAFETY: as above; it does nothing else.
            unsafe { mutator.leaf_call(|_| -> () { foreign_jump(point) }) };
        }
        unreachable!("it has jumped")
    }

    fn scope(&self, mutator: &mut Mutator<TestVm<F>>, object: Pick, times: u8) {
        mutator.scope(|scope| {
            {
                let state = &mut *self.state();
                state.agent().begin_scope();
                state.count("scope");
                for _ in 0..times {
                    let (object, reference) = state.object(scope.vm(), object);
                    let declared = Declared { plan: Plan::Root, object, word: 0, number: 0 };
                    state.agent().top().declared.push(declared);
                    let _local = scope.root(reference);
                }
            }
            self.compare(scope, None, false);
            self.run(scope, true);
            self.state().agent().end_scope();
        });
    }

    /// Moves the running agent's stack.
    fn relocate(&self, mutator: &mut Mutator<TestVm<F>>, start: u8, words: u8, high: bool) {
        let state = &mut *self.state();
        let Some((old, new, end, expected)) = move_stack(state, state.running, (start, words, high), false)
        else {
            return;
        };
        // SAFETY: the words in use have been copied within the arena, whose provenance is exposed.
        let found = unsafe { mutator.relocate_stack(old, new, end) };
        if found.as_ref().ok() != expected.as_ref() {
            state.fail(format!("a stack moved: {found:?}, not {expected:?}"));
        }
    }

    /// Moves the stack of any agent, in a pause.
    fn relocate_stopped(
        &self,
        stopped: &StoppedWorld<'_, TestVm<F>>,
        whose: u8,
        start: u8,
        words: u8,
        high: bool,
    ) {
        let state = &mut *self.state();
        let count = state.model.present().count();
        let (whose, id) = {
            let (number, agent) = state.model.present().nth(usize::from(whose) % count).expect("counted");
            (number, agent.id)
        };
        let Some(mutator) = stopped.mutators().find(|mutator| mutator.id() == id) else {
            return state.fail(format!("mutator {id} is not there"));
        };
        let Some((old, new, end, expected)) = move_stack(state, whose, (start, words, high), true) else {
            return;
        };
        // SAFETY: as in `relocate`.
        let found = unsafe { mutator.relocate_stack(old, new, end) };
        if found.as_ref().ok() != expected.as_ref() {
            state.fail(format!("a stack moved in a pause: {found:?}, not {expected:?}"));
        }
    }

    /// Gives back what outlives calls.
    fn let_go(&self, mutator: &mut Mutator<TestVm<F>>) {
        {
            let state = &mut *self.state();
            state.handles.clear();
            state.weak.clear();
            state.pinner.unpin_all();
            state.model.handles.clear();
            state.model.weak.clear();
            state.model.pins.clear();
        }
        self.compare(mutator, None, true);
    }

    /// The program from beginning to end.
    fn main(&self) {
        self.attached(0);
        self.world.pause(|stopped| self.look(stopped, true));
        let stale = self.world.vm().heap().stale_writes();
        if !stale.is_empty() {
            self.fail(format!("stale references were written through: {stale:?}"));
        }
    }
}
