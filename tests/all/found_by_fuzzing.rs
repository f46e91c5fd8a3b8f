//! What the targets in `fuzz/` have found, each as the smallest case.

use reentry::World;
use reentry::dynamic::{Closure, Function, Signature, Value};
use reentry::testkit::TestVm;

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
