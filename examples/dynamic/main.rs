//! A small script language whose programs bind C libraries when they run, and call them with the objects of a heap that moves.
//!
//! ```text
//! cargo run --release -p dynamic -- examples/dynamic/scripts/sqlite.script
//! cargo run --release -p dynamic -- -e 'extern "libm.so.6" double pow(double, double); print(pow(2, 0.5));'
//! ```
//!
//! # How it keeps its references right
//!
//! Everything of the script is in the heap: strings, buffers, lists, functions, and the variables of each block. The heap is the test kit's: every collection moves every object
//! that is not pinned, and a reference that is not updated is a named error. Here there is a collection at every allocation, every call of C and every callback.
//!
//! | a reference is | in | by |
//! |---|---|---|
//! | in the interpreter's Rust frames | a [`Local`](reentry::Local) of a scope | the type: a value of a scope cannot leave it |
//! | on its way (out of a scope, into a variable, to C) | bare, up to the next safepoint | review: `Bare` in a signature |
//! | an argument of C | pinned by the call ([`Plan::Pin`](reentry::dynamic::Plan)): C gets the address of the bytes in the heap | the call |
//! | the function of a callback | a [`Handle`](reentry::Handle) in the closure's body | the closure |
//! | C's own (`handle(object)`) | a [`RawHandle`](reentry::RawHandle) | the word, which is checked |
//! | pinned by the script (`pin(object, fn(address) ...)`) | a [`Pinner`](reentry::Pinner) | the function's end |
//!
//! So no frame has anything to report, and `scan_segment` is empty.
//!
//! # How far a callback's closure lives
//!
//! A function that is passed where a declaration has a pointer to a function becomes a closure with that signature, for the length of the call. `keep(f)` in its place leaves the
//! closure to C until `release(f)`, which may come in a callback: of the closure itself even.
//!
//! # Errors
//!
//! An error in a callback is the exception of this VM. C gets a zero and returns; the error goes on behind the call, and names each call it came through.
#![expect(clippy::missing_panics_doc, reason = "a panic is a mistake of this VM's")]
#![expect(clippy::missing_errors_doc, reason = "the errors are those of scripts")]

mod builtins;
mod foreign;
mod interpreter;
mod lexer;
mod parser;
mod source;
mod syntax;
mod value;
mod vm;

use core::sync::atomic::{AtomicU64, Ordering};
use interpreter::Interpreter;
use reentry::World;
use source::{Fault, Source};
use std::io::Write as _;
use std::process::ExitCode;
use vm::ScriptVm;

const HELP: &str = "\
Runs a script that binds and calls C libraries.

usage: dynamic [--collect-every N] SCRIPT
       dynamic [--collect-every N] -e TEXT

  -e TEXT             the script itself
  --collect-every N   a collection at every N-th allocation, foreign call and callback (1)
  --help              this text

A script:
  extern \"libm.so.6\" double pow(double, double);    a function of C
  extern typedef struct point { int x, y; } point;  names for C types
  let twice = fn(x) { return 2 * x; };              functions, closures, recursion
  if (a < b && !c) { } else { }   while (a) { }   [1, \"two\", nil]   list[0] = 3;   // comment

  print(...)  str(x)  int(x)  len(x)  push(list, x)  error(text)  try(fn)  collect()
  buffer(bytes)  read(memory, \"type\", index)  write(memory, \"type\", index, x)  cstr(memory, length)
  size(\"type\")  pointer(number)  pin(bytes, fn(pointer) { })
  handle(object)  object(handle)  release(handle)  keep(fn)  release(fn)

A string goes to a `const char*` where it lies in the heap, a buffer to any pointer; nil is a null pointer. An integer for `...` is a `long`.

Exit code 0; 1 if the script has failed; 2 for bad arguments.
";

/// The script runs on a thread with this much stack: the interpreter recurses.
const STACK: usize = 256 << 20;

enum Choice {
    Help,
    Run { source: Source, collect_every: u64 },
}

fn main() -> ExitCode {
    ExitCode::from(start(std::env::args().skip(1)))
}

/// Runs the program, and gives its exit code.
fn start(arguments: impl Iterator<Item = String>) -> u8 {
    match choose(arguments) {
        Ok(Choice::Help) => {
            show(HELP);
            0
        }
        Ok(Choice::Run { source, collect_every }) => {
            let running = std::thread::Builder::new().stack_size(STACK).spawn(move || {
                run(&source, collect_every).map_err(|fault| eprint!("{}", source.describe(&fault))).is_err()
            });
            let running = running.expect("there is a thread");
            u8::from(running.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        }
        Err((code, message)) => {
            eprintln!("{message}");
            code
        }
    }
}

fn run(source: &Source, collect_every: u64) -> Result<(), Fault> {
    let program = parser::parse(&source.text)?;
    let world = World::new(ScriptVm::new(collect_every));
    let interpreter = Interpreter::link(program, world.clone())?;
    let mut mutator = world.attach().expect("this thread is new to the world");
    let outcome = interpreter.run(&mut mutator);
    interpreter.release_all();
    outcome?;
    let counts = &world.vm().counts;
    let [calls, callbacks, collections, moved] =
        [&counts.calls, &counts.callbacks, &counts.collections, &counts.moved]
            .map(|count: &AtomicU64| count.load(Ordering::Relaxed));
    show(&format!(
        "-- {calls} calls of C, {callbacks} callbacks, {collections} collections, {moved} objects moved\n"
    ));
    Ok(())
}

/// Writes to standard output. A reader that has left is no reason to stop.
fn show(text: &str) {
    drop(std::io::stdout().lock().write_all(text.as_bytes()));
}

/// Reads the command line, and the script; an error has its exit code.
fn choose(mut arguments: impl Iterator<Item = String>) -> Result<Choice, (u8, String)> {
    let (mut source, mut collect_every) = (None, 1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--help" | "-h" => return Ok(Choice::Help),
            "--collect-every" => {
                let number = arguments.next().and_then(|number| number.parse().ok());
                collect_every = number
                    .filter(|number| *number > 0)
                    .ok_or((2, "dynamic: --collect-every takes a number from 1".to_owned()))?;
            }
            "-e" => {
                let text = arguments.next().ok_or((2, "dynamic: -e takes a script".to_owned()))?;
                source = Some(Source { name: "-e".to_owned(), text });
            }
            _ if argument.starts_with('-') => {
                return Err((
                    2,
                    format!("dynamic: unknown argument `{argument}`; --help lists those there are"),
                ));
            }
            _ => {
                let text = std::fs::read_to_string(&argument)
                    .map_err(|error| (1, format!("dynamic: {argument}: {error}")))?;
                source = Some(Source { name: argument, text });
            }
        }
    }
    source.map(|source| Choice::Run { source, collect_every }).ok_or_else(|| (2, HELP.to_owned()))
}
