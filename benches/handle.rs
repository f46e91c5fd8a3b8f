//! Global handles: made, read and released on one thread; looked up by their word; and how many two threads get done together.
#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![expect(clippy::missing_panics_doc, reason = "a benchmark that cannot be set up ends")]

mod common;

use common::{BenchVm, SecondThread, Word, criterion, world};
use core::hint::black_box;
use core::time::Duration;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use reentry::{FenceStrategy, Mutator, World};
use std::sync::Barrier;
use std::time::Instant;

/// One handle made, read and released.
#[inline(always)]
fn new_get_free(mutator: &mut Mutator<BenchVm>, reference: Word) -> Word {
    let handle = mutator.handle(reference);
    mutator.load(&handle)
}

/// How long `threads` threads take to do `count` rounds each, from the moment all of them are ready.
fn together<R>(
    world: &World<BenchVm>,
    threads: usize,
    count: u64,
    round: impl Fn(&mut Mutator<BenchVm>) -> R + Sync,
) -> Duration {
    let ready = Barrier::new(threads);
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut mutator = world.attach().expect("open");
                    black_box(round(&mut mutator)); // its first slots
                    ready.wait();
                    let started = Instant::now();
                    for _ in 0..count {
                        black_box(round(&mut mutator));
                    }
                    started.elapsed()
                })
            })
            .collect();
        let times = running.into_iter().map(|thread| thread.join().expect("it ends"));
        times.max().unwrap_or_default()
    })
}

fn handle(c: &mut Criterion) {
    let _second = SecondThread::start();
    let world = world(FenceStrategy::probe()).expect("probed");
    let mut group = c.benchmark_group("handle");
    {
        let mut mutator = world.attach().expect("open");
        let reference = black_box(Word(0x1000));
        group.bench_function("box_new_get_free", |b| {
            b.iter(|| *black_box(Box::new(black_box(reference))));
        });
        group.bench_function("new_get_free", |b| b.iter(|| new_get_free(&mut mutator, black_box(reference))));
        let handle = mutator.handle(reference);
        group.bench_function("load", |b| b.iter(|| mutator.load(black_box(&handle))));
        let raw = handle.into_raw();
        group.bench_function("lookup_raw", |b| b.iter(|| mutator.lookup(black_box(raw))));
        world.release(raw).expect("given out above");
        group.bench_function("scope_root_get", |b| {
            mutator.scope(|outer| {
                b.iter(|| {
                    outer.scope(|scope| {
                        let local = scope.root(black_box(reference));
                        scope.get(local)
                    })
                });
            });
        });
    }
    for threads in [1, 2] {
        group.throughput(Throughput::Elements(threads as u64));
        group.bench_with_input(BenchmarkId::new("new_get_free_threads", threads), &threads, |b, &threads| {
            b.iter_custom(|count| {
                together(&world, threads, count, |mutator| new_get_free(mutator, black_box(Word(0x1000))))
            });
        });
    }
    for threads in [1, 2] {
        let raw = world.attach().expect("open").handle(Word(0x1000)).into_raw();
        group.throughput(Throughput::Elements(threads as u64));
        group.bench_with_input(
            BenchmarkId::new("lookup_one_raw_threads", threads),
            &threads,
            |b, &threads| {
                b.iter_custom(|count| {
                    together(&world, threads, count, |mutator| mutator.lookup(black_box(raw)).ok())
                });
            },
        );
        world.release(raw).expect("given out above");
    }
    group.finish();
}

criterion_group! { name = benches; config = criterion(); targets = handle }
criterion_main!(benches);
