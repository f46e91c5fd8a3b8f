//! Leaf calls: what they may do, what they are caught at, heap bytes lent without a copy, and the timed kind.
//!
//! The promise of a leaf call is that nothing inside needs a safepoint. A VM's C API can break it without the caller's knowledge: C was given the VM, and calls it. The tests do that with
//! a raw pointer to the mutator that C passes on.

use crate::plain::{Plain, Steps, caught, checked, message, number, panic_quietly};
use core::cell::RefCell;
use core::ffi::{c_int, c_void};
use core::panic::AssertUnwindSafe;
use core::sync::atomic::AtomicU32;
use core::time::Duration;
use reentry::testkit::{Ref, TestVm};
use reentry::{ArgumentError, FenceStrategy, LeafSite, Mutator, World, layout, upcall_fn};
use reentry_foreign::{
    foreign_add, foreign_call_back_first, foreign_checksum, foreign_escapable, foreign_escape, foreign_fail,
    foreign_meet_within, foreign_work_on,
};
use std::panic::catch_unwind;
use std::thread;

type Vm = Plain<500>;
type Handle = Mutator<Vm>;

thread_local! { static SAID: RefCell<Option<String>> = const { RefCell::new(None) }; }

/// What C is given for the VM: where the mutator is, and what to do with it.
struct Api<'a> {
    mutator: *mut Handle,
    function: &'a dyn Fn(&mut Handle),
}

/// The VM's C API. A panic must not go through C, so it is kept as a message.
extern "C" fn api(data: *mut c_void, _: c_int) -> c_int {
    // SAFETY: the tests pass an `Api`, whose mutator is attached to this thread.
    let (function, mutator) = unsafe {
        let api = &*data.cast::<Api<'_>>();
        (api.function, &mut *api.mutator)
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| function(mutator)));
    SAID.set(outcome.err().map(|payload| match payload.downcast::<String>() {
        Ok(said) => *said,
        Err(payload) => (*payload.downcast::<&str>().expect("a panic with a message")).to_owned(),
    }));
    0
}

/// Calls C, which calls the VM's API with `mutator`. Returns what that panicked with.
fn through_c(mutator: *mut Handle, function: &dyn Fn(&mut Handle)) -> Option<String> {
    let mut data = Api { mutator, function };
    // SAFETY: `api` takes an `Api`.
    unsafe { foreign_call_back_first(api, (&raw mut data).cast(), 0) };
    SAID.take()
}

type Forbidden = &'static dyn Fn(&mut Handle);

/// Everything a leaf call must not do, by the name the message has for it.
const FORBIDDEN: [(&str, Forbidden); 6] = [
    ("cannot poll", &|mutator| mutator.poll()),
    ("cannot poll", &|mutator| mutator.poll_at(reentry::Anchor::default())),
    ("cannot start a pause", &|mutator| mutator.pause(|_| ())),
    ("cannot start a pause", &|mutator| mutator.pause_at(reentry::Anchor::default(), |_| ())),
    ("cannot begin a foreign call", &|mutator| mutator.foreign_call().run(|| ())),
    ("cannot allocate on the heap", &|mutator| mutator.may_allocate()),
];

/// Row C4, G2: each is found out in checked mode, and the message names both places. Otherwise it is done, and nobody is told.
#[test]
fn a_safepoint_or_an_allocation_inside_a_leaf_call_is_refused_naming_both_places() {
    let world = Vm::world(FenceStrategy::probe());
    let mut mutator = world.attach().unwrap();
    for (says, function) in FORBIDDEN {
        let raw: *mut Handle = &raw mut *mutator;
        let line = line!() + 2;
        // SAFETY: broken on purpose: the callee calls the VM.
        let said = unsafe { (*raw).leaf_call(|_| through_c(raw, function)) };
        match said {
            None => assert!(!checked(), "{says}"),
            Some(said) => {
                assert!(checked() && said.contains(says), "{said}");
                assert!(said.contains(&format!("in the leaf call at {}:{line}:", file!())), "{said}");
                // Where it was done: a line of the table above.
                assert!(said.matches(file!()).count() == 2, "{said}");
                assert!(said.contains("make the call with `ForeignCall::run`"), "{said}");
            }
        }
        // The region is over with the call.
        assert_eq!(through_c(raw, function), None, "{says}, outside of the leaf call");
    }
}

/// A pause asked for through the world waits for this very thread: refused in any build, and named in checked mode.
#[test]
fn a_pause_through_the_world_inside_a_leaf_call_is_refused() {
    let world = Vm::world(FenceStrategy::probe());
    let mut mutator = world.attach().unwrap();
    // SAFETY: broken on purpose: it would wait for itself, and is refused.
    let said = unsafe { mutator.leaf_call(|_| message(|| world.pause(|_| ()))) };
    assert!(said.contains("reentry: mutator") && said.contains(file!()), "{said}");
    assert_eq!(said.contains("in the leaf call at"), checked(), "{said}");
}

/// A promoted leaf call may stop, so a timed one is refused where nothing may, promoted or not.
#[test]
fn a_timed_leaf_call_is_a_foreign_call_to_a_region_that_excludes_them() {
    static SITE: LeafSite = LeafSite::new(Duration::MAX);
    let world = Vm::world(FenceStrategy::probe());
    let mut mutator = world.attach().unwrap();
    // SAFETY: `foreign_add` adds.
    let add = |mutator: &mut Handle| unsafe { mutator.foreign_call().run_leaf(&SITE, || foreign_add(1, 2)) };
    assert_eq!(add(&mut mutator), 3);
    let raw: *mut Handle = &raw mut *mutator;
    let said = mutator.without_collection(|mutator| {
        if checked() { Some(message(|| add(mutator))) } else { (add(mutator) != 3).then(String::new) }
    });
    assert_eq!(said.is_some_and(|said| said.contains("cannot begin a foreign call")), checked());
    // And inside a timed one the same holds as inside a plain one.
    let mut call = mutator.foreign_call();
    // SAFETY: broken on purpose: the callee calls the VM.
    let said = unsafe { call.run_leaf(&SITE, || through_c(raw, &|mutator| mutator.poll())) };
    assert_eq!(said.is_some_and(|said| said.contains("in the leaf call at")), checked());
}

#[test]
fn a_leaf_call_that_unwinds_ends_its_region_and_a_nested_one_gives_back_the_outer() {
    let world = Vm::world(FenceStrategy::probe());
    let mut mutator = world.attach().unwrap();
    // SAFETY: it does nothing but panic.
    let overtaken = number(|| unsafe { mutator.leaf_call(|_| panic_quietly(3)) });
    assert_eq!(overtaken, 3);
    mutator.poll();

    let raw: *mut Handle = &raw mut *mutator;
    let poll = |mutator: &mut Handle| mutator.poll();
    let (outer, inner) = (line!() + 3, line!() + 4);
    // SAFETY: broken on purpose: the callee calls the VM. The inner calls are through the same handle, which the outer does not use meanwhile.
    let said = unsafe {
        (*raw).leaf_call(|_| {
            let inner = (*raw).leaf_call(|_| through_c(raw, &poll));
            drop(caught(|| (*raw).leaf_call(|_| panic_quietly(1))));
            [inner, through_c(raw, &poll)]
        })
    };
    for (said, line) in said.into_iter().zip([inner, outer]) {
        let names = said.as_ref().is_some_and(|said| said.contains(&format!("at {}:{line}:", file!())));
        assert_eq!(names, checked(), "line {line}: {said:?}");
    }
}

/// `longjmp` past a leaf call: its region goes with the activation it was in.
#[test]
fn a_leaf_call_that_foreign_code_skips_ends_its_region() {
    fn body(mutator: &mut Handle, x: c_int) -> c_int {
        // SAFETY: broken on purpose: it goes past the upcall and the call that made it; nothing in between needs to be dropped.
        unsafe { mutator.leaf_call(|_| foreign_escape()) };
        x
    }
    let world = Vm::world(FenceStrategy::probe());
    let mut mutator = world.attach().unwrap();
    // SAFETY: the body escapes to this very call.
    let escaped = mutator.foreign_call().run(|| unsafe { foreign_escapable(upcall_fn(body)) });
    assert_eq!(escaped, 1);
    let reports = world.vm().take_reports();
    assert!(reports.len() == 1 && reports[0].contains("skipped the frames of 1 upcall(s)"), "{reports:?}");
    mutator.poll();
    assert_eq!(mutator.foreign_call().run(|| 5), 5);
}

/// Row F5. C reads the object where it is.
#[test]
fn bytes_lent_to_a_leaf_call_are_the_objects_own_and_are_not_copied() {
    let world = World::new(TestVm::new());
    let mut mutator = world.attach().unwrap();
    let heap = world.vm().heap();
    let payload: Vec<u8> = (0..100_000_u32).map(|i| (i * 7 % 251) as u8).collect();
    let object = heap.alloc(&[Ref::NULL], &payload);
    let here = heap.payload(object).unwrap();
    let expected = payload.iter().fold((1_u32, 0_u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65521;
        (a, (b + a) % 65521)
    });
    // SAFETY: the checksum is short and reads what it is told to.
    let (at, sum) = unsafe {
        mutator.leaf_call(|leaf| {
            let bytes = leaf.lend(object).unwrap();
            assert_eq!((bytes.len(), bytes.is_empty()), (payload.len(), false));
            (bytes.as_ptr(), foreign_checksum(bytes.as_ptr(), bytes.len()))
        })
    };
    assert_eq!(at, here, "the object's own bytes");
    assert_eq!(sum, expected.1 << 16 | expected.0);
    // Nothing pinned it: the next collection moves it.
    let global = world.vm().add_global(object);
    TestVm::collect_in(&mut mutator).unwrap();
    assert_ne!(world.vm().global(global), object);
    // What C writes is the object's as well.
    let moved = world.vm().global(global);
    // SAFETY: within the object.
    unsafe { mutator.leaf_call(|leaf| leaf.lend(moved).unwrap().as_ptr().write(0xEE)) };
    assert_eq!(heap.bytes(moved).unwrap()[0], 0xEE);
}

/// Scenario 33: an object without bytes has an address; what is no object, and a VM that lends nothing, is an error.
#[test]
fn what_cannot_be_lent_is_refused_and_never_ignored() {
    let world = World::new(TestVm::new());
    let mut mutator = world.attach().unwrap();
    let empty = world.vm().heap().alloc(&[], b"");
    // SAFETY: the checksum is short and reads nothing here.
    unsafe {
        mutator.leaf_call(|leaf| {
            let bytes = leaf.lend(empty).unwrap();
            assert!(bytes.is_empty() && !bytes.as_ptr().is_null());
            assert_eq!(foreign_checksum(bytes.as_ptr(), 0), 1);
            let stale = Ref::from_address(empty.address() + 8);
            let refused = ArgumentError::NotOfThisWorld { reference: stale.address() };
            assert_eq!(leaf.lend(stale).unwrap_err(), refused);
            assert_eq!(leaf.lend(Ref::NULL).unwrap_err(), ArgumentError::NoBytes);
        });
    }
    let plain = Vm::world(FenceStrategy::probe());
    let mut mutator = plain.attach().unwrap();
    // SAFETY: nothing is called.
    let refused = unsafe { mutator.leaf_call(|leaf| leaf.lend(5).unwrap_err()) };
    assert_eq!(refused, ArgumentError::NoBytes);
    assert!(refused.to_string().contains("implement `Vm::bytes`"), "{refused}");
}

/// Runs C that works on for `nanoseconds` after a pause has been asked for, as a timed leaf call.
fn work_on(mutator: &mut Handle, site: &LeafSite, steps: &Steps, nanoseconds: i64) {
    let poll = core::ptr::with_exposed_provenance::<AtomicU32>(mutator.record_address() + layout::POLL);
    let word = steps.word();
    let mut call = mutator.foreign_call();
    // SAFETY: the words live; the function takes its time and does nothing else.
    unsafe { call.run_leaf(site, || foreign_work_on(word, 1, poll, layout::POLL_MASK, nanoseconds)) };
}

/// Makes one timed leaf call that works on for `nanoseconds` after another thread has asked for a pause. Returns the VM's reports.
fn delay_a_pause(site: &LeafSite, nanoseconds: i64) -> Vec<String> {
    let world = Vm::world(FenceStrategy::probe());
    let steps = Steps::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            steps.wait(1);
            world.pause(|_| ());
        });
        let mut mutator = world.attach().unwrap();
        work_on(&mut mutator, site, &steps, nanoseconds);
        // The pause waits still: the leaf call did not poll.
        mutator.poll();
    });
    world.vm().take_reports()
}

/// Row N7. The delay is measured from when the pause was asked for, by C's own clock.
#[test]
fn a_leaf_call_that_keeps_a_pause_waiting_over_its_budget_is_reported_with_its_line() {
    static SITE: LeafSite = LeafSite::new(Duration::from_millis(20));
    let reports = delay_a_pause(&SITE, 30_000_000);
    let [report] = &reports[..] else { panic!("{reports:?}") };
    assert!(report.contains("for the leaf call at") && report.contains(file!()), "{report}");
    assert!(
        report.contains("which may take 20ms") && report.contains("make it a full foreign call"),
        "{report}"
    );
    assert_eq!((SITE.over_budget(), SITE.is_promoted()), (1, false));
    delay_a_pause(&SITE, 30_000_000);
    assert_eq!((SITE.over_budget(), SITE.is_promoted()), (2, false), "it never asked to be promoted");
}

#[test]
fn a_leaf_call_within_its_budget_is_not_reported() {
    static SITE: LeafSite = LeafSite::new(Duration::from_secs(3600)).promoting();
    assert_eq!(delay_a_pause(&SITE, 5_000_000), [""; 0]);
    assert_eq!(
        (SITE.over_budget(), SITE.is_promoted(), SITE.budget()),
        (0, false, Duration::from_secs(3600))
    );
}

/// The budget is about pauses: a long leaf call that nobody waits for is nobody's business, and looks at no clock.
#[test]
fn a_long_leaf_call_that_no_pause_waits_for_is_not_reported() {
    static SITE: LeafSite = LeafSite::new(Duration::ZERO);
    let world = Vm::world(FenceStrategy::probe());
    let mut mutator = world.attach().unwrap();
    let always = AtomicU32::new(1);
    let word = AtomicU32::new(0);
    // SAFETY: the words live; it takes its time and does nothing else.
    unsafe {
        mutator
            .foreign_call()
            .run_leaf(&SITE, || foreign_work_on(&raw const word, 1, &raw const always, 1, 2_000_000))
    };
    assert_eq!((world.vm().take_reports(), SITE.over_budget()), (Vec::new(), 0));
}

/// After its promotion a call waits in C for a pause that another thread makes meanwhile: as a leaf call it would have waited in vain.
#[test]
fn a_promoted_leaf_call_does_not_delay_a_pause() {
    static SITE: LeafSite = LeafSite::new(Duration::from_millis(1)).promote_after(2);
    let reports = delay_a_pause(&SITE, 5_000_000);
    assert_eq!((reports.len(), SITE.is_promoted()), (1, false));
    let reports = delay_a_pause(&SITE, 5_000_000);
    assert!(reports[0].contains("it is a full foreign call from now on"), "{reports:?}");
    assert!(SITE.is_promoted());

    assert_eq!(meets_a_pause(&SITE, 20_000_000_000), (1, 1), "the root was reported to the pause");
    assert_eq!(SITE.over_budget(), 2);
}

/// The control: without the promotion the same call keeps the pause from beginning.
#[test]
fn a_leaf_call_that_is_not_promoted_delays_a_pause() {
    static SITE: LeafSite = LeafSite::new(Duration::MAX).promote_after(1);
    assert_eq!(meets_a_pause(&SITE, 50_000_000).0, 0);
}

/// C waits, in a timed leaf call, for another thread that pauses the world first. Returns whether it came, and how many roots the pause was told of.
fn meets_a_pause(site: &LeafSite, nanoseconds: i64) -> (c_int, usize) {
    let world = Vm::world(FenceStrategy::probe());
    let steps = Steps::new();
    let mut met = 0;
    let mut roots = 0;
    thread::scope(|scope| {
        let pausing = scope.spawn(|| {
            steps.wait(1);
            let mut told = crate::plain::Told::default();
            world.pause(|stopped| stopped.enumerate(&mut told));
            steps.reach(2);
            told.slots.len()
        });
        let mut mutator = world.attach().unwrap();
        let mut call = mutator.foreign_call();
        call.root(7);
        let word = steps.word();
        // SAFETY: the word lives; it does nothing else.
        met = unsafe { call.run_leaf(site, || foreign_meet_within(word, 1, 2, nanoseconds)) };
        drop(call);
        drop(mutator);
        roots = pausing.join().unwrap();
    });
    (met, roots)
}

/// A pause that is wanted before the leaf call begins would wait for it through no fault of its own: the call is a full one this time.
#[test]
fn a_leaf_call_that_begins_while_a_pause_is_wanted_lets_it_begin() {
    static SITE: LeafSite = LeafSite::new(Duration::ZERO);
    let world = Vm::world(FenceStrategy::probe());
    let steps = Steps::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            steps.wait(1);
            world.pause(|_| ());
            steps.reach(2);
        });
        let mut mutator = world.attach().unwrap();
        let poll = core::ptr::with_exposed_provenance::<AtomicU32>(mutator.record_address() + layout::POLL);
        let mut call = mutator.foreign_call();
        steps.reach(1);
        // Managed, and wanted.
        // SAFETY: the mutator's own poll word.
        while unsafe { &*poll }.load(core::sync::atomic::Ordering::Relaxed) & layout::POLL_MASK == 0 {
            thread::yield_now();
        }
        let word = steps.word();
        // SAFETY: the word lives; it does nothing else.
        let met = unsafe { call.run_leaf(&SITE, || foreign_meet_within(word, 1, 2, 20_000_000_000)) };
        assert_eq!(met, 1, "the pause began and ended while C waited for it");
    });
    assert_eq!((world.vm().take_reports(), SITE.over_budget()), (Vec::new(), 0));
}

/// The slow half takes a lock and calls the VM; C's `errno` is the caller's to read.
#[test]
fn errno_survives_the_report_of_a_leaf_call() {
    struct Careless;
    impl reentry::Vm for Careless {
        type Ref = usize;
        type Local = ();
        type Exception = core::convert::Infallible;
        const CAPTURE: reentry::Capture = reentry::Capture::Nothing;
        fn attach(&self) {}
        fn report(&self, report: &reentry::Report<'_>) {
            let reentry::Report::LeafOverBudget { call_site, delay, budget, promoted } = report else {
                panic!("{report}")
            };
            assert_eq!(call_site.file(), file!());
            assert!(delay > budget && *promoted, "{report}");
            // SAFETY: it sets `errno`.
            unsafe { foreign_fail(5) };
        }
    }
    // SAFETY: S1, S2: no frame holds a reference. S3 to S5: it does nothing. S6: no fault.
    unsafe impl reentry::StackScanner for Careless {
        fn scan_segment(&self, (): &(), _: &reentry::Segment<'_>, _: &mut dyn reentry::RootVisitor<usize>) {}
    }
    static SITE: LeafSite = LeafSite::new(Duration::ZERO).promoting();
    let world = World::new(Careless);
    let steps = Steps::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            steps.wait(1);
            world.pause(|_| ());
        });
        let mut mutator = world.attach().unwrap();
        let poll = core::ptr::with_exposed_provenance::<AtomicU32>(mutator.record_address() + layout::POLL);
        let word = steps.word();
        let mut call = mutator.foreign_call();
        // SAFETY: the words live; it takes its time, fails, and does nothing else.
        let failed = unsafe {
            call.run_leaf(&SITE, || {
                foreign_work_on(word, 1, poll, layout::POLL_MASK, 1_000_000);
                foreign_fail(34)
            })
        };
        assert_eq!((failed, reentry::Errno::current().raw()), (-1, 34));
        drop(call);
        mutator.poll();
    });
    assert_eq!(SITE.over_budget(), 1, "it was reported");
}

#[test]
fn a_site_counts_from_where_it_says() {
    let from_the_start = LeafSite::new(Duration::ZERO).promote_after(0);
    assert!(from_the_start.is_promoted());
    assert_eq!(meets_a_pause(&from_the_start, 20_000_000_000), (1, 1));
}
