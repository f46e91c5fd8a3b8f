//! Safe code, and C that keeps to its signatures, against dynamic calls and closures. What they try must be refused, or turn out harmless.

use crate::child;
use crate::plain::{Plain, Steps, number, panic_quietly};
use core::cell::Cell;
use core::ffi::{c_int, c_void};
use core::hint::black_box;
use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use reentry::dynamic::{
    Abi, CallError, Closure, Function, Library, Quarantine, Scalar, Signature, Struct, Type, Value,
};
use reentry::testkit::{TestVm, Trap};
use reentry::{Capture, ErrorPolicy, FenceStrategy, Report, RootVisitor, Segment, StackScanner, World};
use reentry_foreign::{Callback, foreign_call_back};
use std::sync::{Arc, LazyLock};
use std::thread;

type Vm = Plain<410>;

/// # Panics
///
/// If the address is null.
fn callback(code: *const c_void) -> Callback {
    assert!(!code.is_null());
    // SAFETY: the code of a closure whose signature is `int (int)`, in this file.
    unsafe { core::mem::transmute::<*const c_void, Callback>(code) }
}

fn int_to_int() -> Signature {
    Signature::parse("int (int)").unwrap()
}

/// The last one out drops the body. Until that is done, what it does it in is not given back, however little room there is in quarantine.
#[test]
fn a_closure_whose_body_is_being_dropped_stays_in_quarantine() {
    let name = "hostile_dynamic::a_closure_whose_body_is_being_dropped_stays_in_quarantine";
    child::succeeds(name, || {
        struct Slow {
            steps: Arc<Steps>,
            words: [usize; 32],
        }
        impl Drop for Slow {
            fn drop(&mut self) {
                self.steps.reach(3);
                self.steps.wait(4);
                assert_eq!(self.words, [0xDEC0DE; 32]);
            }
        }
        Quarantine::of(0).install();
        let world = Vm::world(FenceStrategy::probe());
        let steps = Arc::new(Steps::new());
        let slow = Slow { steps: Arc::clone(&steps), words: [0xDEC0DE; 32] };
        let closure = Closure::new(&world, &int_to_int(), move |_, call| {
            slow.steps.reach(1);
            slow.steps.wait(2);
            call.returns(call.argument(0)).unwrap();
            Ok(())
        });
        let closure = closure.unwrap();
        let code = callback(closure.code());
        // SAFETY: calls the callback.
        let inside = thread::spawn(move || unsafe { foreign_call_back(code, 5) });
        steps.wait(1);
        drop(closure);
        steps.reach(2);
        steps.wait(3);
        // Looks through the quarantine.
        drop(Closure::new(&world, &int_to_int(), |_, _| Ok(())).unwrap());
        assert_eq!(Quarantine::len(), 1, "the one whose body is being dropped");
        let _overwritten: Vec<Box<[usize; 64]>> = (0..64).map(|_| Box::new([7; 64])).collect();
        steps.reach(4);
        assert_eq!(inside.join().unwrap(), 5);
        drop(Closure::new(&world, &int_to_int(), |_, _| Ok(())).unwrap());
        assert_eq!(Quarantine::len(), 0);
    });
}

/// The thread a closure was made on counts itself in and out without locked instructions. While it is in, it is detached by a report, and another thread gets its mutator's record: that one
/// counts as any other thread does, or the two would count over each other.
#[test]
fn a_thread_that_takes_over_a_record_does_not_count_as_the_one_that_made_the_closure() {
    struct Leaver {
        steps: Steps,
    }
    impl reentry::Vm for Leaver {
        type Ref = usize;
        type Local = ();
        type Exception = core::convert::Infallible;
        const CAPTURE: Capture = Capture::Nothing;
        fn attach(&self) {}
        fn report(&self, report: &Report<'_>) {
            if !matches!(report, Report::UpcallErrorUnclaimed { .. }) {
                return;
            }
            // The upcall has been refused, for want of stack. Between upcalls a foreign thread may detach.
            WORLD.detach_foreign_thread().unwrap();
            let step = self.steps.now();
            self.steps.reach(step + 1);
            self.steps.wait(step + 2);
        }
    }
    // SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
    unsafe impl StackScanner for Leaver {
        fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
    }
    static WORLD: LazyLock<World<Leaver>> = LazyLock::new(|| {
        World::<Leaver>::builder().stack_reserve(1 << 30).build(Leaver { steps: Steps::new() })
    });
    const STACK: usize = 1 << 20;
    /// Calls from deep down, where less than the reserve is left.
    fn deep(code: Callback, top: usize) -> c_int {
        let frame = black_box([top; 1024]);
        if top - (&raw const frame).addr() < STACK / 8 * 5 {
            let given = deep(code, top);
            assert_eq!(black_box(frame)[7], top);
            return given;
        }
        // SAFETY: calls the callback.
        unsafe { foreign_call_back(code, 1) }
    }
    let name =
        "hostile_dynamic::a_thread_that_takes_over_a_record_does_not_count_as_the_one_that_made_the_closure";
    child::succeeds(name, || {
        let steps = &WORLD.vm().steps;
        for _ in 0..1000 {
            let (begin, stop, held) = (steps.now(), AtomicBool::new(false), Arc::new(()));
            let closure = thread::scope(|scope| {
                let maker = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || {
                    let attaching = Closure::new(&WORLD, &int_to_int(), |_, call| {
                        call.returns(0).unwrap();
                        Ok(())
                    });
                    let attaching = attaching.unwrap();
                    // SAFETY: calls the callback.
                    assert_eq!(unsafe { foreign_call_back(callback(attaching.code()), 1) }, 0);
                    let inside = Arc::clone(&held);
                    let closure =
                        Closure::builder(&WORLD, &int_to_int()).fallback(-1).build(move |_, call| {
                            call.returns(i32::try_from(Arc::strong_count(&inside)).unwrap()).unwrap();
                            Ok(())
                        });
                    let (closure, inside_stack) = (closure.unwrap(), 0_u8);
                    CODE.store(closure.code().expose_provenance(), Ordering::Relaxed);
                    assert_eq!(deep(callback(closure.code()), (&raw const inside_stack).addr()), -1);
                    stop.store(true, Ordering::Relaxed);
                    closure
                });
                let maker = maker.unwrap();
                steps.wait(begin + 1);
                let mut mutator = WORLD.attach().unwrap();
                let code = callback(core::ptr::with_exposed_provenance(CODE.load(Ordering::Relaxed)));
                steps.reach(begin + 2);
                mutator.foreign_call().run(|| {
                    while !stop.load(Ordering::Relaxed) {
                        // SAFETY: calls the callback.
                        assert_eq!(unsafe { foreign_call_back(code, 1) }, 2);
                    }
                });
                maker.join().unwrap()
            });
            drop(closure);
            assert_eq!(Arc::strong_count(&held), 1, "nobody is inside, so the body has gone");
        }
    });
}

/// The code of the closure of a test, for another thread.
static CODE: AtomicUsize = AtomicUsize::new(0);

/// A second run that ends with an upcall's error gives no result, not the first one's.
#[test]
fn a_run_that_ends_with_an_error_leaves_no_result_of_the_one_before() {
    let world = World::new(TestVm::new());
    for (text, bytes) in [("int (int)", false), ("struct { int64_t a, b; } (int)", true)] {
        let signature = Signature::parse(text).unwrap();
        let closure = Closure::new(&world, &signature, move |_, call| match call.argument(0) {
            Value::I32(0) => Err(Trap::NoSuchNative(1)),
            Value::I32(1) => panic_quietly(3),
            _ if bytes => Ok(call.returns(Value::Bytes(&[1; 16])).unwrap()),
            _ => Ok(call.returns(9).unwrap()),
        });
        let closure = closure.unwrap();
        let function = Function::new(closure.code(), "fails", &signature).unwrap();
        let mut mutator = world.attach().unwrap();
        let mut call = mutator.foreign_call().dynamic(&function);
        for fails in [0, 1] {
            call.value(2).unwrap();
            // SAFETY: the closure has this signature.
            unsafe { call.run() }.unwrap();
            assert_eq!(call.result() == Value::Bytes(&[1; 16]), bytes);
            assert_eq!(call.result() == Value::I32(9), !bytes);
            call.value(fails).unwrap();
            if fails == 0 {
                // SAFETY: as above.
                assert_eq!(unsafe { call.try_run() }.unwrap().unwrap_err(), Trap::NoSuchNative(1));
            } else {
                // SAFETY: as above.
                assert_eq!(number(|| unsafe { call.run() }.is_ok()), 3);
            }
            assert_eq!(call.result(), Value::Void);
        }
    }
}

/// In checked mode: an address that the call refused has not gone to C, and nobody is told that it has.
#[test]
fn an_address_that_was_refused_as_an_argument_is_not_reported() {
    let world = World::new(TestVm::new());
    let mut mutator = world.attach().unwrap();
    let object = world.vm().heap().alloc(&[], b"in the heap");
    let address = world.vm().heap().payload(object).unwrap();
    let abs = Library::this_process().function("abs", &int_to_int()).unwrap();
    let mut call = mutator.foreign_call().dynamic(&abs);
    assert!(matches!(call.value(address), Err(CallError::WrongType { index: 0, .. })));
    call.value(-3).unwrap();
    assert!(matches!(call.value(address), Err(CallError::WrongCount { .. })));
    // SAFETY: the signature is that of `abs`.
    assert_eq!(unsafe { call.run() }.unwrap().result(), Value::I32(3));
    drop(call);
    assert_eq!(world.vm().take_reports(), [""; 0]);
}
