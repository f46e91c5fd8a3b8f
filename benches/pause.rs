//! Pauses: of foreign mutators, off the processor, and of one that runs.
#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![expect(clippy::missing_panics_doc, reason = "a benchmark that cannot be set up ends")]

mod common;

use common::{SecondThread, criterion, world};
use core::sync::atomic::{AtomicBool, Ordering};
use criterion::{Criterion, criterion_group, criterion_main};
use reentry::FenceStrategy;
use std::sync::{Arc, Barrier, Mutex};

fn pause(c: &mut Criterion) {
    let _second = SecondThread::start();
    let mut group = c.benchmark_group("pause");
    for count in [1, 10, 100, 1000] {
        let world = world(FenceStrategy::probe()).expect("probed");
        let gate = Arc::new(Mutex::new(()));
        let shut = gate.lock().expect("not poisoned");
        let ready = Arc::new(Barrier::new(count + 1));
        let threads: Vec<_> = (0..count)
            .map(|_| {
                let (world, gate, ready) = (world.clone(), Arc::clone(&gate), Arc::clone(&ready));
                let blocked_in_c = move || {
                    let mut mutator = world.attach().expect("open");
                    mutator.foreign_call().run(|| {
                        ready.wait();
                        drop(gate.lock());
                    });
                };
                std::thread::Builder::new().stack_size(64 * 1024).spawn(blocked_in_c).expect("a thread")
            })
            .collect();
        ready.wait();
        group.bench_function(format!("foreign_{count}"), |b| {
            b.iter(|| world.pause(|stopped| stopped.mutators().count()));
        });
        drop(shut);
        threads.into_iter().for_each(|thread| thread.join().expect("it ends"));
    }
    let world = world(FenceStrategy::probe()).expect("probed");
    let done = Arc::new(AtomicBool::new(false));
    let ready = Arc::new(Barrier::new(2));
    let running = {
        let (world, done, ready) = (world.clone(), Arc::clone(&done), Arc::clone(&ready));
        std::thread::spawn(move || {
            let mut mutator = world.attach().expect("open");
            ready.wait();
            while !done.load(Ordering::Relaxed) {
                mutator.poll();
            }
        })
    };
    ready.wait();
    group.bench_function("running_1", |b| b.iter(|| world.pause(|stopped| stopped.mutators().count())));
    done.store(true, Ordering::Relaxed);
    running.join().expect("it ends");
    group.finish();
}

criterion_group! { name = benches; config = criterion(); targets = pause }
criterion_main!(benches);
