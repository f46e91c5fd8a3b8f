//! Managed to foreign: a bare indirect call beside every form of ours, in one group.
#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![expect(clippy::missing_panics_doc, reason = "a benchmark that cannot be set up ends")]

mod common;

use common::{BenchVm, SecondThread, Word, criterion, world};
use core::ffi::c_int;
use core::hint::black_box;
use core::time::Duration;
use criterion::{Criterion, criterion_group, criterion_main};
use reentry::{FenceStrategy, LeafSite, Mutator};
use reentry_foreign::foreign_add;

type Add = unsafe extern "C" fn(c_int, c_int) -> c_int;

/// The foreign work, and the baseline.
#[inline(always)]
fn add_in_c(add: Add) -> c_int {
    // SAFETY: `foreign_add` adds.
    unsafe { black_box(add)(black_box(1), black_box(2)) }
}

/// References, as a VM has them: in memory.
const WORDS: [Word; 8] = [Word(1), Word(2), Word(3), Word(4), Word(5), Word(6), Word(7), Word(8)];

/// The timed leaf call's place.
static ADD: LeafSite = LeafSite::new(Duration::from_millis(1));

fn foreign_call(c: &mut Criterion) {
    let _second = SecondThread::start();
    let add: Add = black_box(foreign_add);
    let mut group = c.benchmark_group("foreign_call");
    group.bench_function("bare", |b| b.iter(|| add_in_c(add)));
    for (fence, name) in [(FenceStrategy::Asymmetric, "asymmetric"), (FenceStrategy::Symmetric, "symmetric")]
    {
        let Some(world) = world(fence) else { continue };
        let mut attachment = world.attach().expect("a new world, a new thread");
        let mutator: &mut Mutator<BenchVm> = &mut attachment;
        if fence == FenceStrategy::Asymmetric {
            group.bench_function("leaf", |b| {
                // SAFETY: `foreign_add` is short and does nothing else.
                b.iter(|| unsafe { mutator.leaf_call(|_| add_in_c(add)) });
            });
            group.bench_function("leaf_timed", |b| {
                // SAFETY: `foreign_add` is short and does nothing else.
                b.iter(|| unsafe { mutator.foreign_call().run_leaf(&ADD, || add_in_c(add)) });
            });
        }
        for roots in [0, 1, 3, 8_usize] {
            group.bench_function(format!("{name}_{roots}_roots"), |b| match roots {
                0 => b.iter(|| mutator.foreign_call().run(|| add_in_c(add))),
                1 => b.iter(|| {
                    let words = black_box(&WORDS);
                    let mut call = mutator.foreign_call();
                    call.root(words[0]);
                    call.run(|| add_in_c(add))
                }),
                3 => b.iter(|| {
                    let words = black_box(&WORDS);
                    let mut call = mutator.foreign_call();
                    call.root(words[0]);
                    call.root(words[1]);
                    call.root(words[2]);
                    call.run(|| add_in_c(add))
                }),
                _ => b.iter(|| {
                    let words = black_box(&WORDS);
                    let mut call = mutator.foreign_call();
                    for word in &words[..roots] {
                        call.root(*word);
                    }
                    call.run(|| add_in_c(add))
                }),
            });
        }
        group.bench_function(format!("{name}_3_pins"), |b| {
            b.iter(|| {
                let words = black_box(&WORDS);
                let mut call = mutator.foreign_call();
                for word in &words[..3] {
                    call.pin(*word).expect("this VM accepts every pin");
                }
                call.run(|| add_in_c(add))
            });
        });
        group.bench_function(format!("{name}_argument_memory"), |b| {
            b.iter(|| {
                let mut call = mutator.foreign_call();
                let out = call.copy(black_box(7_u64));
                call.run(|| add_in_c(add));
                call.read(out)
            });
        });
    }
    group.finish();
}

criterion_group! { name = benches; config = criterion(); targets = foreign_call }
criterion_main!(benches);
