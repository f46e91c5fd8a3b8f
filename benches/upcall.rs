//! Foreign to managed: a bare call with a bare callback beside a foreign call with an upcall, in one group; and the poll.
#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![expect(clippy::missing_panics_doc, reason = "a benchmark that cannot be set up ends")]

mod common;

use common::{BenchVm, SecondThread, criterion, world};
use core::ffi::{c_int, c_void};
use core::hint::black_box;
use core::panic::AssertUnwindSafe;
use criterion::{Criterion, criterion_group, criterion_main};
use reentry::testkit::{TestVm, Trap};
use reentry::{FenceStrategy, Mutator, Throwing, UpcallClosure, World, upcall_fn};
use reentry_foreign::{Callback, foreign_call_back_and_go_on, foreign_call_back_last_and_go_on};
use std::panic::{catch_unwind, resume_unwind};

extern "C" fn bare(x: c_int) -> c_int {
    x + 1
}

fn managed(_: &mut Mutator<BenchVm>, x: c_int) -> c_int {
    x + 1
}

/// A foreign call with an upcall, inside an upcall, three deep.
fn nested(mutator: &mut Mutator<BenchVm>, x: c_int) -> c_int {
    if x == 0 {
        return 1;
    }
    let callback: Callback = upcall_fn(nested);
    // SAFETY: calls the callback.
    mutator.foreign_call().run(|| unsafe { foreign_call_back_and_go_on(callback, x - 1) })
}

extern "C" fn bare_nested(x: c_int) -> c_int {
    if x == 0 {
        return 1;
    }
    // SAFETY: calls the callback.
    unsafe {
        black_box(foreign_call_back_and_go_on as unsafe extern "C" fn(Callback, c_int) -> c_int)(
            bare_nested,
            x - 1,
        )
    }
}

/// # Errors
///
/// Unless `x` is 0.
fn throwing(_: &mut Mutator<TestVm>, x: c_int) -> Result<c_int, Trap> {
    if x == 0 { Ok(1) } else { Err(Trap::NoSuchNative(7)) }
}

fn panicking(_: &mut Mutator<TestVm>, x: c_int) -> c_int {
    if x == 0 { 1 } else { resume_unwind(Box::new(x)) }
}

/// Errors carried past C, in a VM with exceptions: a call whose upcall throws, and one whose upcall panics. The baseline is a bare call; `bare_panic` is what Rust takes to
/// begin a panic and catch it, with nothing between.
fn errors(c: &mut Criterion) {
    let mut group = c.benchmark_group("upcall");
    let world = World::new(TestVm::new());
    let mut attachment = world.attach().expect("a new world, a new thread");
    let mutator: &mut Mutator<TestVm> = &mut attachment;
    let call: Call = black_box(foreign_call_back_and_go_on);
    let (throws, panics): (Callback, Callback) = (upcall_fn(Throwing(throwing)), upcall_fn(panicking));
    group.bench_function("carry_error", |b| {
        b.iter(|| mutator.foreign_call().try_run(|| call_back_in_c(call, throws)).is_err());
    });
    group.bench_function("carry_panic", |b| {
        b.iter(|| {
            let call = AssertUnwindSafe(|| mutator.foreign_call().run(|| call_back_in_c(call, panics)));
            catch_unwind(call).is_err()
        });
    });
    group.bench_function("bare_panic", |b| {
        b.iter(|| catch_unwind(|| resume_unwind(Box::new(black_box(1)))).is_err());
    });
    group.finish();
}

/// The foreign work, and the baseline.
#[inline(always)]
fn call_back_in_c(call: Call, callback: Callback) -> c_int {
    // SAFETY: the C function calls the callback.
    unsafe { black_box(call)(black_box(callback), black_box(1)) }
}

type Call = unsafe extern "C" fn(Callback, c_int) -> c_int;

fn upcall(c: &mut Criterion) {
    let _second = SecondThread::start();
    let call: Call = black_box(foreign_call_back_and_go_on);
    let mut group = c.benchmark_group("upcall");
    group.bench_function("bare", |b| b.iter(|| call_back_in_c(call, bare)));
    group.bench_function("bare_nested_3", |b| b.iter(|| bare_nested(black_box(3))));
    let world = world(FenceStrategy::probe()).expect("probed");
    let mut attachment = world.attach().expect("a new world, a new thread");
    let mutator: &mut Mutator<BenchVm> = &mut attachment;
    let callback: Callback = upcall_fn(managed);
    group.bench_function("function_item", |b| {
        b.iter(|| mutator.foreign_call().run(|| call_back_in_c(call, callback)));
    });
    let add = 1;
    let closure = UpcallClosure::new(&world, |_: &mut Mutator<BenchVm>, x: c_int| x + add);
    let (function, data): (unsafe extern "C" fn(c_int, *mut c_void) -> c_int, _) =
        (closure.data_last(), closure.data());
    group.bench_function("closure", |b| {
        b.iter(|| {
            // SAFETY: the data pointer is the closure's own, and the closure lives.
            let call =
                || unsafe { foreign_call_back_last_and_go_on(black_box(function), black_box(1), data) };
            mutator.foreign_call().run(call)
        });
    });
    group.bench_function("nested_3", |b| b.iter(|| nested(mutator, black_box(3))));
    group.finish();

    let mut group = c.benchmark_group("poll");
    group.bench_function("idle", |b| b.iter(|| black_box(&mut *mutator).poll()));
    group.finish();
}

criterion_group! { name = benches; config = criterion(); targets = upcall, errors }
criterion_main!(benches);
