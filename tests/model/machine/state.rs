//! What the machine knows of its agents and objects.

use super::super::look::address;
use super::super::model::{Agent, Declared, Model, Name, Said};
use super::super::program::{Op, Pick, Places, Plan};
use crate::strand::Strand;
use core::ptr::{self, NonNull};
use reentry::testkit::{FaultSet, Ref, TestVm};
use reentry::{Anchor, Fiber, Handle, PinId, Pinner, ReleaseToken, StackEnd, WeakHandle};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::{ARENA, THREADS};

/// What an agent has besides its mutator.
pub(super) struct Body {
    pub(super) arena: NonNull<[u64; ARENA]>,
    /// Its first jump point, and how deep it may nest.
    pub(super) point: usize,
    pub(super) depth: usize,
}

impl Body {
    pub(super) fn new(point: usize, depth: usize) -> Self {
        let arena = NonNull::from(Box::leak(Box::new([0; ARENA])));
        arena.as_ptr().expose_provenance();
        Self { arena, point, depth }
    }

    pub(super) fn word(&self, word: usize) -> *mut u64 {
        assert!(word < ARENA);
        self.arena.as_ptr().cast::<u64>().wrapping_add(word)
    }

    /// Moves what a stack holds, keeping the words at one end.
    pub(super) fn copy(&self, old: &core::ops::Range<usize>, new: &core::ops::Range<usize>, high: bool) {
        let words = old.len().min(new.len());
        let (from, to) = if high { (old.end - words, new.end - words) } else { (old.start, new.start) };
        // SAFETY: both ranges lie within the arena, whose words are plain numbers. No reference to them lives.
        unsafe { ptr::copy(self.word(from), self.word(to), words) };
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        // SAFETY: made of a box by `new`, and the agent is gone.
        drop(unsafe { Box::from_raw(self.arena.as_ptr()) });
    }
}

/// How often each thing has happened that a program is to be made of.
pub(crate) type Tally = BTreeMap<&'static str, usize>;

/// What the machine knows, all of it under one lock. Only one agent runs at a time.
pub(in super::super) struct State<F: FaultSet> {
    pub(super) ops: std::vec::IntoIter<Op>,
    pub(in super::super) model: Model,
    /// Where each object is, as the last collection has left it.
    pub(in super::super) refs: BTreeMap<Name, Ref>,
    /// By agent, as the model's.
    pub(super) bodies: Vec<Option<Body>>,
    pub(super) strands: Vec<Option<Strand<TestVm<F>>>>,
    pub(super) fibers: Vec<Option<Arc<Fiber<TestVm<F>>>>>,
    pub(super) running: usize,
    /// The arguments of the next call.
    pub(super) prepared: Vec<(Plan, Pick)>,
    /// How many have ever been declared.
    pub(super) declared: usize,
    pub(super) tokens: Vec<(usize, ReleaseToken)>,
    pub(super) handles: Vec<Handle<Ref>>,
    pub(super) weak: Vec<WeakHandle<Ref>>,
    pub(super) pinner: Pinner<Ref>,
    pub(super) pins: Vec<PinId>,
    pub(super) threads: [Option<JoinHandle<()>>; THREADS],
    pub(super) steps: usize,
    pub(super) tally: Tally,
    /// The first disagreement.
    pub(super) failed: Option<String>,
}

impl<F: FaultSet> State<F> {
    pub(super) fn fail(&mut self, why: String) {
        let steps = self.steps;
        self.failed.get_or_insert_with(|| format!("at operation {steps}: {why}"));
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    pub(super) fn agent(&mut self) -> &mut Agent {
        self.model.agent(self.running)
    }

    pub(super) fn body(&self, agent: usize) -> &Body {
        self.bodies[agent].as_ref().expect("the agent is there")
    }

    pub(in super::super) fn word(&self, agent: usize, word: usize) -> usize {
        self.body(agent).word(word).addr()
    }

    /// The thread that runs now.
    pub(super) fn thread(&mut self) -> usize {
        self.agent().thread.expect("it runs")
    }

    /// The words of the running agent's stack that an anchor points to.
    pub(super) fn saved(&mut self, at: Places) -> Option<[usize; 2]> {
        let stack = self.agent().stack.clone()?;
        at.map(|(sp, fp)| [sp, fp].map(|place| stack.start + usize::from(place) % (stack.len() + 1)))
    }

    pub(super) fn anchor(&self, saved: Option<[usize; 2]>) -> Option<Anchor> {
        let [sp, fp] = saved?;
        Some(Anchor::new(0, self.word(self.running, sp), self.word(self.running, fp)))
    }

    /// Finds an object, or makes it.
    pub(super) fn object(&mut self, vm: &TestVm<F>, pick: Pick) -> (Name, Ref) {
        let old = |number: u8| {
            let count = self.model.objects.len();
            self.model.objects.iter().copied().nth(usize::from(number) % count.max(1))
        };
        let refers = match pick {
            Pick::New => None,
            Pick::NewReferringTo(number) => old(number),
            Pick::Old(number) => match old(number) {
                Some(name) => return (name, self.refs[&name]),
                None => None,
            },
        };
        let fields: Vec<Ref> = refers.iter().map(|name| self.refs[name]).collect();
        let name = self.model.allocate(refers);
        let reference = vm.heap().alloc(&fields, &name.to_le_bytes());
        self.refs.insert(name, reference);
        (name, reference)
    }

    /// A word of the running agent's stack that no argument stands in.
    pub(super) fn free_word(&mut self, also: &[(Declared, Ref)]) -> Option<usize> {
        let agent = self.agent();
        let taken = |word: &usize| {
            let declared = agent.in_force().chain(also.iter().map(|(declared, _)| declared));
            declared.filter(|declared| declared.plan == Plan::InPlace).any(|declared| declared.word == *word)
        };
        agent.stack.clone()?.find(|word| !taken(word))
    }

    /// A new agent, whose stack is declared.
    pub(super) fn add(&mut self, agent: Agent, body: Body) -> usize {
        let number = self.model.agents.len();
        self.model.agents.push(Some(agent));
        self.bodies.push(Some(body));
        self.strands.push(None);
        self.fibers.push(None);
        number
    }

    /// The agent is gone.
    pub(super) fn remove(&mut self, agent: usize) {
        self.model.agents[agent] = None;
        self.bodies[agent] = None;
        self.fibers[agent] = None;
    }

    pub(super) fn report_jump(&mut self, depth: usize) {
        let line = self.agent().frames[depth].line;
        let (activations, errors) = self.agent().jump(depth);
        let fiber = self.agent().fiber;
        self.count(if fiber { "jump on a fiber" } else { "jump" });
        if activations > 1 {
            self.count("jump over several upcalls");
        }
        self.model.reports.push(Said::Skipped { activations, line: Some(line) });
        self.model.reports.extend((0..errors).map(|_| Said::Superseded));
    }
}

/// A move of a stack: the old addresses, the new ones, the end that keeps its place, and how many saved words change if none is left outside.
pub(super) type Move = (core::ops::Range<usize>, core::ops::Range<usize>, StackEnd, Option<usize>);

/// Moves the words of an agent's stack, if every saved word has a place in the new one.
pub(super) fn move_stack<F: FaultSet>(
    state: &mut State<F>,
    agent: usize,
    (start, words, high): (u8, u8, bool),
    stopped: bool,
) -> Option<Move> {
    let old = state.model.agent(agent).stack.clone()?;
    let start = 1 + usize::from(start) % (ARENA - 42);
    let new = start..start + 1 + usize::from(words) % 40;
    let expected = state.model.agent(agent).relocate(new.clone(), high, stopped);
    state.count(if expected.is_some() { "stack moved" } else { "move refused" });
    if expected.is_some() {
        state.body(agent).copy(&old, &new, high);
    }
    let end = if high { StackEnd::High } else { StackEnd::Low };
    Some((address(state, agent, &old), address(state, agent, &new), end, expected))
}
