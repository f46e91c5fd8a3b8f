//! What a dynamic call passes the address of is what the parameter's declaration says is there.

use core::ffi::{c_char, c_int, c_void};
use core::sync::atomic::{AtomicUsize, Ordering};
use reentry::World;
use reentry::dynamic::{CallError, Closure, Function, Plan, Signature, Types, Value};
use reentry::testkit::TestVm;

static CALLS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn touched(_: *const c_void) -> c_int {
    CALLS.fetch_add(1, Ordering::Relaxed);
    1
}

/// A function with one parameter.
fn taking(parameter: &str) -> Function {
    let (name, signature) = Types::new().prototype(&format!("int touched({parameter})")).unwrap();
    Function::new(touched as *const c_void, &name, &signature).unwrap()
}

#[repr(C, align(16))]
struct Aligned([u8; 32]);

#[derive(Clone, Copy)]
#[repr(C)]
struct Both(i32, i32);

reentry::foreign_value!(Both);

/// Passes the address of something to a function.
type Way = fn(&Function) -> Result<(), CallError>;

/// Each way to pass an address, with what it passes.
const WAYS: &[(&str, Way)] = &[
    ("text", |f| in_call(f, |call| call.text("text").map(drop))),
    ("one int", |f| in_call(f, |call| call.copy(7_i32).map(drop))),
    ("one long long", |f| in_call(f, |call| call.copy(7_i64).map(drop))),
    ("one byte", |f| in_call(f, |call| call.copy(7_u8).map(drop))),
    ("two ints", |f| in_call(f, |call| call.copy(Both(1, 2)).map(drop))),
    ("three bytes", |f| in_call(f, |call| call.copy_slice(b"abc").map(drop))),
    ("eight bytes", |f| in_call(f, |call| call.copy_slice(b"abcdefgh").map(drop))),
    ("no bytes", |f| in_call(f, |call| call.copy_slice::<u8>(&[]).map(drop))),
    ("two shorts", |f| in_call(f, |call| call.copy_slice(&[1_i16, 2]).map(drop))),
    ("aligned bytes", |f| in_call(f, |call| call.keep_alive(&ALIGNED.0[..16]))),
    ("bytes askew", |f| in_call(f, |call| call.keep_alive(&ALIGNED.0[1..17]))),
    ("an object", |f| {
        in_call(f, |call| {
            let object = call.vm().heap().alloc(&[], &[0; 16]);
            call.reference(object, Plan::Pin).map(drop)
        })
    }),
];

static ALIGNED: Aligned = Aligned([0; 32]);

/// Passes something in a call, and makes the call if it is taken.
///
/// # Errors
///
/// Why it is not.
fn in_call(
    function: &Function,
    pass: impl FnOnce(&mut reentry::dynamic::Call<'_, TestVm>) -> Result<(), CallError>,
) -> Result<(), CallError> {
    let world = World::new(TestVm::new());
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call().dynamic(function);
    let passed = pass(&mut call);
    if passed.is_ok() {
        // SAFETY: the function takes any address, and looks at nothing.
        unsafe { call.run() }.unwrap();
        assert_eq!(call.result(), Value::I32(1));
    }
    passed
}

#[test]
fn data_is_passed_where_the_parameter_points_to_such_data_and_nowhere_else() {
    let all = WAYS.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    for (parameter, taken) in [
        ("void*", &all[..]),
        ("const struct opaque*", &all),
        ("const char*", &all),
        ("int*", &["one int", "two ints", "eight bytes", "no bytes", "aligned bytes", "an object"]),
        ("double*", &["one long long", "two ints", "eight bytes", "no bytes", "aligned bytes", "an object"]),
        ("short*", &["eight bytes", "no bytes", "two shorts", "aligned bytes", "an object"]),
        ("char**", &["one long long", "two ints", "eight bytes", "no bytes", "aligned bytes", "an object"]),
        ("int (*)(void)", &[]),
    ] {
        let function = taking(parameter);
        for (name, pass) in WAYS {
            let (before, passed) = (CALLS.load(Ordering::Relaxed), pass(&function));
            assert_eq!(passed.is_ok(), taken.contains(name), "{name} for `{parameter}`: {passed:?}");
            assert_eq!(CALLS.load(Ordering::Relaxed) - before, usize::from(passed.is_ok()));
            if let Err(error) = passed {
                assert!(matches!(error, CallError::WrongType { index: 0, .. }), "{error:?}");
            }
        }
    }
}

/// What came is said, with what was due.
#[test]
fn an_address_of_something_else_is_an_error_that_says_what_came() {
    for (parameter, way, said) in [
        ("int (*)(void)", "text", "`int (*)(void)` was expected, and text came"),
        ("int (*)(void)", "an object", "and the address of a heap object came"),
        ("int (*)(void)", "one int", "and the address of a copy of 4 byte(s) came"),
        (
            "int*",
            "three bytes",
            "`int*` was expected, and the address of a copy of 3 byte(s), where one has 4 and an alignment of 4, came",
        ),
        ("int*", "bytes askew", "and the address of memory of 16 byte(s), where one has 4"),
        ("int*", "text", "`int*` was expected, and text came"),
    ] {
        let pass = WAYS.iter().find(|(name, _)| *name == way).unwrap().1;
        let error = pass(&taking(parameter)).unwrap_err().to_string();
        assert!(
            error.starts_with("argument 0 of `touched` is of the wrong type: ") && error.contains(said),
            "{error}"
        );
    }
}

#[test]
fn the_code_of_a_closure_is_no_data() {
    let world = World::new(TestVm::new());
    let signature = Signature::parse("int (void)").unwrap();
    let closure = Closure::builder(&world, &signature).name("seven").build(|_, _| Ok(())).unwrap();
    let mut mutator = world.attach().unwrap();
    for (parameter, taken) in [
        ("int (*)(void)", true),
        ("void*", true),
        ("int*", false),
        ("char*", false),
        ("struct opaque*", false),
    ] {
        let function = taking(parameter);
        let mut call = mutator.foreign_call().dynamic(&function);
        let passed = call.closure(&closure);
        assert_eq!(passed.is_ok(), taken, "{parameter}: {passed:?}");
    }
}

extern "C" fn sum(numbers: *const c_int, count: usize) -> c_int {
    assert!(numbers.is_aligned(), "C may read an `int` at an aligned address only");
    // SAFETY: promised by whoever calls it.
    unsafe { core::slice::from_raw_parts(numbers, count) }.iter().sum()
}

/// Bytes that are passed for an `int[]`, after memory of an odd size: without an alignment of their own they would lie at the next address.
#[test]
fn memory_of_a_call_is_aligned_for_every_c_type() {
    let (name, signature) = Types::new().prototype("int sum(const int*, size_t)").unwrap();
    let function = Function::new(sum as *const c_void, &name, &signature).unwrap();
    let world = World::new(TestVm::new());
    let mut mutator = world.attach().unwrap();
    for odd in 0..17 {
        let mut call = mutator.foreign_call();
        assert!(call.copy_slice(&vec![0_u8; odd]).as_ptr().cast::<u8>().addr().is_multiple_of(16));
        let bytes: Vec<u8> = [1_i32, 2, 4].iter().flat_map(|number| number.to_ne_bytes()).collect();
        let mut call = call.dynamic(&function);
        let copied = call.copy_slice(&bytes).unwrap();
        assert!(copied.as_ptr().cast::<u8>().addr().is_multiple_of(16), "after {odd} bytes");
        call.value(3_usize).unwrap();
        // SAFETY: three aligned `int`s.
        unsafe { call.run() }.unwrap();
        assert_eq!(call.result(), Value::I32(7));
        drop(call);
        let mut call = mutator.foreign_call();
        call.copy(odd as u8);
        assert!(call.copy([0_u8; 3]).as_ptr().addr().is_multiple_of(16));
        let text: *mut c_char = call.copy_c_str("not aligned").unwrap().as_ptr();
        assert!(!text.is_null());
    }
}
