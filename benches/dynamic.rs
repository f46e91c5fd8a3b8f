//! Signatures known at run time: raw libffi beside ours, in one group, calls and callbacks; and the typed forms for comparison.
#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![expect(clippy::missing_panics_doc, reason = "a benchmark that cannot be set up ends")]

mod common;

use common::{BenchVm, SecondThread, criterion, world};
use core::ffi::{c_int, c_void};
use core::hint::black_box;
use core::mem::transmute;
use criterion::{Criterion, criterion_group, criterion_main};
use libffi::low::{CodePtr, call_return_into};
use libffi::middle::{Cif, Type};
use reentry::dynamic::{Closure, Function, Signature, Value};
use reentry::{FenceStrategy, Mutator, upcall_fn};
use reentry_foreign::{Callback, Point, foreign_add, foreign_call_back_and_go_on, foreign_mirror};

fn managed(_: &mut Mutator<BenchVm>, x: c_int) -> c_int {
    x + 1
}

extern "C" fn bare_callback(x: c_int) -> c_int {
    x + 1
}

/// What libffi calls for the raw closure.
///
/// # Safety
///
/// Called by libffi, for a closure of one `int`.
unsafe extern "C" fn raw_body(
    _: &libffi::low::ffi_cif,
    result: &mut c_int,
    arguments: *const *const c_void,
    _: &(),
) {
    // SAFETY: one argument, an `int`.
    *result = unsafe { *(*arguments).cast::<c_int>() } + 1;
}

type Add = unsafe extern "C" fn(c_int, c_int) -> c_int;
type Call = unsafe extern "C" fn(Callback, c_int) -> c_int;

/// The foreign work of the closures.
#[inline(always)]
fn call_back_in_c(call: Call, callback: Callback) -> c_int {
    // SAFETY: the C function calls the callback.
    unsafe { black_box(call)(black_box(callback), black_box(1)) }
}

fn dynamic(c: &mut Criterion) {
    let _second = SecondThread::start();
    let world = world(FenceStrategy::probe()).expect("probed");
    let mut attachment = world.attach().expect("a new world, a new thread");
    let mutator: &mut Mutator<BenchVm> = &mut attachment;
    let mut group = c.benchmark_group("dynamic");

    let add: Add = foreign_add;
    group.bench_function("bare_add", |b| {
        // SAFETY: `foreign_add` adds.
        b.iter(|| unsafe { black_box(add)(black_box(1), black_box(2)) });
    });
    let cif = Cif::new([Type::i32(), Type::i32()], Type::i32());
    group.bench_function("raw_libffi_add", |b| {
        b.iter(|| {
            let (mut one, mut two, mut sum) = (black_box(1_i32), black_box(2_i32), 0_i32);
            let mut arguments = [(&raw mut one).cast::<c_void>(), (&raw mut two).cast::<c_void>()];
            // SAFETY: two `int`s in, one out.
            unsafe {
                call_return_into(
                    cif.as_raw_ptr(),
                    CodePtr(black_box(add) as *mut c_void),
                    arguments.as_mut_ptr(),
                    (&raw mut sum).cast(),
                );
            }
            sum
        });
    });
    let signature = Signature::parse("int (int, int)").expect("a signature");
    let function = Function::new(add as *const c_void, "foreign_add", &signature).expect("not null");
    group.bench_function("prepared_add", |b| {
        b.iter(|| {
            let mut call = mutator.foreign_call().dynamic(black_box(&function));
            call.value(black_box(1)).expect("an `int`");
            call.value(black_box(2)).expect("an `int`");
            // SAFETY: the signature is the function's.
            let Value::I32(sum) = unsafe { call.run() }.expect("two arguments").result() else { return 0 };
            sum
        });
    });
    group.bench_function("typed_add", |b| {
        // SAFETY: `foreign_add` adds.
        b.iter(|| mutator.foreign_call().run(|| unsafe { black_box(add)(black_box(1), black_box(2)) }));
    });

    let mirror = foreign_mirror as unsafe extern "C" fn(Point) -> Point;
    let point = Point { x: 1.0, y: 2.0 };
    let point_type = || Type::structure([Type::f64(), Type::f64()]);
    let cif = Cif::new([point_type()], point_type());
    group.bench_function("raw_libffi_struct", |b| {
        b.iter(|| {
            let (mut point, mut mirrored) = (black_box(point), Point::default());
            let mut arguments = [(&raw mut point).cast::<c_void>()];
            // SAFETY: a struct of two `double`s in, another out.
            unsafe {
                call_return_into(
                    cif.as_raw_ptr(),
                    CodePtr(black_box(mirror) as *mut c_void),
                    arguments.as_mut_ptr(),
                    (&raw mut mirrored).cast(),
                );
            }
            mirrored.x
        });
    });
    let signature = Signature::parse("struct point { double x, y; } (struct point { double x, y; })")
        .expect("a signature");
    let function = Function::new(mirror as *const c_void, "foreign_mirror", &signature).expect("not null");
    group.bench_function("prepared_struct", |b| {
        b.iter(|| {
            let point = black_box(point);
            // SAFETY: the bytes of a struct without padding.
            let bytes =
                unsafe { core::slice::from_raw_parts((&raw const point).cast::<u8>(), size_of::<Point>()) };
            let mut call = mutator.foreign_call().dynamic(black_box(&function));
            call.value(Value::Bytes(bytes)).expect("a point");
            // SAFETY: the signature is the function's.
            let mirrored =
                unsafe { call.run() }.expect("one argument").result().as_bytes().expect("a struct");
            // SAFETY: a struct of two `double`s.
            unsafe { mirrored.as_ptr().cast::<f64>().read_unaligned() }
        });
    });

    let call: Call = black_box(foreign_call_back_and_go_on);
    group.bench_function("bare_callback", |b| b.iter(|| call_back_in_c(call, bare_callback)));
    let callback: Callback = upcall_fn(managed);
    group.bench_function("typed_upcall", |b| {
        b.iter(|| mutator.foreign_call().run(|| call_back_in_c(call, callback)));
    });
    let cif = Cif::new([Type::i32()], Type::i32());
    let (stub, code) = libffi::low::closure_alloc();
    // SAFETY: the stub is new, and `cif` outlives its calls.
    let prepared =
        unsafe { libffi::low::prep_closure(stub, cif.as_raw_ptr(), raw_body, &raw const UNIT, code) };
    prepared.expect("libffi makes closures");
    // SAFETY: code of a function with this type.
    let raw: Callback = unsafe { transmute::<*const c_void, Callback>(code.as_ptr()) };
    group.bench_function("raw_closure", |b| b.iter(|| call_back_in_c(call, raw)));
    // SAFETY: made by `closure_alloc`, and not called any more.
    unsafe { libffi::low::closure_free(stub) };
    let signature = Signature::parse("int (int)").expect("a signature");
    let closure = Closure::new(&world, &signature, |_, call| {
        let Value::I32(x) = call.argument(0) else { return Ok(()) };
        call.returns(x + 1).expect("an `int`");
        Ok(())
    });
    let closure = closure.expect("executable memory");
    // SAFETY: code of a function with this type.
    let ours: Callback = unsafe { transmute::<*const c_void, Callback>(closure.code()) };
    group.bench_function("closure", |b| {
        b.iter(|| mutator.foreign_call().run(|| call_back_in_c(call, ours)));
    });
    group.bench_function("make_and_drop_closure", |b| {
        b.iter(|| Closure::new(&world, &signature, |_, _| Ok(())).map(drop));
    });
    group.bench_function("parse_signature", |b| {
        b.iter(|| Signature::parse(black_box("int (const char*, size_t, ...)")).is_ok());
    });
    group.finish();
}

static UNIT: () = ();

criterion_group! { name = benches; config = criterion(); targets = dynamic }
criterion_main!(benches);
