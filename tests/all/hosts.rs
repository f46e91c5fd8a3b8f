//! The trait set serves three kinds of VM. Virtual anchors are the test kit's own; here are the two that run on the native stack: one that walks frames by
//! pc, sp and fp, and one whose collector scans words and registers conservatively.

use crate::plain::Steps;
use core::ffi::c_int;
use core::hint::black_box;
use core::ops::Range;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering};
use reentry::{
    Anchor, Capture, FrameKind, Mutator, RootVisitor, Segment, Slot, StackScanner, StoppedWorld,
    UpcallClosure, Vm, World, upcall_fn,
};
use reentry_foreign::{
    Quad, foreign_call_back, foreign_call_back_last, foreign_give, foreign_give_struct, foreign_hold,
    foreign_litter, foreign_meet, foreign_word,
};
use std::sync::{Mutex, MutexGuard};
use std::thread;

/// A VM that walks its native frames: it asks for pc, sp and fp of each crossing.
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

/// What a pause sees of one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct View {
    anchor: Anchor,
    older: Option<Anchor>,
    words: Range<usize>,
    entry_sp: usize,
    registers: usize,
    kind: FrameKind,
    line: u32,
}

/// The segments of the one mutator that is attached, newest first.
fn views<V: StackScanner>(stopped: &StoppedWorld<'_, V>) -> Vec<View> {
    let mutator = stopped.mutators().next().expect("one is attached");
    let segments = mutator.activations().filter_map(|activation| activation.segment());
    let view = |(index, segment): (usize, Segment<'_>)| {
        assert_eq!(segment.is_newest(), index == 0);
        View {
            anchor: segment.anchor(),
            older: segment.older(),
            words: segment.words(),
            entry_sp: segment.entry_sp(),
            registers: segment.registers().len(),
            kind: segment.kind(),
            line: segment.call_site().expect("every crossing has a call site").line(),
        }
    };
    segments.enumerate().map(view).collect()
}

/// The address of something in the frame of the caller.
#[inline(always)]
fn here() -> usize {
    let word = 0_usize;
    core::ptr::from_ref(black_box(&word)).addr()
}

/// Each segment lies between the entry of its activation and its crossing, and the older one lies above it on the stack.
fn assert_nested(views: &[View], lowest: usize, highest: usize) {
    for (index, view) in views.iter().enumerate() {
        assert!(lowest <= view.words.start && view.words.start < view.words.end, "{views:#x?}");
        assert_eq!(view.words.end, view.entry_sp);
        assert!(view.anchor.sp >= lowest && view.anchor.sp <= view.entry_sp, "{views:#x?}");
        assert_eq!(view.older, views.get(index + 1).map(|older| older.anchor));
        if let Some(older) = view.older {
            assert!(older.sp > view.anchor.sp, "{views:#x?}");
            assert!(older.sp >= view.entry_sp, "C's frames lie between the two: {views:#x?}");
        }
    }
    let oldest = views.last().expect("there is a base activation");
    assert!(oldest.words.contains(&highest), "the base activation goes to the end of the stack: {views:#x?}");
}

/// The executable mapping that holds the machine code of this test.
#[cfg(target_os = "linux")]
fn assert_is_code(pc: usize) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let executable = maps.lines().any(|line| {
        let mut fields = line.split_whitespace();
        let (range, rights) = (fields.next().unwrap_or(""), fields.next().unwrap_or(""));
        let Some((start, end)) = range.split_once('-') else { return false };
        let parse = |number| usize::from_str_radix(number, 16).unwrap_or(0);
        rights.contains('x') && (parse(start)..parse(end)).contains(&pc)
    });
    assert!(executable, "{pc:#x} is not in machine code");
}

#[test]
fn a_vm_on_the_native_stack_gets_sane_anchors_and_nested_segments() {
    static INNERMOST: AtomicUsize = AtomicUsize::new(0);
    let world = World::new(Native);
    let mut mutator = world.attach().unwrap();
    let outer = here();
    let seen = Mutex::new(Vec::new());
    let body = UpcallClosure::new(&world, |mutator: &mut Mutator<Native>, x: c_int| {
        let from_call = mutator.foreign_call().run(|| {
            INNERMOST.store(here(), Ordering::Relaxed);
            world.pause(views)
        });
        let from_safepoint = mutator.pause(views);
        seen.lock().unwrap().push((from_call, from_safepoint));
        x
    });
    let (function, data) = (body.data_last(), body.data());
    let line = line!() + 2;
    // SAFETY: the data pointer is the closure's own, and the closure lives.
    mutator.foreign_call().run(|| unsafe { foreign_call_back_last(function, 1, data) });
    let (from_call, from_safepoint) = seen.lock().unwrap().pop().expect("the upcall ran");
    let lowest = INNERMOST.load(Ordering::Relaxed) - 64 * 1024;
    assert_eq!(from_call.iter().map(|view| view.kind).collect::<Vec<_>>(), [FrameKind::ForeignCall; 2]);
    assert_eq!(from_safepoint[0].kind, FrameKind::Safepoint);
    assert_eq!(from_call[1], from_safepoint[1], "the caller's record is the same whoever looks");
    assert_eq!(from_call[1].line, line);
    for views in [&from_call, &from_safepoint] {
        assert_nested(views, lowest, outer);
        for view in views {
            assert_eq!(view.registers, 0, "not asked for");
            #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
            assert_is_code(view.anchor.pc);
        }
    }
    assert_ne!(from_call[0].anchor.pc, from_call[1].anchor.pc, "the pc tells call sites apart");
}

/// The same thread's base segment ends where the caller says, where it says so.
#[test]
fn the_base_segment_ends_at_the_stack_base_it_was_attached_with() {
    let world = World::new(Native);
    let base = here();
    #[inline(never)]
    fn below(world: &World<Native>, base: usize) -> Vec<View> {
        // SAFETY: an address of this function's caller, above what follows.
        let mut mutator = unsafe { world.attach_at(base) }.unwrap();
        mutator.pause(views)
    }
    let views = below(&world, base);
    assert_eq!((views.len(), views[0].words.end), (1, base));
    assert!(!views[0].words.is_empty());
}

/// A heap of objects that never move, found by looking at words: a tracing collector with no stack maps at all.
///
/// The objects stand in one block of memory that serves nothing else, so that no stale word of the test itself looks like one.
struct Conservative {
    objects: Mutex<Objects>,
    /// How often a scan found an object in the words of a segment, and in its registers.
    found: [AtomicUsize; 2],
}

#[derive(Default)]
struct Objects {
    /// A value and the address of another object or 0. The first is no object: the address of the block is no reference.
    memory: Box<[[usize; 2]]>,
    /// One for each object made, and the one that is none.
    live: Vec<bool>,
}

/// What was freed reads as this. Its memory is kept, so that a test can look.
const FREED: usize = 0xDEAD_DEAD_DEAD_DEAD_u64 as usize;

impl Objects {
    fn address(&self, index: usize) -> usize {
        self.memory.as_ptr().wrapping_add(index).expose_provenance()
    }

    /// The number of the live object at `address`.
    fn resolve(&self, address: usize) -> Option<usize> {
        let index = (1..self.live.len()).find(|&index| self.address(index) == address)?;
        self.live[index].then_some(index)
    }
}

impl Conservative {
    fn new() -> Self {
        let objects = Objects { memory: vec![[0; 2]; 256].into_boxed_slice(), live: vec![false] };
        Self { objects: Mutex::new(objects), found: [AtomicUsize::new(0), AtomicUsize::new(0)] }
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap()
    }

    /// Makes an object, which refers to the object `next` if that is one. Both are given in disguise, so that the plain words are on no stack yet.
    #[inline(never)]
    fn alloc_disguised(&self, value: usize, next: usize) -> usize {
        let mut objects = self.objects();
        let index = objects.live.len();
        objects.live.push(true);
        objects.memory[index] = [value, next ^ KEY];
        objects.address(index) ^ KEY
    }

    fn is_live(&self, disguised: usize) -> bool {
        self.objects().resolve(disguised ^ KEY).is_some()
    }

    /// Marks from every root and frees the rest. Returns how many objects were freed.
    fn collect(&self, stopped: &StoppedWorld<'_, Self>) -> usize {
        let mut mark = Mark(Vec::new());
        stopped.enumerate(&mut mark);
        let mut objects = self.objects();
        let mut reached = vec![false; objects.live.len()];
        while let Some(address) = mark.0.pop() {
            if let Some(index) = objects.resolve(address).filter(|&index| !reached[index]) {
                reached[index] = true;
                mark.0.push(objects.memory[index][1]);
            }
        }
        let mut freed = 0;
        for (index, reached) in reached.into_iter().enumerate() {
            if objects.live[index] && !reached {
                objects.live[index] = false;
                objects.memory[index] = [FREED; 2];
                freed += 1;
            }
        }
        freed
    }
}

/// Reads the value of an object through its plain address.
fn read(object: usize) -> usize {
    // SAFETY: an object's memory lives as long as its heap, whether or not the object has been freed.
    unsafe { core::ptr::with_exposed_provenance::<usize>(object).read_volatile() }
}

/// The bits that keep an address from being recognised.
const KEY: usize = 0x5A5A_A5A5_5A5A_A5A5_u64 as usize;

struct Mark(Vec<usize>);

impl RootVisitor<usize> for Mark {
    fn slot(&mut self, slot: Slot<'_, usize>) {
        self.0.push(slot.load());
    }

    fn pinned(&mut self, reference: usize) {
        self.0.push(reference);
    }

    fn transitively_pinned(&mut self, reference: usize) {
        self.0.push(reference);
    }
}

impl Vm for Conservative {
    type Ref = usize;
    type Local = ();
    type Exception = core::convert::Infallible;
    const CAPTURE: Capture = Capture::Registers;

    fn attach(&self) {}
}

// SAFETY: S1: every aligned word of the segment and every callee-saved register is looked at. S2: only pins are reported. S3, S4: it reads, and takes the heap's
// lock, which no mutator holds at a safepoint. S5: it stays within `words`. S6: no fault.
unsafe impl StackScanner for Conservative {
    fn scan_segment(&self, (): &(), segment: &Segment<'_>, visitor: &mut dyn RootVisitor<usize>) {
        let objects = self.objects();
        let mut look = |word: usize, place: usize| {
            if objects.resolve(word).is_some() {
                self.found[place].fetch_add(1, Ordering::Relaxed);
                visitor.pinned(word);
            }
        };
        let words = segment.words();
        for address in
            (words.start.next_multiple_of(size_of::<usize>())..words.end).step_by(size_of::<usize>())
        {
            // SAFETY: a word of a stack whose thread is stopped or foreign, between the crossing and the entry.
            look(unsafe { foreign_word(core::ptr::with_exposed_provenance(address)) }, 0);
        }
        for &register in segment.registers() {
            look(register, 1);
        }
    }
}

/// Overwrites the stack below the caller, where earlier calls have left words.
#[inline(never)]
fn scrub() {
    let mut words = [0_usize; 4096];
    black_box(&mut words);
}

/// Runs `test` on a thread of its own, whose stack no other test has used, with its world.
fn on_a_fresh_stack(test: impl FnOnce(&World<Conservative>) + Send) {
    thread::scope(|scope| {
        scope.spawn(|| test(&World::new(Conservative::new())));
    });
}

fn collect(mutator: &mut Mutator<Conservative>) -> usize {
    mutator.pause(|stopped| stopped.vm().collect(stopped))
}

/// A plain C callback that collects, after C has littered its frame and registers.
extern "C" fn collect_from_c(_: c_int) -> c_int {
    let callback: extern "C" fn(c_int) -> c_int =
        upcall_fn(|mutator: &mut Mutator<Conservative>, x: c_int| {
            collect(mutator);
            x
        });
    // SAFETY: the callback is an upcall, and this thread is in a foreign call.
    unsafe { foreign_litter(0xDBDB_DBDB, callback, 3) }
}

/// Makes an object that only this frame holds, calls C, which collects, and reads it.
#[inline(never)]
fn hold_in_a_local(mutator: &mut Mutator<Conservative>) -> usize {
    let object = mutator.vm().alloc_disguised(41, KEY) ^ KEY;
    let held = black_box(object);
    scrub();
    // SAFETY: the callback is an upcall, and this thread is in a foreign call.
    assert_eq!(mutator.foreign_call().run(|| unsafe { foreign_call_back(collect_from_c, 3) }), 3);
    read(black_box(held))
}

#[test]
fn an_object_that_only_a_local_variable_holds_survives_a_foreign_call_that_collects() {
    on_a_fresh_stack(|world| {
        let mut mutator = world.attach().unwrap();
        assert_eq!(hold_in_a_local(&mut mutator), 41);
        scrub();
        assert_eq!(collect(&mut mutator), 1, "it goes when nothing holds it");
    });
}

/// The same below C: in the frame of an upcall, with C's frames above and below.
#[test]
fn an_object_that_only_a_local_of_an_upcall_holds_survives_a_nested_foreign_call_that_collects() {
    on_a_fresh_stack(|world| {
        let mut mutator = world.attach().unwrap();
        let body = UpcallClosure::new(world, |mutator: &mut Mutator<Conservative>, _: c_int| {
            let first = hold_in_a_local(mutator) as c_int;
            // And across a pause that the upcall itself makes.
            let object = black_box(mutator.vm().alloc_disguised(42, KEY) ^ KEY);
            scrub();
            collect(mutator);
            100 * first + read(black_box(object)) as c_int
        });
        let (function, data) = (body.data_last(), body.data());
        // SAFETY: the data pointer is the closure's own, and the closure lives.
        let read = mutator.foreign_call().run(|| unsafe { foreign_call_back_last(function, 1, data) });
        assert_eq!(read, 4142);
    });
}

/// The reference is in one callee-saved register and nowhere else while foreign code runs: the code below takes it out of memory the collector does
/// not look at, and wipes it there.
#[cfg(all(unix, any(target_arch = "x86_64", target_arch = "aarch64")))]
#[test]
fn an_object_that_only_a_callee_saved_register_holds_survives_a_foreign_call_that_collects() {
    extern "C" fn cross(mutator: &mut Slotted<'_>) {
        // SAFETY: the callback is an upcall, and this thread is in a foreign call.
        mutator.0.foreign_call().run(|| unsafe { foreign_call_back(collect_from_c, 3) });
    }
    struct Slotted<'m>(&'m mut Mutator<Conservative>);
    /// Puts the plain word in the cell. In a frame of its own, which is wiped afterwards.
    #[inline(never)]
    fn reveal(disguised: usize, cell: *mut usize) {
        // SAFETY: the cell is the caller's.
        unsafe { cell.write(black_box(disguised) ^ KEY) };
    }

    on_a_fresh_stack(|world| {
        let mut mutator = world.attach().unwrap();
        // A cell in Rust's heap, which is not scanned. It holds the plain word before and after the call, not during it.
        let cell = Box::into_raw(Box::new(0_usize));
        for round in 0..10 {
            let disguised = world.vm().alloc_disguised(round, KEY);
            reveal(disguised, cell);
            scrub();
            let data = &mut Slotted(&mut mutator);
            #[cfg(target_arch = "x86_64")]
            // SAFETY: calls a C function with one argument; the two callee-saved registers it uses are declared, and come back as they were.
            unsafe {
                core::arch::asm!(
                    "mov r12, [r13]",
                    "mov qword ptr [r13], 0",
                    "call {cross}",
                    "mov [r13], r12",
                    "xor r12d, r12d",
                    cross = sym cross,
                    in("rdi") data,
                    in("r13") cell,
                    out("r12") _,
                    clobber_abi("C"),
                );
            }
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            unsafe {
                core::arch::asm!(
                    "ldr x20, [x21]",
                    "str xzr, [x21]",
                    "bl {cross}",
                    "str x20, [x21]",
                    "mov x20, xzr",
                    cross = sym cross,
                    in("x0") data,
                    in("x21") cell,
                    out("x20") _,
                    clobber_abi("C"),
                );
            }
            assert!(
                world.vm().is_live(disguised),
                "round {round}: it was collected while a register held it"
            );
            // SAFETY: the cell is ours.
            unsafe { cell.write(0) };
        }
        // SAFETY: made above, and freed once.
        drop(unsafe { Box::from_raw(cell) });
    });
}

/// What C holds is C's affair, unless the call declares it: foreign frames are not scanned.
#[test]
fn an_object_that_only_a_foreign_frame_holds_is_collected_unless_the_call_declares_it() {
    #[inline(never)]
    fn declared(mutator: &mut Mutator<Conservative>, disguised: usize) {
        let mut call = mutator.foreign_call();
        call.pin(disguised ^ KEY).expect("this VM accepts everything");
        scrub();
        // SAFETY: the callback is an upcall, and this thread is in a foreign call.
        assert_eq!(call.run(|| unsafe { foreign_hold(disguised, KEY, collect_from_c) }), 1, "C held it");
    }
    #[inline(never)]
    fn undeclared(mutator: &mut Mutator<Conservative>, disguised: usize) {
        scrub();
        // SAFETY: as above.
        let held = mutator.foreign_call().run(|| unsafe { foreign_hold(disguised, KEY, collect_from_c) });
        assert_eq!(held, 1, "C held it");
    }
    on_a_fresh_stack(|world| {
        let mut mutator = world.attach().unwrap();
        // A stale word in an unused part of a managed frame may hold an object now and then: such is a conservative scan. Were foreign frames
        // scanned, every one of these would be held.
        let mut collected = 0;
        for round in 0..20 {
            let child = world.vm().alloc_disguised(round, KEY);
            let parent = world.vm().alloc_disguised(round, child);
            declared(&mut mutator, parent);
            assert!(world.vm().is_live(parent), "declared");
            assert!(world.vm().is_live(child), "reachable from what is declared");
            scrub();
            undeclared(&mut mutator, parent);
            collected += u32::from(!world.vm().is_live(parent) && !world.vm().is_live(child));
        }
        assert!(collected >= 15, "of 20 objects held by C alone, {collected} were collected");
    });
}

/// C gives the upcall its only copy, in an argument. From then on managed code holds it.
#[test]
fn an_object_that_c_gives_to_an_upcall_is_held_by_the_upcalls_frame() {
    static READ: AtomicUsize = AtomicUsize::new(0);
    fn body(mutator: &mut Mutator<Conservative>, object: usize) -> c_int {
        scrub();
        let freed = collect(mutator);
        READ.store(read(object), Ordering::Relaxed);
        freed as c_int
    }
    on_a_fresh_stack(|world| {
        let mut mutator = world.attach().unwrap();
        for round in 0..5 {
            let disguised = world.vm().alloc_disguised(round, KEY);
            scrub();
            // SAFETY: the callback is an upcall, and this thread is in a foreign call.
            let freed =
                mutator.foreign_call().run(|| unsafe { foreign_give(disguised, KEY, upcall_fn(body)) });
            assert_eq!(READ.load(Ordering::Relaxed), round, "read by the upcall after it had collected");
            assert!(freed <= 1, "only the object of the round before");
        }
    });
}

/// The same in a struct, which the calling convention passes in C's own frame.
#[test]
fn an_object_in_a_struct_that_c_gives_to_an_upcall_is_held_by_the_upcalls_frame() {
    static READ: AtomicUsize = AtomicUsize::new(0);
    fn body(mutator: &mut Mutator<Conservative>, quad: Quad) -> c_int {
        scrub();
        let freed = collect(mutator);
        READ.store(read(quad.words[2]), Ordering::Relaxed);
        (quad.words[0] + quad.words[1] + quad.words[3] + 10 * freed) as c_int
    }
    on_a_fresh_stack(|world| {
        let mut mutator = world.attach().unwrap();
        for round in 0..5 {
            let disguised = world.vm().alloc_disguised(round, KEY);
            scrub();
            // SAFETY: the callback is an upcall, and this thread is in a foreign call.
            let sum = mutator
                .foreign_call()
                .run(|| unsafe { foreign_give_struct(disguised, KEY, upcall_fn(body)) });
            assert_eq!(READ.load(Ordering::Relaxed), round, "read by the upcall after it had collected");
            assert!(sum == 7 || sum == 17, "only the object of the round before: {sum}");
        }
    });
}

/// The collector runs elsewhere, and scans the stack of a thread that spins in C.
#[test]
fn another_thread_scans_the_stack_and_registers_of_one_in_foreign_code() {
    static STEPS: Steps = Steps::new();
    static FREED_BY_THE_OTHER: AtomicI32 = AtomicI32::new(-1);
    #[inline(never)]
    fn hold_while_another_collects(mutator: &mut Mutator<Conservative>) -> usize {
        let object = black_box(mutator.vm().alloc_disguised(43, KEY) ^ KEY);
        scrub();
        // SAFETY: C touches the word alone, which lives.
        mutator.foreign_call().run(|| unsafe { foreign_meet(STEPS.word(), 1, 2) });
        read(black_box(object))
    }
    let world = World::new(Conservative::new());
    thread::scope(|scope| {
        let thread = scope.spawn(|| hold_while_another_collects(&mut world.attach().unwrap()));
        STEPS.wait(1);
        let garbage = world.vm().alloc_disguised(1, KEY);
        let freed = world.pause(|stopped| stopped.vm().collect(stopped));
        FREED_BY_THE_OTHER.store(freed as i32, Ordering::Relaxed);
        assert!(!world.vm().is_live(garbage));
        STEPS.reach(2);
        assert_eq!(thread.join().unwrap(), 43);
    });
    assert_eq!(FREED_BY_THE_OTHER.load(Ordering::Relaxed), 1);
    let [words, registers] = &world.vm().found;
    assert!(words.load(Ordering::Relaxed) + registers.load(Ordering::Relaxed) > 0);
}

/// All callee-saved registers are there at every kind of crossing, and the segments nest as with plain anchors.
#[test]
fn a_conservative_vm_gets_words_and_registers_of_every_activation() {
    let count = AtomicU32::new(0);
    let world = World::new(Conservative::new());
    let mut mutator = world.attach().unwrap();
    let outer = here();
    let body = UpcallClosure::new(&world, |mutator: &mut Mutator<Conservative>, x: c_int| {
        for views in [mutator.pause(views), mutator.foreign_call().run(|| world.pause(views))] {
            assert_eq!(views.len(), 2);
            assert_nested(&views, here() - 64 * 1024, outer);
            #[cfg(all(unix, any(target_arch = "x86_64", target_arch = "aarch64")))]
            for view in &views {
                assert!(view.registers >= 6, "{view:?}");
            }
            count.fetch_add(1, Ordering::Relaxed);
        }
        x
    });
    let (function, data) = (body.data_last(), body.data());
    // SAFETY: the data pointer is the closure's own, and the closure lives.
    mutator.foreign_call().run(|| unsafe { foreign_call_back_last(function, 1, data) });
    assert_eq!(count.load(Ordering::Relaxed), 2);
}
