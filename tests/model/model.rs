//! What a collector should find: frames in vectors, and objects by their names.

use super::program::Plan;
use core::ops::Range;
use std::collections::BTreeSet;

/// An object: what stands in it.
pub(crate) type Name = u64;

/// An argument that is in force.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Declared {
    pub(crate) plan: Plan,
    pub(crate) object: Name,
    /// Of one in place: the word it stands in.
    pub(crate) word: usize,
    /// Which argument it is: no other of a foreign call has the number.
    pub(crate) number: usize,
}

/// What an activation is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Doing {
    /// It runs, or has stopped the world.
    Running,
    InCall,
    Resuming,
    Suspended,
    /// It is what lies below a fiber's first activation.
    Nothing,
}

/// One activation.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) doing: Doing,
    /// Where it crossed last.
    pub(crate) line: u32,
    /// The words its saved sp and fp point to, if it gave them.
    pub(crate) saved: Option<[usize; 2]>,
    /// Arguments and locals, oldest first.
    pub(crate) declared: Vec<Declared>,
    /// What is in the memory of its call: handed over, or to be released early. Oldest first.
    pub(crate) memory: Vec<Declared>,
    /// How many were declared before the call in progress, and before each open scope.
    before_call: usize,
    before_scopes: Vec<usize>,
    /// Of the call in progress: how often C calls back after a jump has landed in it, if one can.
    pub(crate) lands: Option<usize>,
    /// An upcall of the call in progress has failed.
    failed: bool,
}

impl Frame {
    fn new(doing: Doing) -> Self {
        Self {
            doing,
            line: 0,
            saved: None,
            declared: Vec::new(),
            memory: Vec::new(),
            before_call: 0,
            before_scopes: Vec::new(),
            lands: None,
            failed: false,
        }
    }
}

/// One thread's mutator, or a fiber's.
#[derive(Clone, Debug)]
pub(crate) struct Agent {
    /// The crate's number of it.
    pub(crate) id: u64,
    /// Oldest first.
    pub(crate) frames: Vec<Frame>,
    /// The words of its managed stack; none before it has been declared.
    pub(crate) stack: Option<Range<usize>>,
    pub(crate) fiber: bool,
    /// The thread that runs it: of a fiber, while it is resumed.
    pub(crate) thread: Option<usize>,
    /// The thread that a suspended fiber is bound to.
    pub(crate) bound: Option<usize>,
}

impl Agent {
    pub(crate) fn new(id: u64, thread: Option<usize>) -> Self {
        let fiber = thread.is_none();
        let first = Frame::new(if fiber { Doing::Nothing } else { Doing::Running });
        Self { id, frames: vec![first], stack: None, fiber, thread, bound: None }
    }

    pub(crate) fn top(&mut self) -> &mut Frame {
        self.frames.last_mut().expect("an agent has an activation")
    }

    /// Everything that is in force, whatever activation declared it.
    pub(crate) fn in_force(&self) -> impl Iterator<Item = &Declared> {
        self.frames.iter().flat_map(|frame| frame.declared.iter().chain(&frame.memory))
    }

    /// A foreign call begins.
    pub(crate) fn call(&mut self, arguments: Vec<Declared>, saved: Option<[usize; 2]>, lands: Option<usize>) {
        let top = self.top();
        top.doing = Doing::InCall;
        (top.saved, top.lands, top.before_call) = (saved, lands, top.declared.len());
        for argument in arguments {
            match argument.plan {
                Plan::UntilReleased | Plan::UntilFirstUpcall => top.memory.push(argument),
                _ => top.declared.push(argument),
            }
        }
    }

    /// C calls back.
    pub(crate) fn upcall(&mut self) {
        self.top().memory.retain(|declared| declared.plan != Plan::UntilFirstUpcall);
        self.frames.push(Frame::new(Doing::Running));
    }

    /// A fiber's first activation begins.
    pub(crate) fn first_activation(&mut self) {
        self.frames.push(Frame::new(Doing::Running));
    }

    /// The upcall is over.
    pub(crate) fn upcall_over(&mut self) {
        self.frames.pop();
    }

    /// The upcall has panicked. Says whether the call has an error already: then this one is reported.
    pub(crate) fn upcall_failed(&mut self) -> bool {
        self.frames.pop();
        core::mem::replace(&mut self.top().failed, true)
    }

    /// The foreign call has returned. Says whether the error of an upcall goes on.
    pub(crate) fn call_returned(&mut self) -> bool {
        let top = self.top();
        (top.doing, top.lands, top.saved) = (Doing::Running, None, None);
        core::mem::take(&mut top.failed)
    }

    /// Its guard is dropped.
    pub(crate) fn call_over(&mut self) {
        let top = self.top();
        top.declared.truncate(top.before_call);
        top.memory.clear();
    }

    pub(crate) fn begin_scope(&mut self) {
        let top = self.top();
        top.before_scopes.push(top.declared.len());
    }

    pub(crate) fn end_scope(&mut self) {
        let top = self.top();
        let before = top.before_scopes.pop().expect("a scope is open");
        top.declared.truncate(before);
    }

    /// What an upcall gives to its caller. Says whether there is one.
    pub(crate) fn hand_over(&mut self, given: Declared) -> bool {
        let caller = self.frames.iter_mut().rev().nth(1).filter(|frame| frame.doing == Doing::InCall);
        caller.map(|caller| caller.memory.push(given)).is_some()
    }

    /// An upcall releases an argument of a call below. Says whether it was in force there.
    pub(crate) fn release(&mut self, number: usize) -> bool {
        let below = self.frames.len() - 1;
        self.frames[..below].iter_mut().any(|frame| {
            let before = frame.memory.len();
            frame.memory.retain(|declared| declared.number != number);
            frame.memory.len() < before
        })
    }

    /// The activations a jump can land in.
    pub(crate) fn landings(&self) -> Vec<usize> {
        let below = self.frames.len() - 1;
        // On a fiber's stack the crate cannot tell, when C calls back, that a jump has gone before.
        let can = |frame: &Frame| frame.lands.is_some_and(|again| again == 0 || !self.fiber);
        (0..below).filter(|&depth| can(&self.frames[depth])).collect()
    }

    /// A jump lands in the call of activation `depth`. Gives how many activations are skipped, and how many errors they carried.
    pub(crate) fn jump(&mut self, depth: usize) -> (usize, usize) {
        let skipped = self.frames.split_off(depth + 1);
        (skipped.len(), skipped.iter().filter(|frame| frame.failed).count())
    }

    /// C, in a call that lands, goes on to its last callback: there is none after it.
    pub(crate) fn last_callback(&mut self) {
        let top = self.top();
        top.lands = top.lands.map(|_| 0);
    }

    /// The stack moves. Gives how many saved words change, or `None` if one would be outside. The newest activation's are saved only if it has stopped.
    pub(crate) fn relocate(&mut self, new: Range<usize>, high: bool, stopped: bool) -> Option<usize> {
        let old = self.stack.clone()?;
        let to = |word: usize| {
            if high { (new.end + word).checked_sub(old.end) } else { Some(new.start + word - old.start) }
        };
        let older = if stopped { self.frames.len() } else { self.frames.len() - 1 };
        let mut moved = self.clone();
        let mut count = 0;
        for frame in &mut moved.frames[..older] {
            for word in frame.saved.iter_mut().flatten() {
                *word = to(*word).filter(|word| (new.start..=new.end).contains(word))?;
                count += 1;
            }
        }
        for declared in moved.frames.iter_mut().flat_map(|frame| &mut frame.declared) {
            if declared.plan == Plan::InPlace {
                declared.word = to(declared.word).filter(|word| new.contains(word))?;
                count += 1;
            }
        }
        moved.stack = Some(new);
        *self = moved;
        Some(count)
    }
}

/// What the crate reports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Said {
    Skipped { activations: usize, line: Option<u32> },
    Superseded,
    ArgumentsLeaked { mutator: u64, count: usize },
    Other(String),
}

/// Everything there is.
#[derive(Default, Debug)]
pub(crate) struct Model {
    /// By the number the machine gives them. Those that are gone leave their place empty.
    pub(crate) agents: Vec<Option<Agent>>,
    /// What each object ever made refers to.
    pub(crate) refers: Vec<Option<Name>>,
    /// Those that have not been freed.
    pub(crate) objects: BTreeSet<Name>,
    pub(crate) handles: Vec<Name>,
    pub(crate) weak: Vec<Option<Name>>,
    pub(crate) pins: Vec<(Plan, Name)>,
    pub(crate) reports: Vec<Said>,
}

impl Model {
    pub(crate) fn agent(&mut self, number: usize) -> &mut Agent {
        self.agents[number].as_mut().expect("the agent is there")
    }

    pub(crate) fn present(&self) -> impl Iterator<Item = (usize, &Agent)> {
        self.agents.iter().enumerate().filter_map(|(number, agent)| Some((number, agent.as_ref()?)))
    }

    pub(crate) fn allocate(&mut self, refers: Option<Name>) -> Name {
        let name = self.refers.len() as Name;
        self.refers.push(refers);
        self.objects.insert(name);
        name
    }

    /// Everything that is reachable from `roots`.
    fn closure(&self, roots: impl Iterator<Item = Name>) -> BTreeSet<Name> {
        let mut reached = BTreeSet::new();
        for root in roots {
            let mut next = Some(root);
            while let Some(name) = next {
                reached.insert(name);
                next = self.refers[name as usize];
            }
        }
        reached
    }

    /// What is declared, handled or pinned, with the way it is.
    pub(crate) fn roots(&self) -> Vec<(Plan, Name)> {
        let declared = self.present().flat_map(|(_, agent)| agent.in_force());
        let mut roots: Vec<_> = declared
            .filter(|declared| declared.plan != Plan::KeepAlive)
            .map(|declared| (declared.plan, declared.object))
            .collect();
        roots.extend(self.handles.iter().map(|name| (Plan::Root, *name)));
        roots.extend(&self.pins);
        roots
    }

    pub(crate) fn live(&self) -> BTreeSet<Name> {
        self.closure(self.roots().into_iter().map(|(_, name)| name))
    }

    pub(crate) fn pinned(&self) -> BTreeSet<Name> {
        let of = |plan| self.roots().into_iter().filter(move |(is, _)| *is == plan).map(|(_, name)| name);
        let mut pinned = self.closure(of(Plan::TransitivePin));
        pinned.extend(of(Plan::Pin));
        pinned
    }

    /// A collection: what is not reachable is gone.
    pub(crate) fn collect(&mut self) {
        self.objects = self.live();
        let objects = &self.objects;
        self.weak.iter_mut().for_each(|weak| *weak = weak.filter(|name| objects.contains(name)));
    }
}
