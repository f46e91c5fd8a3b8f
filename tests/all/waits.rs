//! Each kind of wait, made to last, and the text that is reported of it.

use crate::plain::Steps;
use core::ffi::c_int;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use reentry::{
    Capture, DetachError, Early, Mutator, Report, RootVisitor, Segment, StackScanner, Stragglers,
    UpcallClosure, Vm, World, WorldBuilder,
};
use reentry_foreign::{foreign_call_back_last, foreign_meet};
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::Instant;

const AFTER: Duration = Duration::from_millis(30);
const LONG: Duration = Duration::from_secs(60);

/// A VM that keeps what it is told, and wakes who waits for that.
#[derive(Default)]
struct Told {
    texts: Mutex<Vec<String>>,
    told: Condvar,
    /// What a report does besides, once.
    also: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Told {
    fn texts(&self) -> Vec<String> {
        self.texts.lock().unwrap().clone()
    }

    /// Waits until `times` reports have come, and a minute at most.
    fn wait_until_told(&self, times: usize) {
        let texts = self.texts.lock().unwrap();
        let (texts, waited) = self.told.wait_timeout_while(texts, LONG, |texts| texts.len() < times).unwrap();
        assert!(!waited.timed_out(), "told {} times in a minute: {texts:?}", texts.len());
    }
}

impl Vm for Told {
    type Ref = usize;
    type Local = ();
    type Exception = core::convert::Infallible;
    const CAPTURE: Capture = Capture::Nothing;

    fn attach(&self) {}

    fn report(&self, report: &Report<'_>) {
        let also = self.also.lock().unwrap().take();
        if let Some(also) = also {
            also();
        }
        self.texts.lock().unwrap().push(report.to_string());
        self.told.notify_all();
    }
}

// SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
unsafe impl StackScanner for Told {
    fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
}

fn builder() -> WorldBuilder<Told> {
    World::<Told>::builder().report_after(AFTER)
}

/// Fails unless `text` has each of `parts`, in their order, and reads as a short text of short lines.
fn assert_reads(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let found = rest.find(part);
        let at = found.unwrap_or_else(|| panic!("`{part}` is not in, or not in its place in:\n{text}"));
        rest = &rest[at + part.len()..];
    }
    assert!(text.lines().count() <= 20, "{text}");
    // A function's name is as long as it is.
    for line in text.lines().filter(|line| !line.starts_with("    for the upcall ")) {
        assert!(line.chars().count() <= 120, "a line of {}: {line}", line.chars().count());
    }
}

/// Where the line `line` of this file is, as a report says it.
fn at(line: u32) -> String {
    format!("{}:{line}:", file!())
}

/// Has a thread named `the waiter` wait for a pause, in which nobody does anything until that has been reported. `ask` reaches step 1 when the pause may begin, and waits for it at step 2.
///
/// Returns what was reported, and the line where the pause was asked for.
fn told_by(ask: impl FnOnce(&World<Told>, &Steps) + Send) -> (String, u32) {
    let world = builder().build(Told::default());
    let steps = Steps::new();
    let line = thread::scope(|scope| {
        let (world, steps) = (&world, &steps);
        let waiter = thread::Builder::new().name("the waiter".to_owned());
        let waiter = waiter.spawn_scoped(scope, move || ask(world, steps)).unwrap();
        steps.wait(1);
        let line = line!() + 1;
        world.pause(|stopped| {
            steps.reach(2);
            stopped.vm().wait_until_told(1);
        });
        waiter.join().unwrap();
        line
    });
    (world.vm().texts()[0].clone(), line)
}

/// What a report says of a pause in which something is being done.
fn in_a_pause(line: u32) -> Vec<String> {
    let what = "\n  what it waits for: thread".to_owned();
    let wanted = "wanted to stop the world, ".to_owned();
    let everybody = "\n    everybody has stopped for it".to_owned();
    vec![what, wanted, at(line), everybody, "\n  what it may be: ".to_owned(), "\n  what to do: ".to_owned()]
}

fn assert_tells((text, pause): (String, u32), wants: &str, asked: &str) {
    let first = "a thread has waited 3".to_owned();
    let wants = format!(" ms to {wants}\n  who waits: ");
    let mut parts = vec![first, wants, "thread \"the waiter\" (".to_owned(), asked.to_owned()];
    parts.extend(in_a_pause(pause));
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    // On a loaded machine a wait of 30 ms may be looked at late.
    let text = text.replacen("a thread has waited ", "a thread has waited 3", 1);
    assert_reads(&text, &parts);
}

#[test]
fn a_return_from_foreign_code_that_waits_long_for_a_pause_is_reported() {
    let line = line!() + 6;
    let told = told_by(|world, steps| {
        let mut mutator = world.attach().unwrap();
        // SAFETY: C touches the word alone, which lives.
        let meet = || unsafe { foreign_meet(steps.word(), 1, 2) };
        //
        mutator.foreign_call().run(meet);
    });
    assert_tells(told, "go on after a foreign call", &format!("of the foreign call at {}", at(line)));
}

#[test]
fn a_poll_that_waits_long_for_a_pause_is_reported() {
    let line = line!() + 5;
    let told = told_by(|world, steps| {
        let mut mutator = world.attach().unwrap();
        steps.reach(1);
        while steps.now() < 2 {
            mutator.poll();
        }
    });
    assert_tells(told, "go on after a safepoint", &at(line));
}

#[test]
fn an_upcall_that_waits_long_for_a_pause_is_reported() {
    let line = core::sync::atomic::AtomicU32::new(0);
    let told = told_by(|world, steps| {
        let upcall = UpcallClosure::new(world, |_: &mut Mutator<Told>, x: c_int| x);
        let (function, data) = (upcall.data_last(), upcall.data());
        let mut mutator = world.attach().unwrap();
        line.store(line!() + 1, Ordering::Relaxed);
        mutator.foreign_call().run(|| {
            steps.reach(1);
            steps.wait(2);
            // SAFETY: the data pointer is the closure's own, and the closure lives.
            unsafe { foreign_call_back_last(function, 1, data) };
        });
    });
    let line = line.load(Ordering::Relaxed);
    assert_tells(told, "begin an upcall", &format!("of the foreign call at {}", at(line)));
}

#[test]
fn an_attach_that_waits_long_for_a_pause_is_reported() {
    let line = line!() + 4;
    let told = told_by(|world, steps| {
        steps.reach(1);
        steps.wait(2);
        drop(world.attach().unwrap());
    });
    assert_tells(told, "attach", &at(line));
}

/// A thread of the collector runs a finaliser that calls in, and the pause waits for that thread: without a word, both would wait for ever.
#[test]
fn a_first_upcall_on_a_thread_that_the_pause_waits_for_is_reported_as_a_deadlock_that_may_be() {
    let world = builder().build(Told::default());
    let finaliser = UpcallClosure::new(&world, |_: &mut Mutator<Told>, x: c_int| x);
    let mut mutator = world.attach().unwrap();
    let pause = line!() + 2;
    thread::scope(|scope| {
        mutator.pause(|stopped| {
            scope.spawn(|| {
                let (function, data) = (finaliser.data_last(), finaliser.data());
                // SAFETY: the data pointer is the closure's own, and the closure lives.
                assert_eq!(unsafe { foreign_call_back_last(function, 7, data) }, 7);
            });
            // A collector would wait for the thread here.
            stopped.vm().wait_until_told(2);
        });
    });
    let texts = world.vm().texts();
    assert_reads(
        &texts[0],
        &[
            "to attach for its first upcall\n  who waits: thread ",
            "wanted to stop the world, ",
            &at(pause),
            "everybody has stopped for it",
            "the pause waits for this thread, and neither ends: a finaliser",
            "run finalisers after the pause",
        ],
    );
}

#[test]
fn a_detach_that_waits_long_for_a_pause_is_reported() {
    let line = core::sync::atomic::AtomicU32::new(0);
    let told = told_by(|world, steps| {
        let upcall = UpcallClosure::new(world, |_: &mut Mutator<Told>, x: c_int| x);
        let (function, data) = (upcall.data_last(), upcall.data());
        // SAFETY: the data pointer is the closure's own, and the closure lives.
        unsafe { foreign_call_back_last(function, 1, data) };
        steps.reach(1);
        steps.wait(2);
        line.store(line!() + 1, Ordering::Relaxed);
        world.detach_foreign_thread().unwrap();
    });
    assert_tells(told, "detach", &at(line.load(Ordering::Relaxed)));
}

#[test]
fn whatever_stops_or_looks_at_others_and_waits_long_for_a_pause_is_reported() {
    type Asking = (&'static str, fn(&World<Told>));
    let asking: [Asking; 6] = [
        ("stop the world", |world| world.pause(|_| ())),
        ("shake hands with a mutator", |world| assert!(world.handshake(7, |_| ()).is_none())),
        ("list the mutators", |world| drop(world.handshake_each(|_| ()))),
        ("sample a mutator", |world| drop(world.sample(7))),
        ("interrupt a foreign call", |world| assert_eq!(world.interrupt(7), Ok(false))),
        ("shut the world down", |world| {
            // Not alone in the world: there is somebody to wait for.
            drop(world.shutdown_within(Duration::ZERO, Stragglers::Fail));
        }),
    ];
    let first = line!() - 10;
    for (wants, ask) in asking {
        let told = told_by(|world, steps| {
            let ended = Steps::new();
            thread::scope(|scope| {
                let other = scope.spawn(|| {
                    let mut mutator = world.attach().unwrap();
                    mutator.foreign_call().run(|| {
                        steps.reach(1);
                        ended.wait(1);
                    });
                });
                steps.wait(2);
                ask(world);
                ended.reach(1);
                // Told that the world has ended, in the case of the shutdown.
                drop(other.join());
            });
        });
        let asked = told.0.lines().nth(2).unwrap_or_default().to_owned();
        let line: u32 = asked.split(':').nth(1).and_then(|line| line.parse().ok()).unwrap_or(0);
        assert!(asked.contains(file!()) && (first..first + 10).contains(&line), "{}", told.0);
        assert_tells(told, wants, file!());
    }
}

#[test]
fn a_foreign_thread_that_waits_long_for_the_world_to_open_is_reported() {
    let world = builder().closed_to_foreign_threads(Early::Wait).build(Told::default());
    let upcall = UpcallClosure::new(&world, |_: &mut Mutator<Told>, x: c_int| x);
    thread::scope(|scope| {
        scope.spawn(|| {
            let (function, data) = (upcall.data_last(), upcall.data());
            // SAFETY: the data pointer is the closure's own, and the closure lives.
            unsafe { foreign_call_back_last(function, 1, data) };
        });
        world.vm().wait_until_told(1);
        world.open();
    });
    assert_reads(
        &world.vm().texts()[0],
        &[
            "a thread has waited ",
            "to make its first upcall in a world that is not open yet",
            "who waits: thread ",
            "what it waits for: `World::open`",
            "what to do: call `World::open`",
        ],
    );
}

/// A leaf call waits for the answer of a callback on another thread, and the callback collects.
#[test]
fn a_leaf_call_that_waits_for_an_upcall_that_pauses_is_reported_with_both_sides() {
    let world = builder().build(Told::default());
    let pause = line!() + 3;
    let answer = UpcallClosure::new(&world, |mutator: &mut Mutator<Told>, x: c_int| {
        let _noted = mutator.note_lock("the library's mutex");
        mutator.pause(|_| ());
        x
    });
    let mut mutator = world.attach().unwrap();
    let told = AtomicBool::new(false);
    let leaf = line!() + 13;
    thread::scope(|scope| {
        scope.spawn(|| {
            let (function, data) = (answer.data_last(), answer.data());
            // SAFETY: the data pointer is the closure's own, and the closure lives.
            unsafe { foreign_call_back_last(function, 1, data) };
        });
        // What C would do: it waits for the callback's thread. Here it gives up when that has been reported.
        let library = || {
            world.vm().wait_until_told(1);
            told.store(true, Ordering::Relaxed);
        };
        // SAFETY: it does not call back on this thread, nor allocate on the heap; that it blocks is the point.
        unsafe { mutator.leaf_call(|_| library()) };
        mutator.poll();
    });
    assert!(told.load(Ordering::Relaxed));
    assert_reads(
        &world.vm().texts()[0],
        &[
            "to stop the world\n  who waits: mutator 2, thread ",
            &at(pause),
            "in an upcall on a thread that foreign code made",
            "who does not stop: mutator 1, thread ",
            in_leaf_call(),
            &at(leaf),
            "it has made no crossing yet",
            "for this pause, and neither ends",
            "`ForeignCall::run`",
            "who may be waited for: the thread that waits",
            "it holds the lock `the library's mutex` since ",
            &at(pause - 1),
        ],
    );
    // An emulator's threads are the machine's, whose system calls have other numbers.
    #[cfg(target_os = "linux")]
    assert!(
        crate::emulator::EMULATED
            || world.vm().texts()[0].contains("its thread sleeps in the system call futex")
    );
    assert!(!world.vm().texts()[0].contains("the others:"), "{}", world.vm().texts()[0]);
}

#[test]
fn a_loop_without_a_poll_is_reported_with_what_the_others_do_in_groups() {
    let world = builder().build(Told::default());
    let (steps, foreign) = (Steps::new(), core::sync::atomic::AtomicU32::new(0));
    let call = line!() + 6;
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut mutator = world.attach().unwrap();
                let mut call = mutator.foreign_call();
                call.run(|| {
                    foreign.fetch_add(1, Ordering::Relaxed);
                    steps.wait(1);
                });
            });
        }
        scope.spawn(|| {
            let mutator = world.attach().unwrap();
            foreign.fetch_add(1, Ordering::Relaxed);
            // A loop that does not poll until it is told to.
            mutator.vm().wait_until_told(1);
        });
        while foreign.load(Ordering::Relaxed) < 4 {
            thread::yield_now();
        }
        world.pause(|_| ());
        steps.reach(1);
    });
    assert_reads(
        &world.vm().texts()[0],
        &[
            "to stop the world",
            "who does not stop: mutator ",
            "it is managed\n    it has made no crossing yet",
            "what it may be: a long loop without a poll; C that was called without a foreign call; a join",
            "(also that of `thread::scope`), a mutex, a channel",
            "what to do: poll in the loop; wait inside `ForeignCall::run`",
            "the others:\n    3 x foreign call at ",
            &at(call),
        ],
    );
}

#[test]
fn a_handshake_that_waits_long_says_how_many_it_did_not_ask() {
    let world = builder().build(Told::default());
    let (steps, id) = (Steps::new(), core::sync::atomic::AtomicU64::new(0));
    let mut own = world.attach().unwrap();
    let asked = thread::scope(|scope| {
        scope.spawn(|| {
            let mutator = world.attach().unwrap();
            id.store(mutator.id(), Ordering::Relaxed);
            steps.reach(1);
            mutator.vm().wait_until_told(1);
        });
        steps.wait(1);
        let line = line!() + 1;
        own.handshake(id.load(Ordering::Relaxed), |_| ());
        line
    });
    assert_reads(
        &world.vm().texts()[0],
        &[
            "to shake hands with a mutator\n  who waits: mutator 1, thread ",
            &at(asked),
            "who does not stop: mutator 2, thread ",
            "not asked to stop: 1 more",
        ],
    );
}

/// The other end of the same wait: who came back from C is told whom the pause waits for.
#[test]
fn who_waits_for_a_pause_that_cannot_begin_is_told_who_does_not_stop_for_it() {
    let world = builder().build(Told::default());
    let steps = Steps::new();
    let pause = core::sync::atomic::AtomicU32::new(0);
    let leaf = line!() + 6;
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut mutator = world.attach().unwrap();
            steps.reach(1);
            // SAFETY: it does nothing but block, which is the point.
            unsafe { mutator.leaf_call(|_| mutator_is_told(&world)) };
            mutator.poll();
        });
        steps.wait(1);
        scope.spawn(|| {
            let mut mutator = world.attach().unwrap();
            steps.reach(2);
            while steps.now() < 3 {
                mutator.poll();
            }
        });
        steps.wait(2);
        pause.store(line!() + 1, Ordering::Relaxed);
        world.pause(|_| ());
        steps.reach(3);
    });
    let texts = world.vm().texts();
    let text = texts.iter().find(|text| is_told_of_both(text));
    assert_reads(
        text.unwrap_or_else(|| panic!("{texts:?}")),
        &[
            "what it waits for: thread ",
            "wanted to stop the world",
            &at(pause.load(Ordering::Relaxed)),
            "who does not stop for that: mutator 1, thread ",
            in_leaf_call(),
            &at(leaf),
            "`ForeignCall::run`",
        ],
    );
}

/// What is said of a leaf call: where nothing is checked, it may be over.
fn in_leaf_call() -> &'static str {
    if crate::plain::checked() {
        "it is managed, in the leaf call at "
    } else {
        "it is managed\n    its last leaf call, which it may be in still, was at "
    }
}

/// Says whether a report of a wait for a pause names whom the pause waits for. On a busy machine the first
/// report can come before the thread that pauses has found out.
fn is_told_of_both(text: &str) -> bool {
    text.contains("to go on after a safepoint") && text.contains("who does not stop for that")
}

/// Blocks until both sides of a wait have been reported.
fn mutator_is_told(world: &World<Told>) {
    let began = Instant::now();
    while began.elapsed() < LONG && !world.vm().texts().iter().any(|text| is_told_of_both(text)) {
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_wait_that_goes_on_is_reported_each_time_it_has_lasted_twice_as_long() {
    let world = builder().build(Told::default());
    let steps = Steps::new();
    let lasted = thread::scope(|scope| {
        scope.spawn(|| {
            let mut mutator = world.attach().unwrap();
            mutator.foreign_call().run(|| {
                steps.reach(1);
                steps.wait(2);
            });
        });
        steps.wait(1);
        world.pause(|stopped| {
            steps.reach(2);
            let began = Instant::now();
            stopped.vm().wait_until_told(4);
            began.elapsed()
        })
    });
    assert!(lasted >= 8 * AFTER, "four reports in {lasted:?}");
    assert!(world.vm().texts().len() <= 6, "{:?}", world.vm().texts());
}

/// The report is code of the VM: it may ask the world something, and it must not get at what the wait stands on.
#[test]
fn a_report_of_a_wait_runs_without_a_lock_and_cannot_detach_its_thread() {
    let world = builder().build(Told::default());
    let upcall = UpcallClosure::new(&world, |_: &mut Mutator<Told>, x: c_int| x);
    let (outcome, steps) = (std::sync::Arc::new(Mutex::new(None)), Steps::new());
    let noted = std::sync::Arc::clone(&outcome);
    let inner = world.clone();
    *world.vm().also.lock().unwrap() = Some(Box::new(move || {
        *noted.lock().unwrap() = Some((inner.attached(), inner.detach_foreign_thread()));
    }));
    thread::scope(|scope| {
        scope.spawn(|| {
            let (function, data) = (upcall.data_last(), upcall.data());
            // SAFETY: the data pointer is the closure's own, and the closure lives.
            let call = |x| unsafe { foreign_call_back_last(function, x, data) };
            assert_eq!(call(1), 1);
            steps.reach(1);
            steps.wait(2);
            assert_eq!(call(2), 2, "it is attached still, and served");
        });
        steps.wait(1);
        world.pause(|stopped| {
            steps.reach(2);
            stopped.vm().wait_until_told(1);
        });
    });
    let outcome = outcome.lock().unwrap().take();
    let Some((1, Err(DetachError::Busy { reason }))) = outcome else { panic!("{outcome:?}") };
    assert!(reason.contains("a visitor, a report or a hook"), "{reason}");
}

/// Silence is what a VM author would otherwise get. The limit of this build is waited for.
#[test]
fn waits_are_reported_unless_the_world_says_otherwise() {
    let limit = Duration::from_secs(if cfg!(debug_assertions) { 5 } else { 10 });
    let (by_default, off) =
        (World::new(Told::default()), World::<Told>::builder().report_after(None).build(Told::default()));
    let steps = &Steps::new();
    thread::scope(|scope| {
        for world in [&by_default, &off] {
            scope.spawn(move || {
                let mut mutator = world.attach().unwrap();
                mutator.foreign_call().run(|| steps.wait(2));
            });
        }
        let began = Instant::now();
        by_default.pause(|_| {
            off.pause(|_| {
                steps.reach(2);
                by_default.vm().wait_until_told(1);
                assert!(began.elapsed() >= limit, "{:?}", began.elapsed());
                thread::sleep(Duration::from_millis(300));
            });
        });
    });
    assert_eq!(by_default.vm().texts().len(), 1);
    assert_eq!(off.vm().texts(), [""; 0]);
}
