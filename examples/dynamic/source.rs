//! The text of a script, places in it, and what goes wrong there.

use core::fmt;

/// A place in a script, from 1; columns are characters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Position {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// An error of a script, and the exception of this VM: it travels past C as it is. It holds text alone, so no collection concerns it.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) at: Position,
    pub(crate) message: String,
    /// The calls it has come through, innermost first.
    pub(crate) through: Vec<(Position, String)>,
}

/// Of a long way only so much is told.
const MOST_CALLS: usize = 6;

impl Fault {
    pub(crate) fn new(at: Position, message: impl fmt::Display) -> Self {
        Self { at, message: message.to_string(), through: Vec::new() }
    }

    /// Notes a call that the error comes through.
    pub(crate) fn passing(mut self, at: Position, call: impl FnOnce() -> String) -> Self {
        if self.through.len() <= MOST_CALLS {
            self.through.push((at, call()));
        }
        self
    }
}

/// A script.
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) text: String,
}

impl Source {
    /// The error as a person reads it: the place, the message, the line with a caret under it, and the calls it came through.
    pub(crate) fn describe(&self, fault: &Fault) -> String {
        let line = self.text.lines().nth(fault.at.line - 1).unwrap_or_default().replace('\t', " ");
        let mut said = format!(
            "{}:{}: {}\n  {line}\n  {:>column$}\n",
            self.name,
            fault.at,
            fault.message,
            '^',
            column = fault.at.column
        );
        for (index, (at, call)) in fault.through.iter().enumerate() {
            if index == MOST_CALLS {
                said.push_str("  in further calls\n");
                break;
            }
            said.push_str(&format!("  in {call}, called at {}:{at}\n", self.name));
        }
        said
    }
}
