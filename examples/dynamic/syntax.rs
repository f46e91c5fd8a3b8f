//! A script as a tree. Variables are resolved: how many blocks out, and which of its slots.

use super::source::Position;
use reentry::dynamic::{Signature, Types};

#[derive(Debug)]
pub(crate) struct Expression {
    pub(crate) at: Position,
    pub(crate) kind: ExpressionKind,
}

#[derive(Debug)]
pub(crate) enum ExpressionKind {
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Variable {
        blocks_out: usize,
        slot: usize,
    },
    /// A function of C, by its number.
    Foreign(usize),
    Builtin(Builtin),
    List(Vec<Expression>),
    /// A function, by the number of its code.
    Function(usize),
    Not(Box<Expression>),
    Negative(Box<Expression>),
    Binary(Operator, Box<[Expression; 2]>),
    Index(Box<[Expression; 2]>),
    Call(Box<Expression>, Vec<Expression>),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operator {
    Or,
    And,
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

impl Operator {
    /// The operators by their signs, and how strongly each binds.
    const ALL: &[(&'static str, Self, u8)] = &[
        ("||", Self::Or, 1),
        ("&&", Self::And, 2),
        ("==", Self::Equal, 3),
        ("!=", Self::Unequal, 3),
        ("<", Self::Less, 4),
        ("<=", Self::LessOrEqual, 4),
        (">", Self::Greater, 4),
        (">=", Self::GreaterOrEqual, 4),
        ("+", Self::Add, 5),
        ("-", Self::Subtract, 5),
        ("*", Self::Multiply, 6),
        ("/", Self::Divide, 6),
        ("%", Self::Remainder, 6),
    ];

    pub(crate) fn of(sign: &str) -> Option<(Self, u8)> {
        Self::ALL
            .iter()
            .find(|(known, ..)| *known == sign)
            .map(|(_, operator, binding)| (*operator, *binding))
    }

    pub(crate) fn sign(self) -> &'static str {
        Self::ALL.iter().find(|(_, operator, _)| *operator == self).map_or("", |(sign, ..)| sign)
    }
}

#[derive(Debug)]
pub(crate) enum Statement {
    Expression(Expression),
    Let(usize, Expression),
    Assign(Expression, Expression),
    If(Expression, Block, Option<Block>),
    While(Expression, Block),
    Return(Option<Expression>),
    Block(Block),
}

/// Statements with variables of their own.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) slots: usize,
    pub(crate) statements: Vec<Statement>,
}

/// A function's code. The first slots of its block are the parameters.
#[derive(Debug)]
pub(crate) struct Code {
    pub(crate) name: String,
    pub(crate) parameters: usize,
    pub(crate) block: Block,
}

/// A function of C, as declared.
#[derive(Debug)]
pub(crate) struct Declaration {
    pub(crate) library: String,
    pub(crate) library_at: Position,
    pub(crate) name: String,
    pub(crate) name_at: Position,
    pub(crate) signature: Signature,
}

#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) main: Block,
    pub(crate) codes: Vec<Code>,
    pub(crate) declarations: Vec<Declaration>,
    pub(crate) types: Types,
}

macro_rules! builtins {
    ($($variant:ident = $name:literal, $least:literal ..= $most:expr;)*) => {
        /// What the language has of its own.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) enum Builtin {
            $($variant,)*
        }

        impl Builtin {
            pub(crate) fn of(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$variant),)*
                    _ => None,
                }
            }

            pub(crate) fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// How many arguments it takes.
            pub(crate) fn arity(self) -> core::ops::RangeInclusive<usize> {
                match self {
                    $(Self::$variant => $least..=$most,)*
                }
            }
        }
    };
}
builtins! {
    Print = "print", 0..=usize::MAX;
    Len = "len", 1..=1;
    Push = "push", 2..=2;
    Str = "str", 1..=1;
    Int = "int", 1..=1;
    Error = "error", 1..=1;
    Try = "try", 1..=1;
    Collect = "collect", 0..=0;
    Buffer = "buffer", 1..=1;
    Read = "read", 2..=3;
    Write = "write", 4..=4;
    Size = "size", 1..=1;
    CStr = "cstr", 1..=2;
    Pointer = "pointer", 1..=1;
    Pin = "pin", 2..=2;
    Handle = "handle", 1..=1;
    Object = "object", 1..=1;
    Keep = "keep", 1..=1;
    Release = "release", 1..=1;
}
