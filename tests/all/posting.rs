//! Posting: work for a mutator from threads, and signal handlers, that must not wait.

use crate::plain::{Plain, Steps, for_each_strategy, number, panic_quietly};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use core::time::Duration;
use reentry::{FenceStrategy, Mutator, PostError, Poster};
use reentry_foreign::foreign_meet;
use std::thread;
use std::time::Instant;

/// How many posts can wait: what [`PostError::Full`] says.
const PLACES: usize = 64;

#[test]
fn what_many_threads_post_is_done_once_each_at_the_mutators_polls() {
    type Vm = Plain<50>;
    const POSTERS: usize = 4;
    const EACH: usize = 2_000;
    static DONE: [AtomicUsize; POSTERS * EACH] = [const { AtomicUsize::new(0) }; POSTERS * EACH];
    fn work(mutator: &mut Mutator<Vm>, data: usize) {
        assert_eq!(mutator.depth(), 0, "managed, in the activation that polled");
        DONE[data].fetch_add(1, Ordering::Relaxed);
    }
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        let mut mutator = world.attach().unwrap();
        let poster = mutator.poster();
        let posted = AtomicUsize::new(0);
        thread::scope(|scope| {
            for which in 0..POSTERS {
                let (poster, posted) = (poster.clone(), &posted);
                scope.spawn(move || {
                    for n in 0..EACH {
                        while poster.post(work, which * EACH + n) == Err(PostError::Full) {
                            thread::yield_now();
                        }
                        posted.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            while posted.load(Ordering::Relaxed) < POSTERS * EACH {
                mutator.poll();
                mutator.foreign_call().run(thread::yield_now);
            }
        });
        mutator.poll();
        for (data, done) in DONE.iter().enumerate() {
            assert_eq!(done.swap(0, Ordering::Relaxed), 1, "{fence:?}: {data}");
        }
    });
}

#[test]
fn a_mutator_in_c_does_what_was_posted_at_its_first_poll_after() {
    type Vm = Plain<51>;
    static DONE: AtomicUsize = AtomicUsize::new(0);
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        DONE.store(0, Ordering::Relaxed);
        let mut mutator = world.attach().unwrap();
        let poster = mutator.poster();
        mutator.foreign_call().run(|| poster.post(|_, data| DONE.store(data, Ordering::Relaxed), 5)).unwrap();
        assert_eq!(DONE.load(Ordering::Relaxed), 0, "a return is no poll");
        mutator.foreign_call().run(|| ());
        mutator.poll();
        assert_eq!(DONE.load(Ordering::Relaxed), 5);
    });
}

#[test]
fn posts_that_find_no_place_or_no_mutator_say_so_and_lose_nothing() {
    type Vm = Plain<52>;
    static SUM: AtomicUsize = AtomicUsize::new(0);
    fn add(_: &mut Mutator<Vm>, data: usize) {
        SUM.fetch_add(data, Ordering::Relaxed);
    }
    let world = Vm::world(FenceStrategy::probe());
    let mut mutator = world.attach().unwrap();
    let poster = mutator.poster();
    for n in 0..PLACES {
        poster.post(add, n).unwrap();
    }
    let full = poster.post(add, 1_000_000).unwrap_err();
    assert_eq!(full, PostError::Full);
    assert!(full.to_string().contains(&format!("{PLACES} posts wait for the mutator's next poll")), "{full}");
    mutator.poll();
    assert_eq!(SUM.load(Ordering::Relaxed), PLACES * (PLACES - 1) / 2);
    poster.post(add, 1_000_000).unwrap();
    drop(mutator);
    assert_eq!(poster.post(add, 1), Err(PostError::Detached));
    // The next mutator has the same record, and nothing of the one before.
    let mut next = world.attach().unwrap();
    let before = SUM.load(Ordering::Relaxed);
    next.poll();
    assert_eq!(SUM.load(Ordering::Relaxed), before, "what was not done is dropped");
    let other = next.poster();
    other.post(add, 3).unwrap();
    assert_eq!(poster.post(add, 1), Err(PostError::Detached), "the old poster stays what it is");
    next.poll();
    assert_eq!(SUM.load(Ordering::Relaxed), before + 3);
}

#[test]
fn work_that_panics_leaves_the_rest_for_the_next_poll() {
    type Vm = Plain<53>;
    static DONE: AtomicUsize = AtomicUsize::new(0);
    fn work(_: &mut Mutator<Vm>, data: usize) {
        if data == 3 {
            panic_quietly(3);
        }
        DONE.fetch_add(1, Ordering::Relaxed);
    }
    let world = Vm::world(FenceStrategy::probe());
    let mut mutator = world.attach().unwrap();
    let poster = mutator.poster();
    for n in 0..10 {
        poster.post(work, n).unwrap();
    }
    assert_eq!(number(|| mutator.poll()), 3);
    let done = DONE.load(Ordering::Relaxed);
    assert!(done < 9, "the panic came first");
    mutator.poll();
    assert_eq!(DONE.load(Ordering::Relaxed), 9, "each but the one that panicked, once");
    mutator.poll();
    assert_eq!(DONE.load(Ordering::Relaxed), 9);
}

/// Work is managed code: it may poll (and so do more work), collect, call C, and post.
#[test]
fn work_may_poll_pause_call_c_and_post() {
    type Vm = Plain<54>;
    static DONE: AtomicUsize = AtomicUsize::new(0);
    static POSTER: std::sync::Mutex<Option<Poster<Vm>>> = std::sync::Mutex::new(None);
    fn work(mutator: &mut Mutator<Vm>, data: usize) {
        DONE.fetch_add(1, Ordering::Relaxed);
        mutator.poll();
        assert_eq!(mutator.pause(|stopped| stopped.mutators().count()), 1);
        let word = Steps::new();
        word.reach(9);
        // SAFETY: C touches the word alone, which lives.
        mutator.foreign_call().run(|| unsafe { foreign_meet(word.word(), 1, 0) });
        if data > 0 {
            POSTER.lock().unwrap().as_ref().unwrap().post(work, data - 1).unwrap();
        }
    }
    let world = Vm::world(FenceStrategy::probe());
    let mut mutator = world.attach().unwrap();
    let poster = mutator.poster();
    *POSTER.lock().unwrap() = Some(poster.clone());
    for n in 0..5 {
        poster.post(work, n).unwrap();
    }
    while DONE.load(Ordering::Relaxed) < 1 + 2 + 3 + 4 + 5 {
        mutator.poll();
    }
    mutator.poll();
    assert_eq!(DONE.load(Ordering::Relaxed), 15);
    *POSTER.lock().unwrap() = None;
}

/// A handler interrupts managed code anywhere, the crate's own included, and posts to that very mutator.
#[test]
fn a_signal_handler_posts_to_the_mutator_it_interrupts() {
    type Vm = Plain<55>;
    static POSTER: AtomicPtr<Poster<Vm>> = AtomicPtr::new(core::ptr::null_mut());
    static POSTED: AtomicUsize = AtomicUsize::new(0);
    static DONE: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn handler(_: core::ffi::c_int) {
        // SAFETY: set before the handler is, and not dropped while it is.
        let poster = unsafe { &*POSTER.load(Ordering::Acquire) };
        let work = |_: &mut Mutator<Vm>, _: usize| {
            DONE.fetch_add(1, Ordering::Relaxed);
        };
        if poster.post(work, 0).is_ok() {
            POSTED.fetch_add(1, Ordering::Relaxed);
        }
    }
    let world = Vm::world(FenceStrategy::probe());
    let mut mutator = world.attach().unwrap();
    let mut poster = mutator.poster();
    POSTER.store(&raw mut poster, Ordering::Release);
    let handler: extern "C" fn(core::ffi::c_int) = handler;
    // SAFETY: the handler is async-signal-safe; nothing else in this binary uses SIGUSR2.
    let before = unsafe { libc::signal(libc::SIGUSR2, handler as libc::sighandler_t) };
    // SAFETY: names this thread.
    let me = unsafe { libc::pthread_self() };
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // SAFETY: the thread waits for this one.
                unsafe { libc::pthread_kill(me, libc::SIGUSR2) };
                thread::yield_now();
            }
        });
        while POSTED.load(Ordering::Relaxed) < 5_000 {
            mutator.poll();
            mutator.foreign_call().run(|| ());
        }
        stop.store(true, Ordering::Relaxed);
    });
    // SAFETY: puts back what was there.
    unsafe { libc::signal(libc::SIGUSR2, before) };
    mutator.poll();
    assert_eq!(DONE.load(Ordering::Relaxed), POSTED.load(Ordering::Relaxed), "each that was posted was done");
}

/// D14: bounded, whatever the collector does. A post that waited for the pause would take all of it.
#[test]
fn a_post_does_not_wait_for_a_pause() {
    type Vm = Plain<56>;
    static DONE: AtomicUsize = AtomicUsize::new(0);
    const PAUSE: Duration = Duration::from_millis(50);
    for_each_strategy(|fence| {
        let world = Vm::world(fence);
        DONE.store(0, Ordering::Relaxed);
        let (poster, steps) = (std::sync::OnceLock::<Poster<Vm>>::new(), Steps::new());
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut mutator = world.attach().unwrap();
                assert!(poster.set(mutator.poster()).is_ok());
                steps.reach(1);
                while steps.now() < 2 {
                    mutator.poll();
                }
                mutator.poll();
            });
            steps.wait(1);
            let poster = poster.get().unwrap();
            let times = world.pause(|_| {
                let began = Instant::now();
                let mut times = Vec::new();
                while began.elapsed() < PAUSE {
                    let post = Instant::now();
                    let posted = poster.post(
                        |_, _| {
                            DONE.fetch_add(1, Ordering::Relaxed);
                        },
                        0,
                    );
                    times.push((post.elapsed(), posted.is_ok()));
                }
                assert_eq!(DONE.load(Ordering::Relaxed), 0, "{fence:?}: nothing is done in a pause");
                times
            });
            steps.reach(2);
            assert_eq!(times.iter().filter(|(_, posted)| *posted).count(), PLACES);
            // The scheduler may take the processor from any of them, so not the longest: all but one in a hundred.
            let mut taken: Vec<_> = times.iter().map(|(taken, _)| *taken).collect();
            taken.sort();
            let most = taken[taken.len() * 99 / 100];
            assert!(taken.len() > 2 * PLACES && most < PAUSE / 10, "{fence:?}: {most:?} of {}", taken.len());
        });
        assert_eq!(DONE.load(Ordering::Relaxed), PLACES);
    });
}
