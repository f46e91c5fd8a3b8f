//! Checked mode: no-collection regions, pointers that nothing protects, and the validation of the activation chain.
//!
//! The checks are there in debug builds and with the feature `checked`. The tests run in every build and say what the others do: nothing, at no cost.

use crate::plain::{Plain, caught, checked, message, number, panic_quietly};
use core::ffi::c_int;
use core::sync::atomic::{AtomicUsize, Ordering};
use reentry::testkit::bytecode::{Function, Program};
use reentry::testkit::{Ref, TestVm};
use reentry::{
    Anchor, ArgumentError, Capture, ChainDamage, ChainError, FenceStrategy, ForeignFunction as _, Mutator,
    NoAddresses, Report, Residence, RootVisitor, Segment, StackScanner, UpcallClosure, Vm, World,
    foreign_value, layout, upcall_fn,
};
use reentry_foreign::{
    foreign_call_back, foreign_call_back_last, foreign_first_word, foreign_nothing, foreign_overwrite,
    foreign_overwrite_byte,
};
use std::sync::Mutex;
use std::time::Instant;

type Small = Plain<510>;

// --- No-collection regions

/// What must not be done in a no-collection region, with the name the message has for it.
type Forbidden = (&'static str, &'static dyn Fn(&mut Mutator<Small>));
const FORBIDDEN: [Forbidden; 7] = [
    ("cannot poll", &|mutator| mutator.poll()),
    ("cannot poll", &|mutator| mutator.poll_at(Anchor::default())),
    ("cannot start a pause", &|mutator| mutator.pause(|_| ())),
    ("cannot start a pause", &|mutator| mutator.pause_at(Anchor::default(), |_| ())),
    ("cannot begin a foreign call", &|mutator| mutator.foreign_call().run(|| ())),
    ("cannot begin a foreign call", &|mutator| {
        let mut call = mutator.foreign_call();
        // SAFETY: the guard is dropped at once.
        drop(unsafe { call.enter() });
    }),
    ("cannot allocate on the heap", &|mutator| mutator.may_allocate()),
];

/// Row G3. No pause is wanted anywhere in this test: it is the safepoint that is refused, not a collection.
#[test]
fn a_safepoint_in_a_no_collection_region_is_refused_though_no_pause_is_wanted() {
    let world = Small::world(FenceStrategy::probe());
    let mut mutator = world.attach().unwrap();
    for (says, function) in FORBIDDEN {
        let line = line!() + 1;
        let outcome = mutator.without_collection(|mutator| {
            if checked() {
                return Some(message(|| function(mutator)));
            }
            function(mutator);
            None
        });
        if let Some(said) = outcome {
            assert!(said.contains(says), "{said}");
            assert!(said.contains(&format!("in the no-collection region at {}:{line}:", file!())), "{said}");
            assert_eq!(said.matches(file!()).count(), 2, "it names the place of the safepoint too: {said}");
            assert!(said.contains("end the region first"), "{said}");
        }
        function(&mut mutator);
    }
    let paused = caught(|| mutator.without_collection(|_| world.pause(|_| ())));
    let said = paused.downcast::<String>().unwrap();
    assert_eq!(said.contains("in the no-collection region at"), checked(), "{said}");
}

#[test]
fn a_no_collection_region_gives_the_result_of_its_closure_nests_and_ends_when_it_unwinds() {
    let world = Small::world(FenceStrategy::probe());
    let mut mutator = world.attach().unwrap();
    assert_eq!(mutator.without_collection(|mutator| mutator.depth() + 7), 7);
    assert_eq!(number(|| mutator.without_collection(|_| panic_quietly(4))), 4);
    mutator.poll();
    mutator.without_collection(|mutator| {
        let inner = line!() + 1;
        let said = mutator.without_collection(|mutator| checked().then(|| message(|| mutator.poll())));
        assert!(said.is_none_or(|said| said.contains(&format!(":{inner}:"))), "the innermost is named");
        let said = checked().then(|| message(|| mutator.poll()));
        assert!(said.is_none_or(|said| said.contains(&format!(":{}:", inner - 2))), "the outer one is back");
        // A leaf call has no safepoint.
        // SAFETY: C does nothing.
        unsafe { mutator.leaf_call(|_| foreign_nothing()) };
    });
    mutator.poll();
}

/// A VM's allocator asks, so its program is found out, whether or not the heap was full this time.
#[test]
fn an_allocation_of_the_vm_in_a_no_collection_region_is_refused() {
    let mut main = Function::builder("main");
    let text = main.reference_slot();
    main.bytes(text, b"allocated");
    main.leave();
    let world = TestVm::builder(Program::new(vec![main.finish()]).unwrap()).build_world();
    let mut mutator = world.attach().unwrap();
    TestVm::call(&mut mutator, "main", &[]).unwrap();
    mutator.without_collection(|mutator| {
        if checked() {
            let said = message(|| TestVm::call(mutator, "main", &[]));
            assert!(said.contains("cannot allocate on the heap") && said.contains(file!()), "{said}");
        } else {
            TestVm::call(mutator, "main", &[]).unwrap();
        }
    });
    assert!(TestVm::call(&mut mutator, "main", &[]).is_ok());
}

/// A handle that is not the running activation's is no proof of being managed. It takes unsafe code to have one.
#[test]
fn a_poll_or_an_allocation_through_the_handle_of_another_activation_is_refused() {
    let world = Small::world(FenceStrategy::probe());
    let mut mutator = world.attach().unwrap();
    let outer: *mut Mutator<Small> = &raw mut *mutator;
    let said = mutator.foreign_call().run(|| {
        // SAFETY: broken on purpose: the thread is foreign.
        let outer = unsafe { &mut *outer };
        checked().then(|| [message(|| outer.poll()), message(|| outer.may_allocate())])
    });
    for said in said.into_iter().flatten() {
        assert!(said.contains("it is foreign; it is inside a foreign call"), "{said}");
    }
    assert_eq!(mutator.validate(), Ok(()));
}

// --- The pointer check

/// What was reported: the address, the argument, the object, the line of the call.
type Reported = (usize, Option<usize>, Residence, u32);

/// A VM whose heap is a few ranges of addresses, movable or not, and which counts the questions it is asked.
#[derive(Default)]
struct Ranges {
    objects: Vec<(core::ops::Range<usize>, Option<Residence>)>,
    located: AtomicUsize,
    reports: Mutex<Vec<Reported>>,
}

impl Ranges {
    fn take(&self) -> Vec<Reported> {
        core::mem::take(&mut *self.reports.lock().unwrap())
    }
}

impl Vm for Ranges {
    /// The number of an object.
    type Ref = usize;
    type Local = ();
    type Exception = core::convert::Infallible;
    const CAPTURE: Capture = Capture::Nothing;

    fn attach(&self) {}

    fn locate(&self, address: usize) -> Option<Residence> {
        self.located.fetch_add(1, Ordering::Relaxed);
        self.objects.iter().find(|(range, _)| range.contains(&address))?.1
    }

    fn covers(&self, reference: usize, address: usize) -> bool {
        self.objects[reference].0.contains(&address)
    }

    fn report(&self, report: &Report<'_>) {
        let Report::UnprotectedPointer { address, call_site, argument, residence } = report else {
            panic!("{report}")
        };
        assert_eq!(call_site.file(), file!());
        let text = report.to_string();
        assert!(text.contains("nothing protects it") && text.contains(file!()), "{text}");
        self.reports.lock().unwrap().push((*address, *argument, *residence, call_site.line()));
    }
}

// SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
unsafe impl StackScanner for Ranges {
    fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
}

const MOVABLE: usize = 0x1_0000;
const OTHER: usize = 0x2_0000;
const FIXED: usize = 0x3_0000;

/// Object 0 and 1 may move, object 2 may not.
fn ranges() -> World<Ranges> {
    let object = |start: usize, residence| (start..start + 0x100, Some(residence));
    let objects = vec![
        object(MOVABLE, Residence::Movable),
        object(OTHER, Residence::Movable),
        object(FIXED, Residence::Fixed),
    ];
    World::new(Ranges { objects, ..Ranges::default() })
}

fn pointer(address: usize) -> *const u8 {
    core::ptr::without_provenance(address)
}

/// What checked mode says; nothing otherwise.
#[track_caller]
fn assert_reported(world: &World<Ranges>, expected: &[Reported]) {
    let expected = if checked() { expected } else { &[] };
    assert_eq!(world.vm().take(), expected);
}

/// Row B10, on a real moving heap: cgo's rule.
#[test]
fn a_heap_address_in_call_memory_is_reported_unless_its_object_is_pinned() {
    static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let world = TestVm::builder(Program::new(Vec::new()).unwrap())
        .on_report(|report| SAID.lock().unwrap().push(report.to_string()))
        .build_world();
    let mut mutator = world.attach().unwrap();
    let object = world.vm().heap().alloc(&[], b"");
    let bytes = world.vm().heap().payload(object).unwrap();

    let mut call = mutator.foreign_call();
    call.copy(bytes);
    call.run(|| ());
    drop(call);
    let said = core::mem::take(&mut *SAID.lock().unwrap());
    assert_eq!(said.len(), usize::from(checked()));
    for said in &said {
        assert!(said.contains(&format!("{:#x}", bytes.addr())) && said.contains(file!()), "{said}");
        assert!(said.contains("which lies in an object that may move"), "{said}");
        assert!(said.contains("pin the object"), "{said}");
    }
    // Rooted is not pinned. References are addresses too, as in the array of qsort.
    let mut call = mutator.foreign_call();
    call.root(object);
    call.copy_slice(&[Ref::NULL, object]);
    call.run(|| ());
    drop(call);
    assert_eq!(core::mem::take(&mut *SAID.lock().unwrap()).len(), usize::from(checked()));

    for pin_first in [true, false] {
        let mut call = mutator.foreign_call();
        if pin_first {
            call.pin(object).unwrap();
        }
        call.copy(bytes);
        call.copy_slice(&[object]);
        call.check(&bytes);
        if !pin_first {
            // Declared after the copy that needs it, and before C runs: right.
            call.pin(object).unwrap();
        }
        call.run(|| ());
        drop(call);
        assert_eq!(SAID.lock().unwrap().len(), 0, "pinned first: {pin_first}");
    }
}

/// Each way to protect an address, and that it ends.
#[test]
fn whatever_pins_an_object_for_the_time_of_the_call_protects_its_addresses() {
    let world = ranges();
    let mut mutator = world.attach().unwrap();
    let inside = pointer(MOVABLE + 0x42);
    let check = |mutator: &mut Mutator<Ranges>| {
        let mut call = mutator.foreign_call();
        call.check(&pointer(MOVABLE + 0x42));
        call.run(|| ());
    };
    let line = line!() - 2;
    let found = |line| [(MOVABLE + 0x42, None, Residence::Movable, line)];
    check(&mut mutator);
    assert_reported(&world, &found(line));

    // A pin of this call, of the wrong object and of the right one.
    let mut call = mutator.foreign_call();
    call.check(&inside);
    call.pin(1).unwrap();
    call.run(|| ());
    let line_of_wrong = line!() - 1;
    assert_reported(&world, &found(line_of_wrong));
    call.check(&inside);
    call.pin(0).unwrap();
    call.run(|| ());
    call.run(|| ());
    drop(call);
    assert_reported(&world, &[]);

    // A pinner of the world.
    let mut pinner = world.pinner();
    mutator.pin_with(&mut pinner, 0).unwrap();
    check(&mut mutator);
    assert_reported(&world, &[]);
    // What the call keeps in its memory is looked at each time it runs.
    let mut call = mutator.foreign_call();
    call.copy(inside);
    call.run(|| ());
    assert_reported(&world, &[]);
    drop(pinner);
    call.run(|| ());
    let line_of_second = line!() - 1;
    call.run(|| ());
    drop(call);
    assert_reported(&world, &found(line_of_second));

    // A transitive pin, of anything.
    let mut call = mutator.foreign_call();
    call.pin_transitively(1).unwrap();
    call.check(&inside);
    call.run(|| ());
    drop(call);
    assert_reported(&world, &[]);

    // A call of an older activation, which is still in progress; and a result that an upcall handed over, until its call ends.
    let body = UpcallClosure::new(&world, |mutator: &mut Mutator<Ranges>, hand_over: c_int| {
        if hand_over == 1 {
            mutator.hand_over_pinned(0).unwrap();
        }
        check(mutator);
        hand_over
    });
    // SAFETY: the data pointer is the closure's own, and the closure lives.
    let upcall = |hand_over| unsafe { foreign_call_back_last(body.data_last(), hand_over, body.data()) };
    let mut call = mutator.foreign_call();
    call.pin(0).unwrap();
    call.run(|| upcall(0));
    drop(call);
    assert_reported(&world, &[]);
    let mut call = mutator.foreign_call();
    call.run(|| upcall(0));
    assert_reported(&world, &found(line));
    call.run(|| upcall(1));
    call.run(|| upcall(0));
    drop(call);
    assert_reported(&world, &[]);
    check(&mut mutator);
    assert_reported(&world, &found(line));
}

/// An object that stays where it is has to be kept alive, no more; for one that may move that is not enough.
#[test]
fn a_root_protects_an_object_that_does_not_move_and_no_other() {
    let world = ranges();
    let mut mutator = world.attach().unwrap();
    let mut slot: usize = 2;
    for in_place in [false, true] {
        for (object, address, residence) in [(2, FIXED, Residence::Fixed), (0, MOVABLE, Residence::Movable)] {
            let mut call = mutator.foreign_call();
            call.check(&pointer(address));
            call.run(|| ());
            let line = line!() - 1;
            assert_reported(&world, &[(address, None, residence, line)]);
            slot = object;
            let slot = core::ptr::NonNull::from(&mut slot);
            call.check(&pointer(address));
            if in_place {
                // SAFETY: the slot outlives the call.
                unsafe { call.root_in_place(slot) }.unwrap();
            } else {
                call.root(object);
            }
            call.run(|| ());
            let line = line!() - 1;
            let expected = [(address, None, residence, line)];
            assert_reported(&world, if object == 2 { &[] } else { &expected });
        }
    }
    assert_eq!(slot, 0);
}

/// What is passed by `invoke` says which argument it was, and is no concern of the next invocation.
#[test]
fn an_unprotected_argument_of_a_foreign_function_is_reported_by_its_number() {
    type Function = unsafe extern "C" fn(*const usize, *const usize) -> usize;
    // SAFETY: an address is as good as a `usize` to it.
    let function = unsafe { Function::from_ptr(foreign_first_word as *const core::ffi::c_void) }.unwrap();
    let world = ranges();
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call();
    let words = [1_usize, 2];
    // SAFETY: the first is null or points to a word; the second is a number to the function.
    let result = unsafe { call.invoke(function, (core::ptr::null(), pointer(MOVABLE + 8).cast())) };
    let line = line!() - 1;
    assert_eq!(result, MOVABLE + 8);
    assert_reported(&world, &[(MOVABLE + 8, Some(1), Residence::Movable, line)]);
    // SAFETY: as above. An address outside the heap.
    let result = unsafe { call.invoke(function, (words.as_ptr(), core::ptr::without_provenance(4))) };
    assert_eq!(result, 5);
    assert_reported(&world, &[]);
    call.pin(0).unwrap();
    // SAFETY: as above.
    unsafe { call.invoke(function, (core::ptr::null(), pointer(MOVABLE).cast())) };
    drop(call);
    // The function with no arguments has none to look at.
    // SAFETY: it may be called.
    unsafe { mutator.foreign_call().invoke(foreign_nothing as unsafe extern "C" fn(), ()) };
    assert_reported(&world, &[]);
}

/// The guard form and the timed leaf call take the same addresses to C.
#[test]
fn every_form_of_a_foreign_call_checks_what_it_takes_along() {
    static SITE: reentry::LeafSite = reentry::LeafSite::new(core::time::Duration::MAX);
    let world = ranges();
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call();
    call.check(&pointer(OTHER));
    let line = line!() + 2;
    // SAFETY: dropped at once.
    drop(unsafe { call.enter() });
    assert_reported(&world, &[(OTHER, None, Residence::Movable, line)]);
    call.check(&pointer(OTHER));
    let line = line!() + 2;
    // SAFETY: it does nothing.
    unsafe { call.run_leaf(&SITE, || foreign_nothing()) };
    assert_reported(&world, &[(OTHER, None, Residence::Movable, line)]);
    call.pin(1).unwrap();
    call.check(&pointer(OTHER));
    // SAFETY: it does nothing.
    unsafe { call.run_leaf(&SITE, || foreign_nothing()) };
    assert_reported(&world, &[]);
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Vector {
    base: *mut u8,
    length: usize,
}
foreign_value!(Vector: base);

#[derive(Clone, Copy)]
#[repr(C)]
struct Message {
    name: Option<core::ptr::NonNull<u8>>,
    parts: [Vector; 2],
    callback: Option<extern "C" fn(c_int) -> c_int>,
}
foreign_value!(Message: name, parts);

/// Addresses are found in structs, arrays and slices of them; numbers are numbers.
#[test]
fn addresses_inside_structs_and_slices_are_found_and_numbers_are_not_addresses() {
    let world = ranges();
    let mut mutator = world.attach().unwrap();
    let vector = |address: usize| Vector { base: core::ptr::without_provenance_mut(address), length: OTHER };
    let name = core::ptr::NonNull::new(core::ptr::without_provenance_mut(MOVABLE));
    let callback = Some(upcall_fn(|_: &mut Mutator<Ranges>, x: c_int| x));
    let message = Message { name, parts: [vector(OTHER + 1), vector(0x9_9999)], callback };
    assert!(message.callback.is_some() && message.parts[0].length == OTHER);
    let reported = |address, line| (address, None, Residence::Movable, line);

    let mut call = mutator.foreign_call();
    call.copy_slice(&[message]);
    call.check(&[vector(MOVABLE + 2), vector(0)][..]);
    call.copy(MOVABLE);
    call.copy(NoAddresses(name));
    call.copy(core::mem::MaybeUninit::<Vector>::uninit());
    call.run(|| ());
    let line = line!() - 1;
    drop(call);
    assert_reported(
        &world,
        &[reported(MOVABLE, line), reported(OTHER + 1, line), reported(MOVABLE + 2, line)],
    );
}

/// 64 MiB of bytes are not looked at, which the VM can count and a clock can see: looking at each would take a thousand times as long.
#[test]
fn a_slice_of_a_type_without_addresses_costs_nothing_whatever_its_size() {
    let world = ranges();
    let mut mutator = world.attach().unwrap();
    let large = vec![0x01_u8; 64 << 20];
    let start = Instant::now();
    for _ in 0..100 {
        let mut call = mutator.foreign_call();
        call.check(&large[..]);
        call.run(|| ());
    }
    let elapsed = start.elapsed();
    assert_eq!(world.vm().located.load(Ordering::Relaxed), 0);
    // 6.4 GB in 100 ms would be 64 GB a second.
    assert!(elapsed.as_millis() < 100, "{elapsed:?}");
    // The control: it does count.
    let mut call = mutator.foreign_call();
    call.check(&[pointer(0x9_0000); 1000]);
    call.run(|| ());
    drop(call);
    assert_eq!(world.vm().located.load(Ordering::Relaxed), if checked() { 1000 } else { 0 });
}

/// A VM that says nothing of its heap hears nothing.
#[test]
fn a_vm_that_locates_no_address_gets_no_report() {
    let world = Small::world(FenceStrategy::probe());
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call();
    call.copy(pointer(MOVABLE));
    call.run(|| ());
    assert_eq!(world.vm().take_reports(), [""; 0]);
    assert!(!world.vm().covers(0, 0));
    assert_eq!(world.vm().bytes(0), None);
    assert!(ArgumentError::NoBytes.to_string().contains("pin it and pass its address"));
}

// --- The activation chain

/// A VM on the native stack.
struct Native;

impl Vm for Native {
    type Ref = usize;
    type Local = ();
    type Exception = core::convert::Infallible;
    const CAPTURE: Capture = Capture::Anchor;
    fn attach(&self) {}
}

// SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
unsafe impl StackScanner for Native {
    fn scan_segment(&self, (): &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
}

/// Reads a word.
fn word(address: usize) -> usize {
    // SAFETY: the tests pass addresses inside live records of this thread's own mutator.
    unsafe { core::ptr::with_exposed_provenance::<usize>(address).read_volatile() }
}

/// Has C write `new` to `size` bytes at an address in a record, validates, and puts back what was there.
fn damaged<V: StackScanner>(
    mutator: &Mutator<V>,
    address: usize,
    size: usize,
    new: usize,
) -> Option<ChainError> {
    let old = word(address & !7);
    let write = |new: usize| {
        // SAFETY: broken on purpose: inside a live record, and put back.
        unsafe {
            if size == 1 {
                foreign_overwrite_byte(core::ptr::with_exposed_provenance_mut(address), new.to_le_bytes()[0]);
            } else {
                foreign_overwrite(core::ptr::with_exposed_provenance_mut(address), new);
            }
        }
    };
    write(new);
    let found = mutator.validate().err();
    write(if size == 1 { usize::from(old.to_le_bytes()[address & 7]) } else { old });
    assert_eq!(mutator.validate(), Ok(()), "put back");
    found
}

/// Row G4, in every build: each word that is looked at, damaged by C. Two activations deep, so that both ends of each link are there.
#[test]
fn validation_finds_each_word_that_foreign_code_has_written_over() {
    use layout::{
        CANARY, CANARY_IN_RECORD, DEPTH_IN_RECORD, ENTRY_SP_IN_RECORD, FRAME, KIND_IN_RECORD,
        MACHINE_SP_IN_RECORD, MANAGED, OLDER_IN_RECORD, ROOT_MARK_IN_RECORD,
    };
    let world = World::new(Native);
    let low = 0_usize;
    // SAFETY: an address in this frame; the managed frames of this test lie below it.
    let mut mutator = unsafe { world.attach_at((&raw const low).addr()) }.unwrap();
    let body = UpcallClosure::new(&world, |mutator: &mut Mutator<Native>, x: c_int| {
        assert_eq!(mutator.validate(), Ok(()));
        let header = mutator.record_address();
        let newest = word(header + FRAME) & !MANAGED;
        let base = word(newest + OLDER_IN_RECORD);
        assert_eq!((word(base + OLDER_IN_RECORD), word(newest + DEPTH_IN_RECORD) as u32), (0, 1));
        let entry = word(base + ENTRY_SP_IN_RECORD);
        let whole = word(base + CANARY_IN_RECORD);
        let mark = word(base + ROOT_MARK_IN_RECORD);
        let newest_mark = word(newest + ROOT_MARK_IN_RECORD);
        assert!(newest_mark > mark, "the call has declared a root");

        let at = |depth: usize, address: usize, new: usize, damage: ChainDamage| {
            let error = damaged(mutator, address, 8, new).unwrap_or_else(|| panic!("unnoticed: {damage}"));
            assert_eq!((error.mutator, error.depth, error.damage), (mutator.id(), depth, damage));
            let text = error.to_string();
            assert!(text.contains(&format!("damaged at activation #{depth}: {damage}")), "{text}");
            // One line for each activation up to the damaged one.
            let lines = text.lines().filter(|line| line.starts_with("  #")).count();
            assert_eq!(lines, depth + 1, "{text}");
            assert!(text.contains(&format!("  <-- {damage}")), "{text}");
        };
        let expected = word(header + CANARY);
        at(0, header + CANARY, 0x41, ChainDamage::MutatorCanary { found: 0x41, expected });
        at(0, base + CANARY_IN_RECORD, 0, ChainDamage::Canary { found: 0, expected: whole });
        let expected = word(newest + CANARY_IN_RECORD);
        assert_ne!(expected, whole, "a record copied over another is noticed");
        at(1, newest + CANARY_IN_RECORD, whole, ChainDamage::Canary { found: whole, expected });
        at(1, newest + DEPTH_IN_RECORD, 7, ChainDamage::Depth { found: 7 });
        at(0, base + DEPTH_IN_RECORD, 1, ChainDamage::Depth { found: 1 });
        at(1, newest + OLDER_IN_RECORD, newest, ChainDamage::Older { found: newest, expected: base });
        at(0, base + OLDER_IN_RECORD, 0x1234, ChainDamage::Older { found: 0x1234, expected: 0 });
        at(1, newest + ROOT_MARK_IN_RECORD, 0x10, ChainDamage::RootMark { mark: 0x10, older: mark });
        at(0, base + ROOT_MARK_IN_RECORD, mark + 1, ChainDamage::RootMark { mark: mark + 1, older: mark });
        // In order, each of them a place: but exchanged.
        at(1, newest + ROOT_MARK_IN_RECORD, mark - 8, ChainDamage::RootMark { mark: mark - 8, older: mark });
        let mark = newest_mark + 8;
        at(1, newest + ROOT_MARK_IN_RECORD, mark, ChainDamage::RootTop { top: newest_mark, mark });
        let damage = |what, sp| ChainDamage::StackOrder { what, sp, entry };
        if cfg!(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))) {
            at(0, base + MACHINE_SP_IN_RECORD, entry + 16, damage("stack pointer", entry + 16));
            at(1, newest + ENTRY_SP_IN_RECORD, entry + 8, damage("entry stack pointer", entry + 8));
        }
        // On another stack, as with a coroutine's, nothing can be said.
        assert_eq!(damaged(mutator, base + MACHINE_SP_IN_RECORD, 8, 0x4000), None);

        let error = damaged(mutator, base + KIND_IN_RECORD, 1, 0x7F).expect("noticed");
        assert_eq!((error.depth, error.damage), (0, ChainDamage::Kind { found: 0x7F }));
        assert!(error.to_string().contains("kind 127"), "{error}");
        x
    });
    let mut call = mutator.foreign_call();
    call.root(5);
    // SAFETY: the data pointer is the closure's own, and the closure lives.
    let ran = call.run(|| unsafe { foreign_call_back_last(body.data_last(), 3, body.data()) });
    assert_eq!(ran, 3);
}

/// The record in use is looked for among those the mutator owns.
#[test]
fn validation_finds_a_frame_word_that_names_no_record() {
    let world = World::new(Native);
    let mut mutator = world.attach().unwrap();
    // A record of a depth that has been reached is known, and is not what the mutator is in.
    let go_deeper = |mutator: &mut Mutator<Native>, x: c_int| mutator.depth() as c_int + x;
    // SAFETY: the callback takes an `int` and gives one.
    assert_eq!(mutator.foreign_call().run(|| unsafe { foreign_call_back(upcall_fn(go_deeper), 1) }), 2);
    let frame = mutator.record_address() + layout::FRAME;
    let found = damaged(&mutator, frame, 8, 0xBAD_0000 | layout::MANAGED).unwrap();
    assert_eq!((found.depth, found.damage), (1, ChainDamage::NotARecord { found: 0xBAD_0000 }));
    assert!(found.to_string().contains("is none of the mutator's"), "{found}");
}

/// A pause can look before it trusts a chain; and the drawing shows each activation with its call site.
#[test]
fn a_stopped_mutator_is_validated_and_drawn_with_its_call_sites() {
    let world = World::new(Native);
    let mut mutator = world.attach().unwrap();
    let record = mutator.record_address();
    let canary = word(record + layout::FRAME) - layout::MANAGED + layout::CANARY_IN_RECORD;
    let whole = word(canary);
    let body = UpcallClosure::new(&world, |mutator: &mut Mutator<Native>, x: c_int| {
        let newest =
            (word(mutator.record_address() + layout::FRAME) & !layout::MANAGED) + layout::KIND_IN_RECORD;
        mutator.foreign_call().run(|| {
            world.pause(|stopped| {
                let stopped = stopped.mutators().next().unwrap();
                assert_eq!(stopped.validate(), Ok(()));
                let at = core::ptr::with_exposed_provenance_mut(newest);
                // SAFETY: broken on purpose: a live record, put back below.
                unsafe { foreign_overwrite_byte(at, 0xFF) };
                let error = stopped.validate().unwrap_err();
                // SAFETY: as above; 0 is a foreign call.
                unsafe { foreign_overwrite_byte(at, 0) };
                assert_eq!(error.damage, ChainDamage::Kind { found: 0xFF });
                let lines: Vec<_> = error.drawing.lines().collect();
                assert!(
                    lines[0].starts_with("  #0 foreign call Anchor") && lines[0].contains(file!()),
                    "{error}"
                );
                assert!(
                    lines[1].contains("#1 kind 255") && lines[1].contains("<-- its kind is 255"),
                    "{error}"
                );

                // A record that was run over names no site: it would be read from anywhere.
                // SAFETY: as above.
                unsafe { foreign_overwrite(core::ptr::with_exposed_provenance_mut(canary), !whole) };
                let error = stopped.validate().unwrap_err();
                // SAFETY: as above.
                unsafe { foreign_overwrite(core::ptr::with_exposed_provenance_mut(canary), whole) };
                assert!(error.drawing.starts_with("  #0 foreign call"), "{error}");
                assert!(error.drawing.contains("at an unknown call site"), "{error}");
                assert_eq!(stopped.validate(), Ok(()));
            });
        });
        x
    });
    // SAFETY: the data pointer is the closure's own, and the closure lives.
    let ran =
        mutator.foreign_call().run(|| unsafe { foreign_call_back_last(body.data_last(), 3, body.data()) });
    assert_eq!(ran, 3);
}
