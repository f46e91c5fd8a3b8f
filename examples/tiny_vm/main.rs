//! A whole VM in six steps: a heap that moves, an interpreter, and C that calls back into it.
//!
//! ```text
//! cargo run -p tiny_vm
//! ```
//!
//! The VM runs a program that makes five strings and has the C library sort them. `qsort` calls
//! the interpreter for each comparison. The comparison allocates, an allocation that finds the heap
//! full collects, and a collection moves every object. `reentry::guide::start` explains the steps.
#![expect(clippy::print_stdout, reason = "the program's result")]
#![expect(clippy::missing_panics_doc, reason = "a panic says that something is wrong")]
#![allow(clippy::missing_errors_doc, reason = "an error of `main` is its message")]

use core::cell::Cell;
use core::convert::Infallible;
use core::ffi::{c_char, c_int, c_void};
use core::ptr::NonNull;
use reentry::{
    Anchor, ArgumentError, ArgumentPlan, AttachError, Capture, Mutator, RootVisitor, Segment, Slot,
    StackScanner, StoppedWorld, Vm, World, upcall_fn,
};
use std::sync::Mutex;

// Step 1: a heap that moves.

/// A reference: the address of an object's first word. 0 is null.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Ref(usize);
const NULL: Ref = Ref(0);

const WORD: usize = size_of::<usize>();
const HEAP_WORDS: usize = 32; // small, so that it is full often

/// One block of memory with the objects one after the other. An object is two words (how
/// many fields, how many bytes), then its fields, which are references, then its bytes.
struct Heap {
    words: Box<[Cell<usize>]>,
    used: usize,
    collections: usize,
}

impl Heap {
    fn new(collections: usize) -> Self {
        Self { words: vec![Cell::new(0); HEAP_WORDS].into(), used: 0, collections }
    }

    /// Where in `words` an object begins.
    fn index(&self, object: Ref) -> usize {
        let index = object.0.wrapping_sub(self.words.as_ptr().addr()) / WORD;
        assert!(index < self.used, "{object:?} is stale: its object has moved");
        index
    }

    fn words_of(&self, index: usize) -> &[Cell<usize>] {
        let (fields, bytes) = (self.words[index].get(), self.words[index + 1].get());
        &self.words[index..index + 2 + fields + bytes.div_ceil(WORD)]
    }

    fn fields(&self, object: Ref) -> Vec<Ref> {
        let object = self.words_of(self.index(object));
        object[2..2 + object[0].get()].iter().map(|field| Ref(field.get())).collect()
    }

    /// Where an object's bytes are, until the next collection.
    fn bytes(&self, object: Ref) -> NonNull<[u8]> {
        let object = self.words_of(self.index(object));
        let bytes = NonNull::from(&object[2 + object[0].get()..]).cast();
        NonNull::slice_from_raw_parts(bytes, object[1].get())
    }

    fn text(&self, object: Ref) -> String {
        // SAFETY: the bytes of an object, written when it was made and never again. The caller has
        // the lock, so no collection runs.
        let bytes = unsafe { self.bytes(object).as_ref() };
        String::from_utf8_lossy(bytes.strip_suffix(b"\0").unwrap_or(bytes)).into_owned()
    }

    /// Makes an object, or says that the heap is full.
    fn alloc(&mut self, fields: &[Ref], bytes: &[u8]) -> Option<Ref> {
        let padded = bytes.chunks(WORD).map(|chunk| {
            let mut word = [0; WORD];
            word[..chunk.len()].copy_from_slice(chunk);
            usize::from_ne_bytes(word)
        });
        let header = [fields.len(), bytes.len()].into_iter();
        let fields = fields.iter().map(|field| field.0);
        let words: Vec<usize> = header.chain(fields).chain(padded).collect();
        let object = self.words.get(self.used..self.used + words.len())?;
        object.iter().zip(words).for_each(|(word, value)| word.set(value));
        self.used += object.len();
        Some(Ref(object.as_ptr().addr()))
    }

    /// Copies what `roots` reports, and all it refers to, to a new block.
    fn collect(&mut self, roots: impl FnOnce(&mut Copying<'_>)) {
        let from = core::mem::replace(self, Self::new(self.collections + 1));
        let mut copying = Copying { from, to: self };
        roots(&mut copying);
        let mut index = 0; // Cheney: behind `index`, all fields are updated
        while index < copying.to.used {
            for field in index + 2..index + 2 + copying.to.words[index].get() {
                let moved = copying.forward(Ref(copying.to.words[field].get()));
                copying.to.words[field].set(moved.0);
            }
            index += copying.to.words_of(index).len();
        }
    }
}

/// A collection under way.
struct Copying<'h> {
    from: Heap,
    to: &'h mut Heap,
}

/// Stands in a copied object's first word. Its second word says where the copy is.
const MOVED: usize = usize::MAX;

impl Copying<'_> {
    fn forward(&mut self, object: Ref) -> Ref {
        if object == NULL {
            return NULL;
        }
        let index = self.from.index(object);
        if self.from.words[index].get() != MOVED {
            let (old, start) = (self.from.words_of(index), self.to.used);
            let copy = &self.to.words[start..start + old.len()];
            copy.iter().zip(old).for_each(|(new, old)| new.set(old.get()));
            self.to.used += old.len();
            self.from.words[index].set(MOVED);
            self.from.words[index + 1].set(copy.as_ptr().addr());
        }
        Ref(self.from.words[index + 1].get())
    }
}

// Step 2: what the crate asks about the VM.

/// What each thread has for itself: its operand stack.
struct Stack {
    slots: Box<[Cell<Ref>]>,
    top: usize,
}

struct Tiny {
    heap: Mutex<Heap>,
}

impl Vm for Tiny {
    type Ref = Ref;
    type Local = Stack;
    type Exception = Infallible; // programs of this VM throw nothing
    const CAPTURE: Capture = Capture::Nothing; // frames are on `Stack`

    fn attach(&self) -> Stack {
        Stack { slots: vec![Cell::new(NULL); 1000].into(), top: 0 }
    }

    /// A collector that copies everything cannot pin.
    fn admit(&self, _: Ref, plan: ArgumentPlan) -> Result<(), ArgumentError> {
        let pin = matches!(plan, ArgumentPlan::Pin | ArgumentPlan::TransitivePin);
        if pin { Err(ArgumentError::CannotPin(plan)) } else { Ok(()) }
    }

    /// Lets short C functions read an object where it is.
    fn bytes(&self, object: Ref) -> Option<NonNull<[u8]>> {
        Some(self.heap.lock().unwrap().bytes(object))
    }
}

// Step 3: how frames are walked.

// SAFETY: S1: all references of a frame are in its part of the operand stack, and all of
// that part is reported. S2: each of its slots holds a `Ref` and lives as long as the
// mutator. S3, S4: it only reads, and takes no lock. S5: it reads no slot of another
// segment. S6: no fault is asked for. S7: `sp` is cut to the length of the stack.
unsafe impl StackScanner for Tiny {
    fn scan_segment(
        &self,
        stack: &Stack, // of the mutator that is scanned
        segment: &Segment<'_>,
        visitor: &mut dyn RootVisitor<Ref>,
    ) {
        let top = segment.anchor().sp.min(stack.slots.len());
        let bottom = segment.older().map_or(0, |older| older.sp.min(top));
        for slot in &stack.slots[bottom..top] {
            // SAFETY: S2. The mutator is stopped, so no other code uses the cell.
            visitor.slot(unsafe { Slot::new(NonNull::from(slot).cast()) });
        }
    }
}

// Step 4: allocate, and collect when the heap is full.

/// The collector's side: it gets each slot, and writes the object's new address there.
impl RootVisitor<Ref> for Copying<'_> {
    fn slot(&mut self, mut slot: Slot<'_, Ref>) {
        slot.store(self.forward(slot.load()));
    }
    fn pinned(&mut self, _: Ref) {
        unreachable!("`admit` refuses pins")
    }
    fn transitively_pinned(&mut self, _: Ref) {
        unreachable!("`admit` refuses pins")
    }
}

/// Where the walk of the running frames starts: this instruction, this top of the stack.
fn anchor(mutator: &Mutator<Tiny>, pc: usize) -> Anchor {
    Anchor::new(pc, mutator.local().top, 0)
}

/// `StoppedWorld` is the proof that nothing else runs.
fn collect(stopped: &StoppedWorld<'_, Tiny>) {
    stopped.vm().heap.lock().unwrap().collect(|copying| stopped.enumerate(copying));
}

/// Makes an object. Its fields are the `fields` topmost slots of the stack, where a
/// collection finds them: a reference in a Rust variable alone would be stale.
fn alloc(mutator: &mut Mutator<Tiny>, pc: usize, fields: usize, bytes: &[u8]) -> Ref {
    mutator.may_allocate(); // a check in debug builds, nothing in others
    for _ in 0..2 {
        let fields = top(mutator, fields);
        // The lock is released before the collection, or the collector would wait for it.
        let object = mutator.vm().heap.lock().unwrap().alloc(&fields, bytes);
        match object {
            Some(object) => return object,
            None => mutator.pause_at(anchor(mutator, pc), collect),
        }
    }
    panic!("out of memory")
}

// Step 5: the interpreter.

enum Op {
    Text(&'static str), // pushes a new string
    Lower,              // replaces the string on top by one in lower case
    Swap,               // exchanges the two on top
    Compare,            // ends the code: how does the string on top compare with the next
    Sort(usize),        // sorts that many strings on top, with `COMPARE`
    List(usize),        // replaces that many on top by a list of them
    Print,              // pops a list and prints it
}

const PROGRAM: &[Op] = &[
    Op::Text("pear\0"),
    Op::Text("Apple\0"),
    Op::Text("fig\0"),
    Op::Text("Cherry\0"),
    Op::Text("banana\0"),
    Op::Sort(5),
    Op::List(5),
    Op::Print,
];
const COMPARE: &[Op] = &[Op::Lower, Op::Swap, Op::Lower, Op::Compare];

fn push(mutator: &mut Mutator<Tiny>, object: Ref) {
    let stack = mutator.local_mut();
    stack.slots[stack.top].set(object);
    stack.top += 1;
}

fn pop(mutator: &mut Mutator<Tiny>) -> Ref {
    let stack = mutator.local_mut();
    stack.top -= 1;
    stack.slots[stack.top].get()
}

/// The `count` topmost references.
fn top(mutator: &Mutator<Tiny>, count: usize) -> Vec<Ref> {
    let stack = mutator.local();
    stack.slots[stack.top - count..stack.top].iter().map(Cell::get).collect()
}

fn text(mutator: &Mutator<Tiny>, object: Ref) -> String {
    mutator.vm().heap.lock().unwrap().text(object)
}

/// `&mut Mutator` is the proof that this thread is managed: that it may touch the heap.
fn run(mutator: &mut Mutator<Tiny>, code: &[Op]) -> c_int {
    for (pc, op) in code.iter().enumerate() {
        mutator.poll_at(anchor(mutator, pc)); // here another thread can stop this one
        match *op {
            Op::Text(text) => {
                let object = alloc(mutator, pc, 0, text.as_bytes());
                push(mutator, object);
            }
            Op::Lower => {
                let lower = text(mutator, top(mutator, 1)[0]).to_lowercase() + "\0";
                let lower = alloc(mutator, pc, 0, lower.as_bytes());
                pop(mutator);
                push(mutator, lower);
            }
            Op::Swap => {
                let (first, second) = (pop(mutator), pop(mutator));
                push(mutator, first);
                push(mutator, second);
            }
            Op::Compare => {
                let (first, second) = (pop(mutator), pop(mutator));
                return text(mutator, first).cmp(&text(mutator, second)) as c_int;
            }
            Op::Sort(count) => sort(mutator, pc, count),
            Op::List(count) => {
                let list = alloc(mutator, pc, count, b"");
                mutator.local_mut().top -= count;
                push(mutator, list);
            }
            Op::Print => {
                let list = pop(mutator);
                let fields = mutator.vm().heap.lock().unwrap().fields(list);
                let mut items = Vec::new();
                for item in fields {
                    items.push((text(mutator, item), length(mutator, item)));
                }
                // Standard output may block, and what may block is a foreign call.
                let anchor = anchor(mutator, pc);
                mutator.foreign_call().at(anchor).run(|| println!("{items:?}"));
            }
        }
    }
    0
}

// Step 6: call C, and be called.

type Element = *const Ref; // the address of a slot
type Comparator = extern "C" fn(*const c_void, *const c_void) -> c_int;
unsafe extern "C" {
    fn strlen(text: *const c_char) -> usize;
    fn qsort(base: *mut c_void, count: usize, size: usize, compare: Comparator);
}

/// A short C function that neither blocks nor calls back needs no transition: a leaf call.
/// It reads the bytes where they are, since nothing can move them before it returns.
fn length(mutator: &mut Mutator<Tiny>, string: Ref) -> usize {
    // SAFETY: `strlen` is such a function, and each string ends with a NUL.
    unsafe { mutator.leaf_call(|leaf| strlen(leaf.lend(string).unwrap().as_ptr().cast())) }
}

/// Sorts the `count` topmost strings. Each comparison may collect, and so move all of them.
fn sort(mutator: &mut Mutator<Tiny>, pc: usize, count: usize) {
    let (strings, anchor) = (top(mutator, count), anchor(mutator, pc));

    let mut call = mutator.foreign_call().at(anchor);
    // The collector updates the slot of a root, and the slot stays where it is. So C sorts
    // the addresses of the slots.
    let mut slots: Vec<Element> = Vec::new();
    for string in strings {
        slots.push(call.root(string).slot());
    }
    let array = call.copy_slice(&slots); // C's memory, until the call is dropped
    let (base, compare): (_, Comparator) = (array.as_ptr().cast(), upcall_fn(compare));
    // SAFETY: `count` elements of that size; the comparator is a total order.
    call.run(|| unsafe { qsort(base, count, size_of::<Element>(), compare) });
    let sorted = call.read_slice(array).iter();
    // SAFETY: the slots are good until the call is dropped, and this thread is managed.
    let sorted: Vec<Ref> = sorted.map(|&slot| unsafe { *slot }).collect();
    drop(call);

    mutator.local_mut().top -= count;
    sorted.into_iter().for_each(|string| push(mutator, string));
}

/// What C calls: managed code, with a frame of its own above that of `sort`.
fn compare(mutator: &mut Mutator<Tiny>, a: *const c_void, b: *const c_void) -> c_int {
    for element in [a, b] {
        // SAFETY: `qsort` passes the addresses of two elements: of two slots' addresses.
        let string = unsafe { **element.cast::<Element>() };
        push(mutator, string);
    }
    run(mutator, COMPARE)
}

fn main() -> Result<(), AttachError> {
    // Under `REENTRY_STRESS=collect`, each crossing and poll of a debug build collects.
    let builder = World::builder().stressed_by(|stopped, _| collect(stopped));
    let world = builder.build(Tiny { heap: Mutex::new(Heap::new(0)) });
    let mut mutator = world.attach()?; // from here on, this thread is managed
    run(&mut mutator, PROGRAM);
    let collections = world.vm().heap.lock().unwrap().collections;
    println!("{collections} collections, each of which moved every string");
    assert!(collections > 0);
    Ok(())
}
