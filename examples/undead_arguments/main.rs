//! The bug this crate is about, told phase by phase: undead arguments (Go issue 17785, fixed in 2016).
//!
//! ```text
//! cargo run --release -p undead_arguments                        # guarded: exit code 0
//! cargo run --release -p undead_arguments -- --guard in-place    # guarded in another way: 0
//! cargo run --release -p undead_arguments -- --fix-off           # no guard: caught at check 3, exit code 1
//! ```
//!
//! # The trap
//!
//! A foreign call has two pcs. At *X*, the call site, its arguments are live. At *Y*, inside the call
//! sequence, an argument that nobody uses after the call is dead. The runtime of the founding case saved X
//! when it left for C, and a collector that came then walked the frame at X. While C's callback ran, a stack
//! walk came through the same frame from above and took it to be at Y. When the callback had returned, the
//! saved X was put back. So the collector saw the arguments live, dead, and live again; what it moved in
//! between left them with old addresses.
//!
//! # The cast
//!
//! The mutator's thread runs a bytecode program on an operand stack that moves. The C in the middle is real
//! C, compiled with `cc` (`founding.c`, beside this file). The collector is a second thread. One atomic word
//! drives them both: odd numbers are the mutator's, even ones the collector's answers.
//!
//! ```text
//!   mutator                                             word   collector
//!   main calls C with two arguments; C spins            1 ->   check 1: collect
//!   C calls back                                        <- 2
//!     the callback recurses until the stack has moved,
//!     allocates, and waits (in C, one level deeper)     3 ->   check 2: collect
//!   the callback returns and its caller's record is     <- 4
//!   published again; C spins                            5 ->   check 3: collect (the founding crash)
//!   C returns                                           <- 6
//!   main waits once more                                7 ->   check 4: collect
//!   main uses what it kept                              <- 8
//! ```
//!
//! Every collection moves every object that is not pinned, and the operand stack with them.
//!
//! # How to read the code
//!
//! [`write_program`] is the managed program. [`founding`] is the foreign function as the VM binds it,
//! [`call_back`] the upcall. [`collector`] is the other thread. [`Snapshot`] is what any collector can learn
//! about a stopped mutator from the crate. The rest is print and proof.
#![expect(
    clippy::missing_panics_doc,
    reason = "the proof is made of assertions: each panics to say what does not hold"
)]
#![expect(clippy::missing_errors_doc, reason = "the errors are messages for the command line")]

use core::ffi::{c_uchar, c_void};
use core::fmt::{self, Write as _};
use core::mem::size_of;
use core::ops::Range;
use core::panic::Location;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU32, Ordering};
use reentry::testkit::bytecode::{Function, LiveMaps, Program, Slot as FrameSlot};
use reentry::testkit::heap::{CollectionSummary, Fate, StaleReference};
use reentry::testkit::{
    Guard, NativeArgument, NativeArguments, NativeResult, Ref, TestVm, UndeadRoot, Value, Walk,
};
use reentry::{
    Anchor, ArgumentPlan, FrameKind, Mutator, RootVisitor, Slot, StackScanner, StoppedWorld, World, upcall_fn,
};
use std::io::Write as _;
use std::process::ExitCode;

// `founding.c`.
unsafe extern "C" {
    fn foreign_founding(
        word: *const AtomicU32,
        callback: extern "C" fn(*mut c_void),
        data: *mut c_void,
        callbacks: u32,
    );
    fn foreign_advance(word: *const AtomicU32, store: u32, wait: u32);
    fn founding_sum_twice(bytes: *const c_uchar, length: usize) -> u64;
    fn founding_sum_twice_through_slot(slot: *const *mut c_void, offset: usize, length: usize) -> u64;
}

/// The word both threads watch.
static WORD: AtomicU32 = AtomicU32::new(0);

/// What C is to find in the first argument, whenever it looks.
const TEXT: &[u8] = b"the first argument";

/// The exit code when an undead argument was found.
const UNDEAD: u8 = 1;
/// The exit code when the command line was not understood.
const USAGE: u8 = 2;

const HELP: &str = "\
The founding scenario of undead arguments, on real C and two threads.

Usage: undead_arguments [--guard pins|in-place|by-value | --fix-off]

  --guard pins       each argument is pinned for the call (the default)
  --guard in-place   each argument's own stack slot is a root, at whatever pc its frame is walked
  --guard by-value   each argument gets a slot of the guard's; the VM walks its frames at X always
  --fix-off          no guard: check 3 finds the undead argument
  --help             this text

Exit code: 0 if every check was passed, 1 if an undead argument was found, 2 for a command line it does not know.
";

// ------------------------------------------------------------------------------------------
// The managed side
// ------------------------------------------------------------------------------------------

/// The functions of the program. Activation 0 runs the first, activation 1 the second.
const MAIN: usize = 0;
const CALLBACK: usize = 1;
const GROW: u16 = 2;
const FOUNDING: u16 = 0;
const ADVANCE: u16 = 1;

/// The slots of `main` that hold references, in order. The first two are the arguments of the call; `kept` is
/// `main`'s second reference to the second object.
const MAIN_SLOTS: [&str; 3] = ["first", "second", "kept"];

/// The pcs of the foreign calls.
struct Calls {
    /// X, the call `main` makes with the two arguments. Y is the next pc.
    x: usize,
    /// The call `main` makes afterwards, to wait.
    main_waits: usize,
    /// The call in which the callback waits.
    callback_waits: usize,
}

/// Writes the program.
fn write_program() -> (Program, Calls) {
    // Neither argument is used after the call, so both are dead at Y. Nothing else holds the object of
    // `first`; that of `second` is held by `kept`. An unguarded callback will thus see one of them freed and
    // the other moved.
    let mut main = Function::builder("main");
    let [first, second, kept] = MAIN_SLOTS.map(|_| main.reference_slot());
    let [sum, store, wait] = [(); 3].map(|()| main.integer_slot());
    main.bytes(first, TEXT);
    main.bytes(second, b"the second argument");
    main.copy(kept, second);
    let x = main.foreign(Some(sum), FOUNDING, &[first, second]);
    main.integer(store, 7);
    main.integer(wait, 8);
    let main_waits = main.foreign(None, ADVANCE, &[store, wait]);
    main.check(kept);
    main.give_back(sum);

    let mut callback = Function::builder("callback");
    let fresh = callback.reference_slot();
    let [n, store, wait] = [(); 3].map(|()| callback.integer_slot());
    callback.integer(n, 63);
    callback.call(None, GROW, &[n]);
    callback.bytes(fresh, b"made by the callback");
    callback.integer(store, 3);
    callback.integer(wait, 4);
    let callback_waits = callback.foreign(None, ADVANCE, &[store, wait]);
    callback.check(fresh);
    callback.leave();

    // grow(n): one frame of 1 KiB, and n more. The first stack has 2 KiB, so it moves again and again on the
    // way down.
    let mut grow = Function::builder("grow");
    let n = grow.integer_parameter();
    let minus_one = grow.integer_slot();
    let end = grow.label();
    for _ in 0..123 {
        grow.integer_slot();
    }
    grow.jump_if_zero(n, end);
    grow.integer(minus_one, -1);
    grow.add(n, n, minus_one);
    grow.call(None, GROW, &[n]);
    grow.place(end);
    grow.leave();

    let functions = vec![main.finish(), callback.finish(), grow.finish()];
    let program = Program::new(functions).expect("the program keeps the rules of its bytecode");
    (program, Calls { x, main_waits, callback_waits })
}

/// The upcall: C calls it on the mutator's thread, and it runs managed code.
fn call_back(mutator: &mut Mutator<TestVm>, _data: *mut c_void) {
    assert_eq!(mutator.depth(), 1);
    TestVm::call(mutator, "callback", &[]).expect("the callback's own slots are live where it uses them");
}

/// Foreign function 0. The interpreter has declared the arguments as the guard says and has become foreign:
/// this runs in the foreign state.
fn founding(vm: &TestVm, arguments: &NativeArguments<'_>) -> NativeResult {
    let callback: extern "C" fn(*mut c_void) = upcall_fn(call_back);
    // SAFETY: the word is a static, and the upcall is called on the thread that made this foreign call,
    // before it returns.
    unsafe { foreign_founding(&raw const WORD, callback, ptr::null_mut(), 1) };

    // Three collections later C reads its first argument, in the way this guard lets it.
    let NativeArgument::Object { reference, bytes, slot } = arguments.get(0) else {
        unreachable!("`main` passes two references")
    };
    let sum = match (vm.guard(), slot) {
        // SAFETY: the object is pinned until the call ends, so its bytes are where they were.
        (Guard::Pins, _) => unsafe { founding_sum_twice(bytes, TEXT.len()) },
        (Guard::RootsByValue, Some(slot)) => {
            let offset = bytes.addr() - reference.address();
            // SAFETY: the guard's slot stays where it is until the call ends and names the object; the
            // collector does not stop the world before this thread has asked for it with the number 7, so the
            // object stays where it is while C reads.
            unsafe { founding_sum_twice_through_slot(slot.as_ptr().cast(), offset, TEXT.len()) }
        }
        // In place, the slot itself moves with the stack: there is no address for C to hold. With no guard C
        // holds a stale one.
        _ => return NativeResult::Nothing,
    };
    NativeResult::Integer(i64::try_from(sum).expect("a sum of a few bytes"))
}

/// Foreign function 1: C stores one number and spins until it reads another.
fn advance(_: &TestVm, arguments: &NativeArguments<'_>) -> NativeResult {
    let [store, wait] = [0, 1].map(|index| u32::try_from(arguments.integer(index)).expect("a small number"));
    // SAFETY: the word is a static.
    unsafe { foreign_advance(&raw const WORD, store, wait) };
    NativeResult::Nothing
}

// ------------------------------------------------------------------------------------------
// The collector's side
// ------------------------------------------------------------------------------------------

/// A moment of the story at which the mutator waits in C and the collector checks.
struct Phase {
    /// The number the mutator stores; the answer is one more.
    word: u32,
    title: &'static str,
    what: &'static str,
}

const PHASES: [Phase; 4] = [
    Phase {
        word: 1,
        title: "C runs and has not called back yet",
        what: "main has made its foreign call at X and its record is published. C spins; the collector need not wait for it.",
    },
    Phase {
        word: 3,
        title: "C has called back",
        what: "The callback set main's record aside, recursed through 64 frames of 1 KiB so that the stack had to move,\n\
               allocated, and is in C itself now.",
    },
    Phase {
        word: 5,
        title: "the callback has returned",
        what: "main's record is published again, and C spins on. This is where the founding runtime crashed.",
    },
    Phase {
        word: 7,
        title: "C has returned",
        what: "The call is over and what it declared is released. main is in another call, which takes no references.",
    },
];

/// One collection, with what the collector saw before and after it.
struct Check {
    before: Snapshot,
    outcome: Result<CollectionSummary, UndeadRoot>,
    after: Snapshot,
}

impl Check {
    fn run(world: &World<TestVm>) -> Self {
        // This thread is no mutator, so it pauses the world itself. The mutator is in C and does not notice.
        world.pause(|stopped| {
            let before = Snapshot::take(stopped);
            let outcome = stopped.vm().collect(stopped);
            Self { before, outcome, after: Snapshot::take(stopped) }
        })
    }
}

/// The collector's thread: a check at each odd number, and the even number as the answer. After a failed
/// check it only answers.
fn collector(world: &World<TestVm>, stage: &Stage) -> Vec<Check> {
    let mut checks: Vec<Check> = Vec::new();
    for phase in &PHASES {
        while WORD.load(Ordering::Acquire) != phase.word {
            std::thread::yield_now();
        }
        if checks.iter().all(|check| check.outcome.is_ok()) {
            let check = Check::run(world);
            show(&stage.tell(checks.len() + 1, phase, &check));
            checks.push(check);
        }
        WORD.store(phase.word + 1, Ordering::Release);
    }
    checks
}

/// What a collector can learn about a stopped mutator.
struct Snapshot {
    /// The operand stack's addresses.
    stack: Range<usize>,
    /// Newest first.
    activations: Vec<Seen>,
    /// The slots of `main`, in order.
    main: [SlotSeen; MAIN_SLOTS.len()],
}

/// One activation: its record, and the segment of frames the record starts.
struct Seen {
    depth: usize,
    kind: FrameKind,
    anchor: Anchor,
    call_site: Option<&'static Location<'static>>,
    /// What guards declared, and the address of the word that holds the reference.
    declared: Vec<(ArgumentPlan, usize)>,
    /// The addresses of the slots that the VM's own walk finds live.
    live: Vec<usize>,
}

/// One slot of `main`: where it is, what it holds, and what the heap says about that.
#[derive(Clone, Copy)]
struct SlotSeen {
    address: usize,
    holds: Ref,
    sound: Result<(), StaleReference>,
}

impl Snapshot {
    fn take(stopped: &StoppedWorld<'_, TestVm>) -> Self {
        let vm = stopped.vm();
        let mutator = stopped.mutators().next().expect("one mutator is attached");
        let mut activations = Vec::new();
        for activation in mutator.activations() {
            let mut declared = Vec::new();
            activation.for_each_declared(|root| declared.push((root.plan, root.slot.address())));
            let mut live = Live(Vec::new());
            if let Some(segment) = activation.segment() {
                vm.scan_segment(mutator.local(), &segment, &mut live);
            }
            activations.push(Seen {
                depth: activation.depth(),
                kind: activation.kind(),
                anchor: activation.anchor(),
                call_site: activation.call_site(),
                declared,
                live: live.0,
            });
        }
        let oldest = activations.last().expect("a stopped mutator has a record").anchor;
        let main = core::array::from_fn(|slot| {
            let address = slot_address(vm.program(), MAIN, oldest, slot);
            let word =
                NonNull::new(ptr::with_exposed_provenance_mut(address)).expect("a stack has addresses");
            // SAFETY: a slot for references of `main`, whose frame is the newest of the oldest activation;
            // the VM exposed its stack, and the world is stopped.
            let holds = unsafe { Slot::<Ref>::new(word) }.load();
            SlotSeen { address, holds, sound: vm.heap().check(holds) }
        });
        Self { stack: mutator.local().stack_range(), activations, main }
    }

    fn is_newest(&self, seen: &Seen) -> bool {
        seen.depth + 1 == self.activations.len()
    }

    /// The record of `main`'s foreign call.
    fn caller(&self) -> &Seen {
        self.activations.last().expect("a stopped mutator has a record")
    }
}

/// Collects the addresses of the slots a scanner reports.
struct Live(Vec<usize>);

impl RootVisitor<Ref> for Live {
    fn slot(&mut self, slot: Slot<'_, Ref>) {
        self.0.push(slot.address());
    }

    fn pinned(&mut self, _: Ref) {}

    fn transitively_pinned(&mut self, _: Ref) {}
}

/// The address of a slot of an activation's newest frame, whose slots are the topmost words of the stack.
fn slot_address(program: &Program, function: usize, anchor: Anchor, slot: usize) -> usize {
    anchor.sp - (program.functions()[function].slots.len() - slot) * size_of::<u64>()
}

// ------------------------------------------------------------------------------------------
// Print
// ------------------------------------------------------------------------------------------

/// What is played: the program, and how it is guarded and walked.
struct Stage {
    program: Program,
    calls: Calls,
    guard: Guard,
    walk: Walk,
}

impl Stage {
    fn introduce(&self) -> String {
        let (x, y) = (self.calls.x, self.calls.x + 1);
        let guard = match self.guard {
            Guard::Pins => "pins: both objects stay where they are until the call ends",
            Guard::RootsInPlace => {
                "roots in place: main's own slots are updated, at whatever pc main is walked"
            }
            Guard::RootsByValue => {
                "roots by value: a slot of the guard's for each argument; C reads through it"
            }
            _ => "NONE: the fix is off",
        };
        let walk = match self.walk {
            Walk::Legacy => "as in 2016: at Y while a callback runs, at X otherwise (Walk::Legacy)",
            Walk::Record => "at X always, as its record says (Walk::Record)",
        };
        let live = |pc| names(MAIN, &self.live_at(MAIN, pc));
        let mut text = format!(
            "UNDEAD ARGUMENTS\n\n\
             main calls C with `first` and `second` and does not use them again. The call has two pcs:\n\
             \x20 X = pc {x}, the call site        live: {}\n\
             \x20 Y = pc {y}, inside the call      live: {}\n\n\
             guard  {guard}\n\
             walk   {walk}\n",
            live(x),
            live(y),
        );
        if self.guard == Guard::RootsByValue {
            text += "\nWhy not Walk::Legacy here: a root by value keeps the object alive and the guard's slot right, but main's own\n\
                     slots are left to main's own map. A map that calls them live at X, dead at Y and live at X again leaves them\n\
                     stale at check 3, guard or no guard. So by-value roots are for a VM whose map does not change its mind\n\
                     during a call; here that is one that walks at X always. Pins and in-place roots work with either walk.\n";
        }
        text
    }

    fn tell(&self, number: usize, phase: &Phase, check: &Check) -> String {
        let title = format!("check {number}: {} (word {} -> {})", phase.title, phase.word, phase.word + 1);
        let line = "─".repeat(96_usize.saturating_sub(title.len()));
        let mut text = format!("\n── {title} {line}\n{}\n\n", phase.what);
        self.write_check(&mut text, number, check).expect("a string takes all that is written");
        text
    }

    fn write_check(&self, text: &mut String, number: usize, check: &Check) -> fmt::Result {
        let Check { before, outcome, after } = check;
        for seen in &before.activations {
            self.write_activation(text, number, seen, before)?;
        }
        match outcome {
            Ok(done) => write!(
                text,
                "\n  collection {}: {} moved, {} pinned, {} freed;",
                done.number, done.moved, done.pinned, done.freed
            )?,
            Err(undead) => write!(text, "\n  collection {}: GIVEN UP;", undead.collection)?,
        }
        let (old, new) = (&before.stack, &after.stack);
        let kib = old.len() / 1024;
        if old == new {
            writeln!(text, " the stack ({kib} KiB) stays at {:#x}", old.start)?;
        } else {
            writeln!(text, " the stack ({kib} KiB) goes from {:#x} to {:#x}", old.start, new.start)?;
        }
        writeln!(text, "  {:9}{:37}object", "", "slot")?;
        for (name, (old, new)) in MAIN_SLOTS.iter().zip(before.main.iter().zip(&after.main)) {
            let became = match (old.sound, new.sound) {
                (Err(stale), _) => format!("STALE: {}", fate(stale)),
                (Ok(()), Err(stale)) => format!("{} (dead slot)", fate(stale)),
                (Ok(()), Ok(())) if old.holds == new.holds => "stays, pinned".to_owned(),
                (Ok(()), Ok(())) => format!("-> {:?}", new.holds),
            };
            let slot = format!("{:#x} -> {:#x}", old.address, new.address);
            writeln!(text, "  {name:<9}{slot:<37}{:?} {became}", old.holds)?;
        }
        Ok(())
    }

    /// Draws one activation; the newest is on top.
    fn write_activation(
        &self,
        text: &mut String,
        number: usize,
        seen: &Seen,
        in_all: &Snapshot,
    ) -> fmt::Result {
        let Seen { depth, kind, anchor, .. } = seen;
        let corner = if in_all.is_newest(seen) { "┌" } else { "├" };
        let site =
            seen.call_site.map(|site| format!(", from {}:{}", site.file(), site.line())).unwrap_or_default();
        let function = &self.program.functions()[*depth].name;
        let called = self.place(*depth, self.called_at(number, *depth));
        let walked = self.place(*depth, self.walked_at(number, seen, in_all));
        writeln!(text, "  {corner}─ #{depth} {kind} in `{function}` at {called}{site}")?;
        writeln!(text, "  │    record    pc {:#x}  sp {:#x}  fp {:#x}", anchor.pc, anchor.sp, anchor.fp)?;
        writeln!(text, "  │    declared  {}", declared(&seen.declared))?;
        writeln!(text, "  │    walked    at {walked}, live: {}", names(*depth, &self.live_slots(seen)))?;
        if seen.depth > 0 {
            writeln!(text, "  │  ↑ C, which called back")?;
        } else {
            writeln!(text, "  └─ the thread's first activation")?;
        }
        Ok(())
    }

    /// The pc of the foreign call that an activation is in at a check.
    fn called_at(&self, number: usize, depth: usize) -> usize {
        match (depth, number) {
            (MAIN, 1..=3) => self.calls.x,
            (MAIN, _) => self.calls.main_waits,
            _ => self.calls.callback_waits,
        }
    }

    /// The pc that an activation's frame is walked at.
    fn walked_at(&self, number: usize, seen: &Seen, in_all: &Snapshot) -> usize {
        let called = self.called_at(number, seen.depth);
        // The founding runtime's walk came from above the callback, and took the frame to be one instruction
        // on.
        if self.walk == Walk::Legacy && !in_all.is_newest(seen) { called + 1 } else { called }
    }

    /// The slots that the VM's walk found live.
    fn live_slots(&self, seen: &Seen) -> Vec<FrameSlot> {
        let first = slot_address(&self.program, seen.depth, seen.anchor, 0);
        let slot =
            |address| u16::try_from((address - first) / size_of::<u64>()).expect("a slot of the frame");
        seen.live.iter().map(|&address| FrameSlot(slot(address))).collect()
    }

    /// The slots that are live at a pc.
    fn live_at(&self, function: usize, pc: usize) -> Vec<FrameSlot> {
        LiveMaps::analyse(&self.program.functions()[function]).live_references(pc).collect()
    }

    fn place(&self, function: usize, pc: usize) -> String {
        match (function, pc) {
            (MAIN, pc) if pc == self.calls.x => format!("X = pc {pc}"),
            (MAIN, pc) if pc == self.calls.x + 1 => format!("Y = pc {pc}"),
            _ => format!("pc {pc}"),
        }
    }
}

/// What became of the object a stale reference named.
fn fate(stale: StaleReference) -> String {
    match stale.fate {
        Fate::Moved { collection, to } => format!("moved to {to:?} by collection {collection}"),
        Fate::Freed { collection } => format!("freed by collection {collection}"),
        other => other.to_string(),
    }
}

/// The names of slots of a function, or a word for none.
fn names(function: usize, slots: &[FrameSlot]) -> String {
    let name = |slot: &FrameSlot| match function {
        MAIN => MAIN_SLOTS[slot.index()].to_owned(),
        CALLBACK => "fresh".to_owned(),
        _ => slot.to_string(),
    };
    let names: Vec<String> = slots.iter().map(name).collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

/// What was declared, with the addresses of the slots.
fn declared(declared: &[(ArgumentPlan, usize)]) -> String {
    let Some((plan, _)) = declared.first() else { return "nothing".to_owned() };
    // The newest declaration comes first.
    let slots: Vec<String> = declared.iter().rev().map(|(_, slot)| format!("{slot:#x}")).collect();
    format!("{} × {plan}, in the words at {}", declared.len(), slots.join(" and "))
}

/// Writes to standard output. A reader that has left, as `head` does, is no reason to stop: the verdict is in
/// the exit code.
fn show(text: &str) {
    let mut out = std::io::stdout().lock();
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

// ------------------------------------------------------------------------------------------
// Proof
// ------------------------------------------------------------------------------------------

/// What holds whatever the guard. The record of `main`'s call is the same one at the first three checks and
/// follows the stack; each frame is walked at the pc the story says.
fn assert_record_kept(checks: &[Check], stage: &Stage) {
    let first = &checks[0].before;
    for (index, check) in checks.iter().enumerate() {
        for seen in &check.before.activations {
            let pc = stage.walked_at(index + 1, seen, &check.before);
            assert_eq!(
                stage.live_slots(seen),
                stage.live_at(seen.depth, pc),
                "what is live there was scanned"
            );
        }
        for snapshot in [&check.before, &check.after] {
            assert_eq!(snapshot.activations.len(), if index == 1 { 2 } else { 1 });
            if index == 3 {
                continue;
            }
            let (record, original) = (snapshot.caller(), first.caller());
            assert_eq!(
                record.anchor.pc, original.anchor.pc,
                "I2: the record put back is the record set aside"
            );
            assert_eq!(record.declared.len(), original.declared.len(), "I2: what is declared never shrinks");
            for (now, then) in
                [(record.anchor.sp, original.anchor.sp), (record.anchor.fp, original.anchor.fp)]
            {
                assert_eq!(now - snapshot.stack.start, then - first.stack.start, "I6: it follows the stack");
            }
        }
    }
    let [small, grown] = [0, 1].map(|index: usize| checks[index].before.stack.len());
    assert!(small < 64 * 1024 && grown >= 64 * 1024, "the recursion grew the stack");
}

/// What holds with a guard: through three collections each argument's slot names its object.
fn assert_guarded(checks: &[Check], guard: Guard) {
    for (index, check) in checks.iter().enumerate() {
        assert_eq!(check.outcome.as_ref().err(), None, "no undead root");
        assert_ne!(check.before.stack.start, check.after.stack.start, "the stack moved");
        let moves = index == 3 || guard != Guard::Pins;
        for (slot, (before, after)) in check.before.main.iter().zip(&check.after.main).enumerate() {
            if index < 3 || MAIN_SLOTS[slot] == "kept" {
                assert_eq!((before.sound, after.sound), (Ok(()), Ok(())));
                assert_eq!(before.holds != after.holds, moves, "{} at check {}", MAIN_SLOTS[slot], index + 1);
            }
        }
    }
    let [first, second, kept] = checks[3].after.main;
    assert_eq!(
        first.sound.map_err(|stale| stale.fate),
        Err(Fate::Freed { collection: 4 }),
        "the guard is gone"
    );
    let moved = Fate::Moved { collection: 4, to: kept.holds };
    assert_eq!(
        second.sound.map_err(|stale| stale.fate),
        Err(moved),
        "dead after the call, and so not updated"
    );
}

/// What holds without a guard: live, dead, live again. Returns what the third collection found.
fn assert_undead(checks: &[Check], x: usize) -> &UndeadRoot {
    let [one, two, three] = checks else { panic!("the third check fails, not another") };
    assert!(one.outcome.is_ok() && two.outcome.is_ok());
    let undead = three.outcome.as_ref().expect_err("an argument that was dead at Y is stale at X");
    assert_eq!(
        (undead.pc, undead.before),
        (Some(x), Some((2, x + 1))),
        "live at X, dead at Y in collection 2"
    );
    assert_eq!(undead.stale.reference, three.before.main[0].holds);
    assert_eq!(undead.stale.fate, Fate::Freed { collection: 2 });
    let [_, second, kept] = three.before.main;
    let moved = Fate::Moved { collection: 2, to: kept.holds };
    assert_eq!(second.sound.map_err(|stale| stale.fate), Err(moved));
    undead
}

fn main() -> ExitCode {
    let (guard, walk) = match choose(std::env::args().skip(1)) {
        Ok(Some(choice)) => choice,
        Ok(None) => {
            show(HELP);
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprintln!("undead_arguments: {message}");
            return ExitCode::from(USAGE);
        }
    };
    // Each thread spins until the other answers. A panic in one would leave the other waiting for ever, so it
    // ends the process.
    let print_panic = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print_panic(panic);
        std::process::exit(101);
    }));

    let (program, calls) = write_program();
    let x = calls.x;
    let stage = Stage { program: program.clone(), calls, guard, walk };
    show(&stage.introduce());
    let world =
        TestVm::builder(program).guard(guard).walk(walk).native(founding).native(advance).build_world();

    let (sum, checks) = std::thread::scope(|threads| {
        let collector = threads.spawn(|| collector(&world, &stage));
        let mut mutator = world.attach().expect("this thread is new to the world");
        let sum = TestVm::call(&mut mutator, "main", &[]).expect("`kept` is live wherever it is used");
        drop(mutator);
        (sum, collector.join().expect("a panic would have ended the process"))
    });

    assert_record_kept(&checks, &stage);
    if guard == Guard::Nothing {
        let undead = assert_undead(&checks, x);
        show(&verdict(undead, &checks[2].before, x));
        return ExitCode::from(UNDEAD);
    }
    assert_guarded(&checks, guard);
    let bytes: i64 = TEXT.iter().map(|&byte| i64::from(byte)).sum();
    let read = match guard {
        Guard::RootsInPlace => {
            assert_eq!(sum, Some(Value::Integer(0)));
            "In place, C is given no address: the slot itself moves with the stack.".to_owned()
        }
        _ => {
            assert_eq!(
                sum,
                Some(Value::Integer(2 * bytes)),
                "C read the object and not what was there before it"
            );
            format!(
                "C read the first argument twice after three collections: {bytes} + {bytes}, as it should be."
            )
        }
    };
    let (collections, moved) = world.vm().totals();
    show(&format!(
        "\nEVERY ARGUMENT STAYED ALIVE, AND ONLY AS LONG AS THE CALL\n\n\
         \x20 {collections} collections moved {moved} objects and the stack each time.\n\
         \x20 Checks 1 to 3: main's record kept its pc, followed the stack, and declared the same {} arguments.\n\
         \x20 Check 4: with the call over, `first` was freed and `kept` moved.\n\
         \x20 {read}\n\
         \x20 The same story without the guard: --fix-off\n",
        checks[0].before.caller().declared.len(),
    ));
    ExitCode::SUCCESS
}

/// Says what was caught.
fn verdict(undead: &UndeadRoot, before: &Snapshot, x: usize) -> String {
    let [first, second, _] = before.main;
    let second = second.sound.expect_err("asserted before");
    format!(
        "\nUNDEAD ARGUMENT, CAUGHT AT CHECK 3\n\n\
         \x20 which slot   `first`: {}, at {:#x}\n\
         \x20 live         in collection 1, at X = pc {x}\n\
         \x20 dead         in collection 2, at Y = pc {}, while the callback ran: not updated\n\
         \x20 live again   in collection {}, at X = pc {x}, because the record of X was put back\n\
         \x20 it holds     {:?}, whose object was {}\n\
         \x20 as well      `second` holds {:?}, whose object was {}\n\n\
         \x20 A collector that trusts its roots would have followed this one into memory that is no object any more.\n\
         \x20 The same story with the guard: leave out --fix-off.\n",
        undead.slot,
        first.address,
        x + 1,
        undead.collection,
        undead.stale.reference,
        fate(undead.stale),
        second.reference,
        fate(second),
    )
}

/// Reads the command line: guard and walk, or `None` if help was asked for.
fn choose(mut arguments: impl Iterator<Item = String>) -> Result<Option<(Guard, Walk)>, String> {
    let (mut guard, mut fix_off) = (None, false);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--help" | "-h" => return Ok(None),
            "--fix-off" => fix_off = true,
            "--guard" => {
                let name = arguments.next().unwrap_or_default();
                guard = Some(match name.as_str() {
                    "pins" => Guard::Pins,
                    "in-place" => Guard::RootsInPlace,
                    "by-value" => Guard::RootsByValue,
                    _ => return Err(format!("no guard `{name}`; write --guard pins, in-place or by-value")),
                });
            }
            _ => return Err(format!("unknown argument `{argument}`; --help lists those there are")),
        }
    }
    match (guard, fix_off) {
        (Some(_), true) => Err("--fix-off takes the guard away; leave out either it or --guard".to_owned()),
        (None, true) => Ok(Some((Guard::Nothing, Walk::Legacy))),
        (Some(Guard::RootsByValue), false) => Ok(Some((Guard::RootsByValue, Walk::Record))),
        (guard, false) => Ok(Some((guard.unwrap_or(Guard::Pins), Walk::Legacy))),
    }
}
