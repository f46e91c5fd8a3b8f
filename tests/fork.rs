//! `fork` in the midst of everything: other mutators in C, managed, holding pins; threads that come and go, interrupt and post. In the child there is one mutator, and a world that works.
//!
//! A binary of its own: each child is a copy of the whole process.
#![cfg(unix)]
#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

use core::ffi::c_int;
use core::panic::AssertUnwindSafe;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use core::time::Duration;
use reentry::testkit::{Ref, TestVm};
use reentry::{
    AttachError, Capture, Crossing, Forked, GlobalLock, Mutator, Pinner, RootVisitor, Segment, StackScanner,
    Stragglers, UpcallClosure, Vm, World, upcall_fn, upcall_fn_or,
};
use reentry_foreign::{foreign_call_back, foreign_call_back_last, foreign_threads};
use std::panic::catch_unwind;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

/// One test at a time: one world adopts the foreign threads of a type of VM.
fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Allocates, roots, lets a collector have its way, and looks again.
fn work(mutator: &mut Mutator<TestVm>, x: c_int) -> c_int {
    let text = format!("of mutator {}, {x}", mutator.id());
    let object = mutator.vm().heap().alloc(&[], text.as_bytes());
    let mut call = mutator.foreign_call();
    let root = call.root(object);
    call.run(thread::yield_now);
    let object = call.get(root);
    drop(call);
    assert_eq!(mutator.vm().heap().bytes(object).unwrap(), text.as_bytes());
    mutator.poll();
    x
}

/// What the child does with its world. The heap is checked by every collection.
fn live_on(world: &World<TestVm>, mutator: &mut Mutator<TestVm>, mine: Ref, pinned: Ref) {
    assert_eq!(world.attached(), 1, "the others are not there");
    use_closures(world, 0);
    let me = mutator.id();
    let mut call = mutator.foreign_call();
    let root = call.root(mine);
    for round in 0..3 {
        let collected = call.run(|| world.pause(|stopped| stopped.vm().collect(stopped)));
        let summary = collected.unwrap();
        assert_eq!(
            (summary.live, summary.pinned),
            (2, 1),
            "round {round}: what this mutator rooted, and what a pinner holds"
        );
    }
    assert_eq!(world.vm().heap().bytes(call.get(root)).unwrap(), b"the one that forks");
    assert_eq!(world.vm().heap().bytes(pinned).unwrap(), b"pinned for long");
    // An upcall, on this thread and on one that the world has never seen.
    // SAFETY: the callback takes an `int` and gives one.
    assert_eq!(call.run(|| unsafe { foreign_call_back(upcall_fn(work), 5) }), 5);
    // SAFETY: the world adopts foreign threads.
    assert_eq!(call.run(|| unsafe { foreign_threads(2, 10, upcall_fn(work)) }), 90);
    // A thread that attaches, waits for a pause, and leaves.
    let others = call.run(|| {
        let attaching = || {
            let mut other = world.attach().unwrap();
            work(&mut other, 1);
            other.pause(|stopped| stopped.mutators().map(|mutator| mutator.id()).collect::<Vec<_>>())
        };
        thread::scope(|scope| scope.spawn(attaching).join().unwrap())
    });
    assert!(others.len() == 2 && others.contains(&me), "{others:?}");
    drop(call);
    let poster = mutator.poster();
    let posted = |mutator: &mut Mutator<TestVm>, _: usize| {
        assert_eq!(mutator.pause(|stopped| stopped.mutators().count()), 1)
    };
    poster.post(posted, 0).unwrap();
    mutator.poll();
    assert_eq!(mutator.handshake_each(|stopped| stopped.id()), [me]);
    assert_eq!(world.shutdown_within(Duration::from_secs(5), Stragglers::Fail).len(), 0);
}

/// Uses what all closures and signatures of the process share.
#[cfg(feature = "libffi")]
fn use_closures(world: &World<TestVm>, number: usize) {
    use reentry::dynamic::{Closure, Signature};
    let signature = Signature::parse(&format!("int (int, struct s{} {{ int i; }})", number % 100)).unwrap();
    let closure = Closure::new(world, &signature, |_, _| Ok(())).unwrap();
    world.release_closure(closure.into_raw()).unwrap();
}

#[cfg(not(feature = "libffi"))]
fn use_closures(_: &World<TestVm>, _: usize) {
    thread::yield_now();
}

/// Waits for a child, and says how it ended.
fn status_of(child: i32) -> c_int {
    let mut status = 0;
    // SAFETY: a child of this process; `status` is valid for writes.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    status
}

/// Forks where `mutator` is, and lets the child live on and exit: 0 if all went well, killed if it hangs.
fn fork_and_check(world: &World<TestVm>, mutator: &mut Mutator<TestVm>, round: usize, pinned: Ref) -> i32 {
    let mine = world.vm().heap().alloc(&[], b"the one that forks");
    let forked = Mutex::new(None);
    let mut pinner = world.pinner();
    mutator.pin_with(&mut pinner, mine).unwrap();
    if round.is_multiple_of(2) {
        // SAFETY: no mutator of this test holds a lock of the VM's while it is stopped or foreign; the child calls nothing else.
        *forked.lock().unwrap() = Some(unsafe { mutator.fork() }.unwrap());
        drop(pinner);
        return finish(world, mutator, forked.into_inner().unwrap(), mine, pinned);
    }
    // In an upcall of a call that others keep interrupting.
    let upcall = UpcallClosure::new(world, |mutator: &mut Mutator<TestVm>, x: c_int| {
        // SAFETY: as above.
        *forked.lock().unwrap() = Some(unsafe { mutator.fork() }.unwrap());
        x
    });
    let ask = || thread::sleep(Duration::from_micros(50));
    let (function, data) = (upcall.data_last(), upcall.data());
    let mut call = mutator.foreign_call().interruptible(&ask);
    // SAFETY: the data pointer is the closure's own, and the closure lives.
    call.run(|| unsafe { foreign_call_back_last(function, 0, data) });
    drop(call);
    drop((upcall, pinner));
    finish(world, mutator, forked.into_inner().unwrap(), mine, pinned)
}

/// In the child does not return.
fn finish(
    world: &World<TestVm>,
    mutator: &mut Mutator<TestVm>,
    forked: Option<Forked>,
    mine: Ref,
    pinned: Ref,
) -> i32 {
    match forked.expect("it has forked") {
        Forked::Parent(child) => child,
        Forked::Child => {
            // SAFETY: a child that hangs is killed by this, and fails the test.
            unsafe { libc::alarm(60) };
            let lived = catch_unwind(AssertUnwindSafe(|| live_on(world, mutator, mine, pinned)));
            // SAFETY: nothing of the parent's is to be cleaned up here.
            unsafe { libc::_exit(c_int::from(lived.is_err())) }
        }
    }
}

#[test]
fn a_child_forked_in_the_midst_of_everything_has_a_world_that_works_and_so_has_the_parent() {
    let _alone = alone();
    // ThreadSanitizer (`.ci/tsan`) looks at the parent alone, whose threads run all the time.
    const FORKS: usize = if cfg!(tsan) { 40 } else { 200 };
    let world = World::new(TestVm::new());
    world.adopt_foreign_threads();
    let (stop, id, rounds) = (AtomicBool::new(false), AtomicU64::new(0), AtomicUsize::new(0));
    let stopped = || stop.load(Ordering::Relaxed);
    thread::scope(|scope| {
        let _stop = scopeguard::guard((), |()| stop.store(true, Ordering::Relaxed));
        // Managed, and allocating.
        scope.spawn(|| {
            let mut mutator = world.attach().unwrap();
            while !stopped() {
                work(&mut mutator, 1);
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        // In C, with a pin and a root.
        scope.spawn(|| {
            let mut mutator = world.attach().unwrap();
            let object = mutator.vm().heap().alloc(&[], b"pinned in the parent");
            let mut call = mutator.foreign_call();
            call.pin(object).unwrap();
            call.root(object);
            call.run(|| {
                while !stopped() {
                    thread::sleep(Duration::from_millis(1));
                }
            });
        });
        // Coming and going.
        scope.spawn(|| {
            while !stopped() {
                // SAFETY: the world adopts foreign threads.
                assert_eq!(unsafe { foreign_threads(1, 20, upcall_fn(work)) }, 190);
            }
        });
        // Making closures of new signatures, attached to nothing.
        scope.spawn(|| (0..).take_while(|_| !stopped()).for_each(|number| use_closures(&world, number)));
        // Interrupting, and looking.
        scope.spawn(|| {
            while !stopped() {
                let id = id.load(Ordering::Relaxed);
                let _there_was_one = world.interrupt(id).unwrap();
                let _sampled = world.sample(id);
            }
        });
        // Collecting.
        scope.spawn(|| {
            while !stopped() {
                world.pause(|stopped| stopped.vm().collect(stopped)).unwrap();
                thread::sleep(Duration::from_micros(200));
            }
        });
        let mut mutator = world.attach().unwrap();
        id.store(mutator.id(), Ordering::Relaxed);
        let pinned = world.vm().heap().alloc(&[], b"pinned for long");
        let mut pinner: Pinner<Ref> = world.pinner();
        mutator.pin_with(&mut pinner, pinned).unwrap();
        let began = Instant::now();
        for round in 0..FORKS {
            let child = fork_and_check(&world, &mut mutator, round, pinned);
            let status = mutator.foreign_call().run(|| status_of(child));
            assert_eq!(status, 0, "fork {round}: the child's status (a signal, or its exit code times 256)");
        }
        eprintln!("{FORKS} forks in {:?}", began.elapsed());
        drop(mutator);
    });
    assert!(rounds.load(Ordering::Relaxed) > 0);
    assert_eq!(world.attached(), 0);
    assert_eq!(world.pause(|stopped| stopped.vm().collect(stopped)).unwrap().live, 0, "the pinner is gone");
}

/// A VM with a global lock, and nothing else.
#[derive(Default)]
struct Locked {
    lock: GlobalLock,
}

impl Vm for Locked {
    type Ref = usize;
    type Local = ();
    type Exception = core::convert::Infallible;
    const CAPTURE: Capture = Capture::Nothing;

    fn attach(&self) {}

    fn entering_managed(&self, _: Crossing) {
        self.lock.enter();
    }

    fn leaving_managed(&self, _: Crossing) {
        self.lock.leave();
    }
}

// SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
unsafe impl StackScanner for Locked {
    fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
}

/// In the child, the threads that were waiting for the lock are not there, whatever they were doing to it.
#[test]
fn the_child_of_a_vm_with_a_global_lock_holds_the_lock_and_others_get_it() {
    const FORKS: usize = if cfg!(tsan) { 20 } else { 100 };
    let world = World::new(Locked::default());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = scopeguard::guard((), |()| stop.store(true, Ordering::Relaxed));
        for _ in 0..3 {
            scope.spawn(|| {
                let mut mutator = world.attach().unwrap();
                while !stop.load(Ordering::Relaxed) {
                    assert!(mutator.vm().lock.is_held_here());
                    mutator.foreign_call().run(|| ());
                }
            });
        }
        let mut mutator = world.attach().unwrap();
        for round in 0..FORKS {
            // SAFETY: the lock is the only one of the VM, and knows of forks; the child calls nothing else.
            let child = match unsafe { mutator.fork() }.unwrap() {
                Forked::Parent(child) => child,
                Forked::Child => {
                    // SAFETY: a child that hangs is killed by this, and fails the test.
                    unsafe { libc::alarm(60) };
                    let lived = catch_unwind(AssertUnwindSafe(|| {
                        assert!(mutator.vm().lock.is_held_here(), "managed, as before");
                        let attaching = || {
                            let mut other = world.attach().unwrap();
                            assert!(other.vm().lock.is_held_here());
                            other.foreign_call().run(|| ());
                        };
                        mutator.foreign_call().run(|| {
                            assert!(!world.vm().lock.is_held_here());
                            thread::scope(|scope| {
                                let others = [0, 1].map(|_| scope.spawn(attaching));
                                for other in others {
                                    other.join().unwrap();
                                }
                            });
                        });
                        assert!(mutator.vm().lock.is_held_here());
                    }));
                    // SAFETY: nothing of the parent's is to be cleaned up here.
                    unsafe { libc::_exit(c_int::from(lived.is_err())) }
                }
            };
            let status = mutator.foreign_call().run(|| status_of(child));
            assert_eq!(status, 0, "fork {round}: the child's status (a signal, or its exit code times 256)");
        }
        drop(mutator);
    });
    assert!(!world.vm().lock.is_held_here());
}

/// What a copy of this process, forked as a library would, writes to standard error, and how it ends. `in_child` gives its exit code. A child that hangs is killed by its alarm, and fails the test.
fn copied(in_child: impl FnOnce() -> c_int) -> (String, c_int) {
    let mut ends = [0; 2];
    // SAFETY: `ends` is valid for writes. The child runs `in_child`, and ends.
    let child = unsafe {
        assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
        libc::fork()
    };
    if child == 0 {
        // SAFETY: descriptors of this process.
        unsafe {
            libc::dup2(ends[1], libc::STDERR_FILENO);
            libc::close(ends[0]);
            libc::close(ends[1]);
            libc::alarm(30);
        }
        let code = in_child();
        // SAFETY: nothing of the parent's is to be cleaned up here.
        unsafe { libc::_exit(code) };
    }
    let mut said = String::new();
    // SAFETY: both ends are this process's, and each is closed once.
    unsafe { libc::close(ends[1]) };
    // SAFETY: as above.
    let mut reader = unsafe { <std::fs::File as std::os::fd::FromRawFd>::from_raw_fd(ends[0]) };
    std::io::Read::read_to_string(&mut reader, &mut said).unwrap();
    (said, status_of(child))
}

#[track_caller]
fn exited((said, status): (String, c_int), code: c_int, says: &str) {
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == code, "{status:#x}: {said}");
    assert!(said.contains(says), "{said}");
}

#[track_caller]
fn aborted((said, status): (String, c_int), says: &[&str]) {
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGABRT, "{status:#x}: {said}");
    assert!(says.iter().all(|says| said.contains(says)), "{said}");
}

const COPY: &str = "foreign code forked this process while it had other threads";

/// The copy has one thread, and the world as it was: a pause in force that no thread will end, locks that no thread will give back.
#[test]
fn a_copy_that_foreign_code_forks_says_so_at_its_first_upcall_poll_pause_or_attachment_and_never_waits() {
    let _alone = alone();
    let world = World::new(TestVm::new());
    world.adopt_foreign_threads();
    let callback: reentry_foreign::Callback = upcall_fn_or(|_: &mut Mutator<TestVm>, x: c_int| x, || -1);
    // SAFETY: the callback takes an `int` and gives one.
    let call_back = || unsafe { foreign_call_back(callback, 5) };
    let mut attachment = Some(world.attach().unwrap());
    // Another thread holds the pause and the registry's lock at once, now and then.
    static STOP: AtomicBool = AtomicBool::new(false);
    let pausing = world.clone();
    let pauser = thread::spawn(move || {
        while !STOP.load(Ordering::Relaxed) {
            pausing.pause(|_| thread::sleep(Duration::from_millis(2)));
        }
    });
    {
        for _ in 0..20 {
            let mutator = attachment.as_mut().unwrap();
            let upcall = mutator.foreign_call().run(|| copied(|| call_back() + 1 + call_back() + 1 + 10));
            exited(upcall, 10, COPY);
        }
        // It comes back to managed code, unless a pause was in force, and may end there.
        let me = std::process::id();
        for round in 0..20 {
            let mutator = attachment.as_mut().unwrap();
            let came_back = mutator.foreign_call().run(|| copied_to_the_caller(me));
            let Some(parent) = came_back else {
                match round % 4 {
                    0 => mutator.poll(),
                    1 => mutator.pause(|_| ()),
                    2 => {
                        // Its attachment is left as it is.
                        drop(attachment.take());
                        // SAFETY: nothing of the parent's is to be cleaned up here.
                        unsafe { libc::_exit(20) }
                    }
                    // SAFETY: as above.
                    _ => unsafe { libc::_exit(20) },
                }
                // SAFETY: as above.
                unsafe { libc::_exit(21) }
            };
            let ended = parent.end();
            let ended_well = libc::WIFEXITED(ended.1) && libc::WEXITSTATUS(ended.1) == 20;
            if round % 4 < 2 || !ended_well {
                let at = if round % 4 == 0 { ["reentry: fatal", COPY] } else { ["reentry: fatal", "exec"] };
                aborted(ended, &at);
            }
        }
    }
    drop(attachment);
    STOP.store(true, Ordering::Relaxed);
    pauser.join().unwrap();
    // A thread that no mutator is attached to.
    aborted(copied(|| world.pause(|_| 0)), &["a world was asked to stop", COPY, "Mutator::fork"]);
    exited(copied(|| c_int::from(world.attach().err() == Some(AttachError::Forked))), 1, "");
    exited(copied(|| call_back() + 11), 10, COPY);
    let (said, status) = copied(|| {
        // SAFETY: the usual effect of the signal.
        unsafe { libc::raise(libc::SIGTERM) };
        1
    });
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGTERM, "{status:#x}: {said}");
}

/// A child that foreign code forked, as its parent sees it.
struct Copied {
    child: i32,
    reader: std::fs::File,
}

impl Copied {
    fn end(mut self) -> (String, c_int) {
        let mut said = String::new();
        std::io::Read::read_to_string(&mut self.reader, &mut said).unwrap();
        (said, status_of(self.child))
    }
}

/// Forks, and returns in both processes: `None` in the child.
fn copied_to_the_caller(parent: u32) -> Option<Copied> {
    let mut ends = [0; 2];
    // SAFETY: `ends` is valid for writes.
    let child = unsafe {
        assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
        libc::fork()
    };
    if std::process::id() != parent {
        // SAFETY: descriptors of this process.
        unsafe {
            libc::dup2(ends[1], libc::STDERR_FILENO);
            libc::close(ends[0]);
            libc::close(ends[1]);
            libc::alarm(30);
        }
        return None;
    }
    // SAFETY: as above; the reader owns its end.
    unsafe {
        libc::close(ends[1]);
        Some(Copied { child, reader: std::os::fd::FromRawFd::from_raw_fd(ends[0]) })
    }
}

/// Nothing is lost where there was one thread: so a program that becomes a daemon goes on.
#[test]
fn a_copy_of_a_process_of_one_thread_goes_on_as_it_was_and_so_does_a_new_world_in_any() {
    let _alone = alone();
    // What a process initialises once is: another thread could be doing so at the fork.
    {
        let world = World::new(TestVm::new());
        let mut mutator = world.attach().unwrap();
        // SAFETY: the callback takes an `int` and gives one.
        assert_eq!(mutator.foreign_call().run(|| unsafe { foreign_call_back(upcall_fn(work), 5) }), 5);
        TestVm::collect_in(&mut mutator).unwrap();
    }
    let (said, status) = copied(|| {
        // This copy has one thread, and makes a world of its own.
        let world = World::new(TestVm::new());
        let mut mutator = world.attach().unwrap();
        let object = world.vm().heap().alloc(&[], b"made before the fork");
        let mut call = mutator.foreign_call();
        let root = call.root(object);
        let (said, status) = call.run(|| {
            copied(|| {
                let collected = world.pause(|stopped| stopped.vm().collect(stopped)).unwrap();
                // SAFETY: the callback takes an `int` and gives one.
                let given = unsafe { foreign_call_back(upcall_fn(work), 5) };
                c_int::try_from(collected.live).unwrap() * 10 + given
            })
        });
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 15, "{status:#x}: {said}");
        let object = call.get(root);
        c_int::from(world.vm().heap().bytes(object).unwrap() == b"made before the fork")
    });
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 1, "{status:#x}: {said}");
}

/// A library's handlers of `pthread_atfork` run on the thread that forks, and may wait for others.
#[test]
fn handlers_of_a_fork_call_in_and_make_closures_and_wait_for_threads_that_do() {
    let _alone = alone();
    static WORLD: Mutex<Option<World<TestVm>>> = Mutex::new(None);
    static CALLED: AtomicUsize = AtomicUsize::new(0);
    static BLOCKED: AtomicUsize = AtomicUsize::new(0);
    fn note(mutator: &mut Mutator<TestVm>, x: c_int) -> c_int {
        mutator.pause(|_| ());
        CALLED.fetch_add(1, Ordering::Relaxed);
        x
    }
    thread_local! { static MINE: core::cell::Cell<bool> = const { core::cell::Cell::new(false) }; }
    extern "C" fn handler() {
        if !MINE.get() {
            return;
        }
        // SAFETY: the callback takes an `int` and gives one.
        unsafe { foreign_call_back(upcall_fn(note), 1) };
        let world = WORLD.lock().unwrap().clone().unwrap();
        use_closures(&world, 7);
        let closure = UpcallClosure::new(&world, note);
        // SAFETY: the data pointer is the closure's own, and the closure lives.
        unsafe { foreign_call_back_last(closure.data_last(), 1, closure.data()) };
        // SAFETY: the world adopts foreign threads.
        assert_eq!(unsafe { foreign_threads(1, 2, upcall_fn(note)) }, 1);
        let mut blocked = core::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `blocked` is valid for writes, and filled by the call.
        let blocked = unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, core::ptr::null(), blocked.as_mut_ptr());
            libc::sigismember(blocked.as_ptr(), libc::SIGALRM)
        };
        BLOCKED.fetch_add(usize::try_from(blocked).unwrap(), Ordering::Relaxed);
    }
    let world = World::new(TestVm::new());
    world.adopt_foreign_threads();
    *WORLD.lock().unwrap() = Some(world.clone());
    MINE.set(true);
    // SAFETY: functions that may be called round any fork: they do nothing on another thread.
    assert_eq!(unsafe { libc::pthread_atfork(Some(handler), Some(handler), Some(handler)) }, 0);
    let mut mutator = world.attach().unwrap();
    // SAFETY: no mutator of this test holds a lock of the VM's while it is stopped or foreign.
    match unsafe { mutator.fork() }.unwrap() {
        Forked::Child => {
            // SAFETY: a child that hangs is killed by this, and fails the test.
            unsafe { libc::alarm(60) };
            let (called, blocked) = (CALLED.load(Ordering::Relaxed), BLOCKED.load(Ordering::Relaxed));
            let lives = mutator.pause(|stopped| stopped.mutators().count()) == 1;
            // SAFETY: nothing of the parent's is to be cleaned up here.
            unsafe { libc::_exit(if (called, blocked, lives) == (8, 0, true) { 9 } else { 1 }) }
        }
        Forked::Parent(child) => {
            let status = status_of(child);
            assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 9, "{status:#x}");
        }
    }
    MINE.set(false);
    *WORLD.lock().unwrap() = None;
    assert_eq!((CALLED.load(Ordering::Relaxed), BLOCKED.load(Ordering::Relaxed)), (8, 0));
}
