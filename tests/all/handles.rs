//! Global handles: strong, raw and weak; released by anyone at any time; and what is reported of those that are left.

use crate::plain::{Plain, message};
use crate::references::{assert_text, collect, collect_twice, fate, known_world, text, world};
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use reentry::faults::Faults;
use reentry::testkit::bytecode::Program;
use reentry::testkit::heap::Fate;
use reentry::testkit::{FaultSet, Ref, TestVm};
use reentry::{
    ArgumentError, Capture, FenceStrategy, Handle, HandleError, Mutator, RawHandle, Report, RootVisitor,
    Segment, Slot, StackScanner, UpcallClosure, Vm, WeakHandle, World, upcall_fn,
};
use reentry_foreign::{
    Entry, Resource, foreign_call_back, foreign_close, foreign_copy_entry, foreign_fire, foreign_register,
    foreign_use,
};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;

#[test]
fn a_handle_keeps_its_object_and_follows_it_until_it_is_dropped() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let mut last = text(&world, "handled");
    let handle = mutator.handle(last);
    for _ in 0..3 {
        collect(&mut mutator);
        assert_ne!(mutator.load(&handle), last);
        last = mutator.load(&handle);
        assert_text(&world, last, "handled");
    }
    drop(handle);
    collect(&mut mutator);
    assert_eq!(fate(&world, last), Some(Fate::Freed { collection: 4 }));
}

/// More than the table's first chunks hold, of one mutator and of several, with gaps that are used again.
#[test]
fn ten_thousand_handles_each_follow_their_own_object() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let make = |mutator: &mut Mutator<TestVm>, n: usize| (mutator.handle(text(&world, &n.to_string())), n);
    let mut handles: Vec<_> = (0..10_000).map(|n| make(&mut mutator, n)).collect();
    collect(&mut mutator);
    handles.retain(|(_, n)| n % 3 != 0);
    assert_eq!(TestVm::collect_in(&mut mutator).unwrap().live, handles.len());
    handles.extend((10_000..14_000).map(|n| make(&mut mutator, n)));
    let others = mutator.foreign_call().run(|| {
        thread::scope(|scope| {
            let make = || {
                let mut mutator = world.attach().unwrap();
                (14_000..15_000).map(|n| make(&mut mutator, n)).collect::<Vec<_>>()
            };
            scope.spawn(make).join().unwrap()
        })
    });
    handles.extend(others);
    assert_eq!(TestVm::collect_in(&mut mutator).unwrap().live, handles.len());
    for (handle, n) in &handles {
        assert_text(&world, mutator.load(handle), &n.to_string());
    }
    handles.clear();
    assert_eq!(TestVm::collect_in(&mut mutator).unwrap().live, 0);
    assert!(world.leaks().is_empty());
}

/// Row B11: by the thread itself in foreign code, by another mutator in foreign code, by a thread that is no mutator, by one whose thread-locals are being destroyed.
#[test]
fn a_handle_is_released_by_any_thread_in_any_state() {
    thread_local! {
        static KEPT: core::cell::RefCell<Option<Handle<Ref>>> = const { core::cell::RefCell::new(None) };
    }
    let world = world();
    let mut mutator = world.attach().unwrap();
    let mut handles: Vec<_> = (0..4).map(|n| mutator.handle(text(&world, &n.to_string()))).collect();
    let mut next = || handles.pop().unwrap();
    let mut live = 4;
    let mut collected = |mutator: &mut Mutator<TestVm>| {
        live -= 1;
        assert_eq!(TestVm::collect_in(mutator).unwrap().live, live);
    };
    let handle = next();
    mutator.foreign_call().run(move || drop(handle));
    collected(&mut mutator);
    let handle = next();
    thread::scope(|scope| scope.spawn(move || drop(handle)).join().unwrap());
    collected(&mut mutator);
    let handle = next();
    mutator.foreign_call().run(|| {
        thread::scope(|scope| {
            let release = || world.attach().unwrap().foreign_call().run(move || drop(handle));
            scope.spawn(release).join().unwrap();
        });
    });
    collected(&mut mutator);
    let handle = next();
    thread::spawn(move || KEPT.set(Some(handle))).join().unwrap();
    collected(&mut mutator);
}

/// What a pause holds still, deterministically; `tests/loom_handles.rs` has every schedule.
fn release_in_a_pause<F: FaultSet>() -> [usize; 3] {
    struct Count(usize);
    impl RootVisitor<Ref> for Count {
        fn slot(&mut self, _: Slot<'_, Ref>) {
            self.0 += 1;
        }
        fn pinned(&mut self, _: Ref) {}
        fn transitively_pinned(&mut self, _: Ref) {}
    }
    let world = World::new(TestVm::<F>::builder_without(Program::new(Vec::new()).unwrap()).build());
    let mut mutator = world.attach().unwrap();
    let object = world.vm().heap().alloc(&[], b"released in a pause");
    let handle = mutator.handle(object);
    let raw = mutator.handle(object).into_raw();
    let counts = mutator.pause(|stopped| {
        let count = || {
            let mut count = Count(0);
            stopped.enumerate(&mut count);
            count.0
        };
        let before = count();
        world.release(raw).unwrap();
        thread::scope(|scope| scope.spawn(move || drop(handle)).join().unwrap());
        [before, count()]
    });
    let after = mutator.pause(|stopped| {
        let mut count = Count(0);
        stopped.enumerate(&mut count);
        count.0
    });
    [counts[0], counts[1], after]
}

#[test]
fn a_handle_released_during_a_pause_is_a_root_until_the_pause_ends() {
    assert_eq!(release_in_a_pause::<reentry::testkit::Correct>(), [2, 2, 0]);
}

#[test]
fn with_releases_that_take_effect_at_once_a_collector_that_asks_twice_gets_two_answers() {
    enum AtOnce {}
    // SAFETY: for this test; no object is freed while it is used.
    unsafe impl FaultSet for AtOnce {
        const FAULTS: Faults = Faults::HANDLE_RELEASED_AT_ONCE;
    }
    assert_eq!(release_in_a_pause::<AtOnce>(), [2, 0, 0]);
}

/// A release does not wait for a pause: it is over while the pause is still in force.
#[test]
fn a_release_does_not_wait_for_a_pause() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let handle = mutator.handle(text(&world, "let go"));
    let raw = mutator.handle(text(&world, "let go as well")).into_raw();
    mutator.pause(|_| {
        // The pause ends when this thread has ended, so if the release waited, this would not return.
        thread::scope(|scope| scope.spawn(|| (drop(handle), world.release(raw).unwrap())).join().unwrap());
    });
    assert_eq!(TestVm::collect_in(&mut mutator).unwrap().live, 0);
}

#[test]
fn a_handle_can_be_made_to_refer_to_another_object() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let first = text(&world, "first");
    let mut handle = mutator.handle(first);
    mutator.store(&mut handle, text(&world, "second")).unwrap();
    collect(&mut mutator);
    assert_text(&world, mutator.load(&handle), "second");
    assert_eq!(fate(&world, first), Some(Fate::Freed { collection: 1 }));
    let refused = Err(ArgumentError::NotOfThisWorld { reference: 1 });
    assert_eq!(mutator.store(&mut handle, Ref::from_address(1)), refused);
    assert_text(&world, mutator.load(&handle), "second");
}

#[test]
fn a_handle_of_another_world_is_refused_with_the_line_that_used_it() {
    let fence = FenceStrategy::probe();
    let (one, other) = (Plain::<420>::world(fence), Plain::<420>::world(fence));
    let (mut ours, mut theirs) = (one.attach().unwrap(), other.attach().unwrap());
    let mut handle = ours.handle(1);
    let weak = ours.weak_handle(1);
    for message in [
        message(|| theirs.load(&handle)),
        message(|| theirs.load_weak(&weak).unwrap()),
        message(|| theirs.store(&mut handle, 2).unwrap()),
    ] {
        assert!(message.matches(file!()).count() == 2 && message.contains("another world"), "{message}");
    }
    assert_eq!((ours.load(&handle), ours.load_weak(&weak)), (1, Some(1)));
}

#[test]
fn what_is_no_object_of_the_world_gets_no_handle() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let error = ArgumentError::NotOfThisWorld { reference: 1 };
    assert_eq!(mutator.try_handle(Ref::from_address(1)).map(drop), Err(error));
    for message in [
        message(|| drop(mutator.handle(Ref::from_address(1)))),
        message(|| drop(mutator.weak_handle(Ref::from_address(1)))),
    ] {
        assert!(message.contains(file!()) && message.ends_with(&error.to_string()), "{message}");
    }
    assert!(world.leaks().is_empty());
}

/// The word a C library keeps as user data.
fn look_up(mutator: &mut Mutator<TestVm>, x: c_int, user_data: *mut c_void) -> c_int {
    collect(mutator);
    let raw = match RawHandle::from_ptr(user_data) {
        Ok(raw) => raw,
        Err(error) => return if error == HandleError::Zero { -1 } else { -9 },
    };
    match mutator.lookup(raw) {
        Ok(object) => x + c_int::try_from(mutator.vm().heap().byte_count(object).unwrap()).unwrap(),
        Err(HandleError::Unknown { .. }) => -2,
        Err(HandleError::Stale { .. }) => -3,
        Err(HandleError::TakenBack { .. }) => -4,
        Err(_) => -9,
    }
}

/// Scenario 34, Go's TestHandle and TestInvalidHandle through real C: a struct that keeps a `void*`, copies of it by value, and a callback that gets it back.
#[test]
fn c_keeps_handles_as_user_data_and_every_wrong_word_is_told_from_a_right_one() {
    let world = known_world();
    let mut mutator = world.attach().unwrap();
    let texts: Vec<String> = (0..200).map(|n| "x".repeat(n)).collect();
    let raws: Vec<RawHandle> =
        texts.iter().map(|string| mutator.handle(text(&world, string)).into_raw()).collect();
    let mut distinct: Vec<_> = raws.iter().map(|raw| raw.get()).collect();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), raws.len());
    // The data-last function of a closure takes the closure's data; here the user data is the handle, so the callback is a plain function.
    let callback: extern "C" fn(c_int, *mut c_void) -> c_int = upcall_fn(look_up);
    let mut fire = |word: *mut c_void, x: c_int| {
        mutator.foreign_call().run(|| {
            let mut entry = Entry { callback: None, user_data: core::ptr::null_mut() };
            // SAFETY: the entry lives; the callback takes what C gives it.
            unsafe {
                foreign_register(&raw mut entry, callback, word);
                let copied = foreign_copy_entry(foreign_copy_entry(entry));
                foreign_fire(&raw const copied, x)
            }
        })
    };
    for (n, raw) in raws.iter().enumerate() {
        assert_eq!(fire(raw.as_ptr(), 1000), 1000 + n as c_int, "handle {n}");
    }
    // Zero, and words that were never given out: odd and small ones, an address, neighbours of real ones, and every word that differs in one bit.
    assert_eq!(fire(core::ptr::null_mut(), 0), -1);
    let local = 0_u64;
    for word in [1, 2, usize::MAX, (&raw const local).addr(), isize::MAX as usize] {
        assert_eq!(fire(core::ptr::without_provenance_mut(word), 0), -2, "{word:#x}");
    }
    let mut known = 0;
    for raw in &raws[..20] {
        for bit in 0..usize::BITS {
            let word = raw.get().get() ^ (1 << bit);
            let result = fire(core::ptr::without_provenance_mut(word), 0);
            if raws.iter().any(|raw| raw.get().get() == word) {
                known += 1;
                assert!(result >= 0, "{word:#x} is another's");
            } else {
                assert_eq!(result, -2, "{word:#x}");
            }
        }
    }
    assert!(known > 0, "some neighbours are handles");
    // Released: stale, for ever, whatever is made in its place.
    let released = raws[7];
    world.release(released).unwrap();
    let word = released.get().get();
    assert_eq!(world.release(released), Err(HandleError::Stale { word }), "freed twice");
    assert_eq!(fire(released.as_ptr(), 0), -3);
    let again: Vec<_> = {
        let mut mutator = mutator.foreign_call();
        mutator.run(|| ());
        drop(mutator);
        (0..300).map(|_| Ref::NULL).collect()
    };
    let again: Vec<_> = again.into_iter().map(|null| mutator.handle(null).into_raw()).collect();
    assert!(again.iter().all(|raw| *raw != released));
    assert_eq!(mutator.lookup(released), Err(HandleError::Stale { word }));
    assert!(world.handle_from_raw(released).is_err());
    for raw in raws.into_iter().chain(again).filter(|raw| *raw != released) {
        world.release(raw).unwrap();
    }
    assert_eq!(TestVm::collect_in(&mut mutator).unwrap().live, 0);
    assert!(world.leaks().is_empty());
}

/// The owner's word is no way round the owner.
#[test]
fn a_handle_that_was_not_given_out_cannot_be_reached_by_guessing_its_word() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let handle = mutator.handle(text(&world, "owned"));
    let raw = handle.into_raw();
    let handle = world.handle_from_raw(raw).unwrap();
    let word = raw.get().get();
    let taken = HandleError::TakenBack { word };
    assert_eq!(mutator.lookup(raw), Err(taken));
    assert_eq!(world.release(raw), Err(taken));
    assert_eq!(world.handle_from_raw(raw).map(drop), Err(taken), "taken back twice");
    collect(&mut mutator);
    assert_text(&world, mutator.load(&handle), "owned");
    // Given out again it has the same word, which is good again.
    assert_eq!(handle.into_raw(), raw);
    assert_text(&world, mutator.lookup(raw).unwrap(), "owned");
    drop(world.handle_from_raw(raw).unwrap());
    assert_eq!(mutator.lookup(raw), Err(HandleError::Stale { word }));
    // The slot's next owner has not given it out: the next generation's word is unknown.
    let _next = mutator.handle(text(&world, "next"));
    assert_eq!(mutator.lookup(raw), Err(HandleError::Stale { word }));
    let all = [HandleError::Zero, HandleError::Unknown { word }, HandleError::Stale { word }, taken];
    for error in all {
        let message = error.to_string();
        let advice = ["check", "pass on", "release it once", "give it out again"];
        assert!(advice.iter().any(|advice| message.contains(advice)), "it says what to do: {message}");
    }
}

#[test]
fn a_word_of_another_world_is_unknown() {
    let (one, other) = (world(), world());
    let (mut ours, theirs) = (one.attach().unwrap(), other.attach().unwrap());
    let raw = ours.handle(text(&one, "ours")).into_raw();
    let unknown = HandleError::Unknown { word: raw.get().get() };
    assert_eq!(theirs.lookup(raw), Err(unknown));
    assert_eq!(other.release(raw), Err(unknown));
    assert_eq!(other.handle_from_raw(raw).map(drop), Err(unknown));
    one.release(raw).unwrap();
}

/// Raw words are plain numbers.
#[test]
fn a_raw_handle_survives_every_form_it_can_take() {
    let world = world();
    let raw = world.attach().unwrap().handle(Ref::NULL).into_raw();
    assert_eq!(RawHandle::from_ptr(raw.as_ptr()), Ok(raw));
    assert_eq!(RawHandle::new(raw.get().get()), Ok(raw));
    assert_eq!(RawHandle::from(core::num::NonZeroUsize::from(raw)), raw);
    assert_eq!(RawHandle::new(0), Err(HandleError::Zero));
    assert_eq!(RawHandle::from_ptr(core::ptr::null()), Err(HandleError::Zero));
    world.release(raw).unwrap();
}

#[test]
fn a_weak_handle_follows_its_object_and_is_empty_when_it_has_died() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    // Reached through another object, and nothing of its own.
    let inner = text(&world, "inner");
    let outer = mutator.handle(world.vm().heap().alloc(&[inner], b""));
    let (weak, twin) = (mutator.weak_handle(inner), mutator.weak_handle(inner));
    let nobody = mutator.weak_handle(text(&world, "nobody's"));
    for _ in 0..3 {
        collect(&mut mutator);
        let now = mutator.load_weak(&weak).unwrap();
        assert_eq!(Ok(now), world.vm().heap().field(mutator.load(&outer), 0));
        assert_eq!(mutator.load_weak(&twin), Some(now));
        assert_text(&world, now, "inner");
        assert_eq!(mutator.load_weak(&nobody), None);
    }
    drop(outer);
    assert_eq!(TestVm::collect_in(&mut mutator).unwrap().live, 0);
    assert_eq!((mutator.load_weak(&weak), mutator.load_weak(&twin)), (None, None));
    drop((weak, twin, nobody));
    // Their slots are other handles' now: a cleared one is not inherited.
    let fresh = mutator.weak_handle(text(&world, "fresh"));
    assert!(mutator.load_weak(&fresh).is_some());
    // A pinned object does not move, and stays reachable through its weak handle.
    let mut pinner = world.pinner();
    let pinned = mutator.load_weak(&fresh).unwrap();
    mutator.pin_with(&mut pinner, pinned).unwrap();
    collect(&mut mutator);
    assert_eq!(mutator.load_weak(&fresh), Some(pinned));
}

/// The test VM gives a collection up when it finds a stale root. What lived then lives still, and its weak handles know where.
#[test]
fn a_collection_that_is_given_up_clears_no_weak_handle() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let (moved, unreached) = (text(&world, "moved before"), text(&world, "not reached"));
    let (strong, weak) =
        (mutator.handle(moved), [mutator.weak_handle(moved), mutator.weak_handle(unreached)]);
    let dead = text(&world, "dead");
    let gone = mutator.weak_handle(dead);
    let global = world.vm().add_global(Ref::NULL);
    world.vm().set_global(global, Ref::from_address(1));
    assert!(TestVm::collect_in(&mut mutator).unwrap_err().to_string().contains("a global"));
    let now = weak.each_ref().map(|weak| mutator.load_weak(weak).unwrap());
    assert_eq!(now[0], mutator.load(&strong));
    assert_ne!(now[0], moved);
    assert_text(&world, now[0], "moved before");
    assert_text(&world, now[1], "not reached");
    world.vm().set_global(global, Ref::NULL);
    collect(&mut mutator);
    assert_text(&world, mutator.load_weak(&weak[0]).unwrap(), "moved before");
    assert_eq!((mutator.load_weak(&weak[1]), mutator.load_weak(&gone)), (None, None));
}

/// A collector that was written before there were weak handles: safe, and they keep their objects.
#[test]
fn to_a_collector_that_knows_nothing_of_them_weak_handles_are_roots() {
    struct Old<'v>(&'v mut reentry::testkit::heap::Collection<'static>);
    impl RootVisitor<Ref> for Old<'_> {
        fn slot(&mut self, mut slot: Slot<'_, Ref>) {
            slot.store(self.0.forward(slot.load()).unwrap());
        }
        fn pinned(&mut self, _: Ref) {}
        fn transitively_pinned(&mut self, _: Ref) {}
    }
    let world = world();
    let mut mutator = world.attach().unwrap();
    let object = text(&world, "kept by a weak handle");
    let weak = mutator.weak_handle(object);
    let live = mutator.pause(|stopped| {
        // SAFETY: the heap lives as long as the world, which outlives this closure, and the collection does not leave it.
        let heap: &'static reentry::testkit::Heap = unsafe { &*core::ptr::from_ref(stopped.vm().heap()) };
        let mut collection = heap.begin_collection();
        stopped.enumerate(&mut Old(&mut collection));
        collection.finish().live
    });
    assert_eq!(live, 1);
    assert_ne!(mutator.load_weak(&weak), Some(object));
    assert_text(&world, mutator.load_weak(&weak).unwrap(), "kept by a weak handle");
}

/// A host's finalisers, built on weak handles: what owns a foreign resource, and the resource to close when the owner has died.
struct Finalisers(Mutex<Vec<(WeakHandle<Ref>, usize)>>);

static FINALISERS: Finalisers = Finalisers(Mutex::new(Vec::new()));

impl Finalisers {
    /// Collects, and closes the resources of owners that have died.
    fn collect(&self, mutator: &mut Mutator<TestVm>) {
        collect(mutator);
        self.0.lock().unwrap().retain(|(owner, resource)| {
            let dead = mutator.load_weak(owner).is_none();
            if dead {
                // SAFETY: the resource's exposed address; the test that owns it outlives the entry.
                unsafe { foreign_close(core::ptr::with_exposed_provenance_mut(*resource)) };
            }
            !dead
        });
    }
}

/// Scenario 35, Go #13347 and #23579: while a call uses the resource, its owner is not finalised, although nothing else holds it. Without the root it is.
#[test]
fn an_owner_whose_finaliser_frees_a_resource_is_not_finalised_while_a_call_uses_it() {
    fn finalise(mutator: &mut Mutator<TestVm>, _: c_int) -> c_int {
        for _ in 0..2 {
            FINALISERS.collect(mutator);
        }
        0
    }
    let world = world();
    let mut mutator = world.attach().unwrap();
    for (rooted, open) in [(true, 2), (false, 1)] {
        let mut resource = Resource { open: 1, uses: 0 };
        let address = (&raw mut resource).expose_provenance();
        let owner = text(&world, "owner");
        FINALISERS.0.lock().unwrap().push((mutator.weak_handle(owner), address));
        let mut call = mutator.foreign_call();
        if rooted {
            call.root(owner);
        }
        // SAFETY: the resource lives; the callback takes an `int` and gives one.
        let found = call.run(|| unsafe {
            foreign_use(core::ptr::with_exposed_provenance_mut(address), upcall_fn(finalise))
        });
        drop(call);
        assert_eq!(found, open, "rooted: {rooted}");
        FINALISERS.collect(&mut mutator);
        // SAFETY: the resource lives, and C is done with it.
        let resource = unsafe { core::ptr::with_exposed_provenance::<Resource>(address).read() };
        assert_eq!(resource, Resource { open: 0, uses: 2 }, "finalised once nothing holds it");
        assert!(FINALISERS.0.lock().unwrap().is_empty());
    }
}

/// The smallest VM that keeps its reports where they can be read when it is gone.
struct Telling(Arc<Mutex<Vec<String>>>);

impl Vm for Telling {
    type Ref = usize;
    type Local = ();
    type Exception = core::convert::Infallible;
    const CAPTURE: Capture = Capture::Nothing;

    fn attach(&self) {}

    fn report(&self, report: &Report<'_>) {
        self.0.lock().unwrap().push(report.to_string());
    }
}

// SAFETY: no frame holds a reference, and it does nothing.
unsafe impl StackScanner for Telling {
    fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
}

/// A world, and what it has reported.
fn telling() -> (World<Telling>, impl Fn() -> Vec<String>) {
    let reports = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&reports);
    (World::new(Telling(reports)), move || core::mem::take(&mut *told.lock().unwrap()))
}

#[test]
fn leaks_are_listed_by_the_lines_that_made_them() {
    let (world, told) = telling();
    let mut mutator = world.attach().unwrap();
    let mut handles = Vec::new();
    for _ in 0..3 {
        handles.push(mutator.handle(1));
    }
    let (other, line) = (mutator.handle(2), line!());
    let raw = other.into_raw();
    let weak = mutator.weak_handle(3);
    let (mut pinner, empty) = (world.pinner(), world.pinner());
    mutator.pin_with(&mut pinner, 4).unwrap();
    mutator.pin_with(&mut pinner, 5).unwrap();
    let leaks = world.leaks();
    let counts = |sites: &[reentry::LeakSite]| sites.iter().map(|leak| leak.count).collect::<Vec<_>>();
    assert_eq!(counts(leaks.handles()), [3, 1]);
    assert_eq!(leaks.handles()[0].site, handles[0].site());
    assert_eq!((leaks.handles()[1].site.file(), leaks.handles()[1].site.line()), (file!(), line));
    assert_eq!((counts(leaks.weak_handles()), counts(leaks.pins())), (vec![1], vec![2]));
    assert_eq!(leaks.weak_handles()[0].site, weak.site());
    assert!(leaks.keeps_objects());
    let text = leaks.to_string();
    for expected in ["3 handle(s) made at", &format!("{}:{line}:", file!()), "2 pin(s)", "1 weak handle(s)"] {
        assert!(text.contains(expected), "{text}");
    }
    drop((handles, pinner, empty));
    world.release(raw).unwrap();
    let left = world.leaks();
    assert!(!left.keeps_objects() && !left.is_empty(), "a weak handle keeps no object: {left}");
    drop(weak);
    assert_eq!(world.leaks().to_string(), "nothing is left");
    drop((mutator, world));
    assert_eq!(told(), [""; 0]);
}

#[test]
fn what_is_left_when_the_world_ends_is_reported_once_and_can_still_be_dropped() {
    let (world, told) = telling();
    let mut mutator = world.attach().unwrap();
    let (handle, weak) = (mutator.handle(1), mutator.weak_handle(2));
    let mut pinner = world.pinner();
    mutator.pin_with(&mut pinner, 3).unwrap();
    drop(mutator);
    assert_eq!(told(), [""; 0]);
    drop(world);
    let reports = told();
    assert_eq!(reports.len(), 1, "{reports:?}");
    for expected in ["1 handle(s) made at", "1 pin(s) of a pinner made at", file!()] {
        assert!(reports[0].contains(expected), "{reports:?}");
    }
    assert!(handle.site().file() == file!());
    thread::spawn(move || drop((handle, weak))).join().unwrap();
    drop(pinner);
    assert_eq!(told(), [""; 0]);
}

#[test]
fn weak_handles_and_empty_pinners_are_no_leak_when_the_world_ends() {
    let (world, told) = telling();
    let weak = world.attach().unwrap().weak_handle(2);
    let pinner = world.pinner();
    drop(world);
    assert_eq!(told(), [""; 0]);
    drop((weak, pinner));
}

#[test]
fn a_shutdown_with_nobody_attached_reports_what_is_left_and_the_worlds_end_does_not_again() {
    let (world, told) = telling();
    let raw = world.attach().unwrap().handle(1).into_raw();
    world.shutdown();
    let reports = told();
    assert!(matches!(&reports[..], [report] if report.contains("1 handle(s)")), "{reports:?}");
    world.shutdown();
    drop(world);
    assert_eq!(told(), [""; 0]);
    let _ = raw;
    // With somebody attached it is too early to say.
    let (world, told) = telling();
    let mut mutator = world.attach().unwrap();
    let handle = mutator.handle(1);
    world.shutdown();
    assert_eq!(told(), [""; 0]);
    drop((handle, mutator, world));
    assert_eq!(told(), [""; 0]);
}

/// Row B6 for calls: a call that was leaked declares its arguments until its mutator detaches, which says so.
#[test]
fn a_mutator_that_detaches_with_leaked_arguments_reports_how_many() {
    let (world, told) = telling();
    let mut mutator = world.attach().unwrap();
    let id = mutator.id();
    let mut call = mutator.foreign_call();
    call.root(1);
    call.pin(2).unwrap();
    call.run(|| ());
    leak(call);
    drop(mutator);
    let reports = told();
    assert!(
        matches!(&reports[..], [report] if report.contains(&format!("mutator {id} detached with 2 "))),
        "{reports:?}"
    );
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call();
    call.root(1);
    call.run(|| ());
    drop(call);
    drop(mutator);
    assert_eq!(told(), [""; 0], "a call that ended has left nothing");
}

/// A thread whose attachment another part of the program drops at its exit, and what it had taken of the table, leave nothing behind.
#[test]
fn handles_made_by_threads_that_are_gone_are_as_good_as_any() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let mut handles = Vec::new();
    for n in 0..50 {
        handles.push(mutator.foreign_call().run(|| {
            thread::scope(|scope| {
                let make = || world.attach().unwrap().handle(text(&world, &n.to_string()));
                scope.spawn(make).join().unwrap()
            })
        }));
    }
    collect(&mut mutator);
    for (n, handle) in handles.iter().enumerate() {
        assert_text(&world, mutator.load(handle), &n.to_string());
    }
}

/// Two makers, a reader that looks their words up, and a releaser that is no mutator, while another thread collects all the time. Every object a live handle names is there.
#[test]
fn handles_made_passed_on_read_and_released_by_many_threads_while_another_collects() {
    const HANDLES: usize = 3000;
    enum Message {
        Owned(Handle<Ref>),
        Raw(RawHandle),
    }
    for fence in [FenceStrategy::Symmetric, FenceStrategy::Asymmetric] {
        if !fence.is_supported() {
            continue;
        }
        let world: World<TestVm> = World::builder().fence(fence).build(TestVm::new());
        let (makers_done, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let (stale, found, collections) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let words: Mutex<Vec<RawHandle>> = Mutex::new(Vec::new());
        let (send, receive) = mpsc::channel::<Message>();
        let ready = Barrier::new(5);
        thread::scope(|scope| {
            for maker in 0..2 {
                let send = send.clone();
                let (world, ready, words, makers_done) = (&world, &ready, &words, &makers_done);
                let (found, collections) = (&found, &collections);
                scope.spawn(move || {
                    let mut mutator = world.attach().unwrap();
                    mutator.foreign_call().run(|| ready.wait());
                    // Until the others have had their part in it, however they are scheduled.
                    let enough = |n| {
                        n >= HANDLES
                            && found.load(Ordering::Relaxed) > 0
                            && collections.load(Ordering::Relaxed) > 1
                    };
                    for n in (0..100 * HANDLES).take_while(|n| !enough(*n)) {
                        let label = format!("{maker}, {n}");
                        // No safepoint between the two: nothing has moved.
                        let object = text(world, &label);
                        let handle = mutator.handle(object);
                        let anchor = TestVm::idle_anchor(&mutator);
                        mutator.poll_at(anchor);
                        assert_text(world, mutator.load(&handle), &label);
                        if n % 5 == 0 {
                            mutator.foreign_call().run(|| drop(handle));
                        } else if n % 2 == 0 {
                            let raw = handle.into_raw();
                            words.lock().unwrap().push(raw);
                            send.send(Message::Raw(raw)).unwrap();
                        } else {
                            send.send(Message::Owned(handle)).unwrap();
                        }
                    }
                    makers_done.fetch_add(1, Ordering::Relaxed);
                });
            }
            drop(send);
            let (world_, ready_, stop_) = (&world, &ready, &stop);
            scope.spawn(move || {
                let (world, ready, stop) = (world_, ready_, stop_);
                ready.wait(); // no mutator of the world
                // A few words are kept for a while, so that the reader finds some before and some after their release.
                let mut kept = std::collections::VecDeque::new();
                while let Ok(message) = receive.recv() {
                    match message {
                        Message::Owned(handle) => drop(handle),
                        Message::Raw(raw) => kept.push_back(raw),
                    }
                    if kept.len() > 16 {
                        world.release(kept.pop_front().unwrap()).unwrap();
                    }
                }
                kept.into_iter().for_each(|raw| world.release(raw).unwrap());
                stop.store(true, Ordering::Release);
            });
            scope.spawn(|| {
                let mut mutator = world.attach().unwrap();
                mutator.foreign_call().run(|| ready.wait());
                while !stop.load(Ordering::Acquire) {
                    let newest = {
                        let words = words.lock().unwrap();
                        [words.len().checked_sub(1), words.len().checked_sub(17)]
                            .map(|index| index.map(|index| words[index]))
                    };
                    for raw in newest.into_iter().flatten() {
                        match mutator.lookup(raw) {
                            // Read before the next safepoint: it is alive still, though it may have been released.
                            Ok(object) => {
                                assert!(world.vm().heap().byte_count(object).unwrap() >= 4);
                                found.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(HandleError::Stale { .. }) => {
                                stale.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(other) => panic!("{other}"),
                        }
                    }
                    let anchor = TestVm::idle_anchor(&mutator);
                    mutator.poll_at(anchor);
                }
            });
            scope.spawn(|| {
                ready.wait();
                while !stop.load(Ordering::Acquire) {
                    world.pause(|stopped| stopped.vm().collect(stopped)).unwrap();
                    collections.fetch_add(1, Ordering::Relaxed);
                    // A pause on the heels of the last finds those that waited for it waiting still.
                    thread::sleep(core::time::Duration::from_micros(50));
                }
            });
        });
        assert_eq!(makers_done.load(Ordering::Relaxed), 2);
        assert!(found.load(Ordering::Relaxed) > 0, "words were looked up ({stale:?} of them stale)");
        assert!(collections.load(Ordering::Relaxed) > 1, "it ran beside collections");
        assert_eq!(world.pause(|stopped| stopped.vm().collect(stopped)).unwrap().live, 0);
        assert!(world.leaks().is_empty());
    }
}

/// A closure of an upcall keeps a handle: the usual way for a callback to have an object of its own.
#[test]
fn an_upcall_closure_reads_its_objects_through_handles() {
    let world = known_world();
    let mut mutator = world.attach().unwrap();
    let handle = mutator.handle(text(&world, "the callback's own"));
    let closure = UpcallClosure::new(&world, |mutator: &mut Mutator<TestVm>, x: c_int| {
        collect(mutator);
        let own = mutator.load(&handle);
        x + c_int::try_from(mutator.vm().heap().byte_count(own).unwrap()).unwrap()
    });
    // SAFETY: the data is the closure's, which lives; the callbacks take what C gives them.
    let sum = mutator.foreign_call().run(|| unsafe {
        foreign_call_back(upcall_fn(collect_twice), 0);
        reentry_foreign::foreign_call_back_last(closure.data_last(), 24, closure.data())
    });
    assert_eq!(sum, 42);
}

#[expect(clippy::mem_forget, reason = "these tests are about leaks")]
fn leak<T>(value: T) {
    core::mem::forget(value);
}
