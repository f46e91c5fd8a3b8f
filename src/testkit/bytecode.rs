//! Programs of the reference VM, and what is live at each of their pcs.
//!
//! A function has numbered slots, each for a reference or for an integer. The first ones are its parameters; all others
//! start as null or zero. A pc is an index into the function's code.
//!
//! # A foreign call has two pcs
//!
//! A foreign call is two instructions, one directly after the other, as machine code has a call site and a place inside
//! the call sequence:
//!
//! ```text
//!   pc X    EnterForeign { function, arguments }    live on entry: the arguments, and what is used later
//!   pc Y    InForeign { dst }                       live on entry: only what is used later
//! ```
//!
//! An argument that nothing uses after the call is live at X and dead at Y. A frame that is suspended in the call may be
//! scanned at either, depending on which pc was saved: a reference scanned at Y first and at X afterwards is dead and then
//! live again, with the address it had before the collection in between. That is the undead root the crate is about, and
//! this pair of instructions is how the reference VM can have it.
//!
//! # Which set to scan with
//!
//! | frame | set |
//! |---|---|
//! | stopped before the instruction at `pc` (a poll, an instruction that allocates and still needs its operands) | [`LiveMaps::live_references`] |
//! | suspended in a managed call at `pc` | [`LiveMaps::live_across`] |
//! | in a foreign call, saved pc X | [`LiveMaps::live_at_call_site`] |
//! | in a foreign call, saved pc Y | [`LiveMaps::live_references`] of Y, the same as `live_across` of Y |

mod builder;
mod liveness;

use core::fmt;

pub use self::builder::{FunctionBuilder, Label};
pub use self::liveness::LiveMaps;

/// The number of a slot of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u16);

impl Slot {
    /// Returns the number as an index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

/// What a slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SlotKind {
    /// A reference to an object of the heap, or null.
    Reference,
    /// A signed 64-bit integer.
    Integer,
}

/// Where [`Instruction::MoveStack`] takes the operand stack. It moves to a new address in each case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StackMove {
    /// To more room.
    Grow,
    /// To less room, at least as much as is in use.
    Shrink,
    /// To as much room as it has.
    Same,
}

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instruction {
    /// `dst = value`
    Integer {
        /// An integer slot.
        dst: Slot,
        /// The constant.
        value: i64,
    },
    /// `dst` = a new object that holds `data`. May collect.
    Bytes {
        /// A reference slot.
        dst: Slot,
        /// The raw bytes of the object.
        data: Box<[u8]>,
    },
    /// `dst` = a new object with two fields. May collect, and needs its operands afterwards.
    Pair {
        /// A reference slot.
        dst: Slot,
        /// The reference for field 0.
        first: Slot,
        /// The reference for field 1.
        second: Slot,
    },
    /// `dst` = the first field of `pair`.
    First {
        /// A reference slot.
        dst: Slot,
        /// A reference to an object with one field at least.
        pair: Slot,
    },
    /// `dst` = the second field of `pair`.
    Second {
        /// A reference slot.
        dst: Slot,
        /// A reference to an object with two fields at least.
        pair: Slot,
    },
    /// `dst = src`
    Copy {
        /// A slot of either kind.
        dst: Slot,
        /// A slot of the same kind.
        src: Slot,
    },
    /// `dst` = null.
    Null {
        /// A reference slot.
        dst: Slot,
    },
    /// `dst = a + b`, wrapping.
    Add {
        /// An integer slot.
        dst: Slot,
        /// An integer.
        a: Slot,
        /// An integer.
        b: Slot,
    },
    /// `dst` = 1 if `a < b`, else 0.
    Less {
        /// An integer slot.
        dst: Slot,
        /// An integer.
        a: Slot,
        /// An integer.
        b: Slot,
    },
    /// Continues at `target`.
    Jump {
        /// A pc of this function.
        target: usize,
    },
    /// Continues at `target` if `test` is the integer zero, or the null reference.
    JumpIfZero {
        /// A slot of either kind.
        test: Slot,
        /// A pc of this function.
        target: usize,
    },
    /// Calls a function of the program.
    Call {
        /// The slot for what it returns, or `None` to drop that.
        dst: Option<Slot>,
        /// The index of the function in the program.
        function: u16,
        /// The slots to copy into the parameters of the callee.
        arguments: Vec<Slot>,
    },
    /// Calls a foreign function: pc X, the call site. `InForeign` follows.
    EnterForeign {
        /// The number of the function among those bound to the VM.
        function: u16,
        /// The slots C is given, of either kind.
        arguments: Vec<Slot>,
    },
    /// Is in the foreign call: pc Y. No jump leads here.
    InForeign {
        /// The slot for what C returns, or `None` to drop that.
        dst: Option<Slot>,
    },
    /// Collects.
    Collect,
    /// Polls: a safepoint.
    Poll,
    /// Moves the operand stack.
    MoveStack {
        /// To more room or less.
        how: StackMove,
    },
    /// Checks that a reference is null or names an object.
    Check {
        /// A reference slot.
        reference: Slot,
    },
    /// Leaves the function.
    Return {
        /// The slot with what it returns, or `None` for nothing.
        src: Option<Slot>,
    },
}

impl Instruction {
    /// Returns the slot the instruction writes.
    #[must_use]
    pub fn definition(&self) -> Option<Slot> {
        match *self {
            Self::Integer { dst, .. }
            | Self::Bytes { dst, .. }
            | Self::Pair { dst, .. }
            | Self::First { dst, .. }
            | Self::Second { dst, .. }
            | Self::Copy { dst, .. }
            | Self::Null { dst }
            | Self::Add { dst, .. }
            | Self::Less { dst, .. } => Some(dst),
            Self::Call { dst, .. } | Self::InForeign { dst } => dst,
            Self::Jump { .. }
            | Self::JumpIfZero { .. }
            | Self::EnterForeign { .. }
            | Self::Collect
            | Self::Poll
            | Self::MoveStack { .. }
            | Self::Check { .. }
            | Self::Return { .. } => None,
        }
    }

    /// Returns the slots the instruction reads, before it writes any.
    pub fn uses(&self) -> impl Iterator<Item = Slot> {
        let (few, list): ([Option<Slot>; 2], &[Slot]) = match self {
            Self::Pair { first: a, second: b, .. } | Self::Add { a, b, .. } | Self::Less { a, b, .. } => {
                ([Some(*a), Some(*b)], &[])
            }
            Self::First { pair: used, .. }
            | Self::Second { pair: used, .. }
            | Self::Copy { src: used, .. }
            | Self::JumpIfZero { test: used, .. }
            | Self::Check { reference: used } => ([Some(*used), None], &[]),
            Self::Return { src } => ([*src, None], &[]),
            Self::Call { arguments, .. } | Self::EnterForeign { arguments, .. } => ([None; 2], arguments),
            Self::Integer { .. }
            | Self::Bytes { .. }
            | Self::Null { .. }
            | Self::Jump { .. }
            | Self::InForeign { .. }
            | Self::Collect
            | Self::Poll
            | Self::MoveStack { .. } => ([None; 2], &[]),
        };
        few.into_iter().flatten().chain(list.iter().copied())
    }

    /// Returns the pcs that may follow when the instruction is at `pc`.
    fn successors(&self, pc: usize) -> impl Iterator<Item = usize> {
        let (next, target) = match *self {
            Self::Jump { target } => (None, Some(target)),
            Self::JumpIfZero { target, .. } => (Some(pc + 1), Some(target)),
            Self::Return { .. } => (None, None),
            _ => (Some(pc + 1), None),
        };
        next.into_iter().chain(target)
    }
}

/// A function of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// The name, for messages.
    pub name: String,
    /// The kind of each slot of a frame.
    pub slots: Vec<SlotKind>,
    /// The number of slots, from the first on, that the caller fills.
    pub parameters: usize,
    /// The instructions, by pc.
    pub code: Vec<Instruction>,
}

impl Function {
    /// Starts to write a function.
    #[must_use]
    pub fn builder(name: &str) -> FunctionBuilder {
        FunctionBuilder::new(name)
    }

    /// Returns the kind of a slot, or `None` if there is no such slot.
    #[must_use]
    pub fn kind(&self, slot: Slot) -> Option<SlotKind> {
        self.slots.get(slot.index()).copied()
    }

    /// Returns the kind of what the function returns: that of its first `Return`. In a [`Program`] all agree.
    #[must_use]
    pub fn result(&self) -> Option<SlotKind> {
        let first = self.code.iter().find_map(|instruction| match instruction {
            Instruction::Return { src } => Some(*src),
            _ => None,
        });
        first.flatten().and_then(|src| self.kind(src))
    }
}

/// Functions that were verified: an interpreter may take every index in them on trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    functions: Vec<Function>,
}

impl Program {
    /// Verifies functions and makes a program of them.
    ///
    /// Each slot exists and has the kind its instruction asks for; each jump leads to an instruction, and not into a
    /// foreign call; each called function exists and gets arguments of the kinds of its parameters; all returns of a
    /// function agree, and with the `dst` of its calls; `EnterForeign` and `InForeign` come in pairs; the last
    /// instruction does not fall off the end. The arguments and the result of a foreign function are left to those who
    /// bind it.
    ///
    /// # Errors
    ///
    /// [`ProgramError`] with the first fault.
    pub fn new(functions: Vec<Function>) -> Result<Self, ProgramError> {
        for function in &functions {
            Verifier { functions: &functions, function }.verify()?;
        }
        Ok(Self { functions })
    }

    /// Returns the functions; the index is the number that `Call` uses.
    #[must_use]
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// Returns function number `index`, or `None` if there is none.
    #[must_use]
    pub fn function(&self, index: u16) -> Option<&Function> {
        self.functions.get(usize::from(index))
    }

    /// Returns the number of the first function of that name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<u16> {
        let index = self.functions.iter().position(|function| function.name == name)?;
        u16::try_from(index).ok()
    }
}

/// A function was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("function `{function}`, pc {pc}: {fault}")]
pub struct ProgramError {
    /// The name of the function.
    pub function: String,
    /// The pc of the instruction at fault, or 0 if the fault is in the slots.
    pub pc: usize,
    /// What is wrong.
    pub fault: Fault,
}

/// What is wrong with an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// Declare more slots, or use another.
    #[error("there is no slot {slot}")]
    NoSuchSlot {
        /// The slot named.
        slot: Slot,
    },
    /// Use a slot of the kind the instruction works on.
    #[error("slot {slot} should hold: {expected:?}")]
    WrongKind {
        /// The slot named.
        slot: Slot,
        /// The kind it should have.
        expected: SlotKind,
    },
    /// Jump to a pc of this function.
    #[error("the jump target {target} is outside the code")]
    NoSuchTarget {
        /// The pc named.
        target: usize,
    },
    /// Jump to the `EnterForeign` before it.
    #[error("the jump target {target} is inside a foreign call")]
    JumpIntoForeign {
        /// The pc named.
        target: usize,
    },
    /// Call a function of this program.
    #[error("there is no function {function}")]
    NoSuchFunction {
        /// The index named.
        function: u16,
    },
    /// Pass one argument for each parameter.
    #[error("the function takes {expected} arguments and was given {given}")]
    ArgumentCount {
        /// The number of parameters.
        expected: usize,
        /// The number of arguments.
        given: usize,
    },
    /// Leave `dst` out, or call a function that returns something.
    #[error("the function returns nothing to put in {dst}")]
    NoResult {
        /// The slot named.
        dst: Slot,
    },
    /// Return the same kind, or nothing, everywhere in a function.
    #[error("an earlier return of the function returns something of another kind")]
    ResultsDiffer,
    /// End the code with `Return` or `Jump`.
    #[error("the code goes on past its end")]
    FallsOffEnd,
    /// Put `InForeign` directly behind.
    #[error("`EnterForeign` is not followed by `InForeign`")]
    EnterAlone,
    /// Put `EnterForeign` directly before.
    #[error("`InForeign` does not follow `EnterForeign`")]
    InAlone,
    /// Declare no more parameters than slots, and no more slots than a `u16` numbers.
    #[error("{parameters} parameters among {slots} slots")]
    SlotCount {
        /// The number of parameters.
        parameters: usize,
        /// The number of slots.
        slots: usize,
    },
}

/// Verifies one function among those it may call.
struct Verifier<'a> {
    functions: &'a [Function],
    function: &'a Function,
}

impl Verifier<'_> {
    /// Verifies everything about the function.
    ///
    /// # Errors
    ///
    /// The first fault, by pc.
    fn verify(&self) -> Result<(), ProgramError> {
        let refuse = |pc, fault| ProgramError { function: self.function.name.clone(), pc, fault };
        let (parameters, slots) = (self.function.parameters, self.function.slots.len());
        if parameters > slots || slots > usize::from(u16::MAX) + 1 {
            return Err(refuse(0, Fault::SlotCount { parameters, slots }));
        }
        for (pc, instruction) in self.function.code.iter().enumerate() {
            self.operands(instruction)
                .and_then(|()| self.flow(pc, instruction))
                .map_err(|f| refuse(pc, f))?;
        }
        // Code that is not empty was found not to fall off its end, at its last instruction.
        if self.function.code.is_empty() { Err(refuse(0, Fault::FallsOffEnd)) } else { Ok(()) }
    }

    /// Returns the kind of a slot.
    ///
    /// # Errors
    ///
    /// [`Fault::NoSuchSlot`].
    fn exists(&self, slot: Slot) -> Result<SlotKind, Fault> {
        self.function.kind(slot).ok_or(Fault::NoSuchSlot { slot })
    }

    /// Verifies that slots exist and are of one kind.
    ///
    /// # Errors
    ///
    /// [`Fault::NoSuchSlot`] or [`Fault::WrongKind`], for the first slot at fault.
    fn all(&self, expected: SlotKind, slots: &[Slot]) -> Result<(), Fault> {
        slots.iter().try_for_each(|&slot| match self.exists(slot)? {
            kind if kind == expected => Ok(()),
            _ => Err(Fault::WrongKind { slot, expected }),
        })
    }

    /// Verifies the slots an instruction names, and what it calls.
    ///
    /// # Errors
    ///
    /// The first fault.
    fn operands(&self, instruction: &Instruction) -> Result<(), Fault> {
        use SlotKind::{Integer, Reference};
        match *instruction {
            Instruction::Integer { dst, .. } => self.all(Integer, &[dst]),
            Instruction::Add { dst, a, b } | Instruction::Less { dst, a, b } => {
                self.all(Integer, &[dst, a, b])
            }
            Instruction::Bytes { dst, .. } | Instruction::Null { dst } => self.all(Reference, &[dst]),
            Instruction::Pair { dst, first, second } => self.all(Reference, &[dst, first, second]),
            Instruction::First { dst, pair } | Instruction::Second { dst, pair } => {
                self.all(Reference, &[dst, pair])
            }
            Instruction::Check { reference } => self.all(Reference, &[reference]),
            Instruction::Copy { dst, src } => self.all(self.exists(dst)?, &[src]),
            Instruction::Call { dst, function, ref arguments } => self.call(dst, function, arguments),
            Instruction::Return { src } => {
                let kind = src.map(|slot| self.exists(slot)).transpose()?;
                if kind == self.function.result() { Ok(()) } else { Err(Fault::ResultsDiffer) }
            }
            Instruction::JumpIfZero { .. }
            | Instruction::EnterForeign { .. }
            | Instruction::InForeign { .. }
            | Instruction::Jump { .. }
            | Instruction::Collect
            | Instruction::Poll
            | Instruction::MoveStack { .. } => instruction
                .uses()
                .chain(instruction.definition())
                .try_for_each(|slot| self.exists(slot).map(drop)),
        }
    }

    /// Verifies a managed call.
    ///
    /// # Errors
    ///
    /// A fault in the number of the function, in the arguments, or in the result.
    fn call(&self, dst: Option<Slot>, function: u16, arguments: &[Slot]) -> Result<(), Fault> {
        let callee = self.functions.get(usize::from(function)).ok_or(Fault::NoSuchFunction { function })?;
        let (expected, given) = (callee.parameters, arguments.len());
        if expected != given {
            return Err(Fault::ArgumentCount { expected, given });
        }
        for (argument, &kind) in arguments.iter().zip(&callee.slots) {
            self.all(kind, &[*argument])?;
        }
        match (dst, callee.result()) {
            (None, _) => Ok(()),
            (Some(dst), Some(kind)) => self.all(kind, &[dst]),
            (Some(dst), None) => Err(Fault::NoResult { dst }),
        }
    }

    /// Verifies what comes before and after the instruction at `pc`.
    ///
    /// # Errors
    ///
    /// A fault in a jump target, in the two halves of a foreign call, or at the end of the code.
    fn flow(&self, pc: usize, instruction: &Instruction) -> Result<(), Fault> {
        let code = &self.function.code;
        let is_in_foreign = |pc: usize| matches!(code.get(pc), Some(Instruction::InForeign { .. }));
        let is_enter = |pc: usize| matches!(code.get(pc), Some(Instruction::EnterForeign { .. }));
        match *instruction {
            Instruction::Jump { target } | Instruction::JumpIfZero { target, .. } => {
                if target >= code.len() {
                    return Err(Fault::NoSuchTarget { target });
                }
                if is_in_foreign(target) {
                    return Err(Fault::JumpIntoForeign { target });
                }
            }
            Instruction::EnterForeign { .. } if !is_in_foreign(pc + 1) => return Err(Fault::EnterAlone),
            Instruction::InForeign { .. } if pc == 0 || !is_enter(pc - 1) => return Err(Fault::InAlone),
            _ => {}
        }
        // What is left is an instruction after which the code ends although it does not.
        if instruction.successors(pc).any(|next| next == code.len()) {
            Err(Fault::FallsOffEnd)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
#[allow(clippy::missing_panics_doc, reason = "a test panics to fail")]
mod tests;
