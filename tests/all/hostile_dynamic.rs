//! Safe code, and C that keeps to its signatures, against dynamic calls and closures. What they try must be refused, or turn out harmless.

use crate::child;
use crate::plain::{Plain, Steps, number, panic_quietly};
use core::cell::Cell;
use core::ffi::c_void;
use core::mem::ManuallyDrop;
use reentry::dynamic::{
    Abi, CallError, Closure, Function, Library, Quarantine, Scalar, Signature, Struct, TryCallError, Type,
    Value,
};
use reentry::testkit::{TestVm, Trap};
use reentry::{ErrorPolicy, FenceStrategy, World};
use reentry_foreign::{Callback, foreign_call_back};
use std::sync::Arc;
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

/// A second run that ends with an upcall's error gives no result, not the first one's.
#[test]
fn a_run_that_ends_with_an_error_leaves_no_result_of_the_one_before() {
    let world = World::new(TestVm::new());
    for (text, bytes) in [("int (int)", false), ("struct { int64_t a, b; } (int)", true)] {
        let signature = Signature::parse(text).unwrap();
        let closure = Closure::new(&world, &signature, move |_, call| match call.argument(0) {
            Value::I32(0) => Err(Trap::NoSuchNative(1)),
            Value::I32(1) => panic_quietly(3),
            _ => {
                let result = if bytes { Value::Bytes(&[1; 16]) } else { Value::I32(9) };
                call.returns(result).unwrap();
                Ok(())
            }
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
                let outcome = unsafe { call.try_run() }.map(drop);
                assert_eq!(outcome, Err(TryCallError::Thrown(Trap::NoSuchNative(1))));
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

/// `Into` is safe to implement, in any way.
#[test]
fn a_value_that_is_another_each_time_it_is_asked_for_is_passed_whole_or_refused() {
    #[derive(Clone, Copy)]
    struct Fickle<'v>(&'v Cell<usize>, &'v [Value<'v>]);
    impl<'v> From<Fickle<'v>> for Value<'v> {
        fn from(Fickle(asked, values): Fickle<'v>) -> Self {
            values[asked.replace(asked.get() + 1) % values.len()]
        }
    }
    let world = World::new(TestVm::new());
    let long = [7_u8; 4096];
    let values = [
        Value::I32(1),
        Value::Bytes(&long),
        Value::Pointer(core::ptr::without_provenance_mut(8)),
        Value::Bytes(&long[..16]),
        Value::F64(0.5),
        Value::Void,
        Value::Bytes(&[]),
    ];
    for text in ["struct { int64_t a, b; } (struct { int64_t a, b; })", "double (double)", "int (int)"] {
        let signature = Signature::parse(text).unwrap();
        for (first, last) in
            (0..values.len()).flat_map(|first| (first..values.len()).map(move |last| (first, last)))
        {
            let (asked, from) = (Cell::new(0), &values[first..=last]);
            let given: Vec<String> = values.iter().map(Value::to_string).collect();
            let closure =
                Closure::builder(&world, &signature).on_error(ErrorPolicy::Fallback).build(move |_, call| {
                    let got = call.argument(0);
                    assert!(given.contains(&got.to_string()), "{got}");
                    let (asked, long) = (Cell::new(0), [7_u8; 4096]);
                    let values =
                        [Value::Bytes(&long), got, Value::I32(1), Value::Void, Value::Bytes(&long[..16])];
                    while call.returns(Fickle(&asked, &values)).is_err() {}
                    Ok(())
                });
            let closure = closure.unwrap();
            let function = Function::new(closure.code(), "fickle", &signature).unwrap();
            let mut mutator = world.attach().unwrap();
            let mut call = mutator.foreign_call().dynamic(&function);
            let passed = (0..64).any(|_| call.value(Fickle(&asked, from)).is_ok());
            // SAFETY: the closure has this signature.
            assert_eq!(unsafe { call.run() }.is_ok(), passed);
            assert_eq!(call.result() == Value::Void, !passed);
        }
    }
    assert_eq!(world.vm().take_reports(), [""; 0]);
}

#[test]
fn types_and_signatures_made_by_hand_are_taken_or_refused_and_never_crash() {
    let scalar = |scalar| Type::Scalar(scalar);
    let in_array = |ty: Type, count| Type::Array(Arc::new(ty), count);
    let char = scalar(Scalar::Char);
    let edges = [0, 1, 2, 255, 65_535, 65_536, 65_537, usize::MAX / 2, usize::MAX];
    let elements = [
        Type::Void,
        char.clone(),
        scalar(Scalar::LongDouble),
        in_array(char.clone(), usize::MAX),
        Type::pointer(),
    ];
    for (count, element) in
        edges.iter().flat_map(|count| elements.iter().map(move |element| (*count, element)))
    {
        let array = in_array(in_array(element.clone(), count), count);
        assert!(array.size() == 0 || array.read(&[0; 8]).is_err() || array.size() <= 8);
        let fields = vec![("a".into(), char.clone()), ("b".into(), array.clone())];
        let Ok(made) = Struct::new(None, fields) else { continue };
        assert!(made.size() <= 65_536 + 16 && made.size() > array.size());
        let made = Type::Struct(Arc::new(made));
        for abi in [Abi::C, Abi::Win64, Abi::SysV64, Abi::StdCall] {
            let both = Signature::new(abi, made.clone(), vec![made.clone()]);
            assert!(both.is_err() || (abi.is_supported() && 2 * made.size() <= 65_536));
            drop(Signature::new(abi, array.clone(), vec![array.clone(); 255]));
        }
    }
    assert!(Signature::new(Abi::C, Type::Void, vec![char.clone(); 256]).is_err());
    assert!(Signature::new(Abi::C, Type::Void, vec![Type::Void]).is_err());
    // No parameter before the `...`: C has it since C23.
    let world = World::new(TestVm::new());
    let mut mutator = world.attach().unwrap();
    let int = scalar(Scalar::Int);
    if let Ok(bare) = Signature::variadic(Abi::C, int.clone(), vec![]) {
        let abs = Library::this_process().function("abs", &bare).unwrap();
        let mut call = mutator.foreign_call().dynamic(&abs);
        for _ in 0..2 {
            call.value(-7).unwrap();
            // SAFETY: on this machine an `int` for `...` travels as that of `abs` does.
            assert_eq!(unsafe { call.run() }.unwrap().result(), Value::I32(7));
        }
        for index in 0..100 {
            assert_eq!(call.value(index).is_ok(), index < 64);
        }
    }
}

/// What an aborted call, and one that was leaked, have left in the record is not the next one's.
#[test]
fn what_a_leaked_or_aborted_call_leaves_behind_does_not_reach_the_next() {
    let world = World::new(TestVm::new());
    let mut mutator = world.attach().unwrap();
    let signature = Signature::parse("int (char*, size_t, const char*, ...)").unwrap();
    let snprintf = Library::this_process().function("snprintf", &signature).unwrap();
    for round in 0..20_i32 {
        for leaked in [true, false] {
            let mut call = mutator.foreign_call().dynamic(&snprintf);
            call.copy([0_u8; 8]).unwrap();
            call.value(8).unwrap();
            call.text("%d %d %d %d %d %d %d %d %f").unwrap();
            (0..40).for_each(|extra| call.value(extra * round).unwrap());
            if leaked {
                let _leaked = ManuallyDrop::new(call);
            }
        }
        let mut call = mutator.foreign_call().dynamic(&snprintf);
        let buffer = call.copy([0_u8; 64]).unwrap();
        call.value(64).unwrap();
        call.text("%d %d %d %d %d %.1f").unwrap();
        (0..5).for_each(|extra| call.value(round + extra).unwrap());
        call.value(0.5).unwrap();
        // SAFETY: the format asks for five `int`s and a `double`.
        let length = unsafe { call.run() }.unwrap().result().as_u64().unwrap() as usize;
        let expected = format!("{} {} {} {} {} 0.5", round, round + 1, round + 2, round + 3, round + 4);
        assert_eq!(&call.read(buffer)[..length], expected.as_bytes());
    }
}
