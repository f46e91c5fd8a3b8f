//! The quarantine of closures, whose size is one for the process: a binary of its own, with one test at a time.
#![cfg(feature = "libffi")]
#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

use core::ffi::c_int;
use core::sync::atomic::{AtomicUsize, Ordering};
use reentry::World;
use reentry::dynamic::{Closure, LateCall, Quarantine, Signature};
use reentry::testkit::TestVm;
use reentry_foreign::{Callback, foreign_call_back};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[path = "all/emulator.rs"]
mod emulator;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Holds the others up, and empties the quarantine.
fn alone() -> MutexGuard<'static, ()> {
    let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    Quarantine::of(0).install();
    assert_eq!(Quarantine::len(), 0);
    alone
}

fn closure(world: &World<TestVm>, x: c_int) -> (Closure<TestVm>, Callback) {
    let signature = Signature::parse("int (int)").unwrap();
    let closure = Closure::builder(world, &signature).name("numbered").fallback(-1).build(move |_, call| {
        call.returns(x).unwrap();
        Ok(())
    });
    let closure = closure.unwrap();
    // SAFETY: code of a function of this type.
    let code = unsafe { core::mem::transmute::<*const core::ffi::c_void, Callback>(closure.code()) };
    (closure, code)
}

fn call(world: &World<TestVm>, code: Callback) -> c_int {
    let mut mutator = world.attach().unwrap();
    // SAFETY: calls the callback.
    mutator.foreign_call().run(|| unsafe { foreign_call_back(code, 0) })
}

#[test]
fn the_closures_dropped_last_stay_and_the_memory_of_the_others_is_used_again() {
    let _alone = alone();
    Quarantine::of(4).install();
    let world = World::new(TestVm::new());
    let mut codes = Vec::new();
    for x in 0..10 {
        let (closure, code) = closure(&world, x);
        assert_eq!(call(&world, code), x);
        codes.push(code);
        drop(closure);
        assert_eq!(Quarantine::len(), codes.len().min(4));
    }
    for code in &codes[6..] {
        assert_eq!(call(&world, *code), -1);
    }
    assert_eq!(world.vm().take_reports().len(), 4);
    // A thousand more take no more than a few places.
    let mut places = BTreeSet::new();
    for x in 0..1000 {
        let (closure, code) = closure(&world, x);
        assert_eq!(call(&world, code), x);
        places.insert(closure.code().addr());
    }
    assert!(places.len() < 20, "{}", places.len());
    // Those that are too many when it shrinks go at once.
    Quarantine::of(1).install();
    assert_eq!(Quarantine::len(), 1);
}

#[test]
fn nothing_leaves_a_quarantine_without_end() {
    let _alone = alone();
    Quarantine::forever().install();
    let world = World::new(TestVm::new());
    let (first, code) = closure(&world, 7);
    drop(first);
    let mut places = BTreeSet::new();
    for x in 0..3000 {
        places.insert(closure(&world, x).0.code().addr());
    }
    assert_eq!((places.len(), Quarantine::len()), (3000, 3001));
    assert_eq!(call(&world, code), -1);
}

/// A thread that is in the code of a dropped closure keeps it where it is, whatever the size.
#[test]
fn code_that_a_thread_is_in_does_not_leave() {
    let _alone = alone();
    let world = World::new(TestVm::new());
    let slot: Arc<Mutex<Option<Closure<TestVm>>>> = Arc::default();
    let (own, runs) = (Arc::clone(&slot), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&runs);
    let signature = Signature::parse("int (int)").unwrap();
    let closure = Closure::new(&world, &signature, move |_, call| {
        drop(own.lock().unwrap().take());
        // There is room for none, and this call has come in by its code.
        Quarantine::of(0).install();
        assert_eq!(Quarantine::len(), 1);
        counted.fetch_add(1, Ordering::Relaxed);
        call.returns(5).unwrap();
        Ok(())
    });
    // SAFETY: code of a function of this type.
    let code = unsafe {
        core::mem::transmute::<*const core::ffi::c_void, Callback>(
            slot.lock().unwrap().insert(closure.unwrap()).code(),
        )
    };
    assert_eq!((call(&world, code), runs.load(Ordering::Relaxed)), (5, 1));
    Quarantine::of(0).install();
    assert_eq!(Quarantine::len(), 0);
}

const CHILD: &str = "REENTRY_LATE_CALL";

/// A development build may want to stop at the first.
#[test]
fn a_late_call_aborts_naming_the_closure_if_the_quarantine_says_so() {
    let name = "a_late_call_aborts_naming_the_closure_if_the_quarantine_says_so";
    if std::env::var_os(CHILD).is_some() {
        Quarantine::of(8).on_late_call(LateCall::Abort).install();
        let world = World::new(TestVm::new());
        let (closure, code) = closure(&world, 1);
        drop(closure);
        call(&world, code);
        std::process::exit(77);
    }
    let mut child = emulator::this_binary();
    let output = child.args([name, "--exact", "--nocapture"]).env(CHILD, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    #[cfg(unix)]
    {
        use std::os::unix::process::ExitStatusExt as _;
        const SIGABRT: c_int = 6;
        assert_eq!(output.status.signal(), Some(SIGABRT), "{}: {said}", output.status);
    }
    assert!(said.contains("reentry: fatal: foreign code called the closure `numbered`, made at "), "{said}");
    assert!(said.contains("tests/quarantine.rs:") && said.contains("after it had been dropped"), "{said}");
}

/// A system that lets a process have no executable memory, as hardened ones do: here a filter that refuses to map any.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn without_executable_memory_there_is_an_error_and_no_closure() {
    use reentry::dynamic::ClosureError;
    let name = "without_executable_memory_there_is_an_error_and_no_closure";
    if std::env::var_os(CHILD).is_none() {
        let mut child = emulator::this_binary();
        let output = child.args([name, "--exact", "--nocapture"]).env(CHILD, "1").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("as it should be"), "{said}");
        return;
    }
    // Of <linux/filter.h> and <linux/seccomp.h>: load a word, jump if equal or if a bit is set, return a constant.
    let step = |code: u32, (jt, jf): (u8, u8), k: u32| libc::sock_filter {
        code: u16::try_from(code).expect("an operation is 16 bits"),
        jt,
        jf,
        k,
    };
    let number = |call: libc::c_long| u32::try_from(call).expect("a system call has a small number");
    let refuse = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EPERM).expect("an error is a small number");
    let protection = u32::try_from(core::mem::offset_of!(libc::seccomp_data, args)).expect("small") + 16;
    let mut program = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, (0, 0), 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, (1, 0), number(libc::SYS_mmap)),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, (0, 3), number(libc::SYS_mprotect)),
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, (0, 0), protection),
        step(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, (0, 1), libc::PROT_EXEC.cast_unsigned()),
        step(libc::BPF_RET | libc::BPF_K, (0, 0), refuse),
        step(libc::BPF_RET | libc::BPF_K, (0, 0), libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: 7, filter: program.as_mut_ptr() };
    let world = World::new(TestVm::new());
    let signature = Signature::parse("int (int)").unwrap();
    // SAFETY: the calls take what the kernel's documentation says; the program lives until they return.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter), 0);
    }
    let held = Arc::new(());
    let in_body = Arc::clone(&held);
    let closure = Closure::new(&world, &signature, move |_, _| {
        let _ = &in_body;
        Ok(())
    });
    assert_eq!(closure.map(drop), Err(ClosureError::NoExecutableMemory));
    assert_eq!(Arc::strong_count(&held), 1, "the body has been dropped");
    eprintln!("as it should be");
}
