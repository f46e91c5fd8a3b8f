//! Threads that C ends in the middle: `pthread_exit` and `pthread_cancel` below an upcall.
//!
//! With glibc both unwind the stack of the thread, as a C++ exception would.
#![cfg(all(target_os = "linux", target_env = "gnu"))]
#![expect(ffi_unwind_calls, reason = "unwinding through these is the point")]

use crate::child;
use core::ffi::{c_int, c_void};
use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering};
use reentry::testkit::TestVm;
use reentry::{Mutator, UpcallClosure, World};

/// What `pthread_join` gives for a thread that was cancelled: `PTHREAD_CANCELED`.
const CANCELLED: usize = usize::MAX;

type Start = unsafe extern "C-unwind" fn(*mut c_void) -> usize;

unsafe extern "C-unwind" {
    fn pthread_create(
        thread: *mut usize,
        attributes: *const c_void,
        start: Start,
        data: *mut c_void,
    ) -> c_int;
    fn pthread_join(thread: usize, result: *mut usize) -> c_int;
    fn pthread_exit(result: usize) -> !;
    fn pthread_cancel(thread: usize) -> c_int;
    fn pause() -> c_int;
}

/// Starts a thread of C's whose function is an upcall, does `meanwhile`, and waits for its end.
fn on_a_thread_of_c(start: Start, data: *mut c_void, meanwhile: impl FnOnce(usize)) -> usize {
    let (mut thread, mut result) = (0, 0);
    // SAFETY: the caller's closure lives until the thread has been joined.
    assert_eq!(unsafe { pthread_create(&raw mut thread, ptr::null(), start, data) }, 0);
    meanwhile(thread);
    // SAFETY: that thread, once.
    assert_eq!(unsafe { pthread_join(thread, &raw mut result) }, 0);
    result
}

/// Pins an object of its own, and goes to C, which does not come back.
fn pin_and_end(mutator: &mut Mutator<TestVm>, end: impl FnOnce()) -> usize {
    let object = mutator.vm().heap().alloc(&[], b"pinned by a thread that ends in C");
    let mut call = mutator.foreign_call();
    call.pin(object).expect("the test VM can pin");
    call.run(end);
    0
}

/// The thread is gone, what its call held is released, and the VM has been told.
#[track_caller]
fn assert_ended(world: &World<TestVm>) {
    assert_eq!(world.attached(), 0);
    let reports = world.vm().take_reports();
    assert_eq!(reports.len(), 1, "{reports:?}");
    assert!(reports[0].starts_with("foreign code skipped the frames of 1 upcall(s)"), "{reports:?}");
    let mut mutator = world.attach().unwrap();
    assert_eq!(TestVm::collect_in(&mut mutator).unwrap().live, 0);
}

#[test]
fn a_thread_that_exits_below_an_unwinding_upcall_is_detached_and_reported() {
    let world = World::new(TestVm::new());
    let body = UpcallClosure::new(&world, |mutator: &mut Mutator<TestVm>| -> usize {
        // SAFETY: every function between here and the thread's first one lets unwinding pass.
        pin_and_end(mutator, || unsafe { pthread_exit(7) })
    });
    assert_eq!(on_a_thread_of_c(body.data_first_unwind(), body.data(), drop), 7);
    assert_ended(&world);
}

#[test]
fn a_thread_that_is_cancelled_below_an_unwinding_upcall_is_detached_and_reported() {
    let world = World::new(TestVm::new());
    let in_c = AtomicBool::new(false);
    let body = UpcallClosure::new(&world, |mutator: &mut Mutator<TestVm>| -> usize {
        pin_and_end(mutator, || {
            in_c.store(true, Ordering::Release);
            loop {
                // SAFETY: it waits, and the thread may be cancelled in it; see above.
                unsafe { pause() };
            }
        })
    });
    let cancel = |thread| {
        while !in_c.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        // SAFETY: a thread that has not been joined.
        assert_eq!(unsafe { pthread_cancel(thread) }, 0);
    };
    assert_eq!(on_a_thread_of_c(body.data_first_unwind(), body.data(), cancel), CANCELLED);
    assert_ended(&world);
}

/// Plain forms stop unwinding at the boundary, and glibc does not let its own be stopped.
#[test]
fn a_thread_that_exits_below_a_plain_upcall_ends_the_process_with_glibcs_message() {
    let name = "ended_in_c::a_thread_that_exits_below_a_plain_upcall_ends_the_process_with_glibcs_message";
    let output = child::run(name, || {
        let world = World::new(TestVm::new());
        let body = UpcallClosure::new(&world, |mutator: &mut Mutator<TestVm>| -> usize {
            // SAFETY: none of this comes back.
            pin_and_end(mutator, || unsafe { pthread_exit(7) })
        });
        let plain = body.data_first();
        // SAFETY: the two differ in what may pass, and this test shows what becomes of it.
        let start =
            unsafe { core::mem::transmute::<unsafe extern "C" fn(*mut c_void) -> usize, Start>(plain) };
        on_a_thread_of_c(start, body.data(), drop);
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("FATAL: exception not rethrown"), "{said}");
}
