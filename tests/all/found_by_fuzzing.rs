//! What the targets in `fuzz/`, and the model in `tests/model`, have found, each as the smallest case.

use core::ffi::c_int;
use core::mem::ManuallyDrop;
use reentry::dynamic::{Abi, Closure, Function, Signature, Types, Value};
use reentry::testkit::TestVm;
use reentry::testkit::bytecode::Program;
use reentry::{Mutator, World, upcall_fn};
use reentry_foreign::foreign_call_back;

/// The function alone would be called through registers, and what stands for `...` has no room there: the result is where libffi writes it.
#[test]
fn a_result_survives_more_variadic_arguments_than_registers() {
    let world = World::new(TestVm::new());
    let mut mutator = world.attach().unwrap();
    for count in [1, 6, 7, 20] {
        let parameters = vec!["double"; count].join(", ");
        let closed = Signature::parse(&format!("double (int, {parameters})")).unwrap();
        let open = Signature::parse("double (int, ...)").unwrap();
        assert!(open.is_in_registers());
        let sum = Closure::new(&world, &closed, |_, call| {
            let sum: f64 = call.arguments().filter_map(Value::as_f64).sum();
            call.returns(sum).expect("a `double`");
            Ok(())
        });
        let sum = sum.unwrap();
        let function = Function::new(sum.code(), "sum", &open).unwrap();
        let mut call = mutator.foreign_call().dynamic(&function);
        call.value(1).unwrap();
        for _ in 0..count {
            call.value(0.5).unwrap();
        }
        // SAFETY: the closure takes an `int` and so many `double`, as it is called.
        unsafe { call.run() }.unwrap();
        assert_eq!(call.result(), Value::F64(0.5 * count as f64), "{count} arguments for `...`");
    }
}

#[track_caller]
fn same_again(text: &str) {
    if !Abi::Win64.is_supported() && text.contains("__attribute__") {
        return;
    }
    let signature = Signature::parse(text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(signature.to_string(), text);
}

/// The struct took the function's calling convention for an attribute of its own.
#[test]
fn a_calling_convention_stands_behind_a_struct() {
    same_again("struct { int x; } __attribute__((sysv_abi)) (int)");
}

#[test]
fn a_pointer_to_a_function_has_a_calling_convention() {
    same_again(
        "void (int __attribute__((sysv_abi)) (*)(int), struct { int __attribute__((ms_abi)) (*f)(void); })",
    );
    if !Abi::Win64.is_supported() {
        return;
    }
    let inside = Signature::parse("void (int (__attribute__((ms_abi)) *)(int))").unwrap();
    assert_eq!(inside, Signature::parse("void (int __attribute__((ms_abi)) (*)(int))").unwrap());
}

#[test]
fn results_are_pointers_to_functions_that_return_pointers_to_functions() {
    same_again("void (*)(int) (*)(char) (double)");
    same_again(
        "void __attribute__((ms_abi)) (*)(int) __attribute__((sysv_abi)) (*)(char) __attribute__((ms_abi)) (double)",
    );
    same_again("void (void (*)(int) (*)(char) (*)(double))");
    same_again("void (struct { void (*)(int) (*f)(char); })");
}

/// A width of more than 65,535 is too much for the standard library.
#[test]
fn an_error_far_to_the_right_is_written() {
    let error = Signature::parse(&format!("{}!", " ".repeat(70_000))).unwrap_err();
    assert_eq!(error.column(), 70_001);
    assert!(error.to_string().ends_with("  ^"));
}

/// It was taken for the parameter's name, and the parameter for an `unsigned int`.
#[test]
fn a_word_of_c_is_no_name() {
    for text in
        ["int (unsigned __int128)", "int (unsigned _BitInt(7))", "int (size_t int)", "int (int struct)"]
    {
        assert!(Signature::parse(text).is_err(), "{text}");
    }
}

/// A pointer to an array, which is not read, came in by a typedef; what was printed of it nobody could read.
#[test]
fn a_typedef_of_an_array_makes_no_pointer_to_an_array() {
    let mut types = Types::new();
    types.declare("typedef int row[3]; typedef row square[3];").unwrap();
    for text in ["void (row*)", "void (row rows[3])", "void (square)"] {
        let error = types.signature(text).unwrap_err();
        assert_eq!(
            error.message(),
            "a pointer to an array is not read; write it as a pointer to the element"
        );
    }
    assert_eq!(types.signature("void (const row, row)").unwrap().to_string(), "void (const int*, int*)");
}

/// A leaked call keeps what it declared until its upcall is over. Its call memory was kept longer: the next upcall of that depth has the same record, and reported a reference that a
/// collection in between had left behind.
#[test]
fn what_a_call_leaked_in_an_upcall_holds_in_call_memory_ends_with_the_upcall() {
    fn body(mutator: &mut Mutator<TestVm>, leaks: c_int) -> c_int {
        if leaks > 0 {
            let object = mutator.vm().heap().alloc(&[], b"leaked");
            let mut call = mutator.foreign_call();
            call.root_until_released(object).unwrap();
            let _leaked = ManuallyDrop::new(call);
        }
        TestVm::collect_in(mutator).map_or(-1, |summary| summary.live as c_int)
    }
    let callback: extern "C" fn(c_int) -> c_int = upcall_fn(body);
    let world = TestVm::builder(Program::new(Vec::new()).unwrap()).build_world();
    let mut mutator = world.attach().unwrap();
    let call_back = |mutator: &mut Mutator<TestVm>, leaks| {
        // SAFETY: the callback takes what C gives it.
        mutator.foreign_call().run(|| unsafe { foreign_call_back(callback, leaks) })
    };
    assert_eq!(call_back(&mut mutator, 1), 1, "a leak keeps its objects");
    assert_eq!(TestVm::collect_in(&mut mutator).unwrap().live, 0);
    assert_eq!(call_back(&mut mutator, 0), 0, "-1 is an undead root");
}
