//! [`TestVm`]: the adversarial VM's two traits, its collector, and its switches.

use crate::faults::Faults;
use crate::testkit::bytecode::{LiveMaps, Program, Slot as FrameSlot};
use crate::testkit::heap::{Collection, CollectionSummary, Heap, Ref, StaleReference};
use crate::testkit::interpreter::{NativeArguments, NativeResult, Trap};
use crate::testkit::stack::OperandStack;
use crate::vm::{
    ArgumentError, ArgumentPlan, Capture, FrameKind, Report, Residence, RootVisitor, Segment, Slot,
    StackScanner, Vm,
};
use crate::{Anchor, Mutator, StoppedWorld, World};
use core::cell::{Cell, RefCell};
use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// Which protections of the crate a test VM is run without.
///
/// # Safety
///
/// Anything but [`Faults::NONE`] makes the crate unsound. For tests of the protections.
pub unsafe trait FaultSet: Send + Sync + 'static {
    /// What is taken away.
    const FAULTS: Faults;
}

/// No fault.
#[derive(Clone, Copy, Debug)]
pub enum Correct {}

// SAFETY: no fault.
unsafe impl FaultSet for Correct {
    const FAULTS: Faults = Faults::NONE;
}

/// How the frame that made a foreign call is walked while a callback of it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Walk {
    /// At X, as its record says, always.
    #[default]
    Record,
    /// At Y while a callback runs, at X otherwise: the founding fault.
    Legacy,
}

/// What the interpreter declares for the reference arguments of a foreign call.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Guard {
    /// A pin for each.
    #[default]
    Pins,
    /// A transitive pin for each.
    TransitivePins,
    /// The frame's own slot, in place.
    RootsInPlace,
    /// The guard's own slot. Right for a VM whose liveness does not change across the call, hence not for this one under
    /// [`Walk::Legacy`].
    RootsByValue,
    /// Nothing: the founding fault.
    Nothing,
}

/// When operand stacks move.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum StackMoves {
    /// When they grow, when a program asks, and at every collection.
    #[default]
    EveryCollection,
    /// When they grow and when a program asks.
    OnRequest,
}

/// A foreign function as the VM binds it: runs in the foreign state.
pub(crate) type Native<F> = Box<dyn Fn(&TestVm<F>, &NativeArguments<'_>) -> NativeResult + Send + Sync>;

/// The adversarial VM. `F` names the crate's protections it runs without; [`Correct`] for all but tests of those protections.
pub struct TestVm<F: FaultSet = Correct> {
    heap: Heap,
    program: Program,
    maps: Vec<LiveMaps>,
    natives: Vec<Native<F>>,
    walk: Walk,
    guard: Guard,
    stack_moves: StackMoves,
    stack_words: usize,
    on_report: Option<OnReport>,
    globals: Mutex<Vec<Ref>>,
    visits: Mutex<HashMap<(u64, usize), Visit>>,
    collections: AtomicU64,
    moved: AtomicU64,
    reports: Mutex<VecDeque<String>>,
    world: OnceLock<WeakWorld<F>>,
    /// Its worlds are audited, and a finding ends the process.
    #[cfg(feature = "audit")]
    under_net: bool,
    _faults: PhantomData<F>,
}

/// What receives the crate's reports in place of standard error.
type OnReport = Box<dyn Fn(&Report<'_>) + Send + Sync>;

type WeakWorld<F> = Weak<crate::pause::Shared<TestVm<F>>>;

/// How a frame was last walked.
#[derive(Clone, Debug)]
struct Visit {
    collection: u64,
    function: u16,
    pc: usize,
    live: Vec<FrameSlot>,
}

/// What the VM keeps for each mutator.
#[derive(Debug)]
pub struct TestLocal {
    pub(crate) stack: RefCell<OperandStack>,
    /// Whether the stack has been declared to the crate.
    pub(crate) declared: Cell<bool>,
}

impl TestLocal {
    /// The range of addresses of the operand stack as it is now.
    #[must_use]
    pub fn stack_range(&self) -> core::ops::Range<usize> {
        self.stack.borrow().range()
    }
}

impl TestVm {
    /// Makes a VM with an empty program: for its heap.
    ///
    /// # Panics
    ///
    /// Never: an empty program is a valid one.
    #[must_use]
    pub fn new() -> Self {
        Self::builder(Program::new(Vec::new()).expect("an empty program is valid")).build()
    }

    /// Starts building a VM that runs `program`.
    #[must_use]
    pub fn builder(program: Program) -> TestVmBuilder {
        Self::builder_without(program)
    }
}

impl Default for TestVm {
    fn default() -> Self {
        Self::new()
    }
}

/// Words before the slots of a frame: the caller's frame index, the function, the caller's pc.
pub(crate) const FRAME_HEADER: usize = 3;
/// The caller's frame index in the first frame of an activation.
pub(crate) const ENTRY: u64 = u64::MAX;

/// How many reports are kept.
const REPORTS: usize = 64;

/// A pc of a function, as one word, never [`IDLE`].
pub(crate) fn pack_pc(function: u16, pc: usize) -> usize {
    ((usize::from(function) + 1) << 20) | pc
}

pub(crate) fn unpack_pc(word: usize) -> (u16, usize) {
    (((word >> 20) - 1) as u16, word & 0xF_FFFF)
}

impl<F: FaultSet> TestVm<F> {
    /// [`builder`](TestVm::builder) of a VM that runs without the protections that `F` names.
    #[must_use]
    pub fn builder_without(program: Program) -> TestVmBuilder<F> {
        TestVmBuilder {
            program,
            natives: Vec::new(),
            walk: Walk::default(),
            guard: Guard::default(),
            stack_moves: StackMoves::default(),
            stack_words: 256,
            on_report: None,
        }
    }

    /// The heap.
    ///
    /// A VM of yours should ask for `&mut Mutator` before it touches its heap; this one checks every reference instead, so that tests can look at the heap from
    /// anywhere.
    #[must_use]
    pub fn heap(&self) -> &Heap {
        &self.heap
    }

    /// The program.
    #[must_use]
    pub fn program(&self) -> &Program {
        &self.program
    }

    pub(crate) fn natives(&self) -> &[Native<F>] {
        &self.natives
    }

    /// What the interpreter declares.
    #[must_use]
    pub fn guard(&self) -> Guard {
        self.guard
    }

    /// The world [`TestVmBuilder::build_world`] made, while it lives.
    #[must_use]
    pub fn world(&self) -> Option<World<Self>> {
        World::from_weak(self.world.get()?)
    }

    fn globals(&self) -> MutexGuard<'_, Vec<Ref>> {
        self.globals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a global root and returns its number.
    pub fn add_global(&self, reference: Ref) -> usize {
        let mut globals = self.globals();
        globals.push(reference);
        globals.len() - 1
    }

    /// Reads a global root: where its object is now.
    ///
    /// # Panics
    ///
    /// If there is no such global.
    #[must_use]
    pub fn global(&self, number: usize) -> Ref {
        self.globals()[number]
    }

    /// Changes a global root.
    ///
    /// # Panics
    ///
    /// If there is no such global.
    pub fn set_global(&self, number: usize, reference: Ref) {
        self.globals()[number] = reference;
    }

    /// Returns how many collections there were, and how many objects they moved in all.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        (self.collections.load(Ordering::Relaxed), self.moved.load(Ordering::Relaxed))
    }

    /// Takes the text of what the crate has reported since the last time, oldest first: the last 64 of it.
    ///
    /// # Examples
    ///
    /// ```
    /// use core::ffi::c_int;
    /// use reentry::testkit::{TestVm, Trap};
    /// use reentry::{FallbackOnly, Mutator, Throwing, World, upcall_fn};
    ///
    /// fn fail(_: &mut Mutator<TestVm>) -> Result<c_int, Trap> {
    ///     Err(Trap::NoSuchNative(7))
    /// }
    /// let callback: extern "C" fn() -> c_int = upcall_fn(FallbackOnly(Throwing(fail)));
    /// let world = World::new(TestVm::new());
    /// let mut mutator = world.attach()?;
    /// // A Rust closure stands for the C code here.
    /// mutator.foreign_call().run(|| callback());
    /// assert!(world.vm().take_reports()[0].contains("NoSuchNative(7)"));
    /// assert!(world.vm().take_reports().is_empty());
    /// # Ok::<(), reentry::AttachError>(())
    /// ```
    #[must_use]
    pub fn take_reports(&self) -> Vec<String> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
    }

    /// Stops the world and collects, from managed code that has no interpreter frame of its own (an upcall's body).
    ///
    /// # Errors
    ///
    /// The undead root that was found.
    #[track_caller]
    pub fn collect_in(mutator: &mut Mutator<Self>) -> Result<CollectionSummary, UndeadRoot> {
        let anchor = Self::idle_anchor(mutator);
        mutator.pause_at(anchor, |stopped| stopped.vm().collect(stopped))
    }

    /// The anchor of an activation that runs no interpreter frame: an empty segment.
    #[must_use]
    pub fn idle_anchor(mutator: &Mutator<Self>) -> Anchor {
        let stack = mutator.local().stack.borrow();
        Anchor::new(IDLE, stack.slot_address(stack.top()).addr(), 0)
    }

    /// Collects: moves every object that is not pinned, and every operand stack.
    ///
    /// # Errors
    ///
    /// The first slot that holds a stale reference. The collection is given up then, with the heap consistent.
    ///
    /// # Panics
    ///
    /// If a scan finds an anchor that is not in its operand stack.
    pub fn collect(&self, stopped: &StoppedWorld<'_, Self>) -> Result<CollectionSummary, UndeadRoot> {
        let mut collection = self.heap.begin_collection();
        let number = collection.number();
        // Pins first: the enumeration is repeatable, and nothing may move before all pins are known.
        let mut pins = Pins { collection: &mut collection, failed: None };
        stopped.enumerate(&mut pins);
        if let Some(stale) = pins.failed {
            return Err(UndeadRoot::elsewhere(number, "a pin", stale));
        }
        let mut roots = Roots { collection: &mut collection, failed: None };
        stopped.enumerate(&mut roots);
        if let Some((address, stale)) = roots.failed {
            keep_weak(stopped, &collection);
            return Err(self.name(stopped, number, address, stale));
        }
        for global in self.globals().iter_mut() {
            *global = collection.forward(*global).map_err(|stale| {
                keep_weak(stopped, &collection);
                UndeadRoot::elsewhere(number, "a global", stale)
            })?;
        }
        collection.reach();
        // Looked at first: a collection that is given up keeps every object, so no weak handle may have been cleared by then.
        let mut failed = None;
        stopped.update_weak(|reference| {
            failed = failed.or(collection.survivor(reference).err());
            Some(reference)
        });
        if let Some(stale) = failed {
            keep_weak(stopped, &collection);
            return Err(UndeadRoot::elsewhere(number, "a weak handle", stale));
        }
        stopped.update_weak(|reference| collection.survivor(reference).unwrap_or(None));
        let summary = collection.finish();
        self.remember(stopped, number);
        if self.stack_moves == StackMoves::EveryCollection {
            Self::move_stacks(stopped);
        }
        self.collections.fetch_add(1, Ordering::Relaxed);
        self.moved.fetch_add(summary.moved as u64, Ordering::Relaxed);
        Ok(summary)
    }

    /// The function and the instruction an anchor of this VM names, or `None` for an activation that runs no interpreter frame.
    #[must_use]
    pub fn location(&self, anchor: Anchor) -> Option<(&str, usize)> {
        if anchor.pc == IDLE {
            return None;
        }
        let (function, pc) = unpack_pc(anchor.pc);
        Some((&self.program.functions().get(usize::from(function))?.name, pc))
    }

    /// Calls `visit` for each frame of a segment, newest first, with the slots that are live.
    ///
    /// # Panics
    ///
    /// If the segment's anchor is not in the stack.
    fn frames(
        &self,
        stack: &OperandStack,
        segment: &Segment<'_>,
        mut visit: impl FnMut(usize, u16, usize, &mut dyn Iterator<Item = FrameSlot>),
    ) {
        let anchor = segment.anchor();
        if anchor.pc == IDLE {
            return;
        }
        let Some(mut frame) = stack.index_of(anchor.fp) else {
            panic!(
                "undead anchor: the saved fp {:#x} of activation #{} is not in the operand stack {:x?}{}",
                anchor.fp,
                segment.depth(),
                stack.range(),
                if stack.is_quarantined(anchor.fp) {
                    ", but in one it has left: it was not relocated"
                } else {
                    ""
                }
            );
        };
        let (mut function, mut pc) = unpack_pc(anchor.pc);
        let mut newest = true;
        loop {
            let maps = &self.maps[usize::from(function)];
            match (newest, segment.kind()) {
                (true, FrameKind::ForeignCall) if self.walk == Walk::Legacy && !segment.is_newest() => {
                    visit(frame, function, pc + 1, &mut maps.live_references(pc + 1));
                }
                (true, FrameKind::ForeignCall) => visit(frame, function, pc, &mut maps.live_at_call_site(pc)),
                (true, _) => visit(frame, function, pc, &mut maps.live_references(pc)),
                (false, _) => visit(frame, function, pc, &mut maps.live_across(pc)),
            }
            let caller = stack.get(frame);
            if caller == ENTRY {
                return;
            }
            pc = stack.get(frame + 2) as usize;
            frame = caller as usize;
            function = stack.get(frame + 1) as u16;
            newest = false;
        }
    }

    /// Notes how each frame was walked, to name the two pcs of an undead root.
    fn remember(&self, stopped: &StoppedWorld<'_, Self>, collection: u64) {
        let mut visits = self.visits.lock().unwrap_or_else(PoisonError::into_inner);
        visits.clear();
        for mutator in stopped.mutators() {
            let Some(local) = mutator.try_local() else { continue };
            let stack = local.stack.borrow();
            for segment in mutator.activations().filter_map(|activation| activation.segment()) {
                self.frames(&stack, &segment, |frame, function, pc, live| {
                    visits.insert(
                        (mutator.id(), frame),
                        Visit { collection, function, pc, live: live.collect() },
                    );
                });
            }
        }
    }

    /// Finds out which frame's slot stands at `address`, and how its frame was walked before.
    fn name(
        &self,
        stopped: &StoppedWorld<'_, Self>,
        collection: u64,
        address: usize,
        stale: StaleReference,
    ) -> UndeadRoot {
        let visits = self.visits.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = UndeadRoot::elsewhere(collection, "a root declared by a foreign call", stale);
        for mutator in stopped.mutators() {
            let Some(local) = mutator.try_local() else { continue };
            let stack = local.stack.borrow();
            let Some(index) = stack.index_of(address) else { continue };
            for segment in mutator.activations().filter_map(|activation| activation.segment()) {
                self.frames(&stack, &segment, |frame, function, pc, live| {
                    for slot in live {
                        if frame + FRAME_HEADER + slot.index() != index {
                            continue;
                        }
                        let name = &self.program.functions()[usize::from(function)].name;
                        found.slot =
                            format!("slot {} of frame `{name}`, mutator {}", slot.index(), mutator.id());
                        found.pc = Some(pc);
                        found.before = visits
                            .get(&(mutator.id(), frame))
                            .filter(|visit| visit.function == function && !visit.live.contains(&slot))
                            .map(|visit| (visit.collection, visit.pc));
                    }
                });
            }
        }
        found
    }
}

/// Updates weak handles for a collection that is given up: what it has moved stays where it is now, everything else where it was.
fn keep_weak<F: FaultSet>(stopped: &StoppedWorld<'_, TestVm<F>>, collection: &Collection<'_>) {
    stopped.update_weak(|reference| Some(collection.survivor(reference).ok().flatten().unwrap_or(reference)));
}

/// The pc of an activation that runs no interpreter frame: also that of a crossing for which no anchor was given.
const IDLE: usize = 0;

/// A slot that a collection found live with a reference an earlier one had left behind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UndeadRoot {
    /// The collection that found it.
    pub collection: u64,
    /// Which slot, in words.
    pub slot: String,
    /// The pc its frame is walked at now, at which it is live.
    pub pc: Option<usize>,
    /// The collection before, and the pc its frame was walked at then, at which it was dead.
    pub before: Option<(u64, usize)>,
    /// The stale reference.
    pub stale: StaleReference,
}

impl UndeadRoot {
    fn elsewhere(collection: u64, slot: &str, stale: StaleReference) -> Self {
        Self { collection, slot: slot.to_owned(), pc: None, before: None, stale }
    }
}

impl fmt::Display for UndeadRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "undead root: {}", self.slot)?;
        if let Some(pc) = self.pc {
            write!(f, ", is live at pc {pc} in collection {}", self.collection)?;
        }
        if let Some((collection, pc)) = self.before {
            write!(f, " and was dead at pc {pc} in collection {collection}")?;
        }
        write!(f, ": {}", self.stale)
    }
}

impl core::error::Error for UndeadRoot {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        Some(&self.stale)
    }
}

struct Pins<'a, 'h> {
    collection: &'a mut Collection<'h>,
    failed: Option<StaleReference>,
}

impl RootVisitor<Ref> for Pins<'_, '_> {
    fn slot(&mut self, _: Slot<'_, Ref>) {}

    fn pinned(&mut self, reference: Ref) {
        if let Err(stale) = self.collection.pin(reference) {
            self.failed.get_or_insert(stale);
        }
    }

    fn transitively_pinned(&mut self, reference: Ref) {
        if let Err(stale) = self.collection.pin_transitively(reference) {
            self.failed.get_or_insert(stale);
        }
    }
}

struct Roots<'a, 'h> {
    collection: &'a mut Collection<'h>,
    failed: Option<(usize, StaleReference)>,
}

impl RootVisitor<Ref> for Roots<'_, '_> {
    fn slot(&mut self, mut slot: Slot<'_, Ref>) {
        match self.collection.forward(slot.load()) {
            Ok(new) => slot.store(new),
            Err(stale) => {
                self.failed.get_or_insert((slot.address(), stale));
            }
        }
    }

    fn pinned(&mut self, _: Ref) {}

    fn transitively_pinned(&mut self, _: Ref) {}

    /// Keeps nothing: `update_weak` below says what became of it.
    fn weak(&mut self, _: Slot<'_, Ref>) {}
}

impl<F: FaultSet> Vm for TestVm<F> {
    type Ref = Ref;
    type Local = TestLocal;
    type Exception = Trap;
    const CAPTURE: Capture = Capture::Nothing;

    fn attach(&self) -> TestLocal {
        let stack = OperandStack::new(self.stack_words);
        stack.base().expose_provenance();
        TestLocal { stack: RefCell::new(stack), declared: Cell::new(false) }
    }

    fn admit(&self, reference: Ref, plan: ArgumentPlan) -> Result<(), ArgumentError> {
        match plan {
            // Null has no address that could stay.
            ArgumentPlan::Pin | ArgumentPlan::TransitivePin if reference.is_null() => {
                Err(ArgumentError::NotAnObject { reference: 0 })
            }
            _ if reference.is_null() || self.heap.owns(reference) => Ok(()),
            _ => Err(ArgumentError::NotOfThisWorld { reference: reference.address() }),
        }
    }

    fn bytes(&self, reference: Ref) -> Option<NonNull<[u8]>> {
        let length = self.heap.byte_count(reference).ok()?;
        let payload = NonNull::new(self.heap.payload(reference).ok()?)?;
        Some(NonNull::slice_from_raw_parts(payload, length))
    }

    fn locate(&self, address: usize) -> Option<Residence> {
        self.heap.resolve_interior(address).map(|_| Residence::Movable)
    }

    fn covers(&self, reference: Ref, address: usize) -> bool {
        self.heap.resolve_interior(address) == Some(reference)
    }

    fn report(&self, report: &Report<'_>) {
        #[cfg(feature = "audit")]
        if let Report::Audit(finding) = report
            && self.under_net
        {
            crate::unwind::abort(format_args!("{finding}"));
        }
        match &self.on_report {
            Some(on_report) => on_report(report),
            None => crate::unwind::say(report),
        }
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        if reports.len() == REPORTS {
            reports.pop_front();
        }
        reports.push_back(report.to_string());
    }
}

// SAFETY: S1, S2: `frames` visits the slots that the data-flow analysis calls live, at their current addresses in the operand stack (with `Walk::Legacy` it breaks S1 on
// purpose, and every reference is checked against the heap before it is used). S3, S4: it reads the stack only. S5: it ends at the segment's entry frame.
// S6: `FaultSet` is unsafe to implement.
unsafe impl<F: FaultSet> StackScanner for TestVm<F> {
    const FAULTS: Faults = F::FAULTS;

    #[cfg(feature = "audit")]
    fn audited(&self) -> Option<fn(Ref) -> usize> {
        self.under_net.then_some(|reference| reference.address())
    }

    fn scan_segment(&self, local: &TestLocal, segment: &Segment<'_>, visitor: &mut dyn RootVisitor<Ref>) {
        let stack = local.stack.borrow();
        self.frames(&stack, segment, |frame, function, pc, live| {
            visitor.frame(Anchor::new(pack_pc(function, pc), 0, stack.slot_address(frame).addr()));
            for slot in live {
                let address = stack.slot_address(frame + FRAME_HEADER + slot.index()).cast::<Ref>();
                let address = NonNull::new(address).expect("a stack has addresses");
                // SAFETY: a reference slot of a live frame: a word of the operand stack, which stands still during the scan.
                visitor.slot(unsafe { Slot::new(address) });
            }
        });
    }
}

impl<F: FaultSet> fmt::Debug for TestVm<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestVm")
            .field("walk", &self.walk)
            .field("guard", &self.guard)
            .field("stack_moves", &self.stack_moves)
            .field("live_objects", &self.heap.live_objects())
            .finish_non_exhaustive()
    }
}

/// The choices of a VM that is being made.
pub struct TestVmBuilder<F: FaultSet = Correct> {
    program: Program,
    natives: Vec<Native<F>>,
    walk: Walk,
    guard: Guard,
    stack_moves: StackMoves,
    stack_words: usize,
    on_report: Option<OnReport>,
}

impl<F: FaultSet> TestVmBuilder<F> {
    /// Chooses how callers' frames are walked.
    #[must_use]
    pub fn walk(mut self, walk: Walk) -> Self {
        self.walk = walk;
        self
    }

    /// Chooses what the interpreter declares for reference arguments.
    #[must_use]
    pub fn guard(mut self, guard: Guard) -> Self {
        self.guard = guard;
        self
    }

    /// Chooses when operand stacks move.
    #[must_use]
    pub fn stack_moves(mut self, stack_moves: StackMoves) -> Self {
        self.stack_moves = stack_moves;
        self
    }

    /// Chooses the size of a new operand stack, in words. It grows when needed.
    #[must_use]
    pub fn stack_words(mut self, words: usize) -> Self {
        self.stack_words = words;
        self
    }

    /// Chooses what receives the crate's reports; otherwise they are written to standard error.
    #[must_use]
    pub fn on_report(mut self, on_report: impl Fn(&Report<'_>) + Send + Sync + 'static) -> Self {
        self.on_report = Some(Box::new(on_report));
        self
    }

    /// Binds the next foreign function, numbered from 0. It runs in the foreign state.
    #[must_use]
    pub fn native(
        mut self,
        native: impl Fn(&TestVm<F>, &NativeArguments<'_>) -> NativeResult + Send + Sync + 'static,
    ) -> Self {
        self.natives.push(Box::new(native));
        self
    }

    /// Says whether the process asks for the net (`REENTRY_AUDIT=1`), and this VM is to be right.
    #[cfg(feature = "audit")]
    fn is_under_net(&self) -> bool {
        let wrong = self.walk == Walk::Legacy && matches!(self.guard, Guard::Nothing | Guard::RootsByValue);
        F::FAULTS == Faults::NONE && !wrong && std::env::var_os("REENTRY_AUDIT").is_some_and(|on| on == "1")
    }

    /// Makes the VM.
    #[must_use]
    pub fn build(self) -> TestVm<F> {
        let maps = self.program.functions().iter().map(LiveMaps::analyse).collect();
        #[cfg(feature = "audit")]
        let under_net = self.is_under_net();
        TestVm {
            heap: Heap::new(),
            program: self.program,
            maps,
            natives: self.natives,
            walk: self.walk,
            guard: self.guard,
            stack_moves: self.stack_moves,
            stack_words: self.stack_words,
            on_report: self.on_report,
            globals: Mutex::new(Vec::new()),
            visits: Mutex::new(HashMap::new()),
            collections: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            reports: Mutex::new(VecDeque::new()),
            world: OnceLock::new(),
            #[cfg(feature = "audit")]
            under_net,
            _faults: PhantomData,
        }
    }

    /// Makes the VM and a world of it that [`TestVm::world`] knows.
    #[must_use]
    pub fn build_world(self) -> World<TestVm<F>> {
        self.build_world_with(World::builder())
    }

    /// [`build_world`](Self::build_world) with choices about the world.
    ///
    /// # Panics
    ///
    /// Never: the VM is new.
    #[must_use]
    pub fn build_world_with(self, builder: crate::WorldBuilder<TestVm<F>>) -> World<TestVm<F>> {
        let world = builder.build(self.build());
        world.vm().world.set(world.downgrade()).expect("a new VM has no world");
        world
    }
}

impl<F: FaultSet> fmt::Debug for TestVmBuilder<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestVmBuilder")
            .field("walk", &self.walk)
            .field("guard", &self.guard)
            .field("natives", &self.natives.len())
            .finish_non_exhaustive()
    }
}
