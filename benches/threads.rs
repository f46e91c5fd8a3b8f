//! Threads: an upcall on a foreign thread beside one on a thread of the VM's own; attaching; a handshake.
#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![expect(clippy::missing_panics_doc, reason = "a benchmark that cannot be set up ends")]

mod common;

use common::{BenchVm, SecondThread, criterion, world};
use core::ffi::c_int;
use core::hint::black_box;
use core::time::Duration;
use criterion::{Criterion, criterion_group, criterion_main};
use reentry::{FenceStrategy, Mutator, upcall_fn};
use reentry_foreign::{Callback, foreign_call_back_many};
use std::sync::mpsc::channel;
use std::time::Instant;

fn managed(_: &mut Mutator<BenchVm>, x: c_int) -> c_int {
    x + 1
}

/// How long C takes to call back `count` times in a loop.
fn in_a_loop(callback: Callback, count: u64) -> Duration {
    let mut left = count;
    let began = Instant::now();
    while left > 0 {
        let now = c_int::try_from(left).unwrap_or(c_int::MAX);
        // SAFETY: calls the callback.
        black_box(unsafe { foreign_call_back_many(black_box(callback), now) });
        left -= u64::from(now.unsigned_abs());
    }
    began.elapsed()
}

/// The same C loop calls the same function: with one foreign call round all of it, on a thread of the VM's own; and on a thread that the VM knows from an upcall before. What is compared is
/// an upcall with an upcall, with no foreign call in either.
fn upcall(c: &mut Criterion) {
    let _second = SecondThread::start();
    let world = world(FenceStrategy::probe()).expect("probed");
    world.adopt_foreign_threads();
    let callback: Callback = upcall_fn(managed);
    let mut group = c.benchmark_group("upcall");
    callback(0);
    assert_eq!(world.attached(), 1, "this thread has attached itself");
    group.bench_function("foreign_thread_cached", |b| b.iter_custom(|count| in_a_loop(callback, count)));
    group.bench_function("foreign_thread_first_and_detach", |b| {
        world.detach_foreign_thread().expect("between two upcalls");
        b.iter(|| {
            black_box(callback)(1);
            world.detach_foreign_thread().expect("between two upcalls");
        });
    });
    let mut mutator = world.attach().expect("this thread has detached");
    group.bench_function("own_thread", |b| {
        b.iter_custom(|count| mutator.foreign_call().run(|| in_a_loop(callback, count)));
    });
    group.finish();
}

fn attach(c: &mut Criterion) {
    let _second = SecondThread::start();
    let world = world(FenceStrategy::probe()).expect("probed");
    let mut group = c.benchmark_group("attach");
    // Not on the main thread, whose stack the system looks up in a file.
    let attach_and_detach = |b: &mut criterion::Bencher<'_>| {
        std::thread::scope(|scope| {
            scope.spawn(|| b.iter(|| drop(world.attach().expect("a new world")))).join().expect("it ends");
        });
    };
    group.bench_function("attach_detach", attach_and_detach);
    group.finish();
}

fn handshake(c: &mut Criterion) {
    let _second = SecondThread::start();
    let world = world(FenceStrategy::probe()).expect("probed");
    let (stop, stopped) = channel::<()>();
    let (tell, told) = channel();
    let attached = world.clone();
    let mut group = c.benchmark_group("handshake");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut mutator = attached.attach().expect("a new world");
            let id = mutator.id();
            mutator.foreign_call().run(|| {
                tell.send(id).expect("the other end lives");
                let _ended = stopped.recv();
            });
        });
        let id = told.recv().expect("it attaches");
        group.bench_function("foreign_1", |b| b.iter(|| world.handshake(id, |stopped| stopped.id())));
        drop(stop);
    });
    group.finish();
}

criterion_group! { name = benches; config = criterion(); targets = upcall, attach, handshake }
criterion_main!(benches);
