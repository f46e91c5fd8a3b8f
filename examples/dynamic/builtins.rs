//! What the language has of its own.

use super::foreign::{Arrived, Memory, scalar};
use super::interpreter::Interpreter;
use super::parser::place;
use super::source::{Fault, Position};
use super::syntax::{Builtin, Expression, ExpressionKind};
use super::value::{Held, Value};
use super::vm::{Kind, ScriptVm, allocate, collect, text};
use reentry::dynamic::{Type, Value as CValue};
use reentry::testkit::heap::Ref;
use reentry::{Local, Mutator, RawHandle, Scope};
use std::io::Write as _;
use std::sync::Arc;

/// The largest buffer.
const LARGEST: i64 = 1 << 30;

impl Interpreter {
    /// Calls what the language has of its own.
    pub(crate) fn call_builtin<'s>(
        self: &Arc<Self>,
        scope: &mut Scope<'s, ScriptVm>,
        builtin: Builtin,
        arguments: &[Held<'s>],
        at: Position,
        sources: &[Expression],
    ) -> Result<Held<'s>, Fault> {
        let arity = builtin.arity();
        if !arity.contains(&arguments.len()) {
            let (name, least, most) = (builtin.name(), arity.start(), arity.end());
            let takes = if least == most { least.to_string() } else { format!("{least} to {most}") };
            let came = arguments.len();
            return Err(Fault::new(at, format!("`{name}` takes {takes} argument(s), and {came} came")));
        }
        let wrong = |message: String| Fault::new(at, message);
        // An error about an argument is shown where it stands.
        let wanted = |mutator: &Mutator<ScriptVm>, index: usize, what: &str| {
            let came = self.name_of(mutator, arguments[index]);
            Fault::new(sources[index].at, format!("{what} was expected, and {came} came"))
        };
        Ok(match builtin {
            Builtin::Print => {
                let words: Vec<_> = arguments.iter().map(|value| self.describe(scope, *value)).collect();
                // A reader that has left is no reason to stop.
                drop(writeln!(std::io::stdout(), "{}", words.join(" ")));
                Value::Nil
            }
            Builtin::Str => Value::Object(text(scope, &self.describe(scope, arguments[0]))),
            Builtin::Int => match arguments[0] {
                Value::Int(value) => Value::Int(value),
                Value::Float(value) if value.abs() < 9.2e18 => Value::Int(value as i64),
                Value::Pointer(address) => Value::Int(address as i64),
                other => {
                    let said = self.describe(scope, other);
                    Value::Int(said.trim().parse().map_err(|_| wanted(scope, 0, "a whole number"))?)
                }
            },
            Builtin::Error => return Err(wrong(self.describe(scope, arguments[0]))),
            Builtin::Try => match self.call(scope, arguments[0], &[], at) {
                Ok(_) => Value::Nil,
                Err(fault) => Value::Object(text(scope, &fault.message)),
            },
            Builtin::Collect => {
                collect(scope);
                Value::Nil
            }
            Builtin::Len => {
                let vm = scope.vm();
                let Value::Object(object) = arguments[0].bare(scope) else {
                    return Err(wanted(scope, 0, "a string, a buffer or a list"));
                };
                Value::Int(match vm.kind(object) {
                    Kind::Text | Kind::Buffer => vm.length(object) as i64,
                    Kind::List => vm.number(object) as i64,
                    _ => return Err(wanted(scope, 0, "a string, a buffer or a list")),
                })
            }
            Builtin::Push => match arguments[0] {
                Value::Object(list) if self.is(scope, arguments[0], Kind::List) => {
                    self.push(scope, list, arguments[1]);
                    arguments[0]
                }
                _ => return Err(wanted(scope, 0, "a list")),
            },
            Builtin::Buffer => match arguments[0] {
                Value::Int(size @ 0..=LARGEST) => {
                    Value::Object(allocate(scope, Kind::Buffer, &[], 0, &vec![0; size as usize]))
                }
                _ => return Err(wanted(scope, 0, "a size in bytes")),
            },
            Builtin::Size => Value::Int(self.c_type(scope, arguments[0], &sources[0])?.size() as i64),
            Builtin::Read => {
                let memory = self.memory(scope, arguments[0]).ok_or_else(|| wanted(scope, 0, "memory"))?;
                let ty = self.c_type(scope, arguments[1], &sources[1])?;
                let offset = match arguments.get(2) {
                    None => 0,
                    Some(index) => {
                        offset(*index, &memory, &ty).ok_or_else(|| wanted(scope, 2, "an index"))?
                    }
                };
                let bytes = memory.read(scope.vm(), offset, ty.size()).map_err(wrong)?;
                let value = ty.read(&bytes).map_err(|error| wrong(error.to_string()))?;
                Arrived::of(value).map_err(wrong)?.hold(scope)
            }
            Builtin::Write => {
                if self.is(scope, arguments[0], Kind::Text) {
                    return Err(wanted(scope, 0, "memory that can be written"));
                }
                let memory = self.memory(scope, arguments[0]).ok_or_else(|| wanted(scope, 0, "memory"))?;
                let ty = self.c_type(scope, arguments[1], &sources[1])?;
                let offset =
                    offset(arguments[2], &memory, &ty).ok_or_else(|| wanted(scope, 2, "an index"))?;
                let mut bytes = vec![0; ty.size()];
                let value = match arguments[3].bare(scope) {
                    Value::Object(object) if self.is(scope, arguments[3], Kind::Buffer) => {
                        let content = scope.vm().content(object, <[u8]>::to_vec);
                        ty.write(&mut bytes, CValue::Bytes(&content))
                    }
                    value => match scalar(Some(&ty), value) {
                        Some(value) => ty.write(&mut bytes, value),
                        None => return Err(wanted(scope, 3, &format!("a `{ty}`"))),
                    },
                };
                value.map_err(|error| Fault::new(sources[3].at, error))?;
                memory.write(scope.vm(), offset, &bytes).map_err(wrong)?;
                Value::Nil
            }
            Builtin::CStr => {
                let memory = self.memory(scope, arguments[0]).ok_or_else(|| wanted(scope, 0, "memory"))?;
                let length = match arguments.get(1) {
                    None => None,
                    Some(Value::Int(length @ 0..=LARGEST)) => Some(*length as usize),
                    Some(_) => return Err(wanted(scope, 1, "a length")),
                };
                let bytes = memory.text(scope.vm(), length).map_err(wrong)?;
                Value::Object(text(scope, &String::from_utf8_lossy(&bytes)))
            }
            Builtin::Pointer => match arguments[0] {
                Value::Int(address) => Value::pointer(address.cast_unsigned() as usize),
                Value::Pointer(address) => Value::Pointer(address),
                _ => return Err(wanted(scope, 0, "an address")),
            },
            Builtin::Pin => match arguments[0] {
                Value::Object(object) if self.memory(scope, arguments[0]).is_some() => {
                    self.pinned(scope, object, arguments[1], at)?
                }
                _ => return Err(wanted(scope, 0, "a string or a buffer")),
            },
            Builtin::Handle => match arguments[0] {
                Value::Object(object) => {
                    let object = scope.get(object);
                    Value::pointer(scope.handle(object).into_raw().get().get())
                }
                _ => return Err(wanted(scope, 0, "a string, buffer, list or function")),
            },
            Builtin::Object => {
                let raw = raw_handle(arguments[0]).ok_or_else(|| wanted(scope, 0, "a handle"))?;
                Value::Object(scope.lookup(raw).map_err(|error| wrong(error.to_string()))?).hold(scope)
            }
            Builtin::Keep => match arguments[0] {
                Value::Object(function) if self.is_function(scope, arguments[0]) => {
                    Value::Object(allocate(scope, Kind::Kept, &[function], 0, &[]))
                }
                _ => return Err(wanted(scope, 0, "a function")),
            },
            Builtin::Release => {
                if let Some(raw) = raw_handle(arguments[0]) {
                    self.world.release(raw).map_err(|error| wrong(error.to_string()))?;
                    return Ok(Value::Nil);
                }
                match arguments[0].bare(scope) {
                    Value::Object(function) if self.is_function(scope, arguments[0]) => {
                        Value::Int(self.release(scope, function) as i64)
                    }
                    _ => return Err(wanted(scope, 0, "a handle or a function")),
                }
            }
        })
    }

    /// Calls `callee` with the address of an object's bytes, which stay where they are meanwhile.
    fn pinned<'s>(
        self: &Arc<Self>,
        scope: &mut Scope<'s, ScriptVm>,
        object: Local<'_, Ref>,
        callee: Held<'_>,
        at: Position,
    ) -> Result<Held<'s>, Fault> {
        let mut pinner = self.world.pinner();
        let bare = scope.get(object);
        scope.pin_with(&mut pinner, bare).map_err(|error| Fault::new(at, error))?;
        let address = Value::Pointer(scope.vm().address(bare));
        let result = self.call(scope, callee, &[address], at);
        drop(pinner);
        result
    }

    fn memory(&self, mutator: &Mutator<ScriptVm>, value: Held<'_>) -> Option<Memory> {
        match value.bare(mutator) {
            Value::Pointer(address) => Some(Memory::Address(address)),
            Value::Object(object) if matches!(mutator.vm().kind(object), Kind::Text | Kind::Buffer) => {
                Some(Memory::Object(object))
            }
            _ => None,
        }
    }

    /// The C type that a string names. In a literal, what is wrong with it is shown where it stands.
    fn c_type(
        &self,
        mutator: &Mutator<ScriptVm>,
        value: Held<'_>,
        source: &Expression,
    ) -> Result<Type, Fault> {
        let said = match value.bare(mutator) {
            Value::Object(object) if mutator.vm().kind(object) == Kind::Text => mutator.vm().text(object),
            _ => {
                let came = self.name_of(mutator, value);
                return Err(Fault::new(
                    source.at,
                    format!("the name of a C type was expected, and {came} came"),
                ));
            }
        };
        let ty = self.program.types.parse(&said).map_err(|error| {
            let start = Position { column: source.at.column + 1, ..source.at };
            let literal = matches!(source.kind, ExpressionKind::Text(_));
            Fault::new(if literal { place(start, &error) } else { source.at }, error.message())
        })?;
        if ty.size() == 0 {
            return Err(Fault::new(source.at, format!("a `{ty}` has no size")));
        }
        Ok(ty)
    }
}

/// Where the element of this index begins. In C's memory there is no first one.
fn offset(index: Held<'_>, memory: &Memory, ty: &Type) -> Option<usize> {
    let Value::Int(index) = index else { return None };
    let bytes = index.checked_mul(ty.size() as i64)?;
    match memory {
        Memory::Address(_) => Some(bytes as usize),
        Memory::Object(_) => usize::try_from(bytes).ok(),
    }
}

fn raw_handle(value: Held<'_>) -> Option<RawHandle> {
    match value {
        Value::Pointer(word) => RawHandle::new(word).ok(),
        _ => None,
    }
}
