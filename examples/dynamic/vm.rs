//! The VM: the test kit's moving heap, a collector over it, and what an object of the language looks like.
//!
//! An object's raw bytes are its content, a NUL, and its kind. Content first: what C is lent begins where the object's bytes begin, and a string ends with a NUL where it is.
//! Variables and list elements are *cells*: for each a reference field, and sixteen bytes that say what it holds.

use super::source::Fault;
use super::value::{Bare, Value};
use core::cmp::Ordering as Compared;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use reentry::testkit::heap::{Collection, Heap, Ref, StaleReference};
use reentry::{
    ArgumentError, ArgumentPlan, Capture, Local, Mutator, Report, Residence, RootVisitor, Scope, Segment,
    Slot, StackScanner, Vm,
};
use std::io::{self, Write as _};

/// What an object is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Text, which never changes.
    Text,
    /// Bytes that C and the script may write.
    Buffer,
    /// The variables of a block or the elements of a list: one field for what they belong to, then the cells.
    Cells,
    /// A list: its cells, and how many of them count.
    List,
    /// A function: its block's variables, and the number of its code.
    Function,
    /// A function that C may keep.
    Kept,
}

const KINDS: [Kind; 6] = [Kind::Text, Kind::Buffer, Kind::Cells, Kind::List, Kind::Function, Kind::Kept];

/// Behind the content: a NUL, and the kind.
const TRAILER: usize = 2;

/// The bytes of a cell beside its field.
const CELL: usize = 16;

/// What has happened, for the last line.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) calls: AtomicU64,
    pub(crate) callbacks: AtomicU64,
    pub(crate) collections: AtomicU64,
    pub(crate) moved: AtomicU64,
}

pub(crate) struct ScriptVm {
    heap: Heap,
    collect_every: u64,
    occasions: AtomicU64,
    pub(crate) counts: Counts,
}

/// What each mutator has: how deep its script is in calls, and whether an error is on its way through C.
#[derive(Default)]
pub(crate) struct Running {
    pub(crate) depth: usize,
    pub(crate) failing: bool,
}

/// What the heap says of a reference that a collection should have updated.
///
/// # Panics
///
/// If the reference is stale: a mistake of this VM, and not of the script.
#[track_caller]
fn sound<T>(result: Result<T, StaleReference>) -> T {
    result.unwrap_or_else(|stale| panic!("{stale}"))
}

impl ScriptVm {
    pub(crate) fn new(collect_every: u64) -> Self {
        Self { heap: Heap::new(), collect_every, occasions: AtomicU64::new(0), counts: Counts::default() }
    }

    pub(crate) fn kind(&self, object: Ref) -> Kind {
        sound(self.heap.with_bytes(object, |bytes| KINDS[usize::from(bytes[bytes.len() - 1])]))
    }

    /// Calls `read` with the content of an object.
    pub(crate) fn content<T>(&self, object: Ref, read: impl FnOnce(&[u8]) -> T) -> T {
        sound(self.heap.with_bytes(object, |bytes| read(&bytes[..bytes.len() - TRAILER])))
    }

    pub(crate) fn length(&self, object: Ref) -> usize {
        self.content(object, <[u8]>::len)
    }

    pub(crate) fn text(&self, object: Ref) -> String {
        self.content(object, |bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    pub(crate) fn write(&self, object: Ref, offset: usize, bytes: &[u8]) {
        sound(self.heap.write_bytes(object, offset, bytes));
    }

    /// The object that an object belongs to, or begins with.
    pub(crate) fn first(&self, object: Ref) -> Ref {
        sound(self.heap.field(object, 0))
    }

    pub(crate) fn set_first(&self, object: Ref, value: Ref) {
        sound(self.heap.set_field(object, 0, value));
    }

    pub(crate) fn compare(&self, a: Ref, b: Ref) -> Compared {
        sound(self.heap.compare_bytes(a, b))
    }

    /// The address of an object's content, good as long as the object is pinned.
    pub(crate) fn address(&self, object: Ref) -> usize {
        sound(self.heap.payload(object)).expose_provenance()
    }

    /// The number in the first word of an object: of a function's code, of a list's elements.
    pub(crate) fn number(&self, object: Ref) -> usize {
        self.content(object, |bytes| u64::from_ne_bytes(bytes[..8].try_into().expect("eight bytes"))) as usize
    }

    pub(crate) fn set_number(&self, object: Ref, number: usize) {
        self.write(object, 0, &(number as u64).to_ne_bytes());
    }

    /// How many cells an object of cells has.
    pub(crate) fn room(&self, cells: Ref) -> usize {
        self.length(cells) / CELL
    }

    pub(crate) fn cell(&self, cells: Ref, index: usize) -> Bare {
        let (tag, word) = self.content(cells, |bytes| {
            let cell = &bytes[index * CELL..][..CELL];
            (cell[0], u64::from_ne_bytes(cell[8..].try_into().expect("eight bytes")))
        });
        match tag {
            0 => Value::Nil,
            1 => Value::Bool(word != 0),
            2 => Value::Int(word.cast_signed()),
            3 => Value::Float(f64::from_bits(word)),
            4 => Value::Pointer(word as usize),
            _ => Value::Object(sound(self.heap.field(cells, index + 1))),
        }
    }

    pub(crate) fn set_cell(&self, cells: Ref, index: usize, value: Bare) {
        let (tag, word, field) = match value {
            Value::Nil => (0, 0, Ref::NULL),
            Value::Bool(value) => (1, u64::from(value), Ref::NULL),
            Value::Int(value) => (2, value.cast_unsigned(), Ref::NULL),
            Value::Float(value) => (3, value.to_bits(), Ref::NULL),
            Value::Pointer(value) => (4, value as u64, Ref::NULL),
            Value::Object(value) => (5, 0, value),
        };
        let mut cell = [0; CELL];
        cell[0] = tag;
        cell[8..].copy_from_slice(&word.to_ne_bytes());
        self.write(cells, index * CELL, &cell);
        sound(self.heap.set_field(cells, index + 1, field));
    }
}

/// An occasion to collect: an allocation, a foreign call, a callback. Every N-th is taken.
pub(crate) fn occasion(mutator: &mut Mutator<ScriptVm>) {
    let vm = mutator.vm();
    let number = vm.occasions.fetch_add(1, Ordering::Relaxed) + 1;
    if number.is_multiple_of(vm.collect_every) {
        collect(mutator);
    } else {
        mutator.poll();
    }
}

/// Collects: moves every object that is not pinned.
pub(crate) fn collect(mutator: &mut Mutator<ScriptVm>) {
    mutator.pause(|stopped| {
        let vm = stopped.vm();
        let mut collection = vm.heap.begin_collection();
        // Pins first: nothing may move before all are known.
        stopped.enumerate(&mut Pins(&mut collection));
        stopped.enumerate(&mut Roots(&mut collection));
        collection.reach();
        stopped.update_weak(|reference| sound(collection.survivor(reference)));
        let summary = collection.finish();
        vm.counts.collections.fetch_add(1, Ordering::Relaxed);
        vm.counts.moved.fetch_add(summary.moved as u64, Ordering::Relaxed);
    });
}

struct Pins<'a, 'h>(&'a mut Collection<'h>);

impl RootVisitor<Ref> for Pins<'_, '_> {
    fn slot(&mut self, _: Slot<'_, Ref>) {}

    fn pinned(&mut self, reference: Ref) {
        sound(self.0.pin(reference));
    }

    fn transitively_pinned(&mut self, reference: Ref) {
        sound(self.0.pin_transitively(reference));
    }
}

struct Roots<'a, 'h>(&'a mut Collection<'h>);

impl RootVisitor<Ref> for Roots<'_, '_> {
    fn slot(&mut self, mut slot: Slot<'_, Ref>) {
        slot.store(sound(self.0.forward(slot.load())));
    }

    fn pinned(&mut self, _: Ref) {}

    fn transitively_pinned(&mut self, _: Ref) {}

    /// `update_weak` says what became of it.
    fn weak(&mut self, _: Slot<'_, Ref>) {}
}

/// Makes an object: fields that refer to objects, fields that do not yet, and content. A safepoint; what the fields refer to is read behind it.
pub(crate) fn allocate<'s>(
    scope: &mut Scope<'s, ScriptVm>,
    kind: Kind,
    fields: &[Local<'_, Ref>],
    empty: usize,
    content: &[u8],
) -> Local<'s, Ref> {
    occasion(scope);
    scope.may_allocate();
    let mut refs: Vec<Ref> = fields.iter().map(|field| scope.get(*field)).collect();
    refs.resize(fields.len() + empty, Ref::NULL);
    let mut bytes = content.to_vec();
    bytes.extend([0, kind as u8]);
    let object = scope.vm().heap.alloc(&refs, &bytes);
    scope.root(object)
}

/// Makes cells that belong to `owner`.
pub(crate) fn cells<'s>(
    scope: &mut Scope<'s, ScriptVm>,
    owner: Option<Local<'_, Ref>>,
    count: usize,
) -> Local<'s, Ref> {
    let content = vec![0; count * CELL];
    match owner {
        Some(owner) => allocate(scope, Kind::Cells, &[owner], count, &content),
        None => allocate(scope, Kind::Cells, &[], count + 1, &content),
    }
}

pub(crate) fn text<'s>(scope: &mut Scope<'s, ScriptVm>, text: &str) -> Local<'s, Ref> {
    allocate(scope, Kind::Text, &[], 0, text.as_bytes())
}

impl Vm for ScriptVm {
    type Ref = Ref;
    type Local = Running;
    type Exception = Fault;
    const CAPTURE: Capture = Capture::Nothing;

    fn attach(&self) -> Running {
        Running::default()
    }

    fn admit(&self, reference: Ref, plan: ArgumentPlan) -> Result<(), ArgumentError> {
        let pins = matches!(plan, ArgumentPlan::Pin | ArgumentPlan::TransitivePin);
        match (reference.is_null(), pins) {
            (true, true) => Err(ArgumentError::NotAnObject { reference: 0 }),
            (true, false) => Ok(()),
            _ if self.heap.owns(reference) => Ok(()),
            _ => Err(ArgumentError::NotOfThisWorld { reference: reference.address() }),
        }
    }

    /// The content of texts and buffers; nothing else is C's.
    fn bytes(&self, reference: Ref) -> Option<NonNull<[u8]>> {
        let length = self.heap.byte_count(reference).ok()? - TRAILER;
        if !matches!(self.kind(reference), Kind::Text | Kind::Buffer) {
            return None;
        }
        let start = NonNull::new(self.heap.payload(reference).ok()?)?;
        Some(NonNull::slice_from_raw_parts(start, length))
    }

    fn locate(&self, address: usize) -> Option<Residence> {
        self.heap.resolve_interior(address).map(|_| Residence::Movable)
    }

    fn covers(&self, reference: Ref, address: usize) -> bool {
        self.heap.resolve_interior(address) == Some(reference)
    }

    fn report(&self, report: &Report<'_>) {
        // The script gets the error that came first. That C went on to call back is nothing it can mend.
        if !matches!(report, Report::UpcallsAfterError { .. }) {
            // A report must not panic, and `eprintln!` does where nobody reads standard error.
            drop(writeln!(io::stderr(), "reentry: {report}"));
        }
    }
}

// SAFETY: S1: the interpreter keeps references in locals, handles and heap objects, which the crate and the collector know, and bare ones from one safepoint to the next at most: its frames have
// nothing to report. S2 to S5: nothing is reported, or read. S6: no fault. S7: no anchor is looked at.
unsafe impl StackScanner for ScriptVm {
    fn scan_segment(&self, _: &Running, _: &Segment<'_>, _: &mut dyn RootVisitor<Ref>) {}
}
