//! Writing functions by hand, one instruction a line.

use super::{Function, Instruction, Slot, SlotKind, StackMove};

/// A place in the code of a [`FunctionBuilder`], perhaps one not written yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label(usize);

/// Writes a [`Function`], one instruction a line.
///
/// Every method that adds an instruction returns its pc.
///
/// ```
/// use reentry::testkit::bytecode::{Function, LiveMaps, Program};
///
/// let mut f = Function::builder("measure");
/// let text = f.reference_parameter();
/// let length = f.integer_slot();
/// let call = f.foreign(Some(length), 0, &[text]);
/// f.give_back(length);
/// let program = Program::new(vec![f.finish()]).unwrap();
///
/// let live = LiveMaps::analyse(&program.functions()[0]);
/// assert_eq!(live.live_at_call_site(call).collect::<Vec<_>>(), [text]);
/// assert_eq!(live.live_references(call + 1).count(), 0);
/// ```
#[derive(Debug)]
pub struct FunctionBuilder {
    function: Function,
    labels: Vec<Option<usize>>,
    /// The pcs of jumps and the labels they lead to.
    jumps: Vec<(usize, Label)>,
}

impl FunctionBuilder {
    pub(super) fn new(name: &str) -> Self {
        let function = Function { name: name.to_owned(), slots: vec![], parameters: 0, code: vec![] };
        Self { function, labels: vec![], jumps: vec![] }
    }

    /// Declares the next parameter, a reference.
    ///
    /// # Panics
    ///
    /// If a slot that is no parameter was declared before.
    pub fn reference_parameter(&mut self) -> Slot {
        self.parameter(SlotKind::Reference)
    }

    /// Declares the next parameter, an integer.
    ///
    /// # Panics
    ///
    /// If a slot that is no parameter was declared before.
    pub fn integer_parameter(&mut self) -> Slot {
        self.parameter(SlotKind::Integer)
    }

    /// Declares the next parameter.
    ///
    /// # Panics
    ///
    /// If a slot that is no parameter was declared before.
    fn parameter(&mut self, kind: SlotKind) -> Slot {
        assert_eq!(
            self.function.parameters,
            self.function.slots.len(),
            "parameters are declared before other slots"
        );
        self.function.parameters += 1;
        self.slot(kind)
    }

    /// Declares a slot for a reference, null at first.
    ///
    /// # Panics
    ///
    /// If there are 65,536 slots.
    pub fn reference_slot(&mut self) -> Slot {
        self.slot(SlotKind::Reference)
    }

    /// Declares a slot for an integer, zero at first.
    ///
    /// # Panics
    ///
    /// If there are 65,536 slots.
    pub fn integer_slot(&mut self) -> Slot {
        self.slot(SlotKind::Integer)
    }

    /// Declares the next slot.
    ///
    /// # Panics
    ///
    /// If there are 65,536 slots.
    fn slot(&mut self, kind: SlotKind) -> Slot {
        let number = u16::try_from(self.function.slots.len()).expect("a frame has at most 65,536 slots");
        self.function.slots.push(kind);
        Slot(number)
    }

    /// Returns the pc of the next instruction.
    #[must_use]
    pub fn pc(&self) -> usize {
        self.function.code.len()
    }

    /// Adds any instruction.
    pub fn push(&mut self, instruction: Instruction) -> usize {
        self.function.code.push(instruction);
        self.function.code.len() - 1
    }

    /// Makes a label to be placed later.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Places a label before the next instruction.
    ///
    /// # Panics
    ///
    /// If the label is of another builder.
    pub fn place(&mut self, label: Label) {
        self.labels[label.0] = Some(self.function.code.len());
    }

    /// Makes a label and places it before the next instruction.
    pub fn here(&mut self) -> Label {
        let label = self.label();
        self.place(label);
        label
    }

    /// Adds `dst = value`.
    pub fn integer(&mut self, dst: Slot, value: i64) -> usize {
        self.push(Instruction::Integer { dst, value })
    }

    /// Adds the allocation of an object with these bytes.
    pub fn bytes(&mut self, dst: Slot, data: &[u8]) -> usize {
        self.push(Instruction::Bytes { dst, data: data.into() })
    }

    /// Adds the allocation of an object with two fields.
    pub fn pair(&mut self, dst: Slot, first: Slot, second: Slot) -> usize {
        self.push(Instruction::Pair { dst, first, second })
    }

    /// Adds `dst` = the first field of `pair`.
    pub fn first(&mut self, dst: Slot, pair: Slot) -> usize {
        self.push(Instruction::First { dst, pair })
    }

    /// Adds `dst` = the second field of `pair`.
    pub fn second(&mut self, dst: Slot, pair: Slot) -> usize {
        self.push(Instruction::Second { dst, pair })
    }

    /// Adds `dst = src`.
    pub fn copy(&mut self, dst: Slot, src: Slot) -> usize {
        self.push(Instruction::Copy { dst, src })
    }

    /// Adds `dst` = null.
    pub fn null(&mut self, dst: Slot) -> usize {
        self.push(Instruction::Null { dst })
    }

    /// Adds `dst = a + b`.
    pub fn add(&mut self, dst: Slot, a: Slot, b: Slot) -> usize {
        self.push(Instruction::Add { dst, a, b })
    }

    /// Adds `dst = a < b`.
    pub fn less(&mut self, dst: Slot, a: Slot, b: Slot) -> usize {
        self.push(Instruction::Less { dst, a, b })
    }

    /// Adds a jump.
    pub fn jump(&mut self, to: Label) -> usize {
        self.jumps.push((self.pc(), to));
        self.push(Instruction::Jump { target: usize::MAX })
    }

    /// Adds a jump that is taken if `test` is zero or null.
    pub fn jump_if_zero(&mut self, test: Slot, to: Label) -> usize {
        self.jumps.push((self.pc(), to));
        self.push(Instruction::JumpIfZero { test, target: usize::MAX })
    }

    /// Adds a call of a function of the program.
    pub fn call(&mut self, dst: Option<Slot>, function: u16, arguments: &[Slot]) -> usize {
        self.push(Instruction::Call { dst, function, arguments: arguments.to_vec() })
    }

    /// Adds a foreign call, both its instructions, and returns the pc of the first: X. Y is the next pc.
    pub fn foreign(&mut self, dst: Option<Slot>, function: u16, arguments: &[Slot]) -> usize {
        let call_site = self.push(Instruction::EnterForeign { function, arguments: arguments.to_vec() });
        self.push(Instruction::InForeign { dst });
        call_site
    }

    /// Adds a collection.
    pub fn collect(&mut self) -> usize {
        self.push(Instruction::Collect)
    }

    /// Adds a poll.
    pub fn poll(&mut self) -> usize {
        self.push(Instruction::Poll)
    }

    /// Adds a move of the operand stack.
    pub fn move_stack(&mut self, how: StackMove) -> usize {
        self.push(Instruction::MoveStack { how })
    }

    /// Adds a check of a reference.
    pub fn check(&mut self, reference: Slot) -> usize {
        self.push(Instruction::Check { reference })
    }

    /// Adds a return of nothing.
    pub fn leave(&mut self) -> usize {
        self.push(Instruction::Return { src: None })
    }

    /// Adds a return of the value of `src`.
    pub fn give_back(&mut self, src: Slot) -> usize {
        self.push(Instruction::Return { src: Some(src) })
    }

    /// Returns the function. [`Program::new`](super::Program::new) verifies it.
    ///
    /// # Panics
    ///
    /// If a jump leads to a label that was never placed.
    #[must_use]
    pub fn finish(mut self) -> Function {
        for (pc, label) in self.jumps {
            let to = self.labels[label.0];
            let to = to.unwrap_or_else(|| panic!("the jump at pc {pc} leads to a label without a place"));
            if let Instruction::Jump { target } | Instruction::JumpIfZero { target, .. } =
                &mut self.function.code[pc]
            {
                *target = to;
            }
        }
        self.function
    }
}
