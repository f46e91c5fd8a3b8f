//! A host that is not ours: its own lock, allocation areas, write barrier and collector thread, explored over the crate's protocol (I2, I4).
//!
//! Everything here is what the author of a VM writes. Each twin has one mistake of the host's, or runs over a crate without one of its protections.
#![cfg(loom)]
#![expect(clippy::missing_panics_doc, reason = "a model fails by panicking")]

use core::convert::Infallible;
use core::marker::PhantomData;
use core::ptr::NonNull;
use loom::sync::{Condvar, Mutex};
use reentry::testkit::model::{
    Collected, Faults, HeapCell, ModelHeap, Seen, UnlessPanicking, attach, check, loom, pause,
};
use reentry::testkit::{Correct, FaultSet};
use reentry::{
    FrameKind, Mutator, RootVisitor, Segment, Slot, StackScanner, StoppedWorld, Vm, World, upcall_fn,
};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What this host does wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mistake {
    Nothing,
    /// It hands its store buffer over when it is foreign already: no time lost while managed.
    FlushesInForeignCode,
    /// It makes a foreign call with the allocation lock held.
    HoldsTheLockOverACall,
    /// It keeps a reference over a foreign call in a variable that nobody scans.
    KeepsAReference,
    /// Its write barrier forgets one kind of store.
    ForgetsABarrier,
    /// It keeps the number of its allocation area over a safepoint.
    KeepsAnArea,
    /// It waits for the collector thread while it is managed.
    WaitsWhileManaged,
}

/// How many objects an area takes.
const ROOM: usize = 1;

/// An allocation area: a mutator allocates in its own without a lock.
#[derive(Clone, Copy, Default)]
struct Area {
    /// The mutator it was given to.
    owner: u64,
    used: usize,
}

/// What the allocation lock guards.
#[derive(Default)]
struct Shared {
    free: Vec<usize>,
    /// Objects stored into, from buffers that were full.
    stores: Vec<usize>,
}

/// What the host keeps for each mutator. Its thread touches it while managed, and the collector in a pause.
struct Buffers {
    /// The area this mutator allocates in.
    area: HeapCell<Option<usize>>,
    /// Objects stored into since the last pause.
    stores: HeapCell<Vec<usize>>,
    /// The one variable of the mutator's frame: a reference, or 0.
    variable: HeapCell<usize>,
}

/// A VM with a generational collector: a reference inside of an object is updated if the object is remembered.
struct Host<F> {
    /// Each object has one field.
    heap: ModelHeap<usize>,
    areas: [HeapCell<Area>; 2],
    lock: Mutex<Shared>,
    /// The objects stored into. The collector's, in pauses.
    remembered: HeapCell<BTreeSet<usize>>,
    collector: CollectorThread,
    mistake: Mistake,
    seen: Seen,
    _faults: PhantomData<fn() -> F>,
}

/// How mutators and the collector thread speak.
#[derive(Default)]
struct CollectorThread {
    /// Collections asked for, and done.
    asked: Mutex<(usize, usize)>,
    changed: Condvar,
}

impl<F: FaultSet> Vm for Host<F> {
    type Ref = usize;
    type Local = Arc<Buffers>;
    type Exception = Infallible;

    fn attach(&self) -> Arc<Buffers> {
        Arc::new(Buffers {
            area: HeapCell::new("an allocation buffer", None),
            stores: HeapCell::new("a store buffer", Vec::new()),
            variable: HeapCell::new("a frame", 0),
        })
    }
}

// SAFETY: S1, S2: a mutator's frame is its variable; S3 to S5: it is looked at and nothing else. S6 is what a twin breaks. S7: this host gives no anchors.
unsafe impl<F: FaultSet> StackScanner for Host<F> {
    const FAULTS: Faults = F::FAULTS;

    fn scan_segment(
        &self,
        local: &Arc<Buffers>,
        segment: &Segment<'_>,
        visitor: &mut dyn RootVisitor<usize>,
    ) {
        if segment.is_newest() {
            // SAFETY: the variable's own address, for as long as the slot is used.
            local.variable.write(|variable| visitor.slot(unsafe { Slot::new(NonNull::from(variable)) }));
        }
    }
}

impl<F: FaultSet> Host<F> {
    fn world(mistake: Mistake, seen: &Seen) -> World<Self> {
        World::new(Self {
            heap: ModelHeap::new([0; 2]),
            areas: [0, 1].map(|area| HeapCell::new(format!("area {area}"), Area::default())),
            lock: Mutex::new(Shared { free: vec![0, 1], stores: Vec::new() }),
            remembered: HeapCell::new("the remembered set", BTreeSet::new()),
            collector: CollectorThread::default(),
            mistake,
            seen: seen.clone(),
            _faults: PhantomData,
        })
    }

    /// Stores a reference to one object into the field of another, with the write barrier.
    fn store(&self, buffers: &Buffers, holder: usize, value: usize) {
        let value = self.heap.reference(value);
        self.heap.write(self.heap.reference(holder), |field| *field = value);
        if self.mistake != Mistake::ForgetsABarrier {
            buffers.stores.write(|stores| stores.push(holder));
        }
    }

    /// Loads the field of an object and uses the object it refers to.
    fn follow(&self, holder: usize) {
        let reference = self.heap.write(self.heap.reference(holder), |field| *field);
        self.heap.write(reference, |_| ());
    }

    /// Hands a store buffer over to the collector.
    fn flush(&self, buffers: &Buffers) {
        let stores = buffers.stores.write(core::mem::take);
        self.lock.lock().unwrap().stores.extend(stores);
    }

    /// Gives a mutator an area with room. Says whether there was one.
    fn refill(&self, buffers: &Buffers, mutator: u64) -> bool {
        let Some(area) = self.lock.lock().unwrap().free.pop() else { return false };
        self.areas[area].write(|memory| *memory = Area { owner: mutator, used: 0 });
        buffers.area.write(|own| *own = Some(area));
        true
    }

    /// Takes room for an object in an area.
    fn bump(&self, area: usize, mutator: u64) -> bool {
        self.areas[area].write(|memory| {
            assert_eq!(memory.owner, mutator, "area {area} is not this mutator's");
            let room = memory.used < ROOM;
            memory.used += usize::from(room);
            room
        })
    }

    /// Collects, in a pause: every area goes back, and what its store buffer names is remembered.
    fn collect(&self, stopped: &StoppedWorld<'_, Self>) {
        let collected: Collected = self.heap.collect(stopped, &self.seen);
        let mut shared = self.lock.lock().unwrap();
        for area in &self.areas {
            area.write(|area| *area = Area::default());
        }
        shared.free = (0..self.areas.len()).collect();
        self.remembered.write(|remembered| {
            remembered.extend(shared.stores.drain(..));
            for mutator in stopped.mutators() {
                let buffers = mutator.local();
                if buffers.area.write(Option::take).is_some() {
                    self.seen.note_moment("an area taken back");
                }
                buffers.stores.write(|stores| {
                    if !stores.is_empty() {
                        self.seen.note_moment("a store found in a buffer");
                    }
                    remembered.append(&mut stores.drain(..).collect());
                });
            }
            for &holder in remembered.iter() {
                let holder = self.heap.reference(holder);
                self.heap.write(holder, |field| *field = collected.moved(*field));
            }
        });
    }
}

impl CollectorThread {
    /// Asks for a collection, and waits until it is done.
    fn collected(&self) {
        let mut asked = self.asked.lock().unwrap();
        asked.0 += 1;
        let mine = asked.0;
        self.changed.notify_all();
        while asked.1 < mine {
            asked = self.changed.wait(asked).unwrap();
        }
    }

    /// Waits until a collection is asked for, and does it.
    fn serve<F: FaultSet>(world: &World<Host<F>>) {
        let this = &world.vm().collector;
        let mut asked = this.asked.lock().unwrap();
        while asked.0 == asked.1 {
            asked = this.changed.wait(asked).unwrap();
        }
        let goal = asked.0;
        drop(asked);
        collect(world);
        this.asked.lock().unwrap().1 = goal;
        this.changed.notify_all();
    }
}

/// Stops the world from a thread that is no mutator, and collects.
fn collect<F: FaultSet>(world: &World<Host<F>>) {
    pause(world, |stopped| stopped.vm().collect(stopped));
}

/// Allocates an object: in the mutator's area, in another one, or when the collector thread has made room.
fn allocate<F: FaultSet>(world: &World<Host<F>>, mutator: &mut Mutator<Host<F>>) {
    let (host, id) = (world.vm(), mutator.id());
    let buffers = Arc::clone(mutator.local());
    loop {
        let area = buffers.area.write(|area| *area);
        if host.mistake == Mistake::KeepsAnArea {
            mutator.poll();
        }
        if area.is_some_and(|area| host.bump(area, id)) {
            return;
        }
        if host.refill(&buffers, id) {
            continue;
        }
        host.seen.note_moment("no area left");
        match host.mistake {
            Mistake::WaitsWhileManaged => host.collector.collected(),
            _ => mutator.foreign_call().run(|| host.collector.collected()),
        }
    }
}

/// A mutator stores, calls foreign code that calls back, and goes on with what it has stored, beside a collection.
fn a_store_and_a_call<F: FaultSet>(mistake: Mistake, seen: &Seen) {
    fn body<F: FaultSet>(mutator: &mut Mutator<Host<F>>) {
        mutator.vm().store(mutator.local(), 1, 0);
    }
    let seen = seen.clone();
    // 5 234 executions, 0.4 s.
    check(3, move || {
        let world = Host::<F>::world(mistake, &seen);
        let mut mutator = attach(&world);
        let collector = loom::thread::spawn({
            let world = world.clone();
            move || collect(&world)
        });
        let (host, buffers) = (world.vm(), Arc::clone(mutator.local()));
        host.store(&buffers, 0, 1);
        let kept = host.heap.reference(0);
        if mistake != Mistake::KeepsAReference {
            buffers.variable.write(|variable| *variable = kept);
        }
        let lock = (mistake == Mistake::HoldsTheLockOverACall)
            .then(|| UnlessPanicking::new(host.lock.lock().unwrap()));
        let upcall = upcall_fn(body::<F>);
        host.heap.call_with_root(&mut mutator, 1, |_| {
            if mistake == Mistake::FlushesInForeignCode {
                host.flush(&buffers);
            }
            upcall();
        });
        drop(lock);
        let kept = buffers.variable.write(|variable| if *variable == 0 { kept } else { *variable });
        host.heap.write(kept, |_| ());
        host.follow(0);
        host.follow(1);
        drop(mutator);
        collector.join().unwrap();
    });
}

/// Two mutators allocate beside a collection, which takes their areas back.
fn two_allocate<F: FaultSet>(mistake: Mistake, seen: &Seen) {
    let seen = seen.clone();
    // 1 169 executions, 0.1 s.
    check(2, move || {
        let world = Host::<F>::world(mistake, &seen);
        let mut mutator = attach(&world);
        let collector = loom::thread::spawn({
            let world = world.clone();
            move || collect(&world)
        });
        let other = loom::thread::spawn({
            let world = world.clone();
            move || {
                let mut mutator = attach(&world);
                allocate(&world, &mut mutator);
            }
        });
        allocate(&world, &mut mutator);
        mutator.poll();
        drop(mutator);
        other.join().unwrap();
        collector.join().unwrap();
    });
}

/// A mutator allocates more than there is room for, and waits for the collector thread.
fn a_full_heap<F: FaultSet>(mistake: Mistake, seen: &Seen) {
    let seen = seen.clone();
    // 10 executions.
    check(4, move || {
        let world = Host::<F>::world(mistake, &seen);
        let mut mutator = attach(&world);
        let collector = loom::thread::spawn({
            let world = world.clone();
            move || CollectorThread::serve(&world)
        });
        for _ in 0..3 {
            allocate(&world, &mut mutator);
        }
        drop(mutator);
        collector.join().unwrap();
    });
}

#[test]
fn what_a_mutator_stores_and_keeps_follows_its_objects_through_a_call() {
    let seen = Seen::default();
    a_store_and_a_call::<Correct>(Mistake::Nothing, &seen);
    seen.must_have(&[(0, FrameKind::ForeignCall)]);
    seen.must_have_moments(&["a store found in a buffer"]);
}

#[test]
fn no_two_mutators_allocate_in_one_area() {
    let seen = Seen::default();
    two_allocate::<Correct>(Mistake::Nothing, &seen);
    seen.must_have_moments(&["an area taken back"]);
}

#[test]
fn a_mutator_without_room_gets_it_from_the_collector_thread() {
    let seen = Seen::default();
    a_full_heap::<Correct>(Mistake::Nothing, &seen);
    seen.must_have(&[(0, FrameKind::ForeignCall)]);
    seen.must_have_moments(&["no area left"]);
}

/// The collector empties the buffer in a pause, and does not wait for a foreign thread.
#[test]
#[should_panic(expected = "I4: nothing orders two touches of the heap: a store buffer")]
fn a_store_buffer_flushed_in_foreign_code_is_emptied_by_two() {
    a_store_and_a_call::<Correct>(Mistake::FlushesInForeignCode, &Seen::default());
}

/// The collector wants the lock in its pause; its holder waits for the end of the pause.
#[test]
#[should_panic(expected = "deadlock")]
fn the_allocation_lock_held_over_a_foreign_call_ends_in_a_deadlock() {
    a_store_and_a_call::<Correct>(Mistake::HoldsTheLockOverACall, &Seen::default());
}

#[test]
#[should_panic(expected = "a stale reference: object 0 was at 1000 and is at 1001")]
fn a_reference_kept_over_a_foreign_call_is_stale() {
    a_store_and_a_call::<Correct>(Mistake::KeepsAReference, &Seen::default());
}

#[test]
#[should_panic(expected = "a stale reference: object 1 was at 2000 and is at 2001")]
fn a_store_without_its_barrier_is_not_updated() {
    a_store_and_a_call::<Correct>(Mistake::ForgetsABarrier, &Seen::default());
}

/// The pause at the poll has taken the area back.
#[test]
#[should_panic(expected = "area 0 is not this mutator's")]
fn an_area_kept_over_a_safepoint_is_the_mutators_no_more() {
    two_allocate::<Correct>(Mistake::KeepsAnArea, &Seen::default());
}

/// The collector thread stops the world, and so looks again and again whether the mutator has stopped that waits for it.
#[test]
#[should_panic(expected = "Model exceeded maximum number of branches")]
fn waiting_for_the_collector_thread_while_managed_never_ends() {
    a_full_heap::<Correct>(Mistake::WaitsWhileManaged, &Seen::default());
}

/// The crate without one of its protections, to see that the models would notice.
macro_rules! without {
    ($name:ident, $fault:ident) => {
        struct $name;
        // SAFETY: for a twin, in which loom runs one thread at a time.
        unsafe impl FaultSet for $name {
            const FAULTS: Faults = Faults::$fault;
        }
    };
}
without!(NoWaitOnReturn, NO_WAIT_ON_RETURN);
without!(RelaxedResume, RELAXED_RESUME);

#[test]
#[should_panic(expected = "I4: nothing orders two touches of the heap: object")]
fn without_the_wait_on_return_the_hosts_heap_is_touched_in_a_pause() {
    a_store_and_a_call::<NoWaitOnReturn>(Mistake::Nothing, &Seen::default());
}

/// The mutator does not see what the collector did to the areas.
#[test]
#[should_panic(expected = "I4: nothing orders two touches of the heap")]
fn with_a_relaxed_resumption_the_host_misses_what_the_collector_did() {
    a_store_and_a_call::<RelaxedResume>(Mistake::Nothing, &Seen::default());
}
