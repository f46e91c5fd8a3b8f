//! What a report says of an upcall: which function or closure, on which thread, and what it threw.

use core::ffi::c_int;
use core::fmt;
use core::time::Duration;
use reentry::dynamic::{Closure, Signature};
use reentry::{
    AttachError, Capture, FallbackOnly, Mutator, Report, RootVisitor, Segment, StackScanner, Stragglers,
    Throwing, UpcallClosure, UpcallError, Vm, World, upcall_fn_or,
};
use reentry_foreign::{foreign_call_back_last, foreign_meet};
use std::sync::Mutex;
use std::thread;

/// An exception whose text for people is another than that for programmers, and long.
#[derive(Debug)]
struct Oops(usize);

impl fmt::Display for Oops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "out of cheese {}", "é".repeat(self.0))
    }
}

#[derive(Default)]
struct Named {
    texts: Mutex<Vec<String>>,
    numbers: Mutex<Vec<usize>>,
}

impl Named {
    fn text(&self) -> String {
        self.texts.lock().unwrap().pop().expect("something was reported")
    }
}

impl Vm for Named {
    type Ref = usize;
    type Local = ();
    type Exception = Oops;
    const CAPTURE: Capture = Capture::Nothing;

    fn attach(&self) {}

    fn write_exception(exception: &Oops, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{exception}")
    }

    fn report(&self, report: &Report<'_>) {
        if let Report::UpcallErrorIgnored { error: UpcallError::Exception { exception }, .. } = report {
            let number = exception.downcast_ref::<Oops>().expect("it is the VM's own").0;
            self.numbers.lock().unwrap().push(number);
            assert_eq!(format!("{exception:?}"), format!("Oops({number})"));
        }
        self.texts.lock().unwrap().push(report.to_string());
    }
}

// SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
unsafe impl StackScanner for Named {
    fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
}

/// # Errors
///
/// Always.
fn out_of_cheese(_: &mut Mutator<Named>, x: c_int) -> Result<c_int, Oops> {
    Err(Oops(x as usize))
}

#[test]
fn a_report_names_the_function_and_the_thread_and_writes_the_exception_for_people() {
    let world = World::new(Named::default());
    let function: extern "C" fn(c_int) -> c_int = upcall_fn_or(FallbackOnly(Throwing(out_of_cheese)), || -1);
    let call = || {
        let mut mutator = world.attach().unwrap();
        let line = line!() + 1;
        assert_eq!(mutator.foreign_call().run(|| function(2)), -1);
        line
    };
    let line = thread::scope(|scope| {
        thread::Builder::new()
            .name("cheese shop".to_owned())
            .spawn_scoped(scope, call)
            .unwrap()
            .join()
            .unwrap()
    });
    let text = world.vm().text();
    assert!(text.contains(" threw out of cheese éé; C got the fallback value"), "{text}");
    assert!(text.contains("\n  which: `all::origins::out_of_cheese` on mutator 1, thread "), "{text}");
    assert!(text.contains(&format!("in the foreign call at {}:{line}:", file!())), "{text}");
    #[cfg(target_os = "linux")]
    assert!(text.contains("thread \"cheese shop\" ("), "{text}");
    assert_eq!(*world.vm().numbers.lock().unwrap(), [2]);
}

#[test]
fn an_exceptions_text_ends_after_five_hundred_characters() {
    let world = World::new(Named::default());
    let function: extern "C" fn(c_int) -> c_int = upcall_fn_or(FallbackOnly(Throwing(out_of_cheese)), || -1);
    let mut mutator = world.attach().unwrap();
    for (length, kept) in [(486, 486), (487, 486), (100_000, 486)] {
        assert_eq!(mutator.foreign_call().run(|| function(length)), -1);
        let text = world.vm().text();
        let threw = text.split_once("threw ").unwrap().1.split_once("; C got").unwrap().0.to_owned();
        assert_eq!(threw.matches('é').count(), kept);
        assert_eq!(threw.ends_with("..."), length > 486, "{threw}");
    }
}

#[test]
fn a_report_names_a_closure_by_the_place_where_it_was_made() {
    let world = World::new(Named::default());
    let line = line!() + 1;
    let closure = UpcallClosure::new(&world, |_: &mut Mutator<Named>, x: c_int| -> c_int {
        crate::plain::panic_quietly(x as u32)
    });
    let (function, data) = (closure.data_last(), closure.data());
    // A thread that the VM did not make: nobody is there to take the error.
    // SAFETY: the data pointer is the closure's own, and the closure lives.
    assert_eq!(unsafe { foreign_call_back_last(function, 3, data) }, 0);
    let text = world.vm().text();
    assert!(text.contains("\n  which: `all::origins::a_report_names_a_closure"), "{text}");
    assert!(text.contains(&format!("made at {}:{line}:", file!())), "{text}");

    let signature: Signature = "int(int)".parse().unwrap();
    let line = line!() + 1;
    let named = Closure::new(&world, &signature, |_, _| Err(Oops(1))).unwrap();
    world.detach_foreign_thread().unwrap();
    // SAFETY: the code is that of a closure of this signature, which lives.
    let code: extern "C" fn(c_int) -> c_int = unsafe { core::mem::transmute(named.code()) };
    assert_eq!(code(1), 0);
    let text = world.vm().text();
    assert!(text.contains("threw out of cheese é; no managed caller"), "{text}");
    assert!(text.contains(&format!("made at {}:{line}:", file!())), "{text}");
}

/// It is a thread of the VM's own, and the report says so.
#[test]
fn a_mutator_that_the_shutdown_did_not_wait_for_is_not_called_a_foreign_thread() {
    let world = World::new(Named::default());
    let steps = crate::plain::Steps::new();
    let closure = UpcallClosure::with_fallback(&world, |_: &mut Mutator<Named>, x: c_int| x, -1);
    thread::scope(|scope| {
        scope.spawn(|| {
            let (function, data) = (closure.data_last(), closure.data());
            let mut mutator = world.attach().unwrap();
            let mut call = mutator.foreign_call();
            let told = crate::plain::caught(|| {
                call.run(|| {
                    // SAFETY: C touches the word alone, which lives; the data pointer is the closure's own, and the closure lives.
                    unsafe {
                        foreign_meet(steps.word(), 1, 2);
                        assert_eq!(foreign_call_back_last(function, 3, data), -1);
                    }
                })
            });
            drop(told);
        });
        steps.wait(1);
        assert_eq!(world.shutdown_within(Duration::from_millis(20), Stragglers::Fail).len(), 1);
        steps.reach(2);
    });
    let text = world.vm().text();
    assert!(
        text.starts_with("mutator 1, which the shutdown did not wait for, called in after shutdown;"),
        "{text}"
    );
    assert!(!text.contains("foreign thread"), "{text}");
    assert!(text.contains(&format!("in the foreign call at {}:", file!())), "{text}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_thread_with_too_little_stack_is_refused_with_the_bytes_it_has() {
    let world = World::new(Named::default());
    let closure = UpcallClosure::with_fallback(&world, |_: &mut Mutator<Named>, x: c_int| x, -1);
    thread::scope(|scope| {
        let small = thread::Builder::new().stack_size(64 * 1024);
        let small = small.spawn_scoped(scope, || {
            deeper(12 * 1024, &mut || {
                let Err(error) = world.attach() else { panic!("attached") };
                let AttachError::StackTooSmall { left, needed } = error else { panic!("{error}") };
                assert!(left < 12 * 1024 && needed == 16 * 1024, "{error}");
                assert!(error.to_string().contains("give the thread a larger stack"), "{error}");
                let (function, data) = (closure.data_last(), closure.data());
                // SAFETY: the data pointer is the closure's own, and the closure lives.
                assert_eq!(unsafe { foreign_call_back_last(function, 3, data) }, -1);
            });
        });
        small.unwrap().join().unwrap();
    });
    assert_eq!(world.attached(), 0);
    let text = world.vm().text();
    assert!(text.contains("an upcall on a foreign thread was refused"), "{text}");
}

/// Calls `f` with no more than `left` bytes of the thread's stack left.
#[cfg(target_os = "linux")]
#[inline(never)]
fn deeper(left: usize, f: &mut dyn FnMut()) {
    let mut attributes = core::mem::MaybeUninit::<libc::pthread_attr_t>::uninit();
    let (mut lowest, mut size) = (core::ptr::null_mut(), 0);
    // SAFETY: all are valid for writes; the thread is the calling one; the attributes are filled before they are read.
    unsafe {
        assert_eq!(libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()), 0);
        libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut lowest, &raw mut size);
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
    }
    descend(lowest.addr() + left, f);
}

#[cfg(target_os = "linux")]
#[inline(never)]
fn descend(limit: usize, f: &mut dyn FnMut()) {
    let page = [0_u8; 512];
    if core::hint::black_box(&page).as_ptr().addr() < limit {
        f();
    } else {
        descend(limit, f);
    }
    core::hint::black_box(&page);
}
