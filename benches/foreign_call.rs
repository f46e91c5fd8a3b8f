//! Managed to foreign: a bare indirect call beside every form of ours, in one group.
#![expect(missing_docs, reason = "criterion's macros make public functions")]

mod common;

use common::{BenchVm, SecondThread, Word, criterion, world};
use core::ffi::c_int;
use core::hint::black_box;
use criterion::{Criterion, criterion_group, criterion_main};
use reentry::{FenceStrategy, Mutator};
use reentry_foreign::foreign_add;

type Add = unsafe extern "C" fn(c_int, c_int) -> c_int;

fn foreign_call(c: &mut Criterion) {
    let _second = SecondThread::start();
    let add: Add = black_box(foreign_add);
    let mut group = c.benchmark_group("foreign_call");
    // SAFETY: here and below: `foreign_add` adds.
    group.bench_function("bare", |b| b.iter(|| unsafe { black_box(add)(black_box(1), black_box(2)) }));
    for (fence, name) in [(FenceStrategy::Asymmetric, "asymmetric"), (FenceStrategy::Symmetric, "symmetric")]
    {
        let Some(world) = world(fence) else { continue };
        let mut attachment = world.attach().expect("a new world, a new thread");
        let mutator: &mut Mutator<BenchVm> = &mut attachment;
        if fence == FenceStrategy::Asymmetric {
            group.bench_function("leaf", |b| {
                // SAFETY: `foreign_add` is short and does nothing else.
                b.iter(|| unsafe { mutator.leaf_call(|| black_box(add)(black_box(1), black_box(2))) });
            });
        }
        for roots in [0, 1, 3, 8] {
            group.bench_function(format!("{name}_{roots}_roots"), |b| match roots {
                0 => b.iter(|| {
                    mutator.foreign_call().run(|| unsafe { black_box(add)(black_box(1), black_box(2)) })
                }),
                1 => b.iter(|| {
                    let mut call = mutator.foreign_call();
                    call.root(black_box(Word(1)));
                    call.run(|| unsafe { black_box(add)(black_box(1), black_box(2)) })
                }),
                3 => b.iter(|| {
                    let mut call = mutator.foreign_call();
                    call.root(black_box(Word(1)));
                    call.root(black_box(Word(2)));
                    call.root(black_box(Word(3)));
                    call.run(|| unsafe { black_box(add)(black_box(1), black_box(2)) })
                }),
                _ => b.iter(|| {
                    let mut call = mutator.foreign_call();
                    for word in 0..8 {
                        call.root(black_box(Word(word)));
                    }
                    call.run(|| unsafe { black_box(add)(black_box(1), black_box(2)) })
                }),
            });
        }
        group.bench_function(format!("{name}_3_pins"), |b| {
            b.iter(|| {
                let mut call = mutator.foreign_call();
                for word in [1, 2, 3] {
                    call.pin(black_box(Word(word))).expect("this VM accepts every pin");
                }
                call.run(|| unsafe { black_box(add)(black_box(1), black_box(2)) })
            });
        });
        group.bench_function(format!("{name}_argument_memory"), |b| {
            b.iter(|| {
                let mut call = mutator.foreign_call();
                let out = call.copy(black_box(7_u64));
                call.run(|| unsafe { black_box(add)(black_box(1), black_box(2)) });
                call.read(out)
            });
        });
    }
    group.finish();
}

criterion_group! { name = benches; config = criterion(); targets = foreign_call }
criterion_main!(benches);
