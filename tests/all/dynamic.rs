//! Calls whose signatures are known at run time: what is checked before anything is called, what each plan does, and where arguments and results lie.

use crate::plain::{Plain, checked, message, number, panic_quietly};
use core::ffi::{c_char, c_int, c_void};
use core::panic::AssertUnwindSafe;
use core::sync::atomic::{AtomicUsize, Ordering};
use reentry::dynamic::{
    Abi, Call, CallError, Closure, Function, Library, LibraryError, Plan, Scalar, Signature, SymbolError,
    TryCallError, Type, Types, Value,
};
use reentry::testkit::{TestVm, Trap};
use reentry::{ArgumentError, ErrorPolicy, Mutator, StackScanner, Throwing, World, upcall_fn};
use reentry_foreign::{
    Callback, foreign_add, foreign_call_back, foreign_fail, foreign_mirror, foreign_sum_through_slot,
    foreign_sum_twice,
};
use std::panic::catch_unwind;

/// A function of this test's C side, by its prototype.
fn declare(address: *const c_void, prototype: &str) -> Function {
    let (name, signature) = Types::new().prototype(prototype).unwrap();
    Function::new(address, &name, &signature).unwrap()
}

/// A function of the C library.
fn libc(prototype: &str) -> Function {
    let (name, signature) = Types::new().prototype(prototype).unwrap();
    Library::this_process().function(&name, &signature).unwrap()
}

fn add() -> Function {
    declare(foreign_add as *const c_void, "int foreign_add(int, int)")
}

fn world() -> World<TestVm> {
    World::new(TestVm::new())
}

/// Runs a call and gives its result.
///
/// # Safety
///
/// As for [`Call::run`].
#[track_caller]
unsafe fn run<'c, V: StackScanner>(call: &'c mut Call<'_, V>) -> Value<'c> {
    // SAFETY: promised by the caller.
    unsafe { call.run() }.unwrap().result()
}

/// C that counts its calls: what is refused never comes here.
extern "C" fn counted(_: c_int, _: *const c_void) -> c_int {
    CALLS.fetch_add(1, Ordering::Relaxed);
    7
}
static CALLS: AtomicUsize = AtomicUsize::new(0);

#[test]
fn a_wrong_number_of_arguments_is_an_error_and_nothing_is_called() {
    let (world, function) = (world(), declare(counted as *const c_void, "int counted(int, const void*)"));
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call().dynamic(&function);
    // SAFETY: nothing is called without its arguments.
    let error = unsafe { call.run() }.map(drop).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`counted` takes 2 argument(s), and 0 came; it is declared `int (int, const void*)`"
    );
    call.value(1).unwrap();
    // SAFETY: as above.
    let tried = unsafe { call.try_run() }.map(drop);
    let Err(TryCallError::NotCalled(error)) = tried else { unreachable!("{tried:?}") };
    assert!(matches!(error, CallError::WrongCount { expected: 2, or_more: false, came: 1, .. }), "{error:?}");
    assert_eq!((error.function(), error.index()), ("counted", None));
    let (said, tried) = (error.to_string(), TryCallError::<Trap>::from(error));
    assert_eq!(tried.to_string(), said, "one error, whichever way the call was to be made");
    call.value(1).unwrap();
    call.value(Value::NULL).unwrap();
    let error = call.value(2).unwrap_err();
    assert!(matches!(error, CallError::WrongCount { expected: 2, came: 3, .. }), "{error:?}");
    assert_eq!(call.copy(0_u8).unwrap_err(), error, "whatever it is");
    assert_eq!(call.result(), Value::Void, "nothing has run");
    assert_eq!(CALLS.load(Ordering::Relaxed), 0);
    // What was refused has changed nothing: the two arguments are there.
    // SAFETY: the function takes any.
    assert_eq!(unsafe { run(&mut call) }, Value::I32(7));
    assert_eq!(CALLS.load(Ordering::Relaxed), 1);
}

#[test]
fn a_value_of_another_type_is_an_error_that_says_what_was_expected_and_what_came() {
    let (world, function) = (world(), libc("double ldexp(double, int)"));
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call().dynamic(&function);
    let wrong = |error: CallError| error.to_string();
    assert_eq!(
        wrong(call.value(1).unwrap_err()),
        "argument 0 of `ldexp` is of the wrong type: `double` was expected, and the integer 1 came; it is declared `double (double, int)`"
    );
    assert!(wrong(call.text("1.0").unwrap_err()).contains("`double` was expected, and text came"));
    call.value(0.75).unwrap();
    for (value, came) in [
        (Value::F64(1.0), "`int` was expected, and the `double` 1.0 came"),
        (Value::NULL, "and the pointer 0x0 came"),
        (Value::Bytes(&[1, 2]), "and 2 bytes, where it has 4, came"),
        (Value::I64(1 << 40), "and the integer 1099511627776, which it does not hold, came"),
        (Value::U32(u32::MAX), "and the integer 4294967295, which it does not hold, came"),
        (Value::Void, "and nothing came"),
    ] {
        let said = wrong(call.value(value).unwrap_err());
        assert!(said.contains("argument 1") && said.contains(came), "{said}");
    }
    // What fits is taken, whatever its variant.
    call.value(Value::I64(4)).unwrap();
    // SAFETY: the signature is that of `ldexp`.
    assert_eq!(unsafe { run(&mut call) }, Value::F64(12.0));
}

#[test]
fn integers_are_taken_by_every_type_that_holds_them_and_by_no_other() {
    let all = [
        Value::Bool(true),
        Value::I8(-1),
        Value::U8(200),
        Value::I16(-300),
        Value::U16(60_000),
        Value::I32(i32::MIN),
        Value::U32(u32::MAX),
        Value::I64(i64::MIN),
        Value::U64(u64::MAX),
        Value::I64(1),
        Value::U64(0),
    ];
    let numbers: [i128; 11] =
        [1, -1, 200, -300, 60_000, i32::MIN.into(), u32::MAX.into(), i64::MIN.into(), u64::MAX.into(), 1, 0];
    let (mut taken, mut refused) = (0, 0);
    for scalar in Scalar::ALL {
        let ty = Type::Scalar(*scalar);
        if matches!(scalar, Scalar::Float | Scalar::Double | Scalar::LongDouble) {
            continue;
        }
        for (value, number) in all.into_iter().zip(numbers) {
            let mut bytes = [0xAA; 8];
            match ty.write(&mut bytes, value) {
                Ok(()) => {
                    taken += 1;
                    let back = ty.read(&bytes).unwrap();
                    let back: i128 =
                        back.as_i64().map(i128::from).or(back.as_u64().map(i128::from)).expect("an integer");
                    assert_eq!(back, number, "{ty}");
                    assert!(
                        bytes[ty.size()..].iter().all(|byte| *byte == 0xAA),
                        "{ty} writes its own bytes alone"
                    );
                }
                Err(error) => {
                    refused += 1;
                    assert_eq!(bytes, [0xAA; 8], "{ty}: nothing was written");
                    let bits = u32::try_from(8 * ty.size()).unwrap();
                    let signed = ty.write(&mut [0; 8], Value::I8(-1)).is_ok();
                    let range = match (*scalar, signed) {
                        (Scalar::Bool, _) => 0..=1,
                        (_, true) => -(1_i128 << (bits - 1))..=(1 << (bits - 1)) - 1,
                        (_, false) => 0..=(1 << bits) - 1,
                    };
                    assert!(!range.contains(&number), "{ty} holds {number}: {error}");
                }
            }
        }
    }
    assert!(taken > 100 && refused > 80, "{taken}, {refused}");
}

#[test]
fn what_cannot_be_found_is_a_typed_error() {
    let process = Library::this_process();
    let signature = Signature::parse("int (int)").unwrap();
    let error: SymbolError = process.function("no_such_function_anywhere", &signature).unwrap_err();
    let named = (error.symbol.as_str(), error.library.as_str());
    assert_eq!(named, ("no_such_function_anywhere", "this process"));
    assert!(error.to_string().starts_with("`no_such_function_anywhere` is not in this process: "), "{error}");
    assert!(process.function("with\0nul", &signature).is_err());
    // SAFETY: there is no such library.
    let error: LibraryError = unsafe { Library::open("libno_such_library.so.7") }.unwrap_err();
    assert_eq!(error.path.to_str(), Some("libno_such_library.so.7"));
    assert!(error.to_string().contains("libno_such_library.so.7 cannot be loaded: "), "{error}");
    let error = Function::new(core::ptr::null(), "nothing", &signature).unwrap_err();
    assert!(error.to_string().contains("dynamic.rs") && error.to_string().contains("is null"), "{error}");
    let error = "pascal".parse::<Abi>().unwrap_err();
    assert!(
        error.to_string().starts_with("there is no calling convention `pascal` here; this target has C"),
        "{error}"
    );
    let error = Signature::new(Abi::StdCall, Type::Void, vec![]);
    #[cfg(not(target_arch = "x86"))]
    assert!(
        error
            .unwrap_err()
            .to_string()
            .starts_with("this target has no calling convention `stdcall`; it has C")
    );
}

#[test]
fn a_reference_the_vm_refuses_is_an_error_that_names_the_argument() {
    let (world, function) = (world(), libc("size_t strlen(const char*)"));
    let mut mutator = world.attach().unwrap();
    let stale = world.vm().heap().alloc(&[], b"gone\0");
    TestVm::collect_in(&mut mutator).unwrap();
    let mut call = mutator.foreign_call().dynamic(&function);
    for plan in
        [Plan::Root, Plan::Pin, Plan::TransitivePin, Plan::RootUntilFirstUpcall, Plan::PinUntilFirstUpcall]
    {
        let error = call.reference(stale, plan).unwrap_err();
        assert!(
            matches!(
                &error,
                CallError::Refused { index: 0, error: ArgumentError::NotOfThisWorld { .. }, .. }
            ),
            "{plan:?}: {error:?}"
        );
        assert_eq!((error.function(), error.index()), ("strlen", Some(0)));
        assert!(
            error.to_string().starts_with("argument 0 of `strlen` is refused: the reference "),
            "{error}"
        );
    }
    let error = call.text("in\0side").unwrap_err();
    assert!(matches!(error, CallError::Text { index: 0, .. }));
    assert!(error.to_string().contains("has a NUL at byte 2"), "{error}");
    call.text("inside").unwrap();
    // SAFETY: the signature is that of `strlen`, and the text ends with a NUL.
    assert_eq!(unsafe { run(&mut call) }.as_u64(), Some(6));
    // A VM that lends no bytes can be asked for roots alone.
    let world = Plain::<90>::world(reentry::FenceStrategy::probe());
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call().dynamic(&function);
    let error = call.reference(16, Plan::Pin).unwrap_err();
    assert!(matches!(error, CallError::Refused { error: ArgumentError::NoBytes, .. }), "{error:?}");
}

/// The bytes C sums at an address, before and after it calls back, while the callback collects twice.
#[test]
fn a_pinned_object_is_read_by_c_where_it_is_across_collections() {
    fn collect(mutator: &mut Mutator<TestVm>, _: c_int) -> c_int {
        for _ in 0..2 {
            TestVm::collect_in(mutator).unwrap();
        }
        0
    }
    let (world, callback): (_, Callback) = (world(), upcall_fn(collect));
    let sum = declare(
        foreign_sum_twice as *const c_void,
        "uint64_t foreign_sum_twice(const unsigned char*, size_t, int (*)(int))",
    );
    let mut mutator = world.attach().unwrap();
    for plan in [Plan::Pin, Plan::TransitivePin] {
        let text = world.vm().heap().alloc(&[], b"lent where it is");
        let mut call = mutator.foreign_call().dynamic(&sum);
        let address = call.reference(text, plan).unwrap();
        assert_eq!(address, world.vm().heap().payload(text).unwrap().cast(), "no copy");
        call.value(16_usize).unwrap();
        call.value(callback as *const c_void).unwrap();
        let expected = 2 * b"lent where it is".iter().map(|byte| u64::from(*byte)).sum::<u64>();
        // SAFETY: sixteen pinned bytes, and an upcall.
        assert_eq!(unsafe { run(&mut call) }, Value::U64(expected), "{plan:?}");
    }
}

#[test]
fn a_rooted_object_is_found_by_c_through_its_slot_after_it_has_moved() {
    fn collect(mutator: &mut Mutator<TestVm>, _: c_int) -> c_int {
        TestVm::collect_in(mutator).unwrap();
        0
    }
    let (world, callback): (_, Callback) = (world(), upcall_fn(collect));
    let sum = declare(
        foreign_sum_through_slot as *const c_void,
        "uint64_t foreign_sum_through_slot(void**, size_t, size_t, int (*)(int))",
    );
    let mut mutator = world.attach().unwrap();
    let object = world.vm().heap().alloc(&[], b"it moves");
    let payload = world.vm().heap().payload(object).unwrap().addr();
    let mut call = mutator.foreign_call().dynamic(&sum);
    let slot = call.reference(object, Plan::Root).unwrap();
    // SAFETY: the slot of a root, while managed.
    let word = unsafe { slot.cast::<usize>().read() };
    call.value(payload - word).unwrap();
    call.value(8_usize).unwrap();
    call.value(callback as *const c_void).unwrap();
    let expected = 2 * b"it moves".iter().map(|byte| u64::from(*byte)).sum::<u64>();
    // SAFETY: C reads eight bytes of the object that the slot refers to, which is rooted.
    assert_eq!(unsafe { run(&mut call) }, Value::U64(expected));
    // SAFETY: as above: the slot has followed it.
    assert_ne!(unsafe { slot.cast::<usize>().read() }, word);
}

thread_local! {
    static FREED: core::cell::Cell<usize> = const { core::cell::Cell::new(0) };
}

/// The argument is needed before C calls back and not after: B8 of a call that says so beforehand.
#[test]
fn what_is_held_until_the_first_upcall_is_collectable_in_it_and_not_before() {
    fn collect(mutator: &mut Mutator<TestVm>, _: c_int) -> c_int {
        FREED.set(FREED.get() + TestVm::collect_in(mutator).unwrap().freed);
        0
    }
    let (world, callback): (_, Callback) = (world(), upcall_fn(collect));
    let call_back = declare(foreign_call_back as *const c_void, "int call_back(int (*)(int), int)");
    let take = declare(take_object as *const c_void, "int take(const void*, int (*)(int))");
    let mut mutator = world.attach().unwrap();
    for (plan, freed) in
        [(Plan::RootUntilFirstUpcall, 1), (Plan::PinUntilFirstUpcall, 1), (Plan::Root, 0), (Plan::Pin, 0)]
    {
        TestVm::collect_in(&mut mutator).unwrap();
        let object = world.vm().heap().alloc(&[], b"used at once");
        FREED.set(0);
        {
            let mut call = mutator.foreign_call().dynamic(&take);
            call.reference(object, plan).unwrap();
            call.value(callback as *const c_void).unwrap();
            // SAFETY: the functions are what they are declared as; C looks at the object before it calls back.
            unsafe { call.run() }.unwrap();
            assert_eq!(FREED.get(), freed, "{plan:?}");
        }
        // A pause while C runs and has not called back finds it.
        TestVm::collect_in(&mut mutator).unwrap();
        let object = world.vm().heap().alloc(&[], b"held while C runs");
        let mut call = mutator.foreign_call();
        match plan {
            Plan::RootUntilFirstUpcall => {
                call.root_until_first_upcall(object).unwrap();
            }
            Plan::PinUntilFirstUpcall => {
                call.pin_until_first_upcall(object).unwrap();
            }
            _ => continue,
        }
        let freed = call.run(|| world.pause(|stopped| stopped.vm().collect(stopped)).unwrap().freed);
        assert_eq!(freed, 0, "{plan:?}");
        drop(call);
        // An upcall of another call has nothing to do with it.
        let mut call = mutator.foreign_call().dynamic(&call_back);
        call.value(callback as *const c_void).unwrap();
        call.value(1).unwrap();
        // SAFETY: an upcall.
        unsafe { call.run() }.unwrap();
    }
}

/// C that is given an object, and calls back.
extern "C" fn take_object(_: *const c_void, callback: Callback) -> c_int {
    callback(0)
}

#[test]
fn the_first_upcall_that_is_refused_ends_nothing() {
    fn collect(mutator: &mut Mutator<TestVm>, _: c_int) -> c_int {
        FREED.set(TestVm::collect_in(mutator).unwrap().freed);
        0
    }
    let (world, callback): (_, Callback) = (world(), upcall_fn(collect));
    let mut mutator = world.attach().unwrap();
    let object = world.vm().heap().alloc(&[], b"kept");
    let mut call = mutator.foreign_call().without_upcalls().on_error(ErrorPolicy::Fallback);
    call.root_until_first_upcall(object).unwrap();
    let freed = call.run(|| {
        callback(0);
        world.pause(|stopped| stopped.vm().collect(stopped)).unwrap().freed
    });
    assert_eq!(freed, 0);
    assert!(world.vm().take_reports()[0].contains("was declared to make no upcall"));
}

/// Each depth has its own call memory and its own words: what the inner calls do leaves the outer's arguments as they were.
#[test]
fn calls_nested_in_upcalls_leave_the_arguments_of_the_outer_ones_alone() {
    const DEPTH: i32 = 40;
    let world = world();
    let signature = Signature::parse("int (char*, int)").unwrap();
    let nest = Closure::new(&world, &signature, {
        let world = world.clone();
        move |mutator, invocation| {
            TestVm::collect_in(mutator).unwrap();
            let depth = invocation.argument(1).as_i64().unwrap();
            if depth > 0 {
                descend(&world, mutator, i32::try_from(depth).unwrap() - 1);
            }
            let text = invocation.argument(0).as_pointer().unwrap().cast::<c_char>();
            // SAFETY: the outer call's text, which ends with a NUL and lasts as long as that call.
            let text = unsafe { core::ffi::CStr::from_ptr(text) }.to_str().unwrap();
            assert_eq!(text, format!("at depth {depth}"));
            invocation.returns(i32::try_from(depth).unwrap()).unwrap();
            Ok(())
        }
    })
    .unwrap();
    fn descend(world: &World<TestVm>, mutator: &mut Mutator<TestVm>, depth: i32) {
        let code = world.vm().global(0);
        let address = world.vm().heap().bytes(code).unwrap();
        let address = usize::from_ne_bytes(address.try_into().unwrap());
        let signature = Signature::parse("int (char*, int)").unwrap();
        let nest = Function::new(core::ptr::with_exposed_provenance(address), "nest", &signature).unwrap();
        let mut call = mutator.foreign_call().dynamic(&nest);
        let text = call.text(&format!("at depth {depth}")).unwrap();
        call.value(depth).unwrap();
        // SAFETY: the closure has this signature, and lives.
        assert_eq!(unsafe { run(&mut call) }, Value::I32(depth));
        // SAFETY: memory of this call.
        assert_eq!(unsafe { text.as_ptr().cast::<u8>().read() }, b'a');
    }
    let code = nest.code().expose_provenance();
    let object = world.vm().heap().alloc(&[], &code.to_ne_bytes());
    world.vm().add_global(object);
    let mut mutator = world.attach().unwrap();
    descend(&world, &mut mutator, DEPTH);
}

#[test]
fn a_call_can_run_again_with_arguments_of_its_own() {
    let (world, add) = (world(), add());
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call().dynamic(&add);
    for i in 0..100 {
        call.value(i).unwrap();
        call.value(2 * i).unwrap();
        // SAFETY: `foreign_add` adds.
        assert_eq!(unsafe { run(&mut call) }, Value::I32(3 * i));
    }
    // SAFETY: nothing is called without its arguments.
    assert!(unsafe { call.run() }.is_err(), "the arguments are not those of the last run");
    assert_eq!(call.result(), Value::I32(297), "of the last that was made");
}

#[test]
fn structs_come_back_and_stay_as_long_as_the_call() {
    let world = world();
    let mirror = declare(
        foreign_mirror as *const c_void,
        "struct point { double x, y; } mirror(struct point { double x, y; })",
    );
    let Type::Struct(point) = mirror.signature().result() else { panic!("a struct") };
    let mut bytes = vec![0; point.size()];
    point.field("x").unwrap().write(&mut bytes, Value::F64(1.5)).unwrap();
    point.field("y").unwrap().write(&mut bytes, Value::F64(-2.5)).unwrap();
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call().dynamic(&mirror);
    assert!(call.value(Value::Bytes(&bytes[1..])).is_err(), "too few bytes");
    call.value(Value::Bytes(&bytes)).unwrap();
    // SAFETY: the signature is the function's.
    let mirrored = unsafe { run(&mut call) }.as_bytes().unwrap();
    assert_eq!(point.field("x").unwrap().read(mirrored), Ok(Value::F64(-2.5)));
    assert_eq!(point.field("y").unwrap().read(mirrored), Ok(Value::F64(1.5)));
    drop(call);
    // A result of 1,024 bytes, and an argument of as many.
    extern "C" fn turn(large: Large) -> Large {
        let mut turned = large;
        turned.0.reverse();
        turned
    }
    let large = declare(turn as *const c_void, "struct { int64_t n[128]; } turn(struct { int64_t n[128]; })");
    let numbers: Vec<u8> = (0..128_i64).flat_map(i64::to_ne_bytes).collect();
    let mut call = mutator.foreign_call().dynamic(&large);
    for _ in 0..3 {
        call.value(Value::Bytes(&numbers)).unwrap();
        // SAFETY: the signature is the function's.
        let turned = unsafe { run(&mut call) }.as_bytes().unwrap();
        let turned: Vec<i64> =
            turned.chunks(8).map(|word| i64::from_ne_bytes(word.try_into().unwrap())).collect();
        assert_eq!(turned, (0..128).rev().collect::<Vec<_>>());
    }
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Large([i64; 128]);

#[test]
fn errno_is_what_c_left() {
    let (world, fail) = (world(), declare(foreign_fail as *const c_void, "int foreign_fail(int)"));
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call().dynamic(&fail);
    call.value(libc::ENOTTY).unwrap();
    // SAFETY: the signature is the function's.
    let (failed, errno) = unsafe { call.run_with_errno() }.unwrap();
    assert_eq!((failed.result(), errno.raw()), (Value::I32(-1), libc::ENOTTY));
    call.value(libc::EDOM).unwrap();
    // SAFETY: as above.
    let (failed, errno) = unsafe { call.try_run_with_errno() }.unwrap();
    assert_eq!((failed.result(), errno.raw()), (Value::I32(-1), libc::EDOM));
}

#[test]
fn what_stands_for_dots_is_promoted_as_c_does_and_goes_through_libffi_if_there_is_too_much_of_it() {
    let (world, snprintf) = (world(), libc("int snprintf(char*, size_t, const char*, ...)"));
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call().dynamic(&snprintf);
    let printed = |call: &mut Call<'_, TestVm>, format: &str, values: &[Value<'_>]| {
        let buffer = call.copy_slice(&[0_u8; 256]).unwrap();
        call.value(256_usize).unwrap();
        call.text(format).unwrap();
        for value in values {
            call.value(*value).unwrap();
        }
        // SAFETY: the format asks for what is passed.
        let length = unsafe { run(call) }.as_u64().unwrap();
        String::from_utf8(call.read_slice(buffer)[..usize::try_from(length).unwrap()].to_vec()).unwrap()
    };
    let small = [Value::I8(-1), Value::U16(2), Value::F32(0.5)];
    assert_eq!(printed(&mut call, "%d %d %g", &small), "-1 2 0.5");
    assert_eq!(printed(&mut call, "nothing", &[]), "nothing");
    // Fourteen integers and ten doubles: more than registers.
    let many: Vec<Value<'_>> =
        (0..14).map(Value::I64).chain((0..10).map(|i| Value::F64(f64::from(i) / 2.0))).collect();
    let format = "%ld ".repeat(14) + &"%g ".repeat(10);
    let expected: String =
        (0..14).map(|i| format!("{i} ")).chain((0..10).map(|i| format!("{} ", f64::from(i) / 2.0))).collect();
    for _ in 0..3 {
        assert_eq!(printed(&mut call, &format, &many), expected);
        assert_eq!(printed(&mut call, "%d %d %g", &small), "-1 2 0.5");
    }
    // A call that is given up in the middle leaves nothing to the next.
    call.copy_slice(&[0_u8; 1]).unwrap();
    call.value(1_usize).unwrap();
    // SAFETY: nothing is called without its arguments.
    let error = unsafe { call.run() }.map(drop);
    assert!(matches!(error, Err(CallError::WrongCount { or_more: true, came: 2, .. })));
    assert_eq!(printed(&mut call, "%d", &[Value::I32(5)]), "5");
    let error = call.value(Value::I32(1)).unwrap_err();
    assert!(matches!(error, CallError::WrongType { index: 0, .. }), "{error}");
    for _ in 0..3 {
        call.value(Value::NULL).map_or_else(|_| call.value(0_usize), Ok).unwrap();
    }
    let error = call.value(Value::Bytes(&[0; 8])).unwrap_err();
    assert!(matches!(error, CallError::Variadic { index: 3, .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("8 bytes has no C type of its own; name its type with `Function::with_variadic`"),
        "{error}"
    );
    for i in 0..64 {
        call.value(i).unwrap();
    }
    assert!(call.value(64).unwrap_err().to_string().contains("64 have been passed"));
    drop(call);
    // A signature that names the types takes those and no more.
    let named = snprintf.with_variadic(&[Type::Scalar(Scalar::Int)]).unwrap();
    assert_eq!(named.signature().to_string(), "int (char*, size_t, const char*, ..., int)");
    let mut call = mutator.foreign_call().dynamic(&named);
    assert_eq!(printed(&mut call, "%d", &[Value::U8(5)]), "5");
    call.copy(0_u8).unwrap();
    call.value(0_usize).unwrap();
    call.text("").unwrap();
    call.value(1).unwrap();
    assert!(matches!(call.value(2), Err(CallError::WrongCount { expected: 4, or_more: false, came: 5, .. })));
    let error = snprintf.with_variadic(&[Type::Scalar(Scalar::Float)]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`float` cannot be passed for `...`: C promotes it; declare the type it is promoted to"
    );
}

#[test]
fn a_panic_of_an_upcall_goes_on_in_the_caller_and_the_call_can_be_used_again() {
    fn fail(_: &mut Mutator<TestVm>, x: c_int) -> c_int {
        if x == 0 { panic_quietly(7) } else { x }
    }
    /// # Errors
    ///
    /// Always.
    fn throw(_: &mut Mutator<TestVm>, _: c_int) -> Result<c_int, Trap> {
        Err(Trap::NoSuchNative(3))
    }
    let world = world();
    let (fail, throw): (Callback, Callback) = (upcall_fn(fail), upcall_fn(Throwing(throw)));
    let call_back = declare(foreign_call_back as *const c_void, "int call_back(int (*)(int), int)");
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call().dynamic(&call_back);
    call.value(fail as *const c_void).unwrap();
    call.value(0).unwrap();
    // SAFETY: C calls back.
    assert_eq!(number(|| unsafe { call.run() }.map(drop)), 7);
    assert_eq!(call.result(), Value::Void);
    call.value(throw as *const c_void).unwrap();
    call.value(0).unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { call.try_run() }.map(drop), Err(TryCallError::Thrown(Trap::NoSuchNative(3))));
    call.value(fail as *const c_void).unwrap();
    call.value(5).unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { run(&mut call) }, Value::I32(5));
}

#[test]
fn a_closure_of_another_signature_than_the_parameter_declares_is_refused() {
    let world = world();
    let qsort = libc("void qsort(void*, size_t, size_t, int (*)(const void*, const void*))");
    let other = Signature::parse("int (const void*)").unwrap();
    let closure = Closure::builder(&world, &other).name("half").build(|_, _| Ok(())).unwrap();
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call().dynamic(&qsort);
    call.copy(0).unwrap();
    call.value(0_usize).unwrap();
    assert!(
        matches!(call.closure(&closure), Err(CallError::WrongType { index: 2, .. })),
        "no pointer is due"
    );
    call.value(0_usize).unwrap();
    assert_eq!(
        call.closure(&closure).unwrap_err().to_string(),
        "argument 3 of `qsort` is a `int (const void*, const void*)`, and the closure `half` is a `int (const void*)`"
    );
}

/// Hostile to the guard: a call that is leaked after it has run, and one that is caught in a panic, leave a mutator that works (I9).
#[test]
fn a_leaked_call_keeps_what_it_declared_and_harms_nobody() {
    let (world, strlen) = (world(), libc("size_t strlen(const char*)"));
    let mut mutator = world.attach().unwrap();
    let text = world.vm().heap().alloc(&[], b"four\0");
    for _ in 0..3 {
        let mut call = mutator.foreign_call().dynamic(&strlen);
        call.reference(text, Plan::Pin).unwrap();
        // SAFETY: the text ends with a NUL, and is pinned.
        assert_eq!(unsafe { run(&mut call) }.as_u64(), Some(4));
        #[expect(clippy::mem_forget, reason = "it is what is tested")]
        core::mem::forget(call);
    }
    TestVm::collect_in(&mut mutator).unwrap();
    assert_eq!(world.vm().heap().bytes(text).as_deref(), Ok(&b"four\0"[..]), "pinned still");
    let mut call = mutator.foreign_call().dynamic(&strlen);
    call.text("after").unwrap();
    // SAFETY: the text ends with a NUL.
    assert_eq!(unsafe { run(&mut call) }.as_u64(), Some(5));
}

/// Ten kilobytes of arguments in one call, twenty of them structs: call memory, and libffi's own way to the stack.
#[test]
fn arguments_that_fill_the_stack_arrive() {
    #[derive(Clone, Copy)]
    #[repr(C)]
    struct Block([u64; 64]);
    extern "C" fn fold(a: Block, x: f64, b: Block, y: i8, c: Block) -> u64 {
        let sum = |block: Block| block.0.iter().sum::<u64>();
        sum(a) + 2 * sum(b) + 3 * sum(c) + x as u64 + u64::from(y.unsigned_abs())
    }
    let world = world();
    let mut types = Types::new();
    types.declare("struct block { uint64_t words[64]; };").unwrap();
    let (name, signature) =
        types.prototype("uint64_t fold(struct block, double, struct block, int8_t, struct block)").unwrap();
    let fold = Function::new(fold as *const c_void, &name, &signature).unwrap();
    let bytes = |start: u64| (start..start + 64).flat_map(u64::to_ne_bytes).collect::<Vec<u8>>();
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call().dynamic(&fold);
    for _ in 0..2 {
        call.value(Value::Bytes(&bytes(0))).unwrap();
        call.value(1000.0).unwrap();
        call.value(Value::Bytes(&bytes(64))).unwrap();
        call.value(-100).unwrap();
        call.value(Value::Bytes(&bytes(128))).unwrap();
        let sum = |start: u64| (start..start + 64).sum::<u64>();
        // SAFETY: the signature is the function's.
        assert_eq!(unsafe { run(&mut call) }, Value::U64(sum(0) + 2 * sum(64) + 3 * sum(128) + 1100));
    }
}

/// Checked mode sees the addresses among the arguments.
#[test]
fn an_unprotected_heap_address_among_the_arguments_is_reported() {
    let (world, strlen) = (world(), libc("size_t strlen(const char*)"));
    let mut mutator = world.attach().unwrap();
    let text = world.vm().heap().alloc(&[], b"four\0");
    let address = world.vm().heap().payload(text).unwrap();
    let mut call = mutator.foreign_call().dynamic(&strlen);
    call.value(address).unwrap();
    // SAFETY: the text ends with a NUL, and nothing moves it here.
    assert_eq!(unsafe { run(&mut call) }.as_u64(), Some(4));
    let reports = world.vm().take_reports();
    if checked() {
        assert!(
            reports.len() == 1 && reports[0].contains("in argument 0, which lies in an object that may move"),
            "{reports:?}"
        );
    } else {
        assert_eq!(reports, [""; 0]);
    }
}

#[test]
fn a_signature_is_shared_by_threads_that_prepare_it_at_once() {
    let text = "struct s { int a; float b[3]; } (struct s { int a; float b[3]; }, long, ...)";
    let signatures: Vec<Signature> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| (0..200).map(|_| Signature::parse(text).unwrap()).next_back().unwrap()))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(signatures.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn an_argument_that_is_not_there_is_asked_for_in_vain() {
    let world = world();
    let signature = Signature::parse("int (int)").unwrap();
    let closure = Closure::new(&world, &signature, |_, call| {
        assert_eq!(call.get(1), None);
        let _ = call.argument(1);
        Ok(())
    })
    .unwrap();
    let function = Function::new(closure.code(), "closure", &signature).unwrap();
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call().dynamic(&function);
    call.value(1).unwrap();
    // SAFETY: the closure has this signature.
    let said = message(|| unsafe { call.run() }.map(drop));
    assert_eq!(said, "reentry: argument 1 was asked for, and `int (int)` has 1");
    let caught = catch_unwind(AssertUnwindSafe(|| call.result()));
    assert_eq!(caught.unwrap(), Value::Void);
}
