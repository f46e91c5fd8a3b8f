//! The first model of `guide::models`, which shows this file: a host's own lock, which a pause takes too.
#![cfg(loom)]

use loom::sync::Mutex;
use reentry::testkit::model::{ModelHeap, Seen, UnlessPanicking, attach, check, loom, pause};
use reentry::{FrameKind, Mutator, RootVisitor, Segment, StackScanner, StoppedWorld, Vm, World};

/// A VM with a table of references that its collector updates.
struct Host {
    heap: ModelHeap,
    table: Mutex<Vec<usize>>,
    seen: Seen,
}

impl Vm for Host {
    type Ref = usize;
    type Local = ();
    type Exception = core::convert::Infallible;

    fn attach(&self) {}
}

// SAFETY: no frame of this host has references: what there is, foreign calls declare.
unsafe impl StackScanner for Host {
    fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
}

impl Host {
    /// Enters an object in the table: managed code.
    fn enter(&self, index: usize) {
        self.table.lock().unwrap().push(self.heap.reference(index));
    }

    /// Collects, in a pause.
    fn collect(&self, stopped: &StoppedWorld<'_, Self>) {
        let collected = self.heap.collect(stopped, &self.seen);
        for reference in self.table.lock().unwrap().iter_mut() {
            *reference = collected.moved(*reference);
        }
    }
}

/// Enters an object in the table, calls foreign code and uses what the table has, beside a collection.
fn a_call(seen: &Seen, call: impl Fn(&Host, &mut Mutator<Host>) + Copy + Send + Sync + 'static) {
    let seen = seen.clone();
    check(3, move || {
        let world = World::new(Host {
            heap: ModelHeap::new([(), ()]),
            table: Mutex::new(Vec::new()),
            seen: seen.clone(),
        });
        let mut mutator = attach(&world);
        let collector = loom::thread::spawn({
            let world = world.clone();
            move || pause(&world, |stopped| stopped.vm().collect(stopped))
        });
        let host = world.vm();
        host.enter(0);
        call(host, &mut mutator);
        let reference = host.table.lock().unwrap()[0];
        host.heap.write(reference, |()| ());
        drop(mutator);
        collector.join().unwrap();
    });
}

#[test]
fn the_table_follows_its_objects_through_a_call() {
    let seen = Seen::default();
    a_call(&seen, |host, mutator| host.heap.call_with_root(mutator, 1, |_slot| ()));
    seen.must_have(&[(0, FrameKind::ForeignCall)]);
}

#[test]
#[should_panic(expected = "deadlock")]
fn the_tables_lock_held_over_a_call_ends_in_a_deadlock() {
    a_call(&Seen::default(), |host, mutator| {
        let lock = UnlessPanicking::new(host.table.lock().unwrap());
        mutator.foreign_call().run(|| ());
        drop(lock);
    });
}
