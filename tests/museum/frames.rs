//! A VM for faults of scanners: frames of references on an operand stack that moves, one for each activation, and a choice of what is wrong with it.

use core::cell::{Cell, RefCell};
use core::ffi::c_int;
use core::ptr::NonNull;
use reentry::testkit::stack::OperandStack;
use reentry::testkit::{Heap, Ref};
use reentry::{
    Anchor, Audit, AuditLog, Capture, Mutator, RootVisitor, Segment, Slot, StackEnd, StackScanner,
    StoppedWorld, UpcallClosure, Vm, World,
};
use reentry_foreign::foreign_call_back_last_and_go_on;

/// What is wrong with the VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wrong {
    Nothing,
    /// It keeps one saved anchor for each thread, which a callback's own call writes over (Go #7978).
    OneSavedAnchor,
    /// It moves its stack in a callback and goes on with the stack pointer it had (OCaml #9233).
    StackPointerKept,
    /// It walks no frame of a thread that a flag of its own says is not in C, and a nested callback's return leaves the flag wrong (Go #72870).
    FlagOfItsOwn,
    /// The fp it saves is an integer that does not follow a stack that shrinks (Go #69085).
    FramePointerSaved,
}

pub(crate) struct Frames {
    heap: Heap,
    wrong: Wrong,
}

pub(crate) struct Local {
    stack: RefCell<OperandStack>,
    /// Where the VM believes its stack to be.
    believed: Cell<usize>,
    saved: Cell<Anchor>,
    /// The frame pointer of each activation's call, oldest first: integers.
    saved_fps: RefCell<Vec<usize>>,
    in_c: Cell<bool>,
}

impl Vm for Frames {
    type Ref = Ref;
    type Local = Local;
    type Exception = core::convert::Infallible;
    const CAPTURE: Capture = Capture::Nothing;

    fn attach(&self) -> Local {
        let stack = OperandStack::new(256);
        stack.base().expose_provenance();
        Local {
            believed: Cell::new(stack.range().start),
            stack: RefCell::new(stack),
            saved: Cell::new(Anchor::new(0, 0, 0)),
            saved_fps: RefCell::new(Vec::new()),
            in_c: Cell::new(false),
        }
    }
}

// SAFETY: S1 is what `wrong` breaks, in a VM that checks each reference against the heap before it uses it. S2: the slots are words of the operand stack, which hold references. S3, S4: it
// reads the stack only. S5: a segment is one frame. S7: an index is checked by the stack.
unsafe impl StackScanner for Frames {
    fn scan_segment(&self, local: &Local, segment: &Segment<'_>, visitor: &mut dyn RootVisitor<Ref>) {
        let anchor = match self.wrong {
            Wrong::OneSavedAnchor => local.saved.get(),
            Wrong::FlagOfItsOwn if !local.in_c.get() => return,
            _ => segment.anchor(),
        };
        if anchor.fp == 0 {
            return;
        }
        let stack = local.stack.borrow();
        let mut first = (anchor.fp - local.believed.get()) / size_of::<Ref>();
        if self.wrong == Wrong::FramePointerSaved {
            let saved = local.saved_fps.borrow()[segment.depth()];
            match stack.index_of(saved) {
                Some(index) => first = index,
                // Where Go crashed.
                None => return,
            }
        }
        visitor.frame(Anchor::new(anchor.pc, anchor.sp, stack.slot_address(first).addr()));
        for slot in 0..(anchor.sp - anchor.fp) / size_of::<Ref>() {
            let address = NonNull::new(stack.slot_address(first + slot).cast::<Ref>()).unwrap();
            // SAFETY: a word of the operand stack, which stands still during the pause.
            visitor.slot(unsafe { Slot::new(address) });
        }
    }
}

/// Keeps every object that a slot or a pin names, and moves those of slots.
struct Collector<'c, 'h> {
    collection: &'c mut reentry::testkit::heap::Collection<'h>,
    pinning: bool,
}

impl RootVisitor<Ref> for Collector<'_, '_> {
    fn slot(&mut self, mut slot: Slot<'_, Ref>) {
        if !self.pinning
            && let Ok(moved) = self.collection.forward(slot.load())
        {
            slot.store(moved);
        }
    }

    fn pinned(&mut self, reference: Ref) {
        if self.pinning {
            let _stale = self.collection.pin(reference);
        }
    }

    fn transitively_pinned(&mut self, reference: Ref) {
        self.pinned(reference);
    }
}

impl Frames {
    fn collect(&self, stopped: &StoppedWorld<'_, Self>) {
        let mut collection = self.heap.begin_collection();
        for pinning in [true, false] {
            stopped.enumerate(&mut Collector { collection: &mut collection, pinning });
        }
        collection.finish();
    }

    /// Pushes a frame of `slots`, and saves where its walk begins, as the VM does it before each call of C.
    fn push(local: &Local, pc: usize, slots: &[Ref]) -> Anchor {
        let mut stack = local.stack.borrow_mut();
        let first = stack.top();
        stack.set_top(first + slots.len());
        for (index, slot) in slots.iter().enumerate() {
            stack.set(first + index, slot.address() as u64);
        }
        let address = |index: usize| local.believed.get() + index * size_of::<Ref>();
        let anchor = Anchor::new(pc, address(first + slots.len()), address(first));
        local.saved.set(anchor);
        local.saved_fps.borrow_mut().push(anchor.fp);
        anchor
    }

    fn pop(local: &Local, slots: usize) {
        let mut stack = local.stack.borrow_mut();
        let top = stack.top();
        stack.set_top(top - slots);
        local.saved_fps.borrow_mut().pop();
    }

    /// Moves the operand stack, as a VM does that grows or shrinks it.
    fn move_stack(&self, mutator: &mut Mutator<Self>, capacity: usize) {
        let moved = {
            let mut stack = mutator.local().stack.borrow_mut();
            let moved = stack.relocate(capacity);
            stack.base().expose_provenance();
            moved
        };
        if self.wrong != Wrong::StackPointerKept {
            mutator.local().believed.set(moved.new.start);
            // SAFETY: the stack has been copied, and stays there until it moves again.
            unsafe { mutator.relocate_stack(moved.old, moved.new, StackEnd::Low) }.unwrap();
        }
    }

    /// Calls C with a frame of `slots` below it. C calls `body` back.
    fn call(
        world: &World<Self>,
        mutator: &mut Mutator<Self>,
        pc: usize,
        slots: &[Ref],
        body: &(dyn Fn(&mut Mutator<Self>) + Sync),
    ) {
        let callback = UpcallClosure::new(world, |mutator: &mut Mutator<Self>, x: c_int| {
            mutator.local().in_c.set(false);
            body(mutator);
            // The VM's own flag: C goes on. That a nested call has come and gone meanwhile it does not know.
            mutator.local().in_c.set(mutator.depth() < 2);
            x
        });
        let anchor = Self::push(mutator.local(), pc, slots);
        mutator.local().in_c.set(true);
        let mut call = mutator.foreign_call().at(anchor);
        call.run(|| {
            world.pause(|stopped| world.vm().collect(stopped));
            // SAFETY: the closure outlives the call, and the data is its own.
            unsafe { foreign_call_back_last_and_go_on(callback.data_last(), 1, callback.data()) };
            world.pause(|stopped| world.vm().collect(stopped));
        });
        drop(call);
        Self::pop(mutator.local(), slots.len());
    }
}

/// A call whose callback moves the stack and calls C itself, which calls back; with collections in C before and after each callback. What the audit finds.
pub(crate) fn run(wrong: Wrong) -> AuditLog {
    let choices = World::<Frames>::builder().audit(Audit::new(Ref::address));
    let world = choices.build(Frames { heap: Heap::new(), wrong });
    let mut mutator = world.attach().unwrap();
    let range = mutator.local().stack.borrow().range();
    mutator.declare_stack(range).unwrap();
    let [a, b] = [&b"a"[..], b"b"].map(|bytes| world.vm().heap.alloc(&[], bytes));
    let (inner, outer) = (world.clone(), world.clone());
    Frames::call(&world, &mut mutator, 0x10, &[a, b, a], &move |mutator| {
        let capacity = mutator.local().stack.borrow().capacity();
        outer
            .vm()
            .move_stack(mutator, if wrong == Wrong::FramePointerSaved { capacity / 2 } else { capacity * 2 });
        let own = outer.vm().heap.alloc(&[], b"the callback's");
        Frames::call(&inner, mutator, 0x20, &[own], &|_| ());
    });
    drop(mutator);
    world.audit().unwrap()
}
