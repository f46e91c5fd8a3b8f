//! Where the script meets C: linking, calls, callbacks.

use super::interpreter::Interpreter;
use super::source::{Fault, Position};
use super::syntax::{Expression, Program};
use super::value::{Bare, Held, Value};
use super::vm::{Kind, ScriptVm, allocate, occasion};
use core::ffi::c_void;
use core::ptr;
use core::sync::atomic::Ordering;
use reentry::dynamic::{
    CallError, Closure, Invocation, Library, Plan, Scalar, Signature, Target, TryCallError, Type,
    Value as CValue,
};
use reentry::testkit::heap::Ref;
use reentry::{Handle, Mutator, Scope, World};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A closure that C keeps, and the function it was made of.
pub(crate) struct Kept {
    function: Handle<Ref>,
    _closure: Closure<ScriptVm>,
}

/// An argument on its way to C.
enum Passed {
    Scalar(CValue<'static>),
    Struct(Vec<u8>),
    /// The bytes of an object, which stays where it is meanwhile.
    Pinned(Ref),
    /// A callback for the length of the call.
    Callback(Closure<ScriptVm>),
}

/// What came from C.
pub(crate) enum Arrived {
    Value(Bare),
    Struct(Vec<u8>),
}

impl Arrived {
    pub(crate) fn of(value: CValue<'_>) -> Result<Self, String> {
        Ok(Self::Value(match value {
            CValue::Void => Value::Nil,
            CValue::Bool(value) => Value::Bool(value),
            CValue::Pointer(address) => Value::pointer(address.expose_provenance()),
            CValue::Bytes(bytes) => return Ok(Self::Struct(bytes.to_vec())),
            _ => match (value.as_i64(), value.as_f64()) {
                (Some(value), _) => Value::Int(value),
                (_, Some(value)) => Value::Float(value),
                _ => return Err(format!("{value} came from C, which is too large for this language")),
            },
        }))
    }

    /// The value in the language: a struct is a buffer.
    pub(crate) fn hold<'s>(self, scope: &mut Scope<'s, ScriptVm>) -> Held<'s> {
        match self {
            Self::Value(value) => value.hold(scope),
            Self::Struct(bytes) => Value::Object(allocate(scope, Kind::Buffer, &[], 0, &bytes)),
        }
    }
}

/// A value that is no object, as C has it where `ty` is declared. An integer becomes a `double` there, as in C.
pub(crate) fn scalar(ty: Option<&Type>, value: Bare) -> Option<CValue<'static>> {
    Some(match value {
        Value::Nil => CValue::NULL,
        Value::Bool(value) => CValue::Bool(value),
        Value::Int(value) if matches!(ty, Some(Type::Scalar(Scalar::Double | Scalar::Float))) => {
            CValue::F64(value as f64)
        }
        Value::Int(value) => CValue::I64(value),
        Value::Float(value) => CValue::F64(value),
        Value::Pointer(address) => CValue::Pointer(ptr::with_exposed_provenance_mut(address)),
        Value::Object(_) => return None,
    })
}

impl Interpreter {
    /// Opens the libraries that a program names, and finds its functions.
    pub(crate) fn link(program: Program, world: World<ScriptVm>) -> Result<Arc<Self>, Fault> {
        let mut libraries: HashMap<&str, Library> = HashMap::new();
        let mut functions = Vec::new();
        for declared in &program.declarations {
            let library = match libraries.get(&*declared.library) {
                Some(library) => library,
                None => {
                    // SAFETY: a script that names a library wants its initialisers run; whoever runs the script answers for that, as for its calls.
                    let opened = unsafe { Library::open(&declared.library) }
                        .map_err(|error| Fault::new(declared.library_at, error))?;
                    libraries.entry(&declared.library).or_insert(opened)
                }
            };
            let function = library.function(&declared.name, &declared.signature);
            functions.push(function.map_err(|error| Fault::new(declared.name_at, error))?);
        }
        drop(libraries);
        Ok(Arc::new(Self { program, functions, kept: Mutex::default(), world }))
    }

    /// Calls a function of C.
    pub(crate) fn call_foreign<'s>(
        self: &Arc<Self>,
        scope: &mut Scope<'s, ScriptVm>,
        number: usize,
        arguments: &[Held<'s>],
        at: Position,
        sources: &[Expression],
    ) -> Result<Held<'s>, Fault> {
        let function = &self.functions[number];
        let types = function.signature().parameters();
        // The last safepoint before the call: what is bare from here on stays good.
        occasion(scope);
        let mut passed = Vec::with_capacity(arguments.len());
        for (index, argument) in arguments.iter().enumerate() {
            let bare = argument.bare(scope);
            let prepared = self.pass(scope, types.get(index), bare, at);
            passed.push(prepared.map_err(|message| {
                let name = function.name();
                Fault::new(sources[index].at, format!("argument {index} of `{name}`: {message}"))
            })?);
        }
        scope.vm().counts.calls.fetch_add(1, Ordering::Relaxed);
        let mut call = scope.foreign_call().dynamic(function);
        for (source, argument) in sources.iter().zip(&passed) {
            let taken = match argument {
                Passed::Scalar(value) => call.value(*value),
                Passed::Struct(bytes) => call.value(CValue::Bytes(bytes)),
                Passed::Pinned(object) => call.reference(*object, Plan::Pin).map(drop),
                Passed::Callback(closure) => call.closure(closure),
            };
            taken.map_err(|error| {
                let of_the_call = matches!(error, CallError::WrongCount { .. });
                Fault::new(if of_the_call { at } else { source.at }, error)
            })?;
        }
        // SAFETY: that the function has the type it is declared with, and may be called with these arguments, the script's author promises: the language is as unsafe here as C.
        let outcome = unsafe { call.try_run() }.map(|call| Arrived::of(call.result()));
        // The pins end.
        drop(call);
        match outcome {
            Ok(arrived) => {
                let arrived = arrived.map_err(|message| Fault::new(at, message))?;
                let checked = inside_an_argument(scope.vm(), arrived, &passed);
                let arrived = checked.map_err(|index| {
                    let name = function.name();
                    let message = format!(
                        "`{name}` gives an address inside argument {index}, which can move from now on; pass it as `pin(it, fn(address) {{ }})` gives it"
                    );
                    Fault::new(at, message)
                })?;
                Ok(arrived.hold(scope))
            }
            Err(TryCallError::Thrown(fault)) => {
                scope.local_mut().failing = false;
                Err(fault.passing(at, || format!("C's `{}`", function.name())))
            }
            Err(error) => Err(Fault::new(at, error)),
        }
    }

    /// Chooses how an argument is passed. No safepoint.
    fn pass(
        self: &Arc<Self>,
        mutator: &mut Mutator<ScriptVm>,
        ty: Option<&Type>,
        argument: Bare,
        at: Position,
    ) -> Result<Passed, String> {
        let Value::Object(object) = argument else {
            return Ok(Passed::Scalar(scalar(ty, argument).unwrap_or(CValue::NULL)));
        };
        let kind = mutator.vm().kind(object);
        match (kind, ty) {
            (Kind::Text, Some(Type::Pointer(pointee))) if !pointee.constant => Err(format!(
                "a string is not written to, and the parameter is a `{}`; pass a `buffer`",
                ty.map(Type::to_string).unwrap_or_default()
            )),
            (Kind::Text, Some(Type::Pointer(pointee)))
                if pointee.target == Target::Type(Type::Scalar(Scalar::Char))
                    && mutator.vm().content(object, |bytes| bytes.contains(&0)) =>
            {
                Err("the string has a NUL inside, where C would take it to end".to_owned())
            }
            (Kind::Text | Kind::Buffer, Some(Type::Pointer(pointee)))
                if matches!(pointee.target, Target::Function(_)) =>
            {
                Err("a function was expected, and bytes came".to_owned())
            }
            (Kind::Buffer, Some(Type::Struct(_))) => {
                Ok(Passed::Struct(mutator.vm().content(object, <[u8]>::to_vec)))
            }
            (Kind::Text | Kind::Buffer, _) => Ok(Passed::Pinned(object)),
            (Kind::Function | Kind::Kept, _) => {
                let signature = ty.and_then(Type::function).ok_or(
                    "a function can be passed only where the declaration has a pointer to a function",
                )?;
                let function = if kind == Kind::Kept { mutator.vm().first(object) } else { object };
                let closure =
                    self.closure(mutator, function, signature, at).map_err(|error| error.to_string())?;
                if kind == Kind::Function {
                    return Ok(Passed::Callback(closure));
                }
                let code = closure.code().cast_mut();
                let function = mutator.handle(function);
                self.kept().push(Kept { function, _closure: closure });
                Ok(Passed::Scalar(CValue::Pointer(code)))
            }
            (Kind::List | Kind::Cells, _) => Err("a list has no form in C; use a `buffer`".to_owned()),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the closures that C was left with of a function; gives how many.
    pub(crate) fn release(&self, mutator: &Mutator<ScriptVm>, function: Ref) -> usize {
        let mut kept = self.kept();
        let (ended, left) = kept.drain(..).partition(|kept| mutator.load(&kept.function) == function);
        *kept = left;
        drop(kept);
        let ended: Vec<Kept> = ended;
        ended.len()
    }

    /// Ends all of them.
    pub(crate) fn release_all(&self) {
        let kept = core::mem::take(&mut *self.kept());
        drop(kept);
    }

    /// Makes a C function of a function of the script.
    fn closure(
        self: &Arc<Self>,
        mutator: &mut Mutator<ScriptVm>,
        function: Ref,
        signature: &Signature,
        at: Position,
    ) -> Result<Closure<ScriptVm>, reentry::dynamic::ClosureError> {
        let name = &self.program.codes[mutator.vm().number(function)].name;
        let (handle, this) = (mutator.handle(function), Arc::clone(self));
        Closure::builder(&self.world, signature)
            .name(name)
            .build(move |mutator, call| this.called_back(mutator, call, &handle, at))
    }

    /// C calls a function of the script.
    fn called_back(
        self: &Arc<Self>,
        mutator: &mut Mutator<ScriptVm>,
        call: &Invocation<'_>,
        function: &Handle<Ref>,
        at: Position,
    ) -> Result<(), Fault> {
        mutator.vm().counts.callbacks.fetch_add(1, Ordering::Relaxed);
        let result = call.signature().result();
        if mutator.local().failing {
            // An earlier callback of the same call has failed, and C has not returned yet: nothing of the script runs meanwhile.
            let zero = vec![0; result.size()];
            let returned = result.read(&zero).and_then(|zero| call.returns(zero));
            return returned.map_err(|error| Fault::new(at, error));
        }
        occasion(mutator);
        let outcome = mutator.scope(|scope| {
            let function = scope.root(scope.load(function));
            let mut arguments = Vec::with_capacity(call.len());
            for argument in call.arguments() {
                let arrived = Arrived::of(argument).map_err(|message| Fault::new(at, message))?;
                arguments.push(arrived.hold(scope));
            }
            let value = self.call(scope, Value::Object(function), &arguments, at)?;
            if *result == Type::Void {
                return Ok(());
            }
            let name = || format!("the result of `{}`", self.describe(scope, Value::Object(function)));
            let Some(given) = scalar(Some(result), value.bare(scope)) else {
                let came = self.name_of(scope, value);
                return Err(Fault::new(at, format!("{} cannot be {came}: C would not keep it", name())));
            };
            call.returns(given).map_err(|error| Fault::new(at, format!("{}: {error}", name())))
        });
        mutator.local_mut().failing = outcome.is_err();
        outcome
    }
}

/// An address in an object that was pinned for the call means nothing after it. That of its first byte is taken for the object, as C's `strcpy` gives its destination; any other is
/// refused, with the number of the argument.
fn inside_an_argument(vm: &ScriptVm, arrived: Arrived, passed: &[Passed]) -> Result<Arrived, usize> {
    let Arrived::Value(Value::Pointer(address)) = arrived else { return Ok(arrived) };
    for (index, argument) in passed.iter().enumerate() {
        if let Passed::Pinned(object) = *argument {
            let start = vm.address(object);
            if address == start {
                return Ok(Arrived::Value(Value::Object(object)));
            }
            if (start..=start + vm.length(object)).contains(&address) {
                return Err(index);
            }
        }
    }
    Ok(arrived)
}

/// Memory that a script reads or writes: an object's bytes, or an address of C's.
pub(crate) enum Memory {
    Object(Ref),
    Address(usize),
}

impl Memory {
    /// Reads `size` bytes.
    pub(crate) fn read(&self, vm: &ScriptVm, offset: usize, size: usize) -> Result<Vec<u8>, String> {
        match *self {
            Self::Object(object) => vm.content(object, |bytes| {
                let end = offset.saturating_add(size);
                bytes.get(offset..end).map(<[u8]>::to_vec).ok_or_else(|| outside(bytes.len(), offset, size))
            }),
            Self::Address(address) => {
                let start = ptr::with_exposed_provenance::<u8>(address.wrapping_add(offset));
                // SAFETY: that C has so many bytes there the script's author promises, as in C.
                Ok(unsafe { core::slice::from_raw_parts(start, size) }.to_vec())
            }
        }
    }

    /// Writes bytes.
    pub(crate) fn write(&self, vm: &ScriptVm, offset: usize, bytes: &[u8]) -> Result<(), String> {
        match *self {
            Self::Object(object) => {
                let length = vm.length(object);
                if offset.saturating_add(bytes.len()) > length {
                    return Err(outside(length, offset, bytes.len()));
                }
                vm.write(object, offset, bytes);
            }
            Self::Address(address) => {
                let start = ptr::with_exposed_provenance_mut::<u8>(address.wrapping_add(offset));
                // SAFETY: as for `read`.
                unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), start, bytes.len()) };
            }
        }
        Ok(())
    }

    /// The bytes up to a NUL, or so many.
    pub(crate) fn text(&self, vm: &ScriptVm, length: Option<usize>) -> Result<Vec<u8>, String> {
        match (self, length) {
            (_, Some(length)) => self.read(vm, 0, length),
            (Self::Object(object), None) => {
                Ok(vm.content(*object, |bytes| bytes.iter().copied().take_while(|byte| *byte != 0).collect()))
            }
            (Self::Address(address), None) => {
                let start = ptr::with_exposed_provenance::<c_void>(*address);
                // SAFETY: as for `read`: a NUL follows.
                Ok(unsafe { core::ffi::CStr::from_ptr(start.cast()) }.to_bytes().to_vec())
            }
        }
    }
}

fn outside(length: usize, offset: usize, size: usize) -> String {
    format!("{size} bytes from {offset} on are not in the {length} bytes there are")
}
