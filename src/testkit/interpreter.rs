//! The interpreter: frames on the movable operand stack, foreign calls with two pcs, and upcalls that nest it.
//!
//! It keeps frame *indexes* between instructions, never addresses, so its own code has no stale stack pointer; the addresses it gives away are the
//! anchors and in-place slots that the crate must keep right.

use crate::foreign_call::ForeignCall;
use crate::root::Root;
use crate::testkit::bytecode::{Instruction, Slot as FrameSlot, SlotKind, StackMove};
use crate::testkit::heap::{Ref, StaleReference};
use crate::testkit::stack::OperandStack;
use crate::testkit::vm::{ENTRY, FRAME_HEADER, FaultSet, Guard, TestVm, UndeadRoot, pack_pc};
use crate::{Anchor, Mutator, StackEnd};
use core::cell::RefMut;
use core::ptr::NonNull;

/// A value of the VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Value {
    /// An integer.
    Integer(i64),
    /// A reference: good until the next safepoint.
    Reference(Ref),
}

impl Value {
    fn word(self) -> u64 {
        match self {
            Self::Integer(value) => value.cast_unsigned(),
            Self::Reference(reference) => reference.address() as u64,
        }
    }

    fn of(kind: SlotKind, word: u64) -> Self {
        match kind {
            SlotKind::Integer => Self::Integer(word.cast_signed()),
            SlotKind::Reference => Self::Reference(Ref::from_address(word as usize)),
        }
    }

    fn kind(self) -> SlotKind {
        match self {
            Self::Integer(_) => SlotKind::Integer,
            Self::Reference(_) => SlotKind::Reference,
        }
    }
}

/// Why a program ended early.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Trap {
    /// The program used a stale reference.
    #[error("at pc {pc} of `{function}`: {stale}")]
    Stale {
        /// The function.
        function: String,
        /// The instruction.
        pc: usize,
        /// What was stale.
        stale: StaleReference,
    },
    /// A collection found an undead root.
    #[error(transparent)]
    Undead(#[from] UndeadRoot),
    /// There is no such function.
    #[error("the program has no function `{0}`")]
    NoSuchFunction(String),
    /// The arguments do not fit the function.
    #[error("`{function}` takes {expected} argument(s) of its own kinds; it was given {given:?}")]
    Arguments {
        /// The function.
        function: String,
        /// How many it takes.
        expected: usize,
        /// What it was given.
        given: Vec<Value>,
    },
    /// There is no such foreign function.
    #[error("no foreign function {0} is bound")]
    NoSuchNative(u16),
}

/// What a foreign function is given.
#[derive(Debug)]
pub struct NativeArguments<'a> {
    values: &'a [NativeArgument],
}

/// One argument of a foreign function.
#[derive(Clone, Copy, Debug)]
pub enum NativeArgument {
    /// An integer.
    Integer(i64),
    /// An object: the address of its bytes when the call began, and the slot to find the object through if the guard gave one.
    Object {
        /// The reference when the call began.
        reference: Ref,
        /// The address of its bytes then; null for the null reference.
        bytes: *mut u8,
        /// The guard's own slot, with [`Guard::RootsByValue`].
        slot: Option<NonNull<Ref>>,
    },
}

impl NativeArguments<'_> {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Says whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// An argument.
    ///
    /// # Panics
    ///
    /// If there is no such argument.
    #[must_use]
    pub fn get(&self, index: usize) -> NativeArgument {
        self.values[index]
    }

    /// An integer argument.
    ///
    /// # Panics
    ///
    /// If it is not one.
    #[must_use]
    pub fn integer(&self, index: usize) -> i64 {
        match self.values[index] {
            NativeArgument::Integer(value) => value,
            NativeArgument::Object { .. } => panic!("argument {index} is a reference, not an integer"),
        }
    }

    /// The address of an object argument's bytes.
    ///
    /// # Panics
    ///
    /// If it is an integer.
    #[must_use]
    pub fn bytes(&self, index: usize) -> *mut u8 {
        match self.values[index] {
            NativeArgument::Object { bytes, .. } => bytes,
            NativeArgument::Integer(_) => panic!("argument {index} is an integer, not a reference"),
        }
    }
}

/// What a foreign function gives back.
#[derive(Clone, PartialEq, Debug)]
pub enum NativeResult {
    /// Nothing; an integer result reads 0, a reference null.
    Nothing,
    /// An integer.
    Integer(i64),
    /// A reference, read after the crossing back.
    Slot(ResultSlot),
    /// The program is to end.
    Trap(Trap),
}

/// The slot of a reference that an upcall has handed to C.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResultSlot(*const Ref);

impl ResultSlot {
    /// # Safety
    ///
    /// `slot` is what [`Mutator::hand_over`] gave in an upcall of this very foreign call.
    #[must_use]
    pub unsafe fn new(slot: *const Ref) -> Self {
        Self(slot)
    }
}

impl From<UndeadRoot> for NativeResult {
    fn from(undead: UndeadRoot) -> Self {
        Self::Trap(undead.into())
    }
}

impl<F: FaultSet> TestVm<F> {
    /// Runs a function of the program in the current activation and returns what it returns.
    ///
    /// # Errors
    ///
    /// Why it ended early. The operand stack is as it was before.
    ///
    /// # Panics
    ///
    /// With what an upcall panicked with.
    pub fn call(mutator: &mut Mutator<Self>, name: &str, arguments: &[Value]) -> Result<Option<Value>, Trap> {
        let function =
            mutator.vm().program().find(name).ok_or_else(|| Trap::NoSuchFunction(name.to_owned()))?;
        if !mutator.local().declared.replace(true) {
            let range = mutator.local().stack_range();
            mutator.declare_stack(range).expect("a mutator has one operand stack, declared once");
        }
        let depth = mutator.local().stack.borrow().top();
        let mut run = Run { mutator, function, pc: 0, frame: 0 };
        // Runs on a panic too: the frames of this activation are gone either way.
        let mut run = scopeguard::guard(&mut run, |run| run.stack().set_top(depth));
        run.enter(function, arguments)?;
        run.execute()
    }
}

/// One activation of the interpreter.
struct Run<'r, F: FaultSet> {
    mutator: &'r mut Mutator<TestVm<F>>,
    function: u16,
    pc: usize,
    /// The index of the running frame.
    frame: usize,
}

impl<F: FaultSet> Run<'_, F> {
    fn stack(&self) -> RefMut<'_, OperandStack> {
        self.mutator.local().stack.borrow_mut()
    }

    fn get(&self, slot: FrameSlot) -> u64 {
        self.stack().get(self.frame + FRAME_HEADER + slot.index())
    }

    fn set(&self, slot: FrameSlot, word: u64) {
        self.stack().set(self.frame + FRAME_HEADER + slot.index(), word);
    }

    fn reference(&self, slot: FrameSlot) -> Ref {
        Ref::from_address(self.get(slot) as usize)
    }

    fn set_reference(&self, slot: FrameSlot, reference: Ref) {
        self.set(slot, reference.address() as u64);
    }

    fn kind(&self, slot: FrameSlot) -> SlotKind {
        self.mutator.vm().program().functions()[usize::from(self.function)].slots[slot.index()]
    }

    fn stale(&self, stale: StaleReference) -> Trap {
        let function = self.mutator.vm().program().functions()[usize::from(self.function)].name.clone();
        Trap::Stale { function, pc: self.pc, stale }
    }

    /// Where a walk of this activation starts now.
    fn anchor(&self) -> Anchor {
        let stack = self.stack();
        Anchor::new(
            pack_pc(self.function, self.pc),
            stack.slot_address(stack.top()).addr(),
            stack.slot_address(self.frame).addr(),
        )
    }

    /// Pushes the first frame of the activation.
    ///
    /// # Errors
    ///
    /// The arguments do not fit.
    fn enter(&mut self, function: u16, arguments: &[Value]) -> Result<(), Trap> {
        let callee = &self.mutator.vm().program().functions()[usize::from(function)];
        let fits = callee.parameters == arguments.len()
            && callee.slots.iter().zip(arguments).all(|(kind, argument)| *kind == argument.kind());
        if !fits {
            return Err(Trap::Arguments {
                function: callee.name.clone(),
                expected: callee.parameters,
                given: arguments.to_vec(),
            });
        }
        let words: Vec<u64> = arguments.iter().map(|argument| argument.word()).collect();
        self.push(function, ENTRY, 0, &words);
        Ok(())
    }

    /// Pushes a frame, growing the stack when it is full.
    fn push(&mut self, function: u16, caller: u64, return_pc: usize, arguments: &[u64]) {
        let slots = self.mutator.vm().program().functions()[usize::from(function)].slots.len();
        let frame = self.stack().top();
        let top = frame + FRAME_HEADER + slots;
        let capacity = self.stack().capacity();
        if top > capacity {
            self.move_stack((2 * capacity).max(top));
        }
        let mut stack = self.stack();
        stack.set_top(top);
        stack.set(frame, caller);
        stack.set(frame + 1, u64::from(function));
        stack.set(frame + 2, return_pc as u64);
        for index in 0..slots {
            stack.set(frame + FRAME_HEADER + index, arguments.get(index).copied().unwrap_or(0));
        }
        drop(stack);
        (self.function, self.pc, self.frame) = (function, 0, frame);
    }

    /// Moves the operand stack and tells the crate.
    ///
    /// # Panics
    ///
    /// If the crate refuses, which a declared stack gives it no reason for.
    fn move_stack(&mut self, capacity: usize) {
        let moved = {
            let mut stack = self.stack();
            let moved = stack.relocate(capacity);
            stack.base().expose_provenance();
            moved
        };
        // SAFETY: `relocate` copied the words in use to `moved.new`, exposed above, and keeps it until it moves again.
        unsafe { self.mutator.relocate_stack(moved.old, moved.new, StackEnd::Low) }
            .expect("the stack is declared, and never shrinks below its top");
    }

    /// Runs until the activation's first frame returns.
    ///
    /// # Errors
    ///
    /// Why the program ended early.
    fn execute(&mut self) -> Result<Option<Value>, Trap> {
        loop {
            let vm = self.mutator.vm();
            let instruction = vm.program().functions()[usize::from(self.function)].code[self.pc].clone();
            match instruction {
                Instruction::Integer { dst, value } => self.set(dst, value.cast_unsigned()),
                Instruction::Bytes { dst, data } => {
                    self.mutator.may_allocate();
                    let reference = vm.heap().alloc(&[], &data);
                    self.set_reference(dst, reference);
                }
                Instruction::Pair { dst, first, second } => {
                    self.mutator.may_allocate();
                    let fields = [self.reference(first), self.reference(second)];
                    let reference = vm.heap().try_alloc(&fields, &[]).map_err(|stale| self.stale(stale))?;
                    self.set_reference(dst, reference);
                }
                Instruction::First { dst, pair } => self.load_field(dst, pair, 0)?,
                Instruction::Second { dst, pair } => self.load_field(dst, pair, 1)?,
                Instruction::Copy { dst, src } => self.set(dst, self.get(src)),
                Instruction::Null { dst } => self.set_reference(dst, Ref::NULL),
                Instruction::Add { dst, a, b } => self.set(dst, self.get(a).wrapping_add(self.get(b))),
                Instruction::Less { dst, a, b } => {
                    let less = self.get(a).cast_signed() < self.get(b).cast_signed();
                    self.set(dst, u64::from(less));
                }
                Instruction::Jump { target } => {
                    self.pc = target;
                    continue;
                }
                Instruction::JumpIfZero { test, target } => {
                    if self.get(test) == 0 {
                        self.pc = target;
                        continue;
                    }
                }
                Instruction::Call { dst: _, function, arguments } => {
                    let words: Vec<u64> = arguments.iter().map(|slot| self.get(*slot)).collect();
                    self.push(function, self.frame as u64, self.pc, &words);
                    continue;
                }
                Instruction::EnterForeign { function, arguments } => {
                    self.foreign(function, &arguments)?;
                    self.pc += 2;
                    continue;
                }
                Instruction::InForeign { .. } => unreachable!("the call at X goes on behind Y"),
                Instruction::Collect => {
                    let anchor = self.anchor();
                    self.mutator.pause_at(anchor, |stopped| stopped.vm().collect(stopped))?;
                }
                Instruction::Poll => {
                    let anchor = self.anchor();
                    self.mutator.poll_at(anchor);
                }
                Instruction::MoveStack { how } => {
                    let (top, capacity) = {
                        let stack = self.stack();
                        (stack.top(), stack.capacity())
                    };
                    self.move_stack(match how {
                        StackMove::Grow => 2 * capacity,
                        StackMove::Shrink => (capacity / 2).max(top),
                        StackMove::Same => capacity,
                    });
                }
                Instruction::Check { reference } => {
                    let reference = self.reference(reference);
                    if !reference.is_null() {
                        vm.heap().check(reference).map_err(|stale| self.stale(stale))?;
                    }
                }
                Instruction::Return { src } => {
                    let result = src.map(|slot| Value::of(self.kind(slot), self.get(slot)));
                    if let Some(result) = self.leave(result) {
                        return Ok(result);
                    }
                }
            }
            self.pc += 1;
        }
    }

    /// # Errors
    ///
    /// The pair is stale.
    fn load_field(&self, dst: FrameSlot, pair: FrameSlot, index: usize) -> Result<(), Trap> {
        let field = self.mutator.vm().heap().field(self.reference(pair), index);
        self.set_reference(dst, field.map_err(|stale| self.stale(stale))?);
        Ok(())
    }

    /// Pops the frame. Returns the activation's result if it was the first one.
    fn leave(&mut self, result: Option<Value>) -> Option<Option<Value>> {
        let (caller, return_pc) = {
            let mut stack = self.stack();
            let (caller, return_pc) = (stack.get(self.frame), stack.get(self.frame + 2) as usize);
            stack.set_top(self.frame);
            (caller, return_pc)
        };
        if caller == ENTRY {
            return Some(result);
        }
        self.frame = caller as usize;
        let function = self.stack().get(self.frame + 1) as u16;
        self.function = function;
        self.pc = return_pc;
        let code = &self.mutator.vm().program().functions()[usize::from(self.function)].code;
        if let (Instruction::Call { dst: Some(dst), .. }, Some(result)) = (&code[self.pc], result) {
            self.set(*dst, result.word());
        }
        None
    }

    /// Makes the foreign call at X and gives its result to Y.
    ///
    /// # Errors
    ///
    /// Why the program ended early.
    fn foreign(&mut self, function: u16, arguments: &[FrameSlot]) -> Result<(), Trap> {
        let anchor = self.anchor();
        let guard = self.mutator.vm().guard();
        let mut slots = Vec::with_capacity(arguments.len());
        for slot in arguments {
            let address = self.stack().slot_address(self.frame + FRAME_HEADER + slot.index()).cast::<Ref>();
            slots.push((self.kind(*slot), self.get(*slot), address));
        }
        let vm = core::ptr::from_ref(self.mutator.vm());
        // SAFETY: the world outlives its mutators; the reference is not used after this function.
        let vm = unsafe { &*vm };
        let native = vm.natives().get(usize::from(function)).ok_or(Trap::NoSuchNative(function))?;
        let mut call = self.mutator.foreign_call().at(anchor);
        let mut values = Vec::with_capacity(arguments.len());
        for (kind, word, address) in slots {
            values.push(match Value::of(kind, word) {
                Value::Integer(value) => NativeArgument::Integer(value),
                Value::Reference(reference) => declare(&mut call, vm, guard, reference, address)?,
            });
        }
        let result = call.try_run(|| native(vm, &NativeArguments { values: &values }))?;
        let word = match result {
            NativeResult::Nothing => 0,
            NativeResult::Integer(value) => value.cast_unsigned(),
            // SAFETY: the slot is the one `hand_over` gave: it lives until the call is dropped, and this thread is managed again.
            NativeResult::Slot(slot) => unsafe { slot.0.read() }.address() as u64,
            NativeResult::Trap(trap) => return Err(trap),
        };
        drop(call);
        let y = &self.mutator.vm().program().functions()[usize::from(self.function)].code[self.pc + 1];
        if let Instruction::InForeign { dst: Some(dst) } = y {
            self.set(*dst, word);
        }
        Ok(())
    }
}

/// Declares one reference argument as `guard` says.
///
/// # Errors
///
/// The reference is stale.
///
/// # Panics
///
/// If the VM refuses a reference it has just checked.
fn declare<F: FaultSet>(
    call: &mut ForeignCall<'_, TestVm<F>>,
    vm: &TestVm<F>,
    guard: Guard,
    reference: Ref,
    address: *mut Ref,
) -> Result<NativeArgument, Trap> {
    let stale = |stale| Trap::Stale { function: "a foreign argument".to_owned(), pc: 0, stale };
    if !reference.is_null() {
        vm.heap().check(reference).map_err(stale)?;
    }
    let admitted = "checked just now: it is of this heap";
    let mut slot = None;
    match guard {
        // Null needs no pin, and can have none.
        Guard::Pins | Guard::TransitivePins if reference.is_null() => {}
        Guard::Pins => {
            call.pin(reference).expect(admitted);
        }
        Guard::TransitivePins => {
            call.pin_transitively(reference).expect(admitted);
        }
        Guard::RootsInPlace => {
            let address = NonNull::new(address).expect("a stack has addresses");
            // SAFETY: a slot of the running frame, in the declared stack: it holds the reference until the frame is left, after the call.
            unsafe { call.root_in_place(address) }.expect(admitted);
        }
        Guard::RootsByValue => slot = NonNull::new(Root::slot(&call.root(reference))),
        Guard::Nothing => {}
    }
    let bytes = if reference.is_null() {
        core::ptr::null_mut()
    } else {
        vm.heap().payload(reference).map_err(stale)?
    };
    Ok(NativeArgument::Object { reference, bytes, slot })
}
