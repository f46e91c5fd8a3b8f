//! I10: a profiler's signal, or another thread, reads activations at any instruction, and finds them complete or one step old.

use crate::emulator::EMULATED;
use crate::plain::{Plain, Steps};
use core::ffi::c_int;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use core::time::Duration;
use reentry::{
    Anchor, Busy, FenceStrategy, FrameKind, Mutator, Sample, SampledActivation, StackEnd, World,
    sample_thread, upcall_fn,
};
use reentry_foreign::{foreign_call_back, foreign_meet};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

/// Keys of anchors: a crossing's pc is a number, its sp lies in the managed stack that the mutator has at the moment, and its fp belongs to both.
const SCALE: usize = 1 << 20;

/// A managed stack that is nothing but addresses: nobody looks into it.
const OLD: core::ops::Range<usize> = SCALE..2 * SCALE;
const NEW: core::ops::Range<usize> = 3 * SCALE..4 * SCALE;

/// The anchor of crossing `number` at `depth`, while the stack begins at `stack`. Its three words belong together, wherever the stack is.
fn anchor(stack: usize, depth: usize, number: usize) -> Anchor {
    let offset = (number % 1000) * 64 + depth * 8;
    Anchor::new(number * 16 + depth, stack + offset, stack + offset + 8)
}

/// Says what is wrong with an anchor, if anything: the three words are of one crossing, at this depth, on one stack.
fn is_whole(anchor: Anchor, depth: usize) -> bool {
    let (number, at) = (anchor.pc / 16, anchor.pc % 16);
    let offset = (number % 1000) * 64 + depth * 8;
    at == depth
        && anchor.fp == anchor.sp + 8
        && [OLD.start, NEW.start].contains(&anchor.sp.wrapping_sub(offset))
}

/// What the handler has found. Its own memory, since it may allocate nothing.
#[derive(Default)]
struct Found {
    samples: AtomicUsize,
    /// Samples with at least this many activations, by depth.
    deep: [AtomicUsize; 4],
    busy: AtomicUsize,
    torn: AtomicUsize,
}

static FOUND: AtomicPtr<Found> = AtomicPtr::new(core::ptr::null_mut());

/// Looks at the interrupted thread as a profiler does.
fn look(found: &Found) {
    let (mut expected, mut visited, mut stack, mut torn) = (None, 0, None, false);
    let sampled = sample_thread(|activation: SampledActivation| {
        // Newest first, without a gap; only the newest may be running.
        torn |= expected.is_some_and(|expected| activation.depth != expected);
        torn |= activation.kind.is_none() && visited > 0;
        torn |= activation.kind.is_some() != activation.anchor.is_some();
        if let Some(anchor) = activation.anchor {
            torn |= !is_whole(anchor, activation.depth);
            torn |= activation.kind == Some(FrameKind::ForeignCall) && activation.call_site.is_none();
            // All on one stack: a relocation is seen whole or not at all.
            let on = OLD.contains(&anchor.sp);
            torn |= *stack.get_or_insert(on) != on;
        }
        expected = activation.depth.checked_sub(1);
        visited += 1;
    });
    match sampled {
        Ok(()) => {
            // The chain goes down to the base.
            torn |= visited > 0 && expected.is_some();
            found.deep[visited.min(3)].fetch_add(1, Ordering::Relaxed);
        }
        Err(Busy) => {
            found.busy.fetch_add(1, Ordering::Relaxed);
        }
    }
    found.torn.fetch_add(usize::from(torn), Ordering::Relaxed);
    found.samples.fetch_add(1, Ordering::Relaxed);
}

extern "C" fn on_tick(_: c_int) {
    // SAFETY: null, or what the test keeps as long as the timer runs.
    if let Some(found) = unsafe { FOUND.load(Ordering::Acquire).as_ref() } {
        look(found);
    }
}

/// A timer that sends this thread SIGPROF a thousand times for each second that it runs.
struct Timer {
    timer: libc::timer_t,
    before: libc::sighandler_t,
}

impl Timer {
    fn start() -> Self {
        let handler: extern "C" fn(c_int) = on_tick;
        // SAFETY: the handler is async-signal-safe; nothing else in this binary uses SIGPROF.
        let before = unsafe { libc::signal(libc::SIGPROF, handler as libc::sighandler_t) };
        // SAFETY: all zeros is a value of it.
        let mut event: libc::sigevent = unsafe { core::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGPROF;
        // SAFETY: names this thread.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer = core::ptr::null_mut();
        // SAFETY: both are valid; the timer is deleted before they are gone.
        let made =
            unsafe { libc::timer_create(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut event, &raw mut timer) };
        assert_eq!(made, 0);
        let tick = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        let period = libc::itimerspec { it_interval: tick, it_value: tick };
        // SAFETY: a timer made just now.
        let set = unsafe { libc::timer_settime(timer, 0, &raw const period, core::ptr::null_mut()) };
        assert_eq!(set, 0);
        Self { timer, before }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: made by `start`; the handler is put back when nothing sends the signal any more.
        unsafe {
            libc::timer_delete(self.timer);
            libc::signal(libc::SIGPROF, self.before);
        }
    }
}

/// How many crossings were made, and where the stack is.
struct Progress {
    crossings: usize,
    stack: core::ops::Range<usize>,
}

thread_local! {
    static PROGRESS: core::cell::RefCell<Progress> = const { core::cell::RefCell::new(Progress { crossings: 0, stack: OLD }) };
}

/// A foreign call with an upcall, which makes one with an upcall, three deep; the innermost moves the stack now and then.
fn cross<const TAG: u32>(mutator: &mut Mutator<Plain<TAG>>) -> c_int {
    fn body<const TAG: u32>(mutator: &mut Mutator<Plain<TAG>>, x: c_int) -> c_int {
        if mutator.depth() < 3 {
            return cross(mutator) + x;
        }
        PROGRESS.with_borrow_mut(|progress| {
            if progress.crossings.is_multiple_of(16) {
                let next = if progress.stack == OLD { NEW } else { OLD };
                let old = core::mem::replace(&mut progress.stack, next.clone());
                // SAFETY: nobody reads or writes the stack: it is addresses alone, and no slot is declared in it.
                let moved = unsafe { mutator.relocate_stack(old, next, StackEnd::Low) };
                assert!(moved.unwrap() >= 6, "three anchors of two words");
            }
        });
        x
    }
    let depth = mutator.depth();
    let anchor = PROGRESS.with_borrow_mut(|progress| {
        progress.crossings += 1;
        anchor(progress.stack.start, depth, progress.crossings)
    });
    // SAFETY: the callback takes an `int` and gives one.
    mutator.foreign_call().at(anchor).run(|| unsafe { foreign_call_back(upcall_fn(body::<TAG>), 1) })
}

/// Crosses `crossings` times under the timer, while another thread samples too. Prints what was found.
fn profile<const TAG: u32>(crossings: usize) {
    /// The handler and what it finds are the process's.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let world = Plain::<TAG>::world(FenceStrategy::probe());
    let found = Found::default();
    let (id, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let began = Instant::now();
    let watched = thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&world, &id, &done));
        let mut mutator = world.attach().unwrap();
        mutator.declare_stack(OLD).unwrap();
        PROGRESS.with_borrow_mut(|progress| *progress = Progress { crossings: 0, stack: OLD });
        id.store(mutator.id(), Ordering::Release);
        FOUND.store((&raw const found).cast_mut(), Ordering::Release);
        let timer = Timer::start();
        let stop = scopeguard::guard(timer, |timer| {
            drop(timer);
            FOUND.store(core::ptr::null_mut(), Ordering::Release);
            done.store(true, Ordering::Release);
        });
        // At least so many; and more if they are over before the timer has looked often enough (it ticks as rarely as the kernel looks at the thread's time).
        let enough = crossings / 20_000;
        while PROGRESS.with_borrow(|progress| progress.crossings) < crossings
            || (found.samples.load(Ordering::Relaxed) < enough && began.elapsed() < Duration::from_secs(60))
        {
            assert_eq!(cross(&mut mutator), 3);
        }
        drop(stop);
        drop(mutator);
        watcher.join().unwrap()
    });
    let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    let crossings_made = PROGRESS.with_borrow(|progress| progress.crossings);
    eprintln!(
        "{crossings_made} crossings in {:?}: {} ticks (depths {:?}), {} busy, {} torn; {watched:?} of another thread",
        began.elapsed(),
        count(&found.samples),
        found.deep.each_ref().map(count),
        count(&found.busy),
        count(&found.torn),
    );
    assert_eq!(count(&found.torn), 0);
    assert!(count(&found.samples) >= crossings / 20_000, "the timer has run");
    assert!(watched.still + watched.running > 0);
}

#[derive(Default, Debug)]
struct Watched {
    still: usize,
    running: usize,
}

/// Samples another thread's mutator all the time.
fn watch<const TAG: u32>(world: &World<Plain<TAG>>, id: &AtomicU64, done: &AtomicBool) -> Watched {
    let mut watched = Watched::default();
    while !done.load(Ordering::Acquire) {
        match world.sample(id.load(Ordering::Acquire)) {
            None => {}
            Some(Sample::Running(sites)) => {
                watched.running += 1;
                assert!(sites.len() <= 4 && sites.iter().all(|site| site.file() == file!()), "{sites:?}");
            }
            Some(Sample::Still(activations)) => {
                watched.still += 1;
                let depths: Vec<_> = activations.iter().map(|activation| activation.depth).collect();
                assert!(depths.iter().rev().copied().eq(0..depths.len()), "{activations:?}");
                for activation in &activations {
                    let anchor = activation.anchor.expect("a mutator that stands still runs nowhere");
                    let crossing = activation.kind == Some(FrameKind::ForeignCall);
                    assert!(!crossing || is_whole(anchor, activation.depth), "{activations:?}");
                }
            }
            Some(other) => panic!("{other:?}"),
        }
        thread::sleep(Duration::from_micros(200));
    }
    watched
}

/// Ten million crossings in an optimised build. In one that is not, a crossing under this watch takes 4 us: one million. In an emulator it takes 40, and more under ThreadSanitizer, which is there for
/// the other thread that samples.
#[test]
fn a_profiler_finds_every_activation_whole_whatever_crossing_it_hits() {
    profile::<70>(match (EMULATED || cfg!(tsan), cfg!(debug_assertions)) {
        (true, _) => 60_000,
        (false, true) => 1_000_000,
        (false, false) => 10_000_000,
    });
}

#[test]
fn another_thread_sees_a_mutator_in_c_with_its_activations_and_a_running_one_with_its_call_sites() {
    type Vm = Plain<72>;
    let world = Vm::world(FenceStrategy::probe());
    let (steps, id) = (Steps::new(), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut mutator = world.attach().unwrap();
            id.store(mutator.id(), Ordering::Relaxed);
            // SAFETY: C touches the word alone, which lives.
            mutator
                .foreign_call()
                .at(Anchor::new(1, 2, 3))
                .run(|| unsafe { foreign_meet(steps.word(), 1, 2) });
            steps.reach(3);
            steps.wait(4);
            mutator.poll();
        });
        let line = line!() - 5;
        steps.wait(1);
        let id = id.load(Ordering::Relaxed);
        let Some(Sample::Still(activations)) = world.sample(id) else { panic!("it is in C") };
        let [activation] = &activations[..] else { panic!("one call: {activations:?}") };
        assert_eq!((activation.mutator, activation.depth), (id, 0));
        assert_eq!(activation.kind, Some(FrameKind::ForeignCall));
        assert_eq!(activation.anchor, Some(Anchor::new(1, 2, 3)));
        assert_eq!(activation.call_site.map(|site| site.line()), Some(line));
        steps.reach(2);
        steps.wait(3);
        // It neither polls nor crosses: the sample does not wait for it.
        let Some(Sample::Running(sites)) = world.sample(id) else { panic!("it runs") };
        assert_eq!(sites.iter().map(|site| site.line()).collect::<Vec<_>>(), [line]);
        steps.reach(4);
        let mut mutator = world.attach().unwrap();
        let me = mutator.id();
        let Some(Sample::Still(own)) = mutator.sample(me) else { panic!("it counts as stopped") };
        assert_eq!(own[0].kind, Some(FrameKind::Safepoint));
        assert_eq!(mutator.sample(u64::MAX), None);
    });
}
