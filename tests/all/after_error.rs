//! When an upcall has failed, the further upcalls of its foreign call do not run.

use crate::plain::panic_quietly;
use core::cell::Cell;
use core::ffi::{c_int, c_void};
use core::panic::AssertUnwindSafe;
use reentry::testkit::{TestVm, Trap};
use reentry::{Always, ErrorPolicy, FallbackOnly, Mutator, Throwing, UpcallClosure, World, upcall_fn_or};
use reentry_foreign::{foreign_call_back, foreign_call_back_last};
use std::panic::catch_unwind;

unsafe extern "C" {
    fn qsort_r(
        base: *mut c_void,
        count: usize,
        size: usize,
        compare: unsafe extern "C" fn(*const c_void, *const c_void, *mut c_void) -> c_int,
        data: *mut c_void,
    );
}

/// What has been reported, but for what is in every message.
fn reports(world: &World<TestVm>) -> Vec<String> {
    world.vm().take_reports()
}

#[test]
#[cfg(target_os = "linux")]
fn a_sort_whose_comparison_throws_is_not_compared_again_and_one_report_counts() {
    let world = World::new(TestVm::new());
    let mut mutator = world.attach().unwrap();
    let runs = Cell::new(0_u32);
    let compare = |_: &mut Mutator<TestVm>, _: *const c_void, _: *const c_void| -> Result<c_int, Trap> {
        RUNS.with(|runs| runs.set(runs.get() + 1));
        Err(Trap::NoSuchNative(3))
    };
    thread_local! { static RUNS: Cell<u32> = const { Cell::new(0) }; }
    let closure = UpcallClosure::new(&world, Throwing(compare));
    let mut numbers: Vec<u32> = (0..100).rev().collect();
    let base = numbers.as_mut_ptr().cast::<c_void>();
    // SAFETY: a hundred numbers, and the closure's own data.
    let sort = || unsafe { qsort_r(base, 100, size_of::<u32>(), closure.data_last(), closure.data()) };
    let outcome = mutator.foreign_call().try_run(sort);
    runs.set(RUNS.get());
    assert_eq!((outcome, runs.get()), (Err(Trap::NoSuchNative(3)), 1));
    let said = reports(&world);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("were not run") && said[0].contains(file!()), "{said:?}");
    // The next call begins anew, also at the common speed: its upcalls find the record's link again.
    let outcome = mutator.foreign_call().try_run(sort);
    assert_eq!((outcome, RUNS.get()), (Err(Trap::NoSuchNative(3)), 2));
}

/// # Errors
///
/// For a negative number.
fn run_or_throw(_: &mut Mutator<TestVm>, x: c_int) -> Result<c_int, Trap> {
    if x < 0 { Err(Trap::NoSuchNative(x.unsigned_abs() as u16)) } else { Ok(x) }
}

#[test]
fn each_way_to_fail_and_each_way_to_come_in_is_covered_and_a_call_can_opt_out() {
    let world = World::new(TestVm::new());
    let mut mutator = world.attach().unwrap();
    let throwing = upcall_fn_or(Throwing(run_or_throw), || -100);
    let always = upcall_fn_or(Always(Throwing(run_or_throw)), || -100);
    let alone = upcall_fn_or(FallbackOnly(|_: &mut Mutator<TestVm>, x: c_int| x), || -100);
    let panicking = upcall_fn_or(
        |_: &mut Mutator<TestVm>, x: c_int| -> c_int { panic_quietly(x.unsigned_abs()) },
        || -100,
    );
    let closure = UpcallClosure::with_fallback(&world, |_: &mut Mutator<TestVm>, x: c_int| x, -100);
    // SAFETY: calls the callback.
    let call = |callback, x| unsafe { foreign_call_back(callback, x) };
    let by_all = || {
        // SAFETY: the data pointer is the closure's own, and the closure lives.
        let by_closure = unsafe { foreign_call_back_last(closure.data_last(), 4, closure.data()) };
        [call(throwing, 1), call(always, 2), call(alone, 3), by_closure]
    };
    let carried = [-100, 2, -100, -100];
    assert_eq!(mutator.foreign_call().try_run(by_all), Ok([1, 2, 3, 4]));
    let seen = Cell::new([0; 4]);
    let failing = |first: &dyn Fn()| {
        first();
        seen.set(by_all());
    };
    let outcome = mutator.foreign_call().try_run(|| failing(&|| _ = call(throwing, -7)));
    assert_eq!((outcome, seen.replace([0; 4])), (Err(Trap::NoSuchNative(7)), carried));
    assert!(reports(&world)[0].starts_with("3 upcall(s)"));
    let outcome =
        catch_unwind(AssertUnwindSafe(|| mutator.foreign_call().run(|| failing(&|| _ = call(panicking, 8)))));
    assert_eq!((outcome.unwrap_err().downcast_ref(), seen.replace([0; 4])), (Some(&8_u32), carried));
    assert_eq!(reports(&world).len(), 1);
    // With terms of its own, too; without a pending error, none of this.
    let outcome =
        mutator.foreign_call().on_error(ErrorPolicy::Carry).try_run(|| failing(&|| _ = call(throwing, -7)));
    assert_eq!((outcome, seen.replace([0; 4])), (Err(Trap::NoSuchNative(7)), carried));
    assert_eq!(reports(&world).len(), 1);
    let outcome =
        mutator.foreign_call().upcalls_after_error().try_run(|| failing(&|| _ = call(throwing, -7)));
    assert_eq!((outcome, seen.replace([0; 4])), (Err(Trap::NoSuchNative(7)), [1, 2, 3, 4]));
    assert!(reports(&world).is_empty());
    let outcome = mutator
        .foreign_call()
        .on_error(ErrorPolicy::Fallback)
        .try_run(|| failing(&|| _ = call(throwing, -7)));
    assert_eq!((outcome, seen.replace([0; 4])), (Ok(()), [1, 2, 3, 4]));
    assert_eq!(reports(&world).len(), 1, "the error that ended");
    // Refusals are errors as well: the first is carried, the others are counted.
    let outcome =
        catch_unwind(AssertUnwindSafe(|| mutator.foreign_call().without_upcalls().run(|| _ = by_all())));
    assert!(outcome.is_err());
    let said = reports(&world);
    assert!(said.iter().any(|said| said.starts_with("2 upcall(s)")), "{said:?}");
    assert_eq!(mutator.foreign_call().try_run(by_all), Ok([1, 2, 3, 4]));
}

#[test]
fn an_error_of_an_outer_call_does_not_reach_the_calls_inside() {
    fn outer(mutator: &mut Mutator<TestVm>, x: c_int) -> c_int {
        mutator.throw(Trap::NoSuchNative(5));
        let inner = upcall_fn_or(Throwing(run_or_throw), || -100);
        // SAFETY: calls the callback.
        mutator.foreign_call().run(|| unsafe { foreign_call_back(inner, x) })
    }
    let world = World::new(TestVm::new());
    let mut mutator = world.attach().unwrap();
    let outer = upcall_fn_or(outer, || -100);
    for _ in 0..2 {
        let seen = Cell::new(0);
        // SAFETY: calls the callback.
        let outcome = mutator.foreign_call().try_run(|| seen.set(unsafe { foreign_call_back(outer, 6) }));
        assert_eq!((outcome, seen.get()), (Err(Trap::NoSuchNative(5)), 6));
    }
    assert_eq!(mutator.validate(), Ok(()));
}

#[test]
#[cfg(feature = "libffi")]
fn closures_with_run_time_signatures_keep_the_same_rule() {
    use reentry::dynamic::{Closure, Signature};
    let world = World::new(TestVm::new());
    let mut mutator = world.attach().unwrap();
    let signature = Signature::parse("int (int)").unwrap();
    let body = |_: &mut Mutator<TestVm>, call: &reentry::dynamic::Invocation<'_>| {
        let x = i32::try_from(call.argument(0).as_i64().unwrap()).unwrap();
        if x < 0 {
            return Err(Trap::NoSuchNative(1));
        }
        call.returns(x).unwrap();
        Ok(())
    };
    let plain = Closure::builder(&world, &signature).fallback(-100).build(body).unwrap();
    let always = Closure::builder(&world, &signature).fallback(-100).always().build(body).unwrap();
    // SAFETY: the closures have this signature.
    let [plain, always] = [plain.code(), always.code()]
        .map(|code| unsafe { core::mem::transmute::<*const c_void, extern "C" fn(c_int) -> c_int>(code) });
    let seen = Cell::new([0; 4]);
    let outcome = mutator.foreign_call().try_run(|| seen.set([plain(1), plain(-1), plain(2), always(3)]));
    assert_eq!((outcome, seen.get()), (Err(Trap::NoSuchNative(1)), [1, -100, -100, 3]));
    assert_eq!(reports(&world).len(), 1);
}
