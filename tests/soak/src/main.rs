//! Everything at once, at random, for as long as you like: crossings with every plan, nested upcalls, collections that move every object, handshakes, samples, posts, interrupts, panics
//! and exceptions carried past C, threads that come and go, raw pthreads that call in, fibers that move between threads, and a second world with a moving stack.
//!
//! Each reference is checked against what it should name. A mismatch, an unexpected report or a standstill ends the run with exit code 1 and what the thread had done before.
//! The seed fixes what each thread chooses; how the threads interleave is up to the machine. Not in the mix: handles, and `longjmp` over an upcall.
//!
//! ```sh
//! cargo run --release -p soak -- --seconds 60 --threads 16 --seed 1
//! ```
#![expect(clippy::missing_panics_doc, reason = "a mismatch is told by a panic")]
#![expect(clippy::print_stdout, reason = "what it prints is what it is for")]

use core::ffi::c_int;
use core::panic::AssertUnwindSafe;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use core::time::Duration;
use indicatif::{ProgressBar, ProgressStyle};
use reentry::testkit::bytecode::{Function, Program};
use reentry::testkit::{Guard, NativeResult, TestVm};
use reentry::{
    Attachment, FenceStrategy, Mutator, Poster, Throwing, UpcallClosure, World, upcall_fn, upcall_fn_or,
};
use reentry_foreign::{
    foreign_call_back, foreign_call_back_last, foreign_nothing, foreign_sum_through_slot, foreign_sum_twice,
    foreign_threads,
};
use std::panic::{catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

#[path = "../../all/shadow.rs"]
mod shadow;
#[path = "../../all/strand.rs"]
mod strand;

use shadow::Shadow;
use strand::{Strand, suspend};

type Vm = Shadow<900>;

const HELP: &str = "\
Stresses every crossing at random, with a heap that moves every object at every collection.

usage: soak [--seconds N] [--threads N] [--seed N]

  --seconds N   how long (10)
  --threads N   how many threads (16)
  --seed N      what the threads do (chosen by the clock)
  --help        this text

Exit code 0 if every reference was right, 1 if one was not, 2 for bad arguments.";

/// What a thread can do, one row of the table each.
const ACTIONS: [&str; 20] = [
    "polls",
    "collections asked for",
    "crossings with every plan",
    "crossings with a bare call",
    "upcalls by closure, nested at random",
    "upcalls by function item",
    "handshakes with one",
    "handshakes with all",
    "samples",
    "posts",
    "panics carried past C",
    "exceptions carried past C",
    "interruptible calls",
    "raw pthreads that call in",
    "fibers made",
    "suspensions",
    "fibers resumed",
    "fibers resumed by another thread than last",
    "programs of the second world",
    "detached and attached again",
];

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// A fiber between two threads: only such as have no foreign frames on their stacks.
struct Travelling {
    strand: Strand<Vm>,
    pinned: Arc<AtomicBool>,
    /// The thread that resumed it last.
    last: Option<u64>,
}

/// What all threads share.
struct Stage {
    world: World<Vm>,
    other: World<TestVm>,
    counts: [AtomicU64; ACTIONS.len()],
    posted: AtomicU64,
    most_attached: AtomicUsize,
    posters: Mutex<Vec<(u64, Poster<Vm>)>>,
    travelling: Mutex<Vec<Travelling>>,
    over: AtomicBool,
    serial: AtomicU64,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stage {
    fn count(&self, action: usize) {
        self.counts[action].fetch_add(1, Ordering::Relaxed);
    }

    fn total(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// A text that no other object has.
    fn text(&self, what: &str) -> String {
        format!("{what} {}", self.serial.fetch_add(1, Ordering::Relaxed))
    }

    /// The number of some mutator; it may have gone since.
    fn somebody(&self, random: &mut Random) -> Option<u64> {
        let posters = locked(&self.posters);
        (!posters.is_empty()).then(|| posters[random.below(posters.len())].0)
    }
}

/// What runs: a thread's own code, an upcall or a fiber, how deep, and what leads to a suspension.
#[derive(Clone, Copy)]
struct Here<'h> {
    stage: &'h Stage,
    depth: usize,
    /// On a fiber: to be set while foreign frames are on its stack.
    pinned: Option<&'h AtomicBool>,
}

/// Does one thing at random. Whatever it is, the frame's own object is right afterwards.
fn act(mutator: &mut Mutator<Vm>, random: &mut Random, here: Here<'_>, done: &mut dyn FnMut(usize)) {
    let stage = here.stage;
    let text = stage.text("frame");
    let own = Vm::hold(mutator, &text);
    let action = match random.below(16) {
        // What stops everybody, or starts threads, is less frequent; and there is an end to depth.
        1 | 14 if random.below(4) != 0 => 0,
        7 if random.below(8) != 0 => 0,
        13 if random.below(32) != 0 => 0,
        4 if here.depth >= 8 => 0,
        13 | 14 if here.depth >= 3 => 0,
        15 if here.pinned.is_none() => 0,
        action => action,
    };
    done(action);
    stage.count(action);
    match action {
        0 => mutator.poll(),
        1 => Vm::collect_in(mutator),
        2 => cross(mutator, random, here),
        // SAFETY: it does nothing.
        3 => mutator.foreign_call().run(|| unsafe { foreign_nothing() }),
        4 => call_back(mutator, random, here),
        5 => {
            let callback: extern "C" fn(c_int) -> c_int = upcall_fn(|mutator: &mut Mutator<Vm>, x: c_int| {
                let slot = Vm::hold(mutator, "item");
                mutator.poll();
                assert_eq!(Vm::text(mutator, slot), "item");
                Vm::forget(mutator, slot);
                x + 1
            });
            // SAFETY: the callback takes what C gives it.
            assert_eq!(mutator.foreign_call().run(|| unsafe { foreign_call_back(callback, 1) }), 2);
        }
        6 => {
            if let Some(id) = stage.somebody(random) {
                mutator.handshake(id, |stopped| stopped.activations().count());
            }
        }
        7 => drop(mutator.handshake_each(|stopped| stopped.id())),
        8 => {
            if let Some(id) = stage.somebody(random) {
                drop(mutator.sample(id));
            }
        }
        9 => {
            let posters = locked(&stage.posters);
            if !posters.is_empty() {
                // A full mailbox and a mutator that has gone are no errors here.
                let _ =
                    posters[random.below(posters.len())].1.post(posted, core::ptr::from_ref(stage).addr());
            }
        }
        10 => panic_past_c(mutator, random, stage),
        11 => throw_past_c(mutator),
        12 => interruptible(mutator, random, stage),
        13 => {
            let callback: extern "C" fn(c_int) -> c_int = upcall_fn(|mutator: &mut Mutator<Vm>, x: c_int| {
                let slot = Vm::hold(mutator, "raw");
                Vm::collect_in(mutator);
                assert_eq!(Vm::text(mutator, slot), "raw");
                Vm::forget(mutator, slot);
                x
            });
            // SAFETY: the callback takes what C gives it.
            assert_eq!(mutator.foreign_call().run(|| unsafe { foreign_threads(2, 3, callback) }), 6);
        }
        14 => {
            let mut inner = fiber(stage, random.next());
            // To its end, here: fibers inside upcalls, upcalls inside fibers.
            loop {
                stage.count(16);
                if inner.strand.resume(mutator).expect("nobody else has it") {
                    break;
                }
            }
        }
        15 => {
            if let Some(pinned) = here.pinned {
                pinned.store(here.depth > 1, Ordering::Relaxed);
                suspend(mutator);
            }
        }
        _ => unreachable!("sixteen actions"),
    }
    assert_eq!(Vm::text(mutator, own), text, "the object of a frame");
    Vm::forget(mutator, own);
}

/// Posted work: runs at a poll, on whatever frames there are.
fn posted(mutator: &mut Mutator<Vm>, stage: usize) {
    let slot = Vm::hold(mutator, "posted");
    mutator.poll();
    assert_eq!(Vm::text(mutator, slot), "posted");
    Vm::forget(mutator, slot);
    // SAFETY: the stage outlives every thread of the run.
    let stage = unsafe { &*core::ptr::with_exposed_provenance::<Stage>(stage) };
    stage.posted.fetch_add(1, Ordering::Relaxed);
}

/// A foreign call with an argument of each plan, read by C before and after an upcall that does more of the same.
fn cross(mutator: &mut Mutator<Vm>, random: &mut Random, here: Here<'_>) {
    let stage = here.stage;
    let texts: [String; 5] = core::array::from_fn(|_| stage.text("argument"));
    let [rooted, in_place, pinned, leaf, _] = core::array::from_fn(|i| Vm::hold(mutator, &texts[i]));
    let heap = mutator.vm().heap();
    let tree = heap.alloc(&[Vm::held(mutator, leaf)], texts[4].as_bytes());
    let held: [_; 3] = [rooted, pinned, in_place].map(|slot| Vm::held(mutator, slot));
    let place = Vm::place(mutator, in_place);
    let sum = |text: &str| text.bytes().map(u64::from).sum::<u64>();
    let seed = random.next();
    let nested = UpcallClosure::new(&stage.world, |mutator: &mut Mutator<Vm>, x: c_int| {
        let below = Here { depth: here.depth + 1, ..here };
        let mut random = Random(seed);
        if below.depth < 6 {
            act(mutator, &mut random, below, &mut |_| ());
        }
        Vm::collect_in(mutator);
        x
    });
    let (function, data) = (nested.data_last(), nested.data());
    let buffer = vec![7_u8; 32];
    let mut call = mutator.foreign_call();
    let root = call.root(held[0]);
    // SAFETY: a slot of this mutator's frames, which holds the reference until after the call.
    let follows = unsafe { call.root_in_place(place) }.expect("held");
    let pin = call.pin(held[1]).expect("held");
    call.pin_transitively(tree).expect("held");
    call.keep_alive(&buffer);
    let copied = call.copy_slice(&[1_u64, 2, 3]);
    let world = &stage.world;
    let bytes = world.vm().heap().payload(pin.get()).expect("pinned");
    let expected = sum(&texts[2]);
    call.run(|| {
        // SAFETY: a pinned object's bytes.
        let before = unsafe { foreign_sum_twice(bytes, texts[2].len(), None) };
        // SAFETY: the data pointer is the closure's own, and the closure lives.
        assert_eq!(unsafe { foreign_call_back_last(function, 3, data) }, 3);
        // SAFETY: as above: it is where it was.
        let after = unsafe { foreign_sum_twice(bytes, texts[2].len(), None) };
        assert_eq!((before, after), (2 * expected, 2 * expected), "the bytes of a pinned object");
    });
    assert_eq!(call.read_slice(copied), [1, 2, 3]);
    let (root, follows) = (call.get(root), call.get(follows));
    drop(call);
    let heap = mutator.vm().heap();
    assert_eq!(heap.bytes(root).expect("rooted"), texts[0].as_bytes());
    assert_eq!(heap.bytes(follows).expect("rooted in place"), texts[1].as_bytes());
    assert_eq!(heap.bytes(tree).expect("pinned"), texts[4].as_bytes());
    assert_eq!(
        heap.bytes(heap.field(tree, 0).expect("pinned")).expect("pinned transitively"),
        texts[3].as_bytes()
    );
    let mut call = mutator.foreign_call();
    let object = call.root(root);
    let offset = heap_offset(world, root);
    // Another thread may collect while C reads through the slot: the object stays where it is, and the slot is right anyhow.
    call.pin(root).expect("rooted");
    // SAFETY: the guard's own slot, of an object that does not move during the call.
    let read =
        call.run(|| unsafe { foreign_sum_through_slot(object.slot().cast(), offset, texts[0].len(), None) });
    assert_eq!(read, 2 * sum(&texts[0]), "read through a slot");
    drop(call);
    Vm::forget(mutator, rooted);
}

/// How far an object's bytes stand behind its reference.
fn heap_offset(world: &World<Vm>, object: reentry::testkit::Ref) -> usize {
    world.vm().heap().payload(object).expect("live").addr() - object.address()
}

/// An upcall by closure that does a few things at random, and so on down.
fn call_back(mutator: &mut Mutator<Vm>, random: &mut Random, here: Here<'_>) {
    let seed = random.next();
    let body = UpcallClosure::new(&here.stage.world, |mutator: &mut Mutator<Vm>, x: c_int| {
        let mut random = Random(seed);
        for _ in 0..random.below(4) {
            act(mutator, &mut random, Here { depth: here.depth + 1, ..here }, &mut |_| ());
        }
        x + 1
    });
    let (function, data) = (body.data_last(), body.data());
    // SAFETY: the data pointer is the closure's own, and the closure lives.
    assert_eq!(mutator.foreign_call().run(|| unsafe { foreign_call_back_last(function, 1, data) }), 2);
}

/// Panics in an upcall, without a message, and checks that it arrives.
fn panic_past_c(mutator: &mut Mutator<Vm>, random: &mut Random, stage: &Stage) {
    let number = random.next();
    let body = UpcallClosure::new(&stage.world, |mutator: &mut Mutator<Vm>, _: c_int| -> c_int {
        Vm::hold(mutator, "lost with the panic");
        resume_unwind(Box::new(number))
    });
    let (function, data) = (body.data_last(), body.data());
    let slots = Vm::hold(mutator, "before the panic");
    let caught = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the data pointer is the closure's own, and the closure lives.
        mutator.foreign_call().run(|| unsafe { foreign_call_back_last(function, 1, data) })
    }));
    let payload = caught.expect_err("the panic goes on");
    match payload.downcast::<u64>() {
        Ok(arrived) => assert_eq!(*arrived, number),
        Err(other) => resume_unwind(other),
    }
    assert_eq!(Vm::text(mutator, slots), "before the panic");
    Vm::forget(mutator, slots);
}

/// Throws in an upcall, and checks that the exception arrives.
fn throw_past_c(mutator: &mut Mutator<Vm>) {
    /// # Errors
    ///
    /// Always.
    fn fail(mutator: &mut Mutator<Vm>, x: c_int) -> Result<c_int, String> {
        mutator.poll();
        Err(format!("exception {x}"))
    }
    let callback: extern "C" fn(c_int) -> c_int = upcall_fn_or(Throwing(fail), || -1);
    // SAFETY: the callback takes what C gives it.
    let outcome =
        mutator.foreign_call().try_run(|| assert_eq!(unsafe { foreign_call_back(callback, 9) }, -1));
    assert_eq!(outcome, Err("exception 9".to_owned()));
}

/// A call that waits until it is interrupted, or a little; or an interrupt for somebody else's.
fn interruptible(mutator: &mut Mutator<Vm>, random: &mut Random, stage: &Stage) {
    if random.below(2) == 0 {
        let stop = AtomicBool::new(false);
        let interrupt = || stop.store(true, Ordering::Relaxed);
        mutator.foreign_call().interruptible(&interrupt).run(|| {
            let began = Instant::now();
            while !stop.load(Ordering::Relaxed) && began.elapsed() < Duration::from_micros(200) {
                std::thread::yield_now();
            }
        });
    } else if let Some(id) = stage.somebody(random) {
        mutator.foreign_call().run(|| stage.world.interrupt(id)).expect("no pause is held here");
    }
}

/// A fiber that does things at random, and suspends among them.
fn fiber(stage: &Stage, seed: u64) -> Travelling {
    // SAFETY: the stage outlives every fiber: `main` ends them all first.
    let stage = unsafe { &*core::ptr::from_ref(stage) };
    let pinned = Arc::new(AtomicBool::new(false));
    let inside = Arc::clone(&pinned);
    let strand = Strand::new(&stage.world, move |mutator: &mut Mutator<Vm>| {
        let mut random = Random(seed);
        let text = stage.text("fiber");
        let own = Vm::hold(mutator, &text);
        for _ in 0..1 + random.below(12) {
            let here = Here { stage, depth: 1, pinned: Some(&inside) };
            act(mutator, &mut random, here, &mut |_| ());
            if random.below(3) == 0 {
                inside.store(false, Ordering::Relaxed);
                suspend(mutator);
            }
            assert_eq!(Vm::text(mutator, own), text, "the object of a fiber");
        }
        Vm::forget(mutator, own);
    });
    Travelling { strand, pinned, last: None }
}

/// Runs a program of the second world: interpreter frames on a stack that moves, a foreign call with an argument, an upcall that collects.
fn second_world(stage: &Stage) {
    let mut mutator = stage.other.attach().expect("open");
    let outcome = TestVm::call(&mut mutator, "main", &[]);
    assert!(outcome.is_ok(), "{outcome:?}");
}

fn other_world() -> World<TestVm> {
    let mut main = Function::builder("main");
    let (kept, given) = (main.reference_slot(), main.reference_slot());
    main.bytes(kept, b"live across the call");
    main.bytes(given, b"an argument, dead after the call");
    main.foreign(None, 0, &[given]);
    main.check(kept);
    main.leave();
    let program = Program::new(vec![main.finish()]).expect("a valid program");
    TestVm::builder(program)
        .guard(Guard::RootsInPlace)
        .stack_words(8)
        .native(|_: &TestVm, _| {
            let callback: extern "C" fn(c_int) -> c_int =
                upcall_fn(|mutator: &mut Mutator<TestVm>, x: c_int| {
                    TestVm::collect_in(mutator).map_or_else(|undead| panic!("{undead}"), |_| x)
                });
            // SAFETY: the callback takes what C gives it.
            NativeResult::Integer(unsafe { foreign_call_back(callback, 1) }.into())
        })
        .build_world()
}

/// What one thread does, until the time is over.
struct Worker<'s> {
    stage: &'s Stage,
    thread: u64,
    random: Random,
    /// What it has done, as numbers of actions.
    schedule: Vec<u8>,
    /// Fibers that only this thread can resume.
    own: Vec<Travelling>,
}

impl Worker<'_> {
    fn enrol(&self, mutator: &mut Attachment<Vm>) {
        locked(&self.stage.posters).push((mutator.id(), mutator.poster()));
    }

    fn leave(&self, mutator: Attachment<Vm>) {
        locked(&self.stage.posters).retain(|(id, _)| *id != mutator.id());
        drop(mutator);
    }

    fn note(&mut self, action: usize) {
        self.schedule.push(action as u8);
        self.stage.count(action);
    }

    fn run(&mut self) {
        let stage = self.stage;
        let mut mutator = stage.world.attach().expect("open");
        self.enrol(&mut mutator);
        while !stage.over.load(Ordering::Relaxed) {
            stage.most_attached.fetch_max(stage.world.attached(), Ordering::Relaxed);
            match self.random.below(24) {
                0 => {
                    self.note(19);
                    self.leave(mutator);
                    mutator = stage.world.attach().expect("open");
                    self.enrol(&mut mutator);
                }
                1 => {
                    self.note(14);
                    let seed = self.random.next();
                    let made = fiber(stage, seed);
                    self.keep_or_give(made);
                }
                2..=5 => self.resume_one(&mut mutator),
                6 => {
                    self.note(18);
                    mutator.foreign_call().run(|| second_world(stage));
                }
                _ => {
                    let schedule = &mut self.schedule;
                    let here = Here { stage, depth: 0, pinned: None };
                    act(&mut mutator, &mut self.random, here, &mut |action| schedule.push(action as u8));
                }
            }
        }
        // The fibers bound to this thread end here; the others are the main thread's to end.
        for mut strand in core::mem::take(&mut self.own) {
            while !strand.strand.resume(&mut mutator).expect("it is this thread's") {}
        }
        self.leave(mutator);
    }

    fn keep_or_give(&mut self, fiber: Travelling) {
        if fiber.pinned.load(Ordering::Relaxed) {
            self.own.push(fiber);
        } else {
            locked(&self.stage.travelling).push(fiber);
        }
    }

    /// Resumes a fiber: one of its own, or whichever is between two threads.
    fn resume_one(&mut self, mutator: &mut Mutator<Vm>) {
        let taken = if self.own.is_empty() || self.random.below(2) == 0 {
            let mut travelling = locked(&self.stage.travelling);
            let count = travelling.len();
            if count == 0 {
                return;
            }
            let taken = travelling.swap_remove(self.random.below(count));
            drop(travelling);
            taken
        } else {
            let index = self.random.below(self.own.len());
            self.own.swap_remove(index)
        };
        let mut taken = taken;
        if taken.last.replace(self.thread).is_some_and(|last| last != self.thread) {
            self.note(17);
        }
        self.note(16);
        if !taken.strand.resume(mutator).expect("it is nobody else's") {
            self.keep_or_give(taken);
        }
    }
}

struct Arguments {
    seconds: u64,
    threads: u64,
    seed: u64,
}

/// # Errors
///
/// What is wrong with the arguments.
fn arguments() -> Result<Option<Arguments>, String> {
    let clock = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64);
    let mut chosen = Arguments { seconds: 10, threads: 16, seed: clock };
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        let place = match &*name {
            "--help" | "-h" => return Ok(None),
            "--seconds" => &mut chosen.seconds,
            "--threads" => &mut chosen.threads,
            "--seed" => &mut chosen.seed,
            other => return Err(format!("there is no argument `{other}`")),
        };
        let value = given.next().ok_or_else(|| format!("`{name}` needs a number"))?;
        *place = value.parse().map_err(|_| format!("`{name}` needs a number; `{value}` is none"))?;
    }
    if !(1..=1024).contains(&chosen.threads) {
        return Err(format!("`--threads` is 1 to 1024; {} is not", chosen.threads));
    }
    Ok(Some(chosen))
}

/// Ends the process: something was wrong.
fn mismatch(what: &str, thread: u64, seed: u64, schedule: &[u8]) -> ! {
    println!("MISMATCH in thread {thread} (seed {seed}), after {} steps of its own: {what}", schedule.len());
    let from = schedule.len().saturating_sub(200);
    println!("its last steps, oldest first:");
    for steps in schedule[from..].chunks(8) {
        let names: Vec<_> = steps.iter().map(|&step| ACTIONS[usize::from(step)]).collect();
        println!("  {}", names.join(" | "));
    }
    std::process::exit(1)
}

fn main() {
    let Arguments { seconds, threads, seed } = match arguments() {
        Ok(Some(arguments)) => arguments,
        Ok(None) => {
            println!("{HELP}");
            return;
        }
        Err(wrong) => {
            eprintln!("soak: {wrong}\n\n{HELP}");
            std::process::exit(2);
        }
    };
    println!("seed {seed}, {threads} threads, {seconds} s");
    let world = Vm::world(FenceStrategy::probe());
    world.adopt_foreign_threads();
    let stage = Stage {
        world,
        other: other_world(),
        counts: [const { AtomicU64::new(0) }; ACTIONS.len()],
        posted: AtomicU64::new(0),
        most_attached: AtomicUsize::new(0),
        posters: Mutex::default(),
        travelling: Mutex::default(),
        over: AtomicBool::new(false),
        serial: AtomicU64::new(0),
    };
    // Posted work finds its way back to it.
    core::ptr::from_ref(&stage).expose_provenance();
    let began = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let stage = &stage;
            scope.spawn(move || {
                let own = seed ^ thread.wrapping_mul(0xD134_2543_DE82_EF95);
                let mut worker =
                    Worker { stage, thread, random: Random(own), schedule: Vec::new(), own: Vec::new() };
                let outcome = catch_unwind(AssertUnwindSafe(|| worker.run()));
                if let Err(payload) = outcome {
                    let text = payload.downcast_ref::<String>().cloned();
                    let text = text.or_else(|| payload.downcast_ref::<&str>().map(|&text| text.to_owned()));
                    mismatch(&text.unwrap_or_default(), thread, seed, &worker.schedule);
                }
            });
        }
        watch(&stage, Duration::from_secs(seconds), seed);
    });
    let mut mutator = stage.world.attach().expect("open");
    for mut fiber in core::mem::take(&mut *locked(&stage.travelling)) {
        while !fiber.strand.resume(&mut mutator).expect("nobody else has it") {}
    }
    drop(mutator);
    stage.world.pause(|stopped| stopped.vm().collect(stopped));
    let left = stage.world.vm().heap().live_objects();
    if left != 0 || stage.world.attached() != 0 {
        mismatch(
            &format!("{left} objects and {} mutators are left", stage.world.attached()),
            threads,
            seed,
            &[],
        );
    }
    table(&stage, began.elapsed());
}

/// Collects now and then from a thread that is no mutator, looks at reports and at whether anything moves, and says when the time is over.
fn watch(stage: &Stage, time: Duration, seed: u64) {
    let bar = ProgressBar::new(time.as_secs());
    bar.set_style(
        ProgressStyle::with_template("{wide_bar} {pos}/{len} s, {msg} steps").expect("a valid template"),
    );
    let began = Instant::now();
    let (mut last, mut moved) = (0, Instant::now());
    while began.elapsed() < time {
        std::thread::sleep(Duration::from_millis(20));
        stage.world.pause(|stopped| stopped.vm().collect(stopped));
        let total = stage.total();
        bar.set_position(began.elapsed().as_secs());
        bar.set_message(total.to_string());
        if total != last {
            (last, moved) = (total, Instant::now());
        } else if moved.elapsed() > Duration::from_secs(30) {
            mismatch("nothing has moved for 30 s", 0, seed, &[]);
        }
        if let Some(report) = stage.world.vm().take_reports().first() {
            mismatch(&format!("reported: {report}"), 0, seed, &[]);
        }
    }
    bar.finish_and_clear();
    stage.over.store(true, Ordering::Relaxed);
}

fn table(stage: &Stage, took: Duration) {
    println!("{:-<60}", "");
    for (name, count) in ACTIONS.iter().zip(&stage.counts) {
        println!("{name:<44}{:>16}", count.load(Ordering::Relaxed));
    }
    println!("{:-<60}", "");
    for (name, count) in [
        ("steps in all", stage.total()),
        ("posted work done", stage.posted.load(Ordering::Relaxed)),
        ("objects made", stage.serial.load(Ordering::Relaxed)),
        ("collections, each moving all", stage.world.vm().heap().collections()),
        ("collections of the second world", stage.other.vm().totals().0),
        ("most mutators at once", stage.most_attached.load(Ordering::Relaxed) as u64),
        ("seconds", took.as_secs()),
    ] {
        println!("{name:<44}{count:>16}");
    }
    println!("every reference was right");
}
